// SPDX-License-Identifier: GPL-2.0

//! The objects of the torture, each of which detects a use after its drop.

use super::tally::*;
use super::{
    interrupts,
    BY_CPU, //
};
use kernel::sync::{
    atomic::{
        Atomic,
        Relaxed,
        Release, //
    },
    percpu_ref::{
        Counted,
        PercpuRef,
        PercpuRefGuard,
        Reinit,
        UniquePercpuRef, //
    },
    rcu::RcuBox, //
};
use kernel::{
    alloc::Flags,
    prelude::*,
    time::{
        delay::fsleep,
        Delta, //
    },
};

/// Counts a get (0) or an interrupt (1) in the local CPU's counter.
pub(crate) fn count_by_cpu(index: usize) {
    if let Some(counter) = BY_CPU.element(index) {
        counter.inc();
    }
}

const ALIVE: u32 = 0x600d_600d;
const DEAD: u32 = 0xdead_dead;

/// An object with one life.
///
/// Each `N` is another type, which has a class of its own in the library.
pub(crate) struct Item<const N: usize> {
    canary: Atomic<u32>,
    confirmed: Atomic<u32>,
    released: Atomic<u32>,
}

pub(crate) const PLAIN: usize = 0;
/// The kill of an object of this type waits for RCU Tasks.
pub(crate) const TASKS: usize = 1;
/// The release of an object of this type sleeps.
pub(crate) const SLEEPER: usize = 2;
/// The first of the other types.
pub(crate) const OTHER: usize = 3;
pub(crate) const NUMBER: usize = OTHER + 32;

/// The number of objects of each type that were made.
pub(crate) static MADE: [Tally; NUMBER] = [const { Tally::new() }; NUMBER];
/// The number of objects of each type that were dropped.
pub(crate) static DROPPED: [Tally; NUMBER] = [const { Tally::new() }; NUMBER];

impl<const N: usize> Item<N> {
    /// Makes an unshared object.
    pub(crate) fn new(flags: Flags) -> Result<UniquePercpuRef<Self>> {
        let item = Self {
            canary: Atomic::new(ALIVE),
            confirmed: Atomic::new(0),
            released: Atomic::new(0),
        };
        OBJECTS.inc();
        MADE[N].inc();
        // If there is no memory, the item is dropped without a release.
        UniquePercpuRef::new(item, flags).inspect_err(|_| OUT_OF_MEMORY.inc())
    }

    #[track_caller]
    pub(crate) fn share(unique: UniquePercpuRef<Self>) -> PercpuRef<Self> {
        SHARED.inc();
        unique.into()
    }

    #[track_caller]
    pub(crate) fn make() -> Result<PercpuRef<Self>> {
        Self::new(GFP_KERNEL).map(Self::share)
    }

    /// Returns whether the object was not dropped, which must be so while there is a reference.
    pub(crate) fn is_alive(&self) -> bool {
        self.canary.load(Relaxed) == ALIVE
    }
}

impl<const N: usize> Counted for Item<N> {
    const MAY_SLEEP: bool = N == SLEEPER;
    const RCU_TASKS: bool = N == TASKS;

    fn release(&self) {
        expect!(self.is_alive() && self.released.fetch_add(1, Relaxed) == 0);
        if N == SLEEPER {
            fsleep(Delta::from_micros(300));
            RELEASES_ASLEEP.inc();
        } else if interrupts::in_hardirq() {
            RELEASES_IN_HARD_INTERRUPT.inc();
        }
        if N == TASKS {
            RELEASES_BY_RCU_TASKS.inc();
        }
        RELEASES.inc();
    }

    fn confirmed(&self) {
        expect!(self.is_alive() && self.released.load(Relaxed) == 0);
        expect!(self.confirmed.fetch_add(1, Relaxed) == 0);
        CONFIRMATIONS.inc();
    }
}

impl<const N: usize> Drop for Item<N> {
    fn drop(&mut self) {
        expect!(self.is_alive());
        self.canary.store(DEAD, Relaxed);
        DROPPED[N].inc();
        OBJECTS_DROPPED.inc();
    }
}

/// Two words that match until the pair is dropped, which readers find without a reference.
pub(crate) struct Pair([Atomic<usize>; 2]);

impl Pair {
    pub(crate) fn new(value: usize) -> Result<RcuBox<Self>> {
        let pair = RcuBox::new(Self([Atomic::new(value), Atomic::new(!value)]), GFP_KERNEL)?;
        PAIRS.inc();
        Ok(pair)
    }

    pub(crate) fn is_alive(&self) -> bool {
        self.0[0].load(Relaxed) == !self.0[1].load(Relaxed)
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        expect!(self.is_alive());
        self.0[1].store(self.0[0].load(Relaxed), Relaxed);
        PAIRS_DROPPED.inc();
    }
}

/// An object that is killed, resurrected, frozen and switched.
pub(crate) struct Gate {
    pub(crate) inside: Atomic<i32>,
    pub(crate) confirmed: Tally,
    pub(crate) releases: Tally,
}

impl Gate {
    pub(crate) fn new() -> Result<PercpuRef<Self, Reinit>> {
        let gate = Self {
            inside: Atomic::new(0),
            confirmed: Tally::new(),
            releases: Tally::new(),
        };
        Ok(UniquePercpuRef::new_reinit(gate, GFP_KERNEL)?.into())
    }

    /// Uses and puts a reference, in any context.
    pub(crate) fn pass(guard: PercpuRefGuard<Self>) {
        guard.inside.add(1, Relaxed);
        let clone = guard.clone();
        guard.inside.fetch_sub(1, Release);
        drop(guard);
        drop(clone);
        GETS.add(2);
        count_by_cpu(0);
        count_by_cpu(0);
    }
}

impl Counted for Gate {
    fn release(&self) {
        self.releases.inc();
    }

    fn confirmed(&self) {
        self.confirmed.inc();
        CONFIRMATIONS.inc();
    }

    fn switched(&self) {
        SWITCHES.inc();
    }
}

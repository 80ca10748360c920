// SPDX-License-Identifier: GPL-2.0

//! The threads of the torture, each of which ends soon after the end of the torture.

use super::interrupts::{
    send,
    swap, //
};
use super::kthread::online_cpus;
use super::objects::*;
use super::tally::*;
use super::{
    Stage,
    BY_CPU, //
};
use kernel::percpu::{
    Local,
    PerCpu, //
};
use kernel::sync::{
    atomic::{
        Atomic,
        Relaxed, //
    },
    percpu_ref::{
        PercpuRef,
        PercpuRefGuard,
        RcuPercpuRef,
        UniquePercpuRef, //
    },
    rcu, //
};
use kernel::{
    alloc::Flags,
    prelude::*,
    time::{
        delay::fsleep,
        Delta,
        Instant,
        Monotonic, //
    },
};

extern "C" {
    fn remove_cpu(cpu: c_uint) -> c_int;
    fn add_cpu(cpu: c_uint) -> c_int;
    fn percpu_ref_torture_use_memory() -> c_ulong;
}

/// A function that some of the threads run.
pub(crate) struct Part {
    pub(crate) name: &'static str,
    /// The function, which is called with a number that depends on the CPU.
    pub(crate) run: fn(&Stage, usize),
    /// The number of threads on each CPU, or 0 for one thread in all.
    pub(crate) on_each_cpu: usize,
    /// Whether the function needs CPUs that can go offline.
    pub(crate) needs_offline: bool,
    pub(crate) running: Atomic<usize>,
}

impl Part {
    const fn new(name: &'static str, run: fn(&Stage, usize), on_each_cpu: usize) -> Self {
        Self {
            name,
            run,
            on_each_cpu,
            needs_offline: false,
            running: Atomic::new(0),
        }
    }
}

pub(crate) static PARTS: [Part; 9] = [
    Part::new("read", Stage::read, 2),
    Part::new("kill", Stage::kill, 1),
    Part::new("switch", Stage::switch, 1),
    Part::new("kill_tasks", Stage::kill_tasks, 0),
    Part::new("kill_sleepers", Stage::kill_sleepers, 0),
    Part::new("live_and_die", Stage::live_and_die, 0),
    Part::new("put_in_interrupt", Stage::put_in_interrupt, 0),
    Part::new("use_memory", Stage::use_memory, 0),
    Part {
        needs_offline: true,
        ..Part::new("take_offline", Stage::take_offline, 0)
    },
];

/// The number of threads that are waiting for RCU Tasks.
pub(crate) static WAITING_FOR_TASKS: Atomic<usize> = Atomic::new(0);

/// Calls `end`, which waits for the end of an object, and checks the time that it takes.
///
/// A waiter in the library checks again every ten seconds. So a wait of ten seconds has missed its
/// wake-up, or there was none. A grace period of RCU Tasks may take longer.
fn wait<R>(for_tasks: bool, end: impl FnOnce() -> R) -> R {
    let start = Instant::<Monotonic>::now();
    if for_tasks {
        WAITING_FOR_TASKS.add(1, Relaxed);
    }
    let result = end();
    let elapsed = start.elapsed();
    if for_tasks {
        WAITING_FOR_TASKS.fetch_sub(1, Relaxed);
        LONGEST_WAIT_FOR_TASKS.raise(elapsed.as_millis() as u64);
    } else {
        LONGEST_WAIT.raise(elapsed.as_millis() as u64);
        expect!(elapsed < Delta::from_secs(10));
    }
    result
}

/// Gets and puts a reference repeatedly for a tenth of a millisecond.
fn get_and_put<const N: usize>(guard: &PercpuRefGuard<Item<N>>) {
    let Some(counter) = BY_CPU.element(0) else {
        return;
    };
    let start = Instant::<Monotonic>::now();
    while start.elapsed() < Delta::from_micros(100) {
        for _ in 0..64 {
            let clone = guard.clone();
            counter.inc();
            drop(clone);
        }
        GETS.add(64);
    }
}

/// Splits and merges batches of references.
fn split_and_merge<const N: usize>(guard: &PercpuRefGuard<Item<N>>, turn: usize) {
    let mut batch = guard.get_many(turn & 127);
    BATCHES.inc();
    let half = batch.split(batch.len() / 2);
    if turn & 1 == 0 {
        drop(batch);
        drop(half);
        return;
    }
    if let Some(one) = batch.take() {
        expect!(one.is_alive());
        expect!(batch.put_back(one).is_ok());
    }
    if let Some(half) = half {
        expect!(batch.merge(half).is_ok());
    }
    expect!(batch.len() == turn & 127);
}

impl Stage {
    /// Gets a reference to the object in one of `places`, by one of three methods.
    #[track_caller]
    pub(crate) fn look_up<const N: usize>(
        &self,
        places: &[RcuPercpuRef<Item<N>>],
        turn: usize,
    ) -> Option<PercpuRefGuard<Item<N>>> {
        let place = &places[(turn / 3) % places.len()];
        let found = match turn % 3 {
            0 => place.try_get(),
            1 => place.try_get_live(),
            _ => place
                .try_get_many(turn & 127)
                .and_then(|mut batch| batch.take()),
        };
        if let Some(guard) = &found {
            GETS.inc();
            count_by_cpu(0);
            expect!(guard.is_alive());
        }
        found
    }

    /// Looks up objects, and gets and puts references by each method.
    fn read(&self, number: usize) {
        let mut turn = number;
        while self.goes_on(turn) {
            turn = turn.wrapping_add(1);
            {
                let section = rcu::read_lock();
                let pair = self.pairs[turn & 7].load(&section);
                expect!(pair.is_none_or(Pair::is_alive));
            }
            match turn & 3 {
                0 => self.use_item(self.look_up(&self.tasks, turn / 4), turn / 4),
                1 => self.use_item(self.look_up(&self.sleepers, turn / 4), turn / 4),
                _ => {
                    let found = self.look_up(&self.places, turn / 2);
                    if let Some(guard) = &found {
                        match (turn / 4) & 15 {
                            1 => drop(self.left.lock().replace(guard.clone())),
                            2 => drop(swap(turn / 64, Some(guard.clone()))),
                            _ => {}
                        }
                    }
                    self.use_item(found, turn / 2);
                }
            }
            drop(self.look_up(&self.doomed, turn));
            let passing = match turn % 3 {
                0 => self.gate.try_get(),
                1 => self.gate.try_get_live(),
                _ => self
                    .kept
                    .try_get_many(turn & 127)
                    .and_then(|mut batch| batch.take()),
            };
            if let Some(guard) = passing {
                Gate::pass(guard);
            }
            // Leaves time for the other threads, and for loading and unloading modules.
            fsleep(Delta::from_millis(1));
        }
    }

    fn use_item<const N: usize>(&self, found: Option<PercpuRefGuard<Item<N>>>, turn: usize) {
        let Some(guard) = found else { return };
        let section = guard.lockdep_section();
        get_and_put(&guard);
        split_and_merge(&guard, turn);
        if turn & 31 == 0 {
            fsleep(Delta::from_millis(2));
        }
        drop(section);
        expect!(guard.is_alive());
    }

    /// Puts the guards that threads have left for other threads and for C.
    ///
    /// Each thread calls this before it rests or ends, because another thread may be waiting for
    /// the objects of these guards.
    pub(crate) fn tidy_up(&self) {
        let left = self.left.lock().take();
        drop(left);
        for n in 0..8 {
            drop(swap(n, None));
        }
    }

    /// Replaces objects in places, and kills the old objects by each method.
    fn kill(&self, number: usize) {
        let mut turn = number;
        while self.goes_on(turn) {
            turn = turn.wrapping_add(1);
            fsleep(Delta::from_micros(200));
            if OBJECTS.get().wrapping_sub(OBJECTS_DROPPED.get()) > 2000 {
                fsleep(Delta::from_millis(5));
            }
            if turn % 5 == 0 {
                drop(self.pairs[turn & 7].take());
            } else if let Ok(new) = Pair::new(turn) {
                drop(self.pairs[turn & 7].replace(Some(new)));
            }
            if let Ok(new) = Item::make() {
                if let Err(new) = self.doomed[turn & 15].insert(new) {
                    KILLS.inc();
                    drop(new);
                }
            }
            if turn & 15 == 0 && wait(false, || self.places[(turn >> 4) & 7].remove()) {
                REMOVALS.inc();
                KILLS.inc();
            }
            let Ok(new) = Item::make() else { continue };
            let place = &self.places[turn & 7];
            let old = if turn & 16 == 0 {
                let Some(current) = place.try_get() else {
                    drop(place.replace(Some(new)).inspect(|_| KILLS.inc()));
                    continue;
                };
                GETS.inc();
                count_by_cpu(0);
                match place.replace_if(&current, Some(new)) {
                    Ok(old) => {
                        expect!(old.is_of(&current));
                        REPLACEMENTS.inc();
                        old
                    }
                    Err(new) => {
                        KILLS.inc();
                        drop(new);
                        continue;
                    }
                }
            } else {
                let Some(old) = place.replace(Some(new)) else {
                    continue;
                };
                old
            };
            KILLS.inc();
            end(old, turn);
        }
    }

    /// Replaces and kills objects that wait for RCU Tasks.
    ///
    /// Does so slowly, because RCU Tasks is not made for many callbacks a second.
    fn kill_tasks(&self, number: usize) {
        self.replace_and_end(&self.tasks, number, Delta::from_millis(20));
    }

    /// Replaces and kills objects whose release sleeps.
    fn kill_sleepers(&self, number: usize) {
        self.replace_and_end(&self.sleepers, number, Delta::from_millis(3));
    }

    fn replace_and_end<const N: usize>(
        &self,
        places: &[RcuPercpuRef<Item<N>>],
        number: usize,
        pause: Delta,
    ) {
        let mut turn = number;
        while self.goes_on(turn) {
            turn = turn.wrapping_add(1);
            fsleep(pause);
            let Ok(new) = Item::make() else { continue };
            if let Some(old) = places[turn % places.len()].replace(Some(new)) {
                KILLS.inc();
                end(old, turn);
            }
        }
    }

    /// Kills, resurrects, freezes and switches the gate, which other threads do at the same time.
    fn switch(&self, number: usize) {
        let mut turn = number;
        while self.goes_on(turn) {
            turn = turn.wrapping_add(1);
            match turn % 8 {
                0 | 1 => {
                    if self.gate.kill_and_confirm() {
                        KILLS.inc();
                        TO_CONFIRM.inc();
                    }
                    if self.gate.try_get_live().is_none() {
                        REFUSED.inc();
                    }
                }
                2 => {
                    TO_SWITCH.inc();
                    self.gate.switch_to_atomic();
                }
                3 => self.gate.switch_to_atomic_sync(),
                4 => self.gate.switch_to_percpu(),
                5 => {
                    let frozen = wait(false, || (self.gate.freeze(), self.gate.freeze()));
                    FREEZES.add(2);
                    expect!(self.gate.is_zero() && self.gate.try_get().is_none());
                    drop(frozen.0);
                    expect!(self.gate.is_zero() && self.gate.try_get_live().is_none());
                }
                6 => {
                    if self.gate.reinit().is_ok() {
                        RESURRECTIONS.inc();
                    }
                }
                _ => {
                    if self.gate.resurrect().is_ok() {
                        RESURRECTIONS.inc();
                    }
                }
            }
            self.kept.switch_to_percpu();
            if turn & 7 == 0 {
                TO_SWITCH.inc();
                self.kept.switch_to_atomic();
            }
            fsleep(Delta::from_micros(100 + 61 * (number as i64 & 7)));
        }
    }

    /// Makes and kills objects of many types, few of each type at a time.
    ///
    /// So classes are made and removed.
    fn live_and_die(&self, number: usize) {
        let mut turn = number;
        while self.goes_on(turn) {
            turn = turn.wrapping_add(1);
            LIVES[turn % LIVES.len()](turn);
            fsleep(Delta::from_millis(2));
        }
    }

    /// Passes the last references of objects to interrupts, which put them.
    fn put_in_interrupt(&self, number: usize) {
        let mut turn = number;
        while self.goes_on(turn) {
            turn = turn.wrapping_add(1);
            fsleep(Delta::from_millis(1));
            let Ok(item) = Item::<PLAIN>::make() else {
                continue;
            };
            let Some(guard) = item.try_get() else {
                expect!(false);
                continue;
            };
            GETS.inc();
            count_by_cpu(0);
            KILLS.inc();
            expect!(item.kill());
            // In most turns, waits until the reference is closed, so that the guard is the last
            // reference.
            let start = Instant::<Monotonic>::now();
            while turn & 7 != 0 && item.references() != Some(1) {
                expect!(start.elapsed() < Delta::from_secs(10));
                fsleep(Delta::from_millis(1));
            }
            drop(send(guard));
            if turn & 1 == 0 {
                expect!(wait(false, || item.wait_released_timeout(BOUND)).is_ok());
            }
        }
    }

    /// Exhausts the memory of the machine and the reserve of the per-CPU allocator.
    ///
    /// Also makes objects whose initialisers fail, and objects for which there is no memory.
    fn use_memory(&self, number: usize) {
        let mut turn = number;
        while self.goes_on(turn) {
            turn = turn.wrapping_add(1);
            // SAFETY: `percpu_ref_torture_use_memory()` can be called from process context.
            if unsafe { percpu_ref_torture_use_memory() } > 0 {
                MEMORY_USED.inc();
            }
            let fails = Err::<_, Error>(EINVAL);
            if UniquePercpuRef::<Item<PLAIN>>::new(fails, GFP_KERNEL).is_err() {
                FAILED_INITS.inc();
            }
            // An allocation that does not sleep can use only the reserve of the per-CPU allocator.
            let used = (
                use_up(PerCpu::<[Local<u64>; 512]>::zeroed),
                use_up(PerCpu::<[Local<u64>; 64]>::zeroed),
                use_up(PerCpu::<[Local<u64>; 8]>::zeroed),
                use_up(PerCpu::<Local<u64>>::zeroed),
            );
            drop(use_up(Item::<PLAIN>::new));
            drop(used);
            fsleep(Delta::from_millis(1));
            let many = use_up(Item::<PLAIN>::new);
            for (number, item) in many.into_iter().enumerate() {
                if number & 1 == 0 {
                    CANCELLATIONS.inc();
                    item.cancel_init();
                } else {
                    KILLS.inc();
                    drop(Item::share(item));
                }
            }
            fsleep(Delta::from_millis(500));
        }
    }

    /// Takes CPUs offline and online again, one at a time.
    fn take_offline(&self, _number: usize) {
        while self.goes_on(0) {
            for cpu in online_cpus().filter(|cpu| cpu.as_u32() != 0) {
                // SAFETY: `remove_cpu()` can be called from process context.
                if unsafe { remove_cpu(cpu.as_u32()) } == 0 {
                    OFFLINE.inc();
                    fsleep(Delta::from_millis(30));
                    // SAFETY: `add_cpu()` can be called from process context.
                    expect!(unsafe { add_cpu(cpu.as_u32()) } == 0);
                }
                fsleep(Delta::from_millis(30));
                if !self.goes_on(0) {
                    break;
                }
            }
        }
    }
}

/// Makes objects until that fails, there are 4096 objects, or a tenth of a second has passed.
///
/// The time is short because RCU Tasks waits for this function.
fn use_up<T, E>(make: impl Fn(Flags) -> Result<T, E>) -> KVec<T> {
    let mut made = KVec::new();
    let start = Instant::<Monotonic>::now();
    while made.len() < 4096
        && start.elapsed() < Delta::from_millis(100)
        && made.reserve(1, GFP_NOWAIT).is_ok()
    {
        let Ok(one) = make(GFP_NOWAIT) else { break };
        // Room was reserved above, so this does not fail.
        let _ = made.push(one, GFP_NOWAIT);
    }
    made
}

/// The timeout of most waits, so that a thread ends even if the object does not.
const BOUND: Delta = Delta::from_secs(30);

/// Kills an object, to which other threads may have references, by one of eight methods.
fn end<const N: usize>(old: PercpuRef<Item<N>>, turn: usize) {
    match turn % 8 {
        0 => drop(old),
        1 => expect!(old.kill()),
        2 => {
            TO_CONFIRM.inc();
            expect!(old.kill_and_confirm());
        }
        3 => {
            TO_CONFIRM.inc();
            expect!(old.kill_and_confirm());
            expect!(wait(N == TASKS, || old.wait_released_timeout(BOUND)).is_ok());
            expect!(old.try_get().is_none() && old.is_zero());
            REFUSED.inc();
        }
        4 => {
            let result = old.kill_and_wait_timeout(Delta::from_millis(1));
            expect!(result.is_ok() || old.is_dying());
        }
        5 => {
            // A wait for a reference that the thread itself holds ends by its timeout.
            let guard = old.try_get();
            expect!(guard.is_some());
            expect!(old.kill_and_wait_timeout(Delta::from_micros(300)) == Err(ETIMEDOUT));
            TIMEOUTS.inc();
            expect!(guard.as_deref().is_some_and(Item::is_alive));
            drop(guard);
            GETS.inc();
            count_by_cpu(0);
            expect!(wait(N == TASKS, || old.wait_released_timeout(BOUND)).is_ok());
        }
        6 => expect!(wait(N == TASKS, || old.kill_and_wait_killable()).is_ok()),
        _ => expect!(wait(N == TASKS, || old.kill_and_wait())),
    }
}

/// Makes and kills an object of one type, with guards that are put before and after the kill.
fn live<const N: usize>(turn: usize) {
    let Ok(item) = Item::<N>::make() else { return };
    let guard = item.try_get();
    expect!(guard.is_some());
    let Some(guard) = guard else { return };
    get_and_put(&guard);
    split_and_merge(&guard, turn);
    KILLS.inc();
    if turn & 1 == 0 {
        TO_CONFIRM.inc();
        expect!(item.kill_and_confirm());
    }
    if turn & 2 == 0 {
        drop(item);
        fsleep(Delta::from_micros(100));
        expect!(guard.is_alive());
        drop(guard);
    } else {
        drop(guard);
        drop(item);
    }
    GETS.inc();
    count_by_cpu(0);
}

macro_rules! lives {
    ($($n:literal)*) => { [$(live::<{ OTHER + $n }>),*] };
}

/// The function [`live`] for each type.
const LIVES: [fn(usize); NUMBER - OTHER] = lives!(
    0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31
);

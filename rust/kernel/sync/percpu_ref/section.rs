// SPDX-License-Identifier: GPL-2.0

//! The critical sections in which gets and puts change the local CPU's counter.

use crate::{
    percpu::{
        Local,
        PerCpu, //
    },
    preempt::PreemptGuard, //
};

/// A read-side critical section in which a get or put reads the word and changes a counter.
///
/// A flag that is set in the word is followed by a grace period that waits for these sections.
pub(super) enum Section {
    /// A region with preemption disabled, which is a read-side critical section for RCU.
    Preempt(PreemptGuard),
    /// A region of a task without voluntary sleep, which is a read-side critical section for RCU
    /// Tasks.
    ///
    /// Preemption and migration do not end the section. Entering and leaving it takes no
    /// instruction. In interrupts and in the idle tasks, which run with preemption disabled, it is
    /// a read-side critical section for RCU instead. See `switch.rs`.
    Tasks,
}

impl Section {
    /// Enters a section: a [`Section::Tasks`] if `tasks` is `true`, and a [`Section::Preempt`] if
    /// not.
    #[inline(always)]
    pub(super) fn enter(tasks: bool) -> Self {
        if tasks {
            Self::Tasks
        } else {
            Self::Preempt(PreemptGuard::nested())
        }
    }

    /// Leaves the section out of line, so that the fast path is small enough to be inlined.
    #[inline(always)]
    pub(super) fn leave(self) {
        #[cold]
        #[inline(never)]
        fn leave(_guard: PreemptGuard) {}

        if let Self::Preempt(guard) = self {
            leave(guard);
        }
    }
}

/// Adds `n` to the local CPU's counter.
///
/// `n` is the constant 1 for all callers except batches.
#[inline(always)]
pub(super) fn add(counters: &PerCpu<Local<u64>>, n: usize) {
    if n == 1 {
        counters.inc_on_cpu();
    } else {
        counters.add_on_cpu(n as u64);
    }
}

/// Subtracts `n` from the local CPU's counter.
///
/// `n` is the constant 1 for all callers except batches.
#[inline(always)]
pub(super) fn sub(counters: &PerCpu<Local<u64>>, n: usize) {
    if n == 1 {
        counters.dec_on_cpu();
    } else {
        counters.add_on_cpu((n as u64).wrapping_neg());
    }
}

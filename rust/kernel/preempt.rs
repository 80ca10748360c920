// SPDX-License-Identifier: GPL-2.0

//! Preemption control.
//!
//! C header: [`include/linux/preempt.h`](srctree/include/linux/preempt.h)

use crate::{
    bindings,
    fmt,
    prelude::*,
    types::NotThreadSafe, //
};

pub(crate) mod arch;

/// The bits of `preempt_count()` that count how often preemption was disabled.
///
/// `rust/helpers/preempt.c` checks the value.
const PREEMPT_MASK: c_int = 0xff;

/// A guard that disables preemption.
///
/// A guard guarantees that the current task stays on its CPU, and that the CPU runs no other task.
/// The task must not sleep. Guards nest, up to a bound: see [`PreemptGuard::try_new`]. For RCU, the
/// region is a read-side critical section: no grace period that begins in the region ends before
/// the region does (`Documentation/RCU/whatisRCU.rst`; since 5.1, this holds for `call_rcu()` as
/// well).
///
/// A guard is not `Send`, because it belongs to the CPU on which it was created.
///
/// # Invariants
///
/// Preemption is disabled on this CPU as long as the guard exists.
///
/// # Examples
///
/// ```
/// use kernel::{cpu::CpuId, preempt::PreemptGuard};
///
/// let guard = PreemptGuard::new();
/// let cpu = CpuId::current();
/// // The task is still on `cpu`.
/// drop(guard);
/// # let _ = cpu;
/// ```
#[must_use = "if unused, preemption is enabled again at once"]
pub struct PreemptGuard(NotThreadSafe);

impl PreemptGuard {
    /// The largest depth to which safe code can disable preemption.
    ///
    /// The kernel's own limit is 255 (`PREEMPT_MASK` in include/linux/preempt.h). Beyond it, the
    /// count carries over into the count of softirqs. At a multiple of 65,536, where both are 0,
    /// RCU's tick takes the region for a quiescent state (`rcu_flavor_sched_clock_irq()` in
    /// kernel/rcu/tree_plugin.h). The regions of the kernel itself and of the functions of this
    /// crate add far less than the difference.
    pub const MAX_DEPTH: u32 = 64;

    /// Disables preemption.
    ///
    /// # Panics
    ///
    /// Panics if preemption is disabled [`MAX_DEPTH`](Self::MAX_DEPTH) times already. Only a loop
    /// or a recursion without a bound leads to this.
    ///
    /// # Context
    ///
    /// Can be called from any context.
    #[doc(alias = "preempt_disable")]
    #[inline]
    pub fn new() -> Self {
        match Self::try_new() {
            Some(guard) => guard,
            None => panic!("preemption is disabled too often"),
        }
    }

    /// Disables preemption, or returns `None` if it is disabled [`MAX_DEPTH`](Self::MAX_DEPTH)
    /// times already.
    ///
    /// # Context
    ///
    /// Can be called from any context.
    #[doc(alias = "preempt_disable")]
    #[inline]
    pub fn try_new() -> Option<Self> {
        // SAFETY: `preempt_count()` can be called from any context.
        let depth = unsafe { bindings::preempt_count() } & PREEMPT_MASK;
        (depth < Self::MAX_DEPTH as c_int).then(Self::nested)
    }

    /// Disables preemption for a region of the kernel crate that calls no other code.
    ///
    /// Such regions do not nest, so they need no bound.
    #[inline(always)]
    pub(crate) fn nested() -> Self {
        arch::preempt_disable();
        // INVARIANT: Preemption was just disabled, and only `drop()` enables it.
        Self(NotThreadSafe)
    }
}

impl Default for PreemptGuard {
    #[inline]
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for PreemptGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PreemptGuard")
    }
}

impl Drop for PreemptGuard {
    /// Enables preemption, unless another guard keeps it disabled.
    ///
    /// # Context
    ///
    /// Can be called from any context.
    #[doc(alias = "preempt_enable")]
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: By the type invariant, this pairs with the call in `nested()`, by the same task.
        unsafe { arch::preempt_enable() };
    }
}

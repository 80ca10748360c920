// SPDX-License-Identifier: GPL-2.0

//! `preempt_disable()` and `preempt_enable()`.

use crate::bindings;

/// Disables preemption on this CPU. A compiler barrier follows.
#[inline(always)]
pub(crate) fn preempt_disable() {
    // SAFETY: Can be called from any context.
    unsafe { bindings::preempt_disable() };
}

/// Enables preemption after a compiler barrier, and lets another task run if one is due.
///
/// # Safety
///
/// Must pair with a call of [`preempt_disable`] by the same task.
#[inline(always)]
pub(crate) unsafe fn preempt_enable() {
    // SAFETY: By the safety requirements of this function, the task has disabled preemption.
    unsafe { bindings::preempt_enable() };
}

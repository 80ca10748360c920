// SPDX-License-Identifier: GPL-2.0

//! `preempt_disable()` and `preempt_enable()`, inlined into the caller on x86-64 and arm64.
//!
//! Other architectures and debugging configurations use the C helpers.

/// Whether `preempt_disable()` only changes the count.
///
/// With the debugging options it does more, and a kernel without preemption need not count. Such
/// kernels use the C helpers.
const COUNTS: bool = cfg!(all(
    CONFIG_PREEMPTION,
    not(CONFIG_DEBUG_PREEMPT),
    not(CONFIG_TRACE_PREEMPT_TOGGLE)
));

/// Disables preemption on this CPU.
///
/// A compiler barrier follows.
#[inline(always)]
pub(crate) fn preempt_disable() {
    if COUNTS {
        imp::preempt_disable();
    } else {
        helper::preempt_disable();
    }
}

/// Enables preemption after a compiler barrier, and lets another task run if one must.
///
/// # Safety
///
/// Must pair with a call of [`preempt_disable`] by the same task.
#[inline(always)]
pub(crate) unsafe fn preempt_enable() {
    // SAFETY: By the safety requirements of this function, this task has disabled preemption.
    unsafe {
        if COUNTS {
            imp::preempt_enable();
        } else {
            helper::preempt_enable();
        }
    }
}

/// Lets another task run, out of line.
#[allow(dead_code)] // The C helper `preempt_enable()` contains it.
#[cold]
#[inline(never)]
fn preempt_schedule() {
    // SAFETY: `__preempt_schedule()` can be called from any context. It does nothing where the task
    // must not be preempted.
    unsafe { crate::bindings::__preempt_schedule() };
}

/// C source: [`arch/x86/include/asm/preempt.h`](srctree/arch/x86/include/asm/preempt.h)
#[cfg(all(CONFIG_X86_64, CONFIG_SMP, not(CONFIG_UML)))]
mod imp {
    use super::preempt_schedule;
    use crate::bindings::__preempt_count;
    use core::arch::asm;

    /// Whether the count has 64 bits, as in newer kernels, instead of 32.
    ///
    /// The topmost bit is clear if the task must be rescheduled. So if a decrement makes the whole
    /// count zero, the task must be rescheduled and can be.
    const IS_WIDE: bool = size_of_pointee(&raw const __preempt_count) == 8;

    const _: () = assert!(IS_WIDE == cfg!(CONFIG_HAS_SEPARATE_PREEMPT_RESCHED_BITS));

    const fn size_of_pointee<T>(_: *const T) -> usize {
        size_of::<T>()
    }

    #[inline(always)]
    pub(super) fn preempt_disable() {
        // The compiler assumes that `asm!` accesses all memory, so this is also the `barrier()`.
        //
        // SAFETY: The instruction only increments this CPU's copy of the count.
        unsafe {
            if IS_WIDE {
                asm!("incq %gs:{}(%rip)", sym __preempt_count, options(att_syntax, nostack));
            } else {
                asm!("incl %gs:{}(%rip)", sym __preempt_count, options(att_syntax, nostack));
            }
        }
    }

    /// # Safety
    ///
    /// Must pair with a call of [`preempt_disable`] by the same task.
    #[inline(always)]
    pub(super) unsafe fn preempt_enable() {
        // SAFETY: By the safety requirements of this function, the count was incremented on this
        // CPU.
        unsafe {
            if IS_WIDE {
                asm!(
                    "decq %gs:{}(%rip)",
                    "je {}",
                    sym __preempt_count,
                    label { preempt_schedule() },
                    options(att_syntax, nostack)
                );
            } else {
                asm!(
                    "decl %gs:{}(%rip)",
                    "je {}",
                    sym __preempt_count,
                    label { preempt_schedule() },
                    options(att_syntax, nostack)
                );
            }
        }
    }
}

/// C source: [`arch/arm64/include/asm/preempt.h`](srctree/arch/arm64/include/asm/preempt.h)
#[cfg(CONFIG_ARM64)]
mod imp {
    use super::preempt_schedule;
    use crate::bindings::{
        task_struct,
        thread_info, //
    };
    use core::arch::asm;

    #[inline(always)]
    fn current_thread_info() -> *mut thread_info {
        let current: *mut task_struct;

        // SAFETY: The register contains the address of the current task, and does not change while
        // this task runs.
        unsafe {
            asm!(
                "mrs {}, sp_el0",
                out(reg) current,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        // SAFETY: The current task is valid.
        unsafe { &raw mut (*current).thread_info }
    }

    #[inline(always)]
    fn barrier() {
        // SAFETY: There is no instruction. The compiler assumes that `asm!` accesses all memory.
        unsafe { asm!("", options(nostack, preserves_flags)) };
    }

    #[inline(always)]
    pub(super) fn preempt_disable() {
        // SAFETY: Only this task changes the count, and interrupts, which restore it.
        unsafe {
            let count = &raw mut (*current_thread_info()).__bindgen_anon_1.preempt.count;
            count.write_volatile(count.read_volatile().wrapping_add(1));
        }
        barrier();
    }

    /// # Safety
    ///
    /// Must pair with a call of [`preempt_disable`] by the same task.
    #[inline(always)]
    pub(super) unsafe fn preempt_enable() {
        barrier();
        // `preempt_count` consists of the count and of a word that is 0 if the task must be
        // rescheduled. Only the count is written. Both are read after that, because an interrupt
        // can clear the other word at any time.
        //
        // SAFETY: Only this task changes the count, and interrupts, which restore it.
        let is_due = unsafe {
            let preempt = &raw mut (*current_thread_info()).__bindgen_anon_1;
            let count = &raw mut (*preempt).preempt.count;
            count.write_volatile(count.read_volatile().wrapping_sub(1));
            (&raw const (*preempt).preempt_count).read_volatile() == 0
        };
        if is_due {
            preempt_schedule();
        }
    }
}

#[cfg(not(any(all(CONFIG_X86_64, CONFIG_SMP, not(CONFIG_UML)), CONFIG_ARM64)))]
use helper as imp;

/// The C helpers.
mod helper {
    use crate::bindings;

    #[inline]
    pub(super) fn preempt_disable() {
        // SAFETY: `preempt_disable()` can be called from any context.
        unsafe { bindings::preempt_disable() };
    }

    /// # Safety
    ///
    /// Must pair with a call of [`preempt_disable`] by the same task.
    #[inline]
    pub(super) unsafe fn preempt_enable() {
        // SAFETY: By the safety requirements of this function, this task has disabled preemption.
        unsafe { bindings::preempt_enable() };
    }
}

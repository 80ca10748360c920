// SPDX-License-Identifier: GPL-2.0

//! The current task, its preemption count, and `smp_store_release()` of a pointer, inlined into the
//! caller on x86-64 and arm64.
//!
//! Without `CONFIG_RUST_INLINE_HELPERS`, each of the helpers is a call, in each get.

use crate::{
    bindings,
    ffi::c_void,
    sync::atomic::Atomic, //
};

#[cfg(not(any(all(CONFIG_X86_64, CONFIG_SMP, not(CONFIG_UML)), CONFIG_ARM64)))]
use helper as imp;

/// Returns the current task, which is valid as long as it runs.
#[inline(always)]
pub(super) fn current() -> *const bindings::task_struct {
    imp::current()
}

/// Returns the preemption count, with the bits of interrupts. May have other bits above
/// `PREEMPT_MASK`, `SOFTIRQ_MASK` and `HARDIRQ_MASK`.
#[inline(always)]
pub(super) fn preempt_count() -> u32 {
    imp::preempt_count()
}

/// Stores a pointer as `store(Release)` does.
#[doc(alias = "smp_store_release")]
#[inline(always)]
pub(super) fn store_release(to: &Atomic<*mut c_void>, value: *mut c_void) {
    imp::store_release(to, value);
}

/// C sources: [`arch/x86/include/asm/current.h`](srctree/arch/x86/include/asm/current.h),
/// [`arch/x86/include/asm/preempt.h`](srctree/arch/x86/include/asm/preempt.h)
#[cfg(all(CONFIG_X86_64, CONFIG_SMP, not(CONFIG_UML)))]
mod imp {
    use crate::{
        bindings::{
            __preempt_count,
            current_task,
            task_struct, //
        },
        ffi::c_void,
        sync::atomic::Atomic, //
    };
    use core::arch::asm;

    #[inline(always)]
    pub(super) fn current() -> *const task_struct {
        let current;
        // SAFETY: Reads this CPU's copy. It is the same on all CPUs that the task runs on.
        unsafe {
            asm!(
                "movq %gs:{}(%rip), {}",
                sym current_task,
                out(reg) current,
                options(att_syntax, pure, readonly, nostack, preserves_flags)
            );
        }
        current
    }

    #[inline(always)]
    pub(super) fn preempt_count() -> u32 {
        let count;
        // SAFETY: Reads the lower half of this CPU's copy.
        unsafe {
            asm!(
                "movl %gs:{}(%rip), {:e}",
                sym __preempt_count,
                out(reg) count,
                options(att_syntax, readonly, nostack, preserves_flags)
            );
        }
        count
    }

    #[inline(always)]
    pub(super) fn store_release(to: &Atomic<*mut c_void>, value: *mut c_void) {
        // The CPU does not reorder stores, so this only stops the compiler, which assumes that
        // `asm!` accesses all memory.
        //
        // SAFETY: Does nothing.
        unsafe { asm!("", options(nostack, preserves_flags)) };
        // SAFETY: The variable is valid. Other CPUs access it by atomic operations, with which a
        // volatile store can race by the kernel's memory model.
        unsafe { to.as_ptr().write_volatile(value) };
    }
}

/// C sources: [`arch/arm64/include/asm/current.h`](srctree/arch/arm64/include/asm/current.h),
/// [`arch/arm64/include/asm/preempt.h`](srctree/arch/arm64/include/asm/preempt.h)
#[cfg(CONFIG_ARM64)]
mod imp {
    use crate::{
        bindings::task_struct,
        ffi::c_void,
        sync::atomic::Atomic, //
    };
    use core::arch::asm;

    #[inline(always)]
    pub(super) fn current() -> *const task_struct {
        let current;
        // SAFETY: The register has the address of the current task, and does not change while this
        // task runs.
        unsafe {
            asm!(
                "mrs {}, sp_el0",
                out(reg) current,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        current
    }

    #[inline(always)]
    pub(super) fn preempt_count() -> u32 {
        // SAFETY: The current task is valid. Only it changes the count, and interrupts, which
        // restore it.
        unsafe {
            (&raw const (*current()).thread_info.__bindgen_anon_1.preempt.count).read_volatile()
        }
    }

    #[inline(always)]
    pub(super) fn store_release(to: &Atomic<*mut c_void>, value: *mut c_void) {
        // The compiler assumes that `asm!` accesses all memory.
        //
        // SAFETY: The variable is valid, and aligned.
        unsafe {
            asm!(
                "stlr {}, [{}]",
                in(reg) value,
                in(reg) to.as_ptr(),
                options(nostack, preserves_flags)
            );
        }
    }
}

/// The helpers in C.
#[cfg(not(any(all(CONFIG_X86_64, CONFIG_SMP, not(CONFIG_UML)), CONFIG_ARM64)))]
mod helper {
    use crate::{
        bindings,
        ffi::c_void,
        sync::atomic::{
            Atomic,
            Release, //
        }, //
    };

    #[inline]
    pub(super) fn current() -> *const bindings::task_struct {
        // SAFETY: Can be called from any context.
        unsafe { bindings::get_current() }
    }

    #[inline]
    pub(super) fn preempt_count() -> u32 {
        // SAFETY: Can be called from any context.
        unsafe { bindings::preempt_count() as u32 }
    }

    #[inline]
    pub(super) fn store_release(to: &Atomic<*mut c_void>, value: *mut c_void) {
        to.store(value, Release);
    }
}

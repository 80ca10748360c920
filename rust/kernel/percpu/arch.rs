// SPDX-License-Identifier: GPL-2.0

//! The operations on the local CPU's copy that must be inlined, on x86-64 and arm64.
//!
//! Other architectures use the helpers in C.
//!
//! C header: [`include/linux/percpu-defs.h`](srctree/include/linux/percpu-defs.h)

use crate::prelude::*;

/// Adds `value` to this CPU's copy. An interrupt on this CPU comes before or after the addition.
///
/// # Safety
///
/// Preemption must be disabled, and `ptr` must be the `__percpu` pointer of an allocated `u64`.
#[inline(always)]
pub(super) unsafe fn this_cpu_add(ptr: *mut u64, value: u64) {
    // SAFETY: By the safety requirements of this function.
    unsafe { imp::this_cpu_add(ptr, value) };
}

/// Adds one to this CPU's copy, as [`this_cpu_add`] does.
///
/// # Safety
///
/// Preemption must be disabled, and `ptr` must be the `__percpu` pointer of an allocated `u64`.
#[inline(always)]
pub(super) unsafe fn this_cpu_inc(ptr: *mut u64) {
    // SAFETY: By the safety requirements of this function.
    unsafe { imp::this_cpu_inc(ptr) };
}

/// Subtracts one from this CPU's copy, as [`this_cpu_add`] does.
///
/// # Safety
///
/// Preemption must be disabled, and `ptr` must be the `__percpu` pointer of an allocated `u64`.
#[inline(always)]
pub(super) unsafe fn this_cpu_dec(ptr: *mut u64) {
    // SAFETY: By the safety requirements of this function.
    unsafe { imp::this_cpu_dec(ptr) };
}

/// Returns the address of `cpu`'s copy of what `ptr` is the `__percpu` pointer of.
///
/// # Safety
///
/// `cpu` must be possible.
#[inline(always)]
pub(super) unsafe fn per_cpu_ptr(ptr: *mut c_void, cpu: c_uint) -> *mut c_void {
    // SAFETY: By the safety requirements of this function.
    unsafe { imp::per_cpu_ptr(ptr, cpu) }
}

/// C source: [`arch/x86/include/asm/percpu.h`](srctree/arch/x86/include/asm/percpu.h)
#[cfg(all(CONFIG_X86_64, CONFIG_SMP, not(CONFIG_UML)))]
mod imp {
    pub(super) use super::offset::per_cpu_ptr;
    use core::arch::asm;

    // A `__percpu` pointer is relative to the base of the segment `gs`, so each operation is one
    // instruction.

    /// # Safety
    ///
    /// See [`super::this_cpu_add`].
    #[inline(always)]
    pub(super) unsafe fn this_cpu_add(ptr: *mut u64, value: u64) {
        // SAFETY: By the safety requirements of this function, `ptr` has a copy on this CPU.
        unsafe {
            asm!("addq {}, %gs:({})", in(reg) value, in(reg) ptr, options(att_syntax, nostack))
        };
    }

    /// # Safety
    ///
    /// See [`super::this_cpu_inc`].
    #[inline(always)]
    pub(super) unsafe fn this_cpu_inc(ptr: *mut u64) {
        // SAFETY: By the safety requirements of this function, `ptr` has a copy on this CPU.
        unsafe { asm!("incq %gs:({})", in(reg) ptr, options(att_syntax, nostack)) };
    }

    /// # Safety
    ///
    /// See [`super::this_cpu_dec`].
    #[inline(always)]
    pub(super) unsafe fn this_cpu_dec(ptr: *mut u64) {
        // SAFETY: By the safety requirements of this function, `ptr` has a copy on this CPU.
        unsafe { asm!("decq %gs:({})", in(reg) ptr, options(att_syntax, nostack)) };
    }
}

/// C source: [`arch/arm64/include/asm/percpu.h`](srctree/arch/arm64/include/asm/percpu.h)
#[cfg(CONFIG_ARM64)]
mod imp {
    pub(super) use super::offset::per_cpu_ptr;
    use crate::preempt::arch::current_thread_info;
    use core::arch::asm;

    /// Returns the address of this CPU's copy.
    ///
    /// # Safety
    ///
    /// Preemption must be disabled, and `ptr` must be the `__percpu` pointer of an allocated `u64`.
    #[inline(always)]
    unsafe fn this_cpu_ptr(ptr: *mut u64) -> *mut u64 {
        // By the CPU's number, since the register that has the CPU's offset depends on the kind of
        // CPU, and C's code is patched for that.
        //
        // SAFETY: The current task is valid. While preemption is disabled, its CPU does not change.
        unsafe { per_cpu_ptr(ptr.cast(), (*current_thread_info()).cpu) }.cast()
    }

    /// Changes `{value}` by the instruction `$change`. The exclusive pair makes the change atomic
    /// with respect to interrupts, and each CPU has it.
    macro_rules! this_cpu_op {
        ($copy:expr, $change:literal $(, $($operand:tt)*)?) => {
            asm!(
                "2: ldxr {value}, [{copy}]",
                $change,
                "stxr {failed:w}, {value}, [{copy}]",
                "cbnz {failed:w}, 2b",
                value = out(reg) _,
                failed = out(reg) _,
                copy = in(reg) $copy,
                $($($operand)*,)?
                options(nostack, preserves_flags)
            )
        };
    }

    /// # Safety
    ///
    /// See [`super::this_cpu_add`].
    #[inline(always)]
    pub(super) unsafe fn this_cpu_add(ptr: *mut u64, value: u64) {
        // SAFETY: By the safety requirements of this function, `ptr` has a copy on this CPU.
        unsafe {
            this_cpu_op!(this_cpu_ptr(ptr), "add {value}, {value}, {other}", other = in(reg) value)
        };
    }

    /// # Safety
    ///
    /// See [`super::this_cpu_inc`].
    #[inline(always)]
    pub(super) unsafe fn this_cpu_inc(ptr: *mut u64) {
        // SAFETY: By the safety requirements of this function, `ptr` has a copy on this CPU.
        unsafe { this_cpu_op!(this_cpu_ptr(ptr), "add {value}, {value}, #1") };
    }

    /// # Safety
    ///
    /// See [`super::this_cpu_dec`].
    #[inline(always)]
    pub(super) unsafe fn this_cpu_dec(ptr: *mut u64) {
        // SAFETY: By the safety requirements of this function, `ptr` has a copy on this CPU.
        unsafe { this_cpu_op!(this_cpu_ptr(ptr), "sub {value}, {value}, #1") };
    }
}

/// Finds copies by the offset of each CPU.
///
/// C header: [`include/asm-generic/percpu.h`](srctree/include/asm-generic/percpu.h)
#[cfg(any(all(CONFIG_X86_64, CONFIG_SMP, not(CONFIG_UML)), CONFIG_ARM64))]
mod offset {
    use super::{
        c_uint,
        c_void, //
    };
    use crate::bindings::__per_cpu_offset;

    /// # Safety
    ///
    /// `cpu` must be possible.
    #[inline(always)]
    pub(super) unsafe fn per_cpu_ptr(ptr: *mut c_void, cpu: c_uint) -> *mut c_void {
        let offsets = (&raw const __per_cpu_offset).cast::<usize>();

        // SAFETY: By the safety requirements of this function, `cpu` has an offset, which does not
        // change.
        ptr.wrapping_byte_add(unsafe { offsets.add(cpu as usize).read() })
    }
}

#[cfg(not(any(all(CONFIG_X86_64, CONFIG_SMP, not(CONFIG_UML)), CONFIG_ARM64)))]
mod imp {
    use super::{
        c_uint,
        c_void, //
    };
    use crate::bindings;

    /// # Safety
    ///
    /// See [`super::this_cpu_add`].
    #[inline]
    pub(super) unsafe fn this_cpu_add(ptr: *mut u64, value: u64) {
        // SAFETY: By the safety requirements of this function, `ptr` is a `__percpu` pointer.
        unsafe { bindings::this_cpu_add_u64(ptr, value) };
    }

    /// # Safety
    ///
    /// See [`super::this_cpu_inc`].
    #[inline]
    pub(super) unsafe fn this_cpu_inc(ptr: *mut u64) {
        // SAFETY: By the safety requirements of this function, `ptr` is a `__percpu` pointer.
        unsafe { bindings::this_cpu_add_u64(ptr, 1) };
    }

    /// # Safety
    ///
    /// See [`super::this_cpu_dec`].
    #[inline]
    pub(super) unsafe fn this_cpu_dec(ptr: *mut u64) {
        // SAFETY: By the safety requirements of this function, `ptr` is a `__percpu` pointer.
        unsafe { bindings::this_cpu_add_u64(ptr, u64::MAX) };
    }

    /// # Safety
    ///
    /// `cpu` must be possible.
    #[inline]
    pub(super) unsafe fn per_cpu_ptr(ptr: *mut c_void, cpu: c_uint) -> *mut c_void {
        // SAFETY: By the safety requirements of this function, `cpu` is possible.
        unsafe { bindings::per_cpu_ptr(ptr, cpu) }
    }
}

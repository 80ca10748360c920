// SPDX-License-Identifier: GPL-2.0

//! What getting and putting a reference is made of, inlined into the caller on x86-64 and arm64.
//!
//! There it does what the inline functions of C do. On other architectures, the helpers in C do it.
//!
//! C headers: [`include/linux/preempt.h`](srctree/include/linux/preempt.h),
//! [`include/linux/percpu-defs.h`](srctree/include/linux/percpu-defs.h)

use kernel::ffi::{
    c_uint,
    c_void, //
};

/// Whether `preempt_disable()` is counting, and nothing else. With these debugging options it is
/// more, and a kernel that does not preempt need not count. Then the helpers do this, too.
const COUNTS: bool = cfg!(all(
    CONFIG_PREEMPTION,
    not(CONFIG_DEBUG_PREEMPT),
    not(CONFIG_TRACE_PREEMPT_TOGGLE)
));

/// Disables preemption on this CPU. A compiler barrier after that.
#[inline(always)]
pub(super) fn preempt_disable() {
    if COUNTS {
        arch::preempt_disable();
    } else {
        helper::preempt_disable();
    }
}

/// Undoes it, after a compiler barrier, and lets another task run if one is due.
///
/// # Safety
///
/// Pairs with a call of [`preempt_disable`], by the same task.
#[inline(always)]
pub(super) unsafe fn preempt_enable() {
    // SAFETY: As the function requires.
    unsafe {
        if COUNTS {
            arch::preempt_enable();
        } else {
            helper::preempt_enable();
        }
    }
}

/// Lets another task run, out of line, for an architecture's `preempt_enable()`.
#[allow(dead_code)] // The helpers have it inside.
#[cold]
#[inline(never)]
fn preempt_schedule() {
    extern "C" {
        fn rust_percpu_ref_preempt_schedule();
    }
    // SAFETY: May be called in any context. It does nothing where the task must not be preempted.
    unsafe { rust_percpu_ref_preempt_schedule() };
}

/// Adds to this CPU's copy, as a whole with respect to interrupts.
///
/// # Safety
///
/// Preemption is disabled, and `ptr` is the `__percpu` pointer of an allocated `u64`.
#[inline(always)]
pub(super) unsafe fn this_cpu_add(ptr: *mut u64, value: u64) {
    // SAFETY: As the function requires.
    unsafe { arch::this_cpu_add(ptr, value) };
}

/// Adds one to this CPU's copy.
///
/// # Safety
///
/// As for [`this_cpu_add`].
#[inline(always)]
pub(super) unsafe fn this_cpu_inc(ptr: *mut u64) {
    // SAFETY: As the function requires.
    unsafe { arch::this_cpu_inc(ptr) };
}

/// Subtracts one from this CPU's copy.
///
/// # Safety
///
/// As for [`this_cpu_add`].
#[inline(always)]
pub(super) unsafe fn this_cpu_dec(ptr: *mut u64) {
    // SAFETY: As the function requires.
    unsafe { arch::this_cpu_dec(ptr) };
}

/// The address of `cpu`'s copy of what `ptr` is the `__percpu` pointer of.
///
/// # Safety
///
/// `cpu` is possible.
#[inline(always)]
pub(super) unsafe fn per_cpu_ptr(ptr: *mut c_void, cpu: c_uint) -> *mut c_void {
    // SAFETY: As the function requires.
    unsafe { arch::per_cpu_ptr(ptr, cpu) }
}

/// C source: [`arch/x86/include/asm/preempt.h`](srctree/arch/x86/include/asm/preempt.h),
/// [`arch/x86/include/asm/percpu.h`](srctree/arch/x86/include/asm/percpu.h)
#[cfg(all(CONFIG_X86_64, CONFIG_SMP, not(CONFIG_UML)))]
mod arch {
    use core::arch::asm;
    use kernel::bindings::__preempt_count;

    pub(super) use super::offset::per_cpu_ptr;
    use super::preempt_schedule;

    /// The count has 32 bits, or in newer kernels 64. The topmost one is clear if the task is to be
    /// rescheduled, so that a decrement to zero says that it may be, too.
    const IS_WIDE: bool = size_of_pointee(&raw const __preempt_count) == 8;

    const _: () = assert!(IS_WIDE == cfg!(CONFIG_HAS_SEPARATE_PREEMPT_RESCHED_BITS));

    const fn size_of_pointee<T>(_: *const T) -> usize {
        size_of::<T>()
    }

    #[inline(always)]
    pub(super) fn preempt_disable() {
        // As far as the compiler knows, `asm!` touches all memory, so it is also the barrier().
        //
        // SAFETY: Counts in this CPU's copy; `preempt_enable()` undoes it.
        unsafe {
            if IS_WIDE {
                asm!("incq %gs:{}(%rip)", sym __preempt_count, options(att_syntax, nostack));
            } else {
                asm!("incl %gs:{}(%rip)", sym __preempt_count, options(att_syntax, nostack));
            }
        }
    }

    #[inline(always)]
    pub(super) unsafe fn preempt_enable() {
        // SAFETY: As the function requires, the count was incremented on this CPU.
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

    // A `__percpu` pointer is relative to the base of the segment, and each of these is one
    // instruction.

    #[inline(always)]
    pub(super) unsafe fn this_cpu_add(ptr: *mut u64, value: u64) {
        // SAFETY: As the function requires.
        unsafe {
            asm!("addq {}, %gs:({})", in(reg) value, in(reg) ptr, options(att_syntax, nostack))
        };
    }

    #[inline(always)]
    pub(super) unsafe fn this_cpu_inc(ptr: *mut u64) {
        // SAFETY: As the function requires.
        unsafe { asm!("incq %gs:({})", in(reg) ptr, options(att_syntax, nostack)) };
    }

    #[inline(always)]
    pub(super) unsafe fn this_cpu_dec(ptr: *mut u64) {
        // SAFETY: As the function requires.
        unsafe { asm!("decq %gs:({})", in(reg) ptr, options(att_syntax, nostack)) };
    }
}

/// C source: [`arch/arm64/include/asm/preempt.h`](srctree/arch/arm64/include/asm/preempt.h),
/// [`arch/arm64/include/asm/percpu.h`](srctree/arch/arm64/include/asm/percpu.h)
#[cfg(CONFIG_ARM64)]
mod arch {
    use core::arch::asm;
    use kernel::bindings::{
        task_struct,
        thread_info, //
    };

    pub(super) use super::offset::per_cpu_ptr;
    use super::preempt_schedule;

    #[inline(always)]
    fn current_thread_info() -> *mut thread_info {
        let current: *mut task_struct;

        // SAFETY: The register is the current task's address, and for this thread does not change.
        unsafe {
            asm!(
                "mrs {}, sp_el0",
                out(reg) current,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        // SAFETY: The task is there.
        unsafe { &raw mut (*current).thread_info }
    }

    #[inline(always)]
    fn barrier() {
        // SAFETY: Does nothing. As far as the compiler knows, it touches all memory.
        unsafe { asm!("", options(nostack, preserves_flags)) };
    }

    #[inline(always)]
    pub(super) fn preempt_disable() {
        // SAFETY: The count is changed by this thread, and by interrupts, which leave it as it was.
        unsafe {
            let count = &raw mut (*current_thread_info()).__bindgen_anon_1.preempt.count;
            count.write_volatile(count.read_volatile().wrapping_add(1));
        }
        barrier();
    }

    #[inline(always)]
    pub(super) unsafe fn preempt_enable() {
        barrier();
        // The whole is the count and a word beside it that is 0 if the task is to be rescheduled.
        // Only the count is written. The whole is read after that, as an interrupt may clear the
        // other word at any time.
        //
        // SAFETY: As in `preempt_disable()`.
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

    /// This CPU's copy.
    #[inline(always)]
    unsafe fn this_cpu_ptr(ptr: *mut u64) -> *mut u64 {
        // By the CPU's number: where its offset lies depends on what kind of CPU it is, and C's
        // code is patched for that.
        //
        // SAFETY: The task is there. While preemption is disabled, the number does not change.
        unsafe { per_cpu_ptr(ptr.cast(), (*current_thread_info()).cpu) }.cast()
    }

    /// `$change` is what is done with `{value}`. The exclusive pair makes it a whole for
    /// interrupts, and all CPUs have it.
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

    #[inline(always)]
    pub(super) unsafe fn this_cpu_add(ptr: *mut u64, value: u64) {
        // SAFETY: As the function requires.
        unsafe {
            this_cpu_op!(this_cpu_ptr(ptr), "add {value}, {value}, {other}", other = in(reg) value)
        };
    }

    #[inline(always)]
    pub(super) unsafe fn this_cpu_inc(ptr: *mut u64) {
        // SAFETY: As the function requires.
        unsafe { this_cpu_op!(this_cpu_ptr(ptr), "add {value}, {value}, #1") };
    }

    #[inline(always)]
    pub(super) unsafe fn this_cpu_dec(ptr: *mut u64) {
        // SAFETY: As the function requires.
        unsafe { this_cpu_op!(this_cpu_ptr(ptr), "sub {value}, {value}, #1") };
    }
}

/// By the offset of each CPU. C header:
/// [`include/asm-generic/percpu.h`](srctree/include/asm-generic/percpu.h)
#[cfg(any(all(CONFIG_X86_64, CONFIG_SMP, not(CONFIG_UML)), CONFIG_ARM64))]
mod offset {
    use super::{
        c_uint,
        c_void, //
    };
    use kernel::bindings::__per_cpu_offset;

    #[inline(always)]
    pub(super) unsafe fn per_cpu_ptr(ptr: *mut c_void, cpu: c_uint) -> *mut c_void {
        let offsets = (&raw const __per_cpu_offset).cast::<usize>();

        // SAFETY: As the function requires, `cpu` has an offset, which does not change.
        ptr.wrapping_byte_add(unsafe { offsets.add(cpu as usize).read() })
    }
}

#[cfg(not(any(all(CONFIG_X86_64, CONFIG_SMP, not(CONFIG_UML)), CONFIG_ARM64)))]
use helper as arch;

/// By the helpers in C.
#[allow(dead_code)] // Some architectures have their own.
mod helper {
    use super::{
        c_uint,
        c_void, //
    };

    extern "C" {
        fn rust_percpu_ref_preempt_disable();
        #[link_name = "rust_percpu_ref_preempt_enable"]
        pub(super) fn preempt_enable();
        #[link_name = "rust_percpu_ref_per_cpu_ptr"]
        pub(super) fn per_cpu_ptr(ptr: *mut c_void, cpu: c_uint) -> *mut c_void;
        #[link_name = "rust_percpu_ref_this_cpu_add_64"]
        pub(super) fn this_cpu_add(ptr: *mut u64, value: u64);
    }

    #[inline]
    pub(super) fn preempt_disable() {
        // SAFETY: May be called in any context.
        unsafe { rust_percpu_ref_preempt_disable() };
    }

    #[inline]
    pub(super) unsafe fn this_cpu_inc(ptr: *mut u64) {
        // SAFETY: As the function requires.
        unsafe { this_cpu_add(ptr, 1) };
    }

    #[inline]
    pub(super) unsafe fn this_cpu_dec(ptr: *mut u64) {
        // SAFETY: As the function requires.
        unsafe { this_cpu_add(ptr, u64::MAX) };
    }
}

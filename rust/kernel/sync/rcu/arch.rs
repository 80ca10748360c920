// SPDX-License-Identifier: GPL-2.0

//! Loads and stores that are always inlined into the caller.
//!
//! Without `CONFIG_RUST_INLINE_HELPERS`, [`Atomic::load`] is a function call, which each get, put
//! and lookup would make.

use crate::sync::atomic::{
    Atomic,
    AtomicType, //
};

/// Loads a value as `load(Relaxed)` does.
#[doc(alias = "READ_ONCE")]
#[inline(always)]
pub(crate) fn read_once<T: AtomicType>(from: &Atomic<T>) -> T {
    // SAFETY: The variable is valid. Other CPUs change it by atomic operations, which a volatile
    // load may race with by the kernel's memory model.
    unsafe { from.as_ptr().read_volatile() }
}

/// Loads a pointer that was published with `Full` ordering, as `load(Acquire)` does.
///
/// On architectures other than x86-64 and arm64, this calls `load(Acquire)`.
///
/// C's `rcu_dereference()` orders only accesses by means of the pointer. This is not enough for
/// safe code, which may read any memory that the publishing thread has written before: for example
/// a static whose initialisation the object proves (litmus: place-sees-maker).
#[doc(alias("smp_load_acquire", "rcu_dereference"))]
#[inline(always)]
pub(crate) fn load_acquire<T>(from: &Atomic<*mut T>) -> *mut T {
    imp::load_acquire(from)
}

/// Stores a pointer as `store(Release)` does.
#[allow(dead_code)] // Has users with `CONFIG_RUST_PERCPU_REF_DEBUG`.
#[doc(alias = "smp_store_release")]
#[inline(always)]
pub(crate) fn store_release<T>(to: &Atomic<*mut T>, value: *mut T) {
    imp::store_release(to, value);
}

/// C source: [`arch/x86/include/asm/barrier.h`](srctree/arch/x86/include/asm/barrier.h)
#[cfg(CONFIG_X86_64)]
mod imp {
    use crate::sync::atomic::Atomic;
    use core::arch::asm;

    #[inline(always)]
    pub(super) fn load_acquire<T>(from: &Atomic<*mut T>) -> *mut T {
        // SAFETY: The variable is valid. Other CPUs change it by atomic operations, which a
        // volatile load may race with by the kernel's memory model.
        let value = unsafe { from.as_ptr().read_volatile() };
        // The CPU does not reorder loads, so only the compiler must be stopped. It assumes that
        // `asm!` accesses all memory.
        //
        // SAFETY: There is no instruction.
        unsafe { asm!("", options(nostack, preserves_flags)) };
        value
    }

    #[inline(always)]
    pub(super) fn store_release<T>(to: &Atomic<*mut T>, value: *mut T) {
        // The CPU does not reorder stores, so only the compiler must be stopped.
        //
        // SAFETY: There is no instruction.
        unsafe { asm!("", options(nostack, preserves_flags)) };
        // SAFETY: The variable is valid. Other CPUs access it by atomic operations, which a
        // volatile store may race with by the kernel's memory model.
        unsafe { to.as_ptr().write_volatile(value) };
    }
}

/// C source: [`arch/arm64/include/asm/barrier.h`](srctree/arch/arm64/include/asm/barrier.h)
#[cfg(CONFIG_ARM64)]
mod imp {
    use crate::sync::atomic::Atomic;
    use core::arch::asm;

    #[inline(always)]
    pub(super) fn load_acquire<T>(from: &Atomic<*mut T>) -> *mut T {
        let value;
        // The compiler assumes that `asm!` accesses all memory.
        //
        // SAFETY: The variable is valid and aligned, so the instruction can load it.
        unsafe {
            asm!(
                "ldar {}, [{}]",
                out(reg) value,
                in(reg) from.as_ptr(),
                options(nostack, preserves_flags)
            );
        }
        value
    }

    #[inline(always)]
    pub(super) fn store_release<T>(to: &Atomic<*mut T>, value: *mut T) {
        // SAFETY: The variable is valid and aligned, so the instruction can store to it.
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

#[cfg(not(any(CONFIG_X86_64, CONFIG_ARM64)))]
mod imp {
    use crate::sync::atomic::{
        Acquire,
        Atomic,
        Release, //
    };

    #[inline(always)]
    pub(super) fn load_acquire<T>(from: &Atomic<*mut T>) -> *mut T {
        from.load(Acquire)
    }

    #[inline(always)]
    pub(super) fn store_release<T>(to: &Atomic<*mut T>, value: *mut T) {
        to.store(value, Release);
    }
}

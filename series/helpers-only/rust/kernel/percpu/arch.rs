// SPDX-License-Identifier: GPL-2.0

//! The operations on the local CPU's copy, for callers that have disabled preemption.
//!
//! C header: [`include/linux/percpu-defs.h`](srctree/include/linux/percpu-defs.h)

use crate::{
    bindings,
    prelude::*, //
};

/// Adds `value` to this CPU's copy. An interrupt on this CPU comes before or after the addition.
///
/// # Safety
///
/// Preemption must be disabled, and `ptr` must be the `__percpu` pointer of an allocated `u64`.
#[inline(always)]
pub(super) unsafe fn this_cpu_add(ptr: *mut u64, value: u64) {
    // SAFETY: By the safety requirements of this function.
    unsafe { bindings::this_cpu_add_u64(ptr, value) };
}

/// Adds one to this CPU's copy, as [`this_cpu_add`] does.
///
/// # Safety
///
/// Preemption must be disabled, and `ptr` must be the `__percpu` pointer of an allocated `u64`.
#[inline(always)]
pub(super) unsafe fn this_cpu_inc(ptr: *mut u64) {
    // SAFETY: By the safety requirements of this function.
    unsafe { bindings::this_cpu_add_u64(ptr, 1) };
}

/// Subtracts one from this CPU's copy, as [`this_cpu_add`] does.
///
/// # Safety
///
/// Preemption must be disabled, and `ptr` must be the `__percpu` pointer of an allocated `u64`.
#[inline(always)]
pub(super) unsafe fn this_cpu_dec(ptr: *mut u64) {
    // SAFETY: By the safety requirements of this function.
    unsafe { bindings::this_cpu_add_u64(ptr, u64::MAX) };
}

/// Returns the address of `cpu`'s copy of what `ptr` is the `__percpu` pointer of.
///
/// # Safety
///
/// `cpu` must be possible.
#[inline(always)]
pub(super) unsafe fn per_cpu_ptr(ptr: *mut c_void, cpu: c_uint) -> *mut c_void {
    // SAFETY: By the safety requirements of this function.
    unsafe { bindings::per_cpu_ptr(ptr, cpu) }
}

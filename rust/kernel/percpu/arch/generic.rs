// SPDX-License-Identifier: GPL-2.0

//! The `this_cpu` operations by C helpers.

use super::{
    Offset,
    ThisCpu, //
};
use crate::{
    bindings,
    prelude::*, //
};

/// Returns the address of `cpu`'s copy, for a `__percpu` pointer.
///
/// # Safety
///
/// `cpu` must be possible.
#[inline]
pub(crate) unsafe fn per_cpu_ptr(ptr: *mut c_void, cpu: c_uint) -> *mut c_void {
    // SAFETY: By the safety requirements of this function, `cpu` is possible.
    unsafe { bindings::per_cpu_ptr(ptr, cpu) }
}

/// Returns the address of this CPU's copy, for a `__percpu` pointer.
///
/// # Safety
///
/// Preemption must be disabled.
#[inline]
pub(crate) unsafe fn this_cpu_ptr(ptr: *mut c_void) -> *mut c_void {
    // SAFETY: By the safety requirements of this function, preemption is disabled.
    unsafe { bindings::this_cpu_ptr(ptr) }
}

/// Implements [`ThisCpu`] for `$int` by the C helpers.
///
/// The requirements of each operation are those of [`ThisCpu`].
macro_rules! impl_this_cpu {
    ($($int:ident)*) => { $crate::macros::paste! { $(
        impl ThisCpu for $int {
            #[inline]
            unsafe fn read<O: Offset>(ptr: *mut Self) -> Self {
                // SAFETY: By the requirements of `ThisCpu`, `ptr` plus `O` is that of a copy.
                unsafe { bindings::[<this_cpu_read_ $int>](ptr.wrapping_byte_add(O::BYTES)) }
            }

            #[inline]
            unsafe fn write<O: Offset>(ptr: *mut Self, value: Self) {
                // SAFETY: By the requirements of `ThisCpu`, `ptr` plus `O` is that of a copy.
                unsafe {
                    bindings::[<this_cpu_write_ $int>](ptr.wrapping_byte_add(O::BYTES), value)
                }
            }

            #[inline]
            unsafe fn add<O: Offset>(ptr: *mut Self, value: Self) {
                // SAFETY: By the requirements of `ThisCpu`, `ptr` plus `O` is that of a copy.
                unsafe { bindings::[<this_cpu_add_ $int>](ptr.wrapping_byte_add(O::BYTES), value) }
            }

            #[inline]
            unsafe fn inc<O: Offset>(ptr: *mut Self) {
                // SAFETY: By the requirements of `ThisCpu`, `ptr` plus `O` is that of a copy.
                unsafe { Self::add::<O>(ptr, 1) }
            }

            #[inline]
            unsafe fn dec<O: Offset>(ptr: *mut Self) {
                // SAFETY: By the requirements of `ThisCpu`, `ptr` plus `O` is that of a copy.
                unsafe { Self::add::<O>(ptr, Self::MAX) }
            }

            #[inline]
            unsafe fn and<O: Offset>(ptr: *mut Self, value: Self) {
                // SAFETY: By the requirements of `ThisCpu`, `ptr` plus `O` is that of a copy.
                unsafe { bindings::[<this_cpu_and_ $int>](ptr.wrapping_byte_add(O::BYTES), value) }
            }

            #[inline]
            unsafe fn or<O: Offset>(ptr: *mut Self, value: Self) {
                // SAFETY: By the requirements of `ThisCpu`, `ptr` plus `O` is that of a copy.
                unsafe { bindings::[<this_cpu_or_ $int>](ptr.wrapping_byte_add(O::BYTES), value) }
            }

            #[inline]
            unsafe fn add_return<O: Offset>(ptr: *mut Self, value: Self) -> Self {
                // SAFETY: By the requirements of `ThisCpu`, `ptr` plus `O` is that of a copy.
                unsafe {
                    bindings::[<this_cpu_add_return_ $int>](ptr.wrapping_byte_add(O::BYTES), value)
                }
            }

            #[inline]
            unsafe fn xchg<O: Offset>(ptr: *mut Self, value: Self) -> Self {
                // SAFETY: By the requirements of `ThisCpu`, `ptr` plus `O` is that of a copy.
                unsafe {
                    bindings::[<this_cpu_xchg_ $int>](ptr.wrapping_byte_add(O::BYTES), value)
                }
            }

            #[inline]
            unsafe fn cmpxchg<O: Offset>(ptr: *mut Self, old: Self, new: Self) -> Self {
                // SAFETY: By the requirements of `ThisCpu`, `ptr` plus `O` is that of a copy.
                unsafe {
                    bindings::[<this_cpu_cmpxchg_ $int>](ptr.wrapping_byte_add(O::BYTES), old, new)
                }
            }
        }
    )* } };
}

impl_this_cpu!(u8 u16 u32 u64);

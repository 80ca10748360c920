// SPDX-License-Identifier: GPL-2.0

//! Integers with the `this_cpu` operations.

use super::{
    arch,
    possible_cpus,
    PerCpu, //
};
use crate::{
    alloc::{
        AllocError,
        Flags, //
    },
    bindings,
    cpu::CpuId,
    fmt,
    preempt::PreemptGuard,
    prelude::*, //
};
use core::{
    cell::UnsafeCell,
    marker::PhantomData, //
};

/// An integer that each CPU changes in its own copy, by the `this_cpu` operations.
///
/// A `Local` is useful only in a [`PerCpu`]. The integer cannot be reached through a `&Local`, so
/// that no reference to it can exist while a CPU changes it.
///
/// All arithmetic wraps. No operation orders any other memory access. No operation is atomic with
/// respect to *other* CPUs, which can only read ([`read_cpu`](PerCpu::read_cpu),
/// [`sum`](PerCpu::sum)).
///
/// # Examples
///
/// ```
/// use kernel::prelude::*;
/// use kernel::percpu::{Local, PerCpu};
///
/// let packets = PerCpu::<Local<u64>>::zeroed(GFP_KERNEL)?;
/// packets.inc();
/// packets.add(2);
/// assert_eq!(packets.sum(), 3);
/// # Ok::<(), Error>(())
/// ```
#[repr(transparent)]
pub struct Local<I>(UnsafeCell<I>);

// SAFETY: A `&Local` gives no access to the integer. By `PerCpu<Local<I>>`, a CPU changes its own
// copy by `this_cpu` operations, and reads another CPU's copy by a volatile load, which may race
// with these operations by the kernel's memory model.
unsafe impl<I: Integer> Sync for Local<I> {}

impl<I: Integer> Local<I> {
    /// Creates an integer, for the initialiser of [`PerCpu::new`].
    pub const fn new(value: I) -> Self {
        Self(UnsafeCell::new(value))
    }

    /// Returns a mutable reference to the integer.
    pub fn get_mut(&mut self) -> &mut I {
        self.0.get_mut()
    }
}

impl<I> fmt::Debug for Local<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The integer cannot be reached through a `&Local`.
        f.debug_struct("Local").finish_non_exhaustive()
    }
}

/// # Context
///
/// All operations but [`zeroed`](Self::zeroed) can be called from any context except NMI.
impl<I: Integer> PerCpu<Local<I>> {
    /// Allocates integers that are all zero.
    ///
    /// # Context
    ///
    /// May sleep if `gfp` allows blocking, and then must be called from process context.
    #[doc(alias = "alloc_percpu_gfp")]
    pub fn zeroed(gfp: Flags) -> Result<Self, AllocError> {
        // INVARIANT: The allocator clears the memory, and zero is a valid integer.
        Ok(Self {
            ptr: Self::alloc(gfp)?,
            _values: PhantomData,
        })
    }

    fn raw(&self) -> *mut I {
        self.ptr.as_ptr().cast()
    }

    /// Reads this CPU's copy.
    #[doc(alias = "this_cpu_read")]
    #[inline]
    pub fn read(&self) -> I {
        // SAFETY: By the type invariant of `PerCpu`, `raw()` is the `__percpu` pointer of an
        // allocated `I`.
        unsafe { I::this_cpu_read(self.raw()) }
    }

    /// Writes this CPU's copy.
    #[doc(alias = "this_cpu_write")]
    #[inline]
    pub fn write(&self, value: I) {
        // SAFETY: By the type invariant of `PerCpu`, `raw()` is the `__percpu` pointer of an
        // allocated `I`.
        unsafe { I::this_cpu_write(self.raw(), value) }
    }

    /// Adds to this CPU's copy.
    #[doc(alias = "this_cpu_add")]
    #[inline]
    pub fn add(&self, value: I) {
        // SAFETY: By the type invariant of `PerCpu`, `raw()` is the `__percpu` pointer of an
        // allocated `I`.
        unsafe { I::this_cpu_add(self.raw(), value) }
    }

    /// Subtracts from this CPU's copy.
    #[doc(alias = "this_cpu_sub")]
    #[inline]
    pub fn sub(&self, value: I) {
        self.add(I::ZERO.wrapping_sub(value));
    }

    /// Adds one to this CPU's copy.
    #[doc(alias = "this_cpu_inc")]
    #[inline]
    pub fn inc(&self) {
        self.add(I::ONE);
    }

    /// Subtracts one from this CPU's copy.
    #[doc(alias = "this_cpu_dec")]
    #[inline]
    pub fn dec(&self) {
        self.sub(I::ONE);
    }

    /// Adds to this CPU's copy and returns the new value.
    #[doc(alias = "this_cpu_add_return")]
    #[inline]
    pub fn add_return(&self, value: I) -> I {
        // SAFETY: By the type invariant of `PerCpu`, `raw()` is the `__percpu` pointer of an
        // allocated `I`.
        unsafe { I::this_cpu_add_return(self.raw(), value) }
    }

    /// Writes `value` to this CPU's copy and returns the old value.
    #[doc(alias = "this_cpu_xchg")]
    #[inline]
    pub fn xchg(&self, value: I) -> I {
        // SAFETY: By the type invariant of `PerCpu`, `raw()` is the `__percpu` pointer of an
        // allocated `I`.
        unsafe { I::this_cpu_xchg(self.raw(), value) }
    }

    /// Writes `new` to this CPU's copy if its value is `old`.
    ///
    /// Returns the value that was found, as `Ok` if it was replaced, otherwise as `Err`.
    #[doc(alias = "this_cpu_cmpxchg")]
    #[inline]
    pub fn cmpxchg(&self, old: I, new: I) -> Result<I, I> {
        // SAFETY: By the type invariant of `PerCpu`, `raw()` is the `__percpu` pointer of an
        // allocated `I`.
        let found = unsafe { I::this_cpu_cmpxchg(self.raw(), old, new) };
        if found == old {
            Ok(found)
        } else {
            Err(found)
        }
    }

    /// Reads the copy of `cpu`, or returns `None` if that CPU is not possible.
    ///
    /// On a 32-bit machine a 64-bit integer is read in two halves, and `cpu` can write between the
    /// two.
    #[doc(alias = "per_cpu_ptr")]
    pub fn read_cpu(&self, cpu: CpuId) -> Option<I> {
        let copy = self.get_cpu(cpu)?;

        // SAFETY: `copy` is a valid `I`. Its CPU can change it at the same time by a `this_cpu`
        // operation. A volatile load, the kernel's `READ_ONCE()`, can race with that.
        Some(unsafe { copy.0.get().read_volatile() })
    }

    /// Returns the sum of all copies.
    ///
    /// If other CPUs change their copies at the same time, the sum may be one that was not true at
    /// any time.
    pub fn sum(&self) -> I {
        possible_cpus()
            .filter_map(|cpu| self.read_cpu(cpu))
            .fold(I::ZERO, I::wrapping_add)
    }
}

/// Inlined operations for callers that have disabled preemption already.
impl PerCpu<Local<u64>> {
    /// Adds to this CPU's copy.
    #[doc(alias = "this_cpu_add")]
    #[inline(always)]
    pub(crate) fn add_inline(&self, value: u64, _guard: &PreemptGuard) {
        // SAFETY: By the type invariant of `PerCpu`, `raw()` is the `__percpu` pointer of an
        // allocated `u64`. By that of the guard, preemption is disabled.
        unsafe { arch::this_cpu_add(self.raw(), value) };
    }

    /// Adds one to this CPU's copy.
    #[doc(alias = "this_cpu_inc")]
    #[inline(always)]
    pub(crate) fn inc_inline(&self, _guard: &PreemptGuard) {
        // SAFETY: By the type invariant of `PerCpu`, `raw()` is the `__percpu` pointer of an
        // allocated `u64`. By that of the guard, preemption is disabled.
        unsafe { arch::this_cpu_inc(self.raw()) };
    }

    /// Subtracts one from this CPU's copy.
    #[doc(alias = "this_cpu_dec")]
    #[inline(always)]
    pub(crate) fn dec_inline(&self, _guard: &PreemptGuard) {
        // SAFETY: By the type invariant of `PerCpu`, `raw()` is the `__percpu` pointer of an
        // allocated `u64`. By that of the guard, preemption is disabled.
        unsafe { arch::this_cpu_dec(self.raw()) };
    }
}

mod private {
    pub trait Sealed {}
}

/// The integers that can be in a [`Local`]: 8 to 64 bits wide, or as wide as a pointer.
pub trait Integer: private::Sealed + Copy + PartialEq + Send + Sync + 'static {
    #[doc(hidden)]
    const ZERO: Self;
    #[doc(hidden)]
    const ONE: Self;
    #[doc(hidden)]
    fn wrapping_add(self, other: Self) -> Self;
    #[doc(hidden)]
    fn wrapping_sub(self, other: Self) -> Self;

    /// # Safety
    ///
    /// `ptr` must be the `__percpu` pointer of an allocated `Self`.
    #[doc(hidden)]
    unsafe fn this_cpu_read(ptr: *mut Self) -> Self;
    /// # Safety
    ///
    /// `ptr` must be the `__percpu` pointer of an allocated `Self`.
    #[doc(hidden)]
    unsafe fn this_cpu_write(ptr: *mut Self, value: Self);
    /// # Safety
    ///
    /// `ptr` must be the `__percpu` pointer of an allocated `Self`.
    #[doc(hidden)]
    unsafe fn this_cpu_add(ptr: *mut Self, value: Self);
    /// # Safety
    ///
    /// `ptr` must be the `__percpu` pointer of an allocated `Self`.
    #[doc(hidden)]
    unsafe fn this_cpu_add_return(ptr: *mut Self, value: Self) -> Self;
    /// # Safety
    ///
    /// `ptr` must be the `__percpu` pointer of an allocated `Self`.
    #[doc(hidden)]
    unsafe fn this_cpu_xchg(ptr: *mut Self, value: Self) -> Self;
    /// # Safety
    ///
    /// `ptr` must be the `__percpu` pointer of an allocated `Self`.
    #[doc(hidden)]
    unsafe fn this_cpu_cmpxchg(ptr: *mut Self, old: Self, new: Self) -> Self;
}

/// Implements [`Integer`] for `$int` by the helpers in C for `$raw`, which has the same size.
macro_rules! impl_integer {
    ($($int:ty: $raw:ident;)*) => { $crate::macros::paste! { $(
        impl private::Sealed for $int {}

        impl Integer for $int {
            const ZERO: Self = 0;
            const ONE: Self = 1;

            #[inline]
            fn wrapping_add(self, other: Self) -> Self {
                self.wrapping_add(other)
            }

            #[inline]
            fn wrapping_sub(self, other: Self) -> Self {
                self.wrapping_sub(other)
            }

            #[inline]
            unsafe fn this_cpu_read(ptr: *mut Self) -> Self {
                // SAFETY: By the safety requirements of this function, `ptr` is allocated.
                unsafe { bindings::[<this_cpu_read_ $raw>](ptr.cast()) as Self }
            }

            #[inline]
            unsafe fn this_cpu_write(ptr: *mut Self, value: Self) {
                // SAFETY: By the safety requirements of this function, `ptr` is allocated.
                unsafe { bindings::[<this_cpu_write_ $raw>](ptr.cast(), value as $raw) }
            }

            #[inline]
            unsafe fn this_cpu_add(ptr: *mut Self, value: Self) {
                // SAFETY: By the safety requirements of this function, `ptr` is allocated.
                unsafe { bindings::[<this_cpu_add_ $raw>](ptr.cast(), value as $raw) }
            }

            #[inline]
            unsafe fn this_cpu_add_return(ptr: *mut Self, value: Self) -> Self {
                // SAFETY: By the safety requirements of this function, `ptr` is allocated.
                unsafe {
                    bindings::[<this_cpu_add_return_ $raw>](ptr.cast(), value as $raw) as Self
                }
            }

            #[inline]
            unsafe fn this_cpu_xchg(ptr: *mut Self, value: Self) -> Self {
                // SAFETY: By the safety requirements of this function, `ptr` is allocated.
                unsafe { bindings::[<this_cpu_xchg_ $raw>](ptr.cast(), value as $raw) as Self }
            }

            #[inline]
            unsafe fn this_cpu_cmpxchg(ptr: *mut Self, old: Self, new: Self) -> Self {
                // SAFETY: By the safety requirements of this function, `ptr` is allocated.
                unsafe {
                    bindings::[<this_cpu_cmpxchg_ $raw>](ptr.cast(), old as $raw, new as $raw)
                        as Self
                }
            }
        }
    )* } };
}

impl_integer! {
    u8: u8;
    i8: u8;
    u16: u16;
    i16: u16;
    u32: u32;
    i32: u32;
    u64: u64;
    i64: u64;
}

#[cfg(target_pointer_width = "64")]
impl_integer! {
    usize: u64;
    isize: u64;
}

#[cfg(target_pointer_width = "32")]
impl_integer! {
    usize: u32;
    isize: u32;
}

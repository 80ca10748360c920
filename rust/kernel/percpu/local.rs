// SPDX-License-Identifier: GPL-2.0

//! Per-CPU values with the `this_cpu` operations.

use super::{
    possible_cpus,
    this_cpu::ThisCpu,
    var::{
        At,
        Offset, //
    },
    PerCpuVar, //
};
use crate::{
    cpu::CpuId,
    fmt,
    prelude::*, //
};
use core::cell::UnsafeCell;

/// An integer, `bool` or pointer that each CPU changes in its own copy by the `this_cpu`
/// operations.
///
/// A `Local` is useful only in per-CPU memory: as a [`PerCpuVar`], or as a field or an element of
/// one. A `&Local` gives no access to the value, so no reference to the value exists while a CPU
/// changes it.
///
/// All arithmetic wraps. No operation orders other memory accesses. No operation is atomic with
/// respect to *other* CPUs, which can only read the value ([`read_cpu`](PerCpuVar::read_cpu),
/// [`sum`](PerCpuVar::sum)).
///
/// # Examples
///
/// ```
/// use kernel::prelude::*;
/// use kernel::percpu::{Local, PerCpu};
///
/// let packets = PerCpu::<Local<usize>>::zeroed(GFP_KERNEL)?;
/// packets.inc();
/// packets.add(2);
/// assert_eq!(packets.sum(), 3);
/// # Ok::<(), Error>(())
/// ```
#[repr(transparent)]
pub struct Local<V>(UnsafeCell<V>);

// SAFETY: A `&Local` gives no access to the value. By a `PerCpuVar<Local<V>>`, a CPU changes its
// own copy by `this_cpu` operations, and reads another CPU's copy by a volatile load, which may
// race with these operations by the kernel's memory model.
unsafe impl<V: Primitive> Sync for Local<V> {}

// SAFETY: Integers and `bool` are `Send`. A pointer is only a number here, because dereferencing it
// needs unsafe code, which must argue for its safety.
unsafe impl<V: Primitive> Send for Local<V> {}

// SAFETY: Zero is valid for each `Primitive`: the number, `false`, or the null pointer.
unsafe impl<V: Primitive> Zeroable for Local<V> {}

impl<V: Primitive> Local<V> {
    /// Creates a value, for the initialiser of [`PerCpu::new`](super::PerCpu::new) or of a static
    /// variable.
    #[inline]
    pub const fn new(value: V) -> Self {
        Self(UnsafeCell::new(value))
    }

    /// Returns a mutable reference to the value.
    #[inline]
    pub fn get_mut(&mut self) -> &mut V {
        self.0.get_mut()
    }
}

impl<V> fmt::Debug for Local<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A `&Local` gives no access to the value.
        f.debug_struct("Local").finish_non_exhaustive()
    }
}

/// # Context
///
/// All operations can be called from any context except NMI. No guard is needed: if the task is
/// migrated before an operation, the operation acts on the copy of the new CPU.
impl<V: Primitive, O: Offset> PerCpuVar<Local<V>, O> {
    #[inline(always)]
    fn raw(&self) -> *mut V::Raw {
        self.base().as_ptr().cast()
    }

    /// Reads this CPU's copy.
    #[doc(alias = "this_cpu_read")]
    #[inline(always)]
    pub fn read(&self) -> V {
        // SAFETY: By the type invariant, `raw()` plus `O` is the `__percpu` pointer of a valid `V`,
        // which has the layout of a `V::Raw`. No reference to it exists, since `Local` gives none.
        unsafe { V::from_raw(V::Raw::read::<O>(self.raw())) }
    }

    /// Writes this CPU's copy.
    #[doc(alias = "this_cpu_write")]
    #[inline(always)]
    pub fn write(&self, value: V) {
        // SAFETY: `raw()` plus `O` is the `__percpu` pointer of a `V`; see `read()`. A valid value
        // is written.
        unsafe { V::Raw::write::<O>(self.raw(), value.into_raw()) };
    }

    /// Writes `value` to this CPU's copy and returns the old value.
    #[doc(alias = "this_cpu_xchg")]
    #[inline(always)]
    pub fn xchg(&self, value: V) -> V {
        // SAFETY: `raw()` plus `O` is the `__percpu` pointer of a `V`; see `read()`. A valid value
        // is written.
        unsafe { V::from_raw(V::Raw::xchg::<O>(self.raw(), value.into_raw())) }
    }

    /// Writes `new` to this CPU's copy if its value is `old`.
    ///
    /// Returns the value that was found, as `Ok` if it was replaced, otherwise as `Err`.
    #[doc(alias = "this_cpu_cmpxchg")]
    #[inline(always)]
    pub fn cmpxchg(&self, old: V, new: V) -> Result<V, V> {
        // SAFETY: `raw()` plus `O` is the `__percpu` pointer of a `V`; see `read()`. A valid value
        // is written.
        let found = unsafe {
            V::from_raw(V::Raw::cmpxchg::<O>(
                self.raw(),
                old.into_raw(),
                new.into_raw(),
            ))
        };
        if found == old {
            Ok(found)
        } else {
            Err(found)
        }
    }

    /// Writes `new` to this CPU's copy if its value is `*old`, and returns whether it did.
    ///
    /// Otherwise stores the value that was found in `*old`, for the next attempt.
    ///
    /// # Examples
    ///
    /// ```
    /// use kernel::prelude::*;
    /// use kernel::percpu::{Local, PerCpu};
    ///
    /// let peak = PerCpu::<Local<usize>>::zeroed(GFP_KERNEL)?;
    ///
    /// // Raises the peak of this CPU to 7.
    /// let mut old = peak.read();
    /// while old < 7 && !peak.try_cmpxchg(&mut old, 7) {}
    /// assert_eq!(peak.sum(), 7);
    /// # Ok::<(), Error>(())
    /// ```
    #[doc(alias = "this_cpu_try_cmpxchg")]
    #[inline(always)]
    pub fn try_cmpxchg(&self, old: &mut V, new: V) -> bool {
        match self.cmpxchg(*old, new) {
            Ok(_) => true,
            Err(found) => {
                *old = found;
                false
            }
        }
    }
}

/// # Context
///
/// All operations can be called from any context except NMI.
impl<I: Integer, O: Offset> PerCpuVar<Local<I>, O> {
    /// Adds `value` to this CPU's copy.
    #[doc(alias = "this_cpu_add")]
    #[inline(always)]
    pub fn add(&self, value: I) {
        // SAFETY: `raw()` plus `O` is the `__percpu` pointer of an `I`; see `read()`. All values
        // are valid.
        unsafe { I::Raw::add::<O>(self.raw(), value.into_raw()) };
    }

    /// Subtracts `value` from this CPU's copy.
    #[doc(alias = "this_cpu_sub")]
    #[inline(always)]
    pub fn sub(&self, value: I) {
        self.add(value.wrapping_neg());
    }

    /// Adds one to this CPU's copy.
    #[doc(alias = "this_cpu_inc")]
    #[inline(always)]
    pub fn inc(&self) {
        // SAFETY: `raw()` plus `O` is the `__percpu` pointer of an `I`; see `read()`. All values
        // are valid.
        unsafe { I::Raw::inc::<O>(self.raw()) };
    }

    /// Subtracts one from this CPU's copy.
    #[doc(alias = "this_cpu_dec")]
    #[inline(always)]
    pub fn dec(&self) {
        // SAFETY: `raw()` plus `O` is the `__percpu` pointer of an `I`; see `read()`. All values
        // are valid.
        unsafe { I::Raw::dec::<O>(self.raw()) };
    }

    /// Clears the bits of this CPU's copy that are not set in `value`.
    #[doc(alias = "this_cpu_and")]
    #[inline(always)]
    pub fn and(&self, value: I) {
        // SAFETY: `raw()` plus `O` is the `__percpu` pointer of an `I`; see `read()`. All values
        // are valid.
        unsafe { I::Raw::and::<O>(self.raw(), value.into_raw()) };
    }

    /// Sets the bits of this CPU's copy that are set in `value`.
    #[doc(alias = "this_cpu_or")]
    #[inline(always)]
    pub fn or(&self, value: I) {
        // SAFETY: `raw()` plus `O` is the `__percpu` pointer of an `I`; see `read()`. All values
        // are valid.
        unsafe { I::Raw::or::<O>(self.raw(), value.into_raw()) };
    }

    /// Adds `value` to this CPU's copy, and returns the new value.
    #[doc(alias("this_cpu_add_return", "this_cpu_inc_return"))]
    #[inline(always)]
    pub fn add_return(&self, value: I) -> I {
        // SAFETY: `raw()` plus `O` is the `__percpu` pointer of an `I`; see `read()`. All values
        // are valid.
        unsafe { I::from_raw(I::Raw::add_return::<O>(self.raw(), value.into_raw())) }
    }

    /// Subtracts `value` from this CPU's copy, and returns the new value.
    #[doc(alias("this_cpu_sub_return", "this_cpu_dec_return"))]
    #[inline(always)]
    pub fn sub_return(&self, value: I) -> I {
        self.add_return(value.wrapping_neg())
    }
}

/// # Context
///
/// All operations can be called from any context.
impl<V: Untorn, O: Offset> PerCpuVar<Local<V>, O> {
    /// Reads the copy of `cpu`, or returns `None` if that CPU is not possible.
    #[doc(alias("per_cpu_ptr", "per_cpu", "READ_ONCE"))]
    pub fn read_cpu(&self, cpu: CpuId) -> Option<V> {
        let copy = self.get_cpu(cpu)?;

        // SAFETY: `copy` is a valid `V`. Its CPU can change it at the same time by a `this_cpu`
        // operation. A volatile load, the kernel's `READ_ONCE()`, can race with that.
        Some(unsafe { copy.0.get().read_volatile() })
    }

    /// Returns the sum of all copies.
    ///
    /// The sum is not a snapshot: other CPUs can change their copies at the same time, so the sum
    /// may be a value that the counter never had. There is no operation that clears the copies of
    /// other CPUs. To count from a certain time on, keep the sum at that time and subtract it
    /// later.
    pub fn sum(&self) -> V
    where
        V: Integer,
    {
        possible_cpus()
            .filter_map(|cpu| self.read_cpu(cpu))
            .fold(V::ZERO, V::wrapping_add)
    }
}

/// Operations for callers that have disabled preemption, or that can use the copy of any CPU.
impl PerCpuVar<Local<u64>> {
    /// Adds `value` to this CPU's copy, or to the copy of a CPU that the task was on before.
    #[inline(always)]
    pub(crate) fn add_on_cpu(&self, value: u64) {
        // SAFETY: `raw()` is the `__percpu` pointer of a `u64`; see `read()`.
        unsafe { u64::add_on_cpu::<At<0>>(self.raw(), value) };
    }

    /// Adds one to the copy that [`add_on_cpu`](Self::add_on_cpu) adds to.
    #[inline(always)]
    pub(crate) fn inc_on_cpu(&self) {
        // SAFETY: `raw()` is the `__percpu` pointer of a `u64`; see `read()`.
        unsafe { u64::inc_on_cpu::<At<0>>(self.raw()) };
    }

    /// Subtracts one from the copy that [`add_on_cpu`](Self::add_on_cpu) adds to.
    #[inline(always)]
    pub(crate) fn dec_on_cpu(&self) {
        // SAFETY: `raw()` is the `__percpu` pointer of a `u64`; see `read()`.
        unsafe { u64::dec_on_cpu::<At<0>>(self.raw()) };
    }
}

mod private {
    pub trait Sealed {}
}

/// The types of values in a [`Local`]: integers of 8 to 64 bits, `bool`, and raw pointers.
///
/// # Invariants
///
/// `Raw` is an integer of the same size and alignment. Zero is valid.
pub trait Primitive: private::Sealed + Copy + PartialEq + 'static {
    #[doc(hidden)]
    type Raw: ThisCpu;

    #[doc(hidden)]
    fn into_raw(self) -> Self::Raw;

    /// # Safety
    ///
    /// `raw` must be a value that [`into_raw`](Self::into_raw) returned, or zero.
    #[doc(hidden)]
    unsafe fn from_raw(raw: Self::Raw) -> Self;
}

/// The types of integers in a [`Local`]: 8 to 64 bits wide, or as wide as a pointer.
pub trait Integer: Primitive {
    #[doc(hidden)]
    const ZERO: Self;

    #[doc(hidden)]
    fn wrapping_add(self, other: Self) -> Self;

    #[doc(hidden)]
    fn wrapping_neg(self) -> Self;
}

/// The types of values that another CPU can read while their own CPU changes them.
///
/// Another CPU never reads a value that is partly changed. On a 32-bit machine, 64-bit integers do
/// not implement this trait; C has `u64_stats_sync` for them. Use `usize` there, or an
/// `Atomic<i64>` for each CPU ([`PerCpuVar::get`], [`PerCpuVar::iter`]).
#[doc(alias("u64_stats_sync", "u64_stats_fetch_begin"))]
pub trait Untorn: Primitive {}

/// Implements the traits for `$int`, with an integer `$raw` of the same size.
macro_rules! impl_integer {
    ($($int:ident: $raw:ident;)*) => {$(
        impl private::Sealed for $int {}

        impl Primitive for $int {
            type Raw = $raw;

            #[inline(always)]
            fn into_raw(self) -> $raw {
                self as $raw
            }

            #[inline(always)]
            unsafe fn from_raw(raw: $raw) -> Self {
                raw as Self
            }
        }

        impl Integer for $int {
            const ZERO: Self = 0;

            #[inline(always)]
            fn wrapping_add(self, other: Self) -> Self {
                self.wrapping_add(other)
            }

            #[inline(always)]
            fn wrapping_neg(self) -> Self {
                self.wrapping_neg()
            }
        }
    )*};
}

macro_rules! impl_untorn {
    ($($value:ident)*) => {
        $(impl Untorn for $value {})*
    };
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
impl_untorn!(bool u8 i8 u16 i16 u32 i32 usize isize);

/// The integer with the size of a pointer.
#[cfg(CONFIG_64BIT)]
type Word = u64;
#[cfg(not(CONFIG_64BIT))]
type Word = u32;

#[cfg(CONFIG_64BIT)]
impl_untorn!(u64 i64);
#[cfg(CONFIG_64BIT)]
impl_integer! {
    usize: u64;
    isize: u64;
}

#[cfg(not(CONFIG_64BIT))]
impl_integer! {
    usize: u32;
    isize: u32;
}

impl private::Sealed for bool {}

impl Primitive for bool {
    type Raw = u8;

    #[inline(always)]
    fn into_raw(self) -> u8 {
        self.into()
    }

    #[inline(always)]
    unsafe fn from_raw(raw: u8) -> Self {
        raw != 0
    }
}

/// Implements the traits for a raw pointer.
macro_rules! impl_pointer {
    ($pointer:ty, $from:path) => {
        impl<T: 'static> private::Sealed for $pointer {}

        impl<T: 'static> Primitive for $pointer {
            type Raw = Word;

            #[inline(always)]
            fn into_raw(self) -> Word {
                self.expose_provenance() as Word
            }

            #[inline(always)]
            unsafe fn from_raw(raw: Word) -> Self {
                // `into_raw()` exposed the provenance.
                $from(raw as usize)
            }
        }

        impl<T: 'static> Untorn for $pointer {}
    };
}

impl_pointer!(*mut T, core::ptr::with_exposed_provenance_mut);
impl_pointer!(*const T, core::ptr::with_exposed_provenance);

const _: () = assert!(size_of::<Word>() == size_of::<usize>());

// SPDX-License-Identifier: GPL-2.0

//! What the `this_cpu` operations are. [`arch`](super::arch) implements them.
//!
//! C header: [`include/linux/percpu-defs.h`](srctree/include/linux/percpu-defs.h)

use super::var::Offset;

/// The `this_cpu` operations on an integer of this width.
///
/// Each operation acts on the copy of the CPU that it runs on, and is atomic with respect to
/// preemption and to interrupts on that CPU, but not to NMI. [`add_on_cpu`](Self::add_on_cpu) and
/// the like may act on another copy.
///
/// For each function, `ptr` plus the offset `O` must be the `__percpu` pointer of an allocated and
/// initialised `Self`, which is accessed by volatile loads and by these operations alone.
pub trait ThisCpu: Copy {
    /// Returns the value.
    ///
    /// # Safety
    ///
    /// See [`ThisCpu`].
    unsafe fn read<O: Offset>(ptr: *mut Self) -> Self;

    /// Writes the value.
    ///
    /// # Safety
    ///
    /// See [`ThisCpu`].
    unsafe fn write<O: Offset>(ptr: *mut Self, value: Self);

    /// Adds `value`, and wraps.
    ///
    /// # Safety
    ///
    /// See [`ThisCpu`].
    unsafe fn add<O: Offset>(ptr: *mut Self, value: Self);

    /// Adds one, and wraps.
    ///
    /// # Safety
    ///
    /// See [`ThisCpu`].
    unsafe fn inc<O: Offset>(ptr: *mut Self);

    /// Subtracts one, and wraps.
    ///
    /// # Safety
    ///
    /// See [`ThisCpu`].
    unsafe fn dec<O: Offset>(ptr: *mut Self);

    /// Adds `value` as [`add`](Self::add) does, for a caller that has disabled preemption.
    ///
    /// Without that, the copy may be that of a CPU which the task was on a moment ago. The change
    /// is then atomic with respect to that CPU as well, except to [`write`](Self::write).
    ///
    /// # Safety
    ///
    /// See [`ThisCpu`].
    #[inline(always)]
    unsafe fn add_on_cpu<O: Offset>(ptr: *mut Self, value: Self) {
        // SAFETY: By the safety requirements of this function, there is a copy at `ptr`.
        unsafe { Self::add::<O>(ptr, value) };
    }

    /// Adds one, to the copy that [`add_on_cpu`](Self::add_on_cpu) adds to.
    ///
    /// # Safety
    ///
    /// See [`ThisCpu`].
    #[inline(always)]
    unsafe fn inc_on_cpu<O: Offset>(ptr: *mut Self) {
        // SAFETY: By the safety requirements of this function, there is a copy at `ptr`.
        unsafe { Self::inc::<O>(ptr) };
    }

    /// Subtracts one, from the copy that [`add_on_cpu`](Self::add_on_cpu) adds to.
    ///
    /// # Safety
    ///
    /// See [`ThisCpu`].
    #[inline(always)]
    unsafe fn dec_on_cpu<O: Offset>(ptr: *mut Self) {
        // SAFETY: By the safety requirements of this function, there is a copy at `ptr`.
        unsafe { Self::dec::<O>(ptr) };
    }

    /// Keeps the bits that are set in `value`.
    ///
    /// # Safety
    ///
    /// See [`ThisCpu`].
    unsafe fn and<O: Offset>(ptr: *mut Self, value: Self);

    /// Sets the bits that are set in `value`.
    ///
    /// # Safety
    ///
    /// See [`ThisCpu`].
    unsafe fn or<O: Offset>(ptr: *mut Self, value: Self);

    /// Adds `value`, wraps, and returns the new value.
    ///
    /// # Safety
    ///
    /// See [`ThisCpu`].
    unsafe fn add_return<O: Offset>(ptr: *mut Self, value: Self) -> Self;

    /// Writes `value` and returns the old value.
    ///
    /// # Safety
    ///
    /// See [`ThisCpu`].
    unsafe fn xchg<O: Offset>(ptr: *mut Self, value: Self) -> Self;

    /// Writes `new` if the value is `old`. Returns the value that was found.
    ///
    /// # Safety
    ///
    /// See [`ThisCpu`].
    unsafe fn cmpxchg<O: Offset>(ptr: *mut Self, old: Self, new: Self) -> Self;
}

// SPDX-License-Identifier: GPL-2.0

//! The interface of the `this_cpu` operations, which [`arch`](super::arch) implements.
//!
//! C header: [`include/linux/percpu-defs.h`](srctree/include/linux/percpu-defs.h)

use super::var::Offset;

/// The `this_cpu` operations on an integer of this width.
///
/// Each operation acts on the copy of the CPU that it runs on, and is atomic with respect to
/// preemption and to interrupts on that CPU, but not to NMI. [`add_on_cpu`](Self::add_on_cpu),
/// [`inc_on_cpu`](Self::inc_on_cpu) and [`dec_on_cpu`](Self::dec_on_cpu) may act on another copy.
///
/// # Requirements of the functions
///
/// For each function of this trait, `ptr` plus the offset `O` must be the `__percpu` pointer of an
/// allocated and initialised `Self`, which is accessed by volatile loads and by these operations
/// only.
pub trait ThisCpu: Copy {
    /// Returns the value.
    ///
    /// # Safety
    ///
    /// `ptr` must meet the requirements of [`ThisCpu`].
    unsafe fn read<O: Offset>(ptr: *mut Self) -> Self;

    /// Writes the value.
    ///
    /// # Safety
    ///
    /// `ptr` must meet the requirements of [`ThisCpu`].
    unsafe fn write<O: Offset>(ptr: *mut Self, value: Self);

    /// Adds `value`, and wraps.
    ///
    /// # Safety
    ///
    /// `ptr` must meet the requirements of [`ThisCpu`].
    unsafe fn add<O: Offset>(ptr: *mut Self, value: Self);

    /// Adds one, and wraps.
    ///
    /// # Safety
    ///
    /// `ptr` must meet the requirements of [`ThisCpu`].
    unsafe fn inc<O: Offset>(ptr: *mut Self);

    /// Subtracts one, and wraps.
    ///
    /// # Safety
    ///
    /// `ptr` must meet the requirements of [`ThisCpu`].
    unsafe fn dec<O: Offset>(ptr: *mut Self);

    /// Adds `value` as [`add`](Self::add) does, for a caller that has disabled preemption.
    ///
    /// If the caller has not disabled preemption, the copy may be that of a CPU which the task was
    /// on before. The change is then atomic with respect to that CPU as well, except to
    /// [`write`](Self::write).
    ///
    /// # Safety
    ///
    /// `ptr` must meet the requirements of [`ThisCpu`].
    #[inline(always)]
    unsafe fn add_on_cpu<O: Offset>(ptr: *mut Self, value: Self) {
        // SAFETY: By the requirements of this function, `ptr` plus `O` is that of a copy.
        unsafe { Self::add::<O>(ptr, value) };
    }

    /// Adds one to the copy that [`add_on_cpu`](Self::add_on_cpu) adds to.
    ///
    /// # Safety
    ///
    /// `ptr` must meet the requirements of [`ThisCpu`].
    #[inline(always)]
    unsafe fn inc_on_cpu<O: Offset>(ptr: *mut Self) {
        // SAFETY: By the requirements of this function, `ptr` plus `O` is that of a copy.
        unsafe { Self::inc::<O>(ptr) };
    }

    /// Subtracts one from the copy that [`add_on_cpu`](Self::add_on_cpu) adds to.
    ///
    /// # Safety
    ///
    /// `ptr` must meet the requirements of [`ThisCpu`].
    #[inline(always)]
    unsafe fn dec_on_cpu<O: Offset>(ptr: *mut Self) {
        // SAFETY: By the requirements of this function, `ptr` plus `O` is that of a copy.
        unsafe { Self::dec::<O>(ptr) };
    }

    /// Clears the bits that are not set in `value`.
    ///
    /// # Safety
    ///
    /// `ptr` must meet the requirements of [`ThisCpu`].
    unsafe fn and<O: Offset>(ptr: *mut Self, value: Self);

    /// Sets the bits that are set in `value`.
    ///
    /// # Safety
    ///
    /// `ptr` must meet the requirements of [`ThisCpu`].
    unsafe fn or<O: Offset>(ptr: *mut Self, value: Self);

    /// Adds `value`, wraps, and returns the new value.
    ///
    /// # Safety
    ///
    /// `ptr` must meet the requirements of [`ThisCpu`].
    unsafe fn add_return<O: Offset>(ptr: *mut Self, value: Self) -> Self;

    /// Writes `value` and returns the old value.
    ///
    /// # Safety
    ///
    /// `ptr` must meet the requirements of [`ThisCpu`].
    unsafe fn xchg<O: Offset>(ptr: *mut Self, value: Self) -> Self;

    /// Writes `new` if the value is `old`, and returns the value that was found.
    ///
    /// # Safety
    ///
    /// `ptr` must meet the requirements of [`ThisCpu`].
    unsafe fn cmpxchg<O: Offset>(ptr: *mut Self, old: Self, new: Self) -> Self;
}

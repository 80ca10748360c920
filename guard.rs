// SPDX-License-Identifier: GPL-2.0

//! References to counted objects, one by one and many at a time.
//!
//! C header: [`include/linux/percpu-refcount.h`](srctree/include/linux/percpu-refcount.h)

use core::{
    mem::ManuallyDrop,
    ops::Deref,
    ptr::NonNull, //
};

use crate::{
    count::Count,
    Counted,
    Inner, //
};

/// A reference to a counted object.
///
/// It is owned and may be kept anywhere, passed on to another thread, and dropped on another CPU
/// than the one it was got on. The object is there as long as the guard is.
///
/// A guard that is leaked leaks the object, and nothing worse.
///
/// # Invariants
///
/// Owns one reference that is counted in `inner`, so the object is alive.
#[must_use = "if unused, the reference is put again at once"]
pub struct PercpuRefGuard<T: Counted> {
    inner: NonNull<Inner<T>>,
}

// SAFETY: As for `PercpuRef`; it is also a `&T`, for which `T` is `Sync` by `Counted`.
unsafe impl<T: Counted> Send for PercpuRefGuard<T> {}

// SAFETY: As above.
unsafe impl<T: Counted> Sync for PercpuRefGuard<T> {}

impl<T: Counted> PercpuRefGuard<T> {
    /// # Safety
    ///
    /// There is a reference that is counted in `inner`, and the caller gives it up.
    #[inline]
    pub(crate) unsafe fn new(inner: NonNull<Inner<T>>) -> Self {
        // INVARIANT: As the function requires.
        Self { inner }
    }

    /// Gives up ownership, for [`PercpuRefGuard::new`] to take up again.
    pub(crate) fn into_inner(self) -> NonNull<Inner<T>> {
        ManuallyDrop::new(self).inner
    }

    /// Gets `n` more references in one go. It does not fail, even if the reference was killed. If
    /// that were more than 2^61 references, it warns once, and the object stays for ever.
    ///
    /// Any context but NMI.
    #[doc(alias = "percpu_ref_get_many")]
    #[inline(always)]
    pub fn get_many(&self, n: usize) -> PercpuRefBatch<T> {
        // SAFETY: By the type invariant, the object is alive.
        unsafe { &(*self.inner.as_ptr()).count }.get(n);

        // SAFETY: `get()` added so many references, which the batch owns.
        unsafe { PercpuRefBatch::new(self.inner, n) }
    }
}

impl<T: Counted> Deref for PercpuRefGuard<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: By the type invariant, the object is alive.
        unsafe { &(*self.inner.as_ptr()).value }
    }
}

impl<T: Counted> Clone for PercpuRefGuard<T> {
    /// Gets another reference. It does not fail, even if the reference was killed.
    ///
    /// Any context but NMI.
    #[doc(alias = "percpu_ref_get")]
    #[inline(always)]
    fn clone(&self) -> Self {
        // SAFETY: By the type invariant, the object is alive.
        unsafe { &(*self.inner.as_ptr()).count }.get(1);

        // SAFETY: `get()` added a reference, which the new guard owns.
        unsafe { Self::new(self.inner) }
    }
}

impl<T: Counted> Drop for PercpuRefGuard<T> {
    /// Puts the reference. If it is the last one, the object is released in here, and if it lives
    /// once, dropped.
    ///
    /// Any context but NMI, if it is not the last one. The last one does what `T`'s release and
    /// drop do, frees memory and wakes up who waits for the release, which PREEMPT_RT does not
    /// allow in a hard interrupt or with preemption disabled. What was done with the object before
    /// is visible to its release.
    #[doc(alias = "percpu_ref_put")]
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: By the type invariant, there is a reference, and it goes with the guard.
        unsafe { Count::put(self.inner.cast(), 1) };
    }
}

/// Any number of references to one counted object.
///
/// They can be taken out one by one, split and merged, all without touching the count. It may also
/// become empty, and be filled again.
///
/// # Invariants
///
/// Owns `len` references that are counted in `inner`. If that is not zero, the object is alive.
///
/// # Examples
///
/// ```
/// use kernel::prelude::*;
/// use percpu_ref::{Counted, PercpuRef, UniquePercpuRef};
///
/// struct Ring;
/// impl Counted for Ring {}
///
/// let ring: PercpuRef<Ring> = UniquePercpuRef::new(Ring, GFP_KERNEL)?.into();
///
/// // Counted once, for 64 requests.
/// let mut cache = ring.try_get_many(64).ok_or(ENODEV)?;
/// let request = cache.take().ok_or(EBUSY)?;
/// assert_eq!(cache.len(), 63);
///
/// // A request that was not needed.
/// assert!(cache.put_back(request).is_ok());
/// # Ok::<(), Error>(())
/// ```
#[must_use = "if unused, the references are put again at once"]
pub struct PercpuRefBatch<T: Counted> {
    inner: NonNull<Inner<T>>,
    len: usize,
}

// SAFETY: As for `PercpuRefGuard`.
unsafe impl<T: Counted> Send for PercpuRefBatch<T> {}

// SAFETY: As above.
unsafe impl<T: Counted> Sync for PercpuRefBatch<T> {}

/// All of these may be called in any context; for those that drop references, see
/// [`PercpuRefGuard`].
impl<T: Counted> PercpuRefBatch<T> {
    /// # Safety
    ///
    /// There are `len` references that are counted in `inner`, and the caller gives them up.
    #[inline]
    pub(crate) unsafe fn new(inner: NonNull<Inner<T>>, len: usize) -> Self {
        // INVARIANT: As the function requires.
        Self { inner, len }
    }

    /// The number of references.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The object, if there is a reference to it.
    #[inline]
    pub fn value(&self) -> Option<&T> {
        if self.is_empty() {
            return None;
        }
        // SAFETY: By the type invariant, the object is alive.
        Some(unsafe { &(*self.inner.as_ptr()).value })
    }

    /// Takes one reference out, if there is one.
    #[inline]
    pub fn take(&mut self) -> Option<PercpuRefGuard<T>> {
        // INVARIANT: The guard owns what is missing here.
        self.len = self.len.checked_sub(1)?;
        // SAFETY: One of our references.
        Some(unsafe { PercpuRefGuard::new(self.inner) })
    }

    /// Takes `n` references out, if there are so many.
    #[inline]
    pub fn split(&mut self, n: usize) -> Option<Self> {
        // INVARIANT: The new batch owns what is missing here.
        self.len = self.len.checked_sub(n)?;
        // SAFETY: So many of our references.
        Some(unsafe { Self::new(self.inner, n) })
    }

    /// Puts one reference in, or gives it back if it is to another object.
    #[inline]
    pub fn put_back(&mut self, guard: PercpuRefGuard<T>) -> Result<(), PercpuRefGuard<T>> {
        match self.len.checked_add(1) {
            Some(len) if guard.inner == self.inner => {
                // INVARIANT: The guard's reference is ours now.
                guard.into_inner();
                self.len = len;
                Ok(())
            }
            _ => Err(guard),
        }
    }

    /// Puts all references of `other` in, or gives it back if they are to another object.
    #[inline]
    pub fn merge(&mut self, other: Self) -> Result<(), Self> {
        match self.len.checked_add(other.len) {
            Some(len) if other.inner == self.inner => {
                // INVARIANT: The other's references are ours now.
                let _ = ManuallyDrop::new(other);
                self.len = len;
                Ok(())
            }
            _ => Err(other),
        }
    }
}

impl<T: Counted> From<PercpuRefGuard<T>> for PercpuRefBatch<T> {
    #[inline]
    fn from(guard: PercpuRefGuard<T>) -> Self {
        // SAFETY: By the type invariant of the guard.
        unsafe { Self::new(guard.into_inner(), 1) }
    }
}

impl<T: Counted> Drop for PercpuRefBatch<T> {
    /// Puts all references in one go; otherwise like the drop of a [`PercpuRefGuard`].
    #[doc(alias = "percpu_ref_put_many")]
    #[inline(always)]
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: By the type invariant, there are so many references, and they go with the
            // batch.
            unsafe { Count::put(self.inner.cast(), self.len) };
        }
    }
}

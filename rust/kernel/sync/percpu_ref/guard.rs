// SPDX-License-Identifier: GPL-2.0

//! References to counted objects, one by one and many at a time.
//!
//! C header: [`include/linux/percpu-refcount.h`](srctree/include/linux/percpu-refcount.h)

use super::{
    count::Count,
    holder,
    Counted,
    Inner, //
};
use crate::{
    fmt,
    prelude::*,
    types::NotThreadSafe, //
};
use core::{
    marker::PhantomData,
    mem::ManuallyDrop,
    ops::Deref,
    ptr::NonNull, //
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
    pub(super) inner: NonNull<Inner<T>>,
    pub(super) holder: holder::Holder,
}

// SAFETY: A guard is a `&T`, for which `T` is `Sync` by `Counted`, and may drop the object, for
// which `T` is `Send`. References may be put on any thread.
unsafe impl<T: Counted> Send for PercpuRefGuard<T> {}

// SAFETY: Through a `&PercpuRefGuard` one gets a `&T` and more guards, which are `Send`.
unsafe impl<T: Counted> Sync for PercpuRefGuard<T> {}

impl<T: Counted> PercpuRefGuard<T> {
    /// # Safety
    ///
    /// The caller must own a reference that is counted in `inner`, and gives it up.
    #[inline]
    #[cfg_attr(CONFIG_RUST_PERCPU_REF_DEBUG, track_caller)]
    pub(super) unsafe fn new(inner: NonNull<Inner<T>>) -> Self {
        // INVARIANT: By the safety requirements of this function, the guard owns the reference.
        Self {
            inner,
            holder: holder::Holder::new(holder::Kind::Guard, inner.cast(), 1),
        }
    }

    /// Returns `true` if both are references to the same object.
    #[inline]
    pub fn ptr_eq(this: &Self, other: &Self) -> bool {
        this.inner == other.inner
    }

    pub(super) fn inner(&self) -> NonNull<Inner<T>> {
        self.inner
    }

    /// Tells lockdep that the current task works with the object, and that the guard stays with the
    /// task until the returned value is dropped.
    ///
    /// If the task takes a lock meanwhile, and a task that holds the lock waits for the release of
    /// such an object, the two may wait for each other. Lockdep reports that when it has seen both,
    /// long before it happens: with `CONFIG_RUST_PERCPU_REF_DEBUG` and `CONFIG_PROVE_LOCKING`.
    /// Otherwise, this has no effect and no cost.
    ///
    /// # Context
    ///
    /// Can be called from any context except NMI. Has no effect in interrupts.
    ///
    /// # Examples
    ///
    /// ```
    /// use kernel::prelude::*;
    /// use kernel::sync::percpu_ref::{Counted, PercpuRef, UniquePercpuRef};
    ///
    /// struct Queue;
    /// impl Counted for Queue {}
    ///
    /// let queue: PercpuRef<Queue> = UniquePercpuRef::new(Queue, GFP_KERNEL)?.into();
    ///
    /// let request = queue.try_get().ok_or(ENODEV)?;
    /// let section = request.lockdep_section();
    /// // Work on the request, take locks.
    /// drop(section);
    /// drop(request);
    /// # Ok::<(), Error>(())
    /// ```
    #[doc(alias("rwsem_acquire_read", "lock_map_acquire_tryread"))]
    #[inline]
    pub fn lockdep_section(&self) -> LockdepSection<'_> {
        LockdepSection {
            // SAFETY: By the type invariant, the object is alive.
            _holder: unsafe { holder::Held::new(self.inner.cast()) },
            _guard: PhantomData,
            _not_send: NotThreadSafe,
        }
    }

    /// Gets `n` more references at once. Does not fail, even if the reference was killed.
    ///
    /// If the sum is more than 2^60 references, this warns once, and the object is never freed. So
    /// that it is noticed, no call may add more than 64 references to a counter; larger numbers go
    /// to an atomic variable.
    ///
    /// # Context
    ///
    /// Can be called from any context in which RCU is watching, except NMI.
    #[doc(alias = "percpu_ref_get_many")]
    #[inline(always)]
    #[cfg_attr(CONFIG_RUST_PERCPU_REF_DEBUG, track_caller)]
    pub fn get_many(&self, n: usize) -> PercpuRefBatch<T> {
        // SAFETY: By the type invariant, the object is alive.
        unsafe { &(*self.inner.as_ptr()).count }.get(n, Inner::<T>::TASKS);

        // SAFETY: `get()` added `n` references, which the batch owns.
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
    /// Gets another reference. Does not fail, even if the reference was killed.
    ///
    /// # Context
    ///
    /// Can be called from any context in which RCU is watching, except NMI.
    #[doc(alias = "percpu_ref_get")]
    #[inline(always)]
    #[cfg_attr(CONFIG_RUST_PERCPU_REF_DEBUG, track_caller)]
    fn clone(&self) -> Self {
        // SAFETY: By the type invariant, the object is alive.
        unsafe { &(*self.inner.as_ptr()).count }.get(1, Inner::<T>::TASKS);

        // SAFETY: `get()` added a reference, which the new guard owns.
        unsafe { Self::new(self.inner) }
    }
}

impl<T: Counted> Drop for PercpuRefGuard<T> {
    /// Puts the reference. If it is the last one, the object is released in here, and if it lives
    /// once, dropped. What was done with the object before is visible to its release.
    ///
    /// # Context
    ///
    /// Can be called from any context in which RCU is watching, except NMI. If the reference may be
    /// the last one, [`Counted::release`] and the `Drop` of `T` must be allowed there, too, unless
    /// they run elsewhere by [`Counted::MAY_SLEEP`]. The library itself takes no sleeping lock and
    /// frees no memory where PREEMPT_RT does not allow it.
    #[doc(alias = "percpu_ref_put")]
    #[inline(always)]
    fn drop(&mut self) {
        self.holder.end();
        // SAFETY: By the type invariant, the guard owns a reference, which it gives up here.
        unsafe { Count::put(self.inner.cast(), 1, Inner::<T>::TASKS) };
    }
}

impl<T: Counted> fmt::Debug for PercpuRefGuard<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // SAFETY: By the type invariant, the object is alive.
        unsafe { &(*self.inner.as_ptr()).count }.fmt_as::<T>("PercpuRefGuard", f)
    }
}

/// A time in which the current task works with a counted object; see
/// [`PercpuRefGuard::lockdep_section`].
///
/// It borrows the guard and cannot be sent, so the same task must drop it before the guard can be
/// put.
#[must_use = "if unused, the section ends at once"]
pub struct LockdepSection<'a> {
    _holder: holder::Held,
    _guard: PhantomData<&'a ()>,
    _not_send: NotThreadSafe,
}

/// Any number of references to one counted object.
///
/// They can be taken out one by one, split and merged, all without touching the count. A batch may
/// also become empty. An empty batch belongs to no object, and can be filled with references to
/// any.
///
/// # Invariants
///
/// Owns `len` references that are counted in `inner`, if `len` is not zero. If it is zero, `inner`
/// is not used.
///
/// # Examples
///
/// ```
/// use kernel::prelude::*;
/// use kernel::sync::percpu_ref::{Counted, PercpuRef, UniquePercpuRef};
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
    holder: holder::Holder,
}

// SAFETY: A batch is a number of guards, which are `Send`.
unsafe impl<T: Counted> Send for PercpuRefBatch<T> {}

// SAFETY: Through a `&PercpuRefBatch` one gets a `&T`, which is `Sync` by `Counted`.
unsafe impl<T: Counted> Sync for PercpuRefBatch<T> {}

/// All of these can be called from any context; those that drop references, where a
/// [`PercpuRefGuard`] can be dropped.
impl<T: Counted> PercpuRefBatch<T> {
    /// # Safety
    ///
    /// The caller must own `len` references that are counted in `inner`, and gives them up.
    #[inline]
    #[cfg_attr(CONFIG_RUST_PERCPU_REF_DEBUG, track_caller)]
    pub(super) unsafe fn new(inner: NonNull<Inner<T>>, len: usize) -> Self {
        // INVARIANT: By the safety requirements of this function, the batch owns the references.
        Self {
            inner,
            len,
            holder: holder::Holder::new(holder::Kind::Batch, inner.cast(), len),
        }
    }

    /// Returns the number of references.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether there are no references.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the object, if there is a reference to it.
    #[inline]
    pub fn value(&self) -> Option<&T> {
        if self.is_empty() {
            return None;
        }
        // SAFETY: By the type invariant, the batch owns a reference, so the object is alive.
        Some(unsafe { &(*self.inner.as_ptr()).value })
    }

    /// Takes one reference out, if there is one.
    #[inline]
    #[cfg_attr(CONFIG_RUST_PERCPU_REF_DEBUG, track_caller)]
    pub fn take(&mut self) -> Option<PercpuRefGuard<T>> {
        // INVARIANT: The guard owns what is missing here.
        self.len = self.len.checked_sub(1)?;
        // SAFETY: By the type invariant, the batch owned the reference.
        let guard = unsafe { PercpuRefGuard::new(self.inner) };
        self.holder.resize(self.len);
        Some(guard)
    }

    /// Takes `n` references out, if there are as many.
    #[inline]
    #[cfg_attr(CONFIG_RUST_PERCPU_REF_DEBUG, track_caller)]
    pub fn split(&mut self, n: usize) -> Option<Self> {
        // INVARIANT: The new batch owns what is missing here.
        self.len = self.len.checked_sub(n)?;
        // SAFETY: By the type invariant, the batch owned the references.
        let batch = unsafe { Self::new(self.inner, n) };
        self.holder.resize(self.len);
        Some(batch)
    }

    /// Puts one reference in. Gives it back if the batch has references to another object, or has
    /// `usize::MAX` references.
    #[inline]
    pub fn put_back(&mut self, guard: PercpuRefGuard<T>) -> Result<(), PercpuRefGuard<T>> {
        self.merge(guard.into()).map_err(|batch| {
            let batch = ManuallyDrop::new(batch);
            // INVARIANT: This is the one reference of the guard, whose batch is not dropped.
            PercpuRefGuard {
                inner: batch.inner,
                holder: batch.holder,
            }
        })
    }

    /// Puts all references of `other` in. Gives it back if the two have references to different
    /// objects, or more than `usize::MAX` references together.
    #[inline]
    pub fn merge(&mut self, other: Self) -> Result<(), Self> {
        if other.is_empty() {
            return Ok(());
        }
        match self.len.checked_add(other.len) {
            // An empty batch may remember the address of an object that is gone, so that is not
            // compared.
            Some(len) if self.is_empty() || other.inner == self.inner => {
                let other = ManuallyDrop::new(other);
                self.holder.merge(other.holder, len);
                // INVARIANT: The references of `other` are ours now.
                self.inner = other.inner;
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
        let guard = ManuallyDrop::new(guard);
        // INVARIANT: By the type invariant, the guard owned the reference.
        Self {
            inner: guard.inner,
            len: 1,
            holder: guard.holder,
        }
    }
}

impl<T: Counted> fmt::Debug for PercpuRefBatch<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PercpuRefBatch")
            .field("of", &core::any::type_name::<T>())
            .field("len", &self.len)
            .finish()
    }
}

impl<T: Counted> Drop for PercpuRefBatch<T> {
    /// Puts all references at once, in the contexts that a [`PercpuRefGuard`] can be dropped in.
    #[doc(alias = "percpu_ref_put_many")]
    #[inline(always)]
    fn drop(&mut self) {
        if self.len > 0 {
            self.holder.end();
            // SAFETY: By the type invariant, the batch owns the references, which it gives up here.
            unsafe { Count::put(self.inner.cast(), self.len, Inner::<T>::TASKS) };
        }
    }
}

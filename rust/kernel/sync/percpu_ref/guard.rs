// SPDX-License-Identifier: GPL-2.0

//! References to counted objects: guards and batches.
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
/// A guard guarantees that the object is not dropped. It can be stored, sent to another thread, and
/// dropped on another CPU than the CPU on which it was got.
///
/// Leaking a guard is safe. It leaks the object.
///
/// # Invariants
///
/// Owns one reference that is counted in `inner`, so the object is not dropped.
///
/// # Examples
///
/// ```
/// use kernel::prelude::*;
/// use kernel::sync::percpu_ref::{Counted, PercpuRef, PercpuRefGuard, UniquePercpuRef};
///
/// struct Device {
///     id: u32,
/// }
///
/// impl Counted for Device {}
///
/// struct Request {
///     device: PercpuRefGuard<Device>,
/// }
///
/// let device: PercpuRef<Device> = UniquePercpuRef::new(Device { id: 3 }, GFP_KERNEL)?.into();
///
/// // The request keeps the device, also after the kill.
/// let request = Request { device: device.try_get_live().ok_or(ENODEV)? };
/// device.kill();
/// let other = request.device.clone();
/// assert_eq!(other.id, 3);
/// assert!(PercpuRefGuard::ptr_eq(&request.device, &other));
/// # Ok::<(), Error>(())
/// ```
#[must_use = "if unused, the reference is put again at once"]
pub struct PercpuRefGuard<T: Counted> {
    pub(super) inner: NonNull<Inner<T>>,
    pub(super) holder: holder::Holder,
}

// SAFETY: A guard gives access to a `&T`, which `T: Sync` allows on another thread, and may drop
// the object, which `T: Send` allows. `Counted` requires both. A reference can be put on any
// thread.
unsafe impl<T: Counted> Send for PercpuRefGuard<T> {}

// SAFETY: A `&PercpuRefGuard` gives access to a `&T`, which `T: Sync` allows, and to more guards,
// which are `Send`.
unsafe impl<T: Counted> Sync for PercpuRefGuard<T> {}

impl<T: Counted> PercpuRefGuard<T> {
    /// Creates a guard that owns a reference.
    ///
    /// # Safety
    ///
    /// The caller must own a reference that is counted in `inner`. The guard takes ownership of it.
    #[inline]
    #[cfg_attr(CONFIG_RUST_PERCPU_REF_DEBUG, track_caller)]
    pub(super) unsafe fn new(inner: NonNull<Inner<T>>) -> Self {
        // INVARIANT: By the safety requirements of this function, the guard owns the reference.
        Self {
            inner,
            holder: holder::Holder::new(holder::Kind::Guard, inner.cast(), 1),
        }
    }

    /// Returns whether both guards are references to the same object.
    ///
    /// # Context
    ///
    /// Can be called from any context.
    #[inline]
    pub fn ptr_eq(this: &Self, other: &Self) -> bool {
        this.inner == other.inner
    }

    /// Returns the address of the object.
    pub(super) fn inner(&self) -> NonNull<Inner<T>> {
        self.inner
    }

    /// Tells lockdep that the current task uses the object until the returned value is dropped.
    ///
    /// The guard must stay with the task in between. If the task takes a lock in the section, and
    /// another task holds that lock while it waits for the release of such an object, the two tasks
    /// may wait for each other. Lockdep reports this as soon as it has seen both orders, even if no
    /// deadlock happened. The report needs `CONFIG_RUST_PERCPU_REF_DEBUG` and
    /// `CONFIG_PROVE_LOCKING`. Without them, the section has no effect and no cost.
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
            // SAFETY: By the type invariant, the object is not dropped, so its count is valid.
            _holder: unsafe { holder::Held::new(self.inner.cast()) },
            _guard: PhantomData,
            _not_send: NotThreadSafe,
        }
    }

    /// Gets `n` more references at once.
    ///
    /// Does not fail, even if the reference was killed. If there are more than 2^60 references
    /// after this call in atomic mode, or when the mode becomes atomic, the object is leaked and
    /// the library warns once. Numbers above 64 are counted in an atomic variable, where an
    /// overflow is noticed at once.
    ///
    /// # Context
    ///
    /// Can be called from any context in which RCU is watching, except NMI.
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
    /// let request = queue.try_get().ok_or(ENODEV)?;
    ///
    /// // One reference for each of the parts that the request is split into.
    /// let mut parts = request.get_many(4);
    /// assert_eq!(parts.len(), 4);
    /// let part = parts.take();
    /// assert!(part.is_some());
    /// # Ok::<(), Error>(())
    /// ```
    #[doc(alias = "percpu_ref_get_many")]
    #[inline(always)]
    #[cfg_attr(CONFIG_RUST_PERCPU_REF_DEBUG, track_caller)]
    pub fn get_many(&self, n: usize) -> PercpuRefBatch<T> {
        // SAFETY: By the type invariant, the object is not dropped, so its count is valid.
        unsafe { &(*self.inner.as_ptr()).count }.get(n, Inner::<T>::TASKS);

        // SAFETY: `get()` added `n` references, which the batch owns.
        unsafe { PercpuRefBatch::new(self.inner, n) }
    }
}

impl<T: Counted> Deref for PercpuRefGuard<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: By the type invariant, the object is not dropped.
        unsafe { &(*self.inner.as_ptr()).value }
    }
}

impl<T: Counted> Clone for PercpuRefGuard<T> {
    /// Gets another reference.
    ///
    /// Does not fail, even if the reference was killed. Orders no other memory access.
    ///
    /// # Context
    ///
    /// Can be called from any context in which RCU is watching, except NMI.
    #[doc(alias = "percpu_ref_get")]
    #[inline(always)]
    #[cfg_attr(CONFIG_RUST_PERCPU_REF_DEBUG, track_caller)]
    fn clone(&self) -> Self {
        // SAFETY: By the type invariant, the object is not dropped, so its count is valid.
        unsafe { &(*self.inner.as_ptr()).count }.get(1, Inner::<T>::TASKS);

        // SAFETY: `get()` added a reference, which the new guard owns.
        unsafe { Self::new(self.inner) }
    }
}

impl<T: Counted> Drop for PercpuRefGuard<T> {
    /// Puts the reference.
    ///
    /// If this is the last reference, the object is released in this call, and dropped if its kind
    /// is [`Once`](super::Once). All accesses to the object before this call are visible to its
    /// release.
    ///
    /// # Context
    ///
    /// Can be called from any context in which RCU is watching, except NMI. If the reference may be
    /// the last one, must be called from a context in which [`Counted::release`] and the `Drop` of
    /// `T` can run, unless [`Counted::MAY_SLEEP`] is `true`. On PREEMPT_RT, the library takes no
    /// sleeping lock and frees no memory in this call, so it can also be called from hard
    /// interrupts and with preemption disabled.
    #[doc(alias = "percpu_ref_put")]
    #[inline(always)]
    fn drop(&mut self) {
        self.holder.end();
        // SAFETY: By the type invariant, the guard owns a reference, which is not used after this.
        unsafe { Count::put(self.inner.cast(), 1, Inner::<T>::TASKS) };
    }
}

impl<T: Counted> fmt::Debug for PercpuRefGuard<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // SAFETY: By the type invariant, the object is not dropped, so its count is valid.
        unsafe { &(*self.inner.as_ptr()).count }.fmt_as::<T>("PercpuRefGuard", f)
    }
}

/// A section in which the current task uses a counted object.
///
/// See [`PercpuRefGuard::lockdep_section`]. It borrows the guard and cannot be sent, so the same
/// task must drop it before the guard can be dropped.
#[must_use = "if unused, the section ends at once"]
pub struct LockdepSection<'a> {
    _holder: holder::Held,
    _guard: PhantomData<&'a ()>,
    _not_send: NotThreadSafe,
}

/// Any number of references to one counted object.
///
/// Taking references out, splitting and merging do not access the count. A batch may also be empty.
/// An empty batch belongs to no object, so references to any object can be put into it.
///
/// # Invariants
///
/// If `len` is not zero, owns `len` references that are counted in `inner`. If `len` is zero,
/// `inner` is not used.
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

// SAFETY: A batch owns a number of references, each as a guard does, and a guard is `Send`.
unsafe impl<T: Counted> Send for PercpuRefBatch<T> {}

// SAFETY: A `&PercpuRefBatch` gives access to a `&T`, which `T: Sync` allows.
unsafe impl<T: Counted> Sync for PercpuRefBatch<T> {}

/// # Context
///
/// Each function can be called from any context, unless it drops references: then the context must
/// be one in which a [`PercpuRefGuard`] can be dropped.
impl<T: Counted> PercpuRefBatch<T> {
    /// Creates a batch that owns `len` references.
    ///
    /// # Safety
    ///
    /// The caller must own `len` references that are counted in `inner`. The batch takes ownership
    /// of them.
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

    /// Returns whether the batch is empty.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns a reference to the object, or `None` if the batch is empty.
    #[inline]
    pub fn value(&self) -> Option<&T> {
        if self.is_empty() {
            return None;
        }
        // SAFETY: By the type invariant, the batch owns a reference, so the object is not dropped.
        Some(unsafe { &(*self.inner.as_ptr()).value })
    }

    /// Takes one reference out of the batch, or returns `None` if the batch is empty.
    #[inline]
    #[cfg_attr(CONFIG_RUST_PERCPU_REF_DEBUG, track_caller)]
    pub fn take(&mut self) -> Option<PercpuRefGuard<T>> {
        // INVARIANT: The guard below takes ownership of the reference that `len` does not count any
        // more.
        self.len = self.len.checked_sub(1)?;
        // SAFETY: By the type invariant, the batch owned the reference, and `len` does not count it
        // any more.
        let guard = unsafe { PercpuRefGuard::new(self.inner) };
        self.holder.resize(self.len);
        Some(guard)
    }

    /// Takes `n` references out of the batch, or returns `None` if the batch has fewer.
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
    /// let mut cache = ring.try_get_many(8).ok_or(ENODEV)?;
    /// let other = cache.split(3).ok_or(EBUSY)?;
    /// assert_eq!((cache.len(), other.len()), (5, 3));
    ///
    /// assert!(cache.merge(other).is_ok());
    /// assert_eq!(cache.len(), 8);
    /// # Ok::<(), Error>(())
    /// ```
    #[inline]
    #[cfg_attr(CONFIG_RUST_PERCPU_REF_DEBUG, track_caller)]
    pub fn split(&mut self, n: usize) -> Option<Self> {
        // INVARIANT: The new batch takes ownership of the references that `len` does not count any
        // more.
        self.len = self.len.checked_sub(n)?;
        // SAFETY: By the type invariant, the batch owned the references, and `len` does not count
        // them any more.
        let batch = unsafe { Self::new(self.inner, n) };
        self.holder.resize(self.len);
        Some(batch)
    }

    /// Puts one reference into the batch.
    ///
    /// Returns the guard if the batch has references to another object, or has `usize::MAX`
    /// references.
    #[inline]
    pub fn put_back(&mut self, guard: PercpuRefGuard<T>) -> Result<(), PercpuRefGuard<T>> {
        self.merge(guard.into()).map_err(|batch| {
            let batch = ManuallyDrop::new(batch);
            // INVARIANT: This is the reference of `guard`, whose batch is not dropped.
            PercpuRefGuard {
                inner: batch.inner,
                holder: batch.holder,
            }
        })
    }

    /// Puts all references of `other` into the batch.
    ///
    /// Returns `other` if the two batches have references to different objects, or more than
    /// `usize::MAX` references together.
    #[inline]
    pub fn merge(&mut self, other: Self) -> Result<(), Self> {
        if other.is_empty() {
            return Ok(());
        }
        match self.len.checked_add(other.len) {
            // An empty batch may have the address of an object that was freed, so that address is
            // not compared.
            Some(len) if self.is_empty() || other.inner == self.inner => {
                let other = ManuallyDrop::new(other);
                self.holder.merge(other.holder, len);
                // INVARIANT: This batch takes ownership of the references of `other`, which is not
                // dropped.
                self.inner = other.inner;
                self.len = len;
                Ok(())
            }
            _ => Err(other),
        }
    }
}

impl<T: Counted> From<PercpuRefGuard<T>> for PercpuRefBatch<T> {
    /// Converts a guard into a batch of one reference.
    ///
    /// # Context
    ///
    /// Can be called from any context.
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
    /// Puts all references at once.
    ///
    /// # Context
    ///
    /// Can be called from any context in which a [`PercpuRefGuard`] can be dropped. If the batch is
    /// empty, can be called from any context.
    #[doc(alias = "percpu_ref_put_many")]
    #[inline(always)]
    fn drop(&mut self) {
        if self.len > 0 {
            self.holder.end();
            // SAFETY: By the type invariant, the batch owns `len` references, which are not used
            // after this.
            unsafe { Count::put(self.inner.cast(), self.len, Inner::<T>::TASKS) };
        }
    }
}

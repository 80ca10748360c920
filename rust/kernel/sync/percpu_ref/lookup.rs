// SPDX-License-Identifier: GPL-2.0

//! Lookup of counted objects under RCU.

use super::{
    count::Count,
    report::fmt_described,
    section::Section,
    wait::{
        wait_var_event,
        wake_up_var, //
    },
    Counted,
    Inner,
    Kind,
    Once,
    PercpuRef,
    PercpuRefBatch,
    PercpuRefGuard, //
};
use crate::{
    fmt,
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Full,
            Relaxed, //
        },
        rcu::{
            arch::load_acquire,
            read_lock, //
        }, //
    }, //
};
use core::{
    marker::PhantomData,
    mem::ManuallyDrop,
    ptr::{
        self,
        NonNull, //
    },
};

/// An RCU-protected pointer that owns a [`PercpuRef`], or is empty.
///
/// Readers find the object and get a reference to it without a lock. Writers replace the object.
/// The lookup and the get are in one RCU read-side critical section, or with
/// [`Counted::RCU_TASKS`], in one of RCU Tasks. The critical section is inside the methods of this
/// type, and inlined. To use an object without a reference, only in a critical section, use
/// [`RcuCell`](crate::sync::rcu::RcuCell).
///
/// A reader may find an object that has already been replaced. It gets a reference if
/// [`PercpuRef::try_get`] or [`PercpuRef::try_get_live`] on that object would succeed. After a
/// [`replace`](Self::replace), the owner of the old object should therefore kill it. A reader that
/// finds an object which was released gets no reference. Reading the count is safe in any case,
/// because the memory is freed only after a grace period that waits for the reader.
///
/// # Invariants
///
/// `inner` is null, or came from a [`PercpuRef`] that this owns, whose count is published.
///
/// # Examples
///
/// ```
/// use kernel::prelude::*;
/// use kernel::sync::percpu_ref::{Counted, RcuPercpuRef, UniquePercpuRef};
///
/// struct Route {
///     gateway: u32,
/// }
///
/// impl Counted for Route {}
///
/// let default_route = RcuPercpuRef::<Route>::empty();
/// let route = UniquePercpuRef::new(Route { gateway: 1 }, GFP_KERNEL)?;
/// default_route.replace(Some(route.into()));
///
/// // A reader, on any CPU.
/// let route = default_route.try_get().ok_or(ENOENT)?;
///
/// // A writer. New readers find the new route. The old one is released after its last reader.
/// let new = UniquePercpuRef::new(Route { gateway: 2 }, GFP_KERNEL)?;
/// drop(default_route.replace(Some(new.into())));
/// assert_eq!(route.gateway, 1);
/// # Ok::<(), Error>(())
/// ```
#[doc(alias = "__rcu")]
pub struct RcuPercpuRef<T: Counted, K: Kind = Once> {
    inner: Atomic<*mut Inner<T>>,
    /// The number of calls of `remove()` that have not returned from their wait yet.
    removing: Atomic<usize>,
    _owns: PhantomData<PercpuRef<T, K>>,
}

// SAFETY: An `RcuPercpuRef` owns a `PercpuRef<T, K>`, which is `Send` and `Sync`, and any thread
// can replace it.
unsafe impl<T: Counted, K: Kind> Send for RcuPercpuRef<T, K> {}

// SAFETY: A `&RcuPercpuRef` lets any thread replace the `PercpuRef<T, K>`, which is `Send` and
// `Sync`, and each operation is atomic.
unsafe impl<T: Counted, K: Kind> Sync for RcuPercpuRef<T, K> {}

impl<T: Counted, K: Kind> RcuPercpuRef<T, K> {
    /// Creates an empty pointer.
    ///
    /// # Context
    ///
    /// Can be called from any context.
    pub const fn empty() -> Self {
        Self {
            inner: Atomic::new(ptr::null_mut()),
            removing: Atomic::new(0),
            _owns: PhantomData,
        }
    }

    /// Tries to get a reference to the object, as [`PercpuRef::try_get`] does.
    ///
    /// Returns `None` if the pointer is empty.
    ///
    /// All writes before the object was published here are visible to the caller.
    ///
    /// # Context
    ///
    /// Can be called from any context in which RCU is watching, except NMI.
    #[doc(alias("rcu_dereference", "percpu_ref_tryget"))]
    #[inline(always)]
    #[cfg_attr(CONFIG_RUST_PERCPU_REF_DEBUG, track_caller)]
    #[must_use = "if unused, the reference is put again at once"]
    pub fn try_get(&self) -> Option<PercpuRefGuard<T>> {
        let inner = self.get_found(1, false)?;
        // SAFETY: `get_found()` added a reference, which the guard owns.
        Some(unsafe { PercpuRefGuard::new(inner) })
    }

    /// Tries to get `n` references to the object, as [`PercpuRef::try_get_many`] does.
    ///
    /// Returns `None` if the pointer is empty.
    ///
    /// All writes before the object was published here are visible to the caller.
    ///
    /// # Context
    ///
    /// Can be called from any context in which RCU is watching, except NMI.
    #[doc(alias("rcu_dereference", "percpu_ref_tryget_many"))]
    #[inline(always)]
    #[cfg_attr(CONFIG_RUST_PERCPU_REF_DEBUG, track_caller)]
    #[must_use = "if unused, the references are put again at once"]
    pub fn try_get_many(&self, n: usize) -> Option<PercpuRefBatch<T>> {
        let inner = self.get_found(n, false)?;
        // SAFETY: `get_found()` added `n` references, which the batch owns.
        Some(unsafe { PercpuRefBatch::new(inner, n) })
    }

    /// Tries to get a reference to a live object, as [`PercpuRef::try_get_live`] does.
    ///
    /// Returns `None` if the pointer is empty.
    ///
    /// All writes before the object was published here are visible to the caller.
    ///
    /// # Context
    ///
    /// Can be called from any context in which RCU is watching, except NMI.
    #[doc(alias("rcu_dereference", "percpu_ref_tryget_live_rcu"))]
    #[inline(always)]
    #[cfg_attr(CONFIG_RUST_PERCPU_REF_DEBUG, track_caller)]
    #[must_use = "if unused, the reference is put again at once"]
    pub fn try_get_live(&self) -> Option<PercpuRefGuard<T>> {
        let inner = self.get_found(1, true)?;
        // SAFETY: `get_found()` added a reference, which the guard owns.
        Some(unsafe { PercpuRefGuard::new(inner) })
    }

    /// Finds the object and adds `n` references to it, in one [`Section`].
    #[inline(always)]
    fn get_found(&self, n: usize, live: bool) -> Option<NonNull<Inner<T>>> {
        let section = Section::enter(Inner::<T>::TASKS);
        let Some(inner) = self.find() else {
            section.leave();
            return None;
        };
        // The count is the first field of the object.
        let count = inner.cast();
        // SAFETY: `find()` was called in `section`, so the count is valid until the section ends.
        unsafe { Count::try_get_found(count, n, live, section) }.then_some(inner)
    }

    /// Returns the object, or `None` if the pointer is empty.
    ///
    /// If the caller is in a [`Section`] of the type's kind or in an RCU read-side critical
    /// section, the memory of the count is valid until that section ends. The object may be dropped
    /// already, and its hold may be gone, so the caller must only read the count's state and try to
    /// add references.
    #[inline(always)]
    fn find(&self) -> Option<NonNull<Inner<T>>> {
        // Pairs with the `Full` in `replace()`: the writes that initialised the object are visible
        // (litmus: place-sees-maker). When the object was found, this pointer owned a hold of it.
        // Since the count is published, its memory is freed a grace period after the last hold
        // (`Count::end()`). Until then `word` and `atomic` are valid (litmus: place-memory-stays).
        NonNull::new(load_acquire(&self.inner))
    }

    /// Converts a [`PercpuRef`] into a pointer that `inner` can own.
    fn published(new: PercpuRef<T, K>) -> *mut Inner<T> {
        new.count().publish();
        ManuallyDrop::new(new).inner.as_ptr()
    }

    /// Converts back from the pointer that [`published`](Self::published) returned.
    ///
    /// # Safety
    ///
    /// `inner` must have come from [`published`](Self::published), and must be converted back once.
    unsafe fn owned(inner: NonNull<Inner<T>>) -> PercpuRef<T, K> {
        // INVARIANT: By the safety requirements of this function, the hold of the [`PercpuRef`]
        // that `published()` converted is owned by this value alone.
        PercpuRef {
            inner,
            _kind: PhantomData,
        }
    }

    /// Replaces the [`PercpuRef`], and returns the old one.
    ///
    /// With `None`, the pointer becomes empty.
    ///
    /// All writes before this call are visible to readers that find the new object. The returned
    /// [`PercpuRef`] can be used further, or dropped immediately. Until a grace period has elapsed,
    /// readers may still find the old object.
    ///
    /// # Context
    ///
    /// Can be called from any context except NMI.
    #[doc(alias("rcu_replace_pointer", "rcu_assign_pointer"))]
    pub fn replace(&self, new: Option<PercpuRef<T, K>>) -> Option<PercpuRef<T, K>> {
        let new = new.map_or(ptr::null_mut(), Self::published);

        // INVARIANT: This pointer owns the new `PercpuRef` from here on. The caller owns the old
        // one.
        let old = NonNull::new(self.inner.xchg(new, Full))?;
        // SAFETY: By the type invariant, `old` came from a `PercpuRef` that this owned.
        Some(unsafe { Self::owned(old) })
    }

    /// Publishes a [`PercpuRef`] if the pointer is empty.
    ///
    /// Otherwise returns `new`. All writes before this call are visible to readers that find the
    /// object.
    ///
    /// # Context
    ///
    /// Can be called from any context except NMI.
    #[doc(alias("cmpxchg", "rcu_assign_pointer"))]
    pub fn insert(&self, new: PercpuRef<T, K>) -> Result<(), PercpuRef<T, K>> {
        let new = Self::published(new);

        // INVARIANT: If the operation succeeds, this pointer owns the new `PercpuRef` from here on.
        match self.inner.cmpxchg(ptr::null_mut(), new, Full) {
            Ok(_) => Ok(()),
            // SAFETY: `new` came from `published()`, so it is not null, and this pointer does not
            // own it.
            Err(_) => Err(unsafe { Self::owned(NonNull::new_unchecked(new)) }),
        }
    }

    /// Replaces the [`PercpuRef`] if its object is the one that `current` is a reference to.
    ///
    /// With `None`, the pointer becomes empty. Returns the old [`PercpuRef`], or if the object is
    /// another one or the pointer is empty, returns `new` as an error.
    ///
    /// Since `current` keeps the object alive, a new object cannot have the same address.
    ///
    /// # Context
    ///
    /// Can be called from any context except NMI.
    ///
    /// # Examples
    ///
    /// ```
    /// use kernel::prelude::*;
    /// use kernel::sync::percpu_ref::{Counted, RcuPercpuRef, UniquePercpuRef};
    ///
    /// struct Route {
    ///     gateway: u32,
    /// }
    ///
    /// impl Counted for Route {}
    ///
    /// let default_route = RcuPercpuRef::<Route>::empty();
    /// let route = UniquePercpuRef::new(Route { gateway: 1 }, GFP_KERNEL)?;
    /// assert!(default_route.insert(route.into()).is_ok());
    ///
    /// // Replace the route that was found, unless another writer was first.
    /// let current = default_route.try_get().ok_or(ENOENT)?;
    /// let gateway = current.gateway + 1;
    /// let new = UniquePercpuRef::new(Route { gateway }, GFP_KERNEL)?;
    /// assert!(default_route.replace_if(&current, Some(new.into())).is_ok());
    /// assert_eq!(default_route.try_get().ok_or(ENOENT)?.gateway, 2);
    /// # Ok::<(), Error>(())
    /// ```
    #[doc(alias("cmpxchg", "rcu_assign_pointer"))]
    pub fn replace_if(
        &self,
        current: &PercpuRefGuard<T>,
        new: Option<PercpuRef<T, K>>,
    ) -> Result<PercpuRef<T, K>, Option<PercpuRef<T, K>>> {
        let current = current.inner();
        let new = new.map_or(ptr::null_mut(), Self::published);

        // INVARIANT: If the operation succeeds, this pointer owns the new `PercpuRef` from here on,
        // and the caller owns the old one.
        match self.inner.cmpxchg(current.as_ptr(), new, Full) {
            // SAFETY: By the type invariant, `current` came from a `PercpuRef` that this owned.
            Ok(_) => Ok(unsafe { Self::owned(current) }),
            Err(_) => Err(NonNull::new(new).map(|new| {
                // SAFETY: `new` came from `published()`, and this pointer does not own it.
                unsafe { Self::owned(new) }
            })),
        }
    }

    /// Removes the object: empties the pointer, kills the object, and waits for its release.
    ///
    /// Returns `true` if this call emptied the pointer. If the pointer is empty because another
    /// call of this function has emptied it, waits until that call has seen the release. When any
    /// of these calls returns, it is guaranteed that no request to the object is in flight.
    ///
    /// Waits as [`PercpuRef::wait_released`] does.
    ///
    /// # Context
    ///
    /// Sleeps, so must be called from process context. A thread that holds a [`PercpuRefGuard`] of
    /// the object deadlocks. A thread that holds a guard of an object which was published here
    /// later can deadlock, too, because a call that finds the pointer empty waits for all calls
    /// that are in flight.
    ///
    /// # Examples
    ///
    /// ```
    /// use kernel::prelude::*;
    /// use kernel::sync::percpu_ref::{Counted, RcuPercpuRef, UniquePercpuRef};
    ///
    /// struct Device;
    /// impl Counted for Device {}
    ///
    /// let device = RcuPercpuRef::<Device>::empty();
    /// device.replace(Some(UniquePercpuRef::new(Device, GFP_KERNEL)?.into()));
    /// assert!(device.try_get_live().is_some());
    ///
    /// assert!(device.remove());
    /// assert!(device.try_get_live().is_none());
    /// assert!(!device.remove());
    /// # Ok::<(), Error>(())
    /// ```
    #[doc(alias("percpu_ref_kill", "wait_for_completion"))]
    pub fn remove(&self) -> bool {
        // Ordered before another CPU can see the pointer empty, by the `Full` in `replace()`
        // (litmus: remove-waits).
        self.removing.add(1, Relaxed);
        let old = self.replace(None);
        if let Some(old) = &old {
            old.kill_quietly(false);
            old.wait_released();
        }
        // `wake_up_var()` needs `Full`. It also pairs with the `Acquire` below
        // (litmus: remove-waits).
        if self.removing.fetch_sub(1, Full) == 1 {
            wake_up_var(&raw const self.removing);
        }
        if old.is_none() {
            // A call that has found an object is counted in `removing` until its wait is over.
            wait_var_event(&raw const self.removing, || {
                self.removing.load(Acquire) == 0
            });
        }
        old.is_some()
    }
}

impl<T: Counted, K: Kind> fmt::Debug for RcuPercpuRef<T, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The formatter may sleep, so it must not be called in the critical section.
        let found = {
            let _section = read_lock();
            self.find().map(|inner| {
                // SAFETY: `find()` was called in this critical section, so the count is valid until
                // it ends.
                let count = unsafe { &(*inner.as_ptr()).count };
                (count.describe(), count.references())
            })
        };
        match found {
            Some((names, references)) => fmt_described::<T>("RcuPercpuRef", names, references, f),
            None => f.write_str("RcuPercpuRef { empty }"),
        }
    }
}

impl<T: Counted, K: Kind> Default for RcuPercpuRef<T, K> {
    fn default() -> Self {
        Self::empty()
    }
}

impl<T: Counted, K: Kind> From<PercpuRef<T, K>> for RcuPercpuRef<T, K> {
    /// Creates an RCU-protected pointer that owns `new`.
    ///
    /// # Context
    ///
    /// Can be called from any context except NMI.
    fn from(new: PercpuRef<T, K>) -> Self {
        let place = Self::empty();
        place.replace(Some(new));
        place
    }
}

impl<T: Counted, K: Kind> Drop for RcuPercpuRef<T, K> {
    /// Drops the [`PercpuRef`], which kills its object.
    ///
    /// # Context
    ///
    /// Can be called from any context in which a [`PercpuRef`] can be dropped.
    fn drop(&mut self) {
        self.replace(None);
    }
}

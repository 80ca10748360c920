// SPDX-License-Identifier: GPL-2.0

//! Finding counted objects by way of RCU.

use super::{
    count::{
        fmt_described,
        Count,
        Section, //
    },
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

/// A place for a [`PercpuRef`] where readers find it without a lock, and writers replace it.
///
/// A reader finds the object and gets a reference to it in a single RCU read-side critical section,
/// or with [`Counted::RCU_TASKS`] in one of RCU Tasks, which is inside the methods of this type,
/// and inlined. To use an object without a reference, only inside of a critical section, there is
/// [`RcuCell`](crate::sync::rcu::RcuCell).
///
/// A reader may find an object that has just been replaced. It gets a reference as long as
/// [`PercpuRef::try_get`] or [`PercpuRef::try_get_live`] on that object succeeds, so after a
/// [`replace`](Self::replace) the owner of the old object should kill it. If the object was
/// released already, the reader gets no reference; the memory that it learns this from is freed
/// only after the grace period that waits for such sections, even if the object was taken out long
/// before its end.
///
/// # Invariants
///
/// `inner` is null, or came from a [`PercpuRef`] that this owns, with a count that is published.
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
/// // A writer. Readers find the new one; the old one ends when they are done with it.
/// let new = UniquePercpuRef::new(Route { gateway: 2 }, GFP_KERNEL)?;
/// drop(default_route.replace(Some(new.into())));
/// assert_eq!(route.gateway, 1);
/// # Ok::<(), Error>(())
/// ```
#[doc(alias = "__rcu")]
pub struct RcuPercpuRef<T: Counted, K: Kind = Once> {
    inner: Atomic<*mut Inner<T>>,
    /// The calls of `remove()` that have taken an object out, or are about to, and have not waited
    /// for its release yet.
    removing: Atomic<usize>,
    _owns: PhantomData<PercpuRef<T, K>>,
}

// SAFETY: It owns a `PercpuRef<T, K>`, which is `Send` and `Sync`, and gives it out or takes it in
// on any thread.
unsafe impl<T: Counted, K: Kind> Send for RcuPercpuRef<T, K> {}

// SAFETY: It gives out and takes in a `PercpuRef<T, K>`, which is `Send` and `Sync`, and all that
// is done by `&self` is atomic.
unsafe impl<T: Counted, K: Kind> Sync for RcuPercpuRef<T, K> {}

impl<T: Counted, K: Kind> RcuPercpuRef<T, K> {
    /// Makes an empty place.
    pub const fn empty() -> Self {
        Self {
            inner: Atomic::new(ptr::null_mut()),
            removing: Atomic::new(0),
            _owns: PhantomData,
        }
    }

    /// Tries to get a reference to the object in this place, as [`PercpuRef::try_get`] does.
    ///
    /// What was done before the object was put here is visible to the caller.
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

    /// Tries to get `n` references to the object in this place, as [`PercpuRef::try_get_many`]
    /// does.
    ///
    /// What was done before the object was put here is visible to the caller.
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

    /// Tries to get a reference to the object in this place, as [`PercpuRef::try_get_live`] does.
    ///
    /// What was done before the object was put here is visible to the caller.
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

    /// Finds the object in this place and adds `n` references to it, in one [`Section`].
    #[inline(always)]
    fn get_found(&self, n: usize, live: bool) -> Option<NonNull<Inner<T>>> {
        let section = Section::enter(Inner::<T>::TASKS);
        let Some(inner) = self.find() else {
            section.leave();
            return None;
        };
        // The count comes first in the object.
        let count = inner.cast();
        // SAFETY: `find()` was called in `section`, so the count is valid until that ends.
        unsafe { Count::try_get_found(count, n, live, section) }.then_some(inner)
    }

    /// Returns the object that is in this place.
    ///
    /// If this is called in a [`Section`] of the type's kind or in an RCU read-side critical
    /// section, the memory of the count stays until that ends. The object may be gone, and its
    /// hold, too: the count is there to be asked for references and for its state, and for nothing
    /// else.
    #[inline(always)]
    fn find(&self) -> Option<NonNull<Inner<T>>> {
        // Pairs with the `Full` in `replace()`: the object is seen as it was made
        // (litmus: place-sees-maker). The hold of the place was there when it was found. Since the
        // count is published, the memory is freed a grace period after the last hold
        // (`Count::end()`), and until then `word` and `atomic` stay as they are
        // (litmus: place-memory-stays).
        NonNull::new(load_acquire(&self.inner))
    }

    /// Gives up a reference for a pointer that this place may own.
    fn published(new: PercpuRef<T, K>) -> *mut Inner<T> {
        new.count().publish();
        ManuallyDrop::new(new).inner.as_ptr()
    }

    /// Takes back what [`published`](Self::published) gave up.
    ///
    /// # Safety
    ///
    /// `inner` must have come from [`published`](Self::published), and must be taken back once.
    unsafe fn owned(inner: NonNull<Inner<T>>) -> PercpuRef<T, K> {
        // INVARIANT: By the safety requirements of this function, this is the reference that was
        // given up, with its hold.
        PercpuRef {
            inner,
            _kind: PhantomData,
        }
    }

    /// Puts another reference, or none, into this place, and returns what was there.
    ///
    /// What was done before is visible to readers that find the new one. The old one can be used
    /// on, or dropped at once; readers may find it until a grace period has passed.
    ///
    /// # Context
    ///
    /// Can be called from any context except NMI.
    #[doc(alias("rcu_replace_pointer", "rcu_assign_pointer"))]
    pub fn replace(&self, new: Option<PercpuRef<T, K>>) -> Option<PercpuRef<T, K>> {
        let new = new.map_or(ptr::null_mut(), Self::published);

        // INVARIANT: The new one is owned from here on, and the old one no more.
        let old = NonNull::new(self.inner.xchg(new, Full))?;
        // SAFETY: By the type invariant, it was owned here.
        Some(unsafe { Self::owned(old) })
    }

    /// Puts a reference into this place if it is empty, and else gives it back.
    ///
    /// What was done before is visible to readers that find it.
    ///
    /// # Context
    ///
    /// Can be called from any context except NMI.
    #[doc(alias("cmpxchg", "rcu_assign_pointer"))]
    pub fn insert(&self, new: PercpuRef<T, K>) -> Result<(), PercpuRef<T, K>> {
        let new = Self::published(new);

        // INVARIANT: If it succeeds, the new one is owned from here on.
        match self.inner.cmpxchg(ptr::null_mut(), new, Full) {
            Ok(_) => Ok(()),
            // SAFETY: `new` came from `published()`, and the place does not own it. It is not null.
            Err(_) => Err(unsafe { Self::owned(NonNull::new_unchecked(new)) }),
        }
    }

    /// Puts another reference, or none, into this place if it still has the object that `current`
    /// is a reference to. Returns what was there, or gives back `new` if that was something else.
    ///
    /// Because `current` keeps the object alive, a new object at the same address is not taken for
    /// it.
    ///
    /// # Context
    ///
    /// Can be called from any context except NMI.
    #[doc(alias("cmpxchg", "rcu_assign_pointer"))]
    pub fn replace_if(
        &self,
        current: &PercpuRefGuard<T>,
        new: Option<PercpuRef<T, K>>,
    ) -> Result<PercpuRef<T, K>, Option<PercpuRef<T, K>>> {
        let current = current.inner();
        let new = new.map_or(ptr::null_mut(), Self::published);

        // INVARIANT: If it succeeds, the new one is owned from here on, and the old one no more.
        match self.inner.cmpxchg(current.as_ptr(), new, Full) {
            // SAFETY: By the type invariant, it was owned here.
            Ok(_) => Ok(unsafe { Self::owned(current) }),
            Err(_) => Err(NonNull::new(new).map(|new| {
                // SAFETY: `new` came from `published()`, and the place does not own it.
                unsafe { Self::owned(new) }
            })),
        }
    }

    /// Takes the object out of this place, kills it, and waits for its release. Returns `true` if
    /// this call took it out.
    ///
    /// If the place is empty because another call of this has taken the object out, waits until
    /// that call has seen the release. So whichever thread removes first, no request to the object
    /// is under way when this returns to any of them.
    ///
    /// The wait is that of [`PercpuRef::wait_released`].
    ///
    /// # Context
    ///
    /// Sleeps, so must be called from process context. A thread that holds a [`PercpuRefGuard`] of
    /// the object waits for itself. So may one that holds a guard of an object which was put into
    /// the place later: a call that finds the place empty waits for all calls that are under way.
    #[doc(alias("percpu_ref_kill", "wait_for_completion"))]
    pub fn remove(&self) -> bool {
        // Before the place is seen to be empty, by the `Full` in `replace()`
        // (litmus: remove-waits).
        self.removing.add(1, Relaxed);
        let old = self.replace(None);
        if let Some(old) = &old {
            old.kill_quietly(false);
            old.wait_released();
        }
        // `Full`, for `wake_up_var()`. Pairs with the `Acquire` below (litmus: remove-waits).
        if self.removing.fetch_sub(1, Full) == 1 {
            wake_up_var(&raw const self.removing);
        }
        if old.is_none() {
            // A call that has found an object is counted until its wait is over.
            wait_var_event(&raw const self.removing, || {
                self.removing.load(Acquire) == 0
            });
        }
        old.is_some()
    }
}

impl<T: Counted, K: Kind> fmt::Debug for RcuPercpuRef<T, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The formatter may sleep, so it is not called in the critical section.
        let found = {
            let _section = read_lock();
            self.find().map(|inner| {
                // SAFETY: `find()` was called in this critical section.
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
    fn from(new: PercpuRef<T, K>) -> Self {
        let place = Self::empty();
        place.replace(Some(new));
        place
    }
}

impl<T: Counted, K: Kind> Drop for RcuPercpuRef<T, K> {
    /// Drops what is in this place, in the contexts that a [`PercpuRef`] can be dropped in.
    fn drop(&mut self) {
        self.replace(None);
    }
}

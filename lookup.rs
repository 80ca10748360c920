// SPDX-License-Identifier: GPL-2.0

//! Finding counted objects by way of RCU.

use core::{
    marker::PhantomData,
    mem::ManuallyDrop,
    ptr::{
        self,
        NonNull, //
    },
};
use kernel::sync::{
    atomic::{
        Acquire,
        Atomic,
        Full, //
    },
    rcu::Guard, //
};

use crate::{
    Counted,
    Inner,
    Kind,
    Once,
    PercpuRef,
    PercpuRefGuard, //
};

/// A place for a [`PercpuRef`] where readers find it without a lock, and writers replace it.
///
/// A reader inside an RCU read-side critical section may come upon an object that has just been
/// replaced, killed, even released. He gets no reference then; the memory that he learns this from
/// is freed only after a grace period, even if the object was taken out again long before its end.
///
/// # Invariants
///
/// `inner` is null, or came from a [`PercpuRef`] that this owns, with a count that is published.
///
/// # Examples
///
/// ```
/// use kernel::{prelude::*, sync::rcu};
/// use percpu_ref::{Counted, RcuPercpuRef, UniquePercpuRef};
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
/// // A reader, on any CPU. What it found may be kept after the critical section.
/// let route = default_route.try_get(&rcu::read_lock()).ok_or(ENOENT)?;
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
    _owns: PhantomData<PercpuRef<T, K>>,
}

// SAFETY: It owns a `PercpuRef<T, K>`, which is `Send` and `Sync`, and gives it out or takes it in
// on any thread.
unsafe impl<T: Counted, K: Kind> Send for RcuPercpuRef<T, K> {}

// SAFETY: As above; all that is done by `&self` is atomic.
unsafe impl<T: Counted, K: Kind> Sync for RcuPercpuRef<T, K> {}

impl<T: Counted, K: Kind> RcuPercpuRef<T, K> {
    /// Makes an empty place.
    pub const fn empty() -> Self {
        Self {
            inner: Atomic::new(ptr::null_mut()),
            _owns: PhantomData,
        }
    }

    /// Gets a reference to the object that is in this place, as [`PercpuRef::try_get`] does.
    ///
    /// Any context but NMI.
    #[doc(alias = "rcu_dereference")]
    #[inline]
    pub fn try_get(&self, section: &Guard) -> Option<PercpuRefGuard<T>> {
        self.find(section)?.try_get()
    }

    /// Gets a reference to the object that is in this place, as [`PercpuRef::try_get_live`] does.
    ///
    /// Any context but NMI.
    #[doc(alias("rcu_dereference", "percpu_ref_tryget_live_rcu"))]
    #[inline]
    pub fn try_get_live(&self, section: &Guard) -> Option<PercpuRefGuard<T>> {
        self.find(section)?.try_get_live()
    }

    /// What is in this place, or was when the critical section began. Only to be asked for
    /// references: its hold may be gone.
    #[inline]
    fn find(&self, _section: &Guard) -> Option<ManuallyDrop<PercpuRef<T, K>>> {
        // `Acquire` pairs with the `Full` in `replace()`: the object is seen as it was made.
        let inner = NonNull::new(self.inner.load(Acquire))?;

        // `Count::end()` frees the memory a grace period after the last hold, since it is
        // published, and its hold was here at some time in the critical section. `word` and
        // `atomic` stay as they are until then.
        Some(ManuallyDrop::new(PercpuRef {
            inner,
            _kind: PhantomData,
        }))
    }

    /// Puts another reference, or none, into this place, and returns what was there.
    ///
    /// Any context. What was done before is visible to who finds the new one. The old one may be
    /// used on, or dropped at once; readers may go on to find it until a grace period has passed,
    /// and get references unless it is killed.
    #[doc(alias("rcu_replace_pointer", "rcu_assign_pointer"))]
    pub fn replace(&self, new: Option<PercpuRef<T, K>>) -> Option<PercpuRef<T, K>> {
        let new = new.map_or(ptr::null_mut(), |new| {
            new.count().publish();
            ManuallyDrop::new(new).inner.as_ptr()
        });

        // INVARIANT: The new one is owned from here on, and the old one no more.
        let old = NonNull::new(self.inner.xchg(new, Full))?;
        // INVARIANT: It was owned here, with its hold.
        Some(PercpuRef {
            inner: old,
            _kind: PhantomData,
        })
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
    /// Drops what is in this place, in the contexts that [`PercpuRef`] may be dropped in.
    fn drop(&mut self) {
        self.replace(None);
    }
}

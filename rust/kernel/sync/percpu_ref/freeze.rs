// SPDX-License-Identifier: GPL-2.0

//! Temporary freezing of references.
//!
//! C source: `blk_mq_freeze_queue()` in [`block/blk-mq.c`](srctree/block/blk-mq.c)

use super::{
    count::Count,
    holder,
    Counted,
    Inner, //
};
use crate::fmt;
use core::ptr::NonNull;

/// A guard that keeps a [`Reinit`](super::Reinit) reference frozen.
///
/// A guard guarantees that there are no references to the object, and that none can be got. Guards
/// nest: the reference is live again when the last guard is dropped. A guard can be dropped on
/// another thread, and after the [`PercpuRef`](super::PercpuRef) was dropped. If a guard is leaked,
/// the reference stays frozen.
///
/// # Invariants
///
/// Owns one of the freezers of the count in `inner`, so the object is not dropped.
///
/// # Examples
///
/// ```
/// use kernel::prelude::*;
/// use kernel::sync::percpu_ref::{Counted, PercpuRef, Reinit, UniquePercpuRef};
///
/// struct Queue;
/// impl Counted for Queue {}
///
/// let queue: PercpuRef<Queue, Reinit> = UniquePercpuRef::new_reinit(Queue, GFP_KERNEL)?.into();
///
/// let frozen = queue.freeze();
/// let inner = queue.freeze();
/// drop(inner);
/// // Still frozen: the queue can be changed, since no request is in flight.
/// assert!(queue.try_get_live().is_none());
/// drop(frozen);
/// assert!(queue.try_get_live().is_some());
/// # Ok::<(), Error>(())
/// ```
#[must_use = "if unused, the reference is thawed again at once"]
pub struct Frozen<T: Counted> {
    inner: NonNull<Inner<T>>,
    holder: holder::Holder,
}

// SAFETY: A `Frozen` gives access to a `&T`, which `T: Sync` allows on another thread, and may drop
// the object, which `T: Send` allows. `Counted` requires both. Any thread can thaw the count.
unsafe impl<T: Counted> Send for Frozen<T> {}

// SAFETY: A `&Frozen` gives access to a `&T`, which `T: Sync` allows.
unsafe impl<T: Counted> Sync for Frozen<T> {}

impl<T: Counted> Frozen<T> {
    /// Freezes the reference.
    ///
    /// # Safety
    ///
    /// `inner` must be a shared object that can have more than one life, and the caller must have
    /// its handle.
    #[cfg_attr(CONFIG_RUST_PERCPU_REF_DEBUG, track_caller)]
    pub(super) unsafe fn new(inner: NonNull<Inner<T>>) -> Self {
        // SAFETY: By the safety requirements of this function, `inner` is a shared object that can
        // have more than one life, and the caller has its handle. `drop()` calls `thaw()` once.
        unsafe { Count::freeze(inner.cast()) };

        // INVARIANT: `freeze()` added a freezer.
        Self {
            inner,
            holder: holder::Holder::new(holder::Kind::Freezer, inner.cast(), 1),
        }
    }

    /// Returns a reference to the object.
    ///
    /// # Context
    ///
    /// Can be called from any context.
    pub fn value(&self) -> &T {
        // SAFETY: By the type invariant, the object is not dropped.
        unsafe { &(*self.inner.as_ptr()).value }
    }
}

impl<T: Counted> fmt::Debug for Frozen<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // SAFETY: By the type invariant, the object is not dropped, so its count is valid.
        unsafe { &(*self.inner.as_ptr()).count }.fmt_as::<T>("Frozen", f)
    }
}

impl<T: Counted> Drop for Frozen<T> {
    /// Thaws the reference, if this is the last guard.
    ///
    /// If the reference was killed while it was frozen, it stays dying. If the
    /// [`PercpuRef`](super::PercpuRef) was dropped, the last guard drops the object.
    ///
    /// # Context
    ///
    /// May sleep, so must be called from process context.
    #[doc(alias("blk_mq_unfreeze_queue", "percpu_ref_resurrect"))]
    fn drop(&mut self) {
        self.holder.end();
        // SAFETY: By the type invariant, this guard owns a freezer, which its call of `freeze()`
        // added. The object is not used after this.
        unsafe { Count::thaw(self.inner.cast()) };
    }
}

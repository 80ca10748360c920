// SPDX-License-Identifier: GPL-2.0

//! Freezing a reference for a time.
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

/// Keeps a [`Reinit`](super::Reinit) reference frozen: there are no references, and none can be
/// had.
///
/// Guards nest: the reference lives again when the last one is dropped. A guard can be kept, and
/// dropped on another thread, also after the [`PercpuRef`](super::PercpuRef) was dropped. If it is
/// leaked, the reference stays frozen.
///
/// # Invariants
///
/// Owns one of the freezers of the count in `inner`, so the object is there.
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
/// // Still frozen: here the queue can be changed without any request under way.
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

// SAFETY: Dropping a guard may end the object, which is `Send` by `Counted`, and changes the count
// as any thread may.
unsafe impl<T: Counted> Send for Frozen<T> {}

// SAFETY: Through a `&Frozen` one gets a `&T`, which is `Sync` by `Counted`.
unsafe impl<T: Counted> Sync for Frozen<T> {}

impl<T: Counted> Frozen<T> {
    /// Freezes the reference.
    ///
    /// # Safety
    ///
    /// `inner` must be a shared object that was made to live more than once, and the caller must
    /// have its handle.
    #[cfg_attr(CONFIG_RUST_PERCPU_REF_DEBUG, track_caller)]
    pub(super) unsafe fn new(inner: NonNull<Inner<T>>) -> Self {
        // SAFETY: By the safety requirements of this function, the caller has the handle.
        unsafe { Count::freeze(inner.cast()) };

        // INVARIANT: `freeze()` added a freezer.
        Self {
            inner,
            holder: holder::Holder::new(holder::Kind::Freezer, inner.cast(), 1),
        }
    }

    /// Returns the object, which is there as long as this is.
    pub fn value(&self) -> &T {
        // SAFETY: By the type invariant, the object is there.
        unsafe { &(*self.inner.as_ptr()).value }
    }
}

impl<T: Counted> fmt::Debug for Frozen<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // SAFETY: By the type invariant, the object is there.
        unsafe { &(*self.inner.as_ptr()).count }.fmt_as::<T>("Frozen", f)
    }
}

impl<T: Counted> Drop for Frozen<T> {
    /// Thaws the reference, if this is the last guard and it was not killed meanwhile. If the
    /// [`PercpuRef`](super::PercpuRef) was dropped, the object is dropped with the last guard.
    ///
    /// # Context
    ///
    /// May sleep, so must be called from process context.
    #[doc(alias("blk_mq_unfreeze_queue", "percpu_ref_resurrect"))]
    fn drop(&mut self) {
        self.holder.end();
        // SAFETY: By the type invariant, `freeze()` was called for this guard. The object is not
        // used after this.
        unsafe { Count::thaw(self.inner.cast()) };
    }
}

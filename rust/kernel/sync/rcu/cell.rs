// SPDX-License-Identifier: GPL-2.0

//! Places where RCU readers find objects.
//!
//! C header: [`include/linux/rcupdate.h`](srctree/include/linux/rcupdate.h)

use super::{
    arch::load_acquire,
    callback::Node,
    read_lock,
    Guard,
    RcuAllocator,
    RcuBox, //
};
use crate::{
    alloc::allocator::Kmalloc,
    fmt,
    sync::atomic::{
        Atomic,
        Full, //
    }, //
};
use core::{
    marker::PhantomData,
    ptr::{
        self,
        NonNull, //
    },
};

/// A place for an [`RcuBox`] where readers find its object without a lock, and writers replace it.
///
/// A reader uses what it has found until its RCU read-side critical section ends. A writer gets the
/// old box back, and can go on to use it. When the old box is dropped, its object is dropped after
/// a grace period, so that no reader loses it.
///
/// Several writers that each change a part must take a lock. They copy the old object in a
/// critical section, and allocate the new one after it.
///
/// The kernel does not drop statics. A module that has a place in a static must call
/// [`take`](Self::take) in its exit function, or else what is in the place is leaked.
///
/// # Invariants
///
/// `node` is null, or came from `RcuBox::into_node()` of a box that this owns.
///
/// # Examples
///
/// Settings that are replaced as a whole, so that a reader never sees one half of the old ones and
/// one half of the new ones:
///
/// ```
/// use kernel::{prelude::*, sync::rcu::{self, RcuBox, RcuCell}};
///
/// struct Settings {
///     budget: u32,
///     period: u32,
/// }
///
/// static SETTINGS: RcuCell<Settings> = RcuCell::empty();
///
/// /// A reader, on any CPU.
/// fn share() -> Option<u32> {
///     let section = rcu::read_lock();
///     let settings = SETTINGS.load(&section)?;
///     Some(100 * settings.budget / settings.period)
/// }
///
/// fn set(budget: u32, period: u32) -> Result {
///     let new = RcuBox::new(Settings { budget, period }, GFP_KERNEL)?;
///     // The old ones are freed when no reader can see them any more.
///     drop(SETTINGS.replace(Some(new)));
///     Ok(())
/// }
///
/// assert_eq!(share(), None);
/// set(1, 4)?;
/// assert_eq!(share(), Some(25));
/// set(30, 40)?;
/// assert_eq!(share(), Some(75));
///
/// // When the module is unloaded.
/// drop(SETTINGS.take());
/// # Ok::<(), Error>(())
/// ```
#[doc(alias = "__rcu")]
pub struct RcuCell<T: Send + Sync + 'static, A: RcuAllocator = Kmalloc> {
    node: Atomic<*mut Node<T>>,
    _owns: PhantomData<RcuBox<T, A>>,
}

impl<T: Send + Sync + 'static, A: RcuAllocator> RcuCell<T, A> {
    /// Makes an empty place.
    #[doc(alias = "RCU_INIT_POINTER")]
    pub const fn empty() -> Self {
        // INVARIANT: The pointer is null.
        Self {
            node: Atomic::new(ptr::null_mut()),
            _owns: PhantomData,
        }
    }

    /// Returns a reference to the object in this place, or `None` if the place is empty.
    ///
    /// What a writer has done before it put the object into the place is visible to the caller.
    ///
    /// # Context
    ///
    /// Can be called from any context.
    #[doc(alias = "rcu_dereference")]
    #[inline]
    pub fn load<'a>(&'a self, _section: &'a Guard) -> Option<&'a T> {
        // Pairs with the `Full` in `replace()`: the object is seen as it was made
        // (litmus: place-sees-maker).
        let node = NonNull::new(load_acquire(&self.node))?;
        // SAFETY: By the type invariant, the node is that of a box which this place owned in the
        // critical section, so that the box is dropped later than the section began.
        Some(unsafe { RcuBox::<T, A>::value_of(node) })
    }

    /// Puts another box, or none, into this place, and returns what was there.
    ///
    /// What was done before is visible to readers that find the new object. Readers may use the old
    /// one until a grace period has passed, which dropping its box waits for.
    ///
    /// # Context
    ///
    /// Can be called from any context except NMI.
    #[doc(alias("rcu_replace_pointer", "rcu_assign_pointer", "RCU_INIT_POINTER"))]
    pub fn replace(&self, new: Option<RcuBox<T, A>>) -> Option<RcuBox<T, A>> {
        let new = new.map_or(ptr::null_mut(), |new| RcuBox::into_node(new).as_ptr());
        // `Full` pairs with `load_acquire()` in `load()`. It also makes what another writer has
        // done before it put the old object here visible to us (litmus: place-sees-maker).
        //
        // INVARIANT: The new box is owned from here on, and the old one no more.
        let old = NonNull::new(self.node.xchg(new, Full))?;
        // SAFETY: By the type invariant, the box of the old node was owned here.
        Some(unsafe { RcuBox::from_node(old) })
    }

    /// Takes the box out of this place, and leaves the place empty.
    ///
    /// Readers may use the object until a grace period has passed, which dropping the box waits
    /// for.
    ///
    /// # Context
    ///
    /// Can be called from any context except NMI.
    #[doc(alias = "rcu_replace_pointer")]
    pub fn take(&self) -> Option<RcuBox<T, A>> {
        self.replace(None)
    }
}

impl<T: Send + Sync + 'static, A: RcuAllocator> fmt::Debug for RcuCell<T, A> {
    /// Tells whether the place is empty. The object is not shown, because its formatter may sleep,
    /// which must not happen in a critical section.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_empty = self.load(&read_lock()).is_none();
        f.write_str(if is_empty {
            "RcuCell { empty }"
        } else {
            "RcuCell { .. }"
        })
    }
}

impl<T: Send + Sync + 'static, A: RcuAllocator> Default for RcuCell<T, A> {
    fn default() -> Self {
        Self::empty()
    }
}

impl<T: Send + Sync + 'static, A: RcuAllocator> From<RcuBox<T, A>> for RcuCell<T, A> {
    fn from(new: RcuBox<T, A>) -> Self {
        // INVARIANT: The box is owned by the place.
        Self {
            node: Atomic::new(RcuBox::into_node(new).as_ptr()),
            _owns: PhantomData,
        }
    }
}

impl<T: Send + Sync + 'static, A: RcuAllocator> Drop for RcuCell<T, A> {
    /// Drops the box in this place, so that its object is dropped after a grace period.
    ///
    /// # Context
    ///
    /// Can be called from any context except NMI.
    fn drop(&mut self) {
        drop(self.take());
    }
}

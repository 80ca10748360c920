// SPDX-License-Identifier: GPL-2.0

//! Cells in which RCU readers find objects.
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

/// A cell that owns an [`RcuBox`] which readers find under RCU, or is empty.
///
/// Readers find the object without a lock, and can use it until their RCU read-side critical
/// section ends. Writers replace the box and get the old box back, which they can use further. When
/// the old box is dropped, its object is dropped after a grace period, so readers can still use it.
///
/// If several writers each change a part of the object, they must take a lock. A writer copies the
/// old object in a critical section, and allocates the new object after the section.
///
/// The kernel does not drop statics. A module with a cell in a static must call
/// [`take`](Self::take) in its exit function. Otherwise the object in the cell is leaked.
///
/// # Invariants
///
/// `node` is null, or came from `RcuBox::into_node()` of a box that this owns.
///
/// # Examples
///
/// Settings are replaced as a whole, so a reader never sees a part of the old settings together
/// with a part of the new settings:
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
///     // The old settings are freed when no reader can see them any more.
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
    /// Creates an empty cell.
    ///
    /// # Context
    ///
    /// Can be called from any context.
    #[doc(alias = "RCU_INIT_POINTER")]
    pub const fn empty() -> Self {
        // INVARIANT: The pointer is null.
        Self {
            node: Atomic::new(ptr::null_mut()),
            _owns: PhantomData,
        }
    }

    /// Returns a reference to the object, or `None` if the cell is empty.
    ///
    /// All writes before the object was published here are visible to the caller.
    ///
    /// # Context
    ///
    /// Can be called from any context.
    #[doc(alias = "rcu_dereference")]
    #[inline]
    pub fn load<'a>(&'a self, _section: &'a Guard) -> Option<&'a T> {
        // Pairs with the `Full` in `replace()`: the writes that initialised the object are visible
        // (litmus: place-sees-maker).
        let node = NonNull::new(load_acquire(&self.node))?;
        // SAFETY: By the type invariant, the node is that of a box which this cell owned in the
        // critical section, so the box is dropped after the section began.
        Some(unsafe { RcuBox::<T, A>::value_of(node) })
    }

    /// Replaces the box, and returns the old box.
    ///
    /// With `None`, the cell becomes empty.
    ///
    /// All writes before this call are visible to readers that find the new object. Readers may use
    /// the old object until a grace period has elapsed, which dropping its box waits for.
    ///
    /// # Context
    ///
    /// Can be called from any context except NMI.
    #[doc(alias("rcu_replace_pointer", "rcu_assign_pointer", "RCU_INIT_POINTER"))]
    pub fn replace(&self, new: Option<RcuBox<T, A>>) -> Option<RcuBox<T, A>> {
        let new = new.map_or(ptr::null_mut(), |new| RcuBox::into_node(new).as_ptr());
        // `Full` pairs with `load_acquire()` in `load()`. It also makes the writes of another
        // writer visible to us, if they come before that writer published the old object
        // (litmus: place-sees-maker).
        //
        // INVARIANT: This cell owns the new box from here on. The caller owns the old box.
        let old = NonNull::new(self.node.xchg(new, Full))?;
        // SAFETY: By the type invariant, this cell owned the box of the old node.
        Some(unsafe { RcuBox::from_node(old) })
    }

    /// Takes the box out of the cell, which becomes empty.
    ///
    /// Readers may use the object until a grace period has elapsed, which dropping the box waits
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
    /// Tells whether the cell is empty.
    ///
    /// The object is not shown, because its formatter may sleep, which is not allowed in a critical
    /// section.
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
    /// Creates a cell that owns `new`.
    ///
    /// # Context
    ///
    /// Can be called from any context.
    fn from(new: RcuBox<T, A>) -> Self {
        // INVARIANT: The cell owns the box from here on.
        Self {
            node: Atomic::new(RcuBox::into_node(new).as_ptr()),
            _owns: PhantomData,
        }
    }
}

impl<T: Send + Sync + 'static, A: RcuAllocator> Drop for RcuCell<T, A> {
    /// Drops the box, so that its object is dropped after a grace period.
    ///
    /// # Context
    ///
    /// Can be called from any context except NMI.
    fn drop(&mut self) {
        drop(self.take());
    }
}

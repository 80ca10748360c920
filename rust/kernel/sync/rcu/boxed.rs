// SPDX-License-Identifier: GPL-2.0

//! Objects that RCU readers may still see when their owner drops them.
//!
//! C header: [`include/linux/rcupdate.h`](srctree/include/linux/rcupdate.h)

use super::{
    call,
    callback::Node,
    Guard,
    RcuHead,
    RcuPointer, //
};
use crate::{
    alloc::{
        allocator::{
            KVmalloc,
            Kmalloc,
            Vmalloc, //
        },
        Allocator,
        Box,
        Flags, //
    },
    bindings,
    fmt,
    prelude::*, //
};
use core::{
    marker::PhantomData,
    mem::{
        needs_drop,
        offset_of,
        ManuallyDrop, //
    },
    ops::Deref,
    ptr::NonNull, //
};

/// An allocator of memory that `kvfree()` frees.
///
/// # Safety
///
/// `kvfree()` must free what the allocator has allocated.
pub unsafe trait RcuAllocator: Allocator + 'static {}

// SAFETY: `kvfree()` in mm/slub.c frees memory of `kmalloc()`.
unsafe impl RcuAllocator for Kmalloc {}

// SAFETY: `kvfree()` in mm/slub.c frees memory of `vmalloc()`.
unsafe impl RcuAllocator for Vmalloc {}

// SAFETY: `kvfree()` in mm/slub.c frees memory of `kvmalloc()`.
unsafe impl RcuAllocator for KVmalloc {}

/// An owning pointer to a pinned object that RCU readers may still see.
///
/// A reader that has found the object in an RCU read-side critical section can use it until the
/// section ends, also if the box is dropped meanwhile. Dropping the box therefore drops the object
/// and frees its memory after a grace period. To publish a box, put it into an
/// [`RcuCell`](super::RcuCell).
///
/// There is never a mutable reference to the object, because readers may have shared ones. What
/// readers see is changed by publishing another object, or by interior mutability.
///
/// # The type of the object
///
/// - `T: Sync`, because readers on other CPUs and the owner use the object at the same time.
/// - `T: Send`, because RCU drops the object on any CPU.
/// - `T: 'static`, because RCU drops the object later than the owner drops the box. What the object
///   borrows may be gone then.
///
/// These are requirements of the type and not of [`RcuBox::new`] alone, since [`Drop`] relies on
/// them.
///
/// # Context
///
/// A box can be dropped in any context except NMI. The object is dropped in softirq or in a kernel
/// thread of RCU's with bottom halves disabled, so dropping it must not sleep.
///
/// # Modules
///
/// An object that needs to be dropped is dropped before the module is unloaded that has the code of
/// the box: see [the callbacks](super::RcuCallback). Code of other modules that the object points
/// to, such as that of a trait object in it, is not kept. If dropping it drops another box, that
/// one takes another grace period. Unloading a module waits for objects that are nested so to a
/// depth of two, and what is deeper is leaked with a warning.
///
/// The memory of an object that needs no drop is freed by the kernel's own code, so unloading a
/// module does not wait for that.
///
/// # Invariants
///
/// `node` came from [`Box::into_raw`] of a box with the allocator `A`, is initialised and pinned,
/// and is owned by this value. No other code uses its head.
///
/// # Examples
///
/// ```
/// use kernel::{prelude::*, sync::rcu::{self, RcuBox}};
///
/// struct Route {
///     gateway: u32,
/// }
///
/// let route = RcuBox::<_>::new(Route { gateway: 1 }, GFP_KERNEL)?;
/// let section = rcu::read_lock();
/// let seen = route.with_rcu(&section);
/// drop(route);
/// // The section is a part of what the grace period waits for.
/// assert_eq!(seen.gateway, 1);
/// # Ok::<(), Error>(())
/// ```
#[doc(alias("kfree_rcu", "kvfree_rcu"))]
#[must_use = "if unused, the object is passed to RCU at once"]
pub struct RcuBox<T: Send + Sync + 'static, A: RcuAllocator = Kmalloc> {
    node: NonNull<Node<T>>,
    _allocator: PhantomData<A>,
}

// SAFETY: The object can be used, and dropped, on any thread, as it is `Send`. A reader on the old
// thread may have a reference to it meanwhile, which is allowed as it is `Sync`. There is no value
// of the allocator.
unsafe impl<T: Send + Sync + 'static, A: RcuAllocator> Send for RcuBox<T, A> {}

// SAFETY: A shared reference to the box gives out shared references to the object, which is `Sync`.
unsafe impl<T: Send + Sync + 'static, A: RcuAllocator> Sync for RcuBox<T, A> {}

impl<T: Send + Sync + 'static, A: RcuAllocator> RcuBox<T, A> {
    /// Allocates and initialises an object.
    ///
    /// Fails with `ENOMEM`, or with the error of `init`. Where nothing tells the compiler which
    /// allocator is meant, `RcuBox::<_>::new()` takes `Kmalloc`.
    ///
    /// # Context
    ///
    /// May sleep if `flags` allow it, and then must be called from process context.
    #[doc(alias("kmalloc", "kvmalloc"))]
    pub fn new<E>(init: impl PinInit<T, E>, flags: Flags) -> Result<Self>
    where
        Error: From<E>,
    {
        let node: Pin<Box<Node<T>, A>> = Box::try_pin_init(Node::new(init), flags)?;
        // SAFETY: The node does not move before it is freed.
        let node = Box::into_raw(unsafe { Pin::into_inner_unchecked(node) });
        Ok(Self {
            // INVARIANT: The node was just made.
            //
            // SAFETY: `into_raw()` does not return null.
            node: unsafe { NonNull::new_unchecked(node) },
            _allocator: PhantomData,
        })
    }

    /// Returns a reference to the object that is bounded by the critical section. It can be used
    /// also when the box is dropped.
    ///
    /// # Context
    ///
    /// Can be called from any context.
    #[doc(alias = "rcu_dereference_protected")]
    #[inline]
    pub fn with_rcu<'rcu>(&self, _section: &'rcu Guard) -> &'rcu T {
        // SAFETY: The box is there, so it is dropped later than the critical section began, and the
        // grace period that its drop waits for does not end before the critical section.
        unsafe { Self::value_of(self.node) }
    }

    /// Returns the object in a node.
    ///
    /// # Safety
    ///
    /// `node` must be the node of a box, and for `'a` either the box must not be dropped, or the
    /// caller must be in an RCU read-side critical section that began before it was dropped.
    #[inline(always)]
    pub(super) unsafe fn value_of<'a>(node: NonNull<Node<T>>) -> &'a T {
        // RCU may use the head, so this must not be a reference to the node.
        //
        // SAFETY: By the safety requirements of this function, the node is not freed for `'a`. By
        // the type invariant, it is initialised, and nothing makes a mutable reference to it before
        // it is freed.
        unsafe { &(*node.as_ptr()).value }
    }

    /// Gives up the box for its node.
    pub(super) fn into_node(this: Self) -> NonNull<Node<T>> {
        ManuallyDrop::new(this).node
    }

    /// Converts back from a node.
    ///
    /// # Safety
    ///
    /// `node` must have come from [`into_node`](Self::into_node) of this type, and must be
    /// converted back once.
    pub(super) unsafe fn from_node(node: NonNull<Node<T>>) -> Self {
        // INVARIANT: By the safety requirements of this function, the box was given up for the
        // node.
        Self {
            node,
            _allocator: PhantomData,
        }
    }
}

impl<T: Send + Sync + 'static, A: RcuAllocator> Deref for RcuBox<T, A> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: The box is not dropped as long as it is borrowed.
        unsafe { Self::value_of(self.node) }
    }
}

impl<T: Send + Sync + fmt::Debug + 'static, A: RcuAllocator> fmt::Debug for RcuBox<T, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: Send + Sync + 'static, A: RcuAllocator> Drop for RcuBox<T, A> {
    /// Passes the object to RCU, which drops it and frees its memory after a grace period.
    ///
    /// # Context
    ///
    /// Can be called from any context except NMI.
    #[doc(alias("call_rcu", "kfree_rcu", "kvfree_rcu", "kvfree_call_rcu"))]
    fn drop(&mut self) {
        if needs_drop::<T>() {
            // INVARIANT: The box gives the node up.
            call(Dropped::<T, A> {
                node: self.node,
                _allocator: PhantomData,
            });
            return;
        }

        // `kvfree_rcu_arg_2()` in include/linux/rcupdate.h refuses offsets of a page and more. If
        // there is no memory for an array of pointers, `kvfree_rcu_list()` in mm/slab_common.c
        // finds the beginning of the object by rounding the head's address down.
        const { assert!(offset_of!(Node<T>, head) == 0) };
        // Nothing of a module runs after this: the kernel frees the memory by its address, from a
        // workqueue or an RCU callback of its own (mm/slab_common.c). So `unload::may_queue()`,
        // which keeps the code of a callback, is not asked. This may be called where `call_rcu()`
        // may: without memory for the array it uses the head, and sleeps only without a head.
        //
        // SAFETY: By the type invariant, the node is ours, and its memory came from `A`, so that
        // `kvfree()` frees it. The object needs no drop. The head is used by this call alone, and
        // is large enough: 7.3 has a type of its own, which is no larger than a `callback_head`.
        unsafe {
            let head = &raw mut (*self.node.as_ptr()).head;
            bindings::kvfree_call_rcu(head.cast(), self.node.as_ptr().cast());
        }
    }
}

/// An object whose box was dropped.
///
/// # Invariants
///
/// `node` is as in [`RcuBox`], and owned by this value. Readers that found it before may use it
/// until a grace period has passed.
struct Dropped<T: Send + Sync + 'static, A: RcuAllocator> {
    node: NonNull<Node<T>>,
    _allocator: PhantomData<A>,
}

// SAFETY: The object can be dropped on any thread. There is no value of the allocator.
unsafe impl<T: Send + Sync + 'static, A: RcuAllocator> Send for Dropped<T, A> {}

// SAFETY: By the type invariant, the node is there until `run()`, is pinned, and no other code uses
// its head.
unsafe impl<T: Send + Sync + 'static, A: RcuAllocator> RcuPointer for Dropped<T, A> {
    fn into_head(self) -> NonNull<RcuHead> {
        // SAFETY: By the type invariant, the node is valid, so the address of its field is not
        // null.
        unsafe { NonNull::new_unchecked(&raw mut (*self.node.as_ptr()).head) }
    }

    unsafe fn from_head(head: NonNull<RcuHead>) -> Self {
        // INVARIANT: By the safety requirements of this function, `head` is that of a node which
        // `into_head()` gave up. It comes first in the node.
        Self {
            node: head.cast(),
            _allocator: PhantomData,
        }
    }

    fn run(self) {
        // SAFETY: By the type invariant, the node came from `Box::into_raw()` and is ours. The
        // grace period waited for the readers. The object is dropped where it is, so it does not
        // move.
        drop(unsafe { Box::<Node<T>, A>::from_raw(self.node.as_ptr()) });
    }
}

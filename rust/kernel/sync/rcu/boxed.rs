// SPDX-License-Identifier: GPL-2.0

//! Boxes whose objects RCU readers may still use after the owner has dropped the box.
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
/// `kvfree()` must be able to free the memory that the allocator allocates.
pub unsafe trait RcuAllocator: Allocator + 'static {}

// SAFETY: `kvfree()` in mm/slub.c frees memory that `kmalloc()` allocated.
unsafe impl RcuAllocator for Kmalloc {}

// SAFETY: `kvfree()` in mm/slub.c frees memory that `vmalloc()` allocated.
unsafe impl RcuAllocator for Vmalloc {}

// SAFETY: `kvfree()` in mm/slub.c frees memory that `kvmalloc()` allocated.
unsafe impl RcuAllocator for KVmalloc {}

/// An owning pointer to a pinned object that RCU readers may still use when it is dropped.
///
/// A reader that has found the object in an RCU read-side critical section can use it until the
/// section ends, even if the box is dropped in between. Therefore dropping the box drops the object
/// and frees its memory only after a grace period. To publish a box, put it into an
/// [`RcuCell`](super::RcuCell).
///
/// There is never a mutable reference to the object, because readers may have shared references. To
/// change what readers see, publish another object, or use interior mutability.
///
/// # The type of the object
///
/// - `T: Sync`, because readers on other CPUs and the owner use the object at the same time.
/// - `T: Send`, because RCU drops the object on any CPU.
/// - `T: 'static`, because RCU drops the object after the owner has dropped the box. Data that the
///   object borrows may be gone then.
///
/// The type has these bounds, and not only [`RcuBox::new`], because [`Drop`] relies on them.
///
/// # Context
///
/// Can be dropped in any context except NMI. The object is dropped in softirq context or in a
/// kernel thread of RCU with bottom halves disabled, so its `Drop` must not sleep.
///
/// # Modules
///
/// If an object has a `Drop`, the object is dropped before the module with the code of the box is
/// unloaded: see [`RcuCallback`](super::RcuCallback). The code of other modules that the object
/// points to, such as the code of a trait object, is not kept. If the object's `Drop` drops another
/// box, that box takes another grace period. Unloading a module waits for boxes that are nested to
/// a depth of two. Objects of deeper boxes are leaked with a warning.
///
/// If an object has no `Drop`, the kernel's own code frees its memory, so unloading a module does
/// not wait for it.
///
/// # Invariants
///
/// `node` came from [`Box::into_raw`] of a box with the allocator `A`. It is initialised and
/// pinned, and is owned by this value. No other code uses its head.
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
/// // The grace period waits for the critical section.
/// assert_eq!(seen.gateway, 1);
/// # Ok::<(), Error>(())
/// ```
#[doc(alias("kfree_rcu", "kvfree_rcu"))]
#[must_use = "if unused, the object is passed to RCU at once"]
pub struct RcuBox<T: Send + Sync + 'static, A: RcuAllocator = Kmalloc> {
    node: NonNull<Node<T>>,
    _allocator: PhantomData<A>,
}

// SAFETY: Any thread can use and drop the object, because it is `Send`. At the same time, a reader
// on the old thread may have a reference to it, which `T: Sync` allows. There is no value of the
// allocator.
unsafe impl<T: Send + Sync + 'static, A: RcuAllocator> Send for RcuBox<T, A> {}

// SAFETY: A `&RcuBox` gives access to a `&T`, which `T: Sync` allows.
unsafe impl<T: Send + Sync + 'static, A: RcuAllocator> Sync for RcuBox<T, A> {}

impl<T: Send + Sync + 'static, A: RcuAllocator> RcuBox<T, A> {
    /// Allocates and initialises an object.
    ///
    /// Fails with `ENOMEM`, or with the error of `init`. If the compiler cannot infer the
    /// allocator, write `RcuBox::<_>::new()` for `Kmalloc`.
    ///
    /// # Context
    ///
    /// If `flags` allow blocking, or if `A` uses `vmalloc()`, may sleep and must be called from
    /// process context. Otherwise, can be called from any context except NMI. On PREEMPT_RT, must
    /// not be called from hard interrupts or with preemption disabled.
    #[doc(alias("kmalloc", "kvmalloc"))]
    pub fn new<E>(init: impl PinInit<T, E>, flags: Flags) -> Result<Self>
    where
        Error: From<E>,
    {
        let node: Pin<Box<Node<T>, A>> = Box::try_pin_init(Node::new(init), flags)?;
        // SAFETY: The node is not moved before it is freed.
        let node = Box::into_raw(unsafe { Pin::into_inner_unchecked(node) });
        Ok(Self {
            // INVARIANT: The node was just initialised, and came from a box with the allocator `A`.
            //
            // SAFETY: `into_raw()` does not return null.
            node: unsafe { NonNull::new_unchecked(node) },
            _allocator: PhantomData,
        })
    }

    /// Returns a reference to the object that is valid until the critical section ends.
    ///
    /// The reference can be used even after the box was dropped.
    ///
    /// # Context
    ///
    /// Can be called from any context.
    #[doc(alias = "rcu_dereference_protected")]
    #[inline]
    pub fn with_rcu<'rcu>(&self, _section: &'rcu Guard) -> &'rcu T {
        // SAFETY: The box is not dropped yet. If it is dropped later, the grace period that its
        // drop waits for does not end before this critical section, which has begun already.
        unsafe { Self::value_of(self.node) }
    }

    /// Returns a reference to the object in a node.
    ///
    /// # Safety
    ///
    /// `node` must be the node of a box. During `'a`, either the box must not be dropped, or the
    /// caller must be in an RCU read-side critical section that began before the box was dropped.
    #[inline(always)]
    pub(super) unsafe fn value_of<'a>(node: NonNull<Node<T>>) -> &'a T {
        // RCU may use the head at the same time, so this must not create a reference to the node.
        //
        // SAFETY: By the safety requirements of this function, the node is not freed during `'a`.
        // By the type invariant, it is initialised. No mutable reference to the object exists
        // before it is freed.
        unsafe { &(*node.as_ptr()).value }
    }

    /// Converts the box into its node.
    pub(super) fn into_node(this: Self) -> NonNull<Node<T>> {
        ManuallyDrop::new(this).node
    }

    /// Converts back from the node that [`into_node`](Self::into_node) returned.
    ///
    /// # Safety
    ///
    /// `node` must have come from [`into_node`](Self::into_node) of this type, and must be
    /// converted back once.
    pub(super) unsafe fn from_node(node: NonNull<Node<T>>) -> Self {
        // INVARIANT: By the safety requirements of this function, the box that `into_node()`
        // converted owned the node, and this value alone owns it now.
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
        // SAFETY: The box is borrowed, so it is not dropped.
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
            // INVARIANT: The box owned the node, and does not use it after this.
            call(Dropped::<T, A> {
                node: self.node,
                _allocator: PhantomData,
            });
            return;
        }

        // `kvfree_rcu_arg_2()` in include/linux/rcupdate.h refuses offsets of a page or more. If
        // there is no memory for an array of pointers, `kvfree_rcu_list()` in mm/slab_common.c
        // finds the start of the object by rounding the address of the head down.
        const { assert!(offset_of!(Node<T>, head) == 0) };
        // No code of a module runs after this: the kernel frees the memory by its address, from a
        // workqueue or from an RCU callback of its own (mm/slab_common.c). So
        // `unload::may_queue()`, which keeps the code of a callback, is not called. This can be
        // called in any context in which `call_rcu()` can: without memory for the array, it uses
        // the head. It sleeps only if it has no head.
        //
        // SAFETY: By the type invariant, we own the node, and its memory came from `A`, so
        // `kvfree()` can free it. The object has no `Drop`. Only this call uses the head. The head
        // is large enough: 7.3 has a type of its own for it, which is no larger than a
        // `callback_head`.
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
/// `node` has the invariants of the node in an [`RcuBox`], and is owned by this value. Readers that
/// found the object before the box was dropped may use it until a grace period has elapsed.
struct Dropped<T: Send + Sync + 'static, A: RcuAllocator> {
    node: NonNull<Node<T>>,
    _allocator: PhantomData<A>,
}

// SAFETY: `T: Send` allows any thread to drop the object. There is no value of the allocator.
unsafe impl<T: Send + Sync + 'static, A: RcuAllocator> Send for Dropped<T, A> {}

// SAFETY: By the type invariant, the node is pinned, is not freed before `run()`, and no other code
// uses its head.
unsafe impl<T: Send + Sync + 'static, A: RcuAllocator> RcuPointer for Dropped<T, A> {
    fn into_head(self) -> NonNull<RcuHead> {
        // SAFETY: By the type invariant, the node is valid, so the address of its field is not
        // null.
        unsafe { NonNull::new_unchecked(&raw mut (*self.node.as_ptr()).head) }
    }

    unsafe fn from_head(head: NonNull<RcuHead>) -> Self {
        // INVARIANT: By the safety requirements of this function, `head` is that of a node which
        // `into_head()` converted. The head is the first field of the node.
        Self {
            node: head.cast(),
            _allocator: PhantomData,
        }
    }

    fn run(self) {
        // SAFETY: By the type invariant, the node came from `Box::into_raw()`, and this value owns
        // it. The grace period has waited for the readers. The object is dropped in place, so it is
        // not moved.
        drop(unsafe { Box::<Node<T>, A>::from_raw(self.node.as_ptr()) });
    }
}

// SPDX-License-Identifier: GPL-2.0

//! RCU callbacks that own their object.
//!
//! An [`RcuCallbackBox<T>`] contains a `T` and the `struct rcu_head` that `call_rcu()` needs. Since
//! the memory is allocated already, [`RcuCallbackBox::call`] cannot fail. After a grace period,
//! [`RcuCallback::run`] is called once with the box. It can drop the box, keep it, or queue it
//! again. If an object only needs to be dropped after a grace period, use
//! [`RcuBox`](super::RcuBox).
//!
//! [`call`] lets the system delay the grace period to save power, with `CONFIG_RCU_LAZY` by
//! seconds. [`call_hurry`] does not, and is for callers that wait for the callback.
//!
//! # Callbacks and modules
//!
//! The library keeps a module's code in memory until its callbacks have run: see [`RcuCallback`].
//!
//! C header: [`include/linux/rcupdate.h`](srctree/include/linux/rcupdate.h)

use super::{
    read_lock,
    unload, //
};
use crate::{
    alloc::Flags,
    bindings,
    container_of,
    fmt,
    pr_warn_once,
    prelude::*,
    types::Opaque, //
};
use core::{
    ops::{
        Deref,
        DerefMut, //
    },
    ptr::NonNull, //
};

/// A `struct rcu_head`, by which an object waits for a grace period.
#[doc(alias("rcu_head", "callback_head"))]
#[repr(transparent)]
pub struct RcuHead(Opaque<bindings::callback_head>);

// SAFETY: Safe code cannot access the head.
unsafe impl Send for RcuHead {}

// SAFETY: Safe code cannot access the head.
unsafe impl Sync for RcuHead {}

impl RcuHead {
    /// Creates a head for an object whose pointer implements [`RcuPointer`].
    pub const fn new() -> Self {
        // `call_rcu()` initialises the head.
        Self(Opaque::uninit())
    }
}

impl fmt::Debug for RcuHead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RcuHead")
    }
}

impl Default for RcuHead {
    fn default() -> Self {
        Self::new()
    }
}

/// A pointer that owns an object with an [`RcuHead`], and can be passed to [`call`].
///
/// Most users need only [`RcuBox`](super::RcuBox), or [`RcuCallbackBox`], which implements this
/// trait.
///
/// # Safety
///
/// From [`into_head`](Self::into_head) until [`from_head`](Self::from_head), the head must be
/// valid, must not move, and must not be used by other code. `IN_KERNEL_CRATE` must be `false`
/// outside of the kernel crate.
pub unsafe trait RcuPointer: Send + Sized + 'static {
    /// Whether the callback is in the kernel crate, so that no module is kept for it.
    ///
    /// The callback is a generic function, so its code is where [`call`] is instantiated. For the
    /// types with `true`, this is in functions that are neither generic nor inlined.
    #[doc(hidden)]
    const IN_KERNEL_CRATE: bool = false;

    /// Converts the pointer into a pointer to the head in the object.
    fn into_head(self) -> NonNull<RcuHead>;

    /// Converts back from the pointer that [`into_head`](Self::into_head) returned.
    ///
    /// # Safety
    ///
    /// `head` must have come from [`into_head`](Self::into_head) of this type, and must be
    /// converted back once.
    unsafe fn from_head(head: NonNull<RcuHead>) -> Self;

    /// Runs after the grace period.
    ///
    /// # Context
    ///
    /// Called from softirq context or from a kernel thread of RCU with bottom halves disabled. Must
    /// not sleep.
    fn run(self);
}

/// Implements [`RcuPointer`] for a structure `$pointer` whose only field is a `NonNull<$object>`.
///
/// `$object` must have an [`RcuHead`] in its field `$head`. The comment at the use of this macro
/// must argue for the safety requirements of [`RcuPointer`], and that the object is valid as long
/// as there is a `$pointer`.
macro_rules! impl_rcu_pointer {
    (unsafe impl RcuPointer for $pointer:ident($object:ty, $head:ident), $run:expr) => {
        // SAFETY: The comment at the use of this macro argues for the safety requirements of
        // `RcuPointer`.
        unsafe impl RcuPointer for $pointer {
            const IN_KERNEL_CRATE: bool = true;

            fn into_head(self) -> NonNull<RcuHead> {
                // SAFETY: By the comment at the use of this macro, the object is valid. The address
                // of a field is not null.
                unsafe { NonNull::new_unchecked(&raw mut (*self.0.as_ptr()).$head) }
            }

            unsafe fn from_head(head: NonNull<RcuHead>) -> Self {
                // SAFETY: By the safety requirements of this function, `head` is the field of an
                // object. The address of an object is not null.
                let object = unsafe {
                    NonNull::new_unchecked($crate::container_of!(head.as_ptr(), $object, $head))
                };
                // INVARIANT: `into_head()` converted the value for this object, and this is the
                // only one made of it.
                Self(object)
            }

            fn run(self) {
                $run(self)
            }
        }
    };
}
pub(crate) use impl_rcu_pointer;

/// Queues [`RcuPointer::run`] to run after a grace period, which the system may delay.
///
/// The writes of the caller before this call are visible to the callback. So are the accesses in
/// all read-side critical sections that may have begun before this call.
///
/// # Context
///
/// Can be called from any context except NMI.
///
/// # Examples
///
/// ```
/// use kernel::{prelude::*, sync::rcu::{self, RcuCallback, RcuCallbackBox}};
///
/// struct Page(u32);
///
/// impl RcuCallback for Page {
///     fn run(this: RcuCallbackBox<Self>) {
///         pr_info!("no reader uses page {} any more\n", this.0);
///     }
/// }
///
/// rcu::call(RcuCallbackBox::new(Page(1), GFP_KERNEL)?);
/// // For callers that wait for the callback:
/// rcu::call_hurry(RcuCallbackBox::new(Page(2), GFP_KERNEL)?);
/// # Ok::<(), Error>(())
/// ```
#[doc(alias("call_rcu", "call_rcu_sched"))]
pub fn call<P: RcuPointer>(pointer: P) {
    queue(pointer, bindings::call_rcu, run_callback::<P>);
}

/// Queues [`RcuPointer::run`] to run after a grace period, without the delay of `CONFIG_RCU_LAZY`.
///
/// Orders memory as [`call`] does.
///
/// # Context
///
/// Can be called from any context except NMI.
#[doc(alias = "call_rcu_hurry")]
pub fn call_hurry<P: RcuPointer>(pointer: P) {
    queue(pointer, bindings::call_rcu_hurry, run_callback::<P>);
}

/// Queues [`RcuPointer::run`] to run after a grace period of RCU Tasks and then one of RCU.
///
/// A grace period of RCU Tasks waits for each task, running or preempted, until the task sleeps,
/// runs in user space or in a guest, or calls `cond_resched_tasks_rcu_qs()`. It does not wait for
/// idle tasks and interrupts; the grace period of RCU waits for these. All accesses before any of
/// these points are visible to the callback.
///
/// The wait takes some tenths of a second, and lasts as long as a task runs in the kernel without
/// any of these points. `cond_resched()` is not such a point, so a task that polls must sleep. RCU
/// Tasks is not made for many callbacks a second. `rcu_barrier()` does not wait for these
/// callbacks, but unloading a module does. Without `CONFIG_TASKS_RCU`, this function is
/// [`call_hurry`].
///
/// # Context
///
/// Can be called from any context except NMI.
///
/// # Examples
///
/// ```
/// use kernel::{prelude::*, sync::rcu::{self, RcuCallback, RcuCallbackBox}};
///
/// struct Trampoline;
///
/// impl RcuCallback for Trampoline {
///     fn run(_this: RcuCallbackBox<Self>) {
///         pr_info!("no task runs in the trampoline any more\n");
///     }
/// }
///
/// rcu::call_tasks(RcuCallbackBox::new(Trampoline, GFP_KERNEL)?);
/// # Ok::<(), Error>(())
/// ```
#[doc(alias = "call_rcu_tasks")]
pub fn call_tasks<P: RcuPointer>(pointer: P) {
    if cfg!(CONFIG_TASKS_RCU) {
        unload::set_uses_tasks();
        queue(pointer, bindings::call_rcu_tasks, run_after_tasks::<P>);
    } else {
        call_hurry(pointer);
    }
}

type CallRcu = unsafe extern "C" fn(*mut bindings::callback_head, bindings::rcu_callback_t);
type Callback = unsafe extern "C" fn(*mut bindings::callback_head);

/// Passes a callback to `call_rcu`, or leaks its object if the module of the callback is closed.
fn queue<P: RcuPointer>(pointer: P, call_rcu: CallRcu, callback: Callback) {
    let _section;
    if !P::IN_KERNEL_CRATE {
        // Pairs with `unload::module_going()`: either `may_queue()` sees the mark, or
        // `synchronize_rcu()` there waits for this critical section, and the `rcu_barrier()` after
        // it waits for our callback (litmus: begun-or-closed).
        let section = read_lock();
        if !unload::may_queue(callback as *const c_void, &section) {
            pr_warn_once!("RCU callback of an unloaded module: leaking its object\n");
            core::mem::forget(pointer);
            return;
        }
        _section = section;
    }

    let head = pointer.into_head();
    // `from_head()` needs the provenance of the whole object, so this must not create a reference
    // to the head.
    //
    // SAFETY: By the safety requirements of `RcuPointer`, the head is valid until `from_head()`.
    let head = Opaque::cast_into(unsafe { &raw const (*head.as_ptr()).0 });
    // SAFETY: By the safety requirements of `RcuPointer`, only this call uses the head until
    // `run_callback()` calls `from_head()`.
    unsafe { call_rcu(head, Some(callback)) };
}

/// Waits for RCU, after RCU Tasks.
///
/// # Safety
///
/// Must be called by RCU Tasks, once for each time that [`queue`] passed it a head of a `P`.
unsafe extern "C" fn run_after_tasks<P: RcuPointer>(head: *mut bindings::callback_head) {
    // SAFETY: By the safety requirements of this function, the head is one that `queue()` passed,
    // and is not used by RCU Tasks any more.
    unsafe { bindings::call_rcu_hurry(head, Some(run_callback::<P>)) };
}

/// Runs the callback of a `P`.
///
/// # Safety
///
/// Must be called by RCU, once for each time that [`queue`] passed it a head of a `P`.
unsafe extern "C" fn run_callback<P: RcuPointer>(head: *mut bindings::callback_head) {
    // SAFETY: RCU passes the pointer that it got from `queue()`, which is not null.
    let head = unsafe { NonNull::new_unchecked(head.cast()) };

    // SAFETY: `queue()` got this head from `into_head()` of a `P`, and RCU passes it back once.
    unsafe { P::from_head(head) }.run();
}

/// An object that can be passed to RCU in an [`RcuCallbackBox`].
///
/// # Modules
///
/// A callback of a module must not run after the module's code is freed. In C, the exit function of
/// each such module must call `rcu_barrier()`. Here, the library does this when the exit function
/// has returned, for RCU Tasks as well, if the module has queued a callback. Then it marks the
/// module as closed and waits again. From then on, until the module's memory is used for another
/// module, no callback of the module is queued: its object is leaked, with a warning. Without the
/// mark, a callback that queues itself again each time would keep its module loaded.
///
/// A callback belongs to the module that contains the code of its `RcuCallback`. The code of other
/// modules that the object points to is not kept.
pub trait RcuCallback: Send + Sized + 'static {
    /// Runs after the grace period that [`RcuCallbackBox::call`] waits for.
    ///
    /// If an object only needs to be dropped after the grace period, use [`RcuBox`](super::RcuBox)
    /// instead.
    ///
    /// # Context
    ///
    /// Called from softirq context or from a kernel thread of RCU with bottom halves disabled. Must
    /// not sleep.
    fn run(this: RcuCallbackBox<Self>);
}

/// A pinned object that is passed to RCU, and that its callback gets back.
///
/// RCU readers cannot see the object: its owner can change it before the call, and dropping the box
/// frees it at once. An object that readers can see is owned by an [`RcuBox`](super::RcuBox).
///
/// # Context
///
/// Can be dropped in any context in which the object can be dropped, except NMI. On PREEMPT_RT,
/// must not be dropped in hard interrupts or with preemption disabled, because this frees memory.
///
/// # Examples
///
/// ```
/// use kernel::prelude::*;
/// use kernel::sync::rcu::{RcuCallback, RcuCallbackBox};
///
/// /// The slot of a table that readers may still use.
/// struct Retired {
///     slot: u32,
/// }
///
/// impl RcuCallback for Retired {
///     fn run(this: RcuCallbackBox<Self>) {
///         pr_info!("slot {} can be used again\n", this.slot);
///     }
/// }
///
/// RcuCallbackBox::new(Retired { slot: 7 }, GFP_KERNEL)?.call();
/// # Ok::<(), Error>(())
/// ```
#[must_use = "if unused, the object is dropped again at once"]
pub struct RcuCallbackBox<T>(Pin<KBox<Node<T>>>);

/// An object with its RCU head.
///
/// The head is the first field, because `kvfree_call_rcu()` needs an offset below 4096, and finds
/// memory of `vmalloc()` by the page of the head.
#[pin_data]
#[repr(C)]
pub(super) struct Node<T> {
    pub(super) head: RcuHead,
    #[pin]
    pub(super) value: T,
}

impl<T> Node<T> {
    pub(super) fn new<E>(init: impl PinInit<T, E>) -> impl PinInit<Self, Error>
    where
        Error: From<E>,
    {
        try_pin_init!(Self {
            head: RcuHead::new(),
            value <- init,
        }? Error)
    }
}

impl<T: RcuCallback> RcuCallbackBox<T> {
    /// Allocates and initialises an object.
    ///
    /// Fails with `ENOMEM`, or with the error of `init`.
    ///
    /// # Context
    ///
    /// If `flags` allow blocking, may sleep and must be called from process context. Otherwise, can
    /// be called from any context except NMI. On PREEMPT_RT, must not be called from hard
    /// interrupts or with preemption disabled.
    pub fn new<E>(init: impl PinInit<T, E>, flags: Flags) -> Result<Self>
    where
        Error: From<E>,
    {
        Ok(Self(KBox::try_pin_init(Node::new(init), flags)?))
    }

    /// Passes the object to RCU, as [`call`] does.
    ///
    /// # Context
    ///
    /// Can be called from any context except NMI.
    #[doc(alias("call_rcu", "call_rcu_sched"))]
    pub fn call(self) {
        call(self);
    }

    /// Passes the object to RCU, as [`call_hurry`] does.
    ///
    /// # Context
    ///
    /// Can be called from any context except NMI.
    #[doc(alias = "call_rcu_hurry")]
    pub fn call_hurry(self) {
        call_hurry(self);
    }
}

impl<T> RcuCallbackBox<T> {
    /// Returns a pinned mutable reference to the object.
    ///
    /// # Context
    ///
    /// Can be called from any context.
    pub fn as_pin_mut(&mut self) -> Pin<&mut T> {
        self.0.as_mut().project().value
    }
}

impl<T: fmt::Debug> fmt::Debug for RcuCallbackBox<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T> Deref for RcuCallbackBox<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0.value
    }
}

impl<T: Unpin> DerefMut for RcuCallbackBox<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.as_pin_mut().get_mut()
    }
}

// SAFETY: The box owns the node, which is pinned, and no other code uses its head.
// `IN_KERNEL_CRATE` is `false`.
unsafe impl<T: RcuCallback> RcuPointer for RcuCallbackBox<T> {
    fn into_head(self) -> NonNull<RcuHead> {
        // SAFETY: The node is not moved before `from_head()` makes a pinned box of it again.
        let node = KBox::into_raw(unsafe { Pin::into_inner_unchecked(self.0) });

        // SAFETY: `node` is valid, so the address of its field is not null.
        unsafe { NonNull::new_unchecked(&raw mut (*node).head) }
    }

    unsafe fn from_head(head: NonNull<RcuHead>) -> Self {
        // SAFETY: By the safety requirements of this function, `head` is the field of a node.
        let node = unsafe { container_of!(head.as_ptr(), Node<T>, head) };

        // SAFETY: `node` came from `KBox::into_raw()` in `into_head()`, and is converted back once.
        Self(Pin::from(unsafe { KBox::from_raw(node) }))
    }

    fn run(self) {
        T::run(self);
    }
}

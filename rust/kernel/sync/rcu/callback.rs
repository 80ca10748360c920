// SPDX-License-Identifier: GPL-2.0

//! RCU callbacks that own their object.
//!
//! An [`RcuCallbackBox<T>`] holds a `T` together with the `struct rcu_head` that `call_rcu()`
//! needs. Since the memory is there already, [`RcuCallbackBox::call`] cannot fail. After a grace
//! period the box is passed to [`RcuCallback::run`], once, which can drop it, keep it, or queue it
//! again. For an object that is only dropped then, there is [`RcuBox`](super::RcuBox).
//!
//! [`call`] waits as long as the system likes, to save power: under `CONFIG_RCU_LAZY` that may be
//! seconds. [`call_hurry`] starts a grace period soon, for callers that wait for the callback.
//!
//! # Callbacks and modules
//!
//! A callback of a module must not run after the module's code is gone. In C, each module's exit
//! function must call `rcu_barrier()`. Here, that is done for each module that has queued a
//! callback when its exit function has returned, for RCU Tasks as well. Then the module is marked
//! as closed, and both are waited for again. From the mark on, and until the memory of the module
//! is used for another one, a callback of the module is not queued: its object is leaked, with a
//! warning.
//! Otherwise a callback that always queues itself again would keep its module forever.
//!
//! A callback belongs to the module that contains the code of its [`RcuCallback`]. Code of other
//! modules that the object points to is not kept.
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

/// What `call_rcu()` keeps of an object while it waits.
#[doc(alias("rcu_head", "callback_head"))]
#[repr(transparent)]
pub struct RcuHead(Opaque<bindings::callback_head>);

// SAFETY: Safe code cannot access the head.
unsafe impl Send for RcuHead {}

// SAFETY: Safe code cannot access the head.
unsafe impl Sync for RcuHead {}

impl RcuHead {
    /// Creates a head, for an object whose pointer implements [`RcuPointer`].
    pub const fn new() -> Self {
        // `call_rcu()` sets all of it.
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

/// A pointer that owns an object with an [`RcuHead`] in it, so that it can be given to [`call`].
///
/// Most users need only [`RcuBox`](super::RcuBox) or [`RcuCallbackBox`], which implements this.
///
/// # Safety
///
/// From [`into_head`](Self::into_head) until [`from_head`](Self::from_head), the head must stay
/// valid, must not move, and must not be used by other code. `IN_KERNEL_CRATE` must be `false`
/// outside of the kernel crate.
pub unsafe trait RcuPointer: Send + Sized + 'static {
    /// Whether the callback lies in the kernel crate, so that no module must be kept for it.
    ///
    /// The callback is a generic function, so it lies where [`call`] is instantiated. For these
    /// types, that is in functions that are neither generic nor inlined.
    #[doc(hidden)]
    const IN_KERNEL_CRATE: bool = false;

    /// Converts into a pointer to the head in the object.
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
    /// Called from softirq or a kernel thread of RCU's with bottom halves disabled. Must not sleep.
    fn run(self);
}

/// Implements [`RcuPointer`] for `$pointer`, a structure that has a `NonNull<$object>` and nothing
/// else. `$object` has an [`RcuHead`] in its field `$head`.
///
/// The comment at the use of this must argue for the safety requirements of [`RcuPointer`], and
/// that the object is valid as long as there is a `$pointer`.
macro_rules! impl_rcu_pointer {
    (unsafe impl RcuPointer for $pointer:ident($object:ty, $head:ident), $run:expr) => {
        // SAFETY: By the argument at the use of this macro.
        unsafe impl RcuPointer for $pointer {
            const IN_KERNEL_CRATE: bool = true;

            fn into_head(self) -> NonNull<RcuHead> {
                // SAFETY: By the argument at the use of this macro, the object is valid. The
                // address of a field is not null.
                unsafe { NonNull::new_unchecked(&raw mut (*self.0.as_ptr()).$head) }
            }

            unsafe fn from_head(head: NonNull<RcuHead>) -> Self {
                // SAFETY: By the safety requirements of this function, `head` is the field of an
                // object. The address of an object is not null.
                let object = unsafe {
                    NonNull::new_unchecked($crate::container_of!(head.as_ptr(), $object, $head))
                };
                // INVARIANT: `into_head()` gave up the value for this object.
                Self(object)
            }

            fn run(self) {
                $run(self)
            }
        }
    };
}
pub(crate) use impl_rcu_pointer;

/// Queues [`RcuPointer::run`] to run after a grace period. The system may delay the grace period.
///
/// The callback sees what the caller wrote before, and what was done in read-side critical sections
/// that may have begun before the call.
///
/// # Context
///
/// Can be called from any context except NMI.
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

/// Queues [`RcuPointer::run`] to run after a grace period of RCU Tasks, and another one of RCU.
///
/// A grace period of RCU Tasks waits for each task, running or preempted, until the task sleeps,
/// runs in user space or in a guest, or calls `cond_resched_tasks_rcu_qs()`. It does not wait for
/// idle tasks, nor for interrupts, which the grace period of RCU waits for. The callback sees what
/// was done before that.
///
/// The wait takes some tenths of a second, and as long as a task runs in the kernel without any of
/// these. `cond_resched()` is none of them, so a task that polls must sleep. RCU Tasks is not made
/// for many callbacks a second. `rcu_barrier()` does not wait for these callbacks; unloading does.
/// Without `CONFIG_TASKS_RCU`, this is [`call_hurry`].
///
/// # Context
///
/// Can be called from any context except NMI.
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

fn queue<P: RcuPointer>(pointer: P, call_rcu: CallRcu, callback: Callback) {
    let _section;
    if !P::IN_KERNEL_CRATE {
        // Pairs with `unload::module_going()`: either `may_queue()` sees the mark, or
        // `synchronize_rcu()` there waits for this critical section, and the `rcu_barrier()` after
        // it for our callback (litmus: begun-or-closed).
        let section = read_lock();
        if !unload::may_queue(callback as *const c_void, &section) {
            pr_warn_once!("RCU callback of an unloaded module: leaking its object\n");
            core::mem::forget(pointer);
            return;
        }
        _section = section;
    }

    let head = pointer.into_head();
    // A reference to the head would lose the right to the object around it, which `from_head`
    // needs.
    //
    // SAFETY: By the safety requirements of `RcuPointer`, the head is valid until `from_head()`.
    let head = Opaque::cast_into(unsafe { &raw const (*head.as_ptr()).0 });
    // SAFETY: By the safety requirements of `RcuPointer`, the head is used by this call alone until
    // `run_callback()` calls `from_head()`.
    unsafe { call_rcu(head, Some(callback)) };
}

/// Goes on to wait for RCU.
///
/// # Safety
///
/// Must be called by RCU Tasks, once for each time that [`queue`] passed it a head of a `P`.
unsafe extern "C" fn run_after_tasks<P: RcuPointer>(head: *mut bindings::callback_head) {
    // SAFETY: By the safety requirements of this function, the head is one that `queue()` passed,
    // and is not used by RCU Tasks any more.
    unsafe { bindings::call_rcu_hurry(head, Some(run_callback::<P>)) };
}

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
pub trait RcuCallback: Send + Sized + 'static {
    /// Runs after the grace period that [`RcuCallbackBox::call`] asked for.
    ///
    /// An object that is only dropped after the grace period needs no callback: see
    /// [`RcuBox`](super::RcuBox).
    ///
    /// # Context
    ///
    /// Called from softirq or a kernel thread of RCU's with bottom halves disabled. Must not sleep.
    fn run(this: RcuCallbackBox<Self>);
}

/// A pinned object that is passed to RCU for a callback, which gets the object back.
///
/// RCU readers cannot see the object: before the call its owner can change it, and dropping the box
/// frees it at once. An object that readers can see is owned by an [`RcuBox`](super::RcuBox).
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

/// An object and what RCU needs. The head is first, since `kvfree_call_rcu()` needs an offset below
/// 4096, and finds memory of `vmalloc()` by the page of its head.
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
    /// May sleep if `flags` allow it, and then must be called from process context.
    pub fn new<E>(init: impl PinInit<T, E>, flags: Flags) -> Result<Self>
    where
        Error: From<E>,
    {
        Ok(Self(KBox::try_pin_init(Node::new(init), flags)?))
    }

    /// Passes the object to RCU, as [`call`] does.
    #[doc(alias("call_rcu", "call_rcu_sched"))]
    pub fn call(self) {
        call(self);
    }

    /// Passes the object to RCU, as [`call_hurry`] does.
    #[doc(alias = "call_rcu_hurry")]
    pub fn call_hurry(self) {
        call_hurry(self);
    }
}

impl<T> RcuCallbackBox<T> {
    /// Returns a pinned mutable reference to the object.
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

// SAFETY: The box owns the node, which is pinned. No other code uses its head.
unsafe impl<T: RcuCallback> RcuPointer for RcuCallbackBox<T> {
    fn into_head(self) -> NonNull<RcuHead> {
        // SAFETY: The node does not move before `from_head()` makes a pinned box of it again.
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

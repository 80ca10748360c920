// SPDX-License-Identifier: GPL-2.0

//! RCU callbacks that own their object.
//!
//! An [`RcuBox<T>`] holds a `T` together with the `struct rcu_head` that `call_rcu()` needs. Giving
//! it to [`RcuBox::call`] cannot fail: the memory is there already. After a grace period the box
//! comes back to [`RcuCallback::run`], once, which drops it, or keeps it, or calls again.
//!
//! [`call`] waits as long as the system likes, to save power: under `CONFIG_RCU_LAZY` that may be
//! seconds. [`call_hurry`] starts a grace period soon, for when somebody waits for the callback.
//!
//! # Callbacks and modules
//!
//! A callback of a module must not run after the module's code is gone. C leaves it to each
//! module's exit function to call `rcu_barrier()`. Here nothing has to be remembered: the library
//! hears of each unloading and lets the module's callbacks run first, once and a second time. What
//! these queue anew then is not run any more but leaked, or a callback that always calls again
//! would keep its module for ever. (A module's callback is an [`RcuCallback`] that the module has
//! the code of. Code that its object points to elsewhere is not looked for.) In return, each
//! unloading of any module takes a grace period and two barriers more.
//!
//! C header: [`include/linux/rcupdate.h`](srctree/include/linux/rcupdate.h)

use core::{
    ops::{
        Deref,
        DerefMut, //
    },
    ptr::{
        self,
        NonNull, //
    },
};
use kernel::{
    alloc::Flags,
    bindings,
    container_of,
    pr_warn_once,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            AtomicType,
            Relaxed,
            Release, //
        },
        global_lock,
        rcu::read_lock, //
    },
    types::Opaque, //
};

extern "C" {
    fn rust_percpu_ref_call_rcu_hurry(
        head: *mut bindings::callback_head,
        func: bindings::rcu_callback_t,
    );
    fn rust_percpu_ref_within_module(addr: *const c_void, module: *const c_void) -> bool;
}

/// What `call_rcu()` keeps of an object while it waits.
#[doc(alias("rcu_head", "callback_head"))]
#[repr(transparent)]
pub struct RcuHead(Opaque<bindings::callback_head>);

// SAFETY: There is nothing that safe code could do with an `RcuHead`, from whichever thread.
unsafe impl Send for RcuHead {}

// SAFETY: As above.
unsafe impl Sync for RcuHead {}

impl RcuHead {
    /// Makes a head, to be embedded in an object that implements [`RcuPointer`] for its pointer.
    pub const fn new() -> Self {
        // `call_rcu()` sets all of it.
        Self(Opaque::uninit())
    }
}

impl Default for RcuHead {
    fn default() -> Self {
        Self::new()
    }
}

/// A pointer that owns an object with an [`RcuHead`] in it, and so can be given to [`call`].
///
/// For an object of your own, [`RcuBox`] does all of this.
///
/// # Safety
///
/// From [`into_head`](Self::into_head) until [`from_head`](Self::from_head), the head stays valid,
/// does not move, and is used by nobody else.
pub unsafe trait RcuPointer: Send + Sized + 'static {
    /// Gives up the pointer for the head in its object.
    fn into_head(self) -> NonNull<RcuHead>;

    /// Takes the pointer up again.
    ///
    /// # Safety
    ///
    /// `head` came from [`into_head`](Self::into_head) of this type. It is taken up once.
    unsafe fn from_head(head: NonNull<RcuHead>) -> Self;

    /// Runs after the grace period.
    ///
    /// Context: softirq, or a kernel thread of RCU's with bottom halves disabled. Must not sleep.
    fn run(self);
}

/// Has [`RcuPointer::run`] run after a grace period, at the system's leisure.
///
/// Any context but NMI. What the caller wrote before is seen by the callback, and so is all that
/// was done in read-side critical sections that might not have seen it.
#[doc(alias("call_rcu", "call_rcu_sched"))]
pub fn call<P: RcuPointer>(pointer: P) {
    queue(pointer, bindings::call_rcu);
}

/// Has [`RcuPointer::run`] run after a grace period, without `CONFIG_RCU_LAZY`'s delay.
///
/// Otherwise the same as [`call`].
#[doc(alias = "call_rcu_hurry")]
pub fn call_hurry<P: RcuPointer>(pointer: P) {
    queue(pointer, rust_percpu_ref_call_rcu_hurry);
}

/// Waits until the callbacks that were queued before have run.
///
/// Sleeps; process context. It hurries lazy callbacks along.
#[doc(alias = "rcu_barrier")]
pub fn barrier() {
    // SAFETY: The caller is in process context, or gets a splat for it; memory safety does not
    // depend on that.
    unsafe { bindings::rcu_barrier() };
}

type CallRcu = unsafe extern "C" fn(*mut bindings::callback_head, bindings::rcu_callback_t);

fn queue<P: RcuPointer>(pointer: P, call_rcu: CallRcu) {
    // From here to the end, against `close_module()`: either this sees `CLOSING`, or
    // `synchronize_rcu()` there waits for this section, and then `rcu_barrier()` for our callback.
    let _guard = read_lock();

    let callback: unsafe extern "C" fn(*mut bindings::callback_head) = run_callback::<P>;
    if is_closing(callback as *const c_void) {
        pr_warn_once!("RCU callback of an unloaded module: leaking its object\n");
        core::mem::forget(pointer);
        return;
    }

    let head = pointer.into_head();
    // SAFETY: By `RcuPointer`'s contract, the head is valid and ours until `run_callback` takes the
    // pointer up again.
    unsafe { call_rcu((*head.as_ptr()).0.get(), Some(callback)) };
}

/// # Safety
///
/// To be called by RCU, once for each time that [`queue`] handed it a head of a `P`.
unsafe extern "C" fn run_callback<P: RcuPointer>(head: *mut bindings::callback_head) {
    // SAFETY: RCU passes the pointer that `queue` gave it, which is not null.
    let head = unsafe { NonNull::new_unchecked(head.cast()) };

    // SAFETY: `queue` got this head from `into_head` of a `P`, and RCU gives it back once.
    unsafe { P::from_head(head) }.run();
}

/// The module that must not begin anything new, or null.
static CLOSING: Atomic<*mut bindings::module> = Atomic::new(ptr::null_mut());

global_lock! {
    // SAFETY: `init()` is called by the module's initialisation, before all else.
    unsafe(uninit) static CLOSING_LOCK: Mutex<()> = ();
}

/// Sets up what the layer needs.
///
/// # Safety
///
/// To be called once, before anything else of this file.
pub(crate) unsafe fn init() {
    // SAFETY: As the function requires.
    unsafe { CLOSING_LOCK.init() };
}

/// Whether `text` lies in the module that [`close_module`] is at work on. The caller is in an RCU
/// read-side critical section; if the answer is no, that work does not begin before its end.
pub(crate) fn is_closing(text: *const c_void) -> bool {
    // Pairs with the `Release` store in `close_module()`, by its address dependency.
    let module = read_once(&CLOSING);

    // SAFETY: `free_module()` (kernel/module/main.c) waits for a grace period after the notifier
    // that sets `CLOSING` back, so the module is there until our critical section ends.
    !module.is_null() && unsafe { within_module(text, module) }
}

/// A `Relaxed` load that is inlined, which those of the kernel crate may not be.
#[doc(alias = "READ_ONCE")]
#[inline(always)]
pub(crate) fn read_once<T: AtomicType>(from: &Atomic<T>) -> T {
    // Larger ones would be read in two halves.
    const { assert!(size_of::<T>() <= size_of::<usize>()) };
    // SAFETY: It is valid. Others change it by atomic operations, with which the kernel lets a
    // volatile load race.
    unsafe { from.as_ptr().read_volatile() }
}

/// Whether `addr` lies in `module`.
///
/// # Safety
///
/// `module` is valid.
pub(crate) unsafe fn within_module(addr: *const c_void, module: *mut bindings::module) -> bool {
    // SAFETY: As the function requires.
    unsafe { rust_percpu_ref_within_module(addr, module.cast()) }
}

/// Runs the callbacks that lie in `module`, lets no more be queued, and does the same, by
/// `close_rest`, for whatever else [`is_closing`] keeps from beginning.
///
/// Sleeps; process context.
///
/// # Safety
///
/// `module` has run its exit function, and is not freed yet.
pub(crate) unsafe fn close_module(module: *mut bindings::module, close_rest: impl FnOnce()) {
    let _lock = CLOSING_LOCK.lock();

    // `Release` pairs with the load in `is_closing()`.
    CLOSING.store(module, Release);
    // After this, all the world sees `CLOSING`, ...
    //
    // SAFETY: We are in process context.
    unsafe { bindings::synchronize_rcu() };
    // ... so after this, there are no callbacks of the module left, ...
    barrier();
    // ... and after this, nothing of it runs that could ask for any.
    close_rest();
    CLOSING.store(ptr::null_mut(), Relaxed);
}

/// What to do with an object after a grace period.
pub trait RcuCallback: Send + Sized + 'static {
    /// Runs after the grace period that [`RcuBox::call`] asked for.
    ///
    /// By default it drops the object and frees its memory, as `kfree_rcu()` does.
    ///
    /// Context: softirq, or a kernel thread of RCU's with bottom halves disabled. Must not sleep.
    #[doc(alias("kfree_rcu", "kvfree_rcu"))]
    fn run(this: RcuBox<Self>) {
        drop(this);
    }
}

/// A pinned object that can be handed to RCU.
///
/// Dropped without a call, it is freed at once.
///
/// # Examples
///
/// ```
/// use kernel::prelude::*;
/// use percpu_ref::rcu::{RcuBox, RcuCallback};
///
/// struct Route {
///     gateway: u32,
/// }
///
/// // The default: dropped after a grace period.
/// impl RcuCallback for Route {}
///
/// let old = RcuBox::new(Route { gateway: 0x7f00_0001 }, GFP_KERNEL)?;
/// old.call();
/// # Ok::<(), Error>(())
/// ```
pub struct RcuBox<T>(Pin<KBox<Node<T>>>);

#[pin_data]
struct Node<T> {
    head: RcuHead,
    #[pin]
    value: T,
}

impl<T: RcuCallback> RcuBox<T> {
    /// Allocates the memory and makes the object in it.
    ///
    /// Fails with `ENOMEM`, or with what `init` fails with. May sleep if `flags` allow it.
    pub fn new<E>(init: impl PinInit<T, E>, flags: Flags) -> Result<Self>
    where
        Error: From<E>,
    {
        let node = try_pin_init!(Node {
            head: RcuHead::new(),
            value <- init,
        }? Error);
        Ok(Self(KBox::try_pin_init(node, flags)?))
    }

    /// Gives the object to RCU; see [`call`].
    #[doc(alias("call_rcu", "call_rcu_sched"))]
    pub fn call(self) {
        call(self);
    }

    /// Gives the object to RCU; see [`call_hurry`].
    #[doc(alias = "call_rcu_hurry")]
    pub fn call_hurry(self) {
        call_hurry(self);
    }
}

impl<T> RcuBox<T> {
    /// The object, pinned and mutable.
    pub fn as_pin_mut(&mut self) -> Pin<&mut T> {
        self.0.as_mut().project().value
    }
}

impl<T> Deref for RcuBox<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0.value
    }
}

impl<T: Unpin> DerefMut for RcuBox<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.as_pin_mut().get_mut()
    }
}

// SAFETY: The box owns the node, which is pinned; its head is touched by nobody but RCU.
unsafe impl<T: RcuCallback> RcuPointer for RcuBox<T> {
    fn into_head(self) -> NonNull<RcuHead> {
        // SAFETY: The node stays where it is until `from_head` makes a pinned box of it again.
        let node = KBox::into_raw(unsafe { Pin::into_inner_unchecked(self.0) });

        // SAFETY: `node` is valid, so its field's address is not null.
        unsafe { NonNull::new_unchecked(&raw mut (*node).head) }
    }

    unsafe fn from_head(head: NonNull<RcuHead>) -> Self {
        // SAFETY: By the function's requirement, `head` lies in a node that `into_head` gave up.
        let node = unsafe { container_of!(head.as_ptr(), Node<T>, head) };

        // SAFETY: `node` came from `KBox::into_raw` in `into_head`, and is taken up once.
        Self(Pin::from(unsafe { KBox::from_raw(node) }))
    }

    fn run(self) {
        T::run(self);
    }
}

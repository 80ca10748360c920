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
//! module's exit function to call `rcu_barrier()`. Here, a module notifier calls `rcu_barrier()`
//! when the exit function has returned, marks the module as closed, and calls `rcu_barrier()`
//! again. From the mark on, and until the memory of the module is used for another one, a callback
//! of the module is not queued: its object is leaked, with a warning. Otherwise a callback that
//! always calls again would keep its module forever.
//!
//! A callback belongs to the module that contains the code of its [`RcuCallback`]. Code elsewhere
//! that the object points to is not looked for. The price is that each unloading of any module
//! takes a grace period and two barriers more.
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
    fmt,
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
    time::{
        delay::fsleep,
        Delta, //
    },
    types::Opaque, //
};

extern "C" {
    fn rust_percpu_ref_call_rcu_hurry(
        head: *mut bindings::callback_head,
        func: bindings::rcu_callback_t,
    );
    fn rust_percpu_ref_module_mem(
        module: *const c_void,
        mem_type: c_uint,
        base: *mut *const c_void,
        size: *mut c_uint,
    );
    fn rust_percpu_ref_is_core_kernel(addr: *const c_void) -> bool;
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
    // Pairs with `close_module()`: either `is_closed()` sees the mark, or `synchronize_rcu()` there
    // waits for this critical section, and the `rcu_barrier()` after it for our callback.
    let _guard = read_lock();

    let callback: unsafe extern "C" fn(*mut bindings::callback_head) = run_callback::<P>;
    if is_closed(callback as *const c_void) {
        pr_warn_once!("RCU callback of an unloaded module: leaking its object\n");
        core::mem::forget(pointer);
        return;
    }

    let head = pointer.into_head();
    // A reference to the head would lose the right to the object around it, which `from_head`
    // needs.
    //
    // SAFETY: By the contract of `RcuPointer`, the head is valid until `from_head`.
    let head = Opaque::cast_into(unsafe { &raw const (*head.as_ptr()).0 });
    // SAFETY: By the contract of `RcuPointer`, the head is used by this call alone until
    // `run_callback` calls `from_head`.
    unsafe { call_rcu(head, Some(callback)) };
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

/// The number of a module's memory ranges.
const RANGES: usize = bindings::mod_mem_type_MOD_MEM_NUM_TYPES as usize;

/// Where a module lies in memory.
#[derive(Clone, Copy)]
pub(crate) struct ModuleMemory([(usize, usize); RANGES]);

impl ModuleMemory {
    /// Returns the memory of `module`.
    ///
    /// # Safety
    ///
    /// `module` must be valid.
    pub(crate) unsafe fn of(module: *const bindings::module) -> Self {
        Self(core::array::from_fn(|mem_type| {
            let (mut base, mut size) = (ptr::null(), 0);
            // SAFETY: By the safety requirements of this function, `module` is valid. `mem_type` is
            // below `MOD_MEM_NUM_TYPES`.
            unsafe {
                rust_percpu_ref_module_mem(
                    module.cast(),
                    mem_type as c_uint,
                    &raw mut base,
                    &raw mut size,
                )
            };
            (base.addr(), size as usize)
        }))
    }

    /// Returns whether `addr` lies in the module.
    pub(crate) fn contains(&self, addr: *const c_void) -> bool {
        self.0
            .iter()
            .any(|&(base, size)| addr.addr().wrapping_sub(base) < size)
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.0.iter().any(|&(base, size)| {
            other.0.iter().any(|&(other_base, other_size)| {
                base.wrapping_sub(other_base) < other_size || other_base.wrapping_sub(base) < size
            })
        })
    }
}

/// A module that must not begin anything new. It is on the list until another module is loaded to
/// the same place: after the notifier has returned, code of the module may still run until the
/// module is freed, in other notifiers, in functions of `async_schedule()`, and in callbacks of
/// parameters (`free_module()` in kernel/module/main.c).
struct Closed {
    head: RcuHead,
    memory: ModuleMemory,
    next: Atomic<*mut Closed>,
}

/// The list of closed modules. Until [`init`], the library has no notifier, and the list is
/// [`NOT_READY`].
static CLOSED: Atomic<*mut Closed> = Atomic::new(NOT_READY);

/// No module may begin anything.
const NOT_READY: *mut Closed = ptr::without_provenance_mut(1);

global_lock! {
    // SAFETY: `init()` is called by the module's initialisation, before all else.
    unsafe(uninit) static CLOSED_LOCK: Mutex<()> = ();
}

/// Initialises the lock of this layer.
///
/// # Safety
///
/// Must be called once, before all other functions of this file.
pub(crate) unsafe fn init() {
    // SAFETY: By the safety requirements of this function, the lock is initialised once.
    unsafe { CLOSED_LOCK.init() };
}

/// Lets modules queue callbacks. Must be called before the module notifier is registered.
pub(crate) fn set_ready() {
    CLOSED.store(ptr::null_mut(), Relaxed);
}

/// Frees the list of closed modules, and goes back to the state before [`set_ready`]. Must be
/// called when no module uses the library.
pub(crate) fn set_not_ready() {
    let mut next = CLOSED.xchg(NOT_READY, Relaxed);
    while !next.is_null() {
        // SAFETY: `close_module()` made it a box, and there are no readers.
        next = unsafe { KBox::from_raw(next) }.next.load(Relaxed);
    }
}

/// Returns whether `text` lies in a module that must not begin anything.
///
/// The caller must be in an RCU read-side critical section. If this returns `false`, the module
/// stays until that section has ended, and [`close_module`] waits for it.
pub(crate) fn is_closed(text: *const c_void) -> bool {
    // Pairs with the `Release` store in `close_module()` by its address dependency.
    let mut next = read_once(&CLOSED);
    if next == NOT_READY {
        // Code of the kernel itself may be early, but is never unloaded.
        //
        // SAFETY: The function takes any address.
        return !unsafe { rust_percpu_ref_is_core_kernel(text) };
    }
    // SAFETY: `reopen_module()` frees an entry a grace period after taking it off the list.
    while let Some(closed) = unsafe { next.as_ref() } {
        if closed.memory.contains(text) {
            return true;
        }
        next = read_once(&closed.next);
    }
    false
}

/// Runs the callbacks of `module` and lets it queue no more, until [`reopen_module`].
///
/// # Context
///
/// Sleeps, so must be called from process context.
///
/// # Safety
///
/// `module` must be valid, and must have run its exit function.
pub(crate) unsafe fn close_module(module: *const bindings::module) {
    let closed = loop {
        let closed = Closed {
            head: RcuHead::new(),
            // SAFETY: By the safety requirements of this function, `module` is valid.
            memory: unsafe { ModuleMemory::of(module) },
            next: Atomic::new(ptr::null_mut()),
        };
        match KBox::new(closed, GFP_KERNEL) {
            Ok(closed) => break closed,
            // An unloading cannot fail.
            Err(_) => fsleep(Delta::from_millis(100)),
        }
    };
    {
        let _lock = CLOSED_LOCK.lock();
        closed.next.store(CLOSED.load(Relaxed), Relaxed);
        // `Release` pairs with the load in `is_closed()`.
        CLOSED.store(KBox::into_raw(closed), Release);
    }
    // After this, all critical sections see the mark, ...
    //
    // SAFETY: We are in process context.
    unsafe { bindings::synchronize_rcu() };
    // ... so after this, no callback of the module is left.
    barrier();
}

/// Forgets the closed modules that were in the place of `module`, which is about to be loaded.
///
/// # Context
///
/// Sleeps, so must be called from process context.
///
/// # Safety
///
/// `module` must be valid, and must not have run any code.
pub(crate) unsafe fn reopen_module(module: *const bindings::module) {
    // SAFETY: By the safety requirements of this function, `module` is valid.
    let memory = unsafe { ModuleMemory::of(module) };

    let _lock = CLOSED_LOCK.lock();
    let mut link = &CLOSED;
    loop {
        let this = link.load(Relaxed);
        // SAFETY: Only the holder of the lock takes entries off the list.
        let Some(closed) = (unsafe { this.as_ref() }) else {
            return;
        };
        if closed.memory.overlaps(&memory) {
            // `Release`: the next entry was published before.
            link.store(closed.next.load(Relaxed), Release);
            // SAFETY: `close_module()` made it a box. Readers that found it are in critical
            // sections, which the callback waits for.
            let head = unsafe { NonNull::new_unchecked(this) };
            call(Forgotten(head));
        } else {
            link = &closed.next;
        }
    }
}

/// An entry that was taken off the list of closed modules.
///
/// # Invariants
///
/// Owns the entry, which came from a `KBox`, but for readers that found it before.
struct Forgotten(NonNull<Closed>);

// SAFETY: An entry may be freed on any thread.
unsafe impl Send for Forgotten {}

// SAFETY: The entry does not move, and its head is used by nothing else.
unsafe impl RcuPointer for Forgotten {
    fn into_head(self) -> NonNull<RcuHead> {
        // SAFETY: By the type invariant, the entry is valid. The address of a field is not null.
        unsafe { NonNull::new_unchecked(&raw mut (*self.0.as_ptr()).head) }
    }

    unsafe fn from_head(head: NonNull<RcuHead>) -> Self {
        // SAFETY: By the safety requirements of this function, `head` lies in an entry.
        let entry = unsafe { container_of!(head.as_ptr(), Closed, head) };

        // INVARIANT: `into_head` gave up the ownership.
        //
        // SAFETY: The address of an entry is not null.
        Self(unsafe { NonNull::new_unchecked(entry) })
    }

    fn run(self) {
        // SAFETY: By the type invariant, the entry is ours and came from a `KBox`. The grace period
        // waited for the readers.
        drop(unsafe { KBox::from_raw(self.0.as_ptr()) });
    }
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
#[must_use = "if unused, the object is dropped again at once"]
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

impl<T: fmt::Debug> fmt::Debug for RcuBox<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
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

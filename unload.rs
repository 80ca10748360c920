// SPDX-License-Identifier: GPL-2.0

//! Keeps a module's code in memory until nothing of this library can call it any more.
//!
//! An object's release function lies in the module that made the object. The last reference may be
//! put by anybody and at any time, so the module must outlive its objects. For this, all objects of
//! one type that one module makes share a [`Class`], which counts them.
//!
//! When a module goes, the kernel announces `MODULE_STATE_GOING`: after the module's exit function
//! has returned and before its memory is freed, and likewise when loading fails
//! (`delete_module()` and `do_init_module()` in kernel/module/main.c). There the library
//!
//! 1. runs the RCU callbacks that are queued,
//! 2. waits until no object of the module's classes is left, and says which it waits for,
//! 3. lets the module begin nothing new, neither objects nor callbacks ([`rcu::close_module`]), and
//!    runs the callbacks that came up meanwhile,
//! 4. closes the classes: an object that is still left now is leaked when its last reference goes,
//!    for its release function will not be there to be called.
//!
//! The notifier chain is held for reading meanwhile. Somebody who registers a module notifier then
//! waits for us, and all loading and unloading waits behind him: hence step 2 has a bound. Step 4
//! has none: a release that is running then is code of the module, and has to come to its end. Past
//! it, the library calls nothing of the module, but cannot keep others from it: who still holds a
//! reference may find a pointer to the module's code or constants in the object.
//!
//! All this is about what the library calls. Who else calls into a module has to be done with that
//! when its exit function returns.
//!
//! C header: [`include/linux/module.h`](srctree/include/linux/module.h)

use core::ptr::{
    self,
    NonNull, //
};
use kernel::{
    alloc::Flags,
    bindings,
    container_of,
    error::to_result,
    prelude::*,
    sync::atomic::{
        Acquire,
        Atomic,
        Full,
        Relaxed,
        Release, //
    },
    time::{
        Delta,
        Instant,
        Monotonic, //
    },
    types::Opaque, //
};

use crate::rcu;

extern "C" {
    fn rust_percpu_ref_register_module_notifier(block: *mut bindings::notifier_block) -> c_int;
    fn rust_percpu_ref_unregister_module_notifier(block: *mut bindings::notifier_block) -> c_int;
    fn rust_percpu_ref_module_name(module: *mut c_void) -> *const c_char;
    fn rust_percpu_ref_wake_up_var(var: *mut c_void);
    fn rust_percpu_ref_wait_var_event(var: *mut usize, mask: usize, val: usize);
    fn rust_percpu_ref_wait_var_zero_timeout(var: *mut usize, ms: c_uint);
    fn rust_percpu_ref_alloc_workqueue() -> *mut bindings::workqueue_struct;
    fn rust_percpu_ref_queue_work(
        queue: *mut bindings::workqueue_struct,
        work: *mut bindings::work_struct,
        func: bindings::work_func_t,
    );
}

/// What the library calls in a module, of its own accord, for objects of one type.
///
/// Each `Ops` lies in the module whose functions it names.
pub(crate) struct Ops {
    /// The type's name, for messages.
    pub(crate) name: fn() -> &'static str,

    /// Whether `release` and `drop` may sleep.
    pub(crate) may_sleep: bool,

    /// Tells the object that its count is zero.
    ///
    /// # Safety
    ///
    /// The object is of this type and not dropped.
    pub(crate) release: unsafe fn(object: NonNull<c_void>),

    /// Drops the object.
    ///
    /// # Safety
    ///
    /// The object is of this type, nobody uses it any more, and this is called once.
    pub(crate) drop: unsafe fn(object: NonNull<c_void>),

    /// Calls `confirm` with the object.
    ///
    /// # Safety
    ///
    /// The object is of this type and alive, and `confirm` is a function for this type.
    pub(crate) confirm: unsafe fn(object: NonNull<c_void>, confirm: NonNull<c_void>),
}

/// All objects of one type that one module makes.
///
/// Classes are on a list that only grows, so it is walked without a lock. There are as many as
/// there are types in use at once: a class whose module is gone serves the next type. Those with
/// objects that were left over stay as they are.
///
/// # Invariants
///
/// - While `live` is not zero and `running` has no [`CLOSED`], `ops` is valid, and so is all the
///   code of its module. For this, `live` rises from zero only in an RCU read-side critical section
///   that found the module not closing.
/// - A `Class` is freed only when the library itself goes, and thus nobody uses it.
pub(crate) struct Class {
    /// Null while the class serves no type.
    ops: Atomic<*mut Ops>,
    /// The objects that are not released yet.
    live: Atomic<usize>,
    /// How many threads are inside the module's functions, and [`CLOSED`].
    running: Atomic<usize>,
    next: *mut Class,
}

// SAFETY: All fields are atomic but `next`, which does not change once the class is on the list.
unsafe impl Sync for Class {}

/// The module's functions must not be called any more.
const CLOSED: usize = 1 << (usize::BITS - 1);

/// The `ops` of a class with objects that outlived their module; no class is looked up by it.
const ABANDONED: *mut Ops = ptr::without_provenance_mut(1);

/// The first class of the list.
static CLASSES: Atomic<*mut Class> = Atomic::new(ptr::null_mut());

/// All classes.
fn classes() -> impl Iterator<Item = &'static Class> {
    // Pairs with the `cmpxchg` in `Class::add_to_list()`, which published the class, by its address
    // dependency.
    let mut next = rcu::read_once(&CLASSES);

    core::iter::from_fn(move || {
        // SAFETY: Classes live as long as the library.
        let class: &'static Class = unsafe { next.as_ref() }?;
        next = class.next;
        Some(class)
    })
}

impl Class {
    /// The class of `ops`, with one more object, for which [`Class::put`] must be called.
    ///
    /// Fails with `ENOMEM`, and with `ENODEV` if the module of `ops` is at its end, or if the
    /// library is built in and has not begun. Any context that `gfp` may allocate in.
    pub(crate) fn get(ops: &'static Ops, gfp: Flags) -> Result<&'static Self> {
        let ops = ptr::from_ref(ops).cast_mut();
        // `Acquire`: see `Queue::new()`.
        if QUEUE.load(Acquire).is_null() {
            return Err(ENODEV);
        }

        loop {
            {
                // `close_module()` does not close a class of this module while we are in here.
                let _guard = kernel::sync::rcu::read_lock();
                if rcu::is_closing(ops.cast()) {
                    return Err(ENODEV);
                }
                if let Some(class) = Self::find(ops) {
                    // Before the section ends, so that `close()` counts us.
                    class.live.add(1, Relaxed);
                    return Ok(class);
                }
            }
            Self::add_to_list(gfp)?;
        }
    }

    /// The class that `ops` has, or else one that serves no type and from now on serves `ops`. The
    /// module of `ops` is not closed meanwhile.
    fn find(ops: *mut Ops) -> Option<&'static Self> {
        classes()
            .find(|class| rcu::read_once(&class.ops) == ops)
            .or_else(|| {
                classes().find(|class| {
                    // `Acquire` pairs with the `Release` store in `close()`. Two threads may come
                    // here with the same type. Then it has two classes, to no harm.
                    //
                    // INVARIANT: The module of `ops` is there.
                    class.ops.load(Relaxed).is_null()
                        && class.ops.cmpxchg(ptr::null_mut(), ops, Acquire).is_ok()
                })
            })
    }

    /// Puts a class on the list that serves no type.
    fn add_to_list(gfp: Flags) -> Result {
        let class = Self {
            ops: Atomic::new(ptr::null_mut()),
            live: Atomic::new(0),
            running: Atomic::new(0),
            next: CLASSES.load(Relaxed),
        };
        let class = KBox::into_raw(KBox::new(class, gfp)?);

        // SAFETY: `class` is valid, and nobody else knows it until `cmpxchg()` succeeds. `Release`
        // pairs with the load in `classes()`.
        while let Err(first) = CLASSES.cmpxchg(unsafe { (*class).next }, class, Release) {
            // SAFETY: As above.
            unsafe { (*class).next = first };
        }
        Ok(())
    }

    /// Says that one object, counted by [`Class::get`], is gone.
    ///
    /// To be called inside the module's functions ([`Class::enter`]) if they were entered for that
    /// end, so that [`Class::close`] finds the right number.
    pub(crate) fn put(&self) {
        // `Release` pairs with the waiter's acquire load in `module_going()`.
        if self.live.fetch_sub(1, Release) == 1 {
            wake_up(self.live.as_ptr());
        }
    }

    /// Enters the module's functions; they stay in memory until the returned value is dropped.
    /// `None` if they are gone. The caller has an object of this class.
    pub(crate) fn enter(&self) -> Option<Running<'_>> {
        // `Acquire` pairs with the `Full` in `close()`, on the same variable: whoever comes second
        // sees the first, so either we are waited for or we see `CLOSED`.
        let old = self.running.fetch_add(1, Acquire);

        // INVARIANT: Counted, and `close()` waits for the count to fall to zero.
        let running = Running(self);
        if old & CLOSED == 0 {
            Some(running)
        } else {
            None
        }
    }

    /// Makes sure that none of the module's functions is called any more.
    fn close(&self, ops: &Ops, module: &CStr) {
        // `Full`: see `enter()`.
        self.running.fetch_add(CLOSED, Full);
        if self.running.load(Relaxed) != CLOSED {
            pr_warn!(
                "unloading {module} waits for a release of {}\n",
                (ops.name)()
            );
        }
        // SAFETY: `running` is valid; `Running::drop()` wakes its waiters up.
        unsafe { wait_event(self.running.as_ptr(), !0, CLOSED) };

        // Whoever was inside has come out, and that was after its `put()`.
        let live = self.live.load(Relaxed);
        if live != 0 {
            pr_err!(
                "unloading {module} does not wait any longer: {live} {} are leaked\n",
                (ops.name)()
            );
            self.ops.store(ABANDONED, Relaxed);
            return;
        }

        self.running.store(0, Relaxed);
        // `Release` pairs with the `Acquire` in `find()`: the next user sees `running` as zero.
        self.ops.store(ptr::null_mut(), Release);
    }
}

/// A thread is inside a module's functions.
///
/// # Invariants
///
/// The thread is counted in the class's `running`.
pub(crate) struct Running<'a>(&'a Class);

impl Running<'_> {
    /// What may be called.
    pub(crate) fn ops(&self) -> &Ops {
        // SAFETY: `enter()` found the class open, and its caller has an object, so by the invariant
        // of `Class` the `ops` are valid. As we are counted, they stay so.
        unsafe { &*rcu::read_once(&self.0.ops) }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        // `Release` pairs with the waiter's acquire load in `close()`.
        if self.0.running.fetch_sub(1, Release) == CLOSED + 1 {
            wake_up(self.0.running.as_ptr());
        }
    }
}

/// Sleeps until `*var & mask` is `value`, which is to be followed by a [`wake_up`]. Acquires what
/// was released with that value.
///
/// # Safety
///
/// `var` is valid.
pub(crate) unsafe fn wait_event(var: *mut usize, mask: usize, value: usize) {
    // SAFETY: As the function requires.
    unsafe { rust_percpu_ref_wait_var_event(var, mask, value) };
}

/// Wakes up who waits for the change of `*var` that was just made. The address need not be valid
/// any more.
pub(crate) fn wake_up<T>(var: *mut T) {
    // SAFETY: Only the address matters.
    unsafe { rust_percpu_ref_wake_up_var(var.cast()) };
}

/// The workqueue of the one [`Queue`].
static QUEUE: Atomic<*mut bindings::workqueue_struct> = Atomic::new(ptr::null_mut());

/// Where releases that may sleep run. It is the library's own, so that they are waited for when the
/// library goes.
struct Queue;

impl Queue {
    fn new() -> Result<Self> {
        // SAFETY: We are in process context.
        let queue = unsafe { rust_percpu_ref_alloc_workqueue() };
        if queue.is_null() {
            return Err(ENOMEM);
        }
        // `Release` pairs with the `Acquire` in `Class::get()`: callers of `queue_work()` see it.
        QUEUE.store(queue, Release);
        Ok(Self)
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: It is the workqueue that `new()` allocated; nobody queues anything any more.
        unsafe { bindings::destroy_workqueue(QUEUE.xchg(ptr::null_mut(), Relaxed)) };
    }
}

/// Has `func` called with `work`, once, in process context.
///
/// # Safety
///
/// `work` is memory for a `work_struct`, which nobody else uses until `func` is called.
pub(crate) unsafe fn queue_work(
    work: *mut bindings::work_struct,
    func: unsafe extern "C" fn(*mut bindings::work_struct),
) {
    // SAFETY: `work` is of an object, so `Class::get()` has seen the `Queue`. It is there as long
    // as the library is, unless that is built in and cannot begin; then there are no objects. The
    // rest is as the function requires.
    unsafe { rust_percpu_ref_queue_work(QUEUE.load(Relaxed), work, Some(func)) };
}

/// Hears of modules that go, and owns what all modules share.
///
/// # Invariants
///
/// The block is on the kernel's list of module notifiers.
#[pin_data(PinnedDrop)]
pub(crate) struct Notifier {
    #[pin]
    block: Opaque<bindings::notifier_block>,
    timeout: Delta,
    // In this order they are dropped.
    _queue: Queue,
    _classes: Classes,
}

// SAFETY: Nothing is accessible from safe code, and it may be unregistered on any thread.
unsafe impl Send for Notifier {}

// SAFETY: As above.
unsafe impl Sync for Notifier {}

impl Notifier {
    /// Registers the notifier. `timeout` bounds the wait for the objects of a module.
    pub(crate) fn new(timeout: Delta) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            timeout,
            _queue: Queue::new()?,
            _classes: Classes,
            // INVARIANT: Registered, or the initialiser fails.
            block <- Opaque::try_ffi_init(|block: *mut bindings::notifier_block| {
                // SAFETY: `block` is valid for writes.
                unsafe {
                    block.write(bindings::notifier_block {
                        notifier_call: Some(notifier_call),
                        next: ptr::null_mut(),
                        // The module's other services are to be there while its objects end.
                        priority: c_int::MAX,
                    })
                };
                // SAFETY: The block is initialised, pinned, and unregistered before it is freed.
                to_result(unsafe { rust_percpu_ref_register_module_notifier(block) })
            }),
        }? Error)
    }
}

#[pinned_drop]
impl PinnedDrop for Notifier {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: By the type invariant, it is registered.
        unsafe { rust_percpu_ref_unregister_module_notifier(self.block.get()) };

        // All users are gone, being modules that depend on this one. What they killed last may have
        // left callbacks of the library itself.
        rcu::barrier();
    }
}

/// Owns the list of classes.
struct Classes;

impl Drop for Classes {
    fn drop(&mut self) {
        let mut next = CLASSES.xchg(ptr::null_mut(), Acquire);
        while !next.is_null() {
            // SAFETY: `add_to_list()` made it a box, and nobody uses it any more.
            next = unsafe { KBox::from_raw(next) }.next;
        }
    }
}

/// # Safety
///
/// To be called by the kernel, with the block of a [`Notifier`] and a module as `data`.
unsafe extern "C" fn notifier_call(
    block: *mut bindings::notifier_block,
    event: c_ulong,
    data: *mut c_void,
) -> c_int {
    if event == bindings::module_state_MODULE_STATE_GOING as c_ulong {
        // SAFETY: The block lies in a `Notifier`, which is registered and thus alive.
        let notifier = unsafe { &*container_of!(Opaque::cast_from(block), Notifier, block) };

        // SAFETY: The kernel passes the module that goes.
        unsafe { module_going(data.cast(), notifier.timeout) };
    }
    bindings::NOTIFY_DONE as c_int
}

/// # Safety
///
/// `module` is in `MODULE_STATE_GOING`, and the kernel waits for us before it frees it.
unsafe fn module_going(module: *mut bindings::module, timeout: Delta) {
    let start = Instant::<Monotonic>::now();
    // SAFETY: `module` is valid.
    let name = unsafe { CStr::from_char_ptr(rust_percpu_ref_module_name(module.cast())) };

    // The classes of this module, each with its operations.
    let classes = || {
        classes().filter_map(|class| {
            let ops = class.ops.load(Relaxed);
            // SAFETY: `module` is valid; the address is only compared.
            if unsafe { rcu::within_module(ops.cast(), module) } {
                // SAFETY: It lies in the module, which is still there.
                Some((class, unsafe { &*ops }))
            } else {
                None
            }
        })
    };

    // What was killed before now is released by this, without a word.
    rcu::barrier();

    let mut told = false;
    // The end of an object may be the beginning of another one, of a class that was done.
    while let Some((class, _)) = classes().find(|(class, _)| class.live.load(Relaxed) != 0) {
        let left = (timeout - start.elapsed()).as_millis();
        if left <= 0 {
            break;
        }
        for (class, ops) in classes().filter(|_| !told) {
            let live = class.live.load(Relaxed);
            if live != 0 {
                pr_warn!(
                    "unloading {name} waits for {live} {}, up to {left} ms\n",
                    (ops.name)()
                );
            }
        }
        told = true;

        let left = left.min(i64::from(i32::MAX)) as c_uint;
        // SAFETY: `live` is valid; `put()` wakes its waiters up.
        unsafe { rust_percpu_ref_wait_var_zero_timeout(class.live.as_ptr(), left) };
    }

    // SAFETY: The exit function has returned.
    unsafe {
        rcu::close_module(module, || {
            for (class, ops) in classes() {
                class.close(ops, name);
            }
        })
    };
}

// SPDX-License-Identifier: GPL-2.0

//! Keeps a module's code in memory until nothing of this library can call it any more.
//!
//! An object's release function lies in the module that made the object. The last reference may be
//! put by any thread and at any time, so the module must outlive its objects. For this, all objects
//! of one type that one module makes share a [`Class`], which counts them.
//!
//! When a module is unloaded, the kernel announces `MODULE_STATE_GOING`: after the module's exit
//! function has returned and before its memory is freed, and also when loading fails
//! (`delete_module()` and `do_init_module()` in kernel/module/main.c). There the library
//!
//! 1. runs the RCU callbacks that are queued,
//! 2. waits until no object of the module's classes is left, and logs what it waits for,
//! 3. marks the module as closed, so that it can begin nothing new, neither objects nor callbacks
//!    ([`rcu::close_module`]), and runs the callbacks that were queued meanwhile,
//! 4. closes the classes: an object that is still left now is leaked when its last reference is
//!    put, since its release function will be gone,
//! 5. if the module had objects, waits for RCU Tasks: a task that put the last reference may not
//!    have returned from the module's function yet. `synchronize_rcu_tasks()` waits for each task
//!    that was preempted there, until it sleeps, returns to user space or ends. On PREEMPT_RT, to
//!    wait for a lock that sleeps counts as sleep. (A kernel that
//!    preempts has `TASKS_RCU` if it can trace, probe or run BPF programs. Without it, this step
//!    waits for a grace period only.)
//!
//! The notifier chain is held for reading meanwhile. A thread that registers a module notifier then
//! waits for us, and all loading and unloading waits for that thread. Hence step 2 has a bound.
//! Step 4 has none: a release that is running then is code of the module, and must return first.
//! After step 4, the library calls nothing of the module. It cannot keep others from it: the holder
//! of a reference may find a pointer to the module's code or constants in the object.
//!
//! All this is about what the library calls. Whatever else calls into a module, or runs its code,
//! must have ended when the module's exit function returns: see
//! [Unloading](crate#unloading).
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

use crate::{
    rcu,
    release,
    wait::{
        wait_event,
        wake_up,
        Until, //
    }, //
};

extern "C" {
    fn rust_percpu_ref_register_module_notifier(block: *mut bindings::notifier_block) -> c_int;
    fn rust_percpu_ref_unregister_module_notifier(block: *mut bindings::notifier_block) -> c_int;
    fn rust_percpu_ref_module_name(module: *mut c_void) -> *const c_char;
    fn rust_percpu_ref_synchronize_rcu_tasks();
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
    /// The object must be of this type and not dropped.
    pub(crate) release: unsafe fn(object: NonNull<c_void>),

    /// Drops the object.
    ///
    /// # Safety
    ///
    /// The object must be of this type. It must not be used after this.
    pub(crate) drop: unsafe fn(object: NonNull<c_void>),

    /// Tells the object that no [`try_get_live`](crate::PercpuRef::try_get_live) will succeed.
    ///
    /// # Safety
    ///
    /// The object must be of this type and not dropped.
    pub(crate) confirmed: unsafe fn(object: NonNull<c_void>),

    /// Tells the object that all CPUs count in the atomic.
    ///
    /// # Safety
    ///
    /// The object must be of this type and not dropped.
    pub(crate) switched: unsafe fn(object: NonNull<c_void>),
}

/// All objects of one type that one module makes.
///
/// Classes are on a list that only grows, so it is walked without a lock. There are as many as
/// there are types in use at once: a class whose module is gone serves the next type. A class with
/// objects that were left over stays as it is.
///
/// # Invariants
///
/// - While `live` is not zero and `running` has no [`CLOSED`], `ops` is valid, and so is all the
///   code of its module. For this, `live` rises from zero only in an RCU read-side critical section
///   that found the module not closed.
/// - A `Class` is freed only when the library itself is unloaded, after all its users.
pub(crate) struct Class {
    /// Null while the class serves no type.
    ops: Atomic<*mut Ops>,
    /// The objects that are not released yet.
    live: Atomic<usize>,
    /// Those of them that were never killed, or were resurrected since. For messages.
    unkilled: Atomic<usize>,
    /// The number of threads inside the module's functions, and [`CLOSED`].
    running: Atomic<usize>,
    next: *mut Class,
}

// SAFETY: All fields are atomic but `next`, which does not change after the class is on the list.
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
    /// Returns the class of `ops`, with one more object, for which [`Class::put`] must be called.
    /// The object counts as one that was not killed.
    ///
    /// Fails with `ENOMEM`, and with `ENODEV` if the module of `ops` is closed, or if the library
    /// is built in and not initialised.
    ///
    /// # Context
    ///
    /// Can be called from any context that `gfp` may be used in.
    pub(crate) fn get(ops: &'static Ops, gfp: Flags) -> Result<&'static Self> {
        let ops = ptr::from_ref(ops).cast_mut();
        if !release::is_ready() {
            return Err(ENODEV);
        }

        loop {
            {
                // `close_module()` waits for this critical section before a class of this module
                // is closed.
                let _guard = kernel::sync::rcu::read_lock();
                if rcu::is_closed(ops.cast()) {
                    return Err(ENODEV);
                }
                if let Some(class) = Self::find(ops) {
                    // Before the section ends, so that `close()` counts the object.
                    class.live.add(1, Relaxed);
                    class.add_unkilled();
                    return Ok(class);
                }
            }
            Self::add_to_list(gfp)?;
        }
    }

    /// Returns the class that `ops` has, or else one that serves no type and from now on serves
    /// `ops`. The caller must keep the module of `ops` from being closed.
    fn find(ops: *mut Ops) -> Option<&'static Self> {
        classes()
            .find(|class| rcu::read_once(&class.ops) == ops)
            .or_else(|| {
                classes().find(|class| {
                    // `Acquire` pairs with the `Release` store in `close()`. Two threads may come
                    // here with the same type. Then the type has two classes, which does no harm.
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
            unkilled: Atomic::new(0),
            running: Atomic::new(0),
            next: CLASSES.load(Relaxed),
        };
        let class = KBox::into_raw(KBox::new(class, gfp)?);

        // SAFETY: `class` is valid, and not published until `cmpxchg()` succeeds. `Release` pairs
        // with the load in `classes()`.
        while let Err(first) = CLASSES.cmpxchg(unsafe { (*class).next }, class, Release) {
            // SAFETY: The `cmpxchg()` failed, so `class` is still not published.
            unsafe { (*class).next = first };
        }
        Ok(())
    }

    /// Counts one more object that is not killed.
    pub(crate) fn add_unkilled(&self) {
        self.unkilled.add(1, Relaxed);
    }

    /// Counts one object less that is not killed.
    pub(crate) fn sub_unkilled(&self) {
        self.unkilled.fetch_sub(1, Relaxed);
    }

    /// Counts one object less. The object was counted by [`Class::get`], and is gone.
    ///
    /// A caller that entered the module's functions ([`Class::enter`]) to end the object must call
    /// this before it leaves them, so that [`Class::close`] finds the right number.
    pub(crate) fn put(&self) {
        // `Release` pairs with the acquire load of the waiter in `module_going()`.
        if self.live.fetch_sub(1, Release) == 1 {
            wake_up(&raw const self.live);
        }
    }

    /// Enters the module's functions, which stay in memory until the returned value is dropped.
    /// Returns `None` if they are gone. The caller must have an object of this class, or use the
    /// name of the type alone.
    pub(crate) fn enter(&self) -> Option<Running<'_>> {
        let mut old = self.running.load(Relaxed);
        while old & CLOSED == 0 {
            // `Acquire` pairs with the `Full` in `close()`, on the same variable: either `close()`
            // comes second and waits for us, or we find `CLOSED`, and do not delay it.
            match self.running.cmpxchg(old, old + 1, Acquire) {
                Ok(_) => {
                    // INVARIANT: Counted. If `ops` is none to be called, the value is dropped here.
                    let ops = rcu::read_once(&self.ops);
                    let running = Running { class: self, ops };
                    // For messages, a thread may come here after its object is gone.
                    return (!ops.is_null() && ops != ABANDONED).then_some(running);
                }
                Err(found) => old = found,
            }
        }
        None
    }

    /// Ensures that none of the module's functions is called any more.
    fn close(&self, ops: &Ops, module: &CStr) {
        // `Full`: see `enter()`.
        self.running.fetch_add(CLOSED, Full);
        if self.running.load(Relaxed) != CLOSED {
            pr_warn!(
                "unloading {module} waits for a release of {}\n",
                (ops.name)()
            );
        }
        // `Acquire` pairs with the `Release` in `Running::drop()`, which wakes us up. Without a
        // bound, the wait does not fail.
        let _ = wait_event(&raw const self.running, Until::Done, None, || {
            self.running.load(Acquire) == CLOSED
        });

        // All threads that were inside have left, and that was after their `put()`.
        let live = self.live.load(Relaxed);
        if live != 0 {
            pr_err!(
                "unloading {module} does not wait any longer: {live} {} are leaked\n",
                (ops.name)()
            );
            self.ops.store(ABANDONED, Relaxed);
            return;
        }

        // A thread that enters from now on, for a message, finds nothing to call. `Release` pairs
        // with the `Acquire` in `enter()`.
        self.ops.store(ABANDONED, Relaxed);
        self.running.store(0, Release);
        // `Release` pairs with the `Acquire` in `find()`: the next user sees `running` without
        // `CLOSED`.
        self.ops.store(ptr::null_mut(), Release);
    }
}

/// A thread is inside a module's functions.
///
/// # Invariants
///
/// The thread is counted in the class's `running`, and found `ops` in the class after that, neither
/// null nor [`ABANDONED`]. So `ops` is valid: [`Class::close`] has changed it before, or waits.
pub(crate) struct Running<'a> {
    class: &'a Class,
    ops: *mut Ops,
}

impl Running<'_> {
    /// What may be called.
    pub(crate) fn ops(&self) -> &Ops {
        // SAFETY: By the type invariant, `ops` is valid.
        unsafe { &*self.ops }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        // `Release` pairs with the acquire load of the waiter in `close()`.
        if self.class.running.fetch_sub(1, Release) == CLOSED + 1 {
            wake_up(&raw const self.class.running);
        }
    }
}

/// Is notified of each module that is loaded or unloaded, and owns what all modules share.
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
    _releases: release::Queue,
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
            _releases: release::Queue::new()?,
            _classes: Classes,
            // INVARIANT: Registered, or the initialiser fails.
            block <- Opaque::try_ffi_init(|block: *mut bindings::notifier_block| {
                // SAFETY: `block` is valid for writes.
                unsafe {
                    block.write(bindings::notifier_block {
                        notifier_call: Some(notifier_call),
                        next: ptr::null_mut(),
                        // Before other notifiers, so that what these provide to the module is
                        // still there while its objects end.
                        priority: c_int::MAX,
                    })
                };
                // Before the first module can be loaded or unloaded.
                rcu::set_ready();
                // SAFETY: The block is initialised, pinned, and unregistered before it is freed.
                to_result(unsafe { rust_percpu_ref_register_module_notifier(block) })
                    .inspect_err(|_| rcu::set_not_ready())
            }),
        }? Error)
    }
}

#[pinned_drop]
impl PinnedDrop for Notifier {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: By the type invariant, it is registered.
        unsafe { rust_percpu_ref_unregister_module_notifier(self.block.get()) };

        // All users are modules that depend on this one, so they are gone. What they killed last
        // may have left threads and callbacks of the library itself, and a thread may queue a
        // callback.
        release::stop();
        rcu::barrier();
        rcu::set_not_ready();
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
/// Must be called by the kernel, with the block of a [`Notifier`], and a module as `data`.
unsafe extern "C" fn notifier_call(
    block: *mut bindings::notifier_block,
    event: c_ulong,
    data: *mut c_void,
) -> c_int {
    // SAFETY: The kernel passes the module that is loaded or unloaded.
    unsafe {
        match event as u32 {
            bindings::module_state_MODULE_STATE_COMING => rcu::reopen_module(data.cast()),
            bindings::module_state_MODULE_STATE_GOING => {
                let notifier = container_of!(Opaque::cast_from(block), Notifier, block);
                module_going(data.cast(), (*notifier).timeout);
            }
            _ => {}
        }
    }
    bindings::NOTIFY_DONE as c_int
}

/// # Safety
///
/// `module` must be in `MODULE_STATE_GOING`, and must not be freed before this returns.
unsafe fn module_going(module: *mut bindings::module, timeout: Delta) {
    let start = Instant::<Monotonic>::now();
    // SAFETY: By the safety requirements of this function, `module` is valid.
    let name = unsafe { CStr::from_char_ptr(rust_percpu_ref_module_name(module.cast())) };
    // SAFETY: By the safety requirements of this function, `module` is valid.
    let memory = unsafe { rcu::ModuleMemory::of(module) };

    // The classes of this module, each with its operations.
    let classes = || {
        classes().filter_map(|class| {
            let ops = class.ops.load(Relaxed);
            // SAFETY: The operations lie in the module, which is still there.
            (memory.contains(ops.cast())).then(|| (class, unsafe { &*ops }))
        })
    };

    // What was killed before now is released by this, and needs no message.
    rcu::barrier();
    if classes().next().is_some() {
        release::may_wait();
    }

    let mut told = false;
    // The end of an object may begin another one, of a class that had none.
    while let Some((class, _)) = classes().find(|(class, _)| class.live.load(Relaxed) != 0) {
        let left = timeout - start.elapsed();
        if left.as_nanos() <= 0 {
            break;
        }
        for (class, ops) in classes().filter(|_| !told) {
            let live = class.live.load(Relaxed);
            if live != 0 {
                pr_warn!(
                    "unloading {name} waits for {live} {}, {} never killed, up to {} ms\n",
                    (ops.name)(),
                    class.unkilled.load(Relaxed).min(live),
                    left.as_millis() as usize
                );
            }
        }
        told = true;

        // `Acquire` pairs with the `Release` in `Class::put()`, which wakes us up. The loop looks
        // at the time itself.
        let _ = wait_event(&raw const class.live, Until::Done, Some(left), || {
            class.live.load(Acquire) == 0
        });
    }

    // SAFETY: By the safety requirements of this function, the exit function has returned.
    unsafe { rcu::close_module(module) };
    // Only now, since a callback may have made the first object.
    let has_objects = classes().next().is_some();
    for (class, ops) in classes() {
        class.close(ops, name);
    }
    if has_objects {
        // SAFETY: We are in process context.
        unsafe { rust_percpu_ref_synchronize_rcu_tasks() };
    }
}

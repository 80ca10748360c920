// SPDX-License-Identifier: GPL-2.0

//! Keeps a module's code in memory until its objects are released.
//!
//! The release function of an object is code of the module that made the object. Any thread can put
//! the last reference at any time, so the module must outlive its objects. For this, all objects of
//! one type that one module makes share a `Class`, which counts them.
//!
//! When a module is unloaded, or when loading it fails, [`module_going`] is called after the
//! module's exit function has returned and before its memory is freed. It does these steps:
//!
//! 1. It runs the RCU callbacks that are queued.
//! 2. It waits until there are no objects in the module's classes, and logs what it waits for.
//! 3. It marks the module as closed, so that the module can create no object and queue no callback
//!    (`mark_closed()`), and runs the callbacks that were queued until then.
//! 4. It closes the classes. An object that is left now is leaked when its last reference is put,
//!    because its release function will be gone.
//! 5. It waits for RCU Tasks, because a task that put the last reference may not have returned from
//!    the module's function yet. `synchronize_rcu_tasks()` waits for each task that was preempted
//!    there, until the task sleeps, returns to user space or exits. On PREEMPT_RT, waiting for a
//!    sleeping lock counts as sleep. A kernel with preemption has `TASKS_RCU` if it can trace,
//!    probe or run BPF programs. Without `TASKS_RCU`, this step waits for a grace period of RCU
//!    only.
//!
//! For a module that has queued no callback and has no class, only step 3 is done, and it waits for
//! nothing.
//!
//! Step 2 has a bound, because the caller may hold something that other threads wait for. Out of
//! the tree, that is the chain of module notifiers. The waits for RCU and RCU Tasks have no bound.
//! Step 4 also has no bound: it waits for the releases that are running, because a running release
//! is code of the module. After step 4, the library calls no function of the module. It cannot keep
//! other code from doing so: the holder of a reference may find a pointer to the module's code or
//! constants in the object.
//!
//! All of this is about the calls that the library makes. All other code that calls into a module,
//! or runs its code, must have ended when the module's exit function returns: see
//! [Unloading](super#unloading).
//!
//! C header: [`include/linux/module.h`](srctree/include/linux/module.h)

use super::{
    holder,
    release::Releases,
    wait::{
        Until,
        WaitQueue, //
    },
};
use crate::{
    alloc::Flags,
    bindings,
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Full,
            Relaxed,
            Release, //
        },
        rcu::{
            self,
            unload::ModuleMemory, //
        }, //
    },
    time::{
        Delta,
        Instant,
        Monotonic, //
    },
};
use core::ptr::{
    self,
    NonNull, //
};

/// The functions of a module that the library calls for objects of one type.
///
/// Each `Ops` is a constant in the memory of the module whose functions it names.
pub(super) struct Ops {
    /// Returns the type's name, for messages.
    pub(super) name: fn() -> &'static str,

    /// Whether `release` and `drop` can sleep.
    pub(super) may_sleep: bool,

    /// Tells the object that its count is zero.
    ///
    /// # Safety
    ///
    /// `object` must be the address of an object of this type that is not dropped.
    pub(super) release: unsafe fn(object: NonNull<c_void>),

    /// Drops the object.
    ///
    /// # Safety
    ///
    /// `object` must be the address of an object of this type that is not dropped, and must not be
    /// used after this.
    pub(super) drop: unsafe fn(object: NonNull<c_void>),

    /// Tells the object that it is closed.
    ///
    /// # Safety
    ///
    /// `object` must be the address of an object of this type that is not dropped.
    pub(super) confirmed: unsafe fn(object: NonNull<c_void>),

    /// Tells the object that all CPUs count in atomic mode.
    ///
    /// # Safety
    ///
    /// `object` must be the address of an object of this type that is not dropped.
    pub(super) switched: unsafe fn(object: NonNull<c_void>),
}

/// The class of all objects of one type that one module makes.
///
/// Classes are on lists that only grow, so the lists are walked without a lock. A class whose
/// module is unloaded is used again for another type of the same list. A class whose objects
/// outlived their module is never used again.
///
/// # Invariants
///
/// - While `live` is not zero, `ops` is callable and `running` has no [`CLOSED`], `ops` is valid,
///   and so is all code of its module. To ensure this, a thread makes `ops` callable only after it
///   has found that the module is not closed. It does so in an RCU read-side critical section in
///   which it had claimed the class before.
/// - A `Class` is freed only when the library itself is unloaded, after all its users.
#[pin_data]
pub(super) struct Class {
    /// The operations of the type, or null if the class is not in use.
    ops: Atomic<*mut Ops>,
    /// The number of objects that are not dropped yet.
    live: Atomic<usize>,
    /// The number of objects that were never killed, or were resurrected since, for messages.
    unkilled: Atomic<usize>,
    /// The number of threads inside the module's functions, and [`CLOSED`].
    running: Atomic<usize>,
    /// The threads that wait for a variable of the class or of its objects.
    #[pin]
    waiters: WaitQueue,
    #[pin]
    releases: Releases,
    #[pin]
    pub(super) holders: holder::LockMap,
    next: *mut Class,
}

// SAFETY: Each field is atomic or has a lock of its own, except `next`, which does not change after
// the class was added to the list.
unsafe impl Sync for Class {}

/// In [`Class::running`]: the module's functions must not be called any more.
const CLOSED: usize = 1 << (usize::BITS - 1);

/// The `ops` of a class whose objects outlived their module.
///
/// No class is looked up by this value.
const ABANDONED: *mut Ops = ptr::without_provenance_mut(1);

/// Returns the `ops` of a class that a thread has claimed for `ops` but does not use yet.
///
/// The thread still checks whether the module is closed. Nothing is called by this value.
fn claimed(ops: *mut Ops) -> *mut Ops {
    ops.map_addr(|addr| addr | CLAIMED)
}

/// The flag in the `ops` of a class that [`claimed`] sets.
const CLAIMED: usize = 2;
const _: () = assert!(align_of::<Ops>() > CLAIMED);

/// Returns whether `ops` can be called, if it was found after the caller had entered its class.
fn is_callable(ops: *mut Ops) -> bool {
    !ops.is_null() && ops != ABANDONED && ops.addr() & CLAIMED == 0
}

/// A list of classes: its first one.
struct List(Atomic<*mut Class>);

/// The lists of classes, one for each hash of the operations.
///
/// The class of a new object is found quickly even if there are a thousand types.
static LISTS: [List; 1 << LIST_BITS] =
    [const { List(Atomic::new(ptr::null_mut())) }; 1 << LIST_BITS];
/// The number of bits of a hash.
const LIST_BITS: u32 = 7;

/// Returns the list that has the class of `ops`, if there is one.
fn list_of(ops: *mut Ops) -> &'static List {
    // This is what `hash_64()` does: include/linux/hash.h.
    let hash = (ops.addr() as u64).wrapping_mul(0x61c8_8646_80b5_83eb);
    &LISTS[(hash >> (u64::BITS - LIST_BITS)) as usize]
}

/// Returns all classes.
pub(super) fn classes() -> impl Iterator<Item = &'static Class> {
    LISTS.iter().flat_map(List::classes)
}

impl List {
    /// Returns the classes of the list.
    fn classes(&self) -> impl Iterator<Item = &'static Class> {
        // `Acquire` pairs with the `Release` in `add()`, which published the class. An address
        // dependency would order only the first class, because the links are plain
        // (litmus: class-list).
        let mut next = self.0.load(Acquire);

        core::iter::from_fn(move || {
            // SAFETY: Classes are not freed before the library is unloaded.
            let class: &'static Class = unsafe { next.as_ref() }?;
            next = class.next;
            Some(class)
        })
    }

    /// Returns the class of `ops`.
    fn find(&self, ops: *mut Ops) -> Option<&'static Class> {
        // `Acquire` pairs with the `Release` stores in `Class::get()` and `close()`: the class is
        // not `CLOSED`, because its last user has left it (litmus: class-reuse).
        self.classes().find(|class| class.ops.load(Acquire) == ops)
    }

    /// Returns an unused class that is now [`claimed`] for `ops`.
    ///
    /// Two threads may claim two classes for the same type, which does no harm.
    fn claim(&self, ops: *mut Ops) -> Option<&'static Class> {
        self.classes().find(|class| {
            // `Full` pairs with the `Release` store in `close()` (litmus: class-reuse).
            // `Class::get()` needs it as well.
            class.ops.load(Relaxed).is_null()
                && class
                    .ops
                    .cmpxchg(ptr::null_mut(), claimed(ops), Full)
                    .is_ok()
        })
    }

    /// Adds an unused class.
    fn add(&self, gfp: Flags) -> Result {
        let class = KBox::pin_init(Class::new(self.0.load(Relaxed)), gfp)?;
        // SAFETY: The class is not moved before it is dropped.
        let class = KBox::into_raw(unsafe { Pin::into_inner_unchecked(class) });

        // SAFETY: `class` is valid, and is not published until the `cmpxchg()` succeeds. `Release`
        // pairs with the load in `classes()` (litmus: class-list).
        while let Err(first) = self.0.cmpxchg(unsafe { (*class).next }, class, Release) {
            // SAFETY: The `cmpxchg()` failed, so `class` is still not published.
            unsafe { (*class).next = first };
        }
        Ok(())
    }
}

impl Class {
    /// Creates an unused class, which is before `next` on its list.
    fn new(next: *mut Self) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            ops: Atomic::new(ptr::null_mut()),
            live: Atomic::new(0),
            unkilled: Atomic::new(0),
            running: Atomic::new(0),
            waiters <- WaitQueue::new(),
            releases <- Releases::new(),
            holders <- holder::LockMap::new(),
            next,
        })
    }

    /// Returns the class of `ops`, and counts one more object in it.
    ///
    /// The object counts as one that was not killed. [`Class::put`] must be called for it.
    ///
    /// Fails with `ENOMEM`, and with `ENODEV` if the module of `ops` is closed.
    ///
    /// # Context
    ///
    /// Can be called from any context that `gfp` may be used in.
    pub(super) fn get(ops: &'static Ops, gfp: Flags) -> Result<&'static Self> {
        let ops = ptr::from_ref(ops).cast_mut();
        let list = list_of(ops);
        loop {
            {
                // `module_going()` waits for this critical section before it closes a class that it
                // finds.
                let section = rcu::read_lock();
                if rcu::unload::is_closed(ops.cast(), &section) {
                    return Err(ENODEV);
                }
                if let Some(class) = list.find(ops) {
                    // This comes before the end of the section, so that `close()` counts the object
                    // (litmus: begun-or-closed).
                    class.live.add(1, Relaxed);
                    class.add_unkilled();
                    return Ok(class);
                }
                if let Some(class) = list.claim(ops) {
                    class.live.add(1, Relaxed);
                    class.add_unkilled();
                    // This is for the module's first class. `claim()` and `mark_closed()` are both
                    // `Full`. So either this sees that the module is closed, or `module_going()`
                    // sees the class and waits for this section (litmus: class-claimed-or-closed).
                    if !rcu::unload::is_closed(ops.cast(), &section) {
                        // INVARIANT: The module is not closed, and we are still in the section in
                        // which the class was claimed.
                        //
                        // `Release` pairs with the `Acquire` in `find()` (litmus: class-reuse).
                        class.ops.store(ops, Release);
                        return Ok(class);
                    }
                    class.sub_unkilled();
                    class.live.fetch_sub(1, Relaxed);
                    class.ops.store(ptr::null_mut(), Release);
                    return Err(ENODEV);
                }
            }
            list.add(gfp)?;
        }
    }

    /// Returns the threads that wait for a variable of the class or of its objects.
    pub(super) fn waiters(&self) -> &WaitQueue {
        &self.waiters
    }

    /// Returns the releases that wait for a thread.
    pub(super) fn releases(&self) -> &Releases {
        &self.releases
    }

    /// Returns the number of objects that are not dropped yet.
    pub(super) fn live(&self) -> usize {
        self.live.load(Relaxed)
    }

    /// Returns whether the class has objects that outlived their module.
    pub(super) fn is_abandoned(&self) -> bool {
        self.ops.load(Relaxed) == ABANDONED
    }

    /// Returns the number of objects that were never killed, or were resurrected since.
    pub(super) fn unkilled(&self) -> usize {
        self.unkilled.load(Relaxed)
    }

    /// Counts one more object that is not killed.
    pub(super) fn add_unkilled(&self) {
        self.unkilled.add(1, Relaxed);
    }

    /// Counts one object less that is not killed.
    pub(super) fn sub_unkilled(&self) {
        self.unkilled.fetch_sub(1, Relaxed);
    }

    /// Counts one object less.
    ///
    /// [`Class::get`] has counted the object, and it was dropped. A caller that has entered the
    /// module's functions ([`Class::enter`]) to drop the object must call this before it leaves
    /// them, so that [`Class::close`] finds the right number.
    pub(super) fn put(&self) {
        // `Release` pairs with the `Acquire` in `wait_for_objects()` (litmus: class-put).
        if self.live.fetch_sub(1, Release) == 1 {
            self.waiters.wake_up(&raw const self.live);
        }
    }

    /// Enters the module's functions, or returns `None` if they must not be called any more.
    ///
    /// The functions stay in memory until the returned value is dropped. The caller must have an
    /// object of this class, or must use only the name of the type.
    pub(super) fn enter(&self) -> Option<Running<'_>> {
        let mut old = self.running.load(Relaxed);
        while old & CLOSED == 0 {
            // Either `close()`, which changes the same variable, comes second and waits for us, or
            // we find `CLOSED` and do not delay it (litmus: class-enter-close). `Acquire` pairs
            // with the `Release` store of zero in `close()`: a class that was closed and is not
            // used again has no callable `ops` (litmus: class-enter-later).
            match self.running.cmpxchg(old, old + 1, Acquire) {
                Ok(_) => {
                    // INVARIANT: This thread is counted in `running`. If `ops` is not callable,
                    // `running` is dropped here.
                    let ops = self.ops.load(Relaxed);
                    let running = Running { class: self, ops };
                    // A thread that logs a message may come here after its object was dropped.
                    return is_callable(ops).then_some(running);
                }
                Err(found) => old = found,
            }
        }
        None
    }

    /// Ensures that the module's functions are not called any more.
    ///
    /// Waits for the functions that are running.
    fn close(&self, ops: &Ops, module: &CStr) {
        // `Relaxed` is enough, because `enter()` changes the same variable
        // (litmus: class-enter-close).
        self.running.fetch_add(CLOSED, Relaxed);
        if self.running.load(Relaxed) != CLOSED {
            pr_warn!(
                "unloading {module} waits for a release of {}\n",
                (ops.name)()
            );
        }
        // `Acquire` pairs with the `Release` in `Running::drop()`, which wakes us up
        // (litmus: class-enter-close). The wait has no timeout and ignores signals, so it does not
        // fail.
        let _ = self
            .waiters
            .wait_event(&raw const self.running, Until::Done, None, || {
                self.running.load(Acquire) == CLOSED
            });

        // All threads that were inside have left, and have called `put()` before.
        let live = self.live.load(Relaxed);
        if live != 0 {
            pr_err!(
                "unloading {module} does not wait any longer: {live} {} are leaked\n",
                (ops.name)()
            );
            self.ops.store(ABANDONED, Relaxed);
            return;
        }

        // A thread that enters from now on, to log a message, finds no callable `ops`. `Release`
        // pairs with the `Acquire` in `enter()` (litmus: class-enter-later).
        self.ops.store(ABANDONED, Relaxed);
        self.holders.renew();
        self.running.store(0, Release);
        // `Release` pairs with the `Full` in `claim()`: the next user sees `running` without
        // `CLOSED` (litmus: class-reuse).
        self.ops.store(ptr::null_mut(), Release);
    }
}

/// The right of a thread to call a module's functions.
///
/// # Invariants
///
/// The thread is counted in the `running` of the class, and has found `ops` in the class after
/// that. `ops` is callable and valid: if [`Class::close`] had come first, `ops` would not be
/// callable; otherwise, `close()` waits for the thread.
pub(super) struct Running<'a> {
    class: &'a Class,
    ops: *mut Ops,
}

impl Running<'_> {
    /// Returns the functions that may be called.
    pub(super) fn ops(&self) -> &Ops {
        // SAFETY: By the type invariant, `ops` is valid.
        unsafe { &*self.ops }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        // `Release` pairs with the `Acquire` in `close()` (litmus: class-enter-close).
        if self.class.running.fetch_sub(1, Release) == CLOSED + 1 {
            self.class.waiters.wake_up(&raw const self.class.running);
        }
    }
}

/// The bound of the wait for a module's objects, in the code that `module!` generates.
pub const TIMEOUT: Delta = Delta::from_secs(10);

/// Waits until the library cannot call a module any more.
///
/// Waits for the module's objects for at most `timeout`. See the documentation of this module.
///
/// # Context
///
/// Sleeps, so must be called from process context.
///
/// # Safety
///
/// `module` must be valid, must have run its exit function or have failed to initialise, and must
/// not be freed before this returns.
pub unsafe fn module_going(module: *const bindings::module, timeout: Delta) {
    // SAFETY: By the safety requirements of this function, `module` is valid.
    let memory = unsafe { ModuleMemory::of(module) };
    // SAFETY: By the safety requirements of this function, `module` is valid.
    let name = unsafe { rcu::unload::name_of(module) };

    // Returns the classes of this module, each with its operations.
    let classes = || {
        classes().filter_map(|class| {
            let ops = class.ops.load(Relaxed);
            let is_here = is_callable(ops) && memory.contains(ops.addr());
            // SAFETY: The operations are in the memory of the module, which is not freed yet.
            is_here.then(|| (class, unsafe { &*ops }))
        })
    };

    if classes().next().is_some() || rcu::unload::has_queued(&memory) {
        // This releases the objects that were killed before, so that no message is logged for them.
        rcu::unload::barrier();
        wait_for_objects(classes, name, timeout);
        if rcu::unload::uses_tasks() && classes().any(|(class, _)| class.live.load(Relaxed) != 0) {
            // An object that was killed during the wait may only have to wait for RCU Tasks.
            rcu::unload::barrier();
        }
    }

    // `Full`: this is ordered before we look for callbacks and classes again; see `Class::get()`
    // (litmus: class-claimed-or-closed).
    rcu::unload::mark_closed(&memory);
    // A callback may have created the module's first object, or may be about to.
    let has_objects =
        self::classes().any(|class| memory.contains(class.ops.load(Relaxed).addr() & !CLAIMED));
    if has_objects {
        // Threads in `Class::get()` count their objects before this returns, or see that the module
        // is closed (litmus: begun-or-closed).
        //
        // SAFETY: By the context of this function, we can sleep.
        unsafe { bindings::synchronize_rcu() };
    }
    rcu::unload::wait_for_callbacks(&memory);
    for (class, ops) in classes() {
        class.close(ops, name);
    }
    if has_objects {
        // SAFETY: By the context of this function, we can sleep.
        unsafe { bindings::synchronize_rcu_tasks() };
    }
    holder::forget_sites(&memory, name);
}

/// Waits until there are no objects in `classes`, for at most `timeout`.
fn wait_for_objects<C>(classes: impl Fn() -> C, name: &CStr, timeout: Delta)
where
    C: Iterator<Item = (&'static Class, &'static Ops)>,
{
    let start = Instant::<Monotonic>::now();
    let mut told = false;

    for (class, _) in classes() {
        class.releases.may_wait();
        class.holders.may_wait();
    }
    // The release of an object may create another object, in a class that had none.
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
                holder::report_oldest(None, class);
            }
        }
        told = true;

        // `Acquire` pairs with the `Release` in `Class::put()`, which wakes us up
        // (litmus: class-put). The loop checks the time, so the result is not needed.
        let _ = class
            .waiters
            .wait_event(&raw const class.live, Until::Done, Some(left), || {
                class.live.load(Acquire) == 0
            });
    }
}

/// Stops the threads of the library, and frees the memory that all modules share.
///
/// # Safety
///
/// There must be no modules that use the library, and the library must not be used after this.
#[cfg(MODULE)]
pub(crate) unsafe fn exit() {
    super::release::stop(classes());
    rcu::unload::barrier();
    // The callbacks that `barrier()` waited for belonged to objects whose classes are abandoned, so
    // they have queued no other callback.
    //
    // SAFETY: By the safety requirements of this function, no module queues a callback, and
    // `barrier()` has waited for all callbacks.
    unsafe { rcu::unload::free() };
    // SAFETY: By the safety requirements of this function, there are no references, and no callback
    // is queued.
    unsafe { holder::free() };
    for list in &LISTS {
        let mut next = list.0.xchg(ptr::null_mut(), Acquire);
        while !next.is_null() {
            // SAFETY: `List::add()` got this pointer from a box, and no other thread uses it.
            next = unsafe { KBox::from_raw(next) }.next;
        }
    }
}

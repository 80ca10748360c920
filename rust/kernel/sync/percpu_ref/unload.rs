// SPDX-License-Identifier: GPL-2.0

//! Keeps a module's code in memory until its objects are released.
//!
//! An object's release function lies in the module that made the object. Any thread can put the
//! last reference at any time, so the module must outlive its objects. For this, all objects of one
//! type that one module makes share a `Class`, which counts them.
//!
//! When a module is unloaded, [`module_going`] is called after the module's exit function has
//! returned and before its memory is freed, and also when loading fails. It
//!
//! 1. runs the RCU callbacks that are queued,
//! 2. waits until no object of the module's classes is left, and logs what it waits for,
//! 3. marks the module as closed, so that it can begin nothing new, neither objects nor callbacks
//!    (`mark_closed()`), and runs the callbacks that were queued meanwhile,
//! 4. closes the classes: an object that is still left now is leaked when its last reference is
//!    put, since its release function will be gone,
//! 5. waits for RCU Tasks: a task that put the last reference may not have returned from the
//!    module's function yet. `synchronize_rcu_tasks()` waits for each task that was preempted
//!    there, until it sleeps, returns to user space or ends. On PREEMPT_RT, waiting for a lock that
//!    sleeps counts as sleep. (A kernel that preempts has `TASKS_RCU` if it can trace, probe or run
//!    BPF programs. Without it, this step waits for a grace period only.)
//!
//! A module that has queued no callback and has no class does step 3 only, which then waits for
//! nothing.
//!
//! Step 2 has a bound, because a caller may hold what others wait for: outside of the tree, the
//! chain of module notifiers. The others wait for RCU, and for RCU Tasks if it was used here. Step
//! 4 also waits for releases that are running: a release that is running then is code of the
//! module, and must return first. After step 4, the library calls nothing of the module. It cannot
//! keep others from doing so: the holder of a reference may find a pointer to the module's code or
//! constants in the object.
//!
//! All this is about what the library calls. Whatever else calls into a module, or runs its code,
//! must have ended when the module's exit function returns: see
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
/// Each `Ops` lies in the module whose functions it names.
pub(super) struct Ops {
    /// The type's name, for messages.
    pub(super) name: fn() -> &'static str,

    /// Whether `release` and `drop` can sleep.
    pub(super) may_sleep: bool,

    /// Tells the object that its count is zero.
    ///
    /// # Safety
    ///
    /// The object must be of this type and not dropped.
    pub(super) release: unsafe fn(object: NonNull<c_void>),

    /// Drops the object.
    ///
    /// # Safety
    ///
    /// The object must be of this type. It must not be used after this.
    pub(super) drop: unsafe fn(object: NonNull<c_void>),

    /// Tells the object that no [`try_get_live`](super::PercpuRef::try_get_live) will succeed.
    ///
    /// # Safety
    ///
    /// The object must be of this type and not dropped.
    pub(super) confirmed: unsafe fn(object: NonNull<c_void>),

    /// Tells the object that all CPUs count in the atomic.
    ///
    /// # Safety
    ///
    /// The object must be of this type and not dropped.
    pub(super) switched: unsafe fn(object: NonNull<c_void>),
}

/// All objects of one type that one module makes.
///
/// Classes are on lists that only grow, so they are walked without a lock. A class whose module is
/// gone serves the next type with the same list. A class with objects that were left over stays as
/// it is.
///
/// # Invariants
///
/// - While `live` is not zero, `ops` is callable and `running` has no [`CLOSED`], `ops` is valid,
///   and so is all the code of its module. For this, `ops` becomes callable only after the module
///   was found not to be closed, by a thread in an RCU read-side critical section that had claimed
///   the class before.
/// - A `Class` is freed only when the library itself is unloaded, after all its users.
#[pin_data]
pub(super) struct Class {
    /// Null while the class serves no type.
    ops: Atomic<*mut Ops>,
    /// The objects that are not released yet.
    live: Atomic<usize>,
    /// Those of them that were never killed, or were resurrected since. For messages.
    unkilled: Atomic<usize>,
    /// The number of threads inside the module's functions, and [`CLOSED`].
    running: Atomic<usize>,
    /// The threads that wait for a variable of the class, or of its objects.
    #[pin]
    waiters: WaitQueue,
    #[pin]
    releases: Releases,
    #[pin]
    pub(super) holders: holder::LockMap,
    next: *mut Class,
}

// SAFETY: The fields are atomic or have a lock of their own, except `next`, which does not change
// after the class is on the list.
unsafe impl Sync for Class {}

/// The module's functions must not be called any more.
const CLOSED: usize = 1 << (usize::BITS - 1);

/// The `ops` of a class with objects that outlived their module; no class is looked up by it.
const ABANDONED: *mut Ops = ptr::without_provenance_mut(1);

/// Returns the `ops` of a class that does not serve `ops` yet, because a thread looks whether the
/// module is closed. Nothing is called by it.
fn claimed(ops: *mut Ops) -> *mut Ops {
    ops.map_addr(|addr| addr | CLAIMED)
}

const CLAIMED: usize = 2;
const _: () = assert!(align_of::<Ops>() > CLAIMED);

/// Returns whether `ops` can be called, if it is found after the caller has entered its class.
fn is_callable(ops: *mut Ops) -> bool {
    !ops.is_null() && ops != ABANDONED && ops.addr() & CLAIMED == 0
}

/// A list of classes: its first one.
struct List(Atomic<*mut Class>);

/// The lists of classes, each of the types whose operations have the same hash. With a thousand
/// types, the one of a new object is still found at once.
static LISTS: [List; 1 << LIST_BITS] =
    [const { List(Atomic::new(ptr::null_mut())) }; 1 << LIST_BITS];
const LIST_BITS: u32 = 7;

/// Returns the list that has the class of `ops`, if there is one.
fn list_of(ops: *mut Ops) -> &'static List {
    // As `hash_64()` does: include/linux/hash.h.
    let hash = (ops.addr() as u64).wrapping_mul(0x61c8_8646_80b5_83eb);
    &LISTS[(hash >> (u64::BITS - LIST_BITS)) as usize]
}

/// Returns all classes.
pub(super) fn classes() -> impl Iterator<Item = &'static Class> {
    LISTS.iter().flat_map(List::classes)
}

impl List {
    fn classes(&self) -> impl Iterator<Item = &'static Class> {
        // `Acquire` pairs with the `Release` in `add()`, which published the class. An address
        // dependency would order the first class alone, since the links are plain
        // (litmus: class-list).
        let mut next = self.0.load(Acquire);

        core::iter::from_fn(move || {
            // SAFETY: Classes live as long as the library.
            let class: &'static Class = unsafe { next.as_ref() }?;
            next = class.next;
            Some(class)
        })
    }

    /// Returns the class that serves `ops`.
    fn find(&self, ops: *mut Ops) -> Option<&'static Class> {
        // `Acquire` pairs with the `Release` stores in `Class::get()` and `close()`: the class is
        // not `CLOSED`, as its last user has left it (litmus: class-reuse).
        self.classes().find(|class| class.ops.load(Acquire) == ops)
    }

    /// Returns a class that served no type and now is [`claimed`] for `ops`. Two threads can claim
    /// two classes for the same type, which does no harm.
    fn claim(&self, ops: *mut Ops) -> Option<&'static Class> {
        self.classes().find(|class| {
            // `Full` pairs with the `Release` store in `close()` (litmus: class-reuse), and see
            // `Class::get()`.
            class.ops.load(Relaxed).is_null()
                && class
                    .ops
                    .cmpxchg(ptr::null_mut(), claimed(ops), Full)
                    .is_ok()
        })
    }

    /// Adds a class that serves no type.
    fn add(&self, gfp: Flags) -> Result {
        let class = KBox::pin_init(Class::new(self.0.load(Relaxed)), gfp)?;
        // SAFETY: The class does not move before it is dropped.
        let class = KBox::into_raw(unsafe { Pin::into_inner_unchecked(class) });

        // SAFETY: `class` is valid, and not published until `cmpxchg()` succeeds. `Release` pairs
        // with the load in `classes()` (litmus: class-list).
        while let Err(first) = self.0.cmpxchg(unsafe { (*class).next }, class, Release) {
            // SAFETY: The `cmpxchg()` failed, so `class` is still not published.
            unsafe { (*class).next = first };
        }
        Ok(())
    }
}

impl Class {
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

    /// Returns the class of `ops`, with one more object, for which [`Class::put`] must be called.
    /// The object counts as one that was not killed.
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
                    // Before the section ends, so that `close()` counts the object
                    // (litmus: begun-or-closed).
                    class.live.add(1, Relaxed);
                    class.add_unkilled();
                    return Ok(class);
                }
                if let Some(class) = list.claim(ops) {
                    class.live.add(1, Relaxed);
                    class.add_unkilled();
                    // For the module's first class: `claim()` and `mark_closed()` are both `Full`.
                    // So either this sees that the module is closed, or `module_going()` sees the
                    // class, and waits for this section (litmus: class-claimed-or-closed).
                    if !rcu::unload::is_closed(ops.cast(), &section) {
                        // INVARIANT: The module is there.
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

    /// Returns the threads that wait for a variable of the class, or of its objects.
    pub(super) fn waiters(&self) -> &WaitQueue {
        &self.waiters
    }

    /// Returns the releases that wait for a thread.
    pub(super) fn releases(&self) -> &Releases {
        &self.releases
    }

    /// Returns the number of objects that are not released yet.
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

    /// Counts one object less. The object was counted by [`Class::get`], and is gone.
    ///
    /// A caller that entered the module's functions ([`Class::enter`]) to end the object must call
    /// this before it leaves them, so that [`Class::close`] finds the right number.
    pub(super) fn put(&self) {
        // `Release` pairs with the `Acquire` in `wait_for_objects()` (litmus: class-put).
        if self.live.fetch_sub(1, Release) == 1 {
            self.waiters.wake_up(&raw const self.live);
        }
    }

    /// Enters the module's functions, which stay in memory until the returned value is dropped.
    /// Returns `None` if they are gone. The caller must have an object of this class, or use the
    /// name of the type alone.
    pub(super) fn enter(&self) -> Option<Running<'_>> {
        let mut old = self.running.load(Relaxed);
        while old & CLOSED == 0 {
            // Either `close()`, which changes the same variable, comes second and waits for us, or
            // we find `CLOSED`, and do not delay it (litmus: class-enter-close). `Acquire` pairs
            // with the `Release` store of zero there: a class that was closed and is not used again
            // has nothing to call (litmus: class-enter-later).
            match self.running.cmpxchg(old, old + 1, Acquire) {
                Ok(_) => {
                    // INVARIANT: Counted. If `ops` is not callable, the value is dropped here.
                    let ops = self.ops.load(Relaxed);
                    let running = Running { class: self, ops };
                    // For messages, a thread may come here after its object is gone.
                    return is_callable(ops).then_some(running);
                }
                Err(found) => old = found,
            }
        }
        None
    }

    /// Ensures that none of the module's functions is called any more.
    fn close(&self, ops: &Ops, module: &CStr) {
        // `Relaxed`: `enter()` changes the same variable (litmus: class-enter-close).
        self.running.fetch_add(CLOSED, Relaxed);
        if self.running.load(Relaxed) != CLOSED {
            pr_warn!(
                "unloading {module} waits for a release of {}\n",
                (ops.name)()
            );
        }
        // `Acquire` pairs with the `Release` in `Running::drop()`, which wakes us up
        // (litmus: class-enter-close). Without a bound, the wait does not fail.
        let _ = self
            .waiters
            .wait_event(&raw const self.running, Until::Done, None, || {
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
        // with the `Acquire` in `enter()` (litmus: class-enter-later).
        self.ops.store(ABANDONED, Relaxed);
        self.holders.renew();
        self.running.store(0, Release);
        // `Release` pairs with the `Full` in `claim()`: the next user sees `running` without
        // `CLOSED` (litmus: class-reuse).
        self.ops.store(ptr::null_mut(), Release);
    }
}

/// A thread is inside a module's functions.
///
/// # Invariants
///
/// The thread is counted in the class's `running`, and found `ops` in the class after that, and
/// callable. So `ops` is valid: [`Class::close`] has changed it before, or waits.
pub(super) struct Running<'a> {
    class: &'a Class,
    ops: *mut Ops,
}

impl Running<'_> {
    /// What may be called.
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

/// How long a module is kept for its objects by the code that `module!` generates.
pub const TIMEOUT: Delta = Delta::from_secs(10);

/// Waits until nothing of the library can call a module any more, for at most `timeout` for the
/// module's objects. See the head of this file.
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

    // The classes of this module, each with its operations.
    let classes = || {
        classes().filter_map(|class| {
            let ops = class.ops.load(Relaxed);
            let is_here = is_callable(ops) && memory.contains(ops.addr());
            // SAFETY: The operations lie in the module, which is still there.
            is_here.then(|| (class, unsafe { &*ops }))
        })
    };

    if classes().next().is_some() || rcu::unload::has_queued(&memory) {
        // What was killed before now is released by this, and needs no message.
        rcu::unload::barrier();
        wait_for_objects(classes, name, timeout);
        if rcu::unload::uses_tasks() && classes().any(|(class, _)| class.live.load(Relaxed) != 0) {
            // An object that was killed meanwhile may wait for RCU Tasks, and for nothing else.
            rcu::unload::barrier();
        }
    }

    // `Full`, before we look for callbacks and classes again: see `Class::get()`
    // (litmus: class-claimed-or-closed).
    rcu::unload::mark_closed(&memory);
    // A callback may have made the first object, or be about to.
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

/// Waits until no object of `classes` is left, but for `timeout` at most.
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
                holder::report_oldest(None, class);
            }
        }
        told = true;

        // `Acquire` pairs with the `Release` in `Class::put()`, which wakes us up
        // (litmus: class-put). The loop looks at the time itself.
        let _ = class
            .waiters
            .wait_event(&raw const class.live, Until::Done, Some(left), || {
                class.live.load(Acquire) == 0
            });
    }
}

/// Stops what the library runs, and frees what all modules share.
///
/// # Safety
///
/// No module that uses the library must be left, and the library must not be used after this.
#[cfg(MODULE)]
pub(crate) unsafe fn exit() {
    super::release::stop(classes());
    rcu::unload::barrier();
    // A callback that is still left was that of an object whose class is abandoned, and queued
    // nothing.
    //
    // SAFETY: By the safety requirements of this function, nothing is queued any more.
    unsafe { rcu::unload::free() };
    // SAFETY: By the safety requirements of this function, no reference is left.
    unsafe { holder::free() };
    for list in &LISTS {
        let mut next = list.0.xchg(ptr::null_mut(), Acquire);
        while !next.is_null() {
            // SAFETY: `List::add()` made it a box, and no other thread uses it.
            next = unsafe { KBox::from_raw(next) }.next;
        }
    }
}

// SPDX-License-Identifier: GPL-2.0

//! Cases about objects whose kill waits for RCU Tasks, and the windows in which threads are held.

use super::*;

use core::ptr;
use kernel::sync::percpu_ref::RcuPercpuRef;

extern "C" {
    fn percpu_ref_test_get_window() -> Option<&'static Hold>;
    fn percpu_ref_test_put_window();
}

/// `struct percpu_ref_test_window` of `faults.h`.
#[repr(C)]
struct Hold {
    open: unsafe extern "C" fn(function: *const c_void, place: Place) -> c_int,
    open_call: unsafe extern "C" fn(calls: &Calls) -> c_int,
    is_held: unsafe extern "C" fn() -> bool,
    close: unsafe extern "C" fn(),
}

/// `struct percpu_ref_test_calls` of `faults.h`.
#[repr(C)]
pub(super) struct Calls {
    pub(super) function: *const c_char,
    pub(super) from: *const c_void,
    pub(super) size: usize,
    pub(super) in_callback: bool,
    pub(super) nth: c_uint,
}

/// `enum percpu_ref_test_place` of `faults.h`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) enum Place {
    ReadWord,
    Increment,
    Decrement,
}

/// A probe that holds a thread or an RCU callback at an instruction.
///
/// # Invariants
///
/// The module `rust_percpu_ref_faults` stays loaded, and the probe is set.
pub(super) struct Window(&'static Hold);

pub(super) const NO_WINDOW: Result<Outcome> =
    Ok(Skipped("needs rust_percpu_ref_faults.ko, on x86-64"));

impl Window {
    /// Holds the first thread or interrupt that reaches `place` in `function`.
    ///
    /// Returns `None` if this is not possible on this kernel.
    pub(super) fn open(function: *const c_void, place: Place) -> Result<Option<Self>> {
        // SAFETY: `function` is the address of a function of this module.
        Self::open_by(|hold| unsafe { (hold.open)(function, place) })
    }

    /// Holds one of the calls of a function of the kernel.
    ///
    /// Returns `None` if this is not possible on this kernel.
    pub(super) fn open_call(calls: &Calls) -> Result<Option<Self>> {
        // SAFETY: `calls` has the name of a function, which is null-terminated.
        Self::open_by(|hold| unsafe { (hold.open_call)(calls) })
    }

    fn open_by(open: impl FnOnce(&Hold) -> c_int) -> Result<Option<Self>> {
        // SAFETY: `percpu_ref_test_get_window()` can be called from process context.
        let Some(hold) = (unsafe { percpu_ref_test_get_window() }) else {
            return Ok(None);
        };
        match open(hold) {
            // INVARIANT: `open` has set the probe, and the reference to `percpu_ref_test_window`
            // keeps the module loaded.
            0 => Ok(Some(Self(hold))),
            error => {
                // SAFETY: `percpu_ref_test_get_window()` has got a reference, which is not used
                // after this.
                unsafe { percpu_ref_test_put_window() };
                match Error::from_errno(error) {
                    EOPNOTSUPP => Ok(None),
                    // With KASAN, the load of the word is not an instruction that the module finds.
                    ENOENT if cfg!(CONFIG_KASAN) => Ok(None),
                    // With this option, the atomic operations are not functions.
                    ENOENT if cfg!(CONFIG_RUST_INLINE_HELPERS) => Ok(None),
                    error => Err(error),
                }
            }
        }
    }

    pub(super) fn is_held(&self) -> bool {
        // SAFETY: By the type invariant, the module is loaded.
        unsafe { (self.0.is_held)() }
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: By the type invariant, the module is loaded, and the probe is set.
        unsafe { (self.0.close)() };
        // SAFETY: `open_by()` has got a reference to `percpu_ref_test_window`, which is not used
        // after this.
        unsafe { percpu_ref_test_put_window() };
    }
}

/// Gets a reference, in a function that a probe can be set on.
#[inline(never)]
pub(super) fn get<T: Counted>(thing: &PercpuRef<T>) -> Option<PercpuRefGuard<T>> {
    thing.try_get_live()
}

/// Puts a reference, in a function that a probe can be set on.
#[inline(never)]
pub(super) fn put<T: Counted>(guard: PercpuRefGuard<T>) {
    drop(guard);
}

/// Finds an object and gets a reference, in a function that a probe can be set on.
#[inline(never)]
pub(super) fn find<T: Counted>(place: &RcuPercpuRef<T>) -> Option<PercpuRefGuard<T>> {
    place.try_get()
}

fn shared() -> Result<(PercpuRef<TasksThing>, Arc<Events>)> {
    let (mut thing, events) = Thing::new()?;
    thing.kills_unconfirmed = false;
    let thing = UniquePercpuRef::new(TasksThing(thing), GFP_KERNEL)?;
    Ok((thing.into(), events))
}

/// Uses and ends objects with `RCU_TASKS` in different ways.
pub(super) fn tasks_objects_live_and_end() -> Result<Outcome> {
    // Cancelled.
    let (thing, events) = Thing::new()?;
    UniquePercpuRef::new(TasksThing(thing), GFP_KERNEL)?.cancel_init();
    check_events(&events, 0, 0)?;

    // References are got on one CPU and put on another, and in interrupts, singly and in batches.
    let (thing, events) = shared()?;
    let place = RcuPercpuRef::from(thing);
    let thing = place.try_get_live().ok_or(EIO)?;
    for cpu in online_cpus() {
        let guard = thing.clone();
        let batch = guard.get_many(100);
        let more = on_cpu(cpu, move || {
            check!(batch.len() == 100 && guard.0.is_alive());
            drop(batch);
            Ok(guard.get_many(3))
        })??;
        check!(in_timer(true, move || drop(more)).is_some());
        let guard = thing.clone();
        check!(in_timer(false, move || drop(guard)).is_some());
    }

    // Killed while there is a reference, and released when that is put.
    let owner = place.replace(None).ok_or(EIO)?;
    check!(kill_checked(&owner) && owner.is_dying());
    wait_for(|| events.confirmed.get() == 1)?;
    check!(owner.try_get_live().is_none());
    check!(owner.try_get().is_some_and(|guard| guard.0.is_alive()));
    check!(owner.references() == Some(1) && events.released.get() == 0);
    drop(owner);
    drop(thing);
    check_end(&events, 1, 1)?;

    // Killed without references.
    let (thing, events) = shared()?;
    thing.kill_and_wait();
    drop(thing);
    check_end(&events, 0, 1)?;
    Ok(Passed)
}

/// Checks that a callback that was passed to RCU Tasks runs once, after a grace period of RCU.
pub(super) fn tasks_callback_waits_for_both() -> Result<Outcome> {
    let (callback, ran) = Callback::new(0)?;
    {
        let _guard = PreemptGuard::new();
        rcu::call_tasks(callback);
        check!(ran.confirmed.get() == 0);
    }
    wait_for(|| ran.dropped.get() == 1)?;
    check!(ran.confirmed.get() == 1 && ran.early.get() == 0);
    Ok(Passed)
}

/// Kills an object while `user` is held in `function`, between reading the word and counting.
///
/// The object must not be confirmed before `user` has counted, even after grace periods of RCU.
///
/// Must be called on another CPU than the second of [`two_cpus`], which `user` runs on, because
/// `user` may be held in an interrupt.
///
/// Returns `false` if nothing can be held on this kernel.
fn end_waits(
    (function, place): (*const c_void, Place),
    events: &Events,
    user: impl FnOnce() + Send + 'static,
    kill: impl FnOnce() -> Result,
    is_task: bool,
) -> Result<bool> {
    let (_, there) = two_cpus().ok_or(EIO)?;
    let Some(window) = Window::open(function, place)? else {
        return Ok(false);
    };
    let user = Thread::spawn(there, user)?;
    wait_for(|| window.is_held())?;
    kill()?;
    if is_task {
        // The new thread preempts the task that is held, so RCU does not wait for it.
        on_cpu(there, || ())?;
        for _ in 0..3 {
            // SAFETY: `synchronize_rcu()` can be called from process context.
            unsafe { bindings::synchronize_rcu() };
        }
    }
    fsleep(Delta::from_millis(500));
    check!(window.is_held() && events.confirmed.get() == 0 && events.released.get() == 0);
    drop(window);
    drop(user);
    check_end(events, 1, 1)?;
    Ok(true)
}

/// Holds a get, a put and a lookup, each of which is called by `run`.
fn each_end_waits(run: fn(&mut (dyn FnMut() + Send)), is_task: bool) -> Result<Outcome> {
    if !cfg!(CONFIG_TASKS_RCU) {
        return Ok(Skipped("this kernel has no RCU Tasks"));
    }
    let Some((here, _)) = two_cpus() else {
        return Ok(Skipped("there is one CPU"));
    };
    on_cpu(here, move || each_end_waits_here(run, is_task))?
}

fn kill(thing: &PercpuRef<TasksThing>) -> Result {
    check!(kill_checked(thing));
    Ok(())
}

fn each_end_waits_here(run: fn(&mut (dyn FnMut() + Send)), is_task: bool) -> Result<Outcome> {
    let (thing, events) = shared()?;
    let thing = Arc::new(thing, GFP_KERNEL)?;
    let used = thing.clone();
    let user = move || run(&mut || get(&used).map_or((), put));
    if !end_waits(
        (get::<TasksThing> as *const c_void, Place::Increment),
        &events,
        user,
        || kill(&thing),
        is_task,
    )? {
        return NO_WINDOW;
    }

    let (thing, events) = shared()?;
    let mut guard = thing.try_get();
    let user = move || run(&mut || guard.take().map_or((), put));
    end_waits(
        (put::<TasksThing> as *const c_void, Place::Decrement),
        &events,
        user,
        || kill(&thing),
        is_task,
    )?;

    let (thing, events) = shared()?;
    let place = Arc::new(RcuPercpuRef::from(thing), GFP_KERNEL)?;
    let used = place.clone();
    let user = move || run(&mut || find(&used).map_or((), put));
    end_waits(
        (find::<TasksThing> as *const c_void, Place::Increment),
        &events,
        user,
        || kill(&place.replace(None).ok_or(EIO)?),
        is_task,
    )?;
    Ok(Passed)
}

/// Holds a task that can be preempted, while another task runs on its CPU.
pub(super) fn tasks_end_waits_for_preempted() -> Result<Outcome> {
    each_end_waits(|user| user(), true)
}

/// Holds interrupts, most of which have interrupted an idle task.
pub(super) fn tasks_end_waits_for_interrupts() -> Result<Outcome> {
    for in_interrupt in [
        (|user| in_timer(true, user).unwrap_or(())) as fn(&mut (dyn FnMut() + Send)),
        |user| in_timer(false, user).unwrap_or(()),
    ] {
        match each_end_waits(in_interrupt, false)? {
            Passed => (),
            skipped => return Ok(skipped),
        }
    }
    Ok(Passed)
}

/// Holds a lookup that has found an object, before it reads the word.
///
/// The object was killed before. While the lookup is held, the object is taken out of its place,
/// and its last reference is put. Its memory must not be freed.
pub(super) fn tasks_memory_outlives_lookup() -> Result<Outcome> {
    let Some((_, there)) = two_cpus().filter(|_| cfg!(CONFIG_TASKS_RCU)) else {
        return Ok(Skipped("there is one CPU, or no RCU Tasks"));
    };
    let (thing, events) = shared()?;
    let place = Arc::new(RcuPercpuRef::from(thing), GFP_KERNEL)?;
    let guard = place.try_get().ok_or(EIO)?;
    let owner = place.replace(None).ok_or(EIO)?;
    check!(kill_checked(&owner));
    wait_for(|| events.confirmed.get() == 1)?;
    check!(place.insert(owner).is_ok());

    let Some(window) = Window::open(find::<TasksThing> as *const c_void, Place::ReadWord)? else {
        return NO_WINDOW;
    };
    let (used, missed) = (place.clone(), Arc::new(Counter::default(), GFP_KERNEL)?);
    let user_missed = missed.clone();
    let user = Thread::spawn(there, move || {
        if find(&used).is_none() {
            user_missed.inc();
        }
    })?;
    wait_for(|| window.is_held())?;
    let address = ptr::from_ref(&*guard);
    drop(place.replace(None));
    drop(guard);
    check!(events.dropped.get() == 1);
    on_cpu(there, || ())?;
    rcu::rcu_barrier();
    rcu::rcu_barrier();
    // A slab allocates the memory first that was freed last.
    let mut others = KVec::new();
    for _ in 0..200 {
        let (thing, _) = Thing::new()?;
        let other = UniquePercpuRef::new(TasksThing(thing), GFP_KERNEL)?;
        check!(ptr::from_ref(&*other) != address);
        others.push(other, GFP_KERNEL)?;
    }
    check!(window.is_held());
    drop(window);
    drop(user);
    check!(missed.get() == 1);
    drop(others);
    check_end(&events, 1, 1)?;
    Ok(Passed)
}

/// Runs [`stress`] with objects with `RCU_TASKS`.
pub(super) fn tasks_stress() -> Result<Outcome> {
    stress_for::<TasksThing>(times(60), Delta::ZERO)
}

// SPDX-License-Identifier: GPL-2.0

//! Cases about objects whose end waits for RCU Tasks.

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

/// A probe on a function of this file.
///
/// # Invariants
///
/// The module `rust_percpu_ref_faults` stays in place, and the probe is set.
pub(super) struct Window(&'static Hold);

pub(super) const NO_WINDOW: Result<Outcome> =
    Ok(Skipped("needs rust_percpu_ref_faults.ko, on x86-64"));

impl Window {
    /// Holds the first one that comes to `place` in `function`. Returns `None` if that is not
    /// possible on this kernel.
    pub(super) fn open(function: *const c_void, place: Place) -> Result<Option<Self>> {
        // SAFETY: `function` is the address of a function of this module.
        Self::open_by(|hold| unsafe { (hold.open)(function, place) })
    }

    /// Holds one of the calls of a function of the kernel's. Returns `None` if that is not possible
    /// on this kernel.
    pub(super) fn open_call(calls: &Calls) -> Result<Option<Self>> {
        // SAFETY: `calls` has the name of a function, which ends with a null.
        Self::open_by(|hold| unsafe { (hold.open_call)(calls) })
    }

    fn open_by(open: impl FnOnce(&Hold) -> c_int) -> Result<Option<Self>> {
        // SAFETY: We are in process context.
        let Some(hold) = (unsafe { percpu_ref_test_get_window() }) else {
            return Ok(None);
        };
        match open(hold) {
            // INVARIANT: As just done.
            0 => Ok(Some(Self(hold))),
            error => {
                // SAFETY: The reference was just got.
                unsafe { percpu_ref_test_put_window() };
                match Error::from_errno(error) {
                    EOPNOTSUPP => Ok(None),
                    // A checked load of the word does not look like one.
                    ENOENT if cfg!(CONFIG_KASAN) => Ok(None),
                    // The atomic operations are no functions.
                    ENOENT if cfg!(CONFIG_RUST_INLINE_HELPERS) => Ok(None),
                    error => Err(error),
                }
            }
        }
    }

    pub(super) fn is_held(&self) -> bool {
        // SAFETY: By the type invariant, the module is there.
        unsafe { (self.0.is_held)() }
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: By the type invariant, the module is there, and the probe is set.
        unsafe { (self.0.close)() };
        // SAFETY: By the type invariant. It is not used after this.
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

/// They are used in each way, and end in each way.
pub(super) fn tasks_objects_live_and_end() -> Result<Outcome> {
    // Taken back.
    let (thing, events) = Thing::new()?;
    UniquePercpuRef::new(TasksThing(thing), GFP_KERNEL)?.cancel_init();
    check_events(&events, 0, 0)?;

    // Got here and put there, one by one and many at once.
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

    // Killed while there are references, and not at an end before the last one is put.
    let owner = place.replace(None).ok_or(EIO)?;
    check!(kill_checked(&owner) && owner.is_dying());
    wait_for(|| events.confirmed.get() == 1)?;
    check!(owner.try_get_live().is_none());
    check!(owner.try_get().is_some_and(|guard| guard.0.is_alive()));
    check!(owner.references() == Some(1) && events.released.get() == 0);
    drop(owner);
    drop(thing);
    check_end(&events, 1, 1)?;

    // Killed without any.
    let (thing, events) = shared()?;
    thing.kill_and_wait();
    drop(thing);
    check_end(&events, 0, 1)?;
    Ok(Passed)
}

/// A callback whose box was passed to RCU Tasks runs once, after RCU as well.
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

/// Kills an object while `user` is held in `function`, between reading the word and counting, and
/// lets RCU go on. The object must not end before `user` has counted.
///
/// Must run on another CPU than the one that an interrupt is held on.
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
        // By this the task is preempted, and RCU sees that.
        on_cpu(there, || ())?;
        for _ in 0..3 {
            // SAFETY: We are in process context.
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

/// Holds a get, a put and a lookup, which are done by `run`.
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

/// A task is held where it can be preempted, and another task runs on its CPU.
pub(super) fn tasks_end_waits_for_preempted() -> Result<Outcome> {
    each_end_waits(|user| user(), true)
}

/// Interrupts are held, most of which have interrupted an idle task.
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

/// A lookup has found an object and is held before it reads the word. Meanwhile, the object, which
/// was killed before, is taken out, and its last reference is put. Its memory must stay.
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
    // A slab gives out first what came back last.
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

/// As `stress`.
pub(super) fn tasks_stress() -> Result<Outcome> {
    stress_for::<TasksThing>(times(60), Delta::ZERO)
}

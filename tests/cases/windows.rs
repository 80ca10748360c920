// SPDX-License-Identifier: GPL-2.0

//! Cases that hold a thread or an RCU callback between two steps of the library.
//!
//! Most cases hold it at the beginning of an atomic operation on the count, which is a function of
//! the kernel. While it is held, another thread does what the comments of the library say it may
//! do. In all cases, the thread that checks runs on the CPU `here`, and the thread that is held, or
//! whose RCU callback is held, runs on the CPU `there`.

use super::{
    tasks::{
        find,
        get,
        put, //
    },
    *, //
};

use core::ptr;
use kernel::sync::percpu_ref::{
    RcuPercpuRef,
    Reinit, //
};

type Modal = PercpuRef<Thing, Reinit>;

const STATE_CMPXCHG: &CStr = c"rust_helper_atomic64_try_cmpxchg";
const WORD_CMPXCHG: &CStr = c"rust_helper_atomic_ptr_try_cmpxchg";
const WORD_XCHG: &CStr = c"rust_helper_atomic_ptr_xchg";
const HANDOVER_XCHG: &CStr = c"rust_helper_atomic_xchg";

/// At least the size of a count, which is right before the object in memory.
const COUNT_SIZE: usize = if cfg!(CONFIG_RUST_PERCPU_REF_DEBUG) {
    256
} else {
    72
};

/// A call of an atomic operation that can be held.
#[derive(Clone, Copy)]
struct At {
    function: &'static CStr,
    nth: u32,
    in_callback: bool,
}

/// Returns the `nth` call of `function` by a thread.
const fn in_thread(function: &'static CStr, nth: u32) -> At {
    At {
        function,
        nth,
        in_callback: false,
    }
}

/// Returns the `nth` call of `function` by an RCU callback.
const fn in_callback(function: &'static CStr, nth: u32) -> At {
    At {
        function,
        nth,
        in_callback: true,
    }
}

impl At {
    /// Holds this call.
    ///
    /// Counts only calls with an argument that points to one of the `size` bytes before `end`, or
    /// all calls if `size` is zero.
    fn before<T>(self, end: *const T, size: usize) -> Result<Option<Window>> {
        Window::open_call(&Calls {
            function: self.function.as_char_ptr(),
            from: end.cast::<u8>().wrapping_sub(size).cast(),
            size,
            in_callback: self.in_callback,
            nth: self.nth,
        })
    }

    /// Holds this call on the count of `object`.
    fn on<T>(self, object: &T) -> Result<Option<Window>> {
        self.before(ptr::from_ref(object), COUNT_SIZE)
    }

    /// Holds this call on `variable`.
    fn on_variable<T>(self, variable: &T) -> Result<Option<Window>> {
        self.before(ptr::from_ref(variable).wrapping_add(1), size_of::<T>())
    }

    /// Holds this call on any variable.
    fn anywhere(self) -> Result<Option<Window>> {
        self.before(ptr::null::<u8>(), 0)
    }
}

/// Returns the window, or skips the case if there is none.
macro_rules! open {
    ($window:expr) => {
        match $window? {
            Some(window) => window,
            None => return NO_WINDOW,
        }
    };
}

/// Runs a case in a thread on `here`, or skips it if there is only one CPU.
fn apart(case: fn(here: CpuId, there: CpuId) -> Result<Outcome>) -> Result<Outcome> {
    let Some((here, there)) = two_cpus() else {
        return Ok(Skipped("needs two CPUs"));
    };
    on_cpu(here, move || case(here, there))?
}

/// A thread that runs a closure and stores its result.
struct Worker<R = ()> {
    result: Arc<Mutex<Option<R>>>,
    done: Arc<Counter>,
    _thread: Thread,
}

impl<R: Send + Unpin + 'static> Worker<R> {
    fn spawn(cpu: CpuId, run: impl FnOnce() -> R + Send + 'static) -> Result<Self> {
        let result = Arc::pin_init(new_mutex!(None), GFP_KERNEL)?;
        let done = Arc::new(Counter::default(), GFP_KERNEL)?;
        let (slot, when_done) = (result.clone(), done.clone());
        let thread = Thread::spawn(cpu, move || {
            let result = run();
            *slot.lock() = Some(result);
            when_done.inc();
        })?;
        Ok(Self {
            result,
            done,
            _thread: thread,
        })
    }

    /// Creates a thread that begins `run` when the second returned value is dropped.
    ///
    /// While a callback is held on a CPU, the creation of a thread may wait for that CPU. So the
    /// thread must be created before the callback is held.
    fn spawn_early(
        cpu: CpuId,
        run: impl FnOnce() -> R + Send + 'static,
    ) -> Result<(Self, impl Drop)> {
        let begun = Arc::new(Counter::default(), GFP_KERNEL)?;
        let begin = ScopeGuard::new_with_data(begun.clone(), |begun| begun.inc());
        let worker = Self::spawn(cpu, move || {
            while begun.get() == 0 {
                fsleep(Delta::from_micros(100));
            }
            run()
        })?;
        Ok((worker, begin))
    }

    /// Returns whether the thread is done, after some time in which it should have waited.
    fn is_done_early(&self) -> bool {
        fsleep(Delta::from_millis(30));
        self.done.get() != 0
    }

    #[track_caller]
    fn join(self) -> Result<R> {
        wait_for(|| self.done.get() != 0)?;
        let result = self.result.lock().take();
        result.ok_or(EIO)
    }
}

fn modal() -> Result<(Arc<Modal>, Arc<Events>)> {
    let (thing, events) = Thing::new()?;
    let modal = Modal::from(UniquePercpuRef::new_reinit(thing, GFP_KERNEL)?);
    Ok((Arc::new(modal, GFP_KERNEL)?, events))
}

/// Runs `run` in a thread on `cpu`, with a clone of the `Arc`.
fn with<R: Send + Unpin + 'static>(
    modal: &Arc<Modal>,
    cpu: CpuId,
    run: fn(&Modal) -> R,
) -> Result<Worker<R>> {
    let modal = modal.clone();
    Worker::spawn(cpu, move || run(&modal))
}

/// Checks that the reference is live after `lives` other lives, and that its end is counted right.
fn check_live(modal: Arc<Modal>, events: &Events, confirmed: u32, lives: u32) -> Result<Outcome> {
    check!(!modal.is_dying() && events.released.get() == lives);
    check!(modal.try_get_live().is_some_and(|guard| guard.is_alive()));
    drop(modal);
    check_end(events, confirmed, lives + 1)?;
    Ok(Passed)
}

//
// Sections.
//

/// Holds a get, a put and a lookup between reading the word and counting.
///
/// The grace period of a kill must wait for each of them.
pub(super) fn get_and_put_count_in_their_section() -> Result<Outcome> {
    apart(|_, there| {
        let (thing, events) = Thing::shared()?;
        let thing = Arc::new(thing, GFP_KERNEL)?;
        let window = open!(Window::open(
            get::<Thing> as *const c_void,
            Place::Increment
        ));
        let used = thing.clone();
        let user = Worker::spawn(there, move || drop(get(&used)))?;
        check_section(window, user, &events, || kill_checked(&thing))?;
        check_end(&events, 1, 1)?;
        drop(thing);

        let (thing, events) = Thing::shared()?;
        let guard = thing.try_get().ok_or(EIO)?;
        let window = open!(Window::open(
            put::<Thing> as *const c_void,
            Place::Decrement
        ));
        let user = Worker::spawn(there, move || put(guard))?;
        check_section(window, user, &events, || kill_checked(&thing))?;
        check_end(&events, 1, 1)?;
        drop(thing);

        let (thing, events) = Thing::shared()?;
        let place = Arc::new(RcuPercpuRef::from(thing), GFP_KERNEL)?;
        let window = open!(Window::open(
            find::<Thing> as *const c_void,
            Place::Increment
        ));
        let used = place.clone();
        let user = Worker::spawn(there, move || drop(find(&used)))?;
        let kill = || {
            place
                .replace(None)
                .is_some_and(|thing| kill_checked(&thing))
        };
        check_section(window, user, &events, kill)?;
        check_end(&events, 1, 1)?;
        Ok(Passed)
    })
}

fn check_section(
    window: Window,
    user: Worker,
    events: &Events,
    kill: impl FnOnce() -> bool,
) -> Result {
    wait_for(|| window.is_held())?;
    check!(kill());
    fsleep(Delta::from_millis(150));
    check!(window.is_held() && events.confirmed.get() == 0 && events.released.get() == 0);
    drop(window);
    user.join()
}

/// Holds a lookup that has found an object, before it reads the word, and before it reads the
/// atomic.
///
/// The object was killed before. While the lookup is held, the last reference is put, and the
/// object is dropped. Its memory must not be freed.
pub(super) fn memory_outlives_lookup() -> Result<Outcome> {
    apart(|_, there| {
        for in_atomic in [false, true] {
            let (thing, events) = Thing::shared()?;
            let place = Arc::new(RcuPercpuRef::from(thing), GFP_KERNEL)?;
            let guard = place.try_get().ok_or(EIO)?;
            let owner = place.replace(None).ok_or(EIO)?;
            check!(kill_checked(&owner));
            wait_for(|| events.confirmed.get() == 1)?;
            check!(place.insert(owner).is_ok());
            rcu::rcu_barrier();

            let window = if in_atomic {
                in_thread(c"rust_helper_atomic64_read", 1).on(&*guard)
            } else {
                Window::open(find::<Thing> as *const c_void, Place::ReadWord)
            };
            let window = open!(window);
            let (used, missed) = (place.clone(), Arc::new(Counter::default(), GFP_KERNEL)?);
            let user_missed = missed.clone();
            let user = Worker::spawn(there, move || {
                if find(&used).is_none() {
                    user_missed.inc();
                }
            })?;
            wait_for(|| window.is_held())?;
            let address = ptr::from_ref(&*guard);
            drop(place.replace(None));
            drop(guard);
            check!(events.dropped.get() == 1);
            fsleep(Delta::from_millis(100));
            // A slab allocates the memory first that was freed last.
            let mut others = KVec::new();
            for _ in 0..200 {
                let other = UniquePercpuRef::new(Thing::with(&events), GFP_KERNEL)?;
                check!(ptr::from_ref(&*other) != address);
                others.push(other, GFP_KERNEL)?;
            }
            check!(window.is_held());
            drop(window);
            user.join()?;
            check!(missed.get() == 1);
            drop(others);
            check!(THINGS.load(Relaxed) == 0);
            rcu::rcu_barrier();
        }
        Ok(Passed)
    })
}

/// Holds the killer of an object that lives once, before it sets `DEAD`.
///
/// Until it sets `DEAD`, references can be got and the reference is not confirmed, even after a
/// grace period.
pub(super) fn kill_flags_before_grace_period() -> Result<Outcome> {
    apart(|_, there| {
        let (thing, events) = Thing::shared()?;
        let thing = Arc::new(thing, GFP_KERNEL)?;
        let guard = thing.try_get().ok_or(EIO)?;
        let window = open!(in_thread(c"rust_helper_atomic_ptr_set_release", 1).on(&*guard));
        let killed = thing.clone();
        let killer = Worker::spawn(there, move || killed.kill_and_confirm())?;
        wait_for(|| window.is_held())?;
        // SAFETY: We are in process context.
        unsafe { bindings::synchronize_rcu() };
        rcu::rcu_barrier();
        check!(window.is_held() && events.confirmed.get() == 0);
        check!(thing.try_get_live().is_some());
        drop(window);
        killer.join()?;
        wait_for(|| events.confirmed.get() == 1)?;
        check!(events.released.get() == 0);
        drop(guard);
        drop(thing);
        check_end(&events, 1, 1)?;
        Ok(Passed)
    })
}

//
// A kill and a switch.
//

/// Holds the RCU callback of a switch that has seen no kill, before it ends the switch.
///
/// A killer comes while the callback is held, and leaves it to the callback to close the reference.
pub(super) fn kill_meets_end_of_switch() -> Result<Outcome> {
    apart(|_, there| {
        let (modal, events) = modal()?;
        let window = open!(in_callback(WORD_CMPXCHG, 1).on(modal.value()));
        // In a thread of its own, because the callback may run before `switch_to_atomic()` returns.
        let switcher = with(&modal, there, |modal| modal.switch_to_atomic())?;
        wait_for(|| window.is_held())?;
        check!(modal.kill_and_confirm());
        check!(window.is_held() && events.confirmed.get() == 0);
        drop(window);
        switcher.join()?;
        wait_for(|| events.confirmed.get() == 1 && events.released.get() == 1)?;
        check!(modal.resurrect().is_ok());
        check_live(modal, &events, 1, 1)
    })
}

/// Holds a killer that has set `DEAD` during a switch, before it exchanges `handover`.
///
/// The RCU callback of the switch exchanges it first, and leaves it to the killer to close the
/// reference.
pub(super) fn switch_ends_before_killer_hands_over() -> Result<Outcome> {
    apart(|_, there| {
        let (modal, events) = modal()?;
        let window = open!(in_thread(HANDOVER_XCHG, 1).on(modal.value()));
        let switched = modal.clone();
        let (killer, begin) = Worker::spawn_early(there, move || {
            switched.switch_to_atomic();
            switched.kill_and_confirm()
        })?;
        {
            // The switch waits for this section.
            let _section = PreemptGuard::new();
            let start = Instant::<Monotonic>::now();
            drop(begin);
            while !window.is_held() && start.elapsed() < Delta::from_secs(5) {}
        }
        wait_for(|| events.switched.get() == 1)?;
        rcu::rcu_barrier();
        check!(window.is_held() && modal.is_dying());
        check!(events.confirmed.get() == 0 && events.released.get() == 0);
        drop(window);
        check!(killer.join()?);
        check!(events.confirmed.get() == 1 && events.released.get() == 1);
        check!(modal.resurrect().is_ok());
        check_live(modal, &events, 1, 1)
    })
}

//
// A killer, a reviver and a freezer.
//

/// Holds a killer before it sets `DEAD`.
///
/// A `resurrect()` must wait for the killer, and succeed.
pub(super) fn revival_waits_for_killer() -> Result<Outcome> {
    apart(|here, there| {
        let (modal, events) = modal()?;
        let window = open!(in_thread(WORD_CMPXCHG, 1).on(modal.value()));
        let killer = with(&modal, there, |modal| modal.kill_and_confirm())?;
        wait_for(|| window.is_held())?;
        let reviver = with(&modal, here, |modal| modal.resurrect())?;
        check!(!reviver.is_done_early() && window.is_held());
        drop(window);
        killer.join()?;
        check!(reviver.join()?.is_ok() && events.confirmed.get() == 1);
        check_live(modal, &events, 1, 1)
    })
}

/// Holds a killer before it sets `DEAD`, while the reference is frozen and resurrected.
///
/// In the second variant, the reference is also killed and resurrected once more. Another life must
/// not begin before the killer is done, because the killer would end it.
pub(super) fn slow_killer_ends_no_later_life() -> Result<Outcome> {
    for kills_again in [false, true] {
        let run = if kills_again {
            |here, there| slow_killer(here, there, true)
        } else {
            |here, there| slow_killer(here, there, false)
        };
        match apart(run)? {
            Passed => (),
            skipped => return Ok(skipped),
        }
    }
    Ok(Passed)
}

fn slow_killer(here: CpuId, there: CpuId, kills_again: bool) -> Result<Outcome> {
    let (modal, events) = modal()?;
    let window = open!(in_thread(WORD_CMPXCHG, 1).on(modal.value()));
    let killer = with(&modal, there, |modal| modal.kill_and_confirm())?;
    wait_for(|| window.is_held())?;
    let frozen = modal.freeze();
    check!(events.confirmed.get() == 1 && events.released.get() == 1);
    check!(modal.resurrect().is_ok());
    if kills_again {
        check!(modal.kill() && modal.resurrect().is_ok());
    }
    check!(modal.is_dying());
    let thawer = Worker::spawn(here, move || drop(frozen))?;
    check!(!thawer.is_done_early() && window.is_held() && modal.is_dying());
    drop(window);
    killer.join()?;
    thawer.join()?;
    check_live(modal, &events, 1, 1)
}

/// Holds a reviver before it adds the bias again, and before it clears `DEAD`.
///
/// A killer comes while the reviver is held, and leaves the end of the new life to the reviver. The
/// killer's `wait_released()` must wait for that end.
pub(super) fn kill_meets_revival() -> Result<Outcome> {
    apart(|here, there| {
        // The first `STATE_CMPXCHG` changes the state, and the second adds the bias to the atomic.
        for at in [in_thread(STATE_CMPXCHG, 2), in_thread(WORD_XCHG, 1)] {
            let (modal, events) = modal()?;
            check!(modal.kill_and_wait());
            let window = open!(at.on(modal.value()));
            let reviver = with(&modal, there, |modal| modal.resurrect())?;
            wait_for(|| window.is_held())?;
            let killer = with(&modal, here, |modal| {
                modal.kill_and_confirm();
                modal.wait_released();
            })?;
            check!(!killer.is_done_early() && window.is_held());
            check!(events.confirmed.get() == 0 && events.released.get() == 1);
            drop(window);
            check!(reviver.join()?.is_ok());
            killer.join()?;
            check!(events.confirmed.get() == 1 && events.released.get() == 2);
            check!(modal.resurrect().is_ok());
            check_live(modal, &events, 1, 2)?;
        }
        Ok(Passed)
    })
}

/// Holds a reviver before it clears `DEAD`.
///
/// A freezer waits for the reviver, and ends the life that the reviver begins.
pub(super) fn freezer_waits_for_revival() -> Result<Outcome> {
    apart(|here, there| {
        let (modal, events) = modal()?;
        check!(modal.kill_and_wait());
        let window = open!(in_thread(WORD_XCHG, 1).on(modal.value()));
        let reviver = with(&modal, there, |modal| modal.resurrect())?;
        wait_for(|| window.is_held())?;
        let freezer = with(&modal, here, |modal| modal.freeze())?;
        check!(!freezer.is_done_early() && window.is_held());
        drop(window);
        check!(reviver.join()?.is_ok());
        let frozen = freezer.join()?;
        check!(modal.is_dying() && modal.is_zero() && events.released.get() == 2);
        check!(modal.try_get().is_none());
        drop(frozen);
        check_live(modal, &events, 0, 2)
    })
}

/// Holds a `resurrect()` that owns the transition, before it changes the state.
///
/// A freezer changes the state first, so the reference stays dying until it is thawed.
pub(super) fn freezer_stops_revival() -> Result<Outcome> {
    apart(|here, there| {
        let (modal, events) = modal()?;
        check!(modal.kill_and_wait());
        let window = open!(in_thread(STATE_CMPXCHG, 1).on(modal.value()));
        let reviver = with(&modal, there, |modal| modal.resurrect())?;
        wait_for(|| window.is_held())?;
        let freezer = with(&modal, here, |modal| modal.freeze())?;
        check!(!freezer.is_done_early() && window.is_held());
        drop(window);
        check!(reviver.join()?.is_ok());
        let frozen = freezer.join()?;
        check!(modal.is_dying() && modal.is_zero() && events.released.get() == 1);
        drop(frozen);
        check_live(modal, &events, 0, 1)
    })
}

//
// Confirmations, and which thread calls them.
//

/// Holds the killer of a frozen reference after it has asked for a confirmation.
///
/// A `resurrect()` must call the confirmation before it takes the kill back.
pub(super) fn revival_confirms_first() -> Result<Outcome> {
    apart(|_, there| {
        let (modal, events) = modal()?;
        let frozen = modal.freeze();
        // The first such call sets `KILLED`, and the second clears `KILLING`.
        let window = open!(in_thread(STATE_CMPXCHG, 2).on(modal.value()));
        let killer = with(&modal, there, |modal| modal.kill_and_confirm())?;
        wait_for(|| window.is_held())?;
        check!(events.confirmed.get() == 0);
        check!(modal.resurrect().is_ok());
        check!(window.is_held() && events.confirmed.get() == 1);
        drop(window);
        check!(killer.join()?);
        drop(frozen);
        check_live(modal, &events, 1, 1)
    })
}

/// Holds a thread that switches a frozen reference, before it clears `BUSY`.
///
/// A killer must leave the confirmation to that thread, which owns the transition.
pub(super) fn kill_leaves_confirmation_to_owner() -> Result<Outcome> {
    apart(|_, there| {
        let (modal, events) = modal()?;
        let frozen = modal.freeze();
        let window = open!(in_thread(WORD_XCHG, 1).on(modal.value()));
        let switcher = with(&modal, there, |modal| modal.switch_to_atomic())?;
        wait_for(|| window.is_held())?;
        check!(events.switched.get() == 1);
        check!(modal.kill_and_confirm());
        check!(window.is_held() && events.confirmed.get() == 0);
        drop(window);
        switcher.join()?;
        check!(events.confirmed.get() == 1);
        drop(frozen);
        check!(modal.is_dying() && modal.resurrect().is_ok());
        check_live(modal, &events, 1, 1)
    })
}

/// Holds the RCU callback of a kill that has cleared `BUSY`, before it puts the initial reference.
///
/// Another transition must not begin before the initial reference is put.
pub(super) fn nothing_begins_before_closed() -> Result<Outcome> {
    apart(|here, there| {
        for begin in [
            |modal: &Modal| modal.switch_to_atomic(),
            |modal: &Modal| {
                let _ = modal.resurrect();
            },
        ] {
            let mut is_held = false;
            let mut tries = 0;
            while !is_held {
                tries += 1;
                check!(tries <= 10);
                let (modal, events) = modal()?;
                // The first such call removes the bias, and the second puts the initial reference.
                let window = open!(in_callback(STATE_CMPXCHG, 2).on(modal.value()));
                let used = modal.clone();
                let (beginner, begin) = Worker::spawn_early(here, move || begin(&used))?;
                let killer = with(&modal, there, |modal| modal.kill())?;
                // The kernel skips a probe that is hit while it runs the handler of another probe
                // on the same CPU (`nmissed` of a kprobe). Then this tries again.
                wait_for(|| window.is_held() || events.released.get() == 1)?;
                is_held = window.is_held();
                drop(begin);
                if is_held {
                    check!(!beginner.is_done_early() && window.is_held());
                    check!(modal.is_zero() && events.released.get() == 0);
                }
                drop(window);
                check!(killer.join()?);
                beginner.join()?;
                wait_for(|| events.released.get() == 1)?;
                check!(!modal.is_dying() || modal.resurrect().is_ok());
                check_live(modal, &events, 0, 1)?;
            }
        }
        Ok(Passed)
    })
}

/// An object whose confirmation waits for `go_on`.
struct Told {
    thing: Thing,
    begun: Counter,
    go_on: Counter,
}

impl AsRef<Thing> for Told {
    fn as_ref(&self) -> &Thing {
        &self.thing
    }
}

impl Counted for Told {
    fn confirmed(&self) {
        let start = Instant::<Monotonic>::now();
        self.begun.inc();
        while self.go_on.get() == 0 && start.elapsed() < Delta::from_secs(5) {}
        self.thing.confirmed();
    }

    fn release(&self) {
        self.thing.release();
    }
}

/// Checks that `resurrect()` waits for the end of a confirmation.
///
/// The confirmation runs in the RCU callback, or in the killer if the reference was frozen before.
pub(super) fn revival_waits_for_confirmation() -> Result<Outcome> {
    apart(|here, there| {
        for is_frozen in [false, true] {
            let (thing, events) = Thing::new()?;
            let told = Told {
                thing,
                begun: Counter::default(),
                go_on: Counter::default(),
            };
            let told: PercpuRef<Told, Reinit> =
                UniquePercpuRef::new_reinit(told, GFP_KERNEL)?.into();
            let told = Arc::new(told, GFP_KERNEL)?;
            let frozen = is_frozen.then(|| told.freeze());
            let (killed, revived) = (told.clone(), told.clone());
            let (reviver, begin) = Worker::spawn_early(here, move || revived.resurrect())?;
            let killer = Worker::spawn(there, move || killed.kill_and_confirm())?;
            wait_for(|| told.value().begun.get() == 1)?;
            drop(begin);
            check!(!reviver.is_done_early() && events.confirmed.get() == 0);
            told.value().go_on.inc();
            check!(reviver.join()?.is_ok() && killer.join()?);
            check!(events.confirmed.get() == 1);
            drop(frozen);
            check!(!told.is_dying());
            drop(told);
            check_end(&events, 1, 2)?;
        }
        Ok(Passed)
    })
}

//
// Holds, places and waits.
//

/// Holds the owner, and then the thread that has run the release, before it drops its hold.
///
/// These are the last two holds. The thread that drops the last hold drops the object, once.
pub(super) fn last_hold_frees() -> Result<Outcome> {
    apart(|_, there| {
        for owner_is_held in [false, true] {
            let (modal, events) = modal()?;
            let guard = modal.try_get().ok_or(EIO)?;
            check!(modal.kill_and_confirm());
            wait_for(|| events.confirmed.get() == 1)?;
            rcu::rcu_barrier();
            let window = open!(in_thread(c"rust_helper_atomic64_fetch_add", 1).on(&*guard));
            if owner_is_held {
                let owner = Worker::spawn(there, move || drop(modal))?;
                wait_for(|| window.is_held())?;
                drop(guard);
                check!(events.released.get() == 1 && events.dropped.get() == 0);
                drop(window);
                owner.join()?;
            } else {
                let last = Worker::spawn(there, move || drop(guard))?;
                wait_for(|| window.is_held())?;
                check!(events.released.get() == 1);
                drop(modal);
                check!(events.dropped.get() == 0);
                drop(window);
                last.join()?;
            }
            check_end(&events, 1, 1)?;
        }
        Ok(Passed)
    })
}

/// Holds a remover before it is counted, while a second remover takes the object out.
///
/// Both must wait for the release of the object.
pub(super) fn second_remover_meets_slow_one() -> Result<Outcome> {
    apart(|here, there| {
        let (thing, events) = Thing::shared()?;
        let place = Arc::new(RcuPercpuRef::from(thing), GFP_KERNEL)?;
        let guard = place.try_get().ok_or(EIO)?;
        let window = open!(in_thread(c"rust_helper_atomic64_add", 1).on_variable(&*place));
        let (first, second) = (place.clone(), place.clone());
        let first = Worker::spawn(there, move || first.remove())?;
        wait_for(|| window.is_held())?;
        let second = Worker::spawn(here, move || second.remove())?;
        check!(!second.is_done_early() && window.is_held());
        drop(window);
        check!(!first.is_done_early() && !second.is_done_early());
        check!(events.released.get() == 0 && place.try_get().is_none());
        drop(guard);
        check!(!first.join()? && second.join()?);
        check_end(&events, 0, 1)?;
        Ok(Passed)
    })
}

/// Holds a writer before it marks the object as published.
///
/// Readers must not find the object yet.
pub(super) fn place_shows_published_objects() -> Result<Outcome> {
    apart(|_, there| {
        let (thing, events) = Thing::shared()?;
        let place = Arc::new(RcuPercpuRef::empty(), GFP_KERNEL)?;
        let guard = thing.try_get().ok_or(EIO)?;
        let window = open!(in_thread(STATE_CMPXCHG, 1).on(&*guard));
        let put_into = place.clone();
        let writer = Worker::spawn(there, move || put_into.replace(Some(thing)).is_none())?;
        wait_for(|| window.is_held())?;
        check!(place.try_get().is_none() && window.is_held());
        drop(window);
        check!(writer.join()? && place.try_get().is_some());
        drop(guard);
        drop(place);
        check_end(&events, 0, 1)?;
        Ok(Passed)
    })
}

/// Holds a thread that has seen that the object is not released, before it becomes a waiter.
///
/// The release then wakes up no waiter, so the thread must check again.
pub(super) fn wake_up_comes_before_wait() -> Result<Outcome> {
    apart(|_, there| {
        let (thing, events) = Thing::shared()?;
        let thing = Arc::new(thing, GFP_KERNEL)?;
        let guard = thing.try_get().ok_or(EIO)?;
        check!(kill_checked(&thing));
        wait_for(|| events.confirmed.get() == 1)?;
        let waited_for = thing.clone();
        // Created before the window is opened, because creating a thread initialises a completion,
        // too.
        let (waiter, begin) = Worker::spawn_early(there, move || {
            waited_for.wait_released_timeout(Delta::from_secs(3))
        })?;
        let window = open!(in_thread(c"rust_helper_init_completion", 1).anywhere());
        drop(begin);
        wait_for(|| window.is_held())?;
        drop(guard);
        check!(window.is_held() && events.released.get() == 1);
        let start = Instant::<Monotonic>::now();
        drop(window);
        check!(waiter.join()?.is_ok() && start.elapsed() < Delta::from_secs(2));
        drop(thing);
        check_end(&events, 1, 1)?;
        Ok(Passed)
    })
}

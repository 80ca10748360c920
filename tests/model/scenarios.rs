// SPDX-License-Identifier: GPL-2.0

//! The scenarios: the steps of the threads, and the properties that each order of steps must have.
//!
//! All scenarios have these properties, which `world.rs` checks: memory is not used after it was
//! freed, and is freed once. An access to a counter is ordered after earlier accesses. No thread
//! sleeps in a critical section. Each wait ends. The library does not warn. When all threads have
//! ended, only the classes are left in memory.

use crate::{
    bindings,
    prelude::*,
    rcu::{self, RcuBox, RcuCallback, RcuCallbackBox, RcuCell},
    sync::percpu_ref::{
        unload, Counted, Kind, PercpuRef, PercpuRefGuard, RcuPercpuRef, Reinit, UniquePercpuRef,
    },
    time::Delta,
    world::{self, Actor},
};
use loom::{cell::UnsafeCell, sync::Arc};
use std::{
    boxed::Box,
    sync::{
        atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::SeqCst},
        Mutex,
    },
};

/// The calls in an execution so far.
///
/// `loom` runs one thread at a time, so these are the calls before now in time. They imply no
/// memory order.
pub struct Seen {
    releases: AtomicUsize,
    drops: AtomicUsize,
    confirmed: AtomicUsize,
    /// Kills that asked for a confirmation.
    to_confirm: AtomicUsize,
    switched: AtomicUsize,
    /// Whether the module is unloaded.
    is_gone: AtomicBool,
    /// The handle by which the next release resurrects and kills the object, or 0.
    revive: AtomicUsize,
    /// The number of switches back to per-CPU mode.
    switched_back: AtomicUsize,
}

pub static SEEN: Seen = Seen {
    releases: AtomicUsize::new(0),
    drops: AtomicUsize::new(0),
    confirmed: AtomicUsize::new(0),
    to_confirm: AtomicUsize::new(0),
    switched: AtomicUsize::new(0),
    is_gone: AtomicBool::new(false),
    revive: AtomicUsize::new(0),
    switched_back: AtomicUsize::new(0),
};

impl Seen {
    pub fn clear(&self) {
        let Self {
            releases,
            drops,
            confirmed,
            to_confirm,
            switched,
            revive,
            switched_back,
            ..
        } = self;
        for counter in [
            releases,
            drops,
            confirmed,
            to_confirm,
            switched,
            revive,
            switched_back,
        ] {
            counter.store(0, SeqCst);
        }
        self.is_gone.store(false, SeqCst);
    }
}

fn expect(what: &AtomicUsize, n: usize) {
    assert_eq!(what.load(SeqCst), n);
}

const ALIVE: u32 = 0x600d;

/// The counted object.
///
/// A use reads the cell, and the drop writes it, so that `loom` checks their order.
struct Thing<const MAY_SLEEP: bool = false>(AtomicU32, UnsafeCell<()>);

// SAFETY: The cell is one of `loom`, which checks that all accesses are ordered.
unsafe impl<const MAY_SLEEP: bool> Sync for Thing<MAY_SLEEP> {}

impl<const MAY_SLEEP: bool> Thing<MAY_SLEEP> {
    fn new() -> Self {
        Self(AtomicU32::new(ALIVE), UnsafeCell::new(()))
    }

    fn check(&self) {
        assert_eq!(
            self.0.load(SeqCst),
            ALIVE,
            "the object is used after it was dropped"
        );
        self.1.with(|_| ());
    }

    fn called(&self) {
        self.check();
        assert!(
            !SEEN.is_gone.load(SeqCst),
            "a module that has gone is called"
        );
    }
}

impl<const MAY_SLEEP: bool> Counted for Thing<MAY_SLEEP> {
    const MAY_SLEEP: bool = MAY_SLEEP;

    fn release(&self) {
        self.called();
        SEEN.releases.fetch_add(1, SeqCst);
        let handle = SEEN.revive.swap(0, SeqCst) as *const PercpuRef<Thing, Reinit>;
        // SAFETY: The scenario keeps the handle until the release has returned.
        if let Some(handle) = unsafe { handle.as_ref() } {
            handle.resurrect().unwrap();
            handle.try_get_live().unwrap().check();
            assert!(handle.kill());
        }
    }

    fn confirmed(&self) {
        self.called();
        SEEN.confirmed.fetch_add(1, SeqCst);
    }

    fn switched(&self) {
        self.called();
        SEEN.switched.fetch_add(1, SeqCst);
        let before = SEEN.switched_back.load(SeqCst);
        loom::thread::yield_now();
        expect(&SEEN.switched_back, before);
    }
}

impl<const MAY_SLEEP: bool> Drop for Thing<MAY_SLEEP> {
    fn drop(&mut self) {
        self.called();
        self.1.with_mut(|_| self.0.store(0, SeqCst));
        SEEN.drops.fetch_add(1, SeqCst);
    }
}

fn once() -> PercpuRef<Thing> {
    UniquePercpuRef::new(Thing::new(), GFP_KERNEL)
        .unwrap()
        .into()
}

fn reinit() -> PercpuRef<Thing, Reinit> {
    UniquePercpuRef::new_reinit(Thing::new(), GFP_KERNEL)
        .unwrap()
        .into()
}

fn atomic() -> PercpuRef<Thing, Reinit> {
    UniquePercpuRef::new_atomic(Thing::new(), GFP_KERNEL)
        .unwrap()
        .into()
}

fn actor(actor: impl FnOnce() + 'static) -> Actor {
    Box::new(actor)
}

/// Returns two actors that use `shared`, which is dropped when both have ended.
fn both<T: 'static>(
    shared: T,
    first: impl FnOnce(&T) + 'static,
    second: impl FnOnce(&T) + 'static,
) -> Vec<Actor> {
    let shared = Arc::new(shared);
    let other = shared.clone();
    vec![actor(move || first(&shared)), actor(move || second(&other))]
}

/// Returns an actor that has the handle, and an actor that puts a reference.
///
/// The reference was got before on the CPU of the first actor.
fn and_put<K: Kind>(
    object: PercpuRef<Thing, K>,
    first: impl FnOnce(PercpuRef<Thing, K>) + 'static,
) -> Vec<Actor> {
    let guard = object.try_get().unwrap();
    vec![
        actor(move || first(object)),
        actor(move || pass(Some(guard))),
    ]
}

/// Uses a reference, if there is one.
fn pass(guard: Option<PercpuRefGuard<Thing>>) {
    if let Some(guard) = guard {
        guard.check();
    }
}

/// Returns this program as a module, which contains all users of the library.
fn module() -> *const bindings::module {
    extern "C" {
        static __executable_start: u8;
        static _end: u8;
    }
    let start = &raw const __executable_start as usize;
    let size = &raw const _end as usize - start;
    let mem = bindings::module_memory {
        base: start as *mut c_void,
        size: size as c_uint,
    };
    Box::leak(Box::new(bindings::module {
        name: [0; 56],
        mem: [mem],
    }))
}

pub struct Scenario {
    pub name: &'static str,
    /// The number of atomics that the threads use.
    pub atomics: usize,
    /// The largest number of preemptions, or `None` if there is no bound.
    pub preemptions: Option<usize>,
    pub setup: fn() -> Vec<Actor>,
    /// Checks an execution, by the number of blocks of memory that are left.
    pub check: fn(usize),
}

/// Checks that there was one life of one object.
fn one_life(left: usize) {
    expect(&SEEN.releases, 1);
    expect(&SEEN.drops, 1);
    assert_eq!(left, 1);
}

/// Checks that one object was dropped, after any number of lives.
fn dropped(left: usize) {
    expect(&SEEN.drops, 1);
    assert_eq!(left, 1);
}

const fn scenario(name: &'static str, setup: fn() -> Vec<Actor>, check: fn(usize)) -> Scenario {
    Scenario {
        name,
        atomics: 16,
        preemptions: None,
        setup,
        check,
    }
}

impl Scenario {
    const fn at_most(mut self, preemptions: usize) -> Self {
        self.preemptions = Some(preemptions);
        self
    }

    /// Makes room for the atomics of all classes and of the list of callbacks, which unloading
    /// reads.
    const fn unloads(mut self) -> Self {
        self.atomics = 400;
        self
    }
}

pub static ALL: &[Scenario] = &[
    scenario("put_against_kill", put_against_kill, one_life),
    scenario("get_against_kill", get_against_kill, one_life).at_most(4),
    scenario("kill_against_kill", kill_against_kill, one_life).at_most(4),
    scenario(
        "live_get_against_confirmation",
        live_get_against_confirmation,
        one_life,
    )
    .at_most(3),
    scenario("live_get_in_atomic_mode", live_get_in_atomic_mode, one_life).at_most(3),
    scenario("kill_against_switch", kill_against_switch, one_life).at_most(3),
    scenario(
        "get_against_kill_and_switch",
        get_against_kill_and_switch,
        one_life,
    )
    .at_most(2),
    scenario(
        "each_kill_is_confirmed",
        each_kill_is_confirmed,
        all_confirmed,
    )
    .at_most(3),
    scenario("get_against_switch_back", get_against_switch_back, one_life).at_most(3),
    scenario("kill_against_resurrect", kill_against_resurrect, dropped).at_most(2),
    scenario(
        "confirmation_against_resurrect",
        confirmation_against_resurrect,
        confirmed_each_time,
    )
    .at_most(2),
    scenario("freeze_against_kill", freeze_against_kill, dropped).at_most(1),
    scenario("freeze_against_freeze", freeze_against_freeze, dropped).at_most(1),
    scenario("freeze_against_put", freeze_against_put, dropped).at_most(3),
    scenario("zero_when_closed", zero_when_closed, one_life).at_most(2),
    scenario("confirmation_of_switch", confirmation_of_switch, one_life).at_most(3),
    scenario("switch_against_switch", switch_against_switch, one_life).at_most(2),
    scenario("wait_against_put", wait_against_put, one_life).at_most(4),
    scenario("handle_against_put", handle_against_put, one_life).at_most(4),
    scenario("lookup_against_replace", lookup_against_replace, one_life).at_most(4),
    scenario(
        "lookup_against_replace_reinit",
        lookup_against_replace_reinit,
        one_life,
    )
    .at_most(3),
    scenario("remove_against_remove", remove_against_remove, one_life).at_most(3),
    scenario("release_revives", release_revives, two_lives).at_most(3),
    scenario("release_in_thread", release_in_thread, one_life).at_most(3),
    scenario("last_put_against_unload", last_put_against_unload, unloaded)
        .unloads()
        .at_most(3),
    scenario("give_up_against_put", give_up_against_put, leaked_or_not)
        .unloads()
        .at_most(3),
    scenario("new_against_unload", new_against_unload, unloaded_early)
        .unloads()
        .at_most(3),
    scenario(
        "callback_against_unload",
        callback_against_unload,
        callback_ran_or_not,
    )
    .unloads()
    .at_most(3),
    scenario("cell_against_replace", cell_against_replace, cell_dropped).at_most(4),
    scenario("revive_at_limit", revive_at_limit, leaked).at_most(2),
];

/// Kills an object while another CPU puts a reference that was got on the CPU of the killer.
fn put_against_kill() -> Vec<Actor> {
    and_put(once(), |object| assert!(object.kill()))
}

fn get_against_kill() -> Vec<Actor> {
    both(
        once(),
        |object| assert!(object.kill()),
        |object| pass(object.try_get()),
    )
}

/// Kills an object in two threads, one of which succeeds.
fn kill_against_kill() -> Vec<Actor> {
    both(
        once(),
        |object| _ = object.kill(),
        |object| _ = object.kill(),
    )
}

/// Checks that `try_get_live()` fails after the confirmation.
fn live_get_against_kill<K: Kind>(object: PercpuRef<Thing, K>) -> Vec<Actor> {
    both(
        object,
        |object| assert!(object.kill_and_confirm()),
        |object| {
            let is_confirmed = SEEN.confirmed.load(SeqCst) != 0;
            let guard = object.try_get_live();
            assert!(!is_confirmed || guard.is_none());
            pass(guard);
        },
    )
}

fn live_get_against_confirmation() -> Vec<Actor> {
    live_get_against_kill(once())
}

fn live_get_in_atomic_mode() -> Vec<Actor> {
    live_get_against_kill(atomic())
}

/// Checks that either the killer or the callback closes the reference.
fn kill_against_switch() -> Vec<Actor> {
    both(
        reinit(),
        |object| object.switch_to_atomic(),
        |object| assert!(object.kill()),
    )
}

fn get_against_kill_and_switch() -> Vec<Actor> {
    let object = Arc::new(reinit());
    let (second, third) = (object.clone(), object.clone());
    vec![
        actor(move || object.switch_to_atomic()),
        actor(move || assert!(second.kill())),
        actor(move || pass(third.try_get())),
    ]
}

/// Checks that a thread that sees per-CPU mode sees the counters that the switch has zeroed.
fn get_against_switch_back() -> Vec<Actor> {
    both(
        reinit(),
        |object| {
            object.switch_to_atomic_sync();
            object.switch_to_percpu();
        },
        |object| pass(object.try_get()),
    )
}

/// Kills an object in two threads, one of which also resurrects it.
fn kill_against_resurrect() -> Vec<Actor> {
    both(
        reinit(),
        |object| {
            object.kill();
            let _ = object.resurrect();
        },
        |object| {
            object.kill();
            pass(object.try_get_live());
        },
    )
}

/// Checks that the confirmation of a kill comes before the end of a `resurrect()`.
fn confirmation_against_resurrect() -> Vec<Actor> {
    both(
        reinit(),
        |object| {
            let before = SEEN.confirmed.load(SeqCst);
            if object.kill_and_confirm() && object.resurrect().is_ok() {
                assert!(SEEN.confirmed.load(SeqCst) > before);
            }
        },
        |object| {
            let _ = object.resurrect();
        },
    )
}

/// Kills and resurrects a frozen reference, and kills it again.
///
/// Each kill must be confirmed once.
fn each_kill_is_confirmed() -> Vec<Actor> {
    let object = Arc::new(atomic());
    let frozen = object.freeze();
    let other = object.clone();
    let kill = |object: &PercpuRef<Thing, Reinit>| {
        let is_killed = object.kill_and_confirm();
        SEEN.to_confirm.fetch_add(is_killed.into(), SeqCst);
    };
    vec![
        actor(move || {
            let _ = object.resurrect();
            kill(&object);
        }),
        actor(move || {
            kill(&other);
            drop(frozen);
        }),
    ]
}

fn all_confirmed(left: usize) {
    expect(&SEEN.confirmed, SEEN.to_confirm.load(SeqCst));
    dropped(left);
}

fn confirmed_each_time(left: usize) {
    expect(&SEEN.confirmed, 1);
    dropped(left);
}

fn freeze_against_kill() -> Vec<Actor> {
    both(
        reinit(),
        |object| {
            let frozen = object.freeze();
            assert!(object.is_zero() && object.try_get_live().is_none());
            drop(frozen);
        },
        |object| {
            object.kill();
            let _ = object.resurrect();
        },
    )
}

fn freeze_against_freeze() -> Vec<Actor> {
    let freeze = |object: &PercpuRef<Thing, Reinit>| {
        let frozen = object.freeze();
        assert!(object.is_zero() && object.try_get().is_none());
        drop(frozen);
    };
    both(atomic(), freeze, freeze)
}

fn freeze_against_put() -> Vec<Actor> {
    and_put(atomic(), |object| {
        let frozen = object.freeze();
        assert!(object.is_zero());
        drop(frozen);
        assert!(object.try_get_live().is_some());
    })
}

/// Checks that a count without references is zero when the transition of a kill has ended.
fn zero_when_closed() -> Vec<Actor> {
    both(
        reinit(),
        |object| {
            object.kill();
            object.switch_to_atomic_sync();
            assert!(object.is_zero());
        },
        |object| {
            object.switch_to_atomic();
        },
    )
}

/// Checks that the mode does not change before the confirmation of the switch has returned.
fn confirmation_of_switch() -> Vec<Actor> {
    both(
        atomic(),
        |object| object.switch_to_atomic(),
        |object| {
            object.switch_to_percpu();
            SEEN.switched_back.fetch_add(1, SeqCst);
        },
    )
}

fn switch_against_switch() -> Vec<Actor> {
    both(
        reinit(),
        |object| {
            object.switch_to_atomic();
            object.switch_to_percpu();
        },
        |object| {
            object.switch_to_atomic();
            pass(object.try_get());
        },
    )
}

/// Checks that no wake-up is lost.
fn wait_against_put() -> Vec<Actor> {
    and_put(once(), |object| {
        assert!(object.kill_and_wait());
        expect(&SEEN.drops, 1);
    })
}

/// Drops the handle and the last reference in any order.
fn handle_against_put() -> Vec<Actor> {
    and_put(atomic(), |object| drop(object))
}

fn find_and_replace<K: Kind>(object: PercpuRef<Thing, K>) -> Vec<Actor> {
    both(
        RcuPercpuRef::from(object),
        |place| drop(place.replace(None)),
        |place| pass(place.try_get()),
    )
}

fn lookup_against_replace() -> Vec<Actor> {
    find_and_replace(once())
}

fn lookup_against_replace_reinit() -> Vec<Actor> {
    find_and_replace(atomic())
}

/// Removes an object in two threads, each of which must wait for its release.
fn remove_against_remove() -> Vec<Actor> {
    let remove = |place: &RcuPercpuRef<Thing, Reinit>| {
        place.remove();
        expect(&SEEN.releases, 1);
    };
    both(RcuPercpuRef::from(atomic()), remove, remove)
}

/// Begins and ends a life inside the release of the life before it.
fn release_revives() -> Vec<Actor> {
    let object = Box::new(atomic());
    let guard = object.try_get().unwrap();
    SEEN.revive.store(&raw const *object as usize, SeqCst);
    vec![
        actor(move || {
            object.kill_and_wait();
            expect(&SEEN.releases, 2);
        }),
        actor(move || pass(Some(guard))),
    ]
}

fn two_lives(left: usize) {
    expect(&SEEN.releases, 2);
    dropped(left);
}

fn release_in_thread() -> Vec<Actor> {
    let object: PercpuRef<Thing<true>> = UniquePercpuRef::new(Thing::new(), GFP_KERNEL)
        .unwrap()
        .into();
    let guard = object.try_get().unwrap();
    vec![
        actor(move || {
            assert!(object.kill_and_wait());
            expect(&SEEN.drops, 1);
        }),
        actor(move || {
            guard.check();
            drop(guard);
        }),
    ]
}

/// Unloads a module while the last reference to its last object is put.
fn last_put_against_unload() -> Vec<Actor> {
    let object = once();
    let guard = object.try_get().unwrap();
    object.kill();
    drop(object);
    vec![
        actor(move || {
            // SAFETY: The program stays in memory, and its module structure is leaked.
            unsafe { unload::module_going(module(), Delta::from_secs(10)) };
            expect(&SEEN.drops, 1);
            SEEN.is_gone.store(true, SeqCst);
        }),
        actor(move || pass(Some(guard))),
    ]
}

/// Checks that the class and the entry of the closed module are left.
fn unloaded(left: usize) {
    expect(&SEEN.drops, 1);
    assert_eq!(left, 2);
}

/// Unloads a module without waiting for its object.
fn give_up_against_put() -> Vec<Actor> {
    let object = once();
    let guard = object.try_get().unwrap();
    object.kill();
    drop(object);
    vec![
        actor(move || {
            // SAFETY: The program stays in memory, and its module structure is leaked.
            unsafe { unload::module_going(module(), Delta::ZERO) };
            SEEN.is_gone.store(true, SeqCst);
        }),
        actor(move || {
            if !SEEN.is_gone.load(SeqCst) {
                guard.check();
            }
            drop(guard);
        }),
    ]
}

fn leaked_or_not(left: usize) {
    match SEEN.drops.load(SeqCst) {
        1 => assert_eq!(left, 2),
        drops => assert_eq!((drops, left), (0, 3)),
    }
}

/// Makes an object while its module is unloaded.
///
/// The object is refused, or the unloading waits for it, or it is leaked.
fn new_against_unload() -> Vec<Actor> {
    vec![
        actor(move || {
            // SAFETY: The program stays in memory, and its module structure is leaked.
            unsafe { unload::module_going(module(), Delta::ZERO) };
            SEEN.is_gone.store(true, SeqCst);
        }),
        actor(move || {
            let thing = std::mem::ManuallyDrop::new(Thing::new());
            // SAFETY: The closure initialises the whole value.
            let init = unsafe {
                pin_init::init_from_closure(|slot: *mut Thing| {
                    slot.write(std::mem::ManuallyDrop::into_inner(thing));
                    Ok::<(), Error>(())
                })
            };
            if let Ok(unique) = UniquePercpuRef::<Thing>::new(init, GFP_KERNEL) {
                drop(PercpuRef::from(unique));
            }
        }),
    ]
}

fn leaked(left: usize) {
    expect(&SEEN.drops, 0);
    assert!(left > 2);
}

fn unloaded_early(_left: usize) {
    assert_eq!(SEEN.releases.load(SeqCst), SEEN.drops.load(SeqCst));
}

struct Later;

impl RcuCallback for Later {
    fn run(this: RcuCallbackBox<Self>) {
        assert!(
            !SEEN.is_gone.load(SeqCst),
            "a module that has gone is called"
        );
        SEEN.releases.fetch_add(1, SeqCst);
        drop(this);
    }
}

fn callback_against_unload() -> Vec<Actor> {
    let later = RcuCallbackBox::new(Later, GFP_KERNEL).unwrap();
    vec![
        actor(move || {
            // SAFETY: The program stays in memory, and its module structure is leaked.
            unsafe { rcu::unload::module_going(module()) };
            SEEN.is_gone.store(true, SeqCst);
        }),
        actor(move || later.call()),
    ]
}

fn callback_ran_or_not(left: usize) {
    // The entry of the closed module is left, and the object if it was leaked.
    assert_eq!(SEEN.releases.load(SeqCst) + left, 2);
}

struct Routes(Thing);

fn cell_against_replace() -> Vec<Actor> {
    let cell = RcuCell::<Routes>::empty();
    drop(cell.replace(Some(RcuBox::new(Routes(Thing::new()), GFP_KERNEL).unwrap())));
    both(
        cell,
        |cell| drop(cell.replace(None)),
        |cell| {
            let section = rcu::read_lock();
            if let Some(routes) = cell.load(&section) {
                routes.0.check();
            }
        },
    )
}

fn cell_dropped(left: usize) {
    expect(&SEEN.drops, 1);
    assert_eq!(left, 0);
}

/// Resurrects a reference with the largest number of references.
///
/// The object may be leaked, but must not be freed.
fn revive_at_limit() -> Vec<Actor> {
    // Neither the handle nor the batch is dropped.
    let object: &PercpuRef<_, _> = Box::leak(Box::new(atomic()));
    world::set_may_warn();
    let batch = Box::leak(Box::new(object.try_get_many((1 << 60) - 1).unwrap()));
    vec![
        actor(move || {
            object.kill();
            let _ = object.resurrect();
        }),
        actor(move || {
            let guard = batch.take().unwrap();
            pass(object.try_get());
            drop(guard);
        }),
    ]
}

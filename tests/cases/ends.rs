// SPDX-License-Identifier: GPL-2.0

//! Cases about the end of references, and about the threads that wait for it.

use super::*;

use kernel::sync::percpu_ref::{
    Frozen,
    RcuPercpuRef,
    Reinit, //
};
use kernel::{
    str::CString,
    sync::global_lock, //
};

extern "C" {
    fn percpu_ref_test_set_fifo();
    fn percpu_ref_test_allow_kill();
    fn percpu_ref_test_forget_kill();
}

type Modal = PercpuRef<Thing, Reinit>;

fn modal() -> Result<(Arc<Modal>, Arc<Events>)> {
    let (thing, events) = Thing::new()?;
    let modal = Modal::from(UniquePercpuRef::new_reinit(thing, GFP_KERNEL)?);
    Ok((Arc::new(modal, GFP_KERNEL)?, events))
}

/// Drops `value` in a hard interrupt, on PREEMPT_RT too.
fn drop_in_hardirq<V: Send>(value: V) {
    in_timer(true, move || drop(value));
}

/// Puts the last reference in a hard interrupt while a thread waits for the release.
///
/// lockdep must not report anything.
pub(super) fn last_put_in_hardirq_wakes() -> Result<Outcome> {
    let Some((here, _)) = two_cpus() else {
        return Ok(Skipped("needs two CPUs"));
    };
    for _ in 0..times(20) {
        // A thread waits for the release.
        let (thing, events) = Thing::shared()?;
        let guard = thing.try_get().ok_or(EIO)?;
        check!(thing.kill());
        let waiter = Thread::spawn(here, move || thing.wait_released())?;
        fsleep(Delta::from_millis(2));
        drop_in_hardirq(guard);
        drop(waiter);
        check_end(&events, 0, 1)?;

        // A thread waits for a release that may sleep.
        let (thing, events) = Thing::new()?;
        let sleeper = PercpuRef::from(UniquePercpuRef::new(Sleeping(thing), GFP_KERNEL)?);
        let guard = sleeper.try_get().ok_or(EIO)?;
        check!(sleeper.kill());
        let waiter = Thread::spawn(here, move || sleeper.wait_released())?;
        fsleep(Delta::from_millis(2));
        drop_in_hardirq(guard);
        drop(waiter);
        check_end(&events, 0, 1)?;

        // The owner has dropped its handle, so the interrupt drops the last hold, too.
        let (thing, events) = Thing::shared()?;
        let guard = thing.try_get().ok_or(EIO)?;
        drop(thing);
        rcu::rcu_barrier();
        drop_in_hardirq(guard);
        check_end(&events, 0, 1)?;

        // The interrupt drops the last hold of an object that can have more than one life: the
        // owner's handle, or the hold of the life.
        for owner_last in [false, true] {
            let (modal, events) = modal()?;
            let guard = modal.try_get().ok_or(EIO)?;
            modal.switch_to_atomic_sync();
            if owner_last {
                drop(guard);
                drop_in_hardirq(modal);
            } else {
                drop(modal);
                drop_in_hardirq(guard);
            }
            check_end(&events, 0, 1)?;
        }
    }
    Ok(Passed)
}

/// An object whose release may sleep, but does not sleep.
struct Sleeping(Thing);

impl Counted for Sleeping {
    const MAY_SLEEP: bool = true;

    fn release(&self) {
        self.0.release();
    }
}

/// Checks that a count without references is zero as soon as a wait for the transition returns.
///
/// The waiting thread has real-time priority, so it runs before the RCU callback can go on.
pub(super) fn zero_when_closed() -> Result<Outcome> {
    for cpu in online_cpus() {
        let failed = on_cpu(cpu, || {
            // SAFETY: `percpu_ref_test_set_fifo()` changes the current task, which is a kernel
            // thread of this case.
            unsafe { percpu_ref_test_set_fifo() };
            let (modal, events) = modal()?;
            let rounds = times(25);
            for _ in 0..rounds {
                check!(modal.kill());
                modal.switch_to_atomic_sync();
                check!(modal.is_zero() && modal.references() == Some(0));
                check!(modal.try_get().is_none());
                modal.wait_released();
                modal.switch_to_percpu();
                check!(modal.reinit().is_ok());

                check!(modal.kill());
                check!(modal.reinit().is_ok());
            }
            check!(modal.kill_and_wait());
            check!(events.released.get() as usize == 2 * rounds + 1);
            Ok::<_, Error>(())
        })?;
        failed?;
        wait_for(|| THINGS.load(Relaxed) == 0)?;
    }
    Ok(Passed)
}

/// An object that checks its own count when a kill is confirmed.
struct Watcher {
    own: Atomic<*mut PercpuRef<Watcher, Reinit>>,
    zero: Counter,
    held: Counter,
}

impl Counted for Watcher {
    fn confirmed(&self) {
        // SAFETY: `zero_when_confirmed()` keeps the `PercpuRef` until after the last confirmation.
        let own = unsafe { &*self.own.load(Acquire) };
        match own.references() {
            Some(0) if own.is_zero() && own.try_get().is_none() => self.zero.inc(),
            Some(1) if !own.is_zero() && own.try_get().is_some() => self.held.inc(),
            _ => {}
        }
        if own.try_get_live().is_some() {
            self.zero.inc();
        }
    }
}

/// Checks that the initial reference does not count as a reference in the confirmation.
///
/// It is put after the confirmation.
pub(super) fn zero_when_confirmed() -> Result<Outcome> {
    let watcher = Watcher {
        own: Atomic::new(core::ptr::null_mut()),
        zero: Counter::default(),
        held: Counter::default(),
    };
    let own = PercpuRef::from(UniquePercpuRef::new_reinit(watcher, GFP_KERNEL)?);
    own.value().own.store((&raw const own).cast_mut(), Release);
    for atomic in [false, true] {
        for held in [false, true] {
            if atomic {
                own.switch_to_atomic_sync();
            }
            let guard = held.then(|| own.try_get());
            check!(own.kill_and_confirm());
            rcu::rcu_barrier();
            drop(guard);
            own.wait_released();
            check!(own.reinit().is_ok());
        }
    }
    check!(own.value().zero.get() == 2 && own.value().held.get() == 2);
    check!(own.kill_and_wait());
    rcu::rcu_barrier();
    Ok(Passed)
}

/// An object whose release waits for the release of another object of its type.
struct Generation {
    child: Option<PercpuRef<Generation>>,
    ended: Arc<Counter>,
}

impl Counted for Generation {
    const MAY_SLEEP: bool = true;

    fn release(&self) {
        if let Some(child) = &self.child {
            child.kill_and_wait();
        }
        self.ended.inc();
    }
}

/// Runs more releases that wait for each other than a workqueue would run at a time.
pub(super) fn release_waits_for_release() -> Result<Outcome> {
    const PARENTS: u32 = 1100;
    const GENERATIONS: u32 = 3;

    let ended = Arc::new(Counter::default(), GFP_KERNEL)?;
    let mut parents = KVVec::with_capacity(PARENTS as usize, GFP_KERNEL)?;
    for _ in 0..PARENTS {
        let mut child = None;
        for _ in 0..GENERATIONS {
            let ended = ended.clone();
            let generation = Generation { child, ended };
            child = Some(PercpuRef::from(UniquePercpuRef::new(
                generation, GFP_KERNEL,
            )?));
        }
        parents.push(child, GFP_KERNEL)?;
    }
    drop(parents);
    // In a kernel with all debugging options, creating the threads takes half a minute.
    wait_for_secs(200, || ended.get() == PARENTS * GENERATIONS)?;
    Ok(Passed)
}

/// Checks that waits end at their timeout, and at a fatal signal.
pub(super) fn waits_end() -> Result<Outcome> {
    let (thing, events) = Thing::shared()?;
    let thing = Arc::new(thing, GFP_KERNEL)?;
    let guard = thing.try_get().ok_or(EIO)?;

    let start = Instant::<Monotonic>::now();
    check!(thing.wait_released_timeout(Delta::from_millis(20)) == Err(ETIMEDOUT));
    check!(start.elapsed() >= Delta::from_millis(20) && !thing.is_dying());
    check!(thing.kill_and_wait_timeout(Delta::from_millis(20)) == Err(ETIMEDOUT));
    check!(thing.is_dying());
    check!(thing.kill_and_wait_timeout(Delta::from_millis(0)) == Err(ETIMEDOUT));
    check!(thing.wait_released_timeout(Delta::from_nanos(i64::MIN)) == Err(ETIMEDOUT));

    // 1: the thread waits. 2: it has returned with `EINTR`.
    let step = Arc::new(Atomic::new(0), GFP_KERNEL)?;
    let (there, killed) = (thing.clone(), step.clone());
    let cpu = online_cpus().last().ok_or(EIO)?;
    let thread = Thread::spawn(cpu, move || {
        // SAFETY: `percpu_ref_test_allow_kill()` changes the current task, which is a kernel thread
        // of this case.
        unsafe { percpu_ref_test_allow_kill() };
        killed.store(1, Release);
        let result = there.kill_and_wait_killable();
        let again = there.wait_released_killable();
        // SAFETY: `percpu_ref_test_forget_kill()` changes the current task, which is a kernel
        // thread of this case.
        unsafe { percpu_ref_test_forget_kill() };
        if result == Err(EINTR) && again == Err(EINTR) {
            killed.store(2, Release);
        }
    })?;
    // Declared after `thread`, so that a failed check drops the guard before it waits for the
    // thread.
    let guard = guard;
    wait_for(|| step.load(Acquire) == 1)?;
    fsleep(Delta::from_millis(10));
    check!(step.load(Acquire) == 1);
    thread.kill();
    drop(thread);
    check!(step.load(Acquire) == 2);

    let waiter = {
        let there = thing.clone();
        Thread::spawn(cpu, move || {
            let _ = there.wait_released_timeout(Delta::from_secs(3600));
        })?
    };
    let released = events.released.get();
    drop(guard);
    drop(waiter);
    check!(released == 0);
    check!(thing.wait_released_timeout(Delta::from_millis(0)) == Ok(()));
    check!(thing.kill_and_wait_killable() == Ok(()));
    drop(thing);
    check_end(&events, 0, 1)?;
    Ok(Passed)
}

/// An object that a thread waits for throughout the suite.
struct Awaited;

impl Counted for Awaited {}

type LongWait = (Instant<Monotonic>, PercpuRefGuard<Awaited>, Thread);

global_lock! {
    // SAFETY: `long_wait_begins()`, which is the first case, initialises the lock once.
    unsafe(uninit) static LONG_WAIT: Mutex<Option<LongWait>> = None;
}

/// Begins the wait that [`long_wait_is_told`] ends.
pub(super) fn long_wait_begins() -> Result<Outcome> {
    static ONCE: Atomic<u32> = Atomic::new(0);
    if ONCE.fetch_add(1, Relaxed) != 0 {
        return Ok(Skipped("only once in a boot"));
    }
    // SAFETY: `ONCE` was zero, so this is the only initialisation. This is the first case, so the
    // lock was not used before.
    unsafe { LONG_WAIT.init() };
    if value(module_parameters::seconds.value()) == 0 {
        return Ok(Skipped("takes too long"));
    }

    let awaited = PercpuRef::from(UniquePercpuRef::new(Awaited, GFP_KERNEL)?);
    let guard = awaited.try_get().ok_or(EIO)?;
    check!(awaited.kill());
    let cpu = online_cpus().last().ok_or(EIO)?;
    let waiter = Thread::spawn(cpu, move || awaited.wait_released())?;
    *LONG_WAIT.lock() = Some((Instant::now(), guard, waiter));
    Ok(Passed)
}

/// Ends the wait of [`long_wait_begins`] after more than ten seconds, so that it was logged.
///
/// `tests/guest/init` checks the log.
pub(super) fn long_wait_is_told() -> Result<Outcome> {
    let Some((start, guard, waiter)) = LONG_WAIT.lock().take() else {
        return Ok(Skipped("takes too long"));
    };
    while start.elapsed() < Delta::from_millis(10_500) {
        fsleep(Delta::from_millis(100));
    }
    drop(guard);
    drop(waiter);
    Ok(Passed)
}

/// Freezes, kills and resurrects a reference in different orders.
pub(super) fn freeze_against_kill() -> Result<Outcome> {
    // Frozen twice, and thawed by other threads.
    let (gate, events) = modal()?;
    let first = gate.freeze();
    check!(events.released.get() == 1 && gate.is_dying() && gate.is_zero());
    check!(gate.try_get().is_none() && gate.try_get_live().is_none());
    let second = gate.freeze();
    check!(events.released.get() == 1 && second.value().is_alive());
    let cpu = online_cpus().last().ok_or(EIO)?;
    on_cpu(cpu, move || drop(first))?;
    check!(gate.is_dying());
    check!(gate.resurrect() == Err(EINVAL) && gate.reinit() == Err(EINVAL));
    on_cpu(cpu, move || drop(second))?;
    check!(!gate.is_dying() && gate.try_get_live().is_some());

    // A kill of a frozen reference is confirmed at once, and stays after the thaw.
    let frozen = gate.freeze();
    check!(gate.kill_and_confirm() && !gate.kill());
    check!(events.confirmed.get() == 1);
    gate.wait_released();
    drop(frozen);
    check!(gate.is_dying() && gate.is_zero());
    check!(gate.resurrect().is_ok() && !gate.is_dying());

    // Killed before it is frozen, and resurrected while the freezer waits.
    let guard = gate.try_get().ok_or(EIO)?;
    check!(gate.kill());
    let there = gate.clone();
    let freezer = Thread::spawn(cpu, move || drop(there.freeze()))?;
    fsleep(Delta::from_millis(5));
    let resurrected = gate.resurrect();
    // If the freezer has not begun yet, the reference is live again.
    drop(guard);
    drop(freezer);
    check!(resurrected.is_ok());
    check!(!gate.is_dying() && gate.try_get_live().is_some());
    let frozen = gate.freeze();
    check!(gate.kill() && gate.resurrect().is_ok() && gate.is_dying());
    drop(frozen);
    check!(!gate.is_dying() && gate.try_get_live().is_some());

    // Frozen in atomic mode, and thawed in per-CPU mode.
    gate.switch_to_atomic_sync();
    let frozen = gate.freeze();
    gate.switch_to_percpu();
    drop(frozen);
    check!(gate.references().is_none() && !gate.is_dying());

    // The owner is dropped before the freezer.
    let frozen: Frozen<Thing> = gate.freeze();
    drop(gate);
    check!(events.dropped.get() == 0 && frozen.value().is_alive());
    drop(frozen);
    check!(events.dropped.get() == 1 && events.disorder.get() == 0);
    check!(THINGS.load(Relaxed) == 0);
    Ok(Passed)
}

/// Freezes, kills and resurrects one reference in threads that do not synchronise.
///
/// No thread waits forever. When all threads have ended, the reference can be resurrected if it was
/// killed, and ends as usual.
pub(super) fn freezers_and_killers_race() -> Result<Outcome> {
    let (gate, events) = modal()?;
    let stop = Arc::new(Atomic::new(0), GFP_KERNEL)?;
    let frozen = Arc::new(Counter::default(), GFP_KERNEL)?;
    let errors = Arc::new(Counter::default(), GFP_KERNEL)?;
    let mut threads = KVec::new();
    // Makes the threads end, even if this case fails. Dropped before the threads, because the drop
    // of a thread waits for it.
    let end = ScopeGuard::new(|| stop.store(1, Release));
    for (number, cpu) in online_cpus().flat_map(|cpu| [cpu, cpu]).enumerate() {
        let (gate, stop) = (gate.clone(), stop.clone());
        let (frozen, errors) = (frozen.clone(), errors.clone());
        let thread = Thread::spawn(cpu, move || {
            let mut turn = number;
            while stop.load(Acquire) == 0 {
                turn = turn.wrapping_add(1);
                match turn % 4 {
                    0 | 1 => {
                        let guards = (gate.freeze(), gate.freeze());
                        if gate.try_get().is_some() || !gate.is_zero() || !gate.is_dying() {
                            errors.inc();
                        }
                        frozen.inc();
                        drop(guards.0);
                        if gate.try_get_live().is_some() {
                            errors.inc();
                        }
                    }
                    2 => {
                        // Not `kill()`, which warns if the reference was killed already.
                        let _ = gate.kill_and_wait_timeout(Delta::from_millis(0));
                    }
                    _ => {
                        let _ = gate.resurrect();
                        drop(gate.try_get());
                    }
                }
                fsleep(Delta::from_micros(50 + 31 * number as i64));
            }
        })?;
        threads.push(thread, GFP_KERNEL)?;
    }
    fsleep(Delta::from_millis(times(1000) as i64));
    let result = wait_for(|| frozen.get() > 20);
    drop(end);
    drop(threads);
    result?;

    check!(errors.get() == 0);
    let _ = gate.resurrect();
    check!(!gate.is_dying() && gate.try_get_live().is_some());
    check!(gate.kill_and_wait());
    check!(events.disorder.get() == 0);
    drop(gate);
    check!(events.dropped.get() == 1);
    pr_info!("        # frozen {} times\n", frozen.get());
    Ok(Passed)
}

/// Removes an object from a place in many threads, and checks that each waits for the release.
pub(super) fn second_remover_waits() -> Result<Outcome> {
    for _ in 0..times(5) {
        let (thing, events) = Thing::shared()?;
        let place = Arc::new(RcuPercpuRef::from(thing), GFP_KERNEL)?;
        let request = place.try_get_live().ok_or(EIO)?;
        let early = Arc::new(Counter::default(), GFP_KERNEL)?;
        let removed = Arc::new(Counter::default(), GFP_KERNEL)?;

        let mut removers = KVec::new();
        for cpu in online_cpus().flat_map(|cpu| [cpu, cpu]) {
            let (place, events) = (place.clone(), events.clone());
            let (early, removed) = (early.clone(), removed.clone());
            let remover = Thread::spawn(cpu, move || {
                if place.remove() {
                    removed.inc();
                }
                if events.released.get() == 0 {
                    early.inc();
                }
            })?;
            removers.push(remover, GFP_KERNEL)?;
        }
        fsleep(Delta::from_millis(50));
        let held = early.get() == 0 && request.is_alive();
        drop(request);
        drop(removers);
        check!(held && early.get() == 0 && removed.get() == 1);
        // The place is empty, so this has nothing to remove and nothing to wait for.
        check!(!place.remove());
        check_end(&events, 0, 1)?;
    }
    Ok(Passed)
}

/// Uses places as the entries of a table.
///
/// Inserts an object if the place is empty, and replaces it if it is still the expected object.
pub(super) fn places_in_a_table() -> Result<Outcome> {
    let place = RcuPercpuRef::empty();
    let (first, first_events) = Thing::shared()?;
    let (second, second_events) = Thing::shared()?;
    let (third, third_events) = Thing::shared()?;

    check!(place.try_get_many(3).is_none());
    check!(place.insert(first).is_ok());
    let second = place.insert(second).err().ok_or(EIO)?;
    let batch = place.try_get_many(3).ok_or(EIO)?;
    check!(batch.len() == 3);
    drop(batch);

    let mine = place.try_get().ok_or(EIO)?;
    let other = second.try_get().ok_or(EIO)?;
    check!(PercpuRefGuard::ptr_eq(&mine, &mine.clone()) && !PercpuRefGuard::ptr_eq(&mine, &other));
    check!(second.is_of(&other) && !second.is_of(&mine) && second.ptr_eq(&second));
    check!(!second.ptr_eq(&third));

    // `other` is not in the place, so the object that should replace it is returned.
    let third = place.replace_if(&other, Some(third)).err().ok_or(EIO)?;
    check!(place.replace_if(&other, None).err().ok_or(EIO)?.is_none());
    let first = place.replace_if(&mine, third).map_err(|_| EIO)?;
    check!(first.is_of(&mine) && place.replace_if(&mine, None).is_err());
    drop((mine, other));
    for (thing, events) in [(first, first_events), (second, second_events)] {
        thing.kill_and_wait();
        drop(thing);
        check!(events.released.get() == 1);
    }
    let guard = place.try_get_live().ok_or(EIO)?;
    let third = place.replace_if(&guard, None).map_err(|_| EIO)?;
    check!(place.try_get().is_none());
    drop((guard, third));
    check_end(&third_events, 0, 1)?;
    Ok(Passed)
}

/// An object whose confirmation of a switch takes time, while a thread waits to undo the switch.
struct Slow {
    begun: Atomic<u32>,
    undone: Atomic<u32>,
    early: Atomic<u32>,
}

impl Counted for Slow {
    fn switched(&self) {
        self.begun.store(1, Release);
        // In this time, the other thread tries to switch back.
        let start = Instant::<Monotonic>::now();
        while start.elapsed() < Delta::from_millis(20) {}
        self.early.store(self.undone.load(Acquire), Relaxed);
    }
}

/// Checks that a switch of a count in atomic mode is confirmed before the mode can change.
pub(super) fn switch_is_confirmed_first() -> Result<Outcome> {
    let Some((here, there)) = two_cpus() else {
        return Ok(Skipped("needs two CPUs"));
    };
    let slow = Slow {
        begun: Atomic::new(0),
        undone: Atomic::new(0),
        early: Atomic::new(0),
    };
    let slow: PercpuRef<Slow, Reinit> = UniquePercpuRef::new_atomic(slow, GFP_KERNEL)?.into();
    let slow = Arc::new(slow, GFP_KERNEL)?;
    let undoing = slow.clone();
    let undoer = Thread::spawn(there, move || {
        while undoing.value().begun.load(Acquire) == 0 {}
        undoing.switch_to_percpu();
        undoing.value().undone.store(1, Release);
    })?;
    let switching = slow.clone();
    on_cpu(here, move || switching.switch_to_atomic())?;
    drop(undoer);
    check!(slow.value().undone.load(Acquire) == 1);
    check!(slow.value().early.load(Relaxed) == 0);
    check!(slow.references().is_none());
    Ok(Passed)
}

/// Checks the text of `Debug` in some of the states.
pub(super) fn debug_tells_state() -> Result<Outcome> {
    fn says(value: &dyn core::fmt::Debug, expected: &str) -> Result {
        let text = CString::try_from_fmt(kernel::prelude::fmt!("{value:?}"))?;
        let text = text.to_str().map_err(|_| EIO)?;
        if !text.contains(expected) {
            pr_err!("        # {text} does not say {expected}\n");
            return Err(EIO);
        }
        Ok(())
    }

    let (gate, _) = modal()?;
    says(
        &*gate,
        "state: \"live\", mode: \"per-CPU\", references: None",
    )?;
    gate.switch_to_atomic_sync();
    let guard = gate.try_get().ok_or(EIO)?;
    says(
        &*gate,
        "state: \"live\", mode: \"atomic\", references: Some(1)",
    )?;
    gate.kill();
    says(&guard, "state: \"closed\"")?;
    says(&guard.get_many(7), "len: 7")?;
    drop(guard);
    says(&*gate, "state: \"zero\"")?;
    check!(gate.reinit().is_ok());
    says(&gate.freeze(), "state: \"zero\"")?;
    drop(gate);

    let place = RcuPercpuRef::<Thing>::empty();
    says(&place, "empty")?;
    place.replace(Some(Thing::shared()?.0));
    says(&place, "percpu_ref_test::Thing")?;
    drop(place);
    wait_for(|| THINGS.load(Relaxed) == 0)?;
    Ok(Passed)
}

/// A formatter that kills the object that it formats, and sleeps until the release.
struct Ender<'a> {
    place: &'a RcuPercpuRef<Thing>,
    result: Result,
}

impl core::fmt::Write for Ender<'_> {
    fn write_str(&mut self, _text: &str) -> core::fmt::Result {
        if let Some(old) = self.place.replace(None) {
            self.result = old.kill_and_wait_timeout(Delta::from_secs(5));
        }
        Ok(())
    }
}

/// Checks that `Debug` calls the formatter where the formatter may sleep and end the object.
pub(super) fn debug_runs_outside_of_sections() -> Result<Outcome> {
    use core::fmt::Write;

    let (thing, events) = Thing::shared()?;
    let place = RcuPercpuRef::from(thing);
    let mut ender = Ender {
        place: &place,
        result: Err(EIO),
    };
    check!(write!(ender, "{:?}", kernel::fmt::Adapter(&place)).is_ok());
    check!(ender.result == Ok(()));
    check_end(&events, 0, 1)?;
    Ok(Passed)
}

// SPDX-License-Identifier: GPL-2.0

//! Cases about references that have more than one life and change their mode.

use super::*;

use kernel::sync::percpu_ref::Reinit;
use kernel::sync::rcu::read_lock;

type Modal = PercpuRef<Thing, Reinit>;

/// Makes a reference with one of the constructors.
macro_rules! modal {
    ($new:ident) => {{
        let (thing, events) = Thing::new()?;
        let modal = Modal::from(UniquePercpuRef::$new(thing, GFP_KERNEL)?);
        Ok::<_, Error>((Arc::new(modal, GFP_KERNEL)?, events))
    }};
}

/// Keeps grace periods from ending, by a read-side critical section on another CPU.
///
/// If RCU is preemptible, other tasks can run on that CPU.
struct Blocker {
    lifted: Arc<Atomic<u32>>,
    _thread: Thread,
}

impl Blocker {
    fn new(cpu: CpuId) -> Result<Self> {
        let entered = Arc::new(Atomic::new(0), GFP_KERNEL)?;
        let lifted = Arc::new(Atomic::new(0), GFP_KERNEL)?;
        let (inside, until) = (entered.clone(), lifted.clone());
        let thread = Thread::spawn(cpu, move || {
            let _section = read_lock();
            inside.store(1, Release);
            while until.load(Acquire) == 0 {}
        })?;
        wait_for(|| entered.load(Acquire) == 1)?;
        Ok(Self {
            lifted,
            _thread: thread,
        })
    }
}

impl Drop for Blocker {
    fn drop(&mut self) {
        self.lifted.store(1, Release);
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    PerCpu,
    /// A switch to atomic mode is in flight.
    Switching,
    InAtomic,
    /// Killed in per-CPU mode, not confirmed.
    Dying,
    /// Killed during a switch to atomic mode, not confirmed.
    DyingInSwitch,
    /// Confirmed, with a reference left.
    Closed,
    /// Confirmed after a life in atomic mode, with a reference left.
    ClosedAtomic,
    Zero,
    /// Zero after a life in atomic mode.
    ZeroAtomic,
}

impl State {
    /// Returns whether the state ends with a grace period.
    fn is_passing(self) -> bool {
        matches!(self, Switching | Dying | DyingInSwitch)
    }

    fn is_dying(self) -> bool {
        !matches!(self, PerCpu | Switching | InAtomic)
    }

    fn is_zero(self) -> bool {
        matches!(self, Zero | ZeroAtomic)
    }

    /// Returns whether atomic mode was asked for, for this life or for the next life.
    fn is_atomic(self) -> bool {
        !matches!(self, PerCpu | Dying | Closed | Zero)
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Action {
    Kill,
    ToAtomic,
    ToAtomicSync,
    ToPerCpu,
    Resurrect,
    Reinit,
}

use Action::{
    Kill,
    Resurrect,
    ToAtomic,
    ToAtomicSync,
    ToPerCpu, //
};
use State::{
    Closed,
    ClosedAtomic,
    Dying,
    DyingInSwitch,
    InAtomic,
    PerCpu,
    Switching,
    Zero,
    ZeroAtomic, //
};

const STATES: &[State] = &[
    PerCpu,
    Switching,
    InAtomic,
    Dying,
    DyingInSwitch,
    Closed,
    ClosedAtomic,
    Zero,
    ZeroAtomic,
];

const ACTIONS: &[Action] = &[
    Kill,
    ToAtomic,
    ToAtomicSync,
    ToPerCpu,
    Resurrect,
    Action::Reinit,
];

/// Returns whether the action waits for a grace period in this state.
fn waits(state: State, action: Action) -> bool {
    match action {
        Kill => false,
        // In per-CPU mode, it waits for the grace period of its own switch.
        ToAtomicSync => state == PerCpu || state.is_passing(),
        _ => state.is_passing(),
    }
}

/// Kills a reference, and returns whether it was in per-CPU mode.
///
/// In that mode, the number of references is not known before the grace period, which waits for
/// this function.
fn counts_by_cpu(modal: &Modal) -> Result<bool> {
    let _region = PreemptGuard::new();
    check!(modal.kill());
    Ok(modal.references().is_none())
}

/// Does one action in one state, with one reference held unless the state has none.
fn transition(state: State, action: Action, here: CpuId, there: CpuId) -> Result {
    let (modal, events) = modal!(new_reinit)?;
    let held = modal.try_get().ok_or(EIO)?;
    let mut held = (!state.is_zero()).then_some(held);

    if matches!(state, InAtomic | ClosedAtomic | ZeroAtomic) {
        modal.switch_to_atomic_sync();
    }
    let blocker = if state.is_passing() || action == ToAtomicSync && state == PerCpu {
        Some(Blocker::new(there)?)
    } else {
        None
    };
    if matches!(state, Switching | DyingInSwitch) {
        modal.switch_to_atomic();
    }
    if state.is_dying() {
        check!(modal.kill_and_confirm());
        if !state.is_passing() {
            wait_for(|| events.confirmed.get() == 1)?;
            rcu::rcu_barrier();
        }
    }
    check!(modal.is_dying() == state.is_dying());
    check!(modal.is_zero() == state.is_zero());
    check!(events.released.get() == u32::from(state.is_zero()));
    check!(modal.try_get().is_some() != state.is_zero());
    check!(modal.try_get_live().is_some() != state.is_dying());

    // The action itself.
    let result = Arc::new(Atomic::new(-1), GFP_KERNEL)?;
    let (there_modal, there_result) = (modal.clone(), result.clone());
    let thread = Thread::spawn(here, move || {
        let modal = there_modal;
        let result = match action {
            Kill => Ok(i32::from(modal.kill_and_confirm())),
            ToAtomic => {
                modal.switch_to_atomic();
                Ok(0)
            }
            ToAtomicSync => {
                modal.switch_to_atomic_sync();
                Ok(0)
            }
            ToPerCpu => {
                modal.switch_to_percpu();
                Ok(0)
            }
            Resurrect => modal.resurrect().map(|()| 0),
            Action::Reinit => modal.reinit().map(|()| 0),
        };
        there_result.store(result.unwrap_or_else(Error::to_errno).abs(), Release);
    })?;
    if waits(state, action) {
        fsleep(Delta::from_millis(10));
        check!(result.load(Acquire) == -1);
    } else {
        wait_for(|| result.load(Acquire) != -1)?;
    }
    drop(blocker);
    drop(thread);
    rcu::rcu_barrier();

    // The result of the action.
    let result = result.load(Acquire);
    let lives_again = match action {
        Kill => {
            check!((result == 1) != state.is_dying());
            false
        }
        Resurrect => {
            check!(
                result
                    == if state.is_dying() {
                        0
                    } else {
                        -EINVAL.to_errno()
                    }
            );
            state.is_dying()
        }
        Action::Reinit if !state.is_dying() => {
            check!(result == -EINVAL.to_errno());
            false
        }
        Action::Reinit if !state.is_zero() => {
            check!(result == -EBUSY.to_errno());
            false
        }
        Action::Reinit => {
            check!(result == 0);
            true
        }
        _ => {
            check!(result == 0);
            false
        }
    };

    // The effect of the action.
    let dying = (state.is_dying() || action == Kill) && !lives_again;
    check!(modal.is_dying() == dying);
    check!(modal.try_get().is_some() == (!dying || held.is_some()));
    check!(modal.try_get_live().is_some() != dying);
    check!(events.confirmed.get() == u32::from(state.is_dying() || action == Kill));
    let switched = u32::from(matches!(state, Switching | DyingInSwitch));
    check!(events.switched.get() == u32::from(action == ToAtomic) + switched);
    check!(modal.value().is_alive());

    // The mode, in this life or in another life.
    if dying {
        drop(held.take());
        check!(modal.is_zero());
        check!(events.released.get() == 1);
        check!(modal.reinit().is_ok());
    }
    if held.is_none() {
        held = modal.try_get();
    }
    let by_cpu = match action {
        ToAtomic | ToAtomicSync => false,
        ToPerCpu => true,
        _ => !state.is_atomic(),
    };
    let released = events.released.get();
    check!(counts_by_cpu(&modal)? == by_cpu);
    rcu::rcu_barrier();
    check!(events.released.get() == released);
    drop(held);
    check!(modal.is_zero());
    modal.wait_released();
    check!(events.released.get() == released + 1 && events.dropped.get() == 0);
    drop(modal);
    check!(events.dropped.get() == 1 && events.disorder.get() == 0);
    Ok(())
}

/// Does each action in each state.
pub(super) fn each_transition() -> Result<Outcome> {
    let Some((here, there)) = two_cpus() else {
        return Ok(Skipped("needs two CPUs"));
    };
    for &state in STATES {
        for &action in ACTIONS {
            transition(state, action, here, there).inspect_err(|_| {
                pr_err!("        # {action:?} in state {state:?}\n");
            })?;
        }
    }
    check!(THINGS.load(Relaxed) == 0);
    Ok(Passed)
}

/// Checks the modes of the other constructors, and `cancel_init()` of each.
pub(super) fn start_modes() -> Result<Outcome> {
    for start in 0..3 {
        let (thing, events) = Thing::new()?;
        let unique = match start {
            0 => UniquePercpuRef::new_reinit(thing, GFP_KERNEL)?,
            1 => UniquePercpuRef::new_atomic(thing, GFP_KERNEL)?,
            _ => UniquePercpuRef::new_dead(thing, GFP_KERNEL)?,
        };
        unique.cancel_init();
        check_end(&events, 0, 0)?;
    }

    let (modal, events) = modal!(new_atomic)?;
    check!(!modal.is_dying() && !modal.is_zero());
    drop(modal.try_get().ok_or(EIO)?.clone());
    // In atomic mode, the kill itself confirms and releases.
    {
        let _region = PreemptGuard::new();
        check!(modal.kill_and_confirm());
        check!(events.confirmed.get() == 1 && events.released.get() == 1);
    }
    check!(modal.is_zero() && modal.try_get().is_none());
    // The next life is in the mode of the last life.
    check!(modal.reinit().is_ok());
    check!(!counts_by_cpu(&modal)?);
    modal.wait_released();
    drop(modal);
    check_events(&events, 1, 2)?;

    let (modal, events) = modal!(new_dead)?;
    check!(modal.is_dying() && modal.is_zero());
    check!(modal.try_get().is_none() && modal.try_get_live().is_none());
    check!(!modal.kill());
    // There was no life, so there is no release.
    modal.wait_released();
    check!(events.released.get() == 0);
    check!(modal.reinit().is_ok());
    check!(modal.reinit() == Err(EINVAL));
    check!(counts_by_cpu(&modal)?);
    modal.wait_released();
    drop(modal);
    check_events(&events, 0, 1)?;

    // Dropped without any life.
    let (modal, events) = modal!(new_dead)?;
    drop(modal);
    check_events(&events, 0, 0)?;
    Ok(Passed)
}

/// Drops the `PercpuRef` in each state.
///
/// The object is dropped together with the `PercpuRef` or when the last reference is put.
pub(super) fn drop_modal_in_each_state() -> Result<Outcome> {
    let Some((_, there)) = two_cpus() else {
        return Ok(Skipped("needs two CPUs"));
    };
    for &state in STATES {
        for hold in [false, true] {
            let (modal, events) = modal!(new_reinit)?;
            let held = (hold && !state.is_zero()).then(|| modal.try_get());
            if matches!(state, InAtomic | ClosedAtomic | ZeroAtomic) {
                modal.switch_to_atomic_sync();
            }
            let blocker = state.is_passing().then(|| Blocker::new(there));
            if matches!(state, Switching | DyingInSwitch) {
                modal.switch_to_atomic();
            }
            if state.is_dying() {
                modal.kill();
            }
            if !state.is_passing() {
                rcu::rcu_barrier();
            }

            drop(modal);
            drop(blocker);
            rcu::rcu_barrier();
            if let Some(held) = held {
                let held = held.ok_or(EIO)?;
                check!(held.is_alive() && events.released.get() == 0);
                drop(held);
            }
            let switched = matches!(state, Switching | DyingInSwitch);
            check_events(&events, 0, 1)?;
            check!(events.switched.get() == u32::from(switched));
        }
    }
    Ok(Passed)
}

/// An object that reinitialises itself in its release, until `lives` lives have ended.
///
/// The last release drops the `PercpuRef`, unless the release may be inside a call that still
/// borrows it (`borrowed`).
struct Phoenix {
    own: Atomic<*mut Own>,
    lives: Atomic<u32>,
    borrowed: bool,
    thing: Thing,
}

type Own = PercpuRef<Phoenix, Reinit>;

impl Counted for Phoenix {
    fn switched(&self) {
        // SAFETY: The box is dropped in or after the last release, and there was none yet.
        if !unsafe { &*self.own.load(Acquire) }.kill_and_confirm() {
            self.thing.events.disorder.inc();
        }
    }

    fn confirmed(&self) {
        self.thing.confirmed();
        // SAFETY: The box is dropped in or after the last release, and there was none yet.
        if unsafe { &*self.own.load(Acquire) }.kill_and_confirm() {
            self.thing.events.disorder.inc();
        }
    }

    fn release(&self) {
        self.thing.release();
        let own = self.own.load(Acquire);
        if self.lives.fetch_sub(1, Relaxed) > 1 {
            // SAFETY: The box is dropped in or after the last release, and this is not the last.
            let own = unsafe { &*own };
            if own.reinit().is_err() || own.try_get_live().is_none() || !own.kill() {
                self.thing.events.disorder.inc();
            }
        } else if !self.borrowed {
            // SAFETY: `own` came from `KBox::into_raw()` in `phoenix()`. This is the last release,
            // and no other code uses the box any more.
            drop(unsafe { KBox::from_raw(own) });
            if !self.thing.is_alive() {
                self.thing.events.disorder.inc();
            }
        }
    }
}

/// Makes a [`Phoenix`] with `lives` lives, and stores its `PercpuRef` in it.
fn phoenix(lives: u32, atomic: bool) -> Result<(*mut Own, Arc<Events>)> {
    let (thing, events) = Thing::new()?;
    let phoenix = Phoenix {
        own: Atomic::new(core::ptr::null_mut()),
        lives: Atomic::new(lives),
        borrowed: atomic,
        thing,
    };
    let own = Own::from(if atomic {
        UniquePercpuRef::new_atomic(phoenix, GFP_KERNEL)?
    } else {
        UniquePercpuRef::new_reinit(phoenix, GFP_KERNEL)?
    });
    let guard = own.try_get().ok_or(EIO)?;
    let own = KBox::into_raw(KBox::new(own, GFP_KERNEL)?);
    guard.own.store(own, Release);
    Ok((own, events))
}

/// Drops the `PercpuRef` of a [`Phoenix`] that does not drop it in its release.
fn end_phoenix(own: *mut Own, atomic: bool) {
    if atomic {
        // SAFETY: `own` came from `KBox::into_raw()` in `phoenix()`, and no other code uses the box
        // any more.
        drop(unsafe { KBox::from_raw(own) });
    }
}

/// Reinitialises, gets and kills a reference inside its own release.
///
/// The release may do all of this because it runs without a lock. It runs in the RCU callback in
/// per-CPU mode, and inside the kill in atomic mode.
pub(super) fn reinit_inside_release() -> Result<Outcome> {
    for atomic in [false, true] {
        let (own, events) = phoenix(3, atomic)?;
        // SAFETY: The reference was not killed yet, so there was no release, which drops the box.
        unsafe { &*own }.kill();
        end_phoenix(own, atomic);
        check_end(&events, 0, 3)?;
    }
    Ok(Passed)
}

/// Kills a reference inside the confirmation of its switch, which is the end of a transition.
///
/// The confirmation of that kill then tries to kill the reference again.
pub(super) fn kill_inside_confirmation() -> Result<Outcome> {
    for atomic in [false, true] {
        let (own, events) = phoenix(1, atomic)?;
        // SAFETY: The reference was not killed yet, so there was no release, which drops the box.
        unsafe { &*own }.switch_to_atomic();
        end_phoenix(own, atomic);
        check_end(&events, 1, 1)?;
    }
    Ok(Passed)
}

/// Switches a thousand references at a time.
///
/// If the switches waited for each other, this would take a thousand grace periods.
pub(super) fn many_switch_at_once() -> Result<Outcome> {
    let mut all = KVec::with_capacity(1000, GFP_KERNEL)?;
    while all.len() < all.capacity() {
        all.push(modal!(new_reinit)?, GFP_KERNEL)?;
    }

    let start = Instant::<Monotonic>::now();
    for (modal, _) in &all {
        modal.switch_to_atomic();
    }
    for (modal, _) in &all {
        modal.switch_to_atomic_sync();
        modal.switch_to_percpu();
    }
    for (modal, _) in &all {
        check!(modal.kill());
    }
    for (modal, events) in &all {
        modal.wait_released();
        check!(modal.reinit().is_ok());
        check!(events.switched.get() == 1 && events.released.get() == 1);
    }
    check!(start.elapsed() < Delta::from_secs(3));
    drop(all);
    wait_for(|| THINGS.load(Relaxed) == 0)?;
    Ok(Passed)
}

/// An object that counts the threads that have a reference and use it.
struct Gate {
    inside: Atomic<i32>,
    thing: Thing,
}

impl Counted for Gate {
    fn release(&self) {
        self.thing.release();
    }

    fn confirmed(&self) {
        self.thing.confirmed();
    }

    fn switched(&self) {
        self.thing.switched();
    }
}

/// Shared by the threads of the next two cases.
struct Arena {
    gate: PercpuRef<Gate, Reinit>,
    stop: Atomic<u32>,
    passed: Counter,
    kills: Counter,
    resurrections: Counter,
    errors: Counter,
}

impl Arena {
    fn new() -> Result<(Arc<Self>, Arc<Events>)> {
        let (thing, events) = Thing::new()?;
        let gate = Gate {
            inside: Atomic::new(0),
            thing,
        };
        let arena = Self {
            gate: UniquePercpuRef::new_reinit(gate, GFP_KERNEL)?.into(),
            stop: Atomic::new(0),
            passed: Counter::default(),
            kills: Counter::default(),
            resurrections: Counter::default(),
            errors: Counter::default(),
        };
        Ok((Arc::new(arena, GFP_KERNEL)?, events))
    }

    /// Gets and puts references in different ways until `stop` is set.
    fn pass(&self) {
        let mut turn = 0usize;
        while self.stop.load(Acquire) == 0 {
            turn = turn.wrapping_add(1);
            if turn % 64 == 0 {
                fsleep(Delta::from_micros(200));
            }
            let guard = match turn % 3 {
                0 => self.gate.try_get(),
                1 => self.gate.try_get_live(),
                _ => self
                    .gate
                    .try_get_many(turn % 128)
                    .and_then(|mut batch| batch.take()),
            };
            if let Some(guard) = guard {
                guard.inside.add(1, Relaxed);
                if turn % 16 == 0 {
                    fsleep(Delta::from_micros(100));
                }
                drop(guard.clone());
                guard.inside.fetch_sub(1, Release);
                self.passed.inc();
            }
        }
    }

    /// Runs two threads of `task` and one thread of `pass()` on each CPU.
    ///
    /// Runs them for a second, and then until `enough` returns `true`.
    fn run(this: &Arc<Self>, task: fn(&Self, usize), enough: fn(&Self) -> bool) -> Result {
        let mut threads = KVec::new();
        // Makes the threads end, even if this fails. Dropped before the threads, because the drop
        // of a thread waits for it.
        let end = ScopeGuard::new(|| this.stop.store(1, Release));
        for (number, cpu) in online_cpus().enumerate() {
            let arena = this.clone();
            threads.push(Thread::spawn(cpu, move || arena.pass())?, GFP_KERNEL)?;
            for number in [2 * number, 2 * number + 1] {
                let arena = this.clone();
                let thread = Thread::spawn(cpu, move || {
                    while arena.stop.load(Acquire) == 0 {
                        task(&arena, number);
                    }
                })?;
                threads.push(thread, GFP_KERNEL)?;
            }
        }
        fsleep(Delta::from_millis(times(1000) as i64));
        let result = wait_for(|| enough(this));
        drop(end);
        drop(threads);
        result
    }
}

/// Kills, resurrects and switches a reference in threads on all CPUs, while other threads count.
///
/// Afterwards the count must be right, and the number of confirmations must be that of the kills
/// that returned `true`.
pub(super) fn transitions_race() -> Result<Outcome> {
    let (arena, events) = Arena::new()?;
    let race = |arena: &Arena, number: usize| {
        match number % 5 {
            0 => {
                if arena.gate.kill_and_confirm() {
                    arena.kills.inc();
                }
            }
            1 => {
                if arena.gate.resurrect().is_ok() {
                    arena.resurrections.inc();
                }
            }
            2 => {
                if arena.gate.reinit().is_ok() {
                    arena.resurrections.inc();
                }
                arena.gate.switch_to_percpu();
            }
            3 => arena.gate.switch_to_atomic(),
            _ => {
                arena.gate.switch_to_atomic_sync();
                arena.gate.switch_to_percpu();
            }
        }
        fsleep(Delta::from_micros(100 + 37 * number as i64));
    };
    Arena::run(&arena, race, |arena| {
        arena.passed.get() > 1000 && arena.kills.get() > 20
    })?;

    let dying = arena.kills.get() - arena.resurrections.get();
    check!(dying == u32::from(arena.gate.is_dying()));
    if dying == 0 {
        check!(arena.gate.kill_and_confirm());
        arena.kills.inc();
    }
    arena.gate.wait_released();
    rcu::rcu_barrier();
    check!(arena.gate.is_zero());
    check!(arena.gate.value().inside.load(Acquire) == 0);
    check!(events.confirmed.get() == arena.kills.get());
    let (kills, passed) = (arena.kills.get(), arena.passed.get());
    let (switched, released) = (events.switched.get(), events.released.get());
    check!((1..=kills).contains(&released));
    drop(arena);
    check!(events.dropped.get() == 1 && events.disorder.get() == 0);
    pr_info!(
        "        # {passed} passed, {kills} kills, {switched} switches, {released} releases\n"
    );
    Ok(Passed)
}

/// Freezes and thaws a reference in threads on all CPUs, as block devices freeze their queues.
///
/// Each thread freezes it up to three times. While it is frozen, no thread has a reference.
pub(super) fn freeze_and_thaw() -> Result<Outcome> {
    let (arena, events) = Arena::new()?;
    let freeze = |arena: &Arena, number: usize| {
        let start = Instant::<Monotonic>::now();
        let levels = 1 + number % 3;
        let mut frozen = [None, None, None];
        for guard in frozen.iter_mut().take(levels) {
            *guard = Some(arena.gate.freeze());
        }
        arena.kills.inc();
        for _ in 0..20 {
            if arena.gate.value().inside.load(Acquire) != 0
                || !arena.gate.is_zero()
                || arena.gate.try_get_live().is_some()
                || arena.gate.try_get().is_some()
            {
                arena.errors.inc();
            }
            fsleep(Delta::from_micros(20));
        }
        drop(frozen);
        // The pause depends on the time that the thread has kept it frozen, so that on a slow
        // machine, too, there are times at which no thread keeps it frozen.
        let pause = start.elapsed().as_nanos() * 6;
        fsleep(Delta::from_nanos(
            pause + 2_000_000 + 1_531_000 * number as i64,
        ));
    };
    Arena::run(&arena, freeze, |arena| {
        arena.passed.get() > 1000 && arena.kills.get() > 3
    })?;

    check!(arena.errors.get() == 0);
    check!(!arena.gate.is_dying());
    check!(arena.gate.kill_and_wait());
    // Threads that froze it at a time share a release.
    check!((2..=arena.kills.get() + 1).contains(&events.released.get()));
    pr_info!(
        "        # frozen {} times, {} passed\n",
        arena.kills.get(),
        arena.passed.get()
    );
    drop(arena);
    check!(events.dropped.get() == 1 && events.disorder.get() == 0);
    Ok(Passed)
}

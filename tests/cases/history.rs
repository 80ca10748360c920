// SPDX-License-Identifier: GPL-2.0

//! Cases for bugs that the C `percpu_ref` or its users have had.
//!
//! Other files have more cases of this kind: racing killers, a failed initialisation, too many
//! puts, and drops in each state.

use super::*;

use core::mem::ManuallyDrop;
use kernel::sync::percpu_ref::Reinit;
use kernel::{
    new_spinlock,
    sync::SpinLock, //
};

extern "C" {
    fn percpu_ref_test_remove_cpu(cpu: c_uint) -> c_int;
    fn percpu_ref_test_add_cpu(cpu: c_uint) -> c_int;
}

/// The outcome of a case if [`two_cpus`] returns `None`.
const NO_TWO_CPUS: Result<Outcome> = Ok(Skipped("needs two CPUs"));

/// Resurrects a reference right after a kill with a confirmation.
///
/// The confirmation is called once, before the next life begins.
pub(super) fn confirm_against_resurrect() -> Result<Outcome> {
    let (thing, events) = Thing::new()?;
    let thing = PercpuRef::<_, Reinit>::from(UniquePercpuRef::new_reinit(thing, GFP_KERNEL)?);
    let held = thing.try_get().ok_or(EIO)?;

    let rounds = times(50) as u32;
    for round in 1..=rounds {
        check!(thing.kill_and_confirm());
        check!(thing.resurrect().is_ok());
        check!(events.confirmed.get() == round);
        check!(!thing.is_dying() && thing.try_get_live().is_some());
        if round % 3 == 0 {
            thing.switch_to_atomic();
        } else if round % 3 == 1 {
            thing.switch_to_percpu();
        }
    }
    check!(events.released.get() == 0);
    drop(held);
    check!(thing.kill_and_wait());
    drop(thing);
    check!(events.dropped.get() == 1 && events.released.get() == 1);
    check!(events.confirmed.get() == rounds);
    Ok(Passed)
}

/// A callback that delays later callbacks of its CPU.
struct Delay;

impl RcuCallback for Delay {
    fn run(_this: RcuCallbackBox<Self>) {
        let start = Instant::<Monotonic>::now();
        while start.elapsed() < Delta::from_micros(20) {}
    }
}

/// The owner, which drops its handle in an RCU callback.
struct Owner {
    _thing: PercpuRef<Thing>,
    events: Arc<Events>,
    /// The number of owners whose callback ran before the callback of the kill.
    first: Arc<Atomic<u32>>,
}

impl RcuCallback for Owner {
    fn run(this: RcuCallbackBox<Self>) {
        if this.events.confirmed.get() == 0 {
            this.first.add(1, Relaxed);
        }
    }
}

/// Drops the `PercpuRef` in an RCU callback that may run before the RCU callback of the kill.
///
/// The owner queues its callback after the kill, but on another CPU, and callbacks of different
/// CPUs run in any order.
pub(super) fn callbacks_out_of_order() -> Result<Outcome> {
    let Some((here, there)) = two_cpus() else {
        return NO_TWO_CPUS;
    };
    let first = Arc::new(Atomic::new(0), GFP_KERNEL)?;

    let mut rounds = 0;
    while rounds < times(20) || (first.load(Relaxed) == 0 && rounds < 200) {
        rounds += 1;
        let (thing, events) = Thing::shared()?;
        let thing = on_cpu(here, move || {
            for _ in 0..500 {
                RcuCallbackBox::new(Delay, GFP_KERNEL)?.call_hurry();
            }
            thing.kill_and_confirm();
            Ok::<_, Error>(thing)
        })??;
        let owner = Owner {
            _thing: thing,
            events: events.clone(),
            first: first.clone(),
        };
        let owner = RcuCallbackBox::new(owner, GFP_KERNEL)?;
        on_cpu(there, move || owner.call_hurry())?;
        rcu::rcu_barrier();
        check_events(&events, 1, 1)?;
    }
    let first = first.load(Relaxed);
    pr_info!("        # first in {first} of {rounds} rounds\n");
    if first == 0 {
        return Ok(Skipped("they always came in order"));
    }
    Ok(Passed)
}

/// Checks that a reference that is not put leaks its object, and no other object.
pub(super) fn leaked_reference() -> Result<Outcome> {
    let (leaked, leaked_events) = Thing::shared()?;
    let (other, other_events) = Thing::shared()?;
    let forgotten = ManuallyDrop::new(leaked.try_get().ok_or(EIO)?);

    leaked.kill();
    drop(leaked);
    check!(other.kill_and_wait());
    drop(other);
    rcu::rcu_barrier();
    check!(other_events.dropped.get() == 1 && other_events.released.get() == 1);
    check!(leaked_events.dropped.get() == 0 && leaked_events.released.get() == 0);
    check!(forgotten.is_alive());

    // The reference is put after all.
    drop(ManuallyDrop::into_inner(forgotten));
    check_end(&leaked_events, 0, 1)?;
    Ok(Passed)
}

/// Checks that a kill takes less than half a second where `call_rcu()` is lazy.
///
/// A lazy `call_rcu()` waits for more callbacks, for some seconds.
pub(super) fn kill_is_not_lazy() -> Result<Outcome> {
    let Some((here, there)) = two_cpus() else {
        return NO_TWO_CPUS;
    };
    // No callback is in flight after this.
    rcu::rcu_barrier();
    let (callback, ran) = Callback::new(0)?;
    on_cpu(there, move || callback.call())?;
    fsleep(Delta::from_millis(times(500) as i64));
    let is_lazy = ran.confirmed.get() == 0;
    rcu::rcu_barrier();
    check!(ran.confirmed.get() == 1);
    if !is_lazy {
        return Ok(Skipped("call_rcu() is not lazy here"));
    }

    let mut longest = Delta::from_millis(0);
    for _ in 0..5 {
        let (thing, events) = Thing::shared()?;
        let time = on_cpu(here, move || {
            let start = Instant::<Monotonic>::now();
            thing.kill_and_wait();
            start.elapsed()
        })?;
        check_events(&events, 0, 1)?;
        if time > longest {
            longest = time;
        }
    }
    pr_info!("        # {} ms at most\n", longest.as_millis());
    check!(longest < Delta::from_millis(500));
    Ok(Passed)
}

/// An object whose release takes a contended lock, which sleeps on PREEMPT_RT.
struct Locking {
    lock: Arc<SpinLock<u32>>,
    thing: Thing,
}

impl Counted for Locking {
    fn release(&self) {
        *self.lock.lock() += 1;
        self.thing.release();
    }
}

pub(super) fn release_takes_lock() -> Result<Outcome> {
    let Some((here, there)) = two_cpus() else {
        return NO_TWO_CPUS;
    };
    let lock = Arc::pin_init(new_spinlock!(0), GFP_KERNEL)?;
    let stop = Arc::new(Atomic::new(0), GFP_KERNEL)?;
    let (their_lock, their_stop) = (lock.clone(), stop.clone());
    let holder = Thread::spawn(there, move || {
        while their_stop.load(Acquire) == 0 {
            {
                let _guard = their_lock.lock();
                let start = Instant::<Monotonic>::now();
                while start.elapsed() < Delta::from_micros(300) {}
            }
            fsleep(Delta::from_micros(50));
        }
    })?;
    // Makes the thread end, even if this case fails. Dropped before the thread, because the drop of
    // a thread waits for it.
    let end = ScopeGuard::new(|| stop.store(1, Release));

    let rounds = times(50);
    for _ in 0..rounds {
        let (thing, events) = Thing::new()?;
        let lock = lock.clone();
        let object = PercpuRef::from(UniquePercpuRef::new(Locking { lock, thing }, GFP_KERNEL)?);
        let guard = object.try_get().ok_or(EIO)?;
        object.kill();
        rcu::rcu_barrier();
        on_cpu(here, move || drop(guard))?;
        check_events(&events, 0, 1)?;
    }
    drop(end);
    drop(holder);
    check!(*lock.lock() as usize == rounds);
    Ok(Passed)
}

/// Makes the counter of one CPU wrap below zero, and kills with different numbers of references.
pub(super) fn counters_wrap() -> Result<Outcome> {
    let Some((here, there)) = two_cpus() else {
        return NO_TWO_CPUS;
    };
    for left in [1, 10, 20] {
        let (thing, events) = Thing::shared()?;
        let thing = Arc::new(thing, GFP_KERNEL)?;
        let mut guards = KVec::new();
        for _ in 0..3 {
            // The counter of `here` goes up by 40 in each round. The counter of `there` goes down
            // by 30 and up by 10.
            let on_here = thing.clone();
            let more = on_cpu(here, move || get_many(&on_here, 40))??;
            for guard in more {
                guards.push(guard, GFP_KERNEL)?;
            }
            let on_there = thing.clone();
            guards = on_cpu(there, move || {
                guards.truncate(guards.len() - 30);
                for guard in get_many(&on_there, 10)? {
                    guards.push(guard, GFP_KERNEL)?;
                }
                Ok::<_, Error>(guards)
            })??;
        }
        guards = on_cpu(there, move || {
            guards.truncate(left);
            guards
        })?;
        check_held_by(&thing, &events, guards)?;
    }
    Ok(Passed)
}

/// Checks that the counter of a CPU is added after the CPU has gone offline.
pub(super) fn cpu_goes_offline() -> Result<Outcome> {
    let Some(cpu) = online_cpus().filter(|cpu| cpu.as_u32() != 0).last() else {
        return NO_TWO_CPUS;
    };
    for kill_first in [false, true] {
        let (thing, events) = Thing::shared()?;
        let thing = Arc::new(thing, GFP_KERNEL)?;
        let on_that = thing.clone();
        let guards = on_cpu(cpu, move || get_many(&on_that, 100))??;
        if kill_first {
            check!(kill_checked(&thing));
        }
        // SAFETY: `remove_cpu()` can be called from process context.
        let error = unsafe { percpu_ref_test_remove_cpu(cpu.as_u32()) };
        if error != 0 {
            drop((thing, guards));
            wait_for(|| THINGS.load(Relaxed) == 0)?;
            return Ok(Skipped("this kernel does not let the CPU go"));
        }
        let is_online = online_cpus().any(|other| other == cpu);
        let result = if kill_first {
            drop(guards);
            check_end(&events, 1, 1)
        } else {
            // Gets and puts references while the CPU is offline.
            let result = thing.try_get().map(drop).ok_or(EIO);
            result.and_then(|()| check_held_by(&thing, &events, guards).map(drop))
        };
        // SAFETY: `add_cpu()` can be called from process context.
        let error = unsafe { percpu_ref_test_add_cpu(cpu.as_u32()) };
        check!(error == 0);
        result?;
        check!(!is_online && online_cpus().any(|other| other == cpu));
    }
    Ok(Passed)
}

// SPDX-License-Identifier: GPL-2.0

//! Cases about the ways to get, hold and pass on references.

use super::*;

use core::{
    mem::ManuallyDrop,
    ptr, //
};
use kernel::sync::percpu_ref::{
    PercpuRefBatch,
    RcuPercpuRef, //
};
use kernel::{
    current,
    sync::rcu::read_lock,
    types::ForeignOwnable, //
};

/// Kills `thing`, and checks that it is released with the last of the `left` references in `batch`.
///
/// There must be no other references.
fn check_ended_by(
    thing: PercpuRef<Thing>,
    events: &Events,
    mut batch: PercpuRefBatch<Thing>,
    left: usize,
) -> Result {
    check!(batch.len() == left);
    check!(kill_checked(&thing));
    wait_for(|| events.confirmed.get() == 1)?;
    rcu::rcu_barrier();
    check!(thing.try_get_live().is_none());
    drop(thing.try_get_many(2).ok_or(EIO)?);
    check!(batch.value().is_some_and(Thing::is_alive));

    let last = batch.take().ok_or(EIO)?;
    // If a reference were not counted, this would reach zero.
    drop(batch);
    check!(events.released.get() == 0);
    drop(last);
    check!(events.released.get() == 1);
    drop(thing);
    check_end(events, 1, 1)
}

/// Uses batches of different sizes, some of which are too large for the per-CPU counters.
pub(super) fn batches() -> Result<Outcome> {
    for n in [
        1,
        2,
        63,
        64,
        65,
        1000,
        1 << (usize::BITS / 2),
        1 << (usize::BITS - 6),
    ] {
        let (thing, events) = Thing::shared()?;
        let mut batch = thing.try_get_many(n).ok_or(EIO)?;

        // A batch from a single reference.
        let single = thing.try_get().ok_or(EIO)?;
        check!(batch.merge(single.get_many(n)).is_ok());
        check!(batch.put_back(single).is_ok());
        check!(batch.len() == 2 * n + 1);

        let mut half = batch.split(n).ok_or(EIO)?;
        check!(half.len() == n && batch.len() == n + 1);
        check!(half.split(n + 1).is_none());
        // Some references are put on another CPU than they were got on.
        let cpu = online_cpus().last().ok_or(EIO)?;
        on_cpu(cpu, move || drop(half))?;

        while batch.len() > n.min(3) {
            if batch.len() > 1000 {
                drop(batch.split(batch.len() - 1000));
            } else {
                drop(batch.take());
            }
        }
        check_ended_by(thing, &events, batch, n.min(3))?;
    }
    Ok(Passed)
}

/// Merges batches, and checks that a batch refuses references to another object.
pub(super) fn batches_keep_apart() -> Result<Outcome> {
    let (one, one_events) = Thing::shared()?;
    let (other, other_events) = Thing::shared()?;
    let mut ones = one.try_get_many(10).ok_or(EIO)?;
    let others = other.try_get_many(5).ok_or(EIO)?;

    // A batch contains references to one object only.
    let others = ones.merge(others).err().ok_or(EIO)?;
    let guard = ones
        .put_back(other.try_get().ok_or(EIO)?)
        .err()
        .ok_or(EIO)?;
    drop(guard);
    check!(ones.len() == 10 && others.len() == 5);

    // An empty batch holds no references, and can be filled again.
    let mut empty = one.try_get_many(0).ok_or(EIO)?;
    check!(empty.is_empty() && empty.take().is_none() && empty.value().is_none());
    check!(empty.merge(ones).is_ok());
    check!(empty
        .put_back(
            PercpuRefBatch::from(one.try_get().ok_or(EIO)?)
                .take()
                .ok_or(EIO)?
        )
        .is_ok());
    check!(empty.len() == 11);

    check_ended_by_two(one, &one_events, empty, other, &other_events, others)?;
    Ok(Passed)
}

/// Checks that an empty batch takes references to any object.
///
/// One of the objects is at the address of an object that was freed.
pub(super) fn empty_batch_forgets_its_object() -> Result<Outcome> {
    let (first, first_events) = Thing::shared()?;
    let (second, second_events) = Thing::shared()?;
    let mut empty = first.try_get_many(1).ok_or(EIO)?;
    drop(empty.take());

    // References to another object.
    check!(empty.put_back(second.try_get().ok_or(EIO)?).is_ok());
    check!(empty.merge(first.try_get_many(0).ok_or(EIO)?).is_ok());
    check!(empty.len() == 1 && empty.take().is_some_and(|guard| second.is_of(&guard)));
    check!(empty.merge(second.try_get_many(2).ok_or(EIO)?).is_ok());
    check!(empty.put_back(first.try_get().ok_or(EIO)?).is_err());
    drop(empty.split(2));

    // Frees the object that the batch had references to.
    drop(second);
    wait_for(|| second_events.dropped.get() == 1)?;
    rcu::rcu_barrier();
    for _ in 0..50 {
        // A slab allocates the memory first that was freed last, so some of these objects are at
        // the address of the freed object.
        let (new, _) = Thing::shared()?;
        check!(empty.put_back(new.try_get().ok_or(EIO)?).is_ok());
        check!(empty.value().is_some_and(Thing::is_alive));
        drop(empty.take());
    }
    drop((empty, first));
    wait_for(|| THINGS.load(Relaxed) == 0)?;
    check_end(&first_events, 0, 1)?;
    Ok(Passed)
}

fn check_ended_by_two(
    one: PercpuRef<Thing>,
    one_events: &Events,
    ones: PercpuRefBatch<Thing>,
    other: PercpuRef<Thing>,
    other_events: &Events,
    others: PercpuRefBatch<Thing>,
) -> Result {
    for (thing, events, batch) in [(one, one_events, ones), (other, other_events, others)] {
        check!(kill_checked(&thing));
        wait_for(|| events.confirmed.get() == 1)?;
        rcu::rcu_barrier();
        check!(events.released.get() == 0);
        drop(batch);
        check!(events.released.get() == 1);
    }
    check_events(one_events, 1, 1)?;
    check_events(other_events, 1, 1)
}

/// Checks that `try_get_live()` fails after the kill, and `try_get()` after the last put.
///
/// `is_zero()` returns `true` after the last put.
pub(super) fn try_get_live_until_killed() -> Result<Outcome> {
    let (thing, events) = Thing::shared()?;
    check!(thing.try_get_live().is_some());
    check!(thing.try_get_live_rcu(&read_lock()).is_some());
    check!(!thing.is_zero() && !thing.is_dying());

    let guard = {
        // The confirmation waits for this region.
        let _region = PreemptGuard::new();
        check!(kill_checked(&thing));
        check!(thing.is_dying() && !thing.is_zero());
        check!(thing.try_get_live().is_none());
        check!(thing.try_get_live_rcu(&read_lock()).is_none());
        thing.try_get().ok_or(EIO)?
    };
    wait_for(|| events.confirmed.get() == 1)?;
    rcu::rcu_barrier();
    check!(thing.try_get().is_some() && thing.try_get_live().is_none());
    check!(!thing.is_zero() && thing.references() == Some(1));
    drop(guard);
    check!(thing.is_zero() && thing.references() == Some(0));
    check!(thing.try_get().is_none());
    drop(thing);
    check_end(&events, 1, 1)?;
    Ok(Passed)
}

/// Checks that `kill_and_wait()` returns after the last reference was put, and not before.
pub(super) fn kill_and_wait() -> Result<Outcome> {
    for killed_before in [false, true] {
        let (thing, events) = Thing::shared()?;
        let guard = thing.try_get().ok_or(EIO)?;
        if killed_before {
            check!(thing.kill());
        }
        let cpu = online_cpus().last().ok_or(EIO)?;
        let there = events.clone();
        let holder = Thread::spawn(cpu, move || {
            fsleep(Delta::from_millis(50));
            if there.released.get() != 0 {
                there.disorder.inc();
            }
            drop(guard);
        })?;
        check!(thing.kill_and_wait() != killed_before);
        check!(events.dropped.get() == 1);
        drop(holder);
        check_end(&events, 0, 1)?;
    }
    Ok(Passed)
}

/// An object whose release and drop sleep.
///
/// Debugging options of the kernel report a sleep outside of process context.
struct Sleeper {
    thing: Thing,
    /// The task that the release ran in.
    ended_by: Arc<Atomic<i32>>,
}

impl Counted for Sleeper {
    const MAY_SLEEP: bool = true;

    fn release(&self) {
        fsleep(Delta::from_millis(5));
        self.ended_by.store(current!().pid(), Relaxed);
        self.thing.release();
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        fsleep(Delta::from_millis(5));
    }
}

/// Checks that a release that may sleep runs in another task than the one that puts the reference.
pub(super) fn release_may_sleep() -> Result<Outcome> {
    for from_callback in [false, true] {
        let (thing, events) = Thing::new()?;
        let ended_by = Arc::new(Atomic::new(0), GFP_KERNEL)?;
        let sleeper = Sleeper {
            thing,
            ended_by: ended_by.clone(),
        };
        let sleeper = PercpuRef::from(UniquePercpuRef::new(sleeper, GFP_KERNEL)?);
        let guard = sleeper.try_get();
        if from_callback {
            drop(guard);
            check!(sleeper.kill());
        } else {
            check!(sleeper.kill());
            rcu::rcu_barrier();
            let _region = PreemptGuard::new();
            drop(guard);
        }
        sleeper.wait_released();
        check!(sleeper.is_zero() && !sleeper.kill());
        check!(ended_by.load(Relaxed) != 0 && ended_by.load(Relaxed) != current!().pid());
        drop(sleeper);
        check_end(&events, 0, 1)?;
    }

    // The owner drops the object while its release is queued.
    let (thing, events) = Thing::new()?;
    let ended_by = Arc::new(Atomic::new(0), GFP_KERNEL)?;
    let sleeper = UniquePercpuRef::new(Sleeper { thing, ended_by }, GFP_KERNEL)?;
    drop(PercpuRef::from(sleeper));
    wait_for(|| events.dropped.get() == 1)?;
    check_end(&events, 0, 1)?;
    Ok(Passed)
}

/// Passes references through C pointers and back, owned and borrowed.
pub(super) fn foreign_ownable() -> Result<Outcome> {
    let (thing, events) = Thing::shared()?;
    let guard = thing.try_get().ok_or(EIO)?;

    let owner = thing.into_foreign();
    let user = guard.into_foreign();
    check!(!owner.is_null() && owner.align_offset(PercpuRef::<Thing>::FOREIGN_ALIGN) == 0);
    {
        // SAFETY: `owner` came from `into_foreign()`. `from_foreign()` is called after this borrow
        // has ended.
        let owner = unsafe { PercpuRef::<Thing>::borrow(owner) };
        check!(owner.try_get().is_some_and(|guard| guard.is_alive()));
        // SAFETY: `user` came from `into_foreign()`. `from_foreign()` is called after this borrow
        // has ended.
        let user = unsafe { PercpuRefGuard::<Thing>::borrow(user) };
        check!(user.clone().is_alive());
    }

    // SAFETY: `owner` came from `into_foreign()`, and is not used after this.
    let thing = unsafe { PercpuRef::<Thing>::from_foreign(owner) };
    check!(kill_checked(&thing));
    rcu::rcu_barrier();
    check!(events.released.get() == 0);
    // SAFETY: `user` came from `into_foreign()`, and is not used after this.
    drop(unsafe { PercpuRefGuard::<Thing>::from_foreign(user) });
    check!(events.released.get() == 1);
    drop(thing);
    check_end(&events, 1, 1)?;
    Ok(Passed)
}

/// Looks up an object on each CPU while it is replaced.
///
/// Each object that a reader gets a reference to is alive.
pub(super) fn rcu_lookup() -> Result<Outcome> {
    struct Shared {
        place: RcuPercpuRef<Thing>,
        stop: Atomic<u32>,
        found: Counter,
        missed: Counter,
        dangling: Counter,
    }

    let (first, first_events) = Thing::shared()?;
    let shared = Arc::new(
        Shared {
            place: first.into(),
            stop: Atomic::new(0),
            found: Counter::default(),
            missed: Counter::default(),
            dangling: Counter::default(),
        },
        GFP_KERNEL,
    )?;

    let mut readers = KVec::new();
    // Makes the threads end, even if this case fails. Dropped before the threads, because the drop
    // of a thread waits for it.
    let end = ScopeGuard::new(|| shared.stop.store(1, Release));
    for cpu in online_cpus() {
        let shared = shared.clone();
        let reader = Thread::spawn(cpu, move || {
            let mut turn = 0usize;
            while shared.stop.load(Acquire) == 0 {
                turn = turn.wrapping_add(1);
                let found = if turn % 2 == 0 {
                    shared.place.try_get()
                } else {
                    shared.place.try_get_live()
                };
                match found {
                    Some(guard) if guard.is_alive() => shared.found.inc(),
                    Some(_) => shared.dangling.inc(),
                    None => shared.missed.inc(),
                }
                if turn % 64 == 0 {
                    fsleep(Delta::from_micros(200));
                }
            }
        })?;
        readers.push(reader, GFP_KERNEL)?;
    }

    let mut all = KVec::new();
    for number in 0..times(300) {
        let (new, events) = Thing::shared()?;
        all.push(events, GFP_KERNEL)?;
        let old = shared.place.replace(Some(new)).ok_or(EIO)?;
        match number % 3 {
            // The owner keeps the old object for a time, and then ends it.
            0 => {
                old.kill_and_wait();
            }
            1 => drop(old),
            _ => fsleep(Delta::from_micros(300)),
        }
    }
    // The last object is killed and put back, so readers find a dying object.
    let last = shared.place.replace(None).ok_or(EIO)?;
    last.kill();
    shared.place.replace(Some(last));
    fsleep(Delta::from_millis(30));

    drop(end);
    drop(readers);
    check!(shared.found.get() as usize > times(300));
    check!(shared.missed.get() > 0);
    check!(shared.dangling.get() == 0);
    check!(shared.place.replace(None).is_some() && shared.place.replace(None).is_none());
    wait_for(|| THINGS.load(Relaxed) == 0)?;
    check_end(&first_events, 0, 1)?;
    for events in &all {
        check_events(events, 0, 1)?;
    }
    Ok(Passed)
}

/// Checks that memory is not reused in a critical section in which a reader may have found it.
pub(super) fn memory_outlives_section() -> Result<Outcome> {
    let (thing, events) = Thing::new()?;
    let unique = UniquePercpuRef::new(thing, GFP_KERNEL)?;
    let address = core::ptr::from_ref(&*unique);
    let place = RcuPercpuRef::from(PercpuRef::from(unique));
    let old = place.replace(None).ok_or(EIO)?;
    old.kill_and_wait();
    // All callbacks have run, so that only the section below keeps the memory.
    rcu::rcu_barrier();
    place.replace(Some(old));

    let mut new = KVec::with_capacity(50, GFP_KERNEL)?;
    {
        let _section = read_lock();
        check!(place.try_get().is_none());
        drop(place.replace(None));
        // A slab allocates the memory first that was freed last.
        while new.len() < new.capacity() {
            let thing = Thing::with(&events);
            new.push(UniquePercpuRef::new(thing, GFP_ATOMIC)?, GFP_ATOMIC)?;
        }
        check!(new.iter().all(|unique| !core::ptr::eq(address, &**unique)));
    }
    drop(new);
    check!(THINGS.load(Relaxed) == 0);
    Ok(Passed)
}

/// The largest number of references to an object, or zero if it does not fit into a `usize`.
const LIMIT: usize = if usize::BITS < 64 {
    0
} else {
    1 << (usize::BITS - 4)
};
const BEYOND_LIMIT: Outcome = Skipped("the limit does not fit into a usize");

/// Gets more references than the limit, and checks that the object is leaked.
pub(super) fn overflow_leaks() -> Result<Outcome> {
    const MANY: usize = LIMIT / 2;

    if LIMIT == 0 {
        return Ok(BEYOND_LIMIT);
    }
    for atomic in [false, true] {
        let (thing, events) = Thing::new()?;
        let thing = PercpuRef::from(UniquePercpuRef::new_reinit(thing, GFP_KERNEL)?);
        if atomic {
            thing.switch_to_atomic_sync();
        }
        let guard = thing.try_get().ok_or(EIO)?;
        let one = guard.get_many(MANY);
        let two = guard.get_many(MANY - 64);
        // Operations that can fail do fail, and change nothing.
        check!(thing.try_get_many(MANY).is_none());
        check!(thing.try_get_many(usize::MAX).is_none());
        check!(thing.try_get().is_some());
        // An operation that cannot fail exceeds the limit.
        let three = guard.get_many(MANY);

        check!(thing.kill());
        rcu::rcu_barrier();
        check!(thing.try_get().is_none() && !thing.is_zero());
        drop((one, two, three));
        drop(guard.clone());
        drop(guard);
        check!(!thing.is_zero() && events.released.get() == 0);
        drop(thing);
        check!(events.dropped.get() == 0);
    }
    Ok(Passed)
}

/// Resurrects a reference with one reference less than the limit, and with the limit.
///
/// The resurrection adds the initial reference. So in the second case the object is leaked. In the
/// first case it lives and ends as usual.
pub(super) fn resurrect_at_the_limit() -> Result<Outcome> {
    if LIMIT == 0 {
        return Ok(BEYOND_LIMIT);
    }
    for (count, leaks) in [(LIMIT - 1, false), (LIMIT, true)] {
        let (thing, events) = Thing::new()?;
        let thing = PercpuRef::from(UniquePercpuRef::new_atomic(thing, GFP_KERNEL)?);
        let guard = thing.try_get().ok_or(EIO)?;
        check!(thing.kill());
        let mut many = guard.get_many(count - 1);
        check!(thing.references() == Some(count));
        check!(thing.resurrect().is_ok());
        check!(thing.references() == if leaks { None } else { Some(count) });
        let one = many.take();
        drop(one);
        drop(many);
        drop(guard);
        check!(thing.kill());
        rcu::rcu_barrier();
        check!(thing.is_zero() != leaks);
        drop(thing);
        check!(events.dropped.get() == u32::from(!leaks));
    }
    Ok(Passed)
}

/// Uses lockdep sections in ways that lockdep must not report.
///
/// These are nested sections, a wait in a section for another object of the type, and a guard that
/// is passed to another thread after its section.
pub(super) fn sections_stay_with_the_task() -> Result<Outcome> {
    let (thing, events) = Thing::shared()?;
    let guard = thing.try_get().ok_or(EIO)?;
    {
        let _section = guard.lockdep_section();
        let (other, _) = Thing::shared()?;
        let another = other.try_get().ok_or(EIO)?;
        {
            let _inner = another.lockdep_section();
            check!(kill_checked(&other));
        }
        drop(another);
        other.wait_released();
    }
    let cpu = online_cpus().last().ok_or(EIO)?;
    drop(Thread::spawn(cpu, move || {
        let section = guard.lockdep_section();
        drop(section);
        drop(guard);
    })?);
    check!(kill_checked(&thing));
    thing.wait_released();
    drop(thing);
    check_end(&events, 1, 1)?;
    Ok(Passed)
}

/// Puts more references than were got, which needs `unsafe`, and checks that the kill leaks.
pub(super) fn underflow_leaks() -> Result<Outcome> {
    let (thing, events) = Thing::shared()?;
    let guard = ManuallyDrop::new(thing.try_get().ok_or(EIO)?);
    for _ in 0..3 {
        // SAFETY: This is not safe: from the second turn on, no reference is left to be put. The
        // case provokes the warning about this.
        drop(ManuallyDrop::into_inner(unsafe { ptr::read(&guard) }));
    }
    check!(kill_checked(&thing));
    wait_for(|| events.confirmed.get() == 1)?;
    rcu::rcu_barrier();
    check!(!thing.is_zero() && thing.try_get().is_none());
    drop(thing);
    check!(events.released.get() == 0 && events.dropped.get() == 0);
    Ok(Passed)
}

// SPDX-License-Identifier: GPL-2.0

//! Cases about boxes that are dropped after a grace period, and the cells they are published in.

use super::*;
use core::ptr;
use kernel::{
    alloc::allocator::{
        KVmalloc,
        Kmalloc,
        Vmalloc, //
    },
    page::PAGE_SIZE,
    str::CString,
    sync::rcu::{
        read_lock,
        RcuAllocator,
        RcuCell, //
    },
};

/// Two words that match until the pair is dropped.
struct Pair {
    value: Atomic<u32>,
    check: Atomic<u32>,
    events: Arc<Events>,
}

impl Pair {
    fn new(value: u32, events: &Arc<Events>) -> Self {
        Self {
            value: Atomic::new(value),
            check: Atomic::new(!value),
            events: events.clone(),
        }
    }

    fn is_alive(&self) -> bool {
        self.value.load(Relaxed) == !self.check.load(Relaxed)
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        if !self.is_alive() {
            self.events.disorder.inc();
        }
        self.value.store(DROPPED, Relaxed);
        self.check.store(DROPPED, Relaxed);
        self.events.dropped.inc();
    }
}

/// Two words that match, in a type that needs no drop.
struct Plain {
    value: u32,
    check: u32,
}

impl Plain {
    fn new(value: u32) -> Self {
        Self {
            value,
            check: !value,
        }
    }

    fn is_alive(&self) -> bool {
        self.value == !self.check
    }
}

fn events() -> Result<Arc<Events>> {
    Ok(Arc::new(Events::default(), GFP_KERNEL)?)
}

/// Drops a box while another thread reads its object in a read-side critical section.
///
/// The object must not be dropped before the section ends.
pub(super) fn rcu_box_waits_for_readers() -> Result<Outcome> {
    struct Shared {
        place: RcuCell<Pair>,
        /// 1: the box was dropped. 2: the reader is about to leave its critical section.
        step: Atomic<u32>,
        seen: Counter,
        wrong: Counter,
    }

    let Some((here, there)) = two_cpus() else {
        return Ok(Skipped("there is one CPU"));
    };
    for number in 0..times(10) as u32 {
        let events = events()?;
        let shared = Arc::new(
            Shared {
                place: RcuCell::empty(),
                step: Atomic::new(0),
                seen: Counter::default(),
                wrong: Counter::default(),
            },
            GFP_KERNEL,
        )?;
        let new = RcuBox::new(Pair::new(number, &events), GFP_KERNEL)?;
        let (reader, seen) = (shared.clone(), events.clone());
        let reader = Thread::spawn(there, move || {
            let section = read_lock();
            let pair = new.with_rcu(&section);
            drop(reader.place.replace(Some(new)));
            while reader.step.load(Acquire) == 0 {
                kernel::processor::cpu_relax();
            }
            let start = Instant::<Monotonic>::now();
            loop {
                if !pair.is_alive() || seen.dropped.get() != 0 {
                    reader.wrong.inc();
                }
                reader.seen.inc();
                if start.elapsed() >= Delta::from_millis(20) {
                    break;
                }
            }
            reader.step.store(2, Release);
        })?;
        // Makes the thread end, even if this case fails. Dropped before the thread, because the
        // drop of a thread waits for it.
        let step = ScopeGuard::new(|| {
            let _ = shared.step.cmpxchg(0, 1, Release);
        });

        let owner = shared.clone();
        on_cpu(here, move || {
            // The reader publishes the box without waiting, so this loop ends.
            while owner.place.take().map(drop).is_none() {
                kernel::processor::cpu_relax();
            }
            owner.step.store(1, Release);
        })?;
        // A lazy callback may otherwise be delayed for ten seconds.
        rcu::rcu_barrier();
        check!(shared.step.load(Acquire) == 2);
        drop(step);
        drop(reader);
        check!(shared.seen.get() > 0 && shared.wrong.get() == 0);
        check!(events.dropped.get() == 1 && events.disorder.get() == 0);
    }
    Ok(Passed)
}

/// Checks that memory is not reused in the critical section in which its box is dropped.
///
/// Checks this for objects that need to be dropped, and for objects that need no drop.
pub(super) fn rcu_box_frees_later() -> Result<Outcome> {
    fn frees_later<T: Send + Sync + 'static>(make: impl Fn() -> T) -> Result {
        let mut new = KVec::with_capacity(50, GFP_KERNEL)?;
        let old = RcuBox::<T>::new(make(), GFP_KERNEL)?;
        {
            let section = read_lock();
            let seen = old.with_rcu(&section);
            drop(old);
            // A slab allocates the memory first that was freed last.
            while new.len() < 50 {
                new.push(RcuBox::<T>::new(make(), GFP_ATOMIC)?, GFP_ATOMIC)?;
            }
            check!(new.iter().all(|new| !ptr::eq(&raw const **new, seen)));
        }
        Ok(())
    }

    let events = events()?;
    for number in 0..times(50) as u32 {
        frees_later(|| Plain::new(number))?;
        frees_later(|| Pair::new(number, &events))?;
    }
    rcu::rcu_barrier();
    check!(events.dropped.get() as usize == 51 * times(50));
    Ok(Passed)
}

/// Makes small and large boxes with each allocator.
///
/// The objects are of a type that needs to be dropped, and of a type that needs no drop.
pub(super) fn rcu_box_of_each_allocator() -> Result<Outcome> {
    /// An object that is too large for the slabs of `kmalloc()`.
    struct Large<T> {
        object: T,
        _rest: MaybeUninit<[u8; 3 * PAGE_SIZE]>,
    }

    impl<T> Large<T> {
        fn of(object: T) -> impl PinInit<Self> {
            init!(Self {
                object,
                _rest <- uninit::<_, Infallible>(),
            })
        }
    }

    fn small_and_large<A: RcuAllocator>(events: &Arc<Events>) -> Result {
        let pair = RcuBox::<_, A>::new(Pair::new(1, events), GFP_KERNEL)?;
        let plain = RcuBox::<_, A>::new(Plain::new(2), GFP_KERNEL)?;
        let large_pair = RcuBox::<_, A>::new(Large::of(Pair::new(3, events)), GFP_KERNEL)?;
        let large_plain = RcuBox::<_, A>::new(Large::of(Plain::new(4)), GFP_KERNEL)?;

        let section = read_lock();
        let pair = {
            let seen = pair.with_rcu(&section);
            drop(pair);
            seen
        };
        let place = RcuCell::from(plain);
        let plain = place.take().ok_or(EIO)?;
        let (plain, large_pair, large_plain) = {
            let seen = (
                plain.with_rcu(&section),
                large_pair.with_rcu(&section),
                large_plain.with_rcu(&section),
            );
            drop((plain, large_pair, large_plain));
            seen
        };
        check!(pair.is_alive() && pair.value.load(Relaxed) == 1);
        check!(plain.is_alive() && plain.value == 2);
        check!(large_pair.object.is_alive() && large_pair.object.value.load(Relaxed) == 3);
        check!(large_plain.object.is_alive() && large_plain.object.value == 4);
        Ok(())
    }

    let events = events()?;
    for _ in 0..times(20) {
        small_and_large::<Kmalloc>(&events)?;
        small_and_large::<Vmalloc>(&events)?;
        small_and_large::<KVmalloc>(&events)?;
    }
    rcu::rcu_barrier();
    check!(events.dropped.get() as usize == 6 * times(20));
    check!(events.disorder.get() == 0);
    Ok(Passed)
}

/// Checks that `new()` returns the error of an initialiser, and drops what was initialised.
pub(super) fn rcu_box_init_fails() -> Result<Outcome> {
    /// An object whose initialiser fails after its first field.
    #[pin_data]
    struct Broken {
        pair: Pair,
        #[pin]
        rest: Plain,
    }

    let events = events()?;
    let broken = |pair| {
        try_pin_init!(Broken {
            pair,
            rest <- Err::<Plain, _>(EBUSY),
        }? Error)
    };
    let failed = RcuBox::<Broken>::new(broken(Pair::new(1, &events)), GFP_KERNEL);
    check!(failed.err() == Some(EBUSY));
    check!(events.dropped.get() == 1 && events.disorder.get() == 0);

    let huge = RcuBox::<Huge>::new(init_zeroed(), GFP_KERNEL | __GFP_NOWARN);
    check!(huge.err() == Some(ENOMEM));
    let huge = RcuBox::<Huge, KVmalloc>::new(init_zeroed(), GFP_KERNEL | __GFP_NOWARN);
    check!(huge.err() == Some(ENOMEM));
    Ok(Passed)
}

/// Checks that a cell returns the box that was put into it, and drops the box that it contains.
pub(super) fn rcu_cell_owns() -> Result<Outcome> {
    static PLACE: RcuCell<Pair> = RcuCell::empty();

    let events = events()?;
    let new = |value| RcuBox::new(Pair::new(value, &events), GFP_KERNEL);
    let is = |found: Option<&Pair>, value| {
        found.is_some_and(|pair| pair.is_alive() && pair.value.load(Relaxed) == value)
    };

    // An earlier run of this case may have failed and left a box.
    drop(PLACE.take());
    check!(PLACE.take().is_none() && PLACE.load(&read_lock()).is_none());
    check!(PLACE.replace(Some(new(1)?)).is_none());
    check!(is(PLACE.load(&read_lock()), 1));
    let old = PLACE.replace(Some(new(2)?));
    check!(is(old.as_deref(), 1));
    check!(is(PLACE.load(&read_lock()), 2));
    // A box that was taken out can be put into another cell.
    let place = RcuCell::from(old.ok_or(EIO)?);
    check!(is(place.load(&read_lock()), 1));
    check!(is(PLACE.take().as_deref(), 2));
    check!(PLACE.take().is_none());
    rcu::rcu_barrier();
    check!(events.dropped.get() == 1);

    {
        let _section = read_lock();
        drop(place);
        check!(events.dropped.get() == 1);
    }
    rcu::rcu_barrier();
    check!(events.dropped.get() == 2);

    let place = RcuCell::<Pair>::default();
    check!(place.load(&read_lock()).is_none());
    let empty = CString::try_from_fmt(fmt!("{place:?}"))?;
    place.replace(Some(new(3)?));
    let full = CString::try_from_fmt(fmt!("{place:?}"))?;
    check!(&*empty == c"RcuCell { empty }" && &*full == c"RcuCell { .. }");
    drop(place);
    rcu::rcu_barrier();
    check!(events.dropped.get() == 3 && events.disorder.get() == 0);
    Ok(Passed)
}

/// Reads objects on each CPU while they are replaced.
///
/// A reader finds an object whenever the cell is not empty, and the object is not dropped before
/// the reader leaves its critical section.
pub(super) fn rcu_cell_readers_race() -> Result<Outcome> {
    struct Shared {
        pair: RcuCell<Pair>,
        plain: RcuCell<Plain, KVmalloc>,
        stop: Atomic<u32>,
        found: Counter,
        missed: Counter,
        wrong: Counter,
    }

    let events = events()?;
    let pair = |value| RcuBox::<_>::new(Pair::new(value, &events), GFP_KERNEL);
    let plain = |value| RcuBox::<_, KVmalloc>::new(Plain::new(value), GFP_KERNEL);
    let shared = Arc::new(
        Shared {
            pair: pair(0)?.into(),
            plain: plain(0)?.into(),
            stop: Atomic::new(0),
            found: Counter::default(),
            missed: Counter::default(),
            wrong: Counter::default(),
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
                {
                    let section = read_lock();
                    let pair = shared.pair.load(&section);
                    let plain = shared.plain.load(&section);
                    // In this time, the writer may replace the objects.
                    for _ in 0..turn % 50 {
                        kernel::processor::cpu_relax();
                    }
                    match pair {
                        Some(pair) if pair.is_alive() => shared.found.inc(),
                        Some(_) => shared.wrong.inc(),
                        None => shared.missed.inc(),
                    }
                    if !plain.is_some_and(Plain::is_alive) {
                        shared.wrong.inc();
                    }
                }
                if turn % 64 == 0 {
                    fsleep(Delta::from_micros(200));
                }
            }
        })?;
        readers.push(reader, GFP_KERNEL)?;
    }

    let mut made = 1;
    for number in 0..times(1000) as u32 {
        // In each eighth turn, the cell is empty for a short time.
        if number % 8 == 0 {
            drop(shared.pair.take());
            fsleep(Delta::from_micros(100));
        }
        drop(shared.pair.replace(Some(pair(number)?)));
        drop(shared.plain.replace(Some(plain(number)?)));
        made += 1;
        if number % 16 == 0 {
            fsleep(Delta::from_micros(300));
        }
    }
    drop(end);
    drop(readers);
    check!(shared.found.get() > 0 && shared.missed.get() > 0);
    check!(shared.wrong.get() == 0);
    drop(shared);
    rcu::rcu_barrier();
    check!(events.dropped.get() == made && events.disorder.get() == 0);
    Ok(Passed)
}

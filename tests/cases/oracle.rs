// SPDX-License-Identifier: GPL-2.0

//! Cases that compare a C `percpu_ref` and a [`PercpuRef`].
//!
//! They do the same random operations on both, which must return the same results and call the same
//! callbacks at the same points.
//!
//! A *sequence* is one such pair. Many sequences run at a time, in rounds. In each round, a
//! sequence does a few operations in an RCU read-side critical section, in which no grace period
//! can end. Then a barrier waits for all callbacks. So the state of both references is known after
//! each operation.
//!
//! # Intended differences
//!
//! - A second kill: C warns, and puts the initial reference again. Rust returns `false` and changes
//!   nothing.
//! - `resurrect()` of a live reference: C warns, and gets one reference too many. Rust returns
//!   `EINVAL`.
//! - `reinit()` of a reference that is not zero: C warns and goes on. Rust returns `EBUSY`.
//!
//! These operations are done only on the [`PercpuRef`]. All other operations are done on both.

use super::*;

use kernel::sync::percpu_ref::{
    PercpuRefBatch,
    Reinit, //
};
use kernel::sync::rcu::read_lock;

extern "C" {
    fn percpu_ref_test_c_new(start: c_uint) -> *mut c_void;
    fn percpu_ref_test_c_free(c: *mut c_void);
    fn percpu_ref_test_c(c: *mut c_void, op: c_uint, n: usize) -> usize;
}

/// The operations of `percpu_ref_test_c()`, by their numbers.
#[derive(Clone, Copy)]
enum Op {
    TryGet,
    TryGetMany,
    TryGetLive,
    TryGetLiveRcu,
    Get,
    GetMany,
    Put,
    PutMany,
    Kill,
    ToAtomic,
    ToPerCpu,
    Resurrect,
    Reinit,
    IsDying,
    IsZero,
    Confirmed,
    Switched,
    Released,
}

const NAMES: [&str; 13] = [
    "try_get",
    "try_get_many",
    "try_get_live",
    "try_get_live_rcu",
    "get",
    "get_many",
    "put",
    "put_many",
    "kill",
    "switch_to_atomic",
    "switch_to_percpu",
    "resurrect",
    "reinit",
];

/// A C `percpu_ref`.
///
/// # Invariants
///
/// The pointer came from `percpu_ref_test_c_new()`, and is not null.
struct CRef(*mut c_void);

// SAFETY: Any thread can use a `percpu_ref` and free it.
unsafe impl Send for CRef {}

// SAFETY: Any number of threads can use a `percpu_ref` at a time.
unsafe impl Sync for CRef {}

impl CRef {
    fn new(start: u32) -> Result<Self> {
        // SAFETY: The callers pass a `start` of 0 to 2, which are the ones that the function has.
        let c = unsafe { percpu_ref_test_c_new(start) };
        if c.is_null() {
            return Err(ENOMEM);
        }
        // INVARIANT: `c` came from `percpu_ref_test_c_new()`, and was checked for null.
        Ok(Self(c))
    }

    fn call(&self, op: Op, n: usize) -> usize {
        // SAFETY: By the type invariant, the pointer is valid. The callers put only references that
        // they have got.
        unsafe { percpu_ref_test_c(self.0, op as c_uint, n) }
    }

    fn is(&self, op: Op) -> bool {
        self.call(op, 1) != 0
    }
}

impl Drop for CRef {
    fn drop(&mut self) {
        // SAFETY: By the type invariant, the pointer is valid. The callers wait for its callbacks
        // before they drop it.
        unsafe { percpu_ref_test_c_free(self.0) };
    }
}

struct Random(u64);

impl Random {
    fn new(seed: u32, sequence: usize) -> Self {
        let mut random = Self((u64::from(seed) << 32) ^ sequence as u64);
        random.below(1);
        random
    }

    /// Returns a number below `n`, by the generator of Knuth's MMIX.
    fn below(&mut self, n: u32) -> u32 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (((self.0 >> 32) * u64::from(n)) >> 32) as u32
    }
}

/// A C reference and a Rust reference, which must be in the same state.
struct Pair {
    c: CRef,
    ours: PercpuRef<Thing, Reinit>,
    events: Arc<Events>,
    /// The references to `ours`, of which there are as many as to `c`, if any were ever got.
    held: Option<PercpuRefBatch<Thing>>,
    /// Whether the references were killed.
    dying: bool,
    /// Whether the kill was confirmed.
    closed: bool,
    /// Whether atomic mode was asked for.
    atomic: bool,
    /// Whether a callback is in flight.
    pending: bool,
}

impl Pair {
    fn new(start: u32) -> Result<Self> {
        let (thing, events) = Thing::new()?;
        let ours = match start {
            0 => UniquePercpuRef::new_reinit(thing, GFP_KERNEL)?,
            1 => UniquePercpuRef::new_atomic(thing, GFP_KERNEL)?,
            _ => UniquePercpuRef::new_dead(thing, GFP_KERNEL)?,
        };
        Ok(Self {
            c: CRef::new(start)?,
            ours: ours.into(),
            events,
            held: None,
            dying: start == 2,
            closed: start == 2,
            atomic: start == 1,
            pending: false,
        })
    }

    fn count(&self) -> usize {
        self.held.as_ref().map_or(0, PercpuRefBatch::len)
    }

    fn hold(&mut self, got: PercpuRefBatch<Thing>) -> Result {
        match &mut self.held {
            Some(held) => check!(held.merge(got).is_ok()),
            none => *none = Some(got),
        }
        Ok(())
    }

    /// Chooses an operation, does it on both references, and compares them.
    fn step(&mut self, random: &mut Random) -> Result {
        let most = if random.below(8) == 0 { 300 } else { 3 };
        let n = 1 + random.below(most) as usize;
        let op = match random.below(24) {
            0..=3 => Op::TryGet,
            4 => Op::TryGetMany,
            5 => Op::TryGetLive,
            6 => Op::TryGetLiveRcu,
            7..=8 => Op::Get,
            9 => Op::GetMany,
            10..=13 => Op::Put,
            14 => Op::PutMany,
            15..=17 => Op::Kill,
            18 => Op::ToAtomic,
            19 => Op::ToPerCpu,
            20..=21 => Op::Resurrect,
            _ => Op::Reinit,
        };
        self.apply(op, n)
            .and_then(|()| self.compare())
            .inspect_err(|_| pr_err!("        # after {} ({n})\n", NAMES[op as usize]))
    }

    fn apply(&mut self, op: Op, n: usize) -> Result {
        match op {
            Op::TryGet | Op::TryGetMany | Op::TryGetLive | Op::TryGetLiveRcu => self.try_get(op, n),
            Op::Get | Op::GetMany => {
                let Some(guard) = self.held.as_mut().and_then(PercpuRefBatch::take) else {
                    return Ok(());
                };
                if let Op::Get = op {
                    self.hold(guard.clone().into())?;
                    self.c.call(Op::Get, 1);
                } else {
                    self.hold(guard.get_many(n))?;
                    self.c.call(Op::GetMany, n);
                }
                self.hold(guard.into())
            }
            Op::Put | Op::PutMany => {
                let held = self.held.as_mut();
                if let Op::Put = op {
                    if held.and_then(PercpuRefBatch::take).is_some() {
                        self.c.call(Op::Put, 1);
                    }
                } else if held.and_then(|held| held.split(n)).is_some() {
                    self.c.call(Op::PutMany, n);
                }
                Ok(())
            }
            // The other operations may wait for the callback, and the callback waits for our
            // read-side critical section.
            _ if self.pending => Ok(()),
            _ => self.transition(op),
        }
    }

    fn try_get(&mut self, op: Op, n: usize) -> Result {
        let n = if let Op::TryGetMany = op { n } else { 1 };
        let got = match op {
            Op::TryGetMany => self.ours.try_get_many(n),
            Op::TryGetLive => self.ours.try_get_live().map(PercpuRefBatch::from),
            Op::TryGetLiveRcu => self
                .ours
                .try_get_live_rcu(&read_lock())
                .map(PercpuRefBatch::from),
            _ => self.ours.try_get().map(PercpuRefBatch::from),
        };
        let c = self.c.call(op, n) != 0;
        check!(got.is_some() == c);
        if let Some(got) = got {
            self.hold(got)?;
        }
        Ok(())
    }

    fn transition(&mut self, op: Op) -> Result {
        let by_cpu = !self.atomic && !self.dying;
        match op {
            Op::Kill if self.dying => check!(!self.ours.kill_and_confirm()),
            Op::Kill => {
                check!(self.ours.kill_and_confirm());
                self.c.call(Op::Kill, 0);
                self.dying = true;
                self.closed = !by_cpu;
                self.pending = by_cpu;
            }
            Op::ToAtomic => {
                self.ours.switch_to_atomic();
                self.c.call(Op::ToAtomic, 0);
                self.atomic = true;
                self.pending = by_cpu;
            }
            Op::ToPerCpu => {
                self.ours.switch_to_percpu();
                self.c.call(Op::ToPerCpu, 0);
                self.atomic = false;
            }
            _ if !self.dying => {
                check!(self.ours.resurrect() == Err(EINVAL));
                check!(self.ours.reinit() == Err(EINVAL));
            }
            Op::Reinit if self.count() > 0 => check!(self.ours.reinit() == Err(EBUSY)),
            _ => {
                if let Op::Reinit = op {
                    check!(self.ours.reinit().is_ok());
                } else {
                    check!(self.ours.resurrect().is_ok());
                }
                self.c.call(op, 0);
                self.dying = false;
                self.closed = false;
            }
        }
        Ok(())
    }

    /// Compares what both references report, with each other and with the known state.
    fn compare(&self) -> Result {
        check!(self.ours.is_dying() == self.c.is(Op::IsDying));
        check!(self.ours.is_zero() == self.c.is(Op::IsZero));
        check!(self.events.confirmed.get() as usize == self.c.call(Op::Confirmed, 0));
        check!(self.events.switched.get() as usize == self.c.call(Op::Switched, 0));
        check!(self.events.released.get() as usize == self.c.call(Op::Released, 0));
        if self.closed || self.atomic && !self.pending {
            check!(self.ours.references() == Some(self.count()));
        }
        check!(self.ours.is_dying() == self.dying);
        check!(self.ours.is_zero() == (self.closed && self.count() == 0));
        Ok(())
    }

    /// Compares both references after all callbacks have run.
    fn settled(&mut self) -> Result {
        self.pending = false;
        self.closed = self.dying;
        self.compare()
            .inspect_err(|_| pr_err!("        # after the callbacks\n"))
    }
}

/// Returns the seed of the random numbers: the parameter `seed`, or a random number if it is zero.
fn seed() -> u32 {
    match value(module_parameters::seed.value()) {
        // SAFETY: `get_random_u32()` can be called from any context.
        0 => unsafe { bindings::get_random_u32() },
        seed => seed,
    }
}

/// The number of operations of a sequence in a round.
const STEPS: usize = 8;

/// Runs `last` rounds of random operations, and then ends each sequence.
fn rounds(all: &mut [(Pair, Random)], last: usize) -> Result {
    for round in 0..=last {
        for (number, (pair, random)) in all.iter_mut().enumerate() {
            let section = read_lock();
            let result = if round < last {
                (0..STEPS).try_for_each(|_| pair.step(random))
            } else {
                // Kills references that are not dying, and puts all references.
                let n = pair.count();
                let killed = if pair.dying {
                    Ok(())
                } else {
                    pair.apply(Op::Kill, 0)
                };
                killed.and_then(|()| {
                    if n > 0 {
                        pair.apply(Op::PutMany, n)
                    } else {
                        Ok(())
                    }
                })
            };
            drop(section);
            result.inspect_err(|_| pr_err!("        # sequence {number}, round {round}\n"))?;
            if number % 64 == 0 {
                fsleep(Delta::from_micros(10));
            }
        }
        rcu::rcu_barrier();
        for (number, (pair, _)) in all.iter_mut().enumerate() {
            pair.settled()
                .inspect_err(|_| pr_err!("        # sequence {number}, round {round}\n"))?;
        }
    }
    Ok(())
}

/// Compares C and Rust after each operation, in one thread.
pub(super) fn c_says_the_same() -> Result<Outcome> {
    const ROUNDS: usize = 12;

    let sequences = times(2000);
    let seed = seed();
    pr_info!("        # seed={seed}\n");
    let mut all = KVVec::with_capacity(sequences, GFP_KERNEL)?;
    while all.len() < sequences {
        let mut random = Random::new(seed, all.len());
        all.push((Pair::new(random.below(3))?, random), GFP_KERNEL)?;
    }

    let result = rounds(&mut all, ROUNDS);
    // A `percpu_ref` must not be freed before its callbacks have run, even if the case failed.
    rcu::rcu_barrier();
    result?;

    let mut releases = 0;
    for (pair, _) in &all {
        check!(pair.ours.is_zero() && pair.c.is(Op::IsZero));
        check!(pair.events.disorder.get() == 0);
        releases += pair.events.released.get();
    }
    drop(all);
    check!(THINGS.load(Relaxed) == 0);
    pr_info!(
        "        # {sequences} sequences, {} operations, {releases} releases\n",
        sequences * ROUNDS * STEPS
    );
    Ok(Passed)
}

/// Pairs that threads on all CPUs use at a time.
struct Crowd {
    pairs: KVVec<(CRef, PercpuRef<Thing, Reinit>, Arc<Events>)>,
    stop: Atomic<u32>,
    gets: Counter,
    errors: Counter,
}

impl Crowd {
    /// Gets and puts references of random pairs until `stop` is set.
    ///
    /// Other threads get and put references too, and the references are killed and resurrected.
    /// While a reference is held, the count must not be zero.
    fn use_all(&self, random: &mut Random) {
        while self.stop.load(Acquire) == 0 {
            let (c, ours, events) = &self.pairs[random.below(self.pairs.len() as u32) as usize];
            let n = 1 + random.below(100) as usize;
            let batch = ours.try_get_many(n);
            let of_c = c.call(Op::TryGetMany, n) != 0;
            if random.below(8) == 0 {
                fsleep(Delta::from_micros(100));
            }
            if let Some(batch) = batch {
                let released = events.released.get();
                if ours.is_zero() || !batch.value().is_some_and(Thing::is_alive) {
                    self.errors.inc();
                }
                if events.released.get() != released {
                    self.errors.inc();
                }
                drop(batch);
                self.gets.inc();
            }
            if of_c {
                if c.is(Op::IsZero) {
                    self.errors.inc();
                }
                c.call(Op::PutMany, n);
            }
        }
    }
}

/// Checks the invariants of C and Rust while threads on all CPUs use them.
///
/// Here the results of single operations may differ, because they depend on the time.
pub(super) fn c_keeps_the_same_invariants() -> Result<Outcome> {
    const PAIRS: usize = 200;
    const ROUNDS: usize = 10;

    let seed = seed();
    pr_info!("        # seed={seed}\n");
    let mut pairs = KVVec::with_capacity(PAIRS, GFP_KERNEL)?;
    while pairs.len() < PAIRS {
        let (thing, events) = Thing::new()?;
        let ours = UniquePercpuRef::new_reinit(thing, GFP_KERNEL)?;
        pairs.push((CRef::new(0)?, ours.into(), events), GFP_KERNEL)?;
    }
    let crowd = Crowd {
        pairs,
        stop: Atomic::new(0),
        gets: Counter::default(),
        errors: Counter::default(),
    };
    let crowd = Arc::new(crowd, GFP_KERNEL)?;
    let mut threads = KVec::new();
    // Makes the threads end, even if this case fails. Dropped before the threads, because the drop
    // of a thread waits for it.
    let end = ScopeGuard::new(|| crowd.stop.store(1, Release));
    for cpu in online_cpus() {
        let crowd = crowd.clone();
        let mut random = Random::new(seed, PAIRS + cpu.as_u32() as usize);
        threads.push(
            Thread::spawn(cpu, move || crowd.use_all(&mut random))?,
            GFP_KERNEL,
        )?;
    }

    let mut random = Random::new(seed, PAIRS);
    let mut kills = KVVec::from_elem(0, PAIRS, GFP_KERNEL)?;
    let mut result = Ok(());
    for round in 0..ROUNDS {
        for (kills, (c, ours, _)) in kills.iter_mut().zip(&crowd.pairs) {
            match random.below(if round + 1 == ROUNDS { 1 } else { 4 }) {
                0 | 1 if !ours.is_dying() => {
                    ours.kill_and_confirm();
                    c.call(Op::Kill, 0);
                    *kills += 1;
                }
                0 => {}
                1 | 2 if ours.is_dying() => {
                    result = result.and(ours.resurrect());
                    c.call(Op::Resurrect, 0);
                }
                2 => {
                    ours.switch_to_atomic();
                    c.call(Op::ToAtomic, 0);
                }
                _ => {
                    ours.switch_to_percpu();
                    c.call(Op::ToPerCpu, 0);
                }
            }
        }
        fsleep(Delta::from_millis(20));
    }
    drop(end);
    drop(threads);
    rcu::rcu_barrier();

    check!(result.is_ok());
    check!(crowd.errors.get() == 0);
    for (kills, (c, ours, events)) in kills.iter().zip(&crowd.pairs) {
        check!(ours.is_zero() && c.is(Op::IsZero));
        check!(events.confirmed.get() == *kills && c.call(Op::Confirmed, 0) == *kills as usize);
        check!(events.switched.get() as usize == c.call(Op::Switched, 0));
        check!((1..=*kills).contains(&events.released.get()));
        check!((1..=*kills as usize).contains(&c.call(Op::Released, 0)));
        check!(events.disorder.get() == 0);
    }
    let gets = crowd.gets.get();
    drop(crowd);
    check!(THINGS.load(Relaxed) == 0);
    pr_info!("        # {} sequences, {gets} gets\n", PAIRS * ROUNDS);
    Ok(Passed)
}

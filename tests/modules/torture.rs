// SPDX-License-Identifier: GPL-2.0

//! Torture, after the example of rcutorture: for a given time all that the library can do is done
//! at once on all CPUs, while some of these go offline and come back.
//!
//! Inserting the module runs it, and fails with `EIO` if anything was not as it should be. The last
//! line that it prints is the verdict.

use kernel::percpu::Local;
use kernel::sync::percpu_ref::{
    Counted,
    PercpuRef,
    PercpuRefGuard,
    RcuPercpuRef,
    Reinit,
    UniquePercpuRef, //
};
use kernel::sync::rcu::{
    self,
    RcuBox,
    RcuCell, //
};
use kernel::{
    define_per_cpu, new_mutex,
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Relaxed,
            Release, //
        },
        Arc,
        Mutex, //
    },
    time::{
        delay::fsleep,
        Delta,
        Instant,
        Monotonic, //
    },
};

#[path = "../cases/kthread.rs"]
mod kthread;

use kthread::{
    online_cpus,
    Thread, //
};

module! {
    type: Torture,
    name: "rust_percpu_ref_torture",
    description: "Torture of the per-CPU reference counts",
    license: "GPL",
    params: {
        seconds: u32 {
            default: 5,
            description: "Seconds that it takes, 1 to 86400",
        },
        offline: u32 {
            default: 1,
            description: "0: leave all CPUs online",
        },
    },
}

extern "C" {
    fn remove_cpu(cpu: c_uint) -> c_int;
    fn add_cpu(cpu: c_uint) -> c_int;
    fn percpu_ref_torture_timer_start();
    fn percpu_ref_torture_timer_stop();
}

/// How often something was done.
struct Tally(Atomic<u64>);

impl Tally {
    const fn new() -> Self {
        Self(Atomic::new(0))
    }

    fn inc(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

define_per_cpu! {
    /// The gets, and the gets and the interrupts, once more: by CPU, whether that is online or not.
    static BY_CPU: [Local<u64>; 2] = [Local::new(0), Local::new(0)];
}

fn count_by_cpu(index: usize) {
    if let Some(counter) = BY_CPU.element(index) {
        counter.inc();
    }
}

static GETS: Tally = Tally::new();
static IN_IRQ: Tally = Tally::new();
static KILLS: Tally = Tally::new();
/// Kills that are to be confirmed, and their confirmations.
static TO_CONFIRM: Tally = Tally::new();
static CONFIRMED: Tally = Tally::new();
static SWITCHES: Tally = Tally::new();
static SWITCHED: Tally = Tally::new();
static RESURRECTED: Tally = Tally::new();
static FREEZES: Tally = Tally::new();
static RELEASED: Tally = Tally::new();
static BORN: Tally = Tally::new();
static DROPPED: Tally = Tally::new();
static OFFLINE: Tally = Tally::new();
static PAIRS: Tally = Tally::new();
static PAIRS_DROPPED: Tally = Tally::new();
static ERRORS: Tally = Tally::new();

/// Counts an error, unless the condition holds.
macro_rules! expect {
    ($cond:expr) => {
        if !$cond {
            ERRORS.inc();
            pr_err!("torture: {}:{}: {}\n", file!(), line!(), stringify!($cond));
        }
    };
}

const ALIVE: u32 = 0x600d_600d;
const DEAD: u32 = 0xdead_dead;

/// An object that comes and goes.
struct Item {
    canary: Atomic<u32>,
    confirmed: Atomic<u32>,
    released: Atomic<u32>,
}

impl Item {
    fn new() -> Result<PercpuRef<Self>> {
        let item = Self {
            canary: Atomic::new(ALIVE),
            confirmed: Atomic::new(0),
            released: Atomic::new(0),
        };
        BORN.inc();
        // If there is no memory, it is dropped without a release.
        Ok(UniquePercpuRef::new(item, GFP_KERNEL)
            .inspect_err(|_| RELEASED.inc())?
            .into())
    }

    /// To be true as long as there is a reference.
    fn is_alive(&self) -> bool {
        self.canary.load(Relaxed) == ALIVE
    }
}

impl Counted for Item {
    fn release(&self) {
        expect!(self.is_alive() && self.released.fetch_add(1, Relaxed) == 0);
        RELEASED.inc();
    }

    fn confirmed(&self) {
        expect!(self.is_alive() && self.released.load(Relaxed) == 0);
        expect!(self.confirmed.fetch_add(1, Relaxed) == 0);
        CONFIRMED.inc();
    }
}

impl Drop for Item {
    fn drop(&mut self) {
        expect!(self.is_alive());
        self.canary.store(DEAD, Relaxed);
        DROPPED.inc();
    }
}

/// Two words that belong together until the pair is dropped, which readers find without counting.
struct Pair([Atomic<usize>; 2]);

impl Pair {
    fn new(value: usize) -> Result<RcuBox<Self>> {
        let pair = RcuBox::new(Self([Atomic::new(value), Atomic::new(!value)]), GFP_KERNEL)?;
        PAIRS.inc();
        Ok(pair)
    }

    fn is_alive(&self) -> bool {
        self.0[0].load(Relaxed) == !self.0[1].load(Relaxed)
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        expect!(self.is_alive());
        self.0[1].store(self.0[0].load(Relaxed), Relaxed);
        PAIRS_DROPPED.inc();
    }
}

/// An object that is killed and brought back to life, and changes its mode.
struct Gate {
    inside: Atomic<i32>,
    confirmed: Tally,
    switched: Tally,
    releases: Tally,
}

impl Gate {
    fn new() -> Result<PercpuRef<Self, Reinit>> {
        let gate = Self {
            inside: Atomic::new(0),
            confirmed: Tally::new(),
            switched: Tally::new(),
            releases: Tally::new(),
        };
        Ok(UniquePercpuRef::new_reinit(gate, GFP_KERNEL)?.into())
    }

    /// What is done with a reference, in whatever context.
    fn pass(guard: PercpuRefGuard<Self>) {
        guard.inside.add(1, Relaxed);
        let clone = guard.clone();
        guard.inside.fetch_sub(1, Release);
        drop(guard);
        drop(clone);
        GETS.inc();
        count_by_cpu(0);
        count_by_cpu(1);
    }
}

impl Counted for Gate {
    fn release(&self) {
        self.releases.inc();
    }

    fn confirmed(&self) {
        self.confirmed.inc();
    }

    fn switched(&self) {
        self.switched.inc();
    }
}

/// What all of them use.
struct Stage {
    places: [RcuPercpuRef<Item>; 8],
    pairs: [RcuCell<Pair>; 8],
    gate: PercpuRef<Gate, Reinit>,
    /// One that stays alive to the end.
    kept: PercpuRef<Gate, Reinit>,
    /// A guard to be dropped by another thread.
    left: Pin<KBox<Mutex<Option<PercpuRefGuard<Item>>>>>,
    stop: Atomic<u32>,
}

/// The [`Stage`], for the interrupt; null if there is none.
static STAGE: Atomic<*mut Stage> = Atomic::new(core::ptr::null_mut());

impl Stage {
    fn is_over(&self) -> bool {
        self.stop.load(Acquire) != 0
    }

    /// Looks objects up, and gets and puts references in each way.
    fn read(&self, number: usize) {
        let mut turn = number;
        while !self.is_over() {
            turn = turn.wrapping_add(1);
            let place = &self.places[(turn / 3) & 7];
            let found = if turn % 2 == 0 {
                place.try_get()
            } else {
                place.try_get_live()
            };
            {
                let section = rcu::read_lock();
                let pair = self.pairs[turn & 7].load(&section);
                expect!(pair.is_none_or(Pair::is_alive));
            }
            if let Some(guard) = found {
                GETS.inc();
                count_by_cpu(0);
                count_by_cpu(1);
                expect!(guard.is_alive());
                let section = guard.lockdep_section();
                let mut batch = guard.get_many(turn & 127);
                let half = batch.split(batch.len() / 2);
                drop(batch);
                match turn & 31 {
                    0 => fsleep(Delta::from_millis(2)),
                    1 => drop(self.left.lock().replace(guard.clone())),
                    _ => {}
                }
                drop(section);
                expect!(guard.is_alive());
                drop(guard);
                drop(half);
            }
            let passing = match turn % 3 {
                0 => self.gate.try_get(),
                1 => self.gate.try_get_live(),
                _ => self
                    .kept
                    .try_get_many(turn & 127)
                    .and_then(|mut batch| batch.take()),
            };
            if let Some(guard) = passing {
                Gate::pass(guard);
            }
            if turn & 63 == 0 {
                fsleep(Delta::from_micros(300));
            }
        }
        // A thread may wait for the end of what it is a reference to.
        let left = self.left.lock().take();
        drop(left);
    }

    /// Puts new objects in the places of old ones, and ends those in each way.
    fn kill(&self, number: usize) {
        let mut turn = number;
        while !self.is_over() {
            turn = turn.wrapping_add(1);
            fsleep(Delta::from_micros(200));
            if BORN.get().wrapping_sub(DROPPED.get()) > 2000 {
                fsleep(Delta::from_millis(5));
            }
            if turn % 5 == 0 {
                drop(self.pairs[turn & 7].take());
            } else if let Ok(new) = Pair::new(turn) {
                drop(self.pairs[turn & 7].replace(Some(new)));
            }
            let Ok(new) = Item::new() else { continue };
            let Some(old) = self.places[turn & 7].replace(Some(new)) else {
                continue;
            };
            KILLS.inc();
            if turn & 63 == 0 && self.places[(turn >> 6) & 7].remove() {
                KILLS.inc();
            }
            match turn % 6 {
                0 => drop(old),
                1 => expect!(old.kill()),
                2 => {
                    TO_CONFIRM.inc();
                    expect!(old.kill_and_confirm());
                }
                3 => {
                    TO_CONFIRM.inc();
                    expect!(old.kill_and_confirm());
                    old.wait_released();
                    expect!(old.try_get().is_none() && old.is_zero());
                }
                4 => {
                    let result = old.kill_and_wait_timeout(Delta::from_millis(1));
                    expect!(result.is_ok() || old.is_dying());
                }
                _ => expect!(old.kill_and_wait()),
            }
        }
    }

    /// Kills the gate, brings it back to life and changes its mode, while other threads do so, too.
    fn switch(&self, number: usize) {
        let mut turn = number;
        while !self.is_over() {
            turn = turn.wrapping_add(1);
            match turn % 8 {
                0 | 1 => {
                    if self.gate.kill_and_confirm() {
                        KILLS.inc();
                        TO_CONFIRM.inc();
                    }
                }
                2 => {
                    SWITCHES.inc();
                    self.gate.switch_to_atomic();
                }
                3 => self.gate.switch_to_atomic_sync(),
                4 => self.gate.switch_to_percpu(),
                5 => {
                    let frozen = (self.gate.freeze(), self.gate.freeze());
                    FREEZES.inc();
                    expect!(self.gate.is_zero() && self.gate.try_get().is_none());
                    drop(frozen.0);
                    expect!(self.gate.is_zero() && self.gate.try_get_live().is_none());
                }
                6 => {
                    if self.gate.reinit().is_ok() {
                        RESURRECTED.inc();
                    }
                }
                _ => {
                    if self.gate.resurrect().is_ok() {
                        RESURRECTED.inc();
                    }
                }
            }
            self.kept.switch_to_percpu();
            if turn & 7 == 0 {
                SWITCHES.inc();
                self.kept.switch_to_atomic();
            }
            fsleep(Delta::from_micros(100 + 61 * (number as i64 & 7)));
        }
    }

    /// Takes CPUs offline and back, one at a time.
    fn offline(&self) {
        while !self.is_over() {
            for cpu in online_cpus().filter(|cpu| cpu.as_u32() != 0) {
                // SAFETY: May be called where one may sleep, as is the next one.
                if unsafe { remove_cpu(cpu.as_u32()) } == 0 {
                    OFFLINE.inc();
                    fsleep(Delta::from_millis(30));
                    // SAFETY: As above.
                    expect!(unsafe { add_cpu(cpu.as_u32()) } == 0);
                }
                fsleep(Delta::from_millis(30));
                if self.is_over() {
                    break;
                }
            }
        }
    }
}

/// The timer's function.
#[no_mangle]
extern "C" fn rust_percpu_ref_torture_irq(in_hard_irq: bool) {
    expect!(in_hard_irq);
    // SAFETY: The timer is stopped before the stage is gone.
    let stage = unsafe { &*STAGE.load(Acquire) };
    IN_IRQ.inc();
    count_by_cpu(1);
    if let Some(guard) = stage.kept.try_get() {
        Gate::pass(guard);
    }
    if let Some(guard) = stage.gate.try_get_live() {
        Gate::pass(guard);
    }
    let place = &stage.places[IN_IRQ.get() as usize & 7];
    expect!(place.try_get().is_none_or(|guard| guard.is_alive()));
    let section = rcu::read_lock();
    let pair = stage.pairs[IN_IRQ.get() as usize & 7].load(&section);
    expect!(pair.is_none_or(Pair::is_alive));
}

struct Torture;

impl kernel::Module for Torture {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        let seconds = value(module_parameters::seconds.value());
        if !(1..=86400).contains(&seconds) {
            pr_err!("seconds={seconds} makes no sense: give 1 to 86400\n");
            return Err(EINVAL);
        }
        run(seconds)?;

        pr_info!(
            "torture: {seconds} s, {} gets, {} interrupts, {} kills, {} confirmations, \
             {} releases\n",
            GETS.get(),
            IN_IRQ.get(),
            KILLS.get(),
            CONFIRMED.get(),
            RELEASED.get()
        );
        pr_info!(
            "torture: {} objects, {} switches, {} resurrections, {} freezes, \
             {} times a CPU offline; {} errors\n",
            BORN.get(),
            SWITCHED.get(),
            RESURRECTED.get(),
            FREEZES.get(),
            OFFLINE.get(),
            ERRORS.get()
        );
        if ERRORS.get() == 0 {
            pr_info!("torture: SUCCESS\n");
            Ok(Self)
        } else {
            pr_err!("torture: FAILURE\n");
            Err(EIO)
        }
    }
}

/// What a parameter is set to; up to 7.2 that is a reference.
fn value(parameter: impl core::borrow::Borrow<u32>) -> u32 {
    *parameter.borrow()
}

fn run(seconds: u32) -> Result {
    let stage = Arc::new(
        Stage {
            places: [const { RcuPercpuRef::empty() }; 8],
            pairs: [const { RcuCell::empty() }; 8],
            gate: Gate::new()?,
            kept: Gate::new()?,
            left: KBox::pin_init(new_mutex!(None), GFP_KERNEL)?,
            stop: Atomic::new(0),
        },
        GFP_KERNEL,
    )?;
    let mut threads = KVec::new();
    let result = start(&stage, &mut threads);
    let start = Instant::<Monotonic>::now();
    STAGE.store((&raw const *stage).cast_mut(), Release);
    // SAFETY: The stage is there until the timer is stopped.
    unsafe { percpu_ref_torture_timer_start() };
    while result.is_ok() && start.elapsed() < Delta::from_secs(i64::from(seconds)) {
        fsleep(Delta::from_millis(100));
    }

    // SAFETY: It was started.
    unsafe { percpu_ref_torture_timer_stop() };
    stage.stop.store(1, Release);
    drop(threads);
    result?;
    end(stage);
    Ok(())
}

fn start(stage: &Arc<Stage>, threads: &mut KVec<Thread>) -> Result {
    for (number, cpu) in online_cpus().enumerate() {
        for task in [Stage::read, Stage::read, Stage::kill, Stage::switch] {
            let stage = stage.clone();
            threads.push(
                Thread::spawn(cpu, move || task(&stage, number * 3))?,
                GFP_KERNEL,
            )?;
        }
    }
    if value(module_parameters::offline.value()) != 0 {
        let stage = stage.clone();
        let cpu = online_cpus().next().ok_or(ENODEV)?;
        threads.push(Thread::spawn(cpu, move || stage.offline())?, GFP_KERNEL)?;
    }
    Ok(())
}

/// All threads are gone: ends what is left, and compares.
fn end(stage: Arc<Stage>) {
    for gate in [&stage.gate, &stage.kept] {
        if gate.kill_and_confirm() {
            KILLS.inc();
            TO_CONFIRM.inc();
        }
        gate.wait_released();
        rcu::rcu_barrier();
        let value = gate.value();
        expect!(gate.is_zero() && value.inside.load(Acquire) == 0);
        let most = value.confirmed.get() + 2 * FREEZES.get();
        expect!(value.releases.get() >= 1 && value.releases.get() <= most);
        CONFIRMED.0.fetch_add(value.confirmed.get(), Relaxed);
        SWITCHED.0.fetch_add(value.switched.get(), Relaxed);
    }
    drop(stage);
    rcu::rcu_barrier();

    expect!(BORN.get() == RELEASED.get() && BORN.get() == DROPPED.get());
    expect!(PAIRS.get() > 0 && PAIRS.get() == PAIRS_DROPPED.get());
    let by_cpu = |index| BY_CPU.element(index).map(|counter| counter.sum());
    expect!(by_cpu(0) == Some(GETS.get()) && by_cpu(1) == Some(GETS.get() + IN_IRQ.get()));
    expect!(TO_CONFIRM.get() == CONFIRMED.get());
    expect!(SWITCHES.get() == SWITCHED.get());
    expect!(GETS.get() > 0 && IN_IRQ.get() > 0 && KILLS.get() > 0 && RESURRECTED.get() > 0);
}

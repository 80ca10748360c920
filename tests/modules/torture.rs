// SPDX-License-Identifier: GPL-2.0

//! Torture, like rcutorture: all operations of the library on all CPUs at a time, for a given time.
//!
//! | operation | done by |
//! |---|---|
//! | gets and puts, batches, RCU places and cells, guards that C has | two threads on each CPU |
//! | kills of objects, by each method, with timeouts | a thread on each CPU |
//! | kills, resurrections, switches of mode and freezing of one object | a thread on each CPU |
//! | kills of objects with [`RCU_TASKS`] and with [`MAY_SLEEP`] | two threads |
//! | objects of 32 types, so that classes are made and removed | a thread |
//! | last puts in hard interrupts (`irq_work`) | a thread |
//! | gets, puts and kills in hard interrupts and in softirqs | two timers |
//! | exhaustion of memory | a thread |
//! | taking CPUs offline and online | a thread |
//!
//! Every few seconds all threads rest at the same time, and then move to other CPUs.
//! `tests/guest/init` loads and unloads modules during the torture; see `visitor.rs`.
//!
//! Inserting the module runs the torture, and fails with `EIO` if an error was found. The module
//! prints a KTAP document with a line for each operation, and a verdict. Each operation must be
//! done at least once, and in each minute of a longer run.
//!
//! [`RCU_TASKS`]: kernel::sync::percpu_ref::Counted::RCU_TASKS
//! [`MAY_SLEEP`]: kernel::sync::percpu_ref::Counted::MAY_SLEEP

use kernel::percpu::Local;
use kernel::sync::{
    atomic::{
        Acquire,
        Atomic,
        Relaxed,
        Release, //
    },
    percpu_ref::{
        PercpuRef,
        PercpuRefGuard,
        RcuPercpuRef,
        Reinit, //
    },
    rcu::{
        self,
        RcuCell, //
    },
    Arc,
    Mutex, //
};
use kernel::{
    define_per_cpu, new_mutex,
    prelude::*,
    time::{
        delay::fsleep,
        Delta,
        Instant,
        Monotonic, //
    },
};

#[path = "../cases/kthread.rs"]
mod kthread;

// Declared first, because the other modules use its macro.
#[macro_use]
#[path = "torture/tally.rs"]
mod tally;
#[path = "torture/interrupts.rs"]
mod interrupts;
#[path = "torture/objects.rs"]
mod objects;
#[path = "torture/threads.rs"]
mod threads;

use kthread::{
    online_cpus,
    Thread, //
};
use objects::*;
use tally::*;
use threads::{
    PARTS,
    WAITING_FOR_TASKS, //
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
    fn percpu_ref_torture_move(n: c_uint) -> bool;
}

define_per_cpu! {
    /// The numbers of gets and of interrupts on each CPU, online or not.
    static BY_CPU: [Local<u64>; 2] = [Local::new(0), Local::new(0)];
}

/// Shared by all threads.
struct Stage {
    places: [RcuPercpuRef<Item<PLAIN>>; 8],
    /// Places whose objects are killed by interrupts.
    doomed: [RcuPercpuRef<Item<PLAIN>>; 16],
    tasks: [RcuPercpuRef<Item<TASKS>>; 4],
    sleepers: [RcuPercpuRef<Item<SLEEPER>>; 4],
    pairs: [RcuCell<Pair>; 8],
    gate: PercpuRef<Gate, Reinit>,
    /// An object that is live until the end.
    kept: PercpuRef<Gate, Reinit>,
    /// A guard for another thread to drop.
    left: Pin<KBox<Mutex<Option<PercpuRefGuard<Item<PLAIN>>>>>>,
    is_over: Atomic<u32>,
    is_pause: Atomic<u32>,
    resting: Atomic<usize>,
}

impl Stage {
    fn new() -> Result<Self> {
        Ok(Self {
            places: [const { RcuPercpuRef::empty() }; 8],
            doomed: [const { RcuPercpuRef::empty() }; 16],
            tasks: [const { RcuPercpuRef::empty() }; 4],
            sleepers: [const { RcuPercpuRef::empty() }; 4],
            pairs: [const { RcuCell::empty() }; 8],
            gate: Gate::new()?,
            kept: Gate::new()?,
            left: KBox::pin_init(new_mutex!(None), GFP_KERNEL)?,
            is_over: Atomic::new(0),
            is_pause: Atomic::new(0),
            resting: Atomic::new(0),
        })
    }

    /// Returns whether the calling thread must do one more turn.
    ///
    /// In a pause, sleeps until its end, and then moves the thread to another CPU. The caller must
    /// have no guard.
    fn goes_on(&self, turn: usize) -> bool {
        if self.is_pause.load(Acquire) != 0 {
            self.tidy_up();
            self.resting.add(1, Relaxed);
            while self.is_pause.load(Acquire) != 0 {
                fsleep(Delta::from_millis(1));
            }
            self.resting.fetch_sub(1, Relaxed);
            // SAFETY: `percpu_ref_torture_move()` moves the current task, which is a kernel thread
            // of this module.
            if turn != 0 && unsafe { percpu_ref_torture_move(turn as c_uint) } {
                MOVES.inc();
            }
        }
        let goes_on = self.is_over.load(Acquire) == 0;
        if !goes_on {
            self.tidy_up();
        }
        goes_on
    }

    /// Makes all threads rest for a tenth of a second.
    ///
    /// Gives up if they do not all rest within five seconds. A thread that waits for RCU Tasks
    /// counts as resting.
    fn pause(&self) {
        let start = Instant::<Monotonic>::now();
        self.is_pause.store(1, Release);
        while start.elapsed() < Delta::from_secs(5) {
            fsleep(Delta::from_millis(10));
            let resting = self.resting.load(Relaxed) + WAITING_FOR_TASKS.load(Relaxed);
            if resting as u64 == THREADS.get() {
                PAUSES.inc();
                fsleep(Delta::from_millis(100));
                break;
            }
        }
        self.is_pause.store(0, Release);
    }
}

struct Torture;

impl kernel::Module for Torture {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        let seconds = value(module_parameters::seconds.value());
        if !(1..=86400).contains(&seconds) {
            pr_err!("seconds={seconds} makes no sense: give 1 to 86400\n");
            return Err(EINVAL);
        }
        let with_offline = value(module_parameters::offline.value()) != 0;
        if run(seconds, with_offline)? {
            Ok(Self)
        } else {
            Err(EIO)
        }
    }
}

/// Returns the value of a parameter.
///
/// Up to Linux 7.2, a parameter's `value()` returns a reference.
fn value(parameter: impl core::borrow::Borrow<u32>) -> u32 {
    *parameter.borrow()
}

/// The time in which each thread must end after the end of the torture.
const TAIL: Delta = Delta::from_secs(60);

/// Runs the torture, prints the verdict, and returns whether no error was found.
fn run(seconds: u32, with_offline: bool) -> Result<bool> {
    let stage = Arc::new(Stage::new()?, GFP_KERNEL)?;
    // SAFETY: `stop()` is called below, before the stage is dropped.
    unsafe { interrupts::start(&stage) };
    let mut threads = KVec::new();
    let result = start(&stage, &mut threads, with_offline);
    if result.is_ok() {
        watch(&stage, Delta::from_secs(i64::from(seconds)), with_offline);
    }

    stage.is_over.store(1, Release);
    let start = Instant::<Monotonic>::now();
    while THREADS_ENDED.get() < THREADS.get() && start.elapsed() < TAIL {
        fsleep(Delta::from_millis(10));
    }
    let all_ended = THREADS_ENDED.get() == THREADS.get();
    if !all_ended {
        for part in &PARTS {
            let running = part.running.load(Relaxed);
            if running != 0 {
                pr_err!("{}: {running} threads do not end\n", part.name);
            }
        }
        expect!(all_ended);
        verdict(seconds, with_offline);
    }
    // This waits for the threads. It never returns if a thread does not end, because that thread
    // runs code of this module.
    drop(threads);
    interrupts::stop();
    result?;
    end(stage);
    Ok(all_ended && verdict(seconds, with_offline))
}

/// Lets the torture run for `time`, with pauses, and checks in each minute that it makes progress.
fn watch(stage: &Stage, time: Delta, with_offline: bool) {
    let start = Instant::<Monotonic>::now();
    let mut next_pause = Delta::from_secs(2);
    let mut next_look = Delta::from_secs(60);
    while start.elapsed() < time {
        fsleep(Delta::from_millis(100));
        if start.elapsed() >= next_pause {
            stage.pause();
            next_pause = start.elapsed() + Delta::from_secs(2);
        }
        if start.elapsed() >= next_look {
            next_look += Delta::from_secs(60);
            progress(start.elapsed());
            for row in ROWS.iter().filter(|row| row.is_counted_on_the_way()) {
                if !row.has_moved() && (with_offline || !row.is_of(&OFFLINE)) {
                    pr_err!("{} stands still\n", row.name());
                    ERRORS.inc();
                }
            }
        }
    }
}

fn start(stage: &Arc<Stage>, threads: &mut KVec<Thread>, with_offline: bool) -> Result {
    for part in PARTS
        .iter()
        .filter(|part| with_offline || !part.needs_offline)
    {
        for (number, cpu) in online_cpus().enumerate() {
            for _ in 0..part.on_each_cpu.max(1) {
                let stage = stage.clone();
                let run = move || {
                    (part.run)(&stage, number * 3);
                    // `end()` drops the last reference to the stage, so this thread must drop its
                    // own reference first.
                    drop(stage);
                    part.running.fetch_sub(1, Relaxed);
                    THREADS_ENDED.inc();
                };
                threads.reserve(1, GFP_KERNEL)?;
                part.running.add(1, Relaxed);
                let thread = Thread::spawn(cpu, run).inspect_err(|_| {
                    part.running.fetch_sub(1, Relaxed);
                })?;
                THREADS.inc();
                // Room was reserved above, so this does not fail.
                let _ = threads.push(thread, GFP_KERNEL);
            }
            if part.on_each_cpu == 0 {
                break;
            }
        }
    }
    Ok(())
}

/// Kills the remaining objects after all threads have ended, and checks the numbers.
fn end(stage: Arc<Stage>) {
    for gate in [&stage.gate, &stage.kept] {
        if gate.kill_and_confirm() {
            KILLS.inc();
            TO_CONFIRM.inc();
        }
        expect!(gate.wait_released_timeout(TAIL).is_ok());
        rcu::rcu_barrier();
        let value = gate.value();
        expect!(gate.is_zero() && value.inside.load(Acquire) == 0);
        let most = value.confirmed.get() + FREEZES.get();
        expect!(value.releases.get() >= 1 && value.releases.get() <= most);
    }
    drop(stage);
    rcu::rcu_barrier();
    // `rcu_barrier()` does not wait for RCU Tasks, or for releases that sleep.
    let start = Instant::<Monotonic>::now();
    while OBJECTS_DROPPED.get() != OBJECTS.get() && start.elapsed() < TAIL {
        fsleep(Delta::from_millis(10));
    }

    for (made, dropped) in MADE.iter().zip(&DROPPED) {
        ALL_TYPES.inc();
        if dropped.get() > 0 && made.get() == dropped.get() {
            TYPES.inc();
        }
    }
    let by_cpu = |index| BY_CPU.element(index).map_or(0, |counter| counter.sum());
    GETS_BY_CPU.add(by_cpu(0));
    expect!(by_cpu(1) == INTERRUPTS.get());
}

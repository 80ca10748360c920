// SPDX-License-Identifier: GPL-2.0

//! The numbers that the torture counts, and its verdict.

use kernel::{
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    },
    time::Delta, //
};

/// A counter of events.
pub(crate) struct Tally {
    count: Atomic<u64>,
    /// The count at the last call of [`Row::has_moved`].
    seen: Atomic<u64>,
}

impl Tally {
    pub(crate) const fn new() -> Self {
        Self {
            count: Atomic::new(0),
            seen: Atomic::new(0),
        }
    }

    pub(crate) fn inc(&self) {
        self.add(1);
    }

    pub(crate) fn add(&self, n: u64) {
        self.count.fetch_add(n, Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.count.load(Relaxed)
    }

    /// Sets the count to `value` if `value` is larger.
    pub(crate) fn raise(&self, value: u64) {
        let mut old = self.get();
        while old < value {
            match self.count.cmpxchg(old, value, Relaxed) {
                Ok(_) => return,
                Err(found) => old = found,
            }
        }
    }
}

/// A line of the results.
pub(crate) struct Row {
    name: &'static str,
    tally: &'static Tally,
    /// The tally that it must be equal to at the end.
    of: Option<&'static Tally>,
}

impl Row {
    /// Returns whether the tally has moved since the last call.
    pub(crate) fn has_moved(&self) -> bool {
        let now = self.tally.get();
        self.tally.seen.xchg(now, Relaxed) != now
    }

    /// Returns whether this is the row of `tally`.
    pub(crate) fn is_of(&self, tally: &Tally) -> bool {
        core::ptr::eq(self.tally, tally)
    }

    /// Returns whether the tally counts during the torture, and not only at its end.
    pub(crate) fn is_counted_on_the_way(&self) -> bool {
        self.of.is_none() || self.tally.get() > 0
    }

    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    fn is_right(&self) -> bool {
        let count = self.tally.get();
        count > 0 && self.of.is_none_or(|of| of.get() == count)
    }

    fn print(&self, number: usize, seconds: usize) {
        let verdict = if self.is_right() { "ok" } else { "not ok" };
        let name = self.name;
        // Not `u64`, because 32-bit machines have no 64-bit division.
        let count = self.tally.get() as usize;
        let (whole, tenth) = (count / seconds, count % seconds * 10 / seconds);
        match self.of {
            Some(of) => {
                let of = of.get() as usize;
                pr_info!("{verdict} {number} {name} # {count} of {of}, {whole}.{tenth} a second\n");
            }
            None => pr_info!("{verdict} {number} {name} # {count}, {whole}.{tenth} a second\n"),
        }
    }
}

macro_rules! rows {
    ($($(#[$doc:meta])* $tally:ident $name:literal $(of $of:ident)?,)*) => {
        $($(#[$doc])* pub(crate) static $tally: Tally = Tally::new();)*

        /// The operations that must be done in each run, and in each minute of it.
        ///
        /// Some must be done as often as another operation.
        pub(crate) static ROWS: &[Row] = &[$(Row {
            name: $name,
            tally: &$tally,
            of: rows!(@of $($of)?),
        }),*];
    };
    (@of $of:ident) => { Some(&$of) };
    (@of) => { None };
}

rows! {
    /// References that were got singly.
    GETS "gets",
    /// The sum of the per-CPU counters of gets, of all CPUs that are online or not.
    GETS_BY_CPU "gets_by_cpu" of GETS,
    /// Batches of references.
    BATCHES "batches",
    /// Gets that were refused.
    REFUSED "refused",
    HARD_TIMERS "hard_timers",
    SOFT_TIMERS "soft_timers",
    IRQ_WORKS "irq_works" of SENT,
    /// Guards that were passed to C and returned by C.
    TAKEN_FROM_C "taken_from_c" of GIVEN_TO_C,
    KILLS "kills",
    KILLS_IN_HARD_INTERRUPT "kills_in_hard_interrupt",
    KILLS_IN_SOFTIRQ "kills_in_softirq",
    /// Releases in a hard interrupt.
    RELEASES_IN_HARD_INTERRUPT "releases_in_hard_interrupt",
    /// Releases that slept.
    RELEASES_ASLEEP "releases_asleep",
    /// Releases of objects whose kill waits for RCU Tasks.
    RELEASES_BY_RCU_TASKS "releases_by_rcu_tasks",
    RELEASES "releases" of SHARED,
    CONFIRMATIONS "confirmations" of TO_CONFIRM,
    SWITCHES "switches" of TO_SWITCH,
    RESURRECTIONS "resurrections",
    FREEZES "freezes",
    TIMEOUTS "timeouts",
    REMOVALS "removals",
    REPLACEMENTS "replacements",
    /// Objects that were never shared.
    CANCELLATIONS "cancellations",
    OBJECTS_DROPPED "objects_dropped" of OBJECTS,
    /// Types that had objects, all of which were dropped.
    TYPES "types" of ALL_TYPES,
    PAIRS_DROPPED "pairs_dropped" of PAIRS,
    /// Objects whose initialisers failed.
    FAILED_INITS "failed_inits",
    /// Times that nearly all memory was in use.
    MEMORY_USED "memory_used",
    /// Times that a thread was moved to a CPU.
    MOVES "moves",
    /// Times that all threads rested.
    PAUSES "pauses",
    THREADS_ENDED "threads_ended" of THREADS,
    /// Times that a CPU was offline.
    OFFLINE "offline",
}

pub(crate) static OBJECTS: Tally = Tally::new();
pub(crate) static SHARED: Tally = Tally::new();
pub(crate) static PAIRS: Tally = Tally::new();
pub(crate) static TO_CONFIRM: Tally = Tally::new();
pub(crate) static TO_SWITCH: Tally = Tally::new();
pub(crate) static SENT: Tally = Tally::new();
pub(crate) static GIVEN_TO_C: Tally = Tally::new();
pub(crate) static ALL_TYPES: Tally = Tally::new();
pub(crate) static THREADS: Tally = Tally::new();
/// Interrupts of all kinds.
pub(crate) static INTERRUPTS: Tally = Tally::new();
/// The longest wait for the end of an object, in milliseconds.
pub(crate) static LONGEST_WAIT: Tally = Tally::new();
/// The longest wait for the end of an object with `RCU_TASKS`.
pub(crate) static LONGEST_WAIT_FOR_TASKS: Tally = Tally::new();
/// Objects for which there was no memory, if there are any on the machine.
pub(crate) static OUT_OF_MEMORY: Tally = Tally::new();
pub(crate) static ERRORS: Tally = Tally::new();

/// Counts and logs an error if the condition is false.
macro_rules! expect {
    ($cond:expr) => {
        if !$cond {
            $crate::tally::error(file!(), line!(), stringify!($cond));
        }
    };
}

/// Counts an error, and logs it if it is one of the first, which are the most useful.
#[cold]
pub(crate) fn error(file: &str, line: u32, what: &str) {
    ERRORS.inc();
    if ERRORS.get() <= 20 {
        pr_err!("{file}:{line}: {what}\n");
    }
}

/// Returns the number of operations. A get and its put count as two operations.
fn operations() -> u64 {
    let pairs = GETS.get() + BATCHES.get();
    let others = [
        &KILLS,
        &SWITCHES,
        &RESURRECTIONS,
        &FREEZES,
        &REPLACEMENTS,
        &PAIRS,
    ];
    2 * pairs + others.iter().map(|tally| tally.get()).sum::<u64>()
}

/// Logs the progress of the torture.
pub(crate) fn progress(elapsed: Delta) {
    pr_info!(
        "{} s: {} operations, {} kills, {} objects, {} errors\n",
        elapsed.as_millis() as usize / 1000,
        operations(),
        KILLS.get(),
        OBJECTS.get(),
        ERRORS.get()
    );
}

/// Logs the results as a KTAP document, and the verdict.
///
/// Returns whether no error was found.
pub(crate) fn verdict(seconds: u32, with_offline: bool) -> bool {
    let seconds = seconds as usize;
    let mut is_right = ERRORS.get() == 0;
    pr_info!("1..{}\n", ROWS.len() + 1);
    for (row, number) in ROWS.iter().zip(1..) {
        if !with_offline && row.is_of(&OFFLINE) {
            pr_info!("ok {number} {} # SKIP offline=0\n", row.name);
            continue;
        }
        row.print(number, seconds);
        is_right &= row.is_right();
    }
    let verdict = if ERRORS.get() == 0 { "ok" } else { "not ok" };
    pr_info!(
        "{verdict} {} no_errors # {} errors\n",
        ROWS.len() + 1,
        ERRORS.get()
    );

    let operations = operations() as usize;
    pr_info!(
        "{}: {seconds} s, {operations} operations, {} a second, {} kills, \
         the longest wait {} ms, for RCU Tasks {} ms, {} times out of memory, {} errors\n",
        if is_right { "SUCCESS" } else { "FAILURE" },
        operations / seconds,
        KILLS.get(),
        LONGEST_WAIT.get(),
        LONGEST_WAIT_FOR_TASKS.get(),
        OUT_OF_MEMORY.get(),
        ERRORS.get()
    );
    is_right
}

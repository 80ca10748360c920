// SPDX-License-Identifier: GPL-2.0

//! Checks the arithmetic of counts exhaustively, on a small count.
//!
//! Calls each function of `value.rs` with all arguments, and explores all interleavings of two
//! threads and an owner. This is a program for the host. It is built with `--cfg bounds`, so that a
//! value has 7 bits, there are at most 8 references, and the per-CPU counters count one reference a
//! call.

use std::collections::HashSet;

#[path = "../rust/kernel/sync/percpu_ref/value.rs"]
mod value;

use value::*;

const MASK: u64 = 127;

/// The meaning of a value, independent of `value.rs`: the state, and the number of references.
///
/// In [`Open`], the number includes the initial reference.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Meaning {
    Closed(i64),
    Closing(i64),
    Open(i64),
    Unknown,
}

use Meaning::*;

fn meaning(value: u64) -> Meaning {
    match value as i64 {
        n @ 0..=8 => Closed(n),
        n @ 16..=24 => Closing(n - 16),
        n @ 56..=72 => Open(n - 64),
        _ => Unknown,
    }
}

/// Returns the value with this meaning, or the saturated value if there is none.
fn value_of(meaning: Meaning) -> u64 {
    let all = 0..=MASK;
    all.into_iter()
        .find(|&value| meaning != Unknown && self::meaning(value) == meaning)
        .unwrap_or(32)
}

fn with(value: u64, change: i64) -> u64 {
    if change.abs() > 8 {
        return 32;
    }
    value_of(match meaning(value) {
        Closed(n) => Closed(n + change),
        Closing(n) => Closing(n + change),
        Open(n) => Open(n + change),
        Unknown => Unknown,
    })
}

fn each_function() {
    assert_eq!((SATURATED, INITIAL, LIMIT, BIAS), (32, 16, 8, 64));
    for v in 0..=MASK {
        let m = meaning(v);
        assert_eq!(is_valid(v), m != Unknown);
        assert_eq!(is_open(v), matches!(m, Open(_)));
        assert_eq!(is_closing(v), matches!(m, Closing(_)));
        assert_eq!(is_zero(v), matches!(m, Closed(0) | Closing(0)));
        assert_eq!(
            references(v),
            match m {
                Closed(n) | Closing(n) => Some(n as u64),
                Open(n) => Some((n - 1) as u64 & MASK),
                Unknown => None,
            }
        );
        for n in (0..=MASK as usize).chain([usize::MAX, usize::MAX - 8]) {
            let change = i64::try_from(n).unwrap_or(i64::MAX);
            assert_eq!(plus(v, n), with(v, change), "{v} + {n}");
            assert_eq!(minus(v, n), with(v, -change), "{v} - {n}");
            for live in [false, true] {
                let may = match m {
                    Open(_) => true,
                    Closed(n) | Closing(n) => n > 0 && !live,
                    Unknown => false,
                };
                let sum = with(v, change);
                let expected = (may && sum != 32).then_some(sum);
                assert_eq!(try_plus(v, n, live), expected, "{v} + {n}, live {live}");
            }
        }
        let closed = match m {
            Open(n @ 1..=8) => value_of(Closing(n - 1)),
            _ => 32,
        };
        assert_eq!(close(v), closed, "close {v}");
        for sum in 0..=MASK {
            let added = (v + sum) & MASK;
            let good = matches!((m, meaning(added)), (Open(_), Open(1..=8)));
            assert_eq!(add_counters(v, sum, false), if good { added } else { 32 });
            let closed = if good { close(added) } else { 32 };
            assert_eq!(add_counters(v, sum, true), closed);
        }
        let put = match m {
            Closing(n) => value_of(Closed(n)),
            _ => 32,
        };
        assert_eq!(put_initial(v), put);
        let revived = match m {
            Closed(n @ 0..=7) => value_of(Open(n + 1)),
            _ => 32,
        };
        assert_eq!(revive(v), revived);
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Mode {
    PerCpu,
    /// A switch is in flight: the callback is queued.
    Switching,
    Atomic,
    /// The callback is queued, and will close the reference.
    Dying,
    /// The initial reference is not put yet.
    Closing,
    Closed,
}

const THREADS: usize = 2;
/// The largest number of references that a thread gets.
const MOST: i64 = 10;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct State {
    once: bool,
    mode: Mode,
    atomic: u64,
    counters: u64,
    /// The references of each thread.
    held: [i64; THREADS],
    /// Whether each thread, or the owner, is about to store the saturated value.
    saturating: [bool; THREADS + 1],
    /// Whether the life of the object has ended.
    released: bool,
    /// Whether the initial reference was not put yet.
    initial: bool,
}

impl State {
    fn references(&self) -> i64 {
        self.held.iter().sum()
    }

    fn fail(&self, why: &str) -> ! {
        eprintln!("error: {why}: {self:?}");
        std::process::exit(1);
    }

    fn is_closed(&self) -> bool {
        matches!(self.mode, Mode::Closing | Mode::Closed)
    }

    /// Checks a release, when the count has reached zero.
    fn release(&mut self) {
        if self.references() != 0 || self.initial {
            self.fail("released with references");
        }
        if self.released {
            self.fail("released twice");
        }
        self.released = true;
    }

    fn check(&self) {
        if self.released && self.saturating.contains(&true) {
            self.fail("the object may be freed before it is saturated");
        }
        if self.saturating.contains(&true) || !is_valid(self.atomic) {
            return;
        }
        let is_exact = self.is_closed() || self.mode == Mode::Atomic;
        if is_exact && references(self.atomic) != Some(self.references() as u64) {
            self.fail("a wrong number of references");
        }
        if self.mode == Mode::Closed && self.references() == 0 && !self.released {
            self.fail("neither released nor saturated");
        }
    }

    /// Adds the states after each step that a thread can do to `next`.
    fn thread(&self, i: usize, next: &mut Vec<State>) {
        let by_cpu = self.mode == Mode::PerCpu;
        if self.saturating[i] {
            let mut s = *self;
            s.atomic = SATURATED;
            s.saturating[i] = false;
            next.push(s);
            return;
        }
        for n in [1usize, 2, 3, 7] {
            let change = n as i64;
            if self.held[i] + change <= MOST && (self.held[i] > 0) {
                let mut s = *self;
                s.held[i] += change;
                if by_cpu && n == 1 {
                    s.counters = (s.counters + 1) & MASK;
                } else {
                    let new = plus(s.atomic, n);
                    // A single reference is added before the result is checked.
                    s.atomic = if n == 1 { (s.atomic + 1) & MASK } else { new };
                    s.saturating[i] = new == SATURATED;
                }
                next.push(s);
            }
            for live in [false, true] {
                if self.held[i] + change > MOST || self.released && self.once {
                    continue;
                }
                let mut s = *self;
                s.held[i] += change;
                if by_cpu && n == 1 {
                    s.counters = (s.counters + 1) & MASK;
                } else if let Some(new) = try_plus(s.atomic, n, live) {
                    if live && self.is_closed() {
                        self.fail("a live reference after the end");
                    }
                    s.atomic = new;
                } else {
                    continue;
                }
                next.push(s);
            }
            if self.held[i] >= change {
                let mut s = *self;
                s.held[i] -= change;
                if by_cpu && n == 1 {
                    s.counters = (s.counters + MASK) & MASK;
                } else {
                    let new = minus(s.atomic, n);
                    s.atomic = if n == 1 {
                        (s.atomic + MASK) & MASK
                    } else {
                        new
                    };
                    if new == 0 {
                        s.release();
                    }
                    s.saturating[i] = new == SATURATED;
                }
                next.push(s);
            }
        }
    }

    /// Adds the states after each step that the owner or the callback can do to `next`.
    fn owner(&self, next: &mut Vec<State>) {
        let mut to = |mode, change: &dyn Fn(&mut State)| {
            let mut s = *self;
            s.mode = mode;
            change(&mut s);
            next.push(s);
        };
        let callback = |s: &mut State, closing| {
            s.atomic = add_counters(s.atomic, s.counters, closing);
            s.counters = 0;
        };
        let put = |s: &mut State| {
            s.initial = false;
            s.atomic = put_initial(s.atomic);
            if s.atomic == 0 {
                s.release();
            }
        };
        match self.mode {
            Mode::PerCpu => {
                to(Mode::Switching, &|_| {});
                to(Mode::Dying, &|_| {});
            }
            Mode::Switching => {
                to(Mode::Dying, &|_| {});
                to(Mode::Atomic, &|s| callback(s, false));
            }
            Mode::Atomic => {
                to(Mode::PerCpu, &|_| {});
                to(Mode::Closing, &|s| s.atomic = close(s.atomic));
            }
            Mode::Dying => {
                to(Mode::Closing, &|s| callback(s, true));
                // If no confirmation was asked for, the callback closes and puts in one step.
                if self.once {
                    to(Mode::Closed, &|s| {
                        callback(s, true);
                        put(s);
                    });
                }
            }
            Mode::Closing => to(Mode::Closed, &put),
            Mode::Closed if self.once => {}
            Mode::Closed => {
                for mode in [Mode::PerCpu, Mode::Atomic] {
                    to(mode, &|s| {
                        s.atomic = revive(s.atomic);
                        s.initial = true;
                        s.released = false;
                    });
                }
            }
        }
    }
}

/// Explores all states, and returns their number.
fn all_interleavings(once: bool) -> usize {
    let begin = State {
        once,
        mode: Mode::PerCpu,
        atomic: BIAS + 1,
        counters: 0,
        held: [0; THREADS],
        saturating: [false; THREADS + 1],
        released: false,
        initial: true,
    };
    let mut seen = HashSet::from([begin]);
    let mut stack = vec![begin];
    let mut next = Vec::new();
    while let Some(state) = stack.pop() {
        state.check();
        for i in 0..THREADS {
            state.thread(i, &mut next);
        }
        state.owner(&mut next);
        stack.extend(next.drain(..).filter(|s| seen.insert(*s)));
    }
    seen.len()
}

fn main() {
    each_function();
    let states = all_interleavings(true) + all_interleavings(false);
    println!("all functions with all arguments, {states} states");
}

// SPDX-License-Identifier: GPL-2.0

//! What a value of [`Count::atomic`](super::count::Count) means, and each function that computes a
//! new one.
//!
//! The values are divided into ranges. The bounds of each range are multiples of [`LIMIT`], and
//! between two ranges lie values that are not valid:
//!
//! | range | values | meaning |
//! |---|---|---|
//! | closed | `0 ..= LIMIT` | this many references, and the initial one was put |
//! | closing | `INITIAL ..= INITIAL + LIMIT` | this many references, and the initial one |
//! | saturated | about `SATURATED` | the number of references is not known |
//! | open | `BIAS - LIMIT ..= BIAS + LIMIT` | some counters may not be added yet |
//!
//! # Saturation
//!
//! A value that is not valid makes the object leak: each operation that finds such a value stores
//! [`SATURATED`]. This is a plain store after the operation, so it must not be done to an object
//! that may have been freed before it. Hence the rule: *only a get may take a value above its
//! range, or from below back into it, without saturating it in the same step, and its caller must
//! hold a reference until after the store.* So as long as a store is to come, the value is not
//! valid, or a getter holds a reference and is about to store, too; and after any store the object
//! never ends.
//!
//! A put of a few references does not break the rule: it may take an open value below its range,
//! but not back. All other functions return [`SATURATED`] in place of a value outside of the
//! ranges.
//!
//! `tests/bounds.rs` tries all values and all interleavings of small ranges.

/// The width of the values: 64, and less in `tests/bounds.rs`.
#[cfg(not(bounds))]
const BITS: u32 = u64::BITS;
#[cfg(bounds)]
const BITS: u32 = 7;

/// In the atomic until the reference is closed.
#[doc(alias("PERCPU_COUNT_BIAS", "PCPU_COUNT_BIAS"))]
pub(super) const BIAS: u64 = 1 << (BITS - 1);

/// The value of a count whose number of references is not known. It is half-way between the valid
/// ranges on both sides, so gets and puts do not take it to zero.
#[doc(alias = "REFCOUNT_SATURATED")]
pub(super) const SATURATED: u64 = 1 << (BITS - 2);

/// The initial reference while the thread that closes the reference still holds it. It keeps the
/// object alive, but does not count as a reference.
pub(super) const INITIAL: u64 = 1 << (BITS - 3);

/// The largest number of references. A get that finds more saturates the count.
pub(super) const LIMIT: u64 = 1 << (BITS - 4);

/// The largest number of references that one call adds to a counter or subtracts from it. Larger
/// numbers go to the atomic, where an overflow is noticed.
///
/// An overflow of the counters is not noticed. Code that forgets what it gets could bring their sum
/// all the way round by 2^58 calls with this number: decades of one CPU's time, but a day of 8192
/// CPUs that do nothing else. C's `percpu_ref_get_many()` takes any number.
///
/// The division also has a cost: get more than this number at once, put them in smaller numbers,
/// and the atomic rises while the counters fall. After 2^54 such puts on one object, the atomic is
/// out of its range, and the object leaks although all of its references were put. C has no such
/// limit.
#[cfg(not(bounds))]
pub(super) const MAX_LOCAL: usize = 64;

/// `value` modulo the width.
const fn wrap(value: u64) -> u64 {
    value & (u64::MAX >> (u64::BITS - BITS))
}

/// The range that a value lies in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Range {
    Closed,
    Closing,
    Open,
    /// None of the valid ones.
    Invalid,
}

const fn range(value: u64) -> Range {
    if value <= LIMIT {
        Range::Closed
    } else if INITIAL <= value && value <= INITIAL + LIMIT {
        Range::Closing
    } else if wrap(value.wrapping_sub(BIAS - LIMIT)) <= 2 * LIMIT {
        Range::Open
    } else {
        Range::Invalid
    }
}

/// Returns whether a value is in one of the valid ranges.
pub(super) const fn is_valid(value: u64) -> bool {
    !matches!(range(value), Range::Invalid)
}

/// Returns whether the bias is in, so that the reference is not closed.
pub(super) const fn is_open(value: u64) -> bool {
    matches!(range(value), Range::Open)
}

/// Returns whether the initial reference is still to be put by the thread that closes.
pub(super) const fn is_closing(value: u64) -> bool {
    matches!(range(value), Range::Closing)
}

/// Returns whether the reference is closed and has no references.
pub(super) const fn is_zero(value: u64) -> bool {
    value == 0 || value == INITIAL
}

/// Returns the number of references without the initial one, or `None` if `value` does not tell.
/// While the count is open, the caller must know that the counters are zero.
pub(super) const fn references(value: u64) -> Option<u64> {
    match range(value) {
        Range::Closed => Some(value),
        Range::Closing => Some(value - INITIAL),
        Range::Open => Some(wrap(value.wrapping_sub(BIAS + 1))),
        Range::Invalid => None,
    }
}

/// Returns `new` if it is in the same valid range as `old`, and else [`SATURATED`].
const fn within(old: u64, new: u64, n: usize) -> u64 {
    let same = matches!(
        (range(old), range(new)),
        (Range::Closed, Range::Closed)
            | (Range::Closing, Range::Closing)
            | (Range::Open, Range::Open)
    );
    if same && n as u64 <= LIMIT {
        new
    } else {
        SATURATED
    }
}

/// Returns `old` with `n` more references.
pub(super) const fn plus(old: u64, n: usize) -> u64 {
    within(old, wrap(old.wrapping_add(n as u64)), n)
}

/// Returns `old` with `n` references less. The result 0 ends a life of the object.
pub(super) const fn minus(old: u64, n: usize) -> u64 {
    within(old, wrap(old.wrapping_sub(n as u64)), n)
}

/// Returns `old` with `n` more references, or `None` if there are none to be had: the count is
/// zero, or the sum would be too large, or with `live`, the reference is closed.
pub(super) const fn try_plus(old: u64, n: usize, live: bool) -> Option<u64> {
    if (live && !is_open(old)) || is_zero(old) {
        return None;
    }
    match plus(old, n) {
        SATURATED => None,
        new => Some(new),
    }
}

/// Takes the bias out. From then on the initial reference is [`INITIAL`].
pub(super) const fn close(old: u64) -> u64 {
    match wrap(old.wrapping_sub(BIAS)) {
        references if 1 <= references && references <= LIMIT => references - 1 + INITIAL,
        _ => SATURATED,
    }
}

/// Adds the sum of the counters, and closes in the same step if `closing`: a part of the sum, or
/// the sum after the bias, could bring the value to zero, which a put would take for the end.
pub(super) const fn add_counters(old: u64, sum: u64, closing: bool) -> u64 {
    let new = wrap(old.wrapping_add(sum));
    match range(old) {
        Range::Open => match close(new) {
            SATURATED => SATURATED,
            closed if closing => closed,
            _ => new,
        },
        _ => SATURATED,
    }
}

/// Puts the initial reference of a count that is closing. The result 0 ends a life of the object.
pub(super) const fn put_initial(old: u64) -> u64 {
    match range(old) {
        Range::Closing => old - INITIAL,
        _ => SATURATED,
    }
}

/// Begins another life of a closed count: the bias and an initial reference.
pub(super) const fn revive(old: u64) -> u64 {
    // `old + 1` references must not be too many.
    match range(old) {
        Range::Closed if old < LIMIT => old + 1 + BIAS,
        _ => SATURATED,
    }
}

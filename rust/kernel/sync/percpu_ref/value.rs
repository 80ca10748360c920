// SPDX-License-Identifier: GPL-2.0

//! The values of [`Count::atomic`](super::count::Count), and the functions that compute new values.
//!
//! The values are divided into ranges. The bounds of each range are multiples of [`LIMIT`]. Between
//! two ranges there are invalid values:
//!
//! | range | values | meaning |
//! |---|---|---|
//! | closed | `0 ..= LIMIT` | this many references; the initial reference was put |
//! | closing | `INITIAL ..= INITIAL + LIMIT` | this many references, and the initial reference |
//! | saturated | about `SATURATED` | the number of references is not known |
//! | open | `BIAS - LIMIT ..= BIAS + LIMIT` | the counters may not be added yet |
//!
//! # Saturation
//!
//! An invalid value makes the object leak: each operation that finds an invalid value stores
//! [`SATURATED`]. This is a plain store after the operation, so it must not be done to an object
//! that may be freed in between. Hence the rule: *only a get may take a value above its range, or
//! from below its range back into it, without saturating it in the same operation, and the caller
//! of the get must hold a reference until after the store.* As long as such a store is still to
//! come, either the value is invalid, or a get that will store as well holds a reference. After any
//! store, the object is never released.
//!
//! A put of few references does not break the rule: it may take an open value below its range, but
//! not back into it. All other functions return [`SATURATED`] instead of a value outside of the
//! ranges.
//!
//! `tests/bounds.rs` tries all values and all interleavings of small ranges.

/// The width of the values in bits: 64, and fewer in `tests/bounds.rs`.
#[cfg(not(bounds))]
const BITS: u32 = u64::BITS;
#[cfg(bounds)]
const BITS: u32 = 7;

/// The number that is added to the atomic until the reference is closed.
#[doc(alias("PERCPU_COUNT_BIAS", "PCPU_COUNT_BIAS"))]
pub(super) const BIAS: u64 = 1 << (BITS - 1);

/// The value of a count whose number of references is not known.
///
/// It is half-way between the valid ranges on both sides, so gets and puts do not take it to zero.
#[doc(alias = "REFCOUNT_SATURATED")]
pub(super) const SATURATED: u64 = 1 << (BITS - 2);

/// The initial reference from the closing until the thread that closes the reference puts it.
///
/// It keeps the object alive, but does not count as a reference.
pub(super) const INITIAL: u64 = 1 << (BITS - 3);

/// The largest number of references.
///
/// A get that finds more saturates the count.
pub(super) const LIMIT: u64 = 1 << (BITS - 4);

/// The largest number of references that one call adds to a counter or subtracts from it.
///
/// Larger numbers are added to the atomic, where an overflow is noticed. An overflow of the
/// counters is not noticed. With this limit, it takes 2^58 leaking calls to wrap their sum: decades
/// on one CPU, but a day on 8192 CPUs that do nothing else. C's `percpu_ref_get_many()` has no such
/// limit.
///
/// The limit also has a cost. If more references than this are got at once, and are put in smaller
/// numbers, the atomic rises while the counters fall. After 2^54 such puts on one object, the
/// atomic is out of its range, and the object is leaked although all references were put. C has no
/// such limit.
#[cfg(not(bounds))]
pub(super) const MAX_LOCAL: usize = 64;

/// Returns `value` modulo the width.
const fn wrap(value: u64) -> u64 {
    value & (u64::MAX >> (u64::BITS - BITS))
}

/// The range that a value lies in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Range {
    Closed,
    Closing,
    Open,
    /// None of the valid ranges.
    Invalid,
}

/// Returns the range that a value lies in.
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

/// Returns whether the bias is in the value, so that the reference is not closed.
pub(super) const fn is_open(value: u64) -> bool {
    matches!(range(value), Range::Open)
}

/// Returns whether the reference is closed and the initial reference is not put yet.
pub(super) const fn is_closing(value: u64) -> bool {
    matches!(range(value), Range::Closing)
}

/// Returns whether the reference is closed and has no references.
pub(super) const fn is_zero(value: u64) -> bool {
    value == 0 || value == INITIAL
}

/// Returns the number of references without the initial reference, or `None` if it is not known.
///
/// While the value is open, the caller must know that the counters are zero.
pub(super) const fn references(value: u64) -> Option<u64> {
    match range(value) {
        Range::Closed => Some(value),
        Range::Closing => Some(value - INITIAL),
        Range::Open => Some(wrap(value.wrapping_sub(BIAS + 1))),
        Range::Invalid => None,
    }
}

/// Returns `new` if it is in the same valid range as `old`, and [`SATURATED`] if not.
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

/// Returns `old` with `n` references less.
///
/// The result 0 ends a life of the object.
pub(super) const fn minus(old: u64, n: usize) -> u64 {
    within(old, wrap(old.wrapping_sub(n as u64)), n)
}

/// Returns `old` with `n` more references, or `None` if they cannot be added.
///
/// They cannot be added if the count is zero, if the sum would be too large, or with `live`, if the
/// reference is closed.
pub(super) const fn try_plus(old: u64, n: usize, live: bool) -> Option<u64> {
    if (live && !is_open(old)) || is_zero(old) {
        return None;
    }
    match plus(old, n) {
        SATURATED => None,
        new => Some(new),
    }
}

/// Removes the bias.
///
/// From then on, the initial reference counts as [`INITIAL`].
pub(super) const fn close(old: u64) -> u64 {
    match wrap(old.wrapping_sub(BIAS)) {
        references if 1 <= references && references <= LIMIT => references - 1 + INITIAL,
        _ => SATURATED,
    }
}

/// Adds the sum of the counters, and also closes the reference if `closing`.
///
/// Both must be one operation, because a part of the sum, or the sum after the bias is removed,
/// could take the value to zero, and a put would then release the object too early.
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

/// Puts the initial reference of a count that is closing.
///
/// The result 0 ends a life of the object.
pub(super) const fn put_initial(old: u64) -> u64 {
    match range(old) {
        Range::Closing => old - INITIAL,
        _ => SATURATED,
    }
}

/// Begins another life of a closed count, by adding the bias and an initial reference.
pub(super) const fn revive(old: u64) -> u64 {
    // `old + 1` references must not be too many.
    match range(old) {
        Range::Closed if old < LIMIT => old + 1 + BIAS,
        _ => SATURATED,
    }
}

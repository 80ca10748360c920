// SPDX-License-Identifier: GPL-2.0

//! [`Count::state`](super::count::Count): the holds, and what was asked for.

use crate::sync::atomic::{
    Atomic,
    Full,
    Relaxed, //
};

/// One life that has not ended, or one thread that keeps the memory for a moment.
///
/// The number of lives cannot overflow. Each life except the current one is inside its release on
/// some stack, and each thread that begins another life has one more. There are at most 2^22
/// threads (`PID_MAX_LIMIT`), and a release that resurrects and kills its object nests only a few
/// times on one stack. If the number did overflow, the carry would go to the freezers, which keep
/// the memory as well.
pub(super) const LIFE: u64 = 1 << 0;
/// The number of lives.
pub(super) const LIVES_MASK: u64 = (1 << 24) - LIFE;
/// One [`Frozen`](super::Frozen), or one call of `freeze()` that waits.
pub(super) const FREEZER: u64 = 1 << 24;
/// The number of freezers.
///
/// The largest number is never changed again, so the object stays frozen.
pub(super) const FREEZERS_MASK: u64 = (1 << 48) - FREEZER;
/// The owner has its [`PercpuRef`](super::PercpuRef).
pub(super) const HANDLE: u64 = 1 << 48;
/// The holds, each of which keeps the memory of the object.
pub(super) const HOLDS_MASK: u64 = LIVES_MASK | FREEZERS_MASK | HANDLE;
/// The object can have more than one life, and is not dropped while there are holds.
pub(super) const REINIT: u64 = 1 << 49;
/// The object outlived its module, so its memory must not be freed.
pub(super) const LEAKED: u64 = 1 << 50;
/// RCU readers may find the object.
pub(super) const PUBLISHED: u64 = 1 << 51;
/// The owner killed the reference and has not resurrected it since.
pub(super) const KILLED: u64 = 1 << 52;
/// The confirmation of the kill is not called yet.
pub(super) const CONFIRM: u64 = 1 << 53;
/// The confirmation of the switch is not called yet.
pub(super) const NOTIFY: u64 = 1 << 54;
/// A thread has killed the reference, and has not set [`DEAD`](super::word::DEAD) yet.
pub(super) const KILLING: u64 = 1 << 55;
/// A thread begins another life, and has not cleared [`DEAD`](super::word::DEAD) yet.
pub(super) const REVIVING: u64 = 1 << 56;
/// Gets and puts are in [`Section::Tasks`](super::section::Section).
///
/// Switches wait for RCU Tasks.
pub(super) const TASKS: u64 = 1 << 57;

/// Returns whether a reference with this state must be dying.
///
/// [`DEAD`](super::word::DEAD) in the word follows the state.
pub(super) const fn is_dead(state: u64) -> bool {
    state & (KILLED | FREEZERS_MASK) != 0
}

/// Replaces a state by the result of `new`, unless that is `None`.
///
/// Returns the old state, as `Ok` if it was replaced, and as `Err` if not. If the state was
/// replaced, the operation is `Full`. Each caller says which order it needs.
pub(super) fn change(state: &Atomic<u64>, new: impl Fn(u64) -> Option<u64>) -> Result<u64, u64> {
    let mut old = state.load(Relaxed);
    while let Some(new) = new(old) {
        match state.cmpxchg(old, new, Full) {
            Ok(_) => return Ok(old),
            Err(found) => old = found,
        }
    }
    Err(old)
}

// SPDX-License-Identifier: GPL-2.0

//! The word that each get and put reads: the address of the counters, with flags in the low bits.

use crate::{
    percpu::Local,
    prelude::*,
    sync::atomic::AtomicType, //
};
use core::ptr::NonNull;

/// A set of flags of a [`Word`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Flags(usize);

/// The reference was killed or frozen.
#[doc(alias("__PERCPU_REF_DEAD", "PCPU_REF_DEAD"))]
pub(super) const DEAD: Flags = Flags(1 << 0);
/// Atomic mode was asked for.
#[doc(alias = "force_atomic")]
pub(super) const FORCE: Flags = Flags(1 << 1);
/// A transition is in flight.
pub(super) const BUSY: Flags = Flags(1 << 2);

/// No flag.
pub(super) const NONE: Flags = Flags(0);
/// All flags.
///
/// If any of them is set, gets and puts use the atomic.
#[doc(alias = "__PERCPU_REF_ATOMIC")]
const ATOMIC: Flags = DEAD.union(FORCE).union(BUSY);

const _: () = assert!(align_of::<Local<u64>>() > ATOMIC.0);

impl Flags {
    /// Returns the flags that are in `self` or in `other`.
    pub(super) const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// The address of per-CPU counters, with flags.
///
/// # Invariants
///
/// Without its flags, the pointer is one that [`PerCpu::into_raw`](crate::percpu::PerCpu) returned
/// for a [`Local<u64>`], whose alignment leaves the bits of the flags zero.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub(super) struct Word(*mut c_void);

// SAFETY: A `Word` is a transparent wrapper of a `*mut c_void`. It has the size and alignment of a
// `*const c_void`, is round-trip transmutable to it, and can be sent to other threads.
unsafe impl AtomicType for Word {
    type Repr = *const c_void;
}

impl Word {
    /// Creates a word from the address of allocated per-CPU counters.
    pub(super) fn new(counters: NonNull<c_void>, flags: Flags) -> Self {
        // INVARIANT: The caller passes what `PerCpu::into_raw()` returned.
        Self(counters.as_ptr()).with(flags)
    }

    /// Returns the address of the counters.
    #[inline(always)]
    pub(super) fn counters(self) -> NonNull<c_void> {
        // SAFETY: By the type invariant, the pointer without its flags is one that
        // `PerCpu::into_raw()` returned, which is not null.
        unsafe { NonNull::new_unchecked(self.without(ATOMIC).0) }
    }

    /// Returns whether gets and puts use the counters.
    #[inline(always)]
    pub(super) fn is_percpu(self) -> bool {
        !self.has(ATOMIC)
    }

    /// Returns whether any of `flags` is set.
    #[inline(always)]
    pub(super) fn has(self, flags: Flags) -> bool {
        self.0.addr() & flags.0 != 0
    }

    /// Returns the word with `flags` set.
    #[inline(always)]
    pub(super) fn with(self, flags: Flags) -> Self {
        Self(self.0.map_addr(|addr| addr | flags.0))
    }

    /// Returns the word with `flags` cleared.
    #[inline(always)]
    pub(super) fn without(self, flags: Flags) -> Self {
        Self(self.0.map_addr(|addr| addr & !flags.0))
    }
}

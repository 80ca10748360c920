// SPDX-License-Identifier: GPL-2.0

//! Records of what holds an object: where each reference was got, when, and by which task.
//!
//! With `CONFIG_RUST_PERCPU_REF_DEBUG`, each guard, each batch, each [`Frozen`](super::Frozen) and
//! each shared object has a [`Holder`], which points to a record. The messages about long waits and
//! the file in debugfs are made from the records. Without the option, a [`Holder`] has no size, and
//! its methods are empty.

#[cfg(CONFIG_RUST_PERCPU_REF_DEBUG)]
mod lockdep;
#[cfg(not(CONFIG_RUST_PERCPU_REF_DEBUG))]
mod off;
#[cfg(CONFIG_RUST_PERCPU_REF_DEBUG)]
mod record;

#[cfg(CONFIG_RUST_PERCPU_REF_DEBUG)]
pub(super) use {
    lockdep::*,
    record::*, //
};

#[cfg(not(CONFIG_RUST_PERCPU_REF_DEBUG))]
pub(super) use off::*;

/// The kind of what a [`Holder`] records.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(usize)]
pub(super) enum Kind {
    /// One reference.
    Guard = 0,
    /// Any number of references.
    Batch = 2,
    /// A freezer.
    Freezer = 4,
    /// A shared object itself.
    Object = 6,
}

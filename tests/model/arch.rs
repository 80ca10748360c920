// SPDX-License-Identifier: GPL-2.0

//! Replaces `rust/kernel/sync/rcu/arch.rs` by loads that the model sees.

use crate::sync::atomic::{
    Acquire,
    Atomic,
    AtomicType,
    Relaxed, //
};

pub(crate) fn read_once<T: AtomicType>(from: &Atomic<T>) -> T {
    from.load(Relaxed)
}

pub(crate) fn load_acquire<T>(from: &Atomic<*mut T>) -> *mut T {
    from.load(Acquire)
}

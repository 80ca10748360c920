// SPDX-License-Identifier: GPL-2.0

//! Threads with references share the object.
//!
//! error[E0277]

use core::cell::Cell;
use kernel::sync::atomic::Atomic;
use kernel::sync::percpu_ref::Counted;

pub struct Queue {
    #[cfg(misuse)]
    depth: Cell<u32>,
    #[cfg(not(misuse))]
    depth: Atomic<u32>,
}

impl Counted for Queue {}

pub fn depth(queue: &Queue) -> &impl Sized {
    &queue.depth
}

pub fn both(_: Cell<u32>, _: Atomic<u32>) {}

// SPDX-License-Identifier: GPL-2.0

//! The owner of an object that lives once cannot access it, because it may be dropped.
//!
//! error[E0609]

use kernel::sync::percpu_ref::{
    Counted,
    PercpuRef, //
};

pub struct Queue {
    depth: u32,
}

impl Counted for Queue {}

pub fn depth(queue: &PercpuRef<Queue>) -> Option<u32> {
    #[cfg(misuse)]
    return Some(queue.depth);
    #[cfg(not(misuse))]
    Some(queue.try_get()?.depth)
}

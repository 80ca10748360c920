// SPDX-License-Identifier: GPL-2.0

//! A confirmation runs when its maker may be gone, and so captures nothing.
//!
//! error[E0308]

use kernel::prelude::*;
use percpu_ref::{
    Counted,
    PercpuRef, //
};

pub struct Queue {
    depth: u32,
}

impl Counted for Queue {}

pub fn shut_down(queue: &PercpuRef<Queue>) {
    let limit = 64;
    #[cfg(misuse)]
    let busy = |queue: &Queue| assert!(queue.depth < limit);
    #[cfg(not(misuse))]
    let busy = |queue: &Queue| assert!(queue.depth < 64);
    queue.kill_and_confirm(busy);
    let _ = limit;
}

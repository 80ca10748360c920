// SPDX-License-Identifier: GPL-2.0

//! An object that lives once is in per-CPU mode until it is killed.
//!
//! error[E0599]

use kernel::sync::percpu_ref::{
    Counted,
    PercpuRef,
    Reinit, //
};

pub struct Queue;

impl Counted for Queue {}

#[cfg(misuse)]
type Queues = PercpuRef<Queue>;
#[cfg(not(misuse))]
type Queues = PercpuRef<Queue, Reinit>;

pub fn change(queue: &Queues) {
    let _ = queue.switch_to_atomic_sync();
}

pub fn both(_: &PercpuRef<Queue, Reinit>) {}

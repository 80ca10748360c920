// SPDX-License-Identifier: GPL-2.0

//! An object that lives once cannot be thawed, so it cannot be frozen.
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
    drop(queue.freeze());
}

pub fn both(_: &PercpuRef<Queue, Reinit>) {}

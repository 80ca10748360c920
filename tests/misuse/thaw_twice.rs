// SPDX-License-Identifier: GPL-2.0

//! A `Frozen` is dropped once.
//!
//! error[E0382]

use kernel::sync::percpu_ref::{
    Counted,
    PercpuRef,
    Reinit, //
};

pub struct Queue;

impl Counted for Queue {}

pub fn change(queue: &PercpuRef<Queue, Reinit>) {
    let frozen = queue.freeze();
    drop(frozen);
    #[cfg(misuse)]
    drop(frozen);
}

// SPDX-License-Identifier: GPL-2.0

//! A place owns the object that is put into it, so it does not take a borrowed reference.
//!
//! error[E0308]

use kernel::sync::percpu_ref::{
    Counted,
    PercpuRef,
    RcuPercpuRef, //
};

pub struct Queue;

impl Counted for Queue {}

pub fn publish(place: &RcuPercpuRef<Queue>, queue: PercpuRef<Queue>) {
    #[cfg(misuse)]
    let _ = place.insert(&queue);
    #[cfg(not(misuse))]
    let _ = place.insert(queue);
}

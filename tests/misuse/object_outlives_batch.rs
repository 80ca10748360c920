// SPDX-License-Identifier: GPL-2.0

//! A batch may pass on its last reference, after which its object must not be used.
//!
//! error[E0502]

use kernel::sync::percpu_ref::{
    Counted,
    PercpuRefBatch, //
};

pub struct Queue {
    depth: u32,
}

impl Counted for Queue {}

pub fn depth(batch: &mut PercpuRefBatch<Queue>) -> Option<u32> {
    let queue = batch.value()?;
    #[cfg(misuse)]
    drop(batch.take());
    Some(queue.depth)
}

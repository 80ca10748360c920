// SPDX-License-Identifier: GPL-2.0

//! The references of a batch that was merged into another one belong to the other one.
//!
//! error[E0382]

use kernel::sync::percpu_ref::{
    Counted,
    PercpuRefBatch, //
};

pub struct Queue;

impl Counted for Queue {}

pub fn collect(all: &mut PercpuRefBatch<Queue>, batch: PercpuRefBatch<Queue>) -> usize {
    let len = batch.len();
    drop(all.merge(batch));
    #[cfg(misuse)]
    drop(batch);
    len
}

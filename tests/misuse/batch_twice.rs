// SPDX-License-Identifier: GPL-2.0

//! A batch that is merged into another batch passes its references to that batch.
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

// SPDX-License-Identifier: GPL-2.0

//! The object must not be used after the guard is dropped.
//!
//! error[E0505]

use kernel::sync::percpu_ref::{
    Counted,
    PercpuRefGuard, //
};

struct Queue {
    depth: u32,
}

impl Counted for Queue {}

pub fn done(request: PercpuRefGuard<Queue>) -> u32 {
    let depth = &request.depth;
    #[cfg(misuse)]
    drop(request);
    *depth
}

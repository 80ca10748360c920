// SPDX-License-Identifier: GPL-2.0

//! Other threads may have guards of the object, so a guard gives only shared access to it.
//!
//! error[E0594]

use kernel::sync::percpu_ref::{
    Counted,
    PercpuRefGuard, //
};

pub struct Queue {
    depth: u32,
}

impl Counted for Queue {}

pub fn shrink(request: &mut PercpuRefGuard<Queue>) -> u32 {
    #[cfg(misuse)]
    {
        request.depth = 1;
    }
    request.depth
}

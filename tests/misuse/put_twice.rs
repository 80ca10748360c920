// SPDX-License-Identifier: GPL-2.0

//! A put consumes the guard, so it cannot be put again.
//!
//! error[E0382]

use kernel::sync::percpu_ref::{
    Counted,
    PercpuRefGuard, //
};

struct Queue;

impl Counted for Queue {}

pub fn done(request: PercpuRefGuard<Queue>) {
    let more = request.clone();
    drop(request);
    #[cfg(misuse)]
    drop(request);
    drop(more);
}

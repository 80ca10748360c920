// SPDX-License-Identifier: GPL-2.0

//! Without the guard, the task may move to another CPU, so it must not use the copy any more.
//!
//! error[E0505]

use kernel::percpu::PerCpu;
use kernel::preempt::PreemptGuard;
use kernel::{
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    },
};

pub fn hit(hits: &PerCpu<Atomic<u32>>) {
    let guard = PreemptGuard::new();
    let own = hits.get(&guard);
    #[cfg(misuse)]
    drop(guard);
    own.store(1, Relaxed);
}

pub fn new() -> Result<PerCpu<Atomic<u32>>> {
    PerCpu::new(|_| Atomic::new(0), GFP_KERNEL)
}

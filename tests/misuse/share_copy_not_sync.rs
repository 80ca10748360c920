// SPDX-License-Identifier: GPL-2.0

//! An interrupt on the local CPU may have the same reference, so the copies must be `Sync`.
//!
//! error[E0599]

use core::cell::Cell;
use kernel::percpu::PerCpu;
use kernel::preempt::PreemptGuard;
use kernel::sync::atomic::Atomic;

#[cfg(misuse)]
type Hits = Cell<u32>;
#[cfg(not(misuse))]
type Hits = Atomic<u32>;

pub fn look(hits: &PerCpu<Hits>) {
    let guard = PreemptGuard::new();
    let _ = hits.get(&guard);
}

pub fn both(_: Cell<u32>, _: Atomic<u32>) {}

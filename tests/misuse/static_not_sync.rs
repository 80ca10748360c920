// SPDX-License-Identifier: GPL-2.0

//! Each thread can name a static variable, so its copies must be `Sync` to be reached.
//!
//! error[E0599]

use core::cell::Cell;
use kernel::define_per_cpu;
use kernel::preempt::PreemptGuard;
use kernel::sync::atomic::Atomic;

#[cfg(misuse)]
type Hits = Cell<u32>;
#[cfg(not(misuse))]
type Hits = Atomic<u32>;

define_per_cpu! {
    static HITS: Hits = Hits::new(0);
}

pub fn look() {
    let guard = PreemptGuard::new();
    let _ = HITS.get(&guard);
}

pub fn both(_: Cell<u32>, _: Atomic<u32>) {}

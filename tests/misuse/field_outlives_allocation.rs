// SPDX-License-Identifier: GPL-2.0

//! A field is a part of the allocation, and must not be used after the allocation is freed.
//!
//! error[E0505]

use kernel::percpu::{
    Local,
    PerCpu, //
};
use kernel::percpu_field;

pub struct Stats {
    packets: Local<u64>,
}

pub fn last(stats: PerCpu<Stats>) -> u64 {
    let packets = stats.project(percpu_field!(Stats, packets));
    #[cfg(misuse)]
    drop(stats);
    packets.sum()
}

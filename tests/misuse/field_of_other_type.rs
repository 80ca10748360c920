// SPDX-License-Identifier: GPL-2.0

//! The offset of a field is valid only in its own structure.
//!
//! error[E0308]

use kernel::percpu::{
    Local,
    PerCpu, //
};
use kernel::percpu_field;

pub struct Stats {
    pub packets: Local<u64>,
}

pub struct Other {
    pub first: Local<u8>,
    pub packets: Local<u64>,
}

#[cfg(misuse)]
type Counted = Other;
#[cfg(not(misuse))]
type Counted = Stats;

pub fn count(stats: &PerCpu<Stats>) {
    stats.project(percpu_field!(Counted, packets)).inc();
}

pub fn both(_: Stats, _: Other) {}

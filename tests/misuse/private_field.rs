// SPDX-License-Identifier: GPL-2.0

//! Code that cannot access a field cannot change it by the `this_cpu` operations.
//!
//! error[E0616]

use kernel::percpu_field;

mod driver {
    use kernel::percpu::{
        Local,
        PerCpu, //
    };

    pub struct Stats {
        #[cfg(misuse)]
        packets: Local<u64>,
        #[cfg(not(misuse))]
        pub packets: Local<u64>,
    }

    pub fn stats(stats: &PerCpu<Stats>) -> &PerCpu<Stats> {
        stats
    }
}

pub fn count(stats: &kernel::percpu::PerCpu<driver::Stats>) {
    driver::stats(stats)
        .project(percpu_field!(driver::Stats, packets))
        .inc();
}

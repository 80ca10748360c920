// SPDX-License-Identifier: GPL-2.0

//! A CPU changes its integer while other CPUs read it, so there can be no reference to it.
//!
//! error[E0616]

use kernel::cpu::CpuId;
use kernel::percpu::{
    Local,
    PerCpu, //
};

pub fn peek(packets: &PerCpu<Local<u64>>, cpu: CpuId) -> Option<u64> {
    #[cfg(misuse)]
    return packets.get_cpu(cpu).map(|local| unsafe { *local.0.get() });
    #[cfg(not(misuse))]
    packets.read_cpu(cpu)
}

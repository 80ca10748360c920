// SPDX-License-Identifier: GPL-2.0

//! A CPU changes its integer while others look on, so no reference to it is to be had.
//!
//! error[E0616]

use kernel::cpu::CpuId;
use percpu_ref::percpu::{
    Local,
    PerCpu, //
};

pub fn peek(packets: &PerCpu<Local<u64>>, cpu: CpuId) -> Option<u64> {
    #[cfg(misuse)]
    return packets.get_cpu(cpu).map(|local| unsafe { *local.0.get() });
    #[cfg(not(misuse))]
    packets.read_cpu(cpu)
}

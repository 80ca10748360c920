// SPDX-License-Identifier: GPL-2.0

//! The per-CPU allocator has a limit, which is known when the code is built.
//!
//! error[E0080]

use kernel::percpu::PerCpu;
use kernel::prelude::*;

const SIZE: usize = if cfg!(misuse) { 64 << 10 } else { 16 << 10 };

pub fn allocate() -> Result<PerCpu<[u8; SIZE]>> {
    PerCpu::new(|_| pin_init::init_zeroed(), GFP_KERNEL)
}

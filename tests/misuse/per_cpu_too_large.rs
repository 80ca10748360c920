// SPDX-License-Identifier: GPL-2.0

//! A value that exceeds the limit of the per-CPU allocator is refused at build time.
//!
//! error[E0080]

use kernel::percpu::PerCpu;
use kernel::prelude::*;

const SIZE: usize = if cfg!(misuse) { 64 << 10 } else { 16 << 10 };

pub fn allocate() -> Result<PerCpu<[u8; SIZE]>> {
    PerCpu::new(|_| pin_init::init_zeroed(), GFP_KERNEL)
}

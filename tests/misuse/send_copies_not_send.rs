// SPDX-License-Identifier: GPL-2.0

//! The thread that gets a `PerCpu` drops the copies.
//!
//! error[E0277]

use kernel::percpu::PerCpu;

pub struct Raw(pub *mut u32);

#[cfg(not(misuse))]
// SAFETY: The pointer is never dereferenced.
unsafe impl Send for Raw {}

fn on_other_thread<T: Send>(_: T) {}

pub fn send(copies: PerCpu<Raw>) {
    on_other_thread(copies);
}

// SPDX-License-Identifier: GPL-2.0

//! Whoever gets the whole drops the copies on his thread.
//!
//! error[E0277]

use percpu_ref::percpu::PerCpu;

pub struct Raw(pub *mut u32);

#[cfg(not(misuse))]
// SAFETY: Nobody dereferences it.
unsafe impl Send for Raw {}

fn on_other_thread<T: Send>(_: T) {}

pub fn send(copies: PerCpu<Raw>) {
    on_other_thread(copies);
}

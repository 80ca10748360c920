// SPDX-License-Identifier: GPL-2.0

//! A field of a structure with one lifetime is not a field of a structure with another lifetime.
//!
//! error: lifetime may not live long enough

use kernel::percpu::PerCpu;
use kernel::percpu_field;
use kernel::preempt::PreemptGuard;

pub struct Hook<'a> {
    pub call: fn(&'a u8),
}

#[cfg(misuse)]
pub fn run<'a>(hooks: &PerCpu<Hook<'static>>, guard: &PreemptGuard, value: &'a u8) {
    (hooks.project(percpu_field!(Hook<'_>, call)).get(guard))(value);
}

#[cfg(not(misuse))]
pub fn run(hooks: &PerCpu<Hook<'static>>, guard: &PreemptGuard, value: &'static u8) {
    (hooks.project(percpu_field!(Hook<'_>, call)).get(guard))(value);
}

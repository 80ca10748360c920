// SPDX-License-Identifier: GPL-2.0

//! The projection to a field gives the field, and not the target of its `Deref`.
//!
//! error[E0308]

use core::ops::Deref;
use kernel::percpu::PerCpu;
use kernel::percpu_field;
use kernel::preempt::PreemptGuard;

pub struct Address(pub usize);

impl Deref for Address {
    type Target = &'static u32;

    fn deref(&self) -> &&'static u32 {
        &&1
    }
}

pub struct Entry {
    pub address: Address,
}

#[cfg(misuse)]
type Found = &'static u32;
#[cfg(not(misuse))]
type Found = Address;

pub fn look(entries: &PerCpu<Entry>, guard: &PreemptGuard) {
    let _: &Found = entries
        .project::<Found, _>(percpu_field!(Entry, address))
        .get(guard);
}

// SPDX-License-Identifier: GPL-2.0

//! The type of the structure must be written, because it could be inferred as two different types:
//! from the bound for the offset, and from the variable.
//!
//! error[E0121]

use kernel::percpu::{
    Local,
    PerCpu, //
};
use kernel::percpu_field;

pub trait Is<T> {}
pub trait Object: Is<[u64; 64]> {}

impl<X: ?Sized> Is<u8> for X {}

pub struct Stats<T>
where
    dyn Object: Is<T>,
{
    pub first: T,
    pub packets: Local<u8>,
}

pub fn count(stats: &PerCpu<Stats<u8>>) {
    #[cfg(misuse)]
    stats.project(percpu_field!(Stats::<_>, packets)).inc();
    #[cfg(not(misuse))]
    stats.project(percpu_field!(Stats::<u8>, packets)).inc();
}

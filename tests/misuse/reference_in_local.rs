// SPDX-License-Identifier: GPL-2.0

//! A `Local` cannot contain a reference, because zeroed memory is not a valid reference.
//!
//! error[E0277]

use kernel::percpu::Local;

#[cfg(misuse)]
type Value = &'static u32;
#[cfg(not(misuse))]
type Value = *const u32;

pub fn make(value: &'static u32) -> Local<Value> {
    Local::new(value)
}

// SPDX-License-Identifier: GPL-2.0

//! Threads use a `LocalCell` one after another, so its value moves from one thread to another.
//!
//! error[E0599]

use kernel::percpu::{
    LocalCell,
    PerCpu, //
};

#[cfg(misuse)]
type Value = *mut u32;
#[cfg(not(misuse))]
type Value = Option<&'static u32>;

pub fn look(cells: &PerCpu<LocalCell<Value>>) -> bool {
    cells.with(|_| ()).is_some()
}

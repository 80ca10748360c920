// SPDX-License-Identifier: GPL-2.0

//! Readers on all CPUs share the object in a cell.
//!
//! error[E0277]

use core::cell::Cell;
use kernel::sync::{
    atomic::Atomic,
    rcu::RcuCell, //
};

#[cfg(misuse)]
pub static PLACE: RcuCell<Cell<u32>> = RcuCell::empty();
#[cfg(not(misuse))]
pub static PLACE: RcuCell<Atomic<u32>> = RcuCell::empty();

pub fn both(_: Cell<u32>, _: Atomic<u32>) {}

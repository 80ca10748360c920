// SPDX-License-Identifier: GPL-2.0

//! Readers on other CPUs share the object with the owner of the box.
//!
//! error[E0277]

use core::cell::Cell;
use kernel::sync::{
    atomic::Atomic,
    rcu::RcuBox, //
};

#[cfg(misuse)]
pub type Counter = Cell<u32>;
#[cfg(not(misuse))]
pub type Counter = Atomic<u32>;

pub fn retire(counter: RcuBox<Counter>) {
    drop(counter);
}

pub fn both(_: Cell<u32>, _: Atomic<u32>) {}

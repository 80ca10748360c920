// SPDX-License-Identifier: GPL-2.0

//! RCU drops the object on any CPU, and not on the thread that has made it.
//!
//! error[E0277]

use kernel::sync::rcu::RcuBox;

/// Is `Sync`, since nothing can be done with a shared reference.
pub struct Token(pub *mut u8);

#[cfg(not(misuse))]
// SAFETY: Nothing is done with the pointer.
unsafe impl Send for Token {}

// SAFETY: Nothing is done with the pointer.
unsafe impl Sync for Token {}

pub fn retire(token: RcuBox<Token>) {
    drop(token);
}

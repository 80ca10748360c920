// SPDX-License-Identifier: GPL-2.0

//! RCU may drop the object in another thread than the one that has made it.
//!
//! error[E0277]

use kernel::sync::rcu::RcuBox;

/// A type that is `Sync`, because nothing can be done with a shared reference to it.
pub struct Token(pub *mut u8);

#[cfg(not(misuse))]
// SAFETY: The pointer is never used, so any thread can own the token.
unsafe impl Send for Token {}

// SAFETY: The pointer is never used, so any number of threads can share the token.
unsafe impl Sync for Token {}

pub fn retire(token: RcuBox<Token>) {
    drop(token);
}

// SPDX-License-Identifier: GPL-2.0

//! An object may outlive the function that made it, so neither it nor its release can borrow.
//!
//! error[E0478]

use kernel::sync::percpu_ref::Counted;

pub struct Queue<'a> {
    name: &'a str,
}

#[cfg(misuse)]
impl<'a> Counted for Queue<'a> {
    fn release(&self) {
        let _ = self.name.len();
    }
}

#[cfg(not(misuse))]
impl Counted for Queue<'static> {
    fn release(&self) {
        let _ = self.name.len();
    }
}

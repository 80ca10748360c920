// SPDX-License-Identifier: GPL-2.0

//! The module loader gives an empty variable no address.
//!
//! error[E0080]

use kernel::define_per_cpu;

const SIZE: usize = if cfg!(misuse) { 0 } else { 1 };

define_per_cpu! {
    pub static NOTHING: [u8; SIZE] = [0; SIZE];
}

pub fn name() -> usize {
    NOTHING.iter().count()
}

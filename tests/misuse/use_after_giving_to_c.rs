// SPDX-License-Identifier: GPL-2.0

//! A reference that was given to C is C's, and has to be borrowed from there.
//!
//! error[E0382]

use kernel::{
    prelude::*,
    types::ForeignOwnable, //
};
use percpu_ref::{
    Counted,
    PercpuRef, //
};

struct Queue {
    depth: u32,
}

impl Counted for Queue {}

pub fn give(shared: PercpuRef<Queue>) -> *mut c_void {
    drop(shared.try_get());
    let private = shared.into_foreign();
    #[cfg(misuse)]
    shared.kill();
    private
}

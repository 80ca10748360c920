// SPDX-License-Identifier: GPL-2.0

//! C owns a reference that was passed to it, so Rust can only borrow it.
//!
//! error[E0382]

use kernel::sync::percpu_ref::{
    Counted,
    PercpuRef, //
};
use kernel::{
    prelude::*,
    types::ForeignOwnable, //
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

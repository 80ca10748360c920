// SPDX-License-Identifier: GPL-2.0

//! A thawed object may be dropped, because its owner may have dropped the handle.
//!
//! error[E0505]

use kernel::sync::percpu_ref::{
    Counted,
    Frozen, //
};

pub struct Queue {
    depth: u32,
}

impl Counted for Queue {}

pub fn resume(frozen: Frozen<Queue>) -> u32 {
    let depth = &frozen.value().depth;
    #[cfg(misuse)]
    drop(frozen);
    *depth
}

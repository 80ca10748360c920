// SPDX-License-Identifier: GPL-2.0

//! Sharing consumes the unshared reference, so it cannot be cancelled after that.
//!
//! error[E0382]

use kernel::prelude::*;
use kernel::sync::percpu_ref::{
    Counted,
    PercpuRef,
    UniquePercpuRef, //
};

struct Queue {
    depth: u32,
}

impl Counted for Queue {}

pub fn set_up() -> Result<PercpuRef<Queue>> {
    let unique = UniquePercpuRef::new(Queue { depth: 1 }, GFP_KERNEL)?;
    let _ = unique.depth;
    let shared = PercpuRef::from(unique);
    #[cfg(misuse)]
    unique.cancel_init();
    Ok(shared)
}

// SPDX-License-Identifier: GPL-2.0

//! Cancelling consumes the object, so it cannot be shared after that.
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

pub fn set_up(cancel: bool) -> Result {
    let unique = UniquePercpuRef::new(Queue { depth: 1 }, GFP_KERNEL)?;
    if cancel {
        let _ = unique.depth;
        unique.cancel_init();
        #[cfg(not(misuse))]
        return Ok(());
    }
    let guard = PercpuRef::from(unique).try_get();
    drop(guard);
    Ok(())
}

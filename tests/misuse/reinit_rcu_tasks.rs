// SPDX-License-Identifier: GPL-2.0

//! A switch to atomic mode waits only for RCU, and not for RCU Tasks.
//!
//! error[E0080]

use kernel::prelude::*;
use kernel::sync::percpu_ref::{
    Counted,
    PercpuRef,
    Reinit,
    UniquePercpuRef, //
};

pub struct Queue;

impl Counted for Queue {
    const RCU_TASKS: bool = cfg!(misuse);
}

pub fn set_up() -> Result<PercpuRef<Queue, Reinit>> {
    Ok(UniquePercpuRef::new_reinit(Queue, GFP_KERNEL)?.into())
}

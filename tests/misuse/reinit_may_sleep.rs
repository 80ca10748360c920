// SPDX-License-Identifier: GPL-2.0

//! A release that runs later, where it may sleep, could be overtaken by the next life.
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
    const MAY_SLEEP: bool = cfg!(misuse);
}

pub fn set_up() -> Result<PercpuRef<Queue, Reinit>> {
    Ok(UniquePercpuRef::new_reinit(Queue, GFP_KERNEL)?.into())
}

// SPDX-License-Identifier: GPL-2.0

//! RCU drops the object after the box, so the object must not borrow.
//!
//! error[E0521]

use kernel::prelude::*;
use kernel::sync::rcu::RcuBox;

pub struct Route<'a> {
    pub name: &'a str,
}

#[cfg(misuse)]
pub fn publish(name: &str) -> Result {
    drop(RcuBox::<Route<'_>>::new(Route { name }, GFP_KERNEL)?);
    Ok(())
}

#[cfg(not(misuse))]
pub fn publish(name: &'static str) -> Result {
    drop(RcuBox::<Route<'_>>::new(Route { name }, GFP_KERNEL)?);
    Ok(())
}

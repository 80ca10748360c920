// SPDX-License-Identifier: GPL-2.0

//! The RCU callback may run after the function that made the object has returned.
//!
//! error[E0521]

use kernel::prelude::*;
use kernel::sync::rcu::{
    RcuCallback, //
    RcuCallbackBox,
};

pub struct Route<'a> {
    pub name: &'a str,
}

impl RcuCallback for Route<'static> {
    fn run(_this: RcuCallbackBox<Self>) {}
}

#[cfg(misuse)]
pub fn defer(name: &str) -> Result {
    RcuCallbackBox::new(Route { name }, GFP_KERNEL)?.call();
    Ok(())
}

#[cfg(not(misuse))]
pub fn defer(name: &'static str) -> Result {
    RcuCallbackBox::new(Route { name }, GFP_KERNEL)?.call();
    Ok(())
}

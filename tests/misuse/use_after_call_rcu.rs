// SPDX-License-Identifier: GPL-2.0

//! RCU owns an object that was passed to it.
//!
//! error[E0382]

use kernel::sync::rcu::{
    RcuCallback, //
    RcuCallbackBox,
};

pub struct Route(pub u32);

impl RcuCallback for Route {
    fn run(_this: RcuCallbackBox<Self>) {}
}

pub fn defer(route: RcuCallbackBox<Route>) -> u32 {
    let gateway = route.0;
    route.call();
    #[cfg(misuse)]
    return route.0;
    #[cfg(not(misuse))]
    gateway
}

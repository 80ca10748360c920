// SPDX-License-Identifier: GPL-2.0

//! Readers may see the object, so its owner has only shared access to it.
//!
//! error[E0594]

use kernel::sync::rcu::RcuBox;

pub struct Route {
    pub gateway: u32,
}

pub fn clear(route: &mut RcuBox<Route>) -> u32 {
    #[cfg(misuse)]
    {
        route.gateway = 0;
    }
    route.gateway
}

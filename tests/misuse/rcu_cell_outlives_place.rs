// SPDX-License-Identifier: GPL-2.0

//! What a lookup finds is borrowed from the place.
//!
//! error[E0505]

use kernel::sync::rcu::{
    read_lock,
    RcuCell, //
};

pub struct Route {
    pub gateway: u32,
}

pub fn last_gateway(place: RcuCell<Route>) -> Option<u32> {
    let section = read_lock();
    let route = place.load(&section)?;
    #[cfg(misuse)]
    drop(place);
    Some(route.gateway)
}

// SPDX-License-Identifier: GPL-2.0

//! The reference that a lookup returns must not be used after the read-side critical section.
//!
//! error[E0505]

use kernel::sync::rcu::{
    read_lock,
    RcuCell, //
};

pub struct Route {
    pub gateway: u32,
}

pub fn gateway(place: &RcuCell<Route>) -> Option<u32> {
    let section = read_lock();
    let route = place.load(&section)?;
    #[cfg(misuse)]
    drop(section);
    Some(route.gateway)
}

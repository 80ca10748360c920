// SPDX-License-Identifier: GPL-2.0

//! The reference that a lookup returns borrows the cell.
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

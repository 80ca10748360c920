// SPDX-License-Identifier: GPL-2.0

//! A reference that outlives the box does not outlive the read-side critical section.
//!
//! error[E0505]

use kernel::sync::rcu::{
    read_lock,
    RcuBox, //
};

pub struct Route {
    pub gateway: u32,
}

pub fn retire(route: RcuBox<Route>) -> u32 {
    let section = read_lock();
    let seen = route.with_rcu(&section);
    drop(route);
    #[cfg(misuse)]
    drop(section);
    seen.gateway
}

// SPDX-License-Identifier: GPL-2.0

//! The object that a lookup finds stays in memory as long as the read-side critical section.
//!
//! error[E0061]

use kernel::sync::percpu_ref::{
    Counted,
    PercpuRefGuard,
    RcuPercpuRef, //
};
use kernel::sync::rcu::read_lock;

pub struct Route;

impl Counted for Route {}

pub fn find(place: &RcuPercpuRef<Route>) -> Option<PercpuRefGuard<Route>> {
    #[cfg(misuse)]
    return place.try_get();
    #[cfg(not(misuse))]
    place.try_get(&read_lock())
}

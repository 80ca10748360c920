// SPDX-License-Identifier: GPL-2.0

//! What a lookup comes upon is in memory only as long as the read-side critical section lasts.
//!
//! error[E0061]

use kernel::sync::rcu::read_lock;
use percpu_ref::{
    Counted,
    PercpuRefGuard,
    RcuPercpuRef, //
};

pub struct Route;

impl Counted for Route {}

pub fn find(place: &RcuPercpuRef<Route>) -> Option<PercpuRefGuard<Route>> {
    #[cfg(misuse)]
    return place.try_get();
    #[cfg(not(misuse))]
    place.try_get(&read_lock())
}

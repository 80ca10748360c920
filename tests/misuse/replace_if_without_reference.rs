// SPDX-License-Identifier: GPL-2.0

//! The caller must have a reference to the expected object, which keeps its address from being
//! reused.
//!
//! error[E0308]

use kernel::sync::percpu_ref::{
    Counted,
    PercpuRef,
    PercpuRefGuard,
    RcuPercpuRef, //
};

pub struct Route;

impl Counted for Route {}

pub fn change(
    place: &RcuPercpuRef<Route>,
    route: &PercpuRefGuard<Route>,
    new: PercpuRef<Route>,
) -> bool {
    #[cfg(misuse)]
    let expected: &Route = route;
    #[cfg(not(misuse))]
    let expected = route;
    place.replace_if(expected, Some(new)).is_ok()
}

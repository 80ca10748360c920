// SPDX-License-Identifier: GPL-2.0

//! A module that lists per-CPU reference counts in debugfs, for a kernel with the library built in.

use kernel::{
    prelude::*,
    sync::percpu_ref::listing::Listing, //
};

module! {
    type: Debugfs,
    name: "rust_percpu_ref_debugfs",
    description: "List of per-CPU reference counts in debugfs",
    license: "GPL",
}

#[pin_data]
struct Debugfs {
    #[pin]
    _listing: Listing,
}

impl kernel::InPlaceModule for Debugfs {
    fn init(module: &'static ThisModule) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            _listing <- Listing::new(module),
        }? Error)
    }
}

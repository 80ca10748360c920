// SPDX-License-Identifier: GPL-2.0

//! A `bool` can be replaced, but not added to.
//!
//! error[E0599]

use kernel::percpu::{
    Local,
    PerCpu, //
};

pub fn set(busy: &PerCpu<Local<bool>>) {
    #[cfg(misuse)]
    busy.inc();
    #[cfg(not(misuse))]
    busy.write(true);
}

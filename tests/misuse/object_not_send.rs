// SPDX-License-Identifier: GPL-2.0

//! The last reference may be put by any thread, which then drops the object.
//!
//! error[E0277]

use kernel::prelude::*;
use kernel::sync::percpu_ref::Counted;

pub struct Queue {
    #[cfg(misuse)]
    own: *mut u32,
    #[cfg(not(misuse))]
    own: KBox<u32>,
}

impl Counted for Queue {}

pub fn own(queue: &Queue) -> &impl Sized {
    &queue.own
}

// SPDX-License-Identifier: GPL-2.0

//! Each [`Frozen`] stands for one call of `freeze()`, so it cannot be copied.
//!
//! error[E0277]

use kernel::sync::percpu_ref::{
    Counted,
    Frozen,
    PercpuRef,
    Reinit, //
};

pub struct Queue;

impl Counted for Queue {}

pub fn freeze_again(queue: &PercpuRef<Queue, Reinit>, frozen: Frozen<Queue>) -> [Frozen<Queue>; 2] {
    #[cfg(misuse)]
    let again = Frozen::clone(&frozen);
    #[cfg(not(misuse))]
    let again = queue.freeze();
    let _ = queue;
    [frozen, again]
}

// SPDX-License-Identifier: GPL-2.0

//! All copies can be changed in place only while no other code can use them.
//!
//! error[E0502]

use kernel::percpu::{
    Local,
    PerCpu, //
};

pub fn reset(packets: &mut PerCpu<Local<u64>>) {
    #[cfg(misuse)]
    let shared = &*packets;
    for (_, copy) in packets.iter_mut() {
        *copy.get_mut() = 0;
    }
    #[cfg(not(misuse))]
    let shared = &*packets;
    shared.inc();
}

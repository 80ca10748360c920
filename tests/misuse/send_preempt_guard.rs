// SPDX-License-Identifier: GPL-2.0

//! Preemption is disabled only on the CPU that made the guard.
//!
//! error[E0277]

use kernel::preempt::PreemptGuard;

fn on_other_thread<T: Send>(_: T) {}

pub fn send() {
    let guard = PreemptGuard::new();
    #[cfg(misuse)]
    on_other_thread(guard);
    #[cfg(not(misuse))]
    drop(guard);
    on_other_thread(0);
}

// SPDX-License-Identifier: GPL-2.0

//! A module that holds references to another module's objects, and puts them some time later.
//!
//! The other one is `unload_owner.rs`, which can be unloaded meanwhile.

use kernel::{
    prelude::*,
    sync::global_lock,
    time::{
        delay::fsleep,
        Delta, //
    },
};
use percpu_ref::{
    Counted,
    PercpuRefGuard, //
};

#[path = "kthread.rs"]
mod kthread;

use kthread::{
    online_cpus,
    Thread, //
};

module! {
    type: Holder,
    name: "rust_percpu_ref_holder",
    description: "Holds references for the unload tests",
    license: "GPL",
}

/// An object whose end calls into the module that made it.
pub struct Owned {
    /// Lies in the owner's code.
    pub on_release: fn(),
}

impl Counted for Owned {
    fn release(&self) {
        (self.on_release)();
    }
}

global_lock! {
    // SAFETY: Initialised when the module is.
    unsafe(uninit) static HOLDING: Mutex<Option<Thread>> = None;
}

struct Holder;

impl kernel::Module for Holder {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        // SAFETY: Called once, before `hold()` can be.
        unsafe { HOLDING.init() };
        Ok(Self)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let thread = HOLDING.lock().take();
        drop(thread);
    }
}

/// Puts `guard` after so many milliseconds. One at a time: a second call waits for the first guard.
pub fn hold(guard: PercpuRefGuard<Owned>, ms: u32) -> Result {
    let cpu = online_cpus().last().ok_or(ENODEV)?;
    let thread = Thread::spawn(cpu, move || {
        fsleep(Delta::from_millis(i64::from(ms)));
        drop(guard);
        pr_info!("put\n");
    })?;
    let before = HOLDING.lock().replace(thread);
    drop(before);
    Ok(())
}

// SPDX-License-Identifier: GPL-2.0

//! A module that holds references to another module's objects, and puts them some time later.
//!
//! The other one is `unload_owner.rs`, which can be unloaded meanwhile.

use core::ptr;
use kernel::sync::percpu_ref::{
    Counted,
    PercpuRef,
    PercpuRefGuard,
    UniquePercpuRef, //
};
use kernel::{
    bindings,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Full,
            Release, //
        },
        global_lock, //
    },
    time::{
        delay::fsleep,
        Delta, //
    },
    types::Opaque, //
};

#[path = "../cases/kthread.rs"]
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
        // SAFETY: The block is static, and unregistered when the module is dropped.
        unsafe { bindings::register_module_notifier(BLOCK.0.get()) };
        Ok(Self)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // SAFETY: `init()` registered it.
        unsafe { bindings::unregister_module_notifier(BLOCK.0.get()) };
        let thread = HOLDING.lock().take();
        drop(thread);
    }
}

/// What is called when a module goes, after the library's own notifier, or null.
static AT_GOING: Atomic<*mut c_void> = Atomic::new(ptr::null_mut());

struct Block(Opaque<bindings::notifier_block>);

// SAFETY: Only the kernel uses it.
unsafe impl Sync for Block {}

static BLOCK: Block = Block(Opaque::new(bindings::notifier_block {
    notifier_call: Some(going),
    next: ptr::null_mut(),
    priority: 0,
}));

/// # Safety
///
/// Must be called by the kernel for an event of a module.
unsafe extern "C" fn going(
    _block: *mut bindings::notifier_block,
    event: c_ulong,
    _module: *mut c_void,
) -> c_int {
    if event == bindings::module_state_MODULE_STATE_GOING as c_ulong {
        let call = AT_GOING.xchg(ptr::null_mut(), Full);
        if !call.is_null() {
            // SAFETY: `call_when_going()` stored it. The module that it lies in goes now, and its
            // memory is not freed before the notifiers have returned.
            let call = unsafe { core::mem::transmute::<*mut c_void, fn()>(call) };
            call();
        }
    }
    0
}

/// Has `call` called, once, when the next module goes. That must be the one that `call` lies in.
pub fn call_when_going(call: fn()) {
    AT_GOING.store(call as *mut c_void, Release);
}

/// Gets one more reference, and puts it after so many milliseconds.
pub fn hold_another(object: &PercpuRef<Owned>, ms: u32) -> Result {
    let guard = object.try_get();
    pr_info!("expect 1 {}:{}\n", file!(), line!() - 1);
    hold(guard.ok_or(ENODEV)?, ms)
}

/// Makes an object of this module.
pub fn make() -> Result<PercpuRef<Owned>> {
    let on_release = || pr_info!("released\n");
    Ok(UniquePercpuRef::new(Owned { on_release }, GFP_KERNEL)?.into())
}

/// Returns whether the memory of the object that was at `address` is given to a new one.
fn is_free(address: *const Owned) -> bool {
    let mut others = KVec::new();
    // A slab gives out first what came back last.
    for _ in 0..200 {
        match UniquePercpuRef::new(Owned { on_release: || () }, GFP_KERNEL) {
            Ok(other) if ptr::from_ref(&*other) == address => return true,
            Ok(other) => {
                if others.push(other, GFP_KERNEL).is_err() {
                    break;
                }
            }
            Err(_) => break,
        }
    }
    false
}

/// Puts `guard` after so many milliseconds, and says so. One at a time: a second call waits for the
/// first guard.
pub fn hold(guard: PercpuRefGuard<Owned>, ms: u32) -> Result {
    hold_and_call(guard, ms, |address| {
        if is_free(address) {
            pr_info!("its memory is used again\n");
        }
        pr_info!("put\n");
    })
}

/// Puts `guard` as [`hold`] does, and says nothing.
pub fn hold_quietly(guard: PercpuRefGuard<Owned>, ms: u32) -> Result {
    hold_and_call(guard, ms, |_| {})
}

fn hold_and_call(guard: PercpuRefGuard<Owned>, ms: u32, call: fn(*const Owned)) -> Result {
    let cpu = online_cpus().last().ok_or(ENODEV)?;
    let thread = Thread::spawn(cpu, move || {
        fsleep(Delta::from_millis(i64::from(ms)));
        let address = ptr::from_ref(&*guard);
        drop(guard);
        call(address);
    })?;
    let before = HOLDING.lock().replace(thread);
    drop(before);
    Ok(())
}

// SPDX-License-Identifier: GPL-2.0

//! A module that holds references to objects of other modules, and puts them some time later.
//!
//! The other modules, such as `unload_owner.rs`, can be unloaded while it holds the references.

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

/// An object whose release calls a function of the module that made it.
pub struct Owned {
    /// The function, which is code of the owner.
    pub on_release: fn(),
}

impl Counted for Owned {
    fn release(&self) {
        (self.on_release)();
    }
}

global_lock! {
    // SAFETY: `init()` initialises the lock once, before another function can use it.
    unsafe(uninit) static HOLDING: Mutex<Option<Thread>> = None;
}

struct Holder;

impl kernel::Module for Holder {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        // SAFETY: This is called once, before another module can call `hold()`.
        unsafe { HOLDING.init() };
        // SAFETY: The block is static. `drop()` unregisters it before the module is unloaded.
        unsafe { bindings::register_module_notifier(BLOCK.0.get()) };
        Ok(Self)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // SAFETY: `init()` has registered the block.
        unsafe { bindings::unregister_module_notifier(BLOCK.0.get()) };
        let thread = HOLDING.lock().take();
        drop(thread);
    }
}

/// A function that is called when a module is unloaded, after the library's notifier, or null.
static AT_GOING: Atomic<*mut c_void> = Atomic::new(ptr::null_mut());

struct Block(Opaque<bindings::notifier_block>);

// SAFETY: Only the kernel accesses the block, under its own lock.
unsafe impl Sync for Block {}

static BLOCK: Block = Block(Opaque::new(bindings::notifier_block {
    notifier_call: Some(going),
    next: ptr::null_mut(),
    priority: 0,
}));

/// Calls the function of [`call_when_going`] when a module is unloaded.
///
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
            // SAFETY: `call_when_going()` has stored a `fn()`. It belongs to the module that is
            // being unloaded, whose memory is freed after the notifiers have returned.
            let call = unsafe { core::mem::transmute::<*mut c_void, fn()>(call) };
            call();
        }
    }
    0
}

/// Makes the notifier call `call` once, when the next module is unloaded.
///
/// That must be the module that `call` belongs to.
pub fn call_when_going(call: fn()) {
    AT_GOING.store(call as *mut c_void, Release);
}

/// Gets another reference, and puts it after `ms` milliseconds.
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

/// Returns whether the memory of an object that was at `address` is reused for a new object.
fn is_free(address: *const Owned) -> bool {
    let mut others = KVec::new();
    // A slab allocates the memory first that was freed last.
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

/// Puts `guard` after `ms` milliseconds, and logs it.
///
/// Holds one guard at a time: a second call waits until the first guard is put.
pub fn hold(guard: PercpuRefGuard<Owned>, ms: u32) -> Result {
    hold_and_call(guard, ms, |address| {
        if is_free(address) {
            pr_info!("its memory is used again\n");
        }
        pr_info!("put\n");
    })
}

/// Puts `guard` as [`hold`] does, and logs nothing.
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

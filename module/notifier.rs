// SPDX-License-Identifier: GPL-2.0

//! The module notifier, which is called for each module that is loaded or unloaded.
//!
//! In the kernel's tree, the code that `module!` generates does this. Here, the kernel announces
//! `MODULE_STATE_GOING` after the module's exit function has returned and before its memory is
//! freed, and also when loading fails (`delete_module()` and `do_init_module()` in
//! kernel/module/main.c).
//!
//! The notifier chain is held for reading during the call. A thread that registers a module
//! notifier waits for us, and all loading and unloading of modules waits for that thread. Therefore
//! the wait for the objects of a module has a bound.
//!
//! C header: [`include/linux/module.h`](srctree/include/linux/module.h)

use crate::{
    bindings,
    container_of,
    error::to_result,
    prelude::*,
    sync::{
        percpu_ref::unload,
        rcu, //
    },
    time::Delta,
    types::Opaque, //
};
use core::ptr;

/// A notifier of each module that is loaded or unloaded.
///
/// # Invariants
///
/// The block is on the kernel's list of module notifiers.
#[pin_data(PinnedDrop)]
pub(crate) struct Notifier {
    #[pin]
    block: Opaque<bindings::notifier_block>,
    timeout: Delta,
}

// SAFETY: Safe code has no access to the block, and any thread can unregister it.
unsafe impl Send for Notifier {}

// SAFETY: Safe code has no access to the block.
unsafe impl Sync for Notifier {}

impl Notifier {
    /// Registers the notifier.
    ///
    /// `timeout` is the bound of the wait for the objects of a module.
    ///
    /// # Context
    ///
    /// Sleeps, so must be called from process context.
    pub(crate) fn new(timeout: Delta) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            timeout,
            // INVARIANT: The block is registered, or the initialiser fails.
            block <- Opaque::try_ffi_init(|block: *mut bindings::notifier_block| {
                // SAFETY: `block` is valid for writes.
                unsafe {
                    block.write(bindings::notifier_block {
                        notifier_call: Some(notifier_call),
                        next: ptr::null_mut(),
                        // This notifier is called before others, so that what they provide to the
                        // module is still valid while its objects are released.
                        priority: c_int::MAX,
                    })
                };
                // SAFETY: The block is initialised and pinned, and is unregistered before it is
                // freed.
                to_result(unsafe { bindings::register_module_notifier(block) })
            }),
        }? Error)
    }
}

#[pinned_drop]
impl PinnedDrop for Notifier {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: By the type invariant, the block is registered. All users of the library are
        // modules that depend on this module, so they are unloaded already.
        unsafe {
            bindings::unregister_module_notifier(self.block.get());
            unload::exit();
        }
    }
}

/// Calls the library for a module that is loaded or unloaded.
///
/// # Safety
///
/// Must be called by the kernel, with the block of a [`Notifier`] and with a module as `data`.
unsafe extern "C" fn notifier_call(
    block: *mut bindings::notifier_block,
    event: c_ulong,
    data: *mut c_void,
) -> c_int {
    // SAFETY: By the safety requirements of this function, `data` is the module that is loaded or
    // unloaded, and `block` is the field of a notifier.
    unsafe {
        match event as u32 {
            bindings::module_state_MODULE_STATE_COMING => rcu::unload::module_coming(data.cast()),
            bindings::module_state_MODULE_STATE_GOING => {
                let notifier = container_of!(Opaque::cast_from(block), Notifier, block);
                unload::module_going(data.cast(), (*notifier).timeout);
            }
            _ => {}
        }
    }
    bindings::NOTIFY_DONE as c_int
}

// SPDX-License-Identifier: GPL-2.0

//! Per-CPU reference counts, per-CPU memory and RCU-protected objects, for kernels that do not have
//! them.
//!
//! This crate is the module around the files in `rust/`, which are organised as in the kernel's
//! tree. It also re-exports the kernel crate. A module that is built with
//! `--extern kernel=libpercpu_ref.rmeta` imports [`kernel::sync::percpu_ref`](sync::percpu_ref) as
//! a driver in the tree does.
//!
//! | module | contents |
//! |---|---|
//! | [`sync::percpu_ref`] | the reference count |
//! | [`percpu`] | per-CPU memory |
//! | [`preempt`] | a guard that disables preemption |
//! | [`sync::rcu`] | objects that RCU readers find, and RCU callbacks |
//!
//! The items of [`sync::percpu_ref`] are also at the root of this crate.

// Kbuild passes these to rustc, but not to rustdoc.
#![cfg_attr(any(doc, doctest), no_std)]
#![cfg_attr(doctest, feature(asm_goto))]

#[doc(no_inline)]
pub use kernel::*;

#[doc(hidden)]
#[path = "module/bindings.rs"]
pub mod bindings;
#[path = "module/notifier.rs"]
mod notifier;

/// The kernel's prelude, with the functions that are private to the kernel crate.
#[doc(hidden)]
pub mod prelude {
    pub(crate) use crate::bindings::FlagsAsRaw as _;
    pub use kernel::prelude::*;
}

/// The files of `rust/kernel`, in the module tree of the kernel crate.
#[path = "rust/kernel"]
mod library {
    pub mod percpu;
    pub mod preempt;

    /// The synchronisation primitives of the kernel crate, and those of this crate.
    pub mod sync {
        #[doc(no_inline)]
        pub use kernel::sync::*;

        pub mod percpu_ref;

        /// The RCU module of the kernel crate, with objects that readers find, and with callbacks.
        ///
        /// | task | item |
        /// |---|---|
        /// | own an object that readers may still use | [`RcuBox`](rcu::RcuBox) |
        /// | publish an object for readers, and replace it | [`RcuCell`](rcu::RcuCell) |
        /// | run code after a grace period | [`RcuCallbackBox`](rcu::RcuCallbackBox) |
        /// | wait for RCU Tasks instead | [`call_tasks`](rcu::call_tasks) |
        /// | run code for an object that has its own head | [`RcuPointer`](rcu::RcuPointer) |
        pub mod rcu {
            #[doc(no_inline)]
            pub use kernel::sync::rcu::*;

            pub(crate) mod arch;
            mod boxed;
            mod callback;
            mod cell;
            #[doc(hidden)]
            pub mod unload;

            pub use boxed::{
                RcuAllocator,
                RcuBox, //
            };
            pub(crate) use callback::impl_rcu_pointer;
            pub use callback::{
                call,
                call_hurry,
                call_tasks,
                RcuCallback,
                RcuCallbackBox,
                RcuHead,
                RcuPointer, //
            };
            pub use cell::RcuCell;

            /// Waits until the callbacks that were queued before have run.
            ///
            /// Does not wait for callbacks of [`call_tasks`]. The kernel crate has this function
            /// since 7.3.
            ///
            /// # Context
            ///
            /// Sleeps, so must be called from process context.
            pub fn rcu_barrier() {
                // SAFETY: Memory safety does not depend on the context.
                unsafe { crate::bindings::rcu_barrier() };
            }
        }
    }
}

pub use library::{
    percpu,
    preempt,
    sync, //
};

#[doc(no_inline)]
pub use sync::{
    percpu_ref::*,
    rcu, //
};

use prelude::*;

module! {
    type: PercpuRefModule,
    name: "rust_percpu_ref",
    description: "Per-CPU reference counts",
    license: "GPL",
    params: {
        unload_timeout: u32 {
            default: 10,
            description: "Seconds that unloading a module waits for its objects",
        },
    },
}

#[pin_data]
struct PercpuRefModule {
    // This is dropped first, because it uses the list of classes.
    #[pin]
    _listing: sync::percpu_ref::listing::Listing,
    #[pin]
    _notifier: notifier::Notifier,
}

impl kernel::InPlaceModule for PercpuRefModule {
    fn init(module: &'static ThisModule) -> impl PinInit<Self, Error> {
        // Up to 7.2, the value of a parameter is a reference.
        let seconds: u32 =
            *core::borrow::Borrow::borrow(&module_parameters::unload_timeout.value());
        try_pin_init!(Self {
            _listing <- sync::percpu_ref::listing::Listing::new(module),
            _notifier <- notifier::Notifier::new(time::Delta::from_secs(i64::from(seconds))),
        }? Error)
    }
}

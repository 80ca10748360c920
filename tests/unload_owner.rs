// SPDX-License-Identifier: GPL-2.0

//! A module that is unloaded while its objects are still coming to their ends.
//!
//! It kills many references right before it goes, and one that `unload_holder.rs` holds on to.

use kernel::{
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    },
    time::{
        delay::fsleep,
        Delta, //
    },
};
use percpu_ref::{
    rcu::{
        RcuBox,
        RcuCallback, //
    },
    Counted,
    PercpuRef,
    UniquePercpuRef, //
};
use unload_holder::Owned;

module! {
    type: Owner,
    name: "rust_percpu_ref_owner",
    description: "Is unloaded with references alive",
    license: "GPL",
    params: {
        objects: u32 {
            default: 100,
            description: "Objects that are killed on unloading",
        },
        hold_ms: u32 {
            default: 0,
            description: "Milliseconds that another module holds one object more; 0: there is none",
        },
        endless: u32 {
            default: 0,
            description: "1: leave what renews itself for ever, and ask for objects until the end",
        },
    },
}

struct Owner {
    _queue: KVec<PercpuRef<Object>>,
    _held: Option<PercpuRef<Owned>>,
}

/// Its release is code of this module, as its `drop` is.
struct Object(KBox<u32>);

impl Counted for Object {
    fn release(&self) {
        if *self.0 == 0 {
            pr_info!("released the first object\n");
        }
    }
}

/// An RCU callback that does not come to an end, and sees to it that there is an [`Heir`].
struct Endless;

impl RcuCallback for Endless {
    fn run(this: RcuBox<Self>) {
        if HEIRS.load(Relaxed) == 0 {
            Heir::beget();
        }
        this.call_hurry();
    }
}

/// An object that makes another of its kind when it ends.
struct Heir;

static HEIRS: Atomic<i32> = Atomic::new(0);

impl Heir {
    fn beget() {
        if let Ok(heir) = UniquePercpuRef::new(Heir, GFP_ATOMIC) {
            HEIRS.add(1, Relaxed);
            drop(PercpuRef::from(heir));
        }
    }
}

impl Counted for Heir {
    fn release(&self) {
        HEIRS.fetch_sub(1, Relaxed);
        Heir::beget();
    }
}

/// What nobody has made before the end.
struct Late;

impl Counted for Late {}

/// Asks for an object when the module may be at its end; called by a thread of `unload_holder.rs`.
fn ask_too_late() {
    // Until after the library has given up waiting.
    fsleep(Delta::from_millis(1000));
    match UniquePercpuRef::new(Late, GFP_KERNEL) {
        Ok(_) => pr_info!("got one more object\n"),
        Err(error) => pr_info!("refused one more object: {}\n", error.to_errno()),
    }
}

/// What a parameter is set to; up to 7.2 that is a reference.
fn value(parameter: impl core::borrow::Borrow<u32>) -> u32 {
    *parameter.borrow()
}

impl kernel::Module for Owner {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        let objects = value(module_parameters::objects.value());
        let mut queue = KVec::with_capacity(objects as usize, GFP_KERNEL)?;
        for number in 0..objects {
            let object = Object(KBox::new(number, GFP_KERNEL)?);
            queue.push(UniquePercpuRef::new(object, GFP_KERNEL)?.into(), GFP_KERNEL)?;
        }

        let ms = value(module_parameters::hold_ms.value());
        let held = if ms == 0 {
            None
        } else {
            let owned = Owned {
                on_release: if value(module_parameters::endless.value()) != 0 {
                    ask_too_late
                } else {
                    || pr_info!("released the held object\n")
                },
            };
            let owned = PercpuRef::from(UniquePercpuRef::new(owned, GFP_KERNEL)?);
            unload_holder::hold(owned.try_get().ok_or(ENODEV)?, ms)?;
            Some(owned)
        };

        if value(module_parameters::endless.value()) != 0 {
            RcuBox::new(Endless, GFP_KERNEL)?.call_hurry();
        }
        Ok(Self {
            _queue: queue,
            _held: held,
        })
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        // Then the fields are dropped, which kills what they are the owners of.
        pr_info!("exit\n");
    }
}

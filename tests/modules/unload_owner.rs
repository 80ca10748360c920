// SPDX-License-Identifier: GPL-2.0

//! A module that is unloaded before its objects are released.
//!
//! Its exit function kills many objects, and one that `unload_holder.rs` holds a reference to.

use kernel::sync::percpu_ref::{
    Counted,
    PercpuRef,
    UniquePercpuRef, //
};
use kernel::sync::rcu::{
    RcuBox,
    RcuCallback,
    RcuCallbackBox, //
};
use kernel::{
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    },
    time::{
        delay::fsleep,
        Delta,
        Instant,
        Monotonic, //
    },
};
use unload_holder::Owned;

#[path = "../cases/kthread.rs"]
mod kthread;

use kthread::{
    online_cpus,
    Thread, //
};

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
        boxes: u32 {
            default: 0,
            description: "Boxes that RCU readers may see when they are dropped on unloading",
        },
        hold_ms: u32 {
            default: 0,
            description: "Milliseconds that another module holds one object more; 0: there is none",
        },
        endless: u32 {
            default: 0,
            description: "1: leave what renews itself forever, and ask for objects until the end",
        },
        forget: u32 {
            default: 0,
            description: "Objects that are never killed",
        },
        release_ms: u32 {
            default: 0,
            description: "Milliseconds that the release of one object more takes; 0: there is none",
        },
        linger_ms: u32 {
            default: 0,
            description: "Milliseconds that a thread runs on after it has put the last reference",
        },
        late: u32 {
            default: 0,
            description: "1: ask for an object and a callback when the module is closed",
        },
        at_release: u32 {
            default: 0,
            description: "What the held object's release asks for: 1: an object, 2: a callback",
        },
        at_drop: u32 {
            default: 0,
            description: "1: leave an object that asks for another one when it is dropped",
        },
    },
}

struct Owner {
    _queue: KVec<PercpuRef<Object>>,
    _boxes: KVec<RcuBox<Outer>>,
    _held: Option<PercpuRef<Owned>>,
    _slow: Option<PercpuRef<Slow>>,
    _parent: Option<PercpuRef<Parent>>,
}

/// An object that RCU drops, which passes another object to RCU in its drop.
struct Outer {
    _inner: RcuBox<Inner>,
}

/// An object that RCU drops.
struct Inner {
    number: u32,
    boxes: u32,
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.number + 1 == self.boxes {
            pr_info!("dropped the last box\n");
        }
    }
}

/// An object whose release sleeps for some milliseconds.
struct Slow(u32);

impl Counted for Slow {
    const MAY_SLEEP: bool = true;

    fn release(&self) {
        fsleep(Delta::from_millis(i64::from(self.0)));
        pr_info!("released the slow object\n");
    }
}

/// Asks for an object and a callback, which must be refused because the module is closed.
fn ask_when_closed() {
    let error = UniquePercpuRef::new(Late, GFP_KERNEL).err();
    pr_info!("when closed: {}\n", error.map_or(0, Error::to_errno));
    if let Ok(callback) = RcuCallbackBox::new(Once, GFP_KERNEL) {
        callback.call();
    }
}

/// An RCU callback that must not run.
struct Once;

impl RcuCallback for Once {
    fn run(_this: RcuCallbackBox<Self>) {
        pr_info!("a callback runs in a closed module\n");
    }
}

/// Asks for an object of the type [`Late`].
fn ask_again() {
    match UniquePercpuRef::new(Late, GFP_KERNEL) {
        Ok(_) => pr_info!("got one more object\n"),
        Err(error) => pr_info!("refused one more object: {}\n", error.to_errno()),
    }
}

/// Asks for a callback.
fn call_again() {
    if let Ok(callback) = RcuCallbackBox::new(Again, GFP_KERNEL) {
        callback.call();
        pr_info!("queued one more callback\n");
    }
}

/// An RCU callback that is queued by the release of an object.
struct Again;

impl RcuCallback for Again {
    fn run(_this: RcuCallbackBox<Self>) {
        pr_info!("ran one more callback\n");
    }
}

/// An object whose drop sleeps and then asks for another object.
struct Parent;

impl Counted for Parent {
    const MAY_SLEEP: bool = true;
}

impl Drop for Parent {
    fn drop(&mut self) {
        fsleep(Delta::from_millis(500));
        ask_again();
    }
}

/// Starts a thread that puts the last reference to an object, and then runs without sleeping.
///
/// It puts the reference after half a second, when the exit function has returned.
fn linger(ms: u32) -> Result {
    let object = Object(KBox::new(1, GFP_KERNEL)?);
    let object = PercpuRef::from(UniquePercpuRef::new(object, GFP_KERNEL)?);
    let guard = object.try_get().ok_or(ENODEV)?;
    object.kill();
    let cpu = online_cpus().last().ok_or(ENODEV)?;
    let thread = Thread::spawn(cpu, move || {
        fsleep(Delta::from_millis(500));
        drop(guard);
        let start = Instant::<Monotonic>::now();
        while start.elapsed() < Delta::from_millis(i64::from(ms)) {
            core::hint::black_box(&start);
        }
        pr_info!("has lingered\n");
    })?;
    // A drop of the thread would wait for its end.
    core::mem::forget(thread);
    Ok(())
}

/// An object whose release and drop are code of this module.
struct Object(KBox<u32>);

impl Counted for Object {
    fn release(&self) {
        if *self.0 == 0 {
            pr_info!("released the first object\n");
        }
    }
}

/// An RCU callback that queues itself forever, and makes an [`Heir`] if there is none.
struct Endless;

impl RcuCallback for Endless {
    fn run(this: RcuCallbackBox<Self>) {
        if HEIRS.load(Relaxed) == 0 {
            Heir::beget();
        }
        this.call_hurry();
    }
}

/// An object whose release makes another object of its type.
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

/// The type of the objects that are asked for during the unloading.
struct Late;

impl Counted for Late {}

/// Asks for an object after the library has stopped waiting for the module.
///
/// A thread of `unload_holder.rs` calls this.
fn ask_too_late() {
    // In this time, the library's wait ends by its bound.
    fsleep(Delta::from_millis(2000));
    match UniquePercpuRef::new(Late, GFP_KERNEL) {
        Ok(_) => pr_info!("got one more object\n"),
        Err(error) => pr_info!("refused one more object: {}\n", error.to_errno()),
    }
}

/// Returns the value of a parameter.
///
/// Up to Linux 7.2, a parameter's `value()` returns a reference.
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

        let boxes = value(module_parameters::boxes.value());
        let mut outer = KVec::with_capacity(boxes as usize, GFP_KERNEL)?;
        for number in 0..boxes {
            let inner = RcuBox::new(Inner { number, boxes }, GFP_KERNEL)?;
            outer.push(
                RcuBox::new(Outer { _inner: inner }, GFP_KERNEL)?,
                GFP_KERNEL,
            )?;
        }

        let ms = value(module_parameters::hold_ms.value());
        let held = if ms == 0 {
            None
        } else {
            let owned = Owned {
                on_release: match value(module_parameters::at_release.value()) {
                    1 => ask_again,
                    2 => call_again,
                    _ if value(module_parameters::endless.value()) != 0 => ask_too_late,
                    _ => || pr_info!("released the held object\n"),
                },
            };
            let owned = PercpuRef::from(UniquePercpuRef::new(owned, GFP_KERNEL)?);
            unload_holder::hold(owned.try_get().ok_or(ENODEV)?, ms)?;
            Some(owned)
        };

        if value(module_parameters::endless.value()) != 0 {
            RcuCallbackBox::new(Endless, GFP_KERNEL)?.call_hurry();
        }
        for number in 0..value(module_parameters::forget.value()) {
            let object = Object(KBox::new(number + 1, GFP_KERNEL)?);
            let object = PercpuRef::from(UniquePercpuRef::new(object, GFP_KERNEL)?);
            core::mem::forget(object);
        }
        let slow = match value(module_parameters::release_ms.value()) {
            0 => None,
            ms => Some(UniquePercpuRef::new(Slow(ms), GFP_KERNEL)?.into()),
        };
        match value(module_parameters::linger_ms.value()) {
            0 => {}
            ms => linger(ms)?,
        }
        if value(module_parameters::late.value()) != 0 {
            unload_holder::call_when_going(ask_when_closed);
        }
        if value(module_parameters::at_release.value()) == 1 {
            // Makes the first object of its type, so that the library has a class for the type.
            ask_again();
        }
        let parent = if value(module_parameters::at_drop.value()) != 0 {
            Some(UniquePercpuRef::new(Parent, GFP_KERNEL)?.into())
        } else {
            None
        };
        Ok(Self {
            _queue: queue,
            _boxes: outer,
            _held: held,
            _slow: slow,
            _parent: parent,
        })
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        // After this, the fields are dropped, which kills the objects that they own.
        pr_info!("exit\n");
    }
}

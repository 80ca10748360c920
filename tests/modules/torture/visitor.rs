// SPDX-License-Identifier: GPL-2.0

//! A module that is loaded and unloaded repeatedly during the torture.
//!
//! When it is unloaded, its objects are in different states. Some wait for RCU, some for RCU Tasks,
//! some for a thread in which they may sleep, and some for another module. One was never shared.
//!
//! The module logs nothing. If the library calls one of its functions after it was unloaded, the
//! kernel logs an oops. If an object is leaked, the library lists it.

use kernel::sync::percpu_ref::{
    Counted,
    PercpuRef,
    PercpuRefGuard,
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
        Delta, //
    },
};
use unload_holder::Owned;

module! {
    type: Visitor,
    name: "rust_percpu_ref_visitor",
    description: "Comes and goes during the torture",
    license: "GPL",
}

/// A variable in the module's memory, which the functions below change.
static CALLS: Atomic<u32> = Atomic::new(0);

/// An object of one of four types.
struct Object<const N: usize>(KBox<u32>);

const PLAIN: usize = 0;
const TASKS: usize = 1;
const SLEEPER: usize = 2;
const UNSHARED: usize = 3;

impl<const N: usize> Object<N> {
    fn new() -> Result<UniquePercpuRef<Self>> {
        UniquePercpuRef::new(Self(KBox::new(0, GFP_KERNEL)?), GFP_KERNEL)
    }
}

impl<const N: usize> Counted for Object<N> {
    const MAY_SLEEP: bool = N == SLEEPER;
    const RCU_TASKS: bool = N == TASKS;

    fn release(&self) {
        if N == SLEEPER {
            fsleep(Delta::from_millis(2));
        }
        CALLS.add(*self.0 + 1, Relaxed);
    }

    fn confirmed(&self) {
        CALLS.add(*self.0 + 1, Relaxed);
    }
}

impl<const N: usize> Drop for Object<N> {
    fn drop(&mut self) {
        CALLS.add(*self.0 + 1, Relaxed);
    }
}

/// An object that RCU drops.
struct Boxed(u32);

impl Drop for Boxed {
    fn drop(&mut self) {
        CALLS.add(self.0, Relaxed);
    }
}

/// An RCU callback that queues itself once more.
///
/// The library waits for both calls.
struct Callback(u32);

impl RcuCallback for Callback {
    fn run(mut this: RcuCallbackBox<Self>) {
        CALLS.add(1, Relaxed);
        if this.0 > 0 {
            this.0 -= 1;
            this.call_hurry();
        }
    }
}

struct Visitor {
    plain: KVec<PercpuRef<Object<PLAIN>>>,
    /// Dropped after the object is killed.
    _guards: KVec<PercpuRefGuard<Object<PLAIN>>>,
    _tasks: PercpuRef<Object<TASKS>>,
    _sleeper: PercpuRef<Object<SLEEPER>>,
    _unshared: UniquePercpuRef<Object<UNSHARED>>,
    _held: PercpuRef<Owned>,
    _boxed: RcuBox<Boxed>,
    callback: Option<RcuCallbackBox<Callback>>,
}

impl kernel::Module for Visitor {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        let mut plain = KVec::new();
        let mut guards = KVec::new();
        for _ in 0..16 {
            let object = PercpuRef::from(Object::new()?);
            guards.push(object.try_get().ok_or(ENODEV)?, GFP_KERNEL)?;
            plain.push(object, GFP_KERNEL)?;
        }
        let on_release = || CALLS.add(1, Relaxed);
        let held = PercpuRef::from(UniquePercpuRef::new(Owned { on_release }, GFP_KERNEL)?);
        unload_holder::hold_quietly(held.try_get().ok_or(ENODEV)?, 20)?;
        Ok(Self {
            plain,
            _guards: guards,
            _tasks: Object::new()?.into(),
            _sleeper: Object::new()?.into(),
            _unshared: Object::new()?,
            _held: held,
            _boxed: RcuBox::new(Boxed(1), GFP_KERNEL)?,
            callback: Some(RcuCallbackBox::new(Callback(1), GFP_KERNEL)?),
        })
    }
}

impl Drop for Visitor {
    fn drop(&mut self) {
        for object in self.plain.iter().step_by(2) {
            object.kill_and_confirm();
        }
        if let Some(callback) = self.callback.take() {
            callback.call();
        }
    }
}

// SPDX-License-Identifier: GPL-2.0

//! A module that gets references in different ways and contexts, and logs where it gets them.
//!
//! The tests compare this with the holders in the log and in debugfs.

use core::ptr;
use kernel::sync::percpu_ref::{
    Counted,
    Frozen,
    PercpuRef,
    PercpuRefBatch,
    PercpuRefGuard,
    Reinit,
    UniquePercpuRef, //
};
use kernel::{
    prelude::*,
    sync::atomic::{
        Acquire,
        Atomic,
        Full,
        Release, //
    },
    time::{
        delay::fsleep,
        Delta, //
    },
    types::ForeignOwnable,
    workqueue, //
};
use unload_holder::Owned;

#[path = "../cases/kthread.rs"]
mod kthread;

use kthread::{
    online_cpus,
    Thread, //
};

module! {
    type: Held,
    name: "rust_percpu_ref_held",
    description: "Holds references for the tests that find them",
    license: "GPL",
    params: {
        how: u32 {
            default: 0,
            description: "Which get: see the source",
        },
        hold_ms: u32 {
            default: 0,
            description: "Milliseconds that another module holds the reference",
        },
        holders: u32 {
            default: 10000,
            description: "References that are got at five places, one by one",
        },
    },
}

extern "C" {
    fn percpu_ref_held_timer(hard: bool);
    fn percpu_ref_held_timer_stop();
}

/// Evaluates `$get`, logs how many references it gets in this line, and returns its value.
macro_rules! got {
    ($n:expr, $get:expr) => {{
        let got = $get;
        pr_info!("expect {} {}:{}\n", $n, file!(), line!());
        got
    }};
}

/// The object of this module, for functions without an argument, or null if there is none.
static OBJECT: Atomic<*mut PercpuRef<Owned>> = Atomic::new(ptr::null_mut());
/// A guard that `send()` passes to `receive()`, made by `into_foreign()`, or null if there is none.
static GUARD: Atomic<*mut c_void> = Atomic::new(ptr::null_mut());

fn send(guard: PercpuRefGuard<Owned>) {
    let guard = GUARD.xchg(guard.into_foreign(), Full);
    assert!(guard.is_null());
}

fn receive() -> PercpuRefGuard<Owned> {
    loop {
        let guard = GUARD.xchg(ptr::null_mut(), Full);
        if !guard.is_null() {
            // SAFETY: `guard` came from `into_foreign()` in `send()`, and the exchange has given us
            // its ownership.
            return unsafe { PercpuRefGuard::from_foreign(guard) };
        }
        fsleep(Delta::from_millis(1));
    }
}

/// Gets a reference in the function of a timer.
#[no_mangle]
extern "C" fn rust_percpu_ref_held_tick() {
    // SAFETY: `get()` stops the timer before it returns, and its caller has the object until then.
    if let Some(object) = unsafe { OBJECT.load(Acquire).as_ref() } {
        if let Some(guard) = got!(1, object.try_get()) {
            send(guard);
        }
    }
}

/// Gets a reference: here, in a thread, in a work item, in a hard interrupt or in a softirq.
fn get(how: u32, object: &PercpuRef<Owned>) -> Result<PercpuRefGuard<Owned>> {
    let guard = || object.try_get().ok_or(ENODEV);
    match how {
        0 => got!(1, object.try_get()).ok_or(ENODEV),
        1 => {
            let guard = guard()?;
            let cpu = online_cpus().last().ok_or(ENODEV)?;
            let thread = Thread::spawn(cpu, move || send(got!(1, guard.clone())))?;
            let guard = receive();
            drop(thread);
            Ok(guard)
        }
        2 => {
            let guard = guard()?;
            workqueue::system()
                .try_spawn(GFP_KERNEL, move || send(got!(1, guard.clone())))
                .map_err(|_| ENOMEM)?;
            Ok(receive())
        }
        _ => {
            OBJECT.store(ptr::from_ref(object).cast_mut(), Release);
            // SAFETY: The timer is not running, because each start is followed by the stop below.
            // So it is also stopped before the module is unloaded.
            unsafe { percpu_ref_held_timer(how == 3) };
            let guard = receive();
            // SAFETY: The timer was started above, and this is process context.
            unsafe { percpu_ref_held_timer_stop() };
            OBJECT.store(ptr::null_mut(), Release);
            Ok(guard)
        }
    }
}

struct Gate;

impl Counted for Gate {}

/// References in each form, each of which was got in a line of its own.
struct Forms {
    _batches: [PercpuRefBatch<Gate>; 3],
    _guards: [PercpuRefGuard<Gate>; 3],
    foreign: *mut c_void,
    _frozen: [Frozen<Gate>; 2],
}

// SAFETY: Any thread can drop the fields. `foreign` is a guard, which any thread can put.
unsafe impl Send for Forms {}

// SAFETY: A shared reference gives no access to the fields.
unsafe impl Sync for Forms {}

impl Forms {
    fn new() -> Result<Self> {
        let gate = || -> Result<PercpuRef<Gate, Reinit>> {
            Ok(UniquePercpuRef::new_reinit(Gate, GFP_KERNEL)?.into())
        };
        let object = gate()?;
        let live = got!(1, object.try_get_live()).ok_or(ENODEV)?;
        let mut batch = got!(54, object.try_get_many(64)).ok_or(ENODEV)?;
        let taken = got!(1, batch.take()).ok_or(ENODEV)?;
        let split = got!(10, batch.split(10)).ok_or(ENODEV)?;
        // The batch has 53 references left, and this one.
        batch.put_back(live.clone()).map_err(|_| EIO)?;
        // A guard that was put, and a batch that has become empty, are no holders.
        drop(live.clone());
        let mut single = object.try_get_many(1).ok_or(ENODEV)?;
        drop(single.take());
        // An empty batch takes ownership of the guard that is put into it.
        single.put_back(got!(1, live.clone())).map_err(|_| EIO)?;
        let frozen = gate()?;
        let foreign = got!(1, live.clone());
        let guards = [live, taken, foreign.clone()];
        let foreign = foreign.into_foreign();
        Ok(Self {
            _batches: [batch, split, single],
            _guards: guards,
            foreign,
            _frozen: got!("frozen", [frozen.freeze(), frozen.freeze()]),
        })
    }
}

impl Drop for Forms {
    fn drop(&mut self) {
        // SAFETY: `foreign` came from `into_foreign()`, and is not used after this.
        drop(unsafe { PercpuRefGuard::<Gate>::from_foreign(self.foreign) });
    }
}

struct Held {
    _object: Option<PercpuRef<Owned>>,
    _many: KVVec<PercpuRefGuard<Owned>>,
    _forms: Option<Forms>,
}

impl kernel::Module for Held {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        // Up to Linux 7.2, a parameter's `value()` returns a reference.
        fn value(parameter: impl core::borrow::Borrow<u32>) -> u32 {
            *parameter.borrow()
        }
        let how = value(module_parameters::how.value());
        let hold_ms = value(module_parameters::hold_ms.value());
        let holders = value(module_parameters::holders.value()) as usize;

        let mut many = KVVec::<PercpuRefGuard<Owned>>::new();
        let mut forms = None;
        let object = || -> Result<PercpuRef<Owned>> {
            let on_release = || pr_info!("released\n");
            Ok(UniquePercpuRef::new(Owned { on_release }, GFP_KERNEL)?.into())
        };
        let object = match how {
            0..=4 => {
                let object = object()?;
                unload_holder::hold(get(how, &object)?, hold_ms)?;
                Some(object)
            }
            // The other module gets the reference.
            5 => {
                let object = object()?;
                unload_holder::hold_another(&object, hold_ms)?;
                Some(object)
            }
            // The object belongs to the other module, which holds it while this module is unloaded.
            6 => {
                unload_holder::hold(get(0, &unload_holder::make()?)?, hold_ms)?;
                None
            }
            7 => {
                forms = Some(Forms::new()?);
                None
            }
            // Leaks five references.
            8 => {
                let object = object()?;
                for _ in 0..5 {
                    core::mem::forget(object.try_get());
                }
                pr_info!("expect 1 {}:{}\n", file!(), line!() - 2);
                Some(object)
            }
            _ => {
                let object = object()?;
                many.reserve(holders, GFP_KERNEL)?;
                for i in 0..holders {
                    let guard = match i % 5 {
                        0 => object.try_get(),
                        1 => object.try_get_live(),
                        // Not `cloned()`, because the reference would be got in a line of that
                        // function.
                        2 => match many.first() {
                            Some(guard) => Some(guard.clone()),
                            None => object.try_get(),
                        },
                        3 => object.try_get_many(1).and_then(|mut batch| batch.take()),
                        _ => object.try_get(),
                    };
                    many.push(guard.ok_or(ENODEV)?, GFP_KERNEL)?;
                }
                Some(object)
            }
        };
        Ok(Self {
            _object: object,
            _many: many,
            _forms: forms,
        })
    }
}

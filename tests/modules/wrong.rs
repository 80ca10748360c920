// SPDX-License-Identifier: GPL-2.0

//! Deliberate bugs, which the checkers of a debugging kernel must report in its log.
//!
//! `scripts/results` must find the reports. Never insert this module on a machine that is in use.

use core::mem::forget;
use kernel::preempt::PreemptGuard;
use kernel::sync::percpu_ref::{
    Counted,
    PercpuRef,
    UniquePercpuRef, //
};
use kernel::sync::rcu;
use kernel::{new_mutex, prelude::*, sync::Mutex};

module! {
    type: Wrong,
    name: "rust_percpu_ref_wrong",
    description: "Deliberate bugs",
    license: "GPL",
    params: {
        bug: u32 {
            default: 0,
            description: "Which one",
        },
    },
}

extern "C" {
    fn percpu_ref_test_wrong(bug: c_uint);
    fn percpu_ref_test_register_notifier();
}

struct Number(u32);

impl Counted for Number {}

/// An object whose release takes a mutex, although it may be called where it must not sleep.
struct Sleeping(Pin<KBox<Mutex<u32>>>);

impl Counted for Sleeping {
    fn release(&self) {
        *self.0.lock() += 1;
    }
}

fn use_after_free() -> Result {
    let object = PercpuRef::from(UniquePercpuRef::new(Number(7), GFP_KERNEL)?);
    let guard = object.try_get().ok_or(EIO)?;
    let number = &raw const guard.0;
    drop(guard);
    object.kill_and_wait();
    drop(object);
    // With CONFIG_RUST_PERCPU_REF_DEBUG, the memory is freed after a grace period.
    rcu::rcu_barrier();
    // SAFETY: This is not safe: the object was freed.
    let number = unsafe { number.read_volatile() };
    pr_info!("{number}\n");
    Ok(())
}

fn sleep_in_callback() -> Result {
    let mutex = KBox::pin_init(new_mutex!(0), GFP_KERNEL)?;
    drop(PercpuRef::from(UniquePercpuRef::new(
        Sleeping(mutex),
        GFP_KERNEL,
    )?));
    rcu::rcu_barrier();
    Ok(())
}

/// An object whose release registers and unregisters a module notifier.
struct Notifying;

impl Counted for Notifying {
    const MAY_SLEEP: bool = true;

    fn release(&self) {
        // SAFETY: `percpu_ref_test_register_notifier()` can be called where it may sleep.
        unsafe { percpu_ref_test_register_notifier() };
    }
}

/// Runs a release that registers a module notifier, before the module is unloaded.
///
/// The library waits for releases in a notifier, with the lock of the notifier chain held.
fn notifier_in_release() -> Result {
    PercpuRef::from(UniquePercpuRef::new(Notifying, GFP_KERNEL)?).kill_and_wait();
    Ok(())
}

/// Waits for a release under a lock that a holder of a reference takes.
///
/// There is no deadlock here, because the holder has already put its reference.
fn wait_with_lock() -> Result {
    let lock = KBox::pin_init(new_mutex!(0), GFP_KERNEL)?;
    let object = PercpuRef::from(UniquePercpuRef::new(Number(7), GFP_KERNEL)?);

    let guard = object.try_get().ok_or(EIO)?;
    let section = guard.lockdep_section();
    *lock.lock() += guard.0;
    drop(section);
    drop(guard);

    let number = lock.lock();
    object.kill_and_wait();
    pr_info!("{}\n", *number);
    Ok(())
}

/// Disables preemption to an unlimited depth.
fn too_deep() {
    loop {
        forget(PreemptGuard::new());
    }
}

fn leak() -> Result {
    forget(UniquePercpuRef::new(Number(7), GFP_KERNEL)?);
    Ok(())
}

fn overflow() -> Result {
    let number = UniquePercpuRef::new(Number(u32::MAX), GFP_KERNEL)?;
    // The compiler must not see the overflow.
    let one = core::hint::black_box(1);
    pr_info!("{}\n", number.0 + one);
    Ok(())
}

struct Wrong;

impl kernel::Module for Wrong {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        // Up to Linux 7.2, a parameter's `value()` returns a reference.
        let bug: u32 = *core::borrow::Borrow::borrow(&module_parameters::bug.value());
        match bug {
            10 => use_after_free()?,
            11 => sleep_in_callback()?,
            13 => leak()?,
            14 => overflow()?,
            15 => notifier_in_release()?,
            16 => too_deep(),
            17 => wait_with_lock()?,
            // SAFETY: This is not safe: the function has the bugs that the checkers must find.
            _ => unsafe { percpu_ref_test_wrong(bug) },
        }
        pr_info!(
            "bug {bug} is done, debug assertions {}\n",
            if cfg!(debug_assertions) { "on" } else { "off" }
        );
        Ok(Self)
    }
}

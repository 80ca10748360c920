// SPDX-License-Identifier: GPL-2.0

//! An object in Rust that C code gets and puts references to.
//!
//! The C side, `percpu_ref_c_user.c`, has a reference as a `void *`. It uses the object from a
//! timer, gets a second reference for that, and puts both. When the last one is put, the object is
//! released, on whichever side that happens.

use kernel::{
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    },
    types::ForeignOwnable, //
};
use percpu_ref::{
    Counted,
    PercpuRef,
    PercpuRefGuard,
    UniquePercpuRef, //
};

module! {
    type: FromC,
    name: "rust_percpu_ref_from_c",
    description: "An object that C code has references to",
    license: "GPL",
}

struct Ticks(Atomic<u32>);

impl Counted for Ticks {
    fn release(&self) {
        pr_info!("released after {} ticks\n", self.0.load(Relaxed));
    }
}

type Guard = PercpuRefGuard<Ticks>;

extern "C" {
    fn percpu_ref_c_user_start(ticks: *mut c_void);
    fn percpu_ref_c_user_stop();
}

/// Gets another reference.
///
/// # Safety
///
/// `ticks` must be a reference that the caller owns, and keeps until this returns.
#[no_mangle]
unsafe extern "C" fn percpu_ref_sample_get(ticks: *mut c_void) -> *mut c_void {
    // SAFETY: By the safety requirements of this function, `ticks` came from `into_foreign()`, and
    // is not given to `from_foreign()` meanwhile.
    let guard = unsafe { Guard::borrow(ticks) };
    guard.clone().into_foreign()
}

/// Uses the object.
///
/// # Safety
///
/// `ticks` must be a reference that the caller owns, and keeps until this returns.
#[no_mangle]
unsafe extern "C" fn percpu_ref_sample_tick(ticks: *mut c_void) {
    // SAFETY: By the safety requirements of this function, `ticks` came from `into_foreign()`, and
    // is not given to `from_foreign()` meanwhile.
    let guard = unsafe { Guard::borrow(ticks) };
    guard.0.fetch_add(1, Relaxed);
}

/// Puts a reference.
///
/// # Safety
///
/// `ticks` must be a reference that the caller owns, and gives up.
#[no_mangle]
unsafe extern "C" fn percpu_ref_sample_put(ticks: *mut c_void) {
    // SAFETY: By the safety requirements of this function, `ticks` came from `into_foreign()`, and
    // is given up once.
    drop(unsafe { Guard::from_foreign(ticks) });
}

struct FromC {
    /// Dropped with the module, which kills it.
    _ticks: PercpuRef<Ticks>,
}

impl kernel::Module for FromC {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        let ticks = UniquePercpuRef::new(Ticks(Atomic::new(0)), GFP_KERNEL)?;
        let ticks = PercpuRef::from(ticks);
        let guard = ticks.try_get_live().ok_or(ENODEV)?;
        // SAFETY: The C side puts the reference when it is stopped.
        unsafe { percpu_ref_c_user_start(guard.into_foreign()) };
        Ok(Self { _ticks: ticks })
    }
}

impl Drop for FromC {
    fn drop(&mut self) {
        // The timer runs code of this module, so it must be stopped here. The library waits for the
        // object alone.
        //
        // SAFETY: It was started by `init()`.
        unsafe { percpu_ref_c_user_stop() };
    }
}

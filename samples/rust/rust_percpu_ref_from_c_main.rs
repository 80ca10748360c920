// SPDX-License-Identifier: GPL-2.0

//! A counted object that C code uses: see `rust_percpu_ref_from_c_user.c`.
//!
//! A reference passes through C as the `void *` into which [`ForeignOwnable`] converts a
//! [`PercpuRefGuard`]. Each function that C calls states what the caller must ensure, because C has
//! no type for it.

use core::ptr;
use kernel::sync::percpu_ref::{
    Counted,
    PercpuRefGuard,
    RcuPercpuRef,
    UniquePercpuRef, //
};
use kernel::{
    error::to_result,
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    },
    types::ForeignOwnable, //
};

// These are defined in `rust_percpu_ref_from_c_user.c`. The prototypes are in
// `rust_percpu_ref_from_c.h`.
extern "C" {
    fn percpu_ref_from_c_start() -> c_int;
    fn percpu_ref_from_c_stop();
}

/// The object that C uses.
struct Meter {
    ticks: Atomic<u64>,
}

impl Counted for Meter {
    // This is called where the last reference is put, which may be the timer of the C code. So it
    // must not sleep.
    fn release(&self) {
        pr_info!("released after {} ticks\n", self.ticks.load(Relaxed));
    }
}

static METER: RcuPercpuRef<Meter> = RcuPercpuRef::empty();

/// Gets a reference for C, or returns null if the meter is removed.
#[no_mangle]
extern "C" fn percpu_ref_from_c_get() -> *mut c_void {
    METER
        .try_get_live()
        .map_or(ptr::null_mut(), PercpuRefGuard::into_foreign)
}

/// Counts a tick, and returns the number of ticks.
///
/// # Safety
///
/// `reference` must have come from [`percpu_ref_from_c_get`], must not be null, and must not be put
/// before this returns.
#[no_mangle]
unsafe extern "C" fn percpu_ref_from_c_use(reference: *const c_void) -> u64 {
    // SAFETY: By the safety requirements of this function, `reference` came from `into_foreign()`,
    // and `from_foreign()` is not called for it before this returns.
    let meter = unsafe { PercpuRefGuard::<Meter>::borrow(reference.cast_mut()) };
    meter.ticks.fetch_add(1, Relaxed) + 1
}

/// Puts a reference.
///
/// # Safety
///
/// `reference` must have come from [`percpu_ref_from_c_get`], must not be null, and must not be
/// used after this.
#[no_mangle]
unsafe extern "C" fn percpu_ref_from_c_put(reference: *mut c_void) {
    // SAFETY: By the safety requirements of this function, `reference` came from `into_foreign()`,
    // and this is the only call of `from_foreign()` for it.
    drop(unsafe { PercpuRefGuard::<Meter>::from_foreign(reference) });
}

/// Removes the meter when it is dropped.
struct Installed;

impl Installed {
    fn new() -> Result<Self> {
        let meter = Meter {
            ticks: Atomic::new(0),
        };
        METER.replace(Some(UniquePercpuRef::new(meter, GFP_KERNEL)?.into()));
        Ok(Self)
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        METER.remove();
        pr_info!("removed\n");
    }
}

/// Stops the C code when it is dropped.
struct User;

impl User {
    fn new() -> Result<Self> {
        // SAFETY: This is process context, and the function is called once.
        to_result(unsafe { percpu_ref_from_c_start() })?;
        Ok(Self)
    }
}

impl Drop for User {
    fn drop(&mut self) {
        // SAFETY: This is process context, and `percpu_ref_from_c_start()` succeeded.
        unsafe { percpu_ref_from_c_stop() };
    }
}

/// The module, whose fields are dropped in this order: first the C code is stopped, and then the
/// meter is removed.
///
/// In the opposite order, the removal would wait for the reference that C holds.
struct Sample {
    _user: User,
    _installed: Installed,
}

impl kernel::Module for Sample {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        let installed = Installed::new()?;
        Ok(Self {
            _user: User::new()?,
            _installed: installed,
        })
    }
}

module! {
    type: Sample,
    name: "rust_percpu_ref_from_c",
    description: "A counted Rust object that C code uses",
    license: "GPL",
}

// SPDX-License-Identifier: GPL-2.0

//! Waiting for the change of a variable, with wake-ups that can come from any context.
//!
//! The variable stands for the event by its address alone, so its memory may be free when the
//! wake-up is called. `wait.c` says why `wake_up_var()` does not suffice.
//!
//! C header: [`include/linux/wait_bit.h`](srctree/include/linux/wait_bit.h)

use core::ptr;
use kernel::{
    error::to_result,
    prelude::*,
    time::{
        msecs_to_jiffies,
        Delta, //
    },
};

extern "C" {
    fn rust_percpu_ref_wait(
        var: *const c_void,
        is_done: unsafe extern "C" fn(arg: *const c_void) -> bool,
        arg: *const c_void,
        killable: bool,
        timeout: c_ulong,
    ) -> c_int;
    fn rust_percpu_ref_wake_up(var: *const c_void);
}

/// What may end a wait besides the event.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Until {
    /// Nothing.
    Done,
    /// A fatal signal.
    Killed,
}

/// Sleeps until `is_done` returns `true`, or for `timeout` at most if there is one.
///
/// Each change that may make it so must be followed by a [`wake_up`] of `var`. `is_done` must load
/// what the caller relies on with `Acquire`.
///
/// Fails with `ETIMEDOUT` after the timeout, and with `EINTR` after a fatal signal if `until` says
/// so.
pub(crate) fn wait_event<T, F: Fn() -> bool>(
    var: *const T,
    until: Until,
    timeout: Option<Delta>,
    is_done: F,
) -> Result {
    /// # Safety
    ///
    /// `arg` must point to a valid `F`.
    unsafe extern "C" fn call<F: Fn() -> bool>(arg: *const c_void) -> bool {
        // SAFETY: By the safety requirements of this function, `arg` points to an `F`.
        unsafe { (*arg.cast::<F>())() }
    }

    // One more than the timeout, since the current jiffy is not a whole one.
    let jiffies = timeout.map_or(c_ulong::MAX, |timeout| {
        let ms = timeout.as_millis().clamp(0, i64::from(i32::MAX)) as c_uint;
        msecs_to_jiffies(ms).saturating_add(1)
    });
    // SAFETY: `call::<F>` is given the address of `is_done`, which is an `F` that outlives the
    // call.
    to_result(unsafe {
        rust_percpu_ref_wait(
            var.cast(),
            call::<F>,
            ptr::from_ref(&is_done).cast(),
            until == Until::Killed,
            jiffies,
        )
    })
}

/// Wakes up all threads that wait for the change of `var` that was just made.
///
/// The change comes before the wake-up. The memory of `var` need not be valid any more.
///
/// # Context
///
/// Can be called from any context except NMI.
pub(crate) fn wake_up<T>(var: *const T) {
    // SAFETY: The function uses only the address.
    unsafe { rust_percpu_ref_wake_up(var.cast()) };
}

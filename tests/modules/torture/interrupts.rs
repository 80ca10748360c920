// SPDX-License-Identifier: GPL-2.0

//! The interrupts of the torture, and its calls into C.

use super::objects::*;
use super::tally::*;
use super::Stage;
use core::ptr;
use kernel::sync::{
    atomic::{
        Acquire,
        Atomic,
        Release, //
    },
    percpu_ref::PercpuRefGuard,
    rcu, //
};
use kernel::{
    prelude::*,
    types::ForeignOwnable, //
};

extern "C" {
    fn percpu_ref_torture_start();
    fn percpu_ref_torture_stop();
    fn percpu_ref_torture_send(guard: *mut c_void) -> bool;
    fn percpu_ref_torture_swap(n: c_uint, guard: *mut c_void) -> *mut c_void;
    fn percpu_ref_torture_in_hardirq() -> bool;
}

type Guard = PercpuRefGuard<Item<PLAIN>>;

/// The [`Stage`], for the interrupts, or null if there is none.
static STAGE: Atomic<*mut Stage> = Atomic::new(ptr::null_mut());

/// Starts the interrupts.
///
/// # Safety
///
/// `stage` must be valid until [`stop`] has returned.
pub(crate) unsafe fn start(stage: &Stage) {
    STAGE.store(ptr::from_ref(stage).cast_mut(), Release);
    // SAFETY: `run()` calls this once, and `stop()` after it.
    unsafe { percpu_ref_torture_start() };
}

/// Stops the interrupts that [`start`] has started.
///
/// All threads that use [`send`] must have ended.
pub(crate) fn stop() {
    // SAFETY: `start()` was called before, and this is process context.
    unsafe { percpu_ref_torture_stop() };
}

pub(crate) fn in_hardirq() -> bool {
    // SAFETY: `percpu_ref_torture_in_hardirq()` can be called from any context.
    unsafe { percpu_ref_torture_in_hardirq() }
}

/// Passes a guard to an interrupt, which puts it at once.
///
/// Returns the guard if too many guards are in flight.
pub(crate) fn send(guard: Guard) -> Option<Guard> {
    let guard = guard.into_foreign();
    // SAFETY: If it takes the guard, C passes it to `rust_percpu_ref_torture_put()` once.
    if unsafe { percpu_ref_torture_send(guard) } {
        SENT.inc();
        return None;
    }
    // SAFETY: `guard` came from `into_foreign()`, and C did not take it.
    Some(unsafe { Guard::from_foreign(guard) })
}

/// Passes a guard, or none, to a place in C, and returns the guard that was in this place.
pub(crate) fn swap(n: usize, guard: Option<Guard>) -> Option<Guard> {
    let guard = guard.map_or(ptr::null_mut(), |guard| {
        GIVEN_TO_C.inc();
        let guard = guard.into_foreign();
        // SAFETY: `guard` came from `into_foreign()`, and was not passed to C yet.
        expect!(unsafe { Guard::borrow(guard) }.is_alive());
        guard
    });
    // SAFETY: `percpu_ref_torture_swap()` can be called from any context.
    let old = unsafe { percpu_ref_torture_swap(n as c_uint, guard) };
    if old.is_null() {
        return None;
    }
    TAKEN_FROM_C.inc();
    // SAFETY: `old` came from `into_foreign()` in an earlier call, and the exchange in C has given
    // us its ownership.
    Some(unsafe { Guard::from_foreign(old) })
}

/// The context of an interrupt, as in torture.h.
#[derive(Clone, Copy, PartialEq)]
enum Context {
    HardTimer,
    SoftTimer,
    Work,
}

/// Runs in each interrupt.
#[no_mangle]
extern "C" fn rust_percpu_ref_torture_tick(context: c_uint, is_right: bool) {
    expect!(is_right);
    // SAFETY: By the safety requirements of `start()`, the stage is valid until the interrupts are
    // stopped.
    let stage = unsafe { &*STAGE.load(Acquire) };
    let (context, tally) = match context {
        0 => (Context::HardTimer, &HARD_TIMERS),
        1 => (Context::SoftTimer, &SOFT_TIMERS),
        _ => (Context::Work, &IRQ_WORKS),
    };
    tally.inc();
    INTERRUPTS.inc();
    count_by_cpu(1);
    let turn = tally.get() as usize;

    if let Some(guard) = stage.kept.try_get() {
        Gate::pass(guard);
    }
    if let Some(guard) = stage.gate.try_get_live() {
        Gate::pass(guard);
    }
    stage.look_up(&stage.places, turn);
    stage.look_up(&stage.tasks, turn);
    {
        let section = rcu::read_lock();
        let pair = stage.pairs[turn & 7].load(&section);
        expect!(pair.is_none_or(Pair::is_alive));
    }
    if context == Context::Work {
        return;
    }
    drop(swap(turn, None));
    // Kills an object that a thread has made for this.
    if turn & 7 == 0 {
        if let Some(old) = stage.doomed[(turn >> 3) & 15].replace(None) {
            TO_CONFIRM.inc();
            expect!(old.kill_and_confirm());
            killed(context);
        }
    }
    // The release may run inside this kill.
    if turn & 127 == 0 && !stage.gate.is_dying() && stage.gate.kill_and_confirm() {
        TO_CONFIRM.inc();
        killed(context);
    }
}

fn killed(context: Context) {
    KILLS.inc();
    match context {
        Context::SoftTimer => KILLS_IN_SOFTIRQ.inc(),
        _ => KILLS_IN_HARD_INTERRUPT.inc(),
    }
}

/// Puts a guard that was passed to [`send`].
#[no_mangle]
extern "C" fn rust_percpu_ref_torture_put(guard: *mut c_void) {
    // SAFETY: `guard` came from `into_foreign()` in `send()`, and C calls this once for it.
    let guard = unsafe { Guard::from_foreign(guard) };
    expect!(guard.is_alive());
    drop(guard);
}

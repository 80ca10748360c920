// SPDX-License-Identifier: GPL-2.0

//! What the torture does in interrupts, and what C does for it.

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

/// The [`Stage`], for the interrupts; null if there is none.
static STAGE: Atomic<*mut Stage> = Atomic::new(ptr::null_mut());

/// Begins the interrupts.
///
/// # Safety
///
/// `stage` must be valid until [`stop`] has returned.
pub(crate) unsafe fn start(stage: &Stage) {
    STAGE.store(ptr::from_ref(stage).cast_mut(), Release);
    // SAFETY: Called once.
    unsafe { percpu_ref_torture_start() };
}

/// Ends the interrupts that [`start`] began. All that used [`send`] must have stopped.
pub(crate) fn stop() {
    // SAFETY: They were begun, and we are in process context.
    unsafe { percpu_ref_torture_stop() };
}

pub(crate) fn in_hardirq() -> bool {
    // SAFETY: Can be called from any context.
    unsafe { percpu_ref_torture_in_hardirq() }
}

/// Has a guard put in an interrupt, which follows at once. Gives it back if too many are under way.
pub(crate) fn send(guard: Guard) -> Option<Guard> {
    let guard = guard.into_foreign();
    // SAFETY: C passes the guard to `rust_percpu_ref_torture_put()`.
    if unsafe { percpu_ref_torture_send(guard) } {
        SENT.inc();
        return None;
    }
    // SAFETY: C did not take it.
    Some(unsafe { Guard::from_foreign(guard) })
}

/// Gives a guard to C, or none, and returns what C had at this place.
pub(crate) fn swap(n: usize, guard: Option<Guard>) -> Option<Guard> {
    let guard = guard.map_or(ptr::null_mut(), |guard| {
        GIVEN_TO_C.inc();
        let guard = guard.into_foreign();
        // SAFETY: The guard is ours.
        expect!(unsafe { Guard::borrow(guard) }.is_alive());
        guard
    });
    // SAFETY: Can be called from any context.
    let old = unsafe { percpu_ref_torture_swap(n as c_uint, guard) };
    if old.is_null() {
        return None;
    }
    TAKEN_FROM_C.inc();
    // SAFETY: It was given to C above, and is taken back once.
    Some(unsafe { Guard::from_foreign(old) })
}

/// Where an interrupt runs; as in torture_c.c.
#[derive(Clone, Copy, PartialEq)]
enum Context {
    HardTimer,
    SoftTimer,
    Work,
}

/// The function of all interrupts.
#[no_mangle]
extern "C" fn rust_percpu_ref_torture_tick(context: c_uint, is_right: bool) {
    expect!(is_right);
    // SAFETY: The interrupts are stopped before the stage is gone.
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
    // The other end of an object that was made for this.
    if turn & 7 == 0 {
        if let Some(old) = stage.doomed[(turn >> 3) & 15].replace(None) {
            TO_CONFIRM.inc();
            expect!(old.kill_and_confirm());
            killed(context);
        }
    }
    // The release may run in here.
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

/// Puts what [`send`] was given.
#[no_mangle]
extern "C" fn rust_percpu_ref_torture_put(guard: *mut c_void) {
    // SAFETY: `send()` gave it to C, which calls this once.
    let guard = unsafe { Guard::from_foreign(guard) };
    expect!(guard.is_alive());
    drop(guard);
}

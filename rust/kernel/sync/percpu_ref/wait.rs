// SPDX-License-Identifier: GPL-2.0

//! Waits for the change of a variable, with wake-ups that can come from any context.
//!
//! `wake_up_var()` takes a `spinlock_t`. This lock sleeps on PREEMPT_RT, and lockdep reports it in
//! a hard interrupt on every kernel with `PROVE_RAW_LOCK_NESTING`. A [`WaitQueue`] takes raw locks
//! only: its own lock, and the lock of a completion for each waiter.
//!
//! Only the address of a variable identifies the event, so the memory of the variable can be freed
//! before the wake-up is called.
//!
//! C header: [`include/linux/completion.h`](srctree/include/linux/completion.h)

use crate::{
    bindings,
    prelude::*,
    static_lock_class,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        LockClassKey, //
    },
    task::might_sleep,
    time::{
        msecs_to_jiffies,
        Delta, //
    },
    types::Opaque, //
};
use core::{
    cell::Cell,
    ptr, //
};

/// The threads that wait for the change of a variable.
///
/// # Invariants
///
/// The list that begins at `first` is changed and walked under `lock` only. Each waiter on the list
/// is a local variable of a thread that is inside [`WaitQueue::wait_event`].
#[pin_data]
pub(super) struct WaitQueue {
    #[pin]
    lock: Opaque<bindings::raw_spinlock_t>,
    first: Atomic<*mut Waiter>,
}

/// A thread that waits for the change of a variable.
struct Waiter {
    var: *const c_void,
    wake: Opaque<bindings::completion>,
    next: Cell<*mut Waiter>,
}

/// The events other than the change that can end a wait.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Until {
    /// No other event.
    Done,
    /// A fatal signal.
    Killed,
}

/// Returns the pointer that C takes for a lock class.
pub(super) fn key_ptr(key: Pin<&'static LockClassKey>) -> *mut bindings::lock_class_key {
    ptr::from_ref(key.get_ref()).cast_mut().cast()
}

impl WaitQueue {
    /// Creates an empty queue.
    pub(super) fn new() -> impl PinInit<Self> {
        let name = c"percpu_ref_wait".as_char_ptr();
        let key = key_ptr(static_lock_class!());
        pin_init!(Self {
            lock <- Opaque::ffi_init(move |lock| {
                // SAFETY: `lock` is valid for writes and pinned. `key` and `name` are static.
                unsafe { bindings::__raw_spin_lock_init(lock, name, key) }
            }),
            first: Atomic::new(ptr::null_mut()),
        })
    }

    /// Calls `f` under the lock, with interrupts disabled.
    fn locked<R>(&self, f: impl FnOnce() -> R) -> R {
        // SAFETY: The lock was initialised by `new()`, and is pinned.
        let flags = unsafe { bindings::raw_spin_lock_irqsave(self.lock.get()) };
        let result = f();
        // SAFETY: We hold the lock, and `flags` is what taking it returned.
        unsafe { bindings::raw_spin_unlock_irqrestore(self.lock.get(), flags) };
        result
    }

    /// Sleeps until `is_done` returns `true`, or for at most `timeout` if there is one.
    ///
    /// Each change that can make `is_done` return `true` must be followed by a
    /// [`wake_up`](Self::wake_up) of `var`. `is_done` must load what the caller relies on with
    /// `Acquire`.
    ///
    /// Fails with `ETIMEDOUT` when the timeout is over, and with `EINTR` after a fatal signal if
    /// `until` is [`Until::Killed`].
    ///
    /// # Context
    ///
    /// Sleeps, so must be called from process context.
    pub(super) fn wait_event<T>(
        &self,
        var: *const T,
        until: Until,
        timeout: Option<Delta>,
        is_done: impl Fn() -> bool,
    ) -> Result {
        might_sleep();
        if is_done() {
            return Ok(());
        }

        let waiter = Waiter {
            var: var.cast(),
            wake: Opaque::uninit(),
            next: Cell::new(ptr::null_mut()),
        };
        // SAFETY: `waiter` is not moved from here on, and is removed from the list below.
        unsafe { bindings::init_completion(waiter.wake.get()) };
        self.add(&waiter);

        // One more jiffy than the timeout, because the current jiffy has already begun.
        let mut left = timeout.map_or(c_long::MAX, |timeout| {
            let ms = timeout.as_millis().clamp(0, i64::from(i32::MAX)) as c_uint;
            msecs_to_jiffies(ms)
                .saturating_add(1)
                .min(c_long::MAX as c_ulong) as c_long
        });
        // Pairs with the barrier in `wake_up()`: either the waker sees the waiter, or we see the
        // change (litmus: no-lost-wake-up).
        //
        // SAFETY: `smp_mb()` can be called from any context.
        unsafe { bindings::smp_mb() };
        while !is_done() && left > 0 {
            // SAFETY: By the context of this function, we can sleep. The completion is initialised.
            left = unsafe {
                match until {
                    Until::Done => {
                        bindings::wait_for_completion_timeout(waiter.wake.get(), left as c_ulong)
                            as c_long
                    }
                    Until::Killed => bindings::wait_for_completion_killable_timeout(
                        waiter.wake.get(),
                        left as c_ulong,
                    ),
                }
            };
        }
        self.remove(&waiter);

        if is_done() {
            Ok(())
        } else if left < 0 {
            Err(EINTR)
        } else {
            Err(ETIMEDOUT)
        }
    }

    /// Adds a waiter to the list.
    fn add(&self, waiter: &Waiter) {
        self.locked(|| {
            waiter.next.set(self.first.load(Relaxed));
            // INVARIANT: `wait_event()` removes the waiter before it returns.
            self.first.store(ptr::from_ref(waiter).cast_mut(), Relaxed);
        });
    }

    /// Removes a waiter from the list, so that no wake-up uses it after this.
    fn remove(&self, waiter: &Waiter) {
        self.locked(|| {
            let this = ptr::from_ref(waiter).cast_mut();
            if self.first.load(Relaxed) == this {
                self.first.store(waiter.next.get(), Relaxed);
                return;
            }
            let mut other = self.first.load(Relaxed);
            // SAFETY: By the type invariant, the waiters on the list are valid while we hold the
            // lock.
            while let Some(before) = unsafe { other.as_ref() } {
                other = before.next.get();
                if other == this {
                    before.next.set(waiter.next.get());
                    return;
                }
            }
        });
    }

    /// Wakes up all threads that wait for the change of `var`.
    ///
    /// Must be called after the change. The memory of `var` may have been freed.
    ///
    /// # Context
    ///
    /// Can be called from any context except NMI. If there are waiters, takes a raw lock while it
    /// walks the list of waiters.
    pub(super) fn wake_up<T>(&self, var: *const T) {
        // Pairs with the barrier in `wait_event()`: either we see the waiter, or the waiter sees
        // the change (litmus: no-lost-wake-up).
        //
        // SAFETY: `smp_mb()` can be called from any context.
        unsafe { bindings::smp_mb() };
        if self.first.load(Relaxed).is_null() {
            return;
        }
        self.locked(|| {
            let mut next = self.first.load(Relaxed);
            // SAFETY: By the type invariant, the waiters on the list are valid while we hold the
            // lock.
            while let Some(waiter) = unsafe { next.as_ref() } {
                if waiter.var == var.cast() {
                    // SAFETY: `wait_event()` has initialised the completion before it added the
                    // waiter to the list.
                    unsafe { bindings::complete(waiter.wake.get()) };
                }
                next = waiter.next.get();
            }
        });
    }
}

/// Sleeps until `is_done` returns `true`.
///
/// Each change of `var` that can make `is_done` return `true` must be followed by [`wake_up_var`].
///
/// # Context
///
/// Sleeps, so must be called from process context.
pub(super) fn wait_var_event<T>(var: *const T, is_done: impl Fn() -> bool) {
    let var = var.cast_mut().cast::<c_void>();
    let entry = Opaque::<bindings::wait_bit_queue_entry>::uninit();
    // SAFETY: `entry` is not moved, and is removed from the queue below.
    let (queue, wait) = unsafe {
        bindings::init_wait_var_entry(entry.get(), var, 0);
        (
            bindings::__var_waitqueue(var),
            &raw mut (*entry.get()).wq_entry,
        )
    };
    loop {
        // SAFETY: The queue lives as long as the kernel, and `wait` is initialised.
        unsafe {
            bindings::prepare_to_wait_event(queue, wait, bindings::TASK_UNINTERRUPTIBLE as c_int)
        };
        if is_done() {
            break;
        }
        // SAFETY: By the context of this function, we can sleep.
        unsafe { bindings::schedule() };
    }
    // SAFETY: The queue lives as long as the kernel, and `wait` is initialised.
    unsafe { bindings::finish_wait(queue, wait) };
}

/// Wakes up the threads that wait for `var` in [`wait_var_event`].
///
/// Must be called after a change of `var` that was fully ordered.
///
/// # Context
///
/// Must be called from process context.
pub(super) fn wake_up_var<T>(var: *const T) {
    // SAFETY: `wake_up_var()` uses only the address of `var`.
    unsafe { bindings::wake_up_var(var.cast_mut().cast()) };
}

// SPDX-License-Identifier: GPL-2.0

//! The count itself, without the type of what it counts.
//!
//! In *per-CPU mode* a get adds one to this CPU's counter and a put subtracts one. A single counter
//! may go below zero and wrap, for what is got on one CPU may be put on another; only their sum
//! modulo 2^64 means anything, and nobody computes it. So nobody would see it fall to
//! zero, either. It cannot: the *initial reference* is put by [`Count::kill`] alone.
//!
//! Killing sets [`DEAD`] in the word where every get and put finds the address of the counters, and
//! from then on they use one atomic variable. Some CPUs may not have seen the bit yet. After a
//! grace period they all have, the per-CPU counters are at rest, and the RCU callback adds them to
//! the atomic. Until it does, gets and puts have been counted here and there, and the atomic alone
//! might pass zero at any time; [`BIAS`] keeps it away from there. One atomic addition puts in the
//! sum and takes out the bias.
//!
//! C source: [`lib/percpu-refcount.c`](srctree/lib/percpu-refcount.c)

use core::{
    mem::ManuallyDrop,
    ptr::{
        self,
        NonNull, //
    },
};
use kernel::{
    alloc::Flags,
    bindings,
    container_of,
    do_once_lite,
    pr_warn_once,
    prelude::*,
    sync::atomic::{
        Atomic,
        Full,
        Relaxed, //
    },
    warn_on, //
};

use crate::{
    percpu::{
        possible_cpus,
        Local,
        PerCpu,
        PreemptGuard, //
    },
    rcu::{
        self,
        RcuHead,
        RcuPointer, //
    },
    unload::{
        self,
        Class,
        Ops, //
    },
};

extern "C" {
    fn rust_percpu_ref_pr_debug_sum(global: u64, percpu: u64);
}

/// In [`Count::word`]: the reference was killed; use [`Count::atomic`].
#[doc(alias("__PERCPU_REF_DEAD", "PCPU_REF_DEAD"))]
const DEAD: usize = 1;

const _: () = assert!(align_of::<Local<u64>>() > DEAD);

/// Keeps [`Count::atomic`] away from zero until the per-CPU counters are added to it.
#[doc(alias("PERCPU_COUNT_BIAS", "PCPU_COUNT_BIAS"))]
const BIAS: u64 = 1 << 63;

/// In [`Count::state`]: the object's end has come, its release has run.
const RELEASED: u32 = 1 << 0;
/// In [`Count::state`]: the owner's handle is gone.
const ORPHANED: u32 = 1 << 1;
/// In [`Count::state`]: the object outlived its module and must stay in memory.
const LEAKED: u32 = 1 << 2;

/// A reference count at the beginning of a heap-allocated object.
///
/// It goes through these states:
///
/// - *unshared*, from [`Count::new`] on: one owner, who may drop it;
/// - *live*: references are counted per CPU;
/// - *dying*, from [`Count::kill`] on: [`DEAD`] is set, the callback is queued;
/// - *atomic*: the callback has added the sum. It goes on to put the initial reference;
/// - *released*: the count fell to zero. The object is dropped, but not its memory: that is freed
///   when the owner's handle is gone, too.
///
/// # Invariants
///
/// - While the reference is live or dying, `word` without [`DEAD`] is the `PerCpu<Local<u64>>` that
///   the count owns.
/// - The counters' sum plus `atomic`, modulo 2^64, is the number of references; plus [`BIAS`] as
///   long as the counters are not added to `atomic`. The initial reference is one of them, until
///   the callback puts it. There are far fewer than `BIAS / 2`: the counts are 64 bits wide
///   everywhere, and even to leak so many references would take a century.
/// - `class` has this object in its count until the object is released.
/// - The memory that the count is in came from `kmalloc()`. It is freed by whoever sets the second
///   of [`RELEASED`] and [`ORPHANED`], unless it is [`LEAKED`].
pub(crate) struct Count {
    /// The address of the per-CPU counters, and [`DEAD`].
    word: Atomic<usize>,
    atomic: Atomic<u64>,
    class: &'static Class,
    /// A function for the object's type, or null. Written by the one who kills, read by the
    /// callback.
    confirm: Atomic<*mut c_void>,
    rcu: RcuHead,
    state: Atomic<u32>,
}

impl Count {
    /// A count of one, in per-CPU mode, for an object with the operations `ops`.
    ///
    /// Fails with `ENOMEM`, and as [`Class::get`] does.
    pub(crate) fn new(ops: &'static Ops, gfp: Flags) -> Result<Self> {
        let counters = PerCpu::<Local<u64>>::zeroed(gfp)?;
        let class = Class::get(ops, gfp)?;

        // INVARIANT: The counters are zero, so there is one reference, the initial one.
        Ok(Self {
            word: Atomic::new(counters.into_raw().as_ptr().expose_provenance()),
            atomic: Atomic::new(1 + BIAS),
            class,
            confirm: Atomic::new(ptr::null_mut()),
            rcu: RcuHead::new(),
            state: Atomic::new(0),
        })
    }

    /// The counters that `word` is the address of.
    ///
    /// # Safety
    ///
    /// `word` came from [`Count::word`], and for as long as the returned value is used, either
    /// - the count is unshared, or
    /// - it lacks [`DEAD`] and preemption has been disabled since it was read, or
    /// - this is the callback.
    unsafe fn counters(word: usize) -> ManuallyDrop<PerCpu<Local<u64>>> {
        let ptr = ptr::with_exposed_provenance_mut(word & !DEAD);

        // SAFETY: By the type invariant, this is what `into_raw()` returned in `new()`. The
        // callback frees the counters, after a grace period that disabled preemption holds off.
        ManuallyDrop::new(unsafe { PerCpu::from_raw(NonNull::new_unchecked(ptr)) })
    }

    /// Does `local` with the counters if the reference is alive, and else says that it is not.
    #[inline]
    fn if_live(&self, local: impl FnOnce(&PerCpu<Local<u64>>)) -> bool {
        let _guard = PreemptGuard::new();

        // `Relaxed`: what the address leads to was initialised before the reference was shared.
        // Who misses `DEAD` here is waited for by the grace period that `kill()` starts.
        let word = self.word.load(Relaxed);
        if word & DEAD != 0 {
            return false;
        }

        // SAFETY: `DEAD` is not set, and preemption is disabled.
        local(&*unsafe { Self::counters(word) });
        true
    }

    /// Adds a reference. The caller has one.
    pub(crate) fn get(&self) {
        if !self.if_live(|counters| counters.inc()) {
            // `Relaxed`: the caller's own reference orders this against the end.
            self.atomic.add(1, Relaxed);
        }
    }

    /// Adds a reference if the end of the reference is not confirmed yet.
    pub(crate) fn try_get(&self) -> bool {
        if self.if_live(|counters| counters.inc()) {
            return true;
        }

        // Dying, and the bias tells whether the callback has been here: with it, the value is
        // within a quarter of the range of `BIAS`; without it, it is a true count and far below.
        // The test and the addition must be one step, so that nothing succeeds once the bias is
        // out.
        let mut old = self.atomic.load(Relaxed);
        while old >= BIAS / 2 {
            // `Relaxed`: there is the initial reference until after the bias is out.
            match self.atomic.cmpxchg(old, old.wrapping_add(1), Relaxed) {
                Ok(_) => return true,
                Err(found) => old = found,
            }
        }
        false
    }

    /// Drops a reference, and if it was the last one, releases the object.
    ///
    /// # Safety
    ///
    /// The caller owns a reference to the object that begins at `this`, and gives it up.
    pub(crate) unsafe fn put(this: NonNull<Self>) {
        // SAFETY: There is a reference, so the object is alive.
        let count = unsafe { this.as_ref() };

        if count.if_live(|counters| counters.dec()) {
            return;
        }

        // Preemption is enabled again: `release()` may take sleeping locks on PREEMPT_RT, and our
        // reference alone keeps the object until the next line.
        //
        // `Full`: all uses of the object, by us and by those who put before, come before its end.
        if count.atomic.fetch_sub(1, Full) == 1 {
            // SAFETY: That was the last reference, and `DEAD` keeps new ones away.
            unsafe { Self::release(this) };
        }
    }

    /// Ends the object.
    ///
    /// # Safety
    ///
    /// The number of references just fell to zero.
    unsafe fn release(this: NonNull<Self>) {
        // SAFETY: The memory is there until `RELEASED` is set.
        let count = unsafe { this.as_ref() };

        let state = match count.class.enter() {
            Some(running) => {
                // SAFETY: There are no references, and there will be none. This happens once.
                unsafe { (running.ops().release)(this.cast()) };
                count.class.put();
                RELEASED
            }
            None => RELEASED | LEAKED,
        };

        let waited_on = count.state.as_ptr();
        // `Full`: the end comes before the memory is freed, here or by `drop_handle()`, and before
        // `wait_released()` returns. From here on the memory is not ours to use.
        let old = count.state.fetch_add(state, Full);
        if state & LEAKED == 0 && old & ORPHANED != 0 {
            // SAFETY: By the type invariant it came from `kmalloc()`, and both bits are set now.
            unsafe { bindings::kfree(this.as_ptr().cast()) };
        }
        unload::wake_up(waited_on);
    }

    /// Marks the reference dead, and has the initial reference put after a grace period, right
    /// after `confirm` is called. `false` if somebody else has killed it before.
    ///
    /// # Safety
    ///
    /// `this` is the beginning of a pinned, shared object that the caller may use meanwhile.
    /// `confirm` is a function for its type.
    pub(crate) unsafe fn kill(this: NonNull<Self>, confirm: Option<NonNull<c_void>>) -> bool {
        // SAFETY: As the function requires.
        let count = unsafe { this.as_ref() };

        let mut word = count.word.load(Relaxed);
        loop {
            if word & DEAD != 0 {
                return false;
            }
            // `Relaxed`: `call_rcu()` orders the bit before the callback; see `if_live()`.
            match count.word.cmpxchg(word, word | DEAD, Relaxed) {
                Ok(_) => break,
                Err(found) => word = found,
            }
        }

        // The bit was ours to set, so the initial reference is ours to give away.
        let confirm = confirm.map_or(ptr::null_mut(), NonNull::as_ptr);
        count.confirm.store(confirm, Relaxed);
        if let Err(initial) = rcu::try_call_hurry(InitialRef(this), confirm) {
            // The code of `confirm` is about to go; see `rcu::close_module()`.
            pr_warn_once!("confirmation lies in an unloaded module: not calling it\n");
            count.confirm.store(ptr::null_mut(), Relaxed);
            rcu::call_hurry(initial);
        }
        true
    }

    /// Whether the reference was killed.
    pub(crate) fn is_dying(&self) -> bool {
        // `Relaxed`: the answer may be old the moment it is given.
        self.word.load(Relaxed) & DEAD != 0
    }

    /// Sleeps until the object is released.
    pub(crate) fn wait_released(&self) {
        // SAFETY: `state` is valid for as long as `self`; `release()` wakes its waiters up. The
        // acquire load in the wait pairs with its `Full`.
        unsafe { unload::wait_event(self.state.as_ptr(), RELEASED, RELEASED) };
    }

    /// Gives the owner's handle up. The reference was killed.
    ///
    /// # Safety
    ///
    /// `this` is the beginning of a shared object. The caller does not use it any more.
    pub(crate) unsafe fn drop_handle(this: NonNull<Self>) {
        // SAFETY: Without `ORPHANED` the memory is there.
        //
        // `Full` pairs with that in `release()`.
        let old = unsafe { this.as_ref() }.state.fetch_add(ORPHANED, Full);
        if old & (RELEASED | LEAKED) == RELEASED {
            // SAFETY: By the type invariant it came from `kmalloc()`, and both bits are set now.
            unsafe { bindings::kfree(this.as_ptr().cast()) };
        }
    }

    /// Enters the functions of the object's module; see [`Class::enter`].
    pub(crate) fn enter_module(&self) -> Option<unload::Running<'static>> {
        self.class.enter()
    }
}

impl Drop for Count {
    /// Undoes [`Count::new`] for a reference that was never shared. No callback is involved.
    #[doc(alias("percpu_ref_cancel_init", "percpu_ref_exit"))]
    fn drop(&mut self) {
        // SAFETY: Only an unshared count is dropped.
        let mut counters = unsafe { Self::counters(self.word.load(Relaxed)) };

        // Each counter, not their sum: a get here and a put there are a use, too.
        if self.atomic.load(Relaxed) != 1 + BIAS
            || possible_cpus().any(|cpu| counters.read_cpu(cpu) != Some(0))
        {
            do_once_lite! { warn_on!(true); }
        }

        // SAFETY: Not used after this.
        unsafe { ManuallyDrop::drop(&mut counters) };
        self.class.put();
    }
}

/// The initial reference, on its way to be put.
///
/// # Invariants
///
/// Owns a reference to the object, and is the only one of its kind for it.
struct InitialRef(NonNull<Count>);

// SAFETY: A reference may be put on any thread.
unsafe impl Send for InitialRef {}

// SAFETY: The object is pinned and alive, as it is referenced. By the type invariant, nobody else
// uses its `rcu`.
unsafe impl RcuPointer for InitialRef {
    fn into_head(self) -> NonNull<RcuHead> {
        // SAFETY: The object is alive, so its field's address is not null.
        unsafe { NonNull::new_unchecked(&raw mut (*self.0.as_ptr()).rcu) }
    }

    unsafe fn from_head(head: NonNull<RcuHead>) -> Self {
        // SAFETY: By the function's requirement, `head` lies in a count, whose address is not null.
        //
        // INVARIANT: The reference is the one that `into_head` gave up.
        Self(unsafe { NonNull::new_unchecked(container_of!(head.as_ptr(), Count, rcu)) })
    }

    /// All CPUs see `DEAD`: takes the count from the CPUs to the atomic.
    #[doc(alias("percpu_ref_switch_to_atomic_rcu", "percpu_ref_kill_rcu"))]
    fn run(self) {
        // SAFETY: By the type invariant, there is a reference.
        let count = unsafe { self.0.as_ref() };

        // SAFETY: This is the callback. Who used the counters did so with preemption disabled, and
        // that was over before the grace period was; it orders their last writes before our reads.
        let mut counters = unsafe { Count::counters(count.word.load(Relaxed)) };
        let sum = counters.sum();
        // SAFETY: Not used after this.
        unsafe { ManuallyDrop::drop(&mut counters) };

        // SAFETY: Prints two numbers.
        unsafe { rust_percpu_ref_pr_debug_sum(count.atomic.load(Relaxed), sum) };

        // The whole sum, and in the same step the bias: a part of the sum, or the sum after the
        // bias, could bring the atomic to zero, which a put would take for the end.
        //
        // `Full` pairs with that in `put()`: the puts before the kill, which the grace period has
        // ordered before us, come before the end of the object, whoever it is that brings it.
        count.atomic.fetch_add(sum.wrapping_sub(BIAS), Full);

        let confirm = NonNull::new(count.confirm.load(Relaxed));
        if let Some((confirm, running)) = confirm.zip(count.class.enter()) {
            // SAFETY: The object is alive. By the requirement of `kill()`, the function fits.
            unsafe { (running.ops().confirm)(self.0.cast(), confirm) };
        }

        // SAFETY: By the type invariant, we own the reference.
        unsafe { Count::put(self.0) };
    }
}

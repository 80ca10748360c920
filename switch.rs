// SPDX-License-Identifier: GPL-2.0

//! How a count changes its mode, dies and lives again.
//!
//! [`Count::word`] has three flags; without any, the count is in per-CPU mode.
//!
//! - [`DEAD`]: killed, and not resurrected since.
//! - [`FORCE`]: atomic mode was asked for, and stays across death and resurrection.
//! - [`BUSY`]: a transition is under way, and somebody owns it: the RCU callback, or the thread
//!   that kills a count in atomic mode or resurrects one. While it is set nobody but its owner
//!   changes the word, with one exception: a kill does not wait, so it sets [`DEAD`] in the midst
//!   of a switch to atomic mode, and the callback sees to the rest (see [`Count::finish`]).
//!
//! So there is no lock that a release or a confirmation could run under, and counts that switch at
//! the same time know nothing of each other.
//!
//! C source: [`lib/percpu-refcount.c`](srctree/lib/percpu-refcount.c)

use core::{
    mem::{
        self,
        ManuallyDrop, //
    },
    ptr::{
        self,
        NonNull, //
    },
};
use kernel::{
    container_of,
    do_once_lite,
    pr_warn_once,
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Full,
            Relaxed,
            Release, //
        },
        rcu::read_lock, //
    }, //
};

use super::{
    is_open,
    is_valid,
    Count,
    Phase,
    ATOMIC,
    BIAS,
    BUSY,
    DEAD,
    FORCE,
    LIMIT,
    REINIT,
    SATURATED, //
};
use crate::{
    rcu::{
        self,
        read_once,
        RcuHead,
        RcuPointer, //
    },
    unload, //
};

extern "C" {
    fn rust_percpu_ref_pr_debug_sum(global: u64, percpu: u64);
}

/// In [`Switch::confirm_kill`]: killed, with nothing to be called.
const NO_CONFIRM: *mut c_void = ptr::without_provenance_mut(1);
/// In [`Switch::confirm_kill`]: the callback is done, and leaves the rest to the killer.
const LEFT: *mut c_void = ptr::without_provenance_mut(2);

/// What a transition needs.
pub(super) struct Switch {
    /// To be called when the switch to atomic mode is done, or null. It is [`BUSY`]'s owner's.
    confirm: Atomic<*mut c_void>,
    /// To be called when the reference is closed. Null, unless it is dying and not closed.
    confirm_kill: Atomic<*mut c_void>,
    rcu: RcuHead,
}

impl Switch {
    #[inline]
    pub(super) const fn new() -> Self {
        Self {
            confirm: Atomic::new(ptr::null_mut()),
            confirm_kill: Atomic::new(ptr::null_mut()),
            rcu: RcuHead::new(),
        }
    }
}

impl Count {
    /// Marks the reference dead, and sees to it that it is closed, that `confirm` is then called,
    /// and that the initial reference is then put: after a grace period, or here and now if the
    /// count is in atomic mode. `false` if it is dead already.
    ///
    /// # Safety
    ///
    /// `this` is the beginning of a pinned, shared object that the caller holds. `confirm` is a
    /// function for its type.
    pub(crate) unsafe fn kill(this: NonNull<Self>, confirm: Option<NonNull<c_void>>) -> bool {
        // SAFETY: As the function requires.
        let count = unsafe { this.as_ref() };

        // As long as this lasts, no callback runs that comes to see `DEAD`, and the module of
        // `confirm` does not get past waiting for callbacks.
        let section = read_lock();
        let mut word = read_once(&count.word);
        loop {
            if word & DEAD != 0 {
                return false;
            }
            // `Full`: in per-CPU mode `call_rcu()` orders the flag before the callback; else this
            // is one end of the order that `resurrect()` and the callback rely on.
            match count.word.cmpxchg(word, word | DEAD | BUSY, Full) {
                Ok(_) => break,
                Err(found) => word = found,
            }
        }

        // The flag was ours to set, so the initial reference is ours to give away.
        let confirm = usable(confirm).unwrap_or(NO_CONFIRM);
        // SAFETY: It is there, so the count is not zero.
        let confirm_kill = unsafe { &count.switch().confirm_kill };
        if word & ATOMIC == 0 {
            confirm_kill.store(confirm, Relaxed);
            rcu::call_hurry(Callback(this));
            return true;
        }
        // In the midst of a switch to atomic mode, we and the callback both come here or to
        // `finish()`, and the second one closes. `Full`: it sees what the first one has done.
        if word & BUSY != 0 && confirm_kill.xchg(confirm, Full) != LEFT {
            return true;
        }
        count.close(this, confirm, true);
        drop(section);

        // SAFETY: `close()` left the initial reference to us.
        unsafe { Self::put(this, 1) };
        true
    }

    /// Takes the bias out unless that was done, calls `confirm`, and ends the transition. The
    /// caller owns it, and the initial reference.
    fn close(&self, this: NonNull<Self>, confirm: *mut c_void, take_bias: bool) {
        if take_bias {
            // The counters are added, and the initial reference is there.
            self.update(|old| match old.checked_sub(BIAS) {
                Some(references) if is_open(old) => references,
                _ => SATURATED,
            });
        }
        // SAFETY: The initial reference is there, so the count is not zero.
        unsafe { self.switch() }
            .confirm_kill
            .store(ptr::null_mut(), Relaxed);
        self.confirm(this, confirm);
        self.set_idle(read_once(&self.word));
    }

    /// Calls `confirm`, unless it is a constant that stands for none or its module is gone.
    fn confirm(&self, this: NonNull<Self>, confirm: *mut c_void) {
        let Some(confirm) = NonNull::new(confirm).filter(|_| confirm != NO_CONFIRM) else {
            return;
        };
        if let Some(running) = self.class.enter() {
            // SAFETY: The callers have the initial reference, or hold the object. By the
            // requirement of the functions that took it, `confirm` fits.
            unsafe { (running.ops().confirm)(this.cast(), confirm) };
        }
    }

    /// Ends the transition by a store, for the owner of a word that nobody else may change.
    fn set_idle(&self, word: usize) {
        // `Release` pairs with the `Acquire` of who waits for it, and with who sees by it that the
        // mode is another.
        self.word.store(word & !BUSY, Release);
        // Only `REINIT` counts have waiters on `word`.
        if read_once(&self.state) & REINIT != 0 {
            unload::wake_up(self.word.as_ptr());
        }
    }

    /// The callback ends a transition. Says whether the reference is closed now, and so its initial
    /// reference the caller's to put; `closing` is what is to be called then, and says that the
    /// bias is out.
    fn finish(&self, this: NonNull<Self>, closing: *mut c_void) -> bool {
        if !closing.is_null() {
            self.close(this, closing, false);
            return true;
        }

        // `Full`: whoever sees the mode sees all that was done to bring it about.
        let mut word = read_once(&self.word);
        while word & DEAD == 0 {
            match self.word.cmpxchg(word, word & !BUSY, Full) {
                Ok(_) => {
                    // The object may be gone now.
                    unload::wake_up(self.word.as_ptr());
                    return false;
                }
                Err(found) => word = found,
            }
        }

        // Killed meanwhile; see `kill()`.
        //
        // SAFETY: The initial reference is there, so the count is not zero.
        let confirm = unsafe { self.switch() }.confirm_kill.xchg(LEFT, Full);
        if confirm.is_null() {
            return false;
        }
        self.close(this, confirm, true);
        true
    }

    /// Sleeps while a transition is under way. Returns the word after it.
    fn wait_idle(&self) -> usize {
        loop {
            // `Acquire` pairs with the `Release` in `set_idle()`.
            let word = self.word.load(Acquire);
            if word & BUSY == 0 {
                return word;
            }
            // SAFETY: `word` is valid; who clears the flag wakes us up.
            unsafe { unload::wait_event(self.word.as_ptr(), BUSY, 0) };
        }
    }

    /// Switches to atomic mode, and calls `confirm` when that is done. Sleeps if another transition
    /// is under way.
    ///
    /// # Safety
    ///
    /// `this` is the beginning of a pinned, shared [`REINIT`] object that the caller holds.
    /// `confirm` is a function for its type.
    pub(crate) unsafe fn switch_to_atomic(this: NonNull<Self>, confirm: Option<NonNull<c_void>>) {
        // SAFETY: As the function requires.
        let count = unsafe { this.as_ref() };

        loop {
            let word = count.wait_idle();
            // As in `kill()`.
            let _section = read_lock();
            let confirm = usable(confirm);
            if word & ATOMIC != 0 {
                // `Full`: the confirmation comes after what made the mode.
                if count.word.cmpxchg(word, word | FORCE, Full).is_ok() {
                    return count.confirm(this, confirm.unwrap_or(NO_CONFIRM));
                }
            } else if count.word.cmpxchg(word, word | FORCE | BUSY, Full).is_ok() {
                // SAFETY: The object is `REINIT`.
                let slot = unsafe { &count.switch().confirm };
                slot.store(confirm.unwrap_or(NO_CONFIRM), Relaxed);
                // Whoever kills it now leaves the initial reference to the callback.
                return rcu::call_hurry(Callback(this));
            }
        }
    }

    /// Waits until no transition is under way.
    pub(crate) fn wait_switched(&self) {
        self.wait_idle();
    }

    /// Switches to per-CPU mode, or if the reference is dying, has it come back to life in that.
    /// Sleeps if another transition is under way.
    ///
    /// To be called for [`REINIT`] counts.
    pub(crate) fn switch_to_percpu(&self) {
        loop {
            let word = self.wait_idle();
            // `Full`: the counters are zero since the callback, which came before `BUSY` was
            // cleared. Who finds the word without `ATOMIC` finds them so, as in C's
            // `__percpu_ref_switch_to_percpu()`: by his address dependency.
            if self.word.cmpxchg(word, word & !FORCE, Full).is_ok() {
                return;
            }
        }
    }

    /// Begins another life, in the mode that the last one had. Sleeps if another transition is
    /// under way. `EINVAL` if the reference is alive, and with `at_zero`, `EBUSY` if the count is
    /// not zero.
    ///
    /// To be called for [`REINIT`] counts.
    pub(crate) fn resurrect(&self, at_zero: bool) -> Result {
        let word = loop {
            let word = self.wait_idle();
            if word & DEAD == 0 {
                return Err(EINVAL);
            }
            // `Full`: this is the only resurrection, and sees what the kill has done.
            if self.word.cmpxchg(word, word | BUSY, Full).is_ok() {
                break word;
            }
        };

        if at_zero && !self.is_zero() {
            self.set_idle(word);
            return Err(EBUSY);
        }
        if self.update(|old| {
            if old <= LIMIT {
                old + 1 + BIAS
            } else {
                SATURATED
            }
        }) == 0
        {
            // The last life has come to its end, so this one needs a hold of its own. `Relaxed`:
            // the handle has one, too, so nothing ends meanwhile.
            self.state.add(1, Relaxed);
        }
        // As for `switch_to_percpu()`, the counters are zero.
        self.set_idle(word & !DEAD);
        Ok(())
    }
}

/// A confirmation that may still be called; none, if it lies in a module that is at its end. In an
/// RCU read-side critical section, which the end of the module waits for.
fn usable(confirm: Option<NonNull<c_void>>) -> Option<*mut c_void> {
    let confirm = confirm?.as_ptr();
    if rcu::is_closing(confirm) {
        pr_warn_once!("confirmation lies in an unloaded module: not calling it\n");
        return None;
    }
    Some(confirm)
}

/// A switch to atomic mode, on its way to be completed.
///
/// # Invariants
///
/// Owns [`BUSY`]. If the count is killed, now or later, it owns the initial reference, too, unless
/// `finish` and the killer agree otherwise; if it is not, that reference is there.
struct Callback(NonNull<Count>);

// SAFETY: A reference may be put on any thread.
unsafe impl Send for Callback {}

// SAFETY: The object is pinned and alive, as it is referenced. By the type invariant, nobody else
// uses its `rcu`.
unsafe impl RcuPointer for Callback {
    fn into_head(self) -> NonNull<RcuHead> {
        // SAFETY: The object is alive, and its `phase` a `Switch`. No field's address is null.
        unsafe {
            let switch = (&raw mut (*self.0.as_ptr()).phase).cast::<Switch>();
            NonNull::new_unchecked(&raw mut (*switch).rcu)
        }
    }

    unsafe fn from_head(head: NonNull<RcuHead>) -> Self {
        // SAFETY: By the function's requirement, `head` lies in the `phase` of a count.
        let this = unsafe {
            let switch = container_of!(head.as_ptr(), Switch, rcu);
            container_of!(switch.cast::<Phase>(), Count, phase)
        };

        // SAFETY: Nor is a count's address null.
        //
        // INVARIANT: What `into_head` gave up.
        Self(unsafe { NonNull::new_unchecked(this) })
    }

    /// All CPUs see [`ATOMIC`]: takes the count from the CPUs to the atomic.
    #[doc(alias("percpu_ref_switch_to_atomic_rcu", "percpu_ref_kill_rcu"))]
    fn run(self) {
        let this = self.0;
        // SAFETY: By the type invariant, there is a reference.
        let count = unsafe { this.as_ref() };
        // SAFETY: Therefore, the count is not zero.
        let switch = unsafe { count.switch() };

        // SAFETY: This is the callback. Who used the counters did so in a critical section, and
        // that was over before the grace period was; it orders their last writes before our reads.
        let mut counters = unsafe { Count::counters(read_once(&count.word)) };
        let mut percpu = 0u64;
        for (_, counter) in counters.iter_mut() {
            percpu = percpu.wrapping_add(mem::take(counter.get_mut()));
        }
        if read_once(&count.state) & REINIT == 0 {
            // SAFETY: Not used after this; the object lives once.
            unsafe { ManuallyDrop::drop(&mut counters) };
        }

        // Null if it is not killed, or the killer is only about to leave it here. `Acquire` pairs
        // with the `Full` of a killer that has.
        let closing = switch.confirm_kill.load(Acquire);
        let bias = if closing.is_null() { 0 } else { BIAS };
        // The whole sum, and in the same step the bias: a part of the sum, or the sum after the
        // bias, could bring the atomic to zero, which a put would take for the end.
        //
        // `Full` pairs with that in `put()`: the puts before the switch, which the grace period has
        // ordered before us, come before the end of the object, whoever it is that brings it.
        let new = |old: u64| {
            let new = old.wrapping_add(percpu).wrapping_sub(bias);
            let references = new.wrapping_sub(BIAS - bias);
            if is_valid(old) && (1..=LIMIT).contains(&references) {
                new
            } else {
                SATURATED
            }
        };
        let global = count.update(new);
        // SAFETY: Prints two numbers.
        unsafe { rust_percpu_ref_pr_debug_sum(global, percpu) };
        if new(global) == SATURATED && is_valid(global) {
            let global = global.wrapping_sub(BIAS) as i64;
            do_once_lite! {
                count.report(format_args!(
                    "{} references after the switch to atomic mode: global {global} percpu {}",
                    global.wrapping_add(percpu as i64),
                    percpu as i64
                ));
            }
        }

        // Only `REINIT` counts are switched without being killed.
        if read_once(&count.state) & REINIT != 0 {
            count.confirm(this, switch.confirm.xchg(ptr::null_mut(), Relaxed));
        }
        if count.finish(this, closing) {
            // SAFETY: We own the initial reference.
            unsafe { Count::put(this, 1) };
        }
    }
}

// SPDX-License-Identifier: GPL-2.0

//! How a count changes its mode, dies and lives again.
//!
//! [`Count::word`] has three flags; without any, the count is in per-CPU mode.
//!
//! - [`DEAD`]: killed or frozen, and not brought back to life since.
//! - [`FORCE`]: atomic mode was asked for, and stays across death and resurrection.
//! - [`BUSY`]: a transition is under way, and has an owner: the RCU callback, or a thread that
//!   closes, revives or confirms. While the flag is set, only its owner changes the word, with one
//!   exception: a kill does not wait, so it sets [`DEAD`] during a switch to atomic mode. The
//!   callback and the killer then agree by [`Count::handover`] which of them closes.
//!
//! The word of an object that lives once changes only once: the killer sets [`DEAD`]. It and the
//! callback need no [`BUSY`], and where no confirmation is owed, the callback adds the counters,
//! closes and puts the initial reference in one step.
//!
//! So there is no lock that a release or a confirmation could run under, and counts that switch at
//! the same time do not wait for each other.
//!
//! # What is asked for, and what is
//!
//! [`Count::state`] says whether the reference must be dead ([`is_dead`]): it was killed, or there
//! is a freezer. [`DEAD`] follows. If the object lives once, that is all. Else, a thread that makes
//! the state dead calls [`Count::begin_end`] after that. A state becomes alive only in
//! [`Count::follow`], by the owner of [`BUSY`] while [`DEAD`] is set, which then clears [`DEAD`].
//! All of these steps are fully ordered, so of two threads that go in opposite directions, at least
//! one sees what the other has done, and the last state wins (litmus: killer-after-reviver)
//! (litmus: freezer-or-reviver).
//!
//! Two flags keep a thread that is slow from ending a life that nothing has killed. [`KILLING`]
//! says that a killer has not set [`DEAD`] yet, and keeps the state from becoming alive.
//! [`REVIVING`] says that a thread has made the state alive and has not cleared [`DEAD`] yet. A
//! killer that finds one of them leaves the rest to the thread that has it. A freezer needs
//! neither: it keeps the state dead by itself.
//!
//! # The grace period
//!
//! The callback may add the counters up when no get or put that has read the word before the flag
//! was set is still to count. Each is in a [`Section`](super::count::Section). For a
//! `Section::Preempt`, a grace period of RCU ends all of them.
//!
//! A `Section::Tasks` is entered by any code that RCU is watching, with preemption enabled or not:
//!
//! - In a task other than the idle ones, it ends before the task next sleeps. If it is running, or
//!   preempted, when the scan of RCU Tasks comes to it, it is on a run queue, and held out for
//!   until it has switched voluntarily (`rcu_tasks_pertask()`, `check_holdout_task()` in
//!   kernel/rcu/tasks.h); a preemption does not count as that (`rcu_tasks_classic_qs()`). A task
//!   that exits is held out for, or has preemption disabled (`rcu_tasks_postscan()`). An interrupt
//!   that the task takes in user space, or in `cond_resched_tasks_rcu_qs()`, has a section of its
//!   own.
//! - In an interrupt, a softirq that is run at its end, and an idle task, which RCU Tasks does not
//!   wait for, preemption is disabled, so that it lies in a read-side critical section of RCU. On
//!   PREEMPT_RT, softirqs and most interrupts run in tasks.
//!
//! [`call_tasks`](rcu::call_tasks) waits for the one, and then for the other. A section that begins
//! after the beginning of the respective grace period sees the flag: RCU Tasks begins with a
//! `synchronize_rcu()` before its scan (`rcu_tasks_pregp_step()`). What else RCU Tasks takes for
//! quiescent, a tick in user space, a guest, and points between softirqs, lies in no section. On
//! arm64, a task that was migrated between finding the counter and changing it changes that of
//! another CPU, by an instruction or a loop that is atomic for all CPUs, and the sum is the same.
//!
//! # The end of a transition
//!
//! To close an object that may live more than once, a thread or callback does these steps: it takes
//! the bias out, which turns the initial reference into [`INITIAL`](super::value::INITIAL); it
//! confirms; it clears [`BUSY`]; it puts the initial reference; it wakes up the threads that wait
//! for the transition; and if the count fell to zero, it releases. The initial reference does not
//! count as one meanwhile: [`Count::is_zero`] is true as soon as the others are gone, and no new
//! one can be had. But it keeps the object alive, and it keeps the release from running while
//! [`BUSY`] is set, since a release may revive the object.
//!
//! C source: [`lib/percpu-refcount.c`](srctree/lib/percpu-refcount.c)

use super::{
    count::{
        change,
        is_dead,
        report,
        seconds,
        update,
        Count,
        CONFIRM,
        FREEZER,
        FREEZERS_MASK,
        KILLED,
        KILLING,
        LIFE,
        NOTIFY,
        REINIT,
        REVIVING,
        TASKS, //
    },
    value::{
        self,
        is_closing,
        is_valid,
        is_zero,
        BIAS,
        SATURATED, //
    },
    wait::Until,
    word::{
        Word,
        BUSY,
        DEAD,
        FORCE, //
    }, //
};
use crate::{
    bindings,
    do_once_lite,
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Full,
            Relaxed,
            Release, //
        },
        rcu::{
            self,
            impl_rcu_pointer,
            RcuHead,
            RcuPointer, //
        }, //
    },
    time::{
        delay::fsleep,
        Delta, //
    }, //
};
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

/// In [`Count::handover`]: neither the killer nor the callback has come to it.
pub(super) const NO_KILLER: u32 = 0;
/// In [`Count::handover`]: the killer leaves it to the callback to close.
const KILLED_FIRST: u32 = 1;
/// In [`Count::handover`]: the callback leaves it to the killer to close.
const CALLBACK_FIRST: u32 = 2;

impl Count {
    /// Kills the reference. After a grace period, or in here if the count is in atomic mode, it is
    /// closed, confirmed if `confirm`, and the initial reference is put. Returns `false` if the
    /// reference was killed already.
    ///
    /// # Safety
    ///
    /// `this` must be the beginning of a pinned, shared object that the caller has the handle of.
    pub(super) unsafe fn kill(this: NonNull<Self>, confirm: bool) -> bool {
        // SAFETY: The caller has the handle.
        let count = unsafe { this.as_ref() };

        let confirm = if confirm { CONFIRM } else { 0 };
        let killing = |state| if state & REINIT != 0 { KILLING } else { 0 };
        let old = change(&count.state, |state| {
            (state & KILLED == 0).then(|| state | KILLED | confirm | killing(state))
        });
        let Ok(old) = old else {
            return false;
        };
        count.class.sub_unkilled();
        if old & REINIT == 0 {
            // SAFETY: The caller has the handle, and has killed the object, which lives once.
            unsafe { Self::end_once(this, old) };
        } else if old & (KILLING | REVIVING) == 0 {
            // SAFETY: The caller has the handle. The state is dead, and `KILLING` keeps it so.
            unsafe { Self::end_killed(this) };
        } // Else, another thread that has the flag ends the life for us, too.
        true
    }

    /// Ends the life of an object that lives once. Nothing else changes its word: only one kill
    /// succeeds, and it is not frozen and does not switch.
    ///
    /// # Safety
    ///
    /// `this` must be the beginning of a pinned, shared object that lives once. The caller must
    /// have its handle, and must just have set [`KILLED`] in its state, which was `state` before.
    #[inline(never)] // It queues a callback: see `RcuPointer::IN_KERNEL_CRATE`.
    unsafe fn end_once(this: NonNull<Self>, state: u64) {
        // SAFETY: The caller has the handle.
        let count = unsafe { this.as_ref() };

        count.killed_at.store(seconds(), Relaxed);
        // `Release` pairs with the `Acquire` in `killed_ago()` (litmus: killed-ago). `call_rcu()`
        // orders the flag before the grace period (litmus: put-before-callback).
        let word = count.word.load(Relaxed);
        count.word.store(word.with(DEAD), Release);
        // INVARIANT: We have killed the reference, so we own the initial reference.
        if state & TASKS != 0 {
            rcu::call_tasks(Callback(this));
        } else {
            rcu::call_hurry(Callback(this));
        }
    }

    /// Ends the life of a reference that was killed, and clears [`KILLING`] in the state.
    ///
    /// # Safety
    ///
    /// `this` must be the beginning of a pinned, shared object that lives more than once, and that
    /// the caller has a hold of. Its state must be dead, and must stay so while [`KILLING`] is set.
    unsafe fn end_killed(this: NonNull<Self>) {
        // SAFETY: By the safety requirements of this function, the state is dead.
        if unsafe { Self::begin_end(this, KILLING) } {
            return;
        }
        // A freezer has set `DEAD`.
        //
        // SAFETY: The caller has a hold.
        unsafe {
            clear(Self::state_of(this), KILLING);
            Self::confirm_if_idle(this);
        }
    }

    /// Sets [`DEAD`], clears `killing` in the state, and lets this life end. Returns `false` and
    /// does nothing if [`DEAD`] is set already.
    ///
    /// # Safety
    ///
    /// `this` must be the beginning of a pinned, shared object that lives more than once, and that
    /// the caller has a hold of. Its state must be dead, and must stay so until [`DEAD`] is set.
    #[inline(never)] // It queues a callback: see `RcuPointer::IN_KERNEL_CRATE`.
    unsafe fn begin_end(this: NonNull<Self>, killing: u64) -> bool {
        // SAFETY: The caller has a hold.
        let count = unsafe { this.as_ref() };

        let mut word = count.word.load(Relaxed);
        loop {
            if word.has(DEAD) {
                return false;
            }
            // `Full`: in per-CPU mode `call_rcu()` orders the flag before the callback; else this
            // is one end of the order that `follow()` and the callback rely on
            // (litmus: handover).
            match count.word.cmpxchg(word, word.with(DEAD.union(BUSY)), Full) {
                Ok(_) => break,
                Err(found) => word = found,
            }
        }

        // Before the release, which may revive the object. We set `DEAD`, so nothing revives it
        // before this life is closed.
        clear(&count.state, killing);
        // We set `DEAD`, so we own the initial reference.
        count.killed_at.store(seconds(), Relaxed);
        if word.is_percpu() {
            count.handover.store(KILLED_FIRST, Relaxed);
            rcu::call_hurry(Callback(this));
            return true;
        }
        // During a switch to atomic mode, both we and its owner come here or to `finish()`, and the
        // second one closes. `Full`: it sees what the first one has done (litmus: handover). A
        // grace period would not order the two, since the one that the callback waited for may have
        // begun before us.
        if word.has(BUSY) && count.handover.xchg(KILLED_FIRST, Full) != CALLBACK_FIRST {
            return true;
        }
        // SAFETY: We own the initial reference, and `BUSY`.
        unsafe { Self::close(this, true) };
        true
    }

    /// Closes the reference, and puts the initial reference: see the head of this file. Takes the
    /// bias out if that was not done.
    ///
    /// # Safety
    ///
    /// `this` must be valid, and live more than once. The caller must own [`BUSY`] and the initial
    /// reference, and gives both up.
    unsafe fn close(this: NonNull<Self>, take_bias: bool) {
        // SAFETY: The initial reference keeps the object alive, until it is put.
        let (word, atomic, class) = unsafe {
            (
                Self::word_of(this),
                Self::atomic_of(this),
                Self::class_of(this),
            )
        };
        if take_bias {
            update(atomic, value::close);
        }
        // The `Full` in `set_idle()` orders the store before the next transition
        // (litmus: handover-reset).
        //
        // SAFETY: The initial reference keeps the object alive.
        unsafe {
            (*this.as_ptr()).handover.store(NO_KILLER, Relaxed);
            Self::confirm(this);
            Self::set_idle(this, word.load(Relaxed));
        }
        // A reference must not be used when the object is gone.
        let waited_for = ptr::from_ref(word);

        // `Full`: as in `put()` (litmus: release-sees-all).
        let old = update(atomic, value::put_initial);
        // If there are references left, the object may be gone from here on.
        class.waiters().wake_up(waited_for);
        if value::put_initial(old) == 0 {
            // SAFETY: The count just fell to zero, by our put.
            unsafe { Self::release(this) };
        }
    }

    /// Calls the confirmation of the kill, if it is owed and the object's module is there.
    ///
    /// # Safety
    ///
    /// `this` must be the beginning of an object that is not dropped before this returns. The
    /// reference must be closed. The object must live once, or the caller must own [`BUSY`], so
    /// that it stays so.
    unsafe fn confirm(this: NonNull<Self>) {
        // SAFETY: By the safety requirements of this function, the object is there.
        let count = unsafe { this.as_ref() };
        let is_owed = change(&count.state, |state| {
            (state & CONFIRM != 0).then_some(state & !CONFIRM)
        })
        .is_ok();

        if is_owed {
            if let Some(running) = count.class.enter() {
                // SAFETY: By the safety requirements of this function, the object is there.
                unsafe { (running.ops().confirmed)(this.cast()) };
            }
        }
    }

    /// Calls the confirmation of the kill, if it is owed, the reference is closed, and no
    /// transition is under way. If one is, its owner calls it.
    ///
    /// # Safety
    ///
    /// `this` must be the beginning of an object that is not dropped before this returns.
    unsafe fn confirm_if_idle(this: NonNull<Self>) {
        // SAFETY: By the safety requirements of this function, the object is there.
        let count = unsafe { this.as_ref() };
        loop {
            // `Relaxed`, after an operation of the caller that was `Full`: of a killer and a thread
            // in `set_idle()`, the killer sees here that `BUSY` was cleared, or the thread that has
            // cleared it sees that a confirmation is owed (litmus: confirmation-not-lost).
            let word = count.word.load(Relaxed);
            if !word.has(DEAD) || word.has(BUSY) || count.state.load(Relaxed) & CONFIRM == 0 {
                return;
            }
            // `Full`: the confirmation comes after the reference was closed
            // (litmus: confirmation-after-close).
            if count.word.cmpxchg(word, word.with(BUSY), Full).is_ok() {
                // SAFETY: By the safety requirements of this function, the object is there. The
                // reference is closed, since it is dead and the word was idle, and we own `BUSY`.
                unsafe { Self::confirm(this) };
                count.word.xchg(word, Full);
                count.wake_up_idle();
            }
        }
    }

    /// Calls the confirmation of the switch, if it is owed and the object's module is there.
    ///
    /// # Safety
    ///
    /// `this` must be the beginning of an object that is not dropped before this returns.
    unsafe fn notify(this: NonNull<Self>) {
        // SAFETY: By the safety requirements of this function, the object is there.
        let count = unsafe { this.as_ref() };
        let is_owed = change(&count.state, |state| {
            (state & NOTIFY != 0).then_some(state & !NOTIFY)
        })
        .is_ok();

        if is_owed {
            if let Some(running) = count.class.enter() {
                // SAFETY: By the safety requirements of this function, the object is there.
                unsafe { (running.ops().switched)(this.cast()) };
            }
        }
    }

    /// Ends a transition: sets the word to `word` without [`BUSY`]. Does not wake up the threads
    /// that wait for it.
    ///
    /// # Safety
    ///
    /// `this` must be the beginning of an object that is not dropped before this returns. The
    /// caller must own [`BUSY`], and gives it up. If `word` has [`DEAD`], the reference must be
    /// closed.
    unsafe fn set_idle(this: NonNull<Self>, word: Word) {
        // `Full` pairs with the `Acquire` of threads that wait for it, and with those that see by
        // it that the mode is another (litmus: lives-do-not-mix). The check below needs it, too
        // (litmus: confirmation-not-lost).
        //
        // SAFETY: By the safety requirements of this function, the object is there.
        unsafe {
            Self::word_of(this).xchg(word.without(BUSY), Full);
            // A killer that found the flag set has left its confirmation to us.
            Self::confirm_if_idle(this);
        }
    }

    /// Ends a switch to atomic mode, or closes if the reference was killed meanwhile and the killer
    /// has left that to us. With `closing`, the bias is out already.
    ///
    /// # Safety
    ///
    /// `this` must be the beginning of an object that is alive. The caller must own [`BUSY`] and
    /// what a killer may have left to it, and gives both up.
    unsafe fn finish(this: NonNull<Self>, closing: bool) {
        if closing {
            // SAFETY: The killer left the initial reference to us.
            unsafe { Self::close(this, false) };
            return;
        }

        // SAFETY: By the safety requirements of this function, the object is there.
        let (word_of, class) = unsafe { (Self::word_of(this), Self::class_of(this)) };
        // A reference must not be used when the object is gone.
        let waited_for = ptr::from_ref(word_of);
        // `Full`: a CPU that sees the mode sees all that was done to bring it about
        // (litmus: counters-are-zero).
        let mut word = word_of.load(Relaxed);
        while !word.has(DEAD) {
            match word_of.cmpxchg(word, word.without(BUSY), Full) {
                Ok(_) => {
                    // The object may be gone now.
                    class.waiters().wake_up(waited_for);
                    return;
                }
                Err(found) => word = found,
            }
        }

        // Killed meanwhile; see `begin_end()` (litmus: handover).
        //
        // SAFETY: The initial reference keeps the object alive, until the killer or we put it.
        let killer = unsafe { &(*this.as_ptr()).handover }.xchg(CALLBACK_FIRST, Full);
        if killer == KILLED_FIRST {
            // SAFETY: The killer left the initial reference to us.
            unsafe { Self::close(this, true) };
        }
    }

    /// Sleeps while a transition is under way. Returns the word after it.
    ///
    /// Must be called for [`REINIT`] counts.
    fn wait_idle(&self) -> Word {
        // `Acquire` pairs with the `Full` of `set_idle()` and `finish()`. A word that is idle was
        // so before or after any `close()` that the atomic tells of, so in this order the end of a
        // transition is not missed (litmus: closing-is-seen).
        let idle = || {
            let word = self.word.load(Acquire);
            let is_idle = !word.has(BUSY) && !is_closing(self.atomic.load(Relaxed));
            is_idle.then_some(word)
        };
        loop {
            if let Some(word) = idle() {
                return word;
            }
            // Without a bound, the wait does not fail.
            let _ =
                self.class
                    .waiters()
                    .wait_event(&raw const self.word, Until::Done, None, || idle().is_some());
        }
    }

    /// Wakes up the threads that wait until no transition is under way.
    fn wake_up_idle(&self) {
        self.class.waiters().wake_up(&raw const self.word);
    }

    /// Switches to atomic mode, and with `notify`, has the object told when that is done. Sleeps if
    /// another transition is under way.
    ///
    /// # Safety
    ///
    /// `this` must be the beginning of a pinned, shared [`REINIT`] object that the caller has the
    /// handle of.
    #[inline(never)] // It queues a callback: see `RcuPointer::IN_KERNEL_CRATE`.
    pub(super) unsafe fn switch_to_atomic(this: NonNull<Self>, notify: bool) {
        // SAFETY: The caller has the handle.
        let count = unsafe { this.as_ref() };

        loop {
            let word = count.wait_idle();
            let is_atomic = !word.is_percpu();
            if is_atomic && !notify {
                // `Full`: what follows comes after what made the mode, as for `wait_idle()`
                // (litmus: closing-is-seen).
                if count.word.cmpxchg(word, word.with(FORCE), Full).is_ok() {
                    return;
                }
                continue;
            }
            // `Full`: what follows comes after what made the mode (litmus: handover-reset). The
            // mode cannot be changed before the object was told, as we own `BUSY`.
            let new = word.with(FORCE.union(BUSY));
            if count.word.cmpxchg(word, new, Full).is_err() {
                continue;
            }
            if notify {
                let _ = change(&count.state, |state| Some(state | NOTIFY));
            }
            if !is_atomic {
                // A thread that kills now leaves the initial reference to the callback.
                rcu::call_hurry(Callback(this));
                return;
            }
            // SAFETY: The caller has the handle of an object that lives more than once. We own
            // `BUSY`. Without `DEAD`, a killer may leave the initial reference to us; with it, the
            // reference is closed, since the word was idle.
            unsafe {
                Self::notify(this);
                if !word.has(DEAD) {
                    Self::finish(this, false);
                } else {
                    Self::set_idle(this, new);
                    count.wake_up_idle();
                }
            }
            return;
        }
    }

    /// Waits until no transition is under way.
    ///
    /// Must be called for [`REINIT`] counts.
    pub(super) fn wait_switched(&self) {
        self.wait_idle();
    }

    /// Switches to per-CPU mode, or if the reference is dying, lets its next life begin in that
    /// mode. Sleeps if another transition is under way.
    ///
    /// Must be called for [`REINIT`] counts.
    pub(super) fn switch_to_percpu(&self) {
        loop {
            let word = self.wait_idle();
            // The counters are zero since the callback, which came before `BUSY` was cleared. A CPU
            // that finds the word without a flag finds them so by its address dependency, as in C's
            // `__percpu_ref_switch_to_percpu()` (litmus: counters-are-zero). For this, `Relaxed`
            // would do. `Full`: what is counted in the new mode comes after the change
            // (litmus: references-before-switch).
            if self.word.cmpxchg(word, word.without(FORCE), Full).is_ok() {
                return;
            }
        }
    }

    /// Takes a kill back. If the reference is not frozen, another life begins, in the mode that the
    /// last one had. Sleeps if another transition is under way.
    ///
    /// Fails with `EINVAL` if the reference was not killed, and with `at_zero`, with `EBUSY` if the
    /// count is not zero.
    ///
    /// # Safety
    ///
    /// `this` must be the beginning of a pinned, shared [`REINIT`] object that the caller has the
    /// handle of.
    pub(super) unsafe fn resurrect(this: NonNull<Self>, at_zero: bool) -> Result {
        // SAFETY: The caller has the handle.
        let count = unsafe { this.as_ref() };

        // SAFETY: The caller has the handle.
        unsafe {
            Self::follow(this, |state| {
                if at_zero && !count.is_zero() {
                    Err(EBUSY)
                } else if state & KILLED == 0 {
                    Err(EINVAL)
                } else {
                    Ok(state & !KILLED)
                }
            })
        }?;
        count.class.add_unkilled();
        Ok(())
    }

    /// Freezes the reference: like a kill, but for as long as there are freezers. Sleeps until all
    /// references are gone and the release has returned.
    ///
    /// # Safety
    ///
    /// `this` must be the beginning of a pinned, shared [`REINIT`] object that the caller has the
    /// handle of. [`Count::thaw`] must be called once for each call of this.
    pub(super) unsafe fn freeze(this: NonNull<Self>) {
        // SAFETY: The caller has the handle.
        let count = unsafe { this.as_ref() };

        // If there are as many freezers as can be counted, the object stays frozen. Else this one
        // keeps the state dead.
        let _ = change(&count.state, |state| {
            (state & FREEZERS_MASK != FREEZERS_MASK).then(|| state + FREEZER)
        });
        // A thread that revives owns `BUSY`, so it is waited for here, or sees the freezer.
        while !count.wait_idle().has(DEAD) {
            // SAFETY: The caller has the handle. The freezer keeps the state dead.
            unsafe { Self::begin_end(this, 0) };
        }
        // Without a bound, the wait does not fail.
        let _ = count.wait_released(Until::Done, None);
    }

    /// Takes a freezer away. If it was the last one and the reference was not killed, another life
    /// begins. Sleeps if another transition is under way.
    ///
    /// # Safety
    ///
    /// `this` must be the beginning of an object for which [`Count::freeze`] was called. The caller
    /// must not use the object after this.
    pub(super) unsafe fn thaw(this: NonNull<Self>) {
        // The freezer keeps the reference dead, so the change does not fail.
        //
        // SAFETY: The freezer keeps the memory until the state is changed.
        let _ = unsafe {
            Self::follow(this, |state| {
                let is_full = state & FREEZERS_MASK == FREEZERS_MASK;
                Ok(if is_full { state } else { state - FREEZER })
            })
        };
    }

    /// Changes the state of a dead reference to what `new` makes of it, and lets another life begin
    /// if the state is alive then. Sleeps if another transition is under way. Fails with `EINVAL`
    /// if the reference lives, and as `new` does.
    ///
    /// # Safety
    ///
    /// `this` must be the beginning of a pinned, shared [`REINIT`] object that the caller has a
    /// hold of until the state is changed. `new` may take that hold away, if the caller does not
    /// use the object after this.
    unsafe fn follow(this: NonNull<Self>, new: impl Fn(u64) -> Result<u64>) -> Result {
        // SAFETY: The caller has a hold, and after the state was changed, we have one.
        let count = unsafe { this.as_ref() };

        let (word, result) = loop {
            let word = count.wait_idle();
            if !word.has(DEAD) {
                if !is_dead(count.state.load(Relaxed)) {
                    return Err(EINVAL);
                }
                // A thread has killed the reference, and is about to set `DEAD`.
                fsleep(Delta::from_micros(10));
                continue;
            }
            // `Full`: of several threads this is the only one, and it sees what the kill has done
            // (litmus: closing-is-seen).
            if count.word.cmpxchg(word, word.with(BUSY), Full).is_err() {
                continue;
            }
            // Between the two, another life may have begun and be closing now.
            let is_closing = is_closing(count.atomic.load(Relaxed));
            let mut state = count.state.load(Relaxed);
            let result = loop {
                if state & CONFIRM != 0 {
                    // The confirmation of a kill comes before that is taken back.
                    //
                    // SAFETY: The caller has a hold of an object that lives more than once. The
                    // reference is closed, and we own `BUSY`.
                    unsafe { Self::confirm(this) };
                    state = count.state.load(Relaxed);
                    continue;
                }
                let to = match new(state) {
                    _ if is_closing => break None,
                    Ok(to) if is_dead(to) => to,
                    Ok(_) if state & (KILLING | REVIVING) != 0 => break None,
                    Ok(to) => to | REVIVING,
                    Err(error) => break Some(Err(error)),
                };
                // With a hold of our own until the end. It is added in the same step, so that a
                // killer that leaves the rest to us waits for the life that it has killed.
                //
                // `Full`: see the head of this file (litmus: freezer-or-reviver).
                match count.state.cmpxchg(state, to + LIFE, Full) {
                    Ok(_) => break Some(Ok(to)),
                    Err(found) => state = found,
                }
            };
            if let Some(result) = result {
                break (word, result);
            }
            // SAFETY: The caller has a hold of an object that lives more than once. We own `BUSY`,
            // and the reference is closed.
            unsafe { Self::set_idle(this, word) };
            count.wake_up_idle();
            fsleep(Delta::from_micros(10));
        };

        if !result.is_ok_and(|state| !is_dead(state)) {
            // SAFETY: The caller has a hold of an object that lives more than once. We own `BUSY`,
            // and the reference is closed.
            unsafe { Self::set_idle(this, word) };
            count.wake_up_idle();
            if result.is_ok() {
                // SAFETY: The hold was added with the change of the state.
                unsafe { Self::drop_hold(this, LIFE, 0) };
            }
            return result.map(drop);
        }

        if is_zero(update(&count.atomic, value::revive)) {
            // The last life has ended, so this one needs a hold of its own. `Relaxed`: we have one,
            // too, so nothing ends meanwhile (litmus: hold-of-new-life).
            count.state.add(LIFE, Relaxed);
        }
        // The counters are zero, as for `switch_to_percpu()` (litmus: lives-do-not-mix).
        //
        // SAFETY: We have a hold of an object that lives more than once, and own `BUSY`.
        unsafe { Self::set_idle(this, word.without(DEAD)) };
        count.wake_up_idle();
        // A killer that came before this has set `KILLING` and left the rest to us. One that comes
        // later sees that `DEAD` was cleared: both are `Full` (litmus: killer-after-reviver).
        let old = change(&count.state, |state| Some(state & !REVIVING));
        if old.is_ok_and(|state| state & KILLING != 0) {
            // SAFETY: We have a hold. The state is dead, and `KILLING` keeps it so.
            unsafe { Self::end_killed(this) };
        }
        // SAFETY: The hold was added with the change of the state.
        unsafe { Self::drop_hold(this, LIFE, 0) };
        Ok(())
    }
}

/// Clears a flag.
fn clear(state: &Atomic<u64>, flag: u64) {
    let _ = change(state, |state| (state & flag != 0).then_some(state & !flag));
}

/// A switch to atomic mode, on its way to be completed.
///
/// # Invariants
///
/// If the object lives once, owns the initial reference. Else, owns [`BUSY`]; and if the count is
/// killed, now or later, the initial reference, too, unless `finish` and the killer agree
/// otherwise. Until it is put, the initial reference keeps the object alive.
struct Callback(NonNull<Count>);

// SAFETY: A reference may be put on any thread.
unsafe impl Send for Callback {}

impl_rcu_pointer! {
    // SAFETY: By the type invariant, the object is pinned and alive. By the invariants of `Count`,
    // its `rcu` belongs to the killer of an object that lives once, or to the owner of `BUSY`.
    unsafe impl RcuPointer for Callback(Count, rcu), Callback::complete
}

impl Callback {
    /// Takes the count from the CPUs to the atomic: all CPUs see the flag.
    #[doc(alias("percpu_ref_switch_to_atomic_rcu", "percpu_ref_kill_rcu"))]
    fn complete(self) {
        let this = self.0;
        // SAFETY: By the type invariant, the object is alive until the initial reference is put.
        let (word, atomic, state, handover): (_, _, _, &Atomic<u32>) = unsafe {
            (
                Count::word_of(this),
                Count::atomic_of(this),
                Count::state_of(this),
                &(*this.as_ptr()).handover,
            )
        };
        let is_reinit = state.load(Relaxed) & REINIT != 0;

        // The sections in which the counters were used have ended before the end of the grace
        // period, which orders their last writes before our reads (litmus: put-before-callback).
        //
        // SAFETY: This is the callback, so by the grace period no CPU uses the counters.
        let mut counters = unsafe { Count::counters(word.load(Relaxed)) };
        let mut percpu = 0u64;
        for (_, counter) in counters.iter_mut() {
            percpu = percpu.wrapping_add(mem::take(counter.get_mut()));
        }
        if !is_reinit {
            // SAFETY: The object lives once, so the counters are not used after this.
            unsafe { ManuallyDrop::drop(&mut counters) };
        }

        // `NO_KILLER` if it is not killed, or the killer is about to leave it here. `Relaxed`: what
        // a killer that has left it here has done is seen after the `Full` below
        // (litmus: handover).
        let closing = !is_reinit || handover.load(Relaxed) == KILLED_FIRST;
        // An object that lives once, and of whose kill no confirmation is owed, is closed, and its
        // initial reference is put, in one step.
        let at_once = !is_reinit && state.load(Relaxed) & CONFIRM == 0;
        // `Full` pairs with that in `put()`: the puts in atomic mode before this one, and those
        // before the switch, which the grace period has ordered before us, come before the end of
        // the object, whichever thread ends it. For this, `Acquire` would do
        // (litmus: release-sees-all). `Full` also orders the load of `handover`.
        let global = update(atomic, |old| {
            let new = value::add_counters(old, percpu, closing);
            if at_once {
                value::put_initial(new)
            } else {
                new
            }
        });
        // SAFETY: The function prints two numbers.
        unsafe { bindings::percpu_ref_pr_debug_sum(global, percpu) };
        if value::add_counters(global, percpu, closing) == SATURATED && is_valid(global) {
            let global = global.wrapping_sub(BIAS) as isize;
            do_once_lite! {
                report(
                    // SAFETY: The initial reference is not put, or the object is leaked.
                    unsafe { Count::class_of(this) },
                    format_args!(
                        "{} references after the switch to atomic mode: global {global} percpu {}",
                        global.wrapping_add(percpu as isize),
                        percpu as isize
                    ),
                );
            }
        }

        if is_reinit {
            // SAFETY: By the type invariant, the object is alive until `finish()`, and we own
            // `BUSY`.
            unsafe {
                Count::notify(this);
                Count::finish(this, closing);
            }
            return;
        }
        // The value that the initial reference was put from.
        let closed = if at_once {
            value::add_counters(global, percpu, closing)
        } else {
            // SAFETY: The reference is closed, and our initial reference keeps the object alive.
            unsafe { Count::confirm(this) };
            update(atomic, value::put_initial)
        };
        // If there are references left, the object may be gone.
        if value::put_initial(closed) == 0 {
            // SAFETY: The count just fell to zero, by our put.
            unsafe { Count::release(this) };
        }
    }
}

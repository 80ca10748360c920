// SPDX-License-Identifier: GPL-2.0

//! Transitions of a count: switches of its mode, kills and resurrections.
//!
//! [`Count::word`] has three flags. Without a flag, the count is in per-CPU mode.
//!
//! - [`DEAD`]: the reference is dying. It was killed or frozen, and has not been resurrected or
//!   thawed since.
//! - [`FORCE`]: atomic mode was asked for. The flag stays set across a kill and a resurrection.
//! - [`BUSY`]: a transition is in flight. Its owner is the RCU callback, or a thread that closes,
//!   confirms or begins another life. While the flag is set, only its owner changes the word, with
//!   one exception: since a kill does not wait, it sets [`DEAD`] during a switch to atomic mode.
//!   The RCU callback and the killer then use [`Count::handover`] to decide which of them closes
//!   the reference.
//!
//! The word of an object that lives once changes only once, when the killer sets [`DEAD`]. The
//! killer and the RCU callback of such an object need no [`BUSY`]. If no confirmation was asked
//! for, the RCU callback adds the counters, closes the reference and puts the initial reference in
//! one atomic operation.
//!
//! Hence there is no lock that is held during a release or a confirmation, and counts that switch
//! at the same time do not wait for each other.
//!
//! # The state and the word
//!
//! [`Count::state`] says whether the reference *must* be dying ([`is_dead`]): it was killed, or
//! there is a freezer. [`DEAD`] in the word follows the state. If the object lives once, nothing
//! else is needed. Otherwise, a thread that changes the state so that the reference must be dying
//! calls [`Count::begin_end`] after the change. Only [`Count::follow`] changes the state so that
//! the reference must be live. It does so as the owner of [`BUSY`] while [`DEAD`] is set, and then
//! clears [`DEAD`]. All of these operations are fully ordered. Therefore, of two threads that
//! change the state in opposite directions, at least one sees what the other has done, and the last
//! state wins (litmus: killer-after-reviver) (litmus: freezer-or-reviver).
//!
//! A thread in [`Count::follow`] that begins another life is called a *reviver*. Two flags keep a
//! slow thread from ending a life that was not killed. [`KILLING`] says that a killer has not set
//! [`DEAD`] yet, and keeps the state from becoming live. [`REVIVING`] says that a reviver has
//! changed the state and has not cleared [`DEAD`] yet. A killer that finds one of these flags
//! leaves the end of the life to the thread that has set the flag. A freezer needs no such flag,
//! because it keeps the reference dying by itself.
//!
//! # The grace period
//!
//! The RCU callback must not add up the counters before each get and put that read the word before
//! the flag was set has changed its counter. Each of them is in a
//! [`Section`](super::section::Section). A grace period of RCU waits for each `Section::Preempt`.
//!
//! A `Section::Tasks` can be entered by any code that RCU is watching, with preemption enabled or
//! not:
//!
//! - In a task other than the idle tasks, the section ends before the task next sleeps. If the task
//!   is running or preempted when the scan of RCU Tasks reaches it, the task is on a run queue. RCU
//!   Tasks then waits until the task has switched voluntarily (`rcu_tasks_pertask()`,
//!   `check_holdout_task()` in kernel/rcu/tasks.h). A preemption is no voluntary switch
//!   (`rcu_tasks_classic_qs()`). RCU Tasks also waits for a task that exits, or the task has
//!   preemption disabled (`rcu_tasks_postscan()`). An interrupt that a task takes in user space or
//!   in `cond_resched_tasks_rcu_qs()` has its own section.
//! - In an interrupt, in a softirq that runs at the end of an interrupt, and in an idle task,
//!   preemption is disabled, so the section is in a read-side critical section of RCU. RCU Tasks
//!   does not wait for these. On PREEMPT_RT, softirqs and most interrupts run in tasks.
//!
//! [`call_tasks`](rcu::call_tasks) waits for RCU Tasks, and then for RCU. A section that begins
//! after the start of either grace period sees the flag, because RCU Tasks calls
//! `synchronize_rcu()` before its scan (`rcu_tasks_pregp_step()`). The other quiescent states of
//! RCU Tasks are a tick in user space, a guest, and the points between softirqs. No section
//! contains any of them. On arm64, a task that is migrated between finding the counter and changing
//! it changes the counter of another CPU. The change is atomic for all CPUs, and the sum is the
//! same.
//!
//! # The end of a transition
//!
//! To close a reference whose object can have more than one life, a thread or RCU callback does
//! these steps:
//!
//! 1. It removes the bias, which turns the initial reference into
//!    [`INITIAL`](super::value::INITIAL).
//! 2. It calls the confirmation.
//! 3. It clears [`BUSY`].
//! 4. It puts the initial reference.
//! 5. It wakes up the threads that wait for the transition.
//! 6. If the count reached zero, it releases the object.
//!
//! Between the first and the fourth step, the initial reference does not count as a reference.
//! [`Count::is_zero`] is true as soon as the other references are put, and from then on, no
//! reference can be added. But the initial reference keeps the object alive until it is put. It
//! also keeps the release from running while [`BUSY`] is set, because a release may resurrect the
//! object.
//!
//! C source: [`lib/percpu-refcount.c`](srctree/lib/percpu-refcount.c)

use super::{
    count::{
        update,
        Count, //
    },
    report::{
        report,
        seconds, //
    },
    state::{
        change,
        is_dead,
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

/// In [`Count::handover`]: neither the killer nor the RCU callback has exchanged it.
pub(super) const NO_KILLER: u32 = 0;
/// In [`Count::handover`]: the killer was first, so the RCU callback must close the reference.
const KILLED_FIRST: u32 = 1;
/// In [`Count::handover`]: the RCU callback was first, so the killer must close the reference.
const CALLBACK_FIRST: u32 = 2;

impl Count {
    /// Kills the reference, and returns `false` if it was killed already.
    ///
    /// After a grace period, or in this call if the count is in atomic mode, the reference is
    /// closed, the confirmation is called if `confirm`, and the initial reference is put.
    ///
    /// # Safety
    ///
    /// `this` must be the beginning of a pinned, shared object, and the caller must have its
    /// handle.
    pub(super) unsafe fn kill(this: NonNull<Self>, confirm: bool) -> bool {
        // SAFETY: The caller has the handle, which keeps the memory.
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
            // SAFETY: The caller has the handle of the object, which lives once, and has just set
            // `KILLED`.
            unsafe { Self::end_once(this, old) };
        } else if old & (KILLING | REVIVING) == 0 {
            // SAFETY: The caller has the handle, which is a hold. The state has `KILLED`, and
            // `KILLING` keeps it set.
            unsafe { Self::end_killed(this) };
        } // Otherwise, the thread that has set the flag ends this life.
        true
    }

    /// Begins the end of the life of an object that lives once.
    ///
    /// No other code changes the word of this object: only one kill succeeds, and the object is not
    /// frozen and does not switch its mode.
    ///
    /// # Safety
    ///
    /// `this` must be the beginning of a pinned, shared object that lives once. The caller must
    /// have its handle, and must just have set [`KILLED`] in its state. `state` must be the state
    /// before that.
    #[inline(never)] // It queues a callback: see `RcuPointer::IN_KERNEL_CRATE`.
    unsafe fn end_once(this: NonNull<Self>, state: u64) {
        // SAFETY: The caller has the handle, which keeps the memory.
        let count = unsafe { this.as_ref() };

        count.killed_at.store(seconds(), Relaxed);
        // `Release` pairs with the `Acquire` in `killed_ago()` (litmus: killed-ago). `call_rcu()`
        // orders the flag before the grace period (litmus: put-before-callback).
        let word = count.word.load(Relaxed);
        count.word.store(word.with(DEAD), Release);
        // INVARIANT: We have set `DEAD`, so we own the initial reference, which the RCU callback
        // takes over.
        if state & TASKS != 0 {
            rcu::call_tasks(Callback(this));
        } else {
            rcu::call_hurry(Callback(this));
        }
    }

    /// Begins the end of the life of a killed reference, and clears [`KILLING`] in the state.
    ///
    /// # Safety
    ///
    /// `this` must be the beginning of a pinned, shared [`REINIT`] object, and the caller must have
    /// a hold of it. Its state must require a dying reference ([`is_dead`]), and must do so while
    /// [`KILLING`] is set.
    unsafe fn end_killed(this: NonNull<Self>) {
        // SAFETY: By the safety requirements of this function, the caller has a hold, and the state
        // requires a dying reference until `begin_end()` clears `KILLING`.
        if unsafe { Self::begin_end(this, KILLING) } {
            return;
        }
        // A freezer has set `DEAD` already.
        //
        // SAFETY: The caller has a hold of the object, which therefore is not dropped.
        unsafe {
            clear(Self::state_of(this), KILLING);
            Self::confirm_if_idle(this);
        }
    }

    /// Sets [`DEAD`], clears `killing` in the state, and begins the end of this life.
    ///
    /// Returns `false` and does nothing if [`DEAD`] is set already.
    ///
    /// # Safety
    ///
    /// `this` must be the beginning of a pinned, shared [`REINIT`] object, and the caller must have
    /// a hold of it. Its state must require a dying reference ([`is_dead`]), and must do so until
    /// [`DEAD`] is set.
    #[inline(never)] // It queues a callback: see `RcuPointer::IN_KERNEL_CRATE`.
    unsafe fn begin_end(this: NonNull<Self>, killing: u64) -> bool {
        // SAFETY: The caller has a hold, which keeps the memory.
        let count = unsafe { this.as_ref() };

        let mut word = count.word.load(Relaxed);
        loop {
            if word.has(DEAD) {
                return false;
            }
            // `Full`: in per-CPU mode `call_rcu()` orders the flag before the RCU callback.
            // Otherwise, this is one side of the order that `follow()` and the RCU callback rely on
            // (litmus: handover).
            match count.word.cmpxchg(word, word.with(DEAD.union(BUSY)), Full) {
                Ok(_) => break,
                Err(found) => word = found,
            }
        }

        // This comes before the release, because a release may resurrect the object. Since we have
        // set `DEAD`, no thread begins another life before this life is closed.
        clear(&count.state, killing);
        // We have set `DEAD`, so we own the initial reference.
        count.killed_at.store(seconds(), Relaxed);
        if word.is_percpu() {
            count.handover.store(KILLED_FIRST, Relaxed);
            rcu::call_hurry(Callback(this));
            return true;
        }
        // If a switch to atomic mode is in flight, its owner exchanges `handover` in `finish()`,
        // unless it has seen our value before. Whichever of us comes second closes the reference.
        // `Full` makes the writes of the first visible to the second (litmus: handover). A grace
        // period would not order the two, because the grace period that the RCU callback waited for
        // may have begun before our kill.
        if word.has(BUSY) && count.handover.xchg(KILLED_FIRST, Full) != CALLBACK_FIRST {
            return true;
        }
        // SAFETY: We own the initial reference and `BUSY`, which are not used after this.
        unsafe { Self::close(this, true) };
        true
    }

    /// Closes the reference and puts the initial reference.
    ///
    /// See [the end of a transition](self#the-end-of-a-transition). Removes the bias if
    /// `take_bias`.
    ///
    /// # Safety
    ///
    /// `this` must be a valid [`REINIT`] count. The caller must own [`BUSY`] and the initial
    /// reference, and must not use them after this. The bias must be in if `take_bias`, and must be
    /// removed if not.
    unsafe fn close(this: NonNull<Self>, take_bias: bool) {
        // SAFETY: The initial reference keeps the object alive until it is put below.
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
        // The `Full` in `set_idle()` orders this store before the next transition
        // (litmus: handover-reset).
        //
        // SAFETY: The initial reference keeps the object alive. We own `BUSY`, and the reference is
        // closed.
        unsafe {
            (*this.as_ptr()).handover.store(NO_KILLER, Relaxed);
            Self::confirm(this);
            Self::set_idle(this, word.load(Relaxed));
        }
        // The object may be freed below, so this must be a pointer and not a reference.
        let waited_for = ptr::from_ref(word);

        // `Full`: all uses of the object are ordered before the release, as in `put()`
        // (litmus: release-sees-all).
        let old = update(atomic, value::put_initial);
        // If there are references left, the object may be freed from here on.
        class.waiters().wake_up(waited_for);
        if value::put_initial(old) == 0 {
            // SAFETY: Our put took the count to zero.
            unsafe { Self::release(this) };
        }
    }

    /// Calls the confirmation of the kill if it was asked for.
    ///
    /// Does not call it if the object's module is unloaded.
    ///
    /// # Safety
    ///
    /// `this` must be the beginning of an object that is not dropped before this returns. The
    /// reference must be closed. The object must live once, or the caller must own [`BUSY`], so
    /// that the reference stays closed.
    unsafe fn confirm(this: NonNull<Self>) {
        // SAFETY: By the safety requirements of this function, the object is not dropped.
        let count = unsafe { this.as_ref() };
        let is_owed = change(&count.state, |state| {
            (state & CONFIRM != 0).then_some(state & !CONFIRM)
        })
        .is_ok();

        if is_owed {
            if let Some(running) = count.class.enter() {
                // SAFETY: By the safety requirements of this function, the object is not dropped.
                unsafe { (running.ops().confirmed)(this.cast()) };
            }
        }
    }

    /// Calls the confirmation of the kill if it was asked for, the reference is closed, and no
    /// transition is in flight.
    ///
    /// If a transition is in flight, its owner calls the confirmation.
    ///
    /// # Safety
    ///
    /// `this` must be the beginning of an object that is not dropped before this returns.
    unsafe fn confirm_if_idle(this: NonNull<Self>) {
        // SAFETY: By the safety requirements of this function, the object is not dropped.
        let count = unsafe { this.as_ref() };
        loop {
            // `Relaxed` is enough after an operation of the caller that was `Full`. Consider a
            // killer and a thread in `set_idle()`: either the killer sees here that `BUSY` was
            // cleared, or the thread that has cleared it sees that a confirmation was asked for
            // (litmus: confirmation-not-lost).
            let word = count.word.load(Relaxed);
            if !word.has(DEAD) || word.has(BUSY) || count.state.load(Relaxed) & CONFIRM == 0 {
                return;
            }
            // `Full`: the confirmation is ordered after the reference was closed
            // (litmus: confirmation-after-close).
            if count.word.cmpxchg(word, word.with(BUSY), Full).is_ok() {
                // SAFETY: By the safety requirements of this function, the object is not dropped.
                // The reference is closed, because the word had `DEAD` and no `BUSY`, and we own
                // `BUSY`.
                unsafe { Self::confirm(this) };
                count.word.xchg(word, Full);
                count.wake_up_idle();
            }
        }
    }

    /// Calls the confirmation of the switch if it was asked for.
    ///
    /// Does not call it if the object's module is unloaded.
    ///
    /// # Safety
    ///
    /// `this` must be the beginning of an object that is not dropped before this returns.
    unsafe fn notify(this: NonNull<Self>) {
        // SAFETY: By the safety requirements of this function, the object is not dropped.
        let count = unsafe { this.as_ref() };
        let is_owed = change(&count.state, |state| {
            (state & NOTIFY != 0).then_some(state & !NOTIFY)
        })
        .is_ok();

        if is_owed {
            if let Some(running) = count.class.enter() {
                // SAFETY: By the safety requirements of this function, the object is not dropped.
                unsafe { (running.ops().switched)(this.cast()) };
            }
        }
    }

    /// Ends a transition by setting the word to `word` without [`BUSY`].
    ///
    /// Does not wake up the threads that wait for the end of the transition.
    ///
    /// # Safety
    ///
    /// `this` must be the beginning of an object that is not dropped before this returns. The
    /// caller must own [`BUSY`], and loses it. If `word` has [`DEAD`], the reference must be
    /// closed.
    unsafe fn set_idle(this: NonNull<Self>, word: Word) {
        // `Full` pairs with the `Acquire` of threads that wait for the end of the transition, and
        // of threads that see the new mode in the word (litmus: lives-do-not-mix). The check in
        // `confirm_if_idle()` needs `Full`, too (litmus: confirmation-not-lost).
        //
        // SAFETY: By the safety requirements of this function, the object is not dropped.
        unsafe {
            Self::word_of(this).xchg(word.without(BUSY), Full);
            // A killer that found `BUSY` set has left its confirmation to us.
            Self::confirm_if_idle(this);
        }
    }

    /// Ends a switch to atomic mode, or closes the reference if a killer has left that to us.
    ///
    /// `closing` says that a killer has left the reference to us, and that the bias is removed.
    ///
    /// # Safety
    ///
    /// `this` must be the beginning of an object that is not dropped. The caller must own [`BUSY`],
    /// and the initial reference if a killer has left it, and must not use them after this.
    unsafe fn finish(this: NonNull<Self>, closing: bool) {
        if closing {
            // SAFETY: The killer left the initial reference to us, we own `BUSY`, and the bias is
            // removed.
            unsafe { Self::close(this, false) };
            return;
        }

        // SAFETY: By the safety requirements of this function, the object is not dropped.
        let (word_of, class) = unsafe { (Self::word_of(this), Self::class_of(this)) };
        // The object may be freed below, so this must be a pointer and not a reference.
        let waited_for = ptr::from_ref(word_of);
        // `Full`: a CPU that sees the new mode sees all writes of this transition
        // (litmus: counters-are-zero).
        let mut word = word_of.load(Relaxed);
        while !word.has(DEAD) {
            match word_of.cmpxchg(word, word.without(BUSY), Full) {
                Ok(_) => {
                    // The object may be freed from here on.
                    class.waiters().wake_up(waited_for);
                    return;
                }
                Err(found) => word = found,
            }
        }

        // The reference was killed during the switch: see `begin_end()` (litmus: handover).
        //
        // SAFETY: The initial reference keeps the object alive until the killer puts it or we do.
        let killer = unsafe { &(*this.as_ptr()).handover }.xchg(CALLBACK_FIRST, Full);
        if killer == KILLED_FIRST {
            // SAFETY: The killer left the initial reference to us. We own `BUSY`, and the bias is
            // in.
            unsafe { Self::close(this, true) };
        }
    }

    /// Sleeps while a transition is in flight, and returns the word after it.
    ///
    /// Must be called for [`REINIT`] counts only.
    fn wait_idle(&self) -> Word {
        // `Acquire` pairs with the `Full` of `set_idle()` and `finish()`. The word is loaded before
        // the atomic. If `close()` has cleared `BUSY` in this word and has not put the initial
        // reference yet, the atomic shows that the reference is closing. So this does not return
        // before the transition has ended (litmus: closing-is-seen).
        let idle = || {
            let word = self.word.load(Acquire);
            let is_idle = !word.has(BUSY) && !is_closing(self.atomic.load(Relaxed));
            is_idle.then_some(word)
        };
        loop {
            if let Some(word) = idle() {
                return word;
            }
            // The wait has no timeout and ignores signals, so it does not fail.
            let _ =
                self.class
                    .waiters()
                    .wait_event(&raw const self.word, Until::Done, None, || idle().is_some());
        }
    }

    /// Wakes up the threads that wait until no transition is in flight.
    fn wake_up_idle(&self) {
        self.class.waiters().wake_up(&raw const self.word);
    }

    /// Switches to atomic mode, and calls the confirmation of the switch if `notify`.
    ///
    /// Sleeps while another transition is in flight.
    ///
    /// # Safety
    ///
    /// `this` must be the beginning of a pinned, shared [`REINIT`] object, and the caller must have
    /// its handle.
    #[inline(never)] // It queues a callback: see `RcuPointer::IN_KERNEL_CRATE`.
    pub(super) unsafe fn switch_to_atomic(this: NonNull<Self>, notify: bool) {
        // SAFETY: The caller has the handle, which keeps the memory.
        let count = unsafe { this.as_ref() };

        loop {
            let word = count.wait_idle();
            let is_atomic = !word.is_percpu();
            if is_atomic && !notify {
                // `Full`: accesses after this are ordered after the transition that made the mode,
                // as in `wait_idle()` (litmus: closing-is-seen).
                if count.word.cmpxchg(word, word.with(FORCE), Full).is_ok() {
                    return;
                }
                continue;
            }
            // `Full`: accesses after this are ordered after the transition that made the mode
            // (litmus: handover-reset). Since we own `BUSY`, the mode cannot change before the
            // confirmation was called.
            let new = word.with(FORCE.union(BUSY));
            if count.word.cmpxchg(word, new, Full).is_err() {
                continue;
            }
            if notify {
                let _ = change(&count.state, |state| Some(state | NOTIFY));
            }
            if !is_atomic {
                // A killer that comes after this leaves the initial reference to the RCU callback.
                rcu::call_hurry(Callback(this));
                return;
            }
            // SAFETY: The caller has the handle of a `REINIT` object, which therefore is not
            // dropped. We own `BUSY`. Without `DEAD`, a killer may leave the initial reference to
            // us. With `DEAD`, the reference is closed, because the word was idle.
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

    /// Waits until no transition is in flight.
    ///
    /// Must be called for [`REINIT`] counts only.
    pub(super) fn wait_switched(&self) {
        self.wait_idle();
    }

    /// Switches to per-CPU mode, or if the reference is dying, makes per-CPU mode that of its next
    /// life.
    ///
    /// Sleeps while another transition is in flight. Must be called for [`REINIT`] counts only.
    pub(super) fn switch_to_percpu(&self) {
        loop {
            let word = self.wait_idle();
            // The RCU callback has zeroed the counters before `BUSY` was cleared. A CPU that finds
            // no flag in the word sees zeros, by the address dependency on the word, as in C's
            // `__percpu_ref_switch_to_percpu()` (litmus: counters-are-zero). `Relaxed` would be
            // enough for this. `Full`: references that are counted in the new mode are ordered
            // after the change of the mode (litmus: references-before-switch).
            if self.word.cmpxchg(word, word.without(FORCE), Full).is_ok() {
                return;
            }
        }
    }

    /// Takes a kill back.
    ///
    /// If the reference is not frozen, another life begins, in the mode of the last life. Sleeps
    /// while another transition is in flight.
    ///
    /// Fails with `EINVAL` if the reference was not killed, and with `EBUSY` if `at_zero` and the
    /// count is not zero.
    ///
    /// # Safety
    ///
    /// `this` must be the beginning of a pinned, shared [`REINIT`] object, and the caller must have
    /// its handle.
    pub(super) unsafe fn resurrect(this: NonNull<Self>, at_zero: bool) -> Result {
        // SAFETY: The caller has the handle, which keeps the memory.
        let count = unsafe { this.as_ref() };

        // SAFETY: The caller has the handle, which is a hold, and the new state keeps it.
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

    /// Freezes the reference, and sleeps until all references are put and the release has returned.
    ///
    /// The reference stays dying while there are freezers.
    ///
    /// # Safety
    ///
    /// `this` must be the beginning of a pinned, shared [`REINIT`] object, and the caller must have
    /// its handle. [`Count::thaw`] must be called at most once for each call of this.
    pub(super) unsafe fn freeze(this: NonNull<Self>) {
        // SAFETY: The caller has the handle, which keeps the memory.
        let count = unsafe { this.as_ref() };

        // This adds a freezer, which keeps the reference dying. If the number of freezers is the
        // largest possible, it stays, and the object stays frozen.
        let _ = change(&count.state, |state| {
            (state & FREEZERS_MASK != FREEZERS_MASK).then(|| state + FREEZER)
        });
        // A reviver owns `BUSY`, so this waits for the reviver, or the reviver sees the freezer.
        while !count.wait_idle().has(DEAD) {
            // SAFETY: The caller has the handle, which is a hold. The freezer in the state requires
            // a dying reference.
            unsafe { Self::begin_end(this, 0) };
        }
        // The wait has no timeout and ignores signals, so it does not fail.
        let _ = count.wait_released(Until::Done, None);
    }

    /// Removes a freezer.
    ///
    /// If it was the last freezer and the reference was not killed, another life begins. Sleeps
    /// while another transition is in flight.
    ///
    /// # Safety
    ///
    /// `this` must be the beginning of an object for which [`Count::freeze`] was called. The caller
    /// must not use the object after this.
    pub(super) unsafe fn thaw(this: NonNull<Self>) {
        // The freezer keeps the reference dying, so `follow()` does not fail.
        //
        // SAFETY: By the safety requirements of this function, `freeze()` was called, so there is a
        // freezer, which is a hold until the state is changed. The caller does not use the object
        // after this.
        let _ = unsafe {
            Self::follow(this, |state| {
                let is_full = state & FREEZERS_MASK == FREEZERS_MASK;
                Ok(if is_full { state } else { state - FREEZER })
            })
        };
    }

    /// Replaces the state of a dying reference by the result of `new`, and begins another life if
    /// the new state allows it.
    ///
    /// Sleeps while another transition is in flight. Fails with `EINVAL` if the reference is live,
    /// and with the error of `new`.
    ///
    /// # Safety
    ///
    /// `this` must be the beginning of a pinned, shared [`REINIT`] object, and the caller must have
    /// a hold of it until the state is changed. `new` may remove that hold if the caller does not
    /// use the object after this.
    unsafe fn follow(this: NonNull<Self>, new: impl Fn(u64) -> Result<u64>) -> Result {
        // SAFETY: The caller has a hold until the state is changed, and from then on we have one.
        let count = unsafe { this.as_ref() };

        let (word, result) = loop {
            let word = count.wait_idle();
            if !word.has(DEAD) {
                if !is_dead(count.state.load(Relaxed)) {
                    return Err(EINVAL);
                }
                // A killer or freezer has changed the state, and is about to set `DEAD`.
                fsleep(Delta::from_micros(10));
                continue;
            }
            // `Full`: only one of several threads succeeds, and it sees what the killer has done
            // (litmus: closing-is-seen).
            if count.word.cmpxchg(word, word.with(BUSY), Full).is_err() {
                continue;
            }
            // Between `wait_idle()` and the `cmpxchg()`, another life may have begun and may be
            // closing now.
            let is_closing = is_closing(count.atomic.load(Relaxed));
            let mut state = count.state.load(Relaxed);
            let result = loop {
                if state & CONFIRM != 0 {
                    // The confirmation of a kill must be called before the kill is taken back.
                    //
                    // SAFETY: The caller has a hold of a `REINIT` object, which therefore is not
                    // dropped. The reference is closed, and we own `BUSY`.
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
                // Adds a hold of our own until the end of this function. It is added in the same
                // operation, so that a killer that leaves the end of the life to us waits for the
                // life that it has killed.
                //
                // `Full`: either we see a freezer, or the freezer sees the new state; see the
                // documentation of this module (litmus: freezer-or-reviver).
                match count.state.cmpxchg(state, to + LIFE, Full) {
                    Ok(_) => break Some(Ok(to)),
                    Err(found) => state = found,
                }
            };
            if let Some(result) = result {
                break (word, result);
            }
            // SAFETY: The caller has a hold of a `REINIT` object, which therefore is not dropped.
            // We own `BUSY`, and the reference is closed.
            unsafe { Self::set_idle(this, word) };
            count.wake_up_idle();
            fsleep(Delta::from_micros(10));
        };

        if !result.is_ok_and(|state| !is_dead(state)) {
            // SAFETY: The caller or we have a hold of a `REINIT` object, which therefore is not
            // dropped. We own `BUSY`, and the reference is closed.
            unsafe { Self::set_idle(this, word) };
            count.wake_up_idle();
            if result.is_ok() {
                // SAFETY: The change of the state added a hold for us, and the object is not used
                // after this.
                unsafe { Self::drop_hold(this, LIFE, 0) };
            }
            return result.map(drop);
        }

        if is_zero(update(&count.atomic, value::revive)) {
            // The last life has ended, so the new life needs a hold of its own. `Relaxed` is
            // enough: we have a hold as well, so the holds do not reach zero before this
            // (litmus: hold-of-new-life).
            count.state.add(LIFE, Relaxed);
        }
        // The counters are zero for the same reason as in `switch_to_percpu()`
        // (litmus: lives-do-not-mix).
        //
        // SAFETY: We have a hold of a `REINIT` object, which therefore is not dropped, and own
        // `BUSY`. The word has no `DEAD`.
        unsafe { Self::set_idle(this, word.without(DEAD)) };
        count.wake_up_idle();
        // A killer that came before this has set `KILLING`, and has left the end of the life to us.
        // A killer that comes after this sees that `DEAD` was cleared, because both operations are
        // `Full` (litmus: killer-after-reviver).
        let old = change(&count.state, |state| Some(state & !REVIVING));
        if old.is_ok_and(|state| state & KILLING != 0) {
            // SAFETY: We have a hold of the object. The state has `KILLED`, and `KILLING` keeps it
            // set.
            unsafe { Self::end_killed(this) };
        }
        // SAFETY: The change of the state added a hold for us, and the object is not used after
        // this.
        unsafe { Self::drop_hold(this, LIFE, 0) };
        Ok(())
    }
}

/// Clears a flag in a state.
fn clear(state: &Atomic<u64>, flag: u64) {
    let _ = change(state, |state| (state & flag != 0).then_some(state & !flag));
}

/// The RCU callback that completes a switch to atomic mode.
///
/// # Invariants
///
/// The object is pinned and not dropped. If the object lives once, this owns the initial reference.
/// Otherwise, this owns [`BUSY`]; and if the reference is killed before the switch is complete,
/// this also owns the initial reference, unless `handover` decides that the killer keeps it. Until
/// it is put, the initial reference keeps the object alive.
struct Callback(NonNull<Count>);

// SAFETY: Any thread can complete a switch and put a reference.
unsafe impl Send for Callback {}

impl_rcu_pointer! {
    // SAFETY: By the type invariant, the object is pinned and not dropped. By the invariants of
    // `Count`, its `rcu` belongs to the killer of an object that lives once, or to the owner of
    // `BUSY`, which passed it to this value.
    unsafe impl RcuPointer for Callback(Count, rcu), Callback::complete
}

impl Callback {
    /// Adds the counters to the atomic, after all CPUs have seen the flag.
    #[doc(alias("percpu_ref_switch_to_atomic_rcu", "percpu_ref_kill_rcu"))]
    fn complete(self) {
        let this = self.0;
        // SAFETY: By the type invariant, the object is alive until the initial reference is put
        // below.
        let (word, atomic, state, handover): (_, _, _, &Atomic<u32>) = unsafe {
            (
                Count::word_of(this),
                Count::atomic_of(this),
                Count::state_of(this),
                &(*this.as_ptr()).handover,
            )
        };
        let is_reinit = state.load(Relaxed) & REINIT != 0;

        // The sections in which CPUs changed the counters have ended before the end of the grace
        // period, which orders their last writes before our reads (litmus: put-before-callback).
        //
        // SAFETY: This is the RCU callback, so the grace period has waited for each section in
        // which a CPU uses the counters.
        let mut counters = unsafe { Count::counters(word.load(Relaxed)) };
        let mut percpu = 0u64;
        for (_, counter) in counters.iter_mut() {
            percpu = percpu.wrapping_add(mem::take(counter.get_mut()));
        }
        if !is_reinit {
            // SAFETY: The object lives once, so this is its only switch, and the counters are not
            // used after this.
            unsafe { ManuallyDrop::drop(&mut counters) };
        }

        // This is `NO_KILLER` if the reference was not killed, or if the killer has set `DEAD` but
        // has not exchanged `handover` yet. `Relaxed` is enough, because the `Full` below orders
        // what follows after the killer's exchange (litmus: handover).
        let closing = !is_reinit || handover.load(Relaxed) == KILLED_FIRST;
        // If the object lives once and no confirmation was asked for, one operation closes the
        // reference and puts the initial reference.
        let at_once = !is_reinit && state.load(Relaxed) & CONFIRM == 0;
        // `Full` pairs with the `Full` in `put()`. It orders the puts in atomic mode before us, and
        // the puts in per-CPU mode, which the grace period has ordered before us, before the
        // release, whichever thread releases the object. `Acquire` would be enough for this
        // (litmus: release-sees-all). `Full` also orders the load of `handover`.
        let global = update(atomic, |old| {
            let new = value::add_counters(old, percpu, closing);
            if at_once {
                value::put_initial(new)
            } else {
                new
            }
        });
        // SAFETY: `percpu_ref_pr_debug_sum()` only prints its arguments.
        unsafe { bindings::percpu_ref_pr_debug_sum(global, percpu) };
        if value::add_counters(global, percpu, closing) == SATURATED && is_valid(global) {
            let global = global.wrapping_sub(BIAS) as isize;
            do_once_lite! {
                report(
                    // SAFETY: The initial reference is not put yet, or the object is leaked.
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
            // `BUSY`. If `closing`, the killer left the initial reference to us, and the bias is
            // removed.
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
            // SAFETY: The reference is closed, the object lives once, and our initial reference
            // keeps it alive.
            unsafe { Count::confirm(this) };
            update(atomic, value::put_initial)
        };
        // If there are references left, the object may be freed from here on.
        if value::put_initial(closed) == 0 {
            // SAFETY: Our put took the count to zero.
            unsafe { Count::release(this) };
        }
    }
}

// SPDX-License-Identifier: GPL-2.0

//! The reference count, independent of the type of the object.
//!
//! In *per-CPU mode* a get adds one to the local CPU's counter, and a put subtracts one from it. A
//! single counter may wrap below zero, because a reference that was got on one CPU may be put on
//! another CPU. Only the sum of all counters modulo 2^64 is meaningful. No get or put computes the
//! sum, so none of them could see it reach zero. The sum does not reach zero, because only
//! [`Count::kill`] puts the *initial reference*.
//!
//! In *atomic mode* all CPUs count in one atomic variable. A switch to atomic mode sets a flag in
//! the word in which each get and put finds the address of the counters. Some CPUs may not see the
//! flag at first. After a grace period all CPUs see it, so no CPU changes the counters any more,
//! and the RCU callback adds them to the atomic. Until then, gets and puts are counted both in the
//! counters and in the atomic, so the atomic alone could reach zero at any time. [`BIAS`] keeps it
//! away from zero.
//!
//! The bias has a second purpose. It stays in the atomic until the reference is dying *and* the
//! counters are added, and [`Count::try_get_live`] succeeds in atomic mode only while the bias is
//! in. So one atomic operation, which removes the bias, makes all later calls fail: the reference
//! is *closed*, and the count can reach zero. [`Count::resurrect`] adds the bias again.
//!
//! `switch.rs` has the order of the modes, and `value.rs` the arithmetic of the atomic.
//!
//! # Functions that may free the object
//!
//! These functions take a pointer instead of `&self`. As soon as such a function has put its
//! reference, another CPU may free the object, but a reference in an argument promises that the
//! object outlives the call. A reference to an atomic field makes no such promise, so these
//! functions use such references ([`Count::word_of`] and others).
//!
//! C source: [`lib/percpu-refcount.c`](srctree/lib/percpu-refcount.c)

use super::{
    holder,
    release::Link,
    report::{
        report,
        seconds, //
    },
    section::{
        add,
        sub,
        Section, //
    },
    state::{
        change,
        HANDLE,
        HOLDS_MASK,
        KILLED,
        LEAKED,
        LIFE,
        LIVES_MASK,
        PUBLISHED,
        REINIT,
        TASKS, //
    },
    switch,
    unload::{
        Class,
        Ops,
        Running, //
    },
    value::{
        self,
        is_zero,
        minus,
        plus,
        try_plus,
        BIAS,
        MAX_LOCAL,
        SATURATED, //
    },
    wait::Until,
    word::{
        Word,
        BUSY,
        DEAD,
        FORCE,
        NONE, //
    }, //
};
use crate::{
    alloc::Flags,
    bindings,
    container_of,
    do_once_lite,
    percpu::{
        Local,
        PerCpu, //
    },
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Full,
            Relaxed, //
        },
        rcu::{
            self,
            arch::read_once,
            impl_rcu_pointer,
            RcuHead,
            RcuPointer, //
        },
    },
    time::{
        Delta,
        Instant,
        Monotonic, //
    },
    warn_on, //
};
use core::{
    cell::UnsafeCell,
    mem::ManuallyDrop,
    ptr::{
        self,
        NonNull, //
    },
};

/// The mode and the state that a count begins in.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Start {
    /// Live in per-CPU mode, with one life.
    Once,
    /// Live in per-CPU mode, with one life, and with gets and puts in [`Section::Tasks`].
    OnceTasks,
    /// Live in per-CPU mode, with any number of lives.
    Reinit,
    /// Live in atomic mode, with any number of lives.
    Atomic,
    /// Zero, with any number of lives.
    Dead,
}

/// A reference count at the beginning of a heap-allocated object.
///
/// The states are those of the [module documentation](super#states):
///
/// - *unshared*, from [`Count::new`] on: only the owner has the object;
/// - *live*, in per-CPU mode or in atomic mode;
/// - *dying*, from [`Count::kill`] or [`Count::freeze`] on: [`DEAD`] is set;
/// - *closed*: the counters are added to the atomic and the bias is removed. The thread or the RCU
///   callback that closed the reference then puts the initial reference;
/// - *zero*: there are no references, and the object is released.
///
/// # Invariants
///
/// - `word` without its flags is the `PerCpu<Local<u64>>` that the count owns: in an object that
///   lives once, until the RCU callback of its kill; otherwise, until the object is dropped. While
///   no flag is set, any CPU may change the counters in a [`Section`] in which it has found no flag
///   in the word. The section is a `Section::Tasks` if the count is [`TASKS`], and a
///   `Section::Preempt` if it is not. In atomic mode without [`BUSY`] the counters are zero, unless
///   the object lives once.
/// - Either `atomic` is [`SATURATED`], or the sum of the counters and `atomic`, modulo 2^64, is the
///   number of references, plus [`BIAS`] until the reference is closed. The initial reference
///   counts as one reference until the reference is closed, and then as [`INITIAL`](value::INITIAL)
///   until it is put.
/// - [`DEAD`] is set once in each life. The thread that sets it then owns the initial reference,
///   and passes it to the thread or RCU callback that closes the reference.
/// - `class` counts this object until the object is dropped.
/// - The memory of the count came from `kmalloc()`. It is freed when the last hold of
///   [`HOLDS_MASK`] is dropped, but is not freed if it is [`LEAKED`]. It is freed after a grace
///   period if it is [`PUBLISHED`] or [`REINIT`], on PREEMPT_RT, and with
///   `CONFIG_RUST_PERCPU_REF_DEBUG`. If it is [`PUBLISHED`] and [`TASKS`], there is a grace period
///   of RCU Tasks and then one of RCU.
/// - `rcu` is used by the owner of [`BUSY`], or by the killer of an object that lives once. When
///   there are no holds, it is used by the thread that dropped the last hold. `link` is used by the
///   thread that ended the life of an object that lives once.
pub(super) struct Count {
    /// The address of the per-CPU counters, and flags.
    pub(super) word: Atomic<Word>,
    /// The references that are counted in atomic mode, with [`BIAS`]: see `value.rs`.
    pub(super) atomic: Atomic<u64>,
    /// The class of the object, which has the functions of its type.
    pub(super) class: &'static Class,
    /// The holds, and what was asked for.
    pub(super) state: Atomic<u64>,
    /// Decides whether a killer or the RCU callback that completes a switch closes the reference.
    pub(super) handover: Atomic<u32>,
    /// The time at which this life was killed, in seconds of the monotonic clock.
    ///
    /// It is used in messages only.
    pub(super) killed_at: Atomic<u32>,
    /// The head that the count waits for a grace period by.
    pub(super) rcu: RcuHead,
    /// The link that a release waits for a thread by.
    link: Link,
    /// The holder that records the object itself, from the moment that the object is shared.
    pub(super) holder: UnsafeCell<holder::Holder>,
}

// This is no more than C's `percpu_ref` and `percpu_ref_data` take together on 64-bit machines, and
// the same on each CPU.
const _: () = assert!(cfg!(CONFIG_RUST_PERCPU_REF_DEBUG) || size_of::<Count>() <= 72);
const _: () = assert!(size_of::<Local<u64>>() == 8);

// SAFETY: The fields are atomic, or by the type invariants, are used by one thread at a time.
unsafe impl Send for Count {}

// SAFETY: The fields are atomic, or by the type invariants, are used by one thread at a time.
unsafe impl Sync for Count {}

impl Count {
    /// Initialises the count of an object with the operations `ops`.
    ///
    /// Fails with `ENOMEM`, and as [`Class::get`] does.
    pub(super) fn new(ops: &'static Ops, start: Start, gfp: Flags) -> impl Init<Self, Error> {
        let init = move |slot: *mut Self| {
            let counters = PerCpu::<Local<u64>>::zeroed(gfp)?;
            let class = Class::get(ops, gfp)?;
            let (flags, atomic, state) = match start {
                Start::Once => (NONE, 1 + BIAS, HANDLE | LIFE),
                Start::OnceTasks => (NONE, 1 + BIAS, HANDLE | LIFE | TASKS),
                Start::Reinit => (NONE, 1 + BIAS, HANDLE | LIFE | REINIT),
                Start::Atomic => (FORCE, 1 + BIAS, HANDLE | LIFE | REINIT),
                Start::Dead => (DEAD, 0, HANDLE | KILLED | REINIT),
            };
            let mut killed_at = 0;
            if start == Start::Dead {
                class.sub_unkilled();
                killed_at = seconds();
            }

            // INVARIANT: The counters are zero. Either there is one reference, the initial
            // reference, or the reference is closed and there are none. The holds are the handle,
            // and the first life if it has begun.
            let count = Self {
                word: Atomic::new(Word::new(counters.into_raw(), flags)),
                atomic: Atomic::new(atomic),
                class,
                state: Atomic::new(state),
                handover: Atomic::new(switch::NO_KILLER),
                killed_at: Atomic::new(killed_at),
                rcu: RcuHead::new(),
                link: Link::new(),
                holder: UnsafeCell::new(holder::Holder::NONE),
            };
            // SAFETY: `slot` is valid for writes.
            unsafe { slot.write(count) };
            Ok(())
        };
        // SAFETY: The closure initialises the whole count, or fails and initialises nothing.
        unsafe { pin_init::init_from_closure(init) }
    }

    /// Returns the counters that `word` is the address of.
    ///
    /// # Safety
    ///
    /// `word` must have come from [`Count::word`]. As long as the returned value is used, one of
    /// these must hold:
    ///
    /// - no other thread has the count, or
    /// - `word` has no flag, and the caller is in the [`Section`] in which it has read `word`, or
    /// - the caller is the RCU callback.
    #[inline]
    pub(super) unsafe fn counters(word: Word) -> ManuallyDrop<PerCpu<Local<u64>>> {
        // SAFETY: By the type invariant, `word.counters()` is what `into_raw()` returned in
        // `new()`. The counters are freed after a grace period that follows the setting of a flag
        // and waits for the sections, or when no other thread has the count.
        ManuallyDrop::new(unsafe { PerCpu::from_raw(word.counters()) })
    }

    /// Returns the word of a count.
    ///
    /// The count may be freed before the returned reference goes out of scope.
    ///
    /// # Safety
    ///
    /// `this` must be valid now, and at each use of the returned reference.
    #[inline(always)]
    pub(super) unsafe fn word_of<'a>(this: NonNull<Self>) -> &'a Atomic<Word> {
        // SAFETY: By the safety requirements of this function, `this` is valid.
        unsafe { &(*this.as_ptr()).word }
    }

    /// Returns the atomic of a count.
    ///
    /// The count may be freed before the returned reference goes out of scope.
    ///
    /// # Safety
    ///
    /// `this` must be valid now, and at each use of the returned reference.
    #[inline(always)]
    pub(super) unsafe fn atomic_of<'a>(this: NonNull<Self>) -> &'a Atomic<u64> {
        // SAFETY: By the safety requirements of this function, `this` is valid.
        unsafe { &(*this.as_ptr()).atomic }
    }

    /// Returns the state of a count.
    ///
    /// The count may be freed before the returned reference goes out of scope.
    ///
    /// # Safety
    ///
    /// `this` must be valid now, and at each use of the returned reference.
    pub(super) unsafe fn state_of<'a>(this: NonNull<Self>) -> &'a Atomic<u64> {
        // SAFETY: By the safety requirements of this function, `this` is valid.
        unsafe { &(*this.as_ptr()).state }
    }

    /// Returns the class of a count.
    ///
    /// # Safety
    ///
    /// `this` must be valid.
    pub(super) unsafe fn class_of(this: NonNull<Self>) -> &'static Class {
        // SAFETY: By the safety requirements of this function, `this` is valid.
        unsafe { (*this.as_ptr()).class }
    }

    /// Applies `local` to the counters in per-CPU mode, and returns whether it did.
    ///
    /// The section has ended when this returns, so the count may have been freed.
    #[inline(always)]
    fn if_percpu(
        word: &Atomic<Word>,
        tasks: bool,
        local: impl FnOnce(&PerCpu<Local<u64>>),
    ) -> bool {
        if cfg!(CONFIG_PROVE_RCU) {
            assert_rcu_is_watching();
        }
        let section = Section::enter(tasks);

        // `Relaxed` is enough. The counters are zeroed before the flags are cleared, and the
        // address dependency on `word` orders our accesses after that: see `switch_to_percpu()`
        // (litmus: counters-are-zero). A CPU or task that does not see a flag yet is inside the
        // section entered above, so the grace period that starts after the flag was set waits for
        // it (litmus: put-before-callback).
        let word = read_once(word);
        if word.is_percpu() {
            // SAFETY: `word` has no flag, and we are in the section in which it was read.
            local(&*unsafe { Self::counters(word) });
            drop(section);
            true
        } else {
            section.leave();
            false
        }
    }

    /// Adds `n` references.
    ///
    /// The caller must hold a reference until this returns.
    #[inline(always)]
    pub(super) fn get(&self, n: usize, tasks: bool) {
        if n > MAX_LOCAL || !Self::if_percpu(&self.word, tasks, |counters| add(counters, n)) {
            self.get_atomic(n);
        }
    }

    /// Adds `n` references to the atomic.
    #[cold]
    #[inline(never)]
    fn get_atomic(&self, n: usize) {
        // `Relaxed` is enough: the put of the caller's own reference is ordered before the release,
        // and comes after this (litmus: get-relaxed).
        let new = if n <= MAX_LOCAL {
            plus(self.atomic.fetch_add(n as u64, Relaxed), n)
        } else {
            // A single atomic operation, because a large `n` could carry the value through the
            // invalid values into a valid range.
            plus(update(&self.atomic, |old| plus(old, n)), n)
        };
        if new == SATURATED {
            // By the rule in `value.rs`, the caller still holds its reference.
            //
            // SAFETY: The caller's reference keeps the object alive, and `self` is its count.
            unsafe { Self::saturate(NonNull::from(self)) };
        }
    }

    /// Tries to add `n` references, which fails if the count is zero or there would be too many.
    #[inline(always)]
    pub(super) fn try_get(&self, n: usize, tasks: bool) -> bool {
        (n <= MAX_LOCAL && Self::if_percpu(&self.word, tasks, |counters| add(counters, n)))
            || self.try_get_atomic(n, false)
    }

    /// Tries to add `n` references, which fails if the reference is dying or there would be too
    /// many.
    #[inline(always)]
    pub(super) fn try_get_live(&self, n: usize, tasks: bool) -> bool {
        (n <= MAX_LOCAL && Self::if_percpu(&self.word, tasks, |counters| add(counters, n)))
            || self.try_get_atomic(n, true)
    }

    /// Tries to add `n` references to the atomic; with `live`, fails if the reference is dying.
    #[cold]
    #[inline(never)]
    fn try_get_atomic(&self, n: usize, live: bool) -> bool {
        if live && self.is_dying() {
            return false;
        }
        // The test and the addition must be one atomic operation, so that no reference is added to
        // a count that is zero (litmus: no-get-after-zero), or with `live`, to a reference that is
        // closed (litmus: no-live-get-after-confirmation).
        let mut old = self.atomic.load(Relaxed);
        while let Some(new) = try_plus(old, n, live) {
            // `Relaxed` is enough: the references that are found keep the count from zero
            // (litmus: no-get-after-zero), and the put of the new reference is ordered before the
            // release (litmus: release-sees-all).
            match self.atomic.cmpxchg(old, new, Relaxed) {
                Ok(_) => return true,
                Err(found) => old = found,
            }
        }
        false
    }

    /// Tries to add `n` references to a count that the caller holds no reference to.
    ///
    /// Does this as [`try_get_live`](Self::try_get_live) does if `live`, and as
    /// [`try_get`](Self::try_get) does if not. Leaves `section`.
    ///
    /// # Safety
    ///
    /// `this` must be valid until `section` ends. `section` must be of the kind that the count
    /// uses.
    #[inline(always)]
    pub(super) unsafe fn try_get_found(
        this: NonNull<Self>,
        n: usize,
        live: bool,
        section: Section,
    ) -> bool {
        if cfg!(CONFIG_PROVE_RCU) {
            assert_rcu_is_watching();
        }
        // `Relaxed` is enough for the same reasons as in `if_percpu()`, which repeats these lines.
        // If the two functions shared one, the compiler would load the pointer to the object once
        // more in each get.
        //
        // SAFETY: By the safety requirements of this function, `this` is valid.
        let word = read_once(unsafe { Self::word_of(this) });
        if n <= MAX_LOCAL && word.is_percpu() {
            // SAFETY: `word` has no flag, and we are in the section in which it was read.
            add(&*unsafe { Self::counters(word) }, n);
            drop(section);
            return true;
        }
        // SAFETY: By the safety requirements of this function, `this` is valid until `section`
        // ends.
        unsafe { Self::try_get_found_atomic(this, n, live, section) }
    }

    /// Continues [`try_get_found`](Self::try_get_found) in atomic mode.
    ///
    /// # Safety
    ///
    /// `this` must be valid until `section` ends.
    #[cold]
    #[inline(never)]
    unsafe fn try_get_found_atomic(
        this: NonNull<Self>,
        n: usize,
        live: bool,
        section: Section,
    ) -> bool {
        // SAFETY: By the safety requirements of this function, `this` is valid until `section`
        // ends.
        let is_got = unsafe { &*this.as_ptr() }.try_get_atomic(n, live);
        // The count may be freed once the section has ended.
        drop(section);
        is_got
    }

    /// Puts `n` references, and releases the object if they were the last ones.
    ///
    /// # Safety
    ///
    /// The caller must own `n` references, and at least one, to the object that begins at `this`,
    /// and must not use them after this. `tasks` must be whether the count is [`TASKS`].
    #[inline(always)]
    pub(super) unsafe fn put(this: NonNull<Self>, n: usize, tasks: bool) {
        // SAFETY: The caller's reference keeps the object alive until the counter is changed.
        let word = unsafe { Self::word_of(this) };
        let is_done = n <= MAX_LOCAL && Self::if_percpu(word, tasks, |counters| sub(counters, n));
        if !is_done {
            // The section has ended, because `release()` may take sleeping locks on PREEMPT_RT.
            // From here on, only the caller's references keep the object alive.
            //
            // SAFETY: By the safety requirements of this function, the caller owns `n` references,
            // which were not put above.
            unsafe { Self::put_atomic(this, n) };
        }
    }

    /// Puts `n` references in atomic mode, and releases the object if they were the last ones.
    ///
    /// # Safety
    ///
    /// The caller must own `n` references, and at least one, to the object that begins at `this`,
    /// and must not use them after this.
    #[cold]
    #[inline(never)]
    unsafe fn put_atomic(this: NonNull<Self>, n: usize) {
        // SAFETY: The caller's reference keeps the object alive until it is put below.
        let atomic = unsafe { Self::atomic_of(this) };

        // `Full` in both branches: all uses of the object, by us and by the threads that put
        // references before us, are ordered before the release (litmus: release-sees-all).
        let old = if n <= MAX_LOCAL {
            atomic.fetch_sub(n as u64, Full)
        } else {
            update(atomic, |old| minus(old, n))
        };
        match minus(old, n) {
            // SAFETY: These were the last references, so the count just reached zero, and no
            // reference is added to a count of zero.
            0 => unsafe { Self::release(this) },
            // SAFETY: By the rule in `value.rs`, the object is leaked, or another thread holds a
            // reference until it has stored `SATURATED`.
            SATURATED => unsafe { Self::saturate(this) },
            _ => {}
        }
    }

    /// Leaks the object, because the number of references is not known.
    ///
    /// # Safety
    ///
    /// `this` must be valid, and by the rule in `value.rs`, must not be freed before this returns.
    #[cold]
    unsafe fn saturate(this: NonNull<Self>) {
        // SAFETY: By the safety requirements of this function, `this` is valid.
        unsafe { Self::atomic_of(this) }.store(SATURATED, Relaxed);
        do_once_lite! {
            // SAFETY: By the safety requirements of this function, `this` is valid.
            report(unsafe { Self::class_of(this) }, format_args!("saturated"));
        }
    }

    /// Releases the object: ends a life of it.
    ///
    /// # Safety
    ///
    /// The caller must just have taken the number of references to zero.
    #[cold]
    pub(super) unsafe fn release(this: NonNull<Self>) {
        // SAFETY: The life that ends has a hold, so the count is valid.
        match unsafe { Self::class_of(this) }.enter() {
            Some(running) if running.ops().may_sleep => {
                // SAFETY: An object whose release may sleep lives once, so `link` was not used
                // before. It is valid until `run_release()` is called, because the life that ends
                // has a hold.
                unsafe {
                    let link = &raw mut (*this.as_ptr()).link;
                    Self::class_of(this)
                        .releases()
                        .queue(NonNull::new_unchecked(link));
                }
            }
            // SAFETY: By the safety requirements of this function, the count just reached zero, and
            // this is the only call for that.
            running => unsafe { Self::finish_release(this, running) },
        }
    }

    /// Returns the class of the count that `link` is a field of.
    ///
    /// # Safety
    ///
    /// `link` must be the field of a valid count.
    pub(super) unsafe fn class_of_link(link: NonNull<Link>) -> &'static Class {
        // SAFETY: By the safety requirements of this function, `link` is the field of a valid
        // count.
        unsafe { (*container_of!(link.as_ptr(), Count, link)).class }
    }

    /// Runs a release that [`Count::release`] queued.
    ///
    /// # Safety
    ///
    /// `link` must be what [`Releases::queue`](super::release::Releases::queue) was called with.
    /// This must be called once for each such call.
    pub(super) unsafe fn run_release(link: NonNull<Link>) {
        // SAFETY: By the safety requirements of this function, `link` is the field of a count. The
        // address of a count is not null.
        let this = unsafe { NonNull::new_unchecked(container_of!(link.as_ptr(), Count, link)) };

        // SAFETY: The life that ends has a hold, so the count is valid.
        let running = unsafe { Self::class_of(this) }.enter();
        // SAFETY: The count reached zero before the release was queued, and this is called once for
        // that.
        unsafe { Self::finish_release(this, running) };
    }

    /// Calls the object's release, and drops the object if it lives once.
    ///
    /// # Safety
    ///
    /// Must be called once for each time that the number of references reached zero. `running` must
    /// be what [`Class::enter`] returned for the class of `this`.
    unsafe fn finish_release(this: NonNull<Self>, running: Option<Running<'static>>) {
        // SAFETY: The life that ends has a hold, so the count is valid.
        let state = unsafe { Self::state_of(this) };
        let is_last = state.load(Relaxed) & REINIT == 0;

        let leaked = match running {
            Some(running) => {
                // SAFETY: The object is not dropped: it is dropped below, or when there are no
                // holds, and this life has one.
                unsafe { (running.ops().release)(this.cast()) };
                if is_last {
                    // SAFETY: The object lives once, and no reference is added to a count of zero.
                    // So the object is not used after this, and this is called once.
                    unsafe { (running.ops().drop)(this.cast()) };
                    // SAFETY: The life that ends has a hold, so the count is valid.
                    unsafe { holder::end_object(this) };
                    // SAFETY: The life that ends has a hold, so the count is valid.
                    unsafe { Self::class_of(this) }.put();
                }
                0
            }
            None if is_last => LEAKED,
            None => 0,
        };
        // SAFETY: The life has ended, and we own its hold. The object is not used after this.
        unsafe { Self::drop_hold(this, LIFE, leaked) };
    }

    /// Drops a hold, and frees the object if it was the last one.
    ///
    /// Also sets the flags `with`.
    ///
    /// # Safety
    ///
    /// The caller must own the hold, and must not use the object after this.
    pub(super) unsafe fn drop_hold(this: NonNull<Self>, hold: u64, with: u64) {
        // SAFETY: The caller owns a hold, so the count is valid.
        let (state, class) = unsafe { (Self::state_of(this), Self::class_of(this)) };
        // The memory may be freed below, so this must be a pointer and not a reference.
        let waited_for = ptr::from_ref(state);

        // `Full`: what the owners of holds did is ordered before the object is freed
        // (litmus: last-hold-frees), and before `wait_released()` returns (litmus: wait-released).
        // From here on, the memory may be freed, unless this was the last hold.
        let old = state.fetch_add(with.wrapping_sub(hold), Full);
        let new = old.wrapping_add(with.wrapping_sub(hold));
        if new & HOLDS_MASK == 0 {
            // SAFETY: There are no holds any more, and `new` is the state.
            unsafe { Self::end(this, new) };
        }
        class.waiters().wake_up(waited_for);
    }

    /// Drops the object unless it was dropped already, and frees the memory.
    ///
    /// # Safety
    ///
    /// There must be no holds of the object, and `state` must be its state. This must be called
    /// once.
    #[inline(never)] // It queues a callback: see `RcuPointer::IN_KERNEL_CRATE`.
    unsafe fn end(this: NonNull<Self>, state: u64) {
        if state & REINIT != 0 {
            // SAFETY: The memory is not freed yet, so the count is valid.
            let class = unsafe { Self::class_of(this) };
            let Some(running) = class.enter() else {
                return;
            };
            // SAFETY: There are no holds, so the object is not used any more. This is called once.
            unsafe { (running.ops().drop)(this.cast()) };
            // SAFETY: The memory is not freed yet, so the count is valid.
            unsafe { holder::end_object(this) };
            class.put();
        } else if state & LEAKED != 0 {
            return;
        }
        // This may be a hard interrupt. There, `free_percpu()` must not be called, because it takes
        // a `spinlock_t`; on PREEMPT_RT, `kfree()` must not be called either. The counters of an
        // object that lives once are freed already.
        let at_once = state & (PUBLISHED | REINIT) == 0 && !cfg!(CONFIG_PREEMPT_RT);
        // Readers of the records of holders may still have found the count.
        let at_once = at_once && !cfg!(CONFIG_RUST_PERCPU_REF_DEBUG);
        if at_once {
            // SAFETY: The object was dropped, and its count is not used after this.
            unsafe { Self::free(this) };
        } else if state & PUBLISHED != 0 && state & TASKS != 0 {
            // Readers that found the object are in a `Section::Tasks`.
            rcu::call_tasks(Remains(this));
        } else {
            rcu::call(Remains(this));
        }
    }

    /// Frees the memory of an object that was dropped.
    ///
    /// # Safety
    ///
    /// The object must be dropped, and the count must not be used after this.
    unsafe fn free(this: NonNull<Self>) {
        // SAFETY: The memory is not freed yet, so the count is valid.
        let is_reinit = unsafe { Self::state_of(this) }.load(Relaxed) & REINIT != 0;
        if is_reinit {
            // SAFETY: No other thread has the count, and the counters are not used after this.
            unsafe { ManuallyDrop::drop(&mut Self::counters(Self::word_of(this).load(Relaxed))) };
        }
        // SAFETY: By the type invariant, the memory came from `kmalloc()`.
        unsafe { bindings::kfree(this.as_ptr().cast()) };
    }

    /// Marks the count as [`PUBLISHED`], so that RCU readers can find the object.
    ///
    /// The caller must have the handle.
    pub(super) fn publish(&self) {
        // The handle is dropped by an operation on the same variable, which therefore finds the
        // flag (litmus: place-memory-stays).
        let _ = change(&self.state, |state| {
            (state & PUBLISHED == 0).then_some(state | PUBLISHED)
        });
    }

    /// Returns whether the reference was killed or frozen, and is not live again.
    pub(super) fn is_dying(&self) -> bool {
        // `Relaxed` is enough, because the answer may be outdated as soon as this returns.
        self.word.load(Relaxed).has(DEAD)
    }

    /// Returns whether the reference is closed and there are no references.
    pub(super) fn is_zero(&self) -> bool {
        // `Acquire` pairs with the `Full` in `put()` (litmus: is-zero).
        is_zero(self.atomic.load(Acquire))
    }

    /// Returns the number of references, or `None` if it depends on the counters.
    pub(super) fn references(&self) -> Option<usize> {
        // In atomic mode, the counters are zero unless a transition is in flight. The two `Acquire`
        // loads ensure that `value` was read while the word had this value: not before it
        // (litmus: references-of-mode), and not after it (litmus: references-before-switch).
        let word = self.word.load(Acquire);
        let value = self.atomic.load(Acquire);
        let is_atomic = word.has(FORCE) && !word.has(BUSY) && self.word.load(Relaxed) == word;
        if is_atomic || !value::is_open(value) {
            // A number above the limit means that the mode has changed between the loads.
            value::references(value)
                .filter(|&n| n <= value::LIMIT)
                .and_then(|n| usize::try_from(n).ok())
        } else {
            None
        }
    }

    /// Sleeps until all lives have ended, or for at most `timeout`.
    ///
    /// The caller must have a hold. A wait that lasts for ten seconds is logged. Then it is logged
    /// again after intervals that double each time.
    pub(super) fn wait_released(&self, until: Until, timeout: Option<Delta>) -> Result {
        // A negative timeout could not be subtracted from.
        let timeout = timeout.map(|timeout| timeout.max(Delta::ZERO));
        let start = Instant::<Monotonic>::now();
        if timeout.is_none() {
            holder::may_wait(self);
        }
        let mut interval = Delta::from_secs(10);
        let mut next_message = interval;

        loop {
            let elapsed = start.elapsed();
            let left = timeout.map(|timeout| timeout - elapsed);
            let to_message = next_message - elapsed;
            let is_last = left.is_some_and(|left| left <= to_message);
            let slice = if is_last { left } else { Some(to_message) };
            // `Acquire` pairs with the `Full` in `drop_hold()`, which wakes us up
            // (litmus: wait-released).
            let result =
                self.class
                    .waiters()
                    .wait_event(&raw const self.state, until, slice, || {
                        self.state.load(Acquire) & LIVES_MASK == 0
                    });
            match result {
                Err(error) if error == ETIMEDOUT && !is_last => {
                    self.report_wait(start.elapsed());
                    interval = interval + interval;
                    next_message += interval;
                }
                result => return result,
            }
        }
    }

    /// Drops the owner's handle of a killed reference.
    ///
    /// # Safety
    ///
    /// `this` must be the beginning of a shared object whose reference was killed. The caller must
    /// have its handle, and must not use the object after this.
    pub(super) unsafe fn drop_handle(this: NonNull<Self>) {
        // SAFETY: By the safety requirements of this function, the caller has the handle, which is
        // a hold, and does not use the object after this.
        unsafe { Self::drop_hold(this, HANDLE, 0) };
    }

    /// Enters the functions of the object's module; see [`Class::enter`].
    pub(super) fn enter_module(&self) -> Option<Running<'static>> {
        self.class.enter()
    }
}

/// The memory of a dropped object that is freed after a grace period.
///
/// Readers that found the object under RCU read `word` and `atomic`, and fail to get a reference.
/// Also, the functions that free memory cannot be called in each context in which an object is
/// dropped.
///
/// # Invariants
///
/// Owns the memory. Other threads only read `word`, `atomic`, `state`, `class` and `killed_at`.
struct Remains(NonNull<Count>);

// SAFETY: The memory can be freed on any thread.
unsafe impl Send for Remains {}

impl_rcu_pointer! {
    // SAFETY: By the type invariant, the memory is valid, and it does not move. By the invariants
    // of `Count`, its head belongs to the thread that dropped the last hold.
    unsafe impl RcuPointer for Remains(Count, rcu), |Remains(this): Remains| {
        // SAFETY: By the type invariant, we own the memory. The grace period has waited for the
        // readers, so the count is not used after this.
        unsafe { Count::free(this) };
    }
}

/// Replaces a value by the result of `new`, and returns the old value.
///
/// The operation is `Full`. Each caller says which order it needs.
pub(super) fn update(atomic: &Atomic<u64>, new: impl Fn(u64) -> u64) -> u64 {
    let mut old = atomic.load(Relaxed);
    while let Err(found) = atomic.cmpxchg(old, new(old), Full) {
        old = found;
    }
    old
}

/// Warns once if RCU is not watching.
#[cold]
#[inline(never)]
fn assert_rcu_is_watching() {
    // SAFETY: `rcu_is_watching()` can be called from any context.
    if !unsafe { bindings::rcu_is_watching() } {
        do_once_lite! {
            pr_err!("percpu_ref used while RCU is not watching\n");
            warn_on!(true);
        }
    }
}

impl Drop for Count {
    /// Frees what [`Count::new`] allocated for a reference that was never shared.
    #[doc(alias("percpu_ref_cancel_init", "percpu_ref_exit"))]
    fn drop(&mut self) {
        let word = self.word.load(Relaxed);
        // SAFETY: Only an unshared count is dropped, so no other thread has the count.
        let mut counters = unsafe { Self::counters(word) };

        // Only a bug in unsafe code can lead to this.
        if cfg!(debug_assertions) {
            let expected = if word.has(DEAD) { 0 } else { 1 + BIAS };
            // Checks each counter instead of their sum, because a get on one CPU and a put on
            // another CPU are a use as well.
            let is_used = self.atomic.load(Relaxed) != expected
                || counters
                    .iter_mut()
                    .any(|(_, counter)| *counter.get_mut() != 0);
            if is_used {
                do_once_lite! { warn_on!(true); }
            }
        }

        // SAFETY: The counters are not used after this.
        unsafe { ManuallyDrop::drop(&mut counters) };
        if self.state.load(Relaxed) & KILLED == 0 {
            self.class.sub_unkilled();
        }
        self.class.put();
    }
}

// SPDX-License-Identifier: GPL-2.0

//! The count itself, without the type of what it counts.
//!
//! In *per-CPU mode* a get adds one to this CPU's counter and a put subtracts one. A single counter
//! may go below zero and wrap, because a reference that was got on one CPU may be put on another.
//! Only the sum of all counters modulo 2^64 means anything, and no get or put computes it, so none
//! would see it fall to zero. It cannot fall to zero: only [`Count::kill`] puts the *initial
//! reference*.
//!
//! In *atomic mode* all use one atomic variable. Setting a flag in the word where every get and put
//! finds the address of the counters begins the switch to it. Some CPUs may not have seen the flag
//! yet. After a grace period they all have, the per-CPU counters are at rest, and the RCU callback
//! adds them to the atomic. Until it does, gets and puts have been counted here and there, and the
//! atomic alone might pass zero at any time; [`BIAS`] keeps it away from there.
//!
//! The bias does a second thing. It stays in until the reference is dying *and* the counters are
//! added, and [`Count::try_get_live`] succeeds in atomic mode as long as it finds it. Taking it out
//! is therefore one atomic operation after which no such call succeeds: the reference is *closed*,
//! and the count can fall to zero. [`Count::resurrect`] puts the bias in again.
//!
//! How the modes follow each other is in `switch.rs`, the arithmetic of the atomic in `value.rs`.
//!
//! # Functions that may end the object
//!
//! They take a pointer and not `&self`. As soon as such a function has put its reference, another
//! CPU may free the object, while a reference in an argument promises that the object outlives the
//! call. A reference to a field that is an atomic promises no such thing, so these are used
//! ([`Count::word_of`] and the like).
//!
//! C source: [`lib/percpu-refcount.c`](srctree/lib/percpu-refcount.c)

use super::{
    holder,
    release::Link,
    switch,
    unload::{
        Class,
        Ops,
        Running, //
    },
    value::{
        self,
        is_valid,
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
    fmt,
    percpu::{
        Local,
        PerCpu, //
    },
    preempt::PreemptGuard,
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

/// In [`Count::state`]: one life that has not ended, or one thread that must keep the memory for a
/// moment.
///
/// All lives but the current one are inside their release on some stack, and each thread that
/// revives has one more. There are at most 2^22 threads (`PID_MAX_LIMIT`), and a release that
/// revives and kills again nests on its own stack only a few times. If releases never return, a
/// carry goes to the freezers, which keep the memory, too.
pub(super) const LIFE: u64 = 1 << 0;
/// In [`Count::state`]: the number of lives.
pub(super) const LIVES_MASK: u64 = (1 << 24) - LIFE;
/// In [`Count::state`]: one [`Frozen`](super::Frozen), or one call of `freeze()` that waits.
pub(super) const FREEZER: u64 = 1 << 24;
/// In [`Count::state`]: the number of freezers. If it is full, it stays so, and the object stays
/// frozen.
pub(super) const FREEZERS_MASK: u64 = (1 << 48) - FREEZER;
/// In [`Count::state`]: the owner has its [`PercpuRef`](super::PercpuRef).
const HANDLE: u64 = 1 << 48;
/// In [`Count::state`]: whatever keeps the memory of the object.
const HOLDS_MASK: u64 = LIVES_MASK | FREEZERS_MASK | HANDLE;
/// In [`Count::state`]: the object may live more than once, and stays as long as there are holds.
pub(super) const REINIT: u64 = 1 << 49;
/// In [`Count::state`]: the object outlived its module and must stay in memory.
const LEAKED: u64 = 1 << 50;
/// In [`Count::state`]: RCU readers may find the object.
const PUBLISHED: u64 = 1 << 51;
/// In [`Count::state`]: the owner killed the reference, and did not resurrect it since.
pub(super) const KILLED: u64 = 1 << 52;
/// In [`Count::state`]: the confirmation of the kill is to be called.
pub(super) const CONFIRM: u64 = 1 << 53;
/// In [`Count::state`]: the confirmation of the switch is to be called.
pub(super) const NOTIFY: u64 = 1 << 54;

/// In [`Count::state`]: a thread has killed the reference, and has not set [`DEAD`] yet.
pub(super) const KILLING: u64 = 1 << 55;
/// In [`Count::state`]: a thread revives the reference, and has not cleared [`DEAD`] yet.
pub(super) const REVIVING: u64 = 1 << 56;

/// In [`Count::state`]: gets and puts are in [`Section::Tasks`], so RCU Tasks must be waited for.
pub(super) const TASKS: u64 = 1 << 57;

/// Returns whether a reference with this state must be dead. [`DEAD`] follows it.
pub(super) const fn is_dead(state: u64) -> bool {
    state & (KILLED | FREEZERS_MASK) != 0
}

/// How a count begins.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Start {
    /// In per-CPU mode, to live once.
    Once,
    /// In per-CPU mode, to live once, with gets and puts in [`Section::Tasks`].
    OnceTasks,
    /// In per-CPU mode.
    Reinit,
    /// In atomic mode.
    Atomic,
    /// Dead, with a count of zero.
    Dead,
}

/// A reference count at the beginning of a heap-allocated object.
///
/// A *life* of the object goes through these states. All but the first and the last are repeated
/// by switching modes and by resurrection, if the count was made for that:
///
/// - *unshared*, from [`Count::new`] on: one owner, which may drop it;
/// - *live*, in per-CPU mode or in atomic mode;
/// - *dying*, from [`Count::kill`] or [`Count::freeze`] on: [`DEAD`] is set;
/// - *closed*: the counters are added to the atomic and the bias is out. The thread or callback
///   that closed it goes on to put the initial reference;
/// - *zero*: there are no references. The object is then *released*: it is told so.
///
/// # Invariants
///
/// - Until the callback of the one life that it has, or else until the object is dropped, `word`
///   without its flags is the `PerCpu<Local<u64>>` that the count owns. Without flags
///   all CPUs may change the counters, in a [`Section`] in which they found the word so: a
///   `Section::Tasks` if the count is [`TASKS`], and else a `Section::Preempt`. In atomic mode
///   without [`BUSY`] the counters are zero, unless the object lives once.
/// - The counters' sum plus `atomic`, modulo 2^64, is the number of references, plus [`BIAS`]
///   until the reference is closed; or `atomic` is [`SATURATED`]. The initial reference is one of
///   them until it is closed, and then [`INITIAL`](value::INITIAL), until the one that closed it
///   puts it.
/// - [`DEAD`] is set in each life once, by the thread that owns the initial reference from then on,
///   and passes it to the one that closes the reference.
/// - `class` counts this object until the object is dropped.
/// - The memory that the count is in came from `kmalloc()`. It is freed when the last of
///   [`HOLDS_MASK`] is gone, after a grace period if it is [`PUBLISHED`] or [`REINIT`] and on
///   PREEMPT_RT, and not if it is [`LEAKED`]. If it is [`PUBLISHED`] and [`TASKS`], that is one of
///   RCU Tasks and one of RCU.
/// - `rcu` is used by the owner of [`BUSY`], or by the killer of an object that lives once, and
///   when there are no holds, by the thread that dropped the last. `link` is used by the thread
///   that ended the life of an object that lives once.
pub(super) struct Count {
    /// The address of the per-CPU counters, and flags.
    pub(super) word: Atomic<Word>,
    pub(super) atomic: Atomic<u64>,
    pub(super) class: &'static Class,
    pub(super) state: Atomic<u64>,
    /// How a killer and the RCU callback that completes a switch agree on which of them closes.
    pub(super) handover: Atomic<u32>,
    /// When this life was killed: seconds of the monotonic clock. For messages.
    pub(super) killed_at: Atomic<u32>,
    pub(super) rcu: RcuHead,
    link: Link,
    /// The holder that stands for the object, from the moment that it is shared.
    pub(super) holder: UnsafeCell<holder::Holder>,
}

// No more than C's `percpu_ref` and `percpu_ref_data` take together on 64-bit machines, and as much
// on each CPU.
const _: () = assert!(cfg!(CONFIG_RUST_PERCPU_REF_DEBUG) || size_of::<Count>() <= 72);
const _: () = assert!(size_of::<Local<u64>>() == 8);

// SAFETY: The fields are atomic, or by the type invariants used by one thread at a time.
unsafe impl Send for Count {}

// SAFETY: The fields are atomic, or by the type invariants used by one thread at a time.
unsafe impl Sync for Count {}

impl Count {
    /// Makes a count for an object with the operations `ops`, in place.
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

            // INVARIANT: The counters are zero. There is the initial reference, or the reference is
            // closed and there is none. The holds are one life, if there is one, and the handle.
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
        // SAFETY: The closure makes all of the count, or fails and makes nothing.
        unsafe { pin_init::init_from_closure(init) }
    }

    /// Returns the counters that `word` is the address of.
    ///
    /// # Safety
    ///
    /// `word` must have come from [`Count::word`], and for as long as the returned value is used,
    /// either
    /// - no other thread must have the count, or
    /// - `word` must have no flag, and the caller must be in the [`Section`] that it was read in,
    ///   or
    /// - the caller must be the callback.
    #[inline]
    pub(super) unsafe fn counters(word: Word) -> ManuallyDrop<PerCpu<Local<u64>>> {
        // SAFETY: By the type invariant, this is what `into_raw()` returned in `new()`. The
        // counters are freed after the grace period that follows a flag and waits for the sections,
        // or when no other thread has the count.
        ManuallyDrop::new(unsafe { PerCpu::from_raw(word.counters()) })
    }

    /// Returns the word of a count, which may be freed before the reference is dropped.
    ///
    /// # Safety
    ///
    /// `this` must be valid now, and at each use of the returned reference.
    #[inline(always)]
    pub(super) unsafe fn word_of<'a>(this: NonNull<Self>) -> &'a Atomic<Word> {
        // SAFETY: By the safety requirements of this function, `this` is valid.
        unsafe { &(*this.as_ptr()).word }
    }

    /// Returns the atomic of a count, which may be freed before the reference is dropped.
    ///
    /// # Safety
    ///
    /// `this` must be valid now, and at each use of the returned reference.
    #[inline(always)]
    pub(super) unsafe fn atomic_of<'a>(this: NonNull<Self>) -> &'a Atomic<u64> {
        // SAFETY: By the safety requirements of this function, `this` is valid.
        unsafe { &(*this.as_ptr()).atomic }
    }

    /// Returns the state of a count, which may be freed before the reference is dropped.
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

    /// Applies `local` to the counters and returns `true` in per-CPU mode. Returns `false` in
    /// atomic mode.
    ///
    /// The count may be gone when this returns: the section has ended.
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

        // `Relaxed`: the counters are zero before the word has no flag, and their address depends
        // on it: see `switch_to_percpu()` (litmus: counters-are-zero). A CPU or task that does not
        // see a flag yet is inside the section entered above, so the grace period that starts after
        // the flag was set waits for it (litmus: put-before-callback).
        let word = read_once(word);
        if word.is_percpu() {
            // SAFETY: No flag is set, and we are in the section.
            local(&*unsafe { Self::counters(word) });
            drop(section);
            true
        } else {
            section.leave();
            false
        }
    }

    /// Adds `n` references. The caller must hold a reference until this returns.
    #[inline(always)]
    pub(super) fn get(&self, n: usize, tasks: bool) {
        if n > MAX_LOCAL || !Self::if_percpu(&self.word, tasks, |counters| add(counters, n)) {
            self.get_atomic(n);
        }
    }

    #[cold]
    #[inline(never)]
    fn get_atomic(&self, n: usize) {
        // `Relaxed`: the caller's own reference orders this against the end (litmus: get-relaxed).
        let new = if n <= MAX_LOCAL {
            plus(self.atomic.fetch_add(n as u64, Relaxed), n)
        } else {
            // In one step, since the sum may be so large that it is valid again.
            plus(update(&self.atomic, |old| plus(old, n)), n)
        };
        if new == SATURATED {
            // The rule in `value.rs`: the caller still holds its reference.
            //
            // SAFETY: The object is alive, and `self` the beginning of it.
            unsafe { Self::saturate(NonNull::from(self)) };
        }
    }

    /// Adds `n` references unless the count is zero, or they are too many.
    #[inline(always)]
    pub(super) fn try_get(&self, n: usize, tasks: bool) -> bool {
        (n <= MAX_LOCAL && Self::if_percpu(&self.word, tasks, |counters| add(counters, n)))
            || self.try_get_atomic(n, false)
    }

    /// Adds `n` references unless the reference is dying, or they are too many.
    #[inline(always)]
    pub(super) fn try_get_live(&self, n: usize, tasks: bool) -> bool {
        (n <= MAX_LOCAL && Self::if_percpu(&self.word, tasks, |counters| add(counters, n)))
            || self.try_get_atomic(n, true)
    }

    #[cold]
    #[inline(never)]
    fn try_get_atomic(&self, n: usize, live: bool) -> bool {
        if live && self.is_dying() {
            return false;
        }
        // The test and the addition must be one step, so that no reference is added to a count of
        // zero (litmus: no-get-after-zero), or with `live`, to one that is closed
        // (litmus: no-live-get-after-confirmation).
        let mut old = self.atomic.load(Relaxed);
        while let Some(new) = try_plus(old, n, live) {
            // `Relaxed`: the references that are found keep the count from zero
            // (litmus: no-get-after-zero), and the put of the new one is ordered before the end
            // (litmus: release-sees-all).
            match self.atomic.cmpxchg(old, new, Relaxed) {
                Ok(_) => return true,
                Err(found) => old = found,
            }
        }
        false
    }

    /// Adds `n` references as [`try_get`](Self::try_get) does, or with `live` as
    /// [`try_get_live`](Self::try_get_live) does, to a count that the caller has no reference to.
    /// Leaves `section`.
    ///
    /// # Safety
    ///
    /// `this` must be valid until `section` ends, and `section` must be that of the count.
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
        // `Relaxed`: see `if_percpu()`, which has these lines, too. If the two shared a function,
        // the compiler would load the pointer to the object once more in each get.
        //
        // SAFETY: By the safety requirements of this function, `this` is valid.
        let word = read_once(unsafe { Self::word_of(this) });
        if n <= MAX_LOCAL && word.is_percpu() {
            // SAFETY: No flag is set, and we are in the section.
            add(&*unsafe { Self::counters(word) }, n);
            drop(section);
            return true;
        }
        // SAFETY: By the safety requirements of this function, `this` is valid until `section`
        // ends.
        unsafe { Self::try_get_found_atomic(this, n, live, section) }
    }

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
        // SAFETY: By the safety requirements of this function, `this` is valid.
        let is_got = unsafe { &*this.as_ptr() }.try_get_atomic(n, live);
        // The count may be gone when the section has ended.
        drop(section);
        is_got
    }

    /// Drops `n` references, and releases the object if they were the last ones.
    ///
    /// # Safety
    ///
    /// The caller must own `n` references, at least one, to the object that begins at `this`, and
    /// gives them up. `tasks` must be whether the count is [`TASKS`].
    #[inline(always)]
    pub(super) unsafe fn put(this: NonNull<Self>, n: usize, tasks: bool) {
        // SAFETY: Until the counter is changed, the caller's reference keeps the object alive.
        let word = unsafe { Self::word_of(this) };
        let is_done = n <= MAX_LOCAL && Self::if_percpu(word, tasks, |counters| sub(counters, n));
        if !is_done {
            // The section has ended, since `release()` may take sleeping locks on PREEMPT_RT. The
            // caller's references alone keep the object until the next line.
            //
            // SAFETY: By the safety requirements of this function, the caller owns `n` references.
            unsafe { Self::put_atomic(this, n) };
        }
    }

    /// # Safety
    ///
    /// The caller must own `n` references, at least one, to the object that begins at `this`, and
    /// gives them up.
    #[cold]
    #[inline(never)]
    unsafe fn put_atomic(this: NonNull<Self>, n: usize) {
        // SAFETY: There is a reference, so the object is alive.
        let atomic = unsafe { Self::atomic_of(this) };

        // `Full`, in both: all uses of the object, by us and by those that put before, come before
        // its end (litmus: release-sees-all).
        let old = if n <= MAX_LOCAL {
            atomic.fetch_sub(n as u64, Full)
        } else {
            update(atomic, |old| minus(old, n))
        };
        match minus(old, n) {
            // SAFETY: These were the last references, and no reference is added to a count of zero.
            0 => unsafe { Self::release(this) },
            // SAFETY: By the rule in `value.rs`, the object is leaked or held by another thread
            // until it is.
            SATURATED => unsafe { Self::saturate(this) },
            _ => {}
        }
    }

    /// Leaks the object, since the number of references is not known.
    ///
    /// # Safety
    ///
    /// `this` must be valid, and by the rule in `value.rs` must not end before this returns.
    #[cold]
    unsafe fn saturate(this: NonNull<Self>) {
        // SAFETY: By the safety requirements of this function, `this` is valid.
        unsafe { Self::atomic_of(this) }.store(SATURATED, Relaxed);
        do_once_lite! {
            // SAFETY: By the safety requirements of this function, `this` is valid.
            report(unsafe { Self::class_of(this) }, format_args!("saturated"));
        }
    }

    /// Ends a life of the object.
    ///
    /// # Safety
    ///
    /// The number of references must just have fallen to zero, by an operation of the caller.
    #[cold]
    pub(super) unsafe fn release(this: NonNull<Self>) {
        // SAFETY: The life that ends keeps the memory.
        match unsafe { Self::class_of(this) }.enter() {
            Some(running) if running.ops().may_sleep => {
                // SAFETY: Such an object lives once, so `link` was not used before.
                unsafe {
                    let link = &raw mut (*this.as_ptr()).link;
                    Self::class_of(this)
                        .releases()
                        .queue(NonNull::new_unchecked(link));
                }
            }
            // SAFETY: By the safety requirements of this function, the count just fell to zero.
            running => unsafe { Self::finish_release(this, running) },
        }
    }

    /// Returns the class of the count that `link` is a field of.
    ///
    /// # Safety
    ///
    /// `link` must be the field of a valid count.
    pub(super) unsafe fn class_of_link(link: NonNull<Link>) -> &'static Class {
        // SAFETY: By the safety requirements of this function, `link` is the field of a count,
        // which is valid.
        unsafe { (*container_of!(link.as_ptr(), Count, link)).class }
    }

    /// Completes a release that [`Count::release`] queued.
    ///
    /// # Safety
    ///
    /// `link` must be what [`Releases::queue`](super::release::Releases::queue) was called with,
    /// and this must be called once.
    pub(super) unsafe fn run_release(link: NonNull<Link>) {
        // SAFETY: By the safety requirements of this function, `link` is the field of a count. The
        // address of a count is not null.
        let this = unsafe { NonNull::new_unchecked(container_of!(link.as_ptr(), Count, link)) };

        // SAFETY: The life that ends keeps the memory.
        let running = unsafe { Self::class_of(this) }.enter();
        // SAFETY: The count fell to zero before the release was queued, and this is called once.
        unsafe { Self::finish_release(this, running) };
    }

    /// Tells the object that a life has ended, and drops what lives once.
    ///
    /// # Safety
    ///
    /// Must be called once for each time that the number of references fell to zero.
    unsafe fn finish_release(this: NonNull<Self>, running: Option<Running<'static>>) {
        // SAFETY: The life that ends keeps the memory.
        let state = unsafe { Self::state_of(this) };
        let is_last = state.load(Relaxed) & REINIT == 0;

        let leaked = match running {
            Some(running) => {
                // SAFETY: The object is there: it is dropped below, or not before there are no
                // holds.
                unsafe { (running.ops().release)(this.cast()) };
                if is_last {
                    // SAFETY: The object lives once, so no reference is added to a count of zero,
                    // and this is called once.
                    unsafe { (running.ops().drop)(this.cast()) };
                    // SAFETY: The life that ends keeps the memory.
                    unsafe { holder::end_object(this) };
                    // SAFETY: The life that ends keeps the memory.
                    unsafe { Self::class_of(this) }.put();
                }
                0
            }
            None if is_last => LEAKED,
            None => 0,
        };
        // SAFETY: The life has ended, and we own its hold.
        unsafe { Self::drop_hold(this, LIFE, leaked) };
    }

    /// Takes a hold away, and frees the object if it was the last one. Sets the flags `with`
    /// besides.
    ///
    /// # Safety
    ///
    /// The caller must own the hold, and must not use the object after this.
    pub(super) unsafe fn drop_hold(this: NonNull<Self>, hold: u64, with: u64) {
        // SAFETY: The hold keeps the memory.
        let (state, class) = unsafe { (Self::state_of(this), Self::class_of(this)) };
        // A reference must not be used when the memory is gone.
        let waited_for = ptr::from_ref(state);

        // `Full`: what was done by the owners of holds comes before the end of the object
        // (litmus: last-hold-frees), and before `wait_released()` returns (litmus: wait-released).
        // From here on, the memory is not ours unless there are no holds.
        let old = state.fetch_add(with.wrapping_sub(hold), Full);
        let new = old.wrapping_add(with.wrapping_sub(hold));
        if new & HOLDS_MASK == 0 {
            // SAFETY: That was the last hold.
            unsafe { Self::end(this, new) };
        }
        class.waiters().wake_up(waited_for);
    }

    /// Drops the object if that is not done yet, and frees the memory.
    ///
    /// # Safety
    ///
    /// There must be no holds of the object, and `state` must be its state.
    #[inline(never)] // It queues a callback: see `RcuPointer::IN_KERNEL_CRATE`.
    unsafe fn end(this: NonNull<Self>, state: u64) {
        if state & REINIT != 0 {
            // SAFETY: The memory is not freed yet.
            let class = unsafe { Self::class_of(this) };
            let Some(running) = class.enter() else {
                return;
            };
            // SAFETY: There are no holds, so the object is not used. This is called once.
            unsafe { (running.ops().drop)(this.cast()) };
            // SAFETY: The memory is not freed yet.
            unsafe { holder::end_object(this) };
            class.put();
        } else if state & LEAKED != 0 {
            return;
        }
        // This may be a hard interrupt. There, `free_percpu()` must not be called, since it takes a
        // `spinlock_t`, and on PREEMPT_RT, neither must `kfree()`. The counters of an object that
        // lives once are free already.
        let at_once = state & (PUBLISHED | REINIT) == 0 && !cfg!(CONFIG_PREEMPT_RT);
        // Readers may find the count by the record of a holder.
        let at_once = at_once && !cfg!(CONFIG_RUST_PERCPU_REF_DEBUG);
        if at_once {
            // SAFETY: The object is dropped and not used.
            unsafe { Self::free(this) };
        } else if state & PUBLISHED != 0 && state & TASKS != 0 {
            // Readers find it in a `Section::Tasks`.
            rcu::call_tasks(Remains(this));
        } else {
            rcu::call(Remains(this));
        }
    }

    /// Frees the memory of an object that was dropped.
    ///
    /// # Safety
    ///
    /// The count must not be used after this.
    unsafe fn free(this: NonNull<Self>) {
        // SAFETY: The memory is not freed yet.
        let is_reinit = unsafe { Self::state_of(this) }.load(Relaxed) & REINIT != 0;
        if is_reinit {
            // SAFETY: No other thread has the count, and the counters are not used after this.
            unsafe { ManuallyDrop::drop(&mut Self::counters(Self::word_of(this).load(Relaxed))) };
        }
        // SAFETY: By the type invariant, the memory came from `kmalloc()`.
        unsafe { bindings::kfree(this.as_ptr().cast()) };
    }

    /// Lets RCU readers find the object. The caller must have the handle.
    pub(super) fn publish(&self) {
        // The hold is given up by an operation on the same variable, which so finds the flag
        // (litmus: place-memory-stays).
        let _ = change(&self.state, |state| {
            (state & PUBLISHED == 0).then_some(state | PUBLISHED)
        });
    }

    /// Returns whether the reference was killed or frozen, and lives not again.
    pub(super) fn is_dying(&self) -> bool {
        // `Relaxed`: the answer may be old at once.
        self.word.load(Relaxed).has(DEAD)
    }

    /// Returns whether the reference is closed and there are no references.
    pub(super) fn is_zero(&self) -> bool {
        // `Acquire` pairs with the `Full` in `put()` (litmus: is-zero).
        is_zero(self.atomic.load(Acquire))
    }

    /// Returns the number of references, or `None` if only the counters tell.
    pub(super) fn references(&self) -> Option<usize> {
        // In atomic mode, the counters are zero unless a transition is under way. `Acquire`, twice:
        // the value was read while the word was like this, neither before
        // (litmus: references-of-mode) nor after (litmus: references-before-switch).
        let word = self.word.load(Acquire);
        let value = self.atomic.load(Acquire);
        let is_atomic = word.has(FORCE) && !word.has(BUSY) && self.word.load(Relaxed) == word;
        if is_atomic || !value::is_open(value) {
            // More than there can be: the mode has changed in between.
            value::references(value)
                .filter(|&n| n <= value::LIMIT)
                .and_then(|n| usize::try_from(n).ok())
        } else {
            None
        }
    }

    /// Returns how long ago this life was killed, in seconds, if it was. While a kill is under way,
    /// the answer may be that of the last life.
    pub(super) fn killed_ago(&self) -> Option<u32> {
        // `Acquire`: the time is read after the flag. Where the object lives once, the time was set
        // before the flag (litmus: killed-ago).
        let is_dying = self.word.load(Acquire).has(DEAD);
        let killed = self.killed_at.load(Relaxed);
        (is_dying && killed != 0).then(|| seconds().wrapping_sub(killed))
    }

    /// Returns the names of the state and the mode, for `Debug` and for messages.
    pub(super) fn describe(&self) -> (&'static str, &'static str) {
        let state = self.state.load(Relaxed);
        let word = self.word.load(Relaxed);
        let value = self.atomic.load(Relaxed);

        let state = if !is_valid(value) {
            "leaked"
        } else if !word.has(DEAD) {
            "live"
        } else if is_zero(value) && state & LIVES_MASK != 0 {
            "zero, in its release"
        } else if is_zero(value) {
            "zero"
        } else if !value::is_open(value) {
            "closed"
        } else {
            "dying"
        };
        let mode = if word.has(BUSY) || state == "dying" {
            "switching"
        } else if word.has(FORCE) {
            "atomic"
        } else {
            "per-CPU"
        };
        (state, mode)
    }

    /// Formats a handle called `name` for [`fmt::Debug`].
    pub(super) fn fmt_as<T>(&self, name: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt_described::<T>(name, self.describe(), self.references(), f)
    }

    /// Sleeps until all lives have ended, or for `timeout` at most. The caller must have a hold.
    ///
    /// A wait that lasts is logged after ten seconds, and then at twice the interval each time.
    pub(super) fn wait_released(&self, until: Until, timeout: Option<Delta>) -> Result {
        // A negative one could not be subtracted from.
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

    /// Logs that the current task waits for the release.
    #[cold]
    fn report_wait(&self, elapsed: Delta) {
        // No 64-bit number is formatted: on 32-bit machines that takes a division that the kernel
        // does not have.
        let elapsed = elapsed.as_millis() as usize / 1000;
        let running = self.class.enter();
        let name = name_of(&running);
        let task = crate::current!();
        // SAFETY: The current task has a name, which ends with a null.
        let comm = unsafe { CStr::from_char_ptr((&raw const (*task.as_ptr()).comm).cast()) };
        let pid = task.pid();
        let (state, mode) = self.describe();

        let Some(killed) = self.killed_ago() else {
            pr_warn!(
                "{comm}[{pid}] has waited {elapsed} s for the release of {name}, which is {state} \
                 in {mode} mode: not killed\n"
            );
            holder::report_oldest(Some(self), self.class);
            return;
        };
        match self.references() {
            Some(references) => pr_warn!(
                "{comm}[{pid}] has waited {elapsed} s for the release of {name}, which is {state}: \
                 killed {killed} s ago, {references} references left\n"
            ),
            None => pr_warn!(
                "{comm}[{pid}] has waited {elapsed} s for the release of {name}, which is {state}: \
                 killed {killed} s ago, references not known\n"
            ),
        }
        holder::report_oldest(Some(self), self.class);
    }

    /// Gives up the owner's handle. The reference must have been killed.
    ///
    /// # Safety
    ///
    /// `this` must be the beginning of a shared object. The caller must have its handle, and must
    /// not use the object after this.
    pub(super) unsafe fn drop_handle(this: NonNull<Self>) {
        // SAFETY: The handle is one of the holds, and the caller gives it up.
        unsafe { Self::drop_hold(this, HANDLE, 0) };
    }

    /// Enters the functions of the object's module; see [`Class::enter`].
    pub(super) fn enter_module(&self) -> Option<Running<'static>> {
        self.class.enter()
    }
}

/// The memory of an object that was dropped, on its way to be freed after a grace period: readers
/// that found the object by RCU learn from `word` and `atomic` that they came too late, and what
/// frees memory may not be called where the object was dropped.
///
/// # Invariants
///
/// Owns the memory. Other threads only read `word`, `atomic`, `state`, `class` and `killed_at`.
struct Remains(NonNull<Count>);

// SAFETY: The memory may be freed on any thread.
unsafe impl Send for Remains {}

impl_rcu_pointer! {
    // SAFETY: By the type invariant, the memory is there, and does not move. By the invariants of
    // `Count`, its head belongs to the one that dropped the last hold.
    unsafe impl RcuPointer for Remains(Count, rcu), |Remains(this): Remains| {
        // SAFETY: By the type invariant, the memory is ours. The grace period waited for the
        // readers.
        unsafe { Count::free(this) };
    }
}

/// Formats what [`Count::describe`] and [`Count::references`] returned.
pub(super) fn fmt_described<T>(
    name: &str,
    (state, mode): (&'static str, &'static str),
    references: Option<usize>,
    f: &mut fmt::Formatter<'_>,
) -> fmt::Result {
    f.debug_struct(name)
        .field("of", &core::any::type_name::<T>())
        .field("state", &state)
        .field("mode", &mode)
        .field("references", &references)
        .finish()
}

/// Returns the time in seconds, for messages.
pub(super) fn seconds() -> u32 {
    // SAFETY: The function takes no arguments.
    unsafe { bindings::ktime_get_seconds() as u32 }
}

/// Returns the name of a class's type.
fn name_of(running: &Option<Running<'_>>) -> &'static str {
    running
        .as_ref()
        .map_or("(unloaded)", |running| (running.ops().name)())
}

/// Logs that an object is leaked, and why, with a stack trace.
pub(super) fn report(class: &Class, why: fmt::Arguments<'_>) {
    let running = class.enter();
    pr_err!("{}: {why}; leaking memory\n", name_of(&running));
    warn_on!(true);
}

/// Changes a value to what `new` makes of it, and returns what it was.
///
/// `Full`, for the sake of all callers, which say what they need.
pub(super) fn update(atomic: &Atomic<u64>, new: impl Fn(u64) -> u64) -> u64 {
    let mut old = atomic.load(Relaxed);
    while let Err(found) = atomic.cmpxchg(old, new(old), Full) {
        old = found;
    }
    old
}

/// Changes a state to what `new` makes of it, unless that is `None`. Returns what it was, as `Ok`
/// if it was changed, and else as `Err`.
///
/// `Full` if it was changed, for the sake of all callers, which say what they need.
pub(super) fn change(state: &Atomic<u64>, new: impl Fn(u64) -> Option<u64>) -> Result<u64, u64> {
    let mut old = state.load(Relaxed);
    while let Some(new) = new(old) {
        match state.cmpxchg(old, new, Full) {
            Ok(_) => return Ok(old),
            Err(found) => old = found,
        }
    }
    Err(old)
}

/// Warns if RCU is not watching, once.
#[cold]
#[inline(never)]
fn assert_rcu_is_watching() {
    // SAFETY: Can be called from any context.
    if !unsafe { bindings::rcu_is_watching() } {
        do_once_lite! {
            pr_err!("percpu_ref used while RCU is not watching\n");
            warn_on!(true);
        }
    }
}

/// What a get or put is in from before it reads the word until it has counted.
///
/// A flag in the word is followed by a grace period that waits for these.
pub(super) enum Section {
    /// A region with preemption disabled, which RCU takes for a read-side critical section.
    Preempt(PreemptGuard),
    /// What RCU Tasks takes for a read-side critical section of a task: it goes on until the task
    /// sleeps, even if the task is preempted, and migrated. Nothing is to be done to begin or end
    /// it. In interrupts, and in the idle tasks, which do everything with preemption disabled, it
    /// is one of RCU. See `switch.rs`.
    Tasks,
}

impl Section {
    /// Begins a section: a [`Section::Tasks`] if `tasks`.
    #[inline(always)]
    pub(super) fn enter(tasks: bool) -> Self {
        if tasks {
            Self::Tasks
        } else {
            Self::Preempt(PreemptGuard::nested())
        }
    }

    /// Ends the section out of line, so that the fast path is small enough to be inlined.
    #[inline(always)]
    pub(super) fn leave(self) {
        #[cold]
        #[inline(never)]
        fn leave(_guard: PreemptGuard) {}

        if let Self::Preempt(guard) = self {
            leave(guard);
        }
    }
}

/// Adds `n` to the local CPU's counter. For all but the batches that is the constant 1.
#[inline(always)]
fn add(counters: &PerCpu<Local<u64>>, n: usize) {
    if n == 1 {
        counters.inc_on_cpu();
    } else {
        counters.add_on_cpu(n as u64);
    }
}

/// Subtracts `n` from the local CPU's counter. For all but the batches that is the constant 1.
#[inline(always)]
fn sub(counters: &PerCpu<Local<u64>>, n: usize) {
    if n == 1 {
        counters.dec_on_cpu();
    } else {
        counters.add_on_cpu((n as u64).wrapping_neg());
    }
}

impl Drop for Count {
    /// Undoes [`Count::new`] for a reference that was never shared. No callback is involved.
    #[doc(alias("percpu_ref_cancel_init", "percpu_ref_exit"))]
    fn drop(&mut self) {
        let word = self.word.load(Relaxed);
        // SAFETY: Only an unshared count is dropped, so no other thread has it.
        let mut counters = unsafe { Self::counters(word) };

        // Only a bug in unsafe code leads to this.
        if cfg!(debug_assertions) {
            let expected = if word.has(DEAD) { 0 } else { 1 + BIAS };
            // Each counter, not their sum: a get here and a put there are a use, too.
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

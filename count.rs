// SPDX-License-Identifier: GPL-2.0

//! The count itself, without the type of what it counts.
//!
//! In *per-CPU mode* a get adds one to this CPU's counter and a put subtracts one. A single counter
//! may go below zero and wrap, for what is got on one CPU may be put on another; only their sum
//! modulo 2^64 means anything, and nobody computes it. So nobody would see it fall to
//! zero, either. It cannot: the *initial reference* is put by [`Count::kill`] alone.
//!
//! In *atomic mode* all use one atomic variable. Setting a flag in the word where every get and put
//! finds the address of the counters begins the switch to it. Some CPUs may not have seen the flag
//! yet. After a grace period they all have, the per-CPU counters are at rest, and the RCU callback
//! adds them to the atomic. Until it does, gets and puts have been counted here and there, and the
//! atomic alone might pass zero at any time; [`BIAS`] keeps it away from there.
//!
//! The bias does a second thing. It stays in until the reference is dying *and* the counters are
//! added, and [`Count::try_get`] succeeds in atomic mode as long as it finds it. Taking it out is
//! therefore one atomic operation after which no reference is given out any more, and the count can
//! fall to zero: the reference is *closed*. [`Count::resurrect`] puts it in again.
//!
//! How the one mode follows on the other is in `switch.rs`.
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
    fmt,
    prelude::*,
    sync::atomic::{
        Acquire,
        Atomic,
        Full,
        Relaxed, //
    },
    types::Opaque,
    warn_on, //
};

use crate::{
    percpu::{
        Local,
        PerCpu,
        PreemptGuard, //
    },
    rcu::{
        read_once,
        RcuHead, //
    },
    unload::{
        self,
        Class,
        Ops,
        Running, //
    },
};

#[path = "switch.rs"]
mod switch;

use switch::Switch;

extern "C" {
    fn rust_percpu_ref_kvfree_call_rcu(head: *mut c_void, ptr: *mut c_void);
}

/// In [`Count::word`]: the reference was killed.
#[doc(alias("__PERCPU_REF_DEAD", "PCPU_REF_DEAD"))]
const DEAD: usize = 1 << 0;
/// In [`Count::word`]: atomic mode was asked for.
#[doc(alias = "force_atomic")]
const FORCE: usize = 1 << 1;
/// In [`Count::word`]: a transition is under way.
const BUSY: usize = 1 << 2;

/// In [`Count::word`]: use [`Count::atomic`].
#[doc(alias = "__PERCPU_REF_ATOMIC")]
const ATOMIC: usize = DEAD | FORCE | BUSY;

const _: () = assert!(align_of::<Local<u64>>() > ATOMIC);

/// In [`Count::atomic`] unless the reference is closed.
#[doc(alias("PERCPU_COUNT_BIAS", "PCPU_COUNT_BIAS"))]
const BIAS: u64 = 1 << 63;

/// More references than this there cannot be.
const LIMIT: u64 = 1 << 61;

/// What [`Count::atomic`] is set to when the number of references is out of bounds, half-way
/// between what is valid with and without [`BIAS`]. It stays there and thus never falls to zero.
#[doc(alias = "REFCOUNT_SATURATED")]
const SATURATED: u64 = 1 << 62;

/// At most so many references are counted by CPU in one go; more go to the atomic at once. There
/// one sees that they are too many. The counters do not, and somebody who leaks what he gets could
/// bring their sum all the way round, by 2^58 calls at this number: that is decades of one CPU's
/// time, and months of a hundred CPUs' that do nothing else. (C takes any number.)
const MAX_LOCAL: usize = 64;

/// Whether a value of [`Count::atomic`] has [`BIAS`] in it. What is counted by CPU may have taken
/// it to either side.
const fn is_open(value: u64) -> bool {
    value.wrapping_sub(BIAS - LIMIT) <= 2 * LIMIT
}

/// Whether a value of [`Count::atomic`] is not a [`SATURATED`] one.
const fn is_valid(value: u64) -> bool {
    value <= LIMIT || is_open(value)
}

/// In [`Count::state`]: those who keep the object in memory, which are the owner's handle, and each
/// life that has not come to its end.
const HOLDS: usize = (1 << 24) - 1;
/// In [`Count::state`]: the object may live more than once, so it lasts as long as the handle does.
const REINIT: usize = 1 << 24;
/// In [`Count::state`]: the object outlived its module and must stay in memory.
const LEAKED: usize = 1 << 25;
/// In [`Count::state`]: RCU readers may come upon the object.
const PUBLISHED: usize = 1 << 26;

/// How a count begins.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Start {
    /// In per-CPU mode, to live once.
    Once,
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
/// - *unshared*, from [`Count::new`] on: one owner, who may drop it;
/// - *live*, in per-CPU mode or in atomic mode;
/// - *dying*, from [`Count::kill`] on: [`DEAD`] is set;
/// - *closed*: the counters are added to the atomic and the bias is out. Who closed it goes on to
///   put the initial reference;
/// - *released*: the count fell to zero, and that was told to the object.
///
/// # Invariants
///
/// - Until the callback of the one life that it has, or else until the object is dropped, `word`
///   without its flags is the `PerCpu<Local<u64>>` that the count owns. Without [`ATOMIC`]
///   everybody may change the counters, in an RCU read-side critical section in which he found the
///   word so. In atomic mode without [`BUSY`] they are zero.
/// - The counters' sum plus `atomic`, modulo 2^64, is the number of references, plus [`BIAS`]
///   unless the reference is closed; or `atomic` is [`SATURATED`]. The initial reference is one of
///   them, from the beginning of a life until the one who closes it puts it.
/// - [`DEAD`] is set in each life once, by the one who owns the initial reference from then on, and
///   passes it to who closes the reference.
/// - `class` has this object in its count until the object is dropped.
/// - The memory that the count is in came from `kmalloc()`. It is freed by whoever takes away the
///   last of [`HOLDS`], if it is [`PUBLISHED`] after a grace period, and not if it is [`LEAKED`].
pub(crate) struct Count {
    /// The address of the per-CPU counters, and flags.
    word: Atomic<usize>,
    atomic: Atomic<u64>,
    class: &'static Class,
    state: Atomic<usize>,
    phase: Phase,
}

// No more than C's `percpu_ref` and `percpu_ref_data` take together on 64-bit machines, and as much
// on each CPU. With lockdep, a `work_struct` is larger.
const _: () = assert!(size_of::<Count>() <= 72 || cfg!(any(CONFIG_LOCKDEP, not(CONFIG_64BIT))));
const _: () = assert!(size_of::<Local<u64>>() == 8);

/// While it lives, a count needs the one, and for its end the other.
#[repr(C)]
union Phase {
    switch: ManuallyDrop<Switch>,
    /// For an object that lives once, from the moment on when its count has fallen to zero.
    work: ManuallyDrop<Opaque<bindings::work_struct>>,
}

const _: () = assert!(size_of::<Phase>() >= size_of::<RcuHead>());

// SAFETY: The fields are atomic, or used by one thread at a time as their comments say.
unsafe impl Send for Count {}

// SAFETY: As above.
unsafe impl Sync for Count {}

impl Count {
    /// Makes a count for an object with the operations `ops`, in place.
    ///
    /// Fails with `ENOMEM`, and as [`Class::get`] does.
    pub(crate) fn new(ops: &'static Ops, start: Start, gfp: Flags) -> impl Init<Self, Error> {
        let init = move |slot: *mut Self| {
            let counters = PerCpu::<Local<u64>>::zeroed(gfp)?;
            let class = Class::get(ops, gfp)?;
            let (flags, atomic, state) = match start {
                Start::Once => (0, 1 + BIAS, 2),
                Start::Reinit => (0, 1 + BIAS, 2 | REINIT),
                Start::Atomic => (FORCE, 1 + BIAS, 2 | REINIT),
                Start::Dead => (DEAD, 0, 1 | REINIT),
            };

            // INVARIANT: The counters are zero. There is the initial reference, or the reference is
            // closed and there is none. The holds are one life, if there is one, and the handle.
            let count = Self {
                word: Atomic::new(counters.into_raw().as_ptr().expose_provenance() | flags),
                atomic: Atomic::new(atomic),
                class,
                state: Atomic::new(state),
                phase: Phase {
                    switch: ManuallyDrop::new(Switch::new()),
                },
            };
            // SAFETY: `slot` is valid for writes.
            unsafe { slot.write(count) };
            Ok(())
        };
        // SAFETY: The closure makes all of the count, or fails and makes nothing.
        unsafe { pin_init::init_from_closure(init) }
    }

    /// The counters that `word` is the address of.
    ///
    /// # Safety
    ///
    /// `word` came from [`Count::word`], and for as long as the returned value is used, either
    /// - nobody else has the count any more, or not yet, or
    /// - it lacks [`ATOMIC`] and an RCU read-side critical section has gone on since it was read,
    ///   or
    /// - this is the callback.
    #[inline]
    unsafe fn counters(word: usize) -> ManuallyDrop<PerCpu<Local<u64>>> {
        let ptr = ptr::with_exposed_provenance_mut(word & !ATOMIC);

        // SAFETY: By the type invariant, this is what `into_raw()` returned in `new()`. What frees
        // the counters comes a grace period after `ATOMIC`, or when nobody has the count.
        ManuallyDrop::new(unsafe { PerCpu::from_raw(NonNull::new_unchecked(ptr)) })
    }

    /// What a transition needs.
    ///
    /// # Safety
    ///
    /// The count has not fallen to zero, or it is [`REINIT`].
    unsafe fn switch(&self) -> &Switch {
        // SAFETY: As the function requires, `work` is not in use.
        unsafe { &self.phase.switch }
    }

    /// Does `local` with the counters in per-CPU mode, and else says that it is not.
    #[inline(always)]
    fn if_percpu(&self, local: impl FnOnce(&PerCpu<Local<u64>>, &PreemptGuard)) -> bool {
        // RCU takes this for a read-side critical section.
        let guard = PreemptGuard::new();

        // `Relaxed`: the counters are zero before the word lacks `ATOMIC`, and their address
        // depends on it (see `switch_to_percpu()`). Who misses `ATOMIC` here is waited for by the
        // grace period that is started after it is set.
        let word = read_once(&self.word);
        if word & ATOMIC == 0 {
            // SAFETY: `ATOMIC` is not set, and we are in a read-side critical section.
            local(&*unsafe { Self::counters(word) }, &guard);
            drop(guard);
            true
        } else {
            leave(guard);
            false
        }
    }

    /// Adds `n` references. The caller has one.
    #[inline(always)]
    pub(crate) fn get(&self, n: usize) {
        if n > MAX_LOCAL || !self.if_percpu(|counters, guard| add(counters, n, guard)) {
            self.get_atomic(n);
        }
    }

    #[cold]
    #[inline(never)]
    fn get_atomic(&self, n: usize) {
        // `Relaxed`: the caller's own reference orders this against the end.
        let new = if n <= MAX_LOCAL {
            plus(self.atomic.fetch_add(n as u64, Relaxed), n)
        } else {
            // In one step, for it may be so many as to come out valid beyond what is not.
            plus(self.update(|old| plus(old, n)), n)
        };
        if new == SATURATED {
            self.saturate();
        }
    }

    /// Adds `n` references if the reference is not closed, and they are not too many.
    #[inline(always)]
    pub(crate) fn try_get(&self, n: usize) -> bool {
        (n <= MAX_LOCAL && self.if_percpu(|counters, guard| add(counters, n, guard)))
            || self.try_get_atomic(n)
    }

    /// Adds a reference if the reference is not dying.
    #[inline(always)]
    pub(crate) fn try_get_live(&self) -> bool {
        self.if_percpu(PerCpu::inc_inline) || (!self.is_dying() && self.try_get_atomic(1))
    }

    #[cold]
    #[inline(never)]
    fn try_get_atomic(&self, n: usize) -> bool {
        // The test and the addition must be one step, so that nothing succeeds once the bias is
        // out.
        let mut old = self.atomic.load(Relaxed);
        while is_open(old) && is_open(plus(old, n)) {
            // `Relaxed`: there is the initial reference until after the bias is out.
            match self.atomic.cmpxchg(old, plus(old, n), Relaxed) {
                Ok(_) => return true,
                Err(found) => old = found,
            }
        }
        false
    }

    /// Drops `n` references, and if they were the last ones, releases the object.
    ///
    /// # Safety
    ///
    /// The caller owns `n` references, at least one, to the object that begins at `this`, and gives
    /// them up.
    #[inline(always)]
    pub(crate) unsafe fn put(this: NonNull<Self>, n: usize) {
        // SAFETY: There is a reference, so the object is alive.
        let count = unsafe { this.as_ref() };

        if n > MAX_LOCAL || !count.if_percpu(|counters, guard| sub(counters, n, guard)) {
            // The section is over: `release()` may take sleeping locks on PREEMPT_RT, and our
            // reference alone keeps the object until the next line.
            //
            // SAFETY: As the function requires.
            unsafe { Self::put_atomic(this, n) };
        }
    }

    /// # Safety
    ///
    /// As for [`Count::put`].
    #[cold]
    #[inline(never)]
    unsafe fn put_atomic(this: NonNull<Self>, n: usize) {
        // SAFETY: There is a reference, so the object is alive.
        let count = unsafe { this.as_ref() };

        // `Full`, in both: all uses of the object, by us and by those who put before, come before
        // its end.
        let old = if n <= MAX_LOCAL {
            count.atomic.fetch_sub(n as u64, Full)
        } else {
            count.update(|old| minus(old, n))
        };
        match minus(old, n) {
            // SAFETY: These were the last references, and as the bias is out, there are no new
            // ones.
            0 => unsafe { Self::release(this) },
            SATURATED => count.saturate(),
            _ => {}
        }
    }

    /// Changes `atomic` to what `new` makes of it, and returns what it was.
    fn update(&self, new: impl Fn(u64) -> u64) -> u64 {
        let mut old = self.atomic.load(Relaxed);
        // `Full`, for all of the callers' sakes.
        while let Err(found) = self.atomic.cmpxchg(old, new(old), Full) {
            old = found;
        }
        old
    }

    /// Leaks the object, as the number of references is not known any more.
    #[cold]
    fn saturate(&self) {
        // The caller may have given his references up. The object is there nevertheless: what he
        // found is not valid, and by no operation does it come to zero from there.
        self.atomic.store(SATURATED, Relaxed);
        do_once_lite! { self.report(format_args!("saturated")); }
    }

    /// Says that the object is leaked, and why, with a stack trace.
    fn report(&self, why: fmt::Arguments<'_>) {
        let running = self.class.enter();
        let name = running
            .as_ref()
            .map_or("(unloaded)", |running| (running.ops().name)());
        pr_err!("{name}: {why}; leaking memory\n");
        warn_on!(true);
    }

    /// Ends a life of the object.
    ///
    /// # Safety
    ///
    /// The number of references just fell to zero.
    #[cold]
    unsafe fn release(this: NonNull<Self>) {
        // SAFETY: The memory is there while this life holds it.
        let class = unsafe { this.as_ref() }.class;

        match class.enter() {
            Some(running) if running.ops().may_sleep => {
                // SAFETY: Such an object lives once, so from now on `phase` is for the work.
                // `finish_release()` is called once, as that is queued once.
                unsafe { unload::queue_work((&raw mut (*this.as_ptr()).phase).cast(), run_work) };
            }
            // SAFETY: As the function requires.
            running => unsafe { Self::finish_release(this, running) },
        }
    }

    /// The rest of [`Count::release`].
    ///
    /// # Safety
    ///
    /// To be called once for each time that the number of references fell to zero.
    unsafe fn finish_release(this: NonNull<Self>, running: Option<Running<'static>>) {
        // SAFETY: The memory is there while this life holds it.
        let count = unsafe { this.as_ref() };
        let is_last = read_once(&count.state) & REINIT == 0;

        let leaked = match running {
            Some(running) => {
                // SAFETY: The object is there: it is dropped below, or not before the last hold is
                // gone.
                unsafe { (running.ops().release)(this.cast()) };
                if is_last {
                    // SAFETY: There are no references, and there will be none. This happens once.
                    unsafe { (running.ops().drop)(this.cast()) };
                    count.class.put();
                }
                0
            }
            None if is_last => LEAKED,
            None => 0,
        };
        // SAFETY: The hold is that of the life which is over.
        unsafe { Self::drop_hold(this, leaked) };
    }

    /// Takes a hold away, and with the last one, the object. Sets the flags `with` besides.
    ///
    /// # Safety
    ///
    /// The caller owns the hold, and does not use the object after this.
    unsafe fn drop_hold(this: NonNull<Self>, with: usize) {
        // SAFETY: The hold keeps the memory.
        let state = unsafe { &(*this.as_ptr()).state };
        let waited_on = state.as_ptr();

        // `Full`: what was done by those who held it comes before the end of the object, and before
        // `wait_released()` returns. From here on the memory is not ours to use, but for the last.
        let old = state.fetch_add(with.wrapping_sub(1), Full);
        if old & HOLDS == 1 {
            // SAFETY: That was the last one.
            unsafe { Self::end(this, old | with) };
        }
        unload::wake_up(waited_on);
    }

    /// Drops the object if that is not done yet, and frees the memory.
    ///
    /// # Safety
    ///
    /// Nobody holds the object any more; `state` is its state.
    unsafe fn end(this: NonNull<Self>, state: usize) {
        // SAFETY: The memory is there.
        let count = unsafe { this.as_ref() };

        if state & REINIT != 0 {
            let Some(running) = count.class.enter() else {
                return;
            };
            // SAFETY: Nobody has the object any more. This happens once.
            unsafe { (running.ops().drop)(this.cast()) };
            // SAFETY: Nobody has the count any more; not used after this.
            unsafe { ManuallyDrop::drop(&mut Self::counters(read_once(&count.word))) };
            count.class.put();
        } else if state & LEAKED != 0 {
            return;
        }

        if state & PUBLISHED == 0 {
            // SAFETY: By the type invariant, the memory came from `kmalloc()`.
            unsafe { bindings::kfree(this.as_ptr().cast()) };
            return;
        }
        // After a grace period, for those who came upon the object by way of RCU, and learn from
        // the `word` and the `atomic` that they came too late.
        //
        // SAFETY: As above. Neither of the two uses of `phase` goes on, and it has room for a head.
        unsafe {
            let head = &raw mut (*this.as_ptr()).phase;
            rust_percpu_ref_kvfree_call_rcu(head.cast(), this.as_ptr().cast());
        }
    }

    /// Lets RCU readers come upon the object. The caller has the handle.
    pub(crate) fn publish(&self) {
        // `Relaxed`: who takes away the last hold does so by an operation on the same variable.
        let mut state = read_once(&self.state);
        while state & PUBLISHED == 0 {
            match self.state.cmpxchg(state, state | PUBLISHED, Relaxed) {
                Ok(_) => break,
                Err(found) => state = found,
            }
        }
    }

    /// Whether the reference was killed, and not resurrected since.
    pub(crate) fn is_dying(&self) -> bool {
        // `Relaxed`: the answer may be old the moment it is given.
        read_once(&self.word) & DEAD != 0
    }

    /// Whether the reference is closed and there are no references.
    pub(crate) fn is_zero(&self) -> bool {
        // With the bias, it is not. `Acquire` pairs with the `Full` in `put()`.
        self.atomic.load(Acquire) == 0
    }

    /// Sleeps until all lives have come to their ends. The caller has the handle.
    pub(crate) fn wait_released(&self) {
        // SAFETY: `state` is valid for as long as `self`; `drop_hold()` wakes its waiters up. The
        // acquire load in the wait pairs with its `Full`.
        unsafe { unload::wait_event(self.state.as_ptr(), HOLDS, 1) };
    }

    /// Gives the owner's handle up. The reference was killed.
    ///
    /// # Safety
    ///
    /// `this` is the beginning of a shared object. The caller does not use it any more.
    pub(crate) unsafe fn drop_handle(this: NonNull<Self>) {
        // SAFETY: The handle is one of the holds.
        unsafe { Self::drop_hold(this, 0) };
    }

    /// Enters the functions of the object's module; see [`Class::enter`].
    pub(crate) fn enter_module(&self) -> Option<Running<'static>> {
        self.class.enter()
    }
}

/// Drops the guard out of line, so that the fast path is small enough to be inlined.
#[cold]
#[inline(never)]
fn leave(_guard: PreemptGuard) {}

/// Adds `n` to this CPU's counter. For all but the batches that is the constant 1.
#[inline(always)]
fn add(counters: &PerCpu<Local<u64>>, n: usize, guard: &PreemptGuard) {
    if n == 1 {
        counters.inc_inline(guard);
    } else {
        counters.add_inline(n as u64, guard);
    }
}

/// Subtracts `n`, likewise.
#[inline(always)]
fn sub(counters: &PerCpu<Local<u64>>, n: usize, guard: &PreemptGuard) {
    if n == 1 {
        counters.dec_inline(guard);
    } else {
        counters.add_inline((n as u64).wrapping_neg(), guard);
    }
}

/// `old` with `n` more references, or [`SATURATED`] if anything is out of bounds.
const fn plus(old: u64, n: usize) -> u64 {
    let new = old.wrapping_add(n as u64);
    if n as u64 <= LIMIT && is_valid(old) && is_valid(new) {
        new
    } else {
        SATURATED
    }
}

/// `old` with `n` references less, likewise.
const fn minus(old: u64, n: usize) -> u64 {
    let new = old.wrapping_sub(n as u64);
    if n as u64 <= LIMIT && is_valid(old) && is_valid(new) {
        new
    } else {
        SATURATED
    }
}

/// # Safety
///
/// To be called for the work that [`Count::release`] queues.
unsafe extern "C" fn run_work(work: *mut bindings::work_struct) {
    // SAFETY: The work is the `phase` of a count, whose address is not null.
    let this = unsafe { NonNull::new_unchecked(container_of!(work.cast::<Phase>(), Count, phase)) };

    // SAFETY: The memory is there while this life holds it.
    let running = unsafe { this.as_ref() }.class.enter();
    // SAFETY: Queued once, when the count fell to zero.
    unsafe { Count::finish_release(this, running) };
}

impl Drop for Count {
    /// Undoes [`Count::new`] for a reference that was never shared. No callback is involved.
    #[doc(alias("percpu_ref_cancel_init", "percpu_ref_exit"))]
    fn drop(&mut self) {
        let word = read_once(&self.word);
        // SAFETY: Only an unshared count is dropped.
        let mut counters = unsafe { Self::counters(word) };

        // No safe code can bring this about.
        if cfg!(debug_assertions) {
            let expected = if word & DEAD == 0 { 1 + BIAS } else { 0 };
            // Each counter, not their sum: a get here and a put there are a use, too.
            let is_used = self.atomic.load(Relaxed) != expected
                || counters
                    .iter_mut()
                    .any(|(_, counter)| *counter.get_mut() != 0);
            if is_used {
                do_once_lite! { warn_on!(true); }
            }
        }

        // SAFETY: Not used after this.
        unsafe { ManuallyDrop::drop(&mut counters) };
        self.class.put();
    }
}

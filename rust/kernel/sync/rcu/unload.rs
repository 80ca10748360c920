// SPDX-License-Identifier: GPL-2.0

//! Keeps the code of RCU callbacks in memory until they have run.
//!
//! [`module_coming`] must be called before a module runs any code. [`module_going`] must be called
//! after the module's exit function has returned, or its init function has failed, and before its
//! memory is freed. The code that `module!` generates calls both.
//!
//! For a module that never queued a callback, unloading waits for no grace period: `QUEUED` shows
//! which modules have queued one.

use super::{
    call_hurry,
    impl_rcu_pointer,
    RcuHead,
    RcuPointer, //
};
use crate::{
    alloc::flags::GFP_KERNEL,
    bindings,
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Full,
            Relaxed, //
        },
        rcu::{
            read_lock,
            Guard, //
        }, //
    },
    time::{
        delay::fsleep,
        Delta, //
    },
};
use core::{
    cell::UnsafeCell,
    iter,
    ptr::{
        self,
        NonNull, //
    },
};

/// The number of a module's memory ranges.
#[cfg(CONFIG_MODULES)]
const RANGES: usize = bindings::mod_mem_type_MOD_MEM_NUM_TYPES as usize;
#[cfg(not(CONFIG_MODULES))]
const RANGES: usize = 0;

/// The ranges of memory that a module lies in, each by its start and its size.
#[derive(Clone, Copy)]
pub(crate) struct ModuleMemory([(usize, usize); RANGES]);

impl ModuleMemory {
    /// Returns the memory of `module`.
    ///
    /// # Safety
    ///
    /// `module` must be valid.
    #[cfg(CONFIG_MODULES)]
    pub(crate) unsafe fn of(module: *const bindings::module) -> Self {
        // SAFETY: By the safety requirements of this function, `module` is valid.
        let mem = unsafe { &raw const (*module).mem };
        Self(core::array::from_fn(|i| {
            // SAFETY: `mem` is an array of `RANGES` elements. Its bounds do not change while the
            // module is loaded.
            let (base, size) = unsafe { ((*mem)[i].base, (*mem)[i].size) };
            (base.addr(), size as usize)
        }))
    }

    /// Returns an empty range, for kernels without modules.
    ///
    /// # Safety
    ///
    /// This function has no safety requirements.
    #[cfg(not(CONFIG_MODULES))]
    pub(crate) unsafe fn of(_module: *const bindings::module) -> Self {
        Self([])
    }

    /// Returns whether `addr` is in the memory of the module.
    pub(crate) fn contains(&self, addr: usize) -> bool {
        self.0
            .iter()
            .any(|&(base, size)| addr.wrapping_sub(base) < size)
    }

    /// Returns whether one of the module's pages belongs to the slot `number` of [`QUEUED`].
    fn has_page(&self, number: usize) -> bool {
        self.0.iter().any(|&(base, size)| {
            // The ranges of a module are aligned to pages.
            let first = base / bindings::PAGE_SIZE;
            number.wrapping_sub(first) % SLOTS < size.div_ceil(bindings::PAGE_SIZE)
        })
    }

    /// Returns whether the two modules have memory in common.
    fn overlaps(&self, other: &Self) -> bool {
        self.0.iter().any(|&(base, size)| {
            other.0.iter().any(|&(other_base, other_size)| {
                base.wrapping_sub(other_base) < other_size || other_base.wrapping_sub(base) < size
            })
        })
    }
}

/// Returns the name of a module.
///
/// # Safety
///
/// `module` must be valid for `'a`.
#[cfg(CONFIG_MODULES)]
pub(crate) unsafe fn name_of<'a>(module: *const bindings::module) -> &'a CStr {
    // SAFETY: By the safety requirements of this function, `module` is valid. Its name ends with a
    // null.
    unsafe { CStr::from_char_ptr((&raw const (*module).name).cast()) }
}

/// Returns an empty name, for kernels without modules.
///
/// # Safety
///
/// This function has no safety requirements.
#[cfg(not(CONFIG_MODULES))]
pub(crate) unsafe fn name_of<'a>(_module: *const bindings::module) -> &'a CStr {
    c""
}

/// The pages with the code of callbacks that were queued, each in the slot of its page number.
///
/// A slot is 0 if there is no such page, and [`MANY`] if there is more than one page. Only
/// [`wait_for_callbacks`] resets a slot.
static QUEUED: [Atomic<usize>; SLOTS] = [const { Atomic::new(0) }; SLOTS];

/// The number of slots.
///
/// The pages of a module are adjacent, so they belong to different slots.
const SLOTS: usize = 128;
/// In a slot of [`QUEUED`]: there is more than one page.
const MANY: usize = 1;

/// Records that the callback `text` is queued.
fn set_queued(text: usize) {
    let page = text & !(bindings::PAGE_SIZE - 1);
    let slot = &QUEUED[page / bindings::PAGE_SIZE % SLOTS];
    let mut old = slot.load(Relaxed);
    while old != page && old != MANY {
        let new = if old == 0 { page } else { MANY };
        // `Relaxed` is enough, because `may_queue()` has a barrier (litmus: queued-or-closed).
        match slot.cmpxchg(old, new, Relaxed) {
            Ok(_) => return,
            Err(found) => old = found,
        }
    }
}

/// Returns the slots that may have a callback of the module with this memory, and their contents.
fn slots_in(memory: &ModuleMemory) -> impl Iterator<Item = (&'static Atomic<usize>, usize)> + '_ {
    QUEUED.iter().enumerate().filter_map(|(number, slot)| {
        let page = slot.load(Relaxed);
        let is_in = match page {
            0 => false,
            MANY => memory.has_page(number),
            page => memory.contains(page),
        };
        is_in.then_some((slot, page))
    })
}

/// Returns whether a module may have queued callbacks.
///
/// The result is `true` for each module that has, and may be `true` for a module that has not.
pub(crate) fn has_queued(memory: &ModuleMemory) -> bool {
    slots_in(memory).next().is_some()
}

/// Returns whether the callback `text` can be queued.
///
/// If so, [`module_going`] waits for this critical section, and for the callback.
pub(super) fn may_queue(text: *const c_void, section: &Guard) -> bool {
    set_queued(text.addr());
    // Pairs with the `Full` in `mark_closed()`. This thread writes the page of the callback to its
    // slot, or finds it there, and then reads the list. The thread that closes the module writes
    // the list and then reads the slots. So either this sees that the module is closed, or the
    // closing thread sees the page and waits (litmus: queued-or-closed).
    //
    // SAFETY: `smp_mb()` can be called from any context.
    unsafe { bindings::smp_mb() };
    !is_closed(text, section)
}

/// An entry of the list of closed modules, which can create no object and queue no callback.
///
/// An entry stays on the list until another module is loaded into the same memory. After
/// [`module_going`] has returned, code of the module can still run until the module is freed: in
/// notifiers, in functions of `async_schedule()`, and in callbacks of parameters (`free_module()`
/// in kernel/module/main.c).
///
/// The list only grows. An entry whose state is [`FREE`] is used for the next module.
///
/// # Invariants
///
/// `memory` is written only by the thread that changed `state` from [`FREE`] to [`CLAIMED`]. No
/// reader uses `memory` in these two states, because an entry becomes [`FREE`] only after a grace
/// period.
struct Closed {
    state: Atomic<u32>,
    memory: UnsafeCell<ModuleMemory>,
    head: RcuHead,
    next: *mut Closed,
}

/// In [`Closed::state`]: the entry is not used.
const FREE: u32 = 0;
/// In [`Closed::state`]: a thread is about to write the memory.
const CLAIMED: u32 = 1;
/// In [`Closed::state`]: the module is closed.
const CLOSED: u32 = 2;
/// In [`Closed::state`]: another module was loaded into the same memory.
///
/// The entry becomes [`FREE`] after a grace period.
const OPENED: u32 = 3;

/// The first entry of the list.
static FIRST: Atomic<*mut Closed> = Atomic::new(ptr::null_mut());

/// Returns all entries.
fn entries() -> impl Iterator<Item = &'static Closed> {
    // `Acquire` pairs with the `Full` in `claim()`, which published the entry. It also orders the
    // entries behind the first, because the links are plain (litmus: closed-list).
    let mut next = FIRST.load(Acquire);
    iter::from_fn(move || {
        // SAFETY: Entries are not freed while the library is in use.
        let entry: &'static Closed = unsafe { next.as_ref() }?;
        next = entry.next;
        Some(entry)
    })
}

/// Returns the entries of closed modules, with memory that can be read in this critical section.
fn closed(_section: &Guard) -> impl Iterator<Item = (&'static Closed, &ModuleMemory)> {
    entries()
        // `Acquire` pairs with the `Full` in `mark_closed()`, so the memory is that of the module
        // (litmus: closed-list).
        .filter(|entry| entry.state.load(Acquire) == CLOSED)
        // SAFETY: The state was `CLOSED` in this critical section, so by the type invariant, the
        // memory is not written before the section ends.
        .map(|entry| (entry, unsafe { &*entry.memory.get() }))
}

/// Returns whether `text` is in the memory of a closed module.
pub(crate) fn is_closed(text: *const c_void, section: &Guard) -> bool {
    closed(section).any(|(_, memory)| memory.contains(text.addr()))
}

/// Returns an unused entry, in the state [`CLAIMED`].
fn claim() -> &'static Closed {
    if let Some(entry) = entries().find(|entry| {
        // `Acquire` pairs with the `Full` in `Opened::run()`, so no reader uses the entry any more
        // (litmus: closed-entry-reuse).
        entry.state.load(Relaxed) == FREE && entry.state.cmpxchg(FREE, CLAIMED, Acquire).is_ok()
    }) {
        return entry;
    }
    let entry = loop {
        let entry = Closed {
            state: Atomic::new(CLAIMED),
            memory: UnsafeCell::new(ModuleMemory([(0, 0); RANGES])),
            head: RcuHead::new(),
            next: FIRST.load(Relaxed),
        };
        match KBox::new(entry, GFP_KERNEL) {
            Ok(entry) => break KBox::into_raw(entry),
            // Unloading cannot fail, so this tries again.
            Err(_) => fsleep(Delta::from_millis(100)),
        }
    };
    // SAFETY: `entry` is valid, and is not published until the `cmpxchg()` succeeds. `Full` pairs
    // with the `Acquire` in `entries()` (litmus: closed-list).
    while let Err(first) = FIRST.cmpxchg(unsafe { (*entry).next }, entry, Full) {
        // SAFETY: The `cmpxchg()` failed, so `entry` is still not published.
        unsafe { (*entry).next = first };
    }
    // SAFETY: Entries are not freed while the library is in use.
    unsafe { &*entry }
}

/// Marks the module with this memory as closed, until [`module_coming`].
///
/// A closed module can create no object and queue no callback.
///
/// # Context
///
/// May sleep, so must be called from process context.
pub(crate) fn mark_closed(memory: &ModuleMemory) {
    let entry = claim();
    // SAFETY: `claim()` has changed the state to `CLAIMED` for us, so by the type invariant, no
    // other thread uses the memory.
    unsafe { entry.memory.get().write(*memory) };
    // `Full` pairs with the `Acquire` in `closed()` (litmus: closed-list), and with the barrier in
    // `may_queue()` (litmus: queued-or-closed).
    entry.state.xchg(CLOSED, Full);
}

/// Waits until all callbacks that were queued before have run.
///
/// Does not wait for the callbacks that these callbacks queue.
///
/// # Context
///
/// Sleeps, so must be called from process context.
pub(crate) fn barrier() {
    #[cfg(CONFIG_TASKS_RCU)]
    if uses_tasks() {
        // A callback of RCU Tasks is then queued for RCU: see `call_tasks()`.
        //
        // SAFETY: By the context of this function, we can sleep.
        unsafe { bindings::rcu_barrier_tasks() };
    }
    // SAFETY: By the context of this function, we can sleep.
    unsafe { bindings::rcu_barrier() };
}

/// Whether the library has ever passed a callback to RCU Tasks.
///
/// Other code uses RCU Tasks, too, and waiting for its callbacks takes long.
static USES_TASKS: Atomic<u32> = Atomic::new(0);

/// Records that the library passes callbacks to RCU Tasks.
pub(super) fn set_uses_tasks() {
    // `Relaxed` is enough: a thread that waits for the callback is ordered after this, by what it
    // knows of the callback, or by `synchronize_rcu()` (litmus: queued-to-tasks).
    if USES_TASKS.load(Relaxed) == 0 {
        USES_TASKS.store(1, Relaxed);
    }
}

/// Returns whether the library has ever passed a callback to RCU Tasks.
pub(crate) fn uses_tasks() -> bool {
    USES_TASKS.load(Relaxed) != 0
}

/// Waits for the callbacks of a closed module, if it has queued any.
///
/// # Context
///
/// Sleeps, so must be called from process context.
pub(crate) fn wait_for_callbacks(memory: &ModuleMemory) {
    if !has_queued(memory) {
        return;
    }
    // After this, all critical sections see the mark (litmus: begun-or-closed).
    //
    // SAFETY: By the context of this function, we can sleep.
    unsafe { bindings::synchronize_rcu() };
    // Since no callback of the module can be queued any more, none is left after this.
    barrier();
    for (slot, page) in slots_in(memory) {
        if page != MANY {
            let _ = slot.cmpxchg(page, 0, Relaxed);
        }
    }
}

/// Removes the marks of closed modules whose memory `module` uses now.
///
/// # Context
///
/// Can be called from any context except NMI.
///
/// # Safety
///
/// `module` must be valid and must not have run any code.
#[inline(never)] // It queues a callback: see `RcuPointer::IN_KERNEL_CRATE`.
pub unsafe fn module_coming(module: *const bindings::module) {
    // SAFETY: By the safety requirements of this function, `module` is valid.
    let memory = unsafe { ModuleMemory::of(module) };

    let section = read_lock();
    for (entry, _) in closed(&section).filter(|(_, closed)| closed.overlaps(&memory)) {
        if entry.state.cmpxchg(CLOSED, OPENED, Full).is_ok() {
            // INVARIANT: We have changed the state to `OPENED`.
            call_hurry(Opened(NonNull::from(entry)));
        }
    }
}

/// Marks a module as closed, and waits until no callback of it can run any more.
///
/// # Context
///
/// Sleeps, so must be called from process context.
///
/// # Safety
///
/// `module` must be valid, must have run its exit function or have failed to initialise, and must
/// not be freed before this returns.
pub unsafe fn module_going(module: *const bindings::module) {
    // SAFETY: By the safety requirements of this function, `module` is valid.
    let memory = unsafe { ModuleMemory::of(module) };

    mark_closed(&memory);
    wait_for_callbacks(&memory);
}

/// Frees the list of closed modules.
///
/// # Safety
///
/// No other function of this file must be called at the same time. No RCU callback that
/// [`module_coming`] has queued must still be queued.
#[cfg(MODULE)]
pub(crate) unsafe fn free() {
    let mut next = FIRST.xchg(ptr::null_mut(), Full);
    while !next.is_null() {
        // SAFETY: `claim()` got this pointer from a box. By the safety requirements of this
        // function, no other thread uses it.
        next = unsafe { KBox::from_raw(next) }.next;
    }
}

/// The RCU callback that changes the state of an entry to [`FREE`].
///
/// # Invariants
///
/// The state of the entry is [`OPENED`], and only this value changes it.
struct Opened(NonNull<Closed>);

// SAFETY: Any thread can change the state.
unsafe impl Send for Opened {}

impl_rcu_pointer! {
    // SAFETY: Entries are not freed while the library is in use, and are not moved. By the type
    // invariant, there is one value for an entry, so its head is used by one callback at a time.
    unsafe impl RcuPointer for Opened(Closed, head), |Opened(entry): Opened| {
        // `Full` pairs with the `Acquire` in `claim()` (litmus: closed-entry-reuse).
        //
        // SAFETY: Entries are not freed while the library is in use.
        unsafe { entry.as_ref() }.state.xchg(FREE, Full);
    }
}

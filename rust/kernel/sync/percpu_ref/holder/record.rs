// SPDX-License-Identifier: GPL-2.0

//! The records of holders.
//!
//! A get must find a record without a lock, in any context, and the put may be on another CPU. So
//! records lie in [`Chunk`]s, which are never freed while the library is in use, and each CPU has
//! *a word* ([`POOL`]): the number of a chunk, and a bit for each of its records that this CPU may
//! take. A get clears a bit by one `this_cpu_cmpxchg()`. A put marks the record as free, and does
//! nothing else. When the bits of a CPU are used up, it looks for a chunk with free records, marks
//! all of them as reserved, and sets their bits in its word. If a few chunks have none, it
//! allocates one more.
//!
//! A bit is set in one word at most, since a record is reserved for one CPU at a time. So the
//! `this_cpu_cmpxchg()` needs no guard against being moved to another CPU, whose word is another,
//! nor against a word that has changed and changed back: if the bit is there, the record can be
//! taken.
//!
//! # Readers
//!
//! A reader finds the count by the record, in an RCU read-side critical section. A record that is
//! in use keeps the count: its holder marks it as free before it gives up what it holds, and with
//! `CONFIG_RUST_PERCPU_REF_DEBUG`, the memory of a count is freed a grace period after the last
//! hold. So if a reader finds a count in a record, either that was freed before the critical
//! section began, and the reader would have seen that the record is free; or the memory stays until
//! the section ends.
//!
//! The other fields of a record are not read in one step with the count. While a record is given to
//! another holder, a reader may find the count of the first with the site of the second. The memory
//! that a site lies in is there in any case: see [`forget_sites`].
//!
//! kmemleak does not look for pointers in chunks, so it finds objects whose references were leaked.
//! It also reports an object whose only reference is held by C, as a pointer to the record.

use super::Kind;
use crate::{
    bindings,
    define_per_cpu,
    fmt,
    percpu::Local,
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            AtomicType,
            Relaxed,
            Release, //
        },
        percpu_ref::{
            count::Count,
            unload::Class, //
        },
        rcu::{
            self,
            arch::{
                read_once,
                store_release, //
            },
            unload::ModuleMemory, //
        }, //
    }, //
};
use core::{
    panic::Location,
    ptr::{
        self,
        NonNull, //
    },
};

/// A record of one holder.
///
/// # Invariants
///
/// - `count` is null if the record is free, [`RESERVED`] if the bit of the record is or was set in
///   the word of a CPU, and else the address of a count with a [`Kind`] in the bits below.
/// - `site` is null, or points to a [`Location`] that is there until a grace period after `site`
///   was changed.
#[repr(C, align(8))]
pub(in super::super) struct Record {
    count: Atomic<*mut c_void>,
    site: Atomic<*mut Location<'static>>,
    /// For a [`Kind::Batch`], the number of references, or `u32::MAX` if it is larger.
    len: Atomic<u32>,
    /// The jiffies at the get. Ages are right up to 2^31 jiffies, which are 24 days or more.
    when: Atomic<u32>,
    pid: Atomic<i32>,
    /// The preemption count at the get, which tells interrupts from tasks.
    context: Atomic<u32>,
}

/// In [`Record::count`]: a CPU may take the record.
const RESERVED: *mut c_void = ptr::without_provenance_mut(1);
/// The bits of a [`Kind`], and of [`RESERVED`].
const KIND_MASK: usize = 7;
const _: () = assert!(align_of::<Count>() > KIND_MASK);

/// The number of records in a chunk.
const RECORDS: usize = 31;
const ALL: u32 = (1 << RECORDS) - 1;

/// Records, and a lock for the CPU that reserves them.
#[repr(C)]
struct Chunk {
    records: [Record; RECORDS],
    is_locked: Atomic<u32>,
}

/// The largest number of chunks, for half a million records.
const CHUNKS_MAX: usize = 1 << 14;
/// All chunks. There are null pointers after the last one, and there may be some before it while
/// chunks are added.
static CHUNKS: [Atomic<*mut Chunk>; CHUNKS_MAX] =
    [const { Atomic::new(ptr::null_mut()) }; CHUNKS_MAX];
/// The number of chunks. It may be more than [`CHUNKS_MAX`] for a moment.
static LEN: Atomic<u32> = Atomic::new(0);

define_per_cpu! {
    /// The bits of records that this CPU can take, and above, the number of their chunk. If a bit
    /// is set, there is such a chunk, and the record is reserved for this CPU.
    static POOL: Local<u64> = Local::new(0);

    /// How often there was no record.
    static UNRECORDED: Local<usize> = Local::new(0);
}

/// Where references were got.
///
/// Copies of a `Holder` stand for the same references. The owner must end exactly one copy.
///
/// # Invariants
///
/// The record is in use for this holder alone, until [`Holder::end`].
#[derive(Clone, Copy)]
pub(in super::super) struct Holder(Option<&'static Record>);

impl Holder {
    /// Stands for nothing.
    pub(in super::super) const NONE: Self = Self(None);

    /// Remembers that the caller's caller has `len` of `kind`. The caller must hold them until
    /// [`Holder::end`].
    ///
    /// # Context
    ///
    /// Can be called from any context except NMI.
    #[inline(always)]
    #[track_caller]
    pub(in super::super) fn new(kind: Kind, count: NonNull<Count>, len: usize) -> Self {
        if len == 0 {
            return Self::NONE;
        }
        let Some(record) = take().or_else(take_slowly) else {
            return Self::NONE;
        };
        set(&record.site, ptr::from_ref(Location::caller()).cast_mut());
        set(&record.when, now());
        // SAFETY: The current task is valid.
        set(&record.pid, unsafe { (*current()).pid });
        set(&record.context, preempt_count());
        if kind == Kind::Batch {
            set(&record.len, len.try_into().unwrap_or(u32::MAX));
        }
        // Pairs with the `Acquire` in `Entry::read()`: what the count points to, and the other
        // fields, are seen as they are now (litmus: record-is-whole).
        //
        // INVARIANT: The record was reserved for this CPU, and we have taken it.
        let count = count.as_ptr().cast::<c_void>();
        store_release(&record.count, count.map_addr(|addr| addr | kind as usize));
        Self(Some(record))
    }

    /// Remembers that there are `len` references now, and ends at zero.
    #[inline(always)]
    pub(in super::super) fn resize(&mut self, len: usize) {
        if len == 0 {
            self.end();
            *self = Self::NONE;
        } else if let Some(record) = self.0 {
            set(&record.len, len.try_into().unwrap_or(u32::MAX));
            let count = read_once(&record.count);
            let batch = |addr| addr & !KIND_MASK | Kind::Batch as usize;
            // As in `new()`.
            store_release(&record.count, count.map_addr(batch));
        }
    }

    /// Takes over what `other` stands for, which makes `len` references with what this does.
    pub(in super::super) fn merge(&mut self, other: Self, len: usize) {
        if self.0.is_none() {
            *self = other;
        } else {
            other.end();
        }
        self.resize(len);
    }

    /// Forgets all. Must be called before what this stands for is given up.
    #[inline(always)]
    pub(in super::super) fn end(self) {
        if let Some(record) = self.0 {
            // Pairs with the load in `reserve()`: what the next holder stores comes after what this
            // one has stored (litmus: record-reuse). The count that it had is there for readers in
            // their critical sections (litmus: record-count-stays).
            store_release(&record.count, ptr::null_mut());
        }
    }

    /// Makes a pointer to the object one to the record, if there is a record, for C to keep until
    /// [`Holder::from_foreign`].
    pub(in super::super) fn into_foreign(self, ptr: &mut *mut c_void) {
        if let Some(record) = self.0 {
            let record = ptr::from_ref(record).cast_mut().cast::<c_void>();
            *ptr = record.map_addr(|addr| addr | FOREIGN_ALIGN);
        }
    }

    /// Makes a pointer to the record one to the object, and returns the holder.
    ///
    /// # Safety
    ///
    /// `ptr` must have come from [`Holder::into_foreign`], and the reference must not have been put
    /// since.
    pub(in super::super) unsafe fn from_foreign(ptr: &mut *mut c_void) -> Self {
        if ptr.addr() & FOREIGN_ALIGN == 0 {
            return Self::NONE;
        }
        let record = ptr.map_addr(|addr| addr & !FOREIGN_ALIGN).cast::<Record>();
        // SAFETY: By the safety requirements of this function, this is a record, which is not freed
        // while the library is in use.
        let record = unsafe { &*record };
        *ptr = read_once(&record.count).map_addr(|addr| addr & !KIND_MASK);
        assert!(!ptr.is_null(), "C has given a reference back twice");
        // INVARIANT: The holder that became `ptr` was not ended.
        Self(Some(record))
    }
}

/// The alignment of a pointer for C. The bit of this value says that it points to a record.
pub(in super::super) const FOREIGN_ALIGN: usize = 4;
const _: () = assert!(align_of::<Record>() > FOREIGN_ALIGN);
const _: () = assert!(align_of::<Count>() > FOREIGN_ALIGN);

/// Stores a value as `store(Relaxed)` does, but inlined into the caller, which `store()` is not
/// without `CONFIG_RUST_INLINE_HELPERS`.
#[doc(alias = "WRITE_ONCE")]
#[inline(always)]
fn set<T: AtomicType>(to: &Atomic<T>, value: T) {
    // SAFETY: The variable is valid. Other CPUs access it by atomic operations, with which a
    // volatile store can race by the kernel's memory model.
    unsafe { to.as_ptr().write_volatile(value) };
}

#[cfg(all(CONFIG_X86_64, CONFIG_SMP, not(CONFIG_UML)))]
mod task {
    use crate::{
        bindings::task_struct,
        declare_per_cpu,
        percpu::Local,
        prelude::*, //
    };

    declare_per_cpu! {
        // SAFETY: `current_task` in arch/x86/kernel/cpu/common.c is a pointer, which each CPU
        // changes in its own copy, with interrupts disabled. This module only reads.
        unsafe static CURRENT: Local<*mut c_void> = current_task;
        // SAFETY: The lower half, or all, of `__preempt_count` there is the count. This module only
        // reads.
        unsafe static PREEMPT_COUNT: Local<u32> = __preempt_count;
    }

    #[inline(always)]
    pub(super) fn current() -> *mut task_struct {
        CURRENT.read().cast()
    }

    #[inline(always)]
    pub(super) fn preempt_count() -> u32 {
        PREEMPT_COUNT.read()
    }
}

#[cfg(not(all(CONFIG_X86_64, CONFIG_SMP, not(CONFIG_UML))))]
mod task {
    use crate::bindings;

    #[inline]
    pub(super) fn current() -> *mut bindings::task_struct {
        // SAFETY: Can be called from any context.
        unsafe { bindings::get_current() }
    }

    #[inline]
    pub(super) fn preempt_count() -> u32 {
        // SAFETY: Can be called from any context.
        unsafe { bindings::preempt_count() as u32 }
    }
}

use task::{
    current,
    preempt_count, //
};

/// Returns the time, in jiffies modulo 2^32.
#[inline(always)]
fn now() -> u32 {
    // SAFETY: The variable is valid, and a volatile load can race with its changes.
    unsafe { (&raw const bindings::jiffies).read_volatile() as u32 }
}

/// Returns the chunk with this number, if there is one.
fn chunk(number: usize) -> Option<&'static Chunk> {
    // An address dependency orders what is reached by the pointer. It pairs with the `Release` in
    // `add_chunk()` (litmus: record-chunk).
    //
    // SAFETY: Chunks are not freed while the library is in use.
    unsafe { read_once(CHUNKS.get(number)?).as_ref() }
}

/// Takes a record of the local CPU. Fails if it has none, or if an interrupt or a migration changes
/// the word in between.
#[inline(always)]
fn take() -> Option<&'static Record> {
    let word = POOL.read();
    if word as u32 == 0 || POOL.cmpxchg(word, word & (word - 1)).is_err() {
        return None;
    }
    let (number, bit) = (
        (word >> 32) as usize,
        (word as u32).trailing_zeros() as usize,
    );
    // INVARIANT: A bit was set, so the record was reserved, and the bit is ours now.
    //
    // SAFETY: A bit was set, so there is this chunk, with the record. Chunks are not freed while
    // the library is in use.
    unsafe {
        let chunk = read_once(CHUNKS.get_unchecked(number));
        core::hint::assert_unchecked(!chunk.is_null());
        (&raw const (*chunk).records)
            .cast::<Record>()
            .add(bit)
            .as_ref()
    }
}

/// Takes a record, and gets more for this CPU if there are none.
#[cold]
#[inline(never)]
fn take_slowly() -> Option<&'static Record> {
    loop {
        let word = POOL.read();
        if word as u32 != 0 {
            match take() {
                Some(record) => return Some(record),
                // An interrupt was quicker, or this is another CPU now.
                None => continue,
            }
        }
        let start = (word >> 32) as usize + 1;
        // Chunks that are full now and then do not keep this from finding those that are not, and
        // chunks that are full for long make a quarter of all at least not full.
        let Some((number, bits)) = reserve(start, 4)
            .or_else(add_chunk)
            .or_else(|| reserve(start + 4, 60))
        else {
            UNRECORDED.inc();
            // The next one begins after the chunks that were tried. If the word has changed, there
            // may be records now.
            let next = (start + 63) % CHUNKS_MAX;
            let _ = POOL.cmpxchg(word, (next as u64) << 32);
            return None;
        };
        // INVARIANT: We have reserved these records.
        let new = (number as u64) << 32 | u64::from(bits);
        if POOL.cmpxchg(word, new).is_err() {
            // An interrupt has got records, or this is another CPU now.
            give_back(number, bits);
        }
    }
}

/// Reserves the free records of one of `tries` chunks. Returns its number, and their bits.
fn reserve(start: usize, tries: usize) -> Option<(usize, u32)> {
    let len = LEN.load(Relaxed) as usize;
    (0..tries.min(len)).find_map(|i| {
        let number = (start + i) % len;
        let chunk = chunk(number)?;
        // `Acquire` pairs with the `Release` below: one CPU reserves at a time, and an interrupt
        // goes on to another chunk (litmus: record-chunk-lock).
        chunk.is_locked.cmpxchg(0, 1, Acquire).ok()?;
        let (mut bits, mut bit) = (0, 1);
        for record in &chunk.records {
            // Pairs with the store in `end()`, by a control dependency: the next holder stores only
            // if the record was found to be free (litmus: record-reuse).
            if read_once(&record.count).is_null() {
                set(&record.count, RESERVED);
                bits |= bit;
            }
            bit <<= 1;
        }
        chunk.is_locked.store(0, Release);
        (bits != 0).then_some((number, bits))
    })
}

/// Adds a chunk, whose records are reserved. Returns its number, and their bits.
fn add_chunk() -> Option<(usize, u32)> {
    if LEN.load(Relaxed) as usize >= CHUNKS_MAX {
        return None;
    }
    // SAFETY: Can be called from any context.
    let chunk = unsafe { bindings::percpu_ref_alloc_records(size_of::<Chunk>()) };
    let chunk = NonNull::new(chunk.cast::<Chunk>())?;
    // SAFETY: Zeroes are a valid chunk, and it is not published yet.
    for record in unsafe { &chunk.as_ref().records } {
        record.count.store(RESERVED, Relaxed);
    }
    let number = LEN.fetch_add(1, Relaxed) as usize;
    let Some(place) = CHUNKS.get(number) else {
        LEN.fetch_sub(1, Relaxed);
        // The last places were taken meanwhile. The chunk cannot be freed in any context, so it is
        // leaked; that happens once for each CPU at most.
        return None;
    };
    // `Release` pairs with the address dependency in `chunk()` (litmus: record-chunk).
    place.store(chunk.as_ptr(), Release);
    Some((number, ALL))
}

/// Marks reserved records as free.
fn give_back(number: usize, bits: u32) {
    for (i, record) in chunk(number)
        .iter()
        .flat_map(|chunk| chunk.records.iter().enumerate())
    {
        if bits & 1 << i != 0 {
            record.count.store(ptr::null_mut(), Relaxed);
        }
    }
}

/// Frees all chunks.
///
/// # Safety
///
/// The library must not be used after this, and no RCU callback of it must be left.
#[cfg(MODULE)]
pub(in super::super) unsafe fn free() {
    for chunk in &CHUNKS {
        // SAFETY: It is null or a chunk, which is not used any more.
        unsafe { bindings::percpu_ref_free_records(chunk.load(Relaxed).cast()) };
    }
}

/// Returns how many references were not recorded since the library was loaded.
pub(in super::super) fn unrecorded() -> usize {
    UNRECORDED.sum()
}

/// Ends the holder that stands for an object.
///
/// # Safety
///
/// `count` must be the valid count of the object, and this must be called once.
pub(in super::super) unsafe fn end_object(count: NonNull<Count>) {
    // SAFETY: By the safety requirements of this function, `count` is valid. The holder does not
    // change after the object was shared.
    unsafe { (*count.as_ptr()).holder.get().read() }.end();
}

/// What a record said, when it was read.
#[derive(Clone, Copy)]
pub(in super::super) struct Entry {
    pub(in super::super) kind: Kind,
    /// The address of the count, which may be gone.
    pub(in super::super) count: *const Count,
    pub(in super::super) class: &'static Class,
    pub(in super::super) site: Site,
    /// The address of the site in its module, or 0 if that is gone.
    site_addr: usize,
    /// The number of references.
    pub(in super::super) len: usize,
    /// The age in jiffies.
    pub(in super::super) age: u32,
    pid: i32,
    context: u32,
}

/// A copy of a [`Location`], since that lies in a module. Two sites in one line are the same.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in super::super) struct Site {
    line: u32,
    /// The last bytes of the file's name.
    file: [u8; Self::FILE],
    len: u8,
}

impl Site {
    const FILE: usize = 70;

    fn new(location: Option<&Location<'_>>) -> Self {
        let name = location.map_or("", |location| location.file());
        let mut start = name.len().saturating_sub(Self::FILE);
        while !name.is_char_boundary(start) {
            start += 1;
        }
        let name = &name.as_bytes()[start..];
        let mut file = [0; Self::FILE];
        file[..name.len()].copy_from_slice(name);
        Self {
            line: location.map_or(0, |location| location.line()),
            file,
            len: name.len() as u8,
        }
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.file.get(..self.len.into()).unwrap_or_default();
        match core::str::from_utf8(name) {
            Ok(name) if self.line != 0 => f.write_fmt(fmt!("{name}:{}", self.line)),
            _ => f.write_str("an unloaded module"),
        }
    }
}

/// Displays jiffies as seconds.
struct Age(u32);

impl fmt::Display for Age {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const HZ: u32 = bindings::CONFIG_HZ;
        f.write_fmt(fmt!("{}.{:03} s", self.0 / HZ, self.0 % HZ * 1000 / HZ))
    }
}

impl Entry {
    /// Reads a record that is in use.
    ///
    /// # Safety
    ///
    /// The caller must be in an RCU read-side critical section, and must not use the count after
    /// that.
    unsafe fn read(record: &Record) -> Option<(NonNull<Count>, Self)> {
        // Pairs with `store_release()` in `Holder::new()` (litmus: record-is-whole).
        let tagged = record.count.load(Acquire);
        let kind = match tagged.addr() & KIND_MASK {
            0 => Kind::Guard,
            2 => Kind::Batch,
            4 => Kind::Freezer,
            6 => Kind::Object,
            _ => return None,
        };
        let count = NonNull::new(tagged.map_addr(|addr| addr & !KIND_MASK))?.cast::<Count>();
        // If the record has got another holder since it was read above, that one may be younger
        // than the clock.
        let age = now().wrapping_sub(record.when.load(Relaxed));
        let age = if age > i32::MAX as u32 { 0 } else { age };
        // SAFETY: The caller's critical section keeps the count, and by the type invariant of
        // `Record`, the site.
        let (class, site) = unsafe { (Count::class_of(count), record.site.load(Relaxed).as_ref()) };
        let entry = Self {
            kind,
            count: count.as_ptr(),
            class,
            site: Site::new(site),
            site_addr: site.map_or(0, |site| ptr::from_ref(site).addr()),
            len: match kind {
                Kind::Batch => record.len.load(Relaxed) as usize,
                _ => 1,
            },
            age,
            pid: record.pid.load(Relaxed),
            context: record.context.load(Relaxed),
        };
        Some((count, entry))
    }

    /// Displays where, when and by whom.
    pub(in super::super) fn got(&self) -> Got<'_> {
        Got(self)
    }
}

/// Displays where, when and by which task something was got.
pub(in super::super) struct Got<'a>(&'a Entry);

impl fmt::Display for Got<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Entry { site, age, pid, .. } = self.0;
        f.write_fmt(fmt!("{} ago at {site} by ", Age(*age)))?;
        let mut buffer = [0; bindings::TASK_COMM_LEN as usize + 1];
        f.write_str(comm_of(*pid, &mut buffer))?;
        f.write_fmt(fmt!("[{pid}]"))?;
        // `in_hardirq()` and `in_serving_softirq()` in include/linux/preempt.h.
        let Entry { context, .. } = self.0;
        if context >> bindings::HARDIRQ_SHIFT & ((1 << bindings::HARDIRQ_BITS) - 1) != 0 {
            f.write_str(" in a hard interrupt")
        } else if context & bindings::SOFTIRQ_OFFSET != 0 {
            f.write_str(" in a softirq")
        } else {
            Ok(())
        }
    }
}

/// Copies the name of a task to `buffer`, if the task is still there.
fn comm_of(pid: i32, buffer: &mut [u8; bindings::TASK_COMM_LEN as usize + 1]) -> &str {
    if pid == 0 {
        return "swapper";
    }
    {
        let _section = rcu::read_lock();
        // SAFETY: The task is valid until the critical section ends. Its name changes under a lock,
        // but always has a null in the last byte (`comm` in include/linux/sched.h).
        unsafe {
            let task = bindings::pid_task(
                bindings::find_pid_ns(pid, &raw mut bindings::init_pid_ns),
                bindings::pid_type_PIDTYPE_PID,
            );
            if task.is_null() {
                return "(exited)";
            }
            let comm = (&raw const (*task).comm).cast::<u8>();
            for (i, byte) in buffer[..bindings::TASK_COMM_LEN as usize]
                .iter_mut()
                .enumerate()
            {
                *byte = comm.add(i).read_volatile();
            }
        }
    }
    CStr::from_bytes_until_nul(buffer)
        .ok()
        .and_then(|name| name.to_str().ok())
        .unwrap_or("?")
}

/// Calls `f` for each holder, in an RCU read-side critical section that keeps the memory of the
/// count.
pub(in super::super) fn each(mut f: impl FnMut(&Count, Entry)) {
    for number in 0..(LEN.load(Relaxed) as usize).min(CHUNKS_MAX) {
        let _section = rcu::read_lock();
        for record in chunk(number).iter().flat_map(|chunk| &chunk.records) {
            // SAFETY: We are in a critical section, and `f` is not given the count for longer.
            if let Some((count, entry)) = unsafe { Entry::read(record) } {
                // SAFETY: The record was in use, and the critical section keeps the memory of its
                // count.
                f(unsafe { count.as_ref() }, entry);
            }
        }
    }
}

/// Logs the three oldest holders of a count, or of all counts of a class, and how many there are
/// besides.
pub(in super::super) fn report_oldest(count: Option<&Count>, class: &Class) {
    report(|entry| {
        ptr::eq(entry.class, class) && count.is_none_or(|count| ptr::eq(entry.count, count))
    });
}

/// Logs the three oldest holders that `filter` selects, and how many there are besides.
fn report(filter: impl Fn(&Entry) -> bool) {
    let mut oldest = [None::<Entry>; 3];
    let mut total = 0usize;
    each(|_, entry| {
        if entry.kind == Kind::Object || !filter(&entry) {
            return;
        }
        total += 1;
        let mut next = Some(entry);
        for place in &mut oldest {
            if place.is_none_or(|old| next.is_some_and(|next| next.age > old.age)) {
                core::mem::swap(place, &mut next);
            }
        }
    });
    for entry in oldest.iter().flatten() {
        let what = match entry.kind {
            Kind::Freezer => "a freezer",
            Kind::Batch => "a batch",
            _ => "a reference",
        };
        pr_warn!("    held: {what}, got {}\n", entry.got());
    }
    if let more @ 1.. = total.saturating_sub(oldest.len()) {
        pr_warn!("    held: and {more} more\n");
    }
    if let n @ 1.. = unrecorded() {
        pr_warn!("    held: perhaps more, since {n} references were not recorded\n");
    }
}

/// Forgets all sites that lie in a module, and logs what was got there and is still held.
///
/// Code of the module must not run after its exit function has returned, so no record gets such a
/// site after this.
///
/// # Context
///
/// May sleep, so must be called from process context.
pub(in super::super) fn forget_sites(memory: &ModuleMemory, module: &CStr) {
    let mut is_held = false;
    each(|_, entry| is_held |= entry.kind != Kind::Object && memory.contains(entry.site_addr));
    if is_held {
        pr_warn!("unloading {module}, which got references that are still held:\n");
        report(|entry| memory.contains(entry.site_addr));
    }

    for number in 0..(LEN.load(Relaxed) as usize).min(CHUNKS_MAX) {
        for record in chunk(number).iter().flat_map(|chunk| &chunk.records) {
            let site = record.site.load(Relaxed);
            if memory.contains(site.addr()) {
                // If the record has another site now, that lies elsewhere.
                let _ = record.site.cmpxchg(site, ptr::null_mut(), Relaxed);
            }
        }
    }
    // Readers that have found one of the sites are waited for by the module's end: `free_module()`
    // and `do_init_module()` in kernel/module/main.c call `synchronize_rcu()`.
}

// SPDX-License-Identifier: GPL-2.0

//! The records of holders.
//!
//! A get must find a record without a lock and in any context, and the put may be on another CPU.
//! Therefore the records are in [`Chunk`]s, which are not freed while the library is in use, and
//! each CPU has a *word* ([`POOL`]): the number of a chunk, and one bit for each record of the
//! chunk that this CPU may take. A get clears a bit by one `this_cpu_cmpxchg()`. A put marks the
//! record as free, and does nothing else. When a CPU has no bits left, it looks for a chunk with
//! free records, marks all of them as reserved, and sets their bits in its word. If it finds none
//! in a few chunks, it allocates a new chunk.
//!
//! A bit is set in one word at most, because a record is reserved for one CPU at a time. So the
//! `this_cpu_cmpxchg()` is correct even if the task is migrated to another CPU, whose word differs,
//! or if the word has changed and changed back: if the bit is set, the record can be taken.
//!
//! # Readers
//!
//! A reader finds the count by the record, in an RCU read-side critical section. A record that is
//! in use keeps the count valid, because the holder marks the record as free before it drops what
//! it holds, and with `CONFIG_RUST_PERCPU_REF_DEBUG` the memory of a count is freed a grace period
//! after the last hold. So if a reader finds a count in a record, the memory stays valid until the
//! end of the critical section: if the memory had been freed before the section began, the reader
//! would have seen that the record is free.
//!
//! A reader does not read the other fields of a record together with the count. If the record is
//! given to another holder in between, the reader may combine the count of the first holder with
//! the site of the second. The memory of the site is valid in any case: see [`forget_sites`].
//!
//! kmemleak does not scan chunks for pointers, so it finds objects whose references were leaked. It
//! also reports an object whose only reference is held by C as a pointer to the record.

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

/// The record of one holder.
///
/// # Invariants
///
/// - `count` is null if the record is free, and [`RESERVED`] if the bit of the record is or was set
///   in the word of a CPU. Otherwise it is the address of a count, with a [`Kind`] in the low bits.
/// - `site` is null, or points to a [`Location`] that is valid until a grace period after `site`
///   was changed.
#[repr(C, align(8))]
pub(in super::super) struct Record {
    count: Atomic<*mut c_void>,
    site: Atomic<*mut Location<'static>>,
    /// For a [`Kind::Batch`], the number of references, or `u32::MAX` if it is larger.
    len: Atomic<u32>,
    /// The jiffies at the get.
    ///
    /// An age is correct up to 2^31 jiffies, which are 24 days or more.
    when: Atomic<u32>,
    pid: Atomic<i32>,
    /// The preemption count at the get, which tells interrupts from tasks.
    context: Atomic<u32>,
}

/// In [`Record::count`]: the record is reserved for a CPU.
const RESERVED: *mut c_void = ptr::without_provenance_mut(1);
/// The bits of a [`Kind`], and of [`RESERVED`].
const KIND_MASK: usize = 7;
const _: () = assert!(align_of::<Count>() > KIND_MASK);

/// The number of records in a chunk.
const RECORDS: usize = 31;
const ALL: u32 = (1 << RECORDS) - 1;

/// A number of records, with a lock for the CPU that reserves them.
#[repr(C)]
struct Chunk {
    records: [Record; RECORDS],
    is_locked: Atomic<u32>,
}

/// The largest number of chunks, for half a million records.
const CHUNKS_MAX: usize = 1 << 14;
/// All chunks.
///
/// The pointers after the last chunk are null. While chunks are added, there may also be null
/// pointers before it.
static CHUNKS: [Atomic<*mut Chunk>; CHUNKS_MAX] =
    [const { Atomic::new(ptr::null_mut()) }; CHUNKS_MAX];
/// The number of chunks.
///
/// It may exceed [`CHUNKS_MAX`] for a moment.
static LEN: Atomic<u32> = Atomic::new(0);

define_per_cpu! {
    /// The bits of the records that this CPU can take, and the number of their chunk in the upper
    /// half.
    ///
    /// If a bit is set, the chunk exists, and the record is reserved for this CPU.
    static POOL: Local<u64> = Local::new(0);

    /// The number of gets for which there was no record.
    static UNRECORDED: Local<usize> = Local::new(0);
}

/// The record of what its owner holds.
///
/// Copies of a `Holder` stand for the same references. The owner must end exactly one copy.
///
/// # Invariants
///
/// The record is in use for this holder alone, until [`Holder::end`].
#[derive(Clone, Copy)]
pub(in super::super) struct Holder(Option<&'static Record>);

impl Holder {
    /// A holder that records nothing.
    pub(in super::super) const NONE: Self = Self(None);

    /// Records that the caller's caller holds `len` of `kind`.
    ///
    /// The caller must hold them until [`Holder::end`].
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
        // SAFETY: `current()` returns the current task, which is valid.
        set(&record.pid, unsafe { (*current()).pid });
        set(&record.context, preempt_count());
        if kind == Kind::Batch {
            set(&record.len, len.try_into().unwrap_or(u32::MAX));
        }
        // Pairs with the `Acquire` in `Entry::read()`, which sees the count and the other fields as
        // they are now (litmus: record-is-whole).
        //
        // INVARIANT: The record was reserved for a CPU, and `take()` has cleared its bit, so no
        // other code uses it.
        let count = count.as_ptr().cast::<c_void>();
        store_release(&record.count, count.map_addr(|addr| addr | kind as usize));
        Self(Some(record))
    }

    /// Records that there are `len` references now, and ends the record if there are none.
    #[inline(always)]
    pub(in super::super) fn resize(&mut self, len: usize) {
        if len == 0 {
            self.end();
            *self = Self::NONE;
        } else if let Some(record) = self.0 {
            set(&record.len, len.try_into().unwrap_or(u32::MAX));
            let count = read_once(&record.count);
            let batch = |addr| addr & !KIND_MASK | Kind::Batch as usize;
            // This has the same ordering as in `new()`.
            store_release(&record.count, count.map_addr(batch));
        }
    }

    /// Takes over the references that `other` records, which makes `len` references together.
    pub(in super::super) fn merge(&mut self, other: Self, len: usize) {
        if self.0.is_none() {
            *self = other;
        } else {
            other.end();
        }
        self.resize(len);
    }

    /// Ends the record.
    ///
    /// Must be called before the holder drops what is recorded.
    #[inline(always)]
    pub(in super::super) fn end(self) {
        if let Some(record) = self.0 {
            // Pairs with the load in `reserve()`: the stores of the next holder come after the
            // stores of this holder (litmus: record-reuse). The count stays valid for readers in
            // their critical sections (litmus: record-count-stays).
            store_release(&record.count, ptr::null_mut());
        }
    }

    /// Replaces a pointer to the object by a pointer to the record, if there is a record.
    ///
    /// C keeps this pointer until [`Holder::from_foreign`].
    pub(in super::super) fn into_foreign(self, ptr: &mut *mut c_void) {
        if let Some(record) = self.0 {
            let record = ptr::from_ref(record).cast_mut().cast::<c_void>();
            *ptr = record.map_addr(|addr| addr | FOREIGN_ALIGN);
        }
    }

    /// Replaces a pointer to the record by a pointer to the object, and returns the holder.
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
        // SAFETY: By the safety requirements of this function, `record` is the address of a record,
        // which is not freed while the library is in use.
        let record = unsafe { &*record };
        *ptr = read_once(&record.count).map_addr(|addr| addr & !KIND_MASK);
        assert!(!ptr.is_null(), "C has given a reference back twice");
        // INVARIANT: The holder that was converted into `ptr` was not ended.
        Self(Some(record))
    }
}

/// The alignment of a pointer for C.
///
/// The bit with this value says that the pointer points to a record.
pub(in super::super) const FOREIGN_ALIGN: usize = 4;
const _: () = assert!(align_of::<Record>() > FOREIGN_ALIGN);
const _: () = assert!(align_of::<Count>() > FOREIGN_ALIGN);

/// Stores a value as `store(Relaxed)` does, but is always inlined into the caller.
///
/// Without `CONFIG_RUST_INLINE_HELPERS`, `store()` is a call.
#[doc(alias = "WRITE_ONCE")]
#[inline(always)]
fn set<T: AtomicType>(to: &Atomic<T>, value: T) {
    // SAFETY: The variable is valid. Other CPUs access it by atomic operations, which a volatile
    // store may race with by the kernel's memory model.
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
        // SAFETY: `current_task` in arch/x86/kernel/cpu/common.c is a pointer. Each CPU changes its
        // own copy, with interrupts disabled. This module only reads.
        unsafe static CURRENT: Local<*mut c_void> = current_task;
        // SAFETY: The count is the lower half or the whole of `__preempt_count` in the same file.
        // This module only reads.
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
        // SAFETY: `get_current()` can be called from any context.
        unsafe { bindings::get_current() }
    }

    #[inline]
    pub(super) fn preempt_count() -> u32 {
        // SAFETY: `preempt_count()` can be called from any context.
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
    // SAFETY: `jiffies` is a static variable, and a volatile load may race with its changes.
    unsafe { (&raw const bindings::jiffies).read_volatile() as u32 }
}

/// Returns the chunk with this number, or `None` if there is no such chunk.
fn chunk(number: usize) -> Option<&'static Chunk> {
    // The address dependency orders accesses by means of the pointer. It pairs with the `Release`
    // in `add_chunk()` (litmus: record-chunk).
    //
    // SAFETY: Chunks are not freed while the library is in use.
    unsafe { read_once(CHUNKS.get(number)?).as_ref() }
}

/// Takes a record of the local CPU.
///
/// Returns `None` if the CPU has no record, or if an interrupt or a migration changes the word in
/// between.
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
    // INVARIANT: The bit was set, so the record was reserved, and we have cleared the bit.
    //
    // SAFETY: The bit was set, so this chunk exists and has the record. Chunks are not freed while
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

/// Takes a record, and reserves more records for this CPU if it has none.
#[cold]
#[inline(never)]
fn take_slowly() -> Option<&'static Record> {
    loop {
        let word = POOL.read();
        if word as u32 != 0 {
            match take() {
                Some(record) => return Some(record),
                // An interrupt has changed the word, or the task was migrated.
                None => continue,
            }
        }
        let start = (word >> 32) as usize + 1;
        // The first search is short. So chunks that are full for a short time do not keep this from
        // finding other chunks, and if most chunks are full for long, a new chunk is added.
        let Some((number, bits)) = reserve(start, 4)
            .or_else(add_chunk)
            .or_else(|| reserve(start + 4, 60))
        else {
            UNRECORDED.inc();
            // The next search begins after the chunks that were tried. If the word has changed,
            // there may be records now.
            let next = (start + 63) % CHUNKS_MAX;
            let _ = POOL.cmpxchg(word, (next as u64) << 32);
            return None;
        };
        // INVARIANT: `reserve()` or `add_chunk()` has reserved these records for us.
        let new = (number as u64) << 32 | u64::from(bits);
        if POOL.cmpxchg(word, new).is_err() {
            // An interrupt has reserved records, or the task was migrated.
            give_back(number, bits);
        }
    }
}

/// Reserves the free records of one of `tries` chunks, and returns its number and their bits.
fn reserve(start: usize, tries: usize) -> Option<(usize, u32)> {
    let len = LEN.load(Relaxed) as usize;
    (0..tries.min(len)).find_map(|i| {
        let number = (start + i) % len;
        let chunk = chunk(number)?;
        // `Acquire` pairs with the `Release` below: one CPU reserves at a time, and an interrupt
        // continues with another chunk (litmus: record-chunk-lock).
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

/// Adds a chunk with reserved records, and returns its number and their bits.
fn add_chunk() -> Option<(usize, u32)> {
    if LEN.load(Relaxed) as usize >= CHUNKS_MAX {
        return None;
    }
    // SAFETY: `percpu_ref_alloc_records()` can be called from any context.
    let chunk = unsafe { bindings::percpu_ref_alloc_records(size_of::<Chunk>()) };
    let chunk = NonNull::new(chunk.cast::<Chunk>())?;
    // SAFETY: The memory is zeroed, which makes a valid chunk, and it is not published yet.
    for record in unsafe { &chunk.as_ref().records } {
        record.count.store(RESERVED, Relaxed);
    }
    let number = LEN.fetch_add(1, Relaxed) as usize;
    let Some(place) = CHUNKS.get(number) else {
        LEN.fetch_sub(1, Relaxed);
        // Other CPUs have added the last chunks. This chunk is leaked, because it cannot be freed
        // in any context. This happens at most once for each CPU.
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
/// The library must not be used after this, and no RCU callback of it must be queued.
#[cfg(MODULE)]
pub(in super::super) unsafe fn free() {
    for chunk in &CHUNKS {
        // SAFETY: The pointer is null or that of a chunk, which is not used any more.
        unsafe { bindings::percpu_ref_free_records(chunk.load(Relaxed).cast()) };
    }
}

/// Returns the number of references that were not recorded since the library was loaded.
pub(in super::super) fn unrecorded() -> usize {
    UNRECORDED.sum()
}

/// Ends the record of an object.
///
/// # Safety
///
/// `count` must be the valid count of the object, and this must be called once.
pub(in super::super) unsafe fn end_object(count: NonNull<Count>) {
    // SAFETY: By the safety requirements of this function, `count` is valid. `holder` does not
    // change after the object was shared.
    unsafe { (*count.as_ptr()).holder.get().read() }.end();
}

/// The contents of a record when it was read.
#[derive(Clone, Copy)]
pub(in super::super) struct Entry {
    pub(in super::super) kind: Kind,
    /// The address of the count, which may have been freed.
    pub(in super::super) count: *const Count,
    pub(in super::super) class: &'static Class,
    pub(in super::super) site: Site,
    /// The address of the site in its module, or 0 if the module is unloaded.
    site_addr: usize,
    /// The number of references.
    pub(in super::super) len: usize,
    /// The age in jiffies.
    pub(in super::super) age: u32,
    pid: i32,
    context: u32,
}

/// A copy of a [`Location`], which is needed because a [`Location`] is in the memory of a module.
///
/// Two sites in one line are equal.
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
    /// Reads a record, and returns `None` if it is not in use.
    ///
    /// # Safety
    ///
    /// The caller must be in an RCU read-side critical section, and must not use the count after
    /// the section.
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
        // If the record was given to another holder since it was read above, `when` may be later
        // than the clock was.
        let age = now().wrapping_sub(record.when.load(Relaxed));
        let age = if age > i32::MAX as u32 { 0 } else { age };
        // SAFETY: The caller's critical section keeps the count valid, and by the type invariant of
        // `Record`, also the site.
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

    /// Displays where and when this was got, and by which task.
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
        // This is `in_hardirq()` and `in_serving_softirq()` in include/linux/preempt.h.
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

/// Copies the name of a task to `buffer`, and returns a replacement if the task has exited.
fn comm_of(pid: i32, buffer: &mut [u8; bindings::TASK_COMM_LEN as usize + 1]) -> &str {
    if pid == 0 {
        return "swapper";
    }
    {
        let _section = rcu::read_lock();
        // SAFETY: The task is valid until the critical section ends. Its name changes under a lock,
        // but its last byte is always null (`comm` in include/linux/sched.h).
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

/// Calls `f` for each record in use, in an RCU read-side critical section that keeps the count
/// valid.
pub(in super::super) fn each(mut f: impl FnMut(&Count, Entry)) {
    for number in 0..(LEN.load(Relaxed) as usize).min(CHUNKS_MAX) {
        let _section = rcu::read_lock();
        for record in chunk(number).iter().flat_map(|chunk| &chunk.records) {
            // SAFETY: We are in a critical section, and `f` cannot keep the reference to the count.
            if let Some((count, entry)) = unsafe { Entry::read(record) } {
                // SAFETY: The record was in use, and the critical section keeps its count valid.
                f(unsafe { count.as_ref() }, entry);
            }
        }
    }
}

/// Logs the three oldest holders of a count or of a class, and the number of the others.
pub(in super::super) fn report_oldest(count: Option<&Count>, class: &Class) {
    report(|entry| {
        ptr::eq(entry.class, class) && count.is_none_or(|count| ptr::eq(entry.count, count))
    });
}

/// Logs the three oldest holders that `filter` selects, and the number of the others.
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

/// Forgets all sites in a module, and logs what was got there and is still held.
///
/// No code of the module must run after its exit function has returned, so no record gets such a
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
                // If the record has another site now, that site is not in the module.
                let _ = record.site.cmpxchg(site, ptr::null_mut(), Relaxed);
            }
        }
    }
    // `free_module()` and `do_init_module()` in kernel/module/main.c call `synchronize_rcu()`
    // before they free the module. This waits for readers that have found one of the sites.
}

// SPDX-License-Identifier: GPL-2.0

//! The machine that the model runs on: memory, CPUs, RCU and the thread that runs RCU callbacks.
//!
//! It consists of primitives that `loom` explores.
//!
//! Each actor has a CPU of its own. A read-side critical section holds the mutex of its CPU. A
//! grace period takes the mutex of each CPU once. So it waits for the sections that it finds, and
//! later sections see what happened before it. This is exactly what RCU guarantees.
//!
//! An atomic of the library is mapped to an atomic of a pool by its address. The pool is made
//! before the threads are created, because `loom` treats the creation of an atomic as an access to
//! it. The last value is also in the library's memory, so that an atomic that is moved keeps its
//! value. Memory is not reused before an execution ends, so that each access to freed memory is
//! found.

use crate::bindings;
use loom::{
    cell::UnsafeCell,
    sync::{
        atomic::{
            AtomicU64,
            Ordering::Relaxed, //
        },
        Condvar,
        Mutex,
        MutexGuard, //
    },
};
use std::{
    alloc::Layout,
    cell::Cell,
    collections::{BTreeMap, HashMap, VecDeque},
    ffi::c_void,
    sync::Arc,
};

/// The number of CPUs, each of which has one thread. `loom` allows no more threads.
pub const CPUS: usize = 4;
/// The distance between the copies of a variable of two CPUs.
const STRIDE: usize = 1 << 12;

/// An item for the thread that runs callbacks.
pub enum Item {
    Callback(*mut bindings::callback_head),
    Free(*mut c_void),
    Work(*mut bindings::work_struct),
    Barrier(Arc<Completion>),
    Stop,
}

/// An event that a thread waits for.
#[derive(Default)]
pub struct Completion {
    is_done: Mutex<bool>,
    changed: Condvar,
}

impl Completion {
    fn complete(&self) {
        *self.is_done.lock().unwrap() = true;
        self.changed.notify_all();
    }

    /// Waits without a timeout, so that `loom` reports a wait that only a timeout would end as a
    /// deadlock.
    fn wait(&self) {
        might_sleep();
        let mut is_done = self.is_done.lock().unwrap();
        while !*is_done {
            is_done = self.changed.wait(is_done).unwrap();
        }
        *is_done = false;
    }
}

struct Cpu {
    section: Mutex<()>,
    held: Cell<Option<MutexGuard<'static, ()>>>,
    depth: Cell<usize>,
}

struct Block {
    layout: Layout,
    is_free: bool,
    /// Is read by each use of the memory and written when it is freed, so that `loom` checks their
    /// order.
    order: UnsafeCell<()>,
    /// The first address after all copies.
    end: usize,
}

/// A pool of objects that are mapped to addresses.
struct Pool<T> {
    things: Vec<T>,
    used: usize,
    by_address: HashMap<usize, usize>,
}

impl<T> Pool<T> {
    fn new(n: usize, new: impl Fn() -> T) -> Self {
        Self {
            things: (0..n).map(|_| new()).collect(),
            used: 0,
            by_address: HashMap::new(),
        }
    }

    fn get(&self, address: usize) -> Option<&T> {
        self.by_address
            .get(&address)
            .map(|&index| &self.things[index])
    }

    /// Maps an unused object to an address, and returns it.
    fn take(&mut self, address: usize) -> &mut T {
        self.by_address.insert(address, self.used);
        self.used += 1;
        self.things
            .get_mut(self.used - 1)
            .expect("the pool is too small")
    }

    fn at(&mut self, address: usize) -> &T {
        if self.get(address).is_none() {
            self.take(address);
        }
        self.get(address).unwrap()
    }
}

/// An atomic, which contains the difference between its value and its first value.
struct Value {
    difference: AtomicU64,
    first: u64,
    last: Cell<u64>,
}

pub struct World {
    atomics: Pool<Value>,
    /// The size and the first value of each atomic, by its address.
    first: HashMap<usize, (usize, u64)>,
    counters: Pool<(AtomicU64, UnsafeCell<()>)>,
    locks: Pool<(Mutex<()>, Option<MutexGuard<'static, ()>>)>,
    completions: HashMap<usize, Arc<Completion>>,
    /// The address of the entry, the address of the variable, and the completion of each waiter.
    waiters: Vec<(usize, usize, Arc<Completion>)>,
    /// The entry with which the thread of each CPU waits.
    waiting: [usize; CPUS],
    blocks: BTreeMap<usize, Block>,
    cpus: Vec<Cpu>,
    may_warn: bool,
    queue: Mutex<VecDeque<Item>>,
    is_queued: Condvar,
}

static mut WORLD: *mut World = std::ptr::null_mut();

loom::thread_local! {
    static CPU: Cell<usize> = Cell::new(0);
}

/// Returns the world of this execution.
///
/// `loom` runs one thread at a time, and switches threads only in its own operations.
fn world() -> &'static mut World {
    // SAFETY: The world is valid during an execution. No caller uses the reference as an exclusive
    // reference after an operation of `loom`.
    unsafe { WORLD.as_mut().expect("this must be called in an execution") }
}

pub fn cpu() -> usize {
    CPU.with(Cell::get)
}

impl World {
    fn new(atomics: usize) -> Self {
        Self {
            atomics: Pool::new(atomics, || Value {
                difference: AtomicU64::new(0),
                first: 0,
                last: Cell::new(0),
            }),
            first: HashMap::new(),
            counters: Pool::new(4 * CPUS, || (AtomicU64::new(0), UnsafeCell::new(()))),
            locks: Pool::new(8, || (Mutex::new(()), None)),
            completions: HashMap::new(),
            waiters: Vec::new(),
            waiting: [0; CPUS],
            blocks: BTreeMap::new(),
            cpus: (0..CPUS)
                .map(|_| Cpu {
                    section: Mutex::new(()),
                    held: Cell::new(None),
                    depth: Cell::new(0),
                })
                .collect(),
            may_warn: false,
            queue: Mutex::new(VecDeque::new()),
            is_queued: Condvar::new(),
        }
    }
}

pub type Actor = Box<dyn FnOnce()>;

/// Runs the actors at the same time, each on a CPU of its own, and then the remaining callbacks.
///
/// `setup` makes the actors, on the CPU of the first actor. Returns the number of blocks of memory
/// that are left.
pub fn run(atomics: usize, setup: impl FnOnce() -> Vec<Actor>) -> usize {
    // SAFETY: No other execution runs.
    unsafe { WORLD = Box::into_raw(Box::new(World::new(atomics))) };
    CPU.with(|cpu| cpu.set(0));
    let mut actors = setup().into_iter();
    let first = actors.next().expect("there are actors");
    let threads: Vec<_> = actors
        .chain([Box::new(run_callbacks) as Actor])
        .enumerate()
        .map(|(number, actor)| {
            loom::thread::spawn(move || {
                CPU.with(|cpu| cpu.set(number + 1));
                actor();
            })
        })
        .collect();
    first();
    let last = threads.len() - 1;
    for (number, thread) in threads.into_iter().enumerate() {
        if number == last {
            push(Item::Stop);
        }
        thread.join().unwrap();
    }

    // SAFETY: All threads have ended.
    let world = unsafe { Box::from_raw(WORLD) };
    // SAFETY: All threads have ended.
    unsafe { WORLD = std::ptr::null_mut() };
    restore_statics(&world);
    let mut left = 0;
    for (&start, block) in &world.blocks {
        left += usize::from(!block.is_free);
        // SAFETY: The block was allocated with this layout, and was not deallocated before.
        unsafe { std::alloc::dealloc(start as *mut u8, block.layout) };
    }
    left
}

/// Restores the first values of the atomics in statics.
fn restore_statics(world: &World) {
    extern "C" {
        static __executable_start: u8;
        static _end: u8;
    }
    let statics = &raw const __executable_start as usize..&raw const _end as usize;
    for (&address, &(size, first)) in world.first.iter().filter(|(at, _)| statics.contains(at)) {
        // SAFETY: An atomic of this size is at this address, and no other thread is running.
        unsafe { (address as *mut u8).copy_from((&raw const first).cast(), size) };
    }
}

// Memory.

pub fn alloc(size: usize, align: usize) -> *mut c_void {
    alloc_block(Layout::from_size_align(size.max(1), align).unwrap(), 0)
}

pub fn alloc_percpu(size: usize, align: usize) -> *mut c_void {
    assert!(size <= STRIDE);
    alloc_block(
        Layout::from_size_align(size, align).unwrap(),
        (CPUS - 1) * STRIDE,
    )
}

fn alloc_block(layout: Layout, more: usize) -> *mut c_void {
    let layout = Layout::from_size_align(layout.size() + more, layout.align().max(8)).unwrap();
    // SAFETY: The size is not zero.
    let start = unsafe { std::alloc::alloc_zeroed(layout) };
    let end = start as usize + layout.size();
    world().blocks.insert(
        start as usize,
        Block {
            layout,
            is_free: false,
            order: UnsafeCell::new(()),
            end,
        },
    );
    start.cast()
}

pub fn free(start: *const c_void) {
    let block = world()
        .blocks
        .get_mut(&(start as usize))
        .expect("it was allocated");
    assert!(!block.is_free, "memory is freed twice");
    block.order.with_mut(|_| block.is_free = true);
    // The sanitizer keeps freed memory in quarantine, and finds each use of it.
    if cfg!(sanitized) {
        let block = world().blocks.remove(&(start as usize)).unwrap();
        // SAFETY: The block was allocated with this layout, and is not used after this.
        unsafe { std::alloc::dealloc(start as *mut u8, block.layout) };
    }
}

/// Fails if the memory was freed, or if this use is not ordered before the free.
pub fn check(address: usize) {
    if let Some((_, block)) = world().blocks.range(..=address).next_back() {
        if address < block.end {
            block
                .order
                .with(|_| assert!(!block.is_free, "memory is used after it was freed"));
        }
    }
}

/// Accesses the atomic at `address`, whose memory contains `found`.
///
/// Calls `f` with an atomic, the number that must be added to its value, and a function that `f`
/// must call with each new value.
pub fn with_atomic<R>(
    address: usize,
    size: usize,
    found: u64,
    f: impl FnOnce(&AtomicU64, u64, &dyn Fn(u64)) -> R,
) -> R {
    check(address);
    let World { atomics, first, .. } = world();
    // If the memory contains another value than the last one, another atomic is at this address.
    if atomics
        .get(address)
        .is_none_or(|value| value.last.get() != found)
    {
        let value = atomics.take(address);
        value.first = found;
        value.last.set(found);
        first.entry(address).or_insert((size, found));
    }
    let value = atomics.get(address).unwrap();
    f(&value.difference, value.first, &|new| value.last.set(new))
}

/// Changes this CPU's copy of a counter.
pub fn change_counter(counter: *mut u64, change: impl FnOnce(u64) -> u64) -> u64 {
    let copy = copy_of(counter.cast(), cpu()).cast::<u64>();
    touch_counter(copy as usize);
    // SAFETY: Only one thread changes the copy of its CPU, and `touch_counter()` has checked that
    // the memory is not freed.
    unsafe {
        let old = copy.read();
        copy.write(change(old));
        old
    }
}

/// Fails if an access to the copy of a CPU is not ordered after all earlier accesses.
fn touch_counter(address: usize) {
    check(address);
    let (order, cell) = world().counters.at(address);
    // Makes `loom` explore the other orders of accesses.
    order.fetch_add(1, Relaxed);
    cell.with_mut(|_| check(address));
}

fn copy_of(variable: *mut c_void, cpu: usize) -> *mut c_void {
    variable.wrapping_byte_add(cpu * STRIDE)
}

/// Returns the address of the copy of a CPU, for an access of the caller.
pub fn per_cpu_ptr(variable: *mut c_void, cpu: u32) -> *mut c_void {
    let copy = copy_of(variable, cpu as usize);
    touch_counter(copy as usize);
    copy
}

// RCU.

pub fn enter_section() {
    let cpu = &world().cpus[cpu()];
    cpu.depth.set(cpu.depth.get() + 1);
    if cpu.depth.get() == 1 {
        cpu.held.set(Some(cpu.section.lock().unwrap()));
    }
}

pub fn leave_section() {
    let cpu = &world().cpus[cpu()];
    cpu.depth.set(cpu.depth.get() - 1);
    if cpu.depth.get() == 0 {
        drop(cpu.held.take());
    }
}

/// Fails in a read-side critical section.
pub fn might_sleep() {
    assert_eq!(
        world().cpus[cpu()].depth.get(),
        0,
        "it sleeps in a critical section"
    );
}

pub fn synchronize_rcu() {
    might_sleep();
    for (number, cpu) in world().cpus.iter().enumerate() {
        if number != self::cpu() {
            drop(cpu.section.lock().unwrap());
        }
    }
}

pub fn push(item: Item) {
    world().queue.lock().unwrap().push_back(item);
    world().is_queued.notify_one();
}

pub fn rcu_barrier() {
    let done = Arc::new(Completion::default());
    push(Item::Barrier(done.clone()));
    done.wait();
}

/// Runs callbacks after a grace period each, and work items.
fn run_callbacks() {
    let mut is_over = false;
    loop {
        let item = {
            let mut queue = world().queue.lock().unwrap();
            while queue.is_empty() && !is_over {
                queue = world().is_queued.wait(queue).unwrap();
            }
            queue.pop_front()
        };
        // SAFETY: The library has passed each of these for one use.
        match item {
            None => return,
            Some(Item::Stop) => is_over = true,
            Some(Item::Barrier(done)) => done.complete(),
            Some(Item::Work(work)) => unsafe { ((*work).func.unwrap())(work) },
            Some(Item::Callback(head)) => {
                synchronize_rcu();
                check(head as usize);
                unsafe { ((*head).func.unwrap())(head) }
            }
            Some(Item::Free(memory)) => {
                synchronize_rcu();
                free(memory);
            }
        }
    }
}

// Warnings.

pub fn set_may_warn() {
    world().may_warn = true;
}

pub fn warn() {
    assert!(world().may_warn, "the library warns");
}

// Locks and waiting.

pub fn lock(address: usize) {
    let lock: *const _ = world().locks.at(address);
    // SAFETY: The pool does not move, and the guard is dropped before the pool.
    unsafe {
        let guard = (*lock).0.lock().unwrap();
        (*lock.cast_mut()).1 = Some(guard);
    }
}

pub fn unlock(address: usize) {
    let lock: *const _ = world().locks.at(address);
    // SAFETY: The caller holds the lock, so no other thread accesses the guard.
    drop(unsafe { (*lock.cast_mut()).1.take() });
}

pub fn init_completion(address: usize) {
    world()
        .completions
        .insert(address, Arc::new(Completion::default()));
}

pub fn complete(address: usize) {
    let completion = world().completions[&address].clone();
    completion.complete();
}

pub fn wait_for_completion(address: usize) {
    let completion = world().completions[&address].clone();
    completion.wait();
}

pub fn prepare_to_wait(entry: usize, variable: usize) {
    let waiters = &mut world().waiters;
    if !waiters.iter().any(|waiter| waiter.0 == entry) {
        waiters.push((entry, variable, Arc::new(Completion::default())));
    }
}

pub fn set_waiting(entry: usize) {
    world().waiting[cpu()] = entry;
}

pub fn wait_as_set() {
    let entry = world().waiting[cpu()];
    let entry = world()
        .waiters
        .iter()
        .find(|waiter| waiter.0 == entry)
        .unwrap();
    let completion = entry.2.clone();
    completion.wait();
}

pub fn finish_wait(entry: usize) {
    world().waiters.retain(|waiter| waiter.0 != entry);
}

pub fn wake_up_variable(variable: usize) {
    let woken: Vec<_> = world()
        .waiters
        .iter()
        .filter(|w| w.1 == variable)
        .cloned()
        .collect();
    for (_, _, completion) in woken {
        completion.complete();
    }
}

// SPDX-License-Identifier: GPL-2.0

//! The benchmark: compares the cost of references with the C original and with alternatives.
//!
//! Inserting the module runs the benchmark. Each line of the log that contains `result` is a row of
//! the table that `scripts/bench-report` makes.
//!
//! # Time
//!
//! In a *round*, each *implementation* does an *operation* in a loop, one implementation after
//! another. The loop runs on a number of CPUs at a time, in threads that stay on their CPUs and
//! begin together. The order of the implementations is reversed in each second round, so that a
//! drift affects all of them equally. The first round warms up and is not counted. From each time,
//! the median time of the empty loop is subtracted. The module prints percentiles over the rounds,
//! in picoseconds for one operation on one CPU.
//!
//! # Instructions
//!
//! With `instructions=1`, under an emulator whose clock counts instructions (QEMU's `-icount`), the
//! module counts the cycles of each loop with interrupts disabled, and compares them with a loop of
//! known length. The numbers are thousandths of instructions, and do not differ between runs.

use core::mem::MaybeUninit;
use kernel::sync::percpu_ref::{
    Counted,
    PercpuRef,
    PercpuRefGuard,
    RcuPercpuRef,
    UniquePercpuRef, //
};
use kernel::sync::rcu::{
    self,
    RcuBox,
    RcuCell, //
};
use kernel::{
    bindings,
    error::to_result,
    prelude::*,
    processor::cpu_relax,
    revocable::Revocable,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Full,
            Relaxed,
            Release, //
        },
        Arc, //
    },
    time::{
        delay::fsleep,
        Delta, //
    },
    types::{
        ForeignOwnable,
        Opaque, //
    },
};

#[path = "../tests/cases/kthread.rs"]
mod kthread;
mod this_cpu;

use kthread::{
    online_cpus,
    Thread, //
};

module! {
    type: Bench,
    name: "rust_percpu_ref_bench",
    description: "Benchmark of the per-CPU reference counts",
    license: "GPL",
    params: {
        rounds: u32 {
            default: 31,
            description: "Rounds of each operation, 1 to 1000",
        },
        instructions: u32 {
            default: 0,
            description: "1: count instructions, under an emulator whose clock does",
        },
        hold: u32 {
            default: 0,
            description: "Just hold so many objects: of Rust's, or with kind=1 of C's",
        },
        kind: u32 {
            default: 0,
            description: "See hold",
        },
    },
}

struct Payload(#[allow(dead_code)] [u64; 2]); // The field gives the object a size.

/// The number of objects that are not released yet.
static LEFT: Atomic<usize> = Atomic::new(0);
/// The time of the last release.
static LAST: Atomic<i64> = Atomic::new(0);

impl Counted for Payload {
    fn release(&self) {
        LAST.store(now(), Relaxed);
        // Pairs with the `Acquire` in `kill()`.
        LEFT.fetch_sub(1, Release);
    }
}

/// Returns the monotonic time in nanoseconds.
fn now() -> i64 {
    // SAFETY: `ktime_get()` can be called from any context except NMI.
    unsafe { bindings::ktime_get() }
}

/// A [`Payload`] whose kill waits for RCU Tasks.
struct TasksPayload(#[allow(dead_code)] Payload); // The field gives the object a size.

impl Counted for TasksPayload {
    const RCU_TASKS: bool = true;

    fn release(&self) {
        self.0.release();
    }
}

impl From<Payload> for TasksPayload {
    fn from(payload: Payload) -> Self {
        Self(payload)
    }
}

/// The place in which lookups find their object, which is a static as in C.
static PLACE: RcuPercpuRef<Payload> = RcuPercpuRef::empty();
/// The place in which lookups find an object with `RCU_TASKS`.
static TASKS_PLACE: RcuPercpuRef<TasksPayload> = RcuPercpuRef::empty();
/// A reference that was got on one CPU and will be put on another, or null.
static PASSED: Atomic<*mut c_void> = Atomic::new(core::ptr::null_mut());
/// A reference to an object with `RCU_TASKS` that was got on one CPU, or null.
static TASKS_PASSED: Atomic<*mut c_void> = Atomic::new(core::ptr::null_mut());
/// The object that is replaced as a whole.
static SETTINGS: RcuCell<Payload> = RcuCell::empty();

/// The objects that the loops in Rust use.
///
/// The loops in C have objects of their own.
struct Subjects {
    ours: PercpuRef<Payload>,
    tasks: PercpuRef<TasksPayload>,
    arc: Arc<Payload>,
    revocable: Pin<KBox<Revocable<Payload>>>,
    wrapper: Pin<KBox<Wrapper<Payload>>>,
    variables: this_cpu::Variables,
}

impl Subjects {
    fn new() -> Result<Self> {
        Ok(Self {
            ours: new_object()?,
            tasks: new_object()?,
            arc: Arc::new(Payload([7; 2]), GFP_KERNEL)?,
            revocable: KBox::pin_init(Revocable::new(Payload([7; 2])), GFP_KERNEL)?,
            wrapper: KBox::pin_init(Wrapper::new(Payload([7; 2])), GFP_KERNEL)?,
            variables: this_cpu::Variables::new()?,
        })
    }
}

fn new_object<T: Counted + From<Payload>>() -> Result<PercpuRef<T>> {
    Ok(UniquePercpuRef::new(T::from(Payload([7; 2])), GFP_KERNEL)?.into())
}

/// Does some work between a get and a put, as the loops in C do.
#[inline(always)]
fn work() {
    // SAFETY: `percpu_ref_bench_work()` can be called from any context.
    unsafe { percpu_ref_bench_work() };
}

/// Stores a reference for another CPU to put, and puts the reference that was stored before.
#[inline(always)]
fn pass<T: Counted>(passed: &Atomic<*mut c_void>, guard: PercpuRefGuard<T>) {
    // `Full`: pairs with the exchange that has stored the reference that this finds.
    let found = passed.xchg(guard.into_foreign(), Full);
    if !found.is_null() {
        // SAFETY: `found` came from `into_foreign()` of a `PercpuRefGuard<T>`, and the exchange has
        // given us its ownership.
        drop(unsafe { PercpuRefGuard::<T>::from_foreign(found) });
    }
}

/// An object that is counted by a C `percpu_ref`, as in a Rust abstraction of it.
///
/// The reference is never killed, so it stays in per-CPU mode and `release` is not called.
///
/// # Invariants
///
/// `count` is initialised until the object is dropped.
#[pin_data(PinnedDrop)]
struct Wrapper<T> {
    #[pin]
    count: Opaque<bindings::percpu_ref>,
    _data: T,
}

// SAFETY: Any thread can use and free a `percpu_ref`, and the data, which is `Send`.
unsafe impl<T: Send> Send for Wrapper<T> {}

// SAFETY: Any number of threads can get and put references at a time, and share the data, which is
// `Sync`.
unsafe impl<T: Sync> Sync for Wrapper<T> {}

impl<T> Wrapper<T> {
    fn new(data: T) -> impl PinInit<Self, Error> {
        /// # Safety
        ///
        /// There are no requirements.
        unsafe extern "C" fn release(_count: *mut bindings::percpu_ref) {}

        // INVARIANT: `percpu_ref_init()` initialises the count, or it fails and there is no object.
        try_pin_init!(Self {
            count <- Opaque::try_ffi_init(|count| {
                // SAFETY: `count` is valid for writes, and pinned. The caller may sleep, because it
                // allocates with `GFP_KERNEL`.
                to_result(unsafe {
                    bindings::percpu_ref_init(count, Some(release), 0, bindings::GFP_KERNEL)
                })
            }),
            _data: data,
        })
    }

    fn try_get(&self) -> Option<WrapperGuard<'_, T>> {
        // SAFETY: By the type invariant, the count is initialised.
        let is_got = unsafe { rust_percpu_ref_bench_helper_tryget(self.count.get()) };
        // INVARIANT: The guard owns the reference that was just got.
        is_got.then(|| WrapperGuard(self))
    }

    fn try_get_live(&self) -> Option<WrapperGuard<'_, T>> {
        // SAFETY: By the type invariant, the count is initialised.
        let is_got = unsafe { rust_percpu_ref_bench_helper_tryget_live(self.count.get()) };
        // INVARIANT: The guard owns the reference that was just got.
        is_got.then(|| WrapperGuard(self))
    }
}

#[pinned_drop]
impl<T> PinnedDrop for Wrapper<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: By the type invariant, the count is initialised. A guard borrows the object, so
        // there are no guards any more. The count was not killed, so no RCU callback uses it.
        unsafe { bindings::percpu_ref_exit(self.count.get()) };
    }
}

/// A reference to a [`Wrapper`], which is put when this is dropped.
///
/// # Invariants
///
/// The guard owns a reference of the count.
struct WrapperGuard<'a, T>(&'a Wrapper<T>);

impl<T> Clone for WrapperGuard<'_, T> {
    fn clone(&self) -> Self {
        // SAFETY: By the type invariants, the count is initialised, and `self` has a reference, so
        // the count is not zero.
        unsafe { rust_percpu_ref_bench_helper_get(self.0.count.get()) };
        // INVARIANT: The new guard owns the reference that was just got.
        Self(self.0)
    }
}

impl<T> Drop for WrapperGuard<'_, T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariants, the count is initialised, and the guard owns a reference,
        // which is not used after this.
        unsafe { rust_percpu_ref_bench_helper_put(self.0.count.get()) };
    }
}

/// A function that does an operation a given number of times.
///
/// The pointer must point to a valid [`Subjects`].
type Loop = unsafe extern "C" fn(*const c_void, usize);

/// Defines loops in Rust.
macro_rules! loops {
    ($($name:ident($subjects:ident) $body:block)*) => { $(
        /// # Safety
        ///
        /// `subjects` must point to a valid `Subjects`.
        unsafe extern "C" fn $name(subjects: *const c_void, n: usize) {
            // SAFETY: By the safety requirements of this function, `subjects` points to a
            // `Subjects`.
            let $subjects = unsafe { &*subjects.cast::<Subjects>() };
            for _ in 0..n {
                $body
            }
        }
    )* };
}

loops! {
    empty(_subjects) { core::hint::black_box(()) }
    try_get_put(subjects) { drop(subjects.ours.try_get()) }
    try_get_live_put(subjects) { drop(subjects.ours.try_get_live()) }
    lookup_put(_subjects) { drop(PLACE.try_get_live()) }
    tasks_try_get_put(subjects) { drop(subjects.tasks.try_get()) }
    tasks_try_get_live_put(subjects) { drop(subjects.tasks.try_get_live()) }
    tasks_lookup_put(_subjects) { drop(TASKS_PLACE.try_get_live()) }
    tasks_batch(subjects) { drop(subjects.tasks.try_get_many(32)) }
    get_work_put(subjects) {
        let guard = subjects.ours.try_get();
        work();
        drop(guard);
    }
    tasks_get_work_put(subjects) {
        let guard = subjects.tasks.try_get();
        work();
        drop(guard);
    }
    arc_get_work_put(subjects) {
        let clone = subjects.arc.clone();
        work();
        drop(clone);
    }
    get_pass_put(subjects) {
        if let Some(guard) = subjects.ours.try_get() {
            pass(&PASSED, guard);
        }
    }
    tasks_get_pass_put(subjects) {
        if let Some(guard) = subjects.tasks.try_get() {
            pass(&TASKS_PASSED, guard);
        }
    }
    replace_free(_subjects) {
        if let Ok(new) = RcuBox::new(Payload([7; 2]), GFP_KERNEL) {
            drop(SETTINGS.replace(Some(new)));
        }
    }
    batch(subjects) { drop(subjects.ours.try_get_many(32)) }
    arc_clone_drop(subjects) { drop(subjects.arc.clone()) }
    revocable_access(subjects) { drop(subjects.revocable.try_access()) }
    wrapper_try_get_put(subjects) { drop(subjects.wrapper.try_get()) }
    wrapper_try_get_live_put(subjects) { drop(subjects.wrapper.try_get_live()) }
    init_free(_subjects) { drop(UniquePercpuRef::new(Payload([7; 2]), GFP_KERNEL)) }
    tasks_init_free(_subjects) {
        drop(UniquePercpuRef::new(TasksPayload(Payload([7; 2])), GFP_KERNEL))
    }
    arc_init_free(_subjects) { drop(Arc::new(Payload([7; 2]), GFP_KERNEL)) }
}

/// Clones and drops a guard.
///
/// # Safety
///
/// `subjects` must point to a valid [`Subjects`].
unsafe extern "C" fn clone_drop(subjects: *const c_void, n: usize) {
    // SAFETY: By the safety requirements of this function, `subjects` points to a `Subjects`.
    let subjects = unsafe { &*subjects.cast::<Subjects>() };
    let Some(guard) = subjects.ours.try_get() else {
        return;
    };
    for _ in 0..n {
        drop(guard.clone());
    }
}

/// Clones and drops a guard of an object with `RCU_TASKS`.
///
/// # Safety
///
/// `subjects` must point to a valid [`Subjects`].
unsafe extern "C" fn tasks_clone_drop(subjects: *const c_void, n: usize) {
    // SAFETY: By the safety requirements of this function, `subjects` points to a `Subjects`.
    let subjects = unsafe { &*subjects.cast::<Subjects>() };
    let Some(guard) = subjects.tasks.try_get() else {
        return;
    };
    for _ in 0..n {
        drop(guard.clone());
    }
}

/// Clones and drops a guard of a [`Wrapper`].
///
/// # Safety
///
/// `subjects` must point to a valid [`Subjects`].
unsafe extern "C" fn wrapper_clone_drop(subjects: *const c_void, n: usize) {
    // SAFETY: By the safety requirements of this function, `subjects` points to a `Subjects`.
    let subjects = unsafe { &*subjects.cast::<Subjects>() };
    let Some(guard) = subjects.wrapper.try_get() else {
        return;
    };
    for _ in 0..n {
        drop(guard.clone());
    }
}

/// Gets and puts a reference, for `scripts/hot-path`, which checks the machine code.
#[no_mangle]
#[inline(never)]
extern "C" fn rust_percpu_ref_bench_pair(reference: &PercpuRef<Payload>) {
    drop(reference.try_get());
}

/// Gets and puts a reference to an object with `RCU_TASKS`, for `scripts/hot-path`.
#[no_mangle]
#[inline(never)]
extern "C" fn rust_percpu_ref_bench_tasks_pair(reference: &PercpuRef<TasksPayload>) {
    drop(reference.try_get());
}

extern "C" {
    fn percpu_ref_bench_c_empty(_: *const c_void, n: usize);
    fn percpu_ref_bench_work();
    fn percpu_ref_bench_this_cpu(_: *const c_void, n: usize);
    fn percpu_ref_bench_pcpu_refcnt(_: *const c_void, n: usize);
    fn percpu_ref_bench_rcu_lock_unlock(_: *const c_void, n: usize);
    fn percpu_ref_bench_c_try_get_put(_: *const c_void, n: usize);
    fn percpu_ref_bench_c_try_get_live_put(_: *const c_void, n: usize);
    fn percpu_ref_bench_c_lookup_put(_: *const c_void, n: usize);
    fn percpu_ref_bench_c_replace_free(_: *const c_void, n: usize);
    fn percpu_ref_bench_c_get_put(_: *const c_void, n: usize);
    fn percpu_ref_bench_c_batch(_: *const c_void, n: usize);
    fn percpu_ref_bench_c_get_work_put(_: *const c_void, n: usize);
    fn percpu_ref_bench_c_get_pass_put(_: *const c_void, n: usize);
    fn percpu_ref_bench_refcount_get_work_put(_: *const c_void, n: usize);
    fn percpu_ref_bench_refcount_get_pass_put(_: *const c_void, n: usize);
    fn percpu_ref_bench_this_cpu_work(_: *const c_void, n: usize);
    fn percpu_ref_bench_c_init_free(_: *const c_void, n: usize);
    fn percpu_ref_bench_refcount_try_get_put(_: *const c_void, n: usize);
    fn percpu_ref_bench_refcount_get_put(_: *const c_void, n: usize);
    fn percpu_ref_bench_refcount_init_free(_: *const c_void, n: usize);
    fn percpu_ref_bench_nops(_: *const c_void, n: usize);

    fn rust_percpu_ref_bench_helper_tryget(count: *mut bindings::percpu_ref) -> bool;
    fn rust_percpu_ref_bench_helper_tryget_live(count: *mut bindings::percpu_ref) -> bool;
    fn rust_percpu_ref_bench_helper_get(count: *mut bindings::percpu_ref);
    fn rust_percpu_ref_bench_helper_put(count: *mut bindings::percpu_ref);

    fn percpu_ref_bench_cycles(run: Loop, with: *const c_void, n: usize) -> u64;
    fn percpu_ref_bench_init() -> c_int;
    fn percpu_ref_bench_exit();
    fn percpu_ref_bench_c_new() -> *mut c_void;
    fn percpu_ref_bench_c_free(c: *mut c_void);
    fn percpu_ref_bench_c_kill(objects: *const *mut c_void, n: c_uint) -> u64;
}

/// An implementation of an operation: its name, and its loop.
type Peer = (&'static str, Loop);

/// The empty loops, in C and in Rust, which come first in each round.
const EMPTY: [Peer; 2] = [("empty", percpu_ref_bench_c_empty), ("empty", empty)];

/// A loop, for `bench/silicon.c`, which runs it in user space.
#[repr(C)]
struct SiliconLoop {
    op: [u8; 32],
    implementation: [u8; 32],
    run: Loop,
    /// The index of the empty loop whose time is subtracted.
    empty: usize,
}

fn padded(name: &str) -> [u8; 32] {
    let mut bytes = [0; 32];
    for (to, &from) in bytes[..31].iter_mut().zip(name.as_bytes()) {
        *to = from;
    }
    bytes
}

/// Makes the subjects for `bench/silicon.c`, and returns their address, or null.
#[no_mangle]
extern "C" fn rust_percpu_ref_bench_silicon() -> *const c_void {
    let make = || {
        core::mem::forget((CSide::new()?, Places::new()?));
        Ok::<_, Error>(KBox::into_raw(KBox::new(Subjects::new()?, GFP_KERNEL)?).cast())
    };
    make().unwrap_or(core::ptr::null_mut::<c_void>())
}

/// Writes the loop `peer` of the operation `op` to `found`, and returns whether there is one.
///
/// The first two loops are empty.
#[no_mangle]
extern "C" fn rust_percpu_ref_bench_silicon_loop(
    op: usize,
    peer: usize,
    found: &mut MaybeUninit<SiliconLoop>,
) -> bool {
    let Some(op) = OPS.iter().filter(|op| op.is_hot).nth(op) else {
        return false;
    };
    let Some((_, &(name, run), empty)) = op.loops().nth(peer) else {
        return false;
    };
    found.write(SiliconLoop {
        op: padded(op.name),
        implementation: padded(name),
        run,
        empty,
    });
    true
}

/// An operation and its implementations.
struct Op {
    name: &'static str,
    peers: &'static [Peer],
    /// The number of implementations in Rust, which are the last ones.
    in_rust: usize,
    /// The number of times in a loop.
    times: usize,
    /// Whether the operation is also measured on more than one CPU and with interrupts disabled.
    is_hot: bool,
}

const OPS: &[Op] = &[
    Op {
        name: "try_get_put",
        peers: &[
            ("c_percpu_ref", percpu_ref_bench_c_try_get_put),
            ("refcount_t", percpu_ref_bench_refcount_try_get_put),
            ("this_cpu", percpu_ref_bench_this_cpu),
            ("pcpu_refcnt", percpu_ref_bench_pcpu_refcnt),
            ("rcu_read_lock", percpu_ref_bench_rcu_lock_unlock),
            ("rust_percpu_ref", try_get_put),
            ("rust_rcu_tasks", tasks_try_get_put),
            ("c_wrapper", wrapper_try_get_put),
            ("arc", arc_clone_drop),
            ("revocable", revocable_access),
        ],
        in_rust: 5,
        times: 50_000,
        is_hot: true,
    },
    Op {
        name: "clone_drop",
        peers: &[
            ("c_percpu_ref", percpu_ref_bench_c_get_put),
            ("refcount_t", percpu_ref_bench_refcount_get_put),
            ("rust_percpu_ref", clone_drop),
            ("rust_rcu_tasks", tasks_clone_drop),
            ("c_wrapper", wrapper_clone_drop),
            ("arc", arc_clone_drop),
        ],
        in_rust: 4,
        times: 50_000,
        is_hot: true,
    },
    Op {
        name: "try_get_live_put",
        peers: &[
            ("c_percpu_ref", percpu_ref_bench_c_try_get_live_put),
            ("rust_percpu_ref", try_get_live_put),
            ("rust_rcu_tasks", tasks_try_get_live_put),
            ("c_wrapper", wrapper_try_get_live_put),
        ],
        in_rust: 3,
        times: 50_000,
        is_hot: true,
    },
    Op {
        name: "batch_32",
        peers: &[
            ("c_percpu_ref", percpu_ref_bench_c_batch),
            ("rust_percpu_ref", batch),
            ("rust_rcu_tasks", tasks_batch),
        ],
        in_rust: 2,
        times: 50_000,
        is_hot: true,
    },
    Op {
        name: "lookup_put",
        peers: &[
            ("c_percpu_ref", percpu_ref_bench_c_lookup_put),
            ("rust_percpu_ref", lookup_put),
            ("rust_rcu_tasks", tasks_lookup_put),
        ],
        in_rust: 2,
        times: 50_000,
        is_hot: true,
    },
    Op {
        name: "get_work_put",
        peers: &[
            ("c_percpu_ref", percpu_ref_bench_c_get_work_put),
            ("refcount_t", percpu_ref_bench_refcount_get_work_put),
            ("this_cpu", percpu_ref_bench_this_cpu_work),
            ("rust_percpu_ref", get_work_put),
            ("rust_rcu_tasks", tasks_get_work_put),
            ("arc", arc_get_work_put),
        ],
        in_rust: 3,
        times: 50_000,
        is_hot: true,
    },
    Op {
        name: "get_pass_put",
        peers: &[
            ("c_percpu_ref", percpu_ref_bench_c_get_pass_put),
            ("refcount_t", percpu_ref_bench_refcount_get_pass_put),
            ("rust_percpu_ref", get_pass_put),
            ("rust_rcu_tasks", tasks_get_pass_put),
        ],
        in_rust: 2,
        times: 50_000,
        is_hot: true,
    },
    Op {
        name: "replace_free",
        peers: &[
            ("c_kfree_rcu", percpu_ref_bench_c_replace_free),
            ("rcu_box", replace_free),
        ],
        in_rust: 1,
        times: 500,
        is_hot: false,
    },
    Op {
        name: "init_free",
        peers: &[
            ("c_percpu_ref", percpu_ref_bench_c_init_free),
            ("refcount_t", percpu_ref_bench_refcount_init_free),
            ("rust_percpu_ref", init_free),
            ("rust_rcu_tasks", tasks_init_free),
            ("arc", arc_init_free),
        ],
        in_rust: 3,
        times: 500,
        is_hot: false,
    },
];

impl Op {
    /// Returns the loops of a round, each with its index and that of the empty loop to subtract.
    fn loops(&self) -> impl DoubleEndedIterator<Item = (usize, &Peer, usize)> + ExactSizeIterator {
        let first_in_rust = EMPTY.len() + self.peers.len() - self.in_rust;
        (0..EMPTY.len() + self.peers.len()).map(move |index| match index.checked_sub(EMPTY.len()) {
            None => (index, &EMPTY[index], index),
            Some(peer) => (
                index,
                &self.peers[peer],
                usize::from(index >= first_in_rust),
            ),
        })
    }
}

/// Shared by the threads of an operation.
struct Rounds {
    op: &'static Op,
    subjects: Arc<Subjects>,
    cpus: u32,
    rounds: usize,
    /// The number of threads that have arrived at the start of a loop, summed over all loops.
    arrived: Atomic<u32>,
    /// Set if not all threads could be created, so that no thread waits for the others.
    is_over: Atomic<u32>,
    /// The nanoseconds of each loop in each round, summed over the threads.
    times: KVec<Atomic<i64>>,
}

impl Rounds {
    /// Runs all loops of all rounds in one thread.
    fn run(&self) {
        let loops = self.op.loops().len();
        let mut started = 0;
        for round in 0..self.rounds {
            for turn in 0..loops {
                let turn = if round % 2 == 0 {
                    turn
                } else {
                    loops - 1 - turn
                };
                let Some((index, (_, run), _)) = self.op.loops().nth(turn) else {
                    return;
                };
                // No thread begins before all have arrived.
                started += self.cpus;
                self.arrived.fetch_add(1, Release);
                while self.arrived.load(Acquire) < started {
                    if self.is_over.load(Relaxed) != 0 {
                        return;
                    }
                    cpu_relax();
                }
                let start = now();
                // SAFETY: The pointer points to a `Subjects`, which `self` keeps alive.
                unsafe { run((&raw const *self.subjects).cast(), self.op.times) };
                self.times[round * loops + index].add(now() - start, Relaxed);
            }
        }
    }
}

fn measure_times(op: &'static Op, subjects: &Arc<Subjects>, cpus: u32, rounds: usize) -> Result {
    let loops = op.loops().len();
    // One more round, to warm up.
    let rounds = rounds + 1;
    let mut times = KVec::with_capacity(rounds * loops, GFP_KERNEL)?;
    for _ in 0..rounds * loops {
        times.push(Atomic::new(0), GFP_KERNEL)?;
    }
    let all = Arc::new(
        Rounds {
            op,
            subjects: subjects.clone(),
            cpus,
            rounds,
            arrived: Atomic::new(0),
            is_over: Atomic::new(0),
            times,
        },
        GFP_KERNEL,
    )?;
    let mut threads = KVec::with_capacity(cpus as usize, GFP_KERNEL)?;
    let mut result = Ok(());
    for cpu in online_cpus().take(cpus as usize) {
        let all = all.clone();
        result = Thread::spawn(cpu, move || all.run())
            .and_then(|thread| Ok(threads.push_within_capacity(thread)?));
        if result.is_err() {
            break;
        }
    }
    if threads.len() < cpus as usize {
        all.is_over.store(1, Relaxed);
        result = result.and(Err(ENODEV));
    }
    drop(threads);
    result?;

    let operations = op.times as i64 * i64::from(cpus);
    // The medians of the empty loops.
    let mut medians = [0; EMPTY.len()];
    for (index, (name, _), empty) in op.loops() {
        let mut samples = KVec::with_capacity(rounds, GFP_KERNEL)?;
        for round in 1..rounds {
            let time = all.times[round * loops + index].load(Relaxed) * 1000 / operations;
            samples.push(time - medians[empty], GFP_KERNEL)?;
        }
        sort(&mut samples);
        if index == empty {
            medians[index] = percentile(&samples, 50);
        }
        // The empty loop in Rust is only used for subtraction.
        if index != 1 {
            report(op.name, name, cpus, &samples);
        }
    }
    Ok(())
}

/// Returns the value that `percent` of all values do not exceed.
fn percentile(sorted: &[i64], percent: usize) -> i64 {
    sorted[(sorted.len() * percent).div_ceil(100).max(1) - 1]
}

/// Sorts numbers.
///
/// Does not use `sort_unstable()`, which has a panic that objtool does not know.
fn sort(numbers: &mut [i64]) {
    for i in 1..numbers.len() {
        for j in (1..=i).rev() {
            if numbers[j - 1] <= numbers[j] {
                break;
            }
            numbers.swap(j - 1, j);
        }
    }
}

/// Prints a row of times, which must be sorted.
fn report(op: &str, name: &str, cpus: u32, picoseconds: &[i64]) {
    let [p5, p50, p95, p99] = [5, 50, 95, 99].map(|p| percentile(picoseconds, p));
    pr_info!(
        "result op={op} impl={name} cpus={cpus} rounds={} p5={p5} p50={p50} p95={p95} p99={p99}\n",
        picoseconds.len()
    );
}

/// Kills the objects, and returns the nanoseconds until all are released.
fn kill<T: Counted>(objects: &[PercpuRef<T>]) -> i64 {
    LEFT.store(objects.len(), Relaxed);
    let start = now();
    for object in objects {
        object.kill();
    }
    while LEFT.load(Acquire) != 0 {
        fsleep(Delta::from_micros(100));
    }
    LAST.load(Relaxed) - start
}

fn measure_kills(op: &str, objects: usize, rounds: usize) -> Result {
    let names = ["rust_percpu_ref", "c_percpu_ref", "rust_rcu_tasks"];
    let mut samples = [KVec::new(), KVec::new(), KVec::new()];
    for round in 0..=rounds {
        for turn in 0..names.len() {
            // RCU Tasks takes long, so it is measured in fewer rounds.
            let turn = (round + turn) % names.len();
            if turn == 2 && round > 10 {
                continue;
            }
            let time = match turn {
                0 => measure_kill::<Payload>(objects)?,
                1 => measure_kill_in_c(objects)?,
                _ => measure_kill::<TasksPayload>(objects)?,
            };
            // Waits for callbacks of these objects, so that they do not delay the next kill.
            rcu::rcu_barrier();
            if round > 0 {
                samples[turn].push(time * 1000, GFP_KERNEL)?;
            }
        }
    }
    for (times, name) in samples.iter_mut().zip(names) {
        sort(times);
        report(op, name, 1, times);
    }
    Ok(())
}

fn measure_kill<T: Counted + From<Payload>>(objects: usize) -> Result<i64> {
    let mut all = KVVec::with_capacity(objects, GFP_KERNEL)?;
    while all.len() < objects {
        all.push(new_object::<T>()?, GFP_KERNEL)?;
    }
    rcu::rcu_barrier();
    Ok(kill(&all))
}

fn measure_kill_in_c(objects: usize) -> Result<i64> {
    let mut all = KVVec::with_capacity(objects, GFP_KERNEL)?;
    while all.len() < objects {
        all.push(CObject::new()?, GFP_KERNEL)?;
    }
    rcu::rcu_barrier();
    // SAFETY: A `CObject` is a pointer to an object. Each object is killed once, and is freed after
    // the barrier below, when its callback has run.
    let time = unsafe { percpu_ref_bench_c_kill(all.as_ptr().cast(), objects as c_uint) };
    rcu::rcu_barrier();
    Ok(time as i64)
}

/// An object with a `percpu_ref` of C.
///
/// # Invariants
///
/// The pointer came from `percpu_ref_bench_c_new()`, and is not null.
#[repr(transparent)]
struct CObject(*mut c_void);

// SAFETY: Any thread can free the object.
unsafe impl Send for CObject {}

// SAFETY: There is no operation on a shared reference to a `CObject`.
unsafe impl Sync for CObject {}

impl CObject {
    fn new() -> Result<Self> {
        // SAFETY: `percpu_ref_bench_c_new()` can be called from process context.
        let c = unsafe { percpu_ref_bench_c_new() };
        if c.is_null() {
            return Err(ENOMEM);
        }
        // INVARIANT: `c` came from `percpu_ref_bench_c_new()`, and was checked for null.
        Ok(Self(c))
    }
}

impl Drop for CObject {
    fn drop(&mut self) {
        // SAFETY: By the type invariant, the pointer is valid. If the object was killed,
        // `measure_kill_in_c()` has waited for its callback.
        unsafe { percpu_ref_bench_c_free(self.0) };
    }
}

/// Counts and prints the instructions of each loop that is [`Op::is_hot`].
fn count_instructions(subjects: &Subjects) -> Result {
    const THOUSANDS: u64 = 1000;
    let subjects = (&raw const *subjects).cast();
    // SAFETY: The pointer points to a `Subjects`. The loops that this is called for are `is_hot`,
    // so they can run with interrupts disabled.
    let cycles = |run, n| unsafe {
        percpu_ref_bench_cycles(run, subjects, 100);
        percpu_ref_bench_cycles(run, subjects, n)
    };

    let million = cycles(percpu_ref_bench_nops, THOUSANDS as usize);
    let again = cycles(percpu_ref_bench_nops, THOUSANDS as usize);
    // The clock may have a coarse tick, so the numbers may differ by a tick.
    let is_same = |one: u64, other| one.abs_diff(other) <= 2;
    if !is_same(million, again) || million < 1000 {
        pr_err!(
            "the clock does not count instructions: {million} and {again} cycles for a million\n"
        );
        return Err(ENODEV);
    }
    for op in Iterator::chain(OPS.iter().filter(|op| op.is_hot), this_cpu::OPS) {
        let mut empty = [0; EMPTY.len()];
        for (index, (name, run), subtract) in op.loops() {
            let mut all = cycles(*run, op.times);
            if !is_same(all, cycles(*run, op.times)) {
                pr_err!("{} of {name} takes now this, now that\n", op.name);
                return Err(EIO);
            }
            if index == subtract {
                empty[index] = all;
            } else {
                all = all.saturating_sub(empty[subtract]);
            }
            let thousandths = all * 1000 * 1_000_000 / million / op.times as u64;
            if index != 1 {
                pr_info!(
                    "result op={} impl={name} instructions={thousandths}\n",
                    op.name
                );
            }
        }
    }
    Ok(())
}

/// The objects that the parameter `hold` asks for, which are held until the module is removed.
struct Held {
    _ours: KVVec<PercpuRef<Payload>>,
    _c: KVVec<CObject>,
}

fn hold(count: usize, kind: u32) -> Result<Held> {
    let mut held = Held {
        _ours: KVVec::new(),
        _c: KVVec::new(),
    };
    for _ in 0..count {
        if kind == 0 {
            held._ours.push(new_object()?, GFP_KERNEL)?;
        } else {
            held._c.push(CObject::new()?, GFP_KERNEL)?;
        }
    }
    Ok(held)
}

/// The objects of the loops in C, which exist until this is dropped.
struct CSide;

impl CSide {
    fn new() -> Result<Self> {
        // SAFETY: This is called once, and `drop()` calls `percpu_ref_bench_exit()` once.
        to_result(unsafe { percpu_ref_bench_init() })?;
        Ok(Self)
    }
}

impl Drop for CSide {
    fn drop(&mut self) {
        // SAFETY: No thread uses the objects any more.
        unsafe { percpu_ref_bench_exit() };
    }
}

/// Puts the reference that was stored last by [`pass`].
fn drop_passed<T: Counted>(passed: &Atomic<*mut c_void>) {
    let found = passed.xchg(core::ptr::null_mut(), Full);
    if !found.is_null() {
        // SAFETY: `found` came from `into_foreign()` of a `PercpuRefGuard<T>`, and the exchange has
        // given us its ownership.
        drop(unsafe { PercpuRefGuard::<T>::from_foreign(found) });
    }
}

/// The objects in the statics, which exist until this is dropped.
struct Places;

impl Places {
    fn new() -> Result<Self> {
        PLACE.replace(Some(new_object()?));
        TASKS_PLACE.replace(Some(new_object()?));
        Ok(Self)
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        drop(PLACE.replace(None));
        drop(TASKS_PLACE.replace(None));
        for (passed, drop_passed) in [
            (&PASSED, drop_passed::<Payload> as fn(_)),
            (&TASKS_PASSED, drop_passed::<TasksPayload>),
        ] {
            drop_passed(passed);
        }
        drop(SETTINGS.take());
    }
}

struct Bench {
    _held: Held,
}

impl kernel::Module for Bench {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        let rounds = value(module_parameters::rounds.value());
        if !(1..=1000).contains(&rounds) {
            pr_err!("rounds={rounds} makes no sense: give 1 to 1000\n");
            return Err(EINVAL);
        }
        let rounds = rounds as usize;
        let held = value(module_parameters::hold.value()) as usize;
        if held > 0 {
            return Ok(Self {
                _held: hold(held, value(module_parameters::kind.value()))?,
            });
        }

        let _c = CSide::new()?;
        let _places = Places::new()?;
        let subjects = Arc::new(Subjects::new()?, GFP_KERNEL)?;
        if value(module_parameters::instructions.value()) != 0 {
            count_instructions(&subjects)?;
        } else {
            for op in OPS {
                let most = if op.is_hot { online_cpus().count() } else { 1 };
                for cpus in [1, 2, 4, 8] {
                    if cpus as usize <= most {
                        measure_times(op, &subjects, cpus, rounds)?;
                    }
                }
            }
            measure_kills("kill_release", 1, rounds * 10)?;
            measure_kills("kill_release_1000", 1000, rounds)?;
            measure_kills("kill_release_100000", 100_000, rounds.min(5))?;
        }
        pr_info!("done\n");
        Ok(Self { _held: hold(0, 0)? })
    }
}

/// Returns the value of a parameter.
///
/// Up to Linux 7.2, a parameter's `value()` returns a reference.
fn value(parameter: impl core::borrow::Borrow<u32>) -> u32 {
    *parameter.borrow()
}

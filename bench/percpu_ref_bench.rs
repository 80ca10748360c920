// SPDX-License-Identifier: GPL-2.0

//! The benchmark: what references cost, beside the C original and what else one might use.
//!
//! Inserting the module runs it. Each line of the log that has `result` in it is a row of the
//! table; `scripts/bench-report` makes the table of them.
//!
//! # Time
//!
//! An *operation* is done in loops by all the *implementations* that have it, one after the other,
//! on so many CPUs at once, in threads that stay on their CPUs and begin together. That is a
//! *round*; the next one has them in the opposite order, so that what drifts meets all alike. The
//! first round warms up and is not counted. From each time the median of the empty loop's is
//! subtracted. What is printed are percentiles of the rounds, in picoseconds for one operation on
//! one CPU.
//!
//! # Instructions
//!
//! With `instructions=1`, under an emulator whose clock counts instructions (QEMU's `-icount`), the
//! cycles of each loop are counted with interrupts disabled, and compared with a loop of known
//! length. The numbers are thousandths of instructions, and the same in every run.

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

struct Payload(#[allow(dead_code)] [u64; 2]); // For its size.

/// Objects that are not released yet, and when the last one was.
static LEFT: Atomic<usize> = Atomic::new(0);
static LAST: Atomic<i64> = Atomic::new(0);

impl Counted for Payload {
    fn release(&self) {
        LAST.store(now(), Relaxed);
        // Pairs with the `Acquire` of the waiter.
        LEFT.fetch_sub(1, Release);
    }
}

/// Nanoseconds since some moment.
fn now() -> i64 {
    // SAFETY: May be called anywhere.
    unsafe { bindings::ktime_get() }
}

/// The same, with an end that waits for RCU Tasks.
struct TasksPayload(#[allow(dead_code)] Payload); // For its size.

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

/// Where the lookups find their object, and what is replaced as a whole. C's are statics, too.
static PLACE: RcuPercpuRef<Payload> = RcuPercpuRef::empty();
static TASKS_PLACE: RcuPercpuRef<TasksPayload> = RcuPercpuRef::empty();
/// Where references got on one CPU wait to be put on another.
static PASSED: Atomic<*mut c_void> = Atomic::new(core::ptr::null_mut());
static TASKS_PASSED: Atomic<*mut c_void> = Atomic::new(core::ptr::null_mut());
static SETTINGS: RcuCell<Payload> = RcuCell::empty();

/// What the other loops are about; those in C have their own.
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

/// Work of the caller between a get and a put, as in the loops in C.
#[inline(always)]
fn work() {
    // SAFETY: The function has no requirements.
    unsafe { percpu_ref_bench_work() };
}

/// Leaves a reference for another CPU to put, and puts the one that was left.
#[inline(always)]
fn pass<T: Counted>(passed: &Atomic<*mut c_void>, guard: PercpuRefGuard<T>) {
    // `Full`: what is found was left by the same operation.
    let found = passed.xchg(guard.into_foreign(), Full);
    if !found.is_null() {
        // SAFETY: `into_foreign()` of such a guard returned it, and it is taken once.
        drop(unsafe { PercpuRefGuard::<T>::from_foreign(found) });
    }
}

/// An abstraction of C's `percpu_ref`: an object that is counted by one.
///
/// Its count is never killed, so that it stays per-CPU and `release` is not called.
///
/// # Invariants
///
/// `count` is initialised, and stays so until the object is dropped.
#[pin_data(PinnedDrop)]
struct Wrapper<T> {
    #[pin]
    count: Opaque<bindings::percpu_ref>,
    _data: T,
}

// SAFETY: A `percpu_ref` may be used and freed on any thread, and so may the data.
unsafe impl<T: Send> Send for Wrapper<T> {}

// SAFETY: What a shared reference allows may be done to a `percpu_ref` on all CPUs at once.
unsafe impl<T: Sync> Sync for Wrapper<T> {}

impl<T> Wrapper<T> {
    fn new(data: T) -> impl PinInit<Self, Error> {
        unsafe extern "C" fn release(_count: *mut bindings::percpu_ref) {}

        // INVARIANT: `percpu_ref_init()` initialises the count, or it fails and there is no object.
        try_pin_init!(Self {
            count <- Opaque::try_ffi_init(|count| {
                // SAFETY: `count` is valid for writes, and pinned. This may sleep, as one that
                // allocates with `GFP_KERNEL` may.
                to_result(unsafe {
                    bindings::percpu_ref_init(count, Some(release), 0, bindings::GFP_KERNEL)
                })
            }),
            _data: data,
        })
    }

    fn try_get(&self) -> Option<WrapperGuard<'_, T>> {
        // SAFETY: The count is initialised, by the type invariant.
        let is_got = unsafe { rust_percpu_ref_bench_helper_tryget(self.count.get()) };
        // INVARIANT: The reference that was got is the guard's.
        is_got.then(|| WrapperGuard(self))
    }

    fn try_get_live(&self) -> Option<WrapperGuard<'_, T>> {
        // SAFETY: The count is initialised, by the type invariant.
        let is_got = unsafe { rust_percpu_ref_bench_helper_tryget_live(self.count.get()) };
        // INVARIANT: The reference that was got is the guard's.
        is_got.then(|| WrapperGuard(self))
    }
}

#[pinned_drop]
impl<T> PinnedDrop for Wrapper<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: The count is initialised, by the type invariant. A guard borrows the object, so
        // that none is left to put its reference. The count was not killed, and so no RCU callback
        // refers to it.
        unsafe { bindings::percpu_ref_exit(self.count.get()) };
    }
}

/// A reference to a [`Wrapper`], which is put when this is dropped.
///
/// # Invariants
///
/// The guard has a reference of the count.
struct WrapperGuard<'a, T>(&'a Wrapper<T>);

impl<T> Clone for WrapperGuard<'_, T> {
    fn clone(&self) -> Self {
        // SAFETY: The count is initialised, and not zero since `self` has a reference.
        unsafe { rust_percpu_ref_bench_helper_get(self.0.count.get()) };
        // INVARIANT: The reference that was got is the new guard's.
        Self(self.0)
    }
}

impl<T> Drop for WrapperGuard<'_, T> {
    fn drop(&mut self) {
        // SAFETY: The count is initialised, and the reference is the guard's to put, by the type
        // invariants.
        unsafe { rust_percpu_ref_bench_helper_put(self.0.count.get()) };
    }
}

/// Does an operation a given number of times, with a `&Subjects`.
type Loop = unsafe extern "C" fn(*const c_void, usize);

/// A loop in Rust.
macro_rules! loops {
    ($($name:ident($subjects:ident) $body:block)*) => { $(
        unsafe extern "C" fn $name(subjects: *const c_void, n: usize) {
            // SAFETY: As the type `Loop` says.
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

unsafe extern "C" fn clone_drop(subjects: *const c_void, n: usize) {
    // SAFETY: As the type `Loop` says.
    let subjects = unsafe { &*subjects.cast::<Subjects>() };
    let Some(guard) = subjects.ours.try_get() else {
        return;
    };
    for _ in 0..n {
        drop(guard.clone());
    }
}

unsafe extern "C" fn tasks_clone_drop(subjects: *const c_void, n: usize) {
    // SAFETY: As the type `Loop` says.
    let subjects = unsafe { &*subjects.cast::<Subjects>() };
    let Some(guard) = subjects.tasks.try_get() else {
        return;
    };
    for _ in 0..n {
        drop(guard.clone());
    }
}

unsafe extern "C" fn wrapper_clone_drop(subjects: *const c_void, n: usize) {
    // SAFETY: As the type `Loop` says.
    let subjects = unsafe { &*subjects.cast::<Subjects>() };
    let Some(guard) = subjects.wrapper.try_get() else {
        return;
    };
    for _ in 0..n {
        drop(guard.clone());
    }
}

/// One pair by itself, for `scripts/hot-path` to look at what the compiler makes of it.
#[no_mangle]
#[inline(never)]
extern "C" fn rust_percpu_ref_bench_pair(reference: &PercpuRef<Payload>) {
    drop(reference.try_get());
}

/// The same, of an object whose end waits for RCU Tasks.
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

/// The empty loops, in C and in Rust, come first.
const EMPTY: [Peer; 2] = [("empty", percpu_ref_bench_c_empty), ("empty", empty)];

/// A loop, for `bench/silicon.c`, which runs it in user space.
#[repr(C)]
struct SiliconLoop {
    op: [u8; 32],
    implementation: [u8; 32],
    run: Loop,
    /// The index of the empty loop to be subtracted.
    empty: usize,
}

fn padded(name: &str) -> [u8; 32] {
    let mut bytes = [0; 32];
    for (to, &from) in bytes[..31].iter_mut().zip(name.as_bytes()) {
        *to = from;
    }
    bytes
}

/// Makes the subjects in the process that this was linked into, and returns their address.
#[no_mangle]
extern "C" fn rust_percpu_ref_bench_silicon() -> *const c_void {
    let make = || {
        core::mem::forget((CSide::new()?, Places::new()?));
        Ok::<_, Error>(KBox::into_raw(KBox::new(Subjects::new()?, GFP_KERNEL)?).cast())
    };
    make().unwrap_or(core::ptr::null_mut::<c_void>())
}

/// Returns the loop `peer` of the operation `op`, if there is one; the first two are empty.
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

/// An operation and its implementations. The last `in_rust` of them are in Rust.
struct Op {
    name: &'static str,
    peers: &'static [Peer],
    in_rust: usize,
    /// In a loop.
    times: usize,
    /// On more than one CPU, and with interrupts disabled.
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
    /// The loops of a round, and for each the index of the empty one to be subtracted.
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

/// What the threads of an operation share.
struct Rounds {
    op: &'static Op,
    subjects: Arc<Subjects>,
    cpus: u32,
    rounds: usize,
    /// Threads that have come to the start of a loop, of all loops so far.
    arrived: Atomic<u32>,
    /// Not all threads could be created, so no thread must wait for the others.
    is_over: Atomic<u32>,
    /// Nanoseconds, added up over the threads, of each loop in each round.
    times: KVec<Atomic<i64>>,
}

impl Rounds {
    /// A thread's part.
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
                // SAFETY: These are subjects.
                unsafe { run((&raw const *self.subjects).cast(), self.op.times) };
                self.times[round * loops + index].add(now() - start, Relaxed);
            }
        }
    }
}

fn measure_times(op: &'static Op, subjects: &Arc<Subjects>, cpus: u32, rounds: usize) -> Result {
    let loops = op.loops().len();
    // One more, to warm up.
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
        // The one in Rust is there to be subtracted.
        if index != 1 {
            report(op.name, name, cpus, &samples);
        }
    }
    Ok(())
}

/// Returns the value that a given part of all values are not above.
fn percentile(sorted: &[i64], percent: usize) -> i64 {
    sorted[(sorted.len() * percent).div_ceil(100).max(1) - 1]
}

/// `sort_unstable()` has a panic that objtool does not know.
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

/// Prints a row of times, which are sorted.
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
            // RCU Tasks takes long, so it is asked less often.
            let turn = (round + turn) % names.len();
            if turn == 2 && round > 10 {
                continue;
            }
            let time = match turn {
                0 => measure_kill::<Payload>(objects)?,
                1 => measure_kill_in_c(objects)?,
                _ => measure_kill::<TasksPayload>(objects)?,
            };
            // What is left of the last ones is not to be paid for by the next ones.
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
    // SAFETY: A `CObject` is a pointer to an object, which is killed once. What is killed may not
    // be freed before its callback is over.
    let time = unsafe { percpu_ref_bench_c_kill(all.as_ptr().cast(), objects as c_uint) };
    rcu::rcu_barrier();
    Ok(time as i64)
}

/// An object with a `percpu_ref` of C.
///
/// # Invariants
///
/// The pointer is what `percpu_ref_bench_c_new()` returned.
#[repr(transparent)]
struct CObject(*mut c_void);

// SAFETY: May be freed on any thread.
unsafe impl Send for CObject {}

// SAFETY: Nothing can be done with a reference to one.
unsafe impl Sync for CObject {}

impl CObject {
    fn new() -> Result<Self> {
        // SAFETY: Has no requirements.
        let c = unsafe { percpu_ref_bench_c_new() };
        if c.is_null() {
            return Err(ENOMEM);
        }
        // INVARIANT: As was just checked.
        Ok(Self(c))
    }
}

impl Drop for CObject {
    fn drop(&mut self) {
        // SAFETY: By the type invariant. Nothing is under way, as the callers see to.
        unsafe { percpu_ref_bench_c_free(self.0) };
    }
}

/// Prints the instructions of each loop that is [`Op::is_hot`].
fn count_instructions(subjects: &Subjects) -> Result {
    const THOUSANDS: u64 = 1000;
    let subjects = (&raw const *subjects).cast();
    // SAFETY: These are subjects, and the loops that it is called for may have interrupts disabled.
    let cycles = |run, n| unsafe {
        percpu_ref_bench_cycles(run, subjects, 100);
        percpu_ref_bench_cycles(run, subjects, n)
    };

    let million = cycles(percpu_ref_bench_nops, THOUSANDS as usize);
    let again = cycles(percpu_ref_bench_nops, THOUSANDS as usize);
    // The clock may have a coarse tick, but no mind of its own.
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

/// What `hold` asks for, until the module is removed.
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

/// The C side's objects, which are there as long as this is.
struct CSide;

impl CSide {
    fn new() -> Result<Self> {
        // SAFETY: Called once, as is the other one.
        to_result(unsafe { percpu_ref_bench_init() })?;
        Ok(Self)
    }
}

impl Drop for CSide {
    fn drop(&mut self) {
        // SAFETY: No thread uses them any more.
        unsafe { percpu_ref_bench_exit() };
    }
}

/// Puts what was passed last.
fn drop_passed<T: Counted>(passed: &Atomic<*mut c_void>) {
    let found = passed.xchg(core::ptr::null_mut(), Full);
    if !found.is_null() {
        // SAFETY: `into_foreign()` of such a guard returned it, and it is taken once.
        drop(unsafe { PercpuRefGuard::<T>::from_foreign(found) });
    }
}

/// What is in the statics, as long as this is.
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

/// What a parameter is set to; up to 7.2 that is a reference.
fn value(parameter: impl core::borrow::Borrow<u32>) -> u32 {
    *parameter.borrow()
}

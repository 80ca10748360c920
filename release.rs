// SPDX-License-Identifier: GPL-2.0

//! Runs the releases that may sleep, each in a thread.
//!
//! A release may wait for another one, so one must never keep another from running. A workqueue
//! runs a limited number of works at a time, 1024 by default: that many releases which wait for
//! others would wait forever. Here, each release is given to a new thread. Before a thread exits,
//! it runs the releases that were queued meanwhile, so short ones are not held up by the creation
//! of threads, and there are not more threads than releases that sleep at the same time.
//!
//! C headers: [`include/linux/kthread.h`](srctree/include/linux/kthread.h),
//! [`include/linux/workqueue.h`](srctree/include/linux/workqueue.h)

use core::{
    cell::UnsafeCell,
    ptr::{
        self,
        NonNull, //
    },
};
use kernel::{
    bindings,
    error::from_err_ptr,
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Relaxed,
            Release, //
        },
        global_lock, //
    },
    time::{
        delay::fsleep,
        Delta, //
    },
    types::Opaque, //
};

extern "C" {
    fn rust_percpu_ref_alloc_workqueue() -> *mut bindings::workqueue_struct;
    fn rust_percpu_ref_init_work(work: *mut bindings::work_struct, func: bindings::work_func_t);
    fn rust_percpu_ref_queue_work(
        queue: *mut bindings::workqueue_struct,
        work: *mut bindings::work_struct,
    );
    fn rust_percpu_ref_release_thread_exit() -> !;
    fn rust_percpu_ref_release_thread_has_exited() -> bool;
    fn rust_percpu_ref_wait_for_release_thread();
    fn rust_percpu_ref_release_map_acquire();
    fn rust_percpu_ref_release_map_release();
}

/// A release that waits for a thread. It lies in the object.
#[doc(alias = "llist_node")]
pub(crate) struct Link {
    next: UnsafeCell<*mut Link>,
}

impl Link {
    pub(crate) const fn new() -> Self {
        Self {
            next: UnsafeCell::new(ptr::null_mut()),
        }
    }
}

/// The releases that no thread has taken yet, the newest first.
static PENDING: Atomic<*mut Link> = Atomic::new(ptr::null_mut());

global_lock! {
    // SAFETY: `init()` is called by the module's initialisation, before all else.
    unsafe(uninit) static TAKE_LOCK: Mutex<()> = ();
}

/// The workqueue of the one [`Queue`].
static QUEUE: Atomic<*mut bindings::workqueue_struct> = Atomic::new(ptr::null_mut());

/// The work that creates threads.
struct Spawner(Opaque<bindings::work_struct>);

// SAFETY: Only its address is used, by functions that may be called from any thread.
unsafe impl Sync for Spawner {}

static SPAWNER: Spawner = Spawner(Opaque::uninit());

/// The threads that were created and whose exit was not waited for. Only the spawner changes it,
/// which does not run in two threads at once, and [`stop`] after the last run.
static THREADS: Atomic<usize> = Atomic::new(0);

/// Initialises the lock of this file.
///
/// # Safety
///
/// Must be called once, before all other functions of this file.
pub(crate) unsafe fn init() {
    // SAFETY: By the safety requirements of this function, the lock is initialised once.
    unsafe { TAKE_LOCK.init() };
}

/// Returns whether [`queue`] can be called. The answer stays `true` as long as the caller's module
/// uses the library.
pub(crate) fn is_ready() -> bool {
    // `Acquire` pairs with the `Release` in `Queue::new()`.
    !QUEUE.load(Acquire).is_null()
}

/// Hands a release to a thread, which calls
/// [`Count::run_release`](crate::count::Count::run_release) with `link`.
///
/// # Context
///
/// Can be called from any context except NMI.
///
/// # Safety
///
/// `link` must be valid and unused until the call. [`is_ready`] must have returned `true`.
pub(crate) unsafe fn queue(link: NonNull<Link>) {
    let mut first = PENDING.load(Relaxed);
    loop {
        // SAFETY: By the safety requirements of this function, `link` is unused.
        unsafe { (*link.as_ptr()).next.get().write(first) };
        // `Release` pairs with the `Acquire` in `take()`.
        match PENDING.cmpxchg(first, link.as_ptr(), Release) {
            Ok(_) => break,
            Err(found) => first = found,
        }
    }
    // A spawner that runs now runs once more.
    //
    // SAFETY: `is_ready()` returned `true`, so the workqueue is there, and the work is initialised.
    unsafe { rust_percpu_ref_queue_work(QUEUE.load(Relaxed), SPAWNER.0.get()) };
}

/// Takes a pending release, if there is one.
fn take() -> Option<NonNull<Link>> {
    // With one thread here at a time, the first link stays on the list until that thread takes it,
    // so it cannot leave and return while its `next` is read.
    let _lock = TAKE_LOCK.lock();

    // `Acquire` pairs with the `Release` in `queue()`, here and below.
    let mut first = PENDING.load(Acquire);
    loop {
        let link = NonNull::new(first)?;
        // SAFETY: The link is on the list, so it is valid, and does not change.
        let next = unsafe { link.as_ref().next.get().read() };
        match PENDING.cmpxchg(first, next, Acquire) {
            Ok(_) => return Some(link),
            Err(found) => first = found,
        }
    }
}

/// Creates a thread for each pending release that the existing threads have not taken.
///
/// # Safety
///
/// Must be called as the function of [`SPAWNER`].
unsafe extern "C" fn spawn(_work: *mut bindings::work_struct) {
    while let Some(link) = take() {
        // SAFETY: The function takes no arguments, and does not wait.
        while unsafe { rust_percpu_ref_release_thread_has_exited() } {
            THREADS.fetch_sub(1, Relaxed);
        }
        // There is no memory, or there are too many threads. This tries again, and does not run the
        // release here, where it might wait for those behind it.
        while create_thread(link).is_err() {
            fsleep(Delta::from_millis(100));
        }
        THREADS.fetch_add(1, Relaxed);
    }
}

fn create_thread(link: NonNull<Link>) -> Result {
    // SAFETY: `release_thread` is given the link of a pending release. The name has no conversions.
    let task = from_err_ptr(unsafe {
        bindings::kthread_create_on_node(
            Some(release_thread),
            link.as_ptr().cast(),
            bindings::NUMA_NO_NODE,
            c"percpu_ref_release".as_char_ptr(),
        )
    })?;
    // SAFETY: The task is new and waits to be woken up.
    unsafe { bindings::wake_up_process(task) };
    Ok(())
}

/// # Safety
///
/// `link` must be the [`Link`] of a pending release that was taken.
unsafe extern "C" fn release_thread(link: *mut c_void) -> c_int {
    let mut next = NonNull::new(link.cast::<Link>());
    while let Some(link) = next {
        // SAFETY: `link` was taken, so its release is run once. The map is released on this task.
        unsafe {
            rust_percpu_ref_release_map_acquire();
            crate::count::Count::run_release(link);
            rust_percpu_ref_release_map_release();
        }
        next = take();
    }
    // Not by returning: the kernel's own function says so when this code is not used any more.
    //
    // SAFETY: We are a kernel thread, and own nothing.
    unsafe { rust_percpu_ref_release_thread_exit() }
}

/// Tells lockdep that the caller is about to wait for releases that may sleep.
pub(crate) fn may_wait() {
    // SAFETY: The map is released on this task.
    unsafe {
        rust_percpu_ref_release_map_acquire();
        rust_percpu_ref_release_map_release();
    }
}

/// What releases need. There is one, as long as the library is initialised.
pub(crate) struct Queue(());

impl Queue {
    /// # Context
    ///
    /// Sleeps, so must be called from process context.
    pub(crate) fn new() -> Result<Self> {
        // SAFETY: We are in process context.
        let queue = unsafe { rust_percpu_ref_alloc_workqueue() };
        if queue.is_null() {
            return Err(ENOMEM);
        }
        // SAFETY: The work is not in use, as there was no queue.
        unsafe { rust_percpu_ref_init_work(SPAWNER.0.get(), Some(spawn)) };
        // `Release` pairs with the `Acquire` in `is_ready()`.
        QUEUE.store(queue, Release);
        Ok(Self(()))
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        stop();
    }
}

/// Waits until all release threads are gone. No objects must be left.
///
/// # Context
///
/// Sleeps, so must be called from process context.
pub(crate) fn stop() {
    let queue = QUEUE.xchg(ptr::null_mut(), Relaxed);
    if queue.is_null() {
        return;
    }
    // SAFETY: `Queue::new()` allocated the workqueue, and no object is left to be released.
    unsafe { bindings::destroy_workqueue(queue) };
    while THREADS.load(Relaxed) != 0 {
        // SAFETY: We are in process context. A thread that has no release exits.
        unsafe { rust_percpu_ref_wait_for_release_thread() };
        THREADS.fetch_sub(1, Relaxed);
    }
}

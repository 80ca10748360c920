// SPDX-License-Identifier: GPL-2.0

//! Runs the releases that may sleep, each in a thread of its own.
//!
//! A release may wait for another release, so no release may keep another release from running. A
//! workqueue runs a limited number of work items at a time, 1024 by default. If as many releases
//! waited for other releases, they would deadlock. So a new kernel thread runs each release. A work
//! item creates the threads, because the last reference can be put in any context.
//!
//! C headers: [`include/linux/kthread.h`](srctree/include/linux/kthread.h),
//! [`include/linux/workqueue.h`](srctree/include/linux/workqueue.h)

use super::{
    count::Count,
    wait::key_ptr, //
};
use crate::{
    bindings,
    container_of,
    error::from_err_ptr,
    prelude::*,
    static_lock_class,
    sync::atomic::{
        Acquire,
        Atomic,
        Relaxed,
        Release, //
    },
    time::{
        delay::fsleep,
        Delta, //
    },
    types::Opaque, //
};
use core::{
    cell::UnsafeCell,
    ptr::{
        self,
        NonNull, //
    },
};

/// A release that waits for a thread.
///
/// It is a field of the object's count.
#[doc(alias = "llist_node")]
pub(super) struct Link {
    next: UnsafeCell<*mut Link>,
}

impl Link {
    pub(super) const fn new() -> Self {
        Self {
            next: UnsafeCell::new(ptr::null_mut()),
        }
    }
}

/// The number of threads that run a release, and of releases that wait for a thread.
///
/// The last thing that a thread does is to subtract itself.
static THREADS: Atomic<usize> = Atomic::new(0);

/// The releases of a class for which no thread was created yet.
#[pin_data]
pub(super) struct Releases {
    /// The list of releases, with the newest first.
    #[doc(alias = "llist_head")]
    pending: Atomic<*mut Link>,
    #[pin]
    spawner: Opaque<bindings::work_struct>,
    /// Tells lockdep what a release takes and waits for: see [`Releases::may_wait`].
    #[pin]
    map: Opaque<bindings::lockdep_map>,
}

impl Releases {
    /// Creates an empty list.
    pub(super) fn new() -> impl PinInit<Self> {
        let name = c"percpu_ref_release".as_char_ptr();
        let work_key = key_ptr(static_lock_class!());
        let map_key = key_ptr(static_lock_class!());
        pin_init!(Self {
            pending: Atomic::new(ptr::null_mut()),
            spawner <- Opaque::ffi_init(move |work| {
                // SAFETY: `work` is valid for writes and pinned. `work_key` and `name` are static.
                unsafe { bindings::init_work_with_key(work, Some(spawn), false, name, work_key) }
            }),
            map <- Opaque::ffi_init(move |map| {
                // SAFETY: `map` is valid for writes and pinned. `map_key` and `name` are static.
                unsafe { bindings::lockdep_init_map(map, name, map_key) }
            }),
        })
    }

    /// Queues a release for a thread, which calls [`Count::run_release`] with `link`.
    ///
    /// # Context
    ///
    /// Can be called from any context except NMI.
    ///
    /// # Safety
    ///
    /// `link` must be valid and must not be used by other code until [`Count::run_release`] is
    /// called.
    pub(super) unsafe fn queue(&self, link: NonNull<Link>) {
        // This comes before the object can be freed (litmus: release-threads).
        THREADS.add(1, Relaxed);
        let mut first = self.pending.load(Relaxed);
        loop {
            // SAFETY: By the safety requirements of this function, `link` is valid, and no other
            // code uses it.
            unsafe { (*link.as_ptr()).next.get().write(first) };
            // `Release` pairs with the `Acquire` in `take()` (litmus: release-queue).
            match self.pending.cmpxchg(first, link.as_ptr(), Release) {
                Ok(_) => break,
                Err(found) => first = found,
            }
        }
        // If the spawner is running, it runs once more.
        //
        // SAFETY: The work item is initialised and pinned, and is not freed before the library is
        // unloaded.
        unsafe {
            bindings::queue_work_on(
                bindings::wq_misc_consts_WORK_CPU_UNBOUND as c_int,
                bindings::system_dfl_wq,
                self.spawner.get(),
            )
        };
    }

    /// Takes the newest release off the list.
    ///
    /// The newest release is first, because releases that were queued before may wait for it. Must
    /// be called by the spawner only. The spawner does not run in two threads at once, so while it
    /// looks at the first link, no other thread takes that link off the list.
    fn take(&self) -> Option<NonNull<Link>> {
        // `Relaxed` is enough: the load of the link below is ordered by its address, also after a
        // failure (litmus: release-queue).
        let mut first = self.pending.load(Relaxed);
        loop {
            let link = NonNull::new(first)?;
            // SAFETY: The link is on the list, so it is valid and is not changed.
            let next = unsafe { link.as_ref().next.get().read() };
            // `Acquire` pairs with the `Release` in `queue()` (litmus: release-queue).
            match self.pending.cmpxchg(first, next, Acquire) {
                Ok(_) => return Some(link),
                Err(found) => first = found,
            }
        }
    }

    /// Tells lockdep that the caller will wait for releases.
    ///
    /// A release runs with this map held. So lockdep reports a release that takes a lock which the
    /// caller of this function holds.
    ///
    /// A release runs inside the same map. So lockdep reports a release that takes a lock which the
    /// caller holds.
    pub(super) fn may_wait(&self) {
        // SAFETY: The map is initialised, and the task that acquires it releases it.
        unsafe {
            bindings::lock_map_acquire(self.map.get());
            bindings::lock_map_release(self.map.get());
        }
    }

    /// Runs a release with the map held.
    fn run(&self, link: NonNull<Link>) {
        // SAFETY: The map is initialised, and the task that acquires it releases it. `spawn()` took
        // `link` off the list for this call alone.
        unsafe {
            bindings::lock_map_acquire(self.map.get());
            Count::run_release(link);
            bindings::lock_map_release(self.map.get());
        }
    }

    /// Waits until the spawner has returned.
    ///
    /// # Context
    ///
    /// Sleeps, so must be called from process context.
    #[cfg(MODULE)]
    pub(super) fn stop(&self) {
        // SAFETY: The work item is initialised, and we are in process context.
        unsafe { bindings::flush_work(self.spawner.get()) };
    }
}

/// Creates a thread for each pending release.
///
/// # Safety
///
/// Must be called as the function of a [`Releases::spawner`].
unsafe extern "C" fn spawn(work: *mut bindings::work_struct) {
    // SAFETY: By the safety requirements of this function, `work` is the field of a `Releases`,
    // which is not freed before the library is unloaded.
    let releases = unsafe { &*container_of!(Opaque::cast_from(work), Releases, spawner) };

    while let Some(link) = releases.take() {
        // If there is no memory, or there are too many threads, this tries again. It does not run
        // the release here, because that release may wait for the releases behind it.
        while create_thread(link).is_err() {
            fsleep(Delta::from_millis(100));
        }
    }
}

/// Creates and starts a thread that runs the release of `link`.
fn create_thread(link: NonNull<Link>) -> Result {
    // SAFETY: `link` is that of a pending release, which `release_thread()` requires. The name has
    // no conversions, so there are no further arguments.
    let task = from_err_ptr(unsafe {
        bindings::kthread_create_on_node(
            Some(release_thread),
            link.as_ptr().cast(),
            bindings::NUMA_NO_NODE,
            c"percpu_ref_release".as_char_ptr(),
        )
    })?;
    // SAFETY: `kthread_create_on_node()` returned this task, which was not woken up yet.
    unsafe { bindings::wake_up_process(task) };
    Ok(())
}

/// Runs one release, as the function of a thread.
///
/// # Safety
///
/// `link` must be the [`Link`] of a pending release, and must be passed to one thread only.
unsafe extern "C" fn release_thread(link: *mut c_void) -> c_int {
    // SAFETY: By the safety requirements of this function, the release was not run yet, so the
    // count is valid. The address of a link is not null.
    let (class, link) = unsafe {
        let link = NonNull::new_unchecked(link.cast::<Link>());
        (Count::class_of_link(link), link)
    };
    class.releases().run(link);
    // `Release` pairs with the `Acquire` in `stop()` (litmus: release-threads). RCU Tasks waits for
    // the instructions after this.
    THREADS.fetch_sub(1, Release);
    0
}

/// Waits until all release threads have ended.
///
/// There must be no objects any more.
///
/// # Context
///
/// Sleeps, so must be called from process context.
#[cfg(MODULE)]
pub(super) fn stop(classes: impl Iterator<Item = &'static super::unload::Class>) {
    while THREADS.load(Acquire) != 0 {
        fsleep(Delta::from_millis(1));
    }
    classes.for_each(|class| class.releases().stop());
    // SAFETY: By the context of this function, we can sleep.
    unsafe { bindings::synchronize_rcu_tasks() };
}

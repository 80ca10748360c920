// SPDX-License-Identifier: GPL-2.0

//! Runs the releases that may sleep, each in a thread.
//!
//! A release may wait for another one, so no release must keep another one from running. A
//! workqueue runs a limited number of works at a time, 1024 by default: that many releases which
//! wait for others would wait forever. Here, each release is given to a new kernel thread. A work
//! item creates the threads, since the last reference can be put in any context.
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

/// A release that waits for a thread. It lies in the object.
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

/// The threads that run a release. The last thing that a thread does is to count itself out.
static THREADS: Atomic<usize> = Atomic::new(0);

/// The releases of a class that no thread has been created for yet.
#[pin_data]
pub(super) struct Releases {
    /// The newest one first.
    #[doc(alias = "llist_head")]
    pending: Atomic<*mut Link>,
    #[pin]
    spawner: Opaque<bindings::work_struct>,
    /// Makes lockdep see what a release takes and waits for: see [`Releases::may_wait`].
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
                // SAFETY: `work` is valid for writes, and pinned. The key is static.
                unsafe { bindings::init_work_with_key(work, Some(spawn), false, name, work_key) }
            }),
            map <- Opaque::ffi_init(move |map| {
                // SAFETY: `map` is valid for writes, and pinned. The key is static.
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
    /// `link` must be valid and unused until the call.
    pub(super) unsafe fn queue(&self, link: NonNull<Link>) {
        // Before the object can end (litmus: release-threads).
        THREADS.add(1, Relaxed);
        let mut first = self.pending.load(Relaxed);
        loop {
            // SAFETY: By the safety requirements of this function, `link` is unused.
            unsafe { (*link.as_ptr()).next.get().write(first) };
            // `Release` pairs with the `Acquire` in `take()` (litmus: release-queue).
            match self.pending.cmpxchg(first, link.as_ptr(), Release) {
                Ok(_) => break,
                Err(found) => first = found,
            }
        }
        // A spawner that runs now runs once more.
        //
        // SAFETY: The work is initialised and pinned, and stays so as long as the library is there.
        unsafe {
            bindings::queue_work_on(
                bindings::wq_misc_consts_WORK_CPU_UNBOUND as c_int,
                bindings::system_dfl_wq,
                self.spawner.get(),
            )
        };
    }

    /// Takes the newest release off the list, so that a release which others wait for comes first.
    ///
    /// Must be called by the spawner, which does not run in two threads at once: while it looks at
    /// the first link, that link stays on the list.
    fn take(&self) -> Option<NonNull<Link>> {
        // `Relaxed`: the load of the link below is ordered by its address, also after a failure
        // (litmus: release-queue).
        let mut first = self.pending.load(Relaxed);
        loop {
            let link = NonNull::new(first)?;
            // SAFETY: The link is on the list, so it is valid, and does not change.
            let next = unsafe { link.as_ref().next.get().read() };
            // `Acquire` pairs with the `Release` in `queue()` (litmus: release-queue).
            match self.pending.cmpxchg(first, next, Acquire) {
                Ok(_) => return Some(link),
                Err(found) => first = found,
            }
        }
    }

    /// Tells lockdep that the caller is about to wait for releases.
    ///
    /// A release runs inside the same map. So lockdep reports a release that takes a lock which the
    /// caller holds.
    pub(super) fn may_wait(&self) {
        // SAFETY: The map is initialised, and released by the same task.
        unsafe {
            bindings::lock_map_acquire(self.map.get());
            bindings::lock_map_release(self.map.get());
        }
    }

    /// Runs a release in the map.
    fn run(&self, link: NonNull<Link>) {
        // SAFETY: The map is initialised, and released by the same task. `spawn()` took the link
        // off the list, for this call alone.
        unsafe {
            bindings::lock_map_acquire(self.map.get());
            Count::run_release(link);
            bindings::lock_map_release(self.map.get());
        }
    }

    /// Waits until the spawner does not run any more.
    ///
    /// # Context
    ///
    /// Sleeps, so must be called from process context.
    #[cfg(MODULE)]
    pub(super) fn stop(&self) {
        // SAFETY: The work is initialised, and we are in process context.
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
    // which lives as long as the library.
    let releases = unsafe { &*container_of!(Opaque::cast_from(work), Releases, spawner) };

    while let Some(link) = releases.take() {
        // There is no memory, or there are too many threads. This tries again, and does not run the
        // release here, where it might wait for those behind it.
        while create_thread(link).is_err() {
            fsleep(Delta::from_millis(100));
        }
    }
}

fn create_thread(link: NonNull<Link>) -> Result {
    // SAFETY: `release_thread()` is given the link of a pending release. The name has no
    // conversions.
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
/// `link` must be the [`Link`] of a pending release, and must be passed to one thread only.
unsafe extern "C" fn release_thread(link: *mut c_void) -> c_int {
    // SAFETY: By the safety requirements of this function, the release was not run, so the object
    // is there. The address is not null.
    let (class, link) = unsafe {
        let link = NonNull::new_unchecked(link.cast::<Link>());
        (Count::class_of_link(link), link)
    };
    class.releases().run(link);
    // `Release` pairs with the `Acquire` in `stop()` (litmus: release-threads). The instructions
    // after this are waited for by RCU Tasks.
    THREADS.fetch_sub(1, Release);
    0
}

/// Waits until all release threads are gone. No objects must be left.
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
    // SAFETY: We are in process context.
    unsafe { bindings::synchronize_rcu_tasks() };
}

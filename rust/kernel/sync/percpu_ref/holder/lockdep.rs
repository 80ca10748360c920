// SPDX-License-Identifier: GPL-2.0

//! Lets lockdep see that a wait for releases waits for holders.
//!
//! A guard may be dropped by another task than the one that got it. Lockdep draws its conclusions
//! when a task takes a lock, and at that moment nothing tells where the guards that the task has
//! will be dropped. So lockdep cannot treat each guard as a lock without false reports. A
//! [`LockdepSection`](crate::sync::percpu_ref::LockdepSection) borrows the guard and is not `Send`,
//! so the task that made it must end it before the guard can be dropped.
//!
//! Lockdep takes a section for a lock that is held for reading, and the wait for a release for the
//! same lock taken for writing. All objects of a type have one such lock. So it also reports a task
//! that waits for one object under a lock, if the lock is taken in a section of another object of
//! the same type. A task can have 48 locks, and so many sections (`MAX_LOCK_DEPTH`).
//!
//! The block layer also tells lockdep of tasks that wait for the end of a freeze. Here, no task
//! waits for that.
//!
//! C header: [`include/linux/lockdep.h`](srctree/include/linux/lockdep.h)

use crate::{
    bindings,
    prelude::*,
    sync::{
        atomic::Relaxed,
        percpu_ref::count::{
            Count,
            LIVES_MASK, //
        }, //
    },
    types::Opaque, //
};
use core::ptr::NonNull;

/// What lockdep knows of the holders of the objects of a type.
///
/// # Invariants
///
/// `key` is registered, and `map` is initialised with it.
#[pin_data(PinnedDrop)]
pub(in super::super) struct LockMap {
    #[pin]
    key: Opaque<bindings::lock_class_key>,
    #[pin]
    map: Opaque<bindings::lockdep_map>,
}

impl LockMap {
    /// Creates a map that lockdep knows nothing of.
    pub(in super::super) fn new() -> impl PinInit<Self> {
        let init = |this: *mut Self| {
            // SAFETY: `this` is valid for writes, and pinned.
            unsafe { Self::register(this) };
            Ok(())
        };
        // SAFETY: `register()` initialises all fields.
        unsafe { pin_init::pin_init_from_closure(init) }
    }

    /// # Safety
    ///
    /// `this` must be valid for writes, and pinned. The key must not be registered.
    unsafe fn register(this: *mut Self) {
        // SAFETY: By the safety requirements of this function, the fields are valid for writes, and
        // pinned.
        unsafe {
            let key = Opaque::cast_into(&raw const (*this).key);
            bindings::lockdep_register_key(key);
            bindings::lockdep_init_map(
                Opaque::cast_into(&raw const (*this).map),
                c"percpu_ref_holder".as_char_ptr(),
                key,
            );
        }
    }

    /// Makes lockdep forget what it knows, since the map is for another type from now on. There
    /// must be no sections and no waits.
    ///
    /// # Context
    ///
    /// Sleeps, so must be called from process context.
    pub(in super::super) fn renew(&self) {
        // SAFETY: By the type invariant, the key is registered. No other thread uses the map.
        unsafe {
            bindings::lockdep_unregister_key(self.key.get());
            Self::register(core::ptr::from_ref(self).cast_mut());
        }
    }

    /// Tells lockdep that the caller is about to wait for holders.
    ///
    /// A task in a section of an object may wait for another object of the same type: lockdep,
    /// which cannot tell the two apart, is not told of that.
    pub(in super::super) fn may_wait(&self) {
        // SAFETY: The map is initialised, and released by the same task.
        unsafe {
            if !bindings::percpu_ref_lock_is_held(self.map.get()) {
                bindings::lock_map_acquire(self.map.get());
                bindings::lock_map_release(self.map.get());
            }
        }
    }
}

/// Tells lockdep that the caller is about to wait until all lives of `count` have ended.
pub(in super::super) fn may_wait(count: &Count) {
    // While a thread is inside the module's functions, the map is not renewed.
    let running = count.enter_module();
    if running.is_some() && count.state.load(Relaxed) & LIVES_MASK != 0 {
        count.class.holders.may_wait();
    }
}

#[pinned_drop]
impl PinnedDrop for LockMap {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: By the type invariant, the key is registered.
        unsafe { bindings::lockdep_unregister_key(self.key.get()) };
    }
}

/// The map of a type, held for reading by the current task.
///
/// # Invariants
///
/// The current task has acquired the map, if there is one.
pub(in super::super) struct Held(Option<&'static LockMap>);

impl Held {
    /// Acquires the map of the count's type. An interrupt does not: it cannot wait, and nothing
    /// that sleeps can wait for a lock that it takes.
    ///
    /// # Safety
    ///
    /// `count` must be valid.
    pub(in super::super) unsafe fn new(count: NonNull<Count>) -> Self {
        // SAFETY: Can be called from any context.
        if !unsafe { bindings::in_task() } {
            return Self(None);
        }
        // SAFETY: By the safety requirements of this function, `count` is valid.
        let map = &unsafe { Count::class_of(count) }.holders;
        // Acquired as by a trylock, because a section never waits.
        //
        // INVARIANT: Acquired here.
        //
        // SAFETY: The map is initialised, and released by the same task, since this is not `Send`.
        unsafe { bindings::lock_map_acquire_tryread(map.map.get()) };
        Self(Some(map))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(map) = self.0 {
            // SAFETY: By the type invariant, the current task has acquired the map.
            unsafe { bindings::lock_map_release(map.map.get()) };
        }
    }
}

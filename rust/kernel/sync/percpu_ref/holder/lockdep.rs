// SPDX-License-Identifier: GPL-2.0

//! Tells lockdep that a wait for releases waits for holders.
//!
//! A guard may be dropped by another task than the task that got it. Lockdep checks for deadlocks
//! when a task takes a lock, and at that moment it is not known which task will drop the guards
//! that the task has. If each guard were a lock for lockdep, there would be false reports. A
//! [`LockdepSection`](crate::sync::percpu_ref::LockdepSection) borrows the guard and is not `Send`,
//! so the task that made it must end it before the guard can be dropped.
//!
//! For lockdep, a section is a lock that is held for reading, and a wait for a release takes this
//! lock for writing. All objects of a type share one lock. So lockdep also reports a task that
//! waits for one object while it holds a lock, if that lock is taken in a section of another object
//! of the same type. A task can be in 48 sections at the same time, because it can hold 48 locks
//! (`MAX_LOCK_DEPTH`).
//!
//! The block layer also tells lockdep of tasks that wait for the end of a freeze. There is no such
//! wait here.
//!
//! C header: [`include/linux/lockdep.h`](srctree/include/linux/lockdep.h)

use crate::{
    bindings,
    prelude::*,
    sync::{
        atomic::Relaxed,
        percpu_ref::{
            count::Count,
            state::LIVES_MASK, //
        }, //
    },
    types::Opaque, //
};
use core::ptr::NonNull;

/// The lock that represents the holders of the objects of a type.
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
    /// Creates a map with a new key, of which lockdep knows nothing.
    pub(in super::super) fn new() -> impl PinInit<Self> {
        let init = |this: *mut Self| {
            // SAFETY: `this` is valid for writes and pinned, and its key is not registered yet.
            unsafe { Self::register(this) };
            Ok(())
        };
        // SAFETY: `register()` initialises all fields.
        unsafe { pin_init::pin_init_from_closure(init) }
    }

    /// Registers the key, and initialises the map with it.
    ///
    /// # Safety
    ///
    /// `this` must be valid for writes, and pinned. The key must not be registered.
    unsafe fn register(this: *mut Self) {
        // SAFETY: By the safety requirements of this function, the fields are valid for writes and
        // pinned, and the key is not registered.
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

    /// Makes lockdep forget what it knows of this map.
    ///
    /// The map is for another type from now on. There must be no sections and no waits.
    ///
    /// # Context
    ///
    /// Sleeps, so must be called from process context.
    pub(in super::super) fn renew(&self) {
        // SAFETY: By the type invariant, the key is registered. Since there are no sections and no
        // waits, no other thread uses the map.
        unsafe {
            bindings::lockdep_unregister_key(self.key.get());
            Self::register(core::ptr::from_ref(self).cast_mut());
        }
    }

    /// Tells lockdep that the caller will wait for holders.
    ///
    /// Lockdep is not told if the caller is in a section of an object of the same type. Such a task
    /// may wait for another object, and lockdep cannot distinguish the two objects.
    pub(in super::super) fn may_wait(&self) {
        // SAFETY: The map is initialised, and the task that acquires it releases it.
        unsafe {
            if !bindings::percpu_ref_lock_is_held(self.map.get()) {
                bindings::lock_map_acquire(self.map.get());
                bindings::lock_map_release(self.map.get());
            }
        }
    }
}

/// Tells lockdep that the caller will wait until all lives of `count` have ended.
pub(in super::super) fn may_wait(count: &Count) {
    // The map is not renewed while a thread is inside the module's functions.
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
    /// Acquires the map of the count's type for reading, unless the caller is an interrupt.
    ///
    /// An interrupt does not acquire it, because it cannot wait, and a task that sleeps cannot wait
    /// for a lock that an interrupt takes.
    ///
    /// # Safety
    ///
    /// `count` must be valid.
    pub(in super::super) unsafe fn new(count: NonNull<Count>) -> Self {
        // SAFETY: `in_task()` can be called from any context.
        if !unsafe { bindings::in_task() } {
            return Self(None);
        }
        // SAFETY: By the safety requirements of this function, `count` is valid.
        let map = &unsafe { Count::class_of(count) }.holders;
        // The map is acquired as by a trylock, because entering a section does not wait.
        //
        // INVARIANT: The current task acquires the map here.
        //
        // SAFETY: The map is initialised, and the task that acquires it releases it, because a
        // `LockdepSection` is not `Send`.
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

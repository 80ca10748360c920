// SPDX-License-Identifier: GPL-2.0

//! Per-CPU reference counts.
//!
//! A reference count that many CPUs use at once is a cache line that they fight over. Here each CPU
//! counts in memory of its own, so that taking and dropping a reference costs the same on one CPU
//! as on all of them. In return, nobody notices the count falling to zero until the reference is
//! *killed*: then, after an RCU grace period, the CPUs' counts are added up and the count becomes
//! an ordinary atomic one, which reaches zero when the last reference is dropped.
//!
//! This suits objects that live long, are used all the time and are shut down once: a request
//! queue, a device, a control group. For objects that come and go, use [`Arc`].
//!
//! # The life of a reference
//!
//! | state | by | [`try_get`] | last [`PercpuRefGuard`] dropped |
//! |---|---|---|---|
//! | unshared | [`UniquePercpuRef::new`] | does not exist | does not exist |
//! | live | [`PercpuRef::from`] | succeeds | goes unnoticed: the initial reference remains |
//! | dying | [`kill`], or drop of [`PercpuRef`] | succeeds | the same |
//! | confirmed | a grace period | fails | [`Counted::release`], then `T` is dropped |
//!
//! An unshared one can be taken back ([`UniquePercpuRef::cancel_init`]); from sharing on, the only
//! way is forward through this table. The memory is freed when `T` is dropped and the
//! [`PercpuRef`], too.
//!
//! # Unloading
//!
//! The module that makes an object may be unloaded at any time, without a thought for this library.
//! Its exit function kills what it owns by dropping it; then the library waits for the module's
//! objects to be released, and says in the log what it waits for.
//!
//! Nothing waits for ever: after `unload_timeout` seconds (a parameter of the library) the objects
//! that somebody still holds are given up. They stay in memory, and nothing of the module is called
//! for them. But if such an object has a pointer to the module's code or constants in it (a `fn`, a
//! `&'static str`), its holder must not use that any more, which no type can tell him. Who gives
//! guards to other modules should see to it that they come back in time.
//!
//! # Examples
//!
//! ```
//! use kernel::prelude::*;
//! use percpu_ref::{Counted, PercpuRef, UniquePercpuRef};
//!
//! struct Queue {
//!     depth: usize,
//! }
//!
//! impl Counted for Queue {
//!     fn release(&self) {
//!         pr_info!("the last request is done\n");
//!     }
//! }
//!
//! let queue: PercpuRef<Queue> = UniquePercpuRef::new(Queue { depth: 64 }, GFP_KERNEL)?.into();
//!
//! // In the submission path, on any CPU:
//! let request = queue.try_get().ok_or(ENODEV)?;
//! pr_info!("depth {}\n", request.depth);
//!
//! // On removal: no new requests, and the running ones end the queue when they are done.
//! queue.kill();
//! drop(request);
//! queue.wait_released();
//! # Ok::<(), Error>(())
//! ```
//!
//! C header: [`include/linux/percpu-refcount.h`](srctree/include/linux/percpu-refcount.h)
//!
//! [`Arc`]: kernel::sync::Arc
//! [`try_get`]: PercpuRef::try_get
//! [`kill`]: PercpuRef::kill

use core::{
    mem::ManuallyDrop,
    ops::{
        Deref,
        DerefMut, //
    },
    ptr::NonNull, //
};
use kernel::{
    alloc::Flags,
    pr_warn_once,
    prelude::*,
    time::Delta, //
};

mod count;
pub mod percpu;
pub mod rcu;
mod unload;

use count::Count;
use unload::Ops;

module! {
    type: PercpuRefModule,
    name: "rust_percpu_ref",
    description: "Per-CPU reference counts",
    license: "GPL",
    params: {
        unload_timeout: u32 {
            default: 10,
            description: "Seconds that unloading a module waits for its objects",
        },
    },
}

#[pin_data]
struct PercpuRefModule {
    #[pin]
    _notifier: unload::Notifier,
}

impl kernel::InPlaceModule for PercpuRefModule {
    fn init(_module: &'static ThisModule) -> impl PinInit<Self, Error> {
        // SAFETY: A module is initialised once, before others can use it.
        unsafe { rcu::init() };

        let seconds = module_parameters::unload_timeout.value();
        try_pin_init!(Self {
            _notifier <- unload::Notifier::new(Delta::from_secs(i64::from(seconds))),
        }? Error)
    }
}

/// What can be counted, and what is to happen when the count has reached zero.
pub trait Counted: Send + Sync + Sized + 'static {
    /// Runs when the last reference is gone; then the object is dropped.
    ///
    /// It runs exactly once for an object that was shared, but not at all if the module that made
    /// the object is gone by then (see [Unloading](crate#unloading)). Nothing of the library is
    /// locked, and preemption is not disabled by it.
    ///
    /// Context: that of whoever drops the last reference. If this is the initial reference, it is
    /// softirq, or a kernel thread of RCU's with bottom halves disabled. So neither this nor the
    /// object's `Drop` may sleep.
    #[doc(alias = "percpu_ref_func_t")]
    fn release(&self) {}
}

/// An object with its count. The count comes first, so that a pointer to one is a pointer to both.
#[pin_data]
#[repr(C)]
struct Inner<T> {
    count: Count,
    #[pin]
    value: T,
}

impl<T: Counted> Inner<T> {
    const OPS: Ops = Ops {
        name: core::any::type_name::<T>,
        release: Self::release,
        confirm: Self::confirm,
    };

    /// See [`Ops::release`].
    ///
    /// # Safety
    ///
    /// `object` is the address of a `Self` that nobody uses any more, with its value not dropped.
    unsafe fn release(object: NonNull<c_void>) {
        let inner = object.cast::<Self>().as_ptr();

        // SAFETY: By the function's requirement, the value is there.
        unsafe { &(*inner).value }.release();
        // SAFETY: By the function's requirement, nobody uses it any more.
        unsafe { (&raw mut (*inner).value).drop_in_place() };
    }

    /// See [`Ops::confirm`].
    ///
    /// # Safety
    ///
    /// `object` is the address of a `Self` whose value is not dropped, and `confirm` that of a
    /// `fn(&T)`.
    unsafe fn confirm(object: NonNull<c_void>, confirm: NonNull<c_void>) {
        // SAFETY: By the function's requirement.
        let confirm = unsafe { core::mem::transmute::<NonNull<c_void>, fn(&T)>(confirm) };

        // SAFETY: By the function's requirement, the value is there.
        confirm(unsafe { &(*object.cast::<Self>().as_ptr()).value });
    }
}

/// A counted object that nobody else has yet.
///
/// It can be changed, and it can be taken back: dropped, it is gone without a call to
/// [`Counted::release`], and its memory is free when that returns. Made into a [`PercpuRef`] it can
/// be shared.
#[doc(alias = "percpu_ref")]
pub struct UniquePercpuRef<T: Counted>(ManuallyDrop<Pin<KBox<Inner<T>>>>);

impl<T: Counted> UniquePercpuRef<T> {
    /// Allocates an object and a count of one, in per-CPU mode.
    ///
    /// Fails with `ENOMEM`, or with what `value` fails with; then nothing is left behind. Also with
    /// `ENODEV`, for a release or a callback that runs at the very end of its module's unloading.
    /// May sleep if `flags` allow it, and then needs process context.
    #[doc(alias = "percpu_ref_init")]
    pub fn new<E>(value: impl PinInit<T, E>, flags: Flags) -> Result<Self>
    where
        Error: From<E>,
    {
        let count = Count::new(&Inner::<T>::OPS, flags)?;
        let inner = try_pin_init!(Inner {
            count,
            value <- value,
        }? Error);
        Ok(Self(ManuallyDrop::new(KBox::try_pin_init(inner, flags)?)))
    }

    /// Undoes [`UniquePercpuRef::new`]; the same as dropping it.
    ///
    /// The object is dropped, [`Counted::release`] is not called, and the memory is free on return.
    /// This is for the error paths of whoever sets up the object.
    ///
    /// Any context that the object may be dropped in, but NMI. It frees memory, which PREEMPT_RT
    /// does not allow in a hard interrupt or with preemption disabled.
    #[doc(alias("percpu_ref_cancel_init", "percpu_ref_exit"))]
    pub fn cancel_init(self) {}

    /// Undoes [`UniquePercpuRef::new`] and returns the object.
    ///
    /// Otherwise like [`cancel_init`](Self::cancel_init).
    #[doc(alias("percpu_ref_cancel_init", "percpu_ref_exit"))]
    pub fn into_inner(self) -> T
    where
        T: Unpin,
    {
        let inner = Pin::into_inner(self.into_pinned_box());
        // The memory is freed here, and the count is dropped on return.
        let Inner { count: _, value } = KBox::into_inner(inner);
        value
    }

    /// The object, pinned and mutable.
    pub fn as_pin_mut(&mut self) -> Pin<&mut T> {
        self.0.as_mut().project().value
    }

    fn into_pinned_box(self) -> Pin<KBox<Inner<T>>> {
        let mut this = ManuallyDrop::new(self);

        // SAFETY: `this` is not used and not dropped after this.
        unsafe { ManuallyDrop::take(&mut this.0) }
    }
}

impl<T: Counted> Deref for UniquePercpuRef<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0.value
    }
}

impl<T: Counted + Unpin> DerefMut for UniquePercpuRef<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.as_pin_mut().get_mut()
    }
}

impl<T: Counted> Drop for UniquePercpuRef<T> {
    fn drop(&mut self) {
        // The module that made the object may be gone, and then nothing of it may be called.
        if let Some(_running) = self.0.count.enter_module() {
            // SAFETY: Not used after this.
            unsafe { ManuallyDrop::drop(&mut self.0) };
        }
    }
}

/// A counted object, held by its owner.
///
/// Users of the object borrow this to get references of their own. The owner ends the object by
/// [`kill`](Self::kill), or by dropping this.
///
/// It does not itself give access to the object, which may be gone already: the initial reference
/// is put by the kill. Use [`try_get`](Self::try_get).
///
/// # Invariants
///
/// `inner` came from a pinned `KBox` and was shared. Its memory is there until
/// [`Count::drop_handle`], which only `drop` calls.
#[doc(alias = "percpu_ref")]
pub struct PercpuRef<T: Counted> {
    inner: NonNull<Inner<T>>,
}

// SAFETY: `T` is `Send` and `Sync` by `Counted`, and all that a `PercpuRef` does may be done on any
// thread: references are counted atomically or by CPU, and the object may be dropped by any thread.
unsafe impl<T: Counted> Send for PercpuRef<T> {}

// SAFETY: As above.
unsafe impl<T: Counted> Sync for PercpuRef<T> {}

impl<T: Counted> From<UniquePercpuRef<T>> for PercpuRef<T> {
    /// Shares the object, which ends the right to take it back.
    fn from(unique: UniquePercpuRef<T>) -> Self {
        // SAFETY: The object stays where it is until it is freed.
        let inner = KBox::into_raw(unsafe { Pin::into_inner_unchecked(unique.into_pinned_box()) });

        // SAFETY: A box is not null.
        let inner = unsafe { NonNull::new_unchecked(inner) };
        // INVARIANT: Just made so.
        Self { inner }
    }
}

impl<T: Counted> PercpuRef<T> {
    fn count(&self) -> &Count {
        // SAFETY: By the type invariant, the memory is there.
        unsafe { &(*self.inner.as_ptr()).count }
    }

    /// Gets a reference, or `None` once the end of the object is confirmed.
    ///
    /// After a kill this goes on to succeed until the confirmation; it never succeeds after that.
    /// (C's `percpu_ref_tryget()` goes on until the count is zero.)
    ///
    /// Any context but NMI. Orders no other memory access.
    #[doc(alias = "percpu_ref_tryget")]
    #[inline]
    pub fn try_get(&self) -> Option<PercpuRefGuard<T>> {
        if !self.count().try_get() {
            return None;
        }

        // INVARIANT: `try_get()` added a reference, which the guard owns.
        Some(PercpuRefGuard { inner: self.inner })
    }

    /// Begins the end of the object: after a grace period no new references are given out, and when
    /// all existing ones are gone, the object is released.
    ///
    /// Returns `true`, or if it was killed before, `false`; then it warns once and changes nothing.
    ///
    /// Does not wait, does not fail, and allocates nothing. Any context but NMI.
    #[doc(alias = "percpu_ref_kill")]
    pub fn kill(&self) -> bool {
        self.kill_and_call(None)
    }

    /// The same as [`kill`](Self::kill), but also calls `confirm` with the object, once, when no
    /// [`try_get`](Self::try_get) on any CPU will succeed any more, and before the release.
    ///
    /// What was done with a reference before is not thereby finished: others may hold theirs on.
    ///
    /// `confirm` runs in softirq, or in a kernel thread of RCU's with bottom halves disabled. It
    /// must not sleep. It captures nothing, for a kill allocates nothing; what it needs is to be in
    /// the object.
    ///
    /// If this returns `false`, `confirm` is not called. Neither is it called if the module that it
    /// lies in, or that made the object, is gone by then.
    #[doc(alias = "percpu_ref_kill_and_confirm")]
    pub fn kill_and_confirm(&self, confirm: fn(&T)) -> bool {
        self.kill_and_call(NonNull::new(confirm as *mut c_void))
    }

    fn kill_and_call(&self, confirm: Option<NonNull<c_void>>) -> bool {
        // SAFETY: By the type invariant this is a shared object, whose memory `self` holds. If
        // there is a `confirm`, it is a `fn(&T)`.
        let killed = unsafe { Count::kill(self.inner.cast(), confirm) };
        if !killed {
            pr_warn_once!(
                "percpu_ref_kill() called more than once on {}!\n",
                core::any::type_name::<T>()
            );
        }
        killed
    }

    /// Whether the reference was killed. If nothing else orders the two, the answer may be old.
    ///
    /// Any context.
    #[doc(alias = "percpu_ref_is_dying")]
    pub fn is_dying(&self) -> bool {
        self.count().is_dying()
    }

    /// Waits until the object is released and dropped, or leaked because its module is gone.
    ///
    /// Somebody must kill it, and a thread that holds a [`PercpuRefGuard`] of it waits for itself.
    ///
    /// Sleeps; process context. All that was done with references is visible after it.
    pub fn wait_released(&self) {
        self.count().wait_released();
    }
}

impl<T: Counted> Drop for PercpuRef<T> {
    /// Kills the reference if nobody has. Does not wait for the release.
    ///
    /// Any context but NMI. After the release it frees memory, which PREEMPT_RT does not allow in a
    /// hard interrupt or with preemption disabled.
    #[doc(alias = "percpu_ref_exit")]
    fn drop(&mut self) {
        // SAFETY: By the type invariant.
        unsafe {
            Count::kill(self.inner.cast(), None);
            Count::drop_handle(self.inner.cast());
        }
    }
}

/// A reference to a counted object.
///
/// It is owned and may be kept anywhere, passed on to another thread, and dropped on another CPU
/// than the one it was got on. The object is there as long as the guard is.
///
/// A guard that is leaked leaks the object, and nothing worse.
///
/// # Invariants
///
/// Owns one reference that is counted in `inner`, so the object is alive.
#[must_use = "if unused, the reference is put again at once"]
pub struct PercpuRefGuard<T: Counted> {
    inner: NonNull<Inner<T>>,
}

// SAFETY: As for `PercpuRef`; it is also a `&T`, for which `T` is `Sync` by `Counted`.
unsafe impl<T: Counted> Send for PercpuRefGuard<T> {}

// SAFETY: As above.
unsafe impl<T: Counted> Sync for PercpuRefGuard<T> {}

impl<T: Counted> Deref for PercpuRefGuard<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: By the type invariant, the object is alive.
        unsafe { &(*self.inner.as_ptr()).value }
    }
}

impl<T: Counted> Clone for PercpuRefGuard<T> {
    /// Gets another reference. It does not fail, even if the reference was killed.
    ///
    /// Any context but NMI.
    #[doc(alias = "percpu_ref_get")]
    #[inline]
    fn clone(&self) -> Self {
        // SAFETY: By the type invariant, the object is alive.
        unsafe { &(*self.inner.as_ptr()).count }.get();

        // INVARIANT: `get()` added a reference, which the new guard owns.
        Self { inner: self.inner }
    }
}

impl<T: Counted> Drop for PercpuRefGuard<T> {
    /// Puts the reference. If it is the last one, the object is released and dropped in here.
    ///
    /// Any context but NMI, if it is not the last one. The last one frees memory, which PREEMPT_RT
    /// does not allow in a hard interrupt or with preemption disabled, and does what `T`'s release
    /// and drop do. What was done with the object before is visible to its release.
    #[doc(alias = "percpu_ref_put")]
    #[inline]
    fn drop(&mut self) {
        // SAFETY: By the type invariant, there is a reference, and it goes with the guard.
        unsafe { Count::put(self.inner.cast()) };
    }
}

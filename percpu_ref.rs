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
//! [`PercpuRef`], too; if it was ever in an [`RcuPercpuRef`], a grace period later.
//!
//! # More than one life
//!
//! A [`PercpuRef<T, Reinit>`](Reinit) can be brought back to life ([`resurrect`], [`reinit`]), and
//! can be told to count in an atomic variable while it lives ([`switch_to_atomic`]): for a queue
//! that is frozen and thawed, or for an object that may be gone again soon and is to be gone at
//! once, for a kill in atomic mode needs no grace period. Its object is there as long as the
//! [`PercpuRef`] is; the release says only that a life is over.
//!
//! | state | [`kill`] | [`switch_to_atomic`] | [`switch_to_percpu`] | [`resurrect`] |
//! |---|---|---|---|---|
//! | per-CPU | grace period, then closed | grace period, then atomic | nothing | `EINVAL` |
//! | switching | closed after that | waits | waits, then per-CPU | waits, then `EINVAL` |
//! | atomic | closed at once | nothing | per-CPU | `EINVAL` |
//! | dying | `false`, a warning | waits, next life | waits, next life | waits, then lives |
//! | closed | `false`, a warning | next life | next life | lives |
//!
//! *Next life*: that is the mode in which it will count when it lives again. Unless it was told to
//! switch to atomic mode, it then counts by CPU. *Closed* is what the confirmation of a kill
//! confirms: no reference is given out any more.
//!
//! # Unloading
//!
//! The module that makes an object may be unloaded at any time, without a thought for this library.
//! Its exit function kills what it owns by dropping it; then the library waits for the module's
//! objects to be released, and says in the log what it waits for.
//!
//! It does not wait for ever for what is held: after `unload_timeout` seconds (a parameter of the
//! library) the objects that somebody still has references to are given up. They stay in memory,
//! and nothing of the module is called for them. A release that is already running is waited for
//! until it returns.
//!
//! There are two things that no type can tell, as with [`Arc`]. If an object that was given up has
//! a pointer to the module's code or constants in it (a `fn`, a `&'static str`, a `dyn` object),
//! its holder must not use that any more; so who gives guards to other modules should see to it
//! that they come back in time. And the module that makes an object is the one that calls
//! [`UniquePercpuRef::new`]: code of others that the object points to is not kept by it.
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
//! [`resurrect`]: PercpuRef::resurrect
//! [`reinit`]: PercpuRef::reinit
//! [`switch_to_atomic`]: PercpuRef::switch_to_atomic
//! [`switch_to_percpu`]: PercpuRef::switch_to_percpu

// Kbuild says so to rustc, but not to rustdoc.
#![cfg_attr(any(doc, doctest), no_std)]
#![cfg_attr(doctest, feature(asm_goto))]

use core::{
    borrow::Borrow,
    marker::PhantomData,
    mem::{
        self,
        ManuallyDrop, //
    },
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
    sync::rcu::Guard,
    time::Delta, //
};

mod count;
mod foreign;
mod guard;
mod lookup;
pub mod percpu;
pub mod rcu;
mod unload;

use count::{
    Count,
    Start, //
};
use unload::Ops;

pub use foreign::Borrowed;
pub use guard::{
    PercpuRefBatch,
    PercpuRefGuard, //
};
pub use lookup::RcuPercpuRef;

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

        // Up to 7.2 a parameter's value is a reference.
        let seconds: u32 = *Borrow::borrow(&module_parameters::unload_timeout.value());
        try_pin_init!(Self {
            _notifier <- unload::Notifier::new(Delta::from_secs(i64::from(seconds))),
        }? Error)
    }
}

/// What can be counted, and what is to happen when the count has reached zero.
pub trait Counted: Send + Sync + Sized + 'static {
    /// Whether [`release`](Self::release) and the object's `Drop` may sleep. They then run in
    /// process context, in a workqueue, once the count is zero.
    ///
    /// Such a release must not wait for the end of other objects of this kind: they share the
    /// workqueue, which runs a limited number of them at a time. Nor may memory reclaim wait for
    /// it: the workqueue has no `WQ_MEM_RECLAIM`.
    ///
    /// Not for [`Reinit`] references: the object might live again before the release is told of its
    /// end.
    const MAY_SLEEP: bool = false;

    /// Runs when the last reference is gone. If the object lives [`Once`], it is then dropped.
    ///
    /// It runs exactly once in each life of a shared object, but not at all if a reference is
    /// leaked, or if the module that made the object is gone by then (see
    /// [Unloading](crate#unloading)). If somebody resurrects the object meanwhile, the next life
    /// may begin before this has returned. Nothing of the library is locked, and preemption is not
    /// disabled by it. Whatever may be done with the reference may be done in here, too; but who
    /// waits for this release waits for himself.
    ///
    /// Context: that of whoever drops the last reference. If this is the initial reference, it is
    /// softirq, or a kernel thread of RCU's with bottom halves disabled; for a [`Reinit`] reference
    /// it may also be that of [`kill`](PercpuRef::kill). So neither this nor the object's `Drop`
    /// may sleep, unless [`MAY_SLEEP`](Self::MAY_SLEEP) says so.
    #[doc(alias = "percpu_ref_func_t")]
    fn release(&self) {}
}

mod private {
    pub trait Sealed {}
}

/// How often the object of a reference lives: [`Once`] or [`Reinit`].
pub trait Kind: private::Sealed + 'static {}

/// The object lives once. It is dropped when its count falls to zero.
pub enum Once {}

/// The object may live more than once, and it may change its mode of counting. It is dropped with
/// its [`PercpuRef`], or with the last reference if that goes later.
#[doc(alias = "PERCPU_REF_ALLOW_REINIT")]
pub enum Reinit {}

impl private::Sealed for Once {}
impl private::Sealed for Reinit {}
impl Kind for Once {}
impl Kind for Reinit {}

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
        may_sleep: T::MAY_SLEEP,
        release: Self::release,
        drop: Self::drop,
        confirm: Self::confirm,
    };

    /// See [`Ops::release`].
    ///
    /// # Safety
    ///
    /// `object` is the address of a `Self` whose value is not dropped.
    unsafe fn release(object: NonNull<c_void>) {
        // SAFETY: By the function's requirement, the value is there.
        unsafe { &(*object.cast::<Self>().as_ptr()).value }.release();
    }

    /// See [`Ops::drop`].
    ///
    /// # Safety
    ///
    /// `object` is the address of a `Self` that nobody uses any more, with its value not dropped.
    unsafe fn drop(object: NonNull<c_void>) {
        // SAFETY: As the function requires. The value is not used after this.
        unsafe { (&raw mut (*object.cast::<Self>().as_ptr()).value).drop_in_place() };
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
pub struct UniquePercpuRef<T: Counted, K: Kind = Once>(
    ManuallyDrop<Pin<KBox<Inner<T>>>>,
    PhantomData<K>,
);

impl<T: Counted> UniquePercpuRef<T> {
    /// Allocates an object and a count of one, in per-CPU mode.
    ///
    /// Fails with `ENOMEM`, or with what `value` fails with; then nothing is left behind. Also with
    /// `ENODEV`, for a release or a callback that runs at the very end of its module's unloading,
    /// and for code that is built in and runs before the library is initialised
    /// (`device_initcall`).
    /// May sleep if `flags` allow it, and then needs process context.
    #[doc(alias = "percpu_ref_init")]
    pub fn new<E>(value: impl PinInit<T, E>, flags: Flags) -> Result<Self>
    where
        Error: From<E>,
    {
        Self::start(value, Start::Once, flags)
    }
}

/// These are otherwise like [`UniquePercpuRef::new`].
impl<T: Counted> UniquePercpuRef<T, Reinit> {
    /// Allocates an object that may live more than once, and a count of one, in per-CPU mode.
    #[doc(alias("percpu_ref_init", "PERCPU_REF_ALLOW_REINIT"))]
    pub fn new_reinit<E>(value: impl PinInit<T, E>, flags: Flags) -> Result<Self>
    where
        Error: From<E>,
    {
        Self::start_reinit(value, Start::Reinit, flags)
    }

    /// Allocates an object that may live more than once, and a count of one, in atomic mode. It
    /// stays in that until [`PercpuRef::switch_to_percpu`].
    #[doc(alias("percpu_ref_init", "PERCPU_REF_INIT_ATOMIC"))]
    pub fn new_atomic<E>(value: impl PinInit<T, E>, flags: Flags) -> Result<Self>
    where
        Error: From<E>,
    {
        Self::start_reinit(value, Start::Atomic, flags)
    }

    /// Allocates an object that is dead, with a count of zero. [`PercpuRef::reinit`] brings it to
    /// life, in per-CPU mode unless [`PercpuRef::switch_to_atomic`] is called before.
    #[doc(alias("percpu_ref_init", "PERCPU_REF_INIT_DEAD"))]
    pub fn new_dead<E>(value: impl PinInit<T, E>, flags: Flags) -> Result<Self>
    where
        Error: From<E>,
    {
        Self::start_reinit(value, Start::Dead, flags)
    }

    fn start_reinit<E>(value: impl PinInit<T, E>, start: Start, flags: Flags) -> Result<Self>
    where
        Error: From<E>,
    {
        const {
            assert!(
                !T::MAY_SLEEP,
                "the release of a Reinit reference runs at once"
            );
        }
        Self::start(value, start, flags)
    }
}

impl<T: Counted, K: Kind> UniquePercpuRef<T, K> {
    fn start<E>(value: impl PinInit<T, E>, start: Start, flags: Flags) -> Result<Self>
    where
        Error: From<E>,
    {
        let inner = try_pin_init!(Inner {
            count <- Count::new(&Inner::<T>::OPS, start, flags),
            value <- value,
        }? Error);
        let inner = KBox::try_pin_init(inner, flags)?;
        Ok(Self(ManuallyDrop::new(inner), PhantomData))
    }

    /// Undoes [`UniquePercpuRef::new`]; the same as dropping it.
    ///
    /// The object is dropped, [`Counted::release`] is not called, and the memory is free on return;
    /// unless the object has a `Drop` and the module that made it is gone, so that it has to be
    /// leaked. This is for the error paths of whoever sets up the object.
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

impl<T: Counted, K: Kind> Deref for UniquePercpuRef<T, K> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0.value
    }
}

impl<T: Counted + Unpin, K: Kind> DerefMut for UniquePercpuRef<T, K> {
    fn deref_mut(&mut self) -> &mut T {
        self.as_pin_mut().get_mut()
    }
}

impl<T: Counted, K: Kind> Drop for UniquePercpuRef<T, K> {
    fn drop(&mut self) {
        // The module that made the object may be gone, and then nothing of it may be called.
        let _running = if mem::needs_drop::<T>() {
            let Some(running) = self.0.count.enter_module() else {
                return;
            };
            Some(running)
        } else {
            None
        };
        // SAFETY: The box is not used after this, and what is in it is not moved.
        let inner = unsafe { Pin::into_inner_unchecked(ManuallyDrop::take(&mut self.0)) };
        // A box would free its memory by `krealloc()`, which takes longer than `kfree()`.
        let inner = KBox::into_raw(inner);
        // SAFETY: It came from a box, so it is valid and ours.
        unsafe { inner.drop_in_place() };
        // SAFETY: The memory of a `KBox` came from `kmalloc()`, and is not used after this.
        unsafe { kernel::bindings::kfree(inner.cast()) };
    }
}

/// A counted object, held by its owner.
///
/// Users of the object borrow this to get references of their own. The owner ends the object by
/// [`kill`](Self::kill), or by dropping this.
///
/// It does not itself give access to an object that lives [`Once`], which may be gone already: the
/// initial reference is put by the kill. Use [`try_get`](Self::try_get).
///
/// # Invariants
///
/// `inner` came from a pinned `KBox` and was shared, and owns one of the holds of its count, so the
/// memory is there; if `K` is [`Reinit`], which the count was then made for, so is the object.
#[doc(alias = "percpu_ref")]
pub struct PercpuRef<T: Counted, K: Kind = Once> {
    inner: NonNull<Inner<T>>,
    _kind: PhantomData<K>,
}

// SAFETY: `T` is `Send` and `Sync` by `Counted`, and all that a `PercpuRef` does may be done on any
// thread: references are counted atomically or by CPU, and the object may be dropped by any thread.
unsafe impl<T: Counted, K: Kind> Send for PercpuRef<T, K> {}

// SAFETY: As above.
unsafe impl<T: Counted, K: Kind> Sync for PercpuRef<T, K> {}

impl<T: Counted, K: Kind> From<UniquePercpuRef<T, K>> for PercpuRef<T, K> {
    /// Shares the object, which ends the right to take it back.
    fn from(unique: UniquePercpuRef<T, K>) -> Self {
        // SAFETY: The object stays where it is until it is freed.
        let inner = KBox::into_raw(unsafe { Pin::into_inner_unchecked(unique.into_pinned_box()) });

        // INVARIANT: Just made so; the count begins with a hold for this.
        Self {
            // SAFETY: A box is not null.
            inner: unsafe { NonNull::new_unchecked(inner) },
            _kind: PhantomData,
        }
    }
}

impl<T: Counted, K: Kind> PercpuRef<T, K> {
    fn count(&self) -> &Count {
        // SAFETY: By the type invariant, the memory is there.
        unsafe { &(*self.inner.as_ptr()).count }
    }

    /// Gets a reference, or `None` once the end of the object is confirmed. (Also if there were
    /// ever more than 2^61 references, so that the object is leaked and nobody knows their number.)
    ///
    /// After a kill this goes on to succeed until the confirmation; it never succeeds after that.
    /// (C's `percpu_ref_tryget()` goes on until the count is zero.)
    ///
    /// Any context but NMI. Orders no other memory access.
    #[doc(alias = "percpu_ref_tryget")]
    #[inline(always)]
    pub fn try_get(&self) -> Option<PercpuRefGuard<T>> {
        if !self.count().try_get(1) {
            return None;
        }
        // SAFETY: `try_get()` added a reference, which the guard owns.
        Some(unsafe { PercpuRefGuard::new(self.inner) })
    }

    /// Gets `n` references in one go, or `None` once the end of the object is confirmed, or if that
    /// were more than 2^61 references.
    ///
    /// Otherwise like [`try_get`](Self::try_get).
    #[doc(alias = "percpu_ref_tryget_many")]
    #[inline(always)]
    pub fn try_get_many(&self, n: usize) -> Option<PercpuRefBatch<T>> {
        if !self.count().try_get(n) {
            return None;
        }
        // SAFETY: `try_get()` added so many references, which the batch owns.
        Some(unsafe { PercpuRefBatch::new(self.inner, n) })
    }

    /// Gets a reference, or `None` once the reference was killed.
    ///
    /// Another CPU may take a moment to see the kill, until the confirmation at the latest.
    ///
    /// Any context but NMI. Orders no other memory access.
    #[doc(alias = "percpu_ref_tryget_live")]
    #[inline(always)]
    pub fn try_get_live(&self) -> Option<PercpuRefGuard<T>> {
        if !self.count().try_get_live() {
            return None;
        }
        // SAFETY: `try_get_live()` added a reference, which the guard owns.
        Some(unsafe { PercpuRefGuard::new(self.inner) })
    }

    /// The same as [`try_get_live`](Self::try_get_live), for who is inside an RCU read-side
    /// critical section and ports code from C. (There it saves another one. Here that is inlined
    /// and cheap.)
    #[doc(alias = "percpu_ref_tryget_live_rcu")]
    #[inline(always)]
    pub fn try_get_live_rcu(&self, _section: &Guard) -> Option<PercpuRefGuard<T>> {
        self.try_get_live()
    }

    /// Begins the end of the object: after a grace period no new references are given out, and when
    /// all existing ones are gone, the object is released.
    ///
    /// In atomic mode there is no grace period to wait for. Then all of this happens in here, and
    /// the release, too, if there are no other references. The same is possible at the end of a
    /// switch to atomic mode.
    ///
    /// Returns `true`, or if it was killed before, `false`; then it warns once and changes nothing.
    ///
    /// Does not wait, does not fail, and allocates nothing. Any context but NMI; for a [`Reinit`]
    /// reference, any that [`Counted::release`] may run in.
    #[doc(alias = "percpu_ref_kill")]
    pub fn kill(&self) -> bool {
        self.kill_and_call(None)
    }

    /// The same as [`kill`](Self::kill), but also calls `confirm` with the object, once, when no
    /// [`try_get`](Self::try_get) on any CPU will succeed any more, and before the release.
    ///
    /// What was done with a reference before is not thereby finished: others may hold theirs on.
    ///
    /// `confirm` runs in softirq, or in a kernel thread of RCU's with bottom halves disabled, or
    /// for a [`Reinit`] reference possibly in here, in an RCU read-side critical section. It must
    /// not sleep, nor switch or resurrect this reference, which would wait for it. It captures
    /// nothing, for a kill allocates nothing; what it needs is to be in the object.
    ///
    /// If this returns `false`, `confirm` is not called. Neither is it called if the module that
    /// made the object is gone by then, or if the one that it lies in is at its end already.
    #[doc(alias = "percpu_ref_kill_and_confirm")]
    pub fn kill_and_confirm(&self, confirm: fn(&T)) -> bool {
        self.kill_and_call(NonNull::new(confirm as *mut c_void))
    }

    /// Kills the reference and waits for the release: [`kill`](Self::kill), then
    /// [`wait_released`](Self::wait_released). Returns what the former does.
    #[doc(alias("percpu_ref_kill", "wait_for_completion"))]
    pub fn kill_and_wait(&self) -> bool {
        let killed = self.kill();
        self.wait_released();
        killed
    }

    fn kill_and_call(&self, confirm: Option<NonNull<c_void>>) -> bool {
        // SAFETY: By the type invariant this is a shared object, which `self` holds. If there is a
        // `confirm`, it is a `fn(&T)`.
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

    /// Whether the reference was killed and has no references any more, so that its release was
    /// called or is about to be.
    ///
    /// Any context. If so, all that was done with references is visible.
    #[doc(alias = "percpu_ref_is_zero")]
    pub fn is_zero(&self) -> bool {
        self.count().is_zero()
    }

    /// Waits until the release is over, or cannot be called because its module is gone. If the
    /// object lives [`Once`], it is dropped then.
    ///
    /// Somebody must kill it, and a thread that holds a [`PercpuRefGuard`] of it waits for itself.
    /// If a guard was leaked, or too many references were got, there is no release to wait for. If
    /// somebody resurrects it meanwhile, this waits on.
    ///
    /// Sleeps; process context. All that was done with references is visible after it.
    pub fn wait_released(&self) {
        self.count().wait_released();
    }
}

/// Only a [`Reinit`] reference has these.
impl<T: Counted> PercpuRef<T, Reinit> {
    /// The object, which is there as long as this is, dead or alive.
    pub fn value(&self) -> &T {
        // SAFETY: By the type invariant.
        unsafe { &(*self.inner.as_ptr()).value }
    }

    /// Counts in an atomic variable from now on, also in later lives, until
    /// [`switch_to_percpu`](Self::switch_to_percpu). Calls `confirm` when all CPUs do so.
    ///
    /// Does not wait for that, but for another switch that is under way, and for the confirmation
    /// of a kill. Process context; if neither can be the case, any but NMI.
    ///
    /// `confirm` is called as that of [`kill_and_confirm`](Self::kill_and_confirm) is; in here if
    /// the reference counts so already.
    #[doc(alias = "percpu_ref_switch_to_atomic")]
    pub fn switch_to_atomic(&self, confirm: fn(&T)) {
        // SAFETY: By the type invariant this is such an object, and `confirm` is a `fn(&T)`.
        unsafe {
            Count::switch_to_atomic(self.inner.cast(), NonNull::new(confirm as *mut c_void));
        }
    }

    /// Switches to atomic mode, and waits until all CPUs count so.
    ///
    /// Somebody else may switch back meanwhile.
    ///
    /// Sleeps; process context.
    #[doc(alias = "percpu_ref_switch_to_atomic_sync")]
    pub fn switch_to_atomic_sync(&self) {
        // SAFETY: By the type invariant this is such an object.
        unsafe { Count::switch_to_atomic(self.inner.cast(), None) };
        self.count().wait_switched();
    }

    /// Counts by CPU from now on; if the reference is dying, from its next life on.
    ///
    /// Waits as [`switch_to_atomic`](Self::switch_to_atomic) does, in the same contexts.
    #[doc(alias = "percpu_ref_switch_to_percpu")]
    pub fn switch_to_percpu(&self) {
        self.count().switch_to_percpu();
    }

    /// Brings a reference to life whose count is zero, with a new initial reference. The last
    /// release may still be running.
    ///
    /// Fails with `EINVAL` if it is alive, and with `EBUSY` if there are references; then nothing
    /// is changed.
    ///
    /// Waits for the confirmation of a kill, and for another call of this or of
    /// [`resurrect`](Self::resurrect). Process context; if neither can be the case, as in the
    /// release, any but NMI.
    #[doc(alias = "percpu_ref_reinit")]
    pub fn reinit(&self) -> Result {
        self.count().resurrect(true)
    }

    /// Brings a reference back to life, whether there are references left from the last life or
    /// not, with a new initial reference. If there are, that life goes on, and there is no release.
    ///
    /// Fails with `EINVAL` if it is alive; then nothing is changed. Waits as
    /// [`reinit`](Self::reinit) does, in the same contexts.
    #[doc(alias = "percpu_ref_resurrect")]
    pub fn resurrect(&self) -> Result {
        self.count().resurrect(false)
    }
}

impl<T: Counted, K: Kind> Drop for PercpuRef<T, K> {
    /// Kills the reference if nobody has. Does not wait for the release.
    ///
    /// Any context but NMI for an object that lives [`Once`]. For a [`Reinit`] one, any that
    /// [`Counted::release`] and the object's `Drop` may run in: if there are no references, both
    /// may happen in here. On PREEMPT_RT, not in a hard interrupt or with preemption disabled: this
    /// may free memory, and wakes up who waits for the release.
    #[doc(alias = "percpu_ref_exit")]
    fn drop(&mut self) {
        // SAFETY: By the type invariant.
        unsafe {
            Count::kill(self.inner.cast(), None);
            Count::drop_handle(self.inner.cast());
        }
    }
}

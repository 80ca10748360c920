// SPDX-License-Identifier: GPL-2.0

//! Per-CPU reference counts.
//!
//! A reference count that many CPUs use at once is a cache line that they fight over. Here each CPU
//! counts in memory of its own, so that taking and dropping a reference costs the same on one CPU
//! as on all of them. The price is that the count is not seen to fall to zero until the reference
//! is *killed*: then, after an RCU grace period, the CPUs' counts are added up and the count
//! becomes an ordinary atomic one, which reaches zero when the last reference is dropped.
//!
//! This suits objects that live long, are used all the time and are shut down once: a request
//! queue, a device, a control group. For objects that come and go, use [`Arc`].
//!
//! # The life of a reference
//!
//! | state | by | [`try_get`] | [`try_get_live`] | last [`PercpuRefGuard`] dropped |
//! |---|---|---|---|---|
//! | unshared | [`UniquePercpuRef::new`] | does not exist | does not exist | does not exist |
//! | live | [`PercpuRef::from`] | succeeds | succeeds | not noticed |
//! | dying | [`kill`], or drop of [`PercpuRef`] | succeeds | fails when seen | not noticed |
//! | closed | a grace period | succeeds | fails | [`Counted::release`], `T` is dropped |
//! | zero | last reference dropped | fails | fails | there is none |
//!
//! An unshared reference can be taken back ([`UniquePercpuRef::cancel_init`]). After it was shared,
//! the only way is forward through this table. The memory is freed when `T` and the [`PercpuRef`]
//! are dropped. It is freed a grace period after that if it was ever in an [`RcuPercpuRef`], if the
//! object may live more than once, on PREEMPT_RT, and with `CONFIG_RUST_PERCPU_REF_DEBUG`.
//!
//! # More than one life
//!
//! A [`PercpuRef<T, Reinit>`](Reinit) can be brought back to life ([`resurrect`], [`reinit`]), can
//! be frozen and thawed ([`freeze`]), and can be told to count in an atomic variable while it lives
//! ([`switch_to_atomic`]), for an object that may be gone again soon: a kill in atomic mode needs
//! no grace period. Its object is there as long as the [`PercpuRef`] is; the release says only that
//! a life is over.
//!
//! | state | [`kill`] | [`switch_to_atomic`] | [`switch_to_percpu`] | [`resurrect`] |
//! |---|---|---|---|---|
//! | per-CPU | grace period, then closed | grace period, then atomic | nothing | `EINVAL` |
//! | switching | closed after that | waits | waits, then per-CPU | waits, then `EINVAL` |
//! | atomic | closed at once | nothing | per-CPU | `EINVAL` |
//! | dying | `false`, a warning | waits, next life | waits, next life | waits, then lives |
//! | closed | `false`, a warning | next life | next life | lives |
//! | frozen | dead when thawed | next life | next life | `EINVAL`; if killed, next thaw |
//!
//! *Next life* means that the reference will count in that mode when it lives again. Unless it was
//! told to switch to atomic mode, it then counts by CPU. *Closed* is what the confirmation of a
//! kill confirms: no [`try_get_live`] succeeds any more.
//!
//! # Unloading
//!
//! The exit function of the module that makes an object kills the object by dropping its
//! [`PercpuRef`]. After the exit function has returned, the library waits for the module's objects
//! to be released, and logs what it waits for, and how many of them were never killed. It then
//! waits until each task that was preempted in the module has moved on (`synchronize_rcu_tasks()`),
//! so that the function that dropped the last guard can return.
//!
//! That is all that the library waits for. **A module must still stop whatever runs its code**
//! before its exit function returns, as without this library: flush its work items, delete its
//! timers, stop its threads, unregister its callbacks. In particular, the wait ends at the release,
//! and not when the function that dropped the last guard is done with other things: a work item
//! that goes on to sleep after `drop(guard)` runs in freed memory.
//! `samples/rust/rust_percpu_ref.rs` shows how to do it.
//!
//! The wait has a bound, of 10 seconds in the kernel's own tree, and else of `unload_timeout`
//! seconds (a parameter of the library). After it, the objects that still have references are given
//! up: they stay in memory, and nothing of the module is called for them. A release that is running
//! already is waited for until it returns.
//!
//! No type can tell two things, as with [`Arc`]. If an object that was given up has a pointer to
//! the module's code or constants in it (a `fn`, a `&'static str`, a `dyn` object), its holder must
//! not use that any more; so a module that gives guards to other modules must get them back in
//! time. And the module that makes an object is the one that calls [`UniquePercpuRef::new`]: code
//! of other modules that the object points to is not kept by it.
//!
//! # Examples
//!
//! ```
//! use kernel::prelude::*;
//! use kernel::sync::percpu_ref::{Counted, PercpuRef, UniquePercpuRef};
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
//! [`Arc`]: crate::sync::Arc
//! [`try_get`]: PercpuRef::try_get
//! [`try_get_live`]: PercpuRef::try_get_live
//! [`freeze`]: PercpuRef::freeze
//! [`kill`]: PercpuRef::kill
//! [`resurrect`]: PercpuRef::resurrect
//! [`reinit`]: PercpuRef::reinit
//! [`switch_to_atomic`]: PercpuRef::switch_to_atomic
//! [`switch_to_percpu`]: PercpuRef::switch_to_percpu

use crate::{
    alloc::Flags,
    bindings,
    fmt,
    pr_warn_once,
    prelude::*,
    sync::rcu::Guard,
    time::Delta, //
};
use core::{
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

mod count;
mod foreign;
mod freeze;
mod guard;
mod holder;
#[doc(hidden)]
pub mod listing;
mod lookup;
mod release;
mod switch;
#[doc(hidden)]
pub mod unload;
mod value;
mod wait;
mod word;

pub use foreign::Borrowed;
pub use freeze::Frozen;
pub use guard::{
    LockdepSection,
    PercpuRefBatch,
    PercpuRefGuard, //
};
pub use lookup::RcuPercpuRef;

use count::{
    Count,
    Start, //
};
use unload::Ops;
use wait::Until;

/// An object that can be counted, and what it is told of its end.
pub trait Counted: Send + Sync + Sized + 'static {
    /// Whether [`release`](Self::release) and the object's `Drop` may sleep. They then run in
    /// process context, in a kernel thread of the library's.
    ///
    /// Each such release has a thread, so it may wait for the release of other objects, of this
    /// type as well. Memory reclaim must not wait for it, since the thread needs memory.
    ///
    /// While the module of the object is being unloaded, the kernel's chain of module notifiers is
    /// held until the release returns. So a release that may run then must not register or
    /// unregister a module notifier, and must not wait for a module to be loaded or unloaded: that
    /// deadlocks, and all loading and unloading of modules with it. lockdep reports it. The remedy
    /// is to call [`PercpuRef::kill_and_wait`] in the module's exit function, where nothing is
    /// held.
    ///
    /// Not for [`Reinit`] references: the object might live again before the release is told of its
    /// end.
    const MAY_SLEEP: bool = false;

    /// Whether the end of such an object waits for RCU Tasks. Then getting and putting a reference
    /// takes half of the instructions: preemption is not disabled.
    ///
    /// For objects that are used all the time and end once, as a network device. The price is the
    /// time from the kill to its confirmation and to the release: some tenths of a second, and as
    /// long as any task of the system runs in the kernel and does not sleep, return to user space
    /// or call `cond_resched_tasks_rcu_qs()`. So a task that polls for the end must sleep, and
    /// `cond_resched()` is not enough. RCU Tasks is not made for the end of many objects a second.
    /// If the object was ever in an [`RcuPercpuRef`], its memory is freed after as long a time
    /// again.
    ///
    /// A kernel that does not preempt, or has no `CONFIG_TASKS_RCU`, uses RCU alone.
    ///
    /// Not for [`Reinit`] references.
    #[doc(alias("call_rcu_tasks", "pcpu_refcnt"))]
    const RCU_TASKS: bool = false;

    /// Tells the object that its last reference is gone. If the object lives [`Once`], it is then
    /// dropped.
    ///
    /// Called exactly once in each life of a shared object, but not if a reference is leaked, or if
    /// the module that made the object is gone by then (see [Unloading](self#unloading)). If the
    /// object is resurrected meanwhile, the next life may begin before this has returned. All
    /// operations on the reference are allowed here, except waiting for this release, which
    /// deadlocks.
    ///
    /// # Context
    ///
    /// Called where the last reference is dropped. If that is the initial reference, it is softirq
    /// or a kernel thread of RCU's with bottom halves disabled; for a [`Reinit`] reference it may
    /// also be the caller of [`kill`](PercpuRef::kill). So neither this nor the object's `Drop` may
    /// sleep, unless [`MAY_SLEEP`](Self::MAY_SLEEP) says so. The library holds no lock and does not
    /// disable preemption.
    #[doc(alias = "percpu_ref_func_t")]
    fn release(&self) {}

    /// Confirms a kill: no [`PercpuRef::try_get_live`] on any CPU will succeed, until the reference
    /// is resurrected. Called once for each [`PercpuRef::kill_and_confirm`] that returned `true`,
    /// before the release of the life that
    /// the kill ends. The life of a frozen reference has ended already, and a wait for the release
    /// does not wait for its confirmation.
    ///
    /// References that were got before may still be held, and [`PercpuRef::try_get`] succeeds as
    /// long as there is one.
    ///
    /// Not called if the module that made the object is gone by then.
    ///
    /// # Context
    ///
    /// Called from softirq or a kernel thread of RCU's with bottom halves disabled; for a
    /// [`Reinit`] reference also from [`PercpuRef::kill_and_confirm`] or another operation on the
    /// reference. Must not sleep. Must not switch, freeze, thaw or resurrect this reference, since
    /// those wait for the confirmation.
    #[doc(alias = "confirm_kill")]
    fn confirmed(&self) {}

    /// Confirms a switch: all CPUs count in the atomic variable. Called once for each
    /// [`PercpuRef::switch_to_atomic`].
    ///
    /// Not called if the module that made the object is gone by then.
    ///
    /// # Context
    ///
    /// Called from softirq or a kernel thread of RCU's with bottom halves disabled, or from
    /// [`PercpuRef::switch_to_atomic`]. Must not sleep. Must not switch, freeze, thaw or resurrect
    /// this reference, since those wait for the confirmation. May kill it.
    #[doc(alias = "confirm_switch")]
    fn switched(&self) {}
}

mod private {
    pub trait Sealed {}
}

/// How often the object of a reference lives: [`Once`] or [`Reinit`].
pub trait Kind: private::Sealed + 'static {}

/// The object lives once. It is dropped when its count falls to zero.
#[derive(Debug)]
pub enum Once {}

/// The object may live more than once, and it may change its mode of counting. It is dropped with
/// its [`PercpuRef`], or with the last reference if that goes later.
#[doc(alias = "PERCPU_REF_ALLOW_REINIT")]
#[derive(Debug)]
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
    /// Whether gets and puts are in a [`Section::Tasks`](count::Section).
    ///
    /// If the kernel does not preempt, disabling preemption costs nothing, but RCU Tasks may be
    /// there.
    const TASKS: bool = T::RCU_TASKS && cfg!(all(CONFIG_TASKS_RCU, CONFIG_PREEMPTION));

    const OPS: Ops = Ops {
        name: core::any::type_name::<T>,
        may_sleep: T::MAY_SLEEP,
        release: Self::release,
        drop: Self::drop,
        confirmed: Self::confirmed,
        switched: Self::switched,
    };

    /// See [`Ops::release`].
    ///
    /// # Safety
    ///
    /// `object` must be the address of a `Self` whose value is not dropped.
    unsafe fn release(object: NonNull<c_void>) {
        // SAFETY: By the safety requirements of this function, the value is there.
        unsafe { &(*object.cast::<Self>().as_ptr()).value }.release();
    }

    /// See [`Ops::drop`].
    ///
    /// # Safety
    ///
    /// `object` must be the address of a `Self` whose value is not dropped, and is not used after
    /// this.
    unsafe fn drop(object: NonNull<c_void>) {
        // SAFETY: By the safety requirements of this function, the value is there, and is not used
        // after this.
        unsafe { (&raw mut (*object.cast::<Self>().as_ptr()).value).drop_in_place() };
    }

    /// See [`Ops::confirmed`].
    ///
    /// # Safety
    ///
    /// `object` must be the address of a `Self` whose value is not dropped.
    unsafe fn confirmed(object: NonNull<c_void>) {
        // SAFETY: By the safety requirements of this function, the value is there.
        unsafe { &(*object.cast::<Self>().as_ptr()).value }.confirmed();
    }

    /// See [`Ops::switched`].
    ///
    /// # Safety
    ///
    /// `object` must be the address of a `Self` whose value is not dropped.
    unsafe fn switched(object: NonNull<c_void>) {
        // SAFETY: By the safety requirements of this function, the value is there.
        unsafe { &(*object.cast::<Self>().as_ptr()).value }.switched();
    }
}

/// A counted object that is not shared yet.
///
/// It can be changed, and it can be taken back: when this is dropped, the object is dropped without
/// a call to [`Counted::release`], and its memory is free on return. Made into a [`PercpuRef`] it
/// can be shared.
#[doc(alias = "percpu_ref")]
#[must_use = "if unused, the object is dropped again at once"]
pub struct UniquePercpuRef<T: Counted, K: Kind = Once>(
    ManuallyDrop<Pin<KBox<Inner<T>>>>,
    PhantomData<K>,
);

impl<T: Counted> UniquePercpuRef<T> {
    /// Allocates an object and a count of one, in per-CPU mode.
    ///
    /// Fails with `ENOMEM`, or with the error of `value`; then nothing is left behind. Fails with
    /// `ENODEV` in code of a module that was unloaded up to the point where its memory is about to
    /// be freed.
    ///
    /// # Context
    ///
    /// May sleep if `flags` allow it, and then must be called from process context.
    #[doc(alias = "percpu_ref_init")]
    pub fn new<E>(value: impl PinInit<T, E>, flags: Flags) -> Result<Self>
    where
        Error: From<E>,
    {
        let start = if Inner::<T>::TASKS {
            Start::OnceTasks
        } else {
            Start::Once
        };
        Self::start(value, start, flags)
    }
}

/// These fail, and may sleep, as [`UniquePercpuRef::new`] does.
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
            assert!(
                !T::RCU_TASKS,
                "a Reinit reference does not wait for RCU Tasks"
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

    /// Undoes [`UniquePercpuRef::new`], as dropping it does.
    ///
    /// The object is dropped, [`Counted::release`] is not called, and the memory is free on return.
    /// If the object has a `Drop` and the module that made it is gone, it is leaked. This is for
    /// error paths between the allocation of the object and its first use.
    ///
    /// # Context
    ///
    /// Can be called from any context that the object may be dropped in, except NMI. On PREEMPT_RT,
    /// must not be called from hard interrupts or with preemption disabled, since it frees memory.
    #[doc(alias("percpu_ref_cancel_init", "percpu_ref_exit"))]
    pub fn cancel_init(self) {}

    /// Undoes [`UniquePercpuRef::new`] and returns the object, in the contexts of
    /// [`cancel_init`](Self::cancel_init).
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

    /// Returns the object, pinned and mutable.
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

impl<T: Counted, K: Kind> fmt::Debug for UniquePercpuRef<T, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.count.fmt_as::<T>("UniquePercpuRef", f)
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
        unsafe { bindings::kfree(inner.cast()) };
    }
}

/// A counted object, held by its owner.
///
/// Users of the object borrow this to get references of their own. The owner ends the object by
/// [`kill`](Self::kill), or by dropping this.
///
/// It does not itself give access to an object that lives [`Once`], which may be gone already: the
/// initial reference is put by the kill. Use [`try_get`](Self::try_get), which succeeds as long as
/// there are references, to reach the object between the kill and the release: for example to tell
/// the requests under way to abort.
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

// SAFETY: All that is done by `&PercpuRef` is atomic or done by the local CPU, and `T` is `Sync`.
unsafe impl<T: Counted, K: Kind> Sync for PercpuRef<T, K> {}

impl<T: Counted, K: Kind> From<UniquePercpuRef<T, K>> for PercpuRef<T, K> {
    /// Shares the object, which ends the right to take it back.
    #[cfg_attr(CONFIG_RUST_PERCPU_REF_DEBUG, track_caller)]
    fn from(unique: UniquePercpuRef<T, K>) -> Self {
        // SAFETY: The object stays where it is until it is freed.
        let inner = KBox::into_raw(unsafe { Pin::into_inner_unchecked(unique.into_pinned_box()) });
        // SAFETY: A box is not null.
        let inner = unsafe { NonNull::new_unchecked(inner) };
        let holder = holder::Holder::new(holder::Kind::Object, inner.cast(), 1);
        // SAFETY: No other thread has the object yet, but a reader of the records.
        unsafe { (*inner.as_ptr()).count.holder.get().write(holder) };

        // INVARIANT: Just made so; the count begins with a hold for this.
        Self {
            inner,
            _kind: PhantomData,
        }
    }
}

impl<T: Counted, K: Kind> PercpuRef<T, K> {
    fn count(&self) -> &Count {
        // SAFETY: By the type invariant, the memory is there.
        unsafe { &(*self.inner.as_ptr()).count }
    }

    /// Tries to get a reference. Fails if there are no references any more, so that the object is
    /// released or about to be.
    ///
    /// A kill does not make this fail, nor does its confirmation, as long as there are references:
    /// use [`try_get_live`](Self::try_get_live) to begin something new, and this to get at
    /// something that was begun. In atomic mode and after the kill, also fails if there were ever
    /// more than 2^60 references, so that the object is leaked.
    ///
    /// Orders no other memory access.
    ///
    /// # Context
    ///
    /// Can be called from any context in which RCU is watching, except NMI.
    #[doc(alias = "percpu_ref_tryget")]
    #[inline(always)]
    #[cfg_attr(CONFIG_RUST_PERCPU_REF_DEBUG, track_caller)]
    #[must_use = "if unused, the reference is put again at once"]
    pub fn try_get(&self) -> Option<PercpuRefGuard<T>> {
        if !self.count().try_get(1, Inner::<T>::TASKS) {
            return None;
        }
        // SAFETY: `try_get()` added a reference, which the guard owns.
        Some(unsafe { PercpuRefGuard::new(self.inner) })
    }

    /// Tries to get `n` references at once. Fails as [`try_get`](Self::try_get) does, and if the
    /// sum were more than 2^60 references.
    #[doc(alias = "percpu_ref_tryget_many")]
    #[inline(always)]
    #[cfg_attr(CONFIG_RUST_PERCPU_REF_DEBUG, track_caller)]
    #[must_use = "if unused, the references are put again at once"]
    pub fn try_get_many(&self, n: usize) -> Option<PercpuRefBatch<T>> {
        if !self.count().try_get(n, Inner::<T>::TASKS) {
            return None;
        }
        // SAFETY: `try_get()` added `n` references, which the batch owns.
        Some(unsafe { PercpuRefBatch::new(self.inner, n) })
    }

    /// Tries to get a reference. Fails if the reference was killed or is frozen.
    ///
    /// Another CPU may take a moment to see the kill. After the confirmation
    /// ([`Counted::confirmed`]), and after [`freeze`](PercpuRef::freeze) has returned, this fails
    /// for certain.
    ///
    /// Orders no other memory access.
    ///
    /// # Context
    ///
    /// Can be called from any context in which RCU is watching, except NMI.
    #[doc(alias = "percpu_ref_tryget_live")]
    #[inline(always)]
    #[cfg_attr(CONFIG_RUST_PERCPU_REF_DEBUG, track_caller)]
    #[must_use = "if unused, the reference is put again at once"]
    pub fn try_get_live(&self) -> Option<PercpuRefGuard<T>> {
        if !self.count().try_get_live(1, Inner::<T>::TASKS) {
            return None;
        }
        // SAFETY: `try_get_live()` added a reference, which the guard owns.
        Some(unsafe { PercpuRefGuard::new(self.inner) })
    }

    /// Tries to get a reference as [`try_get_live`](Self::try_get_live) does, for code ported from
    /// C that is inside an RCU read-side critical section. In C this saves another critical
    /// section. Here that is inlined and cheap.
    #[doc(alias = "percpu_ref_tryget_live_rcu")]
    #[inline(always)]
    #[cfg_attr(CONFIG_RUST_PERCPU_REF_DEBUG, track_caller)]
    #[must_use = "if unused, the reference is put again at once"]
    pub fn try_get_live_rcu(&self, _section: &Guard) -> Option<PercpuRefGuard<T>> {
        self.try_get_live()
    }

    /// Begins the end of the object: after a grace period [`try_get_live`](Self::try_get_live)
    /// fails on all CPUs, and when all references are gone, the object is released.
    ///
    /// In atomic mode there is no grace period to wait for. Then all of this happens in here,
    /// including the release if there are no other references. The same is possible at the end of a
    /// switch to atomic mode. A frozen reference stays dead when it is thawed.
    ///
    /// Returns `true` if this call killed the reference, and `false` if it was killed already. A
    /// second kill changes nothing, and warns once.
    ///
    /// Does not wait, does not fail, and allocates nothing. Orders no access after it.
    ///
    /// # Context
    ///
    /// Can be called from any context except NMI; for a [`Reinit`] reference, from any that
    /// [`Counted::release`] may run in.
    #[doc(alias = "percpu_ref_kill")]
    #[track_caller]
    pub fn kill(&self) -> bool {
        self.kill_or_warn(false)
    }

    /// Kills the reference as [`kill`](Self::kill) does, and has [`Counted::confirmed`] called,
    /// once, when no [`try_get_live`](Self::try_get_live) on any CPU will succeed any more, and
    /// before the release.
    ///
    /// If this returns `false`, the confirmation is not called.
    ///
    /// # Context
    ///
    /// As for [`kill`](Self::kill). For a [`Reinit`] reference, the confirmation may be called in
    /// here.
    #[doc(alias = "percpu_ref_kill_and_confirm")]
    #[track_caller]
    pub fn kill_and_confirm(&self) -> bool {
        self.kill_or_warn(true)
    }

    /// Kills the reference and waits for the release: [`kill`](Self::kill), then
    /// [`wait_released`](Self::wait_released). Returns what [`kill`](Self::kill) does.
    #[doc(alias("percpu_ref_kill", "wait_for_completion"))]
    #[track_caller]
    pub fn kill_and_wait(&self) -> bool {
        let killed = self.kill();
        self.wait_released();
        killed
    }

    /// Kills the reference as [`kill`](Self::kill) does, unless it was killed already, and waits as
    /// [`wait_released_timeout`](Self::wait_released_timeout) does.
    ///
    /// After `ETIMEDOUT` the reference is still killed; any thread may wait again.
    #[doc(alias("percpu_ref_kill", "wait_for_completion_timeout"))]
    pub fn kill_and_wait_timeout(&self, timeout: Delta) -> Result {
        self.kill_quietly(false);
        self.wait_released_timeout(timeout)
    }

    /// Kills the reference as [`kill`](Self::kill) does, unless it was killed already, and waits as
    /// [`wait_released_killable`](Self::wait_released_killable) does.
    ///
    /// After `EINTR` the reference is still killed; any thread may wait again.
    #[doc(alias("percpu_ref_kill", "wait_for_completion_killable"))]
    pub fn kill_and_wait_killable(&self) -> Result {
        self.kill_quietly(false);
        self.wait_released_killable()
    }

    fn kill_quietly(&self, confirm: bool) -> bool {
        // SAFETY: By the type invariant, this is a shared object, and `self` its handle.
        unsafe { Count::kill(self.inner.cast(), confirm) }
    }

    #[track_caller]
    fn kill_or_warn(&self, confirm: bool) -> bool {
        let killed = self.kill_quietly(confirm);
        if !killed {
            let caller = core::panic::Location::caller();
            pr_warn_once!(
                "{}:{}: PercpuRef<{}> is killed a second time\n",
                caller.file(),
                caller.line(),
                core::any::type_name::<T>()
            );
        }
        killed
    }

    /// Returns whether the reference was killed or is frozen. If nothing else orders the two, the
    /// answer may be old.
    ///
    /// # Context
    ///
    /// Can be called from any context.
    #[doc(alias = "percpu_ref_is_dying")]
    pub fn is_dying(&self) -> bool {
        self.count().is_dying()
    }

    /// Returns whether the reference is closed and has no references, so that no
    /// [`try_get`](Self::try_get) succeeds. Its release was called or is about to be; the exception
    /// is a reference made by [`UniquePercpuRef::new_dead`], which begins so without a release.
    ///
    /// If it returns `true`, all that was done with references is visible.
    ///
    /// # Context
    ///
    /// Can be called from any context.
    #[doc(alias = "percpu_ref_is_zero")]
    pub fn is_zero(&self) -> bool {
        self.count().is_zero()
    }

    /// Returns the number of references, not including the initial one, if it is known: in atomic
    /// mode, and when the reference is closed. In per-CPU mode and during a switch it is `None`,
    /// since only the sum of all counters would tell.
    ///
    /// The answer may be old at once.
    ///
    /// # Context
    ///
    /// Can be called from any context.
    pub fn references(&self) -> Option<usize> {
        self.count().references()
    }

    /// Returns whether both are handles of the same object.
    pub fn ptr_eq(&self, other: &Self) -> bool {
        self.inner == other.inner
    }

    /// Returns whether `guard` is a reference to the object of this handle.
    pub fn is_of(&self, guard: &PercpuRefGuard<T>) -> bool {
        self.inner == guard.inner()
    }

    /// Waits until the release has returned, or cannot be called because its module is gone. An
    /// object that lives [`Once`] is dropped then.
    ///
    /// The reference must be killed by some thread. A thread that holds a [`PercpuRefGuard`] of the
    /// object waits for itself. If a guard was leaked, or too many references were got, there is no
    /// release to wait for. If the reference is resurrected meanwhile, this goes on to wait.
    ///
    /// A wait that lasts for ten seconds is logged, and then at twice the interval each time: the
    /// task, the type, the time since the kill, whether the reference is closed, and how many
    /// references are left.
    ///
    /// All that was done with references is visible after it.
    ///
    /// # Context
    ///
    /// Sleeps, so must be called from process context. Cannot be interrupted: see
    /// [`wait_released_killable`](Self::wait_released_killable).
    pub fn wait_released(&self) {
        // Without a bound, the wait does not fail.
        let _ = self.count().wait_released(Until::Done, None);
    }

    /// Waits as [`wait_released`](Self::wait_released) does, but for `timeout` at most, and then
    /// fails with `ETIMEDOUT`.
    #[doc(alias = "wait_for_completion_timeout")]
    pub fn wait_released_timeout(&self, timeout: Delta) -> Result {
        self.count().wait_released(Until::Done, Some(timeout))
    }

    /// Waits as [`wait_released`](Self::wait_released) does, but fails with `EINTR` if the task
    /// gets a fatal signal.
    #[doc(alias = "wait_for_completion_killable")]
    pub fn wait_released_killable(&self) -> Result {
        self.count().wait_released(Until::Killed, None)
    }
}

impl<T: Counted, K: Kind> fmt::Debug for PercpuRef<T, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.count().fmt_as::<T>("PercpuRef", f)
    }
}

/// Only a [`Reinit`] reference has these.
impl<T: Counted> PercpuRef<T, Reinit> {
    /// Returns the object, which is there as long as this is, dead or alive.
    pub fn value(&self) -> &T {
        // SAFETY: By the type invariant, the object is there.
        unsafe { &(*self.inner.as_ptr()).value }
    }

    /// Counts in an atomic variable from now on, also in later lives, until
    /// [`switch_to_percpu`](Self::switch_to_percpu). Has [`Counted::switched`] called when all CPUs
    /// do so; in here if the reference counts so already.
    ///
    /// Does not wait for that, but for another switch that is under way, and for the confirmation
    /// of a kill.
    ///
    /// # Context
    ///
    /// Must be called from process context. If neither of the two can be under way, can be called
    /// from any context except NMI.
    #[doc(alias = "percpu_ref_switch_to_atomic")]
    pub fn switch_to_atomic(&self) {
        // SAFETY: By the type invariant, this is such an object, and `self` its handle.
        unsafe { Count::switch_to_atomic(self.inner.cast(), true) };
    }

    /// Switches to atomic mode, and waits until all CPUs count so. Does not call
    /// [`Counted::switched`].
    ///
    /// Another thread may switch back meanwhile.
    ///
    /// # Context
    ///
    /// Sleeps, so must be called from process context.
    #[doc(alias = "percpu_ref_switch_to_atomic_sync")]
    pub fn switch_to_atomic_sync(&self) {
        // SAFETY: By the type invariant, this is such an object, and `self` its handle.
        unsafe { Count::switch_to_atomic(self.inner.cast(), false) };
        self.count().wait_switched();
    }

    /// Counts by CPU from now on; if the reference is dying, from its next life on.
    ///
    /// Waits as [`switch_to_atomic`](Self::switch_to_atomic) does, in the same contexts.
    #[doc(alias = "percpu_ref_switch_to_percpu")]
    pub fn switch_to_percpu(&self) {
        self.count().switch_to_percpu();
    }

    /// Brings a reference to life whose count is zero, with a new initial reference. The release of
    /// the last life may still be running, or be about to. A frozen reference lives when it is
    /// thawed.
    ///
    /// Fails with `EINVAL` if it was not killed, and with `EBUSY` if there are references; then
    /// nothing is changed.
    ///
    /// Waits for the confirmation of a kill, and for another call of this or of
    /// [`resurrect`](Self::resurrect).
    ///
    /// # Context
    ///
    /// Must be called from process context. If nothing can be under way that it would wait for, can
    /// be called from any context except NMI. That is so in [`Counted::release`], unless another
    /// thread switches, resurrects, or confirms the kill of a frozen reference at the same time.
    #[doc(alias = "percpu_ref_reinit")]
    pub fn reinit(&self) -> Result {
        // SAFETY: By the type invariant, this is such an object, and `self` its handle.
        unsafe { Count::resurrect(self.inner.cast(), true) }
    }

    /// Brings a reference back to life, whether there are references left from the last life or
    /// not, with a new initial reference. If there are, that life goes on, and there is no release.
    /// A frozen reference lives when it is thawed.
    ///
    /// Fails with `EINVAL` if it was not killed; then nothing is changed. Waits as
    /// [`reinit`](Self::reinit) does, in the same contexts.
    #[doc(alias = "percpu_ref_resurrect")]
    pub fn resurrect(&self) -> Result {
        // SAFETY: By the type invariant, this is such an object, and `self` its handle.
        unsafe { Count::resurrect(self.inner.cast(), false) }
    }

    /// Freezes the reference: ends its life as a kill does, waits until all references are gone and
    /// the release has returned, and keeps it so as long as the returned guard exists.
    ///
    /// Guards nest. Any number of threads may freeze the reference at the same time; when the last
    /// guard is dropped, the reference lives again, in the mode that was asked for last. A kill
    /// meanwhile makes it stay dead, until it is resurrected.
    ///
    /// A wait that lasts is logged as in [`wait_released`](Self::wait_released).
    ///
    /// # Context
    ///
    /// Sleeps, so must be called from process context. A thread that holds a [`PercpuRefGuard`] of
    /// the object waits for itself.
    #[doc(alias("blk_mq_freeze_queue", "percpu_ref_kill", "percpu_ref_resurrect"))]
    #[cfg_attr(CONFIG_RUST_PERCPU_REF_DEBUG, track_caller)]
    pub fn freeze(&self) -> Frozen<T> {
        // SAFETY: By the type invariant, this is such an object, and `self` its handle.
        unsafe { Frozen::new(self.inner) }
    }
}

impl<T: Counted, K: Kind> Drop for PercpuRef<T, K> {
    /// Kills the reference unless it was killed already. Does not wait for the release.
    ///
    /// # Context
    ///
    /// Can be called from any context except NMI for an object that lives [`Once`]. For a
    /// [`Reinit`] one, from any that [`Counted::release`] and the object's `Drop` may run in, since
    /// both may be called in here if there are no references.
    #[doc(alias = "percpu_ref_exit")]
    fn drop(&mut self) {
        self.kill_quietly(false);
        // SAFETY: By the type invariant, this is a shared object, and `self` its handle, which is
        // not used after this.
        unsafe { Count::drop_handle(self.inner.cast()) };
    }
}

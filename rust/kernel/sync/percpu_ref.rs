// SPDX-License-Identifier: GPL-2.0

//! Per-CPU reference counts.
//!
//! A [`PercpuRef`] counts the references to an object on many CPUs without a shared cache line.
//! Each CPU counts in its own memory, so getting and putting a reference costs the same on one CPU
//! as on all of them. In return, the count cannot be seen to reach zero until the reference is
//! *killed*. After an RCU grace period that follows the kill, the per-CPU counters are added up and
//! the count becomes an atomic variable, which reaches zero when the last reference is put.
//!
//! Use it for an object that lives long, is used on many CPUs and is shut down once: a request
//! queue, a device, a control group. Use [`Arc`] for objects that come and go.
//!
//! # States
//!
//! ```text
//!            From                  kill(), drop            grace period
//! unshared ---------> live -----------------------> dying -------------> closed
//!     |                 ^                                                  |
//!     |                 | resurrect()                                      | last
//!     | cancel_init(),  +--------------------------------------------------+ reference
//!     | drop            | resurrect(), reinit()                            | put
//!     |                 |                                                  v
//!     |                 +------------------------------------------------ zero
//!     |                                                                    |
//!     |                     object and PercpuRef dropped                   |
//!     +-----------------------------> freed <------------------------------+
//! ```
//!
//! | state | meaning | [`try_get`] | [`try_get_live`] | last [`PercpuRefGuard`] dropped |
//! |---|---|---|---|---|
//! | *unshared* | a [`UniquePercpuRef`] owns the object | - | - | - |
//! | *live* | the object can be used | succeeds | succeeds | not noticed |
//! | *dying* | killed or frozen | succeeds | fails once the CPU sees it | not noticed |
//! | *closed* | confirmed ([`Counted::confirmed`]) | succeeds | fails | next state: *zero* |
//! | *zero* | released ([`Counted::release`]) | fails | fails | - |
//! | *freed* | the memory is free | - | - | - |
//!
//! A *life* of an object lasts from *live* to *zero*. An object of the kind [`Once`] has one life.
//! It is dropped after its release. An object of the kind [`Reinit`] can have more than one life,
//! by [`resurrect`] and [`reinit`]. It is dropped together with its [`PercpuRef`].
//!
//! The memory is freed when the object and the [`PercpuRef`] have been dropped. It is freed only
//! after another grace period if the object was ever in an [`RcuPercpuRef`], if the object is of
//! the kind [`Reinit`], on PREEMPT_RT, and with `CONFIG_RUST_PERCPU_REF_DEBUG`.
//!
//! # Types
//!
//! | task | type |
//! |---|---|
//! | make an object countable | [`Counted`] |
//! | allocate and initialise an object | [`UniquePercpuRef`] |
//! | share, kill and wait for an object | [`PercpuRef`] |
//! | hold one reference | [`PercpuRefGuard`] |
//! | hold many references, counted at once | [`PercpuRefBatch`] |
//! | find and replace an object without a lock | [`RcuPercpuRef`] |
//! | stop an object for a time, and resurrect it | [`PercpuRef<T, Reinit>`](Reinit), [`Frozen`] |
//! | pass a reference through C | [`ForeignOwnable`](crate::types::ForeignOwnable), [`Borrowed`] |
//! | report a deadlock with a waiter to lockdep | [`PercpuRefGuard::lockdep_section`] |
//! | read an object in a critical section only | [`RcuCell`](crate::sync::rcu::RcuCell) |
//! | count events on each CPU | [`Local`](crate::percpu::Local) |
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
//! let request = queue.try_get_live().ok_or(ENODEV)?;
//! pr_info!("depth {}\n", request.depth);
//!
//! // On removal: new requests fail, and the last request in flight releases the queue.
//! queue.kill();
//! drop(request);
//! queue.wait_released();
//! # Ok::<(), Error>(())
//! ```
//!
//! # Modes
//!
//! A reference counts in *per-CPU mode* or in *atomic mode*. A [`PercpuRef<T, Reinit>`](Reinit) can
//! be switched to atomic mode while it is live ([`switch_to_atomic`]). This suits an object that
//! may be killed soon, because a kill in atomic mode needs no grace period. A
//! [`PercpuRef<T, Reinit>`](Reinit) can also be frozen and thawed ([`freeze`]). The table has the
//! effect of each operation:
//!
//! | state | [`kill`] | [`switch_to_atomic`] | [`switch_to_percpu`] | [`resurrect`] |
//! |---|---|---|---|---|
//! | per-CPU | grace period, then closed | grace period, then atomic | no change | `EINVAL` |
//! | switching | closed after the switch | waits | waits, then per-CPU | waits, then `EINVAL` |
//! | atomic | closed at once | no change | per-CPU | `EINVAL` |
//! | dying | `false`, warns once | waits, next life | waits, next life | waits, then live |
//! | closed, zero | `false`, warns once | next life | next life | live |
//! | frozen | dying when thawed | next life | next life | `EINVAL`; if killed, live when thawed |
//!
//! *Next life* means that the reference will count in that mode when it is live again. A reference
//! that was not switched to atomic mode counts in per-CPU mode when it is live again.
//!
//! # Unloading
//!
//! The exit function of the module that makes an object must kill the object by dropping its
//! [`PercpuRef`]. After the exit function has returned, the library waits for the release of the
//! module's objects. It logs what it waits for, and how many of the objects were never killed. Then
//! it calls `synchronize_rcu_tasks()`, which waits for each task that was preempted in the module,
//! so that the function that dropped the last guard can return.
//!
//! Apart from these objects and the module's RCU callbacks
//! ([`RcuCallback`](crate::sync::rcu::RcuCallback)), the library waits for nothing. **A module must
//! still stop whatever runs its code** before its exit function returns: it must flush its work
//! items, delete its timers, stop its threads and unregister its callbacks. In particular, the wait
//! ends with the release, even if the function that dropped the last guard has not returned yet. A
//! work item that sleeps after `drop(guard)` would run in freed memory.
//! `samples/rust/rust_percpu_ref.rs` shows how to flush it.
//!
//! The wait has a bound. In the kernel's tree, the bound is 10 seconds. If the library is a module,
//! the bound is its parameter `unload_timeout`, in seconds. When the time is over, the library
//! leaks each object that still has references: the object stays in memory, and no function of the
//! module is called for it. The wait for a release that is already running has no bound.
//!
//! As with [`Arc`], the types cannot rule out two mistakes:
//!
//! - A leaked object may contain a pointer to the module's code or constants (a `fn`, a
//!   `&'static str`, a `dyn` object). A holder of a reference must not use such a pointer after the
//!   module is unloaded. A module that passes guards to other modules must therefore get them back
//!   in time.
//! - The library keeps the code of the module that calls [`UniquePercpuRef::new`]. It does not keep
//!   the code of other modules that the object points to.
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
mod report;
mod section;
mod state;
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

/// An object that a [`PercpuRef`] can count references to.
///
/// The functions of this trait tell the object how its state changes. None of them is called once
/// the module that made the object is unloaded (see [Unloading](self#unloading)).
///
/// # Examples
///
/// ```
/// use kernel::prelude::*;
/// use kernel::new_mutex;
/// use kernel::sync::{
///     percpu_ref::{Counted, PercpuRef, UniquePercpuRef},
///     Mutex, //
/// };
///
/// #[pin_data]
/// struct Device {
///     #[pin]
///     log: Mutex<KVec<u32>>,
/// }
///
/// impl Counted for Device {
///     // `release()` takes a mutex, which sleeps.
///     const MAY_SLEEP: bool = true;
///
///     fn release(&self) {
///         pr_info!("released after {} requests\n", self.log.lock().len());
///     }
/// }
///
/// let device = try_pin_init!(Device {
///     log <- new_mutex!(KVec::new()),
/// }? Error);
/// let device: PercpuRef<Device> = UniquePercpuRef::new(device, GFP_KERNEL)?.into();
///
/// let request = device.try_get().ok_or(ENODEV)?;
/// request.log.lock().push(7, GFP_KERNEL)?;
/// drop(request);
///
/// device.kill_and_wait();
/// # Ok::<(), Error>(())
/// ```
pub trait Counted: Send + Sync + Sized + 'static {
    /// Whether [`release`](Self::release) and the object's `Drop` may sleep.
    ///
    /// If `true`, they run in process context, in a kernel thread of the library. Each such release
    /// has a thread of its own, so it may wait for the release of other objects, including objects
    /// of the same type. Memory reclaim must not wait for such a release, because creating the
    /// thread needs memory.
    ///
    /// If the library is a module, the kernel holds the chain of module notifiers while the
    /// object's module is being unloaded, until the release returns. A release that may run at that
    /// time must not register or unregister a module notifier, and must not wait for a module to be
    /// loaded or unloaded. Otherwise it deadlocks, together with all loading and unloading of
    /// modules. Lockdep reports this. To avoid it, call [`PercpuRef::kill_and_wait`] in the
    /// module's exit function, where the chain is not held.
    ///
    /// Must be `false` for [`Reinit`] references, because the object could be live again before a
    /// thread calls the release.
    const MAY_SLEEP: bool = false;

    /// Whether gets and puts rely on RCU Tasks instead of disabling preemption.
    ///
    /// This halves the number of instructions of a get and of a put. It suits an object that is
    /// used all the time and is shut down once, such as a network device.
    ///
    /// In return, the kill waits for a grace period of RCU Tasks before it is confirmed. This takes
    /// some tenths of a second, and lasts as long as any task of the system runs in the kernel
    /// without sleeping, returning to user space or calling `cond_resched_tasks_rcu_qs()`. A task
    /// that polls for the release must therefore sleep; `cond_resched()` is not enough. RCU Tasks
    /// is not made for the end of many objects a second. If the object was ever in an
    /// [`RcuPercpuRef`], its memory is freed after another grace period of RCU Tasks.
    ///
    /// A kernel without preemption or without `CONFIG_TASKS_RCU` uses RCU alone.
    ///
    /// Must be `false` for [`Reinit`] references.
    #[doc(alias("call_rcu_tasks", "pcpu_refcnt"))]
    const RCU_TASKS: bool = false;

    /// Tells the object that its last reference was put.
    ///
    /// An object of the kind [`Once`] is dropped after this returns.
    ///
    /// Called exactly once in each life of a shared object. Not called if a reference is leaked, or
    /// if the object's module is unloaded by then. If the object is resurrected while this runs,
    /// the next life can begin before this returns. All operations on the reference are allowed
    /// here, except waiting for this release, which deadlocks.
    ///
    /// # Context
    ///
    /// Called by the thread or interrupt that puts the last reference. If the last reference is the
    /// initial reference, this is softirq context or a kernel thread of RCU with bottom halves
    /// disabled; for a [`Reinit`] reference it can also be the caller of [`kill`](PercpuRef::kill).
    /// Neither this function nor the object's `Drop` may sleep unless
    /// [`MAY_SLEEP`](Self::MAY_SLEEP) is `true`. The library holds no lock and does not disable
    /// preemption during the call.
    #[doc(alias = "percpu_ref_func_t")]
    fn release(&self) {}

    /// Confirms that the reference is closed.
    ///
    /// Guarantees that from now on, until the reference is resurrected, no
    /// [`PercpuRef::try_get_live`] on any CPU succeeds. References that were got before may still
    /// be held. As long as there is one, [`PercpuRef::try_get`] succeeds.
    ///
    /// Called once for each [`PercpuRef::kill_and_confirm`] that returned `true`, before the
    /// release of the life that the kill ends. If the reference was frozen when it was killed, its
    /// life had already ended; a wait for the release does not wait for the confirmation then. Not
    /// called if the object's module is unloaded by then.
    ///
    /// # Context
    ///
    /// Called from softirq context or from a kernel thread of RCU with bottom halves disabled. For
    /// a [`Reinit`] reference, also called from [`PercpuRef::kill_and_confirm`] or another
    /// operation on the reference. Must not sleep. Must not switch, freeze, thaw or resurrect this
    /// reference, because these operations wait for the confirmation.
    #[doc(alias = "confirm_kill")]
    fn confirmed(&self) {}

    /// Confirms that all CPUs count in atomic mode.
    ///
    /// Called once for each [`PercpuRef::switch_to_atomic`]. Not called if the object's module is
    /// unloaded by then.
    ///
    /// # Context
    ///
    /// Called from softirq context, from a kernel thread of RCU with bottom halves disabled, or
    /// from [`PercpuRef::switch_to_atomic`]. Must not sleep. Must not switch, freeze, thaw or
    /// resurrect this reference, because these operations wait for the confirmation. May kill this
    /// reference.
    #[doc(alias = "confirm_switch")]
    fn switched(&self) {}
}

mod private {
    pub trait Sealed {}
}

/// The number of lives of an object: [`Once`] or [`Reinit`].
pub trait Kind: private::Sealed + 'static {}

/// The kind of an object with one life.
///
/// The object is dropped after its release.
#[derive(Debug)]
pub enum Once {}

/// The kind of an object that can have more than one life and can change its mode.
///
/// The object is dropped together with its [`PercpuRef`]. If references or [`Frozen`] guards are
/// left then, it is dropped after the last of them.
#[doc(alias = "PERCPU_REF_ALLOW_REINIT")]
#[derive(Debug)]
pub enum Reinit {}

impl private::Sealed for Once {}
impl private::Sealed for Reinit {}
impl Kind for Once {}
impl Kind for Reinit {}

/// An object with its count.
///
/// The count is the first field, so a pointer to the object's allocation is also a pointer to the
/// count.
#[pin_data]
#[repr(C)]
struct Inner<T> {
    count: Count,
    #[pin]
    value: T,
}

impl<T: Counted> Inner<T> {
    /// Whether gets and puts are in a [`Section::Tasks`](section::Section).
    ///
    /// On a kernel without preemption this is `false`, because disabling preemption costs nothing
    /// there, even if the kernel has RCU Tasks.
    const TASKS: bool = T::RCU_TASKS && cfg!(all(CONFIG_TASKS_RCU, CONFIG_PREEMPTION));

    /// The functions that the library calls for objects of this type.
    const OPS: Ops = Ops {
        name: core::any::type_name::<T>,
        may_sleep: T::MAY_SLEEP,
        release: Self::release,
        drop: Self::drop,
        confirmed: Self::confirmed,
        switched: Self::switched,
    };

    /// Calls [`Counted::release`] for [`Ops::release`].
    ///
    /// # Safety
    ///
    /// `object` must be the address of a `Self` whose value was not dropped.
    unsafe fn release(object: NonNull<c_void>) {
        // SAFETY: By the safety requirements of this function, the value was not dropped.
        unsafe { &(*object.cast::<Self>().as_ptr()).value }.release();
    }

    /// Drops the value for [`Ops::drop`].
    ///
    /// # Safety
    ///
    /// `object` must be the address of a `Self` whose value was not dropped. The value must not be
    /// used after this.
    unsafe fn drop(object: NonNull<c_void>) {
        // SAFETY: By the safety requirements of this function, the value was not dropped before,
        // and is not used after this.
        unsafe { (&raw mut (*object.cast::<Self>().as_ptr()).value).drop_in_place() };
    }

    /// Calls [`Counted::confirmed`] for [`Ops::confirmed`].
    ///
    /// # Safety
    ///
    /// `object` must be the address of a `Self` whose value was not dropped.
    unsafe fn confirmed(object: NonNull<c_void>) {
        // SAFETY: By the safety requirements of this function, the value was not dropped.
        unsafe { &(*object.cast::<Self>().as_ptr()).value }.confirmed();
    }

    /// Calls [`Counted::switched`] for [`Ops::switched`].
    ///
    /// # Safety
    ///
    /// `object` must be the address of a `Self` whose value was not dropped.
    unsafe fn switched(object: NonNull<c_void>) {
        // SAFETY: By the safety requirements of this function, the value was not dropped.
        unsafe { &(*object.cast::<Self>().as_ptr()).value }.switched();
    }
}

/// A counted object that is not shared yet.
///
/// The owner can change the object, and can take it back. Dropping this drops the object without a
/// call of [`Counted::release`], and frees the memory before it returns. Converting this into a
/// [`PercpuRef`] shares the object.
///
/// # Examples
///
/// ```
/// use kernel::prelude::*;
/// use kernel::sync::percpu_ref::{Counted, PercpuRef, UniquePercpuRef};
///
/// struct Queue {
///     depth: usize,
/// }
///
/// impl Counted for Queue {}
///
/// let mut queue = UniquePercpuRef::new(Queue { depth: 0 }, GFP_KERNEL)?;
/// queue.depth = 64;
/// let queue: PercpuRef<Queue> = queue.into();
/// assert_eq!(queue.try_get().ok_or(ENODEV)?.depth, 64);
///
/// // An error path: the object was not shared yet, so there is no release.
/// let unused = UniquePercpuRef::new(Queue { depth: 1 }, GFP_KERNEL)?;
/// unused.cancel_init();
/// # Ok::<(), Error>(())
/// ```
#[doc(alias = "percpu_ref")]
#[must_use = "if unused, the object is dropped again at once"]
pub struct UniquePercpuRef<T: Counted, K: Kind = Once>(
    ManuallyDrop<Pin<KBox<Inner<T>>>>,
    PhantomData<K>,
);

impl<T: Counted> UniquePercpuRef<T> {
    /// Allocates and initialises an object, and a count in per-CPU mode.
    ///
    /// The count has one reference, the *initial reference*, which the kill puts.
    ///
    /// Fails with `ENOMEM`, or with the error of `value`. In both cases nothing is left allocated.
    /// Fails with `ENODEV` if the library has already waited for the objects of the calling module;
    /// code of the module can still run after this, until the module's memory is freed.
    ///
    /// # Context
    ///
    /// If `flags` allow blocking, may sleep and must be called from process context. Otherwise, can
    /// be called from any context except NMI and hard interrupts, because `__alloc_percpu_gfp()`
    /// takes a `spinlock_t`. On PREEMPT_RT, must not be called with preemption disabled.
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

/// Each function fails as [`UniquePercpuRef::new`] does.
///
/// # Context
///
/// Each function can be called from the contexts of [`UniquePercpuRef::new`].
impl<T: Counted> UniquePercpuRef<T, Reinit> {
    /// Allocates and initialises an object that can have more than one life, in per-CPU mode.
    #[doc(alias("percpu_ref_init", "PERCPU_REF_ALLOW_REINIT"))]
    pub fn new_reinit<E>(value: impl PinInit<T, E>, flags: Flags) -> Result<Self>
    where
        Error: From<E>,
    {
        Self::start_reinit(value, Start::Reinit, flags)
    }

    /// Allocates and initialises an object that can have more than one life, in atomic mode.
    ///
    /// The reference stays in atomic mode until [`PercpuRef::switch_to_percpu`].
    #[doc(alias("percpu_ref_init", "PERCPU_REF_INIT_ATOMIC"))]
    pub fn new_atomic<E>(value: impl PinInit<T, E>, flags: Flags) -> Result<Self>
    where
        Error: From<E>,
    {
        Self::start_reinit(value, Start::Atomic, flags)
    }

    /// Allocates and initialises an object that can have more than one life, in the state *zero*.
    ///
    /// [`PercpuRef::reinit`] begins its first life. That life is in per-CPU mode, unless
    /// [`PercpuRef::switch_to_atomic`] is called first.
    ///
    /// # Examples
    ///
    /// ```
    /// use kernel::prelude::*;
    /// use kernel::sync::percpu_ref::{Counted, PercpuRef, UniquePercpuRef};
    ///
    /// struct Queue;
    /// impl Counted for Queue {}
    ///
    /// let queue = PercpuRef::from(UniquePercpuRef::new_dead(Queue, GFP_KERNEL)?);
    /// assert!(queue.is_zero());
    /// assert!(queue.try_get().is_none());
    ///
    /// // The queue is set up, so requests can start.
    /// queue.reinit()?;
    /// assert!(queue.try_get().is_some());
    /// # Ok::<(), Error>(())
    /// ```
    #[doc(alias("percpu_ref_init", "PERCPU_REF_INIT_DEAD"))]
    pub fn new_dead<E>(value: impl PinInit<T, E>, flags: Flags) -> Result<Self>
    where
        Error: From<E>,
    {
        Self::start_reinit(value, Start::Dead, flags)
    }

    /// Allocates and initialises an object that can have more than one life.
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
    /// Allocates and initialises an object with a count that begins as `start` says.
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

    /// Drops the object and frees its memory, as dropping the [`UniquePercpuRef`] does.
    ///
    /// This is for error paths between the allocation of the object and its first use.
    /// [`Counted::release`] is not called. The memory is free when this returns. If the object has
    /// a `Drop` and its module is unloaded, the object is leaked.
    ///
    /// # Context
    ///
    /// Can be called from any context in which the object can be dropped, except NMI and hard
    /// interrupts, because `free_percpu()` takes a `spinlock_t`. On PREEMPT_RT, must not be called
    /// with preemption disabled.
    #[doc(alias("percpu_ref_cancel_init", "percpu_ref_exit"))]
    pub fn cancel_init(self) {}

    /// Returns the object and frees the memory of its count.
    ///
    /// [`Counted::release`] is not called.
    ///
    /// # Context
    ///
    /// Can be called from any context except NMI and hard interrupts. On PREEMPT_RT, must not be
    /// called with preemption disabled.
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

    /// Returns a pinned mutable reference to the object.
    ///
    /// # Context
    ///
    /// Can be called from any context.
    pub fn as_pin_mut(&mut self) -> Pin<&mut T> {
        self.0.as_mut().project().value
    }

    /// Converts the reference into its box.
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
    /// Drops the object and frees its memory.
    ///
    /// # Context
    ///
    /// Can be called from the contexts of [`cancel_init`](Self::cancel_init).
    fn drop(&mut self) {
        // If the object's module is unloaded, none of its functions can be called.
        let _running = if mem::needs_drop::<T>() {
            let Some(running) = self.0.count.enter_module() else {
                return;
            };
            Some(running)
        } else {
            None
        };
        // SAFETY: The box is not used after this, and its contents are not moved.
        let inner = unsafe { Pin::into_inner_unchecked(ManuallyDrop::take(&mut self.0)) };
        // Dropping the box would free the memory by `krealloc()`, which takes longer than
        // `kfree()`.
        let inner = KBox::into_raw(inner);
        // SAFETY: `inner` came from a box, so it is valid, and it is not used after this.
        unsafe { inner.drop_in_place() };
        // SAFETY: The memory of a `KBox` came from `kmalloc()`, and is not used after this.
        unsafe { bindings::kfree(inner.cast()) };
    }
}

/// The owner's handle of a shared object.
///
/// Users of the object borrow the handle to get references. The owner kills the object by
/// [`kill`](Self::kill), or by dropping the handle.
///
/// The handle of an object of the kind [`Once`] gives no direct access to the object, because the
/// kill puts the initial reference and the object may be dropped at any time after that. To reach
/// the object between the kill and the release, for example to abort the requests in flight, use
/// [`try_get`](Self::try_get), which succeeds as long as there are references.
///
/// # Invariants
///
/// - `inner` came from a pinned `KBox` and is shared. The handle owns one of the holds of its
///   count, so the memory is valid.
/// - If `K` is [`Reinit`], the count was made for more than one life, so the object is not dropped.
///
/// # Examples
///
/// ```
/// use kernel::prelude::*;
/// use kernel::sync::percpu_ref::{Counted, PercpuRef, UniquePercpuRef};
///
/// struct Port;
/// impl Counted for Port {}
///
/// let port: PercpuRef<Port> = UniquePercpuRef::new(Port, GFP_KERNEL)?.into();
/// let request = port.try_get_live().ok_or(ENODEV)?;
///
/// assert!(port.kill());
/// assert!(port.is_dying());
/// // A request in flight can still get references.
/// assert!(port.try_get().is_some());
///
/// drop(request);
/// port.wait_released();
/// assert!(port.is_zero());
/// assert!(port.try_get().is_none());
/// # Ok::<(), Error>(())
/// ```
#[doc(alias = "percpu_ref")]
pub struct PercpuRef<T: Counted, K: Kind = Once> {
    inner: NonNull<Inner<T>>,
    _kind: PhantomData<K>,
}

// SAFETY: Each operation of a `PercpuRef` can be done on any thread, since references are counted
// atomically or per CPU. The thread may also get references to the object, which `T: Sync` allows,
// and may drop the object, which `T: Send` allows. `Counted` requires both.
unsafe impl<T: Counted, K: Kind> Send for PercpuRef<T, K> {}

// SAFETY: Each operation of a `&PercpuRef` is atomic or changes the local CPU's counter only. It
// gives access to a `&T`, which `T: Sync` allows.
unsafe impl<T: Counted, K: Kind> Sync for PercpuRef<T, K> {}

impl<T: Counted, K: Kind> From<UniquePercpuRef<T, K>> for PercpuRef<T, K> {
    /// Shares the object.
    ///
    /// The object cannot be taken back after this.
    ///
    /// # Context
    ///
    /// Can be called from any context except NMI.
    #[cfg_attr(CONFIG_RUST_PERCPU_REF_DEBUG, track_caller)]
    fn from(unique: UniquePercpuRef<T, K>) -> Self {
        // SAFETY: The object is not moved until it is freed.
        let inner = KBox::into_raw(unsafe { Pin::into_inner_unchecked(unique.into_pinned_box()) });
        // SAFETY: `KBox::into_raw()` does not return null.
        let inner = unsafe { NonNull::new_unchecked(inner) };
        let holder = holder::Holder::new(holder::Kind::Object, inner.cast(), 1);
        // SAFETY: No other thread has the object yet, except for readers of the records, which do
        // not read `holder`.
        unsafe { (*inner.as_ptr()).count.holder.get().write(holder) };

        // INVARIANT: The box was just shared. The count begins with the hold of a handle, which
        // this is.
        Self {
            inner,
            _kind: PhantomData,
        }
    }
}

impl<T: Counted, K: Kind> PercpuRef<T, K> {
    /// Returns the count of the object.
    fn count(&self) -> &Count {
        // SAFETY: By the type invariant, the memory is valid.
        unsafe { &(*self.inner.as_ptr()).count }
    }

    /// Tries to get a reference.
    ///
    /// Returns `None` if the count is zero. Neither a kill nor its confirmation makes this fail as
    /// long as there are references. Use [`try_get_live`](Self::try_get_live) to begin a new
    /// operation, and this to continue one. Also returns `None` if the object is leaked because
    /// there were more than 2^60 references; in per-CPU mode that is not noticed.
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

    /// Tries to get `n` references at once.
    ///
    /// Fails as [`try_get`](Self::try_get) does. Also fails if there would be more than 2^60
    /// references, which is noticed in atomic mode, after the kill, and for numbers above 64.
    ///
    /// Orders no other memory access.
    ///
    /// # Context
    ///
    /// Can be called from any context in which RCU is watching, except NMI.
    ///
    /// # Examples
    ///
    /// ```
    /// use kernel::prelude::*;
    /// use kernel::sync::percpu_ref::{Counted, PercpuRef, UniquePercpuRef};
    ///
    /// struct Ring;
    /// impl Counted for Ring {}
    ///
    /// let ring: PercpuRef<Ring> = UniquePercpuRef::new(Ring, GFP_KERNEL)?.into();
    /// let mut requests = ring.try_get_many(32).ok_or(ENODEV)?;
    /// while let Some(request) = requests.take() {
    ///     // Submit the request.
    ///     drop(request);
    /// }
    /// # Ok::<(), Error>(())
    /// ```
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

    /// Tries to get a reference to a live object.
    ///
    /// Returns `None` if the reference was killed or is frozen. Another CPU may see the kill late.
    /// After the confirmation ([`Counted::confirmed`]), and after [`freeze`](PercpuRef::freeze) has
    /// returned, this is guaranteed to fail until the reference is live again.
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

    /// Tries to get a reference as [`try_get_live`](Self::try_get_live) does, in a critical
    /// section.
    ///
    /// This is for code ported from C that already is in an RCU read-side critical section. In C it
    /// saves a nested critical section. Here it saves nothing, because the nested one is inlined
    /// and cheap.
    ///
    /// # Context
    ///
    /// Can be called from any context in which RCU is watching, except NMI.
    #[doc(alias = "percpu_ref_tryget_live_rcu")]
    #[inline(always)]
    #[cfg_attr(CONFIG_RUST_PERCPU_REF_DEBUG, track_caller)]
    #[must_use = "if unused, the reference is put again at once"]
    pub fn try_get_live_rcu(&self, _section: &Guard) -> Option<PercpuRefGuard<T>> {
        self.try_get_live()
    }

    /// Kills the reference.
    ///
    /// After a grace period [`try_get_live`](Self::try_get_live) fails on all CPUs, and the initial
    /// reference is put. The object is released when all references are put.
    ///
    /// A kill in atomic mode needs no grace period. The reference is then closed before this
    /// returns, and the object is released in this call if there are no other references. The same
    /// can happen when a switch to atomic mode ends. A frozen reference that is killed stays dying
    /// when it is thawed.
    ///
    /// Returns `true` if this call killed the reference, and `false` if it was killed already. A
    /// second kill changes nothing and warns once.
    ///
    /// Does not wait, does not fail and does not allocate memory. Memory accesses that follow this
    /// call are not ordered after the kill.
    ///
    /// # Context
    ///
    /// Can be called from any context except NMI. For a [`Reinit`] reference, must be called from a
    /// context in which [`Counted::release`] can run.
    #[doc(alias = "percpu_ref_kill")]
    #[track_caller]
    pub fn kill(&self) -> bool {
        self.kill_or_warn(false)
    }

    /// Kills the reference as [`kill`](Self::kill) does, and asks for [`Counted::confirmed`].
    ///
    /// If this returns `true`, [`Counted::confirmed`] is called once: after the point from which
    /// [`try_get_live`](Self::try_get_live) fails on all CPUs, and before the release. If this
    /// returns `false`, it is not called.
    ///
    /// # Context
    ///
    /// Can be called from any context except NMI. For a [`Reinit`] reference, must be called from a
    /// context in which [`Counted::release`] and [`Counted::confirmed`] can run, because both may
    /// be called before this returns.
    ///
    /// # Examples
    ///
    /// ```
    /// use kernel::prelude::*;
    /// use kernel::sync::{
    ///     atomic::{Atomic, Relaxed},
    ///     percpu_ref::{Counted, PercpuRef, UniquePercpuRef}, //
    /// };
    ///
    /// struct Queue {
    ///     is_closed: Atomic<u32>,
    /// }
    ///
    /// impl Counted for Queue {
    ///     fn confirmed(&self) {
    ///         self.is_closed.store(1, Relaxed);
    ///     }
    /// }
    ///
    /// let queue = Queue { is_closed: Atomic::new(0) };
    /// let queue = PercpuRef::from(UniquePercpuRef::new_atomic(queue, GFP_KERNEL)?);
    /// let request = queue.try_get_live().ok_or(ENODEV)?;
    ///
    /// // In atomic mode the kill is confirmed at once.
    /// assert!(queue.kill_and_confirm());
    /// assert_eq!(request.is_closed.load(Relaxed), 1);
    /// assert!(queue.try_get_live().is_none());
    /// # Ok::<(), Error>(())
    /// ```
    #[doc(alias = "percpu_ref_kill_and_confirm")]
    #[track_caller]
    pub fn kill_and_confirm(&self) -> bool {
        self.kill_or_warn(true)
    }

    /// Kills the reference and waits for the release.
    ///
    /// Calls [`kill`](Self::kill), whose result it returns, and
    /// [`wait_released`](Self::wait_released).
    ///
    /// # Context
    ///
    /// Sleeps, so must be called from process context.
    #[doc(alias("percpu_ref_kill", "wait_for_completion"))]
    #[track_caller]
    pub fn kill_and_wait(&self) -> bool {
        let killed = self.kill();
        self.wait_released();
        killed
    }

    /// Kills the reference unless it was killed already, and waits for the release for at most
    /// `timeout`.
    ///
    /// Fails with `ETIMEDOUT` as [`wait_released_timeout`](Self::wait_released_timeout) does. The
    /// reference is still killed then, and any thread can wait again.
    ///
    /// # Context
    ///
    /// Sleeps, so must be called from process context.
    #[doc(alias("percpu_ref_kill", "wait_for_completion_timeout"))]
    pub fn kill_and_wait_timeout(&self, timeout: Delta) -> Result {
        self.kill_quietly(false);
        self.wait_released_timeout(timeout)
    }

    /// Kills the reference unless it was killed already, and waits for the release or a fatal
    /// signal.
    ///
    /// Fails with `EINTR` as [`wait_released_killable`](Self::wait_released_killable) does. The
    /// reference is still killed then, and any thread can wait again.
    ///
    /// # Context
    ///
    /// Sleeps, so must be called from process context.
    #[doc(alias("percpu_ref_kill", "wait_for_completion_killable"))]
    pub fn kill_and_wait_killable(&self) -> Result {
        self.kill_quietly(false);
        self.wait_released_killable()
    }

    /// Kills the reference unless it was killed already, and returns whether it did.
    fn kill_quietly(&self, confirm: bool) -> bool {
        // SAFETY: By the type invariant, `inner` is a shared object, and `self` is its handle.
        unsafe { Count::kill(self.inner.cast(), confirm) }
    }

    /// Kills the reference, or warns once if it was killed already, and returns whether it did.
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

    /// Returns whether the reference was killed or is frozen.
    ///
    /// Unless the caller orders this call against the kill by other means, the answer may be
    /// outdated.
    ///
    /// # Context
    ///
    /// Can be called from any context.
    #[doc(alias = "percpu_ref_is_dying")]
    pub fn is_dying(&self) -> bool {
        self.count().is_dying()
    }

    /// Returns whether the reference is closed and has no references.
    ///
    /// If so, [`try_get`](Self::try_get) fails, and the release is about to be called or was
    /// called. A reference made by [`UniquePercpuRef::new_dead`] is also zero before its first
    /// life, without a release.
    ///
    /// If this returns `true`, all accesses to the object by means of a reference in this life
    /// happened before and are visible to the caller.
    ///
    /// # Context
    ///
    /// Can be called from any context.
    #[doc(alias = "percpu_ref_is_zero")]
    pub fn is_zero(&self) -> bool {
        self.count().is_zero()
    }

    /// Returns the number of references without the initial reference, if it is known.
    ///
    /// The number is known in atomic mode and when the reference is closed. In per-CPU mode and
    /// during a switch this returns `None`, because only the sum of all counters has the number.
    ///
    /// The number may be outdated as soon as this returns.
    ///
    /// # Context
    ///
    /// Can be called from any context.
    pub fn references(&self) -> Option<usize> {
        self.count().references()
    }

    /// Returns whether `self` and `other` are handles of the same object.
    ///
    /// # Context
    ///
    /// Can be called from any context.
    pub fn ptr_eq(&self, other: &Self) -> bool {
        self.inner == other.inner
    }

    /// Returns whether `guard` is a reference to the object of this handle.
    ///
    /// # Context
    ///
    /// Can be called from any context.
    pub fn is_of(&self, guard: &PercpuRefGuard<T>) -> bool {
        self.inner == guard.inner()
    }

    /// Waits until the release has returned.
    ///
    /// An object of the kind [`Once`] is dropped by then. If the object's module is unloaded, the
    /// release cannot be called; then this waits only until the last reference is put.
    ///
    /// The caller must ensure that some thread kills the reference. A thread that holds a
    /// [`PercpuRefGuard`] of the object deadlocks. If a guard was leaked, or if there were more
    /// than 2^60 references, there is no release and the wait does not end. If the reference is
    /// resurrected before the wait has ended, the wait continues.
    ///
    /// A wait that lasts for ten seconds is logged. Then it is logged again after intervals that
    /// double each time. The message has the task, the type, the state, the time since the kill,
    /// and the number of references.
    ///
    /// All accesses to the object by means of a reference are guaranteed to be visible to the
    /// caller when this returns.
    ///
    /// # Context
    ///
    /// Sleeps, so must be called from process context. The sleep cannot be interrupted; see
    /// [`wait_released_killable`](Self::wait_released_killable).
    pub fn wait_released(&self) {
        // The wait has no timeout and ignores signals, so it does not fail.
        let _ = self.count().wait_released(Until::Done, None);
    }

    /// Waits for the release as [`wait_released`](Self::wait_released) does, for at most `timeout`.
    ///
    /// Fails with `ETIMEDOUT` when the time is over.
    ///
    /// # Context
    ///
    /// Sleeps, so must be called from process context.
    ///
    /// # Examples
    ///
    /// ```
    /// use kernel::prelude::*;
    /// use kernel::sync::percpu_ref::{Counted, PercpuRef, UniquePercpuRef};
    /// use kernel::time::Delta;
    ///
    /// struct Port;
    /// impl Counted for Port {}
    ///
    /// let port: PercpuRef<Port> = UniquePercpuRef::new(Port, GFP_KERNEL)?.into();
    /// let request = port.try_get().ok_or(ENODEV)?;
    ///
    /// port.kill();
    /// // The request in flight keeps the object.
    /// let result = port.wait_released_timeout(Delta::from_millis(1));
    /// assert_eq!(result, Err(ETIMEDOUT));
    ///
    /// drop(request);
    /// port.wait_released();
    /// # Ok::<(), Error>(())
    /// ```
    #[doc(alias = "wait_for_completion_timeout")]
    pub fn wait_released_timeout(&self, timeout: Delta) -> Result {
        self.count().wait_released(Until::Done, Some(timeout))
    }

    /// Waits for the release as [`wait_released`](Self::wait_released) does, or for a fatal signal.
    ///
    /// Fails with `EINTR` if the task gets a fatal signal.
    ///
    /// # Context
    ///
    /// Sleeps, so must be called from process context.
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

/// Operations of a [`Reinit`] reference.
impl<T: Counted> PercpuRef<T, Reinit> {
    /// Returns a reference to the object, which is valid in each state.
    ///
    /// # Context
    ///
    /// Can be called from any context.
    pub fn value(&self) -> &T {
        // SAFETY: By the type invariant, the object is not dropped.
        unsafe { &(*self.inner.as_ptr()).value }
    }

    /// Switches to atomic mode.
    ///
    /// The reference counts in atomic mode, also in later lives, until
    /// [`switch_to_percpu`](Self::switch_to_percpu). [`Counted::switched`] is called when all CPUs
    /// count in atomic mode. If they already do, it is called before this returns.
    ///
    /// Does not wait for the switch itself. Waits while another switch is in flight, and while a
    /// kill is not confirmed.
    ///
    /// # Context
    ///
    /// Must be called from process context, because it may sleep. If neither another switch nor an
    /// unconfirmed kill can be in flight, can be called from any context except NMI.
    ///
    /// # Examples
    ///
    /// ```
    /// use kernel::prelude::*;
    /// use kernel::sync::percpu_ref::{Counted, PercpuRef, UniquePercpuRef};
    ///
    /// struct Queue;
    /// impl Counted for Queue {}
    ///
    /// let queue = PercpuRef::from(UniquePercpuRef::new_reinit(Queue, GFP_KERNEL)?);
    /// let request = queue.try_get().ok_or(ENODEV)?;
    ///
    /// queue.switch_to_atomic_sync();
    /// assert_eq!(queue.references(), Some(1));
    /// queue.switch_to_percpu();
    /// assert_eq!(queue.references(), None);
    /// # Ok::<(), Error>(())
    /// ```
    #[doc(alias = "percpu_ref_switch_to_atomic")]
    pub fn switch_to_atomic(&self) {
        // SAFETY: By the type invariant, `inner` is a shared object that can have more than one
        // life, and `self` is its handle.
        unsafe { Count::switch_to_atomic(self.inner.cast(), true) };
    }

    /// Switches to atomic mode, and waits until all CPUs count in atomic mode.
    ///
    /// Does not call [`Counted::switched`]. Another thread may switch back before this returns.
    ///
    /// # Context
    ///
    /// Sleeps, so must be called from process context.
    #[doc(alias = "percpu_ref_switch_to_atomic_sync")]
    pub fn switch_to_atomic_sync(&self) {
        // SAFETY: By the type invariant, `inner` is a shared object that can have more than one
        // life, and `self` is its handle.
        unsafe { Count::switch_to_atomic(self.inner.cast(), false) };
        self.count().wait_switched();
    }

    /// Switches to per-CPU mode.
    ///
    /// If the reference is dying, its next life will begin in per-CPU mode. Waits while a switch is
    /// in flight, and while a kill is not confirmed.
    ///
    /// # Context
    ///
    /// Must be called from process context, because it may sleep. If neither a switch nor an
    /// unconfirmed kill can be in flight, can be called from any context except NMI.
    #[doc(alias = "percpu_ref_switch_to_percpu")]
    pub fn switch_to_percpu(&self) {
        self.count().switch_to_percpu();
    }

    /// Begins another life of a reference whose count is zero.
    ///
    /// The new life has a new initial reference. The release of the last life may still be running,
    /// or may not have been called yet. A frozen reference becomes live when it is thawed.
    ///
    /// Fails with `EINVAL` if the reference was not killed, and with `EBUSY` if there are
    /// references. In both cases nothing is changed.
    ///
    /// Waits while a kill is not confirmed, and while another thread calls this or
    /// [`resurrect`](Self::resurrect).
    ///
    /// # Context
    ///
    /// Must be called from process context, because it may sleep. If there can be nothing to wait
    /// for, can be called from any context except NMI. There is nothing to wait for in
    /// [`Counted::release`], unless another thread switches or resurrects the reference, or the
    /// kill of a frozen reference is confirmed, at the same time.
    #[doc(alias = "percpu_ref_reinit")]
    pub fn reinit(&self) -> Result {
        // SAFETY: By the type invariant, `inner` is a shared object that can have more than one
        // life, and `self` is its handle.
        unsafe { Count::resurrect(self.inner.cast(), true) }
    }

    /// Takes a kill back, whether there are references left or not.
    ///
    /// If there are references left, the life that was killed continues, and there is no release
    /// for it. Otherwise another life begins. There is a new initial reference in both cases. A
    /// frozen reference becomes live when it is thawed.
    ///
    /// Fails with `EINVAL` if the reference was not killed. In this case nothing is changed. Waits
    /// as [`reinit`](Self::reinit) does.
    ///
    /// # Context
    ///
    /// Must be called from process context, because it may sleep. If there can be nothing to wait
    /// for (see [`reinit`](Self::reinit)), can be called from any context except NMI.
    ///
    /// # Examples
    ///
    /// ```
    /// use kernel::prelude::*;
    /// use kernel::sync::percpu_ref::{Counted, PercpuRef, UniquePercpuRef};
    ///
    /// struct Queue;
    /// impl Counted for Queue {}
    ///
    /// let queue = PercpuRef::from(UniquePercpuRef::new_reinit(Queue, GFP_KERNEL)?);
    /// let request = queue.try_get().ok_or(ENODEV)?;
    ///
    /// queue.kill();
    /// // The request keeps the count from zero.
    /// assert_eq!(queue.reinit(), Err(EBUSY));
    /// queue.resurrect()?;
    /// assert!(queue.try_get_live().is_some());
    /// # Ok::<(), Error>(())
    /// ```
    #[doc(alias = "percpu_ref_resurrect")]
    pub fn resurrect(&self) -> Result {
        // SAFETY: By the type invariant, `inner` is a shared object that can have more than one
        // life, and `self` is its handle.
        unsafe { Count::resurrect(self.inner.cast(), false) }
    }

    /// Freezes the reference until the returned guard is dropped.
    ///
    /// Ends the life as a kill does, and waits until all references are put and the release has
    /// returned.
    ///
    /// Guards nest, and any number of threads can freeze the reference at the same time. When the
    /// last guard is dropped, the reference is live again, in the mode that was asked for last. If
    /// the reference was killed in between, it stays dying until it is resurrected.
    ///
    /// A long wait is logged as in [`wait_released`](Self::wait_released).
    ///
    /// # Context
    ///
    /// Sleeps, so must be called from process context. A thread that holds a [`PercpuRefGuard`] of
    /// the object deadlocks.
    ///
    /// # Examples
    ///
    /// ```
    /// use kernel::prelude::*;
    /// use kernel::sync::percpu_ref::{Counted, PercpuRef, UniquePercpuRef};
    /// use kernel::sync::atomic::{Atomic, Relaxed};
    ///
    /// struct Queue {
    ///     depth: Atomic<u32>,
    /// }
    ///
    /// impl Counted for Queue {}
    ///
    /// let queue = Queue { depth: Atomic::new(64) };
    /// let queue = PercpuRef::from(UniquePercpuRef::new_reinit(queue, GFP_KERNEL)?);
    ///
    /// let frozen = queue.freeze();
    /// // No request is in flight, and none can start.
    /// frozen.value().depth.store(128, Relaxed);
    /// assert!(queue.try_get_live().is_none());
    /// drop(frozen);
    ///
    /// assert_eq!(queue.try_get_live().ok_or(ENODEV)?.depth.load(Relaxed), 128);
    /// # Ok::<(), Error>(())
    /// ```
    #[doc(alias("blk_mq_freeze_queue", "percpu_ref_kill", "percpu_ref_resurrect"))]
    #[cfg_attr(CONFIG_RUST_PERCPU_REF_DEBUG, track_caller)]
    pub fn freeze(&self) -> Frozen<T> {
        // SAFETY: By the type invariant, `inner` is a shared object that can have more than one
        // life, and `self` is its handle.
        unsafe { Frozen::new(self.inner) }
    }
}

impl<T: Counted, K: Kind> Drop for PercpuRef<T, K> {
    /// Kills the reference unless it was killed already.
    ///
    /// Does not wait for the release.
    ///
    /// # Context
    ///
    /// Can be called from any context except NMI. For a [`Reinit`] reference, must be called from a
    /// context in which [`Counted::release`] and the object's `Drop` can run, because both may be
    /// called before this returns.
    #[doc(alias = "percpu_ref_exit")]
    fn drop(&mut self) {
        self.kill_quietly(false);
        // SAFETY: By the type invariant, `inner` is a shared object, and `self` is its handle,
        // which is not used after this.
        unsafe { Count::drop_handle(self.inner.cast()) };
    }
}

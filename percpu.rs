// SPDX-License-Identifier: GPL-2.0

//! Per-CPU memory.
//!
//! A [`PerCpu<T>`] is one `T` for each possible CPU. The CPUs' copies lie in different cache lines,
//! so a CPU that works on its own copy disturbs no other.
//!
//! There are two ways to use one:
//!
//! - [`PerCpu<Local<I>>`](Local), for an integer `I`, has the `this_cpu` operations. Each acts on
//!   the copy of the CPU that it happens to run on, as a whole with respect to preemption and to
//!   interrupts on that CPU. They need no guard.
//! - [`PerCpu<T>`] for any other `T` gives out `&T`: this CPU's by [`PerCpu::get`] while a
//!   [`PreemptGuard`] is held, any CPU's by [`PerCpu::get_cpu`]. Both ask for `T: Sync`, since
//!   an interrupt on this CPU or code on another may hold the same reference.
//!
//! A CPU that is offline keeps its copy, and the value in it.
//!
//! C headers: [`include/linux/percpu.h`](srctree/include/linux/percpu.h),
//! [`include/linux/percpu-defs.h`](srctree/include/linux/percpu-defs.h),
//! [`include/linux/preempt.h`](srctree/include/linux/preempt.h)

use core::{
    cell::UnsafeCell,
    iter,
    marker::PhantomData,
    mem::{
        self,
        ManuallyDrop,
        MaybeUninit, //
    },
    ptr::NonNull, //
};
use kernel::{
    alloc::{
        AllocError,
        Flags, //
    },
    bindings,
    cpu::CpuId,
    fmt,
    prelude::*,
    types::NotThreadSafe, //
};

#[path = "inline.rs"]
mod inline;

extern "C" {
    fn rust_percpu_ref_preempt_depth() -> c_uint;
    fn rust_percpu_ref_alloc_percpu_gfp(
        size: usize,
        align: usize,
        gfp: bindings::gfp_t,
    ) -> *mut c_void;
    fn rust_percpu_ref_this_cpu_ptr(ptr: *mut c_void) -> *mut c_void;
    fn rust_percpu_ref_cpu_possible(cpu: c_uint) -> bool;
    fn rust_percpu_ref_next_possible_cpu(cpu: c_int) -> c_uint;
}

/// Keeps the current task on its CPU, and that CPU from running another task.
///
/// Guards nest, up to a bound: see [`PreemptGuard::try_new`]. While one exists, code must not
/// sleep. RCU takes the region for a read-side critical section: no grace period that begins in it
/// ends before it (`Documentation/RCU/whatisRCU.rst`; since 5.1 that holds for `call_rcu()`, too).
///
/// It is not `Send`, since it belongs to the CPU that took it.
///
/// # Invariants
///
/// Preemption is disabled on this CPU as long as the guard exists.
#[must_use = "if unused, preemption is enabled again at once"]
pub struct PreemptGuard(NotThreadSafe);

impl PreemptGuard {
    /// The largest depth to which safe code can disable preemption.
    ///
    /// The kernel's own limit is 255 (`PREEMPT_MASK` in include/linux/preempt.h). Beyond it the
    /// count carries over into that of softirqs, and at a multiple of 65,536, where both are 0,
    /// RCU's tick takes the region for a quiescent state (`rcu_flavor_sched_clock_irq()` in
    /// kernel/rcu/tree_plugin.h). What the kernel and this library add on top is far less than the
    /// difference.
    pub const MAX_DEPTH: u32 = 64;

    /// Disables preemption.
    ///
    /// # Panics
    ///
    /// Panics if preemption is disabled [`MAX_DEPTH`](Self::MAX_DEPTH) times already, which only a
    /// loop or a recursion without a bound leads to.
    ///
    /// # Context
    ///
    /// Can be called from any context.
    #[doc(alias = "preempt_disable")]
    #[inline]
    pub fn new() -> Self {
        match Self::try_new() {
            Some(guard) => guard,
            None => panic!("preemption is disabled too often"),
        }
    }

    /// Disables preemption, or returns `None` if it is disabled
    /// [`MAX_DEPTH`](Self::MAX_DEPTH) times already.
    ///
    /// # Context
    ///
    /// Can be called from any context.
    #[doc(alias = "preempt_disable")]
    #[inline]
    pub fn try_new() -> Option<Self> {
        // SAFETY: The function takes no arguments.
        let depth = unsafe { rust_percpu_ref_preempt_depth() };
        (depth < Self::MAX_DEPTH).then(Self::nested)
    }

    /// Disables preemption, for this library's own regions. They do not nest, so they need no
    /// bound.
    #[inline(always)]
    pub(crate) fn nested() -> Self {
        inline::preempt_disable();
        // INVARIANT: Preemption was disabled just now, and `drop` alone enables it.
        Self(NotThreadSafe)
    }
}

impl Default for PreemptGuard {
    #[inline]
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for PreemptGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PreemptGuard")
    }
}

impl Drop for PreemptGuard {
    #[doc(alias = "preempt_enable")]
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: By the type invariant, this pairs with the call in `nested`, on the same CPU.
        unsafe { inline::preempt_enable() };
    }
}

/// The possible CPUs: those for which [`PerCpu`] has a copy, online or not.
#[doc(alias = "for_each_possible_cpu")]
pub fn possible_cpus() -> impl Iterator<Item = CpuId> {
    let mut cpu = -1;

    iter::from_fn(move || {
        // SAFETY: `cpu` is -1 or a CPU number, which is what `cpumask_next()` takes.
        let next = unsafe { rust_percpu_ref_next_possible_cpu(cpu) };

        // Past the last CPU, the number is `nr_cpu_ids` or above, which is no `CpuId`.
        let id = CpuId::from_u32(next)?;
        cpu = next as c_int;
        Some(id)
    })
}

/// One `T` for each possible CPU.
///
/// # Invariants
///
/// `ptr` came from `__alloc_percpu_gfp()` with the size and alignment of `T`, it is not freed, and
/// each possible CPU's copy is a valid `T`, which is pinned.
#[doc(alias("alloc_percpu", "__percpu"))]
pub struct PerCpu<T> {
    ptr: NonNull<c_void>,
    _values: PhantomData<T>,
}

// SAFETY: A `PerCpu<T>` owns its values, and lets another thread do with them what that thread
// could do with a `T`.
unsafe impl<T: Send> Send for PerCpu<T> {}

// SAFETY: Through `&PerCpu<T>` one gets `&T`, and that for `T: Sync` only.
unsafe impl<T: Sync> Sync for PerCpu<T> {}

impl<T> PerCpu<T> {
    /// The allocator's limits, which it warns about at run time; here the build fails.
    const FITS: () = assert!(
        size_of::<T>() <= 32 << 10 && align_of::<T>() <= 4096,
        "too large for a per-CPU allocation: at most PCPU_MIN_UNIT_SIZE, aligned to a page"
    );

    /// Memory for one `T` on each possible CPU, all of it zero.
    fn alloc(gfp: Flags) -> Result<NonNull<c_void>, AllocError> {
        const { Self::FITS };

        // `pcpu_alloc_noprof()` refuses a size of zero.
        let size = size_of::<T>().max(1);

        // SAFETY: Size and alignment are in the allocator's limits.
        unsafe { alloc_zeroed(size, align_of::<T>(), gfp) }
    }

    /// Allocates per-CPU memory and fills each possible CPU's copy with what `init` returns for it:
    /// a value, or an initialiser that makes one in place. The values are pinned.
    ///
    /// Where an initialiser fails, the values that were made before are dropped, the memory is
    /// freed, and its error is returned; where there is no memory, the error is `ENOMEM`.
    ///
    /// May sleep if `gfp` allows blocking, and then needs process context.
    ///
    /// # Examples
    ///
    /// ```
    /// use kernel::{prelude::*, sync::atomic::{Atomic, Relaxed}};
    /// use percpu_ref::percpu::{PerCpu, PreemptGuard};
    ///
    /// let last = PerCpu::<Atomic<u32>>::new(|cpu| Atomic::new(cpu.as_u32()), GFP_KERNEL)?;
    ///
    /// let guard = PreemptGuard::new();
    /// last.get(&guard).store(7, Relaxed);
    /// # Ok::<(), Error>(())
    /// ```
    #[doc(alias("alloc_percpu_gfp", "alloc_percpu"))]
    pub fn new<I, E>(mut init: impl FnMut(CpuId) -> I, gfp: Flags) -> Result<Self>
    where
        T: 'static,
        I: PinInit<T, E>,
        Error: From<E>,
    {
        /// Undoes a half-made allocation, unless it is forgotten.
        struct Partial<T> {
            ptr: NonNull<c_void>,
            filled: usize,
            _values: PhantomData<T>,
        }

        impl<T> Drop for Partial<T> {
            fn drop(&mut self) {
                // SAFETY: `new` filled the copies of the first `filled` possible CPUs, and nobody
                // else knows of the allocation.
                unsafe { free::<T>(self.ptr, self.filled) };
            }
        }

        let mut partial = Partial::<T> {
            ptr: Self::alloc(gfp)?,
            filled: 0,
            _values: PhantomData,
        };
        for cpu in possible_cpus() {
            // SAFETY: `cpu` is possible, so this is its copy: in bounds, aligned, and ours alone.
            // For the value in it, the memory is there for ever: it is freed after that is dropped.
            let copy: &'static mut MaybeUninit<T> =
                unsafe { copy_of::<MaybeUninit<T>>(partial.ptr, cpu).as_mut() };

            copy.write_pin_init(init(cpu))?;
            partial.filled += 1;
        }

        // INVARIANT: The loop filled every possible CPU's copy, and as `partial` is not dropped,
        // nothing frees the memory.
        Ok(Self {
            ptr: ManuallyDrop::new(partial).ptr,
            _values: PhantomData,
        })
    }

    /// Gives up ownership, for [`PerCpu::from_raw`] to take up again.
    ///
    /// The pointer is aligned to `align_of::<T>()`, so the bits below are free for the caller's
    /// use.
    pub(crate) fn into_raw(self) -> NonNull<c_void> {
        ManuallyDrop::new(self).ptr
    }

    /// Takes up what [`PerCpu::into_raw`] gave up.
    ///
    /// # Safety
    ///
    /// `ptr` came from [`PerCpu::into_raw`] of the same type. Only one of the values made from it
    /// is ever dropped, and none is used after that.
    pub(crate) unsafe fn from_raw(ptr: NonNull<c_void>) -> Self {
        // INVARIANT: As it held for the value that was given to `into_raw`.
        Self {
            ptr,
            _values: PhantomData,
        }
    }
}

impl<T: Sync> PerCpu<T> {
    /// This CPU's copy.
    ///
    /// The guard keeps the task on this CPU for as long as the reference lives. Interrupts may
    /// still come in between and use the same copy.
    ///
    /// Any context.
    #[doc(alias("this_cpu_ptr", "get_cpu_ptr"))]
    pub fn get<'a>(&'a self, _guard: &'a PreemptGuard) -> &'a T {
        // SAFETY: By the type invariant, this is this CPU's copy and a valid `T`. Preemption is
        // disabled, as `this_cpu_ptr()` asks for under `CONFIG_DEBUG_PREEMPT`.
        unsafe { &*rust_percpu_ref_this_cpu_ptr(self.ptr.as_ptr()).cast() }
    }

    /// The copy of `cpu`, or `None` if that CPU is not possible.
    ///
    /// Any context.
    #[doc(alias = "per_cpu_ptr")]
    pub fn get_cpu(&self, cpu: CpuId) -> Option<&T> {
        // SAFETY: A `CpuId` is below `nr_cpu_ids`, the bound of `cpu_possible()`.
        if !unsafe { rust_percpu_ref_cpu_possible(cpu.as_u32()) } {
            return None;
        }

        // SAFETY: `cpu` is possible, so by the type invariant this is a valid `T`. It is only
        // shared, and `T` is `Sync`.
        Some(unsafe { copy_of::<T>(self.ptr, cpu).as_ref() })
    }

    /// All copies, CPU by CPU. They are not a snapshot: each may change while the next is read.
    ///
    /// Any context.
    #[doc(alias = "for_each_possible_cpu")]
    pub fn iter(&self) -> impl Iterator<Item = (CpuId, &T)> {
        possible_cpus().filter_map(|cpu| Some((cpu, self.get_cpu(cpu)?)))
    }
}

impl<T> PerCpu<T> {
    /// All copies, CPU by CPU, mutable: nobody else has a reference. The values stay pinned.
    ///
    /// Any context.
    #[doc(alias("for_each_possible_cpu", "per_cpu_ptr"))]
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (CpuId, &mut T)>
    where
        T: Unpin,
    {
        let ptr = self.ptr;

        possible_cpus().map(move |cpu| {
            // SAFETY: `cpu` is possible, so by the type invariant this is a valid `T`. We have the
            // only reference to all of them, and come to each of them once.
            (cpu, unsafe { copy_of::<T>(ptr, cpu).as_mut() })
        })
    }
}

impl<T> fmt::Debug for PerCpu<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PerCpu")
            .field("of", &core::any::type_name::<T>())
            .finish_non_exhaustive()
    }
}

impl<T> Drop for PerCpu<T> {
    /// Drops the CPUs' values on the CPU that runs this, and frees the memory.
    ///
    /// Any context that `T` may be dropped in, but NMI. `free_percpu()` does not sleep; on
    /// PREEMPT_RT it takes a lock that may, so not in a hard interrupt or with preemption disabled.
    #[doc(alias = "free_percpu")]
    fn drop(&mut self) {
        // SAFETY: By the type invariant, every possible CPU's copy is a valid `T`. We have the only
        // reference.
        unsafe { free::<T>(self.ptr, usize::MAX) };
    }
}

/// What C makes of `flags`; `Flags` itself does not tell.
const fn gfp_t(flags: Flags) -> bindings::gfp_t {
    // SAFETY: `Flags` is a `gfp_t` and nothing else, which is tried out below.
    unsafe { core::mem::transmute::<Flags, bindings::gfp_t>(flags) }
}

const _: () = assert!(gfp_t(GFP_KERNEL) == bindings::GFP_KERNEL);

/// Where `cpu`'s copy of the `T` at `ptr` lies.
///
/// # Safety
///
/// `ptr` came from [`PerCpu::alloc`] and is not freed, and `cpu` is possible.
unsafe fn copy_of<T>(ptr: NonNull<c_void>, cpu: CpuId) -> NonNull<T> {
    // SAFETY: By the function's requirement, this is pointer arithmetic within the allocation.
    let copy = unsafe { inline::per_cpu_ptr(ptr.as_ptr(), cpu.as_u32()) };

    // SAFETY: The copy of a possible CPU has an address, so this is not null.
    unsafe { NonNull::new_unchecked(copy.cast()) }
}

/// Allocates zeroed memory on each possible CPU.
///
/// This function is out of line because its mangled name changes with the library. The kernel
/// thereby refuses to load a user of [`PerCpu`] that was built against another library, even if the
/// user otherwise needs only the helpers in C, whose names never change.
///
/// # Safety
///
/// `size` must not be zero. `size` and `align` must be within the limits of the allocator.
#[inline(never)]
unsafe fn alloc_zeroed(
    size: usize,
    align: usize,
    gfp: Flags,
) -> Result<NonNull<c_void>, AllocError> {
    // SAFETY: By the safety requirements of this function, the allocator accepts `size` and
    // `align`.
    let ptr = unsafe { rust_percpu_ref_alloc_percpu_gfp(size, align, gfp_t(gfp)) };
    NonNull::new(ptr).ok_or(AllocError)
}

/// Drops the first `filled` possible CPUs' values, then frees the memory.
///
/// # Safety
///
/// `ptr` came from [`PerCpu::alloc`], those copies are valid, and nothing uses them any more.
unsafe fn free<T>(ptr: NonNull<c_void>, filled: usize) {
    if mem::needs_drop::<T>() {
        for cpu in possible_cpus().take(filled) {
            // SAFETY: By the function's requirements, the copy is a valid `T` that nothing else
            // uses.
            unsafe { copy_of::<T>(ptr, cpu).drop_in_place() };
        }
    }

    // SAFETY: By the function's requirements, the memory came from the per-CPU allocator and is
    // not in use.
    unsafe { bindings::free_percpu(ptr.as_ptr()) };
}

/// An integer that each CPU changes in its own copy, by the `this_cpu` operations.
///
/// It is to be put into a [`PerCpu`] and has no use elsewhere: there is no way to reach the integer
/// through a `&Local`, so that no reference to it can exist while a CPU changes it.
///
/// All arithmetic wraps. No operation orders any other memory access, and none is atomic towards
/// *other* CPUs, which may only read ([`read_cpu`](PerCpu::read_cpu), [`sum`](PerCpu::sum)).
///
/// # Examples
///
/// ```
/// use kernel::prelude::*;
/// use percpu_ref::percpu::{Local, PerCpu};
///
/// let packets = PerCpu::<Local<u64>>::zeroed(GFP_KERNEL)?;
/// packets.inc();
/// packets.add(2);
/// assert_eq!(packets.sum(), 3);
/// # Ok::<(), Error>(())
/// ```
#[repr(transparent)]
pub struct Local<I>(UnsafeCell<I>);

// SAFETY: A `&Local` gives no access at all. `PerCpu<Local<I>>` has a CPU change its own copy by
// `this_cpu` operations, and read another's by a volatile load, which the kernel's memory model
// lets race with them.
unsafe impl<I: Integer> Sync for Local<I> {}

impl<I: Integer> Local<I> {
    /// Makes one, to be returned by the initialiser of [`PerCpu::new`].
    pub const fn new(value: I) -> Self {
        Self(UnsafeCell::new(value))
    }

    /// The integer, for who has the only reference, as [`PerCpu::iter_mut`] gives out.
    pub fn get_mut(&mut self) -> &mut I {
        self.0.get_mut()
    }
}

impl<I> fmt::Debug for Local<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The integer cannot be reached through a `&Local`.
        f.debug_struct("Local").finish_non_exhaustive()
    }
}

/// The operations may be used in any context, hard interrupts included, but not in NMI.
impl<I: Integer> PerCpu<Local<I>> {
    /// Allocates the integers, all zero.
    ///
    /// May sleep if `gfp` allows blocking, and then needs process context.
    #[doc(alias = "alloc_percpu_gfp")]
    pub fn zeroed(gfp: Flags) -> Result<Self, AllocError> {
        // INVARIANT: The allocator clears the memory, and zero is a valid integer.
        Ok(Self {
            ptr: Self::alloc(gfp)?,
            _values: PhantomData,
        })
    }

    fn raw(&self) -> *mut I {
        self.ptr.as_ptr().cast()
    }

    /// Reads this CPU's copy.
    #[doc(alias = "this_cpu_read")]
    #[inline]
    pub fn read(&self) -> I {
        // SAFETY: By the type invariant of `PerCpu`, `raw()` is per-CPU memory that holds an `I`.
        unsafe { I::this_cpu_read(self.raw()) }
    }

    /// Writes this CPU's copy.
    #[doc(alias = "this_cpu_write")]
    #[inline]
    pub fn write(&self, value: I) {
        // SAFETY: As in `read`.
        unsafe { I::this_cpu_write(self.raw(), value) }
    }

    /// Adds to this CPU's copy.
    #[doc(alias = "this_cpu_add")]
    #[inline]
    pub fn add(&self, value: I) {
        // SAFETY: As in `read`.
        unsafe { I::this_cpu_add(self.raw(), value) }
    }

    /// Subtracts from this CPU's copy.
    #[doc(alias = "this_cpu_sub")]
    #[inline]
    pub fn sub(&self, value: I) {
        self.add(I::ZERO.wrapping_sub(value));
    }

    /// Adds one to this CPU's copy.
    #[doc(alias = "this_cpu_inc")]
    #[inline]
    pub fn inc(&self) {
        self.add(I::ONE);
    }

    /// Subtracts one from this CPU's copy.
    #[doc(alias = "this_cpu_dec")]
    #[inline]
    pub fn dec(&self) {
        self.sub(I::ONE);
    }

    /// Adds to this CPU's copy and returns the new value.
    #[doc(alias = "this_cpu_add_return")]
    #[inline]
    pub fn add_return(&self, value: I) -> I {
        // SAFETY: As in `read`.
        unsafe { I::this_cpu_add_return(self.raw(), value) }
    }

    /// Puts `value` into this CPU's copy and returns the old one.
    #[doc(alias = "this_cpu_xchg")]
    #[inline]
    pub fn xchg(&self, value: I) -> I {
        // SAFETY: As in `read`.
        unsafe { I::this_cpu_xchg(self.raw(), value) }
    }

    /// Puts `new` into this CPU's copy if that is `old`. The value found is returned, as `Ok` if it
    /// was replaced and else as `Err`.
    #[doc(alias = "this_cpu_cmpxchg")]
    #[inline]
    pub fn cmpxchg(&self, old: I, new: I) -> Result<I, I> {
        // SAFETY: As in `read`.
        let found = unsafe { I::this_cpu_cmpxchg(self.raw(), old, new) };
        if found == old {
            Ok(found)
        } else {
            Err(found)
        }
    }

    /// Reads the copy of `cpu`, or returns `None` if that CPU is not possible.
    ///
    /// On a 32-bit machine a 64-bit integer is read in two halves, between which the owner may
    /// write.
    #[doc(alias = "per_cpu_ptr")]
    pub fn read_cpu(&self, cpu: CpuId) -> Option<I> {
        let copy = self.get_cpu(cpu)?;

        // SAFETY: `copy` is a valid `I`. Its CPU may change it meanwhile by a `this_cpu` operation;
        // a volatile load is the kernel's `READ_ONCE()`, which may race with that.
        Some(unsafe { copy.0.get().read_volatile() })
    }

    /// Adds up all copies, CPU by CPU, and wraps.
    ///
    /// While other CPUs change theirs, the sum is one that never need have been true at any time.
    pub fn sum(&self) -> I {
        possible_cpus()
            .filter_map(|cpu| self.read_cpu(cpu))
            .fold(I::ZERO, I::wrapping_add)
    }
}

/// The same inlined, for who has disabled preemption already.
impl PerCpu<Local<u64>> {
    /// Adds to this CPU's copy.
    #[doc(alias = "this_cpu_add")]
    #[inline(always)]
    pub(crate) fn add_inline(&self, value: u64, _guard: &PreemptGuard) {
        // SAFETY: By the type invariant, `raw()` is per-CPU memory that holds a `u64`. The guard
        // says that preemption is disabled.
        unsafe { inline::this_cpu_add(self.raw(), value) };
    }

    /// Adds one to this CPU's copy.
    #[doc(alias = "this_cpu_inc")]
    #[inline(always)]
    pub(crate) fn inc_inline(&self, _guard: &PreemptGuard) {
        // SAFETY: As in `add_inline`.
        unsafe { inline::this_cpu_inc(self.raw()) };
    }

    /// Subtracts one from this CPU's copy.
    #[doc(alias = "this_cpu_dec")]
    #[inline(always)]
    pub(crate) fn dec_inline(&self, _guard: &PreemptGuard) {
        // SAFETY: As in `add_inline`.
        unsafe { inline::this_cpu_dec(self.raw()) };
    }
}

mod private {
    pub trait Sealed {}
}

/// The integers that [`Local`] takes: 8 to 64 bits wide, or as wide as a pointer.
pub trait Integer: private::Sealed + Copy + PartialEq + Send + Sync + 'static {
    #[doc(hidden)]
    const ZERO: Self;
    #[doc(hidden)]
    const ONE: Self;
    #[doc(hidden)]
    fn wrapping_add(self, other: Self) -> Self;
    #[doc(hidden)]
    fn wrapping_sub(self, other: Self) -> Self;

    // # Safety
    //
    // For each of these, `ptr` is the `__percpu` pointer of an allocated `Self`.
    #[doc(hidden)]
    unsafe fn this_cpu_read(ptr: *mut Self) -> Self;
    #[doc(hidden)]
    unsafe fn this_cpu_write(ptr: *mut Self, value: Self);
    #[doc(hidden)]
    unsafe fn this_cpu_add(ptr: *mut Self, value: Self);
    #[doc(hidden)]
    unsafe fn this_cpu_add_return(ptr: *mut Self, value: Self) -> Self;
    #[doc(hidden)]
    unsafe fn this_cpu_xchg(ptr: *mut Self, value: Self) -> Self;
    #[doc(hidden)]
    unsafe fn this_cpu_cmpxchg(ptr: *mut Self, old: Self, new: Self) -> Self;
}

/// Implements [`Integer`] for `$int` by the C helpers for `$bits`, which take `$raw`.
macro_rules! impl_integer {
    ($($int:ty: $raw:ty, $bits:literal;)*) => { ::kernel::macros::paste! { $(
        impl private::Sealed for $int {}

        impl Integer for $int {
            const ZERO: Self = 0;
            const ONE: Self = 1;

            #[inline]
            fn wrapping_add(self, other: Self) -> Self {
                self.wrapping_add(other)
            }

            #[inline]
            fn wrapping_sub(self, other: Self) -> Self {
                self.wrapping_sub(other)
            }

            #[inline]
            unsafe fn this_cpu_read(ptr: *mut Self) -> Self {
                // SAFETY: As the trait's function requires.
                unsafe { [<rust_percpu_ref_this_cpu_read_ $bits>](ptr.cast()) as Self }
            }

            #[inline]
            unsafe fn this_cpu_write(ptr: *mut Self, value: Self) {
                // SAFETY: As the trait's function requires.
                unsafe { [<rust_percpu_ref_this_cpu_write_ $bits>](ptr.cast(), value as $raw) }
            }

            #[inline]
            unsafe fn this_cpu_add(ptr: *mut Self, value: Self) {
                // SAFETY: As the trait's function requires.
                unsafe { [<rust_percpu_ref_this_cpu_add_ $bits>](ptr.cast(), value as $raw) }
            }

            #[inline]
            unsafe fn this_cpu_add_return(ptr: *mut Self, value: Self) -> Self {
                // SAFETY: As the trait's function requires.
                unsafe {
                    [<rust_percpu_ref_this_cpu_add_return_ $bits>](ptr.cast(), value as $raw)
                        as Self
                }
            }

            #[inline]
            unsafe fn this_cpu_xchg(ptr: *mut Self, value: Self) -> Self {
                // SAFETY: As the trait's function requires.
                unsafe {
                    [<rust_percpu_ref_this_cpu_xchg_ $bits>](ptr.cast(), value as $raw) as Self
                }
            }

            #[inline]
            unsafe fn this_cpu_cmpxchg(ptr: *mut Self, old: Self, new: Self) -> Self {
                // SAFETY: As the trait's function requires.
                unsafe {
                    [<rust_percpu_ref_this_cpu_cmpxchg_ $bits>](
                        ptr.cast(),
                        old as $raw,
                        new as $raw,
                    ) as Self
                }
            }
        }
    )* } };
}

/// Declares the C helpers for one width.
macro_rules! extern_this_cpu {
    ($($raw:ty, $bits:literal;)*) => { ::kernel::macros::paste! { extern "C" { $(
        fn [<rust_percpu_ref_this_cpu_read_ $bits>](ptr: *mut $raw) -> $raw;
        fn [<rust_percpu_ref_this_cpu_write_ $bits>](ptr: *mut $raw, value: $raw);
        fn [<rust_percpu_ref_this_cpu_add_ $bits>](ptr: *mut $raw, value: $raw);
        fn [<rust_percpu_ref_this_cpu_add_return_ $bits>](ptr: *mut $raw, value: $raw) -> $raw;
        fn [<rust_percpu_ref_this_cpu_xchg_ $bits>](ptr: *mut $raw, value: $raw) -> $raw;
        fn [<rust_percpu_ref_this_cpu_cmpxchg_ $bits>](
            ptr: *mut $raw,
            old: $raw,
            new: $raw,
        ) -> $raw;
    )* } } };
}

extern_this_cpu! {
    u8, 8;
    u16, 16;
    u32, 32;
    u64, 64;
}

impl_integer! {
    u8: u8, 8;
    i8: u8, 8;
    u16: u16, 16;
    i16: u16, 16;
    u32: u32, 32;
    i32: u32, 32;
    u64: u64, 64;
    i64: u64, 64;
}

#[cfg(target_pointer_width = "64")]
impl_integer! {
    usize: u64, 64;
    isize: u64, 64;
}

#[cfg(target_pointer_width = "32")]
impl_integer! {
    usize: u32, 32;
    isize: u32, 32;
}

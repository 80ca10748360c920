// SPDX-License-Identifier: GPL-2.0

//! Per-CPU memory.
//!
//! A [`PerCpu<T>`] has one `T` for each possible CPU. The CPUs' copies are in different cache
//! lines, so a CPU that works on its own copy does not disturb other CPUs.
//!
//! A [`PerCpuVar<T>`] has the operations on such memory. The memory can be allocated as a
//! [`PerCpu<T>`], can be a static variable ([`define_per_cpu!`](crate::define_per_cpu),
//! [`declare_per_cpu!`](crate::declare_per_cpu)), and can be a field or an element of either
//! ([`PerCpuVar::project`], [`PerCpuVar::element`]).
//!
//! | task | type |
//! |---|---|
//! | count or flag something on each CPU | [`PerCpuVar<Local<V>>`](Local) |
//! | give each CPU an exclusive buffer | [`PerCpuVar<LocalCell<T>>`](LocalCell) |
//! | share a `T: Sync` for each CPU, such as a lock | [`PerCpuVar<T>`] |
//!
//! - [`PerCpuVar<Local<V>>`](Local), for an integer, `bool`, or pointer `V`, has the `this_cpu`
//!   operations. Each operation acts on the copy of the CPU that it runs on, and is atomic with
//!   respect to preemption and to interrupts on that CPU. No guard is needed. On x86-64, as in C,
//!   one instruction changes the copy, and `xchg` is a loop around it.
//! - [`PerCpuVar<T>`] for any other `T` returns `&T`: the local CPU's copy by [`PerCpuVar::get`]
//!   while a [`PreemptGuard`](crate::preempt::PreemptGuard) is held, and any CPU's copy by
//!   [`PerCpuVar::get_cpu`], which is also right for values with locks. Both require `T: Sync`,
//!   because an interrupt on this CPU or code on another CPU can hold the same reference.
//! - [`PerCpuVar<LocalCell<T>>`](LocalCell) calls a closure with a mutable reference to the local
//!   CPU's value, for `T: Send + Unpin`. While the closure runs, interrupts on that CPU get no
//!   reference.
//!
//! A CPU that is offline keeps its copy and the value in it.
//!
//! C headers: [`include/linux/percpu.h`](srctree/include/linux/percpu.h),
//! [`include/linux/percpu-defs.h`](srctree/include/linux/percpu-defs.h)

use crate::{
    alloc::{
        AllocError,
        Flags, //
    },
    bindings,
    cpu::{
        nr_cpu_ids,
        CpuId, //
    },
    cpumask::Cpumask,
    fmt,
    prelude::*, //
};
use core::{
    marker::PhantomData,
    mem::{
        self,
        ManuallyDrop,
        MaybeUninit, //
    },
    ops::Deref,
    ptr::NonNull, //
};

mod arch;
mod cell;
mod local;
mod this_cpu;
mod var;

pub use cell::LocalCell;
#[doc(hidden)]
pub use core::mem::offset_of;
pub use local::{
    Integer,
    Local,
    Primitive,
    Untorn, //
};
#[doc(hidden)]
pub use this_cpu::ThisCpu;
#[doc(hidden)]
pub use var::{
    type_of,
    Template, //
};
pub use var::{
    At,
    Field,
    Offset,
    PerCpuVar,
    Plus,
    Projection, //
};

/// Returns the possible CPUs.
///
/// A [`PerCpu`] has a copy for each possible CPU, online or not.
///
/// # Context
///
/// Can be called from any context.
#[doc(alias = "for_each_possible_cpu")]
pub fn possible_cpus() -> impl Iterator<Item = CpuId> {
    (0..nr_cpu_ids())
        .filter_map(CpuId::from_u32)
        .filter(|&cpu| is_possible(cpu))
}

/// Returns the CPUs that are online.
///
/// The iteration is not over a snapshot: a CPU can go offline during it, or can come online and be
/// left out. A CPU that is offline keeps its copy, so sums go over [`possible_cpus`].
///
/// # Context
///
/// Can be called from any context.
#[doc(alias = "for_each_online_cpu")]
pub fn online_cpus() -> impl Iterator<Item = CpuId> {
    // SAFETY: The mask is a static variable, and its bits can be read while they are changed.
    let online = unsafe { Cpumask::from_raw(&raw const bindings::__cpu_online_mask) };

    (0..nr_cpu_ids())
        .filter_map(CpuId::from_u32)
        .filter(|&cpu| online.test(cpu))
}

/// Returns whether `cpu` is possible.
#[inline]
fn is_possible(cpu: CpuId) -> bool {
    // SAFETY: A `CpuId` is below `nr_cpu_ids`, which is the only requirement of `cpu_possible()`.
    unsafe { bindings::cpu_possible(cpu.as_u32()) }
}

/// An allocated per-CPU variable, with one `T` for each possible CPU.
///
/// Its operations are the methods of [`PerCpuVar`]. A value can have at most 32 KiB
/// (`PCPU_MIN_UNIT_SIZE` in include/linux/percpu.h). A larger value does not compile.
///
/// # Invariants
///
/// `var` is the address of memory that `__alloc_percpu_gfp()` returned for the size and alignment
/// of `T`, and that is not freed. Each possible CPU's copy is a valid `T`, which is pinned.
///
/// # Examples
///
/// ```
/// use kernel::prelude::*;
/// use kernel::percpu::{possible_cpus, Local, PerCpu};
///
/// let mut events = PerCpu::<Local<usize>>::zeroed(GFP_KERNEL)?;
/// events.inc();
/// assert_eq!(events.sum(), 1);
///
/// // The owner can change all copies.
/// for (_cpu, event) in events.iter_mut() {
///     *event.get_mut() = 2;
/// }
/// assert_eq!(events.sum(), 2 * possible_cpus().count());
/// # Ok::<(), Error>(())
/// ```
#[doc(alias("alloc_percpu", "__percpu"))]
pub struct PerCpu<T> {
    var: PerCpuVar<T>,
    _owns: PhantomData<T>,
}

// SAFETY: A `PerCpu<T>` owns its values. Another thread can use and drop them if `T` is `Send`.
unsafe impl<T: Send> Send for PerCpu<T> {}

// SAFETY: A `&PerCpu<T>` gives access to `&T` only, which `T: Sync` allows on any thread.
unsafe impl<T: Sync> Sync for PerCpu<T> {}

impl<T> Deref for PerCpu<T> {
    type Target = PerCpuVar<T>;

    #[inline(always)]
    fn deref(&self) -> &PerCpuVar<T> {
        &self.var
    }
}

impl<T> PerCpu<T> {
    /// Fails the build for values beyond the limits of the allocator, which it would warn about at
    /// run time.
    const FITS: () = assert!(
        size_of::<T>() <= 32 << 10 && align_of::<T>() <= 4096,
        "too large for a per-CPU allocation: at most PCPU_MIN_UNIT_SIZE, aligned to a page"
    );

    /// Allocates zeroed memory for one `T` on each possible CPU.
    fn alloc(gfp: Flags) -> Result<NonNull<c_void>, AllocError> {
        const { Self::FITS };

        // `pcpu_alloc_noprof()` refuses a size of zero.
        let size = size_of::<T>().max(1);

        // SAFETY: `FITS` asserts that size and alignment are within the limits of the allocator.
        unsafe { alloc_zeroed(size, align_of::<T>(), gfp) }
    }

    /// Allocates per-CPU memory and initialises each possible CPU's copy.
    ///
    /// `init` is called for each possible CPU and returns a value, or an initialiser that makes one
    /// in place. The values are pinned.
    ///
    /// Fails with `ENOMEM` if there is no memory, and with the error of an initialiser that fails.
    /// Then the values that were made before are dropped and the memory is freed.
    ///
    /// # Context
    ///
    /// If `gfp` allows blocking, may sleep and must be called from process context. Otherwise, can
    /// be called from any context except NMI and hard interrupts, because the allocator takes a
    /// `spinlock_t`. On PREEMPT_RT, must not be called with preemption disabled.
    ///
    /// # Examples
    ///
    /// ```
    /// use kernel::{prelude::*, sync::atomic::{Atomic, Relaxed}};
    /// use kernel::{percpu::PerCpu, preempt::PreemptGuard};
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
        /// Undoes an incomplete allocation when it is dropped.
        struct Partial<T> {
            ptr: NonNull<c_void>,
            filled: usize,
            _values: PhantomData<T>,
        }

        impl<T> Drop for Partial<T> {
            fn drop(&mut self) {
                // SAFETY: `new()` filled the copies of the first `filled` possible CPUs, and no
                // other code has the address of the allocation.
                unsafe { free::<T>(self.ptr, self.filled) };
            }
        }

        let mut partial = Partial::<T> {
            ptr: Self::alloc(gfp)?,
            filled: 0,
            _values: PhantomData,
        };
        for cpu in possible_cpus() {
            // SAFETY: `cpu` is possible, so this is its copy, which is in bounds and aligned. No
            // other code has its address. The reference is not used after the memory is freed.
            let copy: &'static mut MaybeUninit<T> =
                unsafe { copy_of::<T>(partial.ptr, cpu).cast().as_mut() };

            copy.write_pin_init(init(cpu))?;
            partial.filled += 1;
        }

        // SAFETY: The loop filled each possible CPU's copy. Since `partial` is not dropped, the
        // memory is not freed.
        Ok(unsafe { Self::from_raw(ManuallyDrop::new(partial).ptr) })
    }

    /// Allocates zeroed per-CPU memory.
    ///
    /// Fails if there is no memory.
    ///
    /// # Context
    ///
    /// If `gfp` allows blocking, may sleep and must be called from process context. Otherwise, can
    /// be called from any context except NMI and hard interrupts, because the allocator takes a
    /// `spinlock_t`. On PREEMPT_RT, must not be called with preemption disabled.
    #[doc(alias("alloc_percpu_gfp", "alloc_percpu"))]
    pub fn zeroed(gfp: Flags) -> Result<Self, AllocError>
    where
        T: Zeroable + 'static,
    {
        let ptr = Self::alloc(gfp)?;

        // SAFETY: The allocator zeroes the memory, which makes each copy a valid `T`, because `T`
        // is `Zeroable`.
        Ok(unsafe { Self::from_raw(ptr) })
    }

    /// Converts the allocation into a raw pointer, which [`PerCpu::from_raw`] converts back.
    ///
    /// The pointer is aligned to `align_of::<T>()`, so the caller can use the low bits.
    pub(crate) fn into_raw(self) -> NonNull<c_void> {
        ManuallyDrop::new(self).var.base()
    }

    /// Converts back from the pointer that [`PerCpu::into_raw`] returned.
    ///
    /// # Safety
    ///
    /// The invariants of the type must hold for `ptr`. Of all values made from `ptr`, only one must
    /// be dropped, and none must be used after that.
    #[inline(always)]
    pub(crate) unsafe fn from_raw(ptr: NonNull<c_void>) -> Self {
        // INVARIANT: By the safety requirements of this function, the invariants hold for `ptr`.
        Self {
            // SAFETY: By the safety requirements of this function, the copies are valid as long as
            // this exists.
            var: unsafe { PerCpuVar::from_raw(ptr) },
            _owns: PhantomData,
        }
    }
}

impl<T> PerCpu<T> {
    /// Returns an iterator over pinned mutable references to all copies.
    ///
    /// # Context
    ///
    /// Can be called from any context.
    #[doc(alias("for_each_possible_cpu", "per_cpu_ptr"))]
    pub fn iter_pin_mut(&mut self) -> impl Iterator<Item = (CpuId, Pin<&mut T>)> {
        let var = &self.var;

        possible_cpus().map(move |cpu| {
            // SAFETY: `cpu` is possible, so by the type invariant, this is a valid `T`, which is
            // pinned. `&mut self` is the only reference to all copies, and the iterator returns
            // each copy once.
            (cpu, unsafe {
                Pin::new_unchecked(var.copy_of(cpu).as_mut())
            })
        })
    }

    /// Returns an iterator over mutable references to all copies.
    ///
    /// # Context
    ///
    /// Can be called from any context.
    #[doc(alias("for_each_possible_cpu", "per_cpu_ptr"))]
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (CpuId, &mut T)>
    where
        T: Unpin,
    {
        self.iter_pin_mut()
            .map(|(cpu, copy)| (cpu, Pin::into_inner(copy)))
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
    /// Drops the values of all CPUs, on the CPU that calls this, and frees the memory.
    ///
    /// # Context
    ///
    /// Can be called from any context in which `T` can be dropped, except NMI and hard interrupts,
    /// because `free_percpu()` takes a `spinlock_t`. On PREEMPT_RT, must not be called with
    /// preemption disabled.
    #[doc(alias = "free_percpu")]
    fn drop(&mut self) {
        // SAFETY: By the type invariant, each possible CPU's copy is a valid `T`. `&mut self` is
        // the only reference, and the memory is not used after this.
        unsafe { free::<T>(self.var.base(), usize::MAX) };
    }
}

/// Returns the address of `cpu`'s copy of the `T` at `ptr`.
///
/// # Safety
///
/// `ptr` must have come from [`PerCpu::alloc`] and must not have been freed. `cpu` must be
/// possible.
unsafe fn copy_of<T>(ptr: NonNull<c_void>, cpu: CpuId) -> NonNull<T> {
    // SAFETY: By the safety requirements of this function, `cpu` is possible.
    let copy = unsafe { arch::per_cpu_ptr(ptr.as_ptr(), cpu.as_u32()) };

    // SAFETY: The copy of a possible CPU has an address, which is not null.
    unsafe { NonNull::new_unchecked(copy.cast()) }
}

/// Allocates zeroed memory on each possible CPU.
///
/// This function is out of line because its mangled name changes with the library. The kernel
/// therefore refuses to load a user of [`PerCpu`] that was built against another library, even if
/// the user needs only C helpers besides, whose names never change.
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
    let ptr = unsafe { bindings::__alloc_percpu_gfp(size, align, gfp.as_raw()) };
    NonNull::new(ptr).ok_or(AllocError)
}

/// Drops the values of the first `filled` possible CPUs, then frees the memory.
///
/// # Safety
///
/// `ptr` must have come from [`PerCpu::alloc`]. The copies of the first `filled` possible CPUs must
/// be valid. The memory must not be used after this.
unsafe fn free<T>(ptr: NonNull<c_void>, filled: usize) {
    if mem::needs_drop::<T>() {
        for cpu in possible_cpus().take(filled) {
            // SAFETY: By the safety requirements of this function, the copy is a valid `T`, which
            // is not used after this.
            unsafe { copy_of::<T>(ptr, cpu).drop_in_place() };
        }
    }

    // SAFETY: By the safety requirements of this function, the memory came from the per-CPU
    // allocator and is not used after this.
    unsafe { bindings::free_percpu(ptr.as_ptr()) };
}

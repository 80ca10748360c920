// SPDX-License-Identifier: GPL-2.0

//! Per-CPU memory.
//!
//! A [`PerCpu<T>`] is one `T` for each possible CPU. The CPUs' copies lie in different cache lines,
//! so a CPU that works on its own copy disturbs no other CPU.
//!
//! A [`PerCpuVar<T>`] is how such memory is used, whether it was allocated as a [`PerCpu<T>`], is a
//! static variable ([`define_per_cpu!`](crate::define_per_cpu),
//! [`declare_per_cpu!`](crate::declare_per_cpu)), or is a field or an element of either of them
//! ([`PerCpuVar::project`], [`PerCpuVar::element`]):
//!
//! - [`PerCpuVar<Local<V>>`](Local), for an integer, `bool`, or pointer `V`, has the `this_cpu`
//!   operations. Each operation acts on the copy of the CPU that it runs on, and is atomic with
//!   respect to preemption and to interrupts on that CPU. No guard is needed. On x86-64, as
//!   in C, one instruction changes the copy, and `xchg` is a loop around it.
//! - [`PerCpuVar<T>`] for any other `T` hands out `&T`: the local CPU's copy by [`PerCpuVar::get`]
//!   while a [`PreemptGuard`](crate::preempt::PreemptGuard) is held, and any CPU's copy by
//!   [`PerCpuVar::get_cpu`], which is also right for values with locks. Both require `T: Sync`,
//!   because an interrupt on this CPU or code on another CPU can hold the same reference.
//! - [`PerCpuVar<LocalCell<T>>`](LocalCell) calls a closure with a mutable reference to the local
//!   CPU's value, for `T: Send + Unpin`. While the closure runs, an interrupt on that CPU gets
//!   none.
//!
//! A CPU that is offline keeps its copy, and the value in it.
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

/// Returns the possible CPUs: those that a [`PerCpu`] has a copy for, online or not.
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
/// The CPUs are not a snapshot: during the iteration a CPU can go offline, or come online and be
/// left out. A CPU that is offline keeps its copy, so sums go over [`possible_cpus`].
///
/// # Context
///
/// Can be called from any context.
#[doc(alias = "for_each_online_cpu")]
pub fn online_cpus() -> impl Iterator<Item = CpuId> {
    // SAFETY: The mask is always there, and its bits can be read while they are changed.
    let online = unsafe { Cpumask::from_raw(&raw const bindings::__cpu_online_mask) };

    (0..nr_cpu_ids())
        .filter_map(CpuId::from_u32)
        .filter(|&cpu| online.test(cpu))
}

/// Returns whether `cpu` is possible.
#[inline]
fn is_possible(cpu: CpuId) -> bool {
    // SAFETY: A `CpuId` is below `nr_cpu_ids`, which is all that `cpu_possible()` asks for.
    unsafe { bindings::cpu_possible(cpu.as_u32()) }
}

/// A per-CPU variable that was allocated: one `T` for each possible CPU.
///
/// It is used by the methods of [`PerCpuVar`]. A value can have 32 KiB (`PCPU_MIN_UNIT_SIZE` in
/// include/linux/percpu.h); a larger one does not compile.
///
/// # Invariants
///
/// `var` is the address of what `__alloc_percpu_gfp()` returned for the size and alignment of `T`,
/// and is not freed. Each possible CPU's copy is a valid `T`, which is pinned.
#[doc(alias("alloc_percpu", "__percpu"))]
pub struct PerCpu<T> {
    var: PerCpuVar<T>,
    _owns: PhantomData<T>,
}

// SAFETY: A `PerCpu<T>` owns its values, which can be used and dropped on another thread if `T` is
// `Send`.
unsafe impl<T: Send> Send for PerCpu<T> {}

// SAFETY: A `&PerCpu<T>` gives access to `&T` only, which is `Send` if `T` is `Sync`.
unsafe impl<T: Sync> Sync for PerCpu<T> {}

impl<T> Deref for PerCpu<T> {
    type Target = PerCpuVar<T>;

    #[inline(always)]
    fn deref(&self) -> &PerCpuVar<T> {
        &self.var
    }
}

impl<T> PerCpu<T> {
    /// Fails the build beyond the limits that the allocator warns about at run time.
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
    /// be called from any context except NMI; on PREEMPT_RT, must not be called from hard
    /// interrupts or with preemption disabled.
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
        /// Undoes a half-made allocation when it is dropped.
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
            // SAFETY: `cpu` is possible, so this is its copy: in bounds and aligned. No other code
            // has its address. The memory is freed after the value in it is dropped.
            let copy: &'static mut MaybeUninit<T> =
                unsafe { copy_of::<T>(partial.ptr, cpu).cast().as_mut() };

            copy.write_pin_init(init(cpu))?;
            partial.filled += 1;
        }

        // SAFETY: The loop filled each possible CPU's copy. Since `partial` is not dropped, the
        // memory is not freed.
        Ok(unsafe { Self::from_raw(ManuallyDrop::new(partial).ptr) })
    }

    /// Allocates per-CPU memory, which is cleared.
    ///
    /// Fails if there is no memory.
    ///
    /// # Context
    ///
    /// If `gfp` allows blocking, may sleep and must be called from process context. Otherwise, can
    /// be called from any context except NMI; on PREEMPT_RT, must not be called from hard
    /// interrupts or with preemption disabled.
    #[doc(alias("alloc_percpu_gfp", "alloc_percpu"))]
    pub fn zeroed(gfp: Flags) -> Result<Self, AllocError>
    where
        T: Zeroable + 'static,
    {
        let ptr = Self::alloc(gfp)?;

        // SAFETY: The allocator clears the memory, which makes a valid `T` of each copy.
        Ok(unsafe { Self::from_raw(ptr) })
    }

    /// Converts into a raw pointer, which [`PerCpu::from_raw`] converts back.
    ///
    /// The pointer is aligned to `align_of::<T>()`, so the caller can use the bits below.
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
        // INVARIANT: By the safety requirements of this function.
        Self {
            // SAFETY: By the safety requirements of this function, there are valid copies as long
            // as this exists.
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
            // SAFETY: `cpu` is possible, so by the type invariant this is a valid `T`, which is
            // pinned. We have the only reference to all copies, and the iterator returns each copy
            // once.
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
    /// Drops the values of all CPUs on the CPU that runs this, and frees the memory.
    ///
    /// # Context
    ///
    /// Can be called from any context that `T` can be dropped in, except NMI and hard interrupts:
    /// `free_percpu()` takes a `spinlock_t`. On PREEMPT_RT, must not be called with preemption
    /// disabled either.
    #[doc(alias = "free_percpu")]
    fn drop(&mut self) {
        // SAFETY: By the type invariant, each possible CPU's copy is a valid `T`. We have the only
        // reference, and the memory is not used after this.
        unsafe { free::<T>(self.var.base(), usize::MAX) };
    }
}

/// Returns the address of `cpu`'s copy of the `T` at `ptr`.
///
/// # Safety
///
/// `ptr` must have come from [`PerCpu::alloc`] and must not be freed. `cpu` must be possible.
unsafe fn copy_of<T>(ptr: NonNull<c_void>, cpu: CpuId) -> NonNull<T> {
    // SAFETY: By the safety requirements of this function, `cpu` is possible.
    let copy = unsafe { arch::per_cpu_ptr(ptr.as_ptr(), cpu.as_u32()) };

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
    let ptr = unsafe { bindings::__alloc_percpu_gfp(size, align, gfp.as_raw()) };
    NonNull::new(ptr).ok_or(AllocError)
}

/// Drops the values of the first `filled` possible CPUs, then frees the memory.
///
/// # Safety
///
/// `ptr` must have come from [`PerCpu::alloc`]. The copies of those CPUs must be valid. The memory
/// must not be used after this.
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

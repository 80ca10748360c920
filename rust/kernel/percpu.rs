// SPDX-License-Identifier: GPL-2.0

//! Per-CPU memory.
//!
//! A [`PerCpu<T>`] is one `T` for each possible CPU. The CPUs' copies lie in different cache lines,
//! so a CPU that works on its own copy disturbs no other CPU.
//!
//! There are two ways to use a [`PerCpu`]:
//!
//! - [`PerCpu<Local<I>>`](Local), for an integer `I`, has the `this_cpu` operations. Each operation
//!   acts on the copy of the CPU that it runs on, and is atomic with respect to preemption and to
//!   interrupts on that CPU. No guard is needed.
//! - [`PerCpu<T>`] for any other `T` hands out `&T`: the local CPU's copy by [`PerCpu::get`] while
//!   a [`PreemptGuard`] is held, and any CPU's copy by [`PerCpu::get_cpu`]. Both require `T: Sync`,
//!   because an interrupt on this CPU or code on another CPU can hold the same reference.
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
    fmt,
    preempt::PreemptGuard,
    prelude::*, //
};
use core::{
    marker::PhantomData,
    mem::{
        self,
        ManuallyDrop,
        MaybeUninit, //
    },
    ptr::NonNull, //
};

mod arch;
mod local;

pub use local::{
    Integer,
    Local, //
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

/// Returns whether `cpu` is possible.
fn is_possible(cpu: CpuId) -> bool {
    // SAFETY: A `CpuId` is below `nr_cpu_ids`, which is all that `cpu_possible()` asks for.
    unsafe { bindings::cpu_possible(cpu.as_u32()) }
}

/// One `T` for each possible CPU.
///
/// # Invariants
///
/// `ptr` came from `__alloc_percpu_gfp()` with the size and alignment of `T` and is not freed. Each
/// possible CPU's copy is a valid `T`, which is pinned.
#[doc(alias("alloc_percpu", "__percpu"))]
pub struct PerCpu<T> {
    ptr: NonNull<c_void>,
    _values: PhantomData<T>,
}

// SAFETY: A `PerCpu<T>` owns its values, which can be used and dropped on another thread if `T` is
// `Send`.
unsafe impl<T: Send> Send for PerCpu<T> {}

// SAFETY: A `&PerCpu<T>` gives access to `&T` only, which is `Send` if `T` is `Sync`.
unsafe impl<T: Sync> Sync for PerCpu<T> {}

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
    /// May sleep if `gfp` allows blocking, and then must be called from process context.
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
                unsafe { copy_of::<MaybeUninit<T>>(partial.ptr, cpu).as_mut() };

            copy.write_pin_init(init(cpu))?;
            partial.filled += 1;
        }

        // INVARIANT: The loop filled each possible CPU's copy. Since `partial` is not dropped, the
        // memory is not freed.
        Ok(Self {
            ptr: ManuallyDrop::new(partial).ptr,
            _values: PhantomData,
        })
    }

    /// Converts into a raw pointer, which [`PerCpu::from_raw`] converts back.
    ///
    /// The pointer is aligned to `align_of::<T>()`, so the caller can use the bits below.
    pub(crate) fn into_raw(self) -> NonNull<c_void> {
        ManuallyDrop::new(self).ptr
    }

    /// Converts back from the pointer that [`PerCpu::into_raw`] returned.
    ///
    /// # Safety
    ///
    /// `ptr` must have come from [`PerCpu::into_raw`] of the same type. Of all values made from
    /// `ptr`, only one must be dropped, and none must be used after that.
    pub(crate) unsafe fn from_raw(ptr: NonNull<c_void>) -> Self {
        // INVARIANT: By the safety requirements of this function, the invariant held for the value
        // that was given to `into_raw()`, and the memory was not freed since.
        Self {
            ptr,
            _values: PhantomData,
        }
    }
}

impl<T: Sync> PerCpu<T> {
    /// Returns a reference to this CPU's copy.
    ///
    /// The guard keeps the task on this CPU for as long as the reference lives. Interrupts on this
    /// CPU can still use the same copy.
    ///
    /// # Context
    ///
    /// Can be called from any context.
    #[doc(alias("this_cpu_ptr", "get_cpu_ptr"))]
    pub fn get<'a>(&'a self, _guard: &'a PreemptGuard) -> &'a T {
        // SAFETY: By the type invariant, this is this CPU's copy and a valid `T`. Preemption is
        // disabled, as `this_cpu_ptr()` asks for under `CONFIG_DEBUG_PREEMPT`.
        unsafe { &*bindings::this_cpu_ptr(self.ptr.as_ptr()).cast() }
    }

    /// Returns a reference to the copy of `cpu`, or `None` if that CPU is not possible.
    ///
    /// # Context
    ///
    /// Can be called from any context.
    #[doc(alias = "per_cpu_ptr")]
    pub fn get_cpu(&self, cpu: CpuId) -> Option<&T> {
        if !is_possible(cpu) {
            return None;
        }

        // SAFETY: `cpu` is possible, so by the type invariant this is a valid `T`. It is only
        // shared, and `T` is `Sync`.
        Some(unsafe { copy_of::<T>(self.ptr, cpu).as_ref() })
    }

    /// Returns an iterator over all copies.
    ///
    /// The copies are not a snapshot: other CPUs can change theirs during the iteration.
    ///
    /// # Context
    ///
    /// Can be called from any context.
    #[doc(alias = "for_each_possible_cpu")]
    pub fn iter(&self) -> impl Iterator<Item = (CpuId, &T)> {
        possible_cpus().filter_map(|cpu| Some((cpu, self.get_cpu(cpu)?)))
    }
}

impl<T> PerCpu<T> {
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
        let ptr = self.ptr;

        possible_cpus().map(move |cpu| {
            // SAFETY: `cpu` is possible, so by the type invariant this is a valid `T`. We have the
            // only reference to all copies, and the iterator returns each copy once.
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
        unsafe { free::<T>(self.ptr, usize::MAX) };
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

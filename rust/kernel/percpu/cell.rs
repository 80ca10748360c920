// SPDX-License-Identifier: GPL-2.0

//! Exclusive access to the local CPU's value.

use super::{
    var::Offset,
    PerCpuVar, //
};
use crate::{
    fmt,
    preempt::PreemptGuard,
    prelude::*,
    sync::atomic::{
        Acquire,
        Atomic,
        Relaxed,
        Release, //
    }, //
};
use core::{
    cell::UnsafeCell,
    sync::atomic::{
        compiler_fence,
        Ordering, //
    }, //
};

/// A value of which each CPU has a copy, with exclusive access for one user at a time.
///
/// A `LocalCell` is useful only in per-CPU memory, where [`PerCpuVar::with`] gives a mutable
/// reference to the local CPU's value. The value need not be `Sync`. While code has a reference, an
/// interrupt of that code gets none. A value that interrupts must always be able to change belongs
/// in a [`Local`](super::Local) or behind a lock.
///
/// # Invariants
///
/// While `is_used` is set, one call of [`PerCpuVar::with`] has the reference to the value.
/// `is_used` is set only by code that keeps preemption disabled on the CPU of this copy.
///
/// # Examples
///
/// ```
/// use kernel::{define_per_cpu, percpu::LocalCell};
///
/// define_per_cpu! {
///     /// Where a packet is put together.
///     static SCRATCH: LocalCell<[u8; 64]> = LocalCell::new([0; 64]);
/// }
///
/// let sum = SCRATCH.with(|bytes| {
///     bytes.fill(2);
///     bytes.iter().map(|&byte| u32::from(byte)).sum::<u32>()
/// });
/// assert_eq!(sum, Some(128));
/// ```
///
/// A large value is allocated, and cleared in place:
///
/// ```
/// use kernel::{percpu::{LocalCell, PerCpu}, prelude::*};
///
/// let scratch = PerCpu::<LocalCell<[u8; 8192]>>::zeroed(GFP_KERNEL)?;
/// scratch.with(|bytes| bytes.fill(1)).ok_or(EBUSY)?;
/// # Ok::<(), Error>(())
/// ```
#[doc(alias = "get_cpu_var")]
pub struct LocalCell<T> {
    is_used: Atomic<u32>,
    value: UnsafeCell<T>,
}

// SAFETY: By the type invariant, one call of `with()` at a time has a reference to the value. Any
// thread can make the call, which `T: Send` allows.
unsafe impl<T: Send> Sync for LocalCell<T> {}

// SAFETY: Zero is valid for each field: the flag is clear, and `T` is `Zeroable`.
unsafe impl<T: Zeroable> Zeroable for LocalCell<T> {}

impl<T> LocalCell<T> {
    /// Creates a value, for the initialiser of [`PerCpu::new`](super::PerCpu::new) or of a static
    /// variable.
    #[inline]
    pub const fn new(value: T) -> Self {
        // INVARIANT: There is no reference to the value.
        Self {
            is_used: Atomic::new(0),
            value: UnsafeCell::new(value),
        }
    }

    /// Returns a mutable reference to the value.
    #[inline]
    pub fn get_mut(&mut self) -> &mut T {
        self.value.get_mut()
    }
}

impl<T> fmt::Debug for LocalCell<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalCell").finish_non_exhaustive()
    }
}

impl<T: Send + Unpin, O: Offset> PerCpuVar<LocalCell<T>, O> {
    /// Calls `use_value` with this CPU's value, and returns its result.
    ///
    /// Returns `None` without the call if the value is in use on this CPU: by the caller, or by
    /// code that the caller has interrupted. Also returns `None` if preemption was disabled too
    /// often, see [`PreemptGuard::try_new`].
    ///
    /// # Context
    ///
    /// Can be called from any context. Preemption is disabled while `use_value` runs, so it must
    /// not sleep. On PREEMPT_RT, it must not allocate or free memory, and must not take a
    /// `SpinLock`.
    #[doc(alias("get_cpu_var", "put_cpu_var", "get_cpu_ptr", "put_cpu_ptr"))]
    #[must_use = "`None` means that the value was in use, and that the closure was not called"]
    #[inline]
    pub fn with<R>(&self, use_value: impl FnOnce(&mut T) -> R) -> Option<R> {
        let guard = PreemptGuard::try_new()?;
        let cell = self.get(&guard);

        // An interrupt that comes between the load and the store has ended before the store, so it
        // has cleared the flag again. `Acquire` pairs with the `Release` below, in case the last
        // user slept, which is not allowed, and was migrated to another CPU (litmus: cell-moved).
        if cell.is_used.load(Acquire) != 0 {
            return None;
        }
        // INVARIANT: Preemption is disabled and the flag was clear, so this call has the only
        // reference.
        cell.is_used.store(1, Relaxed);
        // No access to the value must come before the store. An interrupt on this CPU sees accesses
        // of this CPU in program order, so only the compiler must be stopped.
        compiler_fence(Ordering::SeqCst);

        // SAFETY: By the type invariant, this is the only reference to the value.
        let result = use_value(unsafe { &mut *cell.value.get() });

        // INVARIANT: The reference is not used any more. Pairs with the `Acquire` above
        // (litmus: cell-moved).
        cell.is_used.store(0, Release);
        Some(result)
    }
}

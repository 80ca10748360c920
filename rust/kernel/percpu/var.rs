// SPDX-License-Identifier: GPL-2.0

//! Per-CPU variables, independent of where their memory is.

use super::{
    arch,
    is_possible,
    possible_cpus, //
};
use crate::{
    cpu::CpuId,
    fmt,
    preempt::PreemptGuard,
    prelude::*, //
};
use core::{
    cell::UnsafeCell,
    marker::PhantomData,
    ops::Deref,
    ptr::NonNull, //
};

/// A per-CPU variable, with one `T` for each possible CPU.
///
/// A [`PerCpu<T>`](super::PerCpu) owns one, [`define_per_cpu!`](crate::define_per_cpu) defines one,
/// and a [`Projection`] borrows a part of one. `O` is the offset of that part. It is a constant, so
/// a projection does not store it, and on x86-64 it is a part of the instruction.
///
/// # Invariants
///
/// As long as there is a reference to this, `ptr` plus the offset `O` is a `__percpu` pointer. Each
/// possible CPU's copy is a valid `T`, which is pinned. Other code has only shared references to
/// it.
///
/// # Examples
///
/// ```
/// use kernel::{define_per_cpu, percpu::Local, preempt::PreemptGuard};
/// use kernel::sync::atomic::{Atomic, Relaxed};
///
/// define_per_cpu! {
///     static EVENTS: Local<usize> = Local::new(0);
///     static LAST: Atomic<u32> = Atomic::new(0);
/// }
///
/// // An operation on the copy of the CPU that it runs on.
/// EVENTS.inc();
///
/// // A reference to the copy of the CPU that the guard keeps the task on.
/// let guard = PreemptGuard::new();
/// LAST.get(&guard).store(7, Relaxed);
/// drop(guard);
///
/// // All copies.
/// assert_eq!(EVENTS.sum(), 1);
/// assert_eq!(LAST.iter().filter(|(_, last)| last.load(Relaxed) == 7).count(), 1);
/// ```
#[doc(alias = "__percpu")]
pub struct PerCpuVar<T, O: Offset = At<0>> {
    ptr: NonNull<c_void>,
    _values: PhantomData<(T, fn() -> O)>,
}

// SAFETY: A `PerCpuVar<T>` owns nothing. It gives other threads access to `&T` only, which
// `T: Sync` allows.
unsafe impl<T: Sync, O: Offset> Send for PerCpuVar<T, O> {}

// SAFETY: A `&PerCpuVar<T>` gives other threads access to `&T` only, which `T: Sync` allows.
unsafe impl<T: Sync, O: Offset> Sync for PerCpuVar<T, O> {}

impl<T, O: Offset> PerCpuVar<T, O> {
    /// Creates a variable from its address.
    ///
    /// # Safety
    ///
    /// The invariants of the type must hold for `ptr`.
    pub(super) const unsafe fn from_raw(ptr: NonNull<c_void>) -> Self {
        // INVARIANT: By the safety requirements of this function, the invariants hold for `ptr`.
        Self {
            ptr,
            _values: PhantomData,
        }
    }

    /// Returns the `__percpu` pointer without the offset `O`, which the caller must add.
    #[inline(always)]
    pub(super) const fn base(&self) -> NonNull<c_void> {
        self.ptr
    }

    /// Returns the address of `cpu`'s copy.
    ///
    /// # Safety
    ///
    /// `cpu` must be possible.
    #[inline]
    pub(super) unsafe fn copy_of(&self, cpu: CpuId) -> NonNull<T> {
        let ptr = self.ptr.as_ptr().wrapping_byte_add(O::BYTES);
        // SAFETY: By the safety requirements of this function, `cpu` is possible.
        let copy = unsafe { arch::per_cpu_ptr(ptr, cpu.as_u32()) };

        // SAFETY: The copy of a possible CPU has an address, which is not null.
        unsafe { NonNull::new_unchecked(copy.cast()) }
    }

    /// Returns a field of this variable, which is a per-CPU variable as well.
    ///
    /// # Context
    ///
    /// Can be called from any context.
    ///
    /// # Examples
    ///
    /// ```
    /// use kernel::{percpu_field, prelude::*};
    /// use kernel::percpu::{Local, PerCpu};
    ///
    /// #[derive(Zeroable)]
    /// struct Stats {
    ///     packets: Local<usize>,
    ///     errors: [Local<u32>; 4],
    /// }
    ///
    /// let stats = PerCpu::<Stats>::zeroed(GFP_KERNEL)?;
    /// stats.project(percpu_field!(Stats, packets)).inc();
    /// if let Some(errors) = stats.project(percpu_field!(Stats, errors)).element(2) {
    ///     errors.add(5);
    /// }
    ///
    /// assert_eq!(stats.project(percpu_field!(Stats, packets)).sum(), 1);
    /// # Ok::<(), Error>(())
    /// ```
    #[inline(always)]
    pub fn project<F, P: Offset>(&self, _field: Field<T, F, P>) -> Projection<'_, F, Plus<O, P>> {
        // SAFETY: By the type invariant of `Field`, there is a valid `F` at this offset in each
        // `T`. The projection borrows this variable.
        unsafe { Projection::new(self.ptr) }
    }
}

impl<T, const N: usize, O: Offset> PerCpuVar<[T; N], O> {
    /// Returns the element at `index`, or `None` if there is no such element.
    ///
    /// The element is a per-CPU variable as well.
    ///
    /// # Context
    ///
    /// Can be called from any context.
    #[inline(always)]
    pub fn element(&self, index: usize) -> Option<Projection<'_, T, O>> {
        let element = self.ptr.as_ptr().cast::<T>().wrapping_add(index);

        (index < N).then(|| {
            // SAFETY: `index < N`, so this is an element of the array: its address is not null, and
            // there is a valid `T` in each copy. The projection borrows this variable.
            unsafe { Projection::new(NonNull::new_unchecked(element.cast())) }
        })
    }
}

impl<T: Sync, O: Offset> PerCpuVar<T, O> {
    /// Returns a reference to this CPU's copy.
    ///
    /// The guard keeps the task on this CPU as long as the reference exists. Interrupts on this CPU
    /// can use the same copy at any time.
    ///
    /// If the value has a lock, use [`get_cpu`](Self::get_cpu) of
    /// [`CpuId::current`](crate::cpu::CpuId::current) instead: the lock protects the value even if
    /// the task is migrated to another CPU. On PREEMPT_RT, a spinlock must not be taken with
    /// preemption disabled.
    ///
    /// # Context
    ///
    /// Can be called from any context.
    #[doc(alias("this_cpu_ptr", "get_cpu_ptr"))]
    #[inline]
    pub fn get<'a>(&'a self, _guard: &'a PreemptGuard) -> &'a T {
        let ptr = self.ptr.as_ptr().wrapping_byte_add(O::BYTES);

        // SAFETY: Preemption is disabled, so by the type invariant, this is this CPU's copy and a
        // valid `T`. Other code has only shared references to it, and `T` is `Sync`.
        unsafe { &*arch::this_cpu_ptr(ptr).cast() }
    }

    /// Returns a reference to the copy of `cpu`, or `None` if that CPU is not possible.
    ///
    /// # Context
    ///
    /// Can be called from any context.
    ///
    /// # Examples
    ///
    /// A value with a lock needs no guard. If the task is migrated while it has the reference, it
    /// continues to use the copy of the old CPU.
    ///
    /// ```
    /// use kernel::{cpu::CpuId, new_spinlock, percpu::PerCpu, prelude::*, sync::SpinLock};
    ///
    /// let queues = PerCpu::<SpinLock<u32>>::new(|_| new_spinlock!(0), GFP_KERNEL)?;
    ///
    /// let queue = queues.get_cpu(CpuId::current()).ok_or(EINVAL)?;
    /// *queue.lock() += 1;
    /// # Ok::<(), Error>(())
    /// ```
    #[doc(alias("per_cpu_ptr", "raw_cpu_ptr"))]
    #[inline]
    pub fn get_cpu(&self, cpu: CpuId) -> Option<&T> {
        if !is_possible(cpu) {
            return None;
        }

        // SAFETY: `cpu` is possible, so by the type invariant, this is a valid `T`. Other code has
        // only shared references to it, and `T` is `Sync`.
        Some(unsafe { self.copy_of(cpu).as_ref() })
    }

    /// Returns an iterator over the copies of all possible CPUs.
    ///
    /// The iteration is not over a snapshot: other CPUs can change their copies during it.
    ///
    /// # Context
    ///
    /// Can be called from any context.
    #[doc(alias = "for_each_possible_cpu")]
    pub fn iter(&self) -> impl Iterator<Item = (CpuId, &T)> {
        possible_cpus().filter_map(|cpu| Some((cpu, self.get_cpu(cpu)?)))
    }
}

impl<T, O: Offset> fmt::Debug for PerCpuVar<T, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PerCpuVar")
            .field("of", &core::any::type_name::<T>())
            .finish_non_exhaustive()
    }
}

/// A part of a per-CPU variable, borrowed from it by [`PerCpuVar::project`] or
/// [`PerCpuVar::element`].
///
/// A projection has the methods of [`PerCpuVar`]. A reference that one of them returns borrows the
/// projection, so bind the projection to a variable first: `let hits = STATS.project(…);`, then
/// `hits.get(&guard)`. A projection of a projection borrows the per-CPU variable.
#[must_use = "a projection does nothing by itself"]
pub struct Projection<'a, T, O: Offset> {
    var: PerCpuVar<T, O>,
    _borrow: PhantomData<&'a T>,
}

impl<'a, T, O: Offset> Projection<'a, T, O> {
    /// Creates a projection of the variable at `ptr` plus `O`.
    ///
    /// # Safety
    ///
    /// The invariants of [`PerCpuVar`] must hold for `ptr` during `'a`.
    #[inline(always)]
    unsafe fn new(ptr: NonNull<c_void>) -> Self {
        Self {
            // SAFETY: By the safety requirements of this function, the invariants hold for `ptr` as
            // long as this exists.
            var: unsafe { PerCpuVar::from_raw(ptr) },
            _borrow: PhantomData,
        }
    }

    /// Returns a field, as [`PerCpuVar::project`] does, which borrows the per-CPU variable.
    ///
    /// # Context
    ///
    /// Can be called from any context.
    #[inline(always)]
    pub fn project<F, P: Offset>(&self, _field: Field<T, F, P>) -> Projection<'a, F, Plus<O, P>> {
        // SAFETY: By the type invariant of `Field`, there is a valid `F` at this offset in each
        // `T`. Both are valid during `'a`.
        unsafe { Projection::new(self.var.ptr) }
    }
}

impl<'a, T, const N: usize, O: Offset> Projection<'a, [T; N], O> {
    /// Returns the element at `index`, as [`PerCpuVar::element`] does, which borrows the per-CPU
    /// variable.
    ///
    /// # Context
    ///
    /// Can be called from any context.
    #[inline(always)]
    pub fn element(&self, index: usize) -> Option<Projection<'a, T, O>> {
        let element = self.var.element(index)?.var.ptr;

        // SAFETY: The element is a part of the array, which is valid during `'a`.
        Some(unsafe { Projection::new(element) })
    }
}

impl<T, O: Offset> Deref for Projection<'_, T, O> {
    type Target = PerCpuVar<T, O>;

    #[inline(always)]
    fn deref(&self) -> &Self::Target {
        &self.var
    }
}

impl<T, O: Offset> fmt::Debug for Projection<'_, T, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.var.fmt(f)
    }
}

/// A number of bytes that is a constant.
pub trait Offset: private::Sealed + 'static {
    #[doc(hidden)]
    const BYTES: usize;
}

/// An offset of `N` bytes.
pub struct At<const N: usize>;

impl<const N: usize> Offset for At<N> {
    const BYTES: usize = N;
}

/// The sum of two offsets.
pub struct Plus<A, B>(PhantomData<(A, B)>);

impl<A: Offset, B: Offset> Offset for Plus<A, B> {
    const BYTES: usize = A::BYTES + B::BYTES;
}

mod private {
    pub trait Sealed {}

    impl<const N: usize> Sealed for super::At<N> {}
    impl<A, B> Sealed for super::Plus<A, B> {}
}

/// A field of the structure `T`, made by [`percpu_field!`](crate::percpu_field).
///
/// # Invariants
///
/// Each `T` has a field of the type `F` at the offset `O`, which the code that made this can
/// access.
// The type is invariant in `T` and `F`, so a field of another `T`, even of one with other
// lifetimes, has another type.
pub struct Field<T, F, O> {
    _structure: PhantomData<fn(T) -> T>,
    _field: PhantomData<fn(F) -> F>,
    _offset: PhantomData<O>,
}

impl<T, F, O: Offset> Field<T, F, O> {
    /// Creates the description of a field, for [`percpu_field!`](crate::percpu_field).
    ///
    /// `field` returns the type of the field.
    ///
    /// # Safety
    ///
    /// `O` must be the offset in `T` of the field that `field` returns the type of.
    #[doc(hidden)]
    #[inline(always)]
    pub const unsafe fn new(_field: fn(&T) -> PhantomData<F>) -> Self {
        // INVARIANT: By the safety requirements of this function, `O` is the offset of a field of
        // the type `F`, which the caller can access.
        Self {
            _structure: PhantomData,
            _field: PhantomData,
            _offset: PhantomData,
        }
    }
}

/// Returns the type that a reference points to.
#[doc(hidden)]
pub const fn type_of<F>(_: &F) -> PhantomData<F> {
    PhantomData
}

/// Describes a field of a structure for [`PerCpuVar::project`](crate::percpu::PerCpuVar::project).
///
/// The first argument is the type of the structure. The structure must not be packed. The type must
/// not contain `_`, or a generic parameter of the function around the macro. A generic structure is
/// written `Stats::<u64>`. The second argument is the name of the field, which must be visible to
/// the caller.
#[doc(alias = "offsetof")]
#[macro_export]
macro_rules! percpu_field {
    ($type:path, $field:tt $(,)?) => {{
        const OFFSET: usize = $crate::percpu::offset_of!($type, $field);
        // This refuses `_` in the type. Otherwise `_` could be inferred as one type for the offset
        // and as another type below.
        const _: fn(&$type) = |_| ();

        // SAFETY: The pattern, which does not use `Deref`, names the field with the offset
        // `OFFSET`. The type of the field is inferred from the pattern alone, before the code
        // around the macro could expect another type that the reference could be coerced to.
        unsafe {
            $crate::percpu::Field::<_, _, $crate::percpu::At<OFFSET>>::new(|value @ _: &$type| {
                let $type {
                    $field: field @ _, ..
                } = value;
                let field = $crate::percpu::type_of(field);
                field
            })
        }
    }};
}

/// The initial value of the copies of a static variable.
///
/// # Invariants
///
/// The memory is in the section of the per-CPU variables. Code accesses only its copies.
#[doc(hidden)]
#[repr(transparent)]
pub struct Template<T>(UnsafeCell<T>);

// SAFETY: No code accesses the value itself.
unsafe impl<T> Sync for Template<T> {}

impl<T> Template<T> {
    /// Creates an initial value, for [`define_per_cpu!`](crate::define_per_cpu).
    #[doc(hidden)]
    pub const fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }
}

impl<T: 'static> PerCpuVar<T> {
    /// Creates a variable from its template, for [`define_per_cpu!`](crate::define_per_cpu) and
    /// [`declare_per_cpu!`](crate::declare_per_cpu).
    ///
    /// # Safety
    ///
    /// `template` must be a static variable in the section of the per-CPU variables. Its copies
    /// must be valid and pinned as long as the calling module can run. Other code must have only
    /// shared references to them.
    #[doc(hidden)]
    pub const unsafe fn from_template(template: *const Template<T>) -> Self {
        // `percpu_modalloc()` in kernel/module/main.c allocates nothing for a section that is
        // empty, and aligns no section to more than a page.
        const {
            assert!(
                size_of::<T>() > 0 && align_of::<T>() <= 4096,
                "a static per-CPU variable must have a size, and be aligned to a page at most"
            )
        };

        // SAFETY: The address of a static variable is not null, and is its `__percpu` pointer. By
        // the safety requirements of this function, its copies are valid and pinned, and are only
        // shared.
        unsafe { Self::from_raw(NonNull::new_unchecked(template.cast_mut().cast())) }
    }
}

/// Defines static per-CPU variables.
///
/// Each variable is a constant of the type [`PerCpuVar<T>`](crate::percpu::PerCpuVar). Its initial
/// value must be a constant expression. When the kernel boots or the module is loaded, each
/// possible CPU's copy is initialised as a bitwise copy of this value. The copies are never
/// dropped. Unsafe code in the initial value must be sound for each copy.
///
/// All loaded modules share 8 KiB for each CPU (`PERCPU_MODULE_RESERVE` in include/linux/percpu.h).
/// If there is too little left, loading the module fails with `ENOMEM` and logs
/// `Could not allocate … bytes percpu data`. Use [`PerCpu`](crate::percpu::PerCpu) for large
/// variables, and for variables whose number is known only at run time. Code that is built into the
/// kernel has no such limit.
///
/// # Examples
///
/// ```
/// use kernel::{define_per_cpu, percpu_field, percpu::Local};
///
/// struct Stats {
///     packets: Local<usize>,
///     busy: Local<bool>,
/// }
///
/// define_per_cpu! {
///     /// Statistics of the whole driver.
///     static STATS: Stats = Stats {
///         packets: Local::new(0),
///         busy: Local::new(false),
///     };
/// }
///
/// STATS.project(percpu_field!(Stats, packets)).inc();
/// assert_eq!(STATS.project(percpu_field!(Stats, packets)).sum(), 1);
/// ```
#[doc(alias("DEFINE_PER_CPU", "PERCPU_MODULE_RESERVE"))]
#[macro_export]
macro_rules! define_per_cpu {
    ($($(#[$attr:meta])* $vis:vis static $name:ident: $type:ty = $value:expr;)*) => {$(
        $(#[$attr])*
        $vis const $name: $crate::percpu::PerCpuVar<$type> = {
            // `PER_CPU_BASE_SECTION` in include/asm-generic/percpu.h.
            #[cfg_attr(CONFIG_SMP, link_section = ".data..percpu")]
            static TEMPLATE: $crate::percpu::Template<$type> =
                $crate::percpu::Template::new($value);

            // SAFETY: The variable is in the section of the per-CPU variables, and only this macro
            // has its name.
            unsafe { $crate::percpu::PerCpuVar::from_template(&raw const TEMPLATE) }
        };
    )*};
}

/// Declares static per-CPU variables that C defines, by the names of their symbols.
///
/// # Safety
///
/// The macro takes `unsafe` before each variable. By writing it, the author asserts:
///
/// - C defines a per-CPU variable with this symbol. The type of the variable has the layout of the
///   given type or begins with it, and the copies are always valid values of the given type.
/// - C accesses the copies only in ways that a `&T` allows at the same time. For a
///   [`Local`](crate::percpu::Local) these are the `this_cpu` operations, the `__this_cpu`
///   operations with interrupts disabled, and reading. C must not write to the copy of another CPU.
/// - Any safe code that can name the variable may change it.
///
/// The symbol must not be `static` in C. If the kernel or another module defines it,
/// `EXPORT_PER_CPU_SYMBOL()` must export it. A structure must be `#[repr(C)]`.
///
/// # Examples
///
/// ```
/// use kernel::{declare_per_cpu, ffi::c_ulong, percpu::Local};
///
/// declare_per_cpu! {
///     /// Interrupts that each CPU has served.
///     // SAFETY: `kstat` in kernel/sched/core.c begins with the `unsigned long` `irqs_sum`. Each
///     // CPU adds to its own copy, in hard interrupts. This module only reads.
///     unsafe static INTERRUPTS: Local<c_ulong> = kstat;
/// }
///
/// assert_ne!(INTERRUPTS.sum(), 0);
/// ```
#[doc(alias = "DECLARE_PER_CPU")]
#[macro_export]
macro_rules! declare_per_cpu {
    ($($(#[$attr:meta])* $vis:vis unsafe static $name:ident: $type:ty = $symbol:ident;)*) => {$(
        $(#[$attr])*
        $vis const $name: $crate::percpu::PerCpuVar<$type> = {
            extern "C" {
                #[link_name = ::core::stringify!($symbol)]
                static TEMPLATE: $crate::percpu::Template<$type>;
            }

            // SAFETY: By writing `unsafe`, the author asserts that this is a per-CPU variable with
            // valid copies, which are only shared.
            unsafe { $crate::percpu::PerCpuVar::from_template(&raw const TEMPLATE) }
        };
    )*};
}

// SPDX-License-Identifier: GPL-2.0

//! Per-CPU variables, wherever their memory is.

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

/// A per-CPU variable: one `T` for each possible CPU.
///
/// This is what a [`PerCpu<T>`](super::PerCpu) owns, what
/// [`define_per_cpu!`](crate::define_per_cpu) defines, and what a [`Projection`] borrows a part of.
/// `O` is the offset of that part. It is a constant, so a projection does not store it, and on
/// x86-64 it is a part of the instruction.
///
/// # Invariants
///
/// As long as there is a reference to this, `ptr` plus the offset `O` is a `__percpu` pointer. Each
/// possible CPU's copy is a valid `T`, which is pinned, and which other code only shares.
#[doc(alias = "__percpu")]
pub struct PerCpuVar<T, O: Offset = At<0>> {
    ptr: NonNull<c_void>,
    _values: PhantomData<(T, fn() -> O)>,
}

// SAFETY: A `PerCpuVar<T>` owns nothing. By it, other threads get `&T` only, which `T: Sync`
// allows.
unsafe impl<T: Sync, O: Offset> Send for PerCpuVar<T, O> {}

// SAFETY: By a `&PerCpuVar<T>`, other threads get `&T` only, which `T: Sync` allows.
unsafe impl<T: Sync, O: Offset> Sync for PerCpuVar<T, O> {}

impl<T, O: Offset> PerCpuVar<T, O> {
    /// Makes a variable of its address.
    ///
    /// # Safety
    ///
    /// The type's invariant must hold for `ptr`.
    pub(super) const unsafe fn from_raw(ptr: NonNull<c_void>) -> Self {
        // INVARIANT: By the safety requirements of this function.
        Self {
            ptr,
            _values: PhantomData,
        }
    }

    /// Returns the `__percpu` pointer, to which the offset `O` is still to be added.
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

        // SAFETY: The copy of a possible CPU has an address, so this is not null.
        unsafe { NonNull::new_unchecked(copy.cast()) }
    }

    /// Returns a field of this variable, which is a per-CPU variable, too.
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
        // `T`. The projection is bounded by this reference.
        unsafe { Projection::new(self.ptr) }
    }
}

impl<T, const N: usize, O: Offset> PerCpuVar<[T; N], O> {
    /// Returns the element at `index`, which is a per-CPU variable, too, or `None` if there is no
    /// such element.
    ///
    /// # Context
    ///
    /// Can be called from any context.
    #[inline(always)]
    pub fn element(&self, index: usize) -> Option<Projection<'_, T, O>> {
        let element = self.ptr.as_ptr().cast::<T>().wrapping_add(index);

        (index < N).then(|| {
            // SAFETY: `index < N`, so this is an element of the array: its address is not null, and
            // there is a valid `T` in each copy. The projection is bounded by this reference.
            unsafe { Projection::new(NonNull::new_unchecked(element.cast())) }
        })
    }
}

impl<T: Sync, O: Offset> PerCpuVar<T, O> {
    /// Returns a reference to this CPU's copy.
    ///
    /// The guard keeps the task on this CPU for as long as the reference lives. Interrupts on this
    /// CPU can still use the same copy.
    ///
    /// For a value with a lock in it, use [`get_cpu`](Self::get_cpu) of
    /// [`CpuId::current`](crate::cpu::CpuId::current) instead: the lock protects the value even if
    /// the task moves to another CPU. On PREEMPT_RT, a spinlock must not be taken with preemption
    /// disabled.
    ///
    /// # Context
    ///
    /// Can be called from any context.
    #[doc(alias("this_cpu_ptr", "get_cpu_ptr"))]
    #[inline]
    pub fn get<'a>(&'a self, _guard: &'a PreemptGuard) -> &'a T {
        let ptr = self.ptr.as_ptr().wrapping_byte_add(O::BYTES);

        // SAFETY: Preemption is disabled, so by the type invariant, this is this CPU's copy and a
        // valid `T`. It is only shared, and `T` is `Sync`.
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
    /// A value with a lock in it needs no guard. The task may move to another CPU while it has the
    /// reference, and then uses the copy of the CPU that it came from.
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

        // SAFETY: `cpu` is possible, so by the type invariant this is a valid `T`. It is only
        // shared, and `T` is `Sync`.
        Some(unsafe { self.copy_of(cpu).as_ref() })
    }

    /// Returns an iterator over the copies of all possible CPUs.
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
/// The methods are those of [`PerCpuVar`]. A reference that one of them returns is bounded by the
/// projection, so bind the projection to a variable first: `let hits = STATS.project(…);`, then
/// `hits.get(&guard)`. The parts of a projection are bounded by the per-CPU variable.
#[must_use = "a projection does nothing by itself"]
pub struct Projection<'a, T, O: Offset> {
    var: PerCpuVar<T, O>,
    _borrow: PhantomData<&'a T>,
}

impl<'a, T, O: Offset> Projection<'a, T, O> {
    /// Makes a projection of the address from which `O` counts.
    ///
    /// # Safety
    ///
    /// The invariant of [`PerCpuVar`] must hold for `ptr` during `'a`.
    #[inline(always)]
    unsafe fn new(ptr: NonNull<c_void>) -> Self {
        Self {
            // SAFETY: By the safety requirements of this function, the invariant holds for `ptr` as
            // long as this exists.
            var: unsafe { PerCpuVar::from_raw(ptr) },
            _borrow: PhantomData,
        }
    }

    /// Returns a field, as [`PerCpuVar::project`] does, bounded by the variable.
    #[inline(always)]
    pub fn project<F, P: Offset>(&self, _field: Field<T, F, P>) -> Projection<'a, F, Plus<O, P>> {
        // SAFETY: By the type invariant of `Field`, there is a valid `F` at this offset in each
        // `T`, during `'a` as the `T` is.
        unsafe { Projection::new(self.var.ptr) }
    }
}

impl<'a, T, const N: usize, O: Offset> Projection<'a, [T; N], O> {
    /// Returns the element at `index`, as [`PerCpuVar::element`] does, bounded by the variable.
    #[inline(always)]
    pub fn element(&self, index: usize) -> Option<Projection<'a, T, O>> {
        let element = self.var.element(index)?.var.ptr;

        // SAFETY: This is an element, which is valid during `'a` as the array is.
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

/// A number of bytes that is known when the code is compiled.
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
/// At the offset `O` in each `T` there is a field of the type `F`, which the code that made this
/// can access.
// Invariant in `T` and `F`: a field of another `T`, even of one with other lifetimes, is of another
// type.
pub struct Field<T, F, O> {
    _structure: PhantomData<fn(T) -> T>,
    _field: PhantomData<fn(F) -> F>,
    _offset: PhantomData<O>,
}

impl<T, F, O: Offset> Field<T, F, O> {
    /// Used by [`percpu_field!`](crate::percpu_field). `field` says what the type of the field is.
    ///
    /// # Safety
    ///
    /// `O` must be the offset in `T` of the field that `field` returns the type of.
    #[doc(hidden)]
    #[inline(always)]
    pub const unsafe fn new(_field: fn(&T) -> PhantomData<F>) -> Self {
        // INVARIANT: By the safety requirements of this function.
        Self {
            _structure: PhantomData,
            _field: PhantomData,
            _offset: PhantomData,
        }
    }
}

/// Returns the type of what a reference points to.
#[doc(hidden)]
pub const fn type_of<F>(_: &F) -> PhantomData<F> {
    PhantomData
}

/// Names a field of a structure, for [`PerCpuVar::project`](crate::percpu::PerCpuVar::project).
///
/// The first argument is the type of the structure, which must not be packed, and must have neither
/// `_` nor a generic parameter of the function around the macro in it. A generic structure is
/// written `Stats::<u64>`. The second argument is the name of the field, which must be visible to
/// the caller.
#[doc(alias = "offsetof")]
#[macro_export]
macro_rules! percpu_field {
    ($type:path, $field:tt $(,)?) => {{
        const OFFSET: usize = $crate::percpu::offset_of!($type, $field);
        // Refuses `_` in the type, which could be inferred to be one type for the offset and
        // another one below.
        const _: fn(&$type) = |_| ();

        // SAFETY: The pattern, which does not look through `Deref`, has the field whose offset this
        // is. Its type is determined by itself, before the code around the macro can expect another
        // one, which the reference could be coerced to.
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

/// What the copies of a static variable are initialised with.
///
/// # Invariants
///
/// The memory is in the section of the per-CPU variables. It is accessed by its copies alone.
#[doc(hidden)]
#[repr(transparent)]
pub struct Template<T>(UnsafeCell<T>);

// SAFETY: No code accesses the value itself.
unsafe impl<T> Sync for Template<T> {}

impl<T> Template<T> {
    /// Used by [`define_per_cpu!`](crate::define_per_cpu).
    #[doc(hidden)]
    pub const fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }
}

impl<T: 'static> PerCpuVar<T> {
    /// Used by [`define_per_cpu!`](crate::define_per_cpu) and
    /// [`declare_per_cpu!`](crate::declare_per_cpu).
    ///
    /// # Safety
    ///
    /// `template` must be a static variable in the section of the per-CPU variables, whose copies
    /// are valid and pinned as long as the calling module can run. Other code must only share them.
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

        // SAFETY: The address of a static variable is not null, and is its `__percpu` pointer. The
        // rest is by the safety requirements of this function.
        unsafe { Self::from_raw(NonNull::new_unchecked(template.cast_mut().cast())) }
    }
}

/// Defines static per-CPU variables.
///
/// Each variable is a constant of the type [`PerCpuVar<T>`](crate::percpu::PerCpuVar). Its initial
/// value must be a constant expression. Each possible CPU's copy begins as a bitwise copy of it,
/// when the kernel boots or the module is loaded. Copies are never dropped. Unsafe code in the
/// initial value must be sound for each copy.
///
/// All loaded modules share 8 KiB for each CPU (`PERCPU_MODULE_RESERVE` in
/// include/linux/percpu.h). If too little is left, inserting the module fails with `ENOMEM` and
/// logs `Could not allocate … bytes percpu data`. Use [`PerCpu`](crate::percpu::PerCpu) for large
/// variables, or if their number is known only at run time. Code that is built into the kernel has
/// no such limit.
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

            // SAFETY: The variable is in that section. This macro alone has its name.
            unsafe { $crate::percpu::PerCpuVar::from_template(&raw const TEMPLATE) }
        };
    )*};
}

/// Declares static per-CPU variables that C defines, by the names of their symbols.
///
/// # Safety
///
/// The macro takes `unsafe` before each variable, by which the author asserts:
///
/// - C defines a per-CPU variable with this symbol, whose type has the layout of the given type or
///   begins with it, and whose copies are always valid values of it;
/// - C does with the copies what a `&T` allows at the same time. For a
///   [`Local`](crate::percpu::Local) these are the `this_cpu` operations, the `__this_cpu`
///   operations with interrupts disabled, and reading. C must not write to the copy of another CPU;
/// - any safe code that can name the variable may change it.
///
/// The symbol must not be `static` in C. If the kernel or another module defines it, it must be
/// exported by `EXPORT_PER_CPU_SYMBOL()`. A structure must be `#[repr(C)]`.
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

            // SAFETY: By the assertion of the author.
            unsafe { $crate::percpu::PerCpuVar::from_template(&raw const TEMPLATE) }
        };
    )*};
}

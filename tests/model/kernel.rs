// SPDX-License-Identifier: GPL-2.0

//! A replacement of the kernel crate, for the host.
//!
//! It has those parts that the library uses, and is based on `world.rs`, which is based on `loom`.
//!
//! An operation that is `Full` in the kernel has a full barrier before and after it, as in the
//! kernel's memory model (tools/memory-model/Documentation/explanation.txt). That model has order
//! by address dependencies, and the model of C++ does not. So a relaxed load of a pointer is an
//! acquire load here. The litmus tests check where an address dependency is enough.

#![allow(non_camel_case_types, non_upper_case_globals)] // These are names of C.

pub extern crate macros;
pub extern crate pin_init;

pub mod world;

pub mod ffi {
    pub use core::ffi::*;
}

pub mod fmt {
    pub use core::fmt::*;
}

pub mod alloc {
    use super::{error::Error, world};
    use core::{
        marker::PhantomData,
        mem::ManuallyDrop,
        ops::{Deref, DerefMut},
        pin::Pin,
        ptr::NonNull,
    };
    use pin_init::PinInit;

    #[derive(Clone, Copy)]
    pub struct Flags(u32);

    impl Flags {
        pub fn as_raw(self) -> u32 {
            self.0
        }
    }

    #[derive(Debug)]
    pub struct AllocError;

    pub mod flags {
        pub const GFP_KERNEL: super::Flags = super::Flags(0xcc0);
    }

    /// # Safety
    ///
    /// There are no requirements, because there is only one allocator.
    pub unsafe trait Allocator {}

    pub mod allocator {
        pub struct Kmalloc;
        pub struct Vmalloc;
        pub struct KVmalloc;
        // SAFETY: The trait requires nothing.
        unsafe impl super::Allocator for Kmalloc {}
        // SAFETY: The trait requires nothing.
        unsafe impl super::Allocator for Vmalloc {}
        // SAFETY: The trait requires nothing.
        unsafe impl super::Allocator for KVmalloc {}
    }

    pub type KBox<T> = Box<T, allocator::Kmalloc>;

    /// # Invariants
    ///
    /// The pointer points to an initialised value, in memory from `world::alloc()` that the box
    /// owns.
    pub struct Box<T, A>(NonNull<T>, PhantomData<A>);

    // SAFETY: A box owns its value, which is `Send`.
    unsafe impl<T: Send, A> Send for Box<T, A> {}
    // SAFETY: A shared box gives shared references to its value, which is `Sync`.
    unsafe impl<T: Sync, A> Sync for Box<T, A> {}

    impl<T, A: Allocator> Box<T, A> {
        fn uninit() -> NonNull<T> {
            NonNull::new(world::alloc(size_of::<T>(), align_of::<T>()).cast()).unwrap()
        }

        pub fn new(value: T, _flags: Flags) -> Result<Self, AllocError> {
            let this = Self::uninit();
            // SAFETY: The memory was just allocated for a `T`.
            unsafe { this.write(value) };
            Ok(Self(this, PhantomData))
        }

        pub fn try_pin_init<E>(init: impl PinInit<T, E>, _: Flags) -> Result<Pin<Self>, E>
        where
            E: From<AllocError>,
        {
            let this = Self::uninit();
            // SAFETY: The memory was just allocated for a `T`.
            if let Err(error) = unsafe { pin_init::raw_try_init(this.as_ptr(), init) } {
                world::free(this.as_ptr().cast());
                return Err(error);
            }
            // SAFETY: The box does not move its value.
            Ok(unsafe { Pin::new_unchecked(Self(this, PhantomData)) })
        }

        pub fn pin_init<E>(init: impl PinInit<T, E>, flags: Flags) -> Result<Pin<Self>, Error>
        where
            Error: From<E>,
        {
            // SAFETY: The closure initialises the value as `init` does.
            let init = unsafe {
                pin_init::pin_init_from_closure(move |slot| {
                    pin_init::raw_try_init(slot, init).map_err(Error::from)
                })
            };
            Self::try_pin_init(init, flags)
        }

        pub fn into_raw(this: Self) -> *mut T {
            ManuallyDrop::new(this).0.as_ptr()
        }

        /// # Safety
        ///
        /// `this` must be what `into_raw()` returned, and must be converted back once.
        pub unsafe fn from_raw(this: *mut T) -> Self {
            Self(NonNull::new(this).unwrap(), PhantomData)
        }

        pub fn into_inner(this: Self) -> T {
            let this = ManuallyDrop::new(this);
            // SAFETY: By the type invariant, the value is initialised. It is not dropped here.
            let value = unsafe { this.0.read() };
            world::free(this.0.as_ptr().cast());
            value
        }
    }

    impl<T, A> Deref for Box<T, A> {
        type Target = T;

        fn deref(&self) -> &T {
            // SAFETY: By the type invariant, the value is initialised.
            unsafe { self.0.as_ref() }
        }
    }

    impl<T, A> DerefMut for Box<T, A> {
        fn deref_mut(&mut self) -> &mut T {
            // SAFETY: By the type invariant, the value is initialised, and the box owns it.
            unsafe { self.0.as_mut() }
        }
    }

    impl<T, A> Drop for Box<T, A> {
        fn drop(&mut self) {
            // SAFETY: By the type invariant, the value is initialised. It is not used after this.
            unsafe { self.0.drop_in_place() };
            world::free(self.0.as_ptr().cast());
        }
    }

    impl<T, A> From<Box<T, A>> for Pin<Box<T, A>> {
        fn from(this: Box<T, A>) -> Self {
            // SAFETY: The box does not move its value.
            unsafe { Pin::new_unchecked(this) }
        }
    }
}

pub mod error {
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Error(i32);

    pub type Result<T = (), E = Error> = core::result::Result<T, E>;

    impl From<crate::alloc::AllocError> for Error {
        fn from(_: crate::alloc::AllocError) -> Self {
            code::ENOMEM
        }
    }

    impl From<core::convert::Infallible> for Error {
        fn from(error: core::convert::Infallible) -> Self {
            match error {}
        }
    }

    pub fn from_err_ptr<T>(ptr: *mut T) -> Result<*mut T> {
        Ok(ptr)
    }

    pub mod code {
        use super::Error;

        pub const EINTR: Error = Error(-4);
        pub const ENOMEM: Error = Error(-12);
        pub const EBUSY: Error = Error(-16);
        pub const ENODEV: Error = Error(-19);
        pub const EINVAL: Error = Error(-22);
        pub const ETIMEDOUT: Error = Error(-110);
    }
}

/// The functions of C.
///
/// They are safe here, because they check their requirements or rely on the library.
pub mod bindings {
    use super::world::{self, Item};
    use core::ffi::*;

    pub type gfp_t = u32;
    pub type rcu_callback_t = Option<unsafe extern "C" fn(*mut callback_head)>;
    pub type work_func_t = Option<unsafe extern "C" fn(*mut work_struct)>;

    #[repr(C)]
    pub struct callback_head {
        pub next: *mut callback_head,
        pub func: rcu_callback_t,
    }

    #[repr(C)]
    pub struct work_struct {
        pub func: work_func_t,
    }

    #[repr(C)]
    pub struct module_memory {
        pub base: *mut c_void,
        pub size: c_uint,
    }

    #[repr(C)]
    pub struct module {
        pub name: [c_char; 56],
        pub mem: [module_memory; 1],
    }

    pub const mod_mem_type_MOD_MEM_NUM_TYPES: u32 = 1;
    pub const PAGE_SIZE: usize = 4096;
    pub const NUMA_NO_NODE: c_int = -1;
    pub const TASK_UNINTERRUPTIBLE: u32 = 2;
    pub const wq_misc_consts_WORK_CPU_UNBOUND: u32 = 64;

    // Only the addresses of these values are used. They are not empty, so that the addresses
    // differ.
    pub struct raw_spinlock_t(u64);
    pub struct completion(u64);
    pub struct lock_class_key(u64);
    pub struct lockdep_map(u64);
    pub struct workqueue_struct(u64);
    pub struct task_struct {
        pub comm: [c_char; 16],
    }
    pub struct wait_queue_entry(u64);
    pub struct wait_bit_queue_entry {
        pub wq_entry: wait_queue_entry,
    }
    pub struct wait_queue_head(u64);

    pub static mut system_dfl_wq: *mut workqueue_struct = core::ptr::null_mut();
    pub static __cpu_online_mask: u64 = !0;

    fn queue(head: *mut callback_head, func: rcu_callback_t) {
        world::check(head as usize);
        // SAFETY: The library passes the head of a valid object, which only this call uses.
        unsafe {
            head.write(callback_head {
                next: core::ptr::null_mut(),
                func,
            })
        };
        world::push(Item::Callback(head));
    }

    pub extern "C" fn call_rcu(head: *mut callback_head, func: rcu_callback_t) {
        queue(head, func);
    }

    pub extern "C" fn call_rcu_hurry(head: *mut callback_head, func: rcu_callback_t) {
        queue(head, func);
    }

    pub extern "C" fn call_rcu_tasks(_: *mut callback_head, _: rcu_callback_t) {
        unreachable!("the model has no RCU Tasks")
    }

    pub fn kvfree_call_rcu(head: *mut callback_head, memory: *mut c_void) {
        world::check(head as usize);
        world::push(Item::Free(memory));
    }

    pub fn rcu_barrier() {
        world::rcu_barrier();
    }

    pub fn synchronize_rcu() {
        world::synchronize_rcu();
    }

    pub fn synchronize_rcu_tasks() {
        world::synchronize_rcu();
    }

    pub fn rcu_is_watching() -> bool {
        true
    }

    pub fn smp_mb() {
        loom::sync::atomic::fence(loom::sync::atomic::Ordering::SeqCst);
    }

    pub fn kfree(memory: *const c_void) {
        world::free(memory);
    }

    pub fn __alloc_percpu_gfp(size: usize, align: usize, _: gfp_t) -> *mut c_void {
        world::alloc_percpu(size, align)
    }

    pub fn free_percpu(memory: *mut c_void) {
        world::free(memory);
    }

    pub fn per_cpu_ptr(ptr: *mut c_void, cpu: c_uint) -> *mut c_void {
        world::per_cpu_ptr(ptr, cpu)
    }

    pub fn this_cpu_ptr(ptr: *mut c_void) -> *mut c_void {
        world::per_cpu_ptr(ptr, world::cpu() as u32)
    }

    pub fn cpu_possible(_: c_uint) -> bool {
        true
    }

    pub fn preempt_disable() {
        world::enter_section();
    }

    pub fn preempt_enable() {
        world::leave_section();
    }

    pub fn __preempt_schedule() {}

    pub fn preempt_count() -> c_int {
        0
    }

    pub fn __raw_spin_lock_init(_: *mut raw_spinlock_t, _: *const c_char, _: *mut lock_class_key) {}

    pub fn raw_spin_lock_irqsave(lock: *mut raw_spinlock_t) -> c_ulong {
        world::lock(lock as usize);
        0
    }

    pub fn raw_spin_unlock_irqrestore(lock: *mut raw_spinlock_t, _: c_ulong) {
        world::unlock(lock as usize);
    }

    pub fn init_completion(done: *mut completion) {
        world::init_completion(done as usize);
    }

    pub fn complete(done: *mut completion) {
        world::complete(done as usize);
    }

    pub fn wait_for_completion_timeout(done: *mut completion, left: c_ulong) -> c_ulong {
        world::wait_for_completion(done as usize);
        left
    }

    pub fn wait_for_completion_killable_timeout(done: *mut completion, left: c_ulong) -> c_long {
        world::wait_for_completion(done as usize);
        left as c_long
    }

    pub fn init_wait_var_entry(entry: *mut wait_bit_queue_entry, variable: *mut c_void, _: c_int) {
        world::prepare_to_wait(entry as usize, variable as usize);
    }

    pub fn __var_waitqueue(_: *mut c_void) -> *mut wait_queue_head {
        core::ptr::null_mut()
    }

    pub fn prepare_to_wait_event(
        _: *mut wait_queue_head,
        entry: *mut wait_queue_entry,
        _: c_int,
    ) -> c_long {
        world::set_waiting(entry as usize);
        0
    }

    pub fn schedule() {
        world::wait_as_set();
    }

    pub fn finish_wait(_: *mut wait_queue_head, entry: *mut wait_queue_entry) {
        world::finish_wait(entry as usize);
    }

    pub fn wake_up_var(variable: *mut c_void) {
        world::wake_up_variable(variable as usize);
    }

    pub fn init_work_with_key(
        work: *mut work_struct,
        func: work_func_t,
        _: bool,
        _: *const c_char,
        _: *mut lock_class_key,
    ) {
        // SAFETY: `work` is the field of a class that is being initialised.
        unsafe { work.write(work_struct { func }) };
    }

    pub fn queue_work_on(_: c_int, _: *mut workqueue_struct, work: *mut work_struct) -> bool {
        world::push(Item::Work(work));
        true
    }

    pub fn kthread_create_on_node(
        func: Option<unsafe extern "C" fn(*mut c_void) -> c_int>,
        data: *mut c_void,
        _: c_int,
        _: *const c_char,
    ) -> *mut task_struct {
        // SAFETY: The library passes a function with its argument, for one call.
        unsafe { (func.unwrap())(data) };
        core::ptr::NonNull::dangling().as_ptr()
    }

    pub fn wake_up_process(_: *mut task_struct) {}

    pub fn lockdep_init_map(_: *mut lockdep_map, _: *const c_char, _: *mut lock_class_key) {}

    pub fn lock_map_acquire(_: *mut lockdep_map) {}

    pub fn lock_map_release(_: *mut lockdep_map) {}

    pub fn ktime_get_seconds() -> i64 {
        1
    }

    pub fn percpu_ref_pr_debug_sum(_: u64, _: u64) {}

    macro_rules! this_cpu {
        ($($int:ident)*) => { macros::paste! { $(
            pub fn [<this_cpu_add_ $int>](ptr: *mut $int, value: $int) {
                world::change_counter(ptr.cast(), |old| old.wrapping_add(value.into()));
            }
            pub fn [<this_cpu_read_ $int>](_: *mut $int) -> $int {
                unimplemented!()
            }
            pub fn [<this_cpu_write_ $int>](_: *mut $int, _: $int) {
                unimplemented!()
            }
            pub fn [<this_cpu_and_ $int>](_: *mut $int, _: $int) {
                unimplemented!()
            }
            pub fn [<this_cpu_or_ $int>](_: *mut $int, _: $int) {
                unimplemented!()
            }
            pub fn [<this_cpu_add_return_ $int>](_: *mut $int, _: $int) -> $int {
                unimplemented!()
            }
            pub fn [<this_cpu_xchg_ $int>](_: *mut $int, _: $int) -> $int {
                unimplemented!()
            }
            pub fn [<this_cpu_cmpxchg_ $int>](_: *mut $int, _: $int, _: $int) -> $int {
                unimplemented!()
            }
        )* } };
    }
    this_cpu!(u8 u16 u32 u64);
}

pub mod cpu {
    use super::world;

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct CpuId(u32);

    impl CpuId {
        pub fn from_u32(cpu: u32) -> Option<Self> {
            ((cpu as usize) < world::CPUS).then_some(Self(cpu))
        }

        pub fn as_u32(self) -> u32 {
            self.0
        }
    }

    pub fn nr_cpu_ids() -> u32 {
        world::CPUS as u32
    }
}

pub mod cpumask {
    pub struct Cpumask;

    impl Cpumask {
        pub fn from_raw<'a, T>(_: *const T) -> &'a Self {
            &Self
        }

        pub fn test(&self, _: super::cpu::CpuId) -> bool {
            true
        }
    }
}

pub mod types {
    use core::{
        cell::UnsafeCell,
        marker::{PhantomData, PhantomPinned},
        mem::MaybeUninit,
    };

    pub type NotThreadSafe = PhantomData<*mut ()>;
    pub const NotThreadSafe: NotThreadSafe = PhantomData;

    #[repr(transparent)]
    pub struct Opaque<T> {
        value: UnsafeCell<MaybeUninit<T>>,
        _pin: PhantomPinned,
    }

    impl<T> Opaque<T> {
        pub const fn uninit() -> Self {
            Self {
                value: UnsafeCell::new(MaybeUninit::uninit()),
                _pin: PhantomPinned,
            }
        }

        pub const fn get(&self) -> *mut T {
            self.value.get().cast()
        }

        pub const fn cast_from(this: *const T) -> *const Self {
            this.cast()
        }

        pub const fn cast_into(this: *const Self) -> *mut T {
            this.cast_mut().cast()
        }

        pub fn ffi_init(init: impl FnOnce(*mut T)) -> impl pin_init::PinInit<Self> {
            let init = move |slot: *mut Self| {
                init(slot.cast());
                Ok(())
            };
            // SAFETY: The closure initialises the whole value.
            unsafe { pin_init::pin_init_from_closure(init) }
        }
    }

    /// # Safety
    ///
    /// The requirements are those of the kernel crate. The model does not use the trait.
    pub unsafe trait ForeignOwnable: Sized {
        const FOREIGN_ALIGN: usize;
        type Borrowed<'a>;
        type BorrowedMut<'a>;
        fn into_foreign(self) -> *mut core::ffi::c_void;
        /// # Safety
        ///
        /// The requirements are those of the kernel crate.
        unsafe fn from_foreign(ptr: *mut core::ffi::c_void) -> Self;
        /// # Safety
        ///
        /// The requirements are those of the kernel crate.
        unsafe fn borrow<'a>(ptr: *mut core::ffi::c_void) -> Self::Borrowed<'a>;
        /// # Safety
        ///
        /// The requirements are those of the kernel crate.
        unsafe fn borrow_mut<'a>(ptr: *mut core::ffi::c_void) -> Self::BorrowedMut<'a>;
    }
}

/// Time, which does not advance in the model.
pub mod time {
    use core::marker::PhantomData;

    #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
    pub struct Delta(i64);

    impl Delta {
        pub const ZERO: Self = Self(0);

        pub const fn from_micros(us: i64) -> Self {
            Self(us * 1000)
        }

        pub const fn from_millis(ms: i64) -> Self {
            Self(ms * 1_000_000)
        }

        pub const fn from_secs(s: i64) -> Self {
            Self(s * 1_000_000_000)
        }

        pub fn as_millis(self) -> i64 {
            self.0 / 1_000_000
        }

        pub fn as_nanos(self) -> i64 {
            self.0
        }
    }

    impl core::ops::Sub for Delta {
        type Output = Self;

        fn sub(self, other: Self) -> Self {
            Self(self.0 - other.0)
        }
    }

    impl core::ops::Add for Delta {
        type Output = Self;

        fn add(self, other: Self) -> Self {
            Self(self.0 + other.0)
        }
    }

    impl core::ops::AddAssign for Delta {
        fn add_assign(&mut self, other: Self) {
            self.0 += other.0;
        }
    }

    pub struct Monotonic;

    pub struct Instant<C>(PhantomData<C>);

    impl<C> Instant<C> {
        pub fn now() -> Self {
            Self(PhantomData)
        }

        pub fn elapsed(&self) -> Delta {
            Delta::ZERO
        }
    }

    pub fn msecs_to_jiffies(ms: u32) -> u64 {
        ms.into()
    }

    pub mod delay {
        /// Lets other threads run.
        pub fn fsleep(_: super::Delta) {
            crate::world::might_sleep();
            loom::thread::yield_now();
        }
    }
}

pub mod task {
    pub struct Task;

    impl Task {
        pub fn as_ptr(&self) -> *mut crate::bindings::task_struct {
            core::ptr::null_mut()
        }

        pub fn pid(&self) -> i32 {
            0
        }
    }

    pub fn might_sleep() {
        crate::world::might_sleep();
    }
}

pub mod sync {
    pub use crate::static_lock_class;

    pub struct LockClassKey(());

    impl LockClassKey {
        pub const fn new_static() -> Self {
            Self(())
        }
    }

    pub mod rcu {
        use crate::{types::NotThreadSafe, world};

        pub struct Guard(NotThreadSafe);

        pub fn read_lock() -> Guard {
            world::enter_section();
            Guard(NotThreadSafe)
        }

        impl Drop for Guard {
            fn drop(&mut self) {
                world::leave_section();
            }
        }
    }

    pub mod atomic {
        use crate::world;
        use core::{cell::UnsafeCell, mem::transmute_copy};
        use loom::sync::atomic::{
            fence, AtomicU64,
            Ordering::{self, SeqCst},
        };

        pub struct Relaxed;
        pub struct Acquire;
        pub struct Release;
        pub struct Full;

        pub trait Order {
            const LOAD: Ordering = Ordering::Relaxed;
            const STORE: Ordering = Ordering::Relaxed;
            const CHANGE: Ordering;
            const IS_FULL: bool = false;
        }

        impl Order for Relaxed {
            const CHANGE: Ordering = Ordering::Relaxed;
        }

        impl Order for Acquire {
            const LOAD: Ordering = Ordering::Acquire;
            const CHANGE: Ordering = Ordering::Acquire;
        }

        impl Order for Release {
            const STORE: Ordering = Ordering::Release;
            const CHANGE: Ordering = Ordering::Release;
        }

        impl Order for Full {
            const CHANGE: Ordering = Ordering::AcqRel;
            const IS_FULL: bool = true;
        }

        /// # Safety
        ///
        /// The type must have the size of a `u32` or of a `u64`, and must have no padding.
        pub unsafe trait AtomicType: Copy {
            type Repr;
        }

        macro_rules! atomic_types {
            ($($type:ty)*) => {$(
                // SAFETY: The type is an integer of 32 or 64 bits.
                unsafe impl AtomicType for $type {
                    type Repr = $type;
                }
            )*};
        }
        atomic_types!(u32 i32 u64 i64 usize isize);

        // SAFETY: The type is a pointer, which has 64 bits on the host.
        unsafe impl<T> AtomicType for *mut T {
            type Repr = *const core::ffi::c_void;
        }

        fn to_bits<T: AtomicType>(value: T) -> u64 {
            // SAFETY: By the safety requirements of `AtomicType`, the type has one of these sizes.
            match size_of::<T>() {
                4 => unsafe { transmute_copy::<T, u32>(&value) }.into(),
                _ => unsafe { transmute_copy::<T, u64>(&value) },
            }
        }

        fn from_bits<T: AtomicType>(bits: u64) -> T {
            // SAFETY: By the safety requirements of `AtomicType`, the type has one of these sizes.
            // The bits came from a `T`.
            match size_of::<T>() {
                4 => unsafe { transmute_copy::<u32, T>(&(bits as u32)) },
                _ => unsafe { transmute_copy::<u64, T>(&bits) },
            }
        }

        #[repr(transparent)]
        pub struct Atomic<T>(UnsafeCell<T>);

        // SAFETY: All accesses are atomic accesses of `loom`.
        unsafe impl<T> Send for Atomic<T> {}
        // SAFETY: All accesses are atomic accesses of `loom`.
        unsafe impl<T> Sync for Atomic<T> {}

        impl<T> Atomic<T> {
            pub const fn new(value: T) -> Self {
                Self(UnsafeCell::new(value))
            }
        }

        impl<T: AtomicType> Atomic<T> {
            /// Calls `f` with an atomic, the number that must be added to its value, and a function
            /// that `f` must call with each new value.
            fn with<R>(&self, f: impl FnOnce(&AtomicU64, u64, &dyn Fn(u64)) -> R) -> R {
                let address = self.0.get() as usize;
                // SAFETY: The memory belongs to this value, and `loom` runs one thread at a time.
                let found = to_bits(unsafe { *self.0.get() });
                world::with_atomic(address, size_of::<T>(), found, |atomic, first, set| {
                    f(atomic, first, &|new| {
                        set(new);
                        // SAFETY: The memory belongs to this value, and `loom` runs one thread at a
                        // time.
                        unsafe { *self.0.get() = from_bits(new) };
                    })
                })
            }

            /// Changes the value by `f`, which returns the old value, and the new value if it has
            /// changed.
            fn change<O: Order>(
                &self,
                f: impl FnOnce(&AtomicU64, u64) -> (u64, Option<u64>),
            ) -> (T, bool) {
                self.with(|atomic, first, set| {
                    if O::IS_FULL {
                        fence(SeqCst);
                    }
                    let (found, new) = f(atomic, first);
                    if let Some(new) = new {
                        set(new);
                        if O::IS_FULL {
                            fence(SeqCst);
                        }
                    }
                    (from_bits(found), new.is_some())
                })
            }

            pub fn load<O: Order>(&self, _: O) -> T {
                // An acquire load stands for the address dependency; see the head of this file.
                let is_pointer = core::any::type_name::<T::Repr>().starts_with('*');
                let order = if is_pointer {
                    Ordering::Acquire
                } else {
                    O::LOAD
                };
                self.with(|atomic, first, _| from_bits(atomic.load(order).wrapping_add(first)))
            }

            pub fn store<O: Order>(&self, value: T, _: O) {
                self.with(|atomic, first, set| {
                    atomic.store(to_bits(value).wrapping_sub(first), O::STORE);
                    set(to_bits(value));
                });
            }

            pub fn xchg<O: Order>(&self, value: T, _: O) -> T {
                let new = to_bits(value);
                let result = self.change::<O>(|atomic, first| {
                    let old = atomic.swap(new.wrapping_sub(first), O::CHANGE);
                    (old.wrapping_add(first), Some(new))
                });
                result.0
            }

            pub fn cmpxchg<O: Order>(&self, old: T, new: T, _: O) -> Result<T, T> {
                let (old, new) = (to_bits(old), to_bits(new));
                let result = self.change::<O>(|atomic, first| {
                    let found = atomic.compare_exchange(
                        old.wrapping_sub(first),
                        new.wrapping_sub(first),
                        O::CHANGE,
                        Ordering::Relaxed,
                    );
                    match found {
                        Ok(_) => (old, Some(new)),
                        Err(found) => (found.wrapping_add(first), None),
                    }
                });
                match result {
                    (found, true) => Ok(found),
                    (found, false) => Err(found),
                }
            }

            pub fn fetch_add<O: Order>(&self, value: T, _: O) -> T {
                let result = self.change::<O>(|atomic, first| {
                    let old = atomic
                        .fetch_add(to_bits(value), O::CHANGE)
                        .wrapping_add(first);
                    (old, Some(old.wrapping_add(to_bits(value))))
                });
                result.0
            }

            pub fn fetch_sub<O: Order>(&self, value: T, order: O) -> T {
                self.fetch_add(from_bits(to_bits(value).wrapping_neg()), order)
            }

            pub fn add<O: Order>(&self, value: T, order: O) {
                self.fetch_add(value, order);
            }
        }
    }
}

#[macro_export]
macro_rules! static_lock_class {
    () => {{
        static CLASS: $crate::sync::LockClassKey = $crate::sync::LockClassKey::new_static();
        core::pin::Pin::static_ref(&CLASS)
    }};
}

#[macro_export]
macro_rules! container_of {
    ($field_ptr:expr, $Container:ty, $($fields:tt)*) => {
        $field_ptr.byte_sub(core::mem::offset_of!($Container, $($fields)*)).cast::<$Container>()
    };
}

#[macro_export]
macro_rules! do_once_lite {
    { $($body:tt)* } => {{ $($body)* }};
}

#[macro_export]
macro_rules! warn_on {
    ($condition:expr) => {
        if $condition {
            $crate::world::warn();
        }
    };
}

#[macro_export]
macro_rules! pr_warn {
    ($($arg:tt)*) => {{}};
}

#[macro_export]
macro_rules! pr_err {
    ($($arg:tt)*) => { $crate::pr_warn!($($arg)*) };
}

#[macro_export]
macro_rules! pr_warn_once {
    ($($arg:tt)*) => { $crate::pr_warn!($($arg)*) };
}

#[macro_export]
macro_rules! current {
    () => {
        &$crate::task::Task
    };
}

#[macro_export]
macro_rules! try_pin_init {
    ($($arg:tt)*) => {
        ::pin_init::pin_init!(#[default_error($crate::error::Error)] $($arg)*)
    };
}

pub trait CStrExt {
    /// # Safety
    ///
    /// `ptr` must point to a null-terminated string that is valid for `'a`.
    unsafe fn from_char_ptr<'a>(ptr: *const core::ffi::c_char) -> &'a Self;
    fn as_char_ptr(&self) -> *const core::ffi::c_char;
}

impl CStrExt for core::ffi::CStr {
    unsafe fn from_char_ptr<'a>(ptr: *const core::ffi::c_char) -> &'a Self {
        // SAFETY: By the safety requirements of this function, `ptr` points to a null-terminated
        // string that is valid for `'a`.
        unsafe { Self::from_ptr(ptr) }
    }

    fn as_char_ptr(&self) -> *const core::ffi::c_char {
        self.as_ptr()
    }
}

pub mod prelude {
    pub use crate::{
        alloc::{flags::*, Box, KBox},
        current,
        error::{code::*, Error, Result},
        pr_err, pr_warn, try_pin_init, CStrExt as _,
    };
    pub use core::{
        ffi::*,
        mem::{align_of, size_of},
        pin::Pin,
    };
    pub use pin_init::{
        init, pin_data, pin_init, pinned_drop, InPlaceWrite, Init, PinInit, Zeroable,
    };
}

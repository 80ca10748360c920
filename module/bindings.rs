// SPDX-License-Identifier: GPL-2.0

//! The kernel's bindings, with the helpers in `rust/helpers` that the kernel does not have.
//!
//! In the kernel's tree, bindgen generates these declarations from the helpers. `make kunit`
//! compares the two. The symbols have another prefix than in the kernel, because the kernel may get
//! helpers with these names.

pub use kernel::bindings::*;

use kernel::{
    alloc::Flags,
    ffi::{
        c_char,
        c_int,
        c_uint,
        c_ulong,
        c_void, //
    },
};

/// Declares helpers, whose symbols have the prefix of this module.
macro_rules! helpers {
    ($(fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $ret:ty)?;)*) => {
        #[allow(improper_ctypes)] // Some structures are empty without lockdep.
        extern "C" { $(
            #[doc(hidden)]
            #[link_name = concat!("rust_percpu_ref_", stringify!($name))]
            pub fn $name($($arg: $type),*) $(-> $ret)?;
        )* }
    };
}

helpers! {
    fn preempt_disable();
    fn preempt_enable();
    fn preempt_count() -> c_int;
    fn __preempt_schedule();

    fn cpu_possible(cpu: c_uint) -> bool;
    fn __alloc_percpu_gfp(size: usize, align: usize, gfp: gfp_t) -> *mut c_void;
    fn per_cpu_ptr(ptr: *mut c_void, cpu: c_uint) -> *mut c_void;
    fn this_cpu_ptr(ptr: *mut c_void) -> *mut c_void;
    fn this_cpu_read_u8(ptr: *mut u8) -> u8;
    fn this_cpu_write_u8(ptr: *mut u8, val: u8);
    fn this_cpu_add_u8(ptr: *mut u8, val: u8);
    fn this_cpu_and_u8(ptr: *mut u8, val: u8);
    fn this_cpu_or_u8(ptr: *mut u8, val: u8);
    fn this_cpu_add_return_u8(ptr: *mut u8, val: u8) -> u8;
    fn this_cpu_xchg_u8(ptr: *mut u8, val: u8) -> u8;
    fn this_cpu_cmpxchg_u8(ptr: *mut u8, old: u8, new: u8) -> u8;
    fn this_cpu_read_u16(ptr: *mut u16) -> u16;
    fn this_cpu_write_u16(ptr: *mut u16, val: u16);
    fn this_cpu_add_u16(ptr: *mut u16, val: u16);
    fn this_cpu_and_u16(ptr: *mut u16, val: u16);
    fn this_cpu_or_u16(ptr: *mut u16, val: u16);
    fn this_cpu_add_return_u16(ptr: *mut u16, val: u16) -> u16;
    fn this_cpu_xchg_u16(ptr: *mut u16, val: u16) -> u16;
    fn this_cpu_cmpxchg_u16(ptr: *mut u16, old: u16, new: u16) -> u16;
    fn this_cpu_read_u32(ptr: *mut u32) -> u32;
    fn this_cpu_write_u32(ptr: *mut u32, val: u32);
    fn this_cpu_add_u32(ptr: *mut u32, val: u32);
    fn this_cpu_and_u32(ptr: *mut u32, val: u32);
    fn this_cpu_or_u32(ptr: *mut u32, val: u32);
    fn this_cpu_add_return_u32(ptr: *mut u32, val: u32) -> u32;
    fn this_cpu_xchg_u32(ptr: *mut u32, val: u32) -> u32;
    fn this_cpu_cmpxchg_u32(ptr: *mut u32, old: u32, new: u32) -> u32;
    fn this_cpu_read_u64(ptr: *mut u64) -> u64;
    fn this_cpu_write_u64(ptr: *mut u64, val: u64);
    fn this_cpu_add_u64(ptr: *mut u64, val: u64);
    fn this_cpu_and_u64(ptr: *mut u64, val: u64);
    fn this_cpu_or_u64(ptr: *mut u64, val: u64);
    fn this_cpu_add_return_u64(ptr: *mut u64, val: u64) -> u64;
    fn this_cpu_xchg_u64(ptr: *mut u64, val: u64) -> u64;
    fn this_cpu_cmpxchg_u64(ptr: *mut u64, old: u64, new: u64) -> u64;

    fn call_rcu_hurry(head: *mut callback_head, func: rcu_callback_t);
    fn call_rcu_tasks(head: *mut callback_head, func: rcu_callback_t);
    fn synchronize_rcu_tasks();

    fn __raw_spin_lock_init(
        lock: *mut raw_spinlock_t,
        name: *const c_char,
        key: *mut lock_class_key,
    );
    fn raw_spin_lock_irqsave(lock: *mut raw_spinlock_t) -> c_ulong;
    fn raw_spin_unlock_irqrestore(lock: *mut raw_spinlock_t, flags: c_ulong);

    fn lockdep_init_map(lock: *mut lockdep_map, name: *const c_char, key: *mut lock_class_key);
    fn lock_map_acquire(lock: *mut lockdep_map);
    fn lock_map_release(lock: *mut lockdep_map);

    fn percpu_ref_pr_debug_sum(global: u64, percpu: u64);
}

#[cfg(CONFIG_RUST_PERCPU_REF_DEBUG)]
helpers! {
    fn percpu_ref_alloc_records(size: usize) -> *mut c_void;
    fn percpu_ref_free_records(records: *mut c_void);
    fn in_task() -> bool;
    fn lock_map_acquire_tryread(lock: *mut lockdep_map);
    fn percpu_ref_lock_is_held(lock: *mut lockdep_map) -> bool;
}

/// Provides `Flags::as_raw()`, which is private to the kernel crate.
pub(crate) trait FlagsAsRaw {
    #[allow(clippy::wrong_self_convention)] // The name is the kernel crate's.
    fn as_raw(self) -> gfp_t;
}

impl FlagsAsRaw for Flags {
    fn as_raw(self) -> gfp_t {
        as_raw(self)
    }
}

const fn as_raw(flags: Flags) -> gfp_t {
    // SAFETY: A `Flags` has a `gfp_t` as its only field. The assertion below checks one value.
    unsafe { core::mem::transmute::<Flags, gfp_t>(flags) }
}

const _: () = assert!(as_raw(kernel::alloc::flags::GFP_KERNEL) == GFP_KERNEL);

// SPDX-License-Identifier: GPL-2.0

//! Compares the instructions of the `this_cpu` operations with those of C.
//!
//! The operations are on an allocated variable, on a field of an allocated variable, and on a
//! static variable. Their times are not measured.

use super::{
    Op,
    Subjects, //
};
use kernel::percpu::{
    Local,
    PerCpu, //
};
use kernel::{
    define_per_cpu,
    error::to_result,
    percpu_field,
    prelude::*, //
};

extern "C" {
    fn percpu_ref_bench_this_cpu_init() -> c_int;
    fn percpu_ref_bench_this_cpu_exit();
}

#[derive(Zeroable)]
struct Fields {
    _first: [Local<u64>; 4],
    value: Local<u64>,
}

define_per_cpu! {
    static VARIABLE: Local<u64> = Local::new(0);
}

/// The variables that the loops use.
pub(super) struct Variables {
    allocated: PerCpu<Local<u64>>,
    fields: PerCpu<Fields>,
}

impl Variables {
    pub(super) fn new() -> Result<Self> {
        let variables = Self {
            allocated: PerCpu::zeroed(GFP_KERNEL)?,
            fields: PerCpu::zeroed(GFP_KERNEL)?,
        };
        // SAFETY: This is called once, before the loops. If it fails, `drop()` frees the memory
        // that it has allocated.
        to_result(unsafe { percpu_ref_bench_this_cpu_init() })?;
        Ok(variables)
    }
}

impl Drop for Variables {
    fn drop(&mut self) {
        // SAFETY: `new()` has called the initialisation, and no loop is running any more.
        unsafe { percpu_ref_bench_this_cpu_exit() };
    }
}

/// Declares the loops of each operation in C, and defines those in Rust.
macro_rules! operations {
    ($($op:ident($var:ident, $n:ident) $body:expr;)*) => { kernel::macros::paste! {
        extern "C" { $(
            fn [<percpu_ref_bench_ $op>](_: *const c_void, n: usize);
            fn [<percpu_ref_bench_ $op _field>](_: *const c_void, n: usize);
            fn [<percpu_ref_bench_ $op _static>](_: *const c_void, n: usize);
        )* }

        $(
            /// # Safety
            ///
            /// `subjects` must point to a valid `Subjects`.
            unsafe extern "C" fn $op(subjects: *const c_void, n: usize) {
                // SAFETY: By the safety requirements of this function, `subjects` points to a
                // `Subjects`.
                let variables = unsafe { &(*subjects.cast::<Subjects>()).variables };
                let mut $n = n as u64;
                while $n > 0 {
                    $n -= 1;
                    let $var = &variables.allocated;
                    let _ = $body;
                }
            }

            /// # Safety
            ///
            /// `subjects` must point to a valid `Subjects`.
            unsafe extern "C" fn [<$op _field>](subjects: *const c_void, n: usize) {
                // SAFETY: By the safety requirements of this function, `subjects` points to a
                // `Subjects`.
                let variables = unsafe { &(*subjects.cast::<Subjects>()).variables };
                let mut $n = n as u64;
                while $n > 0 {
                    $n -= 1;
                    let $var = variables.fields.project(percpu_field!(Fields, value));
                    let _ = $body;
                }
            }

            /// # Safety
            ///
            /// There are no requirements.
            unsafe extern "C" fn [<$op _static>](_: *const c_void, n: usize) {
                let mut $n = n as u64;
                while $n > 0 {
                    $n -= 1;
                    let $var = VARIABLE;
                    let _ = $body;
                }
            }
        )*

        pub(super) const OPS: &[Op] = &[$(
            Op {
                name: concat!("this_cpu_", stringify!($op)),
                peers: &[
                    ("c", [<percpu_ref_bench_ $op>]),
                    ("c_field", [<percpu_ref_bench_ $op _field>]),
                    ("c_static", [<percpu_ref_bench_ $op _static>]),
                    ("rust", $op),
                    ("rust_field", [<$op _field>]),
                    ("rust_static", [<$op _static>]),
                ],
                in_rust: 3,
                times: 1000,
                is_hot: true,
            },
        )*];
    } };
}

operations! {
    read(var, n) var.read();
    write(var, n) var.write(n);
    add(var, n) var.add(n);
    add_7(var, n) var.add(7);
    inc(var, n) var.inc();
    dec(var, n) var.dec();
    and(var, n) var.and(n);
    or(var, n) var.or(n);
    add_return(var, n) var.add_return(n);
    xchg(var, n) var.xchg(n);
    cmpxchg(var, n) var.cmpxchg(n, n);
}

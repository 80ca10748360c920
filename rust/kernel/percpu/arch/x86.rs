// SPDX-License-Identifier: GPL-2.0

//! The `this_cpu` operations of x86-64.
//!
//! A `__percpu` pointer is relative to the base of the segment `gs`, so one instruction changes the
//! copy, and an interrupt comes before or after the instruction. `xchg` reads the copy first, and
//! again if an interrupt has changed it. No instruction has a `lock` prefix, because only other
//! CPUs would need it.
//!
//! C source: [`arch/x86/include/asm/percpu.h`](srctree/arch/x86/include/asm/percpu.h)

use super::{
    offset::copy_at,
    Offset,
    ThisCpu, //
};
use crate::{
    bindings::this_cpu_off,
    prelude::*, //
};
use core::arch::asm;

pub(crate) use super::offset::per_cpu_ptr;

/// Returns the address of this CPU's copy, for a `__percpu` pointer.
///
/// # Safety
///
/// Preemption must be disabled.
#[inline(always)]
pub(crate) unsafe fn this_cpu_ptr(ptr: *mut c_void) -> *mut c_void {
    let offset: usize;

    // SAFETY: `this_cpu_off` is a per-CPU variable of the kernel, which contains this CPU's offset.
    unsafe {
        asm!(
            "movq %gs:{}(%rip), {}",
            sym this_cpu_off,
            out(reg) offset,
            options(att_syntax, nostack, preserves_flags, readonly)
        )
    };
    copy_at(ptr, offset)
}

/// Emits the instruction `$op` on this CPU's copy, which `{copy}` stands for.
macro_rules! this_cpu_asm {
    ($ptr:ident + $offset:ident, $(($($op:tt)*)),*; $($operand:tt)*) => {
        asm!(
            $(this_cpu_asm!(@$($op)*),)*
            ptr = in(reg) $ptr,
            offset = const $offset::BYTES,
            $($operand)*
        )
    };
    // `{before} copy` or `{before} copy {after}`
    (@$($before:literal)* copy $($after:literal)*) => {
        concat!($($before,)* " %gs:{offset}({ptr})", $($after,)*)
    };
    (@$($instruction:literal)*) => {
        concat!($($instruction,)*)
    };
}

/// Implements [`ThisCpu`] for an integer, with the suffix of its instructions, the class of its
/// registers, the modifier that prints them, and the name of the accumulator.
macro_rules! impl_this_cpu {
    ($($int:ident $suffix:literal $class:ident $modifier:literal $acc:tt;)*) => {$(
        impl ThisCpu for $int {
            #[inline(always)]
            unsafe fn read<O: Offset>(ptr: *mut Self) -> Self {
                let value;

                // SAFETY: By the requirements of `ThisCpu`, `ptr` plus `O` is that of a copy.
                unsafe {
                    this_cpu_asm!(
                        ptr + O, ("mov" $suffix copy ", {value" $modifier "}");
                        value = out($class) value,
                        options(att_syntax, nostack, preserves_flags, readonly)
                    )
                };
                value
            }

            #[inline(always)]
            unsafe fn write<O: Offset>(ptr: *mut Self, value: Self) {
                // SAFETY: By the requirements of `ThisCpu`, `ptr` plus `O` is that of a copy.
                unsafe {
                    this_cpu_asm!(
                        ptr + O, ("mov" $suffix " {value" $modifier "}," copy);
                        value = in($class) value,
                        options(att_syntax, nostack, preserves_flags)
                    )
                };
            }

            #[inline(always)]
            unsafe fn add<O: Offset>(ptr: *mut Self, value: Self) {
                // SAFETY: By the requirements of `ThisCpu`, `ptr` plus `O` is that of a copy.
                unsafe {
                    this_cpu_asm!(
                        ptr + O, ("add" $suffix " {value" $modifier "}," copy);
                        value = in($class) value,
                        options(att_syntax, nostack)
                    )
                };
            }

            #[inline(always)]
            unsafe fn inc<O: Offset>(ptr: *mut Self) {
                // SAFETY: By the requirements of `ThisCpu`, `ptr` plus `O` is that of a copy.
                unsafe {
                    this_cpu_asm!(ptr + O, ("inc" $suffix copy); options(att_syntax, nostack))
                };
            }

            #[inline(always)]
            unsafe fn dec<O: Offset>(ptr: *mut Self) {
                // SAFETY: By the requirements of `ThisCpu`, `ptr` plus `O` is that of a copy.
                unsafe {
                    this_cpu_asm!(ptr + O, ("dec" $suffix copy); options(att_syntax, nostack))
                };
            }

            #[inline(always)]
            unsafe fn and<O: Offset>(ptr: *mut Self, value: Self) {
                // SAFETY: By the requirements of `ThisCpu`, `ptr` plus `O` is that of a copy.
                unsafe {
                    this_cpu_asm!(
                        ptr + O, ("and" $suffix " {value" $modifier "}," copy);
                        value = in($class) value,
                        options(att_syntax, nostack)
                    )
                };
            }

            #[inline(always)]
            unsafe fn or<O: Offset>(ptr: *mut Self, value: Self) {
                // SAFETY: By the requirements of `ThisCpu`, `ptr` plus `O` is that of a copy.
                unsafe {
                    this_cpu_asm!(
                        ptr + O, ("or" $suffix " {value" $modifier "}," copy);
                        value = in($class) value,
                        options(att_syntax, nostack)
                    )
                };
            }

            #[inline(always)]
            unsafe fn add_return<O: Offset>(ptr: *mut Self, value: Self) -> Self {
                let old: Self;

                // SAFETY: By the requirements of `ThisCpu`, `ptr` plus `O` is that of a copy.
                unsafe {
                    this_cpu_asm!(
                        ptr + O, ("xadd" $suffix " {value" $modifier "}," copy);
                        value = inout($class) value => old,
                        options(att_syntax, nostack)
                    )
                };
                old.wrapping_add(value)
            }

            #[inline(always)]
            unsafe fn xchg<O: Offset>(ptr: *mut Self, value: Self) -> Self {
                let old;

                // The instruction `xchg` would lock the bus. As in C, this is a loop, which runs
                // again if an interrupt has changed the copy.
                //
                // SAFETY: By the requirements of `ThisCpu`, `ptr` plus `O` is that of a copy.
                unsafe {
                    this_cpu_asm!(
                        ptr + O,
                        ("mov" $suffix copy ", %" $acc),
                        ("2: cmpxchg" $suffix " {value" $modifier "}," copy),
                        ("jne 2b");
                        value = in($class) value,
                        out($acc) old,
                        options(att_syntax, nostack)
                    )
                };
                old
            }

            #[inline(always)]
            unsafe fn cmpxchg<O: Offset>(ptr: *mut Self, old: Self, new: Self) -> Self {
                let found;

                // SAFETY: By the requirements of `ThisCpu`, `ptr` plus `O` is that of a copy.
                unsafe {
                    this_cpu_asm!(
                        ptr + O, ("cmpxchg" $suffix " {new" $modifier "}," copy);
                        new = in($class) new,
                        inout($acc) old => found,
                        options(att_syntax, nostack)
                    )
                };
                found
            }
        }
    )*};
}

impl_this_cpu! {
    u8 "b" reg_byte "" "al";
    u16 "w" reg ":x" "ax";
    u32 "l" reg ":e" "eax";
    u64 "q" reg ":r" "rax";
}

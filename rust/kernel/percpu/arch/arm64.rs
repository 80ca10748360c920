// SPDX-License-Identifier: GPL-2.0

//! The `this_cpu` operations of arm64.
//!
//! The CPU's offset is in a register. Preemption is disabled from reading the offset until the copy
//! is changed, except in `add_on_cpu()`, `inc_on_cpu()` and `dec_on_cpu()`, which may change
//! another CPU's copy. As in C, the kernel patches each operation for the CPUs that it runs on. If
//! the kernel is also the hypervisor, the offset is in `tpidr_el2`. With LSE, one instruction
//! replaces the branch to a loop of exclusive loads and stores. The instruction and the loop are
//! atomic with respect to interrupts and to other CPUs.
//!
//! C source: [`arch/arm64/include/asm/percpu.h`](srctree/arch/arm64/include/asm/percpu.h)

use super::{
    offset::copy_at,
    Offset,
    ThisCpu, //
};
use crate::{
    bindings,
    preempt::PreemptGuard,
    prelude::*, //
};
use core::arch::asm;

pub(crate) use super::offset::per_cpu_ptr;

/// Emits the instruction `$old`, which the kernel replaces by `$new` on CPUs with the capability
/// `$cap`.
///
/// The instructions `$fallback` are out of line, and `$old` can branch to them.
///
/// C macro: `ALTERNATIVE()` in arch/arm64/include/asm/alternative-macros.h
macro_rules! alternative_asm {
    ($old:expr, $new:expr, $cap:ident, [$($fallback:expr),* $(,)?], $($operand:tt)*) => {
        asm!(
            concat!("661: ", $old),
            "662:",
            ".pushsection .altinstructions, \"a\"",
            ".word 661b - .",
            ".word 663f - .",
            ".hword {cap}",
            ".byte 662b - 661b",
            ".byte 664f - 663f",
            ".popsection",
            ".subsection 1",
            ".arch_extension lse",
            concat!("663: ", $new),
            "664:",
            ".org . - (664b - 663b) + (662b - 661b)",
            ".org . - (662b - 661b) + (664b - 663b)",
            $($fallback,)*
            ".previous",
            cap = const bindings::$cap,
            $($operand)*
        )
    };
}

/// Emits the LSE instruction `$lse`, or on CPUs without LSE, the loop `$exclusive`.
///
/// The loop begins at the label `2` and ends by falling through.
macro_rules! lse_asm {
    ($lse:expr, [$($exclusive:expr),* $(,)?], $($operand:tt)*) => {
        alternative_asm!(
            "b 2f",
            $lse,
            ARM64_HAS_LSE_ATOMICS,
            ["2:", $($exclusive,)* "b 662b"],
            failed = out(reg) _,
            $($operand)*
            options(nostack, preserves_flags)
        )
    };
}

/// Returns the address of this CPU's copy, for a `__percpu` pointer.
///
/// # Safety
///
/// Preemption must be disabled, or the caller must be able to use any CPU's copy.
#[inline(always)]
pub(crate) unsafe fn this_cpu_ptr(ptr: *mut c_void) -> *mut c_void {
    let offset: usize;

    // SAFETY: The instruction only reads the register with this CPU's offset. Since it is not
    // `pure`, the compiler does not move it out of the region in which preemption is disabled.
    unsafe {
        alternative_asm!(
            "mrs {offset}, tpidr_el1",
            "mrs {offset}, tpidr_el2",
            ARM64_HAS_VIRT_HOST_EXTN,
            [],
            offset = out(reg) offset,
            options(nostack, preserves_flags, readonly)
        )
    };
    copy_at(ptr, offset)
}

/// Returns the address of this CPU's copy of the value at the offset `O` from `ptr`.
///
/// # Safety
///
/// Preemption must be disabled, or the caller must be able to use any CPU's copy.
#[inline(always)]
unsafe fn copy_of<T, O: Offset>(ptr: *mut T) -> *mut T {
    // SAFETY: By the safety requirements of this function, preemption is disabled, or the caller
    // can use any CPU's copy.
    unsafe { this_cpu_ptr(ptr.wrapping_byte_add(O::BYTES).cast()) }.cast()
}

/// Changes the copy by the instruction `$lse`, or by `$op` in a loop.
macro_rules! change {
    ($suffix:literal $modifier:literal, $op:literal, $lse:literal, $copy:expr, $value:expr) => {
        lse_asm!(
            concat!($lse, $suffix, " {value", $modifier, "}, {new", $modifier, "}, [{copy}]"),
            [
                concat!("ldxr", $suffix, " {new", $modifier, "}, [{copy}]"),
                concat!(
                    $op,
                    " {new", $modifier, "}, {new", $modifier, "}, {value", $modifier, "}"
                ),
                concat!("stxr", $suffix, " {failed:w}, {new", $modifier, "}, [{copy}]"),
                "cbnz {failed:w}, 2b",
            ],
            new = out(reg) _,
            value = in(reg) $value,
            copy = in(reg) $copy,
        )
    };
}

/// Implements [`ThisCpu`] for an integer, with the suffix of its instructions and the modifier that
/// prints its registers.
macro_rules! impl_this_cpu {
    ($($int:ident $suffix:literal $modifier:literal;)*) => {$(
        impl ThisCpu for $int {
            #[inline(always)]
            unsafe fn read<O: Offset>(ptr: *mut Self) -> Self {
                let _guard = PreemptGuard::nested();

                // SAFETY: By the requirements of `ThisCpu`, `ptr` plus `O` is that of a copy.
                // Preemption is disabled.
                unsafe { copy_of::<_, O>(ptr).read_volatile() }
            }

            #[inline(always)]
            unsafe fn write<O: Offset>(ptr: *mut Self, value: Self) {
                let _guard = PreemptGuard::nested();

                // SAFETY: By the requirements of `ThisCpu`, `ptr` plus `O` is that of a copy.
                // Preemption is disabled.
                unsafe { copy_of::<_, O>(ptr).write_volatile(value) };
            }

            #[inline(always)]
            unsafe fn add<O: Offset>(ptr: *mut Self, value: Self) {
                let _guard = PreemptGuard::nested();

                // SAFETY: By the requirements of `ThisCpu`, `ptr` plus `O` is that of a copy.
                // Preemption is disabled.
                unsafe { Self::add_on_cpu::<O>(ptr, value) };
            }

            #[inline(always)]
            unsafe fn inc<O: Offset>(ptr: *mut Self) {
                // SAFETY: By the requirements of `ThisCpu`, `ptr` plus `O` is that of a copy.
                unsafe { Self::add::<O>(ptr, 1) };
            }

            #[inline(always)]
            unsafe fn dec<O: Offset>(ptr: *mut Self) {
                // SAFETY: By the requirements of `ThisCpu`, `ptr` plus `O` is that of a copy.
                unsafe { Self::add::<O>(ptr, Self::MAX) };
            }

            #[inline(always)]
            unsafe fn add_on_cpu<O: Offset>(ptr: *mut Self, value: Self) {
                // SAFETY: By the requirements of `ThisCpu`, `ptr` plus `O` is that of a copy. Both
                // forms of the change are atomic for all CPUs, so the copy of any CPU can be
                // changed.
                unsafe { change!($suffix $modifier, "add", "ldadd", copy_of::<_, O>(ptr), value) };
            }

            #[inline(always)]
            unsafe fn inc_on_cpu<O: Offset>(ptr: *mut Self) {
                // SAFETY: By the requirements of `ThisCpu`, `ptr` plus `O` is that of a copy.
                unsafe { Self::add_on_cpu::<O>(ptr, 1) };
            }

            #[inline(always)]
            unsafe fn dec_on_cpu<O: Offset>(ptr: *mut Self) {
                // SAFETY: By the requirements of `ThisCpu`, `ptr` plus `O` is that of a copy.
                unsafe { Self::add_on_cpu::<O>(ptr, Self::MAX) };
            }

            #[inline(always)]
            unsafe fn and<O: Offset>(ptr: *mut Self, value: Self) {
                let _guard = PreemptGuard::nested();

                // SAFETY: By the requirements of `ThisCpu`, `ptr` plus `O` is that of a copy.
                // Preemption is disabled.
                unsafe { change!($suffix $modifier, "bic", "ldclr", copy_of::<_, O>(ptr), !value) };
            }

            #[inline(always)]
            unsafe fn or<O: Offset>(ptr: *mut Self, value: Self) {
                let _guard = PreemptGuard::nested();

                // SAFETY: By the requirements of `ThisCpu`, `ptr` plus `O` is that of a copy.
                // Preemption is disabled.
                unsafe { change!($suffix $modifier, "orr", "ldset", copy_of::<_, O>(ptr), value) };
            }

            #[inline(always)]
            unsafe fn add_return<O: Offset>(ptr: *mut Self, value: Self) -> Self {
                let old: Self;
                let _guard = PreemptGuard::nested();

                // SAFETY: By the requirements of `ThisCpu`, `ptr` plus `O` is that of a copy.
                // Preemption is disabled.
                unsafe {
                    lse_asm!(
                        concat!(
                            "ldadd", $suffix,
                            " {value", $modifier, "}, {old", $modifier, "}, [{copy}]"
                        ),
                        [
                            concat!("ldxr", $suffix, " {old", $modifier, "}, [{copy}]"),
                            "add {new:x}, {old:x}, {value:x}",
                            concat!("stxr", $suffix, " {failed:w}, {new", $modifier, "}, [{copy}]"),
                            "cbnz {failed:w}, 2b",
                        ],
                        old = out(reg) old,
                        new = out(reg) _,
                        value = in(reg) value,
                        copy = in(reg) copy_of::<_, O>(ptr),
                    )
                };
                old.wrapping_add(value)
            }

            #[inline(always)]
            unsafe fn xchg<O: Offset>(ptr: *mut Self, value: Self) -> Self {
                let old;
                let _guard = PreemptGuard::nested();

                // SAFETY: By the requirements of `ThisCpu`, `ptr` plus `O` is that of a copy.
                // Preemption is disabled.
                unsafe {
                    lse_asm!(
                        concat!(
                            "swp", $suffix,
                            " {value", $modifier, "}, {old", $modifier, "}, [{copy}]"
                        ),
                        [
                            concat!("ldxr", $suffix, " {old", $modifier, "}, [{copy}]"),
                            concat!(
                                "stxr", $suffix, " {failed:w}, {value", $modifier, "}, [{copy}]"
                            ),
                            "cbnz {failed:w}, 2b",
                        ],
                        old = out(reg) old,
                        value = in(reg) value,
                        copy = in(reg) copy_of::<_, O>(ptr),
                    )
                };
                old
            }

            #[inline(always)]
            unsafe fn cmpxchg<O: Offset>(ptr: *mut Self, old: Self, new: Self) -> Self {
                // This is the expected value first, and then the value that is found. A load clears
                // the upper bits of the register, as the conversion does.
                let mut value = u64::from(old);
                let _guard = PreemptGuard::nested();

                // SAFETY: By the requirements of `ThisCpu`, `ptr` plus `O` is that of a copy.
                // Preemption is disabled.
                unsafe {
                    lse_asm!(
                        concat!(
                            "cas", $suffix,
                            " {value", $modifier, "}, {new", $modifier, "}, [{copy}]"
                        ),
                        [
                            concat!("ldxr", $suffix, " {found", $modifier, "}, [{copy}]"),
                            "eor {failed:x}, {found:x}, {value:x}",
                            "cbnz {failed:x}, 3f",
                            concat!("stxr", $suffix, " {failed:w}, {new", $modifier, "}, [{copy}]"),
                            "cbnz {failed:w}, 2b",
                            "3: mov {value:x}, {found:x}",
                        ],
                        value = inout(reg) value,
                        found = out(reg) _,
                        new = in(reg) new,
                        copy = in(reg) copy_of::<_, O>(ptr),
                    )
                };
                value as Self
            }
        }
    )*};
}

impl_this_cpu! {
    u8 "b" ":w";
    u16 "h" ":w";
    u32 "" ":w";
    u64 "" ":x";
}

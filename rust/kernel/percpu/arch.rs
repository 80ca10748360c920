// SPDX-License-Identifier: GPL-2.0

//! The `this_cpu` operations: inlined on x86-64 and arm64, helpers in C elsewhere.

use super::{
    this_cpu::ThisCpu,
    var::Offset, //
};

#[cfg(CONFIG_ARM64)]
mod arm64;
#[cfg(not(any(all(CONFIG_X86_64, CONFIG_SMP, not(CONFIG_UML)), CONFIG_ARM64)))]
mod generic;
#[cfg(all(CONFIG_X86_64, CONFIG_SMP, not(CONFIG_UML)))]
mod x86;

#[cfg(CONFIG_ARM64)]
use arm64 as imp;
#[cfg(not(any(all(CONFIG_X86_64, CONFIG_SMP, not(CONFIG_UML)), CONFIG_ARM64)))]
use generic as imp;
#[cfg(all(CONFIG_X86_64, CONFIG_SMP, not(CONFIG_UML)))]
use x86 as imp;

pub(super) use imp::{
    per_cpu_ptr,
    this_cpu_ptr, //
};

/// Finds copies by the offset of each CPU.
///
/// C header: [`include/asm-generic/percpu.h`](srctree/include/asm-generic/percpu.h)
#[cfg(any(all(CONFIG_X86_64, CONFIG_SMP, not(CONFIG_UML)), CONFIG_ARM64))]
mod offset {
    use crate::{
        bindings::__per_cpu_offset,
        prelude::*, //
    };
    use core::ptr::with_exposed_provenance_mut;

    /// Returns the address of the copy that is at `offset`.
    ///
    /// The `__percpu` pointer of a static variable is that of a template, and no copy is a part of
    /// the template. So the compiler must not conclude anything from where the pointer came from,
    /// which C has `RELOC_HIDE()` for.
    #[inline(always)]
    pub(super) fn copy_at(ptr: *mut c_void, offset: usize) -> *mut c_void {
        with_exposed_provenance_mut(ptr.expose_provenance().wrapping_add(offset))
    }

    /// Returns the address of `cpu`'s copy of what `ptr` is the `__percpu` pointer of.
    ///
    /// # Safety
    ///
    /// `cpu` must be possible.
    #[inline(always)]
    pub(crate) unsafe fn per_cpu_ptr(ptr: *mut c_void, cpu: c_uint) -> *mut c_void {
        let offsets = (&raw const __per_cpu_offset).cast::<usize>();

        // SAFETY: By the safety requirements of this function, `cpu` has an offset, which does not
        // change.
        copy_at(ptr, unsafe { offsets.add(cpu as usize).read() })
    }
}

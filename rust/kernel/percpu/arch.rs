// SPDX-License-Identifier: GPL-2.0

//! The `this_cpu` operations: inlined on x86-64 and arm64, C helpers on other architectures.

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

/// The addresses of copies, by the offset of each CPU.
///
/// C header: [`include/asm-generic/percpu.h`](srctree/include/asm-generic/percpu.h)
#[cfg(any(all(CONFIG_X86_64, CONFIG_SMP, not(CONFIG_UML)), CONFIG_ARM64))]
mod offset {
    use crate::{
        bindings::__per_cpu_offset,
        prelude::*, //
    };
    use core::ptr::with_exposed_provenance_mut;

    /// Returns the address of the copy at `offset`.
    ///
    /// The `__percpu` pointer of a static variable is that of a template, which contains no copy.
    /// So the compiler must not draw conclusions from the provenance of the pointer. C has
    /// `RELOC_HIDE()` for this.
    #[inline(always)]
    pub(super) fn copy_at(ptr: *mut c_void, offset: usize) -> *mut c_void {
        with_exposed_provenance_mut(ptr.expose_provenance().wrapping_add(offset))
    }

    /// Returns the address of `cpu`'s copy, for a `__percpu` pointer.
    ///
    /// # Safety
    ///
    /// `cpu` must be possible.
    #[inline(always)]
    pub(crate) unsafe fn per_cpu_ptr(ptr: *mut c_void, cpu: c_uint) -> *mut c_void {
        let offsets = (&raw const __per_cpu_offset).cast::<usize>();

        // SAFETY: By the safety requirements of this function, `cpu` is possible, so it has an
        // offset, which does not change.
        copy_at(ptr, unsafe { offsets.add(cpu as usize).read() })
    }
}

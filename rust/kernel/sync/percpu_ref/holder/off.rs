// SPDX-License-Identifier: GPL-2.0

//! Empty holders, for kernels without `CONFIG_RUST_PERCPU_REF_DEBUG`.

use super::Kind;
use crate::{
    prelude::*,
    sync::{
        percpu_ref::{
            count::Count,
            unload::Class, //
        },
        rcu::unload::ModuleMemory, //
    }, //
};
use core::ptr::NonNull;

/// A holder that records nothing.
#[derive(Clone, Copy)]
pub(in super::super) struct Holder;

impl Holder {
    pub(in super::super) const NONE: Self = Self;

    #[inline(always)]
    pub(in super::super) fn new(_kind: Kind, _count: NonNull<Count>, _len: usize) -> Self {
        Self
    }

    #[inline(always)]
    pub(in super::super) fn resize(&mut self, _len: usize) {}

    #[inline(always)]
    pub(in super::super) fn merge(&mut self, _other: Self, _len: usize) {}

    #[inline(always)]
    pub(in super::super) fn end(self) {}

    #[inline(always)]
    pub(in super::super) fn into_foreign(self, _ptr: &mut *mut c_void) {}

    /// Returns a holder that records nothing.
    ///
    /// # Safety
    ///
    /// This function has no safety requirements.
    #[inline(always)]
    pub(in super::super) unsafe fn from_foreign(_ptr: &mut *mut c_void) -> Self {
        Self
    }
}

/// A lock map that does nothing.
pub(in super::super) struct LockMap;

impl LockMap {
    pub(in super::super) const fn new() -> Self {
        Self
    }

    #[inline(always)]
    pub(in super::super) fn renew(&self) {}

    #[inline(always)]
    pub(in super::super) fn may_wait(&self) {}
}

/// A held map that does nothing.
pub(in super::super) struct Held;

impl Held {
    /// Returns a held map that does nothing.
    ///
    /// # Safety
    ///
    /// This function has no safety requirements.
    #[inline(always)]
    pub(in super::super) unsafe fn new(_count: NonNull<Count>) -> Self {
        Self
    }
}

/// Does nothing.
///
/// # Safety
///
/// This function has no safety requirements.
#[inline(always)]
pub(in super::super) unsafe fn end_object(_count: NonNull<Count>) {}

#[inline(always)]
pub(in super::super) fn may_wait(_count: &Count) {}

#[inline(always)]
pub(in super::super) fn report_oldest(_count: Option<&Count>, _class: &Class) {}

#[inline(always)]
pub(in super::super) fn forget_sites(_memory: &ModuleMemory, _module: &CStr) {}

/// Does nothing.
///
/// # Safety
///
/// This function has no safety requirements.
#[cfg(MODULE)]
#[inline(always)]
pub(in super::super) unsafe fn free() {}

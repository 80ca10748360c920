// SPDX-License-Identifier: GPL-2.0

//! Passing references through C: as the `void *` of a callback or of private data.

use super::{
    holder,
    Counted,
    Inner,
    Kind,
    PercpuRef,
    PercpuRefGuard, //
};
use crate::{
    fmt,
    prelude::*,
    types::ForeignOwnable, //
};
use core::{
    marker::PhantomData,
    mem::ManuallyDrop,
    ops::Deref,
    ptr::NonNull, //
};

/// A [`PercpuRef`] or [`PercpuRefGuard`] that C owns, on loan.
pub struct Borrowed<'a, R> {
    reference: ManuallyDrop<R>,
    _owner: PhantomData<&'a R>,
}

impl<R> Borrowed<'_, R> {
    fn new(reference: R) -> Self {
        Self {
            reference: ManuallyDrop::new(reference),
            _owner: PhantomData,
        }
    }
}

impl<R: fmt::Debug> fmt::Debug for Borrowed<'_, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<R> Deref for Borrowed<'_, R> {
    type Target = R;

    #[inline]
    fn deref(&self) -> &R {
        &self.reference
    }
}

// SAFETY: `into_foreign()` returns the address of an `Inner<T>`.
unsafe impl<T: Counted, K: Kind> ForeignOwnable for PercpuRef<T, K> {
    const FOREIGN_ALIGN: usize = align_of::<Inner<T>>();

    type Borrowed<'a> = Borrowed<'a, Self>;
    type BorrowedMut<'a> = Borrowed<'a, Self>;

    fn into_foreign(self) -> *mut c_void {
        ManuallyDrop::new(self).inner.as_ptr().cast()
    }

    unsafe fn from_foreign(ptr: *mut c_void) -> Self {
        // INVARIANT: By the trait's contract, `ptr` came from `into_foreign()`, and is taken up
        // once, with the hold.
        Self {
            // SAFETY: Therefore, it is not null.
            inner: unsafe { NonNull::new_unchecked(ptr.cast()) },
            _kind: PhantomData,
        }
    }

    unsafe fn borrow<'a>(ptr: *mut c_void) -> Borrowed<'a, Self> {
        // SAFETY: By the trait's contract, the owner does not take it up while this is on loan, and
        // it is not dropped by us.
        Borrowed::new(unsafe { Self::from_foreign(ptr) })
    }

    unsafe fn borrow_mut<'a>(ptr: *mut c_void) -> Borrowed<'a, Self> {
        // SAFETY: What is required for this is more than for `borrow()`.
        unsafe { Self::borrow(ptr) }
    }
}

// SAFETY: `into_foreign()` returns the address of an `Inner<T>`, or what the holder makes of it.
unsafe impl<T: Counted> ForeignOwnable for PercpuRefGuard<T> {
    #[cfg(CONFIG_RUST_PERCPU_REF_DEBUG)]
    const FOREIGN_ALIGN: usize = holder::FOREIGN_ALIGN;
    #[cfg(not(CONFIG_RUST_PERCPU_REF_DEBUG))]
    const FOREIGN_ALIGN: usize = align_of::<Inner<T>>();

    type Borrowed<'a> = Borrowed<'a, Self>;
    type BorrowedMut<'a> = Borrowed<'a, Self>;

    fn into_foreign(self) -> *mut c_void {
        let this = ManuallyDrop::new(self);
        let mut ptr = this.inner.as_ptr().cast();
        this.holder.into_foreign(&mut ptr);
        ptr
    }

    unsafe fn from_foreign(mut ptr: *mut c_void) -> Self {
        // SAFETY: By the trait's contract, `ptr` came from `into_foreign()`, and the reference was
        // not put since.
        let holder = unsafe { holder::Holder::from_foreign(&mut ptr) };
        // INVARIANT: By the trait's contract, `ptr` is taken back once, with the reference.
        Self {
            // SAFETY: Therefore, it is not null.
            inner: unsafe { NonNull::new_unchecked(ptr.cast()) },
            holder,
        }
    }

    unsafe fn borrow<'a>(ptr: *mut c_void) -> Borrowed<'a, Self> {
        // SAFETY: By the trait's contract, the owner does not take it up while this is on loan, and
        // it is not dropped by us.
        Borrowed::new(unsafe { Self::from_foreign(ptr) })
    }

    unsafe fn borrow_mut<'a>(ptr: *mut c_void) -> Borrowed<'a, Self> {
        // SAFETY: What is required for this is more than for `borrow()`.
        unsafe { Self::borrow(ptr) }
    }
}

// SPDX-License-Identifier: GPL-2.0

//! References that C holds, as the `void *` of a callback or as private data.

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

/// A borrowed [`PercpuRef`] or [`PercpuRefGuard`] that C owns.
///
/// # Examples
///
/// ```
/// use kernel::prelude::*;
/// use kernel::sync::percpu_ref::{Counted, PercpuRef, PercpuRefGuard, UniquePercpuRef};
/// use kernel::types::ForeignOwnable;
///
/// struct Device {
///     id: u32,
/// }
///
/// impl Counted for Device {}
///
/// let device: PercpuRef<Device> = UniquePercpuRef::new(Device { id: 3 }, GFP_KERNEL)?.into();
///
/// // C keeps the reference as the `void *data` of a callback.
/// let data = device.try_get().ok_or(ENODEV)?.into_foreign();
///
/// // In the callback:
/// // SAFETY: `data` came from `into_foreign()`, and is converted back after this.
/// let request = unsafe { PercpuRefGuard::<Device>::borrow(data) };
/// assert_eq!(request.id, 3);
/// drop(request);
///
/// // When C does not use the reference any more:
/// // SAFETY: `data` came from `into_foreign()`, is not borrowed, and is not used after this.
/// drop(unsafe { PercpuRefGuard::<Device>::from_foreign(data) });
/// device.kill_and_wait();
/// # Ok::<(), Error>(())
/// ```
pub struct Borrowed<'a, R> {
    reference: ManuallyDrop<R>,
    _owner: PhantomData<&'a R>,
}

impl<R> Borrowed<'_, R> {
    /// Creates a borrow of a reference, which is not dropped with it.
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

// SAFETY: `into_foreign()` returns the address of an `Inner<T>`, which is not null and is aligned
// to `FOREIGN_ALIGN`.
unsafe impl<T: Counted, K: Kind> ForeignOwnable for PercpuRef<T, K> {
    const FOREIGN_ALIGN: usize = align_of::<Inner<T>>();

    type Borrowed<'a> = Borrowed<'a, Self>;
    type BorrowedMut<'a> = Borrowed<'a, Self>;

    fn into_foreign(self) -> *mut c_void {
        ManuallyDrop::new(self).inner.as_ptr().cast()
    }

    unsafe fn from_foreign(ptr: *mut c_void) -> Self {
        // INVARIANT: By the trait's contract, `ptr` came from `into_foreign()`, which passed on the
        // hold, and is converted back once.
        Self {
            // SAFETY: `ptr` came from `into_foreign()`, so it is not null.
            inner: unsafe { NonNull::new_unchecked(ptr.cast()) },
            _kind: PhantomData,
        }
    }

    unsafe fn borrow<'a>(ptr: *mut c_void) -> Borrowed<'a, Self> {
        // SAFETY: By the trait's contract, `ptr` came from `into_foreign()`, and is not converted
        // back during `'a`. The `ManuallyDrop` in `Borrowed` keeps us from dropping it.
        Borrowed::new(unsafe { Self::from_foreign(ptr) })
    }

    unsafe fn borrow_mut<'a>(ptr: *mut c_void) -> Borrowed<'a, Self> {
        // SAFETY: The safety requirements of `borrow_mut()` include those of `borrow()`.
        unsafe { Self::borrow(ptr) }
    }
}

// SAFETY: `into_foreign()` returns the address of an `Inner<T>`, or with
// `CONFIG_RUST_PERCPU_REF_DEBUG`, the address that `Holder::into_foreign()` makes of it. Both are
// not null and are aligned to `FOREIGN_ALIGN`.
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
        // INVARIANT: By the trait's contract, `ptr` came from `into_foreign()`, which passed on the
        // reference, and is converted back once.
        Self {
            // SAFETY: `ptr` came from `into_foreign()`, so it is not null.
            inner: unsafe { NonNull::new_unchecked(ptr.cast()) },
            holder,
        }
    }

    unsafe fn borrow<'a>(ptr: *mut c_void) -> Borrowed<'a, Self> {
        // SAFETY: By the trait's contract, `ptr` came from `into_foreign()`, and is not converted
        // back during `'a`. The `ManuallyDrop` in `Borrowed` keeps us from dropping it.
        Borrowed::new(unsafe { Self::from_foreign(ptr) })
    }

    unsafe fn borrow_mut<'a>(ptr: *mut c_void) -> Borrowed<'a, Self> {
        // SAFETY: The safety requirements of `borrow_mut()` include those of `borrow()`.
        unsafe { Self::borrow(ptr) }
    }
}

// SPDX-License-Identifier: GPL-2.0

//! The file in debugfs that lists the objects.
//!
//! `/sys/kernel/debug/percpu_ref/objects` lists the objects of each module by type, and how many of
//! them were never killed. So it shows which objects would delay the unloading of a module. With
//! `CONFIG_RUST_PERCPU_REF_DEBUG`, it also lists each shared object and its holders.
//!
//! The list is not a snapshot, because objects are allocated and freed while the file is read.
//!
//! C header: [`include/linux/debugfs.h`](srctree/include/linux/debugfs.h)

#[cfg(CONFIG_RUST_PERCPU_REF_DEBUG)]
mod details;

#[cfg(CONFIG_RUST_PERCPU_REF_DEBUG)]
use self::details::Details;
use super::unload::{
    classes,
    Class, //
};
use crate::{
    bindings, fmt,
    prelude::*,
    seq_file::{
        seq_print,
        SeqFile, //
    },
};
use core::ptr;

/// The directory and the file in debugfs, which are removed when this is dropped.
///
/// The files of the kernel crate's `debugfs` module do not hold a reference to their module. If
/// such a file is closed after the module was unloaded, the kernel calls code that is gone:
/// `full_proxy_release()` in fs/debugfs/file.c. Therefore this calls C, and an open file holds a
/// reference to the library.
#[pin_data(PinnedDrop)]
pub struct Listing {
    #[cfg_attr(not(CONFIG_DEBUG_FS), allow(dead_code))] // Then there is no file.
    operations: bindings::file_operations,
    folder: *mut bindings::dentry,
}

// SAFETY: Any thread can remove the directory.
unsafe impl Send for Listing {}

// SAFETY: A shared reference gives no access to the fields.
unsafe impl Sync for Listing {}

impl Listing {
    /// Creates the file, which belongs to `module`.
    ///
    /// If debugfs refuses to create it, there is no file.
    ///
    /// # Context
    ///
    /// May sleep, so must be called from process context.
    pub fn new(module: &'static ThisModule) -> impl PinInit<Self> {
        let init = |this: *mut Self| {
            let listing = Self {
                operations: bindings::file_operations {
                    owner: module.as_ptr(),
                    open: Some(open),
                    read: Some(bindings::seq_read),
                    llseek: Some(bindings::seq_lseek),
                    release: Some(bindings::single_release),
                    ..pin_init::zeroed()
                },
                folder: ptr::null_mut(),
            };
            // SAFETY: `this` is valid for writes and pinned, so the operations are valid until the
            // directory is removed. The functions of debugfs accept errors that other functions of
            // debugfs returned.
            unsafe {
                this.write(listing);
                #[cfg(CONFIG_DEBUG_FS)]
                {
                    (*this).folder =
                        bindings::debugfs_create_dir(c"percpu_ref".as_char_ptr(), ptr::null_mut());
                    bindings::debugfs_create_file_full(
                        c"objects".as_char_ptr(),
                        0o400,
                        (*this).folder,
                        ptr::null_mut(),
                        ptr::null(),
                        &raw const (*this).operations,
                    );
                }
            }
            Ok(())
        };
        // SAFETY: The closure initialises all fields.
        unsafe { pin_init::pin_init_from_closure(init) }
    }
}

#[pinned_drop]
impl PinnedDrop for Listing {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: `folder` came from `debugfs_create_dir()`, or is null. `debugfs_remove()` ignores
        // null and errors.
        #[cfg(CONFIG_DEBUG_FS)]
        unsafe {
            bindings::debugfs_remove(self.folder)
        };
    }
}

/// Opens the file.
///
/// # Safety
///
/// Must be called by the kernel to open the file.
unsafe extern "C" fn open(_inode: *mut bindings::inode, file: *mut bindings::file) -> c_int {
    // SAFETY: By the safety requirements of this function, `file` is valid and being opened.
    unsafe { bindings::single_open(file, Some(show), ptr::null_mut()) }
}

/// Writes the contents of the file.
///
/// # Safety
///
/// Must be called by the kernel to read the file.
unsafe extern "C" fn show(file: *mut bindings::seq_file, _data: *mut c_void) -> c_int {
    // SAFETY: By the safety requirements of this function, `file` is valid.
    let file = unsafe { SeqFile::from_raw(file) };
    match Objects::read() {
        Ok(objects) => {
            seq_print!(file, "{}", objects);
            0
        }
        Err(error) => error.to_errno(),
    }
}

/// The heading that the objects of a class are listed under.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    /// A module, by the first bytes of its name and a null.
    ///
    /// The kernel itself has an empty name.
    Module([u8; 64]),
    /// A module that is being unloaded.
    Going,
    /// A module that was unloaded.
    Gone,
}

impl Place {
    fn of(class: &Class) -> Self {
        match class.enter() {
            // The operations are in the module as well, but there may be no symbol before them.
            Some(running) => Self::of_function(running.ops().release as usize),
            None if class.is_abandoned() => Self::Gone,
            // This may also be a class that a module has claimed but does not use yet.
            None => Self::Going,
        }
    }

    fn of_function(function: usize) -> Self {
        let mut name = [0; 64];
        let mut buffer = [0u8; 1024];
        // The text is "function+offset/size [module]", without "[module]" for the kernel itself.
        //
        // SAFETY: The buffer is larger than `KSYM_SYMBOL_LEN` in include/linux/kallsyms.h.
        unsafe { bindings::sprint_symbol(buffer.as_mut_ptr().cast(), function as c_ulong) };
        let text = buffer.split(|&byte| byte == 0).next().unwrap_or_default();
        let module = text.split(|&byte| byte == b'[').nth(1).unwrap_or_default();
        let module = module.split(|&byte| byte == b']' || byte == b' ').next();
        // The last byte remains null.
        for (to, from) in name[..63].iter_mut().zip(module.unwrap_or_default()) {
            *to = *from;
        }
        Self::Module(name)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Module(name) => match CStr::from_bytes_until_nul(name).map(CStr::to_str) {
                Ok(Ok("")) => f.write_str("kernel"),
                Ok(Ok(name)) => f.write_str(name),
                _ => f.write_str("?"),
            },
            Self::Going => f.write_str("modules that are being unloaded"),
            Self::Gone => f.write_str("unloaded modules"),
        }
    }
}

/// The contents of the file.
struct Objects {
    /// The classes that have objects, with the number of objects, sorted by module.
    rows: KVVec<(Place, &'static Class, usize)>,
    #[cfg(CONFIG_RUST_PERCPU_REF_DEBUG)]
    details: Details,
}

impl Objects {
    fn read() -> Result<Self> {
        let mut rows = KVVec::new();
        for class in classes() {
            let live = class.live();
            if live != 0 {
                rows.push((Place::of(class), class, live), GFP_KERNEL)?;
            }
        }
        rows.sort_unstable_by_key(|&(place, class, _)| (place, ptr::from_ref(class).addr()));
        Ok(Self {
            rows,
            #[cfg(CONFIG_RUST_PERCPU_REF_DEBUG)]
            details: Details::read()?,
        })
    }
}

impl fmt::Display for Objects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut last = None;
        for &(place, class, live) in &self.rows {
            if last != Some(place) {
                let rows = self.rows.iter().filter(|row| row.0 == place);
                let total = rows.map(|row| row.2).sum();
                f.write_fmt(fmt!("{place}: {}\n", Number(total)))?;
                last = Some(place);
            }
            match class.enter() {
                Some(running) => {
                    let name = (running.ops().name)();
                    let unkilled = class.unkilled().min(live);
                    f.write_fmt(fmt!(
                        "  {name}: {}, {unkilled} never killed\n",
                        Number(live)
                    ))?;
                }
                None => f.write_fmt(fmt!("  {}\n", Number(live)))?,
            }
            #[cfg(CONFIG_RUST_PERCPU_REF_DEBUG)]
            self.details.write(class, f)?;
        }
        #[cfg(CONFIG_RUST_PERCPU_REF_DEBUG)]
        self.details.write_end(f)?;
        Ok(())
    }
}

/// Displays a number of objects.
struct Number(usize);

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            1 => f.write_str("1 object"),
            n => f.write_fmt(fmt!("{n} objects")),
        }
    }
}

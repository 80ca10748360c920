// SPDX-License-Identifier: GPL-2.0

//! The file in debugfs that lists what objects there are.
//!
//! `/sys/kernel/debug/percpu_ref/objects` has the objects of each module, by type, and how many of
//! them were never killed. It shows which objects would delay the unloading of a module. With
//! `CONFIG_RUST_PERCPU_REF_DEBUG` it has each shared object, and what holds it.
//!
//! Nothing in it is a snapshot: objects come and go while the file is read.
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

/// The folder and the file in debugfs. They are removed when this is dropped.
///
/// The kernel crate's files in debugfs do not hold the module that they belong to. A file that is
/// closed after the module has gone then calls what is not there any more: `full_proxy_release()`
/// in fs/debugfs/file.c. So this calls C, and an open file holds the library.
#[pin_data(PinnedDrop)]
pub struct Listing {
    #[cfg_attr(not(CONFIG_DEBUG_FS), allow(dead_code))] // Then there is no file.
    operations: bindings::file_operations,
    folder: *mut bindings::dentry,
}

// SAFETY: The folder may be removed by any thread.
unsafe impl Send for Listing {}

// SAFETY: A shared reference gives no access to the fields.
unsafe impl Sync for Listing {}

impl Listing {
    /// Creates the file, which belongs to `module`. If debugfs refuses it, there is none.
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
            // SAFETY: `this` is valid for writes, and pinned, so the operations are there until the
            // folder is removed. Errors may be passed on.
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
        // SAFETY: It came from `debugfs_create_dir()`, and is null or an error if there is none.
        #[cfg(CONFIG_DEBUG_FS)]
        unsafe {
            bindings::debugfs_remove(self.folder)
        };
    }
}

/// # Safety
///
/// Must be called by the kernel, to open a file.
unsafe extern "C" fn open(_inode: *mut bindings::inode, file: *mut bindings::file) -> c_int {
    // SAFETY: By the safety requirements of this function, `file` is about to be opened.
    unsafe { bindings::single_open(file, Some(show), ptr::null_mut()) }
}

/// # Safety
///
/// Must be called by the kernel, to read a file.
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

/// What a class's objects are listed under.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    /// A module, by the first bytes of its name and a null. The kernel itself has no name.
    Module([u8; 64]),
    /// A module that is about to be unloaded.
    Going,
    /// A module that was unloaded.
    Gone,
}

impl Place {
    fn of(class: &Class) -> Self {
        match class.enter() {
            // The operations lie in the module as well, but may have no symbol before them.
            Some(running) => Self::of_function(running.ops().release as usize),
            None if class.is_abandoned() => Self::Gone,
            // Or for a moment, a class that a module is about to take.
            None => Self::Going,
        }
    }

    fn of_function(function: usize) -> Self {
        let mut name = [0; 64];
        let mut buffer = [0u8; 1024];
        // "function+offset/size [module]", without the last part for the kernel itself.
        //
        // SAFETY: The buffer has more than the `KSYM_SYMBOL_LEN` bytes of include/linux/kallsyms.h.
        unsafe { bindings::sprint_symbol(buffer.as_mut_ptr().cast(), function as c_ulong) };
        let text = buffer.split(|&byte| byte == 0).next().unwrap_or_default();
        let module = text.split(|&byte| byte == b'[').nth(1).unwrap_or_default();
        let module = module.split(|&byte| byte == b']' || byte == b' ').next();
        // The last byte stays null.
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

/// What is listed.
struct Objects {
    /// The classes that have objects, with their number, by module.
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

// SPDX-License-Identifier: GPL-2.0

//! A device that counts what it does by CPU, and whose settings are replaced while it is in use.
//!
//! `/dev/percpu_stats_sample` gives to each reader so many bytes, all of the same value, as its
//! settings say, and takes as many from each writer. In debugfs, `percpu_stats_sample/settings` has
//! these two numbers, which can be written, and `percpu_stats_sample/stats` has the statistics. The
//! file has no end: read it with `dd` or `head -c`.
//!
//! - A request counts in variables of the CPU that it runs on: no lock, no cache line that another
//!   CPU writes to, and on x86-64 one instruction for each number.
//! - A request finds the settings by RCU. It sees the old ones or the new ones, never one number of
//!   each.

use core::str::FromStr;
use kernel::{
    debugfs::{
        Dir,
        File, //
    },
    define_per_cpu,
    fmt,
    fs::{
        self,
        Kiocb, //
    },
    iov::{
        IovIterDest,
        IovIterSource, //
    },
    miscdevice::{
        MiscDevice,
        MiscDeviceOptions,
        MiscDeviceRegistration, //
    },
    page::PAGE_SIZE,
    percpu::{
        online_cpus,
        Local, //
    },
    percpu_field,
    prelude::*,
    sync::rcu::{
        self,
        RcuBox,
        RcuCell, //
    },
    uaccess::UserSliceReader, //
};

/// What is counted, on each CPU. A `u64` could not be read from another CPU on a 32-bit machine.
struct Stats {
    reads: Local<usize>,
    writes: Local<usize>,
    bytes: Local<usize>,
    /// Requests by the number of their bytes: below 16, below 256, below 4096, and all others.
    sizes: [Local<usize>; 4],
}

define_per_cpu! {
    static STATS: Stats = Stats {
        reads: Local::new(0),
        writes: Local::new(0),
        bytes: Local::new(0),
        sizes: [const { Local::new(0) }; 4],
    };
}

/// Counts a request of so many bytes.
fn count(bytes: usize) {
    STATS.project(percpu_field!(Stats, bytes)).add(bytes);
    let size = (bytes.checked_ilog2().unwrap_or(0) as usize / 4).min(3);
    if let Some(requests) = STATS.project(percpu_field!(Stats, sizes)).element(size) {
        requests.inc();
    }
}

/// What a request does.
#[derive(Clone, Copy)]
struct Settings {
    /// The most bytes that a request gives or takes.
    bytes: usize,
    /// The value of all bytes that are read.
    value: u8,
}

static SETTINGS: RcuCell<Settings> = RcuCell::empty();

impl Settings {
    /// Returns the settings for a request. It keeps a copy, because it sleeps, which must not be
    /// done in the read-side critical section.
    fn current() -> Result<Self> {
        SETTINGS.load(&rcu::read_lock()).copied().ok_or(ENODEV)
    }

    /// Makes requests that begin from now on use these settings. The old ones are freed after a
    /// grace period.
    fn publish(self) -> Result {
        drop(SETTINGS.replace(Some(RcuBox::new(self, GFP_KERNEL)?)));
        Ok(())
    }
}

impl FromStr for Settings {
    type Err = Error;

    /// Two numbers, as debugfs shows them.
    fn from_str(text: &str) -> Result<Self> {
        let mut words = text.split_ascii_whitespace();
        let (Some(bytes), Some(value), None) = (words.next(), words.next(), words.next()) else {
            return Err(EINVAL);
        };
        let settings = Self {
            bytes: bytes.parse().map_err(|_| EINVAL)?,
            value: value.parse().map_err(|_| EINVAL)?,
        };
        if !(1..=PAGE_SIZE).contains(&settings.bytes) {
            return Err(ERANGE);
        }
        Ok(settings)
    }
}

/// The functions of the files in debugfs.
mod files {
    use super::*;

    pub(super) fn show_settings(_: &(), f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Settings::current() {
            Ok(Settings { bytes, value }) => writeln!(f, "{bytes} {value}"),
            Err(_) => Ok(()),
        }
    }

    pub(super) fn store_settings(_: &(), from: &mut UserSliceReader) -> Result {
        let mut text = [0; 32];
        let length = from.len();
        let text = text.get_mut(..length).ok_or(EINVAL)?;
        from.read_slice(text)?;
        let text = core::str::from_utf8(text).map_err(|_| EINVAL)?;
        text.parse::<Settings>()?.publish()
    }

    pub(super) fn show_stats(_: &(), f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reads = STATS.project(percpu_field!(Stats, reads));
        let writes = STATS.project(percpu_field!(Stats, writes));
        let bytes = STATS.project(percpu_field!(Stats, bytes));
        let sizes = STATS.project(percpu_field!(Stats, sizes));

        // Sums go over all possible CPUs: one that is offline now has counted, too.
        writeln!(f, "reads {}", reads.sum())?;
        writeln!(f, "writes {}", writes.sum())?;
        writeln!(f, "bytes {}", bytes.sum())?;
        for (size, limit) in [16, 256, 4096].into_iter().enumerate() {
            if let Some(requests) = sizes.element(size) {
                writeln!(f, "below {limit} {}", requests.sum())?;
            }
        }
        if let Some(requests) = sizes.element(3) {
            writeln!(f, "other {}", requests.sum())?;
        }
        for cpu in online_cpus() {
            let requests = reads.read_cpu(cpu).zip(writes.read_cpu(cpu));
            if let Some((reads, writes)) = requests {
                writeln!(f, "cpu{} {}", cpu.as_u32(), reads.wrapping_add(writes))?;
            }
        }
        Ok(())
    }
}

/// An open file.
struct Open;

#[vtable]
impl MiscDevice for Open {
    type Ptr = ();

    fn open(_file: &fs::File, _registration: &MiscDeviceRegistration<Self>) -> Result<Self::Ptr> {
        Ok(())
    }

    fn read_iter(_kiocb: Kiocb<'_, Self::Ptr>, to: &mut IovIterDest<'_>) -> Result<usize> {
        let settings = Settings::current()?;
        let all = KVec::from_elem(settings.value, settings.bytes, GFP_KERNEL)?;
        let bytes = to.copy_to_iter(&all);
        if bytes == 0 && !to.is_empty() {
            return Err(EFAULT);
        }

        STATS.project(percpu_field!(Stats, reads)).inc();
        count(bytes);
        Ok(bytes)
    }

    fn write_iter(_kiocb: Kiocb<'_, Self::Ptr>, from: &mut IovIterSource<'_>) -> Result<usize> {
        let bytes = from.len().min(Settings::current()?.bytes);

        STATS.project(percpu_field!(Stats, writes)).inc();
        count(bytes);
        Ok(bytes)
    }
}

/// Empties [`SETTINGS`], since the kernel does not drop statics.
struct Published;

impl Drop for Published {
    fn drop(&mut self) {
        drop(SETTINGS.take());
    }
}

/// The fields are dropped in this order: first the files go, then the settings.
#[pin_data]
struct Sample {
    #[pin]
    _registration: MiscDeviceRegistration<Open>,
    #[pin]
    _settings: File<()>,
    #[pin]
    _stats: File<()>,
    _folder: Dir,
    _published: Published,
}

impl kernel::InPlaceModule for Sample {
    fn init(_module: &'static ThisModule) -> impl PinInit<Self, Error> {
        let name = c"percpu_stats_sample";
        let folder = Dir::new(name);

        try_pin_init!(Self {
            _published: {
                let (bytes, value) = (64, b'x');
                Settings { bytes, value }.publish()?;
                Published
            },
            _settings <- folder.read_write_callback_file(
                c"settings",
                (),
                &files::show_settings,
                &files::store_settings,
            ),
            _stats <- folder.read_callback_file(c"stats", (), &files::show_stats),
            _folder: folder,
            _registration <- MiscDeviceRegistration::register(MiscDeviceOptions { name }),
        }? Error)
    }
}

module! {
    type: Sample,
    name: "rust_percpu_stats",
    description: "A device with per-CPU statistics and settings that are replaced",
    license: "GPL",
}

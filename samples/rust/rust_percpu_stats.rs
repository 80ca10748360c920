// SPDX-License-Identifier: GPL-2.0

//! A device that counts its requests on each CPU, and whose settings are replaced while it is in
//! use.
//!
//! A read of `/dev/percpu_stats_sample` returns as many bytes as the settings say, which all have
//! the same value. A write takes at most this number of bytes. In debugfs,
//! `percpu_stats_sample/settings` has these two numbers and can be written, and
//! `percpu_stats_sample/stats` has the statistics. The file has no end: read it with `dd` or
//! `head -c`.
//!
//! - A request counts in variables of the CPU that it runs on. It takes no lock and writes to no
//!   cache line that another CPU writes to. On x86-64, each number takes one instruction.
//! - A request finds the settings under RCU. It sees the old settings or the new ones, but never
//!   one number of each.

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

/// The statistics of each CPU.
///
/// The numbers are no `u64`, because another CPU could not read a `u64` on a 32-bit machine.
struct Stats {
    reads: Local<usize>,
    writes: Local<usize>,
    bytes: Local<usize>,
    /// The requests by their number of bytes: below 16, below 256, below 4096, and all others.
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

/// Counts a request with this number of bytes.
fn count(bytes: usize) {
    STATS.project(percpu_field!(Stats, bytes)).add(bytes);
    let size = (bytes.checked_ilog2().unwrap_or(0) as usize / 4).min(3);
    if let Some(requests) = STATS.project(percpu_field!(Stats, sizes)).element(size) {
        requests.inc();
    }
}

/// The settings of a request.
#[derive(Clone, Copy)]
struct Settings {
    /// The largest number of bytes that a request returns or takes.
    bytes: usize,
    /// The value of all bytes that are read.
    value: u8,
}

static SETTINGS: RcuCell<Settings> = RcuCell::empty();

impl Settings {
    /// Returns a copy of the settings for a request.
    ///
    /// A request sleeps, so it cannot use the settings in a read-side critical section.
    fn current() -> Result<Self> {
        SETTINGS.load(&rcu::read_lock()).copied().ok_or(ENODEV)
    }

    /// Publishes these settings for all requests that begin after this.
    ///
    /// The old settings are freed after a grace period.
    fn publish(self) -> Result {
        drop(SETTINGS.replace(Some(RcuBox::new(self, GFP_KERNEL)?)));
        Ok(())
    }
}

impl FromStr for Settings {
    type Err = Error;

    /// Parses the two numbers that debugfs shows.
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

        // The sums include all possible CPUs, because a CPU that is offline now may have counted.
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

/// Empties [`SETTINGS`] when it is dropped, because the kernel does not drop statics.
struct Published;

impl Drop for Published {
    fn drop(&mut self) {
        drop(SETTINGS.take());
    }
}

/// The module, whose fields are dropped in this order: first the files are removed, and then the
/// settings.
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

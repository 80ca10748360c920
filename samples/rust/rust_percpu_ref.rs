// SPDX-License-Identifier: GPL-2.0

//! A device that is removed while requests to it are in flight.
//!
//! `/dev/percpu_ref_sample` stores the text that was written to it. Each request takes `latency_ms`
//! milliseconds, as if there were hardware. After a write, a work item, which holds a reference of
//! its own, saves the text in the background.
//!
//! The device is removed when the module is unloaded, and when `remove` is written to the file, as
//! if the hardware were unplugged. Then
//!
//! - requests in flight complete, because their references keep the device;
//! - new requests fail with `ENODEV`, also on a file that was opened before;
//! - the device is released when the last request has ended, and its memory is freed.
//!
//! From Linux 7.3 on, an open file keeps the module loaded. Before 7.3, do not unload this module
//! while a file is open.

use core::ptr::NonNull;
use kernel::sync::percpu_ref::{
    Counted,
    PercpuRefGuard,
    RcuPercpuRef,
    UniquePercpuRef, //
};
use kernel::{
    bindings,
    fs::{
        File,
        Kiocb, //
    },
    impl_has_work,
    iov::{
        IovIterDest,
        IovIterSource, //
    },
    miscdevice::{
        MiscDevice,
        MiscDeviceOptions,
        MiscDeviceRegistration, //
    },
    new_mutex,
    new_work,
    page::PAGE_SIZE,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Mutex, //
    },
    time::{
        delay::fsleep,
        Delta, //
    },
    workqueue::{
        Queue,
        Work,
        WorkItem, //
    }, //
};

/// The device, which each request holds a reference to.
#[pin_data(PinnedDrop)]
struct Device {
    #[pin]
    text: Mutex<KVVec<u8>>,
    latency: Delta,
    /// The number of times that the text was saved.
    saved: Atomic<u32>,
    /// The queue that runs [`Save`].
    ///
    /// Dropping it waits until each work item has returned.
    saves: SaveQueue,
}

impl Counted for Device {
    // Dropping `saves` sleeps, because it waits for the work items. But the last reference may be
    // dropped by such a work item, or by an RCU callback, which must not sleep. Therefore a thread
    // of its own releases a device. Leave this constant out if neither `release()` nor `Drop`
    // sleeps, because the thread delays the release.
    const MAY_SLEEP: bool = true;

    fn release(&self) {
        pr_info!("the last request has ended\n");
    }
}

#[pinned_drop]
impl PinnedDrop for Device {
    fn drop(self: Pin<&mut Self>) {
        pr_info!("freed after {} saves\n", self.saved.load(Relaxed));
    }
}

/// The device that requests find, until it is removed.
///
/// A driver for more than one device has such a pointer in the private data that its bus keeps for
/// each device.
static DEVICE: RcuPercpuRef<Device> = RcuPercpuRef::empty();

/// Begins a request.
///
/// The guard keeps the device until it is dropped. Getting the guard does not write to memory that
/// other CPUs write to. In debugfs, the list of holders has the line of the caller.
#[track_caller]
fn begin_request() -> Result<PercpuRefGuard<Device>> {
    DEVICE.try_get_live().ok_or(ENODEV)
}

/// Removes the device.
///
/// When this returns, no request is in flight, even if another thread has removed the device. Must
/// not be called in a request. No request may wait for user space without a bound, because this
/// cannot be interrupted.
fn remove() {
    if DEVICE.remove() {
        pr_info!("removed\n");
    }
}

/// Saves the text of a device in the background.
///
/// The guard keeps the device while the work item is queued and while it runs. It does not keep the
/// module: the library waits for the release of the device, and not for the function that dropped
/// the last guard. After `drop(guard)`, a work item still runs code of the module: the rest of its
/// function, and the code that frees its memory. Therefore a module must flush its work items
/// before it is unloaded. Here, dropping [`Device::saves`] does this, as a part of the release that
/// [`remove`] waits for.
#[pin_data]
struct Save {
    device: PercpuRefGuard<Device>,
    #[pin]
    work: Work<Save>,
}

impl_has_work! {
    impl HasWork<Self> for Save { self.work }
}

impl Save {
    fn new(device: PercpuRefGuard<Device>) -> Result<Pin<KBox<Self>>> {
        let save = pin_init!(Self {
            device,
            work <- new_work!("percpu_ref_sample::Save"),
        });
        KBox::pin_init(save, GFP_KERNEL)
    }
}

impl WorkItem for Save {
    type Pointer = Pin<KBox<Self>>;

    fn run(this: Pin<KBox<Self>>) {
        fsleep(this.device.latency);
        let text = this.device.text.lock();
        if !text.is_empty() {
            this.device.saved.add(1, Relaxed);
        }
    }
}

/// A workqueue for [`Save`].
///
/// The kernel crate can neither flush nor cancel work items, and its queues are shared by the whole
/// system. Therefore this calls C.
///
/// # Invariants
///
/// The workqueue is valid.
struct SaveQueue(NonNull<bindings::workqueue_struct>);

// SAFETY: Any thread can use and destroy a workqueue.
unsafe impl Send for SaveQueue {}

// SAFETY: Any number of threads can queue work items at the same time.
unsafe impl Sync for SaveQueue {}

impl SaveQueue {
    /// Allocates a workqueue.
    ///
    /// # Context
    ///
    /// Sleeps, so must be called from process context.
    fn new() -> Result<Self> {
        let name = c"percpu_ref_sample".as_char_ptr();
        let flags = bindings::wq_flags_WQ_UNBOUND;
        // SAFETY: `name` ends with a null and has no conversions, so there are no further
        // arguments. With 0, the number of active work items has the default limit.
        let queue = unsafe { bindings::alloc_workqueue_noprof(name, flags, 0) };
        // INVARIANT: The workqueue is valid until `drop()`.
        NonNull::new(queue).map(Self).ok_or(ENOMEM)
    }

    /// Queues a work item.
    ///
    /// There must be no delayed work items, because `destroy_workqueue()` does not wait for their
    /// timers.
    fn enqueue(&self, save: Pin<KBox<Save>>) {
        // SAFETY: By the type invariant, the workqueue is valid as long as `self`.
        unsafe { Queue::from_raw(self.0.as_ptr()) }.enqueue(save);
    }
}

impl Drop for SaveQueue {
    /// Waits until all work items have returned to the kernel's own code, and frees the workqueue.
    ///
    /// # Context
    ///
    /// Sleeps, so must be called from process context. Must not be called from one of the work
    /// items.
    fn drop(&mut self) {
        // SAFETY: By the type invariant, the workqueue is valid, and it is not used after this.
        unsafe { bindings::destroy_workqueue(self.0.as_ptr()) };
    }
}

/// An open file.
///
/// It holds no reference to the device, because a file may stay open for days. The file can be
/// opened until the module is unloaded, with or without the device.
struct Open;

#[vtable]
impl MiscDevice for Open {
    type Ptr = ();

    fn open(_file: &File, _registration: &MiscDeviceRegistration<Self>) -> Result<Self::Ptr> {
        Ok(())
    }

    fn read_iter(mut kiocb: Kiocb<'_, Self::Ptr>, to: &mut IovIterDest<'_>) -> Result<usize> {
        let device = begin_request()?;
        // Lockdep reports a task that calls `remove()` while it holds a lock which is also taken
        // here.
        let _section = device.lockdep_section();

        fsleep(device.latency);
        let text = device.text.lock();
        to.simple_read_from_buffer(kiocb.ki_pos_mut(), &text)
    }

    fn write_iter(mut kiocb: Kiocb<'_, Self::Ptr>, from: &mut IovIterSource<'_>) -> Result<usize> {
        if from.len() > PAGE_SIZE {
            return Err(EINVAL);
        }
        let mut text = KVVec::new();
        let length = from.copy_from_iter_vec(&mut text, GFP_KERNEL)?;
        if text.trim_ascii_end() == b"remove" {
            remove();
            return Ok(length);
        }
        let device = begin_request()?;
        let save = Save::new(device.clone())?;
        let _section = device.lockdep_section();

        fsleep(device.latency);
        *device.text.lock() = text;
        device.saves.enqueue(save);
        // The next read starts at the beginning of the text.
        *kiocb.ki_pos_mut() = 0;
        Ok(length)
    }
}

/// Keeps the device until this is dropped or the device is removed.
struct Plugged;

impl Plugged {
    fn new(latency_ms: u32) -> Result<Self> {
        let device = UniquePercpuRef::new(
            try_pin_init!(Device {
                text <- new_mutex!(KVVec::new()),
                latency: Delta::from_millis(latency_ms.into()),
                saved: Atomic::new(0),
                saves: SaveQueue::new()?,
            }? Error),
            GFP_KERNEL,
        )?;
        DEVICE.replace(Some(device.into()));
        Ok(Self)
    }
}

impl Drop for Plugged {
    fn drop(&mut self) {
        remove();
    }
}

/// The module, whose fields are dropped in this order: first the file is removed, so that it cannot
/// be opened any more, and then the device.
#[pin_data]
struct Sample {
    #[pin]
    _registration: MiscDeviceRegistration<Open>,
    _plugged: Plugged,
}

impl kernel::InPlaceModule for Sample {
    fn init(_module: &'static ThisModule) -> impl PinInit<Self, Error> {
        // Up to 7.2, the value of a parameter is a reference.
        let latency_ms: u32 = *core::borrow::Borrow::borrow(&module_parameters::latency_ms.value());
        let name = c"percpu_ref_sample";

        try_pin_init!(Self {
            _plugged: Plugged::new(latency_ms)?,
            _registration <- MiscDeviceRegistration::register(MiscDeviceOptions { name }),
        }? Error)
    }
}

module! {
    type: Sample,
    name: "rust_percpu_ref_sample",
    description: "A device that is removed while in use",
    license: "GPL",
    params: {
        latency_ms: u32 {
            default: 1,
            description: "Milliseconds that a request takes",
        },
    },
}

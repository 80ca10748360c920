// SPDX-License-Identifier: GPL-2.0

//! A device that is removed while requests to it are under way.
//!
//! `/dev/percpu_ref_sample` keeps what was written to it, to be read again. Each request takes
//! `latency_ms` milliseconds, as if there were hardware. `flush` makes it print in the background
//! how much text there is. The device goes when the module is unloaded, and also when `remove` is
//! written to it, as if the hardware were pulled out, since open files keep a module in place (from
//! Linux 7.3 on; with older kernels, do not unload this one while a file is open):
//!
//! - requests under way find all that they need, and are completed;
//! - new requests get `ENODEV`, even on a file that was opened before;
//! - when the last one has ended, the device's memory is freed.

use kernel::{
    fs::{
        File,
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
    new_mutex,
    page::PAGE_SIZE,
    prelude::*,
    sync::{
        rcu,
        Mutex, //
    },
    time::{
        delay::fsleep,
        Delta, //
    },
    workqueue, //
};
use percpu_ref::{
    Counted,
    PercpuRefGuard,
    RcuPercpuRef,
    UniquePercpuRef, //
};

/// What the requests need.
#[pin_data(PinnedDrop)]
struct Device {
    #[pin]
    text: Mutex<KVVec<u8>>,
    latency: Delta,
}

impl Counted for Device {
    // If the last request has ended before the removal, RCU's callback ends the device, where
    // nothing may sleep. Freeing the text of a device may sleep, so the device is given to a
    // thread. Leave this out if neither the release nor any `Drop` sleeps: then there is no delay.
    const MAY_SLEEP: bool = true;

    fn release(&self) {
        pr_info!("the last request has ended\n");
    }
}

#[pinned_drop]
impl PinnedDrop for Device {
    fn drop(self: Pin<&mut Self>) {
        pr_info!("freed\n");
    }
}

/// Where the requests find the device, while it is there. There is one; a driver for many has this
/// in the data that its bus keeps for each.
static DEVICE: RcuPercpuRef<Device> = RcuPercpuRef::empty();

/// Begins a request. As long as it has the guard, it has the device. Taking the guard touches no
/// memory that other CPUs write to.
fn begin_request() -> Result<PercpuRefGuard<Device>> {
    DEVICE.try_get_live(&rcu::read_lock()).ok_or(ENODEV)
}

/// Lets no new request begin, and returns when those under way have ended, whichever caller has
/// removed the device. Must not be called in a request. Cannot be interrupted, so no request may
/// wait for user space without a limit.
fn remove() {
    if DEVICE.remove() {
        pr_info!("removed\n");
    }
}

/// Prints in the background how much text there is.
///
/// The work item has the device from before it is queued until its last statement, so the removal
/// waits for it. After that it only returns, which unloading waits for, too. Code that goes on to
/// sleep after it has dropped the last guard is not waited for: the module must flush or stop it in
/// its exit function.
fn flush(device: PercpuRefGuard<Device>) -> Result {
    workqueue::system_unbound().try_spawn(GFP_KERNEL, move || {
        fsleep(device.latency);
        pr_info!("flushed {} bytes\n", device.text.lock().len());
        drop(device);
    })?;
    Ok(())
}

/// An open file. It has no reference: what is open may stay so for days. It can be opened until the
/// module is unloaded, with or without the device.
struct Open;

#[vtable]
impl MiscDevice for Open {
    type Ptr = ();

    fn open(_file: &File, _registration: &MiscDeviceRegistration<Self>) -> Result<Self::Ptr> {
        Ok(())
    }

    fn read_iter(mut kiocb: Kiocb<'_, Self::Ptr>, to: &mut IovIterDest<'_>) -> Result<usize> {
        let device = begin_request()?;

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
        if text.trim_ascii_end() == b"flush" {
            flush(device)?;
            return Ok(length);
        }

        fsleep(device.latency);
        *device.text.lock() = text;
        // The text is read from its beginning.
        *kiocb.ki_pos_mut() = 0;
        Ok(length)
    }
}

/// Keeps the device until this is dropped, if it is not removed before.
struct Plugged;

impl Plugged {
    fn new(latency_ms: u32) -> Result<Self> {
        let device = UniquePercpuRef::new(
            pin_init!(Device {
                text <- new_mutex!(KVVec::new()),
                latency: Delta::from_millis(latency_ms.into()),
            }),
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

/// In this order they are dropped: nobody opens the device any more, then it is removed.
#[pin_data]
struct Sample {
    #[pin]
    _registration: MiscDeviceRegistration<Open>,
    _plugged: Plugged,
}

impl kernel::InPlaceModule for Sample {
    fn init(_module: &'static ThisModule) -> impl PinInit<Self, Error> {
        // Up to 7.2 a parameter's value is a reference.
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

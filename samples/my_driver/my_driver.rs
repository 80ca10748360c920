// SPDX-License-Identifier: GPL-2.0

//! A device that can be removed while requests are in flight.
//!
//! Reading `/dev/my_driver` is a request. Writing `remove` to it removes the device, and so does
//! unloading the module.

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
    prelude::*,
    sync::percpu_ref::{
        Counted,
        PercpuRefGuard,
        RcuPercpuRef,
        UniquePercpuRef, //
    }, //
};

/// What a request needs.
struct Device {
    greeting: &'static [u8],
}

impl Counted for Device {
    fn release(&self) {
        pr_info!("the last request has ended\n");
    }
}

static DEVICE: RcuPercpuRef<Device> = RcuPercpuRef::empty();

fn add() -> Result {
    let greeting = b"hello\n";
    let device = UniquePercpuRef::new(Device { greeting }, GFP_KERNEL)?;
    DEVICE.replace(Some(device.into()));
    Ok(())
}

/// Begins a request. The device exists until the guard is dropped.
fn begin_request() -> Result<PercpuRefGuard<Device>> {
    DEVICE.try_get_live().ok_or(ENODEV)
}

/// Turns new requests away, and sleeps until those in flight have ended.
fn remove() {
    DEVICE.remove();
}

/// An open file. It holds no reference, since a file may stay open for days.
struct Open;

#[vtable]
impl MiscDevice for Open {
    type Ptr = ();

    fn open(_file: &File, _registration: &MiscDeviceRegistration<Self>) -> Result<Self::Ptr> {
        Ok(())
    }

    fn read_iter(mut kiocb: Kiocb<'_, Self::Ptr>, to: &mut IovIterDest<'_>) -> Result<usize> {
        let device = begin_request()?;
        to.simple_read_from_buffer(kiocb.ki_pos_mut(), device.greeting)
    }

    fn write_iter(_kiocb: Kiocb<'_, Self::Ptr>, from: &mut IovIterSource<'_>) -> Result<usize> {
        let length = from.len();
        let mut text = [0; 6];
        from.copy_from_iter(&mut text);
        if &text != b"remove" {
            return Err(EINVAL);
        }
        remove();
        Ok(length)
    }
}

/// Removes the device when the module is unloaded. A `static` is not dropped.
struct Removed;

impl Drop for Removed {
    fn drop(&mut self) {
        remove();
    }
}

/// The fields are dropped in this order: first, the file can no longer be opened.
#[pin_data]
struct MyDriver {
    #[pin]
    _registration: MiscDeviceRegistration<Open>,
    _removed: Removed,
}

impl kernel::InPlaceModule for MyDriver {
    fn init(_module: &'static ThisModule) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            _removed: {
                add()?;
                Removed
            },
            _registration <- MiscDeviceRegistration::register(MiscDeviceOptions {
                name: c"my_driver",
            }),
        }? Error)
    }
}

module! {
    type: MyDriver,
    name: "my_driver",
    description: "A device that can be removed while requests are in flight",
    license: "GPL",
}

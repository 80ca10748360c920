// SPDX-License-Identifier: GPL-2.0

//! A driver in any folder of the kernel's tree that uses a per-CPU reference count.

use kernel::prelude::*;
use kernel::sync::percpu_ref::{
    Counted,
    PercpuRef,
    UniquePercpuRef, //
};

module! {
    type: Driver,
    name: "percpu_ref_user",
    description: "A user of a per-CPU reference count",
    license: "GPL",
}

struct Device;

impl Counted for Device {
    fn release(&self) {
        pr_info!("released\n");
    }
}

struct Driver(PercpuRef<Device>);

impl kernel::Module for Driver {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        Ok(Self(UniquePercpuRef::new(Device, GFP_KERNEL)?.into()))
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        pr_info!("{:?}\n", self.0);
    }
}

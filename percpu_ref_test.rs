// SPDX-License-Identifier: GPL-2.0
//! t
use kernel::prelude::*;
use percpu_ref::*;
module! {
    type: M,
    name: "rust_percpu_ref_test",
    description: "Tests of the per-CPU reference counts",
    license: "GPL",
}
struct M;
struct Q(u32);
impl Counted for Q { fn release(&self) { pr_info!("released {}\n", self.0); } }
impl kernel::Module for M {
    fn init(_m: &'static ThisModule) -> Result<Self> {
        let u = UniquePercpuRef::new(Q(1), GFP_KERNEL)?;
        u.cancel_init();
        let r: PercpuRef<Q> = UniquePercpuRef::new(Q(2), GFP_KERNEL)?.into();
        let g = r.try_get();
        r.kill();
        pr_info!("dying {} {}\n", r.is_dying(), r.try_get().is_some());
        drop(g);
        r.wait_released();
        pr_info!("{}\n", r.try_get().is_none());
        let p = percpu::PerCpu::<percpu::Local<u8>>::zeroed(GFP_KERNEL)?;
        p.dec();
        pr_info!("{}\n", p.sum());
        Ok(M)
    }
}

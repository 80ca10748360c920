// SPDX-License-Identifier: GPL-2.0

//! Cases in which allocations fail.
//!
//! `fail_nth.c` makes the first allocation of a function fail, then the second, and so on until no
//! allocation has failed. The function must return each failure as `ENOMEM`, and must leak nothing.

use super::*;

use kernel::alloc::{
    flags::{
        GFP_NOWAIT, //
        __GFP_NOWARN,
    },
    Flags,
};
use kernel::sync::percpu_ref::{
    RcuPercpuRef,
    Reinit, //
};

/// `percpu_ref_test_fail_nth()` of the module `rust_percpu_ref_faults`.
///
/// The module stays loaded until this is dropped.
struct Faults(FailNth);

type FailNth = unsafe extern "C" fn(n: c_uint, deep: bool) -> c_uint;

extern "C" {
    fn percpu_ref_test_get_fail_nth() -> Option<FailNth>;
    fn percpu_ref_test_put_fail_nth();
    fn percpu_ref_test_totalram_mib() -> c_ulong;
}

const NO_FAULTS: Result<Outcome> = Ok(Skipped("needs rust_percpu_ref_faults.ko"));

impl Faults {
    fn get() -> Option<Self> {
        // SAFETY: `percpu_ref_test_get_fail_nth()` can be called from process context.
        unsafe { percpu_ref_test_get_fail_nth() }.map(Self)
    }

    /// Runs `run` and makes its `n`-th allocation fail.
    ///
    /// Also returns whether there was such an allocation.
    fn with<R>(&self, n: u32, deep: bool, run: impl FnOnce() -> R) -> (R, bool) {
        // SAFETY: The module is loaded. Only allocations of this task fail.
        unsafe { (self.0)(n, deep) };
        let result = run();
        // SAFETY: The module is loaded. After this call, no allocation is made to fail.
        let left = unsafe { (self.0)(0, deep) };
        (result, left == 0)
    }
}

impl Drop for Faults {
    fn drop(&mut self) {
        // SAFETY: `get()` has got the reference, which is not used after this.
        unsafe { percpu_ref_test_put_fail_nth() };
    }
}

/// A family of types, so that [`PercpuRef`] allocates the class of a type that it has not seen yet.
struct OfKind<const KIND: usize>(#[allow(dead_code, reason = "it counts")] Thing);

impl<const KIND: usize> Counted for OfKind<KIND> {}

/// An object whose release may sleep, but does not sleep.
struct MaySleep(#[allow(dead_code, reason = "it counts")] Thing);

impl Counted for MaySleep {
    const MAY_SLEEP: bool = true;
}

fn once<T: Counted>(value: T, gfp: Flags) -> Result {
    let object = PercpuRef::from(UniquePercpuRef::new(value, gfp)?);
    drop(object.try_get().ok_or(EIO)?);
    object.kill();
    Ok(())
}

fn thing() -> Result<Thing> {
    Ok(Thing::new()?.0)
}

type Allocating = (&'static str, fn(Flags) -> Result);

/// The functions of the library that allocate, each of which is called at least once.
///
/// Each entry drops the objects that it makes.
const ALLOCATING: &[Allocating] = &[
    ("PerCpu::zeroed", |gfp| {
        PerCpu::<Local<u64>>::zeroed(gfp)?;
        Ok(())
    }),
    ("PerCpu::new", |gfp| {
        PerCpu::new(|_| Atomic::new(0u64), gfp)?;
        Ok(())
    }),
    ("RcuCallbackBox::new", |gfp| {
        RcuCallbackBox::new(Nothing, gfp)?.call_hurry();
        Ok(())
    }),
    ("RcuBox::new", |gfp| {
        drop(RcuBox::<_>::new(thing()?, gfp)?);
        Ok(())
    }),
    ("RcuBox::new of what needs no drop", |gfp| {
        drop(RcuBox::<_>::new(7u64, gfp)?);
        Ok(())
    }),
    ("UniquePercpuRef::new", |gfp| once(thing()?, gfp)),
    ("of a new kind", |gfp| once(OfKind::<0>(thing()?), gfp)),
    ("of one more, with GFP_ATOMIC", |_| {
        once(OfKind::<1>(thing()?), GFP_ATOMIC | __GFP_NOWARN)
    }),
    ("that may sleep", |gfp| once(MaySleep(thing()?), gfp)),
    ("cancel_init", |gfp| {
        UniquePercpuRef::new(thing()?, gfp)?.cancel_init();
        Ok(())
    }),
    ("into_inner", |gfp| {
        drop(UniquePercpuRef::new(thing()?, gfp)?.into_inner());
        Ok(())
    }),
    ("new_reinit", |gfp| {
        reinit(UniquePercpuRef::new_reinit(thing()?, gfp)?)
    }),
    ("new_atomic", |gfp| {
        reinit(UniquePercpuRef::new_atomic(thing()?, gfp)?)
    }),
    ("new_dead", |gfp| {
        reinit(UniquePercpuRef::new_dead(thing()?, gfp)?)
    }),
    ("RcuPercpuRef", |gfp| {
        let object = PercpuRef::from(UniquePercpuRef::new(thing()?, gfp)?);
        drop(RcuPercpuRef::from(object));
        Ok(())
    }),
];

struct Nothing;

impl RcuCallback for Nothing {
    fn run(_this: RcuCallbackBox<Self>) {}
}

fn reinit(unique: UniquePercpuRef<Thing, Reinit>) -> Result {
    let object = PercpuRef::from(unique);
    object.kill();
    object.wait_released();
    Ok(())
}

fn fail_each(by: &Faults, deep: bool) -> Result<u32> {
    let mut faults = 0;
    for gfp in [GFP_KERNEL | __GFP_NOWARN, GFP_ATOMIC | __GFP_NOWARN] {
        for (name, allocate) in ALLOCATING {
            for n in 1.. {
                let (result, failed) = by.with(n, deep, || allocate(gfp));
                wait_for(|| THINGS.load(Relaxed) == 0)
                    .inspect_err(|_| pr_err!("        # {name}, allocation {n}\n"))?;
                if !failed {
                    // There is no `n`-th allocation, so nothing has failed. `n > 1` checks that the
                    // probes have seen an allocation at all.
                    check!(result.is_ok() && (deep || n > 1));
                    break;
                }
                // An allocator need not fail if one of its own allocations fails.
                if result != Err(ENOMEM) && !(deep && result.is_ok()) {
                    pr_err!("        # {name}, allocation {n}: {result:?}\n");
                    return Err(EIO);
                }
                faults += 1;
            }
        }
    }
    rcu::rcu_barrier();
    Ok(faults)
}

/// Makes each call of the allocators by the library fail.
pub(super) fn each_allocation_fails() -> Result<Outcome> {
    let Some(by) = Faults::get() else {
        return NO_FAULTS;
    };
    pr_info!("        # {} faults\n", fail_each(&by, false)?);
    Ok(Passed)
}

/// Makes each allocation inside the allocators fail: of slab, of pages, and for per-CPU memory.
pub(super) fn each_allocation_fails_inside() -> Result<Outcome> {
    if !cfg!(CONFIG_FAULT_INJECTION) {
        return Ok(Skipped("this kernel has no CONFIG_FAULT_INJECTION"));
    }
    let Some(by) = Faults::get() else {
        return NO_FAULTS;
    };
    pr_info!("        # {} faults\n", fail_each(&by, true)?);
    Ok(Passed)
}

/// Checks that no operation on an existing object allocates memory.
pub(super) fn ends_need_no_memory() -> Result<Outcome> {
    let Some(by) = Faults::get() else {
        return NO_FAULTS;
    };
    for may_sleep in [false, true] {
        let once = PercpuRef::from(UniquePercpuRef::new(thing()?, GFP_KERNEL)?);
        let sleeping = PercpuRef::from(UniquePercpuRef::new(MaySleep(thing()?), GFP_KERNEL)?);
        let many = PercpuRef::from(UniquePercpuRef::new_reinit(thing()?, GFP_KERNEL)?);
        let all = || {
            let batch = once.try_get_many(100);
            drop(batch);
            once.kill_and_confirm();
            once.wait_released();
            if may_sleep {
                sleeping.kill_and_wait();
            }
            many.switch_to_atomic_sync();
            many.switch_to_percpu();
            many.kill_and_wait();
            let result = many.reinit();
            drop((once, sleeping, many));
            result
        };
        let (result, failed) = by.with(1, false, all);
        check!(result.is_ok() && !failed);
        wait_for(|| THINGS.load(Relaxed) == 0)?;
    }
    Ok(Passed)
}

/// Takes as much memory as can be allocated without waiting, and then gives it back.
///
/// First it allocates large objects without waiting, so that smaller pieces of memory remain for
/// the rest of the kernel. Then it allocates small objects with `GFP_ATOMIC`, from the reserves.
pub(super) fn memory_pressure() -> Result<Outcome> {
    // SAFETY: `percpu_ref_test_totalram_mib()` can be called from any context.
    if unsafe { percpu_ref_test_totalram_mib() } > 2048 {
        return Ok(Skipped("not on a machine with so much memory"));
    }
    const MOST_LARGE: usize = 2_000;
    const MOST_SMALL: usize = 4_000;
    let events = Arc::new(Events::default(), GFP_KERNEL)?;
    let most_small = times(MOST_SMALL);
    let mut large = KVVec::with_capacity(MOST_LARGE, GFP_KERNEL)?;
    let mut small = KVVec::with_capacity(most_small, GFP_KERNEL)?;
    let flags = GFP_NOWAIT | __GFP_NOWARN;

    let mut error = None;
    while error.is_none() && large.len() < MOST_LARGE {
        match UniquePercpuRef::new(Block::<{ 2 << 20 }>::of(Thing::with(&events)), flags) {
            Ok(unique) => large.push(PercpuRef::from(unique), flags)?,
            Err(e) => error = Some(e),
        }
    }
    // Per-CPU memory is exhausted first, because the kernel keeps little of it in reserve.
    let mut failed = 0;
    while failed < 100 && small.len() < most_small {
        match UniquePercpuRef::new(Thing::with(&events), GFP_ATOMIC | __GFP_NOWARN) {
            Ok(unique) => small.push(PercpuRef::from(unique), flags)?,
            Err(_) => failed += 1,
        }
    }
    let (large_count, small_count) = (large.len(), small.len());
    drop(large);
    drop(small);
    wait_for(|| THINGS.load(Relaxed) == 0)?;

    pr_info!(
        "        # {large_count} large objects, {small_count} small ones, {failed} failures\n"
    );
    check!(error == Some(ENOMEM));
    check!(failed == 100 || small_count == most_small);
    check!(events.released.get() as usize == large_count + small_count);
    // Memory can be allocated again.
    once(thing()?, GFP_KERNEL)?;
    wait_for(|| THINGS.load(Relaxed) == 0)?;
    Ok(Passed)
}

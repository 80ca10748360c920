// SPDX-License-Identifier: GPL-2.0

//! Cases about per-CPU memory and preemption.

use super::*;

use core::cell::{
    Cell,
    UnsafeCell, //
};
use kernel::percpu::{
    Integer,
    LocalCell,
    Offset,
    PerCpuVar,
    Untorn, //
};
use kernel::{declare_per_cpu, define_per_cpu, fmt, new_spinlock, percpu_field, sync::SpinLock};

extern "C" {
    fn percpu_ref_test_cpu_online(cpu: c_uint) -> bool;
    fn percpu_ref_test_this_cpu(bits: c_uint, op: c_uint, a: u64, b: u64) -> u64;
}

/// An integer as a field and as an element of an array, between other fields.
#[derive(Zeroable)]
struct Around<I: Integer> {
    before: Local<u8>,
    value: Local<I>,
    row: [Local<I>; 3],
    after: Local<u8>,
}

impl<I: Integer> Around<I> {
    const fn new(zero: I, some: u8) -> Self {
        Self {
            before: Local::new(some),
            value: Local::new(zero),
            row: [Local::new(zero), Local::new(zero), Local::new(zero)],
            after: Local::new(some),
        }
    }
}

define_per_cpu! {
    static VAR_8: Around<u8> = Around::new(0, 77);
    static VAR_16: Around<u16> = Around::new(0, 77);
    static VAR_32: Around<u32> = Around::new(0, 77);
    static VAR_64: Around<u64> = Around::new(0, 77);
}

/// Compares each operation with its C counterpart, on pseudo-random numbers.
///
/// The result, and the value that is left in the variable, must be equal.
fn compare<I: Integer + Untorn + fmt::Display + Default, O: Offset>(
    local: &PerCpuVar<Local<I>, O>,
    c: impl Fn(c_uint, I, I) -> I,
    number: impl Fn(u64) -> I,
) -> Result {
    // The generator of Knuth's MMIX.
    let mut seed = 1u64;
    let mut number = || {
        seed = seed
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        number(seed)
    };
    let zero = I::default();
    let same = |op| -> Result {
        let (ours, theirs) = (local.read(), c(1, zero, zero));
        if ours != theirs {
            pr_err!("after operation {op}: {ours}, in C {theirs}\n");
            return Err(EIO);
        }
        Ok(())
    };

    // C and Rust must use the copies of one CPU.
    let _guard = PreemptGuard::new();
    for turn in 0..100 {
        let (a, b, d) = (number(), number(), number());
        local.write(a);
        c(0, a, zero);
        same(0)?;
        local.add(b);
        c(2, b, zero);
        same(2)?;
        local.sub(d);
        c(3, d, zero);
        same(3)?;
        local.inc();
        c(4, zero, zero);
        same(4)?;
        local.dec();
        local.dec();
        c(5, zero, zero);
        c(5, zero, zero);
        same(5)?;
        check!(local.add_return(a) == c(6, a, zero));
        check!(local.sub_return(b) == c(11, b, zero));
        local.or(d);
        c(10, d, zero);
        same(10)?;
        local.and(b);
        c(9, b, zero);
        same(9)?;
        check!(local.xchg(d) == c(7, d, zero));
        // In half of the turns, this is the value of the variable.
        let expected = if turn % 2 == 0 { d } else { a };
        let found = local.cmpxchg(expected, b).unwrap_or_else(|found| found);
        check!(found == c(8, expected, b));
        same(8)?;
        for expected in [a, b, d] {
            // C returns the value that it leaves in its variable `old`.
            let mut ours = expected;
            let done = local.try_cmpxchg(&mut ours, a);
            check!(ours == c(12, expected, a));
            check!(done == (ours == expected));
            same(12)?;
        }
    }
    Ok(())
}

/// Compares each operation of each width with C.
///
/// The variables are allocated memory, a field, an element of an array and a static variable.
#[allow(clippy::cast_lossless)] // The cast is lossless for some of the types only.
pub(super) fn percpu_local_as_in_c() -> Result<Outcome> {
    macro_rules! compare_in {
        ($int:ty, $around:expr, $c:expr, $number:expr) => {
            let around: &PerCpuVar<Around<$int>> = &$around;
            compare(
                &*around.project(percpu_field!(Around::<$int>, value)),
                $c,
                $number,
            )?;
            let row = around.project(percpu_field!(Around::<$int>, row));
            compare(&*row.element(1).ok_or(EIO)?, $c, $number)?;
            check!(row.element(3).is_none());

            let before = around.project(percpu_field!(Around::<$int>, before));
            let after = around.project(percpu_field!(Around::<$int>, after));
            check!(possible_cpus().all(|cpu| before.read_cpu(cpu) == Some(77)));
            check!(possible_cpus().all(|cpu| after.read_cpu(cpu) == Some(77)));
            check!(row.element(0).ok_or(EIO)?.sum() == 0);
            check!(row.element(2).ok_or(EIO)?.sum() == 0);
        };
    }
    macro_rules! compare {
        ($($int:ident $($var:ident)?;)*) => {$({
            // SAFETY: `percpu_ref_test_this_cpu()` can be called from any context.
            let c = |op, a: $int, b: $int| unsafe {
                percpu_ref_test_this_cpu($int::BITS, op, a as u64, b as u64) as $int
            };
            let number = |seed: u64| match seed >> 61 {
                0 => 0,
                1 => $int::MAX,
                2 => $int::MIN,
                _ => (seed >> 16) as $int,
            };
            compare(&*PerCpu::<Local<$int>>::zeroed(GFP_KERNEL)?, c, number)?;

            let around = PerCpu::new(|_| Around::<$int>::new(0, 77), GFP_KERNEL)?;
            compare_in!($int, &around, c, number);
            $(compare_in!($int, $var, c, number);)?
        })*};
    }

    compare! {
        u8 VAR_8;
        i8;
        u16 VAR_16;
        i16;
        u32 VAR_32;
        i32;
        u64 VAR_64;
        i64;
        usize;
        isize;
    }
    Ok(Passed)
}

/// Checks the operations on values that are not integers.
pub(super) fn percpu_bool_and_pointer() -> Result<Outcome> {
    let flag = PerCpu::<Local<bool>>::zeroed(GFP_KERNEL)?;
    let guard = PreemptGuard::new();

    check!(!flag.read());
    flag.write(true);
    check!(flag.read());
    check!(flag.xchg(false));
    check!(flag.cmpxchg(true, true) == Err(false));
    check!(flag.cmpxchg(false, true) == Ok(false));
    check!(flag.read_cpu(CpuId::current()) == Some(true));
    drop(guard);

    let values = [1, 2];
    let [first, second] = [&raw const values[0], &raw const values[1]];
    let pointer = PerCpu::new(|_| Local::new(first), GFP_KERNEL)?;
    let guard = PreemptGuard::new();
    check!(pointer.xchg(second) == first);
    check!(pointer.cmpxchg(first, first) == Err(second));
    let mut expected = first;
    check!(!pointer.try_cmpxchg(&mut expected, first) && expected == second);
    check!(pointer.try_cmpxchg(&mut expected, first));
    pointer.write(second);
    // SAFETY: The pointer points to `values[1]`, which is alive.
    check!(unsafe { *pointer.read() } == 2);
    drop(guard);
    Ok(Passed)
}

struct Defined {
    number: Local<u32>,
    atomic: Atomic<i64>,
}

define_per_cpu! {
    /// Has these values on each CPU at the beginning.
    static DEFINED: Defined = Defined { number: Local::new(5), atomic: Atomic::new(-6) };
}

declare_per_cpu! {
    // SAFETY: The variable is `DEFINE_PER_CPU(u64, percpu_ref_test_counter)` in this_cpu.c, which
    // changes it only by `this_cpu_inc()`.
    unsafe static COUNTER: Local<u64> = percpu_ref_test_counter;
}

extern "C" {
    fn percpu_ref_test_inc_counter();
    fn percpu_ref_test_sum_counter() -> u64;
}

/// Checks static variables that this module defines, and one that C defines.
pub(super) fn percpu_static() -> Result<Outcome> {
    // KUnit can run the case again, which then finds the values that this run leaves.
    static BEFORE: Atomic<u32> = Atomic::new(0);
    let runs = BEFORE.fetch_add(1, Relaxed);
    let online = online_cpus().count() as u32;
    let number = DEFINED.project(percpu_field!(Defined, number));

    for cpu in possible_cpus() {
        check!(DEFINED
            .get_cpu(cpu)
            .is_some_and(|v| v.atomic.load(Relaxed) == -6));
        check!(runs > 0 || number.read_cpu(cpu) == Some(5));
    }
    let before = number.sum();
    let counted = COUNTER.sum();
    for cpu in online_cpus() {
        on_cpu(cpu, || {
            DEFINED.project(percpu_field!(Defined, number)).inc();
            COUNTER.add(2);
            // SAFETY: `percpu_ref_test_inc_counter()` can be called from any context.
            unsafe { percpu_ref_test_inc_counter() };
        })?;
    }
    check!(number.sum() == before + online);
    check!(COUNTER.sum() == counted + 3 * u64::from(online));
    // SAFETY: `percpu_ref_test_sum_counter()` can be called from any context.
    check!(unsafe { percpu_ref_test_sum_counter() } == COUNTER.sum());
    Ok(Passed)
}

/// Variables that a task and an interrupt change on one CPU.
struct Contended {
    /// Both add to it, also to its upper half.
    wide: Local<u64>,
    narrow: Local<u8>,
    /// The task adds by `cmpxchg()`.
    exchanged: Local<u32>,
    /// The interrupt adds to it, and the task exchanges it with zero.
    taken: Local<u64>,
    /// The task changes bit 0, and the interrupt changes bit 1.
    bits: Local<u16>,
    interrupts: Local<u64>,
    errors: Local<u32>,
    /// Both add to it when it is not in use.
    cell: LocalCell<Cell<u64>>,
    added: Local<u64>,
}

define_per_cpu! {
    static CONTENDED: Contended = Contended {
        wide: Local::new(0),
        narrow: Local::new(0),
        exchanged: Local::new(0),
        taken: Local::new(0),
        bits: Local::new(0),
        interrupts: Local::new(0),
        errors: Local::new(0),
        cell: LocalCell::new(Cell::new(0)),
        added: Local::new(0),
    };
}

macro_rules! contended {
    ($field:ident) => {
        CONTENDED.project(percpu_field!(Contended, $field))
    };
}

extern "C" {
    fn percpu_ref_test_on_this_cpu(func: unsafe extern "C" fn(*mut c_void), arg: *mut c_void);
    fn percpu_ref_test_on_each_cpu(func: unsafe extern "C" fn(*mut c_void), arg: *mut c_void);
}

fn add_to_cell() {
    if contended!(cell)
        .with(|value| value.set(value.get() + 1))
        .is_some()
    {
        contended!(added).inc();
    }
}

/// Changes the variables of [`CONTENDED`] in an interrupt.
///
/// # Safety
///
/// There are no requirements.
unsafe extern "C" fn contend(_: *mut c_void) {
    add_to_cell();
    let turn = contended!(interrupts).add_return(1);
    contended!(wide).add(1 << 32);
    contended!(narrow).inc();
    contended!(exchanged).inc();
    contended!(taken).add(1);
    let bits = contended!(bits);
    // The previous interrupt must have left bit 1 like this.
    if (bits.read() & 2 != 0) != (turn % 2 == 0) {
        contended!(errors).inc();
    }
    if turn % 2 == 0 {
        bits.and(!2);
    } else {
        bits.or(2);
    }
}

/// Changes variables in tasks and in interrupts of their CPU, and checks that no change is lost.
pub(super) fn percpu_against_interrupts() -> Result<Outcome> {
    let stop = Arc::new(Atomic::new(0u32), GFP_KERNEL)?;
    let turns = Arc::new(Atomic::new(0u64), GFP_KERNEL)?;
    let taken = Arc::new(Atomic::new(0u64), GFP_KERNEL)?;
    let mut threads = KVec::new();
    // Makes the threads end, even if this case fails. Dropped before the threads, because the drop
    // of a thread waits for it.
    let end = ScopeGuard::new(|| stop.store(1, Relaxed));
    let before = [
        contended!(wide).sum(),
        contended!(narrow).sum().into(),
        contended!(exchanged).sum().into(),
    ];
    let (interrupts, left) = (contended!(interrupts).sum(), contended!(taken).sum());
    let errors = contended!(errors).sum();
    let added = contended!(added).sum();

    for cpu in online_cpus() {
        let (stop, turns, all_taken) = (stop.clone(), turns.clone(), taken.clone());
        let run = move || {
            let (mut mine, mut taken) = (0u64, 0);
            loop {
                add_to_cell();
                contended!(wide).add(3);
                contended!(wide).sub(1);
                contended!(narrow).inc();
                let mut old = contended!(exchanged).read();
                loop {
                    let new = old.wrapping_add(1);
                    if contended!(exchanged).try_cmpxchg(&mut old, new) {
                        break;
                    }
                }
                taken += contended!(taken).xchg(0);
                let bits = contended!(bits);
                if mine % 2 == 0 {
                    bits.or(1);
                } else {
                    bits.and(!1);
                }
                mine += 1;
                if (bits.read() & 1 != 0) != (mine % 2 != 0) {
                    contended!(errors).inc();
                }
                if mine % 1024 == 0 {
                    // SAFETY: `schedule()` can be called from process context.
                    unsafe { bindings::schedule() };
                }
                if stop.load(Relaxed) != 0 {
                    break;
                }
            }
            contended!(bits).and(!1);
            turns.fetch_add(mine, Relaxed);
            all_taken.fetch_add(taken, Relaxed);
        };
        threads.push(Thread::spawn(cpu, run)?, GFP_KERNEL)?;
    }
    let start = Instant::<Monotonic>::now();
    loop {
        // SAFETY: `contend()` can be called from any context but NMI.
        unsafe { percpu_ref_test_on_each_cpu(contend, core::ptr::null_mut()) };
        fsleep(Delta::from_micros(50));
        if start.elapsed() >= Delta::from_millis(300) {
            break;
        }
    }
    // Makes the threads end, and waits for them.
    drop(end);
    drop(threads);

    let interrupts = contended!(interrupts).sum() - interrupts;
    let turns = turns.load(Relaxed);
    pr_info!("        # {turns} turns, {interrupts} interrupts\n");
    check!(interrupts > 0 && turns > 0);
    let wide = (2 * turns).wrapping_add(interrupts << 32);
    check!(contended!(wide).sum() == before[0].wrapping_add(wide));
    check!(u64::from(contended!(narrow).sum()) == (before[1] + turns + interrupts) & 0xff);
    let exchanged = before[2] + turns + interrupts;
    check!(contended!(exchanged).sum() == exchanged as u32);
    check!(taken.load(Relaxed) + contended!(taken).sum() == left + interrupts);
    check!(contended!(errors).sum() == errors);

    let mut in_cells = 0;
    for cpu in online_cpus() {
        in_cells += on_cpu(cpu, || contended!(cell).with(|value| value.get()))?.ok_or(EIO)?;
    }
    check!(added < contended!(added).sum() && in_cells == contended!(added).sum());
    Ok(Passed)
}

/// A value that is changed by plain stores of one thread.
struct Plain(UnsafeCell<u64>);

// SAFETY: Only `percpu_copies_are_apart()` uses it, and KUnit runs one case at a time.
unsafe impl Sync for Plain {}

impl Plain {
    #[inline(always)]
    fn set(&self, value: u64) {
        // SAFETY: Only one thread uses the value, so there is no other access at this time.
        unsafe { *self.0.get() = value };
    }

    #[inline(always)]
    fn get(&self) -> u64 {
        // SAFETY: Only one thread uses the value, so there is no other access at this time.
        unsafe { *self.0.get() }
    }
}

define_per_cpu! {
    static PLAIN: Plain = Plain(UnsafeCell::new(0));
    static SEVEN: u8 = 7;
}

/// Checks that the compiler does not treat two copies of a static variable as one memory location.
pub(super) fn percpu_copies_are_apart() -> Result<Outcome> {
    let Some((one, other)) = two_cpus() else {
        return Ok(Skipped("needs two CPUs"));
    };

    let (Some(a), Some(b)) = (PLAIN.get_cpu(one), PLAIN.get_cpu(other)) else {
        return Err(EIO);
    };
    a.set(0x1111);
    b.set(0x2222);
    check!(PLAIN.get_cpu(one).is_some_and(|copy| copy.get() == 0x1111));
    check!(PLAIN
        .get_cpu(other)
        .is_some_and(|copy| copy.get() == 0x2222));
    check!(SEVEN.iter().all(|(_, seven)| *seven == 7));
    Ok(Passed)
}

define_per_cpu! {
    static CELL: LocalCell<Cell<u64>> = LocalCell::new(Cell::new(0));
    static REFUSED: Local<u32> = Local::new(0);
}

/// Tries to use the cell, and counts a refusal.
///
/// # Safety
///
/// There are no requirements.
unsafe extern "C" fn use_cell(_: *mut c_void) {
    if CELL.with(|_| ()).is_none() {
        REFUSED.inc();
    }
}

/// Checks that a `LocalCell` in use refuses further uses on its CPU, also in an interrupt.
pub(super) fn percpu_local_cell() -> Result<Outcome> {
    let refused = REFUSED.sum();

    for cpu in online_cpus() {
        let is_right = on_cpu(cpu, move || {
            let before = REFUSED.read();
            let nested = CELL.with(|_| CELL.with(|_| ()).is_none());
            let interrupted = CELL.with(|_| {
                // SAFETY: `use_cell()` can be called from any context.
                unsafe { percpu_ref_test_on_this_cpu(use_cell, core::ptr::null_mut()) };
                REFUSED.read() - before
            });
            let is_set = CELL.with(|value| value.set(u64::from(cpu.as_u32()) + 1));
            nested == Some(true) && interrupted == Some(1) && is_set.is_some()
        })?;
        check!(is_right);
    }
    check!(REFUSED.sum() == refused + online_cpus().count() as u32);
    for cpu in online_cpus() {
        let value = on_cpu(cpu, || CELL.with(|value| value.get()))?;
        check!(value == Some(u64::from(cpu.as_u32()) + 1));
    }

    let cells = PerCpu::<LocalCell<u64>>::zeroed(GFP_KERNEL)?;
    check!(cells.with(|value| *value) == Some(0));
    Ok(Passed)
}

/// Uses per-CPU values that contain a lock without a `PreemptGuard`.
pub(super) fn percpu_locks() -> Result<Outcome> {
    let queues = PerCpu::<SpinLock<u32>>::new(|_| new_spinlock!(0), GFP_KERNEL)?;
    let queues = Arc::new(queues, GFP_KERNEL)?;

    for cpu in online_cpus() {
        let queues = queues.clone();
        on_cpu(cpu, move || {
            if let Some(queue) = queues.get_cpu(CpuId::current()) {
                *queue.lock() += 1;
            }
        })?;
    }
    let mut sum = 0;
    for (_, queue) in queues.iter() {
        sum += *queue.lock();
    }
    check!(sum as usize == online_cpus().count());
    Ok(Passed)
}

/// Changes all copies through mutable references, pinned and not pinned.
pub(super) fn percpu_iter_mut() -> Result<Outcome> {
    let mut values = PerCpu::<Local<u16>>::zeroed(GFP_KERNEL)?;

    for (cpu, value) in values.iter_mut() {
        *value.get_mut() = cpu.as_u32() as u16 + 1;
    }
    for (_, value) in values.iter_pin_mut() {
        *value.get_mut().get_mut() *= 2;
    }
    for cpu in possible_cpus() {
        check!(values.read_cpu(cpu) == Some(2 * (cpu.as_u32() as u16 + 1)));
    }
    for cpu in possible_cpus() {
        // SAFETY: `percpu_ref_test_cpu_online()` takes the number of a possible CPU.
        let is_online = unsafe { percpu_ref_test_cpu_online(cpu.as_u32()) };
        check!(online_cpus().any(|other| other == cpu) == is_online);
    }
    check!(online_cpus().all(|cpu| possible_cpus().any(|other| other == cpu)));
    Ok(Passed)
}

extern "C" {
    fn percpu_ref_test_preempt_count() -> c_uint;
    fn percpu_ref_test_set_need_resched();
    fn percpu_ref_test_need_resched() -> bool;
    fn percpu_ref_test_c_reschedules() -> bool;
}

/// Checks that a `PreemptGuard` changes `preempt_count()`, and reschedules as C does when it ends.
///
/// Also checks that a get and a put reschedule.
pub(super) fn preempt_guard_as_in_c() -> Result<Outcome> {
    if !cfg!(CONFIG_PREEMPT_COUNT) {
        return Ok(Skipped("this kernel does not count"));
    }
    // SAFETY: `percpu_ref_test_preempt_count()` can be called from any context.
    let count = || unsafe { percpu_ref_test_preempt_count() };
    let before = count();
    let guard = PreemptGuard::new();
    check!(count() == before + 1);
    let inner = PreemptGuard::new();
    check!(count() == before + 2);
    drop(inner);
    check!(count() == before + 1);
    drop(guard);
    check!(count() == before);

    let (thing, _) = Thing::shared()?;
    let (mut by_c, mut by_guard, mut by_get, mut by_put) = (0, 0, 0, 0);
    for _ in 0..100 {
        // SAFETY: `percpu_ref_test_set_need_resched()` and `percpu_ref_test_need_resched()` can be
        // called from process context. A task can be rescheduled at any time.
        let is_done = |run: &mut dyn FnMut()| unsafe {
            percpu_ref_test_set_need_resched();
            run();
            u32::from(!percpu_ref_test_need_resched())
        };
        // SAFETY: `percpu_ref_test_c_reschedules()` can be called from process context. A task can
        // be rescheduled at any time.
        by_c += u32::from(unsafe { percpu_ref_test_c_reschedules() });
        by_guard += is_done(&mut || drop(PreemptGuard::new()));
        let mut guard = None;
        by_get += is_done(&mut || guard = thing.try_get());
        by_put += is_done(&mut || drop(guard.take()));
    }
    pr_info!("        # rescheduled {by_c} {by_guard} {by_get} {by_put} of 100 times\n");
    if by_c == 0 {
        return Ok(Skipped("this kernel does not preempt"));
    }
    // Less than 100, because the timer may ask the task to reschedule again.
    check!(by_c > 80 && by_guard > 80 && by_get > 80 && by_put > 80);
    check!(count() == before);
    Ok(Passed)
}

/// Checks that safe code can disable preemption only to a depth far below the kernel's limit.
///
/// RCU waits for a task at that depth.
pub(super) fn preempt_guards_have_a_bound() -> Result<Outcome> {
    let (thing, events) = Thing::shared()?;
    let (callback, ran) = Callback::new(0)?;
    let most = PreemptGuard::MAX_DEPTH as usize;
    let mut guards = KVec::with_capacity(most + 1, GFP_KERNEL)?;
    // SAFETY: `percpu_ref_test_preempt_count()` can be called from any context.
    let before = unsafe { percpu_ref_test_preempt_count() } as usize;

    for _ in 0..=most {
        let Some(guard) = PreemptGuard::try_new() else {
            break;
        };
        // The vector has the capacity, so this does not allocate.
        guards.push(guard, GFP_ATOMIC)?;
    }
    let depth = guards.len();
    // A reference can be got at any depth.
    let guard = thing.try_get();
    callback.call_hurry();
    let start = Instant::<Monotonic>::now();
    let mut early = false;
    while start.elapsed() < Delta::from_millis(40) {
        early |= ran.confirmed.get() != 0;
    }
    drop(guards);

    check!(guard.is_some_and(|guard| guard.is_alive()));
    wait_for(|| ran.confirmed.get() == 1)?;
    check!(PreemptGuard::try_new().is_some());
    drop(thing);
    check_end(&events, 0, 1)?;
    if !cfg!(CONFIG_PREEMPT_COUNT) {
        return Ok(Skipped("this kernel does not count"));
    }
    check!(!early);
    // `PREEMPT_MASK` has 8 bits, and 128 is half of what they can count.
    check!(most < 128);
    check!(depth == most - before);
    Ok(Passed)
}

/// Checks that each CPU changes only its own integer.
pub(super) fn percpu_local_on_each_cpu() -> Result<Outcome> {
    let local = Arc::new(PerCpu::<Local<u64>>::zeroed(GFP_KERNEL)?, GFP_KERNEL)?;
    let mut sum = 0;

    for cpu in online_cpus() {
        let amount = u64::from(cpu.as_u32()) + 1;
        let on_that = local.clone();
        on_cpu(cpu, move || {
            for _ in 0..1000 {
                on_that.add(amount);
            }
        })?;
        check!(local.read_cpu(cpu) == Some(1000 * amount));
        sum += 1000 * amount;
    }
    check!(local.sum() == sum);
    Ok(Passed)
}

/// Checks that each CPU has the value that was made for it, and that all CPUs can read it.
pub(super) fn percpu_values() -> Result<Outcome> {
    let values = PerCpu::new(|cpu| (cpu.as_u32(), Atomic::new(0i32)), GFP_KERNEL)?;
    let values = Arc::new(values, GFP_KERNEL)?;

    check!(values.iter().count() == possible_cpus().count());
    for cpu in online_cpus() {
        let on_that = values.clone();
        let own = on_cpu(cpu, move || {
            let guard = PreemptGuard::new();
            let (number, hits) = on_that.get(&guard);
            hits.add(1, Relaxed);
            *number
        })?;
        check!(own == cpu.as_u32());
        check!(values.get_cpu(cpu).is_some_and(|v| v.1.load(Relaxed) == 1));
    }
    check!(values.iter().all(|(cpu, value)| value.0 == cpu.as_u32()));
    Ok(Passed)
}

/// A value that counts how many of its kind exist, for the cases about the drop of per-CPU values.
struct Tally(Arc<Atomic<i32>>);

impl Tally {
    fn new(tally: &Arc<Atomic<i32>>) -> Self {
        tally.add(1, Relaxed);
        Self(tally.clone())
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

pub(super) fn percpu_init_rolls_back() -> Result<Outcome> {
    let tally = Arc::new(Atomic::new(0), GFP_KERNEL)?;
    let cpus = possible_cpus().count() as i32;

    // All initialisers succeed. There is one value for each CPU, and all are dropped together.
    let values = PerCpu::new(|_| Tally::new(&tally), GFP_KERNEL)?;
    check!(tally.load(Relaxed) == cpus);
    drop(values);
    check!(tally.load(Relaxed) == 0);

    // The last initialiser fails. The other values are dropped, and the error is returned.
    let mut made = 0;
    let values = PerCpu::<Tally>::new(
        |_| {
            made += 1;
            if made == cpus {
                return Err(EBUSY);
            }
            Ok(Tally::new(&tally))
        },
        GFP_KERNEL,
    );
    check!(values.err() == Some(EBUSY));
    check!(made == cpus);
    check!(tally.load(Relaxed) == 0);
    Ok(Passed)
}

/// Checks that an allocation that must not block fails with `ENOMEM` when memory is exhausted.
///
/// This happens soon, because the kernel keeps few pages of per-CPU memory in reserve.
pub(super) fn percpu_no_memory() -> Result<Outcome> {
    let mut taken = KVec::with_capacity(256, GFP_KERNEL)?;
    let mut error = None;

    while error.is_none() && taken.len() < taken.capacity() {
        let large = PerCpu::<[u8; 32 << 10]>::new(|_| init_zeroed(), GFP_NOWAIT | __GFP_NOWARN);
        match large {
            Ok(large) => taken.push(large, GFP_KERNEL)?,
            Err(e) => error = Some(e),
        }
    }
    check!(error == Some(ENOMEM));
    drop(taken);
    // Memory can be allocated again.
    PerCpu::<Local<u32>>::zeroed(GFP_KERNEL)?;
    Ok(Passed)
}

// SPDX-License-Identifier: GPL-2.0

//! Tests of the library, which run when the module is loaded.
//!
//! The cases use only the public interface. The results go to the kernel log as a KTAP subtest. In
//! a kernel with KUnit, the cases are KUnit suites. In other kernels, loading fails with `EIO` if a
//! case fails.

use core::{
    convert::Infallible,
    mem::MaybeUninit, //
};
use kernel::percpu::{
    possible_cpus,
    Local,
    PerCpu, //
};
use kernel::preempt::PreemptGuard;
use kernel::sync::percpu_ref::{
    Counted,
    PercpuRef,
    PercpuRefGuard,
    UniquePercpuRef, //
};
use kernel::sync::rcu::{
    self,
    RcuBox,
    RcuCallback,
    RcuCallbackBox, //
};
use kernel::{
    bindings,
    cpu::CpuId,
    new_mutex,
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Relaxed,
            Release, //
        },
        Arc,
        Mutex, //
    },
    time::{
        delay::fsleep,
        Delta,
        Instant,
        Monotonic, //
    },
    types::ScopeGuard,
};

use pin_init::{
    init_zeroed,
    uninit, //
};

#[path = "tests/cases/ends.rs"]
mod ends;
#[path = "tests/cases/faults.rs"]
mod faults;
#[path = "tests/cases/history.rs"]
mod history;
#[path = "tests/cases/kthread.rs"]
mod kthread;
#[path = "tests/cases/modes.rs"]
mod modes;
#[path = "tests/cases/oracle.rs"]
mod oracle;
#[path = "tests/cases/per_cpu.rs"]
mod per_cpu;
#[path = "tests/cases/rcu.rs"]
mod rcu_cases;
#[path = "tests/cases/references.rs"]
mod references;
#[path = "tests/cases/tasks.rs"]
mod tasks;
#[path = "tests/cases/windows.rs"]
mod windows;

use self::{
    ends::*,
    faults::*,
    history::*,
    modes::*,
    oracle::*,
    per_cpu::*,
    rcu_cases::*,
    references::*,
    tasks::*,
    windows::*, //
};
use kthread::{
    online_cpus,
    Thread, //
};

module! {
    type: Tests,
    name: "rust_percpu_ref_test",
    description: "Tests of the per-CPU reference counts",
    license: "GPL",
    params: {
        threads: u32 {
            default: 1,
            description: "Stress threads on each CPU, 1 to 64",
        },
        seconds: u32 {
            default: 2,
            description: "Seconds of stress at least, up to 86400 (KUnit: 3000); 0: less of all",
        },
        seed: u32 {
            default: 0,
            description: "What random numbers begin with; 0: something new",
        },
        provoke: u32 {
            default: 0,
            description: "1: run the cases that provoke warnings, and those alone",
        },
    },
}

struct Tests;

/// The outcome of a case that did not fail.
enum Outcome {
    Passed,
    Skipped(&'static str),
}
use Outcome::{
    Passed,
    Skipped, //
};

/// Returns an error from the case, and logs the place and the condition, if the condition is false.
macro_rules! check {
    ($cond:expr) => {
        if !$cond {
            return Err(failed(file!(), line!(), stringify!($cond)));
        }
    };
}

use check;

#[cold]
#[inline(never)]
fn failed(file: &str, line: u32, what: &str) -> Error {
    pr_err!("        # {file}:{line}: {what}\n");
    EIO
}

/// Makes a suite of cases, each of which is a function.
///
/// In a kernel with KUnit, the suite is registered with KUnit, which runs it when the module is
/// loaded, or at boot. In other kernels, [`run`] runs it.
macro_rules! suite {
    ($cases:ident = $suite:ident [$($case:ident),* $(,)?]) => {
        #[cfg(not(CONFIG_KUNIT = "y"))]
        const $cases: &[(&str, Case)] = &[$((stringify!($case), $case)),*];

        #[cfg(CONFIG_KUNIT = "y")]
        const _: () = {
            const COUNT: usize = [$(stringify!($case)),*].len();

            // `mut`, because KUnit writes to the array.
            static mut CASES: [bindings::kunit_case; COUNT + 1] = [
                $({
                    /// # Safety
                    ///
                    /// `test` must point to the KUnit case that is running.
                    unsafe extern "C" fn case(test: *mut bindings::kunit) {
                        // SAFETY: By the safety requirements of this function, `test` points to
                        // the case that is running.
                        unsafe { run_in_kunit(test, stringify!($suite), $case) }
                    }

                    const NAME: &CStr = kernel::c_str!(stringify!($case));
                    // KUnit derives the time limit of a case from its speed.
                    bindings::kunit_case {
                        attr: bindings::kunit_attributes {
                            speed: bindings::kunit_speed_KUNIT_SPEED_VERY_SLOW,
                        },
                        ..kernel::kunit::kunit_case(NAME, case)
                    }
                },)*
                pin_init::zeroed(),
            ];

            kernel::kunit_unsafe_test_suite!($suite, CASES);
        };
    };
}

type Case = fn() -> Result<Outcome>;

suite!(CASES = percpu_ref [
    long_wait_begins,
    percpu_local_as_in_c,
    percpu_local_on_each_cpu,
    preempt_guard_as_in_c,
    preempt_guards_have_a_bound,
    percpu_bool_and_pointer,
    percpu_static,
    percpu_against_interrupts,
    percpu_copies_are_apart,
    percpu_local_cell,
    percpu_locks,
    percpu_iter_mut,
    percpu_values,
    percpu_init_rolls_back,
    percpu_no_memory,
    rcu_callback_box,
    rcu_callback_calls_again,
    rcu_box_waits_for_readers,
    rcu_box_frees_later,
    rcu_box_of_each_allocator,
    rcu_box_init_fails,
    rcu_cell_owns,
    rcu_cell_readers_race,
    init,
    init_fails,
    cancel_init,
    get_put_on_one_cpu,
    get_here_put_there,
    confirm_after_grace_period,
    try_get_until_zero,
    release_from_put,
    release_from_callback,
    kill_twice,
    kill_races,
    drop_in_each_state,
    drop_inside_release,
    batches,
    batches_keep_apart,
    empty_batch_forgets_its_object,
    try_get_live_until_killed,
    kill_and_wait,
    release_may_sleep,
    foreign_ownable,
    sections_stay_with_the_task,
    rcu_lookup,
    memory_outlives_section,
    start_modes,
    each_transition,
    drop_modal_in_each_state,
    reinit_inside_release,
    kill_inside_confirmation,
    many_switch_at_once,
    transitions_race,
    freeze_and_thaw,
    c_says_the_same,
    c_keeps_the_same_invariants,
    each_allocation_fails,
    each_allocation_fails_inside,
    ends_need_no_memory,
    memory_pressure,
    confirm_against_resurrect,
    callbacks_out_of_order,
    leaked_reference,
    kill_is_not_lazy,
    release_takes_lock,
    counters_wrap,
    cpu_goes_offline,
    no_leak_in_bulk,
    last_put_in_hardirq_wakes,
    zero_when_closed,
    zero_when_confirmed,
    release_waits_for_release,
    waits_end,
    freeze_against_kill,
    freezers_and_killers_race,
    second_remover_waits,
    places_in_a_table,
    switch_is_confirmed_first,
    debug_tells_state,
    debug_runs_outside_of_sections,
    stress,
    tasks_objects_live_and_end,
    tasks_callback_waits_for_both,
    tasks_end_waits_for_preempted,
    tasks_end_waits_for_interrupts,
    tasks_memory_outlives_lookup,
    tasks_stress,
    get_and_put_count_in_their_section,
    memory_outlives_lookup,
    kill_flags_before_grace_period,
    kill_meets_end_of_switch,
    switch_ends_before_killer_hands_over,
    revival_waits_for_killer,
    slow_killer_ends_no_later_life,
    kill_meets_revival,
    freezer_waits_for_revival,
    freezer_stops_revival,
    revival_confirms_first,
    kill_leaves_confirmation_to_owner,
    nothing_begins_before_closed,
    revival_waits_for_confirmation,
    last_hold_frees,
    second_remover_meets_slow_one,
    place_shows_published_objects,
    wake_up_comes_before_wait,
    long_wait_is_told,
]);

// These cases put warnings into the log, and leak objects.
suite!(PROVOKING_CASES = percpu_ref_provoked [
    overflow_leaks,
    underflow_leaks,
    resurrect_at_the_limit,
]);

/// Returns the name of the suite that the parameter `provoke` asks for.
fn wanted() -> &'static str {
    if value(module_parameters::provoke.value()) != 0 {
        "percpu_ref_provoked"
    } else {
        "percpu_ref"
    }
}

impl kernel::Module for Tests {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        check_parameters()?;
        #[cfg(not(CONFIG_KUNIT = "y"))]
        match wanted() {
            "percpu_ref_provoked" => run(2, "percpu_ref_provoked", PROVOKING_CASES)?,
            suite => run(1, suite, CASES)?,
        }
        Ok(Self)
    }
}

/// Runs a suite, and fails if a case fails.
#[cfg(not(CONFIG_KUNIT = "y"))]
fn run(number: u32, suite: &str, cases: &[(&str, Case)]) -> Result {
    pr_info!("    KTAP version 1\n");
    pr_info!("    # Subtest: {suite}\n");
    pr_info!("    1..{}\n", cases.len());
    let mut result = Ok(());
    for (number, (name, case)) in (1..).zip(cases) {
        match case() {
            Ok(Passed) => pr_info!("    ok {number} {name}\n"),
            Ok(Skipped(why)) => pr_info!("    ok {number} {name} # SKIP {why}\n"),
            Err(error) => {
                result = Err(EIO);
                pr_info!("    not ok {number} {name} # {error:?}\n");
            }
        }
    }
    pr_info!(
        "{}ok {number} {suite}\n",
        if result.is_ok() { "" } else { "not " }
    );
    result
}

/// Runs a case of a suite, and stores its outcome in `test`.
///
/// # Safety
///
/// `test` must point to the KUnit case that is running.
#[cfg(CONFIG_KUNIT = "y")]
unsafe fn run_in_kunit(test: *mut bindings::kunit, suite: &str, case: Case) {
    let outcome = if suite == wanted() {
        check_parameters().and_then(|()| case())
    } else {
        Ok(Skipped("see the parameter `provoke`"))
    };
    // SAFETY: By the safety requirements of this function, `test` is valid.
    let status = unsafe { &raw mut (*test).status };
    match outcome {
        Ok(Passed) => (),
        // KUnit may have found a failure in the meantime. Then the case stays failed.
        //
        // SAFETY: `status` is a field of the valid `test`. KUnit writes it by `WRITE_ONCE()`
        // without a lock, so a volatile access is enough.
        Ok(Skipped(why))
            if unsafe { status.read_volatile() } == bindings::kunit_status_KUNIT_SUCCESS =>
        {
            // SAFETY: `status` is a field of the valid `test`, and KUnit also writes it without a
            // lock.
            unsafe { status.write_volatile(bindings::kunit_status_KUNIT_SKIPPED) };
            // SAFETY: `test` is valid, and KUnit does not use its comment before the case returns.
            let comment = unsafe { &mut (*test).status_comment };
            // The last byte is zero, and stays zero.
            for (to, &from) in comment[..255].iter_mut().zip(why.as_bytes()) {
                *to = from as c_char;
            }
        }
        Ok(Skipped(_)) => (),
        Err(error) => {
            pr_err!("        # {error:?}\n");
            // SAFETY: `status` is a field of the valid `test`, and KUnit also writes it without a
            // lock.
            unsafe { status.write_volatile(bindings::kunit_status_KUNIT_FAILURE) };
        }
    }
}

/// Returns the value of a parameter.
///
/// Up to Linux 7.2, a parameter's `value()` returns a reference.
fn value(parameter: impl core::borrow::Borrow<u32>) -> u32 {
    *parameter.borrow()
}

/// Returns `n`, or a fifth of it in a quick run, which is one with `seconds=0`.
fn times(n: usize) -> usize {
    if value(module_parameters::seconds.value()) == 0 {
        n / 5
    } else {
        n
    }
}

fn check_parameters() -> Result {
    check_parameter("threads", value(module_parameters::threads.value()), 1, 64)?;
    check_parameter(
        "seconds",
        value(module_parameters::seconds.value()),
        0,
        86400,
    )
}

fn check_parameter(name: &str, value: u32, min: u32, max: u32) -> Result {
    if !(min..=max).contains(&value) {
        pr_err!("{name}={value} makes no sense: give {min} to {max}\n");
        return Err(EINVAL);
    }
    Ok(())
}

//
// Shared by all cases.
//

/// The number of `Thing`s that are not dropped yet.
static THINGS: Atomic<i32> = Atomic::new(0);

/// Counts what happened to a [`Thing`].
#[derive(Default)]
struct Events {
    confirmed: Counter,
    released: Counter,
    dropped: Counter,
    /// Confirmations of a switch.
    switched: Counter,
    /// Confirmations before the end of their grace period.
    early: Counter,
    /// Events in a wrong order.
    disorder: Counter,
}

struct Counter(Atomic<u32>);

impl Default for Counter {
    fn default() -> Self {
        Self(Atomic::new(0))
    }
}

impl Counter {
    fn inc(&self) {
        // `Release` pairs with the `Acquire` in `get()`: a thread that sees the event also sees
        // what happened before it.
        self.0.fetch_add(1, Release);
    }

    fn get(&self) -> u32 {
        self.0.load(Acquire)
    }
}

const ALIVE: u32 = 0x600d_600d;
const DROPPED: u32 = 0xdead_dead;

/// The object that the cases count.
struct Thing {
    events: Arc<Events>,
    /// [`ALIVE`] until the drop, so that a use after the drop is found even without a fault.
    canary: Atomic<u32>,
    /// The RCU grace-period state before the kill, or 0.
    before_kill: Atomic<usize>,
    /// Whether the object may be killed without a confirmation, and confirmed in a later life.
    kills_unconfirmed: bool,
}

impl Thing {
    fn new() -> Result<(Self, Arc<Events>)> {
        let events = Arc::new(Events::default(), GFP_KERNEL)?;
        Ok((Self::with(&events), events))
    }

    fn with(events: &Arc<Events>) -> Self {
        THINGS.add(1, Relaxed);
        Self {
            events: events.clone(),
            canary: Atomic::new(ALIVE),
            before_kill: Atomic::new(0),
            kills_unconfirmed: true,
        }
    }

    fn shared() -> Result<(PercpuRef<Self>, Arc<Events>)> {
        let (mut thing, events) = Self::new()?;
        thing.kills_unconfirmed = false;
        Ok((UniquePercpuRef::new(thing, GFP_KERNEL)?.into(), events))
    }

    fn is_alive(&self) -> bool {
        self.canary.load(Relaxed) == ALIVE
    }
}

impl Counted for Thing {
    fn confirmed(&self) {
        let before = self.before_kill.load(Relaxed);
        // SAFETY: `poll_state_synchronize_rcu()` takes any state, in any context.
        if before != 0 && !unsafe { bindings::poll_state_synchronize_rcu(before) } {
            self.events.early.inc();
        }
        // In each life, the confirmation comes before the release.
        if self.events.confirmed.get() < self.events.released.get() && !self.kills_unconfirmed
            || !self.is_alive()
        {
            self.events.disorder.inc();
        }
        self.events.confirmed.inc();
    }

    fn switched(&self) {
        if !self.is_alive() {
            self.events.disorder.inc();
        }
        self.events.switched.inc();
    }

    fn release(&self) {
        if self.events.dropped.get() != 0 || !self.is_alive() {
            self.events.disorder.inc();
        }
        self.events.released.inc();
    }
}

impl Drop for Thing {
    fn drop(&mut self) {
        self.canary.store(DROPPED, Relaxed);
        THINGS.fetch_sub(1, Relaxed);
        self.events.dropped.inc();
    }
}

impl AsRef<Thing> for Thing {
    fn as_ref(&self) -> &Thing {
        self
    }
}

/// A [`Thing`] whose kill also waits for a grace period of RCU Tasks.
struct TasksThing(Thing);

impl From<Thing> for TasksThing {
    fn from(thing: Thing) -> Self {
        Self(thing)
    }
}

impl AsRef<Thing> for TasksThing {
    fn as_ref(&self) -> &Thing {
        &self.0
    }
}

impl Counted for TasksThing {
    const RCU_TASKS: bool = true;

    fn confirmed(&self) {
        self.0.confirmed();
    }

    fn release(&self) {
        self.0.release();
    }
}

/// Kills `thing`, and makes the confirmation check that a grace period has elapsed.
fn kill_checked<T: Counted + AsRef<Thing>>(thing: &PercpuRef<T>) -> bool {
    if let Some(guard) = thing.try_get() {
        // SAFETY: `get_state_synchronize_rcu()` can be called from any context.
        let now = unsafe { bindings::get_state_synchronize_rcu() };
        // Does not replace the state of an earlier killer: this may run after its kill.
        let _ = (*guard).as_ref().before_kill.cmpxchg(0, now, Relaxed);
    }
    thing.kill_and_confirm()
}

/// Waits until `condition` holds, for at most 30 seconds.
///
/// The time is long because a debugging kernel in an emulator is slow.
#[track_caller]
fn wait_for(condition: impl Fn() -> bool) -> Result {
    wait_for_secs(30, condition)
}

#[track_caller]
fn wait_for_secs(secs: i64, condition: impl Fn() -> bool) -> Result {
    let caller = core::panic::Location::caller();
    let start = Instant::<Monotonic>::now();
    while !condition() {
        if start.elapsed() >= Delta::from_secs(secs) {
            return Err(failed(caller.file(), caller.line(), "not in time"));
        }
        fsleep(Delta::from_millis(1));
    }
    Ok(())
}

/// Checks the events of an object that was dropped, and that there is no other object.
fn check_events(events: &Events, confirmed: u32, released: u32) -> Result {
    check!(events.dropped.get() == 1);
    check!(events.confirmed.get() == confirmed);
    check!(events.released.get() == released);
    check!(events.early.get() == 0);
    check!(events.disorder.get() == 0);
    let things = THINGS.load(Relaxed);
    if things != 0 {
        pr_err!("        # there are {things} others\n");
    }
    check!(things == 0);
    Ok(())
}

/// Waits for the drop of the only object of a case, and checks its events.
///
/// The second check finds callbacks that run after the drop.
fn check_end(events: &Events, confirmed: u32, released: u32) -> Result {
    wait_for(|| events.dropped.get() == 1)?;
    check_events(events, confirmed, released)?;
    rcu::rcu_barrier();
    check_events(events, confirmed, released)
}

/// Runs `run` in a thread on `cpu`, and returns its result.
fn on_cpu<R: Send + Unpin + 'static>(
    cpu: CpuId,
    run: impl FnOnce() -> R + Send + 'static,
) -> Result<R> {
    let slot = Arc::pin_init(new_mutex!(None), GFP_KERNEL)?;
    let result = slot.clone();
    drop(Thread::spawn(cpu, move || *result.lock() = Some(run()))?);
    let value = slot.lock().take();
    value.ok_or(EIO)
}

/// Runs `run` in a hard interrupt if `hard` is set, and in a softirq if not.
///
/// The interrupt is a hard interrupt on PREEMPT_RT, too.
fn in_timer<R: Send>(hard: bool, run: impl FnOnce() -> R + Send) -> Option<R> {
    extern "C" {
        fn percpu_ref_test_in_timer(
            run: unsafe extern "C" fn(arg: *mut c_void),
            arg: *mut c_void,
            hard: bool,
        );
    }

    struct Call<F, R>(Option<F>, Option<R>);

    /// # Safety
    ///
    /// `call` must point to a `Call<F, R>` that is not used otherwise.
    unsafe extern "C" fn run_call<R, F: FnOnce() -> R>(call: *mut c_void) {
        // SAFETY: By the safety requirements of this function, `call` points to a `Call<F, R>` that
        // is not used otherwise.
        let call = unsafe { &mut *call.cast::<Call<F, R>>() };
        call.1 = call.0.take().map(|run| run());
    }

    fn pass<R, F: FnOnce() -> R>(call: &mut Call<F, R>, hard: bool) {
        // SAFETY: `run_call()` is called once, with a pointer to `call`, before
        // `percpu_ref_test_in_timer()` returns.
        unsafe { percpu_ref_test_in_timer(run_call::<R, F>, (&raw mut *call).cast(), hard) };
    }

    let mut call = Call(Some(run), None);
    pass(&mut call, hard);
    call.1
}

/// Returns two online CPUs, or `None` if there is only one.
fn two_cpus() -> Option<(CpuId, CpuId)> {
    let mut cpus = online_cpus();
    Some((cpus.next()?, cpus.next()?))
}

/// A value that is too large for the memory of any machine.
#[derive(Zeroable)]
struct Huge {
    _bytes: [u8; 1 << (usize::BITS / 2 + 8)],
}

impl RcuCallback for Huge {
    fn run(_this: RcuCallbackBox<Self>) {}
}

impl Counted for Huge {}

//
// rcu.rs
//

/// A callback that queues itself `again` more times, and counts its runs in `ran.confirmed`.
struct Callback {
    ran: Arc<Events>,
    again: u32,
    /// The RCU grace-period state before the callback was queued.
    before: usize,
}

impl Callback {
    fn new(again: u32) -> Result<(RcuCallbackBox<Self>, Arc<Events>)> {
        let ran = Arc::new(Events::default(), GFP_KERNEL)?;
        let callback = Self {
            ran: ran.clone(),
            again,
            // SAFETY: `get_state_synchronize_rcu()` can be called from any context.
            before: unsafe { bindings::get_state_synchronize_rcu() },
        };
        Ok((RcuCallbackBox::new(callback, GFP_KERNEL)?, ran))
    }
}

impl RcuCallback for Callback {
    fn run(mut this: RcuCallbackBox<Self>) {
        // SAFETY: `poll_state_synchronize_rcu()` takes any state, in any context.
        if !unsafe { bindings::poll_state_synchronize_rcu(this.before) } {
            this.ran.early.inc();
        }
        this.ran.confirmed.inc();
        if this.again > 0 {
            this.again -= 1;
            // SAFETY: `get_state_synchronize_rcu()` can be called from any context.
            this.before = unsafe { bindings::get_state_synchronize_rcu() };
            this.call_hurry();
        }
    }
}

impl Drop for Callback {
    fn drop(&mut self) {
        self.ran.dropped.inc();
    }
}

fn rcu_callback_box() -> Result<Outcome> {
    // A box that was not passed to RCU is just dropped.
    let (callback, ran) = Callback::new(0)?;
    drop(callback);
    check!(ran.dropped.get() == 1 && ran.confirmed.get() == 0);

    // With `call_hurry()`.
    let (callback, ran) = Callback::new(0)?;
    {
        let _guard = PreemptGuard::new();
        callback.call_hurry();
        // Preemption is disabled, so the grace period cannot end yet.
        check!(ran.confirmed.get() == 0);
    }
    wait_for(|| ran.dropped.get() == 1)?;
    check!(ran.confirmed.get() == 1 && ran.early.get() == 0);

    // With `call()`, which may be delayed until a barrier.
    let (callback, ran) = Callback::new(0)?;
    callback.call();
    rcu::rcu_barrier();
    check!(ran.confirmed.get() == 1 && ran.dropped.get() == 1 && ran.early.get() == 0);

    // Without enough memory.
    let huge = RcuCallbackBox::new(init_zeroed::<Huge>(), GFP_KERNEL | __GFP_NOWARN);
    check!(huge.err() == Some(ENOMEM));
    Ok(Passed)
}

fn rcu_callback_calls_again() -> Result<Outcome> {
    let (callback, ran) = Callback::new(3)?;
    callback.call_hurry();
    wait_for(|| ran.dropped.get() == 1)?;
    check!(ran.confirmed.get() == 4 && ran.early.get() == 0);
    Ok(Passed)
}

//
// percpu_ref.rs
//

/// Checks that a new reference has a count of one in per-CPU mode, which only the kill ends.
fn init() -> Result<Outcome> {
    let (thing, events) = Thing::shared()?;
    check!(!thing.is_dying());

    // The local CPU's counter falls back to zero, which must not release the object.
    for _ in 0..100 {
        let guard = thing.try_get().ok_or(EIO)?;
        check!(guard.is_alive());
        drop(guard.clone());
    }
    check!(events.released.get() == 0);

    // The kill puts the initial reference, and there are no others.
    check!(kill_checked(&thing));
    check!(thing.is_dying());
    thing.wait_released();
    check!(thing.try_get().is_none());
    drop(thing);
    check_end(&events, 1, 1)?;
    Ok(Passed)
}

/// Checks that `new()` returns the error when memory or the initialiser fails, and leaks nothing.
///
/// `no_leak_in_bulk` would not find a leak on these paths, so this case runs them often.
fn init_fails() -> Result<Outcome> {
    for _ in 0..2000 {
        let huge = UniquePercpuRef::new(init_zeroed::<Huge>(), GFP_KERNEL | __GFP_NOWARN);
        check!(huge.err() == Some(ENOMEM));

        let broken = UniquePercpuRef::<Thing>::new(Err(EBUSY), GFP_KERNEL);
        check!(broken.err() == Some(EBUSY));
    }
    check!(THINGS.load(Relaxed) == 0);
    Ok(Passed)
}

/// A `Thing` with `SIZE` further bytes.
struct Block<const SIZE: usize> {
    _thing: Thing,
    _bytes: MaybeUninit<[u8; SIZE]>,
}

impl<const SIZE: usize> Block<SIZE> {
    fn of(thing: Thing) -> impl PinInit<Self> {
        init!(Self {
            _thing: thing,
            _bytes <- uninit::<_, Infallible>(),
        })
    }
}

impl<const SIZE: usize> Counted for Block<SIZE> {
    fn release(&self) {
        self._thing.release();
    }
}

fn cancel_init() -> Result<Outcome> {
    // `cancel_init()` and a plain drop.
    for cancel in [true, false] {
        let (thing, events) = Thing::new()?;
        let mut unique = UniquePercpuRef::new(thing, GFP_KERNEL)?;
        check!(unique.is_alive());
        *unique.canary.get_mut() = ALIVE;
        if cancel {
            unique.cancel_init();
        } else {
            drop(unique);
        }
        // The object is dropped at once, without a callback.
        check!(events.dropped.get() == 1);
        check_end(&events, 0, 0)?;
    }

    // `into_inner()` returns the object.
    let (thing, events) = Thing::new()?;
    let thing = UniquePercpuRef::new(thing, GFP_KERNEL)?.into_inner();
    check!(thing.is_alive() && events.dropped.get() == 0);
    drop(thing);
    check_end(&events, 0, 0)?;
    Ok(Passed)
}

/// Allocates and frees 2000 blocks twice, and then many small objects.
///
/// All blocks together take as much memory as the test machine has, because each takes 128 KiB. So
/// leaked blocks would exhaust the memory. There are many small objects, so that leaked per-CPU
/// counters show in the line `Percpu` of `/proc/meminfo`.
fn no_leak_in_bulk() -> Result<Outcome> {
    // KASAN makes this slow, and its quarantine keeps freed memory.
    let less = if cfg!(CONFIG_KASAN) { 4 } else { 1 };
    bulk(times(2_000) / less, || {
        Ok(Block::<{ 96 << 10 }>::of(Thing::new()?.0))
    })?;
    bulk(times(10_000) / less, || Ok(Thing::new()?.0))?;
    Ok(Passed)
}

fn bulk<T: Counted, I: PinInit<T>>(count: usize, new: impl Fn() -> Result<I>) -> Result {
    for _ in 0..count {
        UniquePercpuRef::new(new()?, GFP_KERNEL)?.cancel_init();
    }
    check!(THINGS.load(Relaxed) == 0);

    const BATCH: usize = 500;
    let mut batch = KVec::with_capacity(BATCH, GFP_KERNEL)?;
    for _ in 0..count.div_ceil(BATCH) {
        while batch.len() < BATCH {
            batch.push(
                PercpuRef::from(UniquePercpuRef::new(new()?, GFP_KERNEL)?),
                GFP_KERNEL,
            )?;
        }
        batch.clear();
        rcu::rcu_barrier();
        check!(THINGS.load(Relaxed) == 0);
    }
    Ok(())
}

/// Gets `count` references to `thing`.
fn get_many(thing: &PercpuRef<Thing>, count: usize) -> Result<KVec<PercpuRefGuard<Thing>>> {
    let mut guards = KVec::with_capacity(count, GFP_KERNEL)?;
    while guards.len() < count {
        guards.push(thing.try_get().ok_or(EIO)?, GFP_KERNEL)?;
    }
    Ok(guards)
}

/// Kills `thing` while `guards` hold it, and checks that the put of the last guard releases it.
fn check_held_by(
    thing: &PercpuRef<Thing>,
    events: &Events,
    mut guards: KVec<PercpuRefGuard<Thing>>,
) -> Result<Outcome> {
    check!(kill_checked(thing));
    wait_for(|| events.confirmed.get() == 1)?;
    rcu::rcu_barrier();
    check!(thing.try_get_live().is_none());
    while let Some(guard) = guards.pop() {
        check!(thing.references() == Some(guards.len() + 1));
        check!(thing.try_get().is_some());
        check!(events.released.get() == 0);
        check!(guard.is_alive());
    }
    // The last put itself has run the release.
    check!(events.released.get() == 1);
    check!(thing.try_get().is_none());
    check_end(events, 1, 1)?;
    Ok(Passed)
}

fn get_put_on_one_cpu() -> Result<Outcome> {
    let (thing, events) = Thing::shared()?;
    let thing = Arc::new(thing, GFP_KERNEL)?;
    let there = thing.clone();
    let cpu = online_cpus().next().ok_or(EIO)?;

    let guards = on_cpu(cpu, move || {
        let mut guards = get_many(&there, 1000)?;
        guards.truncate(3);
        Ok::<_, Error>(guards)
    })??;
    check_held_by(&thing, &events, guards)
}

/// Gets references on one CPU and puts most of them on another.
///
/// The counter of the first CPU is then 1500, and the counter of the second CPU has wrapped below
/// zero. The sum of the counters is three.
fn get_here_put_there() -> Result<Outcome> {
    let Some((here, there)) = two_cpus() else {
        return Ok(Skipped("needs two CPUs"));
    };
    let (thing, events) = Thing::shared()?;
    let thing = Arc::new(thing, GFP_KERNEL)?;

    let on_here = thing.clone();
    let mut guards = on_cpu(here, move || get_many(&on_here, 1500))??;
    let guards = on_cpu(there, move || {
        guards.truncate(3);
        guards
    })?;
    check_held_by(&thing, &events, guards)
}

/// Checks that the confirmation waits for a region with preemption disabled on another CPU.
fn confirm_after_grace_period() -> Result<Outcome> {
    let Some((here, there)) = two_cpus() else {
        return Ok(Skipped("needs two CPUs"));
    };
    for _ in 0..5 {
        let (thing, events) = Thing::shared()?;
        // 0: not in the region yet. 1: in the region. 2: killed.
        let step = Arc::new(Atomic::new(0), GFP_KERNEL)?;

        // Each thread is bound to its CPU. On the CPU of the region, the killer could not run.
        let step_here = step.clone();
        let killer = Thread::spawn(here, move || {
            while step_here.load(Acquire) != 1 {
                fsleep(Delta::from_micros(100));
            }
            kill_checked(&thing);
            step_here.store(2, Release);
            thing.wait_released();
        })?;
        let events_there = events.clone();
        let region = Thread::spawn(there, move || {
            let _guard = PreemptGuard::new();
            step.store(1, Release);
            while step.load(Acquire) != 2 {}
            // A grace period that does not wait for this CPU would end in this time.
            let start = Instant::<Monotonic>::now();
            while start.elapsed() < Delta::from_millis(20) {
                if events_there.confirmed.get() != 0 {
                    events_there.early.inc();
                    break;
                }
            }
        })?;
        drop(region);
        drop(killer);
        check_end(&events, 1, 1)?;
    }
    Ok(Passed)
}

/// Checks when `try_get()` and `try_get_live()` succeed after a kill.
///
/// After the kill and after the confirmation, `try_get()` succeeds until there are no references,
/// and fails from then on. `try_get_live()` fails on all CPUs after the confirmation.
fn try_get_until_zero() -> Result<Outcome> {
    let (thing, events) = Thing::shared()?;
    let thing = Arc::new(thing, GFP_KERNEL)?;
    let guard = {
        // The confirmation waits for this region.
        let _region = PreemptGuard::new();
        check!(kill_checked(&thing));
        check!(thing.is_dying());
        let guard = thing.try_get();
        check!(events.confirmed.get() == 0);
        guard.ok_or(EIO)?
    };

    wait_for(|| events.confirmed.get() == 1)?;
    for cpu in online_cpus() {
        let there = thing.clone();
        check!(on_cpu(cpu, move || there.try_get_live().is_none())?);
    }
    let clone = guard.clone();
    drop(guard);
    check!(clone.is_alive() && events.released.get() == 0);
    let last = thing.try_get().ok_or(EIO)?;
    drop(clone);
    check!(last.is_alive() && events.released.get() == 0);
    drop(last);
    check!(events.released.get() == 1);
    check!(thing.try_get().is_none() && thing.try_get_live().is_none());
    drop(thing);
    check_end(&events, 1, 1)?;
    Ok(Passed)
}

fn release_from_put() -> Result<Outcome> {
    let (thing, events) = Thing::shared()?;
    let guards = get_many(&thing, 1)?;
    check_held_by(&thing, &events, guards)
}

fn release_from_callback() -> Result<Outcome> {
    let (thing, events) = Thing::shared()?;
    drop(get_many(&thing, 5)?);
    {
        let _region = PreemptGuard::new();
        check!(kill_checked(&thing));
        // The kill itself does not release the object.
        check!(events.released.get() == 0);
    }
    thing.wait_released();
    check!(events.released.get() == 1);
    check!(events.dropped.get() == 1);
    drop(thing);
    check_end(&events, 1, 1)?;
    Ok(Passed)
}

fn kill_twice() -> Result<Outcome> {
    let (thing, events) = Thing::shared()?;
    let mut guards = get_many(&thing, 2)?;

    // A second kill right after the first one, after the confirmation, and after the release.
    check!(kill_checked(&thing));
    check!(!kill_checked(&thing));
    check!(!thing.kill());
    wait_for(|| events.confirmed.get() == 1)?;
    check!(!kill_checked(&thing));
    rcu::rcu_barrier();
    guards.truncate(1);
    // If the initial reference had been put twice, the object would be released by now.
    check!(events.released.get() == 0);
    guards.clear();
    check!(events.released.get() == 1);
    check!(!thing.kill());
    drop(thing);
    check_end(&events, 1, 1)?;
    Ok(Passed)
}

fn kill_races() -> Result<Outcome> {
    if two_cpus().is_none() {
        return Ok(Skipped("needs two CPUs"));
    }
    let cpus = online_cpus().count() as u32;

    for _ in 0..10 {
        let (thing, events) = Thing::shared()?;
        let guard = thing.try_get();
        let shared = Arc::new((thing, Counter::default(), Counter::default()), GFP_KERNEL)?;
        let mut killers = KVec::new();
        for cpu in online_cpus() {
            let shared = shared.clone();
            let killer = Thread::spawn(cpu, move || {
                let (thing, ready, won) = &*shared;
                ready.inc();
                while ready.get() < cpus {}
                if kill_checked(thing) {
                    won.inc();
                }
            })?;
            killers.push(killer, GFP_KERNEL)?;
        }
        drop(killers);

        check!(shared.2.get() == 1);
        wait_for(|| events.confirmed.get() == 1)?;
        rcu::rcu_barrier();
        check!(events.released.get() == 0);
        drop(guard);
        drop(shared);
        check_end(&events, 1, 1)?;
    }
    Ok(Passed)
}

/// Drops the `PercpuRef` in each state of the reference.
///
/// `cancel_init` drops an unshared reference.
fn drop_in_each_state() -> Result<Outcome> {
    // Live, without a guard.
    let (thing, events) = Thing::shared()?;
    drop(thing);
    check_end(&events, 0, 1)?;

    // Live, with a guard.
    let (thing, events) = Thing::shared()?;
    let guard = thing.try_get();
    drop(thing);
    rcu::rcu_barrier();
    check!(guard.is_some_and(|guard| guard.is_alive() && events.released.get() == 0));
    check_end(&events, 0, 1)?;

    // Killed, not confirmed.
    let (thing, events) = Thing::shared()?;
    {
        let _region = PreemptGuard::new();
        check!(kill_checked(&thing));
        drop(thing);
        check!(events.confirmed.get() == 0);
    }
    check_end(&events, 1, 1)?;

    // Confirmed, not released.
    let (thing, events) = Thing::shared()?;
    let guard = thing.try_get();
    check!(kill_checked(&thing));
    wait_for(|| events.confirmed.get() == 1)?;
    drop(thing);
    check!(events.released.get() == 0);
    drop(guard);
    check_end(&events, 1, 1)?;

    // Released.
    let (thing, events) = Thing::shared()?;
    check!(kill_checked(&thing));
    thing.wait_released();
    rcu::rcu_barrier();
    drop(thing);
    check_end(&events, 1, 1)?;
    Ok(Passed)
}

/// An object that owns its own `PercpuRef`, which is dropped with the object.
#[pin_data]
struct Selfish {
    #[pin]
    own: Mutex<Option<PercpuRef<Selfish>>>,
    _thing: Thing,
}

impl Counted for Selfish {
    fn release(&self) {
        self._thing.release();
    }
}

fn drop_inside_release() -> Result<Outcome> {
    let (thing, events) = Thing::new()?;
    let selfish = UniquePercpuRef::new(
        pin_init!(Selfish {
            own <- new_mutex!(None),
            _thing: thing,
        }),
        GFP_KERNEL,
    )?;
    let own = PercpuRef::from(selfish);
    let guard = own.try_get().ok_or(EIO)?;

    own.kill();
    *guard.own.lock() = Some(own);
    rcu::rcu_barrier();
    check!(events.released.get() == 0);
    drop(guard);
    check_end(&events, 0, 1)?;
    Ok(Passed)
}

type Inbox<T> = Mutex<Option<PercpuRefGuard<T>>>;

/// Shared by the threads of one round of stress.
struct Round<T: Counted> {
    thing: PercpuRef<T>,
    events: Arc<Events>,
    /// A place for each thread, where another thread leaves guards for it to put.
    inboxes: KVec<Pin<KBox<Inbox<T>>>>,
    turns: Counter,
    /// The number of `try_get_live()` that succeeded after the confirmation.
    late: Counter,
    /// The number of guards whose object was dropped.
    dangling: Counter,
}

impl<T: Counted + From<Thing> + AsRef<Thing>> Round<T> {
    fn new(threads: usize) -> Result<Arc<Self>> {
        let (mut thing, events) = Thing::new()?;
        thing.kills_unconfirmed = false;
        let thing = UniquePercpuRef::new(T::from(thing), GFP_KERNEL)?.into();
        let mut inboxes = KVec::with_capacity(threads, GFP_KERNEL)?;
        for _ in 0..threads {
            inboxes.push(KBox::pin_init(new_mutex!(None), GFP_KERNEL)?, GFP_KERNEL)?;
        }
        let round = Self {
            thing,
            events,
            inboxes,
            turns: Counter::default(),
            late: Counter::default(),
            dangling: Counter::default(),
        };
        Ok(Arc::new(round, GFP_KERNEL)?)
    }

    /// Gets, clones, passes on and puts references until after the confirmation.
    fn work(&self, me: usize) {
        let mut turn = 0usize;
        loop {
            turn = turn.wrapping_add(1);
            if turn % 256 == 0 {
                // Lets other threads run, including those of RCU.
                fsleep(Delta::from_micros(200));
            }
            let confirmed = self.events.confirmed.get() != 0;
            let Some(guard) = self.thing.try_get_live() else {
                if confirmed {
                    break;
                }
                fsleep(Delta::from_micros(200));
                continue;
            };
            if confirmed {
                self.late.inc();
            }
            // Another thread may hold a reference, so this may succeed at any time.
            let more = self.thing.try_get();
            self.check_alive(more.as_ref());

            let clone = guard.clone();
            if turn % 4 == 0 {
                // The next thread, usually on another CPU, puts the guard that it finds.
                let next = self.inboxes.get(me + 1).unwrap_or(&self.inboxes[0]);
                let found = next.lock().replace(clone);
                self.check_alive(found.as_ref());
            }
            let mine = self.inboxes[me].lock().take();
            self.check_alive(mine.as_ref());
            self.check_alive(Some(&guard));
            self.turns.inc();
        }
    }

    fn check_alive(&self, guard: Option<&PercpuRefGuard<T>>) {
        if guard.is_some_and(|guard| !(**guard).as_ref().is_alive()) {
            self.dangling.inc();
        }
    }
}

/// The least number of rounds of stress.
const ROUNDS: usize = 200;
/// The number of rounds that run at a time, because most of a round is a wait for a grace period.
const ABREAST: usize = 20;

/// Gets and puts references in threads on all CPUs, while another thread kills the reference.
fn stress() -> Result<Outcome> {
    let seconds = value(module_parameters::seconds.value());
    stress_for::<Thing>(times(ROUNDS), Delta::from_secs(i64::from(seconds)))
}

/// Runs at least `rounds` rounds of stress with objects of the type `T`, for at least `time`.
fn stress_for<T>(rounds: usize, time: Delta) -> Result<Outcome>
where
    T: Counted + From<Thing> + AsRef<Thing>,
{
    let start = Instant::<Monotonic>::now();
    let least = rounds;
    let on_each = value(module_parameters::threads.value()) as usize;
    let cpus = online_cpus().count();
    let mut turns = 0;
    let mut number = 0;

    while number < least || start.elapsed() < time {
        let mut rounds = KVec::with_capacity(ABREAST, GFP_KERNEL)?;
        let mut threads = KVec::new();
        for _ in 0..ABREAST {
            let round = Round::<T>::new(cpus * on_each)?;
            for (me, cpu) in (0..on_each).flat_map(|_| online_cpus()).enumerate() {
                let round = round.clone();
                threads.push(Thread::spawn(cpu, move || round.work(me))?, GFP_KERNEL)?;
            }

            // The kill comes at a different time in each round, and in some rounds before some
            // threads have begun.
            let cpu = number.checked_rem(cpus).ok_or(EIO)?;
            let victim = round.clone();
            let killer = Thread::spawn(online_cpus().nth(cpu).ok_or(EIO)?, move || {
                fsleep(Delta::from_micros((number % 16 * 200) as i64));
                kill_checked(&victim.thing);
            })?;
            threads.push(killer, GFP_KERNEL)?;
            rounds.push(round, GFP_KERNEL)?;
            number += 1;
        }
        drop(threads);

        // The threads have ended, so each has seen the reference closed. Guards in the inboxes
        // still hold the object.
        for round in &rounds {
            check!(round.events.confirmed.get() == 1);
            for inbox in &round.inboxes {
                let guard = inbox.lock().take();
                check!(guard.is_none() || round.events.released.get() == 0);
                round.check_alive(guard.as_ref());
            }
            round.thing.wait_released();
            check!(round.late.get() == 0);
            check!(round.dangling.get() == 0);
            turns += round.turns.get() as usize;
        }
        rcu::rcu_barrier();
        for round in &rounds {
            check_events(&round.events, 1, 1)?;
        }
    }
    pr_info!(
        "        # {number} rounds, {} threads, {turns} turns\n",
        cpus * on_each
    );
    Ok(Passed)
}

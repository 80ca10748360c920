// SPDX-License-Identifier: GPL-2.0

//! Kernel threads for the tests: they run a closure on a given CPU, and are joined.
//!
//! C header: [`include/linux/kthread.h`](srctree/include/linux/kthread.h)

pub(crate) use kernel::percpu::online_cpus;
use kernel::{
    bindings,
    cpu::CpuId,
    error::from_err_ptr,
    prelude::*,
    sync::{
        Arc,
        Completion, //
    },
};

/// A running thread. Dropping it waits for the closure to return and for the thread to be gone.
///
/// # Invariants
///
/// `task` is a kernel thread that completes `done` when its closure has returned. We have a
/// reference to it.
pub(crate) struct Thread {
    task: *mut bindings::task_struct,
    done: Arc<Completion>,
}

// SAFETY: A thread may be joined by any other.
unsafe impl Send for Thread {}

/// What a thread is given.
struct Start<F> {
    run: F,
    done: Arc<Completion>,
}

impl Thread {
    /// Runs `run` in a thread that stays on `cpu`, which is to be online.
    pub(crate) fn spawn<F: FnOnce() + Send + 'static>(cpu: CpuId, run: F) -> Result<Self> {
        let done = Arc::pin_init(Completion::new(), GFP_KERNEL)?;
        let start = KBox::new(
            Start {
                run,
                done: done.clone(),
            },
            GFP_KERNEL,
        )?;
        let start = KBox::into_raw(start);

        // SAFETY: `main` takes the box that it is given. The name has no conversions.
        let task = from_err_ptr(unsafe {
            bindings::kthread_create_on_node(
                Some(main::<F>),
                start.cast(),
                bindings::NUMA_NO_NODE,
                c"percpu_ref_test".as_char_ptr(),
            )
        })
        .inspect_err(|_| {
            // SAFETY: There is no thread, so the box is still ours.
            drop(unsafe { KBox::from_raw(start) });
        })?;

        // SAFETY: `task` is a new kernel thread that waits to be woken up.
        unsafe {
            bindings::get_task_struct(task);
            bindings::kthread_bind(task, cpu.as_u32());
            bindings::wake_up_process(task);
        }

        // INVARIANT: `main` completes `done`, and a reference was just taken.
        Ok(Self { task, done })
    }
}

impl Thread {
    /// Sends the thread a fatal signal, which it must have allowed.
    #[allow(dead_code, reason = "not all crates with this file use it")]
    pub(crate) fn kill(&self) {
        // SAFETY: By the type invariant, we have a reference to the task.
        unsafe { bindings::send_sig(bindings::SIGKILL as c_int, self.task, 1) };
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        // A thread that is stopped before it has begun would not run its closure.
        self.done.wait_for_completion();
        // SAFETY: By the type invariant; this gives our reference up.
        unsafe { bindings::kthread_stop_put(self.task) };
    }
}

/// # Safety
///
/// `start` came from `KBox::into_raw` of a `Start<F>`, and is ours.
unsafe extern "C" fn main<F: FnOnce()>(start: *mut c_void) -> c_int {
    // SAFETY: As the function requires.
    let start = KBox::into_inner(unsafe { KBox::from_raw(start.cast::<Start<F>>()) });

    (start.run)();
    start.done.complete_all();
    0
}

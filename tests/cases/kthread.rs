// SPDX-License-Identifier: GPL-2.0

//! Kernel threads for the tests, which run a closure on a given CPU and are joined.
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

/// A running thread.
///
/// The drop waits until the closure has returned and the thread has exited.
///
/// # Invariants
///
/// `task` is a kernel thread that completes `done` when its closure has returned. We own a
/// reference to `task`.
pub(crate) struct Thread {
    task: *mut bindings::task_struct,
    done: Arc<Completion>,
}

// SAFETY: Any thread can join another thread.
unsafe impl Send for Thread {}

/// The argument of a thread.
struct Start<F> {
    run: F,
    done: Arc<Completion>,
}

impl Thread {
    /// Runs `run` in a thread that stays on `cpu`, which must be online.
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

        // SAFETY: `main()` takes ownership of the box, which came from `KBox::into_raw()`. The name
        // has no format specifiers.
        let task = from_err_ptr(unsafe {
            bindings::kthread_create_on_node(
                Some(main::<F>),
                start.cast(),
                bindings::NUMA_NO_NODE,
                c"percpu_ref_test".as_char_ptr(),
            )
        })
        .inspect_err(|_| {
            // SAFETY: `start` came from `KBox::into_raw()`. No thread was created, so we still own
            // the box.
            drop(unsafe { KBox::from_raw(start) });
        })?;

        // SAFETY: `task` is a new kernel thread that waits to be woken up.
        unsafe {
            bindings::get_task_struct(task);
            bindings::kthread_bind(task, cpu.as_u32());
            bindings::wake_up_process(task);
        }

        // INVARIANT: `main()` completes `done`, and `get_task_struct()` has got a reference.
        Ok(Self { task, done })
    }
}

impl Thread {
    /// Sends a fatal signal to the thread, which must have allowed the signal.
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
        // SAFETY: By the type invariant, we own a reference to `task`, which is not used after
        // this.
        unsafe { bindings::kthread_stop_put(self.task) };
    }
}

/// Runs the closure of a thread, and completes `done`.
///
/// # Safety
///
/// `start` must have come from `KBox::into_raw()` of a `Start<F>`. The caller must own the box, and
/// must not use it after this.
unsafe extern "C" fn main<F: FnOnce()>(start: *mut c_void) -> c_int {
    // SAFETY: By the safety requirements of this function, `start` came from `KBox::into_raw()` of
    // a `Start<F>`, and we own the box.
    let start = KBox::into_inner(unsafe { KBox::from_raw(start.cast::<Start<F>>()) });

    (start.run)();
    start.done.complete_all();
    0
}

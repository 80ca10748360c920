// SPDX-License-Identifier: GPL-2.0
/*
 * Makes the n-th allocation of a task fail, for the tests.
 *
 * There are two ways. Probes on the functions that the library allocates with make these functions
 * fail, on any kernel with kprobes. The kernel's fault injection makes the allocations inside these
 * functions fail.
 */

#include <linux/kprobes.h>
#include <linux/module.h>
#include <linux/preempt.h>
#include <linux/sched.h>

#include "faults.h"

static struct task_struct *victim;
static unsigned int left;

/*
 * Runs instead of a function that fails, and returns to its caller. The probe is at the beginning
 * of that function, which has not changed the stack yet.
 */
static noinline notrace void return_at_once(void)
{
}

/*
 * Returns whether the probe was hit in an interrupt of the task. The int3 of the probe itself may
 * be counted as an NMI.
 */
static bool in_interrupt_of_task(void)
{
	return hardirq_count() > (in_nmi() ? HARDIRQ_OFFSET : 0) || in_serving_softirq();
}

static int fail_nth(struct kprobe *probe, struct pt_regs *regs)
{
	/* Rust frees memory by krealloc() to a size of zero, which is the second argument. */
	if (current != READ_ONCE(victim) || in_interrupt_of_task() ||
	    !regs_get_kernel_argument(regs, 1) || !left || --left)
		return 0;
	regs_set_return_value(regs, 0);
	instruction_pointer_set(regs, (unsigned long)return_at_once);
	return 1;
}

/* With a post handler, ftrace allows the probe to change the instruction pointer. */
static void nothing(struct kprobe *probe, struct pt_regs *regs, unsigned long flags)
{
}

#define PROBE(name) { .symbol_name = name, .pre_handler = fail_nth, .post_handler = nothing }

static struct kprobe allocators[] = {
	PROBE("krealloc_node_align_noprof"),
	PROBE("pcpu_alloc_noprof"),
};

/*
 * Makes the @n-th allocation of this task from now on fail, or no allocation if @n is 0. Uses the
 * kernel's fault injection if @deep, and the probes if not. Returns what is left of the @n of the
 * previous call, which is 0 if that allocation has failed.
 */
unsigned int percpu_ref_test_fail_nth(unsigned int n, bool deep)
{
	unsigned int before;

	if (deep) {
#ifdef CONFIG_FAULT_INJECTION
		before = current->fail_nth;
		current->fail_nth = n;
		return before;
#else
		return ~0;
#endif
	}
	before = left;
	WRITE_ONCE(victim, NULL);
	left = n;
	WRITE_ONCE(victim, n ? current : NULL);
	return before;
}
EXPORT_SYMBOL_GPL(percpu_ref_test_fail_nth);

static int __init faults_init(void)
{
	int i, err;

	for (i = 0; i < ARRAY_SIZE(allocators); i++) {
		err = register_kprobe(&allocators[i]);
		if (err) {
			pr_err("no probe on %s: %d\n", allocators[i].symbol_name, err);
			while (i--)
				unregister_kprobe(&allocators[i]);
			return err;
		}
	}
	return 0;
}
module_init(faults_init);

static void __exit faults_exit(void)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(allocators); i++)
		unregister_kprobe(&allocators[i]);
}
module_exit(faults_exit);

MODULE_DESCRIPTION("Faults for the tests of the per-CPU reference counts");
MODULE_LICENSE("GPL");

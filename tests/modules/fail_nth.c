// SPDX-License-Identifier: GPL-2.0
/*
 * Makes the n-th allocation of a task fail, for the tests, in one of two ways: by probes on the
 * functions that the library allocates with, on any kernel that has kprobes; or by the kernel's own
 * fault injection, which fails what those functions call in turn.
 */

#include <linux/kprobes.h>
#include <linux/module.h>
#include <linux/preempt.h>
#include <linux/sched.h>

#include "faults.h"

static struct task_struct *victim;
static unsigned int left;

/* What a failed function does instead; the probe may come before it has made a stack frame. */
static noinline notrace void return_at_once(void)
{
}

/* Whether the probe came upon an interrupt of the task. It may itself look like one. */
static bool in_interrupt_of_task(void)
{
	return hardirq_count() > (in_nmi() ? HARDIRQ_OFFSET : 0) || in_serving_softirq();
}

static int fail_nth(struct kprobe *probe, struct pt_regs *regs)
{
	/* Rust's kmalloc() frees by krealloc() to a size of zero, the second argument. */
	if (current != READ_ONCE(victim) || in_interrupt_of_task() ||
	    !regs_get_kernel_argument(regs, 1) || !left || --left)
		return 0;
	regs_set_return_value(regs, 0);
	instruction_pointer_set(regs, (unsigned long)return_at_once);
	return 1;
}

/* Where a probe may change the way, ftrace must know it by this. */
static void nothing(struct kprobe *probe, struct pt_regs *regs, unsigned long flags)
{
}

#define PROBE(name) { .symbol_name = name, .pre_handler = fail_nth, .post_handler = nothing }

static struct kprobe allocators[] = {
	PROBE("krealloc_node_align_noprof"),
	PROBE("pcpu_alloc_noprof"),
};

/*
 * Lets the @n-th allocation of this task from now on fail, or none if it is 0. Returns how many
 * were still to come to the one before: 0 if it has failed. If @deep, by the kernel's fault
 * injection.
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

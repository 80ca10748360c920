// SPDX-License-Identifier: GPL-2.0
/*
 * What only C can say: the macros and inline functions that the Rust files call. Each helper is
 * the C name behind the prefix rust_percpu_ref_, unless it says what it does besides.
 */

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/cpumask.h>
#include <linux/jiffies.h>
#include <linux/module.h>
#include <linux/notifier.h>
#include <linux/percpu.h>
#include <linux/preempt.h>
#include <linux/printk.h>
#include <linux/rcupdate.h>
#include <linux/sched.h>
#include <linux/wait_bit.h>
#include <linux/workqueue.h>

void rust_percpu_ref_preempt_disable(void)
{
	preempt_disable();
}

void rust_percpu_ref_preempt_enable(void)
{
	preempt_enable();
}

/* What preempt_enable() calls if it finds that it should. */
void rust_percpu_ref_preempt_schedule(void)
{
#ifdef CONFIG_PREEMPTION
	__preempt_schedule();
#endif
}

void __percpu *rust_percpu_ref_alloc_percpu_gfp(size_t size, size_t align, gfp_t gfp)
{
	return __alloc_percpu_gfp(size, align, gfp);
}

void *rust_percpu_ref_per_cpu_ptr(void __percpu *ptr, unsigned int cpu)
{
	return per_cpu_ptr(ptr, cpu);
}

void *rust_percpu_ref_this_cpu_ptr(void __percpu *ptr)
{
	return this_cpu_ptr(ptr);
}

bool rust_percpu_ref_cpu_possible(unsigned int cpu)
{
	return cpu_possible(cpu);
}

/* The first possible CPU above @cpu, which is -1 to begin with; nr_cpu_ids or more at the end. */
unsigned int rust_percpu_ref_next_possible_cpu(int cpu)
{
	return cpumask_next(cpu, cpu_possible_mask);
}

#define THIS_CPU_HELPERS(type, bits)						\
type rust_percpu_ref_this_cpu_read_##bits(type __percpu *ptr)			\
{										\
	return this_cpu_read(*ptr);						\
}										\
void rust_percpu_ref_this_cpu_write_##bits(type __percpu *ptr, type val)	\
{										\
	this_cpu_write(*ptr, val);						\
}										\
void rust_percpu_ref_this_cpu_add_##bits(type __percpu *ptr, type val)		\
{										\
	this_cpu_add(*ptr, val);						\
}										\
type rust_percpu_ref_this_cpu_add_return_##bits(type __percpu *ptr, type val)	\
{										\
	return this_cpu_add_return(*ptr, val);					\
}										\
type rust_percpu_ref_this_cpu_xchg_##bits(type __percpu *ptr, type val)		\
{										\
	return this_cpu_xchg(*ptr, val);					\
}										\
type rust_percpu_ref_this_cpu_cmpxchg_##bits(type __percpu *ptr, type old, type new) \
{										\
	return this_cpu_cmpxchg(*ptr, old, new);				\
}

THIS_CPU_HELPERS(u8, 8)
THIS_CPU_HELPERS(u16, 16)
THIS_CPU_HELPERS(u32, 32)
THIS_CPU_HELPERS(u64, 64)

/* Inline if CONFIG_RCU_LAZY is not set. */
void rust_percpu_ref_call_rcu_hurry(struct rcu_head *head, rcu_callback_t func)
{
	call_rcu_hurry(head, func);
}

/* The type of @head has not always been the same. */
void rust_percpu_ref_kvfree_call_rcu(void *head, void *ptr)
{
	kvfree_call_rcu(head, ptr);
}

/* Inline if CONFIG_MODULES is not set, or a macro, and so are the three below. */
int rust_percpu_ref_register_module_notifier(struct notifier_block *nb)
{
	return register_module_notifier(nb);
}

int rust_percpu_ref_unregister_module_notifier(struct notifier_block *nb)
{
	return unregister_module_notifier(nb);
}

bool rust_percpu_ref_within_module(const void *addr, const struct module *mod)
{
	return within_module((unsigned long)addr, mod);
}

const char *rust_percpu_ref_module_name(struct module *mod)
{
	return module_name(mod);
}

void rust_percpu_ref_wake_up_var(void *var)
{
	/* wake_up_var() looks for waiters first, and leaves it to its caller to order that. */
	smp_mb();
	wake_up_var(var);
}

/*
 * Waits until (*@var & @mask) == @val. Who makes it so uses a release operation and then calls
 * the helper above.
 */
void rust_percpu_ref_wait_var_event(unsigned long *var, unsigned long mask, unsigned long val)
{
	/* Pairs with the release operation before the wake_up_var(). */
	wait_var_event(var, (smp_load_acquire(var) & mask) == val);
}

/* The same for *@var == 0, but for at most @ms. */
void rust_percpu_ref_wait_var_zero_timeout(unsigned long *var, unsigned int ms)
{
	/* As above. */
	wait_var_event_timeout(var, !smp_load_acquire(var), msecs_to_jiffies(ms));
}

struct workqueue_struct *rust_percpu_ref_alloc_workqueue(void)
{
	return alloc_workqueue("percpu_ref", WQ_UNBOUND, 0);
}

void rust_percpu_ref_queue_work(struct workqueue_struct *wq, struct work_struct *work,
				work_func_t func)
{
	INIT_WORK(work, func);
	queue_work(wq, work);
}

/* In C for the sake of dynamic debug, which Rust's pr_debug!() does not have. */
void rust_percpu_ref_pr_debug_sum(u64 global, u64 percpu)
{
	pr_debug("global %llu percpu %llu\n", global, percpu);
}

// SPDX-License-Identifier: GPL-2.0
/*
 * What only C can say: the macros and inline functions that the Rust files call. Each helper is
 * the C name behind it, with the prefix rust_percpu_ref_, and does nothing else.
 */

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/cpumask.h>
#include <linux/export.h>
#include <linux/jiffies.h>
#include <linux/module.h>
#include <linux/notifier.h>
#include <linux/percpu.h>
#include <linux/preempt.h>
#include <linux/printk.h>
#include <linux/rcupdate.h>
#include <linux/sched.h>
#include <linux/wait_bit.h>

/* Rust's extern blocks are the only callers; these declarations are for -Wmissing-prototypes. */
#define HELPER(ret, name, ...)						\
	ret rust_percpu_ref_##name(__VA_ARGS__);			\
	EXPORT_SYMBOL_GPL(rust_percpu_ref_##name);			\
	ret rust_percpu_ref_##name(__VA_ARGS__)

HELPER(void, preempt_disable, void)
{
	preempt_disable();
}

HELPER(void, preempt_enable, void)
{
	preempt_enable();
}

HELPER(void __percpu *, alloc_percpu_gfp, size_t size, size_t align, gfp_t gfp)
{
	return __alloc_percpu_gfp(size, align, gfp);
}

HELPER(void *, per_cpu_ptr, void __percpu *ptr, unsigned int cpu)
{
	return per_cpu_ptr(ptr, cpu);
}

HELPER(void *, this_cpu_ptr, void __percpu *ptr)
{
	return this_cpu_ptr(ptr);
}

HELPER(bool, cpu_possible, unsigned int cpu)
{
	return cpu_possible(cpu);
}

/* The first possible CPU above @cpu, which is -1 to begin with; nr_cpu_ids or more at the end. */
HELPER(unsigned int, next_possible_cpu, int cpu)
{
	return cpumask_next(cpu, cpu_possible_mask);
}

#define THIS_CPU_HELPERS(bits)						\
HELPER(u##bits, this_cpu_read_##bits, u##bits __percpu *ptr)		\
{									\
	return this_cpu_read(*ptr);					\
}									\
HELPER(void, this_cpu_write_##bits, u##bits __percpu *ptr, u##bits val)	\
{									\
	this_cpu_write(*ptr, val);					\
}									\
HELPER(void, this_cpu_add_##bits, u##bits __percpu *ptr, u##bits val)	\
{									\
	this_cpu_add(*ptr, val);					\
}									\
HELPER(u##bits, this_cpu_add_return_##bits, u##bits __percpu *ptr,	\
       u##bits val)							\
{									\
	return this_cpu_add_return(*ptr, val);				\
}									\
HELPER(u##bits, this_cpu_xchg_##bits, u##bits __percpu *ptr,		\
       u##bits val)							\
{									\
	return this_cpu_xchg(*ptr, val);				\
}									\
HELPER(u##bits, this_cpu_cmpxchg_##bits, u##bits __percpu *ptr,		\
       u##bits old, u##bits new)					\
{									\
	return this_cpu_cmpxchg(*ptr, old, new);			\
}

THIS_CPU_HELPERS(8)
THIS_CPU_HELPERS(16)
THIS_CPU_HELPERS(32)
THIS_CPU_HELPERS(64)

/* Inline if CONFIG_RCU_LAZY is not set. */
HELPER(void, call_rcu_hurry, struct rcu_head *head, rcu_callback_t func)
{
	call_rcu_hurry(head, func);
}

/* Inline if CONFIG_MODULES is not set, and so is the next one. */
HELPER(int, register_module_notifier, struct notifier_block *nb)
{
	return register_module_notifier(nb);
}

HELPER(int, unregister_module_notifier, struct notifier_block *nb)
{
	return unregister_module_notifier(nb);
}

HELPER(bool, within_module, const void *addr, const struct module *mod)
{
	return within_module((unsigned long)addr, mod);
}

HELPER(const char *, module_name, const struct module *mod)
{
	return mod->name;
}

/* wake_up_var() looks for waiters first, and leaves it to its caller to order that. */
HELPER(void, wake_up_var, void *var)
{
	smp_mb();
	wake_up_var(var);
}

/*
 * Waits until (*@var & @mask) == @val. Who makes it so uses a release operation and then calls
 * the helper above.
 */
HELPER(void, wait_var_event, u32 *var, u32 mask, u32 val)
{
	wait_var_event(var, (smp_load_acquire(var) & mask) == val);
}

/* The same for *@var == 0, but for at most @ms. */
HELPER(void, wait_var_zero_timeout, unsigned long *var, unsigned int ms)
{
	wait_var_event_timeout(var, !smp_load_acquire(var), msecs_to_jiffies(ms));
}

/* In C for the sake of dynamic debug, which Rust's pr_debug!() does not have. */
HELPER(void, pr_debug_sum, u64 global, u64 percpu)
{
	pr_debug("global %llu percpu %llu\n", global, percpu);
}

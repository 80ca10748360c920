// SPDX-License-Identifier: GPL-2.0
/*
 * What only C can say: the macros and inline functions that the Rust files call. Each helper is
 * the C name behind the prefix rust_percpu_ref_, unless it says what it does besides.
 */

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/completion.h>
#include <linux/cpumask.h>
#include <linux/jiffies.h>
#include <linux/kthread.h>
#include <linux/lockdep.h>
#include <linux/module.h>
#include <linux/notifier.h>
#include <linux/percpu.h>
#include <linux/preempt.h>
#include <linux/printk.h>
#include <linux/rcupdate.h>
#include <linux/sched.h>
#include <linux/workqueue.h>

#include <asm/sections.h>

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

/* How often preemption is disabled here. */
unsigned int rust_percpu_ref_preempt_depth(void)
{
	return preempt_count() & PREEMPT_MASK;
}

void rust_percpu_ref_assert_rcu_is_watching(void)
{
	RCU_LOCKDEP_WARN(!rcu_is_watching(), "percpu_ref used while RCU is not watching");
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

/* Inline if CONFIG_MODULES is not set, or a macro, and so are the three below. */
int rust_percpu_ref_register_module_notifier(struct notifier_block *nb)
{
	return register_module_notifier(nb);
}

int rust_percpu_ref_unregister_module_notifier(struct notifier_block *nb)
{
	return unregister_module_notifier(nb);
}

const char *rust_percpu_ref_module_name(struct module *mod)
{
	return module_name(mod);
}

void rust_percpu_ref_module_mem(const struct module *mod, unsigned int type, const void **base,
				unsigned int *size)
{
	*base = mod->mem[type].base;
	*size = mod->mem[type].size;
}

/*
 * Returns whether @addr lies in the kernel itself. Only the built-in library asks: a module that
 * uses a module is not inserted before it.
 */
bool rust_percpu_ref_is_core_kernel(const void *addr)
{
#ifdef MODULE
	return false;
#else
	return __is_kernel((unsigned long)addr);
#endif
}

struct workqueue_struct *rust_percpu_ref_alloc_workqueue(void)
{
	return alloc_workqueue("percpu_ref", WQ_UNBOUND, 1);
}

void rust_percpu_ref_init_work(struct work_struct *work, work_func_t func)
{
	INIT_WORK(work, func);
}

void rust_percpu_ref_queue_work(struct workqueue_struct *wq, struct work_struct *work)
{
	queue_work(wq, work);
}

/* The exits of release threads; each one's is waited for. */
static DECLARE_COMPLETION(release_thread_exit);

void rust_percpu_ref_release_thread_exit(void)
{
	kthread_complete_and_exit(&release_thread_exit, 0);
}

bool rust_percpu_ref_release_thread_has_exited(void)
{
	return try_wait_for_completion(&release_thread_exit);
}

void rust_percpu_ref_wait_for_release_thread(void)
{
	wait_for_completion(&release_thread_exit);
}

/*
 * lockdep's view of a release that may sleep: it runs inside this map, and the unloading of a
 * module acquires the map with the chain of module notifiers held. So lockdep reports a release
 * that takes a lock which is also held around the unloading, such as the lock of that chain.
 */
#ifdef CONFIG_LOCKDEP
static struct lock_class_key release_key;
static struct lockdep_map release_map = STATIC_LOCKDEP_MAP_INIT("percpu_ref_release", &release_key);
#endif

void rust_percpu_ref_release_map_acquire(void)
{
	lock_map_acquire(&release_map);
}

void rust_percpu_ref_release_map_release(void)
{
	lock_map_release(&release_map);
}

/* A macro where CONFIG_TASKS_RCU is not set. */
void rust_percpu_ref_synchronize_rcu_tasks(void)
{
	synchronize_rcu_tasks();
}

const char *rust_percpu_ref_current_comm(void)
{
	return current->comm;
}

/* In C for the sake of dynamic debug, which Rust's pr_debug!() does not have. */
void rust_percpu_ref_pr_debug_sum(u64 global, u64 percpu)
{
	pr_debug("global %llu percpu %llu\n", global, percpu);
}

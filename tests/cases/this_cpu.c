// SPDX-License-Identifier: GPL-2.0
/*
 * The this_cpu operations of C, which the tests compare with those of Rust.
 */

#include <linux/cpumask.h>
#include <linux/irqflags.h>
#include <linux/percpu.h>
#include <linux/preempt.h>
#include <linux/sched.h>
#include <linux/smp.h>
#include <linux/types.h>

static DEFINE_PER_CPU(u8, var_8);
static DEFINE_PER_CPU(u16, var_16);
static DEFINE_PER_CPU(u32, var_32);
static DEFINE_PER_CPU(u64, var_64);

#define THIS_CPU(bits)								\
static u64 this_cpu_##bits(unsigned int op, u64 a, u64 b)			\
{										\
	switch (op) {								\
	case 0:									\
		this_cpu_write(var_##bits, a);					\
		return 0;							\
	case 1:									\
		return this_cpu_read(var_##bits);				\
	case 2:									\
		this_cpu_add(var_##bits, a);					\
		return 0;							\
	case 3:									\
		this_cpu_sub(var_##bits, a);					\
		return 0;							\
	case 4:									\
		this_cpu_inc(var_##bits);					\
		return 0;							\
	case 5:									\
		this_cpu_dec(var_##bits);					\
		return 0;							\
	case 6:									\
		return this_cpu_add_return(var_##bits, a);			\
	case 7:									\
		return this_cpu_xchg(var_##bits, a);				\
	case 8:									\
		return this_cpu_cmpxchg(var_##bits, a, b);			\
	case 9:									\
		this_cpu_and(var_##bits, a);					\
		return 0;							\
	case 10:								\
		this_cpu_or(var_##bits, a);					\
		return 0;							\
	case 11:								\
		return this_cpu_sub_return(var_##bits, (u##bits)a);		\
	default: {								\
		u##bits old = a;						\
										\
		(void)this_cpu_try_cmpxchg(var_##bits, &old, b);		\
		return old;							\
	}									\
	}									\
}

THIS_CPU(8)
THIS_CPU(16)
THIS_CPU(32)
THIS_CPU(64)

/* The Rust code adds to this variable, too. */
DECLARE_PER_CPU(u64, percpu_ref_test_counter);
DEFINE_PER_CPU(u64, percpu_ref_test_counter);

void percpu_ref_test_inc_counter(void)
{
	this_cpu_inc(percpu_ref_test_counter);
}

u64 percpu_ref_test_sum_counter(void)
{
	unsigned int cpu;
	u64 sum = 0;

	for_each_possible_cpu(cpu)
		sum += per_cpu(percpu_ref_test_counter, cpu);
	return sum;
}

/* Does the operation with the number @op on this CPU's variable of @bits bits. */
u64 percpu_ref_test_this_cpu(unsigned int bits, unsigned int op, u64 a, u64 b)
{
	switch (bits) {
	case 8:
		return this_cpu_8(op, a, b);
	case 16:
		return this_cpu_16(op, a, b);
	case 32:
		return this_cpu_32(op, a, b);
	default:
		return this_cpu_64(op, a, b);
	}
}

/* Runs @func on all CPUs, in an interrupt on all but this CPU. */
void percpu_ref_test_on_each_cpu(smp_call_func_t func, void *arg)
{
	on_each_cpu(func, arg, 1);
}

bool percpu_ref_test_cpu_online(unsigned int cpu)
{
	return cpu_online(cpu);
}

/* Runs @func on this CPU with interrupts disabled, as in an interrupt. */
void percpu_ref_test_on_this_cpu(smp_call_func_t func, void *arg)
{
	unsigned long flags;

	local_irq_save(flags);
	func(arg);
	local_irq_restore(flags);
}

unsigned int percpu_ref_test_preempt_count(void)
{
	return preempt_count();
}

/* Makes the kernel reschedule this CPU as soon as preemption is enabled. */
void percpu_ref_test_set_need_resched(void)
{
	unsigned long flags;

	local_irq_save(flags);
	set_need_resched_current();
	local_irq_restore(flags);
}

bool percpu_ref_test_need_resched(void)
{
	return tif_need_resched();
}

/* Returns whether the kernel reschedules when C enables preemption. */
bool percpu_ref_test_c_reschedules(void)
{
	preempt_disable();
	percpu_ref_test_set_need_resched();
	preempt_enable();
	return !tif_need_resched();
}

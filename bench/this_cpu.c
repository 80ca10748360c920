// SPDX-License-Identifier: GPL-2.0
/*
 * The this_cpu operations, compiled as in a driver in C. Each function does one operation @n times,
 * on an allocated variable, on a field of an allocated variable, or on a static variable.
 */

#include <linux/compiler.h>
#include <linux/percpu.h>

struct fields {
	u64 first[4];
	u64 value;
};

static u64 __percpu *allocated;
static struct fields __percpu *fields;
static DEFINE_PER_CPU(u64, variable);

/* Loads the pointer each time, as a driver loads it from its own structure. */
#define ALLOCATED (*READ_ONCE(allocated))
#define FIELD (READ_ONCE(fields)->value)

#define LOOP(name, once)							\
noinline void percpu_ref_bench_##name(const void *unused, unsigned long n)	\
{										\
	while (n--) {								\
		once;								\
		OPTIMIZER_HIDE_VAR(n); /* Prevents unrolling of the loop. */	\
	}									\
}

LOOP(read, this_cpu_read(ALLOCATED))
LOOP(write, this_cpu_write(ALLOCATED, n))
LOOP(add, this_cpu_add(ALLOCATED, n))
LOOP(add_7, this_cpu_add(ALLOCATED, 7))
LOOP(inc, this_cpu_inc(ALLOCATED))
LOOP(dec, this_cpu_dec(ALLOCATED))
LOOP(and, this_cpu_and(ALLOCATED, n))
LOOP(or, this_cpu_or(ALLOCATED, n))
LOOP(add_return, this_cpu_add_return(ALLOCATED, n))
LOOP(xchg, this_cpu_xchg(ALLOCATED, n))
LOOP(cmpxchg, this_cpu_cmpxchg(ALLOCATED, n, n))

LOOP(read_field, this_cpu_read(FIELD))
LOOP(write_field, this_cpu_write(FIELD, n))
LOOP(add_field, this_cpu_add(FIELD, n))
LOOP(add_7_field, this_cpu_add(FIELD, 7))
LOOP(inc_field, this_cpu_inc(FIELD))
LOOP(dec_field, this_cpu_dec(FIELD))
LOOP(and_field, this_cpu_and(FIELD, n))
LOOP(or_field, this_cpu_or(FIELD, n))
LOOP(add_return_field, this_cpu_add_return(FIELD, n))
LOOP(xchg_field, this_cpu_xchg(FIELD, n))
LOOP(cmpxchg_field, this_cpu_cmpxchg(FIELD, n, n))

LOOP(read_static, this_cpu_read(variable))
LOOP(write_static, this_cpu_write(variable, n))
LOOP(add_static, this_cpu_add(variable, n))
LOOP(add_7_static, this_cpu_add(variable, 7))
LOOP(inc_static, this_cpu_inc(variable))
LOOP(dec_static, this_cpu_dec(variable))
LOOP(and_static, this_cpu_and(variable, n))
LOOP(or_static, this_cpu_or(variable, n))
LOOP(add_return_static, this_cpu_add_return(variable, n))
LOOP(xchg_static, this_cpu_xchg(variable, n))
LOOP(cmpxchg_static, this_cpu_cmpxchg(variable, n, n))

int percpu_ref_bench_this_cpu_init(void)
{
	allocated = alloc_percpu(u64);
	fields = alloc_percpu(struct fields);
	return allocated && fields ? 0 : -ENOMEM;
}

void percpu_ref_bench_this_cpu_exit(void)
{
	free_percpu(allocated);
	free_percpu(fields);
}

// SPDX-License-Identifier: GPL-2.0
/*
 * The this_cpu operations as a driver in C would have them compiled: each function does one of
 * them @n times, on an allocated variable, on a field of one, or on a static one.
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

/* As where a driver loads the pointer from its own structure. */
#define ALLOCATED (*READ_ONCE(allocated))
#define FIELD (READ_ONCE(fields)->value)

#define LOOP(op, where, ...)							\
noinline void percpu_ref_bench_##op##where(const void *unused, unsigned long n)	\
{										\
	while (n--) {								\
		__VA_ARGS__;							\
		OPTIMIZER_HIDE_VAR(n); /* Or short loops are unrolled. */	\
	}									\
}

#define LOOPS(where, var)							\
LOOP(read, where, this_cpu_read(var))						\
LOOP(write, where, this_cpu_write(var, n))					\
LOOP(add, where, this_cpu_add(var, n))						\
LOOP(add_7, where, this_cpu_add(var, 7))					\
LOOP(inc, where, this_cpu_inc(var))						\
LOOP(dec, where, this_cpu_dec(var))						\
LOOP(and, where, this_cpu_and(var, n))						\
LOOP(or, where, this_cpu_or(var, n))						\
LOOP(add_return, where, this_cpu_add_return(var, n))				\
LOOP(xchg, where, this_cpu_xchg(var, n))					\
LOOP(cmpxchg, where, this_cpu_cmpxchg(var, n, n))

LOOPS(, ALLOCATED)
LOOPS(_field, FIELD)
LOOPS(_static, variable)

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

/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The symbols of the kernel's objects, of their linker script, and of silicon.c.
 */

#ifndef _PERCPU_REF_BENCH_SILICON_H
#define _PERCPU_REF_BENCH_SILICON_H

#include <stdbool.h>
#include <stddef.h>

/* A loop of the benchmark, in percpu_ref_bench.rs. */
struct loop {
	char op[32];
	char impl[32];
	void (*run)(const void *subjects, unsigned long n);
	size_t empty;
};

const void *rust_percpu_ref_bench_silicon(void);
bool rust_percpu_ref_bench_silicon_loop(size_t op, size_t peer, struct loop *found);

/* Defined in silicon.c, in assembly. */
extern char safe_return[], dynamic[], dynamic_end[];
extern unsigned long this_cpu_off;
extern void *const_current_task;

/* Defined by silicon.ld and by the linker. */
extern char __executable_start[], etext[];
extern char percpu_start[], percpu_end[];
extern int return_sites[], return_sites_end[];
extern unsigned long mcount_loc[], mcount_loc_end[];

#endif /* _PERCPU_REF_BENCH_SILICON_H */

// SPDX-License-Identifier: GPL-2.0
/*
 * What the tests need of the kernel, and what only C can say: it is inline, or a macro, in some
 * configurations.
 */

#include <linux/cpu.h>
#include <linux/mm.h>
#include <linux/module.h>

#include "fail_nth.h"

/* NULL, unless rust_percpu_ref_faults is there; it then stays until the put. */
void *percpu_ref_test_get_fail_nth(void)
{
	return symbol_get(percpu_ref_test_fail_nth);
}

void percpu_ref_test_put_fail_nth(void)
{
	symbol_put(percpu_ref_test_fail_nth);
}

int percpu_ref_test_remove_cpu(unsigned int cpu)
{
	return remove_cpu(cpu);
}

int percpu_ref_test_add_cpu(unsigned int cpu)
{
	return add_cpu(cpu);
}

unsigned long percpu_ref_test_totalram_mib(void)
{
	return totalram_pages() >> (20 - PAGE_SHIFT);
}

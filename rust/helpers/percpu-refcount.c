// SPDX-License-Identifier: GPL-2.0

#include <linux/printk.h>
#include <linux/types.h>

/* In C for the sake of dynamic debug, which pr_debug!() does not have. */
__rust_helper void rust_helper_percpu_ref_pr_debug_sum(u64 global, u64 percpu)
{
	pr_debug("global %llu percpu %llu\n", global, percpu);
}

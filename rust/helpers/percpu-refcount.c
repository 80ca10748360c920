// SPDX-License-Identifier: GPL-2.0

#include <linux/kmemleak.h>
#include <linux/lockdep.h>
#include <linux/preempt.h>
#include <linux/printk.h>
#include <linux/slab.h>
#include <linux/types.h>

/* This is in C because pr_debug!() in Rust does not support dynamic debug. */
__rust_helper void rust_helper_percpu_ref_pr_debug_sum(u64 global, u64 percpu)
{
	pr_debug("global %llu percpu %llu\n", global, percpu);
}

#ifdef CONFIG_RUST_PERCPU_REF_DEBUG
/*
 * kmalloc_nolock() can be called from any context, but it fails on machines without a cmpxchg
 * of two words, and in hard interrupts on PREEMPT_RT.
 */
__rust_helper void *rust_helper_percpu_ref_alloc_records(size_t size)
{
	void *records = kmalloc_nolock(size, __GFP_ZERO, NUMA_NO_NODE);

	if (!records && preemptible()) {
		records = kzalloc(size, GFP_NOWAIT);
		/* kmemleak does not scan the memory of kmalloc_nolock() either. */
		kmemleak_no_scan(records);
	}
	return records;
}

__rust_helper void rust_helper_percpu_ref_free_records(void *records)
{
	kfree(records);
}

__rust_helper bool rust_helper_in_task(void)
{
	return in_task();
}

__rust_helper void rust_helper_lock_map_acquire_tryread(struct lockdep_map *lock)
{
	lock_map_acquire_tryread(lock);
}

__rust_helper bool rust_helper_percpu_ref_lock_is_held(struct lockdep_map *lock)
{
#ifdef CONFIG_LOCKDEP
	return lock_is_held(lock);
#else
	return false;
#endif
}
#endif

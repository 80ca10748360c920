// SPDX-License-Identifier: GPL-2.0
/*
 * Waiting for a variable to change, as wait_var_event() and wake_up_var() do it, with one
 * difference: the wake-up can be called from hard interrupts, on PREEMPT_RT as well. wake_up_var()
 * takes a spinlock_t, which sleeps there, and which lockdep reports in a hard interrupt on every
 * kernel with PROVE_RAW_LOCK_NESTING. The locks here and those of a completion are raw.
 */

#include <linux/completion.h>
#include <linux/errno.h>
#include <linux/hash.h>
#include <linux/list.h>
#include <linux/sched.h>
#include <linux/spinlock.h>

#define BUCKET_BITS 6

struct waiter {
	struct hlist_node node;
	const void *var;
	struct completion wake;
};

static struct bucket {
	raw_spinlock_t lock;
	struct hlist_head waiters;
} buckets[1 << BUCKET_BITS] = {
	[0 ... (1 << BUCKET_BITS) - 1] = {
		.lock = __RAW_SPIN_LOCK_UNLOCKED(buckets.lock),
		.waiters = HLIST_HEAD_INIT,
	},
};

static struct bucket *bucket_of(const void *var)
{
	return &buckets[hash_ptr(var, BUCKET_BITS)];
}

/*
 * Wakes up all that wait for the change of @var that was just made. Only the address is used: the
 * memory may be free by now.
 *
 * The list is walked under a raw lock. Its length is the number of threads that wait.
 */
void rust_percpu_ref_wake_up(const void *var)
{
	struct bucket *bucket = bucket_of(var);
	struct waiter *waiter;
	unsigned long flags;

	/* Pairs with that in rust_percpu_ref_wait(): this sees the waiter, or that the change. */
	smp_mb();
	if (hlist_empty(&bucket->waiters))
		return;

	raw_spin_lock_irqsave(&bucket->lock, flags);
	hlist_for_each_entry(waiter, &bucket->waiters, node) {
		if (waiter->var == var)
			complete(&waiter->wake);
	}
	raw_spin_unlock_irqrestore(&bucket->lock, flags);
}

/*
 * Sleeps until @is_done(@arg), which is called again after each wake-up of @var.
 *
 * Returns 0, or -ETIMEDOUT after @timeout jiffies, or if @killable, -EINTR after a fatal signal.
 */
int rust_percpu_ref_wait(const void *var, bool (*is_done)(const void *arg), const void *arg,
			 bool killable, unsigned long timeout)
{
	struct bucket *bucket = bucket_of(var);
	struct waiter waiter = { .var = var };
	bool done = is_done(arg);
	long left = min_t(unsigned long, timeout, MAX_SCHEDULE_TIMEOUT);

	might_sleep();
	if (done)
		return 0;

	init_completion(&waiter.wake);
	raw_spin_lock_irq(&bucket->lock);
	hlist_add_head(&waiter.node, &bucket->waiters);
	raw_spin_unlock_irq(&bucket->lock);

	/* Pairs with the barrier in rust_percpu_ref_wake_up(). */
	smp_mb();
	while (!(done = is_done(arg)) && left > 0) {
		if (killable)
			left = wait_for_completion_killable_timeout(&waiter.wake, left);
		else
			left = wait_for_completion_timeout(&waiter.wake, left);
	}

	/* From here on, no wake-up knows the waiter. */
	raw_spin_lock_irq(&bucket->lock);
	hlist_del(&waiter.node);
	raw_spin_unlock_irq(&bucket->lock);

	if (done || is_done(arg))
		return 0;
	return left < 0 ? -EINTR : -ETIMEDOUT;
}

// SPDX-License-Identifier: GPL-2.0
/*
 * The C part of the torture: interrupts, places in which C has guards, and the use of memory and
 * CPUs. The functions of the timers run in a hard interrupt and in a softirq, and those of the work
 * items run in a hard interrupt, on PREEMPT_RT too.
 */

#include <linux/atomic.h>
#include <linux/cpumask.h>
#include <linux/hrtimer.h>
#include <linux/irq_work.h>
#include <linux/jiffies.h>
#include <linux/ktime.h>
#include <linux/mm.h>
#include <linux/preempt.h>
#include <linux/rcupdate.h>
#include <linux/sched.h>
#include <linux/vmstat.h>

#include "torture.h"

static struct hrtimer hard_timer, soft_timer;

static enum hrtimer_restart tick_hard(struct hrtimer *timer)
{
	rust_percpu_ref_torture_tick(HARD_TIMER, in_hardirq());
	hrtimer_forward_now(timer, ms_to_ktime(1));
	return HRTIMER_RESTART;
}

static enum hrtimer_restart tick_soft(struct hrtimer *timer)
{
	rust_percpu_ref_torture_tick(SOFT_TIMER, in_serving_softirq() && !in_hardirq());
	hrtimer_forward_now(timer, us_to_ktime(1500));
	return HRTIMER_RESTART;
}

/* A guard that an interrupt on this CPU will put. */
struct parcel {
	struct irq_work work;
	atomic_t is_taken;
	void *guard;
};

static struct parcel parcels[16];

static void deliver(struct irq_work *work)
{
	struct parcel *parcel = container_of(work, struct parcel, work);

	rust_percpu_ref_torture_tick(WORK, in_hardirq());
	rust_percpu_ref_torture_put(parcel->guard);
	atomic_set_release(&parcel->is_taken, 0);
}

/*
 * Takes ownership of a guard, which an interrupt then puts. Returns false and does not take
 * ownership if all parcels are in use.
 */
bool percpu_ref_torture_send(void *guard)
{
	struct parcel *parcel;

	for (parcel = parcels; parcel < parcels + ARRAY_SIZE(parcels); parcel++) {
		if (atomic_cmpxchg(&parcel->is_taken, 0, 1) == 0) {
			parcel->guard = guard;
			/* The previous run of its function may not have returned yet. */
			irq_work_sync(&parcel->work);
			irq_work_queue(&parcel->work);
			return true;
		}
	}
	return false;
}

/* The places in which C has guards. */
static void *shelves[8];

/* Replaces the guard in a place by @guard, or by NULL. Returns the old guard to the caller. */
void *percpu_ref_torture_swap(unsigned int n, void *guard)
{
	return xchg(&shelves[n % ARRAY_SIZE(shelves)], guard);
}

void percpu_ref_torture_start(void)
{
	struct parcel *parcel;

	for (parcel = parcels; parcel < parcels + ARRAY_SIZE(parcels); parcel++)
		parcel->work = IRQ_WORK_INIT_HARD(deliver);
	hrtimer_setup(&hard_timer, tick_hard, CLOCK_MONOTONIC, HRTIMER_MODE_REL_HARD);
	hrtimer_setup(&soft_timer, tick_soft, CLOCK_MONOTONIC, HRTIMER_MODE_REL_SOFT);
	hrtimer_start(&hard_timer, ms_to_ktime(1), HRTIMER_MODE_REL_HARD);
	hrtimer_start(&soft_timer, us_to_ktime(1500), HRTIMER_MODE_REL_SOFT);
}

/* Stops the interrupts. After this, no function of the torture runs in an interrupt. */
void percpu_ref_torture_stop(void)
{
	struct parcel *parcel;

	hrtimer_cancel(&hard_timer);
	hrtimer_cancel(&soft_timer);
	for (parcel = parcels; parcel < parcels + ARRAY_SIZE(parcels); parcel++)
		irq_work_sync(&parcel->work);
}

bool percpu_ref_torture_in_hardirq(void)
{
	return in_hardirq();
}

/* Moves the current thread to an online CPU. Returns whether it was moved. */
bool percpu_ref_torture_move(unsigned int n)
{
	unsigned int cpu = cpumask_nth(n % num_online_cpus(), cpu_online_mask);

	return cpu < nr_cpu_ids && !set_cpus_allowed_ptr(current, cpumask_of(cpu));
}

/*
 * Allocates blocks of memory from the largest to the smallest, and frees them. Stops when an
 * allocation fails for the smallest blocks, when an eighth of the memory is left, or after half a
 * second, so the out-of-memory killer is not invoked. Returns the number of pages.
 */
unsigned long percpu_ref_torture_use_memory(void)
{
	unsigned long end = jiffies + HZ / 2;
	unsigned long taken = 0, reserve = totalram_pages() / 8;
	struct page *page, *next;
	LIST_HEAD(pages);
	int order;

	for (order = MAX_PAGE_ORDER; order >= 0; order--) {
		for (;;) {
			/* What is set aside for CMA is of no use to the kernel itself. */
			unsigned long free = global_zone_page_state(NR_FREE_PAGES) -
					     global_zone_page_state(NR_FREE_CMA_PAGES);

			if (free < reserve + (1UL << order) || time_after(jiffies, end))
				break;
			page = alloc_pages(GFP_KERNEL | __GFP_NORETRY | __GFP_NOWARN, order);
			if (!page)
				break;
			set_page_private(page, order);
			list_add(&page->lru, &pages);
			taken += 1UL << order;
			cond_resched_tasks_rcu_qs();
		}
	}
	list_for_each_entry_safe(page, next, &pages, lru) {
		order = page_private(page);
		set_page_private(page, 0);
		__free_pages(page, order);
		cond_resched_tasks_rcu_qs();
	}
	return taken;
}

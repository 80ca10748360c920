// SPDX-License-Identifier: GPL-2.0
/*
 * What the torture needs of C: interrupts, places that C has guards in, and what it does to the
 * machine. The timers' functions run in a hard interrupt and in a softirq, and those of the work
 * items in a hard interrupt, also on PREEMPT_RT.
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

/* A guard on its way to be put in an interrupt of this CPU. */
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

/* Takes ownership of a guard, unless all parcels are under way. */
bool percpu_ref_torture_send(void *guard)
{
	struct parcel *parcel;

	for (parcel = parcels; parcel < parcels + ARRAY_SIZE(parcels); parcel++) {
		if (atomic_cmpxchg(&parcel->is_taken, 0, 1) == 0) {
			parcel->guard = guard;
			/* The last run of its function may still be about to return. */
			irq_work_sync(&parcel->work);
			irq_work_queue(&parcel->work);
			return true;
		}
	}
	return false;
}

/* Where C keeps guards. */
static void *shelves[8];

/* Puts a guard, or NULL, in the place of another one, which the caller then owns. */
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

/* No function of ours runs in an interrupt after this. */
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

/* Moves the current thread to another CPU. */
bool percpu_ref_torture_move(unsigned int n)
{
	unsigned int cpu = cpumask_nth(n % num_online_cpus(), cpu_online_mask);

	return cpu < nr_cpu_ids && !set_cpus_allowed_ptr(current, cpumask_of(cpu));
}

/*
 * Takes memory, from the largest blocks to the smallest, until no more is to be had, or an eighth
 * is left, or half a second has passed, and frees it. The out-of-memory killer has no reason to
 * come. Returns the number of pages.
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

// SPDX-License-Identifier: GPL-2.0
/*
 * Bugs in C, for `wrong.rs`. They do no damage: the checker that finds a bug repairs its effects,
 * or memory is leaked.
 */

#include <linux/cpumask.h>
#include <linux/jiffies.h>
#include <linux/list.h>
#include <linux/module.h>
#include <linux/notifier.h>
#include <linux/percpu.h>
#include <linux/rcupdate.h>
#include <linux/slab.h>
#include <linux/timer.h>

static DEFINE_PER_CPU(int, counter);

struct victim {
	struct rcu_head rcu;
	struct timer_list timer;
	struct list_head entry;
	struct victim __rcu *next;
};

static void do_nothing(struct rcu_head *rcu)
{
}

static void time_out(struct timer_list *timer)
{
}

static int ignore(struct notifier_block *nb, unsigned long event, void *module)
{
	return NOTIFY_DONE;
}

void percpu_ref_test_register_notifier(void)
{
	static struct notifier_block block = { .notifier_call = ignore };

	register_module_notifier(&block);
	unregister_module_notifier(&block);
}

void percpu_ref_test_wrong(unsigned int bug)
{
	struct victim *victim = kzalloc(sizeof(*victim), GFP_KERNEL);
	LIST_HEAD(list);

	if (!victim)
		return;
	switch (bug) {
	case 0:
		/* This is not in a read-side critical section. */
		if (rcu_dereference(victim->next))
			return;
		break;
	case 1:
		/* The second call comes before the callback has run. */
		rcu_read_lock();
		call_rcu(&victim->rcu, do_nothing);
		call_rcu(&victim->rcu, do_nothing);
		rcu_read_unlock();
		/* The memory is leaked. */
		rcu_barrier();
		return;
	case 2:
		timer_setup(&victim->timer, time_out, 0);
		mod_timer(&victim->timer, jiffies + 60 * HZ);
		break;
	case 3:
		/* Preemption is not disabled. */
		__this_cpu_inc(counter);
		break;
	case 4:
		list_add(&victim->entry, &list);
		list_add(&victim->entry, &list);
		break;
	default:
		/* There is no such CPU. */
		if (cpumask_test_cpu(nr_cpu_ids + 7, cpu_possible_mask))
			return;
	}
	kfree(victim);
}

// SPDX-License-Identifier: GPL-2.0
/*
 * A timer for the torture, whose function runs in a hard interrupt also on PREEMPT_RT.
 */

#include <linux/hrtimer.h>
#include <linux/ktime.h>
#include <linux/preempt.h>

void rust_percpu_ref_torture_irq(bool in_hard_irq);

static struct hrtimer timer;

static enum hrtimer_restart tick(struct hrtimer *timer)
{
	rust_percpu_ref_torture_irq(in_hardirq());
	hrtimer_forward_now(timer, us_to_ktime(500));
	return HRTIMER_RESTART;
}

void percpu_ref_torture_timer_start(void)
{
	hrtimer_setup(&timer, tick, CLOCK_MONOTONIC, HRTIMER_MODE_REL_HARD);
	hrtimer_start(&timer, us_to_ktime(500), HRTIMER_MODE_REL_HARD);
}

void percpu_ref_torture_timer_stop(void)
{
	hrtimer_cancel(&timer);
}

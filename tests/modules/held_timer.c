// SPDX-License-Identifier: GPL-2.0
/*
 * A timer for `held.rs`. Its function runs once, in a softirq or in a hard interrupt, on PREEMPT_RT
 * too.
 */

#include <linux/hrtimer.h>

void rust_percpu_ref_held_tick(void);

static struct hrtimer timer;

static enum hrtimer_restart tick(struct hrtimer *timer)
{
	rust_percpu_ref_held_tick();
	return HRTIMER_NORESTART;
}

void percpu_ref_held_timer(bool hard)
{
	enum hrtimer_mode mode = hard ? HRTIMER_MODE_REL_HARD : HRTIMER_MODE_REL_SOFT;

	hrtimer_setup(&timer, tick, CLOCK_MONOTONIC, mode);
	hrtimer_start(&timer, us_to_ktime(500), mode);
}

void percpu_ref_held_timer_stop(void)
{
	hrtimer_cancel(&timer);
}

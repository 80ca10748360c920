// SPDX-License-Identifier: GPL-2.0
/*
 * C code with references to an object in Rust; see percpu_ref_from_c.rs.
 */

#include <linux/jiffies.h>
#include <linux/timer.h>

/* In Rust. */
void *percpu_ref_sample_get(void *ticks);
void percpu_ref_sample_tick(void *ticks);
void percpu_ref_sample_put(void *ticks);

/* For Rust. */
void percpu_ref_c_user_start(void *ticks);
void percpu_ref_c_user_stop(void);

static struct user {
	struct timer_list timer;
	void *mine, *of_timer;
} user;

static void tick(struct timer_list *timer)
{
	percpu_ref_sample_tick(user.of_timer);
	mod_timer(timer, jiffies + 1);
}

/* Takes over the reference. */
void percpu_ref_c_user_start(void *ticks)
{
	user.mine = ticks;
	user.of_timer = percpu_ref_sample_get(ticks);
	timer_setup(&user.timer, tick, 0);
	mod_timer(&user.timer, jiffies + 1);
}

void percpu_ref_c_user_stop(void)
{
	timer_shutdown_sync(&user.timer);
	percpu_ref_sample_put(user.of_timer);
	percpu_ref_sample_tick(user.mine);
	percpu_ref_sample_put(user.mine);
}

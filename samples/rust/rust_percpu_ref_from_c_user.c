// SPDX-License-Identifier: GPL-2.0
/*
 * C code that uses a Rust object: see rust_percpu_ref_from_c_main.rs. It gets a reference, uses the
 * object in a timer, and puts the reference.
 */

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/errno.h>
#include <linux/jiffies.h>
#include <linux/printk.h>
#include <linux/timer.h>

#include "rust_percpu_ref_from_c.h"

#define TICKS 3

/* The timer's reference. Only the timer uses it until the timer is shut down, and then stop(). */
static void *meter;

static void on_timer(struct timer_list *timer)
{
	u64 ticks = percpu_ref_from_c_use(meter);

	pr_info("tick %llu\n", ticks);
	if (ticks < TICKS) {
		mod_timer(timer, jiffies + HZ / 20);
		return;
	}
	percpu_ref_from_c_put(meter);
	meter = NULL;
}

static DEFINE_TIMER(timer, on_timer);

int percpu_ref_from_c_start(void)
{
	meter = percpu_ref_from_c_get();
	if (!meter)
		return -ENODEV;
	mod_timer(&timer, jiffies + HZ / 20);
	return 0;
}

/*
 * The reference keeps the Rust object, but it does not keep the module. Therefore this must wait
 * until on_timer() has returned.
 */
void percpu_ref_from_c_stop(void)
{
	timer_shutdown_sync(&timer);
	if (meter)
		percpu_ref_from_c_put(meter);
	meter = NULL;
}

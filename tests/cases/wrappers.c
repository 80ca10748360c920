// SPDX-License-Identifier: GPL-2.0
/*
 * Functions of the kernel that the tests call and that Rust cannot call directly, because they are
 * inline functions or macros in some configurations.
 */

#include <linux/completion.h>
#include <linux/cpu.h>
#include <linux/hrtimer.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>

#include "../modules/faults.h"

/*
 * Returns percpu_ref_test_fail_nth(), or NULL if rust_percpu_ref_faults is not loaded. The module
 * stays loaded until the put.
 */
void *percpu_ref_test_get_fail_nth(void)
{
	/* Without CONFIG_MODULES, the address of a weak symbol may not be NULL. */
	return IS_ENABLED(CONFIG_MODULES) ? symbol_get(percpu_ref_test_fail_nth) : NULL;
}

void percpu_ref_test_put_fail_nth(void)
{
	symbol_put(percpu_ref_test_fail_nth);
}

const struct percpu_ref_test_window *percpu_ref_test_get_window(void)
{
	return IS_ENABLED(CONFIG_MODULES) ? symbol_get(percpu_ref_test_window) : NULL;
}

void percpu_ref_test_put_window(void)
{
	symbol_put(percpu_ref_test_window);
}

int percpu_ref_test_remove_cpu(unsigned int cpu)
{
	return remove_cpu(cpu);
}

int percpu_ref_test_add_cpu(unsigned int cpu)
{
	return add_cpu(cpu);
}

struct in_timer {
	struct hrtimer timer;
	void (*run)(void *arg);
	void *arg;
	struct completion done;
};

static enum hrtimer_restart expire(struct hrtimer *timer)
{
	struct in_timer *call = container_of(timer, struct in_timer, timer);

	WARN_ON_ONCE(!in_hardirq() == timer->is_hard);
	call->run(call->arg);
	complete(&call->done);
	return HRTIMER_NORESTART;
}

/*
 * Calls @run with @arg in a hard interrupt if @hard is set, on PREEMPT_RT too, and in a softirq if
 * not. Waits for the call.
 */
void percpu_ref_test_in_timer(void (*run)(void *arg), void *arg, bool hard)
{
	enum hrtimer_mode mode = hard ? HRTIMER_MODE_REL_PINNED_HARD : HRTIMER_MODE_REL_PINNED_SOFT;
	struct in_timer call = { .run = run, .arg = arg };

	init_completion(&call.done);
	hrtimer_setup_on_stack(&call.timer, expire, CLOCK_MONOTONIC, mode);
	hrtimer_start(&call.timer, us_to_ktime(50), mode);
	wait_for_completion(&call.done);
	hrtimer_cancel(&call.timer);
	destroy_hrtimer_on_stack(&call.timer);
}

void percpu_ref_test_set_fifo(void)
{
	sched_set_fifo(current);
}

void percpu_ref_test_allow_kill(void)
{
	allow_signal(SIGKILL);
}

void percpu_ref_test_forget_kill(void)
{
	flush_signals(current);
	disallow_signal(SIGKILL);
}

unsigned long percpu_ref_test_totalram_mib(void)
{
	return totalram_pages() >> (20 - PAGE_SHIFT);
}

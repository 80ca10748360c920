// SPDX-License-Identifier: GPL-2.0

#include <linux/rcupdate.h>

/* This is an inline function unless CONFIG_RCU_LAZY is set. */
__rust_helper void rust_helper_call_rcu_hurry(struct rcu_head *head, rcu_callback_t func)
{
	call_rcu_hurry(head, func);
}

/* These are macros unless CONFIG_TASKS_RCU is set. */
__rust_helper void rust_helper_call_rcu_tasks(struct rcu_head *head, rcu_callback_t func)
{
	call_rcu_tasks(head, func);
}

__rust_helper void rust_helper_synchronize_rcu_tasks(void)
{
	synchronize_rcu_tasks();
}

// SPDX-License-Identifier: GPL-2.0

#include <linux/build_bug.h>
#include <linux/preempt.h>

/* rust/kernel/preempt.rs also defines this mask. */
static_assert(PREEMPT_MASK == 0xff);

__rust_helper void rust_helper_preempt_disable(void)
{
	preempt_disable();
}

__rust_helper void rust_helper_preempt_enable(void)
{
	preempt_enable();
}

__rust_helper int rust_helper_preempt_count(void)
{
	return preempt_count();
}

__rust_helper void rust_helper___preempt_schedule(void)
{
#ifdef CONFIG_PREEMPTION
	__preempt_schedule();
#endif
}

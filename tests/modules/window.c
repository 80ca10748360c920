// SPDX-License-Identifier: GPL-2.0
/*
 * Holds a get or a put of a reference before it reads the word or before it counts, and a thread or
 * an RCU callback before one of its atomic operations. Atomic operations are functions of the
 * kernel if CONFIG_RUST_INLINE_HELPERS is not set.
 *
 * The parameter `hold` holds an atomic operation from the shell. The name of a function opens the
 * window for its first call by a thread of the tests, and an empty name closes the window. The
 * parameter reads as 1 while a thread is held.
 */

#include <linux/delay.h>
#include <linux/jiffies.h>
#include <linux/kprobes.h>
#include <linux/module.h>
#include <linux/preempt.h>
#include <linux/processor.h>
#include <linux/sched.h>
#include <linux/string.h>

#include "faults.h"

#ifdef CONFIG_X86_64
#include <asm/text-patching.h>

static bool armed, held, let_go;
static struct percpu_ref_test_calls calls;
static atomic_t calls_left;

/*
 * Runs when a probe is hit, and returns to the instruction under the probe. So it must not change
 * any register. It may change the flags, because the code sets them again before it uses them.
 */
static noinline notrace __no_sanitize_address __no_caller_saved_registers void hold(void)
{
	unsigned long end = READ_ONCE(jiffies) + 10 * HZ;

	WRITE_ONCE(held, true);
	while (!READ_ONCE(let_go) && time_before(READ_ONCE(jiffies), end))
		cpu_relax();
	WRITE_ONCE(held, false);
}

static int divert(struct kprobe *probe, struct pt_regs *regs)
{
	if (!xchg(&armed, false))
		return 0;
	/* Emulates a call of hold() right before the instruction. */
	int3_emulate_push(regs, (unsigned long)probe->addr);
	regs->ip = (unsigned long)hold;
	return 1;
}

/* With a post handler, the probe is never optimised into a jump, so it stays an int3. */
static void nothing(struct kprobe *probe, struct pt_regs *regs, unsigned long flags)
{
}

static struct kprobe probe;

/* Returns whether an instruction of the kind @place may begin at @code. */
static bool is_at(const u8 *code, enum percpu_ref_test_place place)
{
	/* A movq from 8 bytes after a register, which is where the compiler has put the word. */
	if (place == READ_WORD)
		return (code[0] & 0xf8) == 0x48 && code[1] == 0x8b && code[2] >> 6 == 1 &&
		       code[3] == 8;
	/* An incq or decq at %gs and a register. That of a static variable is relative to %rip. */
	return code[0] == 0x65 && (code[1] & 0xf8) == 0x48 && code[2] == 0xff &&
	       (code[3] & 0xc7) != 0x05 && (code[3] >> 3 & 7) == (place == DECREMENT);
}

static int window_open(void *function, enum percpu_ref_test_place place)
{
	u8 *code;
	int err = -ENOENT;

	let_go = false;
	armed = true;
	for (code = function; code < (u8 *)function + 512; code++) {
		if (!is_at(code, place))
			continue;
		probe = (struct kprobe) {
			.addr = (kprobe_opcode_t *)code,
			.pre_handler = divert,
			.post_handler = nothing,
		};
		/* This fails if @code is in the middle of an instruction. */
		err = register_kprobe(&probe);
		if (!err)
			break;
	}
	return err;
}

/* Returns whether this call of the function is one that is counted. */
static bool is_meant(struct pt_regs *regs)
{
	/* The variable is the second argument of functions whose first argument is a value. */
	unsigned long first = regs_get_kernel_argument(regs, 0) - calls.from;
	unsigned long second = regs_get_kernel_argument(regs, 1) - calls.from;

	if (calls.size && first >= calls.size && second >= calls.size)
		return false;
	if (calls.in_callback)
		return softirq_count();
	return !softirq_count() && !strcmp(current->comm, "percpu_ref_test");
}

static int divert_call(struct kprobe *probe, struct pt_regs *regs)
{
	if (!READ_ONCE(armed) || !is_meant(regs) || atomic_dec_return(&calls_left))
		return 0;
	return divert(probe, regs);
}

static int window_open_call(const struct percpu_ref_test_calls *wanted)
{
	int err;

	calls = *wanted;
	atomic_set(&calls_left, calls.nth);
	let_go = false;
	armed = true;
	probe = (struct kprobe) {
		.symbol_name = calls.function,
		.pre_handler = divert_call,
		.post_handler = nothing,
	};
	err = register_kprobe(&probe);
	if (err || !kprobe_ftrace(&probe))
		return err;

	/* hold() would return into ftrace. So the probe is set on the next instruction instead. */
	unregister_kprobe(&probe);
	probe = (struct kprobe) {
		.addr = probe.addr + CALL_INSN_SIZE,
		.pre_handler = divert_call,
		.post_handler = nothing,
	};
	return register_kprobe(&probe);
}

static bool window_is_held(void)
{
	return READ_ONCE(held);
}

static void window_close(void)
{
	WRITE_ONCE(armed, false);
	WRITE_ONCE(let_go, true);
	while (READ_ONCE(held))
		usleep_range(1000, 2000);
	unregister_kprobe(&probe);
}
#else
/* The tests skip the cases that need a window. */
static int window_open(void *function, enum percpu_ref_test_place place)
{
	return -EOPNOTSUPP;
}

static int window_open_call(const struct percpu_ref_test_calls *wanted)
{
	return -EOPNOTSUPP;
}

static bool window_is_held(void)
{
	return false;
}

static void window_close(void)
{
}
#endif

const struct percpu_ref_test_window percpu_ref_test_window = {
	.open = window_open,
	.open_call = window_open_call,
	.is_held = window_is_held,
	.close = window_close,
};
EXPORT_SYMBOL_GPL(percpu_ref_test_window);

static char hold_function[KSYM_NAME_LEN];

static int set_hold(const char *value, const struct kernel_param *param)
{
	struct percpu_ref_test_calls first = { .function = hold_function, .nth = 1 };
	int err;

	if (hold_function[0])
		window_close();
	strscpy(hold_function, value);
	strim(hold_function);
	err = hold_function[0] ? window_open_call(&first) : 0;
	if (err)
		hold_function[0] = 0;
	return err;
}

static int get_hold(char *buffer, const struct kernel_param *param)
{
	return sysfs_emit(buffer, "%d\n", window_is_held());
}

static const struct kernel_param_ops hold_ops = { .set = set_hold, .get = get_hold };
module_param_cb(hold, &hold_ops, NULL, 0600);
MODULE_PARM_DESC(hold, "The function whose first call by a thread of the tests is held");

// SPDX-License-Identifier: GPL-2.0
/*
 * Holds what gets or puts a reference, before it reads the word or before it counts.
 */

#include <linux/delay.h>
#include <linux/jiffies.h>
#include <linux/kprobes.h>
#include <linux/module.h>
#include <linux/processor.h>

#include "faults.h"

#ifdef CONFIG_X86_64
#include <asm/text-patching.h>

static bool armed, held, let_go;

/*
 * A probe leads here, and this returns to the instruction under the probe. So all registers must
 * be as they were. The flags need not: they are set again before they are used.
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
	/* As a call of hold() from before the instruction. */
	int3_emulate_push(regs, (unsigned long)probe->addr);
	regs->ip = (unsigned long)hold;
	return 1;
}

/* With this, the probe is an int3 always. */
static void nothing(struct kprobe *probe, struct pt_regs *regs, unsigned long flags)
{
}

static struct kprobe probe;

/* Whether such an instruction may begin at @code. */
static bool is_at(const u8 *code, enum percpu_ref_test_place place)
{
	/* movq of what is 8 bytes after where a register points to: the word comes second. */
	if (place == READ_WORD)
		return (code[0] & 0xf8) == 0x48 && code[1] == 0x8b && code[2] >> 6 == 1 &&
		       code[3] == 8;
	/* incq or decq of what is at %gs and a register. */
	return code[0] == 0x65 && (code[1] & 0xf8) == 0x48 && code[2] == 0xff &&
	       (code[3] >> 3 & 7) == (place == DECREMENT);
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
		/* It fails in the middle of an instruction. */
		err = register_kprobe(&probe);
		if (!err)
			break;
	}
	return err;
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
/* The tests skip what needs it. */
static int window_open(void *function, enum percpu_ref_test_place place)
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
	.is_held = window_is_held,
	.close = window_close,
};
EXPORT_SYMBOL_GPL(percpu_ref_test_window);

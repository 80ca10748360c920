/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Functions of rust_percpu_ref_faults that the tests use.
 */

#ifndef _PERCPU_REF_TEST_FAULTS_H
#define _PERCPU_REF_TEST_FAULTS_H

#include <linux/types.h>

unsigned int percpu_ref_test_fail_nth(unsigned int n, bool deep);

/*
 * The instruction that is held: the one that reads the word, increments the counter, or decrements
 * it.
 */
enum percpu_ref_test_place { READ_WORD, INCREMENT, DECREMENT };

/**
 * struct percpu_ref_test_calls - a call of a function of the kernel
 * @function: the name of the function
 * @from: only calls are counted whose first or second argument is in the @size bytes from here on
 * @size: if 0, calls with any arguments are counted
 * @in_callback: if true, calls by RCU callbacks are counted, and if false, calls by threads of the
 *	tests, which have the name of the test module
 * @nth: the number of the counted call that is held, from 1 on
 */
struct percpu_ref_test_calls {
	const char *function;
	unsigned long from;
	unsigned long size;
	bool in_callback;
	unsigned int nth;
};

/**
 * struct percpu_ref_test_window - holds a thread or an interrupt inside a function
 * @open: Sets a probe on the first instruction of the kind @place in @function. The first thread or
 *	interrupt that reaches the instruction is held there for at most ten seconds. Preemption and
 *	interrupts stay as they are.
 * @open_call: Holds one call of a function, at the beginning of the function, for at most ten
 *	seconds.
 * @is_held: Returns whether a thread or an interrupt is held.
 * @close: Ends the hold and removes the probe. Sleeps.
 */
struct percpu_ref_test_window {
	int (*open)(void *function, enum percpu_ref_test_place place);
	int (*open_call)(const struct percpu_ref_test_calls *calls);
	bool (*is_held)(void);
	void (*close)(void);
};

extern const struct percpu_ref_test_window percpu_ref_test_window;

#endif /* _PERCPU_REF_TEST_FAULTS_H */

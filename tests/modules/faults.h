/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What rust_percpu_ref_faults offers to the tests.
 */

#ifndef _PERCPU_REF_TEST_FAULTS_H
#define _PERCPU_REF_TEST_FAULTS_H

#include <linux/types.h>

unsigned int percpu_ref_test_fail_nth(unsigned int n, bool deep);

/* Where it is held: before the word is read, before the counter is incremented or decremented. */
enum percpu_ref_test_place { READ_WORD, INCREMENT, DECREMENT };

/**
 * struct percpu_ref_test_calls - the calls of a function of the kernel's
 * @function: the name of the function
 * @from: the calls are those whose first or second argument is this, or lies in the @size bytes
 *	after it
 * @size: 0: any arguments
 * @in_callback: the calls are those of RCU callbacks, and else those of the threads of the tests,
 *	which have the name of the test module
 * @nth: which of these calls is held, from 1 on
 */
struct percpu_ref_test_calls {
	const char *function;
	unsigned long from;
	unsigned long size;
	bool in_callback;
	unsigned int nth;
};

/**
 * struct percpu_ref_test_window - holds what runs a function, in the middle of it
 * @open: puts a probe on the first instruction of that kind in @function. The first that comes to
 *	it is held there, in the context that it is in, with preemption and interrupts as they are;
 *	for ten seconds at most.
 * @open_call: holds one call of a function in the same way, at the beginning of the function.
 * @is_held: whether it is.
 * @close: lets it go, and takes the probe away. Sleeps.
 */
struct percpu_ref_test_window {
	int (*open)(void *function, enum percpu_ref_test_place place);
	int (*open_call)(const struct percpu_ref_test_calls *calls);
	bool (*is_held)(void);
	void (*close)(void);
};

extern const struct percpu_ref_test_window percpu_ref_test_window;

#endif /* _PERCPU_REF_TEST_FAULTS_H */

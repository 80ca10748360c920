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
 * struct percpu_ref_test_window - holds what runs a function, in the middle of it
 * @open: puts a probe on the first instruction of that kind in @function. The first that comes to
 *	it is held there, in the context that it is in, with preemption and interrupts as they are;
 *	for ten seconds at most.
 * @is_held: whether it is.
 * @close: lets it go, and takes the probe away. Sleeps.
 */
struct percpu_ref_test_window {
	int (*open)(void *function, enum percpu_ref_test_place place);
	bool (*is_held)(void);
	void (*close)(void);
};

extern const struct percpu_ref_test_window percpu_ref_test_window;

#endif /* _PERCPU_REF_TEST_FAULTS_H */

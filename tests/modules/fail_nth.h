/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What rust_percpu_ref_faults offers to the tests.
 */

#ifndef _PERCPU_REF_TEST_FAIL_NTH_H
#define _PERCPU_REF_TEST_FAIL_NTH_H

#include <linux/types.h>

unsigned int percpu_ref_test_fail_nth(unsigned int n, bool deep);

#endif /* _PERCPU_REF_TEST_FAIL_NTH_H */

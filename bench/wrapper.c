// SPDX-License-Identifier: GPL-2.0
/*
 * What a Rust abstraction of percpu_ref calls, as rust/helpers would have it: Rust cannot call what
 * is static inline. It is apart from peers.c since with more callers there the compiler may no
 * longer inline the same functions in the loops in C.
 */

#include <linux/percpu-refcount.h>

bool rust_percpu_ref_bench_helper_tryget(struct percpu_ref *ref)
{
	return percpu_ref_tryget(ref);
}

bool rust_percpu_ref_bench_helper_tryget_live(struct percpu_ref *ref)
{
	return percpu_ref_tryget_live(ref);
}

void rust_percpu_ref_bench_helper_get(struct percpu_ref *ref)
{
	percpu_ref_get(ref);
}

void rust_percpu_ref_bench_helper_put(struct percpu_ref *ref)
{
	percpu_ref_put(ref);
}

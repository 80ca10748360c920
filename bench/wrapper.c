// SPDX-License-Identifier: GPL-2.0
/*
 * The helpers of a Rust abstraction of percpu_ref, as in rust/helpers: Rust cannot call static
 * inline functions. They are not in peers.c, because with more callers in that file, the compiler
 * may no longer inline these functions into the loops in C.
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

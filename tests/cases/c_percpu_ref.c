// SPDX-License-Identifier: GPL-2.0
/*
 * The percpu_ref of C, which the tests compare with the Rust library.
 */

#include <linux/percpu-refcount.h>
#include <linux/slab.h>

struct c_percpu_ref {
	struct percpu_ref ref;
	atomic_t confirmed, switched, released;
};

static void released(struct percpu_ref *ref)
{
	atomic_inc(&container_of(ref, struct c_percpu_ref, ref)->released);
}

static void confirmed(struct percpu_ref *ref)
{
	atomic_inc(&container_of(ref, struct c_percpu_ref, ref)->confirmed);
}

static void switched(struct percpu_ref *ref)
{
	atomic_inc(&container_of(ref, struct c_percpu_ref, ref)->switched);
}

/* Allocates a percpu_ref. @start: 0 for per-CPU mode, 1 for atomic mode, 2 for a dead reference. */
struct c_percpu_ref *percpu_ref_test_c_new(unsigned int start)
{
	static const unsigned int flags[] = {
		PERCPU_REF_ALLOW_REINIT, PERCPU_REF_INIT_ATOMIC, PERCPU_REF_INIT_DEAD,
	};
	struct c_percpu_ref *c = kzalloc(sizeof(*c), GFP_KERNEL);

	if (c && percpu_ref_init(&c->ref, released, flags[start], GFP_KERNEL)) {
		kfree(c);
		return NULL;
	}
	return c;
}

void percpu_ref_test_c_free(struct c_percpu_ref *c)
{
	percpu_ref_exit(&c->ref);
	kfree(c);
}

/* Does the operation with the number @op, and returns its result, or 0 if it has none. */
unsigned long percpu_ref_test_c(struct c_percpu_ref *c, unsigned int op, unsigned long n)
{
	unsigned long result = 0;

	switch (op) {
	case 0:
		return percpu_ref_tryget(&c->ref);
	case 1:
		return percpu_ref_tryget_many(&c->ref, n);
	case 2:
		return percpu_ref_tryget_live(&c->ref);
	case 3:
		rcu_read_lock();
		result = percpu_ref_tryget_live_rcu(&c->ref);
		rcu_read_unlock();
		return result;
	case 4:
		percpu_ref_get(&c->ref);
		return 0;
	case 5:
		percpu_ref_get_many(&c->ref, n);
		return 0;
	case 6:
		percpu_ref_put(&c->ref);
		return 0;
	case 7:
		percpu_ref_put_many(&c->ref, n);
		return 0;
	case 8:
		percpu_ref_kill_and_confirm(&c->ref, confirmed);
		return 0;
	case 9:
		percpu_ref_switch_to_atomic(&c->ref, switched);
		return 0;
	case 10:
		percpu_ref_switch_to_percpu(&c->ref);
		return 0;
	case 11:
		percpu_ref_resurrect(&c->ref);
		return 0;
	case 12:
		percpu_ref_reinit(&c->ref);
		return 0;
	case 13:
		return percpu_ref_is_dying(&c->ref);
	case 14:
		return percpu_ref_is_zero(&c->ref);
	case 15:
		return atomic_read(&c->confirmed);
	case 16:
		return atomic_read(&c->switched);
	default:
		return atomic_read(&c->released);
	}
}

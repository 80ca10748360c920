// SPDX-License-Identifier: GPL-2.0
/*
 * The implementations in C that the benchmark compares with, compiled as in a driver in C. Each
 * function does one operation @n times. Also has functions that Rust cannot call directly, such as
 * get_cycles().
 */

#include <linux/delay.h>
#include <linux/irqflags.h>
#include <linux/percpu-refcount.h>
#include <linux/percpu.h>
#include <linux/printk.h>
#include <linux/rcupdate.h>
#include <linux/refcount.h>
#include <linux/slab.h>
#include <linux/timekeeping.h>
#include <linux/timex.h>

static DEFINE_PER_CPU(unsigned long, counter);

/* An object that is counted by a percpu_ref, and one that is counted by a refcount_t. */
struct c_object {
	struct percpu_ref ref;
	u64 payload[2];
};

struct c_shared {
	refcount_t ref;
	u64 payload[2];
};

/* An object that RCU readers find, and that is replaced as a whole. */
struct c_settings {
	struct rcu_head rcu;
	u64 payload[2];
};

static struct c_object object;
static struct c_object __rcu *place;
static struct c_settings __rcu *settings;
static struct c_shared shared;

/* The number of objects that are not released yet, and the time of the last release. */
static atomic_t left;
static u64 last;

static void released(struct percpu_ref *ref)
{
	WRITE_ONCE(last, ktime_get_ns());
	/* Pairs with the acquire in percpu_ref_bench_c_kill(). */
	(void)atomic_dec_return_release(&left);
}

/* The operations. */

static inline void c_empty(void)
{
	barrier();
}

static inline void this_cpu(void)
{
	this_cpu_inc(counter);
	this_cpu_dec(counter);
}

/* A counter behind a pointer, as pcpu_refcnt in struct net_device. */
static unsigned long __percpu *refcnt;

static inline void pcpu_refcnt(void)
{
	this_cpu_inc(*READ_ONCE(refcnt));
	this_cpu_dec(*READ_ONCE(refcnt));
}

static inline void rcu_lock_unlock(void)
{
	rcu_read_lock();
	rcu_read_unlock();
}

static inline void c_try_get_put(void)
{
	if (percpu_ref_tryget(&object.ref))
		percpu_ref_put(&object.ref);
}

static inline void c_try_get_live_put(void)
{
	if (percpu_ref_tryget_live(&object.ref))
		percpu_ref_put(&object.ref);
}

/* A lookup as in drivers. */
static inline void c_lookup_put(void)
{
	struct c_object *c;

	rcu_read_lock();
	c = rcu_dereference(place);
	if (c && !percpu_ref_tryget_live_rcu(&c->ref))
		c = NULL;
	rcu_read_unlock();
	if (c)
		percpu_ref_put(&c->ref);
}

/* There is only one writer, so there is no lock. */
static inline void c_replace_free(void)
{
	struct c_settings *c = kmalloc(sizeof(*c), GFP_KERNEL);

	if (!c)
		return;
	c->payload[0] = 7;
	c->payload[1] = 7;
	c = rcu_replace_pointer(settings, c, true);
	if (c)
		kfree_rcu(c, rcu);
}

static inline void c_get_put(void)
{
	percpu_ref_get(&object.ref);
	percpu_ref_put(&object.ref);
}

static inline void c_batch(void)
{
	if (percpu_ref_tryget_many(&object.ref, 32))
		percpu_ref_put_many(&object.ref, 32);
}

/* Does some work between a get and a put, in memory of the caller, such as a packet's header. */
noinline void percpu_ref_bench_work(void)
{
	u64 header[8];
	int i;

	for (i = 0; i < ARRAY_SIZE(header); i++)
		header[i] = i * 31;
	barrier_data(header);
}

static inline void c_get_work_put(void)
{
	bool got = percpu_ref_tryget(&object.ref);

	percpu_ref_bench_work();
	if (got)
		percpu_ref_put(&object.ref);
}

static inline void this_cpu_work(void)
{
	this_cpu_inc(counter);
	percpu_ref_bench_work();
	this_cpu_dec(counter);
}

/* A reference that was got on one CPU and will be put on another. */
static struct c_object *passed;

static inline void c_get_pass_put(void)
{
	struct c_object *found;

	if (!percpu_ref_tryget(&object.ref))
		return;
	found = xchg(&passed, &object);
	if (found)
		percpu_ref_put(&found->ref);
}

static inline void refcount_put(void)
{
	/* A put as in drivers. It is not the last put. */
	if (refcount_dec_and_test(&shared.ref))
		pr_err("put the last reference\n");
}

static inline void refcount_try_get_put(void)
{
	if (refcount_inc_not_zero(&shared.ref))
		refcount_put();
}

static inline void refcount_get_put(void)
{
	refcount_inc(&shared.ref);
	refcount_put();
}

static inline void refcount_get_work_put(void)
{
	bool got = refcount_inc_not_zero(&shared.ref);

	percpu_ref_bench_work();
	if (got)
		refcount_put();
}

static struct c_shared *passed_shared;

static inline void refcount_get_pass_put(void)
{
	if (refcount_inc_not_zero(&shared.ref) && xchg(&passed_shared, &shared))
		refcount_put();
}

struct c_object *percpu_ref_bench_c_new(void)
{
	struct c_object *c = kzalloc(sizeof(*c), GFP_KERNEL);

	if (c && percpu_ref_init(&c->ref, released, 0, GFP_KERNEL)) {
		kfree(c);
		return NULL;
	}
	return c;
}

void percpu_ref_bench_c_free(struct c_object *c)
{
	percpu_ref_exit(&c->ref);
	kfree(c);
}

static inline void c_init_free(void)
{
	struct c_object *c = percpu_ref_bench_c_new();

	if (c)
		percpu_ref_bench_c_free(c);
}

static inline void refcount_init_free(void)
{
	struct c_shared *c = kmalloc(sizeof(*c), GFP_KERNEL);

	if (!c)
		return;
	refcount_set(&c->ref, 1);
	if (refcount_dec_and_test(&c->ref))
		kfree(c);
}

/* The loops, which do an operation @n times. */

#define LOOP(once)								\
noinline void percpu_ref_bench_##once(const void *unused, unsigned long n)	\
{										\
	while (n--) {								\
		once();								\
		OPTIMIZER_HIDE_VAR(n); /* Prevents unrolling of the loop. */	\
	}									\
}

LOOP(c_empty)
LOOP(this_cpu)
LOOP(pcpu_refcnt)
LOOP(rcu_lock_unlock)
LOOP(c_try_get_put)
LOOP(c_try_get_live_put)
LOOP(c_lookup_put)
LOOP(c_replace_free)
LOOP(c_get_put)
LOOP(c_batch)
LOOP(c_get_work_put)
LOOP(c_get_pass_put)
LOOP(refcount_get_work_put)
LOOP(refcount_get_pass_put)
LOOP(this_cpu_work)
LOOP(refcount_try_get_put)
LOOP(refcount_get_put)
LOOP(c_init_free)
LOOP(refcount_init_free)

/* Kills @n objects, and returns the nanoseconds until all are released. */
u64 percpu_ref_bench_c_kill(struct c_object **objects, unsigned int n)
{
	unsigned int i;
	u64 start;

	atomic_set(&left, n);
	start = ktime_get_ns();
	for (i = 0; i < n; i++)
		percpu_ref_kill(&objects[i]->ref);
	while (atomic_read_acquire(&left))
		usleep_range(100, 200);
	return READ_ONCE(last) - start;
}

int percpu_ref_bench_init(void)
{
	refcnt = alloc_percpu(unsigned long);
	if (!refcnt)
		return -ENOMEM;
	refcount_set(&shared.ref, 1);
	RCU_INIT_POINTER(place, &object);
	return percpu_ref_init(&object.ref, released, 0, GFP_KERNEL);
}

void percpu_ref_bench_exit(void)
{
	kfree(rcu_replace_pointer(settings, NULL, true));
	free_percpu(refcnt);
	passed = NULL;
	passed_shared = NULL;
	percpu_ref_exit(&object.ref);
}

/* Executes @n times a thousand instructions. */
void percpu_ref_bench_nops(const void *unused, unsigned long n)
{
#if defined(CONFIG_X86_64)
	asm volatile("1: .rept 998; nop; .endr; decq %0; jnz 1b" : "+r" (n) : : "cc");
#elif defined(CONFIG_ARM64)
	asm volatile("1: .rept 998; nop; .endr; subs %0, %0, #1; b.ne 1b" : "+r" (n) : : "cc");
#endif
}

/* Returns the cycles that @run takes by get_cycles(), with interrupts disabled. */
u64 percpu_ref_bench_cycles(void (*run)(const void *arg, unsigned long n), const void *arg,
			    unsigned long n)
{
	unsigned long flags;
	u64 cycles;

	local_irq_save(flags);
	cycles = get_cycles();
	run(arg, n);
	cycles = get_cycles() - cycles;
	local_irq_restore(flags);
	return cycles;
}

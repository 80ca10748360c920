// SPDX-License-Identifier: GPL-2.0
/*
 * Runs the loops of the benchmark on this CPU, in user space. The machine code of the loops, and of
 * the kernel's functions that they call, was compiled for the kernel. scripts/silicon links it.
 *
 * The code uses %gs as in the kernel: each thread has its own base of %gs, and so its own per-CPU
 * variables. The allocators are those of the C library, so no loop that allocates is measured.
 * Calls of ftrace are patched away, as in a kernel that does not trace. Returns are plain, as on a
 * CPU that needs no mitigation, or with "safe", those of a kernel that protects AMD's Zen 1 to 4
 * from SRSO; see arch/x86/lib/retpoline.S.
 */

#define _GNU_SOURCE
#include <asm/prctl.h>
#include <pthread.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "silicon.h"

#define MOST_CPUS 64
#define ROUNDS 101
#define TIMES 100000

static void fail(const char *what)
{
	fprintf(stderr, "error: %s\n", what);
	exit(1);
}

/* Is called by the stubs of all functions that the objects refer to and that are not here. */
void silicon_unexpected(const char *name)
{
	fprintf(stderr, "error: %s() was called, which only a kernel has\n", name);
	exit(1);
}

/*
 * The kernel's per-CPU variables, and memory for per-CPU allocations. With this preemption count,
 * preempt_enable() never reschedules.
 */
asm(".pushsection .data..percpu, \"aw\"\n"
	".balign 64\n"
	"__preempt_count: .globl __preempt_count\n"
	"	.quad 0x8000000000000005\n"
	"this_cpu_off: .globl this_cpu_off\n"
	"	.quad 0\n"
	"const_current_task: .globl const_current_task\n"
	"	.quad 0\n"
	"__ref_stack_chk_guard: .globl __ref_stack_chk_guard\n"
	"	.quad 1\n"
	".balign 64\n"
	"dynamic: .skip 1 << 20\n"
	"dynamic_end:\n"
	".popsection\n");

unsigned long __per_cpu_offset[MOST_CPUS];
unsigned long __cpu_possible_mask[128], __cpu_online_mask[128];
unsigned int nr_cpu_ids;
void *kmalloc_caches[1024], *random_kmalloc_seed[8], *system_dfl_wq, *__this_module[512];

/* Replaces the kernel's allocators. */
static void *allocate(size_t size)
{
	void *memory = NULL;

	if (posix_memalign(&memory, 64, size))
		fail("no memory");
	return memset(memory, 0, size);
}

void *krealloc_node_align_noprof(const void *old, size_t size)
{
	return size ? allocate(size) : NULL;
}

void *kvrealloc_node_align_noprof(const void *old, size_t size)
{
	return size ? allocate(size) : NULL;
}

void *__kmalloc_cache_noprof(void *cache, unsigned int flags, size_t size)
{
	return allocate(size);
}

void *pcpu_alloc_noprof(size_t size, size_t align)
{
	static size_t used;

	used = (used + align - 1) & -align;
	if (dynamic + used + size > dynamic_end)
		fail("no per-CPU memory");
	used += size;
	return dynamic + used - size;
}

void kfree(void *memory)
{
}

void free_percpu(void *memory)
{
}

unsigned long _raw_spin_lock_irqsave(void *lock)
{
	return 0;
}

void _raw_spin_unlock_irqrestore(void *lock, unsigned long flags)
{
}

asm(".text\n"
	"__fentry__: .globl __fentry__\n"
	"__x86_return_thunk: .globl __x86_return_thunk\n"
	"	ret\n"
	"	int3\n"
	"	.balign 64\n"
	"safe_return:\n"
	"	call 2f\n"
	"	int3\n"
	"2:	lea 8(%rsp), %rsp\n"
	"	ret\n"
	"	int3\n"
	"	.balign 64\n"
	"__x86_indirect_thunk_rax: .globl __x86_indirect_thunk_rax\n"
	"	jmp *%rax\n"
	"__x86_indirect_thunk_rcx: .globl __x86_indirect_thunk_rcx\n"
	"	jmp *%rcx\n"
	"__x86_indirect_thunk_r11: .globl __x86_indirect_thunk_r11\n"
	"	jmp *%r11\n");

/* Patches the code that the kernel patches when it boots or loads a module. */
static void patch(bool safe)
{
	static const char nop[5] = { 0x0f, 0x1f, 0x44, 0x00, 0x00 };
	char *start = (char *)((unsigned long)__executable_start & -4096L);
	unsigned long *call;
	int *site;

	if (mprotect(start, etext - start, PROT_READ | PROT_WRITE | PROT_EXEC))
		fail("the code cannot be made writable");
	for (site = return_sites; site < return_sites_end; site++) {
		char *code = (char *)site + *site;

		/* There may be no jump to the thunk at this place any more. */
		if (*code != (char)0xe9)
			continue;
		if (safe) {
			int to = safe_return - (code + 5);

			memcpy(code + 1, &to, 4);
		} else {
			memset(code, 0xcc, 5);
			*code = 0xc3;
		}
	}
	/* Some of the places have an endbr64 instead of the call. */
	for (call = mcount_loc; call < mcount_loc_end; call++)
		if (*(char *)*call == (char)0xe8)
			memcpy((char *)*call, nop, sizeof(nop));
}

/* Makes the per-CPU variables of the CPU with the number @cpu, for this thread. */
static void be_cpu(unsigned int cpu)
{
	static const unsigned long distance = 1UL << 40;
	size_t size = percpu_end - percpu_start;
	unsigned long offset = distance * (cpu + 1);
	char *copy = percpu_start + offset;

	if (mmap(copy, size, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == MAP_FAILED)
		fail("no memory for per-CPU variables");
	memcpy(copy, percpu_start, size);
	__per_cpu_offset[cpu] = offset;
	*(unsigned long *)((char *)&this_cpu_off + offset) = offset;
	*(void **)((char *)&const_current_task + offset) = allocate(16384);
	/* The task is in a read-side critical section, so each further section is nested. */
	memset(*(void **)((char *)&const_current_task + offset), 1, 16384);
	if (syscall(SYS_arch_prctl, ARCH_SET_GS, offset))
		fail("cannot set the base of %gs");
}

static const void *subjects;
static struct loop loops[32];
static size_t count;
static unsigned int threads;
static double times[32][ROUNDS];
static unsigned int arrived;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int cpus[MOST_CPUS];

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC_RAW, &ts);
	return ts.tv_sec * 1e9 + ts.tv_nsec;
}

static void stay_on(unsigned int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpus[cpu], &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		fail("cannot stay on a CPU");
}

/* Runs the loops in turns on one thread. The order is reversed in every second round. */
static void *run(void *cpu)
{
	unsigned long number = (unsigned long)cpu;
	unsigned int started = 0;
	size_t round, turn;

	stay_on(number);
	if (number)
		be_cpu(number);
	for (round = 0; round < ROUNDS; round++) {
		for (turn = 0; turn < count; turn++) {
			size_t i = round % 2 ? count - 1 - turn : turn;
			double start;

			/* No thread begins before all have arrived. */
			started += threads;
			__atomic_fetch_add(&arrived, 1, __ATOMIC_ACQ_REL);
			while (__atomic_load_n(&arrived, __ATOMIC_ACQUIRE) < started)
				;
			start = now();
			loops[i].run(subjects, TIMES);
			start = (now() - start) / TIMES;
			pthread_mutex_lock(&lock);
			times[i][round] += start;
			pthread_mutex_unlock(&lock);
		}
	}
	if (number)
		munmap(percpu_start + __per_cpu_offset[number], percpu_end - percpu_start);
	return NULL;
}

static int compare(const void *a, const void *b)
{
	double x = *(double *)a, y = *(double *)b;

	return (x > y) - (x < y);
}

static void measure(unsigned int n, const char *returns)
{
	pthread_t others[MOST_CPUS];
	double empty[2];
	unsigned long cpu;
	size_t i;

	memset(times, 0, sizeof(times));
	threads = n;
	arrived = 0;
	for (cpu = 1; cpu < n; cpu++)
		if (pthread_create(&others[cpu], NULL, run, (void *)cpu))
			fail("cannot create a thread");
	run(NULL);
	for (cpu = 1; cpu < n; cpu++)
		pthread_join(others[cpu], NULL);

	for (i = 0; i < count; i++) {
		struct loop *loop = &loops[i];
		double *t = times[i], less;

		qsort(t, ROUNDS, sizeof(*t), compare);
		if (i < 2)
			empty[i] = t[ROUNDS / 2] / n;
		less = i < 2 ? 0 : empty[loop->empty];
		if (i == 1)
			continue;
		printf("result op=%s impl=%s cpus=%u returns=%s", loop->op, loop->impl, n, returns);
		printf(" min=%.0f p50=%.0f p95=%.0f rounds=%d\n", (t[0] / n - less) * 1000,
		       (t[ROUNDS / 2] / n - less) * 1000, (t[ROUNDS * 95 / 100] / n - less) * 1000,
		       ROUNDS);
	}
}

int main(int argc, char **argv)
{
	bool safe = argc > 1 && !strcmp(argv[1], "safe");
	cpu_set_t set;
	size_t op;
	int cpu;

	if (sched_getaffinity(0, sizeof(set), &set))
		fail("cannot tell the CPUs");
	for (cpu = 0; cpu < CPU_SETSIZE && nr_cpu_ids < MOST_CPUS; cpu++)
		if (CPU_ISSET(cpu, &set))
			cpus[nr_cpu_ids++] = cpu;
	for (cpu = 0; cpu < (int)nr_cpu_ids; cpu++)
		__cpu_possible_mask[0] |= 1UL << cpu;
	patch(safe);
	stay_on(0);
	be_cpu(0);
	subjects = rust_percpu_ref_bench_silicon();
	if (!subjects)
		fail("cannot make what the loops use");
	for (op = 0;; op++) {
		unsigned int n;

		for (count = 0; rust_percpu_ref_bench_silicon_loop(op, count, &loops[count]);)
			count++;
		if (!count)
			return 0;
		for (n = 1; n <= nr_cpu_ids; n *= 2)
			measure(n, safe ? "safe" : "plain");
	}
}

/* SPDX-License-Identifier: Apache-2.0 */
/* cpu.c: the CPU device: a pool of workers over two queues of jobs.
 *
 * It has items run (kernels/item.c) and asks how long one takes (kernels/cost.c), and does not know
 * what an item means.
 *
 *   submit ── small? ── run here ──────────────────────────────┐
 *      │                                                       ▼
 *      └─► queue urgent ─┐            claim a few items      done ──► reap
 *          queue other  ─┴─► workers ─────────────────────►    └─ eventfd
 *
 * All workers work on the oldest urgent job, else on the oldest other one, of which an item is due every
 * OTHER_NS all the same, so that sealing never stops. Each claims a few items at a time, few enough that
 * an urgent job waits for CLAIM_NS at most, or for one item. A job is on its queue while it has unclaimed
 * items, then on no list until the last item is done, then on `done`.
 *
 * Invariants, besides device.h's D1 to D4:
 *   C1  `lock` is held wherever queues, `done`, `asleep`, `quit` or the counters of a queued job are
 *       touched. No operation runs under it.
 *   C2  The eventfd is readable if and only if `done` is not empty (under the lock).
 *   C3  `waiting` and `finished` are the numbers of jobs on the queues and on `done`; they change under
 *       the lock and are atomic so that a spinning worker and an empty reap can look without it.
 *   C4  `jobs`, the number not reaped, belongs to the owner's thread.
 *   C5  `urgent` is the number of urgent jobs on the queue or running; as C3.
 *
 * Threads: an idle worker spins spin_us, then sleeps on `wake`. Submit wakes as many sleepers as the
 * job has items. Workers take no signals. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/clock.h"
#include "kernels/cpu.h"

#define CLAIM_NS       50000u /* of work claimed at once at most, unless a single item is longer */
#define HELP_MANY_NS   20000u /* of small items that the owner takes at once */
#define OTHER_NS       100000000u /* no longer without an item of a job that is not urgent */
#define SPINS_PER_LOOK 64u        /* pauses between two looks at the clock */

enum { QUEUE_URGENT, QUEUE_OTHER, QUEUE_COUNT };

struct worker {
	struct cpu *cpu;
	pthread_t thread;
	struct kvr_span scratch;
};

struct cpu {
	struct kvr_device device;            /* first: the device is this */
	struct kvr_device_cpu_config config; /* isa and threads resolved */
	bool spare;                          /* there are more CPUs than workers */
	char name[48];
	int event_fd;
	uint32_t started; /* workers that run */
	uint32_t jobs;    /* C4 */
	struct worker worker[KVR_THREADS_MAX];
	struct kvr_span scratch; /* of jobs that run inside submit */

	pthread_mutex_t lock; /* C1 */
	pthread_cond_t wake;
	struct kvr_list queue[QUEUE_COUNT];
	struct kvr_list done;
	uint64_t other_ns; /* when the other queue was served last, or began to wait */
	uint32_t asleep;
	bool quit;
	_Atomic uint32_t waiting; /* C3 */
	_Atomic uint32_t finished;
	_Atomic uint32_t urgent; /* C5 */
};

/* Items of a job that one thread runs: first .. first + count - 1. */
struct claim {
	struct kvr_job *job;
	uint32_t first;
	uint32_t count;
};

/* ---- items ----------------------------------------------------------------------------------- */

static void run_claim(const struct claim *claim, enum kvr_isa isa, struct kvr_span scratch)
{
	for (uint32_t i = 0; i < claim->count; i++)
		kvr_cpu_run(claim->job, claim->first + i, isa, scratch);
}

/* ---- jobs, under the lock -------------------------------------------------------------------- */

/* Items of a queued job are claimed; with the last one it leaves its queue. */
static void advance(struct cpu *cpu, struct kvr_job *job, uint32_t count)
{
	job->item_next += count;
	KVR_ASSERT(job->item_next <= job->item_count);
	if (job->item_next == job->item_count) {
		kvr_list_remove(&job->link);
		atomic_fetch_sub(&cpu->waiting, 1);
	}
}

/* The queue whose turn it is. */
static struct kvr_list *next_queue(struct cpu *cpu)
{
	const bool urgent = !kvr_list_empty(&cpu->queue[QUEUE_URGENT]);
	const uint64_t now = kvr_list_empty(&cpu->queue[QUEUE_OTHER]) ? 0 : kvr_clock_ns();

	if (now == 0 || (urgent && now - cpu->other_ns < OTHER_NS))
		return &cpu->queue[QUEUE_URGENT];
	cpu->other_ns = now;
	return &cpu->queue[QUEUE_OTHER];
}

/* Takes some items of the next job: a share of what is left, so that workers end together, and not
 * more than CLAIM_NS. Returns whether there were any. */
static bool claim_items(struct cpu *cpu, struct claim *ret_claim)
{
	struct kvr_list *queue = next_queue(cpu);
	struct kvr_job *job;
	uint32_t share, left;
	uint64_t fit;

	if (kvr_list_empty(queue))
		return false;
	job = KVR_CONTAINER_OF(queue->next, struct kvr_job, link);
	KVR_ASSERT(job->item_next < job->item_count);
	left = job->item_count - job->item_next;
	share = left / (4 * cpu->config.threads);
	fit = CLAIM_NS / kvr_cpu_cost_ns(job, job->item_next);
	share = share < fit ? share : (uint32_t)fit;
	*ret_claim = (struct claim){job, job->item_next, share > 0 ? share : 1};
	advance(cpu, job, ret_claim->count);
	return true;
}

/* Counts items as done; with the last one the job is. */
static void finish_items(struct cpu *cpu, const struct claim *claim)
{
	struct kvr_job *job = claim->job;
	const uint64_t one = 1;
	ssize_t written;

	job->item_done += claim->count;
	KVR_ASSERT(job->item_done <= job->item_count);
	if (job->item_done < job->item_count)
		return;
	job->status = kvr_cpu_status(job);
	if (kvr_list_empty(&cpu->done)) {
		written = write(cpu->event_fd, &one, sizeof(one)); /* C2 */
		KVR_ASSERT(written == (ssize_t)sizeof(one));
	}
	kvr_list_push(&cpu->done, &job->link);
	atomic_fetch_add(&cpu->finished, 1);
	if (job->urgent)
		atomic_fetch_sub(&cpu->urgent, 1);
}

/* ---- workers --------------------------------------------------------------------------------- */

/* Waits, without sleeping, for a number to be more than 0. Returns whether it is. */
static bool spin(const struct cpu *cpu, const _Atomic uint32_t *number)
{
	uint64_t until;

	if (cpu->config.spin_us == 0)
		return false;
	until = kvr_clock_ns() + cpu->config.spin_us * 1000ull;
	do {
		for (uint32_t i = 0; i < SPINS_PER_LOOK; i++) {
			if (atomic_load_explicit(number, memory_order_relaxed) > 0)
				return true;
			__builtin_ia32_pause();
		}
	} while (kvr_clock_ns() < until);
	return false;
}

static void *work(void *argument)
{
	struct worker *worker = argument;
	struct cpu *cpu = worker->cpu;
	struct claim claim;
	bool seen;

	pthread_mutex_lock(&cpu->lock);
	while (!cpu->quit) {
		if (claim_items(cpu, &claim)) {
			pthread_mutex_unlock(&cpu->lock);
			run_claim(&claim, cpu->config.isa, worker->scratch);
			pthread_mutex_lock(&cpu->lock);
			finish_items(cpu, &claim);
			continue;
		}
		pthread_mutex_unlock(&cpu->lock);
		seen = spin(cpu, &cpu->waiting);
		pthread_mutex_lock(&cpu->lock);
		if (!seen && !cpu->quit && atomic_load(&cpu->waiting) == 0) {
			cpu->asleep++;
			pthread_cond_wait(&cpu->wake, &cpu->lock);
			cpu->asleep--;
		}
	}
	pthread_mutex_unlock(&cpu->lock);
	return NULL;
}

/* Threads inherit the mask: signals are for the threads that wait for them. */
static int start_worker(struct cpu *cpu, uint32_t index)
{
	struct worker *worker = &cpu->worker[index];
	sigset_t all, before;
	char name[16];
	int error;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	error = pthread_create(&worker->thread, NULL, work, worker);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (error != 0)
		return -error;
	cpu->started++;
	snprintf(name, sizeof(name), "kvr-cpu-%u", index);
	pthread_setname_np(worker->thread, name);
	return 0;
}

/* ---- the device's table ---------------------------------------------------------------------- */

/* Whether a job takes inline_item_us at most. Adds up no further than that. */
static bool is_small(const struct cpu *cpu, const struct kvr_job *job)
{
	const uint64_t limit = cpu->config.inline_item_us * 1000ull;
	uint64_t ns = 0;

	for (uint32_t i = 0; i < job->item_count && ns <= limit; i++)
		ns += kvr_cpu_cost_ns(job, i);
	return ns <= limit;
}

static int cpu_submit(struct kvr_device *device, struct kvr_job *job)
{
	struct cpu *cpu = (struct cpu *)device;
	const struct claim whole = {job, 0, job->item_count};
	uint32_t wake;

	if (cpu->jobs == KVR_DEVICE_JOBS_MAX)
		return -EAGAIN;
	cpu->jobs++;
	job->status = 0;
	job->item_next = 0;
	job->item_done = 0;
	if (job->urgent)
		atomic_fetch_add(&cpu->urgent, 1);
	if (is_small(cpu, job)) {
		run_claim(&whole, cpu->config.isa, cpu->scratch);
		pthread_mutex_lock(&cpu->lock);
		finish_items(cpu, &whole);
		pthread_mutex_unlock(&cpu->lock);
		return 0;
	}
	pthread_mutex_lock(&cpu->lock);
	if (!job->urgent && kvr_list_empty(&cpu->queue[QUEUE_OTHER]))
		cpu->other_ns = kvr_clock_ns();
	kvr_list_push(&cpu->queue[job->urgent ? QUEUE_URGENT : QUEUE_OTHER], &job->link);
	atomic_fetch_add(&cpu->waiting, 1);
	wake = cpu->asleep < job->item_count ? cpu->asleep : job->item_count;
	pthread_mutex_unlock(&cpu->lock);
	for (; wake > 0; wake--) /* who falls asleep now has seen the job */
		pthread_cond_signal(&cpu->wake);
	return 0;
}

static uint32_t cpu_reap(struct kvr_device *device, struct kvr_job **ret_jobs, uint32_t max)
{
	struct cpu *cpu = (struct cpu *)device;
	uint32_t count = 0;
	uint64_t ticks;
	ssize_t got;

	if (atomic_load(&cpu->finished) == 0 || max == 0)
		return 0;
	pthread_mutex_lock(&cpu->lock);
	while (count < max && !kvr_list_empty(&cpu->done))
		ret_jobs[count++] =
			KVR_CONTAINER_OF(kvr_list_pop(&cpu->done), struct kvr_job, link);
	atomic_fetch_sub(&cpu->finished, count);
	if (kvr_list_empty(&cpu->done)) {
		got = read(cpu->event_fd, &ticks, sizeof(ticks)); /* C2 */
		KVR_ASSERT(got == (ssize_t)sizeof(ticks));
	}
	pthread_mutex_unlock(&cpu->lock);
	KVR_ASSERT(count <= cpu->jobs);
	cpu->jobs -= count;
	return count;
}

/* The last items of an urgent job are with the workers: they take less than it would to sleep and to
 * be woken. Where no CPU is left for it, the owner had better sleep. */
static bool await(const struct cpu *cpu)
{
	if (!cpu->spare || atomic_load_explicit(&cpu->urgent, memory_order_relaxed) == 0)
		return false;
	return spin(cpu, &cpu->finished);
}

static bool cpu_help(struct kvr_device *device)
{
	struct cpu *cpu = (struct cpu *)device;
	struct kvr_list *queue = &cpu->queue[QUEUE_URGENT];
	const uint64_t limit_ns = KVR_DEVICE_HELP_US * 1000ull / cpu->config.threads;
	struct claim claim = {NULL, 0, 1};
	struct kvr_job *job;
	uint64_t cost_ns;

	if (atomic_load_explicit(&cpu->waiting, memory_order_relaxed) == 0)
		return await(cpu);
	pthread_mutex_lock(&cpu->lock);
	if (!kvr_list_empty(queue)) {
		job = KVR_CONTAINER_OF(queue->next, struct kvr_job, link);
		cost_ns = kvr_cpu_cost_ns(job, job->item_next);
		if (cost_ns <= limit_ns) {
			claim.job = job;
			claim.first = job->item_next;
			while (claim.first + claim.count < job->item_count &&
				(cost_ns += kvr_cpu_cost_ns(job, claim.first + claim.count)) <=
					HELP_MANY_NS)
				claim.count++;
			advance(cpu, job, claim.count);
		}
	}
	pthread_mutex_unlock(&cpu->lock);
	if (!claim.job)
		return await(cpu);
	run_claim(&claim, cpu->config.isa, cpu->scratch);
	pthread_mutex_lock(&cpu->lock);
	finish_items(cpu, &claim);
	pthread_mutex_unlock(&cpu->lock);
	return true;
}

static int cpu_fd(const struct kvr_device *device)
{
	return ((const struct cpu *)device)->event_fd;
}

static const char *cpu_name(const struct kvr_device *device)
{
	return ((const struct cpu *)device)->name;
}

static void unmap(struct kvr_span span)
{
	if (span.data)
		munmap(span.data, span.bytes);
}

/* Also ends a device that is half built. */
static void cpu_close(struct kvr_device *device)
{
	struct cpu *cpu = (struct cpu *)device;

	KVR_ASSERT(cpu->jobs == 0);
	pthread_mutex_lock(&cpu->lock);
	cpu->quit = true;
	pthread_cond_broadcast(&cpu->wake);
	pthread_mutex_unlock(&cpu->lock);
	for (uint32_t i = 0; i < cpu->started; i++)
		pthread_join(cpu->worker[i].thread, NULL);
	for (uint32_t i = 0; i < KVR_THREADS_MAX; i++)
		unmap(cpu->worker[i].scratch);
	unmap(cpu->scratch);
	if (cpu->event_fd >= 0)
		close(cpu->event_fd);
	pthread_cond_destroy(&cpu->wake);
	pthread_mutex_destroy(&cpu->lock);
	free(cpu);
}

static const struct kvr_device_ops cpu_ops = {
	cpu_submit, cpu_reap, cpu_help, cpu_fd, cpu_name, cpu_close};

/* ---- open ------------------------------------------------------------------------------------ */

static bool has_isa(enum kvr_isa isa)
{
	const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");

	if (isa == KVR_ISA_AVX512)
		return avx2 && __builtin_cpu_supports("avx512f") &&
		       __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
		       __builtin_cpu_supports("avx512vl");
	return isa == KVR_ISA_AVX2 ? avx2 : isa == KVR_ISA_PLAIN;
}

static enum kvr_isa best_isa(void)
{
	if (has_isa(KVR_ISA_AVX512))
		return KVR_ISA_AVX512;
	return has_isa(KVR_ISA_AVX2) ? KVR_ISA_AVX2 : KVR_ISA_PLAIN;
}

/* One worker per CPU but one: the owner's thread helps. */
static uint32_t default_threads(long cpus)
{
	if (cpus < 2)
		return 1;
	return cpus <= (long)KVR_THREADS_MAX ? (uint32_t)cpus - 1 : KVR_THREADS_MAX;
}

/* Address space for the operation that needs most of it; pages come when they are touched. (P2) */
static int map_scratch(struct kvr_span *ret_scratch)
{
	const size_t needs[4] = {kvr_cpu_cluster_scratch(), kvr_cpu_merge_scratch(),
		kvr_cpu_recall_scratch(), kvr_cpu_attend_scratch()};
	size_t bytes = 1;
	void *data;

	for (int i = 0; i < 4; i++)
		bytes = needs[i] > bytes ? needs[i] : bytes;
	data = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
		MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (data == MAP_FAILED)
		return -ENOMEM;
	*ret_scratch = (struct kvr_span){data, bytes};
	return 0;
}

int kvr_device_open_cpu(const struct kvr_device_cpu_config *config, struct kvr_device **ret_device)
{
	static const char *const isa_names[] = {"", "plain", "avx2", "avx512"};
	const long cpus = sysconf(_SC_NPROCESSORS_ONLN);
	struct cpu *cpu;
	int r;

	KVR_ASSERT(config->threads <= KVR_THREADS_MAX);
	KVR_ASSERT(config->isa <= KVR_ISA_AVX512);
	if (config->isa != KVR_ISA_BEST && !has_isa(config->isa))
		return -ENOTSUP;
	cpu = calloc(1, sizeof(*cpu));
	if (!cpu)
		return -ENOMEM;
	cpu->device.ops = &cpu_ops;
	cpu->config = *config;
	if (config->isa == KVR_ISA_BEST)
		cpu->config.isa = best_isa();
	if (config->threads == 0)
		cpu->config.threads = default_threads(cpus);
	cpu->spare = cpus > (long)cpu->config.threads;
	snprintf(cpu->name, sizeof(cpu->name), "cpu, %u thread%s, %s", cpu->config.threads,
		cpu->config.threads == 1 ? "" : "s", isa_names[cpu->config.isa]);
	pthread_mutex_init(&cpu->lock, NULL);
	pthread_cond_init(&cpu->wake, NULL);
	kvr_list_init(&cpu->queue[QUEUE_URGENT]);
	kvr_list_init(&cpu->queue[QUEUE_OTHER]);
	kvr_list_init(&cpu->done);
	cpu->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	r = cpu->event_fd < 0 ? -errno : map_scratch(&cpu->scratch);
	if (r < 0)
		goto fail;
	for (uint32_t i = 0; i < cpu->config.threads; i++) {
		cpu->worker[i].cpu = cpu;
		r = map_scratch(&cpu->worker[i].scratch);
		if (r == 0)
			r = start_worker(cpu, i);
		if (r < 0)
			goto fail;
	}
	*ret_device = &cpu->device;
	return 0;
fail:
	cpu_close(&cpu->device);
	return r;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* copy_util.c: see copy_util.h.
 *
 *   asleep ──round──► awake; the last one starts the clock ──go──► batches from one counter
 *     ▲                                                                        │
 *     └──────────── the last one stops the clock and wakes the caller ◄────────┘
 *
 * The fields of a round are written before `round` moves, under the lock, and read after it was seen. */
#include "bench/copy_util.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "bench/bench_util.h"

#define THREADS_MAX 64u

struct bench_copier {
	pthread_t thread[THREADS_MAX];
	uint32_t threads, started;
	pthread_mutex_t lock;
	pthread_cond_t wake, done;
	uint32_t round, rounds_done; /* under the lock */
	bool quit;
	const struct bench_batch *batches;
	uint32_t count;
	uint64_t start_ns, end_ns;
	_Atomic uint32_t awake, go, next, ended;
};

/* Waits for a round to begin, together with the others. Returns false at the end. */
static bool begin(struct bench_copier *copier, uint32_t round)
{
	bool quit;

	pthread_mutex_lock(&copier->lock);
	while (copier->round < round)
		pthread_cond_wait(&copier->wake, &copier->lock);
	quit = copier->quit;
	pthread_mutex_unlock(&copier->lock);
	if (quit)
		return false;
	if (atomic_fetch_add(&copier->awake, 1) + 1 == copier->threads) {
		copier->start_ns = kvr_clock_ns();
		atomic_store(&copier->go, round);
	}
	while (atomic_load(&copier->go) < round)
		__builtin_ia32_pause();
	return true;
}

static void *work(void *argument)
{
	struct bench_copier *copier = argument;
	uint32_t at;

	for (uint32_t round = 1; begin(copier, round); round++) {
		while ((at = atomic_fetch_add(&copier->next, 1)) < copier->count) {
			const struct bench_batch *batch = &copier->batches[at];

			for (uint32_t i = 0; i < batch->count; i++)
				memcpy(batch->copies[i].to, batch->copies[i].from,
					batch->copies[i].bytes);
		}
		if (atomic_fetch_add(&copier->ended, 1) + 1 < copier->threads)
			continue;
		copier->end_ns = kvr_clock_ns();
		pthread_mutex_lock(&copier->lock);
		copier->rounds_done = round;
		pthread_cond_signal(&copier->done);
		pthread_mutex_unlock(&copier->lock);
	}
	return NULL;
}

/* Each on a CPU of its own: two that wait for each other on one CPU would measure the scheduler. */
static void start(struct bench_copier *copier, uint32_t cpu)
{
	pthread_t *thread = &copier->thread[copier->started];
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (pthread_create(thread, NULL, work, copier) != 0)
		bench_fail("no thread to copy with");
	pthread_setaffinity_np(*thread, sizeof(set), &set);
	copier->started++;
}

struct bench_copier *bench_copier_open(uint32_t threads)
{
	struct bench_copier *copier = calloc(1, sizeof(*copier));
	cpu_set_t allowed;

	if (!copier || threads < 1 || threads > THREADS_MAX ||
		sched_getaffinity(0, sizeof(allowed), &allowed) != 0)
		bench_fail("%u threads to copy with", threads);
	copier->threads = threads;
	pthread_mutex_init(&copier->lock, NULL);
	pthread_cond_init(&copier->wake, NULL);
	pthread_cond_init(&copier->done, NULL);
	for (uint32_t cpu = 0; cpu < CPU_SETSIZE && copier->started < threads; cpu++) {
		if (CPU_ISSET(cpu, &allowed))
			start(copier, cpu);
	}
	if (copier->started < threads)
		bench_fail("fewer CPUs than %u threads to copy with", threads);
	return copier;
}

double bench_copy(struct bench_copier *copier, const struct bench_batch *batches, uint32_t count)
{
	pthread_mutex_lock(&copier->lock);
	copier->batches = batches;
	copier->count = count;
	atomic_store(&copier->awake, 0);
	atomic_store(&copier->next, 0);
	atomic_store(&copier->ended, 0);
	copier->round++;
	pthread_cond_broadcast(&copier->wake);
	while (copier->rounds_done < copier->round)
		pthread_cond_wait(&copier->done, &copier->lock);
	pthread_mutex_unlock(&copier->lock);
	return (double)(copier->end_ns - copier->start_ns) / 1000;
}

struct bench_copier *bench_copier_close(struct bench_copier *copier)
{
	pthread_mutex_lock(&copier->lock);
	copier->quit = true;
	copier->round++;
	pthread_cond_broadcast(&copier->wake);
	pthread_mutex_unlock(&copier->lock);
	for (uint32_t i = 0; i < copier->started; i++)
		pthread_join(copier->thread[i], NULL);
	pthread_cond_destroy(&copier->wake);
	pthread_cond_destroy(&copier->done);
	pthread_mutex_destroy(&copier->lock);
	free(copier);
	return NULL;
}

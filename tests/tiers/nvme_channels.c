/* SPDX-License-Identifier: Apache-2.0 */
/* nvme_channels.c: several threads, each with its channel to one file.
 *
 * Goal: every transfer comes back once, to its own channel, with its own bytes; no wake-up is lost; no race.
 *
 * Method: threads write pieces of slabs of their own, sync, read them back and compare, with random priorities
 * and flows, over both movers, at depths 16 and 1. Meant for SAN=thread as well. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/assert.h"
#include "tests/tiers/nvme_util.h"
#include "tests/tiers/random_util.h"

#define SLABS        16u
#define BYTES        ((uint64_t)SLABS * KVR_SLAB_BYTES)
#define MEMORY_BYTES ((size_t)4 << 20)
#define DEPTH        16u

#define WORKERS      3u
#define WORKER_SLABS 4u
#define WORKER_IOS   64u
#define WORKER_STEPS 40u
#define PIECE_BYTES  ((size_t)16384)

KVR_STATIC_ASSERT(PIECE_BYTES *WORKERS *WORKER_IOS <= MEMORY_BYTES);
KVR_STATIC_ASSERT(WORKERS *WORKER_SLABS <= SLABS);

static struct kvr_random shared_random;
static struct kvr_test_nvme test;

static int setup(void **state)
{
	(void)state;
	kvr_test_nvme_start(&test, MEMORY_BYTES);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	kvr_test_nvme_end(&test);
	return 0;
}

/* A thread with a channel: batches of writes of pieces of its own slabs, syncs, and reads that are compared with what
 * was written last. It counts what is wrong; cmocka's assertions belong to the main thread. */
struct worker {
	pthread_t thread;
	struct kvr_tier *tier;
	uint8_t *memory;
	struct kvr_place places[WORKER_SLABS];
	struct kvr_random random;
	uint32_t wrong;
	uint32_t last[WORKER_IOS]; /* the number that was written to a piece */
	struct kvr_tier_io ios[WORKER_IOS + 1];
};

static void piece_fill(uint8_t *data, uint64_t number)
{
	for (uint32_t i = 0; i < PIECE_BYTES; i += 8)
		memcpy(data + i, &(uint64_t){number * 0x9e3779b97f4a7c15u + i}, 8);
}

static uint32_t piece_wrong(const uint8_t *data, uint64_t number)
{
	uint8_t expected[PIECE_BYTES];

	piece_fill(expected, number);
	return memcmp(data, expected, PIECE_BYTES) != 0;
}

static void worker_wait_all(struct worker *worker, uint32_t count)
{
	struct kvr_tier_io *reaped[WORKER_IOS];

	while (count > 0) {
		uint32_t some;

		kvr_test_wait(worker->tier);
		some = kvr_tier_reap(worker->tier, reaped, WORKER_IOS);
		worker->wrong += some == 0; /* readable means that there is something */
		for (uint32_t i = 0; i < some; i++)
			worker->wrong += reaped[i]->status != 0;
		count -= some;
	}
}

static void worker_step(struct worker *worker, enum kvr_tier_op op, uint32_t step)
{
	struct kvr_tier_io *list[WORKER_IOS + 1];
	uint32_t count = 0;

	for (uint32_t i = 0; i < WORKER_IOS; i++) {
		uint8_t *data = worker->memory + i * PIECE_BYTES;
		struct kvr_place place = worker->places[i % WORKER_SLABS];

		if (op == KVR_TIER_WRITE && kvr_random_range(&worker->random, 0, 1) == 0)
			continue;
		if (op == KVR_TIER_WRITE)
			worker->last[i] = step;
		piece_fill(data, op == KVR_TIER_WRITE ? step * 1000 + i : 7);
		place.offset += i / WORKER_SLABS * PIECE_BYTES;
		place.bytes = PIECE_BYTES;
		worker->ios[count] = (struct kvr_tier_io){
			.op = op,
			.priority = kvr_random_range(&worker->random, 0, KVR_TIER_PRIORITIES - 1),
			.flow = kvr_random_range(&worker->random, 0, 3),
			.place = place,
			.buffer = {data, PIECE_BYTES},
		};
		list[count] = &worker->ios[count];
		count++;
	}
	worker->ios[count] = (struct kvr_tier_io){.op = KVR_TIER_SYNC};
	list[count] = &worker->ios[count];
	count++;
	worker->wrong += kvr_tier_submit(worker->tier, list, count) != count;
	worker_wait_all(worker, count);
}

static void *worker_main(void *argument)
{
	struct worker *worker = argument;

	for (uint32_t step = 1; step <= WORKER_STEPS; step++) {
		worker_step(worker, KVR_TIER_WRITE, step);
		worker_step(worker, KVR_TIER_READ, step);
		for (uint32_t i = 0; i < WORKER_IOS; i++)
			worker->wrong +=
				worker->last[i] > 0 && piece_wrong(worker->memory + i * PIECE_BYTES,
							       worker->last[i] * 1000 + i);
	}
	return NULL;
}

static void several(enum kvr_nvme_io io, uint32_t depth)
{
	static struct worker workers[WORKERS];
	uint32_t bytes[WORKER_SLABS];

	assert_int_equal(kvr_test_nvme_open(&test, io, BYTES, depth), 0);
	for (uint32_t i = 0; i < WORKER_SLABS; i++)
		bytes[i] = KVR_SLAB_BYTES;
	for (uint32_t i = 0; i < WORKERS; i++) {
		struct worker *worker = &workers[i];

		*worker = (struct worker){
			.memory = test.memory.data + i * PIECE_BYTES * WORKER_IOS,
			.random = {kvr_random_next(&shared_random)},
		};
		assert_int_equal(kvr_tier_open_nvme(test.nvme, &worker->tier), 0);
		assert_int_equal(
			kvr_tier_reserve(worker->tier, i, bytes, WORKER_SLABS, worker->places), 0);
	}
	for (uint32_t i = 0; i < WORKERS; i++)
		assert_int_equal(
			pthread_create(&workers[i].thread, NULL, worker_main, &workers[i]), 0);
	for (uint32_t i = 0; i < WORKERS; i++) {
		pthread_join(workers[i].thread, NULL);
		assert_int_equal(workers[i].wrong, 0);
		kvr_tier_close(workers[i].tier);
	}
	kvr_test_nvme_close(&test);
}

static void test_several(void **state)
{
	(void)state;
	several(KVR_NVME_IO_AUTO, DEPTH);
	several(KVR_NVME_IO_AUTO, 1);
	several(KVR_NVME_IO_THREADS, DEPTH);
	several(KVR_NVME_IO_THREADS, 1);
}

#define CASE(function) cmocka_unit_test_setup_teardown(function, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(test_several),
	};

	shared_random = kvr_random_start();
	return cmocka_run_group_tests(tests, NULL, NULL);
}

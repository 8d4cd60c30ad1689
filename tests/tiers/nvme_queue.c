/* SPDX-License-Identifier: Apache-2.0 */
/* nvme_queue.c: which transfer goes next.
 *
 * Goal: bounds hold at every moment (U1, N1); urgent transfers go first and find room; lower classes yield and are not
 * starved (U2); flows of one class share it; nothing is lost.
 *
 * Method: the queue alone, without a disk: transfers end when the test says so, so that every case is exact.
 * One case runs random loads with all bounds checked after every step. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "tests/tiers/random_util.h"
#include "tiers/nvme_queue.h"

#define COUNT 4000u
#define DEPTH 32u
#define BATCH 4u

static struct kvr_random shared_random;
static struct kvr_nvme_queue queue;
static struct kvr_tier_io ios[COUNT];

static void push(
	struct kvr_tier_io *io, enum kvr_tier_priority priority, uint32_t flow, uint32_t bytes)
{
	*io = (struct kvr_tier_io){
		.op = KVR_TIER_READ,
		.priority = priority,
		.flow = flow,
		.place = {.bytes = bytes},
	};
	kvr_nvme_queue_push(&queue, io);
}

static struct kvr_tier_io *pop_and_end(void)
{
	struct kvr_tier_io *io = kvr_nvme_queue_pop(&queue);

	assert_non_null(io);
	kvr_nvme_queue_done(&queue, io);
	return io;
}

static void test_depth(void **state)
{
	(void)state;
	kvr_nvme_queue_init(&queue, DEPTH, BATCH);
	assert_null(kvr_nvme_queue_pop(&queue));
	assert_false(kvr_nvme_queue_ready(&queue));
	for (uint32_t i = 0; i < 3 * DEPTH; i++)
		push(&ios[i], KVR_TIER_URGENT, 0, 4096);
	for (uint32_t i = 0; i < DEPTH; i++)
		assert_ptr_equal(kvr_nvme_queue_pop(&queue), &ios[i]);
	assert_null(kvr_nvme_queue_pop(&queue)); /* N1 */
	assert_false(kvr_nvme_queue_ready(&queue));
	kvr_nvme_queue_done(&queue, &ios[7]);
	assert_true(kvr_nvme_queue_ready(&queue));
	assert_ptr_equal(kvr_nvme_queue_pop(&queue), &ios[DEPTH]);
	assert_null(kvr_nvme_queue_pop(&queue));
}

/* However much of lower classes is there before, an urgent transfer goes next, and at once. */
static void test_urgent(void **state)
{
	struct kvr_tier_io urgent;

	(void)state;
	kvr_nvme_queue_init(&queue, DEPTH, BATCH);
	for (uint32_t i = 0; i < 200; i++)
		push(&ios[i], i % 2 ? KVR_TIER_NORMAL : KVR_TIER_LATER, i, 4096);
	while (kvr_nvme_queue_pop(&queue))
		;
	assert_true(queue.running < DEPTH);
	push(&urgent, KVR_TIER_URGENT, 0, 4096);
	assert_ptr_equal(kvr_nvme_queue_pop(&queue), &urgent);
}

/* What an urgent read may have to wait for is bounded in bytes. */
static void test_lower_bytes(void **state)
{
	uint32_t count = 0;

	(void)state;
	kvr_nvme_queue_init(&queue, DEPTH, BATCH);
	for (uint32_t i = 0; i < 40; i++)
		push(&ios[i], KVR_TIER_NORMAL, 0, 1u << 20);
	while (kvr_nvme_queue_pop(&queue))
		count++;
	assert_int_equal(count, KVR_NVME_LOWER_BYTES >> 20);
	kvr_nvme_queue_init(&queue, DEPTH, BATCH);
	push(&ios[0], KVR_TIER_LATER, 0, 3 * KVR_NVME_LOWER_BYTES); /* larger than all of it */
	assert_ptr_equal(kvr_nvme_queue_pop(&queue), &ios[0]);
}

/* U2: while urgent transfers never run out, a lower class gets its share of the bytes: less than its weight in
 * ios, and not nothing. At any depth, 1 included. */
static void test_share(void **state)
{
	const uint32_t depths[] = {1, 2, DEPTH};

	(void)state;
	for (uint32_t d = 0; d < 3; d++) {
		uint64_t bytes[KVR_TIER_PRIORITIES] = {0};

		kvr_nvme_queue_init(&queue, depths[d], 1);
		for (uint32_t i = 0; i < COUNT / 2; i++)
			push(&ios[i], KVR_TIER_URGENT, i % 3, 8192);
		for (uint32_t i = 0; i < COUNT / 4; i++) {
			push(&ios[COUNT / 2 + i], KVR_TIER_NORMAL, 0, 65536);
			push(&ios[COUNT * 3 / 4 + i], KVR_TIER_LATER, 0, 16384);
		}
		for (uint32_t i = 0; i < COUNT / 2; i++) {
			const struct kvr_tier_io *io = pop_and_end();

			bytes[io->priority] += io->place.bytes;
		}
		for (uint32_t c = 0; c < KVR_TIER_PRIORITIES; c++) {
			const uint64_t share = bytes[KVR_TIER_URGENT] / bytes[c];

			if (c != KVR_TIER_URGENT)
				assert_in_range(share, KVR_NVME_SHARE - 2, KVR_NVME_SHARE + 1);
		}
	}
}

/* Two flows, one of which came first with ten times as much, take turns of a batch. */
static void test_flows(void **state)
{
	uint32_t served[2] = {0, 0};

	(void)state;
	kvr_nvme_queue_init(&queue, DEPTH, BATCH);
	for (uint32_t i = 0; i < 1000; i++)
		push(&ios[i], KVR_TIER_URGENT, 17, 4096);
	for (uint32_t i = 1000; i < 1100; i++)
		push(&ios[i], KVR_TIER_URGENT, 18, 4096);
	while (served[1] < 100) {
		const uint32_t turn = (served[0] + served[1]) / BATCH;
		const struct kvr_tier_io *io = pop_and_end();

		assert_int_equal(io->flow, turn % 2 ? 18 : 17);
		served[io->flow - 17]++;
	}
	assert_int_equal(served[0], 100);
	while (served[0] < 1000) {
		assert_ptr_equal(pop_and_end(), &ios[served[0]]); /* in order */
		served[0]++;
	}
	assert_null(kvr_nvme_queue_pop(&queue));
}

static void test_syncs(void **state)
{
	(void)state;
	kvr_nvme_queue_init(&queue, 1, 1);
	for (uint32_t i = 0; i < 3; i++) {
		ios[i] = (struct kvr_tier_io){.op = KVR_TIER_SYNC};
		kvr_nvme_queue_push(&queue, &ios[i]);
	}
	push(&ios[3], KVR_TIER_NORMAL, 0, 512);
	push(&ios[4], KVR_TIER_NORMAL, 0, 512);
	assert_ptr_equal(kvr_nvme_queue_pop(&queue), &ios[0]);
	assert_ptr_equal(kvr_nvme_queue_pop(&queue), &ios[3]); /* beside the sync, at depth 1 */
	assert_null(kvr_nvme_queue_pop(&queue));
	kvr_nvme_queue_done(&queue, &ios[0]);
	assert_true(kvr_nvme_queue_ready(&queue));
	assert_ptr_equal(kvr_nvme_queue_pop(&queue), &ios[1]);
	assert_null(kvr_nvme_queue_pop(&queue));
	kvr_nvme_queue_done(&queue, &ios[3]);
	assert_ptr_equal(kvr_nvme_queue_pop(&queue), &ios[4]);
}

/* U1 and nothing lost, under random loads, depths and ends. */
static void test_random(void **state)
{
	static struct kvr_tier_io *running[COUNT];

	(void)state;
	for (uint32_t round = 0; round < 50; round++) {
		const uint32_t depth = kvr_random_range(&shared_random, 1, 70);
		uint32_t pushed = 0;
		uint32_t ended = 0;
		uint32_t count = 0;

		kvr_nvme_queue_init(&queue, depth, kvr_random_range(&shared_random, 1, depth));
		while (ended < COUNT) {
			struct kvr_tier_io *io;
			uint32_t few = kvr_random_range(&shared_random, 0, 50);

			for (; few > 0 && pushed < COUNT; few--) {
				push(&ios[pushed++],
					kvr_random_range(
						&shared_random, 0, KVR_TIER_PRIORITIES - 1),
					kvr_random_range(&shared_random, 0, 100),
					kvr_random_range(&shared_random, 1, 2048) * 512);
			}
			while ((io = kvr_nvme_queue_pop(&queue)) != NULL) {
				io->owner = io; /* popped once */
				running[count++] = io;
				assert_true(count <= depth); /* N1 */
			}
			assert_true(count > 0 || pushed == ended); /* never stuck */
			for (few = kvr_random_range(&shared_random, 0, count); few > 0; few--) {
				const uint32_t i = kvr_random_range(&shared_random, 0, count - 1);

				assert_ptr_equal(running[i]->owner, running[i]);
				running[i]->owner = NULL;
				kvr_nvme_queue_done(&queue, running[i]);
				running[i] = running[--count];
				ended++;
			}
		}
		assert_null(kvr_nvme_queue_pop(&queue));
		assert_int_equal(queue.running, 0);
		assert_int_equal(queue.lower_bytes, 0);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_depth),
		cmocka_unit_test(test_urgent),
		cmocka_unit_test(test_lower_bytes),
		cmocka_unit_test(test_share),
		cmocka_unit_test(test_flows),
		cmocka_unit_test(test_syncs),
		cmocka_unit_test(test_random),
	};

	shared_random = kvr_random_start();
	return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* pool.c: the CPU device's pool (kernels/cpu.c).
 *
 * Goal: every job is reaped once, with its items done and its status right, for any number of workers,
 * sizes, priorities and idle times; the fd is readable exactly while there is something to reap; an
 * urgent job overtakes; a small one runs inside submit; the owner may help with urgent ones, and only
 * with these.
 *
 * Method: copies and appends as work, checked by their results; random jobs from a seeded generator;
 * meant to run under TSan as well. */
#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/kernels/oracle_util.h"

#define JOBS       300u
#define ITEMS_MAX  40u
#define BYTES_MAX  20000u
#define FLIGHT_MAX 16u

/* A copy job: item i copies a part of `from` to its own part of `to`. */
struct work {
	struct kvr_job job;
	struct kvr_copy_item items[ITEMS_MAX];
	uint8_t *to;
	size_t bytes;
	uint32_t reaped;
};

static uint8_t source[BYTES_MAX];

static struct kvr_device *open_device(uint32_t threads, uint32_t spin_us, uint32_t inline_item_us)
{
	const struct kvr_device_cpu_config config = {.threads = threads,
		.isa = KVR_ISA_BEST,
		.spin_us = spin_us,
		.inline_item_us = inline_item_us};
	struct kvr_device *device = NULL;

	assert_int_equal(kvr_device_open_cpu(&config, &device), 0);
	return device;
}

static bool readable(struct kvr_device *device, int wait_ms)
{
	struct pollfd wait = {kvr_device_fd(device), POLLIN, 0};

	return poll(&wait, 1, wait_ms) == 1;
}

static void work_open(struct work *work, struct oracle_random *random)
{
	const uint32_t items = oracle_pick(random, 1, ITEMS_MAX);
	size_t at = 0;

	*work = (struct work){.bytes = oracle_pick(random, 1, BYTES_MAX)};
	work->to = calloc(1, work->bytes);
	for (uint32_t i = 0; i < items; i++) {
		const size_t end = work->bytes * (i + 1) / items;

		work->items[i] = (struct kvr_copy_item){work->to + at, source + at, end - at};
		at = end;
	}
	work->job = (struct kvr_job){.kind = KVR_JOB_COPY,
		.urgent = oracle_pick(random, 0, 2) == 0,
		.items = work->items,
		.item_count = items,
		.owner = work,
		.status = -1};
}

static void work_end(struct work *work)
{
	assert_int_equal(work->job.status, 0);
	assert_int_equal(work->reaped++, 0); /* D2 */
	assert_memory_equal(work->to, source, work->bytes);
	free(work->to);
}

/* Reaps up to `max`; returns how many there were. */
static uint32_t reap(struct kvr_device *device, uint32_t max)
{
	struct kvr_job *jobs[FLIGHT_MAX];
	const uint32_t count = kvr_device_reap(device, jobs, max);

	for (uint32_t i = 0; i < count; i++)
		work_end(jobs[i]->owner);
	return count;
}

static void run_many(uint64_t seed, uint32_t threads, uint32_t spin_us, uint32_t inline_item_us)
{
	struct kvr_device *device = open_device(threads, spin_us, inline_item_us);
	struct oracle_random random = oracle_random(seed);
	struct work *works = calloc(JOBS, sizeof(*works));
	uint32_t submitted = 0, reaped = 0;

	while (reaped < JOBS) {
		if (submitted < JOBS && submitted - reaped < FLIGHT_MAX &&
			oracle_pick(&random, 0, 3) > 0) {
			work_open(&works[submitted], &random);
			assert_int_equal(kvr_device_submit(device, &works[submitted].job), 0);
			submitted++;
		} else if (submitted > reaped) {
			if (oracle_pick(&random, 0, 1) > 0)
				assert_true(readable(device, 10000));
			reaped += reap(device, oracle_pick(&random, 1, FLIGHT_MAX));
		}
	}
	assert_false(readable(device, 0));
	free(works);
	assert_null(kvr_device_close(device));
}

static void test_many(void **state)
{
	(void)state;
	for (uint32_t threads = 1; threads <= 8; threads++) {
		run_many(threads, threads, 0, 0);
		run_many(10 + threads, threads, 20, 0);
		run_many(20 + threads, threads, 5, 2);
	}
}

/* Small jobs run inside submit; the limit of jobs holds; reap gives the oldest first. */
static void test_inline(void **state)
{
	struct kvr_device *device = open_device(2, 0, 1000000);
	struct kvr_job *jobs = calloc(KVR_DEVICE_JOBS_MAX + 1, sizeof(*jobs)), *done[7];
	uint32_t from = 1, to = 0, count, reaped = 0;
	struct kvr_copy_item item = {&to, &from, sizeof(to)};

	(void)state;
	for (uint32_t i = 0; i <= KVR_DEVICE_JOBS_MAX; i++)
		jobs[i] = (struct kvr_job){
			.kind = KVR_JOB_COPY, .items = &item, .item_count = 1, .status = -1};
	for (uint32_t i = 0; i < KVR_DEVICE_JOBS_MAX; i++) {
		from = i;
		assert_int_equal(kvr_device_submit(device, &jobs[i]), 0);
		assert_int_equal(to, i);
		assert_int_equal(jobs[i].status, 0);
	}
	assert_int_equal(kvr_device_submit(device, &jobs[KVR_DEVICE_JOBS_MAX]), -EAGAIN);
	assert_int_equal(jobs[KVR_DEVICE_JOBS_MAX].status, -1);
	while (readable(device, 0)) {
		count = kvr_device_reap(device, done, 7);
		assert_true(count > 0);
		for (uint32_t i = 0; i < count; i++)
			assert_ptr_equal(done[i], &jobs[reaped++]);
	}
	assert_int_equal(reaped, KVR_DEVICE_JOBS_MAX);
	assert_int_equal(kvr_device_reap(device, done, 7), 0);
	assert_int_equal(kvr_device_submit(device, &jobs[KVR_DEVICE_JOBS_MAX]), 0);
	assert_int_equal(kvr_device_reap(device, done, 7), 1);
	kvr_device_close(device);
	free(jobs);
}

/* With one worker, an urgent job that comes last is done before the last of the others. Submitting
 * takes far less time than the work, unless this thread is held up: so a few attempts. */
static void test_urgent(void **state)
{
	const size_t bytes = 8u << 20;
	uint8_t *from = calloc(1, bytes), *to = calloc(1, bytes);
	struct kvr_copy_item long_item = {to, from, bytes}, short_item = {source, source + 64, 8};
	bool overtook = false;

	(void)state;
	for (uint32_t attempt = 0; attempt < 20 && !overtook; attempt++) {
		struct kvr_device *device = open_device(1, 0, 0);
		struct kvr_job jobs[6], *last = NULL;
		uint32_t reaped = 0;

		for (uint32_t i = 0; i < 6; i++) {
			jobs[i] = (struct kvr_job){.kind = KVR_JOB_COPY,
				.items = i < 5 ? &long_item : &short_item,
				.item_count = 1,
				.urgent = i == 5};
			assert_int_equal(kvr_device_submit(device, &jobs[i]), 0);
		}
		for (; reaped < 6; reaped += kvr_device_reap(device, &last, 1))
			assert_true(readable(device, 10000));
		overtook = last != &jobs[5];
		kvr_device_close(device);
	}
	assert_true(overtook);
	free(from);
	free(to);
}

/* The owner does items of urgent jobs until there are none; a job is whole whoever did its items. */
static void test_help(void **state)
{
	struct oracle_random random = oracle_random(31);
	struct work *works = calloc(JOBS, sizeof(*works));

	(void)state;
	assert_non_null(works);
	for (uint32_t round = 0; round < 2; round++) {
		struct kvr_device *device = open_device(1, round ? 200 : 0, 0);
		uint32_t helped = 0;

		assert_false(kvr_device_help(device));
		for (uint32_t i = 0; i < JOBS; i++) {
			uint32_t reaped = 0;

			work_open(&works[i], &random);
			works[i].job.urgent = true;
			assert_int_equal(kvr_device_submit(device, &works[i].job), 0);
			while (reaped == 0) {
				if (kvr_device_help(device))
					helped++;
				else
					assert_true(readable(device, 10000));
				reaped = reap(device, 1);
			}
			assert_int_equal(reaped, 1);
		}
		assert_true(helped > 0);
		assert_false(kvr_device_help(device));
		kvr_device_close(device);
	}
	free(works);
}

/* While a job that is not urgent runs, help neither takes part in it nor waits for it. */
static void test_help_not(void **state)
{
	const size_t bytes = 8u << 20;
	uint8_t *from = calloc(1, bytes), *to = calloc(1, bytes);
	struct kvr_copy_item items[4];
	struct kvr_job job = {.kind = KVR_JOB_COPY, .items = items, .item_count = 4}, *done;
	struct kvr_device *device = open_device(1, 200, 0);

	(void)state;
	assert_non_null(from);
	assert_non_null(to);
	for (uint32_t i = 0; i < 4; i++)
		items[i] =
			(struct kvr_copy_item){to + i * bytes / 4, from + i * bytes / 4, bytes / 4};
	assert_int_equal(kvr_device_submit(device, &job), 0);
	while (kvr_device_reap(device, &done, 1) == 0) {
		assert_false(kvr_device_help(device));
		assert_true(readable(device, 10000));
	}
	kvr_device_close(device);
	free(from);
	free(to);
}

/* A job's status is that of its first failing item; the others are done all the same. */
static void test_status(void **state)
{
	const struct kvr_geometry g = {.layer_count = 1,
		.query_heads = 1,
		.kv_heads = 1,
		.key_dim = 8,
		.value_dim = 8,
		.dtype = KVR_DTYPE_F32,
		.segment_tokens = 64,
		.cluster_tokens = 8};
	uint8_t *block = aligned_alloc(64, kvr_tail_block_bytes(&g));
	uint8_t *const blocks[] = {block};
	const struct kvr_tail_view tail = {&g, blocks, 1};
	struct kvr_append_item items[64];
	float rows[64][8] = {{0}}, values[8] = {0};

	(void)state;
	for (uint32_t bad = 0; bad < 3; bad++) {
		struct kvr_device *device = open_device(3, 0, bad == 2 ? 1000 : 0);

		for (uint32_t i = 0; i < 64; i++) {
			for (uint32_t k = 0; k < 8; k++)
				rows[i][k] = (float)i;
			items[i] = (struct kvr_append_item){.keys = (const uint8_t *)rows[i],
				.values = (const uint8_t *)values,
				.tail = &tail,
				.first = i,
				.count = 1,
				.status = 1};
		}
		if (bad > 0)
			rows[17][5] = rows[40][0] = 1.0f / 0.0f;
		assert_int_equal(oracle_run(device, KVR_JOB_APPEND, items, 64), bad ? -EDOM : 0);
		for (uint32_t i = 0; i < 64; i++) {
			assert_int_equal(
				items[i].status, bad > 0 && (i == 17 || i == 40) ? -EDOM : 0);
			assert_memory_equal(kvr_tail_key(&tail, 0, i), rows[i], sizeof(rows[i]));
		}
		kvr_device_close(device);
	}
	free(block);
}

static void test_open(void **state)
{
	struct kvr_device *device = open_device(0, 0, 0);

	(void)state;
	assert_non_null(strstr(kvr_device_name(device), "cpu, "));
	assert_null(kvr_device_close(device));
	assert_null(kvr_device_close(NULL));
	device = open_device(KVR_THREADS_MAX, 0, 0);
	assert_non_null(strstr(kvr_device_name(device), "64 threads"));
	kvr_device_close(device);
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(test_many),
		cmocka_unit_test(test_inline), cmocka_unit_test(test_urgent),
		cmocka_unit_test(test_help), cmocka_unit_test(test_help_not),
		cmocka_unit_test(test_status), cmocka_unit_test(test_open)};

	for (uint32_t i = 0; i < BYTES_MAX; i++)
		source[i] = (uint8_t)(i * 31 % 251);
	return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* conformance.c: the suite that every tier runs.
 *
 * Goal: every tier keeps the contract of tiers/tier.h, T1 to T5, as its callers see it.
 *
 * Method: one suite over a table of tiers (bed_util.h); a new tier adds a line to it. Each case opens its own tier of
 * KVR_BED_CAPACITY bytes. Every place is filled with bytes that follow from its own number, so that an overlap or a
 * lost write shows as soon as any place is read again. Nothing here knows how a tier works: where a
 * tier has a fd the suite waits for it, where its places have addresses it uses them, where transfers must be
 * aligned it rounds them up. The null tier, which has no places, runs the cases that need none. */
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#include "tests/tiers/bed_util.h"
#include "tests/tiers/random_util.h"

static struct kvr_random shared_random;

/* ---- the cases ------------------------------------------------------------------------------- */

static void test_sizes(void **state)
{
	static const uint32_t bytes[] = {1, 63, 64, 65, 511, 512, 4096, 4097, 65536, 1000000};
	enum { COUNT = sizeof(bytes) / sizeof(bytes[0]) };
	struct kvr_bed *bed = *state;
	struct kvr_place places[COUNT];
	struct kvr_tier_stat stat;
	uint64_t sum = 0;
	uint64_t moved = 0;

	assert_int_equal(kvr_tier_reserve(bed->tier, 7, bytes, COUNT, places), 0);
	for (uint32_t i = 0; i < COUNT; i++) {
		assert_int_equal(places[i].bytes, bytes[i]);
		assert_int_equal(places[i].reserved, 0);
		kvr_bed_write(bed, places[i], i);
		sum += bytes[i];
		moved += kvr_bed_whole(bed, places[i]).bytes;
	}
	for (uint32_t i = 0; i < COUNT; i++)
		kvr_bed_read(bed, places[i], i);
	kvr_tier_stat(bed->tier, &stat);
	assert_int_equal(stat.place_count, COUNT);
	assert_int_equal(stat.reserved_bytes, sum);
	assert_int_equal(stat.write_count, COUNT);
	assert_int_equal(stat.write_bytes, moved);
	assert_int_equal(stat.read_count, COUNT);
	assert_int_equal(stat.read_bytes, moved);
	assert_int_equal(stat.error_count, 0);
	kvr_tier_release(bed->tier, 7, places, COUNT);
	kvr_tier_stat(bed->tier, &stat);
	assert_int_equal(stat.place_count, 0);
	assert_int_equal(stat.reserved_bytes, 0);
	assert_int_equal(stat.used_bytes, 0);
}

/* T1, T2: at the edge of the capacity a group comes whole or not at all, and refusals cost nothing. */
static void test_all_or_none(void **state)
{
	enum { GROUPS = 64, COUNT = 5 };
	struct kvr_bed *bed = *state;
	const uint32_t bytes[COUNT] = {200000, 64, 131072, 300001, 512};
	struct kvr_place places[GROUPS][COUNT];
	struct kvr_tier_stat full;
	struct kvr_tier_stat stat;
	uint32_t groups = 0;
	int rc = 0;

	for (int turn = 0; turn < 3; turn++) {
		while (groups < GROUPS) {
			rc = kvr_tier_reserve(bed->tier, groups, bytes, COUNT, places[groups]);
			if (rc < 0)
				break;
			for (uint32_t i = 0; i < COUNT; i++)
				kvr_bed_write(bed, places[groups][i], groups * COUNT + i);
			groups++;
		}
		assert_int_equal(rc, -ENOSPC);
		kvr_tier_stat(bed->tier, &full);
		assert_int_equal(full.place_count, groups * COUNT);
		assert_true(full.used_bytes <= full.capacity_bytes);
		for (int i = 0; i < 100; i++)
			assert_int_equal(
				kvr_tier_reserve(bed->tier, 99, bytes, COUNT, places[groups]),
				-ENOSPC);
		kvr_tier_stat(bed->tier, &stat);
		assert_int_equal(stat.place_count, full.place_count);
		assert_int_equal(stat.reserved_bytes, full.reserved_bytes);
		assert_int_equal(stat.used_bytes, full.used_bytes);
		for (uint32_t g = 0; g < groups; g++)
			for (uint32_t i = 0; i < COUNT; i++)
				kvr_bed_read(bed, places[g][i], g * COUNT + i);
		groups--; /* what leaves makes room for as much again */
		kvr_tier_release(bed->tier, groups, places[groups], COUNT);
	}
	while (groups-- > 0)
		kvr_tier_release(bed->tier, groups, places[groups], COUNT);
}

static void test_address(void **state)
{
	struct kvr_bed *bed = *state;
	const uint32_t bytes[2] = {5000, 8192};
	struct kvr_place places[2];

	assert_int_equal(kvr_tier_reserve(bed->tier, 1, bytes, 2, places), 0);
	for (uint32_t i = 0; i < 2; i++) {
		uint8_t *memory = kvr_tier_address(bed->tier, places[i]);

		if (!bed->stat.addressable) {
			assert_null(memory);
			continue;
		}
		assert_int_equal((uintptr_t)memory % 64, 0);
		kvr_bed_fill(memory, bytes[i], i);
		kvr_bed_read(bed, places[i], i);
		kvr_bed_write(bed, places[i], i + 10);
		kvr_bed_check(memory, bytes[i], i + 10);
	}
	kvr_tier_release(bed->tier, 1, places, 2);
}

/* Submits all ios of a list, and reaps a few at a time. Each comes back once, with status 0. */
static void run_all(struct kvr_bed *bed, struct kvr_tier_io *const *list, uint32_t count)
{
	struct kvr_tier_io *reaped[7];
	uint32_t submitted = 0;
	uint32_t done = 0;
	uint32_t refused = 0;

	while (done < count) {
		uint32_t taken = kvr_tier_submit(bed->tier, list + submitted, count - submitted);

		refused += taken < count - submitted;
		submitted += taken;
		kvr_test_wait(bed->tier);
		taken = kvr_tier_reap(bed->tier, reaped, kvr_random_range(&shared_random, 1, 7));
		for (uint32_t i = 0; i < taken; i++) {
			assert_int_equal(reaped[i]->status, 0);
			(*(uint32_t *)reaped[i]->owner)++;
		}
		done += taken;
	}
	assert_true(refused > 0); /* the queue is bounded, and the case went past it */
	assert_int_equal(submitted, count);
	assert_int_equal(kvr_tier_reap(bed->tier, reaped, 7), 0);
}

/* T4: more transfers than a tier takes at once, of all priorities; each comes back once, with its own bytes. */
static void test_queue(void **state)
{
	struct kvr_bed *bed = *state;
	static struct kvr_tier_io ios[KVR_BED_QUEUE_COUNT];
	static struct kvr_tier_io *list[KVR_BED_QUEUE_COUNT];
	static uint32_t seen[KVR_BED_QUEUE_COUNT];
	static struct kvr_place places[KVR_BED_QUEUE_COUNT];
	const uint32_t place_count = bed->slabs ? 1 : KVR_BED_QUEUE_COUNT;
	uint32_t bytes[KVR_BED_QUEUE_COUNT];

	for (uint32_t i = 0; i < KVR_BED_QUEUE_COUNT; i++)
		bytes[i] = bed->slabs ? KVR_BED_QUEUE_COUNT * KVR_BED_QUEUE_BYTES
				      : KVR_BED_QUEUE_BYTES;
	assert_int_equal(kvr_tier_reserve(bed->tier, 1, bytes, place_count, places), 0);
	for (int pass = 0; pass < 2; pass++) {
		memset(seen, 0, sizeof(seen));
		for (uint32_t i = 0; i < KVR_BED_QUEUE_COUNT; i++) {
			uint8_t *data = bed->queue_buffer + (size_t)i * KVR_BED_QUEUE_BYTES;
			struct kvr_place place = places[bed->slabs ? 0 : i];

			if (bed->slabs)
				place.offset += (uint64_t)i * KVR_BED_QUEUE_BYTES;
			place.bytes = KVR_BED_QUEUE_BYTES;
			ios[i] = (struct kvr_tier_io){
				.op = pass == 0 ? KVR_TIER_WRITE : KVR_TIER_READ,
				.priority = i % KVR_TIER_PRIORITIES,
				.flow = i / 100,
				.place = place,
				.buffer = {data, KVR_BED_QUEUE_BYTES},
				.owner = &seen[i],
				.status = -EINPROGRESS,
			};
			list[i] = &ios[i];
			kvr_bed_fill(data, KVR_BED_QUEUE_BYTES, pass == 0 ? i : 1u << 20);
		}
		run_all(bed, list, KVR_BED_QUEUE_COUNT);
		for (uint32_t i = 0; i < KVR_BED_QUEUE_COUNT; i++)
			assert_int_equal(seen[i], 1);
	}
	for (uint32_t i = 0; i < KVR_BED_QUEUE_COUNT; i++)
		kvr_bed_check(bed->queue_buffer + (size_t)i * KVR_BED_QUEUE_BYTES,
			KVR_BED_QUEUE_BYTES, i);
	kvr_tier_release(bed->tier, 1, places, place_count);
}

/* A sync of nothing, and more of them than a tier takes at once. */
static void test_syncs(void **state)
{
	struct kvr_bed *bed = *state;
	static struct kvr_tier_io ios[KVR_BED_QUEUE_COUNT];
	static struct kvr_tier_io *list[KVR_BED_QUEUE_COUNT];
	uint32_t seen = 0;

	for (uint32_t i = 0; i < KVR_BED_QUEUE_COUNT; i++) {
		ios[i] = (struct kvr_tier_io){.op = KVR_TIER_SYNC, .owner = &seen};
		list[i] = &ios[i];
	}
	assert_int_equal(kvr_test_run(bed->tier, &ios[0]), 0);
	assert_ptr_equal(ios[0].owner, &seen);
	run_all(bed, list, KVR_BED_QUEUE_COUNT);
	assert_int_equal(seen, KVR_BED_QUEUE_COUNT);
}

/* A tier without room says so every time, and counts nothing. */
static void test_refuses(void **state)
{
	struct kvr_bed *bed = *state;
	struct kvr_tier_stat stat;
	struct kvr_place place;
	const uint32_t bytes = 1;

	for (int i = 0; i < 3; i++)
		assert_int_equal(kvr_tier_reserve(bed->tier, 0, &bytes, 1, &place), -ENOSPC);
	kvr_tier_stat(bed->tier, &stat);
	assert_int_equal(stat.place_count, 0);
	assert_int_equal(stat.used_bytes, stat.capacity_bytes);
}

static void test_sync(void **state)
{
	struct kvr_bed *bed = *state;
	const uint32_t bytes = 3000;
	struct kvr_place place;
	struct kvr_tier_io sync = {.op = KVR_TIER_SYNC, .owner = bed};

	assert_int_equal(kvr_tier_reserve(bed->tier, 1, &bytes, 1, &place), 0);
	kvr_bed_write(bed, place, 1);
	assert_int_equal(kvr_test_run(bed->tier, &sync), 0);
	assert_ptr_equal(sync.owner, bed);
	kvr_bed_read(bed, place, 1);
	kvr_tier_release(bed->tier, 1, &place, 1);
}

/* T1, T3: groups of places come and go at random, some sizes at a time; what is there stays right. */
static void test_random(void **state)
{
	enum { GROUPS = 48, PLACES_MAX = 40, STEPS = 3000 };
	struct kvr_bed *bed = *state;
	static struct {
		uint32_t count;
		struct kvr_place places[PLACES_MAX];
		uint64_t number;
	} groups[GROUPS];
	struct kvr_tier_stat stat;
	uint64_t places_live = 0;
	uint32_t refused = 0;

	memset(groups, 0, sizeof(groups));
	for (uint32_t step = 0; step < STEPS; step++) {
		uint32_t g = kvr_random_range(&shared_random, 0, GROUPS - 1);
		uint32_t i = kvr_random_range(&shared_random, 0, PLACES_MAX - 1);

		if (groups[g].count > 0) {
			i %= groups[g].count;
			kvr_bed_read(bed, groups[g].places[i], groups[g].number + i);
			if (kvr_random_range(&shared_random, 0, 3) > 0)
				continue;
			kvr_tier_release(bed->tier, g, groups[g].places, groups[g].count);
			places_live -= groups[g].count;
			groups[g].count = 0;
		} else {
			uint32_t bytes[PLACES_MAX] = {0};
			uint32_t count = i + 1;

			for (i = 0; i < count; i++)
				bytes[i] = kvr_random_cluster(&shared_random) * 1024;
			bytes[0] += kvr_random_range(&shared_random, 0, 1) * 500000;
			if (kvr_tier_reserve(bed->tier, g, bytes, count, groups[g].places) < 0) {
				refused++;
				continue;
			}
			groups[g].count = count;
			groups[g].number = kvr_random_next(&shared_random);
			for (i = 0; i < count; i++)
				kvr_bed_write(bed, groups[g].places[i], groups[g].number + i);
			places_live += count;
		}
		kvr_tier_stat(bed->tier, &stat);
		assert_int_equal(stat.place_count, places_live);
		assert_true(stat.used_bytes <= stat.capacity_bytes);
	}
	assert_true(refused > 10); /* it ran at the edge */
	for (uint32_t g = 0; g < GROUPS; g++) {
		for (uint32_t i = 0; i < groups[g].count; i++)
			kvr_bed_read(bed, groups[g].places[i], groups[g].number + i);
		if (groups[g].count > 0)
			kvr_tier_release(bed->tier, g, groups[g].places, groups[g].count);
	}
	kvr_tier_stat(bed->tier, &stat);
	assert_int_equal(stat.used_bytes, 0);
}

/* T5 is asserted: a process that breaks it ends there and then. The child opens a tier of its own: threads do
 * not survive a fork. */
static void test_release_in_flight(void **state)
{
	struct kvr_bed *bed = *state;
	const uint32_t bytes = 4096;
	struct kvr_place place;
	struct kvr_tier_io io = {.op = KVR_TIER_READ, .buffer = {bed->buffer, bytes}};
	struct kvr_tier_io *one = &io;
	int status;
	pid_t child;

	kvr_bed_close(bed);
	child = fork();
	assert_true(child >= 0);
	if (child == 0) {
		signal(SIGABRT, SIG_DFL);
		close(STDERR_FILENO);
		if (kvr_bed_open(bed) < 0 || kvr_tier_reserve(bed->tier, 1, &bytes, 1, &place) < 0)
			_exit(1);
		io.place = place;
		kvr_tier_submit(bed->tier, &one, 1);
		kvr_tier_release(bed->tier, 1, &place, 1);
		_exit(0);
	}
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_true(WIFSIGNALED(status));
	assert_int_equal(WTERMSIG(status), SIGABRT);
	assert_int_equal(kvr_bed_open(bed), 0);
}

static void test_no_uring(void **state)
{
	(void)state;
	print_message("skipped: this kernel, container or build has no io_uring\n");
	skip();
}

#define CASE(function)                                                     \
	{                                                                  \
#function, function, kvr_bed_setup, kvr_bed_teardown, NULL \
	}

int main(void)
{
	struct CMUnitTest tests[] = {
		CASE(test_sizes),
		CASE(test_all_or_none),
		CASE(test_address),
		CASE(test_queue),
		CASE(test_sync),
		CASE(test_syncs),
		CASE(test_random),
		CASE(test_release_in_flight),
	};
	struct CMUnitTest placeless[] = {CASE(test_syncs), CASE(test_refuses)};
	const struct CMUnitTest nothing[] = {cmocka_unit_test(test_no_uring)};
	int failed = 0;

	shared_random = kvr_random_start();
	for (size_t b = 0; b < KVR_BEDS; b++) {
		const char *name = kvr_beds[b].name;

		for (size_t t = 0; t < sizeof(tests) / sizeof(tests[0]); t++)
			tests[t].initial_state = &kvr_beds[b];
		for (size_t t = 0; t < sizeof(placeless) / sizeof(placeless[0]); t++)
			placeless[t].initial_state = &kvr_beds[b];
		if (kvr_beds[b].placeless)
			failed += cmocka_run_group_tests_name(name, placeless, NULL, NULL);
		else if (kvr_beds[b].io == KVR_NVME_IO_URING && !kvr_test_uring_allowed())
			failed += cmocka_run_group_tests_name(name, nothing, NULL, NULL);
		else
			failed += cmocka_run_group_tests_name(name, tests, NULL, NULL);
	}
	return failed;
}

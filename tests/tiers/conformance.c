/* SPDX-License-Identifier: Apache-2.0 */
/* conformance.c: the suite that every tier runs.
 *
 * Goal: every tier keeps the contract of tiers/tier.h, T1 to T5, as its callers see it.
 *
 * Method: one suite over a table of tiers; a new tier adds a line to it. Each case opens its own tier of
 * CAPACITY bytes. Every place is filled with bytes that follow from its own number, so that an overlap or a
 * lost write shows as soon as any place is read again. Nothing here knows how a tier works: where a
 * tier has a fd the suite waits for it, where its places have addresses it uses them. */
#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#include "tests/tiers/random_util.h"
#include "tiers/faulty.h"
#include "tiers/host.h"

#define CAPACITY     ((uint64_t)16 << 20)
#define BUFFER_BYTES ((size_t)1 << 20)
#define WAIT_MS      10000

struct bed {
	const char *name;
	int (*open)(struct bed *bed);
	struct kvr_random *random;
	struct kvr_arena *arena;
	struct kvr_tier *tier;
	struct kvr_tier_stat stat; /* just after opening */
	uint8_t *buffer;           /* BUFFER_BYTES, aligned for any tier */
};

static int open_host(struct bed *bed)
{
	int rc = kvr_arena_open(CAPACITY, &bed->arena);

	return rc < 0 ? rc : kvr_tier_open_host(bed->arena, &bed->tier);
}

/* With no fault armed, a faulty tier is what lies below it. */
static int open_faulty(struct bed *bed)
{
	struct kvr_tier *host;
	int rc = open_host(bed);

	host = bed->tier;
	return rc < 0 ? rc : kvr_tier_open_faulty(host, &bed->tier);
}

static struct kvr_random shared_random;

static struct bed beds[] = {
	{.name = "host", .open = open_host},
	{.name = "faulty over host", .open = open_faulty},
};

static int setup(void **state)
{
	struct bed *bed = *state;

	bed->random = &shared_random;
	bed->arena = NULL;
	if (posix_memalign((void **)&bed->buffer, 4096, BUFFER_BYTES) != 0)
		return -1;
	if (bed->open(bed) < 0)
		return -1;
	kvr_tier_stat(bed->tier, &bed->stat);
	return 0;
}

static int teardown(void **state)
{
	struct bed *bed = *state;

	bed->tier = kvr_tier_close(bed->tier);
	bed->arena = kvr_arena_close(bed->arena);
	free(bed->buffer);
	return 0;
}

/* ---- the bytes of a place, and transfers ----------------------------------------------------- */

static void fill(uint8_t *data, size_t bytes, uint64_t number)
{
	struct kvr_random random = {number};

	for (size_t at = 0; at < bytes; at += 8) {
		uint64_t word = kvr_random_next(&random);

		memcpy(data + at, &word, bytes - at < 8 ? bytes - at : 8);
	}
}

static void check(const uint8_t *data, size_t bytes, uint64_t number)
{
	static uint8_t expected[BUFFER_BYTES];

	fill(expected, bytes, number);
	assert_memory_equal(data, expected, bytes);
}

static void wait_for(struct kvr_tier *tier)
{
	struct pollfd poller = {.fd = kvr_tier_fd(tier), .events = POLLIN};

	if (poller.fd >= 0)
		assert_int_equal(poll(&poller, 1, WAIT_MS), 1);
}

static void run(struct kvr_tier *tier, struct kvr_tier_io *io)
{
	struct kvr_tier_io *reaped = NULL;

	assert_int_equal(kvr_tier_submit(tier, &io, 1), 1);
	wait_for(tier);
	assert_int_equal(kvr_tier_reap(tier, &reaped, 1), 1);
	assert_ptr_equal(reaped, io);
	assert_int_equal(kvr_tier_reap(tier, &reaped, 1), 0); /* T4 */
	assert_int_equal(io->status, 0);
}

static void write_place(struct bed *bed, struct kvr_place place, uint64_t number)
{
	struct kvr_tier_io io = {
		.op = KVR_TIER_WRITE,
		.place = place,
		.buffer = {bed->buffer, place.bytes},
		.owner = bed,
	};

	fill(bed->buffer, place.bytes, number);
	run(bed->tier, &io);
	check(bed->buffer, place.bytes, number); /* a write leaves its buffer alone */
	assert_ptr_equal(io.owner, bed);
	assert_int_equal(io.place.bytes, place.bytes);
}

static void check_place(struct bed *bed, struct kvr_place place, uint64_t number)
{
	struct kvr_tier_io io = {
		.op = KVR_TIER_READ,
		.place = place,
		.buffer = {bed->buffer, place.bytes},
	};

	memset(bed->buffer, 0, place.bytes);
	run(bed->tier, &io);
	check(bed->buffer, place.bytes, number); /* T3 */
}

/* ---- the cases ------------------------------------------------------------------------------- */

static void test_sizes(void **state)
{
	static const uint32_t bytes[] = {1, 63, 64, 65, 511, 512, 4096, 4097, 65536, 1000000};
	enum { COUNT = sizeof(bytes) / sizeof(bytes[0]) };
	struct bed *bed = *state;
	struct kvr_place places[COUNT];
	struct kvr_tier_stat stat;
	uint64_t sum = 0;

	assert_int_equal(kvr_tier_reserve(bed->tier, 7, bytes, COUNT, places), 0);
	for (uint32_t i = 0; i < COUNT; i++) {
		assert_int_equal(places[i].bytes, bytes[i]);
		assert_int_equal(places[i].reserved, 0);
		write_place(bed, places[i], i);
		sum += bytes[i];
	}
	for (uint32_t i = 0; i < COUNT; i++)
		check_place(bed, places[i], i);
	kvr_tier_stat(bed->tier, &stat);
	assert_int_equal(stat.place_count, COUNT);
	assert_int_equal(stat.reserved_bytes, sum);
	assert_int_equal(stat.write_count, COUNT);
	assert_int_equal(stat.write_bytes, sum);
	assert_int_equal(stat.read_count, COUNT);
	assert_int_equal(stat.read_bytes, sum);
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
	struct bed *bed = *state;
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
				write_place(bed, places[groups][i], groups * COUNT + i);
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
				check_place(bed, places[g][i], g * COUNT + i);
		groups--; /* what leaves makes room for as much again */
		kvr_tier_release(bed->tier, groups, places[groups], COUNT);
	}
	while (groups-- > 0)
		kvr_tier_release(bed->tier, groups, places[groups], COUNT);
}

static void test_address(void **state)
{
	struct bed *bed = *state;
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
		fill(memory, bytes[i], i);
		check_place(bed, places[i], i);
		write_place(bed, places[i], i + 10);
		check(memory, bytes[i], i + 10);
	}
	kvr_tier_release(bed->tier, 1, places, 2);
}

/* T4: more transfers than a tier takes at once; each comes back once, with its own bytes. */
static void test_queue(void **state)
{
	enum { COUNT = 2000, BYTES = 512 };
	struct bed *bed = *state;
	static uint8_t memory[COUNT * BYTES] __attribute__((aligned(4096)));
	static struct kvr_tier_io ios[COUNT];
	static uint32_t seen[COUNT];
	struct kvr_tier_io *reaped[7];
	uint32_t bytes[COUNT];
	struct kvr_place places[COUNT];

	for (uint32_t i = 0; i < COUNT; i++)
		bytes[i] = BYTES;
	assert_int_equal(kvr_tier_reserve(bed->tier, 1, bytes, COUNT, places), 0);
	for (int pass = 0; pass < 2; pass++) {
		uint32_t submitted = 0;
		uint32_t done = 0;
		uint32_t refused = 0;

		memset(seen, 0, sizeof(seen));
		for (uint32_t i = 0; i < COUNT; i++) {
			uint8_t *data = memory + (size_t)i * BYTES;

			ios[i] = (struct kvr_tier_io){
				.op = pass == 0 ? KVR_TIER_WRITE : KVR_TIER_READ,
				.place = places[i],
				.buffer = {data, BYTES},
				.owner = &seen[i],
				.status = -EINPROGRESS,
			};
			fill(data, BYTES, pass == 0 ? i : 1u << 20);
		}
		while (done < COUNT) {
			struct kvr_tier_io *batch[COUNT];
			uint32_t count;

			for (uint32_t i = submitted; i < COUNT; i++)
				batch[i - submitted] = &ios[i];
			count = kvr_tier_submit(bed->tier, batch, COUNT - submitted);
			refused += count < COUNT - submitted;
			submitted += count;
			wait_for(bed->tier);
			count = kvr_tier_reap(
				bed->tier, reaped, kvr_random_range(bed->random, 1, 7));
			for (uint32_t i = 0; i < count; i++) {
				assert_int_equal(reaped[i]->status, 0);
				(*(uint32_t *)reaped[i]->owner)++;
			}
			done += count;
		}
		assert_true(refused > 0); /* the queue is bounded, and the case went past it */
		assert_int_equal(submitted, COUNT);
		assert_int_equal(kvr_tier_reap(bed->tier, reaped, 7), 0);
		for (uint32_t i = 0; i < COUNT; i++)
			assert_int_equal(seen[i], 1);
	}
	for (uint32_t i = 0; i < COUNT; i++)
		check(memory + (size_t)i * BYTES, BYTES, i);
	kvr_tier_release(bed->tier, 1, places, COUNT);
}

static void test_sync(void **state)
{
	struct bed *bed = *state;
	const uint32_t bytes = 3000;
	struct kvr_place place;
	struct kvr_tier_io sync = {.op = KVR_TIER_SYNC, .owner = bed};

	run(bed->tier, &sync); /* of nothing */
	assert_int_equal(kvr_tier_reserve(bed->tier, 1, &bytes, 1, &place), 0);
	write_place(bed, place, 1);
	run(bed->tier, &sync);
	assert_ptr_equal(sync.owner, bed);
	check_place(bed, place, 1);
	kvr_tier_release(bed->tier, 1, &place, 1);
}

/* T1, T3: groups of places come and go at random, some sizes at a time; what is there stays right. */
static void test_random(void **state)
{
	enum { GROUPS = 48, PLACES_MAX = 40, STEPS = 3000 };
	struct bed *bed = *state;
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
		uint32_t g = kvr_random_range(bed->random, 0, GROUPS - 1);
		uint32_t i = kvr_random_range(bed->random, 0, PLACES_MAX - 1);

		if (groups[g].count > 0) {
			i %= groups[g].count;
			check_place(bed, groups[g].places[i], groups[g].number + i);
			if (kvr_random_range(bed->random, 0, 3) > 0)
				continue;
			kvr_tier_release(bed->tier, g, groups[g].places, groups[g].count);
			places_live -= groups[g].count;
			groups[g].count = 0;
		} else {
			uint32_t bytes[PLACES_MAX] = {0};
			uint32_t count = i + 1;

			for (i = 0; i < count; i++)
				bytes[i] = kvr_random_cluster(bed->random) * 1024;
			bytes[0] += kvr_random_range(bed->random, 0, 1) * 500000;
			if (kvr_tier_reserve(bed->tier, g, bytes, count, groups[g].places) < 0) {
				refused++;
				continue;
			}
			groups[g].count = count;
			groups[g].number = kvr_random_next(bed->random);
			for (i = 0; i < count; i++)
				write_place(bed, groups[g].places[i], groups[g].number + i);
			places_live += count;
		}
		kvr_tier_stat(bed->tier, &stat);
		assert_int_equal(stat.place_count, places_live);
		assert_true(stat.used_bytes <= stat.capacity_bytes);
	}
	assert_true(refused > 10); /* it ran at the edge */
	for (uint32_t g = 0; g < GROUPS; g++) {
		for (uint32_t i = 0; i < groups[g].count; i++)
			check_place(bed, groups[g].places[i], groups[g].number + i);
		if (groups[g].count > 0)
			kvr_tier_release(bed->tier, g, groups[g].places, groups[g].count);
	}
	kvr_tier_stat(bed->tier, &stat);
	assert_int_equal(stat.used_bytes, 0);
}

/* T5 is asserted: a process that breaks it ends there and then. */
static void test_release_in_flight(void **state)
{
	struct bed *bed = *state;
	const uint32_t bytes = 4096;
	struct kvr_place place;
	struct kvr_tier_io io = {.op = KVR_TIER_READ};
	struct kvr_tier_io *one = &io;
	int status;
	pid_t child;

	assert_int_equal(kvr_tier_reserve(bed->tier, 1, &bytes, 1, &place), 0);
	write_place(bed, place, 1);
	io.place = place;
	io.buffer = (struct kvr_span){bed->buffer, bytes};
	child = fork();
	assert_true(child >= 0);
	if (child == 0) {
		signal(SIGABRT, SIG_DFL);
		close(STDERR_FILENO);
		kvr_tier_submit(bed->tier, &one, 1);
		kvr_tier_release(bed->tier, 1, &place, 1);
		_exit(0);
	}
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_true(WIFSIGNALED(status));
	assert_int_equal(WTERMSIG(status), SIGABRT);
	kvr_tier_release(bed->tier, 1, &place, 1);
}

#define CASE(function)                                     \
	{                                                  \
#function, function, setup, teardown, NULL \
	}

int main(void)
{
	struct CMUnitTest tests[] = {
		CASE(test_sizes),
		CASE(test_all_or_none),
		CASE(test_address),
		CASE(test_queue),
		CASE(test_sync),
		CASE(test_random),
		CASE(test_release_in_flight),
	};
	int failed = 0;

	shared_random = kvr_random_start();
	for (size_t b = 0; b < sizeof(beds) / sizeof(beds[0]); b++) {
		for (size_t t = 0; t < sizeof(tests) / sizeof(tests[0]); t++)
			tests[t].initial_state = &beds[b];
		failed += cmocka_run_group_tests_name(beds[b].name, tests, NULL, NULL);
	}
	return failed;
}

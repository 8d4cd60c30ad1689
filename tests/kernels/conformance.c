/* SPDX-License-Identifier: Apache-2.0 */
/* conformance.c: what every device of kernels/device.h must do.
 *
 * Goal: a device is right if and only if it passes here. A new device is one line in `devices`.
 *
 * Method: worlds, small sequences of random shape (dims, groups, dtypes, segment and cluster sizes,
 * chains with short segments, sinks, dense lanes, tails) whose every row is known, are built by the
 * device itself through submit and reap. Each operation is then held against plain arithmetic in
 * double, written here from the words of device.h, within the tolerance that the table states. All
 * outputs are unaligned and stand between canaries. Where rounding may decide (which cluster is
 * better by a hair), what is checked is that no choice is worse than the tolerance; everything else is
 * exact. Devices of one instruction set must agree to the bit, whatever their number of workers (D4).
 *
 * A failure prints the seed of its world. */
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/kernels/check_merge_util.h"
#include "tests/kernels/check_util.h"
#include "tests/kernels/oracle_util.h"

/* ThreadSanitizer looks at who touches what, not at results. */
#if defined(__SANITIZE_THREAD__)
#define WORLDS 3u
#define TRIALS 4u
#else
#define WORLDS 8u
#define TRIALS 10u /* recalls, fetches and attentions per world */
#endif
#define MERGES 8u /* shapes of lanes */
#define FLIPS  3u /* recalls and fetches per world while extents change */

static const struct device {
	const char *name;
	enum kvr_isa isa;
	uint32_t threads;
	uint32_t inline_item_us;
} devices[] = {
	{"cpu plain, 1 thread", KVR_ISA_PLAIN, 1, 0}, /* the first is the reference of `cosine` */
	{"cpu plain, 3 threads", KVR_ISA_PLAIN, 3, 0},
	{"cpu avx2, 1 thread", KVR_ISA_AVX2, 1, 1000},
	{"cpu avx2, 2 threads", KVR_ISA_AVX2, 2, 0},
	{"cpu avx512, 1 thread", KVR_ISA_AVX512, 1, 0},
	{"cpu avx512, 4 threads", KVR_ISA_AVX512, 4, 10},
};

/* Per operation: how far a result may be from the oracle's. Moves are exact. */
static const struct {
	double cosine; /* CLUSTER: mean cosine to the own centroid, below the reference device's */
	struct check_tolerance check;
} tolerance = {.cosine = 1e-3, .check = {.score = 2e-3, .mass = 2e-3, .attend = 2e-4}};

/* What is known from earlier devices. */
static double reference_cosine[WORLDS];
static uint64_t digests[KVR_ISA_AVX512 + 1][WORLDS];
static uint64_t estimates[KVR_ISA_AVX512 + 1][WORLDS];
static uint64_t merge_digests[KVR_ISA_AVX512 + 1][MERGES];

/* The device under test. */
static const struct device *entry;
static struct kvr_device *device; /* NULL if this machine cannot have it */
static struct oracle_world worlds[WORLDS];
static bool built;
static const struct oracle_world *current; /* the world in hand, for the message of a failure */

static int group_setup(void **state)
{
	const struct kvr_device_cpu_config config = {.threads = entry->threads,
		.isa = entry->isa,
		.inline_item_us = entry->inline_item_us};
	const int error = kvr_device_open_cpu(&config, &device);

	(void)state;
	if (error == -ENOTSUP)
		return 0;
	assert_int_equal(error, 0);
	return 0;
}

static int group_teardown(void **state)
{
	(void)state;
	for (uint32_t i = 0; built && i < WORLDS; i++)
		oracle_world_close(&worlds[i]);
	built = false;
	device = kvr_device_close(device);
	return 0;
}

static int test_setup(void **state)
{
	(void)state;
	current = NULL;
	return 0;
}

static int test_teardown(void **state)
{
	(void)state;
	if (current)
		print_error("in the world of seed %llu\n", (unsigned long long)current->seed);
	return 0;
}

/* At the head of each test. */
static void need_device(bool need_worlds)
{
	if (!device) {
		print_message("skipped: this processor lacks the instruction set\n");
		skip();
	}
	if (need_worlds)
		assert_true(built);
}

static void test_append(void **state)
{
	struct oracle_world world;

	(void)state;
	need_device(false);
	for (uint32_t i = 0; i < WORLDS; i++) {
		const struct kvr_geometry *g = &world.geometry;
		uint32_t count;

		oracle_world_open(&world, 1000 + i);
		current = &world;
		count = world.token_count < g->segment_tokens ? world.token_count
							      : g->segment_tokens;
		oracle_world_append(&world, device, 0, count);
		for (uint32_t lane = 0; lane < kvr_geometry_lanes(g); lane++) {
			for (uint32_t t = 0; t < count; t++) {
				assert_memory_equal(kvr_tail_key(&world.tail, lane, t),
					oracle_key(&world, lane, t), kvr_geometry_key_bytes(g));
				assert_memory_equal(kvr_tail_value(&world.tail, lane, t),
					oracle_value(&world, lane, t), kvr_geometry_value_bytes(g));
			}
		}
		check_append_refuses(&world, device, i);
		oracle_world_close(&world);
	}
	current = NULL;
}

static uint64_t hash(uint64_t value, const void *bytes, size_t count)
{
	for (size_t i = 0; i < count; i++)
		value = (value ^ ((const uint8_t *)bytes)[i]) * 0x100000001b3u;
	return value;
}

/* All of a summary but the addresses. */
static uint64_t hash_summary(uint64_t value, const struct kvr_segment_view *view)
{
	const struct kvr_geometry *g = view->geometry;
	const size_t lanes = kvr_geometry_lanes(g);

	value = hash(value, view->key_high, lanes * view->cluster_max * g->key_dim);
	value = hash(value, view->key_low, lanes * view->cluster_max * g->key_dim);
	value = hash(value, view->key_step, lanes * view->cluster_max * 4);
	value = hash(value, view->key_planes, lanes * 2);
	value = hash(value, view->value_mean, lanes * view->cluster_max * g->value_dim * 2);
	value = hash(value, view->row_first, lanes * (view->cluster_max + 2) * 2);
	value = hash(value, view->row_token, lanes * view->token_count * 2);
	return hash(value, view->cluster_count, lanes * 2);
}

/* Builds the worlds: CLUSTER's invariants and means are checked on the way. */
static void test_cluster(void **state)
{
	(void)state;
	need_device(false);
	for (uint32_t i = 0; i < WORLDS; i++) {
		struct oracle_world *world = &worlds[i];
		uint64_t *known = &digests[entry->isa][i];
		uint64_t digest = 0xcbf29ce484222325u;
		double cosines = 0.0;
		uint32_t first = 0, lanes = 0;

		oracle_world_open(world, i + 1);
		current = world;
		oracle_world_build(world, device);
		for (uint32_t s = 0; s < world->segment_count; s++) {
			const struct kvr_segment_view *view = world->chain[s];

			for (uint32_t l = 0; l < kvr_geometry_lanes(&world->geometry); l++, lanes++)
				cosines += oracle_check_lane(world, view, l, first);
			first += view->token_count;
			digest = hash_summary(digest, view);
		}
		cosines = lanes ? cosines / lanes : 0.0;
		if (entry == devices)
			reference_cosine[i] = cosines;
		assert_true(cosines >= reference_cosine[i] - tolerance.cosine);
		if (*known)
			assert_true(digest == *known); /* D4 */
		*known = digest;
	}
	current = NULL;
	built = true;
}

static void test_pack(void **state)
{
	(void)state;
	need_device(true);
	for (uint32_t i = 0; i < WORLDS; i++) {
		current = &worlds[i];
		check_pack(current);
	}
	current = NULL;
}

static void merge_lanes(void *owner, struct kvr_cluster_item *items, uint32_t count)
{
	assert_int_equal(oracle_run(owner, KVR_JOB_MERGE, items, count), 0);
}

static void test_merge(void **state)
{
	(void)state;
	need_device(false);
	for (uint32_t i = 0; i < MERGES; i++) {
		uint64_t *known = &merge_digests[entry->isa][i], digest = 0xcbf29ce484222325u;
		struct oracle_random random = oracle_random(i + 1);
		const uint32_t most = i == 0 ? 0 : i % 3 ? 300 : 900;
		struct check_merge merge;

		check_merge_open(&merge, i + 1, oracle_pick(&random, most > 0, most));
		check_merge_fill(&merge);
		check_merge_hold(&merge, merge_lanes, device);
		digest = hash(digest, merge.rows.data, merge.rows.bytes);
		digest = hash(digest, merge.view.merged_tokens,
			merge.geometry.kv_heads * merge.view.merged_max * 2);
		if (*known)
			assert_true(digest == *known); /* D4 */
		*known = digest;
		check_merge_close(&merge);
	}
}

static void test_recall(void **state)
{
	(void)state;
	need_device(true);
	for (uint32_t i = 0; i < WORLDS; i++) {
		current = &worlds[i];
		for (uint32_t trial = 0; trial < TRIALS; trial++)
			check_recall(&worlds[i], device, &tolerance.check);
		if (estimates[entry->isa][i])
			assert_true(worlds[i].digest == estimates[entry->isa][i]); /* D4 */
		estimates[entry->isa][i] = worlds[i].digest;
	}
	current = NULL;
}

static void test_flip(void **state)
{
	(void)state;
	need_device(true);
	for (uint32_t i = 0; i < WORLDS; i++) {
		current = &worlds[i];
		check_flip(&worlds[i], device, FLIPS);
	}
	current = NULL;
}

static void test_fetch(void **state)
{
	(void)state;
	need_device(true);
	for (uint32_t i = 0; i < WORLDS; i++) {
		current = &worlds[i];
		for (uint32_t trial = 0; trial < TRIALS; trial++)
			check_fetch(&worlds[i], device);
	}
	current = NULL;
}

static void test_copy(void **state)
{
	static const size_t sizes[] = {0, 1, 63, 64, 65, 4096, 1u << 20};
	struct kvr_copy_item item[7];
	struct oracle_guard from[7], to[7];

	(void)state;
	need_device(false);
	for (uint32_t i = 0; i < 7; i++) {
		oracle_guard_open(&from[i], sizes[i], i);
		oracle_guard_open(&to[i], sizes[i], 2 * i + 1);
		for (size_t at = 0; at < sizes[i]; at++)
			from[i].data[at] = (uint8_t)(at * 31 + i);
		item[i] = (struct kvr_copy_item){to[i].data, from[i].data, sizes[i]};
	}
	assert_int_equal(oracle_run(device, KVR_JOB_COPY, item, 7), 0);
	for (uint32_t i = 0; i < 7; i++) {
		assert_memory_equal(to[i].data, from[i].data, sizes[i]);
		oracle_guard_close(&from[i]);
		oracle_guard_close(&to[i]);
	}
}

static void test_attend(void **state)
{
	(void)state;
	need_device(true);
	for (uint32_t i = 0; i < WORLDS; i++) {
		current = &worlds[i];
		for (uint32_t trial = 0; trial < TRIALS; trial++)
			check_attend(&worlds[i], device, &tolerance.check);
	}
	current = NULL;
}

/* Many jobs at once, urgent or not, come back once each and right (D2). */
static void test_queue(void **state)
{
	enum { JOBS = 300 };
	static uint8_t from[JOBS][64], to[JOBS][64];
	struct kvr_copy_item item[JOBS];
	struct kvr_job job[JOBS], *done[JOBS];
	uint32_t reaped = 0;

	(void)state;
	need_device(false);
	memset(to, 0, sizeof(to));
	for (uint32_t i = 0; i < JOBS; i++) {
		memset(from[i], (int)(i % 255) + 1, sizeof(from[i]));
		item[i] = (struct kvr_copy_item){to[i], from[i], sizeof(to[i])};
		job[i] = (struct kvr_job){.kind = KVR_JOB_COPY,
			.urgent = i % 3 == 0,
			.items = &item[i],
			.item_count = 1,
			.status = -1};
		assert_int_equal(kvr_device_submit(device, &job[i]), 0);
	}
	while (reaped < JOBS)
		reaped += check_reap(device, done, JOBS);
	assert_int_equal(reaped, JOBS);
	assert_int_equal(kvr_device_reap(device, done, JOBS), 0);
	for (uint32_t i = 0; i < JOBS; i++)
		assert_int_equal(job[i].status, 0);
	assert_memory_equal(to, from, sizeof(to));
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, test_setup, test_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_append),
		TEST(test_cluster), /* builds the worlds of the tests behind it */
		TEST(test_pack),
		TEST(test_merge),
		TEST(test_recall), /* FILL too */
		TEST(test_flip),
		TEST(test_fetch),
		TEST(test_copy),
		TEST(test_attend),
		TEST(test_queue),
	};
	int failed = 0;

	for (uint32_t i = 0; i < sizeof(devices) / sizeof(devices[0]); i++) {
		entry = &devices[i];
		failed += cmocka_run_group_tests_name(
			entry->name, tests, group_setup, group_teardown);
	}
	return failed != 0;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* store_power.c: the power goes while a store is written.
 *
 * Goal: after a cut at any SYNC of a workload, with every write that no SYNC covered kept, lost or torn, what was
 * acknowledged is there, byte for byte, what was dropped is not, and of what was under way all or nothing.
 *
 * Method: a child runs a workload of puts and drops, over a disk whose power can be cut (power_util.h), and tells its parent of
 * each step by a byte through a pipe; at the cut it ends, there and then. The parent opens the store, compares, and goes
 * on with it. For each SYNC of the workload, and for KVR_POWER_SEEDS seeds each (8 unless that is in the environment). The catalog's own
 * durability is LMDB's, and tested apart (catalog_crash.c). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#include "tests/tiers/power_util.h"
#include "tests/tiers/store_util.h"

#define SLABS    7u /* fewer than segments in all: slabs are used again */
#define SEGMENTS 9u
#define SEEDS    8u
#define SYNCS    64u /* more than the workload has */
#define WRITER   1

enum step_op {
	STEP_PUT,
	STEP_DROP,
};

/* A segment behind another, or behind none (itself), is put; or one is dropped. */
static const struct step {
	enum step_op op;
	uint32_t segment, parent;
} steps[] = {
	{STEP_PUT, 0, 0},
	{STEP_PUT, 1, 0},
	{STEP_PUT, 2, 1},
	{STEP_PUT, 3, 3},
	{STEP_PUT, 4, 4},
	{STEP_DROP, 4, 4},
	{STEP_PUT, 5, 3},
	{STEP_DROP, 2, 1},
	{STEP_PUT, 6, 1},
	{STEP_PUT, 7, 7},
	{STEP_DROP, 5, 3},
	{STEP_PUT, 8, 7},
};

enum { STEPS = sizeof(steps) / sizeof(steps[0]) };

static struct kvr_store_bed bed;
static struct kvr_store_sealed *segments[SEGMENTS];
static struct kvr_power power;
static uint32_t cut_at;
static uint64_t seed;
static int pipe_fd;

static struct kvr_tier *wrap(void *context, struct kvr_tier *tier, int which)
{
	char path[256];

	(void)context;
	if (which != WRITER)
		return tier;
	kvr_store_test_path(&bed, "slabs.kvr", path);
	return kvr_power_wrap(&power, path, seed, tier);
}

/* On the store's writer thread, in the child. */
static void gone(void *context)
{
	(void)context;
	_exit(0);
}

static int drop(const struct kvr_store_sealed *segment)
{
	struct kvr_store_job job = {.op = KVR_STORE_DROP};

	memcpy(job.drop.root, bed.model.root, KVR_HASH_BYTES);
	memcpy(job.drop.hash, segment->hash, KVR_HASH_BYTES);
	return kvr_store_test_run(&bed, &job);
}

/* The child: all steps, each told when it is done, and the end. */
static void run_child(void)
{
	uint8_t told = 0;

	bed.hooks.wrap = wrap;
	if (kvr_store_test_open(&bed) < 0)
		_exit(1);
	power.cut_at = cut_at;
	power.gone = gone;
	for (uint32_t i = 0; i < STEPS; i++) {
		struct kvr_store_sealed *segment = segments[steps[i].segment];
		int rc = 0;

		if (steps[i].op == STEP_PUT) {
			rc = kvr_store_test_put(&bed, segment);
			kvr_store_unhold(bed.store, segment->id);
		} else {
			rc = drop(segment);
		}
		if (rc < 0 || write(pipe_fd, &told, 1) != 1)
			_exit(2);
	}
	kvr_store_test_close(&bed);
	_exit(write(pipe_fd, &told, 1) == 1 ? 0 : 3);
}

/* Runs a child to its end. Returns how many steps it did; STEPS + 1 where the power lasted. */
static uint32_t run(void)
{
	uint8_t told;
	uint32_t count = 0;
	int pipes[2];
	int status;
	pid_t child;

	assert_int_equal(pipe(pipes), 0);
	pipe_fd = pipes[1];
	child = fork();
	assert_true(child >= 0);
	if (child == 0)
		run_child();
	close(pipes[1]);
	while (count <= STEPS && read(pipes[0], &told, 1) == 1)
		count++;
	close(pipes[0]);
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
	return count;
}

/* What must be there after `done` steps; -1 for what the next step was about. */
static void expect(uint32_t done, int *ret_stored)
{
	memset(ret_stored, 0, SEGMENTS * sizeof(*ret_stored));
	for (uint32_t i = 0; i < done; i++)
		ret_stored[steps[i].segment] = steps[i].op == STEP_PUT;
	if (done < STEPS)
		ret_stored[steps[done].segment] = -1;
}

/* Ids were given in children: the store is asked for them. 0 for what is not there. */
static void find_ids(void)
{
	struct kvr_store_job job = {.op = KVR_STORE_LIST};

	memcpy(job.list.root, bed.model.root, KVR_HASH_BYTES);
	assert_int_equal(kvr_store_test_run(&bed, &job), 0);
	assert_false(job.list.more);
	for (uint32_t s = 0; s < SEGMENTS; s++) {
		segments[s]->id = 0;
		for (uint32_t i = 0; i < job.list.count; i++)
			if (memcmp(job.list.entries[i].hash, segments[s]->hash, KVR_HASH_BYTES) ==
				0)
				segments[s]->id = job.list.entries[i].id;
	}
}

static void check(uint32_t done)
{
	int stored[SEGMENTS];

	expect(done, stored);
	find_ids();
	for (uint32_t i = 0; i < SEGMENTS; i++) {
		const bool there = segments[i]->id != 0;

		if (stored[i] >= 0)
			assert_int_equal(there, stored[i]);
		if (there)
			assert_int_equal(kvr_store_test_load(&bed, segments[i]), 0);
	}
}

/* Cuts at SYNC `cut_at`, compares, and puts what is missing of the last step, so that the store is seen to go on.
 * Returns false where the workload has fewer SYNCs. */
static bool cut(void)
{
	uint32_t done;

	kvr_store_bed_init(&bed, SLABS, KVR_NVME_IO_THREADS);
	bed.model.geometry.segment_tokens = 128;
	for (uint32_t i = 0; i < SEGMENTS; i++)
		segments[i] = NULL;
	for (uint32_t i = 0; i < STEPS; i++)
		if (steps[i].op == STEP_PUT)
			segments[steps[i].segment] = kvr_store_sealed_any(&bed,
				steps[i].parent == steps[i].segment ? NULL
								    : segments[steps[i].parent],
				steps[i].segment);
	done = run();
	bed.hooks.wrap = NULL;
	kvr_store_test_reopen(&bed);
	check(done < STEPS ? done : STEPS);
	if (done < STEPS && steps[done].op == STEP_PUT && segments[steps[done].segment]->id == 0) {
		kvr_store_test_keep(&bed, segments[steps[done].segment]);
		check(done + 1);
	}
	kvr_store_bed_fini(&bed);
	for (uint32_t i = 0; i < SEGMENTS; i++)
		kvr_store_sealed_free(segments[i]);
	return done < STEPS;
}

static void test_power(void **state)
{
	const char *text = getenv("KVR_POWER_SEEDS");
	const uint32_t seeds = text ? (uint32_t)strtoul(text, NULL, 0) : SEEDS;
	uint32_t cuts = 0;

	(void)state;
	for (seed = 0; seed < seeds; seed++) {
		cut_at = 1;
		while (cut_at < SYNCS && cut()) {
			cut_at++;
			cuts++;
		}
		assert_true(cut_at < SYNCS);
		assert_true(cut_at > STEPS / 2);
	}
	print_message("%u cuts\n", cuts);
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(test_power)};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

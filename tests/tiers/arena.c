/* SPDX-License-Identifier: Apache-2.0 */
/* arena.c: the bounded arena and its allocator.
 *
 * Goal: A1 to A3 of tiers/arena.h hold under any order of alloc and free, and little is wasted.
 *
 * Method: random requests against a list of what is live, each run of bytes filled with its own pattern
 * and checked before it is freed, so that an overlap, or bookkeeping in live memory, shows. The
 * segment case repeats what the daemon does (sequences fill blocks, segments are sealed into a
 * summary and places of cluster size, the oldest segment goes when there is no room) for 50 times
 * the capacity, and measures what part of the capacity is payload at the moment of each refusal. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "tests/tiers/random_util.h"
#include "tiers/arena.h"

#define MIB ((uint64_t)1 << 20)

struct run {
	uint8_t *memory;
	size_t bytes;
	uint8_t pattern;
};

static void fill(struct run *run, uint8_t pattern)
{
	run->pattern = pattern;
	memset(run->memory, pattern, run->bytes);
}

/* The first byte is the pattern's, and each equals the one behind it. */
static void check(const struct run *run)
{
	assert_int_equal(run->memory[0], run->pattern);
	assert_memory_equal(run->memory, run->memory + 1, run->bytes - 1);
}

static void test_open(void **state)
{
	struct kvr_arena *arena = NULL;
	struct kvr_arena_stat stat;
	size_t bytes;

	(void)state;
	assert_int_equal(kvr_arena_open(4 * MIB - 1, &arena), -EINVAL);
	assert_int_equal(kvr_arena_open(UINT64_MAX, &arena), -EINVAL);
	assert_null(arena);
	assert_int_equal(kvr_arena_open(4 * MIB + 1, &arena), 0);
	kvr_arena_stat(arena, &stat);
	assert_int_equal(stat.capacity_bytes, 6 * MIB);
	assert_int_equal(stat.used_bytes, 0);
	assert_int_equal(stat.allocation_count, 0);
	assert_true(stat.locked_bytes <= stat.capacity_bytes);
	assert_true(stat.metadata_bytes < stat.capacity_bytes / 100);
	print_message("pages %d, locked %llu of %llu\n", (int)stat.pages,
		(unsigned long long)stat.locked_bytes, (unsigned long long)stat.capacity_bytes);
	assert_int_equal((uintptr_t)kvr_arena_base(arena, &bytes) % (2 * MIB), 0);
	assert_int_equal(bytes, stat.capacity_bytes);
	kvr_arena_free(arena, NULL, 1);
	assert_non_null(kvr_arena_alloc(arena, 1000)); /* close takes it all back */
	assert_null(kvr_arena_close(arena));
	assert_null(kvr_arena_close(NULL));
}

/* Every size in turn, until the arena is full; then, freed in another order, it is whole again. */
static void test_exhaustion(void **state)
{
	static const size_t sizes[] = {1, 64, 128, 129, 8192, 65535, 65536, 3 * MIB};
	static struct run runs[8 * MIB / 128];
	struct kvr_arena *arena;
	struct kvr_arena_stat stat;

	(void)state;
	assert_int_equal(kvr_arena_open(8 * MIB, &arena), 0);
	for (size_t s = 0; s < sizeof(sizes) / sizeof(sizes[0]); s++) {
		size_t taken = (sizes[s] + 127) / 128 * 128;
		uint32_t count = 0;

		for (;;) {
			struct run run = {kvr_arena_alloc(arena, sizes[s]), sizes[s], 0};

			if (!run.memory)
				break;
			assert_int_equal((uintptr_t)run.memory % 64, 0); /* A2 */
			fill(&run, (uint8_t)count);
			runs[count++] = run;
		}
		assert_int_equal(count, 8 * MIB / taken);
		kvr_arena_stat(arena, &stat);
		assert_int_equal(stat.used_bytes, count * taken);
		assert_int_equal(stat.requested_bytes, count * sizes[s]);
		assert_int_equal(stat.full_bytes, stat.requested_bytes);
		assert_int_equal(stat.allocation_count, count);
		for (uint32_t parity = 0; parity < 2; parity++)
			for (uint32_t i = parity; i < count; i += 2) {
				check(&runs[i]);
				kvr_arena_free(arena, runs[i].memory, runs[i].bytes);
			}
		/* A3 */
		runs[0].memory = kvr_arena_alloc(arena, 8 * MIB);
		assert_non_null(runs[0].memory);
		assert_null(kvr_arena_alloc(arena, 1));
		kvr_arena_free(arena, runs[0].memory, 8 * MIB);
	}
	assert_null(kvr_arena_alloc(arena, 8 * MIB + 1));
	assert_null(kvr_arena_alloc(arena, SIZE_MAX));
	kvr_arena_close(arena);
}

static size_t random_bytes(struct kvr_random *random)
{
	switch (kvr_random_range(random, 0, 9)) {
	case 0: return kvr_random_range(random, 1, 200);
	case 1: return kvr_random_range(random, 60000, 70000);
	case 2: return kvr_random_range(random, 1, 1 << 20);
	default: return (size_t)kvr_random_cluster(random) * 512;
	}
}

static void test_random(void **state)
{
	enum { RUNS = 1024, STEPS = 60000 };
	struct kvr_random *random = *state;
	static struct run runs[RUNS];
	struct kvr_arena *arena;
	struct kvr_arena_stat stat;
	uint64_t requested = 0;
	uint32_t live = 0;
	uint32_t refused = 0;
	uint8_t *base;
	size_t base_bytes;

	memset(runs, 0, sizeof(runs));
	assert_int_equal(kvr_arena_open(24 * MIB, &arena), 0);
	base = kvr_arena_base(arena, &base_bytes);
	for (uint32_t step = 0; step < STEPS; step++) {
		struct run *run = &runs[kvr_random_range(random, 0, RUNS - 1)];

		if (run->memory) {
			check(run);
			kvr_arena_free(arena, run->memory, run->bytes);
			requested -= run->bytes;
			live--;
			run->memory = NULL;
			continue;
		}
		run->bytes = random_bytes(random);
		run->memory = kvr_arena_alloc(arena, run->bytes);
		if (!run->memory) {
			refused++;
			continue;
		}
		assert_true(run->memory >= base); /* A1 */
		assert_true(run->memory + run->bytes <= base + base_bytes);
		assert_int_equal((uintptr_t)run->memory % 64, 0); /* A2 */
		fill(run, (uint8_t)step);
		requested += run->bytes;
		live++;
		kvr_arena_stat(arena, &stat);
		assert_int_equal(stat.requested_bytes, requested);
		assert_int_equal(stat.allocation_count, live);
		assert_true(stat.used_bytes <= stat.capacity_bytes); /* A1 */
	}
	assert_true(refused > 100); /* it ran at the edge */
	for (uint32_t i = 0; i < RUNS; i++)
		kvr_arena_free(arena, runs[i].memory, runs[i].bytes);
	assert_non_null(kvr_arena_alloc(arena, 24 * MIB)); /* A3 */
	kvr_arena_close(arena);
}

/* ---- segments -------------------------------------------------------------------------------- */

enum {
	LANES = 12,
	ROW_BYTES = 256, /* a token's key and value in one lane: d = 64, two bytes */
	SEGMENT_TOKENS = 1024,
	BLOCK_TOKENS = 64,
	SEQUENCES = 4, /* that fill their blocks at the same time */
	SEGMENTS_MAX = 4096,
	PLACES_MAX = LANES * SEGMENT_TOKENS,
};

struct segment {
	uint32_t count;
	struct run *runs; /* the summary, then the places */
};

struct sequence {
	uint32_t tokens; /* after which it is sealed; 0: not begun */
	uint32_t block_count;
	struct run blocks[SEGMENT_TOKENS / BLOCK_TOKENS];
};

struct workload {
	struct kvr_arena *arena;
	struct kvr_random *random;
	struct segment segments[SEGMENTS_MAX]; /* a ring, oldest at `oldest` */
	uint32_t oldest;
	uint32_t count;
	struct sequence sequences[SEQUENCES];
	uint64_t turned_bytes;
	bool measuring;
	uint32_t refused;
	double share_sum; /* of payload in the capacity, at each refusal */
};

/* The oldest segment goes; one in four is in use and goes another round. */
static void drop_oldest(struct workload *w)
{
	struct segment segment;

	assert_true(w->count > 0);
	segment = w->segments[w->oldest];
	w->oldest = (w->oldest + 1) % SEGMENTS_MAX;
	if (kvr_random_range(w->random, 0, 3) == 0) {
		w->segments[(w->oldest + w->count - 1) % SEGMENTS_MAX] = segment;
		return;
	}
	for (uint32_t i = 0; i < segment.count; i++)
		kvr_arena_free(w->arena, segment.runs[i].memory, segment.runs[i].bytes);
	free(segment.runs);
	w->count--;
}

static void take(struct workload *w, struct run *run)
{
	struct kvr_arena_stat stat;

	run->memory = kvr_arena_alloc(w->arena, run->bytes);
	if (run->memory)
		return;
	kvr_arena_stat(w->arena, &stat);
	if (w->measuring) {
		w->refused++;
		w->share_sum += (double)stat.full_bytes / (double)stat.capacity_bytes;
	}
	while (!run->memory) {
		drop_oldest(w);
		run->memory = kvr_arena_alloc(w->arena, run->bytes);
	}
}

static void seal(struct workload *w, struct sequence *sequence)
{
	static struct run runs[1 + PLACES_MAX];
	const size_t clusters = (sequence->tokens + 15) / 16;
	struct segment *segment;
	uint32_t count = 1;

	runs[0].bytes = LANES * (clusters * (ROW_BYTES + 10) + (size_t)sequence->tokens * 2);
	for (uint32_t lane = 0; lane < LANES; lane++)
		for (uint32_t left = sequence->tokens; left > 0; count++) {
			uint32_t tokens = kvr_random_cluster(w->random);

			tokens = tokens < left ? tokens : left;
			runs[count].bytes = (size_t)tokens * ROW_BYTES;
			left -= tokens;
		}
	for (uint32_t i = 0; i < count; i++) {
		take(w, &runs[i]);
		w->turned_bytes += runs[i].bytes;
	}
	for (uint32_t i = 0; i < sequence->block_count; i++)
		kvr_arena_free(w->arena, sequence->blocks[i].memory, sequence->blocks[i].bytes);
	sequence->tokens = 0;
	sequence->block_count = 0;
	assert_true(w->count < SEGMENTS_MAX);
	segment = &w->segments[(w->oldest + w->count) % SEGMENTS_MAX];
	w->count++;
	segment->count = count;
	segment->runs = calloc(count, sizeof(struct run));
	assert_non_null(segment->runs);
	memcpy(segment->runs, runs, count * sizeof(struct run));
}

static void step(struct workload *w)
{
	struct sequence *sequence = &w->sequences[kvr_random_range(w->random, 0, SEQUENCES - 1)];
	struct run *block;

	if (sequence->tokens == 0)
		sequence->tokens = kvr_random_range(w->random, 0, 1)
					   ? SEGMENT_TOKENS
					   : kvr_random_range(w->random, 64, SEGMENT_TOKENS - 1);
	if (sequence->block_count * BLOCK_TOKENS >= sequence->tokens) {
		seal(w, sequence);
		return;
	}
	block = &sequence->blocks[sequence->block_count];
	block->bytes = (size_t)BLOCK_TOKENS * LANES * ROW_BYTES;
	take(w, block);
	sequence->block_count++;
}

static void test_segments(void **state)
{
	const uint64_t capacity = 128 * MIB;
	static struct workload w;
	struct kvr_arena_stat stat;
	double rounding;
	double share;

	w = (struct workload){.random = *state};
	assert_int_equal(kvr_arena_open(capacity, &w.arena), 0);
	while (w.turned_bytes < 50 * capacity) {
		w.measuring = w.turned_bytes > 10 * capacity;
		step(&w);
	}
	kvr_arena_stat(w.arena, &stat);
	rounding = 1.0 - (double)stat.requested_bytes / (double)stat.used_bytes;
	share = w.share_sum / w.refused;
	print_message("payload when full: %.4f of the capacity; rounding %.4f; %u refusals\n",
		share, rounding, w.refused);
	assert_true(w.refused > 100);
	assert_true(rounding < 0.12);
	assert_true(1.0 - share < 0.12);
	while (w.count > 0)
		drop_oldest(&w);
	for (uint32_t i = 0; i < SEQUENCES; i++)
		for (uint32_t k = 0; k < w.sequences[i].block_count; k++)
			kvr_arena_free(w.arena, w.sequences[i].blocks[k].memory,
				w.sequences[i].blocks[k].bytes);
	assert_non_null(kvr_arena_alloc(w.arena, capacity)); /* A3 */
	kvr_arena_close(w.arena);
}

int main(void)
{
	struct kvr_random random = kvr_random_start();
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_open),
		cmocka_unit_test(test_exhaustion),
		cmocka_unit_test_prestate(test_random, &random),
		cmocka_unit_test_prestate(test_segments, &random),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

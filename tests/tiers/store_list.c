/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: LIST gives every segment of a model once, behind its parent, whatever the pages are; CHAIN gives
 * what ends in a name; the count per model is right before and after a restart, whatever went; flags
 * that a mark keeps stay.
 * Method: random forests of two models, listed in pages by place and by number, held against what was put. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "tests/tiers/store_util.h"

enum { SEGMENTS = KVR_STORE_LIST_MAX + 26, SLABS = 128 };

struct forest {
	struct kvr_store_bed bed;
	struct kvr_store_sealed *segments[SEGMENTS];
	uint32_t count;
};

static uint64_t seed = 0x1157;

static uint32_t below(uint32_t bound)
{
	seed = seed * 6364136223846793005u + 1442695040888963407u;
	return (uint32_t)(seed >> 33) % bound;
}

/* A forest: each segment hangs on an earlier one, one in eight on the root. */
static void plant(struct forest *forest, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++) {
		const struct kvr_store_sealed *parent =
			i == 0 || below(8) == 0 ? NULL : forest->segments[below(i)];

		forest->segments[i] = kvr_store_sealed_any(&forest->bed, parent, i);
		kvr_store_test_keep(&forest->bed, forest->segments[i]);
	}
	forest->count = count;
}

static void open_forest(struct forest *forest, uint32_t count)
{
	*forest = (struct forest){0};
	kvr_store_bed_init(&forest->bed, SLABS, KVR_NVME_IO_THREADS);
	kvr_store_test_reopen(&forest->bed);
	plant(forest, count);
}

static void close_forest(struct forest *forest)
{
	for (uint32_t i = 0; i < forest->count; i++)
		kvr_store_sealed_free(forest->segments[i]);
	kvr_store_bed_fini(&forest->bed);
}

static uint32_t index_of(const struct forest *forest, const uint8_t hash[KVR_HASH_BYTES])
{
	uint32_t i = 0;

	while (i < forest->count && memcmp(forest->segments[i]->hash, hash, KVR_HASH_BYTES) != 0)
		i++;
	return i;
}

/* Lists all, page by page; each is one of the forest's, comes once, and behind its parent. */
static void check_list(struct forest *forest, bool by_place)
{
	struct kvr_store_job job = {.op = KVR_STORE_LIST};
	bool seen[SEGMENTS + 1] = {false};
	uint32_t count = 0;

	memcpy(job.list.root, forest->bed.model.root, KVR_HASH_BYTES);
	do {
		assert_int_equal(kvr_store_test_run(&forest->bed, &job), 0);
		for (uint32_t i = 0; i < job.list.count; i++) {
			const struct kvr_store_segment *entry = &job.list.entries[i];
			const uint32_t at = index_of(forest, entry->hash);

			assert_true(at < forest->count);
			assert_false(seen[at]);
			seen[at] = true;
			assert_int_equal(entry->id, forest->segments[at]->id);
			assert_int_equal(
				entry->token_first, forest->segments[at]->view.token_first);
			assert_true(
				entry->token_first == 0 || seen[index_of(forest, entry->parent)]);
		}
		count += job.list.count;
		job.list.skip = count;
		if (by_place)
			memcpy(job.list.after, job.list.entries[job.list.count - 1].hash,
				KVR_HASH_BYTES);
	} while (job.list.more);
	assert_int_equal(count, forest->count);
}

static void test_list(void **state)
{
	struct kvr_store_job job = {.op = KVR_STORE_LIST};
	struct forest forest;

	(void)state;
	open_forest(&forest, SEGMENTS);
	check_list(&forest, true);
	check_list(&forest, false);
	/* A place that is not there: by number, then. */
	memcpy(job.list.root, forest.bed.model.root, KVR_HASH_BYTES);
	memset(job.list.after, 7, KVR_HASH_BYTES);
	job.list.skip = SEGMENTS - 2;
	assert_int_equal(kvr_store_test_run(&forest.bed, &job), 0);
	assert_int_equal(job.list.count, 2);
	job.list.skip = SEGMENTS + 1;
	assert_int_equal(kvr_store_test_run(&forest.bed, &job), 0);
	assert_int_equal(job.list.count, 0);
	/* Another model's place, and its root. */
	job.list.root[0]++;
	job.list.skip = 0;
	memcpy(job.list.after, forest.segments[0]->hash, KVR_HASH_BYTES);
	assert_int_equal(kvr_store_test_run(&forest.bed, &job), 0);
	assert_int_equal(job.list.count, 0);
	close_forest(&forest);
}

static void test_chain(void **state)
{
	struct kvr_store_job job = {.op = KVR_STORE_CHAIN};
	struct forest forest;

	(void)state;
	open_forest(&forest, 40);
	for (uint32_t i = 0; i < forest.count; i++) {
		const struct kvr_store_match *match = &job.chain.match;
		uint32_t at = i;

		memcpy(job.chain.hash, forest.segments[i]->hash, KVR_HASH_BYTES);
		assert_int_equal(kvr_store_test_run(&forest.bed, &job), 0);
		assert_true(match->found_count > 0);
		for (uint32_t k = match->found_count; k-- > 0;) {
			assert_int_equal(match->found[k].id, forest.segments[at]->id);
			assert_memory_equal(match->found[k].root, forest.bed.model.root, 32);
			kvr_store_unhold(forest.bed.store, match->found[k].id);
			at = index_of(&forest, match->found[k].parent);
		}
		assert_int_equal(at, forest.count); /* the root is no segment */
		kvr_store_match_fini(&job.chain.match);
	}
	job.chain.hash[0]++;
	assert_int_equal(kvr_store_test_run(&forest.bed, &job), -ENOENT);
	assert_null(job.chain.match.found);
	close_forest(&forest);
}

static void check_count(struct forest *forest, uint64_t segments)
{
	struct kvr_store_model model;
	uint64_t count, tokens;
	uint32_t at = 0;

	kvr_store_model_count(forest->bed.store, forest->bed.model.root, &count, &tokens);
	assert_int_equal(count, segments);
	assert_int_equal(tokens, segments * forest->bed.model.geometry.segment_tokens);
	assert_int_equal(
		kvr_store_model_next(forest->bed.store, forest->bed.model.tenant, &at, &model),
		segments > 0);
	if (segments > 0) {
		assert_int_equal(model.segment_count, segments);
		assert_memory_equal(&model.model.geometry, &forest->bed.model.geometry,
			sizeof(model.model.geometry));
		assert_string_equal(model.model.name, forest->bed.model.name);
		assert_false(kvr_store_model_next(
			forest->bed.store, forest->bed.model.tenant, &at, &model));
	}
	at = 0;
	assert_false(kvr_store_model_next(forest->bed.store, "nobody", &at, &model));
}

static void test_models(void **state)
{
	struct kvr_store_job job = {.op = KVR_STORE_DROP};
	struct forest forest;
	uint32_t left = 30;

	(void)state;
	open_forest(&forest, left);
	check_count(&forest, left);
	kvr_store_test_reopen(&forest.bed);
	check_count(&forest, left);
	memcpy(job.drop.root, forest.bed.model.root, KVR_HASH_BYTES);
	memcpy(job.drop.hash, forest.segments[3]->hash, KVR_HASH_BYTES);
	assert_int_equal(kvr_store_test_run(&forest.bed, &job), 0);
	left -= job.drop.segment_count;
	assert_true(left < 30);
	check_count(&forest, left);
	kvr_store_test_reopen(&forest.bed);
	check_count(&forest, left);
	job.drop.all = true;
	assert_int_equal(kvr_store_test_run(&forest.bed, &job), 0);
	assert_int_equal(job.drop.segment_count, left);
	check_count(&forest, 0);
	kvr_store_test_reopen(&forest.bed);
	check_count(&forest, 0);
	close_forest(&forest);
}

static uint32_t flags_of(struct forest *forest, uint32_t at)
{
	struct kvr_store_job job = {.op = KVR_STORE_CHAIN};
	uint32_t flags;

	memcpy(job.chain.hash, forest->segments[at]->hash, KVR_HASH_BYTES);
	assert_int_equal(kvr_store_test_run(&forest->bed, &job), 0);
	flags = job.chain.match.found[job.chain.match.found_count - 1].flags;
	for (uint32_t i = 0; i < job.chain.match.found_count; i++)
		kvr_store_unhold(forest->bed.store, job.chain.match.found[i].id);
	kvr_store_match_fini(&job.chain.match);
	return flags;
}

static void test_kept_flags(void **state)
{
	struct kvr_store_job job = {.op = KVR_STORE_MARK, .mark = {.count = 1}};
	struct forest forest;

	(void)state;
	open_forest(&forest, 2);
	kvr_store_test_mark(&forest.bed, forest.segments[1]->id, 5, KVR_CATALOG_PINNED);
	assert_int_equal(flags_of(&forest, 1), KVR_CATALOG_PINNED);
	job.mark.marks[0].id = forest.segments[1]->id;
	job.mark.marks[0].used = 9;
	job.mark.marks[0].flags = 0;
	job.mark.marks[0].kept = KVR_CATALOG_PINNED;
	assert_int_equal(kvr_store_test_run(&forest.bed, &job), 0);
	assert_int_equal(flags_of(&forest, 1), KVR_CATALOG_PINNED);
	job.mark.marks[0].kept = KVR_CATALOG_QUARANTINED;
	assert_int_equal(kvr_store_test_run(&forest.bed, &job), 0);
	assert_int_equal(flags_of(&forest, 1), 0);
	close_forest(&forest);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_list),
		cmocka_unit_test(test_chain),
		cmocka_unit_test(test_models),
		cmocka_unit_test(test_kept_flags),
	};

	return cmocka_run_group_tests_name("store list", tests, NULL, NULL);
}

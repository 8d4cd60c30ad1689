/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: the directory finds what is there, matches the longest path, keeps what must be kept, evicts
 * children before parents, counts every byte on the right account, and never lets two segments share
 * memory.
 * Method: random operations on a real directory over a small real arena and host tier, beside a naive
 * list of records that is searched from end to end. Token ids from a small alphabet make siblings of
 * several lengths that begin alike. Which segments an operation evicted is read from the directory and
 * held against the rules; everything else the naive list predicts. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <errno.h>
#include <string.h>

#include "tests/daemon/naive_util.h"
#include "tests/daemon/process_util.h"

#define ALPHABET   3u
#define OPERATIONS (PROCESS_SLOW == 1 ? 20000u : 8000u)

/* ---- operations ------------------------------------------------------------------------------ */

static void random_tokens(uint32_t *ret_tokens, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++)
		ret_tokens[i] = process_random(0, ALPHABET - 1);
}

/* What a k-means might have found: every cluster with a row or more, the sinks behind the last. */
static void cluster(const struct kvr_segment_view *view)
{
	const uint32_t rows = view->token_count - view->sink_count;

	for (uint32_t lane = 0; lane < 2; lane++) {
		uint16_t *first = kvr_segment_row_first(view, lane);
		uint32_t count = rows ? process_random(1, view->cluster_max) : 0;

		for (uint32_t c = 0; c <= count; c++)
			first[c] = (uint16_t)(count ? c * rows / count : 0);
		for (uint32_t c = count + 1; c <= view->cluster_max + 1; c++)
			first[c] = (uint16_t)view->token_count;
		view->cluster_count[lane] = (uint16_t)count;
	}
}

static void build(struct naive_record *it, uint32_t parent_segment)
{
	uint32_t segment;
	int rc = kvr_directory_begin(&naive.directory, it->model, parent_segment, it->hash,
		it->tokens, it->count, &segment);

	if (rc == 0) {
		/* It can be found, but not matched, and its parent stays whatever happens. */
		assert_int_equal(kvr_directory_find(&naive.directory, it->model, parent_segment,
					 it->hash, it->tokens, it->count),
			segment);
		assert_int_equal(
			kvr_directory_find_hash(&naive.directory, it->model->tenant, it->hash),
			KVR_SEGMENT_NONE);
		cluster(&naive.directory.segments[segment].view);
		rc = kvr_directory_place(&naive.directory, segment);
		if (rc < 0 || process_random(0, 9) == 0) { /* or the build is given up */
			kvr_directory_remove(&naive.directory, segment);
			return;
		}
		it->segment = segment;
		it->bytes = naive.directory.segments[segment].payload_bytes +
			    naive.directory.segments[segment].memory_bytes;
		it->alive = true;
		naive_payload(naive.record_count++, true);
		kvr_directory_publish(&naive.directory, segment);
		return;
	}
	assert_true(rc == -ENOSPC || rc == -EDQUOT);
	assert_true(rc != -EDQUOT || it->model->tenant == &naive.tenants[0]);
}

static void add(void)
{
	struct naive_record *it = &naive.records[naive.record_count];
	uint32_t parent_segment = KVR_SEGMENT_NONE, found;

	assert_true(naive.record_count < NAIVE_RECORDS_MAX);
	*it = (struct naive_record){.parent = process_random(0, 3) ? naive_random() : NAIVE_NONE};
	it->model = &naive.models[process_random(0, 2)];
	if (it->parent != NAIVE_NONE) {
		it->model = naive.records[it->parent].model;
		it->first = naive.records[it->parent].first + naive.records[it->parent].count;
		parent_segment = naive.records[it->parent].segment;
		assert_true(kvr_directory_lease(&naive.directory, parent_segment));
		naive.records[it->parent].leases++;
	}
	it->count = process_random(1, process_random(0, 1) ? 3 : NAIVE_COUNT_MAX);
	random_tokens(it->tokens, it->count);
	kvr_directory_hash(
		&naive.directory, it->model, parent_segment, it->tokens, it->count, it->hash);
	found = naive_find(it->model, it->parent, it->tokens, it->count);
	assert_int_equal(kvr_directory_find(&naive.directory, it->model, parent_segment, it->hash,
				 it->tokens, it->count),
		found == NAIVE_NONE ? KVR_SEGMENT_NONE : naive.records[found].segment);
	if (found == NAIVE_NONE)
		build(it, parent_segment);
	if (parent_segment != KVR_SEGMENT_NONE) {
		kvr_directory_unlease(&naive.directory, parent_segment);
		naive.records[it->parent].leases--;
	}
	naive_settle();
}

static void match(void)
{
	uint32_t prompt[2048], count = 0, best = 0, got, end = 0, at = naive_random();
	const struct kvr_model *model = &naive.models[process_random(0, 2)];

	if (at != NAIVE_NONE && process_random(0, 3)) { /* along a path that is there, and beyond */
		model = naive.records[at].model;
		count = naive.records[at].first + naive.records[at].count;
		assert_true(count + NAIVE_COUNT_MAX < 2048);
		for (; at != NAIVE_NONE; at = naive.records[at].parent)
			memcpy(prompt + naive.records[at].first, naive.records[at].tokens,
				naive.records[at].count * sizeof(*prompt));
		if (process_random(0, 1))
			prompt[process_random(0, count - 1)] = process_random(0, ALPHABET);
	}
	random_tokens(prompt + count, NAIVE_COUNT_MAX);
	count = process_random(0, count + NAIVE_COUNT_MAX);
	for (uint32_t i = 0; i < naive.record_count; i++) {
		const uint32_t tokens = naive.records[i].first + naive.records[i].count;

		if (naive.records[i].alive && naive.records[i].model == model && tokens > best &&
			naive_is_prefix(i, prompt, count))
			best = tokens;
	}
	got = kvr_directory_match(&naive.directory, model, prompt, count);
	if (got != KVR_SEGMENT_NONE) {
		const struct kvr_segment *segment = &naive.directory.segments[got];

		end = segment->view.token_first + segment->view.token_count;
		for (at = 0; naive.records[at].segment != got || !naive.records[at].alive; at++)
			assert_true(at < naive.record_count);
		assert_true(naive_is_prefix(at, prompt, count));
		naive_payload(at, false);
	}
	assert_int_equal(end, best);
}

static void lease(void)
{
	uint32_t at = naive_random();

	if (at == NAIVE_NONE)
		return;
	if (naive.records[at].leases && process_random(0, 2)) {
		kvr_directory_unlease(&naive.directory, naive.records[at].segment);
		naive.records[at].leases--;
	} else if (process_random(0, 3) == 0) {
		assert_true(kvr_directory_lease(&naive.directory, naive.records[at].segment));
		naive.records[at].leases++;
	}
}

static void pin(void)
{
	const bool on = process_random(0, 4) == 0;
	uint32_t at = naive_random(), changed = 0;

	if (at == NAIVE_NONE)
		return;
	for (uint32_t i = at; i != NAIVE_NONE; i = naive.records[i].parent) {
		changed += naive.records[i].pinned != on;
		naive.records[i].pinned = on;
	}
	assert_int_equal(
		kvr_directory_pin(&naive.directory, naive.records[at].segment, on), changed);
}

static bool is_below(uint32_t record, uint32_t root)
{
	for (; record != NAIVE_NONE; record = naive.records[record].parent) {
		if (record == root)
			return true;
	}
	return false;
}

/* Children have higher record numbers than their parents. */
static void drop(void)
{
	uint32_t at = naive_random(), removed = 0, kept = 0;
	struct kvr_dropped_count dropped = {0};
	uint64_t bytes = 0;

	if (at == NAIVE_NONE)
		return;
	assert_int_equal(kvr_directory_find_hash(&naive.directory, naive.records[at].model->tenant,
				 naive.records[at].hash),
		naive.records[at].segment);
	assert_int_equal(
		kvr_directory_find_hash(&naive.directory,
			&naive.tenants[naive.records[at].model->tenant == &naive.tenants[0]],
			naive.records[at].hash),
		KVR_SEGMENT_NONE);
	kvr_directory_drop(&naive.directory, naive.records[at].segment, &dropped);
	for (uint32_t i = naive.record_count; i-- > at;) {
		if (!naive.records[i].alive || !is_below(i, at))
			continue;
		if (!naive_may_go(i)) {
			kept++;
			continue;
		}
		bytes += naive.records[i].bytes;
		naive.records[i].alive = false;
		removed++;
	}
	assert_int_equal(dropped.segment_count, removed);
	assert_int_equal(dropped.kept_count, kept);
	assert_int_equal(dropped.freed_bytes, bytes);
	naive_settle();
}

static void hold(void)
{
	struct naive_held *it = &naive.held[process_random(0, NAIVE_ALLOCS_MAX - 1)];
	int error = 0;

	if (it->memory) {
		kvr_directory_free(&naive.directory, it->tenant, it->memory, it->bytes);
		*it = (struct naive_held){0};
	} else {
		it->tenant = &naive.tenants[process_random(0, 1)];
		it->bytes = process_random(1, 300000);
		it->memory = kvr_directory_alloc(&naive.directory, it->tenant, it->bytes, &error);
		if (!it->memory) {
			assert_true(error == -ENOSPC || error == -EDQUOT);
			*it = (struct naive_held){0};
		}
	}
	naive_settle();
}

static void (*const operations[])(void) = {add, add, add, match, match, lease, pin, drop, hold};

static void storm(enum kvr_policy_kind policy)
{
	const uint32_t kinds = sizeof(operations) / sizeof(operations[0]);

	naive_open(policy);
	for (uint32_t i = 0; i < OPERATIONS && naive.record_count < NAIVE_RECORDS_MAX; i++) {
		const uint32_t kind = process_random(0, kinds - 1);

		/* Drops would keep the arena empty if there were as many as additions. */
		if (operations[kind] == drop && process_random(0, 4))
			continue;
		operations[kind]();
	}
	assert_true(naive.directory.evicted_count > 0);
	assert_true(naive.tenants[0].refused_count > 0);
	for (uint32_t i = 0; i < naive.record_count; i++) {
		if (naive.records[i].alive)
			naive_payload(i, false); /* nobody wrote into another's memory */
	}
	naive_close();
}

static void test_random_s3fifo(void **state)
{
	(void)state;
	storm(KVR_POLICY_S3FIFO);
}

static void test_random_lru(void **state)
{
	(void)state;
	storm(KVR_POLICY_LRU);
}

/* Of children that begin alike the longest path wins, not the longest first step. */
static void test_longest_path(void **state)
{
	static const struct {
		uint32_t parent, count;
		uint32_t tokens[8];
	} tree[] = {
		{NAIVE_NONE, 5, {1, 1, 1, 1, 1}}, /* the longest first step, and no further */
		{NAIVE_NONE, 2, {1, 1}},
		{1, 2, {1, 1}},
		{2, 3, {1, 2, 2}},
		{NAIVE_NONE, 3, {1, 1, 2}},
	};
	static const uint32_t prompt[] = {1, 1, 1, 1, 1, 2, 2, 2};
	uint32_t got;

	(void)state;
	naive_open(KVR_POLICY_LRU);
	for (uint32_t i = 0; i < 5; i++) {
		struct naive_record *it = &naive.records[naive.record_count];
		uint32_t parent = KVR_SEGMENT_NONE;

		*it = (struct naive_record){.model = &naive.models[1], .parent = tree[i].parent};
		it->count = tree[i].count;
		memcpy(it->tokens, tree[i].tokens, it->count * sizeof(*it->tokens));
		if (tree[i].parent != NAIVE_NONE) {
			parent = naive.records[tree[i].parent].segment;
			it->first = naive.records[tree[i].parent].first +
				    naive.records[tree[i].parent].count;
			assert_true(kvr_directory_lease(&naive.directory, parent));
		}
		kvr_directory_hash(
			&naive.directory, it->model, parent, it->tokens, it->count, it->hash);
		while (naive.record_count == i)
			build(it, parent);
		if (parent != KVR_SEGMENT_NONE)
			kvr_directory_unlease(&naive.directory, parent);
	}
	got = kvr_directory_match(&naive.directory, &naive.models[1], prompt, 8);
	assert_int_equal(got, naive.records[3].segment);
	got = kvr_directory_match(&naive.directory, &naive.models[1], prompt, 6);
	assert_int_equal(got, naive.records[0].segment);
	got = kvr_directory_match(&naive.directory, &naive.models[1], prompt, 4);
	assert_int_equal(got, naive.records[2].segment);
	assert_int_equal(kvr_directory_match(&naive.directory, &naive.models[1], prompt, 1),
		KVR_SEGMENT_NONE);
	assert_int_equal(kvr_directory_match(&naive.directory, &naive.models[2], prompt, 8),
		KVR_SEGMENT_NONE);
	naive_close();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_longest_path),
		cmocka_unit_test(test_random_s3fifo),
		cmocka_unit_test(test_random_lru),
	};

	process_seed_print();
	return cmocka_run_group_tests_name("daemon directory", tests, NULL, NULL);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* rows.c: append, recall and fetch: what they put on the wire, what they make of the reply, and
 * what they refuse by themselves.
 *
 * Goal: no argument is lost, swapped or sent unchecked; no pointer outside the region reaches the
 * daemon, to the byte; every refusal fills kvr_error.
 * Method: as calls.c; extents are moved to the region's very end and one byte past it. */
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/client/calls_util.h"

static void test_append(void **state)
{
	struct fixture *f = *state;
	const uint32_t tokens[4] = {1, 2, 3, 4};
	struct kvr_append_layer layers[2] = {
		{2, f->region + 4096, f->region + 8192},
		{0, f->region, f->region + f->region_bytes - 4 * KV_HEADS * VAL_DIM * 2},
	};
	struct kvr_append append = {f->sequence, 100, 4, tokens, layers, 2};
	struct kvr_appended appended = {0};
	struct fake_seen seen;

	assert_int_equal(kvr_append(f->client, &append, &appended), 0);
	assert_int_equal(appended.token_count, 104);
	assert_int_equal(appended.sealed_tokens, 100);
	assert_true(fake_seen(f->fake, KVR_REQUEST_APPEND, &seen));
	assert_int_equal(seen.request.append.sequence, FAKE_SEQUENCE);
	assert_int_equal(seen.request.append.first, 100);
	assert_int_equal(seen.request.append.count, 4);
	assert_int_equal(seen.request.append.layer_count, 2);
	assert_true(seen.inline_tokens);
	assert_memory_equal(seen.tokens, tokens, sizeof(tokens));
	assert_int_equal(seen.layers[0].layer, 2);
	assert_int_equal(seen.layers[0].keys, 4096);
	assert_int_equal(seen.layers[0].values, 8192);
	assert_int_equal(seen.layers[1].layer, 0);
	assert_int_equal(seen.layers[1].keys, 0);
	append.tokens = NULL;
	assert_int_equal(kvr_append(f->client, &append, NULL), 0);
	assert_true(fake_seen(f->fake, KVR_REQUEST_APPEND, &seen));
	assert_int_equal(seen.request.append.tokens.count, 0);
}

static void test_append_refused(void **state)
{
	struct fixture *f = *state;
	const size_t value_bytes = 4 * KV_HEADS * VAL_DIM * 2;
	const size_t key_bytes = 4 * KV_HEADS * KEY_DIM * 2;
	uint8_t outside[4096];
	struct kvr_append_layer layer = {0, f->region, f->region};
	struct kvr_append append = {f->sequence, 0, 4, NULL, &layer, 1};
	uint32_t sent = fake_requests(f->fake);

	layer.values = f->region + f->region_bytes - value_bytes + 1;
	calls_refused(f, kvr_append(f->client, &append, NULL), EFAULT, "values");
	layer.values = f->region;
	layer.keys = f->region + f->region_bytes - key_bytes + 1;
	calls_refused(f, kvr_append(f->client, &append, NULL), EFAULT, "keys");
	layer.keys = f->region - 1;
	calls_refused(f, kvr_append(f->client, &append, NULL), EFAULT, "keys");
	layer.keys = outside;
	calls_refused(f, kvr_append(f->client, &append, NULL), EFAULT, "keys");
	layer.keys = NULL;
	calls_refused(f, kvr_append(f->client, &append, NULL), EFAULT, "keys");
	layer.keys = (void *)(UINTPTR_MAX - 7);
	calls_refused(f, kvr_append(f->client, &append, NULL), EFAULT, "keys");
	layer.keys = f->region;
	append.count = KVR_SEQUENCE_TOKENS_MAX;
	calls_refused(f, kvr_append(f->client, &append, NULL), EFAULT, "keys");
	append.count = UINT32_MAX;
	calls_refused(f, kvr_append(f->client, &append, NULL), EINVAL, "count");
	append.count = 0;
	calls_refused(f, kvr_append(f->client, &append, NULL), EINVAL, "count");
	append.count = 1;
	append.layer_count = 0;
	calls_refused(f, kvr_append(f->client, &append, NULL), EINVAL, "layer_count");
	append.layer_count = 257;
	calls_refused(f, kvr_append(f->client, &append, NULL), EINVAL, "layer_count");
	append.layer_count = 1;
	layer.layer = LAYERS;
	calls_refused(f, kvr_append(f->client, &append, NULL), EINVAL, "layer");
	layer.layer = 0;
	append.sequence = NULL;
	calls_refused(f, kvr_append(f->client, &append, NULL), EINVAL, "sequence");
	calls_refused(f, kvr_append(f->client, NULL, NULL), EINVAL, "append");
	assert_int_equal(fake_requests(f->fake), sent);
}

/* A recall of one item whose outputs lie one after the other in the region. */
static struct kvr_recall_item recall_item(struct fixture *f, const void *query)
{
	return (struct kvr_recall_item){.sequence = f->sequence,
		.layer = 1,
		.query = query,
		.keys = f->region + 65536,
		.values = f->region + 131072,
		.weights = (float *)(void *)(f->region + 196608),
		.positions = (int32_t *)(void *)(f->region + 212992),
		.rows = (struct kvr_rows *)(void *)(f->region + 229376)};
}

static void test_recall(void **state)
{
	struct fixture *f = *state;
	float query[HEADS * KEY_DIM];
	struct kvr_recall_item items[3] = {
		recall_item(f, query), recall_item(f, f->region + 512), recall_item(f, query)};
	struct kvr_recall recall = {
		items, 3, 0, KVR_F32, 0.125f, 40, 0.5f, 56, true, false, true, 0, 0, 0};
	struct fake_seen seen;

	for (uint32_t i = 0; i < HEADS * KEY_DIM; i++)
		query[i] = (float)i;
	items[1].layer = 2;
	assert_int_equal(kvr_recall(f->client, &recall), 0);
	for (uint32_t i = 0; i < 3; i++) {
		assert_int_equal(items[i].token_count, 1000 + i);
		assert_int_equal(items[i].covered_tokens, 900 + i);
	}
	assert_true(fake_seen(f->fake, KVR_REQUEST_RECALL, &seen));
	assert_int_equal(seen.request.recall.item_count, 3);
	assert_int_equal(seen.request.recall.rank, KVR_BY_SHARE);
	assert_int_equal(seen.request.recall.query_dtype, KVR_DTYPE_F32);
	assert_float_equal(seen.request.recall.scale, 0.125f, 0);
	assert_int_equal(seen.request.recall.budget_tokens, 40);
	assert_float_equal(seen.request.recall.budget_mass, 0.5f, 0);
	assert_int_equal(seen.request.recall.row_capacity, 56);
	assert_true(seen.request.recall.sinks);
	assert_false(seen.request.recall.tail);
	assert_true(seen.request.recall.want_weights);
	assert_true(seen.request.recall.want_positions);
	assert_true(seen.request.recall.background);
	assert_int_equal(seen.items[0].sequence, FAKE_SEQUENCE);
	assert_int_equal(seen.items[0].layer, 1);
	assert_int_equal(seen.items[0].query.bytes, sizeof(query));
	assert_memory_equal(seen.query, query, FAKE_QUERY_MAX);
	assert_int_equal(seen.items[0].keys, 65536);
	assert_int_equal(seen.items[0].values, 131072);
	assert_int_equal(seen.items[0].weights, 196608);
	assert_int_equal(seen.items[0].positions, 212992);
	assert_int_equal(seen.items[0].table, 229376);
	assert_null(seen.items[1].query.data);
	assert_int_equal(seen.items[1].query_offset, 512);
	assert_int_equal(seen.items[1].layer, 2);
}

static enum fake_action recall_same(
	struct fake *fake, const struct kvr_request *request, struct kvr_reply *reply, void *cookie)
{
	const uint32_t *covered = cookie;

	(void)fake;
	if (request->kind == KVR_REQUEST_RECALL) {
		reply->recalled.items = NULL;
		reply->recalled.count = 0;
		reply->recalled.same = (struct kvr_wire_recalled){500, *covered};
	}
	return FAKE_REPLY;
}

static enum fake_action recall_short(
	struct fake *fake, const struct kvr_request *request, struct kvr_reply *reply, void *cookie)
{
	(void)fake;
	(void)cookie;
	if (request->kind == KVR_REQUEST_RECALL)
		reply->recalled.count--;
	return FAKE_REPLY;
}

static void test_recall_replies(void **state)
{
	struct fixture *f = *state;
	struct kvr_recall_item items[3] = {
		recall_item(f, f->region), recall_item(f, f->region), recall_item(f, f->region)};
	struct kvr_recall recall = {items, 3, 0, KVR_BF16, 0, 8, 0, 8, false, true, false, 0, 0, 0};
	uint32_t covered = 400;

	fake_set_script(f->fake, recall_same, &covered);
	assert_int_equal(kvr_recall(f->client, &recall), 0);
	for (uint32_t i = 0; i < 3; i++) {
		assert_int_equal(items[i].token_count, 500);
		assert_int_equal(items[i].covered_tokens, 400);
	}
	/* Fewer items than asked: refused, and nothing is written. */
	fake_set_script(f->fake, recall_short, NULL);
	calls_refused(f, kvr_recall(f->client, &recall), EPROTO, "reply");
	assert_int_equal(items[0].covered_tokens, 400);
	fake_set_script(f->fake, NULL, NULL);
	assert_int_equal(kvr_recall(f->client, &recall), 0);
}

static void test_recall_refused(void **state)
{
	struct fixture *f = *state;
	struct kvr_recall_item items[2];
	struct kvr_recall recall;
	uint32_t sent = fake_requests(f->fake);
	uint8_t *end = f->region + f->region_bytes;

#define REFUSED(change, error, word)                                                      \
	do {                                                                              \
		items[0] = recall_item(f, f->region);                                     \
		items[1] = recall_item(f, f->region);                                     \
		recall = (struct kvr_recall){                                             \
			items, 2, 0, KVR_BF16, 0, 8, 0, 8, false, false, false, 0, 0, 0}; \
		change;                                                                   \
		calls_refused(f, kvr_recall(f->client, &recall), error, word);            \
	} while (0)
	REFUSED(recall.item_count = 0, EINVAL, "item_count");
	REFUSED(recall.item_count = 1025, EINVAL, "item_count");
	REFUSED(recall.rank = (enum kvr_rank_by)3, EINVAL, "rank");
	REFUSED(recall.query_type = (enum kvr_type)0, EINVAL, "query_type");
	REFUSED(recall.scale = -1, EINVAL, "scale");
	REFUSED(recall.scale = NAN, EINVAL, "scale");
	REFUSED(recall.budget_mass = 1.5f, EINVAL, "budget_mass");
	REFUSED(recall.budget_mass = NAN, EINVAL, "budget_mass");
	REFUSED(recall.row_capacity = 0, EINVAL, "row_capacity");
	REFUSED(recall.row_capacity = UINT32_MAX, EFAULT, "keys");
	REFUSED(items[1].layer = LAYERS, EINVAL, "layer");
	REFUSED(items[1].query = NULL, EINVAL, "query");
	REFUSED(items[1].sequence = NULL, EINVAL, "sequence");
	REFUSED(items[1].weights = NULL, EINVAL, "weights");
	REFUSED(items[1].positions = NULL, EINVAL, "positions");
	REFUSED(items[1].keys = end - KV_HEADS * 8 * KEY_DIM * 2 + 1, EFAULT, "keys");
	REFUSED(items[1].values = end - KV_HEADS * 8 * VAL_DIM * 2 + 1, EFAULT, "values");
	REFUSED(items[1].weights = (float *)(void *)(end - KV_HEADS * 8 * 4 + 4), EFAULT,
		"weights");
	REFUSED(items[1].positions = (int32_t *)(void *)(end - KV_HEADS * 8 * 4 + 4), EFAULT,
		"positions");
	REFUSED(items[1].rows = (struct kvr_rows *)(void *)(end - KV_HEADS * 16 + 4), EFAULT,
		"rows");
	REFUSED(items[1].rows = (struct kvr_rows *)(void *)(f->region + 2), EINVAL, "aligned");
	REFUSED(items[1].rows = NULL, EFAULT, "rows");
	/* One choice per query head needs twice the room here. */
	REFUSED((recall.rank = KVR_BY_INNER_PRODUCT,
			items[1].keys = end - KV_HEADS * 8 * KEY_DIM * 2),
		EFAULT, "keys");
#undef REFUSED
	assert_int_equal(fake_requests(f->fake), sent);
	items[0] = recall_item(f, f->region);
	items[1] = recall_item(f, f->region);
	items[1].keys = end - KV_HEADS * 8 * KEY_DIM * 2;
	recall = (struct kvr_recall){
		items, 2, 0, KVR_BF16, 0, 8, 0, 8, false, false, false, 0, 0, 0};
	assert_int_equal(kvr_recall(f->client, &recall), 0);
}

/* Queries outside the region fit the message, or the library says what to do. */
static void test_recall_too_big(void **state)
{
	struct fixture *f = *state;
	struct kvr_recall_item *items = calloc(1024, sizeof(*items));
	struct kvr_recall recall = {
		items, 1024, 0, KVR_F32, 0, 8, 0, 8, false, false, false, 0, 0, 0};
	uint8_t query[HEADS * KEY_DIM * 4] = {0};

	for (uint32_t i = 0; i < 1024; i++)
		items[i] = recall_item(f, query);
	calls_refused(f, kvr_recall(f->client, &recall), E2BIG, "request");
	for (uint32_t i = 0; i < 1024; i++)
		items[i].query = f->region;
	assert_int_equal(kvr_recall(f->client, &recall), 0);
	assert_int_equal(items[1023].token_count, 2023);
	free(items);
}

static void test_fetch(void **state)
{
	struct fixture *f = *state;
	struct kvr_fetch_layer layers[2] = {
		{1, f->region + 256, f->region + 8192}, {0, f->region + 16384, f->region + 32768}};
	struct kvr_fetch fetch = {f->sequence, 17, 6, layers, 2};
	struct fake_seen seen;

	assert_int_equal(kvr_fetch(f->client, &fetch), 0);
	assert_true(fake_seen(f->fake, KVR_REQUEST_FETCH, &seen));
	assert_int_equal(seen.request.fetch.sequence, FAKE_SEQUENCE);
	assert_int_equal(seen.request.fetch.first, 17);
	assert_int_equal(seen.request.fetch.count, 6);
	assert_int_equal(seen.request.fetch.layer_count, 2);
	assert_int_equal(seen.layers[0].layer, 1);
	assert_int_equal(seen.layers[0].keys, 256);
	assert_int_equal(seen.layers[1].values, 32768);
	layers[1].values = f->region + f->region_bytes;
	calls_refused(f, kvr_fetch(f->client, &fetch), EFAULT, "values");
	layers[1].layer = LAYERS;
	calls_refused(f, kvr_fetch(f->client, &fetch), EINVAL, "layer");
	fetch.count = 0;
	calls_refused(f, kvr_fetch(f->client, &fetch), EINVAL, "count");
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, calls_setup, calls_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_append),
		TEST(test_append_refused),
		TEST(test_recall),
		TEST(test_recall_replies),
		TEST(test_recall_refused),
		TEST(test_recall_too_big),
		TEST(test_fetch),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

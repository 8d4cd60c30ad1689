/* SPDX-License-Identifier: Apache-2.0 */
/* limits.c: what requests hold, at and past the limits.
 *
 * Goal: what requests hold is held to the limits of docs/PROTOCOL.md, one test each: geometries,
 * tokens, ranges, layers, recalls. One past a limit is refused with the right errno and the field's
 * name, the limit itself is not; and the refused request's id, session and secret are known.
 *
 * Method: messages written byte by byte, since our own packing cannot break the rules. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <errno.h>
#include <math.h>
#include <string.h>

#include <cmocka.h>

#include "proto/message_arena.h"
#include "tests/proto/message_util.h"

static struct kvr_message_arena *arena;
static struct kvr_test_bytes bytes, body, inner;
static struct kvr_request request;
static uint8_t zeros[KVR_MESSAGE_BYTES_MAX + 1];

static int set_up(void **state)
{
	(void)state;
	return kvr_message_arena_open(&arena);
}

static int tear_down(void **state)
{
	(void)state;
	kvr_test_bytes_free(&bytes);
	kvr_test_bytes_free(&body);
	kvr_test_bytes_free(&inner);
	arena = kvr_message_arena_close(arena);
	return 0;
}

/* Sends `body` as a request of `kind`; expects `error`, and `name` in its text. */
static void expect(uint32_t kind, int error, const char *name)
{
	kvr_test_expect(arena, &bytes, kind, &body, error, name, &request);
}

/* ---- geometry -------------------------------------------------------------------------------- */

static void put_geometry(uint32_t field, uint64_t value, const void *dense, size_t dense_bytes)
{
	kvr_test_put_bytes(&body, 1, "m", 1);
	kvr_test_put_bytes(&body, 2, zeros, KVR_HASH_BYTES);
	kvr_test_put_varint(&inner, 1, 4); /* layers */
	kvr_test_put_varint(&inner, 3, 3); /* kv heads: 12 lanes */
	if (field != 6)
		kvr_test_put_varint(&inner, 6, KVR_DTYPE_F16);
	kvr_test_put_varint(&inner, field, value);
	kvr_test_put_bytes(&inner, 10, dense, dense_bytes);
	kvr_test_put_bytes(&body, 3, inner.data, inner.count);
	kvr_test_bytes_free(&inner);
}

static void a_geometry_is_there(void **state)
{
	(void)state;
	kvr_test_put_bytes(&body, 2, zeros, KVR_HASH_BYTES);
	expect(KVR_REQUEST_MODEL_REGISTER, -EBADMSG, "geometry is missing");
}

static void dtypes_are_known(void **state)
{
	(void)state;
	for (uint64_t dtype = 0; dtype <= 5; dtype++) {
		put_geometry(6, dtype == 5 ? UINT32_MAX : dtype, NULL, 0);
		expect(KVR_REQUEST_MODEL_REGISTER,
			dtype >= KVR_DTYPE_F32 && dtype <= KVR_DTYPE_BF16 ? 0 : -EBADMSG,
			"Geometry.dtype");
	}
}

static void merged_sets_exist(void **state)
{
	(void)state;
	put_geometry(12, (1u << KVR_MERGED_SETS) - 1, NULL, 0);
	expect(KVR_REQUEST_MODEL_REGISTER, 0, "");
	assert_int_equal(request.model_register.geometry.merged, 15);
	put_geometry(12, 1u << KVR_MERGED_SETS, NULL, 0);
	expect(KVR_REQUEST_MODEL_REGISTER, -EBADMSG, "Geometry.merged");
}

static void sinks_are_bounded(void **state)
{
	(void)state;
	put_geometry(9, KVR_BLOCK_TOKENS, NULL, 0);
	expect(KVR_REQUEST_MODEL_REGISTER, 0, "");
	assert_int_equal(request.model_register.geometry.sink_tokens, KVR_BLOCK_TOKENS);
	put_geometry(9, UINT32_MAX, NULL, 0); /* not the way to say "default" */
	expect(KVR_REQUEST_MODEL_REGISTER, -E2BIG, "Geometry.sink_tokens");
	put_geometry(11, 1, NULL, 0);
	expect(KVR_REQUEST_MODEL_REGISTER, 0, "");
	assert_int_equal(request.model_register.geometry.sink_tokens, UINT32_MAX);
}

static void dense_lanes_exist(void **state)
{
	static const uint8_t last[] = {0x01, 0x08}, past[] = {0x01, 0x10}, far[] = {0, 0, 0, 1};

	(void)state;
	put_geometry(4, 8, last, sizeof(last));
	expect(KVR_REQUEST_MODEL_REGISTER, 0, "");
	assert_int_equal(request.model_register.geometry.dense[0], 0x801);
	put_geometry(4, 8, past, sizeof(past));
	expect(KVR_REQUEST_MODEL_REGISTER, -EBADMSG, "Geometry.dense");
	put_geometry(4, 8, far, sizeof(far));
	expect(KVR_REQUEST_MODEL_REGISTER, -EBADMSG, "Geometry.dense");
	put_geometry(4, 8, zeros, KVR_LANES_MAX / 8); /* trailing zeros do no harm */
	expect(KVR_REQUEST_MODEL_REGISTER, 0, "");
	put_geometry(4, 8, zeros, KVR_LANES_MAX / 8 + 1);
	expect(KVR_REQUEST_MODEL_REGISTER, -E2BIG, "Geometry.dense");
}

/* ---- tokens ---------------------------------------------------------------------------------- */

static void inline_tokens_are_bounded(void **state)
{
	(void)state;
	for (uint32_t more = 0; more <= 1; more++) {
		kvr_test_put_bytes(&inner, 1, zeros, (size_t)4 * (KVR_TOKENS_INLINE_MAX + more));
		kvr_test_put_bytes(&body, 2, inner.data, inner.count);
		kvr_test_bytes_free(&inner);
		expect(KVR_REQUEST_OPEN, more ? -E2BIG : 0, "Tokens.ids");
		if (more == 0)
			assert_int_equal(request.open.tokens.count, KVR_TOKENS_INLINE_MAX);
	}
}

/* protobuf would also allow ids one by one, and several runs: more memory for the same. */
static void tokens_come_in_one_run(void **state)
{
	(void)state;
	kvr_test_put_fixed32(&inner, 1, 5);
	kvr_test_put_bytes(&body, 2, inner.data, inner.count);
	kvr_test_bytes_free(&inner);
	expect(KVR_REQUEST_OPEN, -EBADMSG, "Tokens.ids has another type");
	for (uint32_t first = 0; first <= 4; first += 4) { /* the first run may be empty */
		kvr_test_put_bytes(&inner, 1, zeros, first);
		kvr_test_put_bytes(&inner, 1, zeros, 4);
		kvr_test_put_bytes(&body, 2, inner.data, inner.count);
		kvr_test_bytes_free(&inner);
		expect(KVR_REQUEST_OPEN, -EBADMSG, "Tokens.ids stands twice");
	}
}

static void tokens_are_whole(void **state)
{
	(void)state;
	kvr_test_put_bytes(&inner, 1, zeros, 7);
	kvr_test_put_bytes(&body, 2, inner.data, inner.count);
	expect(KVR_REQUEST_OPEN, -EBADMSG, "Tokens.ids ends inside");
}

static void put_region_tokens(uint64_t span_bytes, bool ids)
{
	struct kvr_test_bytes span = {0};

	kvr_test_put_varint(&span, 1, UINT64_MAX); /* the offset is the daemon's to check */
	kvr_test_put_varint(&span, 2, span_bytes);
	if (ids)
		kvr_test_put_bytes(&inner, 1, zeros, 4);
	kvr_test_put_bytes(&inner, 2, span.data, span.count);
	kvr_test_put_bytes(&body, 2, inner.data, inner.count);
	kvr_test_bytes_free(&inner);
	kvr_test_bytes_free(&span);
}

static void region_tokens_are_bounded(void **state)
{
	(void)state;
	put_region_tokens(4ull * KVR_SEQUENCE_TOKENS_MAX, false);
	expect(KVR_REQUEST_OPEN, 0, "");
	assert_int_equal(request.open.tokens.count, KVR_SEQUENCE_TOKENS_MAX);
	assert_int_equal(request.open.tokens.offset, UINT64_MAX);
	put_region_tokens(4ull * KVR_SEQUENCE_TOKENS_MAX + 4, false);
	expect(KVR_REQUEST_OPEN, -E2BIG, "Tokens.region");
	put_region_tokens(UINT64_MAX - 3, false);
	expect(KVR_REQUEST_OPEN, -E2BIG, "Tokens.region");
	put_region_tokens(6, false);
	expect(KVR_REQUEST_OPEN, -EBADMSG, "Tokens.region");
	put_region_tokens(4, true);
	expect(KVR_REQUEST_OPEN, -EBADMSG, "exclude");
}

/* ---- append and fetch ------------------------------------------------------------------------ */

static void put_range(
	uint64_t first, uint64_t count, uint32_t layers, uint32_t layer, uint32_t layers_field)
{
	kvr_test_put_varint(&body, 2, first);
	kvr_test_put_varint(&body, 3, count);
	for (uint32_t i = 0; i < layers; i++) {
		kvr_test_put_varint(&inner, 1, (layer + i) % 1000);
		kvr_test_put_bytes(&body, layers_field, inner.data, inner.count);
		kvr_test_bytes_free(&inner);
	}
}

static void token_ranges_are_bounded(void **state)
{
	(void)state;
	put_range(0, KVR_SEQUENCE_TOKENS_MAX, 1, 0, 5);
	expect(KVR_REQUEST_APPEND, 0, "");
	put_range(0, 0, 1, 0, 5);
	expect(KVR_REQUEST_APPEND, -EBADMSG, "Append.count");
	put_range(0, KVR_SEQUENCE_TOKENS_MAX + 1, 1, 0, 5);
	expect(KVR_REQUEST_APPEND, -E2BIG, "Append.count");
	put_range(1, KVR_SEQUENCE_TOKENS_MAX, 1, 0, 5);
	expect(KVR_REQUEST_APPEND, -E2BIG, "Append.count");
	put_range(UINT32_MAX, 1, 1, 0, 5);
	expect(KVR_REQUEST_APPEND, -E2BIG, "Append.count");
	put_range(UINT32_MAX, UINT32_MAX, 1, 0, 4);
	expect(KVR_REQUEST_FETCH, -E2BIG, "Fetch.count");
	put_range(KVR_SEQUENCE_TOKENS_MAX, 1, 1, 0, 4);
	expect(KVR_REQUEST_FETCH, -E2BIG, "Fetch.count");
	put_range(KVR_SEQUENCE_TOKENS_MAX - 1, 1, 1, 0, 4);
	expect(KVR_REQUEST_FETCH, 0, "");
}

static void layers_are_bounded(void **state)
{
	(void)state;
	put_range(0, 1, KVR_APPEND_LAYERS_MAX, 0, 5);
	expect(KVR_REQUEST_APPEND, 0, "");
	assert_int_equal(request.append.layer_count, KVR_APPEND_LAYERS_MAX);
	put_range(0, 1, KVR_APPEND_LAYERS_MAX + 1, 0, 5);
	expect(KVR_REQUEST_APPEND, -E2BIG, "Append.layers");
	put_range(0, 1, KVR_APPEND_LAYERS_MAX + 1, 0, 4);
	expect(KVR_REQUEST_FETCH, -E2BIG, "Fetch.layers");
	put_range(0, 1, 0, 0, 5);
	expect(KVR_REQUEST_APPEND, -EBADMSG, "layers is empty");
	put_range(0, 1, 1, KVR_LAYERS_MAX, 5);
	expect(KVR_REQUEST_APPEND, -E2BIG, "layers[0].layer");
	put_range(0, 1, 2, KVR_LAYERS_MAX - 1, 4);
	expect(KVR_REQUEST_FETCH, -E2BIG, "layers[1].layer");
}

static void layers_stand_once(void **state)
{
	(void)state;
	put_range(0, 1, 2, 10, 5);
	expect(KVR_REQUEST_APPEND, 0, "");
	put_range(0, 1, 2, 10, 5);
	kvr_test_put_varint(&inner, 1, 11);
	kvr_test_put_bytes(&body, 5, inner.data, inner.count);
	expect(KVR_REQUEST_APPEND, -EBADMSG, "layers[2].layer 11 stands twice");
}

/* ---- recall ---------------------------------------------------------------------------------- */

static void put_items(uint32_t count, const void *query, size_t query_bytes)
{
	for (uint32_t i = 0; i < count; i++) {
		kvr_test_bytes_free(&inner);
		kvr_test_put_varint(&inner, 2, i % KVR_LAYERS_MAX);
		if (query_bytes > 0)
			kvr_test_put_bytes(&inner, 3, query, query_bytes);
		kvr_test_put_bytes(&body, 1, inner.data, inner.count);
	}
	kvr_test_bytes_free(&inner);
}

static void recall_items_are_bounded(void **state)
{
	(void)state;
	kvr_test_put_varint(&body, 3, KVR_DTYPE_F16);
	put_items(KVR_RECALL_ITEMS_MAX, NULL, 0);
	expect(KVR_REQUEST_RECALL, 0, "");
	assert_int_equal(request.recall.item_count, KVR_RECALL_ITEMS_MAX);
	assert_int_equal(request.recall.rank, 1); /* 0 was sent */
	kvr_test_put_varint(&body, 3, KVR_DTYPE_F16);
	put_items(KVR_RECALL_ITEMS_MAX + 1, NULL, 0);
	expect(KVR_REQUEST_RECALL, -E2BIG, "Recall.items");
	kvr_test_put_varint(&body, 3, KVR_DTYPE_F16);
	expect(KVR_REQUEST_RECALL, -EBADMSG, "Recall.items is empty");
	kvr_test_put_varint(&body, 3, KVR_DTYPE_F16);
	kvr_test_put_varint(&inner, 2, KVR_LAYERS_MAX);
	kvr_test_put_bytes(&body, 1, inner.data, inner.count);
	expect(KVR_REQUEST_RECALL, -E2BIG, "Recall.items[0].layer");
}

static void queries_are_bounded(void **state)
{
	const size_t max = (size_t)4 * KVR_QUERY_HEADS_MAX * KVR_DIM_MAX;

	(void)state;
	kvr_test_put_varint(&body, 3, KVR_DTYPE_F32);
	put_items(1, zeros, max);
	expect(KVR_REQUEST_RECALL, 0, "");
	assert_int_equal(request.recall.items[0].query.bytes, max);
	kvr_test_put_varint(&body, 3, KVR_DTYPE_F32);
	put_items(1, zeros, max + 4);
	expect(KVR_REQUEST_RECALL, -E2BIG, "Recall.items[0].query");
	kvr_test_put_varint(&body, 3, KVR_DTYPE_F32);
	put_items(1, zeros, 6);
	expect(KVR_REQUEST_RECALL, -EBADMSG, "Recall.items[0].query");
	kvr_test_put_varint(&body, 3, KVR_DTYPE_BF16);
	put_items(1, zeros, 6);
	expect(KVR_REQUEST_RECALL, 0, "");
}

static void expect_number(uint32_t field, uint64_t value, int error, const char *name)
{
	if (field != 3)
		kvr_test_put_varint(&body, 3, KVR_DTYPE_F16);
	kvr_test_put_varint(&body, field, value);
	put_items(1, NULL, 0);
	expect(KVR_REQUEST_RECALL, error, name);
}

static void recall_numbers_are_bounded(void **state)
{
	(void)state;
	expect_number(2, KVR_WIRE_RANK_MAX, 0, "");
	expect_number(2, KVR_WIRE_RANK_MAX + 1, -EBADMSG, "Recall.rank");
	expect_number(3, 0, -EBADMSG, "Recall.query_dtype");
	expect_number(3, KVR_DTYPE_BF16 + 1, -EBADMSG, "Recall.query_dtype");
	expect_number(5, KVR_SEQUENCE_TOKENS_MAX, 0, "");
	expect_number(5, KVR_SEQUENCE_TOKENS_MAX + 1, -E2BIG, "Recall.budget_tokens");
	expect_number(7, KVR_SEQUENCE_TOKENS_MAX, 0, "");
	expect_number(7, KVR_SEQUENCE_TOKENS_MAX + 1, -E2BIG, "Recall.row_capacity");
	expect_number(13, KVR_FORM_MIXED, 0, "");
	expect_number(13, KVR_WIRE_FORM_MAX + 1, -EBADMSG, "Recall.form");
	expect_number(14, KVR_SEQUENCE_TOKENS_MAX, 0, "");
	expect_number(14, KVR_SEQUENCE_TOKENS_MAX + 1, -E2BIG, "Recall.centroid_rows");
	expect_number(13, KVR_FORM_MERGED, -EBADMSG, "Recall.merged_divisor");
	expect_number(15, 3, 0, ""); /* not looked at: it is not MERGED */
	for (uint32_t divisor = 0; divisor < 10; divisor++) {
		const bool known = divisor == 2 || divisor == 4 || divisor == 5 || divisor == 8;

		kvr_test_put_varint(&body, 15, divisor);
		expect_number(13, KVR_FORM_MERGED, known ? 0 : -EBADMSG,
			known ? "" : "Recall.merged_divisor");
	}
}

static void expect_float(uint32_t field, float value, int error, const char *name)
{
	kvr_test_put_varint(&body, 3, KVR_DTYPE_F16);
	kvr_test_put_float(&body, field, value);
	put_items(1, NULL, 0);
	expect(KVR_REQUEST_RECALL, error, name);
}

/* One item with budgets of single heads. */
static void expect_budgets(const void *budgets, size_t size, int error)
{
	kvr_test_bytes_free(&inner);
	kvr_test_put_bytes(&inner, 10, budgets, size);
	kvr_test_put_varint(&body, 3, KVR_DTYPE_F16);
	kvr_test_put_bytes(&body, 1, inner.data, inner.count);
	kvr_test_bytes_free(&inner);
	expect(KVR_REQUEST_RECALL, error, error == 0 ? "" : "Recall.items[0].budgets");
}

static void recall_budgets_are_bounded(void **state)
{
	static struct kvr_wire_budget budgets[KVR_QUERY_HEADS_MAX + 1];

	(void)state;
	expect_budgets(budgets, KVR_QUERY_HEADS_MAX * sizeof(*budgets), 0);
	expect_budgets(budgets, sizeof(budgets), -E2BIG);
	expect_budgets(budgets, sizeof(*budgets) + 1, -EBADMSG);
	budgets[1] = (struct kvr_wire_budget){KVR_SEQUENCE_TOKENS_MAX, 1.0f};
	expect_budgets(budgets, 2 * sizeof(*budgets), 0);
	budgets[1].tokens++;
	expect_budgets(budgets, 2 * sizeof(*budgets), -E2BIG);
	expect_budgets(budgets, sizeof(*budgets), 0);
	for (uint32_t i = 0; i < 4; i++) {
		const float wrong[] = {NAN, INFINITY, -1e-9f, 1.0001f};

		budgets[1] = (struct kvr_wire_budget){1, wrong[i]};
		expect_budgets(budgets, 2 * sizeof(*budgets), -EBADMSG);
	}
}

static void recall_floats_are_finite(void **state)
{
	static const float wrong[] = {NAN, -NAN, INFINITY, -INFINITY, -1e-9f, -1.0f};

	(void)state;
	for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
		expect_float(4, wrong[i], -EBADMSG, "Recall.scale");
		expect_float(6, wrong[i], -EBADMSG, "Recall.budget_mass");
	}
	expect_float(6, 1.0f, 0, "");
	expect_float(6, 1.0001f, -EBADMSG, "Recall.budget_mass");
	expect_float(4, 100.0f, 0, "");
}

#define TEST(function) cmocka_unit_test_setup_teardown(function, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(a_geometry_is_there),
		TEST(dtypes_are_known),
		TEST(sinks_are_bounded),
		TEST(merged_sets_exist),
		TEST(dense_lanes_exist),
		TEST(inline_tokens_are_bounded),
		TEST(tokens_come_in_one_run),
		TEST(tokens_are_whole),
		TEST(region_tokens_are_bounded),
		TEST(token_ranges_are_bounded),
		TEST(layers_are_bounded),
		TEST(layers_stand_once),
		TEST(recall_items_are_bounded),
		TEST(queries_are_bounded),
		TEST(recall_numbers_are_bounded),
		TEST(recall_budgets_are_bounded),
		TEST(recall_floats_are_finite),
	};

	return cmocka_run_group_tests_name("proto/limits", tests, NULL, NULL);
}

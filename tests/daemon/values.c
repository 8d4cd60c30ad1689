/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: a value that a request may not have is refused with the code that docs/PROTOCOL.md gives it,
 * and nothing of the request is kept.
 * Method: a client without the library sends requests that are right but for one value; beside it a
 * good client holds a sequence whose bytes are checked after each test. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <string.h>

#include "tests/daemon/process_util.h"
#include "tests/daemon/witness_util.h"

static void test_geometry(void **state)
{
	static const struct kvr_geometry good = {
		1, 4, 2, 64, 64, KVR_DTYPE_F16, 128, 16, 16, 0, {0}};
	struct kvr_request request = {.kind = KVR_REQUEST_MODEL_REGISTER};
	struct kvr_geometry *geometry = &request.model_register.geometry;
	struct kvr_reply reply;

	(void)state;
	memcpy(request.model_register.name, "g", 2);
	for (uint32_t i = 0; i < 10; i++) {
		uint32_t code;

		*geometry = good;
		switch (i) {
		case 0: break;
		case 1: geometry->layer_count = 0; break;
		case 2: geometry->query_heads = 5; break;
		case 3: geometry->key_dim = 7; break;
		case 4: geometry->key_dim = 577; break;
		case 5: geometry->value_dim = 0; break;
		case 6: geometry->segment_tokens = 100; break;
		case 7: geometry->segment_tokens = 16384; break;
		case 8: geometry->cluster_tokens = 3; break;
		case 9: geometry->sink_tokens = 65; break;
		}
		code = raw_call(&witness.raw, &request, &reply);
		if (i == 0)
			assert_int_equal(code, KVR_CODE_OK);
		else
			assert_true(code == KVR_CODE_GEOMETRY || code == KVR_CODE_LIMIT ||
				    code == KVR_CODE_MALFORMED);
	}
}

static void test_append_values(void **state)
{
	struct kvr_wire_layer layers[2];
	uint64_t sequence = witness_open();
	struct kvr_request request = witness_append(sequence, layers);
	struct kvr_reply reply;

	(void)state;
	request.append.sequence = sequence + 1;
	assert_int_equal(raw_call(&witness.raw, &request, &reply), KVR_CODE_NO_SEQUENCE);
	request = witness_append(sequence, layers);
	request.append.first = 1;
	assert_int_equal(raw_call(&witness.raw, &request, &reply), KVR_CODE_POSITION);
	request = witness_append(sequence, layers);
	layers[1].layer = 2;
	assert_int_equal(raw_call(&witness.raw, &request, &reply), KVR_CODE_ARGUMENT);
	layers[1].layer = 0;
	assert_int_equal(raw_call(&witness.raw, &request, &reply), KVR_CODE_MALFORMED);
	request = witness_append(sequence, layers);
	layers[0].keys = WITNESS_REGION - 1;
	assert_int_equal(raw_call(&witness.raw, &request, &reply), KVR_CODE_REGION);
	layers[0].keys = UINT64_MAX - 100;
	assert_int_equal(raw_call(&witness.raw, &request, &reply), KVR_CODE_REGION);
	request = witness_append(sequence, layers);
	request.append.count = KVR_TAIL_TOKENS_MAX + 1;
	request.append.tokens.ids = NULL;
	request.append.tokens.offset = 0;
	request.append.tokens.count = KVR_TAIL_TOKENS_MAX + 1;
	assert_int_not_equal(raw_call(&witness.raw, &request, &reply), KVR_CODE_OK);
	request = witness_append(sequence, layers);
	request.append.tokens.count = 7;
	assert_int_equal(raw_call(&witness.raw, &request, &reply), KVR_CODE_TOKENS);
	request.append.tokens.count = 0;
	request.append.tokens.ids = NULL;
	assert_int_equal(raw_call(&witness.raw, &request, &reply), KVR_CODE_TOKENS);
	/* Nothing of all this was kept: the good one is still the first. */
	request = witness_append(sequence, layers);
	request.append.layer_count = 1;
	assert_int_equal(raw_call(&witness.raw, &request, &reply), KVR_CODE_OK);
	/* The other layer with another id. */
	request.append.layers = layers + 1;
	request.append.tokens.ids = witness.ids + 1;
	assert_int_equal(raw_call(&witness.raw, &request, &reply), KVR_CODE_TOKENS);
	request.append.tokens.ids = witness.ids;
	assert_int_equal(raw_call(&witness.raw, &request, &reply), KVR_CODE_OK);
	assert_int_equal(reply.appended.token_count, 8);
}

static void test_not_finite(void **state)
{
	static const uint16_t bad[] = {0x7f80, 0xff80, 0x7fc0, 0x7f81};
	struct kvr_wire_layer layers[2];
	uint64_t sequence = witness_open();
	struct kvr_reply reply;

	(void)state;
	memset(witness.raw.region.data, 0, 8192);
	for (uint32_t i = 0; i < 4; i++) {
		for (uint32_t at = 0; at < 4;
			at++) { /* layer 0: keys, values; layer 1: keys, values */
			struct kvr_request request = witness_append(sequence, layers);
			const uint32_t elements = 8 * 2 * (at % 2 ? 24 : 32);
			uint8_t *place = witness.raw.region.data + at * 1024 +
					 2 * (process_random(0, UINT32_MAX) % elements);

			memcpy(place, &bad[i], 2);
			assert_int_equal(
				raw_call(&witness.raw, &request, &reply), KVR_CODE_NOT_FINITE);
			memset(place, 0, 2);
		}
	}
	{
		struct kvr_request request = witness_append(sequence, layers);

		assert_int_equal(raw_call(&witness.raw, &request, &reply), KVR_CODE_OK);
		assert_int_equal(reply.appended.token_count, 8);
	}
}

static void test_recall_values(void **state)
{
	struct kvr_wire_layer layers[2];
	uint64_t sequence = witness_open();
	struct kvr_request append = witness_append(sequence, layers), request;
	const struct kvr_wire_recall_item good = {.sequence = sequence,
		.query_offset = 0,
		.keys = 4096,
		.values = 8192,
		.weights = 16384,
		.positions = 20480,
		.table = 24576};
	struct kvr_wire_recall_item item;
	struct kvr_reply reply;

	(void)state;
	assert_int_equal(raw_call(&witness.raw, &append, &reply), KVR_CODE_OK);
	for (uint32_t i = 0; i < 13; i++) {
		static const uint32_t codes[] = {KVR_CODE_OK, KVR_CODE_NO_SEQUENCE,
			KVR_CODE_ARGUMENT, KVR_CODE_REGION, KVR_CODE_REGION, KVR_CODE_REGION,
			KVR_CODE_REGION, KVR_CODE_REGION, KVR_CODE_ARGUMENT, KVR_CODE_ARGUMENT,
			KVR_CODE_ROWS, KVR_CODE_LIMIT, KVR_CODE_REGION};
		uint8_t query[16] = {0};

		item = good;
		request = (struct kvr_request){.kind = KVR_REQUEST_RECALL};
		request.recall.items = &item;
		request.recall.item_count = 1;
		request.recall.rank = KVR_RANK_SHARE;
		request.recall.query_dtype = KVR_DTYPE_F32;
		request.recall.budget_tokens = 16;
		request.recall.row_capacity = 16;
		request.recall.want_weights = true;
		request.recall.want_positions = true;
		request.recall.tail = true;
		switch (i) {
		case 1: item.sequence = 12345; break;
		case 2: item.layer = 2; break;
		case 3: item.query_offset = WITNESS_REGION - 4; break;
		case 4: item.keys = WITNESS_REGION - 16; break;
		case 5: item.values = UINT64_MAX; break;
		case 6: item.table = WITNESS_REGION - 16; break;
		case 7: item.positions = WITNESS_REGION; break;
		case 8: item.weights = 16385; break;
		case 9: item.query = (struct kvr_span){query, sizeof(query)}; break;
		case 10: request.recall.row_capacity = 4; break;
		case 11: request.recall.row_capacity = UINT32_MAX; break;
		case 12: request.recall.row_capacity = KVR_SEQUENCE_TOKENS_MAX; break;
		}
		assert_int_equal(raw_call(&witness.raw, &request, &reply), codes[i]);
	}
}

static void test_range_and_names(void **state)
{
	struct kvr_wire_layer layers[2];
	uint64_t sequence = witness_open();
	struct kvr_request append = witness_append(sequence, layers), request;
	struct kvr_reply reply;

	(void)state;
	assert_int_equal(raw_call(&witness.raw, &append, &reply), KVR_CODE_OK);
	request = (struct kvr_request){.kind = KVR_REQUEST_FETCH};
	request.fetch.sequence = sequence;
	request.fetch.layers = layers;
	request.fetch.layer_count = 2;
	request.fetch.count = 9;
	assert_int_equal(raw_call(&witness.raw, &request, &reply), KVR_CODE_RANGE);
	request.fetch.first = KVR_SEQUENCE_TOKENS_MAX - 2;
	request.fetch.count = 2;
	assert_int_equal(raw_call(&witness.raw, &request, &reply), KVR_CODE_RANGE);
	request.fetch.first = UINT32_MAX;
	assert_int_equal(raw_call(&witness.raw, &request, &reply), KVR_CODE_LIMIT);
	request.fetch.first = 0;
	request.fetch.count = 8;
	assert_int_equal(raw_call(&witness.raw, &request, &reply), KVR_CODE_OK);
	request = (struct kvr_request){.kind = KVR_REQUEST_OPEN};
	request.open.model = 4711;
	assert_int_equal(raw_call(&witness.raw, &request, &reply), KVR_CODE_NO_MODEL);
	request = (struct kvr_request){.kind = KVR_REQUEST_DROP};
	request.drop.has_segment = true;
	assert_int_equal(raw_call(&witness.raw, &request, &reply), KVR_CODE_NO_SEGMENT);
	request = (struct kvr_request){.kind = KVR_REQUEST_PIN};
	assert_int_equal(raw_call(&witness.raw, &request, &reply), KVR_CODE_NO_SEGMENT);
	request = (struct kvr_request){.kind = KVR_REQUEST_CLOSE};
	request.close.sequence = sequence;
	assert_int_equal(raw_call(&witness.raw, &request, &reply), KVR_CODE_OK);
	assert_int_equal(raw_call(&witness.raw, &request, &reply), KVR_CODE_NO_SEQUENCE);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_geometry, witness_attach, witness_detach),
		cmocka_unit_test_setup_teardown(test_append_values, witness_attach, witness_detach),
		cmocka_unit_test_setup_teardown(test_not_finite, witness_attach, witness_detach),
		cmocka_unit_test_setup_teardown(test_recall_values, witness_attach, witness_detach),
		cmocka_unit_test_setup_teardown(
			test_range_and_names, witness_attach, witness_detach),
	};

	process_seed_print();
	return cmocka_run_group_tests_name("daemon values", tests, witness_start, witness_stop);
}

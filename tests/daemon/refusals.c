/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: whatever a client sends, the daemon lives, says what is wrong, keeps nothing of it and serves
 * others as before.
 * Method: a client without the library sends wrong hellos, wrong messages and wrong values to a real
 * daemon; beside it a good client holds a sequence whose bytes are checked at the end. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

#include "tests/daemon/raw_util.h"

#define REGION (4u << 20)
#define TOKENS 600u

static struct harness_daemon daemon_process;
static struct kvr_client *witness;
static struct kvr_sequence *witnessed;
static struct kvr_model_config config;
static uint32_t ids[TOKENS];
static struct raw raw;
static uint32_t model_number;

static int start(void **state)
{
	static const char *const arguments[] = {"-m", "64MiB", NULL};
	struct kvr_model *model;

	(void)state;
	harness_tokens(1, ids, TOKENS);
	harness_start(&daemon_process, arguments);
	config = harness_model();
	witness = harness_connect(&daemon_process, REGION);
	assert_int_equal(kvr_model_register(witness, &config, &model), 0);
	assert_int_equal(kvr_open(model, ids, 0, &witnessed, &(uint32_t){0}), 0);
	for (uint32_t at = 0; at < TOKENS; at += 200)
		assert_int_equal(harness_append(witness, witnessed, &config, ids, at, 200, 0), 0);
	return 0;
}

static int stop(void **state)
{
	(void)state;
	kvr_disconnect(witness);
	harness_stop(&daemon_process);
	return 0;
}

/* After each test: the witness's bytes are what they were. */
static int check_witness(void **state)
{
	(void)state;
	harness_check_fetch(witness, witnessed, &config, ids, 0, TOKENS, 0);
	harness_assert_alive(&daemon_process);
	return 0;
}

static uint64_t seed = 0x9e3779b97f4a7c15u;

static uint32_t next_random(void)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return (uint32_t)(seed >> 16);
}

/* A request that is right: an append of 8 tokens to a new sequence of the witness's model. */
static struct kvr_request good_append(uint64_t sequence, struct kvr_wire_layer *layers)
{
	struct kvr_request request = {.kind = KVR_REQUEST_APPEND};

	layers[0] = (struct kvr_wire_layer){0, 0, 1024};
	layers[1] = (struct kvr_wire_layer){1, 2048, 3072};
	request.append.sequence = sequence;
	request.append.count = 8;
	request.append.tokens.ids = ids;
	request.append.tokens.count = 8;
	request.append.layers = layers;
	request.append.layer_count = 2;
	return request;
}

static uint64_t open_sequence(void)
{
	struct kvr_request request = {.kind = KVR_REQUEST_OPEN};
	struct kvr_reply reply;

	request.open.model = model_number;
	assert_int_equal(raw_call(&raw, &request, &reply), KVR_CODE_OK);
	return reply.opened.sequence;
}

static int attach(void **state)
{
	struct kvr_request request = {.kind = KVR_REQUEST_MODEL_REGISTER};
	struct kvr_reply reply;

	(void)state;
	raw_attach(&raw, &daemon_process, REGION);
	memset(raw.region.data, 0, 1 << 20);
	memcpy(request.model_register.name, "test", 5);
	memcpy(request.model_register.digest, config.digest, 32);
	request.model_register.geometry = (struct kvr_geometry){
		.layer_count = 2,
		.query_heads = 4,
		.kv_heads = 2,
		.key_dim = 32,
		.value_dim = 24,
		.dtype = KVR_DTYPE_BF16,
		.segment_tokens = 128,
		.cluster_tokens = 8,
		.sink_tokens = UINT32_MAX,
	};
	assert_int_equal(raw_call(&raw, &request, &reply), KVR_CODE_OK);
	model_number = reply.model_registered.model;
	return 0;
}

static int detach(void **state)
{
	raw_detach(&raw);
	return check_witness(state);
}

/* ---- attach ---------------------------------------------------------------------------------- */

static void test_hello(void **state)
{
	static const struct {
		struct kvr_hello hello;
		int code;
	} cases[] = {
		{{1, 1, 0, "no region"}, KVR_CODE_LIMIT},
		{{1, 1, 1ull << 35, "too large a region"}, KVR_CODE_LIMIT},
		{{1, 1, UINT64_MAX, "overflow"}, KVR_CODE_LIMIT},
		{{2, 9, 1 << 20, "from the future"}, KVR_CODE_VERSION},
		{{0, 0, 1 << 20, "from the past"}, KVR_CODE_VERSION},
	};
	uint8_t bytes[512];

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		int64_t packed =
			kvr_hello_pack(&cases[i].hello, (struct kvr_span){bytes, sizeof(bytes)});

		assert_true(packed > 0);
		assert_int_equal(
			raw_hello(&raw, &daemon_process, (struct kvr_span){bytes, (size_t)packed}),
			cases[i].code);
		assert_int_equal(raw.region_fd, -1);
		raw_detach(&raw);
	}
	for (int i = 0; i < 100; i++) {
		size_t length = 1 + next_random() % sizeof(bytes);

		for (size_t k = 0; k < length; k++)
			bytes[k] = (uint8_t)next_random();
		if (raw_hello(&raw, &daemon_process, (struct kvr_span){bytes, length}) == 0)
			fail_msg("random bytes were welcome, seed %llx", (unsigned long long)seed);
		raw_detach(&raw);
	}
}

/* ---- messages -------------------------------------------------------------------------------- */

static void test_session_and_secret(void **state)
{
	struct kvr_request request = {.kind = KVR_REQUEST_PING};
	struct kvr_reply reply;
	const struct kvr_welcome right = raw.welcome;

	(void)state;
	assert_int_equal(raw_call(&raw, &request, &reply), KVR_CODE_OK);
	for (uint32_t bit = 0; bit < 8 * KVR_SECRET_BYTES; bit += 7) {
		raw.welcome.secret[bit / 8] ^= (uint8_t)(1 << bit % 8);
		assert_int_equal(raw_call(&raw, &request, &reply), KVR_CODE_SESSION);
		raw.welcome = right;
	}
	for (uint64_t session = 0; session < 64; session++) {
		raw.welcome.session = session << (session % 3 * 16);
		if (raw.welcome.session != right.session)
			assert_int_equal(raw_call(&raw, &request, &reply), KVR_CODE_SESSION);
	}
	raw.welcome = right;
	assert_int_equal(raw_call(&raw, &request, &reply), KVR_CODE_OK);
}

/* Sends `bytes`, then a ping, and takes what comes until the ping's reply is there. */
static void send_and_ping(struct kvr_span bytes)
{
	struct kvr_request request = {.kind = KVR_REQUEST_PING};
	uint8_t into[KVR_REPLY_BYTES_MAX];
	size_t got;

	raw_send(&raw, bytes);
	raw_send(&raw, raw_pack(&raw, &request));
	do {
		got = raw_receive(&raw, (struct kvr_span){into, sizeof(into)}, 30000);
		if (got == 0)
			fail_msg("no reply to a ping, seed %llx", (unsigned long long)seed);
	} while (kvr_reply_id((struct kvr_span){into, got}) != request.id);
}

static void test_broken_messages(void **state)
{
	static uint8_t copy[KVR_MESSAGE_BYTES_MAX];
	struct kvr_wire_layer layers[2];
	uint64_t sequence = open_sequence();
	struct kvr_request request = good_append(sequence, layers);
	struct kvr_span good = raw_pack(&raw, &request);
	size_t bytes = good.bytes;

	(void)state;
	memcpy(copy, good.data, bytes);
	for (size_t length = 1; length < bytes; length++)
		send_and_ping((struct kvr_span){copy, length});
	for (int i = 0; i < 2000; i++) { /* one flipped bit: may still be a legal request */
		uint32_t bit = next_random() % (uint32_t)(8 * bytes);

		copy[bit / 8] ^= (uint8_t)(1 << bit % 8);
		send_and_ping((struct kvr_span){copy, bytes});
		copy[bit / 8] ^= (uint8_t)(1 << bit % 8);
	}
	for (int i = 0; i < 300; i++) {
		size_t length = 1 + next_random() % 2000;

		for (size_t k = 0; k < length; k++)
			copy[k] = (uint8_t)next_random();
		send_and_ping((struct kvr_span){copy, length});
	}
	memset(copy, 0x0a, sizeof(copy)); /* as large as may be, all nested lengths */
	send_and_ping((struct kvr_span){copy, sizeof(copy)});
}

static void test_oversized_message(void **state)
{
	static uint8_t large[KVR_MESSAGE_BYTES_MAX + 4096];

	(void)state;
	/* The transport drops the connection; the session, which is the attach socket's, goes on
	 * over the next one. */
	raw_send(&raw, (struct kvr_span){large, sizeof(large)});
	kvr_client_net_close(raw.net);
	assert_int_equal(kvr_client_net_open(raw.welcome.url, &raw.net), 0);
	send_and_ping((struct kvr_span){large, 100});
}

/* ---- values ---------------------------------------------------------------------------------- */

static void test_geometry(void **state)
{
	static const struct kvr_geometry good = {1, 4, 2, 64, 64, KVR_DTYPE_F16, 128, 16, 16, {0}};
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
		code = raw_call(&raw, &request, &reply);
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
	uint64_t sequence = open_sequence();
	struct kvr_request request = good_append(sequence, layers);
	struct kvr_reply reply;

	(void)state;
	request.append.sequence = sequence + 1;
	assert_int_equal(raw_call(&raw, &request, &reply), KVR_CODE_NO_SEQUENCE);
	request = good_append(sequence, layers);
	request.append.first = 1;
	assert_int_equal(raw_call(&raw, &request, &reply), KVR_CODE_POSITION);
	request = good_append(sequence, layers);
	layers[1].layer = 2;
	assert_int_equal(raw_call(&raw, &request, &reply), KVR_CODE_ARGUMENT);
	layers[1].layer = 0;
	assert_int_equal(raw_call(&raw, &request, &reply), KVR_CODE_ARGUMENT);
	request = good_append(sequence, layers);
	layers[0].keys = REGION - 1;
	assert_int_equal(raw_call(&raw, &request, &reply), KVR_CODE_REGION);
	layers[0].keys = UINT64_MAX - 100;
	assert_int_equal(raw_call(&raw, &request, &reply), KVR_CODE_REGION);
	request = good_append(sequence, layers);
	request.append.count = KVR_TAIL_TOKENS_MAX + 1;
	request.append.tokens.ids = NULL;
	request.append.tokens.offset = 0;
	request.append.tokens.count = KVR_TAIL_TOKENS_MAX + 1;
	assert_int_not_equal(raw_call(&raw, &request, &reply), KVR_CODE_OK);
	request = good_append(sequence, layers);
	request.append.tokens.count = 7;
	assert_int_equal(raw_call(&raw, &request, &reply), KVR_CODE_TOKENS);
	request.append.tokens.count = 0;
	request.append.tokens.ids = NULL;
	assert_int_equal(raw_call(&raw, &request, &reply), KVR_CODE_TOKENS);
	/* Nothing of all this was kept: the good one is still the first. */
	request = good_append(sequence, layers);
	request.append.layer_count = 1;
	assert_int_equal(raw_call(&raw, &request, &reply), KVR_CODE_OK);
	/* The other layer with another id. */
	request.append.layers = layers + 1;
	request.append.tokens.ids = ids + 1;
	assert_int_equal(raw_call(&raw, &request, &reply), KVR_CODE_TOKENS);
	request.append.tokens.ids = ids;
	assert_int_equal(raw_call(&raw, &request, &reply), KVR_CODE_OK);
	assert_int_equal(reply.appended.token_count, 8);
}

static void test_not_finite(void **state)
{
	static const uint16_t bad[] = {0x7f80, 0xff80, 0x7fc0, 0x7f81};
	struct kvr_wire_layer layers[2];
	uint64_t sequence = open_sequence();
	struct kvr_reply reply;

	(void)state;
	memset(raw.region.data, 0, 8192);
	for (uint32_t i = 0; i < 4; i++) {
		for (uint32_t at = 0; at < 4;
			at++) { /* layer 0: keys, values; layer 1: keys, values */
			struct kvr_request request = good_append(sequence, layers);
			const uint32_t elements = 8 * 2 * (at % 2 ? 24 : 32);
			uint8_t *place =
				raw.region.data + at * 1024 + 2 * (next_random() % elements);

			memcpy(place, &bad[i], 2);
			assert_int_equal(raw_call(&raw, &request, &reply), KVR_CODE_NOT_FINITE);
			memset(place, 0, 2);
		}
	}
	{
		struct kvr_request request = good_append(sequence, layers);

		assert_int_equal(raw_call(&raw, &request, &reply), KVR_CODE_OK);
		assert_int_equal(reply.appended.token_count, 8);
	}
}

static void test_recall_values(void **state)
{
	struct kvr_wire_layer layers[2];
	uint64_t sequence = open_sequence();
	struct kvr_request append = good_append(sequence, layers), request;
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
	assert_int_equal(raw_call(&raw, &append, &reply), KVR_CODE_OK);
	for (uint32_t i = 0; i < 12; i++) {
		static const uint32_t codes[] = {KVR_CODE_OK, KVR_CODE_NO_SEQUENCE,
			KVR_CODE_ARGUMENT, KVR_CODE_REGION, KVR_CODE_REGION, KVR_CODE_REGION,
			KVR_CODE_REGION, KVR_CODE_REGION, KVR_CODE_ARGUMENT, KVR_CODE_ARGUMENT,
			KVR_CODE_ROWS, KVR_CODE_REGION};
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
		case 3: item.query_offset = REGION - 4; break;
		case 4: item.keys = REGION - 16; break;
		case 5: item.values = UINT64_MAX; break;
		case 6: item.table = REGION - 16; break;
		case 7: item.positions = REGION; break;
		case 8: item.weights = 16385; break;
		case 9: item.query = (struct kvr_span){query, sizeof(query)}; break;
		case 10: request.recall.row_capacity = 4; break;
		case 11: request.recall.row_capacity = UINT32_MAX; break;
		}
		assert_int_equal(raw_call(&raw, &request, &reply), codes[i]);
	}
}

static void test_range_and_names(void **state)
{
	struct kvr_wire_layer layers[2];
	uint64_t sequence = open_sequence();
	struct kvr_request append = good_append(sequence, layers), request;
	struct kvr_reply reply;

	(void)state;
	assert_int_equal(raw_call(&raw, &append, &reply), KVR_CODE_OK);
	request = (struct kvr_request){.kind = KVR_REQUEST_FETCH};
	request.fetch.sequence = sequence;
	request.fetch.layers = layers;
	request.fetch.layer_count = 2;
	request.fetch.count = 9;
	assert_int_equal(raw_call(&raw, &request, &reply), KVR_CODE_RANGE);
	request.fetch.first = UINT32_MAX;
	request.fetch.count = 2;
	assert_int_equal(raw_call(&raw, &request, &reply), KVR_CODE_RANGE);
	request.fetch.first = 0;
	request.fetch.count = 8;
	assert_int_equal(raw_call(&raw, &request, &reply), KVR_CODE_OK);
	request = (struct kvr_request){.kind = KVR_REQUEST_OPEN};
	request.open.model = 4711;
	assert_int_equal(raw_call(&raw, &request, &reply), KVR_CODE_NO_MODEL);
	request = (struct kvr_request){.kind = KVR_REQUEST_DROP};
	request.drop.has_segment = true;
	assert_int_equal(raw_call(&raw, &request, &reply), KVR_CODE_NO_SEGMENT);
	request = (struct kvr_request){.kind = KVR_REQUEST_PIN};
	assert_int_equal(raw_call(&raw, &request, &reply), KVR_CODE_NO_SEGMENT);
	request = (struct kvr_request){.kind = KVR_REQUEST_CLOSE};
	request.close.sequence = sequence;
	assert_int_equal(raw_call(&raw, &request, &reply), KVR_CODE_OK);
	assert_int_equal(raw_call(&raw, &request, &reply), KVR_CODE_NO_SEQUENCE);
}

/* ---- idempotence and credits ----------------------------------------------------------------- */

static void test_resend(void **state)
{
	struct kvr_wire_layer layers[2];
	uint64_t sequence = open_sequence();
	struct kvr_request request = good_append(sequence, layers);
	struct kvr_span bytes = raw_pack(&raw, &request);
	uint8_t first[1024], again[1024];
	size_t first_bytes, again_bytes;

	(void)state;
	raw_send(&raw, bytes);
	first_bytes = raw_receive(&raw, (struct kvr_span){first, sizeof(first)}, 30000);
	for (int i = 0; i < 3; i++) { /* carried out once: the position has moved on */
		raw_send(&raw, bytes);
		again_bytes = raw_receive(&raw, (struct kvr_span){again, sizeof(again)}, 30000);
		assert_true(first_bytes > 0);
		assert_int_equal(again_bytes, first_bytes);
		assert_memory_equal(first, again, first_bytes);
	}
}

/* ---- scribbling ------------------------------------------------------------------------------ */

static atomic_bool scribbling;

static void *scribble(void *region)
{
	volatile uint16_t *at = region;
	uint32_t i = 0;

	while (scribbling) {
		at[i % 65536] = (uint16_t)(i * 2654435761u);
		i++;
	}
	return NULL;
}

/* A client changes its memory while the daemon copies it: whatever arrives, it is finite, the daemon
 * lives, and what was sealed is what is fetched, twice. */
static void test_scribbling_client(void **state)
{
	uint64_t sequence = open_sequence();
	struct kvr_wire_layer layers[2] = {{0, 0, 65536}, {1, 0, 65536}};
	struct kvr_reply reply;
	uint32_t at = 0, refused = 0;
	pthread_t thread;

	(void)state;
	scribbling = true;
	assert_int_equal(pthread_create(&thread, NULL, scribble, raw.region.data), 0);
	for (int i = 0; i < 300 && at + 20 < TOKENS; i++) {
		struct kvr_request request = good_append(sequence, layers);
		uint32_t code;

		layers[0] = (struct kvr_wire_layer){0, 0, 65536};
		layers[1] = (struct kvr_wire_layer){1, 4096, 69632};
		request.append.first = at;
		request.append.count = 20;
		request.append.tokens.ids = ids + at;
		request.append.tokens.count = 20;
		code = raw_call(&raw, &request, &reply);
		assert_true(code == KVR_CODE_OK || code == KVR_CODE_NOT_FINITE);
		if (code == KVR_CODE_OK)
			at += 20;
		else
			refused++;
	}
	scribbling = false;
	pthread_join(thread, NULL);
	assert_true(at + refused > 0);
	for (int round = 0; round < 2 && at > 0; round++) {
		struct kvr_request request = {.kind = KVR_REQUEST_FETCH};
		const size_t half = raw.region.bytes / 2;

		request.fetch.sequence = sequence;
		request.fetch.count = at;
		layers[0] = (struct kvr_wire_layer){
			0, (size_t)round * half, (size_t)round * half + at * 128};
		request.fetch.layers = layers;
		request.fetch.layer_count = 1;
		assert_int_equal(raw_call(&raw, &request, &reply), KVR_CODE_OK);
		if (round == 1)
			assert_memory_equal(raw.region.data, raw.region.data + half, at * 224);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_hello, NULL, check_witness),
		cmocka_unit_test_setup_teardown(test_session_and_secret, attach, detach),
		cmocka_unit_test_setup_teardown(test_broken_messages, attach, detach),
		cmocka_unit_test_setup_teardown(test_oversized_message, attach, detach),
		cmocka_unit_test_setup_teardown(test_geometry, attach, detach),
		cmocka_unit_test_setup_teardown(test_append_values, attach, detach),
		cmocka_unit_test_setup_teardown(test_not_finite, attach, detach),
		cmocka_unit_test_setup_teardown(test_recall_values, attach, detach),
		cmocka_unit_test_setup_teardown(test_range_and_names, attach, detach),
		cmocka_unit_test_setup_teardown(test_resend, attach, detach),
		cmocka_unit_test_setup_teardown(test_scribbling_client, attach, detach),
	};

	return cmocka_run_group_tests_name("daemon refusals", tests, start, stop);
}

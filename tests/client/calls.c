/* SPDX-License-Identifier: Apache-2.0 */
/* calls.c: models, sequences, segments and lists: what a call puts on the wire, what it makes of
 * the reply, and what it refuses by itself. (Keys, values and rows: rows.c.)
 *
 * Goal: no argument is lost, swapped or sent unchecked; every refusal fills kvr_error.
 * Method: a scripted daemon shows each request as it arrived; its replies are made-up numbers that
 * must come out at the right place. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/client/calls_util.h"

static void test_hello(void **state)
{
	struct fixture *f = *state;
	struct kvr_hello hello;

	fake_hello(f->fake, &hello);
	assert_int_equal(hello.version_min, KVR_PROTOCOL_VERSION_MIN);
	assert_int_equal(hello.version_max, KVR_PROTOCOL_VERSION_MAX);
	assert_int_equal(hello.region_bytes, 8u << 20);
	assert_string_equal(hello.client, "calls?test (libkvrecall " KVR_VERSION ")");
	assert_int_equal(f->region_bytes, 8u << 20);
	assert_int_equal((uintptr_t)f->region % (2u << 20), 0);
	assert_int_equal(kvr_generation(f->client), 1);
	assert_int_equal(kvr_ping(f->client), 0);
}

static void test_region_is_shared(void **state)
{
	struct fixture *f = *state;
	uint32_t word = 0;

	memcpy(f->region + f->region_bytes - 4, &(uint32_t){0xabad1dea}, 4);
	fake_region_read(f->fake, f->region_bytes - 4, &word, 4);
	assert_int_equal(word, 0xabad1dea);
}

static void test_model_register(void **state)
{
	struct fixture *f = *state;
	const uint32_t lanes[] = {0, 5};
	struct kvr_model_config config = calls_model_config();
	struct kvr_model *again = NULL;
	struct fake_seen seen;

	assert_true(fake_seen(f->fake, KVR_REQUEST_MODEL_REGISTER, &seen));
	assert_string_equal(seen.request.model_register.name, "test");
	assert_memory_equal(seen.request.model_register.digest, config.digest, 32);
	assert_int_equal(seen.request.model_register.rank, 5);
	assert_int_equal(seen.request.model_register.geometry.layer_count, LAYERS);
	assert_int_equal(seen.request.model_register.geometry.query_heads, HEADS);
	assert_int_equal(seen.request.model_register.geometry.kv_heads, KV_HEADS);
	assert_int_equal(seen.request.model_register.geometry.key_dim, KEY_DIM);
	assert_int_equal(seen.request.model_register.geometry.value_dim, VAL_DIM);
	assert_int_equal(seen.request.model_register.geometry.dtype, KVR_DTYPE_BF16);
	assert_int_equal(seen.request.model_register.geometry.segment_tokens, 0);
	assert_int_equal(seen.request.model_register.geometry.sink_tokens, UINT32_MAX);
	/* The same number: the same handle. */
	config.dense_lanes = lanes;
	config.dense_count = 2;
	config.segment_tokens = 128;
	config.cluster_tokens = 8;
	config.sink_tokens = 0;
	assert_int_equal(kvr_model_register(f->client, &config, &again), 0);
	assert_ptr_equal(again, f->model);
	assert_true(fake_seen(f->fake, KVR_REQUEST_MODEL_REGISTER, &seen));
	assert_int_equal(seen.request.model_register.geometry.dense[0], 1u | 1u << 5);
	assert_int_equal(seen.request.model_register.geometry.segment_tokens, 128);
	assert_int_equal(seen.request.model_register.geometry.cluster_tokens, 8);
	assert_int_equal(seen.request.model_register.geometry.sink_tokens, 0);
}

static void test_model_refused(void **state)
{
	struct fixture *f = *state;
	struct kvr_model *model = NULL;
	const uint32_t lane = LAYERS * KV_HEADS;
	struct kvr_model_config config;
	uint32_t sent = fake_requests(f->fake);

#define REFUSED(change, word)                                                                   \
	do {                                                                                    \
		config = calls_model_config();                                                  \
		change;                                                                         \
		calls_refused(f, kvr_model_register(f->client, &config, &model), EINVAL, word); \
	} while (0)
	REFUSED(config.name = NULL, "name");
	REFUSED(config.name = "", "name");
	REFUSED(config.name =
			"a name of sixty-four bytes or more, which is more than fits the message",
		"name");
	REFUSED(config.layers = 0, "layers");
	REFUSED(config.layers = 257, "layers");
	REFUSED(config.query_heads = 257, "query_heads");
	REFUSED(config.query_heads = 3, "query_heads");
	REFUSED(config.kv_heads = 0, "kv_heads");
	REFUSED(config.key_dim = 7, "key_dim");
	REFUSED(config.value_dim = 577, "value_dim");
	REFUSED(config.type = (enum kvr_type)4, "type");
	REFUSED(config.segment_tokens = 65, "segment_tokens");
	REFUSED(config.segment_tokens = 8256, "segment_tokens");
	REFUSED(config.cluster_tokens = 3, "cluster_tokens");
	REFUSED(config.sink_tokens = 65, "sink_tokens");
	REFUSED(config.sink_tokens = -2, "sink_tokens");
	REFUSED(config.dense_count = 1, "dense_lanes");
	REFUSED((config.dense_count = 1, config.dense_lanes = &lane), "dense lane");
#undef REFUSED
	calls_refused(f, kvr_model_register(f->client, NULL, &model), EINVAL, "config");
	assert_null(model);
	assert_int_equal(fake_requests(f->fake), sent);
}

static void test_open(void **state)
{
	struct fixture *f = *state;
	const uint32_t tokens[5] = {9, 8, 7, UINT32_MAX, 5};
	struct kvr_sequence *sequence = NULL;
	struct fake_seen seen;
	uint32_t matched = 0;

	assert_int_equal(kvr_open(f->model, tokens, 5, &sequence, &matched), 0);
	assert_int_equal(matched, 2);
	assert_true(fake_seen(f->fake, KVR_REQUEST_OPEN, &seen));
	assert_int_equal(seen.request.open.model, FAKE_MODEL);
	assert_int_equal(seen.request.open.tokens.count, 5);
	assert_true(seen.inline_tokens);
	assert_memory_equal(seen.tokens, tokens, sizeof(tokens));
	assert_int_equal(seen.request.session, 1);
	assert_int_equal(seen.request.secret[15], 0x5a);
	assert_in_range(seen.request.deadline_ms, 2000, 3000);
	assert_int_equal(kvr_close(sequence, true), 0);
	assert_true(fake_seen(f->fake, KVR_REQUEST_CLOSE, &seen));
	assert_int_equal(seen.request.close.sequence, FAKE_SEQUENCE + 1);
	assert_true(seen.request.close.discard_tail);
	assert_int_equal(kvr_close(NULL, false), 0);
}

/* Many token ids go through the region's last bytes, or stay where they are if they lie in it. */
static void test_open_long(void **state)
{
	struct fixture *f = *state;
	const uint32_t count = KVR_TOKENS_INLINE_MAX + 1;
	uint32_t *tokens = malloc((size_t)(KVR_SEQUENCE_TOKENS_MAX + 1) * 4);
	struct kvr_sequence *sequence = NULL;
	struct fake_seen seen;
	uint32_t matched, last = 0;

	for (uint32_t i = 0; i <= KVR_SEQUENCE_TOKENS_MAX; i++)
		tokens[i] = i * 2654435761u;
	assert_int_equal(kvr_open(f->model, tokens, count - 1, &sequence, &matched), 0);
	assert_true(fake_seen(f->fake, KVR_REQUEST_OPEN, &seen));
	assert_true(seen.inline_tokens);
	assert_int_equal(kvr_open(f->model, tokens, count, &sequence, &matched), 0);
	assert_true(fake_seen(f->fake, KVR_REQUEST_OPEN, &seen));
	assert_false(seen.inline_tokens);
	assert_int_equal(seen.request.open.tokens.count, count);
	assert_int_equal(seen.request.open.tokens.offset, f->region_bytes - count * 4);
	assert_memory_equal(f->region + seen.request.open.tokens.offset, tokens, count * 4);
	fake_region_read(f->fake, f->region_bytes - 4, &last, 4);
	assert_int_equal(last, tokens[count - 1]);
	memcpy(f->region + 64, tokens, count * 4);
	assert_int_equal(kvr_open(f->model, (const uint32_t *)(const void *)(f->region + 64), count,
				 &sequence, &matched),
		0);
	assert_true(fake_seen(f->fake, KVR_REQUEST_OPEN, &seen));
	assert_int_equal(seen.request.open.tokens.offset, 64);
	sequence = NULL;
	calls_refused(f,
		kvr_open(f->model, tokens, KVR_SEQUENCE_TOKENS_MAX + 1, &sequence, &matched), E2BIG,
		"tokens");
	assert_null(sequence);
	free(tokens);
}

static void test_fork_sync_pin(void **state)
{
	struct fixture *f = *state;
	struct kvr_sequence *fork = NULL;
	struct fake_seen seen;
	uint32_t number = 0;

	assert_int_equal(kvr_fork(f->sequence, &fork, &number), 0);
	assert_int_equal(number, 33);
	assert_true(fake_seen(f->fake, KVR_REQUEST_FORK, &seen));
	assert_int_equal(seen.request.fork.sequence, FAKE_SEQUENCE);
	assert_int_equal(kvr_sync(fork, true, &number), 0);
	assert_int_equal(number, 64);
	assert_true(fake_seen(f->fake, KVR_REQUEST_SYNC, &seen));
	assert_int_equal(seen.request.sync.sequence, FAKE_SEQUENCE + 1);
	assert_true(seen.request.sync.seal_tail);
	assert_int_equal(kvr_sync(fork, false, NULL), 0);
	assert_true(fake_seen(f->fake, KVR_REQUEST_SYNC, &seen));
	assert_false(seen.request.sync.seal_tail);
	assert_int_equal(kvr_pin(f->sequence, true, &number), 0);
	assert_int_equal(number, 5);
	assert_true(fake_seen(f->fake, KVR_REQUEST_PIN, &seen));
	assert_int_equal(seen.request.pin.sequence, FAKE_SEQUENCE);
	assert_true(seen.request.pin.unpin);
	assert_int_equal(kvr_sync(NULL, false, NULL), -EINVAL);
}

static void test_segments(void **state)
{
	struct fixture *f = *state;
	struct kvr_dropped dropped = {0};
	struct fake_seen seen;
	uint8_t hash[32];
	uint32_t number = 0;

	for (uint8_t i = 0; i < 32; i++)
		hash[i] = (uint8_t)(i * 7);
	assert_int_equal(kvr_pin_segment(f->client, hash, false, &number), 0);
	assert_int_equal(number, 5);
	assert_true(fake_seen(f->fake, KVR_REQUEST_PIN, &seen));
	assert_int_equal(seen.request.pin.sequence, 0);
	assert_memory_equal(seen.request.pin.segment, hash, 32);
	assert_int_equal(kvr_drop_segment(f->client, hash, &dropped), 0);
	assert_int_equal(dropped.segment_count, 3);
	assert_int_equal(dropped.freed_bytes, 4096);
	assert_int_equal(dropped.kept_count, 1);
	assert_true(fake_seen(f->fake, KVR_REQUEST_DROP, &seen));
	assert_true(seen.request.drop.has_segment);
	assert_memory_equal(seen.request.drop.segment, hash, 32);
	assert_int_equal(kvr_drop_model(f->client, 77, &dropped), 0);
	assert_true(fake_seen(f->fake, KVR_REQUEST_DROP, &seen));
	assert_false(seen.request.drop.has_segment);
	assert_int_equal(seen.request.drop.model, 77);
}

static void test_lists(void **state)
{
	struct fixture *f = *state;
	struct kvr_model_info models[40];
	struct kvr_segment_info segments[40];
	struct kvr_metric metrics[40];
	struct fake_seen seen;

	assert_int_equal(kvr_model_list(f->client, 0, models, 40), FAKE_LIST_TOTAL);
	assert_int_equal(models[24].model, 25);
	assert_string_equal(models[24].name, "model-24");
	assert_int_equal(models[24].digest[31], 24);
	assert_int_equal(models[24].value_dim, 32);
	assert_int_equal(models[24].type, KVR_BF16);
	assert_int_equal(models[24].rank, 3);
	assert_int_equal(models[24].segment_count, 24);
	assert_int_equal(kvr_model_list(f->client, 20, models, 3), 3);
	assert_string_equal(models[0].name, "model-20");
	assert_int_equal(kvr_model_list(f->client, 25, models, 3), 0);
	assert_int_equal(kvr_model_list(f->client, 0, NULL, 0), 0);
	assert_int_equal(kvr_segment_list(f->client, 9, 0, segments, 40), FAKE_LIST_TOTAL);
	assert_true(fake_seen(f->fake, KVR_REQUEST_SEGMENT_LIST, &seen));
	assert_int_equal(seen.request.segment_list.model, 9);
	assert_int_equal(seen.request.segment_list.first, 20);
	assert_int_equal(segments[0].parent[0], 0);
	assert_int_equal(segments[24].hash[0], 25);
	assert_int_equal(segments[24].parent[31], 24);
	assert_int_equal(segments[24].token_first, 24 * 64);
	assert_int_equal(segments[24].pins, 2);
	assert_int_equal(kvr_stats(f->client, 5, metrics, 40), FAKE_LIST_TOTAL - 5);
	assert_string_equal(metrics[0].name, "fake.metric5");
	assert_string_equal(metrics[0].text, "text 5");
	assert_float_equal(metrics[1].value, 3.0, 0);
	assert_string_equal(metrics[1].text, "");
}

static enum fake_action loop_list(
	struct fake *fake, const struct kvr_request *request, struct kvr_reply *reply, void *cookie)
{
	(void)fake;
	(void)cookie;
	if (request->kind == KVR_REQUEST_STATS)
		reply->metrics.next = 3;
	return FAKE_REPLY;
}

/* A listing that never ends is ended. */
static void test_list_loop(void **state)
{
	struct fixture *f = *state;
	struct kvr_metric metrics[40];

	fake_set_script(f->fake, loop_list, NULL);
	calls_refused(f, kvr_stats(f->client, 0, metrics, 40), EPROTO, "listing");
}

static enum fake_action refuse_all(
	struct fake *fake, const struct kvr_request *request, struct kvr_reply *reply, void *cookie)
{
	const uint32_t *code = cookie;

	(void)fake;
	(void)request;
	reply->code = *code;
	strcpy(reply->subject, "segment 12 of 7");
	return FAKE_REPLY;
}

/* Every code of the daemon becomes its errno, and kvr_error has its name, subject and remedy. */
static void test_codes(void **state)
{
	struct fixture *f = *state;
	uint32_t code;

	for (code = KVR_CODE_MALFORMED; code <= KVR_CODE_DENIED; code++) {
		const struct kvr_error *error = kvr_error(f->client);

		if (code == KVR_CODE_SESSION) /* session.c */
			continue;
		fake_set_script(f->fake, refuse_all, &code);
		assert_int_equal(kvr_ping(f->client), -kvr_code_errno(code));
		assert_int_equal(error->code, code);
		assert_int_equal(error->error, kvr_code_errno(code));
		assert_string_equal(error->name, kvr_code_name(code));
		assert_string_equal(error->subject, "segment 12 of 7");
		assert_string_equal(error->remedy, kvr_code_remedy(code));
	}
	code = 9999;
	assert_int_equal(kvr_ping(f->client), -EPROTO);
	assert_string_equal(kvr_error(f->client)->name, "UNKNOWN");
}

static enum fake_action bad_numbers(
	struct fake *fake, const struct kvr_request *request, struct kvr_reply *reply, void *cookie)
{
	(void)fake;
	(void)cookie;
	if (request->kind == KVR_REQUEST_OPEN)
		reply->opened.matched_tokens = request->open.tokens.count + 1;
	if (request->kind == KVR_REQUEST_MODEL_REGISTER)
		reply->model_registered.geometry.kv_heads *= 2;
	return FAKE_REPLY;
}

/* Numbers that cannot be true are not passed on. */
static void test_bad_numbers(void **state)
{
	struct fixture *f = *state;
	struct kvr_model_config config = calls_model_config();
	struct kvr_sequence *sequence = NULL;
	struct kvr_model *model = NULL;
	const uint32_t token = 1;
	uint32_t matched = 0;

	fake_set_script(f->fake, bad_numbers, NULL);
	calls_refused(f, kvr_open(f->model, &token, 1, &sequence, &matched), EPROTO, "matched");
	assert_null(sequence);
	calls_refused(f, kvr_model_register(f->client, &config, &model), EPROTO, "geometry");
	assert_null(model);
}

static void test_null(void **state)
{
	struct fixture *f = *state;
	struct kvr_completion completion;

	assert_int_equal(kvr_ping(NULL), -EINVAL);
	assert_int_equal(kvr_append(NULL, NULL, NULL), -EINVAL);
	assert_int_equal(kvr_recall(NULL, NULL), -EINVAL);
	assert_int_equal(kvr_fetch(NULL, NULL), -EINVAL);
	assert_int_equal(kvr_poll(NULL, &completion, 1), -EINVAL);
	assert_int_equal(kvr_fd(NULL), -EINVAL);
	assert_int_equal(kvr_open(NULL, NULL, 0, NULL, NULL), -EINVAL);
	assert_int_equal(kvr_connect(NULL, NULL), -EINVAL);
	assert_null(kvr_region(NULL, NULL));
	assert_null(kvr_disconnect(NULL));
	assert_int_equal(kvr_generation(NULL), 0);
	assert_int_equal(kvr_error(NULL)->error, EINVAL);
	assert_int_equal(kvr_open(f->model, NULL, 3, NULL, NULL), -EINVAL);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, calls_setup, calls_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_hello),
		TEST(test_region_is_shared),
		TEST(test_model_register),
		TEST(test_model_refused),
		TEST(test_open),
		TEST(test_open_long),
		TEST(test_fork_sync_pin),
		TEST(test_segments),
		TEST(test_lists),
		TEST(test_list_loop),
		TEST(test_codes),
		TEST(test_bad_numbers),
		TEST(test_null),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* envelope.c: what every request has in common, bad and good.
 *
 * Goal: what every request has in common is held to the rules of docs/PROTOCOL.md, one test each:
 * its size, id, secret, deadline, number of bodies, types, text and hashes. One past a limit is
 * refused with the right errno and the field's name, the limit itself is not.
 *
 * Method: messages written byte by byte, since our own packing cannot break the rules. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <errno.h>
#include <string.h>

#include <cmocka.h>

#include "proto/message_arena.h"
#include "tests/proto/message_util.h"

static struct kvr_message_arena *arena;
static struct kvr_test_bytes bytes, body, inner;
static struct kvr_request request;
static struct kvr_reply reply;
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

/* ---- the envelope ---------------------------------------------------------------------------- */

static void a_message_has_at_most_1_mib(void **state)
{
	(void)state;
	assert_int_equal(
		kvr_request_unpack((struct kvr_span){zeros, sizeof(zeros)}, arena, &request),
		-E2BIG);
	assert_int_equal(request.id, 0);
	/* A reply has less, and its id is not looked for in more. */
	kvr_test_put_varint(&bytes, 1, 42);
	kvr_test_put_bytes(&bytes, 100, zeros, KVR_REPLY_BYTES_MAX);
	assert_int_equal(
		kvr_reply_unpack(kvr_test_span(&bytes), KVR_REQUEST_PING, arena, &reply), -E2BIG);
	assert_int_equal(kvr_reply_id(kvr_test_span(&bytes)), 0);
}

static void a_secret_has_its_length(void **state)
{
	static const size_t lengths[] = {0, 1, KVR_SECRET_BYTES - 1, KVR_SECRET_BYTES + 1, 100};

	(void)state;
	for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
		kvr_test_put_varint(&bytes, 1, 42);
		kvr_test_put_bytes(&bytes, 3, zeros, lengths[i]);
		kvr_test_put_bytes(&bytes, KVR_REQUEST_PING, NULL, 0);
		assert_int_equal(
			kvr_request_unpack(kvr_test_span(&bytes), arena, &request), -EBADMSG);
		assert_int_equal(request.id, 42);
		assert_non_null(strstr(kvr_message_error(arena), "secret"));
		kvr_test_bytes_free(&bytes);
	}
}

static void an_id_is_not_zero(void **state)
{
	(void)state;
	kvr_test_put_bytes(&bytes, 3, zeros, KVR_SECRET_BYTES);
	kvr_test_put_bytes(&bytes, KVR_REQUEST_PING, NULL, 0);
	assert_int_equal(kvr_request_unpack(kvr_test_span(&bytes), arena, &request), -EBADMSG);
	assert_non_null(strstr(kvr_message_error(arena), "Request.id"));
	kvr_test_bytes_free(&bytes);
	kvr_test_put_varint(&bytes, 2, 0);
	assert_int_equal(
		kvr_reply_unpack(kvr_test_span(&bytes), KVR_REQUEST_PING, arena, &reply), -EBADMSG);
	assert_int_equal(kvr_reply_id(kvr_test_span(&bytes)), 0);
}

static void a_deadline_is_bounded(void **state)
{
	static const uint64_t values[] = {0, 1, KVR_DEADLINE_MS_MAX, KVR_DEADLINE_MS_MAX + 1u};
	static const uint32_t read[] = {KVR_DEADLINE_MS_MAX, 1, KVR_DEADLINE_MS_MAX, 0};

	(void)state;
	for (uint32_t i = 0; i < 4; i++) {
		kvr_test_put_varint(&bytes, 4, values[i]);
		if (read[i] != 0) {
			expect(KVR_REQUEST_PING, 0, "");
			assert_int_equal(request.deadline_ms, read[i]);
		} else {
			expect(KVR_REQUEST_PING, -E2BIG, "Request.deadline_ms");
		}
	}
}

static void a_request_has_one_body(void **state)
{
	(void)state;
	kvr_test_put_bytes(&bytes, KVR_REQUEST_PING, NULL, 0);
	expect(KVR_REQUEST_STATS, -EBADMSG, "two bodies");
	kvr_test_put_bytes(&bytes, KVR_REQUEST_STATS, NULL, 0);
	expect(KVR_REQUEST_STATS, -EBADMSG, "twice");
	expect(100, -EBADMSG, "unknown kind");
}

static void fields_stand_once(void **state)
{
	(void)state;
	kvr_test_put_varint(&body, 1, 5);
	kvr_test_put_varint(&body, 1, 6);
	expect(KVR_REQUEST_FORK, -EBADMSG, "Fork.sequence stands twice");
	kvr_test_put_bytes(&body, 2, NULL, 0);
	kvr_test_put_bytes(&body, 2, NULL, 0);
	expect(KVR_REQUEST_OPEN, -EBADMSG, "Open.tokens stands twice");
	kvr_test_put_varint(&bytes, 1, 42); /* put_request adds another */
	kvr_test_put_request(&bytes, KVR_REQUEST_PING, &body);
	assert_int_equal(kvr_request_unpack(kvr_test_span(&bytes), arena, &request), -EBADMSG);
	assert_non_null(strstr(kvr_message_error(arena), "Request.id stands twice"));
	assert_int_equal(request.id, 42);
}

static void fields_have_their_types(void **state)
{
	(void)state;
	kvr_test_put_fixed32(&body, 1, 5);
	expect(KVR_REQUEST_FORK, -EBADMSG, "Fork.sequence has another type");
	kvr_test_put_bytes(&body, 2, NULL, 0); /* protobuf-c would read this bool */
	expect(KVR_REQUEST_SYNC, -EBADMSG, "Sync.seal_tail has another type");
	kvr_test_put_varint(&body, 1, 1);
	expect(KVR_REQUEST_RECALL, -EBADMSG, "Recall.items has another type");
	kvr_test_put_varint(&inner, 1, 1);
	kvr_test_put_bytes(&body, 2, inner.data, inner.count);
	expect(KVR_REQUEST_OPEN, -EBADMSG, "Tokens.ids has another type");
}

static void numbers_fit_their_fields(void **state)
{
	(void)state;
	kvr_test_put_varint(&body, 1, UINT32_MAX);
	expect(KVR_REQUEST_STATS, 0, "");
	assert_int_equal(request.stats.first, UINT32_MAX);
	kvr_test_put_varint(&body, 1, 1ull << 32);
	expect(KVR_REQUEST_STATS, -EBADMSG, "Stats.first is past 32 bits");
	kvr_test_put_varint(&body, 2, 2);
	expect(KVR_REQUEST_SYNC, -EBADMSG, "Sync.seal_tail is neither 0 nor 1");
}

static void unknown_fields_are_counted(void **state)
{
	(void)state;
	for (uint32_t i = 0; i < KVR_MESSAGE_UNKNOWN_MAX; i++)
		kvr_test_put_varint(&body, 200, 1);
	kvr_test_put(&inner, body.data, body.count);
	expect(KVR_REQUEST_PING, 0, "");
	kvr_test_put_varint(&inner, 200, 1);
	kvr_test_put(&body, inner.data, inner.count);
	expect(KVR_REQUEST_PING, -E2BIG, "unknown fields");
}

/* ---- text and hashes ------------------------------------------------------------------------- */

static void put_model(const char *name, size_t name_bytes, size_t digest_bytes)
{
	kvr_test_put_bytes(&body, 1, name, name_bytes);
	kvr_test_put_bytes(&body, 2, zeros, digest_bytes);
	kvr_test_put_varint(&inner, 6, KVR_DTYPE_F16);
	kvr_test_put_bytes(&body, 3, inner.data, inner.count);
	kvr_test_bytes_free(&inner);
}

static void names_are_bounded(void **state)
{
	char name[KVR_NAME_MAX];

	(void)state;
	memset(name, 'n', sizeof(name));
	put_model(name, KVR_NAME_MAX - 1, KVR_HASH_BYTES);
	expect(KVR_REQUEST_MODEL_REGISTER, 0, "");
	assert_int_equal(strlen(request.model_register.name), KVR_NAME_MAX - 1);
	put_model(name, KVR_NAME_MAX, KVR_HASH_BYTES);
	expect(KVR_REQUEST_MODEL_REGISTER, -E2BIG, "ModelRegister.name");
}

static void names_are_text(void **state)
{
	static const struct {
		const char *name;
		size_t bytes;
	} names[] = {
		{"a\0b", 3},
		{"a\nb", 3},
		{"\x1b[2J", 4},
		{"\x7f", 1},
		{"\xff", 1},
		{"\xc2\x9b", 2},
		{"\xc0\x80", 2},
		{"\xed\xa0\x80", 3},
		{"\xf4\x90\x80\x80", 4},
		{"caf\xc3", 4},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		put_model(names[i].name, names[i].bytes, KVR_HASH_BYTES);
		expect(KVR_REQUEST_MODEL_REGISTER, -EBADMSG, "ModelRegister.name is not UTF-8");
	}
	put_model("caf\xc3\xa9", 5, KVR_HASH_BYTES);
	expect(KVR_REQUEST_MODEL_REGISTER, 0, "");
}

static void digests_have_their_length(void **state)
{
	(void)state;
	put_model("m", 1, 0);
	expect(KVR_REQUEST_MODEL_REGISTER, -EBADMSG, "ModelRegister.digest");
	put_model("m", 1, KVR_HASH_BYTES - 1);
	expect(KVR_REQUEST_MODEL_REGISTER, -EBADMSG, "ModelRegister.digest");
	put_model("m", 1, KVR_HASH_BYTES + 1);
	expect(KVR_REQUEST_MODEL_REGISTER, -EBADMSG, "ModelRegister.digest");
	kvr_test_put_bytes(&body, 1, zeros, 31);
	expect(KVR_REQUEST_DROP, -EBADMSG, "Drop.segment");
	kvr_test_put_bytes(&body, 2, zeros, 33);
	expect(KVR_REQUEST_PIN, -EBADMSG, "Pin.segment");
}

static void a_pin_names_one_thing(void **state)
{
	(void)state;
	expect(KVR_REQUEST_PIN, -EBADMSG, "Pin.segment");
	kvr_test_put_varint(&body, 1, 5);
	kvr_test_put_bytes(&body, 2, zeros, KVR_HASH_BYTES);
	expect(KVR_REQUEST_PIN, -EBADMSG, "exclude");
}

#define TEST(function) cmocka_unit_test_setup_teardown(function, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(a_message_has_at_most_1_mib),
		TEST(a_secret_has_its_length),
		TEST(an_id_is_not_zero),
		TEST(a_deadline_is_bounded),
		TEST(a_request_has_one_body),
		TEST(fields_stand_once),
		TEST(fields_have_their_types),
		TEST(numbers_fit_their_fields),
		TEST(unknown_fields_are_counted),
		TEST(names_are_bounded),
		TEST(names_are_text),
		TEST(digests_have_their_length),
		TEST(a_pin_names_one_thing),
	};

	return cmocka_run_group_tests_name("proto/envelope", tests, NULL, NULL);
}

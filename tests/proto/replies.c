/* SPDX-License-Identifier: Apache-2.0 */
/* replies.c: what a client refuses of its daemon.
 *
 * Goal: a client takes nothing on trust from its daemon either: replies, hello and welcome are held to
 * the limits of docs/PROTOCOL.md, one test each.
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

/* Sends `body` as the reply to a request of `kind`, in field `field`. */
static void expect_reply(uint32_t kind, uint32_t field, int error, const char *name)
{
	int got;

	kvr_test_put_varint(&bytes, 1, 42);
	if (field != 0)
		kvr_test_put_bytes(&bytes, field, body.data, body.count);
	got = kvr_reply_unpack(kvr_test_span(&bytes), (enum kvr_request_kind)kind, arena, &reply);
	if (got != error || (error != 0 && strstr(kvr_message_error(arena), name) == NULL))
		fail_msg("%s: %d, not %d: \"%s\"", name, got, error, kvr_message_error(arena));
	kvr_test_bytes_free(&bytes);
	kvr_test_bytes_free(&body);
}

/* ---- replies --------------------------------------------------------------------------------- */

static void a_reply_answers_its_request(void **state)
{
	(void)state;
	expect_reply(KVR_REQUEST_OPEN, 0, -EBADMSG, "body");
	expect_reply(KVR_REQUEST_OPEN, 14, -EBADMSG, "body");
	expect_reply(KVR_REQUEST_PING, 0, 0, "");
	expect_reply(KVR_REQUEST_PING, 14, 0, ""); /* of a later version: passed over */
	expect_reply(KVR_REQUEST_FORK, 13, -EBADMSG, "Opened.sequence");
}

static void subjects_are_bounded(void **state)
{
	char subject[KVR_TEXT_MAX];

	(void)state;
	memset(subject, 's', sizeof(subject));
	kvr_test_put_varint(&bytes, 2, KVR_CODE_FULL);
	kvr_test_put_bytes(&bytes, 3, subject, KVR_TEXT_MAX - 1);
	expect_reply(KVR_REQUEST_OPEN, 0, 0, "");
	assert_int_equal(strlen(reply.subject), KVR_TEXT_MAX - 1);
	kvr_test_put_bytes(&bytes, 3, subject, KVR_TEXT_MAX);
	expect_reply(KVR_REQUEST_OPEN, 0, -E2BIG, "Reply.subject");
	kvr_test_put_bytes(&bytes, 3, "a\nb", 3);
	expect_reply(KVR_REQUEST_OPEN, 0, -EBADMSG, "Reply.subject");
}

static void list_entries_are_bounded(void **state)
{
	static const uint32_t kinds[] = {
		KVR_REQUEST_MODEL_LIST, KVR_REQUEST_STATS, KVR_REQUEST_SEGMENT_LIST};

	(void)state;
	for (uint32_t i = 0; i < 3; i++) {
		for (uint32_t n = 0; n <= KVR_LIST_ENTRIES_MAX; n++)
			kvr_test_put_bytes(&body, 1, NULL, 0);
		expect_reply(kinds[i], kinds[i], -E2BIG, "elements");
	}
	for (uint32_t n = 0; n < KVR_LIST_ENTRIES_MAX; n++)
		kvr_test_put_bytes(&body, 1, NULL, 0);
	expect_reply(KVR_REQUEST_STATS, KVR_REQUEST_STATS, 0, "");
	assert_int_equal(reply.metrics.count, KVR_LIST_ENTRIES_MAX);
	for (uint32_t n = 0; n <= KVR_RECALL_ITEMS_MAX; n++)
		kvr_test_put_bytes(&body, 1, NULL, 0);
	expect_reply(KVR_REQUEST_RECALL, KVR_REQUEST_RECALL, -E2BIG, "Recalled.items");
}

static void counts_in_replies_are_bounded(void **state)
{
	(void)state;
	kvr_test_put_varint(&body, 1, 9);
	kvr_test_put_varint(&body, 2, KVR_SEQUENCE_TOKENS_MAX + 1);
	expect_reply(KVR_REQUEST_OPEN, 13, -E2BIG, "Opened.matched_tokens");
	kvr_test_put_varint(&body, 1, KVR_SEQUENCE_TOKENS_MAX + 1);
	expect_reply(KVR_REQUEST_APPEND, 14, -E2BIG, "Appended.token_count");
	kvr_test_put_varint(&body, 1, 9);
	kvr_test_put_varint(&body, 2, 10);
	expect_reply(KVR_REQUEST_APPEND, 14, -E2BIG, "Appended.sealed_tokens");
	kvr_test_put_varint(&inner, 2, 1);
	kvr_test_put_bytes(&body, 3, inner.data, inner.count);
	expect_reply(KVR_REQUEST_RECALL, 15, -E2BIG, "RecalledItem.covered_tokens");
	expect_reply(KVR_REQUEST_RECALL, 15, -EBADMSG, "either items or same");
	kvr_test_put_varint(&body, 1, KVR_SEQUENCE_TOKENS_MAX + 1);
	expect_reply(KVR_REQUEST_SYNC, 17, -E2BIG, "Synced.sealed_tokens");
}

static void metrics_are_finite(void **state)
{
	static const double infinite = INFINITY;
	struct kvr_wire_metric metric = {.name = "a", .value = NAN};
	struct kvr_reply bad = {.id = 1, .kind = KVR_REQUEST_STATS};
	uint8_t tag = 2 << 3 | 1;
	int64_t count;

	(void)state;
	kvr_test_put(&inner, &tag, 1);
	kvr_test_put(&inner, &infinite, sizeof(infinite));
	kvr_test_put_bytes(&body, 1, inner.data, inner.count);
	expect_reply(KVR_REQUEST_STATS, 22, -EBADMSG, "Metric.value");
	bad.metrics.entries = &metric;
	bad.metrics.count = 1;
	count = kvr_reply_pack(&bad, arena, (struct kvr_span){zeros, sizeof(zeros)});
	assert_int_equal(kvr_reply_unpack((struct kvr_span){zeros, (size_t)count},
				 KVR_REQUEST_STATS, arena, &reply),
		0);
	assert_true(reply.metrics.entries[0].value == 0.0);
	assert_string_equal(reply.metrics.entries[0].text, "not finite");
}

static void geometries_in_replies_are_valid(void **state)
{
	(void)state;
	kvr_test_put_varint(&inner, 6, KVR_DTYPE_F16);
	kvr_test_put_bytes(&body, 2, inner.data, inner.count);
	expect_reply(KVR_REQUEST_MODEL_REGISTER, 11, -EBADMSG, "ModelRegistered.geometry");
}

/* ---- attach ---------------------------------------------------------------------------------- */

static void a_hello_is_bounded(void **state)
{
	struct kvr_hello hello;
	char name[KVR_NAME_MAX];

	(void)state;
	memset(name, 'n', sizeof(name));
	for (uint32_t i = 0; i < 4; i++) {
		kvr_test_put_varint(&bytes, 1, 1);
		kvr_test_put_varint(&bytes, 2, 1);
		kvr_test_put_varint(&bytes, 3, KVR_REGION_BYTES_MAX + (i == 1));
		kvr_test_put_bytes(&bytes, 4, name, KVR_NAME_MAX - 1 + (i == 2));
		if (i == 3)
			kvr_test_put_bytes(&bytes, 5, zeros, KVR_MESSAGE_BYTES_MAX);
		assert_int_equal(kvr_hello_unpack(kvr_test_span(&bytes), arena, &hello),
			i == 0 ? 0 : -E2BIG);
		kvr_test_bytes_free(&bytes);
	}
}

static void a_welcome_is_complete(void **state)
{
	static const char *const names[] = {
		"version", "session", "secret", "url", "credits", "region_bytes", ""};
	struct kvr_welcome welcome;

	(void)state;
	for (uint32_t i = 0; i < 7; i++) {
		kvr_test_put_varint(&bytes, 3,
			i == 0 ? KVR_PROTOCOL_VERSION_MAX + 1 : KVR_PROTOCOL_VERSION_MAX);
		kvr_test_put_varint(&bytes, 4, i == 1 ? 0 : 9);
		kvr_test_put_bytes(&bytes, 5, zeros, i == 2 ? 15 : KVR_SECRET_BYTES);
		kvr_test_put_bytes(&bytes, 7, "ipc://x", i == 3 ? 0 : 7);
		kvr_test_put_varint(&bytes, 8, i == 4 ? KVR_CREDITS_MAX + 1 : 1);
		kvr_test_put_varint(&bytes, 9, i == 5 ? KVR_REGION_BYTES_MAX + 1 : 0);
		assert_int_equal(
			kvr_welcome_unpack(kvr_test_span(&bytes), arena, &welcome) == 0, i == 6);
		assert_non_null(strstr(kvr_message_error(arena), names[i]));
		kvr_test_bytes_free(&bytes);
	}
}

#define TEST(function) cmocka_unit_test_setup_teardown(function, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(a_reply_answers_its_request),
		TEST(subjects_are_bounded),
		TEST(list_entries_are_bounded),
		TEST(counts_in_replies_are_bounded),
		TEST(metrics_are_finite),
		TEST(geometries_in_replies_are_valid),
		TEST(a_hello_is_bounded),
		TEST(a_welcome_is_complete),
	};

	return cmocka_run_group_tests_name("proto/replies", tests, NULL, NULL);
}

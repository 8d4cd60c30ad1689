/* SPDX-License-Identifier: Apache-2.0 */
/* wire.c: fields, text and the arena, at their edges.
 *
 * Goal: the parts below the messages hold at their edges: single fields, text, and the arena, which
 * must hold any legal message and let any other fail cleanly, also protobuf-c in the middle of its
 * work.
 *
 * Method: tables of encodings; the largest legal messages and the ones that swell most; every
 * message unpacked in arenas of every size from nothing to enough. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "proto/message_arena.h"
#include "tests/proto/message_util.h"

static struct kvr_test test;
static struct kvr_message_arena *arena;
static struct kvr_test_bytes bytes, body, inner;
static struct kvr_request request;
static struct kvr_reply reply;
static uint8_t packed[KVR_MESSAGE_BYTES_MAX];

static const struct kvr_span into = {packed, sizeof(packed)};

static int set_up(void **state)
{
	(void)state;
	test.seed = KVR_TEST_SEED;
	test.list_max = 40; /* more than protobuf-c lists on its stack */
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

/* ---- fields and text --------------------------------------------------------------------------- */

static void fields_are_taken_one_by_one(void **state)
{
	static uint8_t all[] = {0x08, 0x96, 0x01, 0x12, 0x02, 'h', 'i', 0x1d, 1, 2, 3, 4, 0x21, 1,
		2, 3, 4, 5, 6, 7, 8, 0x28, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
		0x01};
	struct kvr_span rest = {all, sizeof(all)};
	struct kvr_wire_field field;

	(void)state;
	assert_int_equal(kvr_wire_next(&rest, &field), 1);
	assert_int_equal(field.number, 1);
	assert_int_equal(field.type, KVR_WIRE_VARINT);
	assert_int_equal(field.value, 150);
	assert_int_equal(kvr_wire_next(&rest, &field), 1);
	assert_int_equal(field.number, 2);
	assert_int_equal(field.bytes.bytes, 2);
	assert_memory_equal(field.bytes.data, "hi", 2);
	assert_int_equal(kvr_wire_next(&rest, &field), 1);
	assert_int_equal(field.type, KVR_WIRE_FIXED32);
	assert_int_equal(field.bytes.bytes, 4);
	assert_int_equal(kvr_wire_next(&rest, &field), 1);
	assert_int_equal(field.type, KVR_WIRE_FIXED64);
	assert_int_equal(field.bytes.bytes, 8);
	assert_int_equal(kvr_wire_next(&rest, &field), 1);
	assert_int_equal(field.value, UINT64_MAX);
	assert_int_equal(kvr_wire_next(&rest, &field), 0);
}

static void what_is_no_field_is_refused(void **state)
{
	static const struct {
		size_t count;
		uint8_t data[16];
	} wrong[] = {
		{1, {0x08}},       /* no value */
		{2, {0x00, 0x01}}, /* number 0 */
		{2, {0x08, 0x80}}, /* unended varint */
		{12, {0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01}},
		{2, {0x0b, 0x0c}},                            /* a group */
		{2, {0x0e, 0x00}},                            /* type 6 */
		{2, {0x0f, 0x00}},                            /* type 7 */
		{3, {0x12, 0x02, 'h'}},                       /* one byte short */
		{4, {0x1d, 1, 2, 3}},                         /* fixed32 */
		{8, {0x21, 1, 2, 3, 4, 5, 6, 7}},             /* fixed64 */
		{7, {0x12, 0xfb, 0xff, 0xff, 0xff, 0x0f, 0}}, /* 2^32 - 5 bytes */
		{12, {0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01, 0}},
		{7, {0x80, 0x80, 0x80, 0x80, 0x80, 0x01, 0}}, /* number past 29 bits */
	};
	struct kvr_wire_field field;

	(void)state;
	for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
		uint8_t *copy = malloc(wrong[i].count);
		struct kvr_span from = {copy, wrong[i].count};

		assert_non_null(copy);
		memcpy(copy, wrong[i].data, wrong[i].count);
		assert_int_equal(kvr_wire_next(&from, &field), -EBADMSG);
		free(copy);
	}
}

static void text_ends_before_what_is_none(void **state)
{
	static const struct {
		const char *text;
		size_t bytes, good;
	} texts[] = {
		{"", 0, 0},
		{"plain ~", 7, 7},
		{"a\0b", 3, 1},
		{"a\tb", 3, 1},
		{"a\x7f", 2, 1},
		{"\xc3\xa9", 2, 2},         /* e with acute */
		{"x\xc3", 2, 1},            /* cut */
		{"\xc3\x28", 2, 0},         /* no continuation */
		{"\xc1\xbf", 2, 0},         /* overlong */
		{"\xe0\x9f\xbf", 3, 0},     /* overlong */
		{"\xef\xbf\xbd", 3, 3},     /* U+FFFD */
		{"\xed\x9f\xbf", 3, 3},     /* U+D7FF */
		{"\xed\xa0\x80", 3, 0},     /* surrogate */
		{"\xf0\x8f\xbf\xbf", 4, 0}, /* overlong */
		{"\xf4\x8f\xbf\xbf", 4, 4}, /* U+10FFFF */
		{"\xf4\x90\x80\x80", 4, 0}, /* past it */
		{"\xc2\x9b", 2, 0},         /* CSI */
		{"\xc2\xa0", 2, 2},         /* no-break space */
		{"\x80", 1, 0},
		{"\xfe", 1, 0},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
		struct kvr_span text = {(uint8_t *)texts[i].text, texts[i].bytes};

		assert_int_equal(kvr_wire_text(text), texts[i].good);
	}
}

/* A subject that was cut inside a character goes out without the half one. */
static void cut_subjects_are_sent_whole(void **state)
{
	struct kvr_reply back;
	int64_t count;

	(void)state;
	memset(&reply, 0, sizeof(reply));
	reply.id = 1;
	reply.code = KVR_CODE_FULL;
	reply.kind = KVR_REQUEST_OPEN;
	memcpy(reply.subject, "caf\xc3", 5);
	count = kvr_reply_pack(&reply, arena, into);
	assert_int_equal(kvr_reply_unpack((struct kvr_span){packed, (size_t)count},
				 KVR_REQUEST_OPEN, arena, &back),
		0);
	assert_string_equal(back.subject, "caf");
}

/* Recall items that are all alike travel as one. */
static void alike_items_travel_as_one(void **state)
{
	struct kvr_wire_recalled items[64];
	struct kvr_reply alone = {.id = 1, .kind = KVR_REQUEST_RECALL}, back;
	int64_t alike, different;

	(void)state;
	for (uint32_t i = 0; i < 64; i++)
		items[i] = (struct kvr_wire_recalled){1000, 900};
	alone.recalled.items = items;
	alone.recalled.count = 64;
	alike = kvr_reply_pack(&alone, arena, into);
	assert_int_equal(kvr_reply_unpack((struct kvr_span){packed, (size_t)alike},
				 KVR_REQUEST_RECALL, arena, &back),
		0);
	assert_int_equal(back.recalled.count, 0);
	assert_int_equal(back.recalled.same.token_count, 1000);
	assert_int_equal(back.recalled.same.covered_tokens, 900);
	items[63].covered_tokens = 899;
	different = kvr_reply_pack(&alone, arena, into);
	assert_true(different > alike + 63);
}

/* ---- the arena --------------------------------------------------------------------------------- */

/* Whatever allocation fails, protobuf-c gives up and the message is refused; with enough it is not. */
static void every_allocation_may_fail(void **state)
{
	(void)state;
	for (uint32_t kind = KVR_REQUEST_PING; kind <= KVR_REQUEST_SEGMENT_LIST; kind++) {
		struct kvr_span from = {packed, 0};
		size_t need;

		kvr_test_request(&test, (enum kvr_request_kind)kind, &request);
		kvr_test_put(&bytes, packed, (size_t)kvr_request_pack(&request, arena, into));
		from = kvr_test_span(&bytes);
		assert_int_equal(kvr_request_unpack(from, arena, &request), 0);
		need = arena->used;
		for (size_t capacity = 0; capacity < need; capacity += KVR_MESSAGE_ALIGN) {
			arena->capacity = capacity;
			assert_int_equal(kvr_request_unpack(from, arena, &request), -E2BIG);
			assert_true(arena->used <= capacity);
		}
		arena->capacity = need;
		assert_int_equal(kvr_request_unpack(from, arena, &request), 0);
		arena->capacity = sizeof(arena->memory);
		kvr_test_bytes_free(&bytes);
	}
}

static void every_allocation_for_a_reply_may_fail(void **state)
{
	(void)state;
	for (uint32_t kind = KVR_REQUEST_PING; kind <= KVR_REQUEST_SEGMENT_LIST; kind++) {
		struct kvr_span from;
		size_t need;

		do
			kvr_test_reply(&test, (enum kvr_request_kind)kind, &reply);
		while (reply.code != 0);
		kvr_test_put(&bytes, packed, (size_t)kvr_reply_pack(&reply, arena, into));
		from = kvr_test_span(&bytes);
		assert_int_equal(
			kvr_reply_unpack(from, (enum kvr_request_kind)kind, arena, &reply), 0);
		need = arena->used;
		for (size_t capacity = 0; capacity < need; capacity += KVR_MESSAGE_ALIGN) {
			arena->capacity = capacity;
			assert_int_equal(
				kvr_reply_unpack(from, (enum kvr_request_kind)kind, arena, &reply),
				-E2BIG);
		}
		arena->capacity = sizeof(arena->memory);
		kvr_test_bytes_free(&bytes);
	}
}

static void put_unknown(struct kvr_test_bytes *to, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++)
		kvr_test_put_varint(to, 15, 1);
}

/* Message bytes left for a filler field after what is in `body`, envelope included. */
static size_t room(void)
{
	return KVR_MESSAGE_BYTES_MAX - body.count - 100;
}

/* The largest legal recall: all items, all unknown fields, and queries up to the last byte. */
static void the_largest_recall_fits(void **state)
{
	size_t query_bytes;

	(void)state;
	kvr_test_put_varint(&body, 3, KVR_DTYPE_F16);
	query_bytes = (room() / KVR_RECALL_ITEMS_MAX - 80) & ~(size_t)1;
	for (uint32_t i = 0; i < KVR_RECALL_ITEMS_MAX; i++) {
		for (uint32_t field = 1; field <= 9; field++)
			if (field == 3)
				kvr_test_put_bytes(&inner, field, packed, query_bytes);
			else
				kvr_test_put_varint(&inner, field, field == 2 ? 255 : i + 1);
		if (i % 128 == 0) /* 8 x 128: past the 16 that protobuf-c lists on its stack */
			put_unknown(&inner, KVR_MESSAGE_UNKNOWN_MAX / 8);
		kvr_test_put_bytes(&body, 1, inner.data, inner.count);
		kvr_test_bytes_free(&inner);
	}
	kvr_test_put_request(&bytes, KVR_REQUEST_RECALL, &body);
	assert_in_range(bytes.count, KVR_MESSAGE_BYTES_MAX * 9 / 10, KVR_MESSAGE_BYTES_MAX);
	assert_int_equal(kvr_request_unpack(kvr_test_span(&bytes), arena, &request), 0);
	assert_int_equal(request.recall.item_count, KVR_RECALL_ITEMS_MAX);
	assert_in_range(arena->used, KVR_MESSAGE_BYTES_MAX, sizeof(arena->memory));
}

/* The largest legal append: all layers, all tokens. */
static void the_largest_append_fits(void **state)
{
	(void)state;
	kvr_test_put_varint(&body, 3, 1);
	for (uint32_t i = 0; i < KVR_APPEND_LAYERS_MAX; i++) {
		kvr_test_put_varint(&inner, 1, i);
		if (i % 64 == 0)
			put_unknown(&inner, KVR_MESSAGE_UNKNOWN_MAX / 8);
		kvr_test_put_bytes(&body, 5, inner.data, inner.count);
		kvr_test_bytes_free(&inner);
	}
	kvr_test_put_bytes(&inner, 1, packed, (size_t)4 * KVR_TOKENS_INLINE_MAX);
	put_unknown(&inner, KVR_MESSAGE_UNKNOWN_MAX / 2 - 1);
	kvr_test_put_bytes(&inner, 14, packed, KVR_MESSAGE_BYTES_MAX * 3 / 8); /* one more */
	kvr_test_put_bytes(&body, 4, inner.data, inner.count);
	kvr_test_put_request(&bytes, KVR_REQUEST_APPEND, &body);
	assert_in_range(bytes.count, KVR_MESSAGE_BYTES_MAX * 8 / 10, KVR_MESSAGE_BYTES_MAX);
	assert_int_equal(kvr_request_unpack(kvr_test_span(&bytes), arena, &request), 0);
	assert_int_equal(request.append.tokens.count, KVR_TOKENS_INLINE_MAX);
	assert_int_equal(request.append.layer_count, KVR_APPEND_LAYERS_MAX);
}

/* The largest replies fit a reply. */
static void the_largest_lists_fit(void **state)
{
	static const uint32_t kinds[] = {
		KVR_REQUEST_MODEL_LIST, KVR_REQUEST_STATS, KVR_REQUEST_SEGMENT_LIST};
	struct kvr_wire_recalled recalled[KVR_RECALL_ITEMS_MAX];

	(void)state;
	for (uint32_t i = 0; i < KVR_LIST_ENTRIES_MAX; i++) {
		test.models[i] = (struct kvr_wire_model){UINT32_MAX, "", {0},
			{256, 256, 128, 576, 576, KVR_DTYPE_BF16, 8192, 1024, 64, 0, {0}},
			UINT32_MAX, UINT32_MAX, UINT64_MAX};
		test.metrics[i] = (struct kvr_wire_metric){.value = 1};
		test.segments[i] = (struct kvr_wire_segment){.has_parent = true,
			.model = UINT32_MAX,
			.token_first = UINT32_MAX,
			.token_count = UINT32_MAX,
			.stored_bytes = UINT64_MAX,
			.leases = UINT32_MAX,
			.pins = UINT32_MAX,
			.resident_bytes = UINT64_MAX,
			.durable = true,
			.quarantined = true};
		test.models[i].geometry.layer_count = 128; /* x 128 kv heads: all lanes */
		memset(test.models[i].geometry.dense, 0xff, KVR_LANES_MAX / 8);
		memset(test.models[i].name, 'n', KVR_NAME_MAX - 1);
		memset(test.metrics[i].name, 'n', KVR_NAME_MAX - 1);
		memset(test.metrics[i].text, 't', KVR_TEXT_MAX - 1);
	}
	for (uint32_t i = 0; i <= 3; i++) {
		memset(&reply, 0, sizeof(reply));
		reply.id = UINT64_MAX;
		memset(reply.subject, 's', KVR_TEXT_MAX - 1);
		reply.kind = (enum kvr_request_kind)(i < 3 ? kinds[i] : KVR_REQUEST_RECALL);
		reply.models.entries = i == 0 ? test.models : NULL;
		if (i == 1)
			reply.metrics.entries = test.metrics;
		if (i == 2)
			reply.segments.entries = test.segments;
		reply.models.count = KVR_LIST_ENTRIES_MAX;
		reply.models.next = UINT32_MAX;
		if (i == 3) {
			for (uint32_t j = 0; j < KVR_RECALL_ITEMS_MAX; j++)
				recalled[j] = (struct kvr_wire_recalled){
					KVR_SEQUENCE_TOKENS_MAX, KVR_SEQUENCE_TOKENS_MAX - j % 2};
			memset(&reply.recalled, 0, sizeof(reply.recalled));
			reply.recalled.items = recalled;
			reply.recalled.count = KVR_RECALL_ITEMS_MAX;
		}
		assert_in_range(kvr_reply_pack(&reply, arena, into), KVR_LIST_ENTRIES_MAX * 100,
			KVR_REPLY_BYTES_MAX);
	}
}

/* A geometry may have all its lanes dense, and still fits a reply. */
static void all_lanes_may_be_dense(void **state)
{
	struct kvr_reply back;
	int64_t count;

	(void)state;
	memset(&reply, 0, sizeof(reply));
	reply.id = 1;
	reply.kind = KVR_REQUEST_MODEL_REGISTER;
	reply.model_registered.geometry =
		(struct kvr_geometry){128, 128, 128, 64, 64, KVR_DTYPE_F16, 1024, 16, 16, 0, {0}};
	memset(reply.model_registered.geometry.dense, 0xff, KVR_LANES_MAX / 8);
	count = kvr_reply_pack(&reply, arena, into);
	assert_in_range(count, KVR_LANES_MAX / 8, KVR_REPLY_BYTES_MAX);
	assert_int_equal(kvr_reply_unpack((struct kvr_span){packed, (size_t)count},
				 KVR_REQUEST_MODEL_REGISTER, arena, &back),
		0);
	kvr_test_same_reply(&reply, &back);
}

/* Random bytes, and random bytes behind a good head. */
static void random_bytes_are_refused(void **state)
{
	(void)state;
	for (uint32_t i = 0; i < 20000; i++) {
		size_t count = kvr_test_random(&test) % 200;

		for (size_t j = 0; j < count; j++) {
			uint8_t byte = (uint8_t)kvr_test_random(&test);

			kvr_test_put(&body, &byte, 1);
		}
		if (i % 2 == 0)
			kvr_test_put(&bytes, body.data, body.count);
		else
			kvr_test_put_request(&bytes, 10 + i % 14, &body);
		(void)kvr_request_unpack(kvr_test_span(&bytes), arena, &request);
		if (i % 2 == 1)
			assert_int_equal(request.id, 42);
		(void)kvr_reply_unpack(
			kvr_test_span(&bytes), (enum kvr_request_kind)(10 + i % 14), arena, &reply);
		kvr_test_bytes_free(&body);
		kvr_test_bytes_free(&bytes);
	}
}

#define TEST(function) cmocka_unit_test_setup_teardown(function, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(fields_are_taken_one_by_one),
		TEST(what_is_no_field_is_refused),
		TEST(text_ends_before_what_is_none),
		TEST(cut_subjects_are_sent_whole),
		TEST(alike_items_travel_as_one),
		TEST(every_allocation_may_fail),
		TEST(every_allocation_for_a_reply_may_fail),
		TEST(the_largest_recall_fits),
		TEST(the_largest_append_fits),
		TEST(the_largest_lists_fit),
		TEST(all_lanes_may_be_dense),
		TEST(random_bytes_are_refused),
	};

	print_message("seed 0x%llx\n", (unsigned long long)KVR_TEST_SEED);
	return cmocka_run_group_tests_name("proto/wire", tests, NULL, NULL);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* message.c: messages of every kind, whole and damaged.
 *
 * Goal: what is packed is what is unpacked, for every kind of message, and no damage to a message,
 * wherever it sits, does more than refuse it.
 *
 * Method: random messages of every kind from one seed. Round trips compare every field. Damage:
 * truncation at every byte, every single bit flipped, unknown fields put in everywhere. Damaged
 * messages lie in heap blocks of exactly their size, so that ASan sees a read past the end. A damaged
 * message that is still accepted must be packed and unpacked again to the same bytes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/proto/message_util.h"

static struct kvr_test test;
static struct kvr_message_arena *arena;
static uint8_t packed[KVR_MESSAGE_BYTES_MAX], again[KVR_MESSAGE_BYTES_MAX];

static const struct kvr_span into = {packed, sizeof(packed)};
static const struct kvr_span into_again = {again, sizeof(again)};

static int set_up(void **state)
{
	(void)state;
	test.seed = KVR_TEST_SEED;
	test.list_max = 4;
	return kvr_message_arena_open(&arena);
}

static int tear_down(void **state)
{
	(void)state;
	arena = kvr_message_arena_close(arena);
	return 0;
}

static struct kvr_span exact_copy(const uint8_t *data, size_t bytes)
{
	struct kvr_span copy = {malloc(bytes > 0 ? bytes : 1), bytes};

	assert_non_null(copy.data);
	memcpy(copy.data, data, bytes);
	return copy;
}

/* A refusal is one of two, and says why in printable text. */
static void check_refusal(int error)
{
	const char *text = kvr_message_error(arena);

	assert_true(error == -EBADMSG || error == -E2BIG);
	assert_true(strlen(text) > 0 && strlen(text) < KVR_TEXT_MAX);
	for (; *text != '\0'; text++)
		assert_true(*text >= 0x20 && *text < 0x7f);
}

/* ---- round trips ------------------------------------------------------------------------------- */

static void hello_and_welcome_come_back(void **state)
{
	struct kvr_hello hello, hello2;
	struct kvr_welcome welcome, welcome2;
	int64_t bytes;

	(void)state;
	for (uint32_t i = 0; i < KVR_TEST_ROUNDS; i++) {
		kvr_test_hello(&test, &hello);
		bytes = kvr_hello_pack(&hello, into);
		assert_true(bytes > 0);
		assert_int_equal(
			kvr_hello_unpack((struct kvr_span){packed, (size_t)bytes}, arena, &hello2),
			0);
		assert_int_equal(hello.version_min, hello2.version_min);
		assert_int_equal(hello.version_max, hello2.version_max);
		assert_int_equal(hello.region_bytes, hello2.region_bytes);
		assert_string_equal(hello.client, hello2.client);

		kvr_test_welcome(&test, &welcome);
		bytes = kvr_welcome_pack(&welcome, into);
		assert_true(bytes > 0);
		assert_int_equal(kvr_welcome_unpack((struct kvr_span){packed, (size_t)bytes}, arena,
					 &welcome2),
			0);
		assert_int_equal(welcome.code, welcome2.code);
		assert_string_equal(welcome.subject, welcome2.subject);
		assert_int_equal(welcome.version, welcome2.version);
		assert_int_equal(welcome.session, welcome2.session);
		assert_memory_equal(welcome.secret, welcome2.secret, KVR_SECRET_BYTES);
		assert_int_equal(welcome.boot, welcome2.boot);
		assert_string_equal(welcome.url, welcome2.url);
		assert_int_equal(welcome.credits, welcome2.credits);
		assert_int_equal(welcome.region_bytes, welcome2.region_bytes);
		assert_string_equal(welcome.server, welcome2.server);
	}
}

static void requests_come_back(void **state)
{
	struct kvr_request request, back;
	int64_t bytes;

	(void)state;
	for (uint32_t i = 0; i < KVR_TEST_ROUNDS; i++)
		for (uint32_t kind = KVR_REQUEST_PING; kind <= KVR_REQUEST_SEGMENT_LIST; kind++) {
			test.list_max = i % 2 ? 64 : 4;
			kvr_test_request(&test, (enum kvr_request_kind)kind, &request);
			bytes = kvr_request_pack(&request, arena, into);
			assert_true(bytes > 0);
			assert_int_equal(
				kvr_request_unpack(
					(struct kvr_span){packed, (size_t)bytes}, arena, &back),
				0);
			kvr_test_same_request(&request, &back);
		}
}

static void replies_come_back(void **state)
{
	struct kvr_reply reply, back;
	int64_t bytes;

	(void)state;
	for (uint32_t i = 0; i < KVR_TEST_ROUNDS; i++)
		for (uint32_t kind = KVR_REQUEST_PING; kind <= KVR_REQUEST_SEGMENT_LIST; kind++) {
			test.list_max = i % 2 ? 64 : 4;
			kvr_test_reply(&test, (enum kvr_request_kind)kind, &reply);
			bytes = kvr_reply_pack(&reply, arena, into);
			assert_true(bytes > 0);
			assert_int_equal(
				kvr_reply_id((struct kvr_span){packed, (size_t)bytes}), reply.id);
			assert_int_equal(kvr_reply_unpack((struct kvr_span){packed, (size_t)bytes},
						 (enum kvr_request_kind)kind, arena, &back),
				0);
			kvr_test_same_reply(&reply, &back);
		}
}

/* Packing must leave what the same arena has unpacked alone. */
static void packing_spares_what_was_unpacked(void **state)
{
	struct kvr_request request, back, other;
	struct kvr_test elsewhere = test;
	int64_t bytes;

	(void)state;
	kvr_test_request(&test, KVR_REQUEST_RECALL, &request);
	bytes = kvr_request_pack(&request, arena, into);
	assert_int_equal(
		kvr_request_unpack((struct kvr_span){packed, (size_t)bytes}, arena, &back), 0);
	memset(packed, 0xee, sizeof(packed)); /* unpacked messages do not point into the bytes */
	for (uint32_t kind = KVR_REQUEST_PING; kind <= KVR_REQUEST_SEGMENT_LIST; kind++) {
		kvr_test_request(&elsewhere, (enum kvr_request_kind)kind, &other);
		assert_true(kvr_request_pack(&other, arena, into_again) > 0);
	}
	kvr_test_same_request(&request, &back);
}

/* A span that is too small is said to be, at every size, and not written past its end. */
static void short_spans_are_refused(void **state)
{
	struct kvr_request request;
	int64_t bytes;

	(void)state;
	for (uint32_t kind = KVR_REQUEST_PING; kind <= KVR_REQUEST_SEGMENT_LIST; kind++) {
		kvr_test_request(&test, (enum kvr_request_kind)kind, &request);
		bytes = kvr_request_pack(&request, arena, into);
		for (int64_t n = 0; n < bytes; n++) {
			struct kvr_span small = exact_copy(packed, (size_t)n);

			assert_int_equal(kvr_request_pack(&request, arena, small), -EMSGSIZE);
			free(small.data);
		}
	}
}

/* ---- damage ------------------------------------------------------------------------------------ */

/* Unpacks what may be damaged; what is accepted must be stable under packing. */
static int try_request(struct kvr_span bytes, struct kvr_request *ret_request)
{
	struct kvr_request second;
	int64_t first_bytes, second_bytes;
	int error = kvr_request_unpack(bytes, arena, ret_request);

	if (error < 0) {
		check_refusal(error);
		return error;
	}
	first_bytes = kvr_request_pack(ret_request, arena, into);
	assert_true(first_bytes > 0);
	assert_int_equal(
		kvr_request_unpack((struct kvr_span){packed, (size_t)first_bytes}, arena, &second),
		0);
	second_bytes = kvr_request_pack(&second, arena, into_again);
	assert_int_equal(first_bytes, second_bytes);
	assert_memory_equal(packed, again, (size_t)first_bytes);
	return 0;
}

static int try_reply(struct kvr_span bytes, enum kvr_request_kind kind)
{
	struct kvr_reply reply, second;
	int64_t first_bytes, second_bytes;
	int error = kvr_reply_unpack(bytes, kind, arena, &reply);

	kvr_reply_id(bytes);
	if (error < 0) {
		check_refusal(error);
		return error;
	}
	first_bytes = kvr_reply_pack(&reply, arena, into);
	assert_true(first_bytes > 0);
	assert_int_equal(kvr_reply_unpack((struct kvr_span){packed, (size_t)first_bytes}, kind,
				 arena, &second),
		0);
	second_bytes = kvr_reply_pack(&second, arena, into_again);
	assert_int_equal(first_bytes, second_bytes);
	assert_memory_equal(packed, again, (size_t)first_bytes);
	return 0;
}

/* However much of a request is missing, its head is known from where the head ends. */
static void truncated_requests_are_refused(void **state)
{
	struct kvr_request request, back;

	(void)state;
	for (uint32_t kind = KVR_REQUEST_PING; kind <= KVR_REQUEST_SEGMENT_LIST; kind++) {
		int64_t bytes;
		struct kvr_span whole;
		size_t head = 1 + 10 + 1 + 10 + 2 + KVR_SECRET_BYTES;

		kvr_test_request(&test, (enum kvr_request_kind)kind, &request);
		request.id |= 1ull << 63; /* ten bytes of varint each */
		request.session |= 1ull << 63;
		bytes = kvr_request_pack(&request, arena, into);
		whole = exact_copy(packed, (size_t)bytes);
		for (size_t n = 0; n < whole.bytes; n++) {
			struct kvr_span part = exact_copy(whole.data, n);

			assert_true(try_request(part, &back) < 0);
			assert_int_equal(back.id, n >= 11 ? request.id : 0);
			if (n >= head) {
				assert_int_equal(back.session, request.session);
				assert_memory_equal(back.secret, request.secret, KVR_SECRET_BYTES);
			}
			free(part.data);
		}
		free(whole.data);
	}
}

static void truncated_replies_are_refused(void **state)
{
	struct kvr_reply reply;

	(void)state;
	for (uint32_t kind = KVR_REQUEST_PING; kind <= KVR_REQUEST_SEGMENT_LIST; kind++) {
		int64_t bytes;
		struct kvr_span whole;
		bool has_body = kind != KVR_REQUEST_PING && kind != KVR_REQUEST_CLOSE;

		kvr_test_reply(&test, (enum kvr_request_kind)kind, &reply);
		bytes = kvr_reply_pack(&reply, arena, into);
		whole = exact_copy(packed, (size_t)bytes);
		for (size_t n = 0; n < whole.bytes; n++) {
			struct kvr_span part = exact_copy(whole.data, n);
			int error = try_reply(part, (enum kvr_request_kind)kind);

			if (has_body && reply.code == 0)
				assert_true(error < 0);
			free(part.data);
		}
		free(whole.data);
	}
}

static void flipped_bits_do_no_harm(void **state)
{
	struct kvr_request request, back;
	struct kvr_reply reply;
	struct kvr_span copy;
	int64_t bytes;

	(void)state;
	for (uint32_t kind = KVR_REQUEST_PING; kind <= KVR_REQUEST_SEGMENT_LIST; kind++) {
		kvr_test_request(&test, (enum kvr_request_kind)kind, &request);
		bytes = kvr_request_pack(&request, arena, into);
		copy = exact_copy(packed, (size_t)bytes);
		for (size_t bit = 0; bit < 8 * copy.bytes; bit++) {
			copy.data[bit / 8] ^= (uint8_t)(1u << bit % 8);
			try_request(copy, &back);
			copy.data[bit / 8] ^= (uint8_t)(1u << bit % 8);
		}
		assert_int_equal(try_request(copy, &back), 0);
		free(copy.data);

		kvr_test_reply(&test, (enum kvr_request_kind)kind, &reply);
		bytes = kvr_reply_pack(&reply, arena, into);
		copy = exact_copy(packed, (size_t)bytes);
		for (size_t bit = 0; bit < 8 * copy.bytes; bit++) {
			copy.data[bit / 8] ^= (uint8_t)(1u << bit % 8);
			try_reply(copy, (enum kvr_request_kind)kind);
			copy.data[bit / 8] ^= (uint8_t)(1u << bit % 8);
		}
		assert_int_equal(try_reply(copy, (enum kvr_request_kind)kind), 0);
		free(copy.data);
	}
}

static void damaged_attach_messages_do_no_harm(void **state)
{
	struct kvr_hello hello, hello2;
	struct kvr_welcome welcome, welcome2;

	(void)state;
	for (uint32_t round = 0; round < 2; round++) {
		int64_t bytes;
		struct kvr_span copy;

		kvr_test_hello(&test, &hello);
		kvr_test_welcome(&test, &welcome);
		bytes = round == 0 ? kvr_hello_pack(&hello, into)
				   : kvr_welcome_pack(&welcome, into);
		copy = exact_copy(packed, (size_t)bytes);
		for (size_t bit = 0; bit < 8 * copy.bytes; bit++) {
			struct kvr_span part = exact_copy(copy.data, bit / 8);
			int error;

			copy.data[bit / 8] ^= (uint8_t)(1u << bit % 8);
			error = kvr_hello_unpack(copy, arena, &hello2);
			if (error < 0)
				check_refusal(error);
			error = kvr_welcome_unpack(copy, arena, &welcome2);
			if (error < 0)
				check_refusal(error);
			error = kvr_hello_unpack(part, arena, &hello2);
			if (error < 0)
				check_refusal(error);
			error = kvr_welcome_unpack(part, arena, &welcome2);
			if (error < 0)
				check_refusal(error);
			copy.data[bit / 8] ^= (uint8_t)(1u << bit % 8);
			free(part.data);
		}
		free(copy.data);
	}
}

/* ---- later versions ---------------------------------------------------------------------------- */

static void put_unknown(struct kvr_test_bytes *bytes)
{
	kvr_test_put_varint(bytes, 100, 1ull << 40);
	kvr_test_put_fixed32(bytes, 1000, 5);
	kvr_test_put_bytes(bytes, (1u << 29) - 1, "later", 5);
}

/* Fields that this build does not know, before and after those it does, in every request. */
static void unknown_fields_are_passed_over(void **state)
{
	struct kvr_request request, back;
	struct kvr_test_bytes bytes = {0}, body = {0};

	(void)state;
	for (uint32_t kind = KVR_REQUEST_PING; kind <= KVR_REQUEST_SEGMENT_LIST; kind++) {
		kvr_test_request(&test, (enum kvr_request_kind)kind, &request);
		put_unknown(&bytes);
		kvr_test_put(&bytes, packed, (size_t)kvr_request_pack(&request, arena, into));
		put_unknown(&bytes);
		assert_int_equal(kvr_request_unpack(kvr_test_span(&bytes), arena, &back), 0);
		kvr_test_same_request(&request, &back);
		kvr_test_bytes_free(&bytes);
	}
	/* And inside a body. */
	put_unknown(&body);
	kvr_test_put_varint(&body, 1, 77);
	put_unknown(&body);
	kvr_test_put_varint(&body, 2, 1);
	kvr_test_put_request(&bytes, KVR_REQUEST_SYNC, &body);
	assert_int_equal(kvr_request_unpack(kvr_test_span(&bytes), arena, &back), 0);
	assert_int_equal(back.sync.sequence, 77);
	assert_true(back.sync.seal_tail);
	kvr_test_bytes_free(&bytes);
}

static void unknown_fields_of_replies_are_passed_over(void **state)
{
	struct kvr_reply reply, back;
	struct kvr_test_bytes bytes = {0};

	(void)state;
	for (uint32_t kind = KVR_REQUEST_PING; kind <= KVR_REQUEST_SEGMENT_LIST; kind++) {
		kvr_test_reply(&test, (enum kvr_request_kind)kind, &reply);
		put_unknown(&bytes);
		kvr_test_put(&bytes, packed, (size_t)kvr_reply_pack(&reply, arena, into));
		put_unknown(&bytes);
		assert_int_equal(kvr_reply_id(kvr_test_span(&bytes)), reply.id);
		assert_int_equal(kvr_reply_unpack(kvr_test_span(&bytes),
					 (enum kvr_request_kind)kind, arena, &back),
			0);
		kvr_test_same_reply(&reply, &back);
		kvr_test_bytes_free(&bytes);
	}
}

/* A kind of a later version is refused, with its head known. */
static void unknown_kinds_are_refused(void **state)
{
	struct kvr_request back;
	struct kvr_test_bytes bytes = {0}, body = {0};

	(void)state;
	kvr_test_put_varint(&body, 1, 1);
	kvr_test_put_request(&bytes, KVR_REQUEST_SEGMENT_LIST + 1, &body);
	assert_int_equal(kvr_request_unpack(kvr_test_span(&bytes), arena, &back), -EBADMSG);
	assert_int_equal(back.id, 42);
	assert_int_equal(back.session, 43);
	assert_int_equal(back.secret[0], 7);
	assert_int_equal(back.kind, 0);
	assert_non_null(strstr(kvr_message_error(arena), "kind"));
	kvr_test_bytes_free(&bytes);
}

/* The range of versions that a hello names may lie anywhere; it is the daemon that chooses. */
static void versions_are_read_whatever_they_are(void **state)
{
	struct kvr_hello hello = {.version_min = 7, .version_max = 4000000000u}, back;
	struct kvr_welcome welcome = {.code = KVR_CODE_VERSION}, refused;
	int64_t bytes = kvr_hello_pack(&hello, into);

	(void)state;
	assert_int_equal(
		kvr_hello_unpack((struct kvr_span){packed, (size_t)bytes}, arena, &back), 0);
	assert_int_equal(back.version_min, 7);
	assert_int_equal(back.version_max, 4000000000u);
	hello.version_max = 6;
	bytes = kvr_hello_pack(&hello, into);
	assert_int_equal(
		kvr_hello_unpack((struct kvr_span){packed, (size_t)bytes}, arena, &back), -EBADMSG);
	hello.version_min = hello.version_max = 0;
	bytes = kvr_hello_pack(&hello, into);
	assert_int_equal(
		kvr_hello_unpack((struct kvr_span){packed, (size_t)bytes}, arena, &back), -EBADMSG);
	bytes = kvr_welcome_pack(&welcome, into); /* a refusal needs nothing else */
	assert_int_equal(
		kvr_welcome_unpack((struct kvr_span){packed, (size_t)bytes}, arena, &refused), 0);
	assert_int_equal(refused.code, KVR_CODE_VERSION);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(hello_and_welcome_come_back, set_up, tear_down),
		cmocka_unit_test_setup_teardown(requests_come_back, set_up, tear_down),
		cmocka_unit_test_setup_teardown(replies_come_back, set_up, tear_down),
		cmocka_unit_test_setup_teardown(
			packing_spares_what_was_unpacked, set_up, tear_down),
		cmocka_unit_test_setup_teardown(short_spans_are_refused, set_up, tear_down),
		cmocka_unit_test_setup_teardown(truncated_requests_are_refused, set_up, tear_down),
		cmocka_unit_test_setup_teardown(truncated_replies_are_refused, set_up, tear_down),
		cmocka_unit_test_setup_teardown(flipped_bits_do_no_harm, set_up, tear_down),
		cmocka_unit_test_setup_teardown(
			damaged_attach_messages_do_no_harm, set_up, tear_down),
		cmocka_unit_test_setup_teardown(unknown_fields_are_passed_over, set_up, tear_down),
		cmocka_unit_test_setup_teardown(
			unknown_fields_of_replies_are_passed_over, set_up, tear_down),
		cmocka_unit_test_setup_teardown(unknown_kinds_are_refused, set_up, tear_down),
		cmocka_unit_test_setup_teardown(
			versions_are_read_whatever_they_are, set_up, tear_down),
	};

	print_message("seed 0x%llx\n", (unsigned long long)KVR_TEST_SEED);
	return cmocka_run_group_tests_name("proto/message", tests, NULL, NULL);
}

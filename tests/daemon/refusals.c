/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: whatever message a client sends, the daemon lives, says what is wrong, keeps nothing of it and
 * serves others as before; a request that comes twice is carried out once.
 * Method: a client without the library sends wrong hellos and wrong messages to a real daemon; beside
 * it a good client holds a sequence whose bytes are checked after each test. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "tests/daemon/process_util.h"
#include "tests/daemon/witness_util.h"

/* ---- attach ---------------------------------------------------------------------------------- */

static void test_hello(void **state)
{
	static const struct {
		struct kvr_hello hello;
		int code;
	} cases[] = {
		{{1, 1, 0, "no region"}, KVR_CODE_LIMIT},
		{{1, 1, 1ull << 35, "too large a region"}, KVR_CODE_LIMIT},
		{{1, 1, UINT64_MAX, "overflow"}, KVR_CODE_MALFORMED},
		{{2, 9, 1 << 20, "from the future"}, KVR_CODE_VERSION},
		{{0, 0, 1 << 20, "from the past"}, KVR_CODE_MALFORMED},
		{{3, 2, 1 << 20, "inside out"}, KVR_CODE_MALFORMED},
	};
	uint8_t bytes[512];

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		int64_t packed =
			kvr_hello_pack(&cases[i].hello, (struct kvr_span){bytes, sizeof(bytes)});

		assert_true(packed > 0);
		assert_int_equal(raw_hello(&witness.raw, &witness.daemon,
					 (struct kvr_span){bytes, (size_t)packed}),
			cases[i].code);
		assert_int_equal(witness.raw.region_fd, -1);
		raw_detach(&witness.raw);
	}
	for (int i = 0; i < 100; i++) {
		size_t length = 1 + process_random(0, UINT32_MAX) % sizeof(bytes);

		for (size_t k = 0; k < length; k++)
			bytes[k] = (uint8_t)process_random(0, UINT32_MAX);
		if (raw_hello(&witness.raw, &witness.daemon, (struct kvr_span){bytes, length}) == 0)
			fail_msg("random bytes were welcome, seed %llx",
				(unsigned long long)process_seed);
		raw_detach(&witness.raw);
	}
}

/* ---- messages -------------------------------------------------------------------------------- */

static void test_session_and_secret(void **state)
{
	struct kvr_request request = {.kind = KVR_REQUEST_PING};
	struct kvr_reply reply;
	const struct kvr_welcome right = witness.raw.welcome;

	(void)state;
	assert_int_equal(raw_call(&witness.raw, &request, &reply), KVR_CODE_OK);
	for (uint32_t bit = 0; bit < 8 * KVR_SECRET_BYTES; bit += 7) {
		witness.raw.welcome.secret[bit / 8] ^= (uint8_t)(1 << bit % 8);
		assert_int_equal(raw_call(&witness.raw, &request, &reply), KVR_CODE_SESSION);
		witness.raw.welcome = right;
	}
	for (uint64_t session = 0; session < 64; session++) {
		witness.raw.welcome.session = session << (session % 3 * 16);
		if (witness.raw.welcome.session != right.session)
			assert_int_equal(
				raw_call(&witness.raw, &request, &reply), KVR_CODE_SESSION);
	}
	witness.raw.welcome = right;
	assert_int_equal(raw_call(&witness.raw, &request, &reply), KVR_CODE_OK);
}

/* Sends `bytes`, then a ping, and takes what comes until the ping's reply is there. */
static void send_and_ping(struct kvr_span bytes)
{
	struct kvr_request request = {.kind = KVR_REQUEST_PING};
	uint8_t into[KVR_REPLY_BYTES_MAX];
	size_t got;

	raw_send(&witness.raw, bytes);
	raw_send(&witness.raw, raw_pack(&witness.raw, &request));
	do {
		got = raw_receive(&witness.raw, (struct kvr_span){into, sizeof(into)}, 30000);
		if (got == 0)
			fail_msg("no reply to a ping, seed %llx", (unsigned long long)process_seed);
	} while (kvr_reply_id((struct kvr_span){into, got}) != request.id);
}

static void test_broken_messages(void **state)
{
	static uint8_t copy[KVR_MESSAGE_BYTES_MAX];
	struct kvr_wire_layer layers[2];
	uint64_t sequence = witness_open();
	struct kvr_request request = witness_append(sequence, layers);
	struct kvr_span good = raw_pack(&witness.raw, &request);
	size_t bytes = good.bytes;

	(void)state;
	memcpy(copy, good.data, bytes);
	for (size_t length = 1; length < bytes; length++)
		send_and_ping((struct kvr_span){copy, length});
	for (int i = 0; i < 2000; i++) { /* one flipped bit: may still be a legal request */
		uint32_t bit = process_random(0, UINT32_MAX) % (uint32_t)(8 * bytes);

		copy[bit / 8] ^= (uint8_t)(1 << bit % 8);
		send_and_ping((struct kvr_span){copy, bytes});
		copy[bit / 8] ^= (uint8_t)(1 << bit % 8);
	}
	for (int i = 0; i < 300; i++) {
		size_t length = 1 + process_random(0, UINT32_MAX) % 2000;

		for (size_t k = 0; k < length; k++)
			copy[k] = (uint8_t)process_random(0, UINT32_MAX);
		send_and_ping((struct kvr_span){copy, length});
	}
	memset(copy, 0x0a, sizeof(copy)); /* as large as may be, all nested lengths */
	send_and_ping((struct kvr_span){copy, sizeof(copy)});
}

/* ---- idempotence and credits ----------------------------------------------------------------- */

static void test_resend(void **state)
{
	struct kvr_wire_layer layers[2];
	uint64_t sequence = witness_open();
	struct kvr_request request = witness_append(sequence, layers);
	struct kvr_span bytes = raw_pack(&witness.raw, &request);
	uint8_t first[1024], again[1024];
	size_t first_bytes, again_bytes;

	(void)state;
	raw_send(&witness.raw, bytes);
	first_bytes = raw_receive(&witness.raw, (struct kvr_span){first, sizeof(first)}, 30000);
	for (int i = 0; i < 3; i++) { /* carried out once: the position has moved on */
		raw_send(&witness.raw, bytes);
		again_bytes =
			raw_receive(&witness.raw, (struct kvr_span){again, sizeof(again)}, 30000);
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
	uint64_t sequence = witness_open();
	struct kvr_wire_layer layers[2] = {{0, 0, 65536}, {1, 0, 65536}};
	struct kvr_reply reply;
	uint32_t at = 0, refused = 0;
	pthread_t thread;

	(void)state;
	scribbling = true;
	assert_int_equal(pthread_create(&thread, NULL, scribble, witness.raw.region.data), 0);
	for (int i = 0; i < 300 && at + 20 < WITNESS_TOKENS; i++) {
		struct kvr_request request = witness_append(sequence, layers);
		uint32_t code;

		layers[0] = (struct kvr_wire_layer){0, 0, 65536};
		layers[1] = (struct kvr_wire_layer){1, 4096, 69632};
		request.append.first = at;
		request.append.count = 20;
		request.append.tokens.ids = witness.ids + at;
		request.append.tokens.count = 20;
		code = raw_call(&witness.raw, &request, &reply);
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
		const size_t half = witness.raw.region.bytes / 2;

		request.fetch.sequence = sequence;
		request.fetch.count = at;
		layers[0] = (struct kvr_wire_layer){
			0, (size_t)round * half, (size_t)round * half + at * 128};
		request.fetch.layers = layers;
		request.fetch.layer_count = 1;
		assert_int_equal(raw_call(&witness.raw, &request, &reply), KVR_CODE_OK);
		if (round == 1)
			assert_memory_equal(
				witness.raw.region.data, witness.raw.region.data + half, at * 224);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_hello, NULL, witness_check),
		cmocka_unit_test_setup_teardown(
			test_session_and_secret, witness_attach, witness_detach),
		cmocka_unit_test_setup_teardown(
			test_broken_messages, witness_attach, witness_detach),
		cmocka_unit_test_setup_teardown(test_resend, witness_attach, witness_detach),
		cmocka_unit_test_setup_teardown(
			test_scribbling_client, witness_attach, witness_detach),
	};

	process_seed_print();
	return cmocka_run_group_tests_name("daemon refusals", tests, witness_start, witness_stop);
}

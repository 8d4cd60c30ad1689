/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: a request is carried out once, however often it comes, whenever, and whichever way.
 * Method: a client without the library sends the bytes of a request again: after its answer, when the
 * answer is forgotten or too long to be kept, after a refusal, over another pipe. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <string.h>

#include "tests/daemon/peer_util.h"
#include "tests/daemon/process_util.h"

/* A recall whose answer is too long to be kept. Its rows lie in memory that the client has put to other
 * use since: a resend that comes late leaves it alone. */
static void test_recall_is_not_repeated(void **state)
{
	static struct kvr_wire_recall_item items[PEER_ITEMS];
	const uint32_t model = peer_register(&peer, 128, 8);
	const uint64_t sequences[] = {peer_open(&peer, model), peer_open(&peer, model)};
	const struct kvr_span out = {peer.raw.region.data + PEER_OUT, PEER_ITEMS * PEER_OUT_ITEM};
	struct kvr_wire_layer layers[2];
	struct kvr_request request;
	struct kvr_reply reply;
	struct kvr_span bytes;

	(void)state;
	for (uint32_t i = 0; i < 2; i++) {
		request = peer_append(sequences[i], 0, 300 + 10 * i, layers);
		assert_int_equal(peer_call(&peer, &request, &reply), KVR_CODE_OK);
	}
	request = peer_recall(sequences, 2, PEER_ITEMS, PEER_OUT, items);
	bytes = peer_keep(&peer, &request);
	raw_send(&peer.raw, bytes);
	assert_int_equal(peer_take(&peer, &reply), KVR_CODE_OK);
	assert_int_equal(reply.recalled.count, PEER_ITEMS);
	memset(out.data, 0x55, out.bytes);
	raw_send(&peer.raw, bytes);
	assert_int_equal(peer_take(&peer, &reply), KVR_CODE_TIMEOUT);
	for (size_t i = 0; i < out.bytes; i++)
		assert_int_equal(out.data[i], 0x55);
}

/* An open that was answered so long ago that the answer is forgotten. */
static void test_open_is_not_repeated(void **state)
{
	struct kvr_request request = {.kind = KVR_REQUEST_OPEN};
	struct kvr_client *other = harness_connect(&peer_daemon, 0);
	struct kvr_reply reply;
	struct kvr_span bytes;
	double open_count;

	(void)state;
	request.open.model = peer_register(&peer, 128, 8);
	bytes = peer_keep(&peer, &request);
	raw_send(&peer.raw, bytes);
	assert_int_equal(peer_take(&peer, &reply), KVR_CODE_OK);
	open_count = harness_metric(other, "sequence.open_count");
	for (uint32_t i = 0; i < 300; i++) {
		request = (struct kvr_request){.kind = KVR_REQUEST_PING};
		assert_int_equal(peer_call(&peer, &request, &reply), KVR_CODE_OK);
	}
	raw_send(&peer.raw, bytes);
	assert_int_equal(peer_take(&peer, &reply), KVR_CODE_TIMEOUT);
	assert_true(harness_metric(other, "sequence.open_count") == open_count);
	kvr_disconnect(other);
}

/* What is refused for want of credit stays refused: the client has been told so. */
static void test_refusal_is_final(void **state)
{
	const uint64_t sequence = peer_open(&peer, peer_register(&peer, 8192, 4));
	struct kvr_wire_layer layers[2];
	struct kvr_request request = peer_append(sequence, 0, PEER_TOKENS, layers);
	struct kvr_reply reply;
	struct kvr_span bytes;
	uint32_t refused = 0;
	uint64_t last;

	(void)state;
	assert_int_equal(peer_call(&peer, &request, &reply), KVR_CODE_OK);
	for (uint32_t i = 0; i < KVR_CREDITS_MAX; i++) { /* they wait for a seal that takes long */
		request = peer_sync(sequence);
		peer_ask(&peer, &request);
	}
	request = peer_append(sequence, PEER_TOKENS, 1, layers);
	request.append.tokens.ids = peer_ids;
	bytes = peer_keep(&peer, &request);
	last = request.id;
	raw_send(&peer.raw, bytes);
	for (uint32_t i = 0; i <= KVR_CREDITS_MAX; i++) {
		peer_take(&peer, &reply);
		refused += reply.id == last && reply.code == KVR_CODE_CREDIT;
	}
	raw_send(&peer.raw, bytes);
	assert_int_equal(peer_take(&peer, &reply), refused ? KVR_CODE_CREDIT : KVR_CODE_OK);
	assert_int_equal(reply.id, last);
}

/* The pipe breaks while a request waits; the client sends it again over another one: the reply takes
 * that way. */
static void test_another_pipe(void **state)
{
	const uint64_t sequence = peer_open(&peer, peer_register(&peer, 8192, 5));
	struct kvr_wire_layer layers[2];
	struct kvr_request request = peer_append(sequence, 0, PEER_TOKENS, layers);
	struct kvr_reply reply;
	struct kvr_span bytes;

	(void)state;
	assert_int_equal(peer_call(&peer, &request, &reply), KVR_CODE_OK);
	request = peer_sync(sequence);
	bytes = peer_keep(&peer, &request);
	raw_send(&peer.raw, bytes);
	process_sleep_us(2000);
	kvr_client_net_close(peer.raw.net);
	assert_int_equal(kvr_client_net_open(peer.raw.welcome.url, &peer.raw.net), 0);
	raw_send(&peer.raw, bytes);
	assert_int_equal(peer_take(&peer, &reply), KVR_CODE_OK);
	assert_int_equal(reply.synced.sealed_tokens, PEER_TOKENS);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_recall_is_not_repeated, peer_begin, peer_end),
		cmocka_unit_test_setup_teardown(test_open_is_not_repeated, peer_begin, peer_end),
		cmocka_unit_test_setup_teardown(test_refusal_is_final, peer_begin, peer_end),
		cmocka_unit_test_setup_teardown(test_another_pipe, peer_begin, peer_end),
	};

	return cmocka_run_group_tests_name("daemon resends", tests, peer_start, peer_stop);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: requests of a session are carried out in their order, however late the daemon gets to them;
 * nobody is overtaken or starved, and a crowd leaves nothing behind.
 * Method: clients without the library keep the daemon's works busy with recalls of many heads while
 * another one sends requests that build on each other, without waiting. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "tests/daemon/peer_util.h"
#include "tests/daemon/process_util.h"

#define BUSY   2u /* clients that keep the daemon busy */
#define ROUNDS (PROCESS_SLOW == 1 ? 5u : 2u)

static struct peer busy[BUSY];

/* ---- many requests in flight ----------------------------------------------------------------- */

/* Fills the queues: as many recalls as there are credits, each a work of its own. */
static void occupy(const uint64_t *sequences)
{
	static struct kvr_wire_recall_item items[PEER_ITEMS];

	for (uint32_t i = 0; i < KVR_CREDITS_MAX; i++) {
		for (uint32_t b = 0; b < BUSY; b++) {
			struct kvr_request request = peer_recall(&sequences[b], 1, PEER_ITEMS,
				PEER_OUT + (size_t)i * PEER_ITEMS * PEER_OUT_ITEM, items);

			peer_ask(&busy[b], &request);
		}
	}
}

/* More requests are in flight than there are works. Appends that build on each other, a recall that sees
 * them and a close, sent at once: each finds what those before it did. */
static void test_order(void **state)
{
	uint64_t sequences[BUSY], sequence;
	const uint32_t model = peer_register(&peer, 128, 8);
	struct kvr_wire_layer layers[2];
	struct kvr_wire_recall_item item;
	struct kvr_request request;
	struct kvr_reply reply;

	(void)state;
	for (uint32_t b = 0; b < BUSY; b++) {
		peer_attach(&busy[b]);
		sequences[b] = peer_open(&busy[b], peer_register(&busy[b], 128, 8));
		peer_put(&busy[b], sequences[b], PEER_TOKENS / 2);
	}
	for (uint32_t round = 0; round < ROUNDS; round++) {
		sequence = peer_open(&peer, model);
		occupy(sequences);
		for (uint32_t at = 0; at < 500; at += 100) {
			request = peer_append(sequence, at, 100, layers);
			peer_ask(&peer, &request);
		}
		request = peer_recall(&sequence, 1, 1, PEER_OUT, &item);
		peer_ask(&peer, &request);
		request = (struct kvr_request){.kind = KVR_REQUEST_CLOSE};
		request.close.sequence = sequence;
		peer_ask(&peer, &request);
		for (uint32_t i = 1; i <= 7; i++) {
			if (peer_take(&peer, &reply) != KVR_CODE_OK)
				fail_msg("reply %u: %s", i, reply.subject);
			if (reply.kind == KVR_REQUEST_APPEND)
				assert_int_equal(reply.appended.token_count, i * 100);
			if (reply.kind == KVR_REQUEST_RECALL)
				assert_int_equal(reply.recalled.same.token_count, 500);
		}
		for (uint32_t i = 0; i < BUSY * KVR_CREDITS_MAX; i++)
			assert_int_equal(peer_take(&busy[i % BUSY], &reply), KVR_CODE_OK);
	}
	for (uint32_t b = 0; b < BUSY; b++)
		raw_detach(&busy[b].raw);
}

#define READERS    8u
#define READ_ITEMS (256u / PROCESS_SLOW)
#define SEAL_MS    60000u

/* There is never a moment without a recall in flight; what is appended meanwhile is sealed all the same. */
static void test_readers_do_not_starve_sealing(void **state)
{
	static struct kvr_wire_recall_item items[PEER_ITEMS];
	const uint64_t sequence = peer_open(&peer, peer_register(&peer, 256, 8));
	struct kvr_wire_layer layers[2];
	struct kvr_request request = {.kind = KVR_REQUEST_SYNC};
	struct kvr_reply reply;
	uint32_t appended = PEER_TOKENS / 2, sealed = appended, out = 0;
	const uint64_t until_ns = kvr_clock_ns() + SEAL_MS * 1000000ull;

	(void)state;
	peer_put(&peer, sequence, appended);
	request.sync.sequence = sequence;
	assert_int_equal(peer_call(&peer, &request, &reply), KVR_CODE_OK);
	assert_int_equal(reply.synced.sealed_tokens, appended);
	while (sealed == PEER_TOKENS / 2 && kvr_clock_ns() < until_ns) {
		for (; out < READERS; out++) {
			request = peer_recall(&sequence, 1, READ_ITEMS,
				PEER_OUT + peer.raw.id % 32 * PEER_ITEMS * PEER_OUT_ITEM, items);
			peer_ask(&peer, &request);
		}
		if (peer.raw.id % 16 == 0 && appended < PEER_TOKENS - 100) {
			request = peer_append(sequence, appended, 100, layers);
			peer_ask(&peer, &request);
			appended += 100;
			out++;
		}
		assert_int_equal(peer_take(&peer, &reply), KVR_CODE_OK);
		out--;
		if (reply.kind == KVR_REQUEST_RECALL)
			sealed = reply.recalled.same.covered_tokens;
	}
	assert_true(sealed > PEER_TOKENS / 2);
	for (; out > 0; out--)
		assert_int_equal(peer_take(&peer, &reply), KVR_CODE_OK);
}

/* A fork and appends to the sequence that is forked, sent at once: the fork has what was there before. */
static void test_fork_and_append(void **state)
{
	const uint32_t model = peer_register(&peer, 1024, 8);
	struct kvr_wire_layer layers[2];
	struct kvr_reply reply;

	(void)state;
	for (uint32_t round = 0; round < 20; round++) {
		const uint64_t sequence = peer_open(&peer, model);
		struct kvr_request request = peer_append(sequence, 0, 500, layers);
		uint64_t forked = 0;

		assert_int_equal(peer_call(&peer, &request, &reply), KVR_CODE_OK);
		request = (struct kvr_request){.kind = KVR_REQUEST_FORK};
		request.fork.sequence = sequence;
		peer_ask(&peer, &request);
		request = peer_append(sequence, 500, 10, layers);
		peer_ask(&peer, &request);
		for (uint32_t i = 0; i < 2; i++) {
			assert_int_equal(peer_take(&peer, &reply), KVR_CODE_OK);
			if (reply.kind != KVR_REQUEST_FORK)
				continue;
			assert_int_equal(reply.opened.matched_tokens, 500);
			forked = reply.opened.sequence;
		}
		request = peer_append(forked, 500, 1, layers);
		assert_int_equal(peer_call(&peer, &request, &reply), KVR_CODE_OK);
		assert_int_equal(reply.appended.token_count, 501);
	}
}

/* ---- crowds ---------------------------------------------------------------------------------- */

/* Anonymous memory of the daemon, KiB. */
static uint64_t anonymous_kib(void)
{
	uint64_t kib = 0;
	char path[64], line[256];
	FILE *file;

	snprintf(path, sizeof(path), "/proc/%d/status", (int)peer_daemon.pid);
	file = fopen(path, "r");
	assert_non_null(file);
	while (fgets(line, sizeof(line), file)) {
		if (strncmp(line, "RssAnon:", 8) == 0)
			kib = strtoul(line + 8, NULL, 10);
	}
	fclose(file);
	assert_true(kib > 0);
	return kib;
}

/* Large requests of several clients wait at once. */
static void crowd(void)
{
	static struct kvr_wire_recall_item items[KVR_RECALL_ITEMS_MAX];
	static const uint8_t query[512]; /* of each item, inline */
	struct kvr_wire_layer layers[2];
	struct kvr_request request;
	struct kvr_reply reply;

	for (uint32_t b = 0; b < BUSY; b++) {
		uint64_t sequence;

		peer_attach(&busy[b]);
		sequence = peer_open(&busy[b], peer_register(&busy[b], 8192, 6 + b));
		request = peer_append(sequence, 0, PEER_TOKENS, layers);
		assert_int_equal(peer_call(&busy[b], &request, &reply), KVR_CODE_OK);
		request = peer_sync(sequence);
		peer_ask(&busy[b], &request);
		request = peer_recall(&sequence, 1, KVR_RECALL_ITEMS_MAX, PEER_OUT, items);
		for (uint32_t i = 0; i < KVR_RECALL_ITEMS_MAX; i++)
			items[i].query = (struct kvr_span){(uint8_t *)(uintptr_t)query, 512};
		for (uint32_t i = 1; i < KVR_CREDITS_MAX; i++)
			peer_ask(&busy[b], &request);
	}
	for (uint32_t i = 0; i < BUSY * KVR_CREDITS_MAX; i++)
		assert_int_equal(peer_take(&busy[i % BUSY], &reply), KVR_CODE_OK);
	for (uint32_t b = 0; b < BUSY; b++)
		raw_detach(&busy[b].raw);
}

/* Afterwards their memory is the system's again; what the first crowd has left, the second one uses. */
static void test_memory_of_a_crowd(void **state)
{
	uint64_t before, between, after;

	(void)state;
	if (PROCESS_SLOW != 1) {
		print_message("skipped: sanitizers keep memory of their own\n");
		skip();
	}
	before = anonymous_kib();
	crowd();
	between = anonymous_kib();
	crowd();
	after = anonymous_kib();
	if (between > before + (56u << 10) || after > between + (4u << 10))
		fail_msg("%llu KiB before, %llu KiB after a crowd, %llu KiB after another",
			(unsigned long long)before, (unsigned long long)between,
			(unsigned long long)after);
}

/* ---- full, and then not ---------------------------------------------------------------------- */

#define TAIL KVR_TAIL_TOKENS_MAX

/* Appends one layer of a model of small rows, from memory that holds ids and zeros. */
static uint32_t append_layer(
	struct peer *who, uint64_t sequence, uint32_t layer, uint32_t first, uint32_t count)
{
	struct kvr_wire_layer where = {layer, PEER_OUT, PEER_OUT};
	struct kvr_request request = {.kind = KVR_REQUEST_APPEND};
	struct kvr_reply reply;

	request.append.sequence = sequence;
	request.append.first = first;
	request.append.count = count;
	request.append.tokens = (struct kvr_tokens){NULL, count, PEER_OUT};
	request.append.layers = &where;
	request.append.layer_count = 1;
	return peer_call(who, &request, &reply);
}

/* A tail as long as may be cannot be sealed, since memory is full of others' tails. When they are gone,
 * appends go on by themselves. */
static void test_full_tail_recovers(void **state)
{
	static const char *const arguments[] = {"-m", "6MiB", NULL};
	struct harness_daemon daemon;
	static struct peer small;
	struct kvr_request request = {.kind = KVR_REQUEST_MODEL_REGISTER};
	struct kvr_reply reply;
	uint64_t full, others[64];
	uint32_t count = 0, model, at;

	(void)state;
	harness_start(&daemon, arguments);
	raw_attach(&small.raw, &daemon, 4u << 20);
	request.model_register.geometry = (struct kvr_geometry){
		.layer_count = 2,
		.query_heads = 1,
		.kv_heads = 1,
		.key_dim = 8,
		.value_dim = 8,
		.dtype = KVR_DTYPE_F16,
		.segment_tokens = 1024,
		.cluster_tokens = 4,
	};
	assert_int_equal(peer_call(&small, &request, &reply), KVR_CODE_OK);
	model = reply.model_registered.model;
	full = peer_open(&small, model);
	assert_int_equal(append_layer(&small, full, 0, 0, TAIL), KVR_CODE_OK);
	for (bool more = true; more && count < 64; count++) {
		others[count] = peer_open(&small, model);
		for (at = 0; at < TAIL && more; at += 64)
			more = append_layer(&small, others[count], 0, at, 64) == KVR_CODE_OK;
	}
	assert_true(count < 64);
	assert_int_equal(append_layer(&small, full, 1, 0, TAIL), KVR_CODE_OK);
	assert_int_equal(append_layer(&small, full, 0, TAIL, 64), KVR_CODE_FULL);
	for (uint32_t i = 0; i < count; i++) {
		request = (struct kvr_request){.kind = KVR_REQUEST_CLOSE};
		request.close.sequence = others[i];
		request.close.discard_tail = true;
		assert_int_equal(peer_call(&small, &request, &reply), KVR_CODE_OK);
	}
	assert_int_equal(append_layer(&small, full, 0, TAIL, 64), KVR_CODE_OK);
	raw_detach(&small.raw);
	harness_stop(&daemon);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_order, peer_begin, peer_end),
		cmocka_unit_test_setup_teardown(
			test_readers_do_not_starve_sealing, peer_begin, peer_end),
		cmocka_unit_test_setup_teardown(test_fork_and_append, peer_begin, peer_end),
		cmocka_unit_test(test_memory_of_a_crowd),
		cmocka_unit_test(test_full_tail_recovers),
	};

	return cmocka_run_group_tests_name("daemon lifetimes", tests, peer_start, peer_stop);
}

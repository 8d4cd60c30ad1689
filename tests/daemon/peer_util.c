/* SPDX-License-Identifier: Apache-2.0 */
/* peer_util.c: see peer_util.h. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include "tests/daemon/peer_util.h"

#include <string.h>

#define WAIT_MS 60000

struct harness_daemon peer_daemon;
struct peer peer;
uint32_t peer_ids[PEER_TOKENS];

int peer_start(void **state)
{
	static const char *const arguments[] = {"-m", "256MiB", NULL};

	(void)state;
	harness_tokens(5, peer_ids, PEER_TOKENS);
	harness_start(&peer_daemon, arguments);
	return 0;
}

int peer_stop(void **state)
{
	(void)state;
	harness_stop(&peer_daemon);
	return 0;
}

void peer_attach(struct peer *who)
{
	raw_attach(&who->raw, &peer_daemon, PEER_REGION);
	memset(who->raw.region.data, 0, PEER_OUT);
}

int peer_begin(void **state)
{
	(void)state;
	peer_attach(&peer);
	return 0;
}

int peer_end(void **state)
{
	(void)state;
	raw_detach(&peer.raw);
	harness_assert_alive(&peer_daemon);
	return 0;
}

uint32_t peer_register(struct peer *who, uint32_t segment_tokens, uint32_t cluster_tokens)
{
	struct kvr_request request = {.kind = KVR_REQUEST_MODEL_REGISTER};
	struct kvr_reply reply;

	memcpy(request.model_register.name, "test", 5);
	request.model_register.geometry = (struct kvr_geometry){
		.layer_count = 2,
		.query_heads = 4,
		.kv_heads = 2,
		.key_dim = PEER_KEYS / 2,
		.value_dim = PEER_VALUES / 2,
		.dtype = KVR_DTYPE_BF16,
		.segment_tokens = segment_tokens,
		.cluster_tokens = cluster_tokens,
		.sink_tokens = UINT32_MAX,
	};
	assert_int_equal(raw_call(&who->raw, &request, &reply), KVR_CODE_OK);
	return reply.model_registered.model;
}

uint64_t peer_open(struct peer *who, uint32_t model)
{
	struct kvr_request request = {.kind = KVR_REQUEST_OPEN};
	struct kvr_reply reply;

	request.open.model = model;
	assert_int_equal(raw_call(&who->raw, &request, &reply), KVR_CODE_OK);
	return reply.opened.sequence;
}

struct kvr_request peer_append(
	uint64_t sequence, uint32_t first, uint32_t count, struct kvr_wire_layer *layers)
{
	struct kvr_request request = {.kind = KVR_REQUEST_APPEND};

	layers[0] = (struct kvr_wire_layer){0, 0, 0};
	layers[1] = (struct kvr_wire_layer){1, 0, 0};
	request.append.sequence = sequence;
	request.append.first = first;
	request.append.count = count;
	request.append.tokens = (struct kvr_tokens){peer_ids + first, count, 0};
	request.append.layers = layers;
	request.append.layer_count = 2;
	return request;
}

struct kvr_request peer_recall(const uint64_t *sequences, uint32_t sequence_count, uint32_t count,
	size_t at, struct kvr_wire_recall_item *items)
{
	struct kvr_request request = {.kind = KVR_REQUEST_RECALL};

	for (uint32_t i = 0; i < count; i++, at += PEER_OUT_ITEM)
		items[i] = (struct kvr_wire_recall_item){
			.sequence = sequences[i % sequence_count],
			.layer = i / sequence_count % 2,
			.keys = at + 64,
			.values = at + 64 + (size_t)2 * PEER_ROWS * PEER_KEYS,
			.table = at,
		};
	request.recall.items = items;
	request.recall.item_count = count;
	request.recall.rank = KVR_RANK_SHARE;
	request.recall.query_dtype = KVR_DTYPE_F32;
	request.recall.budget_tokens = PEER_ROWS;
	request.recall.row_capacity = PEER_ROWS;
	return request;
}

void peer_put(struct peer *who, uint64_t sequence, uint32_t count)
{
	struct kvr_wire_layer layers[2];
	struct kvr_reply reply;

	for (uint32_t at = 0; at < count; at += 512) {
		struct kvr_request request = peer_append(sequence, at, 512, layers);

		assert_int_equal(raw_call(&who->raw, &request, &reply), KVR_CODE_OK);
	}
}

void peer_ask(struct peer *who, struct kvr_request *request)
{
	const struct kvr_span bytes = raw_pack(&who->raw, request);

	who->kinds[request->id % PEER_KINDS] = request->kind;
	raw_send(&who->raw, bytes);
}

uint32_t peer_take(struct peer *who, struct kvr_reply *ret_reply)
{
	static uint8_t bytes[KVR_REPLY_BYTES_MAX];
	struct kvr_span into = {bytes, sizeof(bytes)};

	into.bytes = raw_receive(&who->raw, into, WAIT_MS);
	if (into.bytes == 0)
		fail_msg("no reply");
	assert_int_equal(kvr_reply_unpack(into, who->kinds[kvr_reply_id(into) % PEER_KINDS],
				 who->raw.arena, ret_reply),
		0);
	return ret_reply->code;
}

struct kvr_request peer_sync(uint64_t sequence)
{
	struct kvr_request request = {.kind = KVR_REQUEST_SYNC};

	request.sync.sequence = sequence;
	request.sync.seal_tail = true;
	return request;
}

struct kvr_span peer_keep(struct peer *who, struct kvr_request *request)
{
	static uint8_t memory[1 << 16];
	const struct kvr_span bytes = raw_pack(&who->raw, request);

	who->kinds[request->id % PEER_KINDS] = request->kind;
	assert_true(bytes.bytes <= sizeof(memory));
	memcpy(memory, bytes.data, bytes.bytes);
	return (struct kvr_span){memory, bytes.bytes};
}

uint32_t peer_call(struct peer *who, struct kvr_request *request, struct kvr_reply *ret_reply)
{
	peer_ask(who, request);
	return peer_take(who, ret_reply);
}

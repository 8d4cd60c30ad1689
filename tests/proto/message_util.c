/* SPDX-License-Identifier: Apache-2.0 */
/* message_util.c: see message_util.h. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/proto/message_util.h"

/* ---- random ------------------------------------------------------------------------------------ */

/* splitmix64 */
uint64_t kvr_test_random(struct kvr_test *test)
{
	uint64_t x = test->seed += 0x9e3779b97f4a7c15u;

	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
	x = (x ^ x >> 27) * 0x94d049bb133111ebu;
	return x ^ x >> 31;
}

uint64_t kvr_test_number(struct kvr_test *test, uint64_t max)
{
	uint64_t x = kvr_test_random(test) >> kvr_test_random(test) % 64;

	return max == UINT64_MAX ? x : x % (max + 1);
}

static uint32_t number32(struct kvr_test *test, uint32_t max)
{
	return (uint32_t)kvr_test_number(test, max);
}

static bool coin(struct kvr_test *test)
{
	return kvr_test_random(test) & 1;
}

static void fill(struct kvr_test *test, void *into, size_t bytes)
{
	for (size_t i = 0; i < bytes; i++)
		((uint8_t *)into)[i] = (uint8_t)kvr_test_random(test);
}

static void text(struct kvr_test *test, char *into, size_t max)
{
	static const char *const pieces[] = {"a", "Z", "0", " ", "/", "~", "é", "語", "𝛂"};
	size_t used = 0, want = kvr_test_random(test) % max;

	while (used + 4 < want) {
		const char *piece =
			pieces[kvr_test_random(test) % (sizeof(pieces) / sizeof(pieces[0]))];

		memcpy(into + used, piece, strlen(piece));
		used += strlen(piece);
	}
	into[used] = '\0';
}

static uint32_t list_count(struct kvr_test *test, uint32_t min)
{
	return min + (uint32_t)(kvr_test_random(test) % (test->list_max - min + 1));
}

void kvr_test_hello(struct kvr_test *test, struct kvr_hello *ret_hello)
{
	memset(ret_hello, 0, sizeof(*ret_hello));
	ret_hello->version_min = 1 + number32(test, 9);
	ret_hello->version_max = ret_hello->version_min + number32(test, 9);
	ret_hello->region_bytes = kvr_test_number(test, KVR_REGION_BYTES_MAX);
	text(test, ret_hello->client, sizeof(ret_hello->client));
}

void kvr_test_welcome(struct kvr_test *test, struct kvr_welcome *ret_welcome)
{
	memset(ret_welcome, 0, sizeof(*ret_welcome));
	text(test, ret_welcome->subject, sizeof(ret_welcome->subject));
	text(test, ret_welcome->server, sizeof(ret_welcome->server));
	if (kvr_test_random(test) % 4 == 0) {
		ret_welcome->code = 1 + number32(test, UINT32_MAX - 1);
		return;
	}
	ret_welcome->version = KVR_PROTOCOL_VERSION_MAX;
	ret_welcome->session = 1 + kvr_test_number(test, UINT64_MAX - 1);
	fill(test, ret_welcome->secret, sizeof(ret_welcome->secret));
	ret_welcome->boot = kvr_test_random(test);
	ret_welcome->url[0] = 'i';
	text(test, ret_welcome->url + 1, sizeof(ret_welcome->url) - 1);
	ret_welcome->credits = 1 + number32(test, KVR_CREDITS_MAX - 1);
	ret_welcome->region_bytes = kvr_test_number(test, KVR_REGION_BYTES_MAX);
}

/* A valid geometry; with `defaults` some fields may ask for theirs. */
static struct kvr_geometry geometry(struct kvr_test *test, bool defaults, bool dense)
{
	struct kvr_geometry g = {
		.kv_heads = 1 + number32(test, 15),
		.key_dim = KVR_DIM_MIN + number32(test, KVR_DIM_MAX - KVR_DIM_MIN),
		.value_dim = KVR_DIM_MIN + number32(test, KVR_DIM_MAX - KVR_DIM_MIN),
		.dtype = (enum kvr_dtype)(KVR_DTYPE_F32 + kvr_test_random(test) % 3),
		.segment_tokens = KVR_BLOCK_TOKENS * (1 + number32(test, 15)),
		.cluster_tokens = KVR_CLUSTER_TOKENS_MIN + number32(test, 60),
		.sink_tokens = number32(test, KVR_BLOCK_TOKENS),
		.merged = number32(test, (1u << KVR_MERGED_SETS) - 1),
	};

	g.query_heads = g.kv_heads * (1 + number32(test, 15));
	g.layer_count = 1 + number32(test, KVR_LAYERS_MAX - 1);
	if (defaults && coin(test))
		g.segment_tokens = 0;
	if (defaults && coin(test))
		g.cluster_tokens = 0;
	if (defaults && coin(test))
		g.sink_tokens = UINT32_MAX;
	for (uint32_t i = number32(test, 20); dense && i > 0; i--) {
		uint32_t lane = number32(test, kvr_geometry_lanes(&g) - 1);

		g.dense[lane / 64] |= 1ull << (lane % 64);
	}
	return g;
}

static struct kvr_tokens tokens(struct kvr_test *test)
{
	struct kvr_tokens tokens = {0};

	switch (kvr_test_random(test) % 3) {
	case 0:
		fill(test, test->ids, sizeof(test->ids));
		tokens.ids = test->ids;
		tokens.count = list_count(test, 1);
		break;
	case 1:
		tokens.count = 1 + number32(test, KVR_SEQUENCE_TOKENS_MAX - 1);
		tokens.offset = kvr_test_number(test, UINT64_MAX);
		break;
	default: break; /* none */
	}
	return tokens;
}

static uint32_t layers(struct kvr_test *test)
{
	uint32_t count = list_count(test, 1);
	uint32_t layer = number32(test, KVR_LAYERS_MAX - 1);

	for (uint32_t i = 0; i < count; i++)
		test->layers[i] = (struct kvr_wire_layer){
			.layer = (layer + i * 7) % KVR_LAYERS_MAX, /* 7 and 256 are coprime */
			.keys = kvr_test_number(test, UINT64_MAX),
			.values = kvr_test_number(test, UINT64_MAX),
		};
	return count;
}

static void budgets(struct kvr_test *test)
{
	for (uint32_t i = 0; i < KVR_QUERY_HEADS_MAX; i++)
		test->budgets[i] = (struct kvr_wire_budget){number32(test, KVR_SEQUENCE_TOKENS_MAX),
			(float)number32(test, 1000) / 1000.0f};
}

static void recall(struct kvr_test *test, struct kvr_request *into)
{
	uint32_t count = list_count(test, 1);

	fill(test, test->query, sizeof(test->query));
	budgets(test);
	for (uint32_t i = 0; i < count; i++) {
		struct kvr_wire_recall_item *item = &test->items[i];

		*item = (struct kvr_wire_recall_item){
			.sequence = kvr_test_number(test, UINT64_MAX),
			.layer = number32(test, KVR_LAYERS_MAX - 1),
			.keys = kvr_test_number(test, UINT64_MAX),
			.values = kvr_test_number(test, UINT64_MAX),
			.weights = kvr_test_number(test, UINT64_MAX),
			.positions = kvr_test_number(test, UINT64_MAX),
			.table = kvr_test_number(test, UINT64_MAX),
			.outputs = kvr_test_number(test, UINT64_MAX),
			.lse = kvr_test_number(test, UINT64_MAX),
			.first = number32(test, UINT32_MAX),
		};
		if (coin(test))
			item->budgets = (struct kvr_span){(uint8_t *)test->budgets,
				sizeof(*test->budgets) *
					(1 + kvr_test_random(test) % KVR_QUERY_HEADS_MAX)};
		if (coin(test))
			item->query = (struct kvr_span){
				test->query, 4 * (1 + kvr_test_random(test) % 64)};
		else
			item->query_offset = kvr_test_number(test, UINT64_MAX);
	}
	into->recall.items = test->items;
	into->recall.item_count = count;
	into->recall.rank = 1 + number32(test, KVR_WIRE_RANK_MAX - 1);
	into->recall.query_dtype = (enum kvr_dtype)(KVR_DTYPE_F32 + kvr_test_random(test) % 3);
	into->recall.scale = (float)number32(test, 1000) / 1000.0f;
	into->recall.budget_tokens = number32(test, KVR_SEQUENCE_TOKENS_MAX);
	into->recall.budget_mass = (float)number32(test, 1000) / 1000.0f;
	into->recall.row_capacity = number32(test, KVR_SEQUENCE_TOKENS_MAX);
	into->recall.form = 1 + number32(test, KVR_WIRE_FORM_MAX - 1);
	into->recall.centroid_rows = number32(test, KVR_SEQUENCE_TOKENS_MAX);
	if (into->recall.form == KVR_FORM_MERGED)
		into->recall.merged_set = number32(test, KVR_MERGED_SETS - 1);
	into->recall.sinks = coin(test);
	into->recall.tail = coin(test);
	into->recall.want_weights = coin(test);
	into->recall.want_positions = coin(test);
	into->recall.background = coin(test);
}

void kvr_test_request(
	struct kvr_test *test, enum kvr_request_kind kind, struct kvr_request *ret_request)
{
	struct kvr_request *r = ret_request;
	uint32_t first = number32(test, KVR_SEQUENCE_TOKENS_MAX - 1);
	uint32_t count = 1 + number32(test, KVR_SEQUENCE_TOKENS_MAX - 1 - first);

	memset(r, 0, sizeof(*r));
	r->id = 1 + kvr_test_number(test, UINT64_MAX - 1);
	r->session = kvr_test_number(test, UINT64_MAX);
	r->deadline_ms = 1 + number32(test, KVR_DEADLINE_MS_MAX - 1);
	r->kind = kind;
	fill(test, r->secret, sizeof(r->secret));
	switch (kind) {
	case KVR_REQUEST_PING: break;
	case KVR_REQUEST_MODEL_REGISTER:
		text(test, r->model_register.name, sizeof(r->model_register.name));
		fill(test, r->model_register.digest, KVR_HASH_BYTES);
		r->model_register.geometry = geometry(test, true, true);
		r->model_register.rank = number32(test, UINT32_MAX);
		break;
	case KVR_REQUEST_MODEL_LIST: r->model_list.first = number32(test, UINT32_MAX); break;
	case KVR_REQUEST_OPEN:
		r->open.model = number32(test, UINT32_MAX);
		r->open.tokens = tokens(test);
		break;
	case KVR_REQUEST_APPEND:
		r->append.sequence = kvr_test_number(test, UINT64_MAX);
		r->append.first = first;
		r->append.count = count;
		r->append.tokens = tokens(test);
		r->append.layers = test->layers;
		r->append.layer_count = layers(test);
		break;
	case KVR_REQUEST_RECALL: recall(test, r); break;
	case KVR_REQUEST_FETCH:
		r->fetch.sequence = kvr_test_number(test, UINT64_MAX);
		r->fetch.first = first;
		r->fetch.count = count;
		r->fetch.layers = test->layers;
		r->fetch.layer_count = layers(test);
		break;
	case KVR_REQUEST_SYNC:
		r->sync.sequence = kvr_test_number(test, UINT64_MAX);
		r->sync.seal_tail = coin(test);
		break;
	case KVR_REQUEST_FORK: r->fork.sequence = kvr_test_number(test, UINT64_MAX); break;
	case KVR_REQUEST_CLOSE:
		r->close.sequence = kvr_test_number(test, UINT64_MAX);
		r->close.discard_tail = coin(test);
		break;
	case KVR_REQUEST_DROP:
		r->drop.has_segment = coin(test);
		if (r->drop.has_segment)
			fill(test, r->drop.segment, KVR_HASH_BYTES);
		r->drop.model = number32(test, UINT32_MAX);
		break;
	case KVR_REQUEST_PIN:
		r->pin.sequence = coin(test) ? 0 : 1 + kvr_test_number(test, UINT64_MAX - 1);
		if (r->pin.sequence == 0)
			fill(test, r->pin.segment, KVR_HASH_BYTES);
		r->pin.unpin = coin(test);
		break;
	case KVR_REQUEST_STATS: r->stats.first = number32(test, UINT32_MAX); break;
	case KVR_REQUEST_SEGMENT_LIST:
		r->segment_list.first = number32(test, UINT32_MAX);
		r->segment_list.model = number32(test, UINT32_MAX);
		break;
	}
}

static void reply_lists(struct kvr_test *test, struct kvr_reply *into)
{
	uint32_t count = list_count(test, 0);

	memset(test->models, 0, sizeof(test->models));
	memset(test->metrics, 0, sizeof(test->metrics));
	memset(test->segments, 0, sizeof(test->segments));
	for (uint32_t i = 0; i < count; i++) {
		struct kvr_wire_model *model = &test->models[i];
		struct kvr_wire_metric *metric = &test->metrics[i];
		struct kvr_wire_segment *segment = &test->segments[i];

		model->model = number32(test, UINT32_MAX);
		text(test, model->name, sizeof(model->name));
		fill(test, model->digest, KVR_HASH_BYTES);
		model->geometry = geometry(test, false, false);
		model->rank = number32(test, UINT32_MAX);
		model->segment_count = number32(test, UINT32_MAX);
		model->stored_bytes = kvr_test_number(test, UINT64_MAX);
		text(test, metric->name, sizeof(metric->name));
		text(test, metric->text, sizeof(metric->text));
		metric->value = (double)(int64_t)kvr_test_random(test) / 1024.0;
		fill(test, segment->hash, KVR_HASH_BYTES);
		segment->has_parent = coin(test);
		if (segment->has_parent)
			fill(test, segment->parent, KVR_HASH_BYTES);
		segment->model = number32(test, UINT32_MAX);
		segment->token_first = number32(test, UINT32_MAX);
		segment->token_count = number32(test, UINT32_MAX);
		segment->stored_bytes = kvr_test_number(test, UINT64_MAX);
		segment->leases = number32(test, UINT32_MAX);
		segment->pins = number32(test, UINT32_MAX);
		segment->resident_bytes = kvr_test_number(test, UINT64_MAX);
		segment->durable = coin(test);
		segment->quarantined = coin(test);
	}
	if (into->kind == KVR_REQUEST_MODEL_LIST)
		into->models.entries = test->models;
	else if (into->kind == KVR_REQUEST_STATS)
		into->metrics.entries = test->metrics;
	else
		into->segments.entries = test->segments;
	into->models.count = count; /* the three lists have one layout */
	into->models.next = number32(test, UINT32_MAX);
}

static void recalled(struct kvr_test *test, struct kvr_reply *into)
{
	uint32_t count = list_count(test, 2);

	for (uint32_t i = 0; i < count; i++) {
		test->recalled[i].token_count = 2 * i + number32(test, KVR_SEQUENCE_TOKENS_MAX / 2);
		test->recalled[i].covered_tokens = number32(test, test->recalled[i].token_count);
	}
	into->recalled.staged_bytes = kvr_test_number(test, UINT64_MAX);
	into->recalled.token_missing = number32(test, UINT32_MAX);
	if (coin(test)) {
		into->recalled.same = test->recalled[0];
		return;
	}
	test->recalled[1].token_count = test->recalled[0].token_count + 1; /* not all alike */
	test->recalled[1].covered_tokens = 0;
	into->recalled.items = test->recalled;
	into->recalled.count = count;
}

void kvr_test_reply(struct kvr_test *test, enum kvr_request_kind kind, struct kvr_reply *ret_reply)
{
	struct kvr_reply *r = ret_reply;

	memset(r, 0, sizeof(*r));
	r->id = 1 + kvr_test_number(test, UINT64_MAX - 1);
	r->kind = kind;
	text(test, r->subject, sizeof(r->subject));
	if (kvr_test_random(test) % 8 == 0) {
		r->code = 1 + number32(test, UINT32_MAX - 1);
		return;
	}
	switch (kind) {
	case KVR_REQUEST_PING:
	case KVR_REQUEST_CLOSE: break;
	case KVR_REQUEST_MODEL_REGISTER:
		r->model_registered.model = number32(test, UINT32_MAX);
		r->model_registered.geometry = geometry(test, false, true);
		break;
	case KVR_REQUEST_OPEN:
	case KVR_REQUEST_FORK:
		r->opened.sequence = 1 + kvr_test_number(test, UINT64_MAX - 1);
		r->opened.matched_tokens = number32(test, KVR_SEQUENCE_TOKENS_MAX);
		break;
	case KVR_REQUEST_APPEND:
		r->appended.token_count = number32(test, KVR_SEQUENCE_TOKENS_MAX);
		r->appended.sealed_tokens = number32(test, r->appended.token_count);
		break;
	case KVR_REQUEST_RECALL: recalled(test, r); break;
	case KVR_REQUEST_FETCH: r->fetched.staged_bytes = kvr_test_number(test, UINT64_MAX); break;
	case KVR_REQUEST_SYNC:
		r->synced.sealed_tokens = number32(test, KVR_SEQUENCE_TOKENS_MAX);
		break;
	case KVR_REQUEST_DROP:
		r->dropped.segment_count = number32(test, UINT32_MAX);
		r->dropped.freed_bytes = kvr_test_number(test, UINT64_MAX);
		r->dropped.kept_count = number32(test, UINT32_MAX);
		break;
	case KVR_REQUEST_PIN: r->pinned.segment_count = number32(test, UINT32_MAX); break;
	case KVR_REQUEST_MODEL_LIST:
	case KVR_REQUEST_STATS:
	case KVR_REQUEST_SEGMENT_LIST: reply_lists(test, r); break;
	}
}

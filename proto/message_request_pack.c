/* SPDX-License-Identifier: Apache-2.0 */
/* message_request_pack.c: packing of requests.
 *
 * One function per kind fills protobuf-c's struct, `pack` sends it off. Lists are built in the arena's
 * scratch, everything else on the stack; strings and bytes are borrowed from the request. */
#include "proto/message_arena.h"

#include <string.h>

static int64_t pack(
	const struct kvr_request *from, Kvrecall__Request *message, struct kvr_span into)
{
	KVR_ASSERT(from->id != 0);
	KVR_ASSERT(from->deadline_ms <= KVR_DEADLINE_MS_MAX);
	message->id = from->id;
	message->session = from->session;
	message->secret = kvr_message_give_bytes(from->secret, KVR_SECRET_BYTES);
	message->deadline_ms = from->deadline_ms;
	message->body_case = (Kvrecall__Request__BodyCase)from->kind;
	return kvr_message_pack(&message->base, into, KVR_MESSAGE_BYTES_MAX);
}

static int64_t pack_model_register(const struct kvr_request *from, struct kvr_span into)
{
	Kvrecall__Request message = KVRECALL__REQUEST__INIT;
	Kvrecall__ModelRegister body = KVRECALL__MODEL_REGISTER__INIT;
	Kvrecall__Geometry geometry;

	KVR_ASSERT(strnlen(from->model_register.name, KVR_NAME_MAX) < KVR_NAME_MAX);
	kvr_message_give_geometry(&from->model_register.geometry, true, &geometry);
	body.name = (char *)from->model_register.name;
	body.digest = kvr_message_give_bytes(from->model_register.digest, KVR_HASH_BYTES);
	body.geometry = &geometry;
	body.rank = from->model_register.rank;
	message.model_register = &body;
	return pack(from, &message, into);
}

static int64_t pack_open(const struct kvr_request *from, struct kvr_span into)
{
	Kvrecall__Request message = KVRECALL__REQUEST__INIT;
	Kvrecall__Open body = KVRECALL__OPEN__INIT;
	Kvrecall__Tokens tokens;
	Kvrecall__Span region;

	body.model = from->open.model;
	if (kvr_message_give_tokens(&from->open.tokens, &tokens, &region))
		body.tokens = &tokens;
	message.open = &body;
	return pack(from, &message, into);
}

static Kvrecall__LayerRows **give_layers(
	struct kvr_message_arena *arena, const struct kvr_wire_layer *layers, uint32_t count)
{
	KVR_ASSERT(count <= KVR_APPEND_LAYERS_MAX);
	for (uint32_t i = 0; i < count; i++) {
		Kvrecall__LayerRows *item = &arena->scratch.layers.items[i];

		kvrecall__layer_rows__init(item);
		item->layer = layers[i].layer;
		item->keys = layers[i].keys;
		item->values = layers[i].values;
		arena->scratch.layers.list[i] = item;
	}
	return arena->scratch.layers.list;
}

static int64_t pack_append(
	const struct kvr_request *from, struct kvr_message_arena *arena, struct kvr_span into)
{
	Kvrecall__Request message = KVRECALL__REQUEST__INIT;
	Kvrecall__Append body = KVRECALL__APPEND__INIT;
	Kvrecall__Tokens tokens;
	Kvrecall__Span region;

	body.sequence = from->append.sequence;
	body.first = from->append.first;
	body.count = from->append.count;
	if (kvr_message_give_tokens(&from->append.tokens, &tokens, &region))
		body.tokens = &tokens;
	body.n_layers = from->append.layer_count;
	body.layers = give_layers(arena, from->append.layers, from->append.layer_count);
	message.append = &body;
	return pack(from, &message, into);
}

static int64_t pack_fetch(
	const struct kvr_request *from, struct kvr_message_arena *arena, struct kvr_span into)
{
	Kvrecall__Request message = KVRECALL__REQUEST__INIT;
	Kvrecall__Fetch body = KVRECALL__FETCH__INIT;

	body.sequence = from->fetch.sequence;
	body.first = from->fetch.first;
	body.count = from->fetch.count;
	body.n_layers = from->fetch.layer_count;
	body.layers = give_layers(arena, from->fetch.layers, from->fetch.layer_count);
	message.fetch = &body;
	return pack(from, &message, into);
}

static void give_recall_item(const struct kvr_wire_recall_item *from, Kvrecall__RecallItem *into)
{
	kvrecall__recall_item__init(into);
	into->sequence = from->sequence;
	into->layer = from->layer;
	if (from->query.data != NULL)
		into->query = kvr_message_give_bytes(from->query.data, from->query.bytes);
	else
		into->query_offset = from->query_offset;
	into->keys = from->keys;
	into->values = from->values;
	into->weights = from->weights;
	into->positions = from->positions;
	into->table = from->table;
	into->budgets = kvr_message_give_bytes(from->budgets.data, from->budgets.bytes);
	into->outputs = from->outputs;
	into->lse = from->lse;
	into->first = from->first;
}

static int64_t pack_recall(
	const struct kvr_request *from, struct kvr_message_arena *arena, struct kvr_span into)
{
	Kvrecall__Request message = KVRECALL__REQUEST__INIT;
	Kvrecall__Recall body = KVRECALL__RECALL__INIT;

	KVR_ASSERT(from->recall.item_count <= KVR_RECALL_ITEMS_MAX);
	KVR_ASSERT(from->recall.merged_set < KVR_MERGED_SETS);
	for (uint32_t i = 0; i < from->recall.item_count; i++) {
		give_recall_item(&from->recall.items[i], &arena->scratch.recall.items[i]);
		arena->scratch.recall.list[i] = &arena->scratch.recall.items[i];
	}
	body.n_items = from->recall.item_count;
	body.items = arena->scratch.recall.list;
	body.rank = from->recall.rank;
	body.query_dtype = from->recall.query_dtype;
	body.scale = from->recall.scale;
	body.budget_tokens = from->recall.budget_tokens;
	body.budget_mass = from->recall.budget_mass;
	body.row_capacity = from->recall.row_capacity;
	body.sinks = from->recall.sinks;
	body.tail = from->recall.tail;
	body.want_weights = from->recall.want_weights;
	body.want_positions = from->recall.want_positions;
	body.background = from->recall.background;
	body.form = from->recall.form;
	body.centroid_rows = from->recall.centroid_rows;
	if (from->recall.form == KVR_FORM_MERGED)
		body.merged_divisor = kvr_merged_divisors[from->recall.merged_set];
	message.recall = &body;
	return pack(from, &message, into);
}

static int64_t pack_sync(const struct kvr_request *from, struct kvr_span into)
{
	Kvrecall__Request message = KVRECALL__REQUEST__INIT;
	Kvrecall__Sync body = KVRECALL__SYNC__INIT;

	body.sequence = from->sync.sequence;
	body.seal_tail = from->sync.seal_tail;
	message.sync = &body;
	return pack(from, &message, into);
}

static int64_t pack_fork(const struct kvr_request *from, struct kvr_span into)
{
	Kvrecall__Request message = KVRECALL__REQUEST__INIT;
	Kvrecall__Fork body = KVRECALL__FORK__INIT;

	body.sequence = from->fork.sequence;
	message.fork = &body;
	return pack(from, &message, into);
}

static int64_t pack_close(const struct kvr_request *from, struct kvr_span into)
{
	Kvrecall__Request message = KVRECALL__REQUEST__INIT;
	Kvrecall__Close body = KVRECALL__CLOSE__INIT;

	body.sequence = from->close.sequence;
	body.discard_tail = from->close.discard_tail;
	message.close = &body;
	return pack(from, &message, into);
}

static int64_t pack_drop(const struct kvr_request *from, struct kvr_span into)
{
	Kvrecall__Request message = KVRECALL__REQUEST__INIT;
	Kvrecall__Drop body = KVRECALL__DROP__INIT;

	if (from->drop.has_segment)
		body.segment = kvr_message_give_bytes(from->drop.segment, KVR_HASH_BYTES);
	body.model = from->drop.model;
	message.drop = &body;
	return pack(from, &message, into);
}

static int64_t pack_pin(const struct kvr_request *from, struct kvr_span into)
{
	Kvrecall__Request message = KVRECALL__REQUEST__INIT;
	Kvrecall__Pin body = KVRECALL__PIN__INIT;

	body.sequence = from->pin.sequence;
	if (from->pin.sequence == 0)
		body.segment = kvr_message_give_bytes(from->pin.segment, KVR_HASH_BYTES);
	body.unpin = from->pin.unpin;
	message.pin = &body;
	return pack(from, &message, into);
}

/* Ping and the lists: next to nothing to fill in. */
static int64_t pack_small(const struct kvr_request *from, struct kvr_span into)
{
	Kvrecall__Request message = KVRECALL__REQUEST__INIT;
	Kvrecall__Ping ping = KVRECALL__PING__INIT;
	Kvrecall__ModelList model_list = KVRECALL__MODEL_LIST__INIT;
	Kvrecall__Stats stats = KVRECALL__STATS__INIT;
	Kvrecall__SegmentList segment_list = KVRECALL__SEGMENT_LIST__INIT;

	switch (from->kind) {
	case KVR_REQUEST_MODEL_LIST:
		model_list.first = from->model_list.first;
		message.model_list = &model_list;
		break;
	case KVR_REQUEST_STATS:
		stats.first = from->stats.first;
		message.stats = &stats;
		break;
	case KVR_REQUEST_SEGMENT_LIST:
		segment_list.first = from->segment_list.first;
		segment_list.model = from->segment_list.model;
		message.segment_list = &segment_list;
		break;
	default:
		KVR_ASSERT(from->kind == KVR_REQUEST_PING);
		message.ping = &ping;
		break;
	}
	return pack(from, &message, into);
}

int64_t kvr_request_pack(
	const struct kvr_request *request, struct kvr_message_arena *arena, struct kvr_span into)
{
	switch (request->kind) {
	case KVR_REQUEST_PING:
	case KVR_REQUEST_MODEL_LIST:
	case KVR_REQUEST_STATS:
	case KVR_REQUEST_SEGMENT_LIST: return pack_small(request, into);
	case KVR_REQUEST_MODEL_REGISTER: return pack_model_register(request, into);
	case KVR_REQUEST_OPEN: return pack_open(request, into);
	case KVR_REQUEST_APPEND: return pack_append(request, arena, into);
	case KVR_REQUEST_RECALL: return pack_recall(request, arena, into);
	case KVR_REQUEST_FETCH: return pack_fetch(request, arena, into);
	case KVR_REQUEST_SYNC: return pack_sync(request, into);
	case KVR_REQUEST_FORK: return pack_fork(request, into);
	case KVR_REQUEST_CLOSE: return pack_close(request, into);
	case KVR_REQUEST_DROP: return pack_drop(request, into);
	case KVR_REQUEST_PIN: return pack_pin(request, into);
	}
	kvr_assert_fail("request->kind is one of the above", __FILE__, __LINE__);
}

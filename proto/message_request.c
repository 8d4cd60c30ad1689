/* SPDX-License-Identifier: Apache-2.0 */
/* message_request.c: unpacking of requests.
 *
 * The envelope (id, session, secret, deadline, where the body is) is read here, field by field, so
 * that a request whose body is refused can still be answered; the body goes through protobuf-c.
 *
 *   Request ──► take_envelope ──► body, kind ──► kvr_message_unpack ──► bodies[kind].take ──► struct
 *
 * Here a value is held against what it may be at all; against its model, sequence and region it is
 * held by the daemon. */
#include "proto/message_arena.h"

#include <errno.h>
#include <float.h>
#include <string.h>

#define QUERY_BYTES_MAX (4u * KVR_QUERY_HEADS_MAX * KVR_DIM_MAX) /* f32 */

static int take_ping(
	struct kvr_message_arena *arena, const ProtobufCMessage *body, struct kvr_request *into)
{
	(void)arena;
	(void)body;
	(void)into;
	return 0;
}

static int take_model_register(
	struct kvr_message_arena *arena, const ProtobufCMessage *body, struct kvr_request *into)
{
	const Kvrecall__ModelRegister *from = (const Kvrecall__ModelRegister *)body;
	int error = kvr_message_take_text(arena, "ModelRegister.name", from->name,
		into->model_register.name, sizeof(into->model_register.name));

	if (error == 0)
		error = kvr_message_take_bytes(arena, "ModelRegister.digest", from->digest,
			into->model_register.digest, KVR_HASH_BYTES);
	if (error == 0)
		error = kvr_message_take_geometry(
			arena, from->geometry, &into->model_register.geometry);
	into->model_register.rank = from->rank;
	return error;
}

static int take_model_list(
	struct kvr_message_arena *arena, const ProtobufCMessage *body, struct kvr_request *into)
{
	(void)arena;
	into->model_list.first = ((const Kvrecall__ModelList *)body)->first;
	return 0;
}

static int take_open(
	struct kvr_message_arena *arena, const ProtobufCMessage *body, struct kvr_request *into)
{
	const Kvrecall__Open *from = (const Kvrecall__Open *)body;

	into->open.model = from->model;
	return kvr_message_take_tokens(arena, from->tokens, &into->open.tokens);
}

/* Tokens first .. first + count - 1 of a sequence, one at least. */
static int take_range(
	struct kvr_message_arena *arena, const char *field, uint32_t first, uint32_t count)
{
	int error = kvr_message_bound(arena, field, count, 1, KVR_SEQUENCE_TOKENS_MAX);

	if (error == 0 && first > KVR_SEQUENCE_TOKENS_MAX - count)
		error = kvr_message_refuse(arena, -E2BIG, "%s from %u ends past %u tokens", field,
			first, KVR_SEQUENCE_TOKENS_MAX);
	return error;
}

/* Each layer at most once: the daemon works on layers in parallel. */
static int take_layers(struct kvr_message_arena *arena, Kvrecall__LayerRows *const *from,
	size_t count, const struct kvr_wire_layer **ret_layers)
{
	uint64_t seen[KVR_LAYERS_MAX / 64] = {0};
	struct kvr_wire_layer *layers;

	KVR_ASSERT(count <= KVR_APPEND_LAYERS_MAX); /* M1 */
	if (count == 0)
		return kvr_message_refuse(arena, -EBADMSG, "layers is empty");
	layers = kvr_message_alloc(arena, count * sizeof(*layers));
	if (layers == NULL)
		return kvr_message_refuse(arena, -E2BIG, "layers needs too much memory");
	for (size_t i = 0; i < count; i++) {
		uint32_t layer = from[i]->layer;

		if (layer >= KVR_LAYERS_MAX)
			return kvr_message_refuse(arena, -E2BIG,
				"layers[%zu].layer is %u, at most %u", i, layer,
				KVR_LAYERS_MAX - 1);
		if (seen[layer / 64] >> (layer % 64) & 1)
			return kvr_message_refuse(
				arena, -EBADMSG, "layers[%zu].layer %u stands twice", i, layer);
		seen[layer / 64] |= 1ull << (layer % 64);
		layers[i] = (struct kvr_wire_layer){
			.layer = layer,
			.keys = from[i]->keys,
			.values = from[i]->values,
		};
	}
	*ret_layers = layers;
	return 0;
}

static int take_append(
	struct kvr_message_arena *arena, const ProtobufCMessage *body, struct kvr_request *into)
{
	const Kvrecall__Append *from = (const Kvrecall__Append *)body;
	int error = take_range(arena, "Append.count", from->first, from->count);

	into->append.sequence = from->sequence;
	into->append.first = from->first;
	into->append.count = from->count;
	if (error == 0)
		error = kvr_message_take_tokens(arena, from->tokens, &into->append.tokens);
	if (error == 0)
		error = take_layers(arena, from->layers, from->n_layers, &into->append.layers);
	into->append.layer_count = (uint32_t)from->n_layers;
	return error;
}

/* Budgets of single heads: 8 bytes each, in any alignment. */
static int check_budgets(struct kvr_message_arena *arena, size_t index, ProtobufCBinaryData from)
{
	struct kvr_wire_budget budget;

	if (from.len > KVR_QUERY_HEADS_MAX * sizeof(budget))
		return kvr_message_refuse(arena, -E2BIG,
			"Recall.items[%zu].budgets has %zu bytes, at most %zu", index, from.len,
			KVR_QUERY_HEADS_MAX * sizeof(budget));
	if (from.len % sizeof(budget) != 0)
		return kvr_message_refuse(
			arena, -EBADMSG, "Recall.items[%zu].budgets ends inside an element", index);
	for (size_t i = 0; i < from.len; i += sizeof(budget)) {
		memcpy(&budget, from.data + i, sizeof(budget));
		if (budget.tokens > KVR_SEQUENCE_TOKENS_MAX)
			return kvr_message_refuse(arena, -E2BIG,
				"Recall.items[%zu].budgets: %u tokens, at most %u", index,
				budget.tokens, KVR_SEQUENCE_TOKENS_MAX);
		if (!(budget.mass >= 0.0f && budget.mass <= 1.0f))
			return kvr_message_refuse(arena, -EBADMSG,
				"Recall.items[%zu].budgets: a mass outside 0 to 1", index);
	}
	return 0;
}

static int take_recall_item(struct kvr_message_arena *arena, size_t index,
	const Kvrecall__RecallItem *from, uint32_t element_bytes, struct kvr_wire_recall_item *into)
{
	if (from->layer >= KVR_LAYERS_MAX)
		return kvr_message_refuse(arena, -E2BIG,
			"Recall.items[%zu].layer is %u, at most %u", index, from->layer,
			KVR_LAYERS_MAX - 1);
	if (from->query.len > (size_t)QUERY_BYTES_MAX)
		return kvr_message_refuse(arena, -E2BIG,
			"Recall.items[%zu].query has %zu bytes, at most %u", index, from->query.len,
			QUERY_BYTES_MAX);
	if (from->query.len % element_bytes != 0)
		return kvr_message_refuse(arena, -EBADMSG,
			"Recall.items[%zu].query has %zu bytes: ends inside an element", index,
			from->query.len);
	*into = (struct kvr_wire_recall_item){
		.sequence = from->sequence,
		.layer = from->layer,
		.query = {from->query.data, from->query.len},
		.query_offset = from->query.len > 0 ? 0 : from->query_offset,
		.keys = from->keys,
		.values = from->values,
		.weights = from->weights,
		.positions = from->positions,
		.table = from->table,
		.budgets = {from->budgets.len > 0 ? from->budgets.data : NULL, from->budgets.len},
		.outputs = from->outputs,
		.lse = from->lse,
		.first = from->first,
	};
	return check_budgets(arena, index, from->budgets);
}

static int take_recall_items(struct kvr_message_arena *arena, const Kvrecall__Recall *from,
	enum kvr_dtype query_dtype, const struct kvr_wire_recall_item **ret_items)
{
	struct kvr_wire_recall_item *items;
	uint32_t element_bytes = (uint32_t)kvr_dtype_bytes(query_dtype);
	int error = 0;

	KVR_ASSERT(from->n_items <= KVR_RECALL_ITEMS_MAX); /* M1 */
	if (from->n_items == 0)
		return kvr_message_refuse(arena, -EBADMSG, "Recall.items is empty");
	items = kvr_message_alloc(arena, from->n_items * sizeof(*items));
	if (items == NULL)
		return kvr_message_refuse(arena, -E2BIG, "Recall.items needs too much memory");
	for (size_t i = 0; error == 0 && i < from->n_items; i++)
		error = take_recall_item(arena, i, from->items[i], element_bytes, &items[i]);
	*ret_items = items;
	return error;
}

/* What is to be given, and the numbers that go with it. */
static int take_form(
	struct kvr_message_arena *arena, const Kvrecall__Recall *from, struct kvr_request *into)
{
	uint32_t set = 0;

	if (from->form > KVR_WIRE_FORM_MAX)
		return kvr_message_refuse(arena, -EBADMSG, "Recall.form is %u, must be 0 to %u",
			from->form, KVR_WIRE_FORM_MAX);
	while (from->form == KVR_FORM_MERGED && set < KVR_MERGED_SETS &&
		kvr_merged_divisors[set] != from->merged_divisor)
		set++;
	if (set == KVR_MERGED_SETS)
		return kvr_message_refuse(arena, -EBADMSG,
			"Recall.merged_divisor is %u, must be 2, 4, 5 or 8", from->merged_divisor);
	into->recall.form = from->form == 0 ? KVR_FORM_CLUSTERS : from->form;
	into->recall.merged_set = set;
	into->recall.centroid_rows = from->centroid_rows;
	return kvr_message_bound(
		arena, "Recall.centroid_rows", from->centroid_rows, 0, KVR_SEQUENCE_TOKENS_MAX);
}

static int take_recall(
	struct kvr_message_arena *arena, const ProtobufCMessage *body, struct kvr_request *into)
{
	const Kvrecall__Recall *from = (const Kvrecall__Recall *)body;
	int error = kvr_message_bound(
		arena, "Recall.budget_tokens", from->budget_tokens, 0, KVR_SEQUENCE_TOKENS_MAX);

	if (error == 0)
		error = kvr_message_bound(arena, "Recall.row_capacity", from->row_capacity, 0,
			KVR_SEQUENCE_TOKENS_MAX);
	if (error == 0)
		error = kvr_message_bound_float(
			arena, "Recall.budget_mass", from->budget_mass, 0.0f, 1.0f);
	if (error == 0)
		error = kvr_message_bound_float(arena, "Recall.scale", from->scale, 0.0f, FLT_MAX);
	if (error == 0 && from->rank > KVR_WIRE_RANK_MAX)
		error = kvr_message_refuse(arena, -EBADMSG, "Recall.rank is %u, must be 0 to %u",
			from->rank, KVR_WIRE_RANK_MAX);
	if (error == 0)
		error = take_form(arena, from, into);
	if (error == 0 && (from->query_dtype < KVR_DTYPE_F32 || from->query_dtype > KVR_DTYPE_BF16))
		error = kvr_message_refuse(arena, -EBADMSG,
			"Recall.query_dtype is %u, must be 1 to 3", from->query_dtype);
	if (error < 0)
		return error;
	into->recall.item_count = (uint32_t)from->n_items;
	into->recall.rank = from->rank == 0 ? 1 : from->rank;
	into->recall.query_dtype = (enum kvr_dtype)from->query_dtype;
	into->recall.scale = from->scale;
	into->recall.budget_tokens = from->budget_tokens;
	into->recall.budget_mass = from->budget_mass;
	into->recall.row_capacity = from->row_capacity;
	into->recall.sinks = from->sinks;
	into->recall.tail = from->tail;
	into->recall.want_weights = from->want_weights;
	into->recall.want_positions = from->want_positions;
	into->recall.background = from->background;
	return take_recall_items(arena, from, into->recall.query_dtype, &into->recall.items);
}

static int take_fetch(
	struct kvr_message_arena *arena, const ProtobufCMessage *body, struct kvr_request *into)
{
	const Kvrecall__Fetch *from = (const Kvrecall__Fetch *)body;
	int error = take_range(arena, "Fetch.count", from->first, from->count);

	into->fetch.sequence = from->sequence;
	into->fetch.first = from->first;
	into->fetch.count = from->count;
	if (error == 0)
		error = take_layers(arena, from->layers, from->n_layers, &into->fetch.layers);
	into->fetch.layer_count = (uint32_t)from->n_layers;
	return error;
}

static int take_sync(
	struct kvr_message_arena *arena, const ProtobufCMessage *body, struct kvr_request *into)
{
	const Kvrecall__Sync *from = (const Kvrecall__Sync *)body;

	(void)arena;
	into->sync.sequence = from->sequence;
	into->sync.seal_tail = from->seal_tail;
	return 0;
}

static int take_fork(
	struct kvr_message_arena *arena, const ProtobufCMessage *body, struct kvr_request *into)
{
	(void)arena;
	into->fork.sequence = ((const Kvrecall__Fork *)body)->sequence;
	return 0;
}

static int take_close(
	struct kvr_message_arena *arena, const ProtobufCMessage *body, struct kvr_request *into)
{
	const Kvrecall__Close *from = (const Kvrecall__Close *)body;

	(void)arena;
	into->close.sequence = from->sequence;
	into->close.discard_tail = from->discard_tail;
	return 0;
}

static int take_drop(
	struct kvr_message_arena *arena, const ProtobufCMessage *body, struct kvr_request *into)
{
	const Kvrecall__Drop *from = (const Kvrecall__Drop *)body;

	into->drop.model = from->model;
	into->drop.has_segment = from->segment.len > 0;
	if (!into->drop.has_segment)
		return 0;
	return kvr_message_take_bytes(
		arena, "Drop.segment", from->segment, into->drop.segment, KVR_HASH_BYTES);
}

static int take_pin(
	struct kvr_message_arena *arena, const ProtobufCMessage *body, struct kvr_request *into)
{
	const Kvrecall__Pin *from = (const Kvrecall__Pin *)body;

	into->pin.sequence = from->sequence;
	into->pin.unpin = from->unpin;
	if (from->sequence == 0)
		return kvr_message_take_bytes(
			arena, "Pin.segment", from->segment, into->pin.segment, KVR_HASH_BYTES);
	if (from->segment.len > 0)
		return kvr_message_refuse(
			arena, -EBADMSG, "Pin.sequence and Pin.segment exclude each other");
	return 0;
}

static int take_stats(
	struct kvr_message_arena *arena, const ProtobufCMessage *body, struct kvr_request *into)
{
	(void)arena;
	into->stats.first = ((const Kvrecall__Stats *)body)->first;
	return 0;
}

static int take_segment_list(
	struct kvr_message_arena *arena, const ProtobufCMessage *body, struct kvr_request *into)
{
	const Kvrecall__SegmentList *from = (const Kvrecall__SegmentList *)body;

	(void)arena;
	into->segment_list.first = from->first;
	into->segment_list.model = from->model;
	return 0;
}

#define KIND_FIRST KVR_REQUEST_PING
#define KIND_LAST  KVR_REQUEST_SEGMENT_LIST

/* In the order of enum kvr_request_kind. */
static const struct {
	const ProtobufCMessageDescriptor *descriptor;
	int (*take)(struct kvr_message_arena *arena, const ProtobufCMessage *body,
		struct kvr_request *into);
} bodies[] = {
	{&kvrecall__ping__descriptor, take_ping},
	{&kvrecall__model_register__descriptor, take_model_register},
	{&kvrecall__model_list__descriptor, take_model_list},
	{&kvrecall__open__descriptor, take_open},
	{&kvrecall__append__descriptor, take_append},
	{&kvrecall__recall__descriptor, take_recall},
	{&kvrecall__fetch__descriptor, take_fetch},
	{&kvrecall__sync__descriptor, take_sync},
	{&kvrecall__fork__descriptor, take_fork},
	{&kvrecall__close__descriptor, take_close},
	{&kvrecall__drop__descriptor, take_drop},
	{&kvrecall__pin__descriptor, take_pin},
	{&kvrecall__stats__descriptor, take_stats},
	{&kvrecall__segment_list__descriptor, take_segment_list},
};
KVR_STATIC_ASSERT(sizeof(bodies) / sizeof(bodies[0]) == KIND_LAST - KIND_FIRST + 1);

/* What a refusal needs is taken first and stays, whatever is wrong with the rest. */
static int take_head(struct kvr_message_arena *arena, const struct kvr_wire_field *fields,
	struct kvr_request *into)
{
	const struct kvr_span *secret = &fields[3].bytes;
	uint64_t deadline_ms = fields[4].value;

	into->id = fields[1].value;
	into->session = fields[2].value;
	if (secret->bytes == KVR_SECRET_BYTES)
		memcpy(into->secret, secret->data, KVR_SECRET_BYTES);
	into->deadline_ms = deadline_ms == 0 || deadline_ms > KVR_DEADLINE_MS_MAX
				    ? KVR_DEADLINE_MS_MAX
				    : (uint32_t)deadline_ms;
	if (arena->error[0] != '\0')
		return -EBADMSG; /* the envelope was refused already */
	if (secret->bytes != KVR_SECRET_BYTES)
		return kvr_message_refuse(arena, -EBADMSG, "Request.secret has %zu bytes, not %u",
			secret->bytes, KVR_SECRET_BYTES);
	if (into->id == 0)
		return kvr_message_refuse(arena, -EBADMSG, "Request.id is missing");
	return kvr_message_bound(arena, "Request.deadline_ms", deadline_ms, 0, KVR_DEADLINE_MS_MAX);
}

/* The kind of the one body among the fields of the envelope. */
static int take_kind(struct kvr_message_arena *arena, const struct kvr_wire_field *fields,
	struct kvr_request *into)
{
	uint32_t found = 0;

	for (uint32_t kind = KIND_FIRST; kind <= KIND_LAST; kind++) {
		if (fields[kind].number == 0)
			continue;
		if (found != 0)
			return kvr_message_refuse(arena, -EBADMSG, "Request has two bodies");
		found = kind;
	}
	if (found == 0)
		return kvr_message_refuse(
			arena, -EBADMSG, "Request.body is missing or of an unknown kind");
	into->kind = (enum kvr_request_kind)found;
	return 0;
}

int kvr_request_unpack(
	struct kvr_span from, struct kvr_message_arena *arena, struct kvr_request *ret_request)
{
	struct kvr_wire_field fields[KVR_MESSAGE_FIELDS_MAX] = {0};
	const ProtobufCMessage *body;
	int error, head_error;

	kvr_message_reset(arena);
	memset(ret_request, 0, sizeof(*ret_request));
	error = kvr_message_envelope(arena, &kvrecall__request__descriptor, from, fields);
	head_error = take_head(arena, fields, ret_request);
	if (error == 0)
		error = head_error;
	if (error == 0)
		error = take_kind(arena, fields, ret_request);
	if (error < 0)
		return error;
	KVR_ASSERT(ret_request->kind >= KIND_FIRST);
	KVR_ASSERT(ret_request->kind <= KIND_LAST);
	error = kvr_message_unpack(arena, bodies[ret_request->kind - KIND_FIRST].descriptor,
		fields[ret_request->kind].bytes, &body);
	if (error == 0)
		error = bodies[ret_request->kind - KIND_FIRST].take(arena, body, ret_request);
	return error;
}

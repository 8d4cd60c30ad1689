/* SPDX-License-Identifier: Apache-2.0 */
/* message_reply.c: unpacking of replies.
 *
 * As in message_request.c the envelope (id, code, subject, where the body is) is read here, the body
 * goes through protobuf-c. The daemon is checked like anybody else: a client must not index with a
 * number that it was sent. */
#include "proto/message_arena.h"

#include <errno.h>
#include <math.h>
#include <string.h>

/* One list element that does not fit the arena. */
static int short_of_memory(struct kvr_message_arena *arena, const char *field)
{
	KVR_ASSERT(arena->exhausted);
	return kvr_message_refuse(arena, -E2BIG, "%s needs too much memory", field);
}

static int take_model_registered(
	struct kvr_message_arena *arena, const ProtobufCMessage *body, struct kvr_reply *into)
{
	const Kvrecall__ModelRegistered *from = (const Kvrecall__ModelRegistered *)body;
	int error =
		kvr_message_take_geometry(arena, from->geometry, &into->model_registered.geometry);

	if (error == 0 && !kvr_geometry_valid(&into->model_registered.geometry))
		error = kvr_message_refuse(
			arena, -EBADMSG, "ModelRegistered.geometry is outside the limits");
	into->model_registered.model = from->model;
	return error;
}

static int take_model(
	struct kvr_message_arena *arena, const Kvrecall__Model *from, struct kvr_wire_model *into)
{
	int error = kvr_message_take_text(
		arena, "Model.name", from->name, into->name, sizeof(into->name));

	if (error == 0)
		error = kvr_message_take_bytes(
			arena, "Model.digest", from->digest, into->digest, KVR_HASH_BYTES);
	if (error == 0)
		error = kvr_message_take_geometry(arena, from->geometry, &into->geometry);
	if (error == 0 && !kvr_geometry_valid(&into->geometry))
		error = kvr_message_refuse(arena, -EBADMSG, "Model.geometry is outside the limits");
	into->model = from->model;
	into->rank = from->rank;
	into->segment_count = from->segment_count;
	into->stored_bytes = from->stored_bytes;
	return error;
}

static int take_models(
	struct kvr_message_arena *arena, const ProtobufCMessage *body, struct kvr_reply *into)
{
	const Kvrecall__Models *from = (const Kvrecall__Models *)body;
	struct kvr_wire_model *entries =
		kvr_message_alloc(arena, from->n_models * sizeof(*entries));
	int error = 0;

	KVR_ASSERT(from->n_models <= KVR_LIST_ENTRIES_MAX); /* M1 */
	if (entries == NULL)
		return short_of_memory(arena, "Models.models");
	for (size_t i = 0; error == 0 && i < from->n_models; i++)
		error = take_model(arena, from->models[i], &entries[i]);
	into->models.entries = entries;
	into->models.count = (uint32_t)from->n_models;
	into->models.next = from->next;
	return error;
}

static int take_opened(
	struct kvr_message_arena *arena, const ProtobufCMessage *body, struct kvr_reply *into)
{
	const Kvrecall__Opened *from = (const Kvrecall__Opened *)body;
	int error = kvr_message_bound(arena, "Opened.sequence", from->sequence, 1, UINT64_MAX);

	into->opened.sequence = from->sequence;
	into->opened.matched_tokens = from->matched_tokens;
	if (error == 0)
		error = kvr_message_bound(arena, "Opened.matched_tokens", from->matched_tokens, 0,
			KVR_SEQUENCE_TOKENS_MAX);
	return error;
}

static int take_appended(
	struct kvr_message_arena *arena, const ProtobufCMessage *body, struct kvr_reply *into)
{
	const Kvrecall__Appended *from = (const Kvrecall__Appended *)body;
	int error = kvr_message_bound(
		arena, "Appended.token_count", from->token_count, 0, KVR_SEQUENCE_TOKENS_MAX);

	into->appended.token_count = from->token_count;
	into->appended.sealed_tokens = from->sealed_tokens;
	if (error == 0)
		error = kvr_message_bound(
			arena, "Appended.sealed_tokens", from->sealed_tokens, 0, from->token_count);
	return error;
}

static int take_recalled_item(struct kvr_message_arena *arena, const Kvrecall__RecalledItem *from,
	struct kvr_wire_recalled *into)
{
	int error = kvr_message_bound(
		arena, "RecalledItem.token_count", from->token_count, 0, KVR_SEQUENCE_TOKENS_MAX);

	into->token_count = from->token_count;
	into->covered_tokens = from->covered_tokens;
	if (error == 0)
		error = kvr_message_bound(arena, "RecalledItem.covered_tokens",
			from->covered_tokens, 0, from->token_count);
	return error;
}

static int take_recalled(
	struct kvr_message_arena *arena, const ProtobufCMessage *body, struct kvr_reply *into)
{
	const Kvrecall__Recalled *from = (const Kvrecall__Recalled *)body;
	struct kvr_wire_recalled *items;
	int error = 0;

	KVR_ASSERT(from->n_items <= KVR_RECALL_ITEMS_MAX); /* M1 */
	into->recalled.staged_bytes = from->staged_bytes;
	into->recalled.token_missing = from->token_missing;
	if ((from->n_items == 0) == (from->same == NULL))
		return kvr_message_refuse(
			arena, -EBADMSG, "Recalled must have either items or same");
	if (from->same != NULL)
		return take_recalled_item(arena, from->same, &into->recalled.same);
	items = kvr_message_alloc(arena, from->n_items * sizeof(*items));
	if (items == NULL)
		return short_of_memory(arena, "Recalled.items");
	for (size_t i = 0; error == 0 && i < from->n_items; i++)
		error = take_recalled_item(arena, from->items[i], &items[i]);
	into->recalled.items = items;
	into->recalled.count = (uint32_t)from->n_items;
	return error;
}

static int take_fetched(
	struct kvr_message_arena *arena, const ProtobufCMessage *body, struct kvr_reply *into)
{
	(void)arena;
	into->fetched.staged_bytes = ((const Kvrecall__Fetched *)body)->staged_bytes;
	return 0;
}

static int take_synced(
	struct kvr_message_arena *arena, const ProtobufCMessage *body, struct kvr_reply *into)
{
	into->synced.sealed_tokens = ((const Kvrecall__Synced *)body)->sealed_tokens;
	return kvr_message_bound(arena, "Synced.sealed_tokens", into->synced.sealed_tokens, 0,
		KVR_SEQUENCE_TOKENS_MAX);
}

static int take_dropped(
	struct kvr_message_arena *arena, const ProtobufCMessage *body, struct kvr_reply *into)
{
	const Kvrecall__Dropped *from = (const Kvrecall__Dropped *)body;

	(void)arena;
	into->dropped.segment_count = from->segment_count;
	into->dropped.freed_bytes = from->freed_bytes;
	into->dropped.kept_count = from->kept_count;
	return 0;
}

static int take_pinned(
	struct kvr_message_arena *arena, const ProtobufCMessage *body, struct kvr_reply *into)
{
	(void)arena;
	into->pinned.segment_count = ((const Kvrecall__Pinned *)body)->segment_count;
	return 0;
}

static int take_metric(
	struct kvr_message_arena *arena, const Kvrecall__Metric *from, struct kvr_wire_metric *into)
{
	int error = kvr_message_take_text(
		arena, "Metric.name", from->name, into->name, sizeof(into->name));

	if (error == 0)
		error = kvr_message_take_text(
			arena, "Metric.text", from->text, into->text, sizeof(into->text));
	if (error == 0 && !isfinite(from->value))
		error = kvr_message_refuse(arena, -EBADMSG, "Metric.value is not finite");
	into->value = from->value;
	return error;
}

static int take_metrics(
	struct kvr_message_arena *arena, const ProtobufCMessage *body, struct kvr_reply *into)
{
	const Kvrecall__Metrics *from = (const Kvrecall__Metrics *)body;
	struct kvr_wire_metric *entries =
		kvr_message_alloc(arena, from->n_metrics * sizeof(*entries));
	int error = 0;

	KVR_ASSERT(from->n_metrics <= KVR_LIST_ENTRIES_MAX); /* M1 */
	if (entries == NULL)
		return short_of_memory(arena, "Metrics.metrics");
	for (size_t i = 0; error == 0 && i < from->n_metrics; i++)
		error = take_metric(arena, from->metrics[i], &entries[i]);
	into->metrics.entries = entries;
	into->metrics.count = (uint32_t)from->n_metrics;
	into->metrics.next = from->next;
	return error;
}

static int take_segment(struct kvr_message_arena *arena, const Kvrecall__Segment *from,
	struct kvr_wire_segment *into)
{
	int error;

	*into = (struct kvr_wire_segment){
		.has_parent = from->parent.len > 0,
		.model = from->model,
		.token_first = from->token_first,
		.token_count = from->token_count,
		.stored_bytes = from->stored_bytes,
		.leases = from->leases,
		.pins = from->pins,
		.resident_bytes = from->resident_bytes,
		.durable = from->durable,
		.quarantined = from->quarantined,
	};
	error = kvr_message_take_bytes(
		arena, "Segment.hash", from->hash, into->hash, KVR_HASH_BYTES);
	if (error == 0 && into->has_parent)
		error = kvr_message_take_bytes(
			arena, "Segment.parent", from->parent, into->parent, KVR_HASH_BYTES);
	return error;
}

static int take_segments(
	struct kvr_message_arena *arena, const ProtobufCMessage *body, struct kvr_reply *into)
{
	const Kvrecall__Segments *from = (const Kvrecall__Segments *)body;
	struct kvr_wire_segment *entries =
		kvr_message_alloc(arena, from->n_segments * sizeof(*entries));
	int error = 0;

	KVR_ASSERT(from->n_segments <= KVR_LIST_ENTRIES_MAX); /* M1 */
	if (entries == NULL)
		return short_of_memory(arena, "Segments.segments");
	for (size_t i = 0; error == 0 && i < from->n_segments; i++)
		error = take_segment(arena, from->segments[i], &entries[i]);
	into->segments.entries = entries;
	into->segments.count = (uint32_t)from->n_segments;
	into->segments.next = from->next;
	return error;
}

#define KIND_FIRST KVR_REQUEST_PING
#define KIND_LAST  KVR_REQUEST_SEGMENT_LIST

/* By the kind of the request, in the order of enum kvr_request_kind; number 0: no body. */
static const struct {
	uint32_t number; /* of Reply.body */
	const ProtobufCMessageDescriptor *descriptor;
	int (*take)(struct kvr_message_arena *arena, const ProtobufCMessage *body,
		struct kvr_reply *into);
} bodies[] = {
	{0, NULL, NULL}, /* PING */
	{11, &kvrecall__model_registered__descriptor, take_model_registered},
	{12, &kvrecall__models__descriptor, take_models},
	{13, &kvrecall__opened__descriptor, take_opened},
	{14, &kvrecall__appended__descriptor, take_appended},
	{15, &kvrecall__recalled__descriptor, take_recalled},
	{16, &kvrecall__fetched__descriptor, take_fetched},
	{17, &kvrecall__synced__descriptor, take_synced},
	{13, &kvrecall__opened__descriptor, take_opened}, /* FORK */
	{0, NULL, NULL},                                  /* CLOSE */
	{20, &kvrecall__dropped__descriptor, take_dropped},
	{21, &kvrecall__pinned__descriptor, take_pinned},
	{22, &kvrecall__metrics__descriptor, take_metrics},
	{23, &kvrecall__segments__descriptor, take_segments},
};
KVR_STATIC_ASSERT(sizeof(bodies) / sizeof(bodies[0]) == KIND_LAST - KIND_FIRST + 1);

static int take_head(struct kvr_message_arena *arena, const struct kvr_wire_field *fields,
	struct kvr_reply *into)
{
	const struct kvr_span *subject = &fields[3].bytes;

	into->id = fields[1].value;
	into->code = (uint32_t)fields[2].value; /* 32 bits: message_check.c */
	if (into->id == 0)
		return kvr_message_refuse(arena, -EBADMSG, "Reply.id is missing");
	if (subject->bytes >= sizeof(into->subject))
		return kvr_message_refuse(arena, -E2BIG, "Reply.subject has %zu bytes, at most %zu",
			subject->bytes, sizeof(into->subject) - 1);
	if (subject->bytes > 0)
		memcpy(into->subject, subject->data, subject->bytes);
	return 0;
}

int kvr_reply_unpack(struct kvr_span from, enum kvr_request_kind kind,
	struct kvr_message_arena *arena, struct kvr_reply *ret_reply)
{
	struct kvr_wire_field fields[KVR_MESSAGE_FIELDS_MAX] = {0};
	const ProtobufCMessage *body;
	uint32_t index = (uint32_t)kind - KIND_FIRST;
	int error;

	KVR_ASSERT(kind >= KIND_FIRST);
	KVR_ASSERT(kind <= KIND_LAST);
	kvr_message_reset(arena);
	memset(ret_reply, 0, sizeof(*ret_reply));
	ret_reply->kind = kind;
	if (from.bytes > KVR_REPLY_BYTES_MAX)
		return kvr_message_refuse(arena, -E2BIG, "Reply has %zu bytes, at most %u",
			from.bytes, KVR_REPLY_BYTES_MAX);
	error = kvr_message_envelope(arena, &kvrecall__reply__descriptor, from, fields);
	if (error == 0)
		error = take_head(arena, fields, ret_reply);
	if (error < 0 || ret_reply->code != KVR_CODE_OK || bodies[index].number == 0)
		return error;
	if (fields[bodies[index].number].number == 0)
		return kvr_message_refuse(
			arena, -EBADMSG, "Reply has not the body of its request's kind");
	error = kvr_message_unpack(
		arena, bodies[index].descriptor, fields[bodies[index].number].bytes, &body);
	if (error == 0)
		error = bodies[index].take(arena, body, ret_reply);
	return error;
}

uint64_t kvr_reply_id(struct kvr_span from)
{
	struct kvr_wire_field field;

	if (from.bytes > KVR_REPLY_BYTES_MAX)
		return 0;
	while (kvr_wire_next(&from, &field) > 0)
		if (field.number == 1)
			return field.type == KVR_WIRE_VARINT ? field.value : 0;
	return 0;
}

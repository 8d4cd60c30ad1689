/* SPDX-License-Identifier: Apache-2.0 */
/* message_reply_pack.c: packing of replies.
 *
 * One function per body fills protobuf-c's struct, `pack` sends it off. Lists are built in the arena's
 * scratch, everything else on the stack; strings and bytes are borrowed from the reply.
 *
 * What a full list needs on the wire at most: tag and length of each field, then its value. */
#include "proto/message_arena.h"

#include <errno.h>
#include <math.h>
#include <string.h>

#define U32_BYTES      6u /* tag, five bytes of varint */
#define U64_BYTES      11u
#define HASH_BYTES     (2u + KVR_HASH_BYTES)
#define NAME_BYTES     (1u + 1u + KVR_NAME_MAX)
#define TEXT_BYTES     (1u + 2u + KVR_TEXT_MAX)
#define HEAD_BYTES     (U64_BYTES + U32_BYTES + TEXT_BYTES + 1u + 3u + U32_BYTES + 2 * U64_BYTES)
#define GEOMETRY_BYTES (2u + 10u * U32_BYTES)
#define MODEL_BYTES    (3u + 3u * U32_BYTES + NAME_BYTES + HASH_BYTES + GEOMETRY_BYTES + U64_BYTES)
#define METRIC_BYTES   (3u + NAME_BYTES + 9u + TEXT_BYTES)
#define BOOL_BYTES     2u
#define SEGMENT_BYTES  (3u + 2u * HASH_BYTES + 5u * U32_BYTES + 2u * U64_BYTES + 2u * BOOL_BYTES)
#define RECALLED_BYTES (2u + 2u * U32_BYTES)

KVR_STATIC_ASSERT(KVR_NAME_MAX <= 128 && KVR_TEXT_MAX <= 16384); /* lengths of 1 and 2 bytes */
KVR_STATIC_ASSERT(HEAD_BYTES + KVR_LIST_ENTRIES_MAX * MODEL_BYTES <= KVR_REPLY_BYTES_MAX);
KVR_STATIC_ASSERT(HEAD_BYTES + KVR_LIST_ENTRIES_MAX * METRIC_BYTES <= KVR_REPLY_BYTES_MAX);
KVR_STATIC_ASSERT(HEAD_BYTES + KVR_LIST_ENTRIES_MAX * SEGMENT_BYTES <= KVR_REPLY_BYTES_MAX);
KVR_STATIC_ASSERT(HEAD_BYTES + KVR_RECALL_ITEMS_MAX * RECALLED_BYTES <= KVR_REPLY_BYTES_MAX);

static int64_t pack(const struct kvr_reply *from, Kvrecall__Reply *message,
	Kvrecall__Reply__BodyCase body_case, struct kvr_span into)
{
	char spare[KVR_TEXT_MAX];

	KVR_ASSERT(from->code == KVR_CODE_OK || body_case == KVRECALL__REPLY__BODY__NOT_SET);
	message->id = from->id;
	message->code = from->code;
	message->subject = kvr_message_give_text(from->subject, spare, sizeof(spare));
	message->body_case = body_case;
	return kvr_message_pack(&message->base, into, KVR_REPLY_BYTES_MAX);
}

static int64_t pack_model_registered(const struct kvr_reply *from, struct kvr_span into)
{
	Kvrecall__Reply message = KVRECALL__REPLY__INIT;
	Kvrecall__ModelRegistered body = KVRECALL__MODEL_REGISTERED__INIT;
	Kvrecall__Geometry geometry;

	KVR_ASSERT(kvr_geometry_valid(&from->model_registered.geometry));
	kvr_message_give_geometry(&from->model_registered.geometry, true, &geometry);
	body.model = from->model_registered.model;
	body.geometry = &geometry;
	message.model_registered = &body;
	return pack(from, &message, KVRECALL__REPLY__BODY_MODEL_REGISTERED, into);
}

static void give_model(
	const struct kvr_wire_model *from, Kvrecall__Geometry *geometry, Kvrecall__Model *into)
{
	KVR_ASSERT(strnlen(from->name, KVR_NAME_MAX) < KVR_NAME_MAX);
	kvr_message_give_geometry(&from->geometry, false, geometry);
	kvrecall__model__init(into);
	into->model = from->model;
	into->name = (char *)from->name;
	into->digest = kvr_message_give_bytes(from->digest, KVR_HASH_BYTES);
	into->geometry = geometry;
	into->rank = from->rank;
	into->segment_count = from->segment_count;
	into->stored_bytes = from->stored_bytes;
}

static int64_t pack_models(
	const struct kvr_reply *from, struct kvr_message_arena *arena, struct kvr_span into)
{
	Kvrecall__Reply message = KVRECALL__REPLY__INIT;
	Kvrecall__Models body = KVRECALL__MODELS__INIT;

	KVR_ASSERT(from->models.count <= KVR_LIST_ENTRIES_MAX);
	for (uint32_t i = 0; i < from->models.count; i++) {
		give_model(&from->models.entries[i], &arena->scratch.models.geometry[i],
			&arena->scratch.models.items[i]);
		arena->scratch.models.list[i] = &arena->scratch.models.items[i];
	}
	body.n_models = from->models.count;
	body.models = arena->scratch.models.list;
	body.next = from->models.next;
	message.models = &body;
	return pack(from, &message, KVRECALL__REPLY__BODY_MODELS, into);
}

static int64_t pack_opened(const struct kvr_reply *from, struct kvr_span into)
{
	Kvrecall__Reply message = KVRECALL__REPLY__INIT;
	Kvrecall__Opened body = KVRECALL__OPENED__INIT;

	body.sequence = from->opened.sequence;
	body.matched_tokens = from->opened.matched_tokens;
	message.opened = &body;
	return pack(from, &message, KVRECALL__REPLY__BODY_OPENED, into);
}

static int64_t pack_appended(const struct kvr_reply *from, struct kvr_span into)
{
	Kvrecall__Reply message = KVRECALL__REPLY__INIT;
	Kvrecall__Appended body = KVRECALL__APPENDED__INIT;

	body.token_count = from->appended.token_count;
	body.sealed_tokens = from->appended.sealed_tokens;
	message.appended = &body;
	return pack(from, &message, KVRECALL__REPLY__BODY_APPENDED, into);
}

static void give_recalled(const struct kvr_wire_recalled *from, Kvrecall__RecalledItem *into)
{
	KVR_ASSERT(from->covered_tokens <= from->token_count);
	kvrecall__recalled_item__init(into);
	into->token_count = from->token_count;
	into->covered_tokens = from->covered_tokens;
}

/* Layers of one sequence are alike as a rule; then one item says it for all of them. */
static bool all_alike(const struct kvr_wire_recalled *items, uint32_t count)
{
	for (uint32_t i = 1; i < count; i++)
		if (items[i].token_count != items[0].token_count ||
			items[i].covered_tokens != items[0].covered_tokens)
			return false;
	return true;
}

static int64_t pack_recalled(
	const struct kvr_reply *from, struct kvr_message_arena *arena, struct kvr_span into)
{
	Kvrecall__Reply message = KVRECALL__REPLY__INIT;
	Kvrecall__Recalled body = KVRECALL__RECALLED__INIT;
	Kvrecall__RecalledItem same;
	uint32_t count = from->recalled.count;

	KVR_ASSERT(count <= KVR_RECALL_ITEMS_MAX);
	if (all_alike(from->recalled.items, count)) {
		give_recalled(count > 0 ? from->recalled.items : &from->recalled.same, &same);
		body.same = &same;
		count = 0;
	}
	for (uint32_t i = 0; i < count; i++) {
		give_recalled(&from->recalled.items[i], &arena->scratch.recalled.items[i]);
		arena->scratch.recalled.list[i] = &arena->scratch.recalled.items[i];
	}
	body.n_items = count;
	body.items = arena->scratch.recalled.list;
	body.staged_bytes = from->recalled.staged_bytes;
	body.token_missing = from->recalled.token_missing;
	message.recalled = &body;
	return pack(from, &message, KVRECALL__REPLY__BODY_RECALLED, into);
}

static int64_t pack_dropped(const struct kvr_reply *from, struct kvr_span into)
{
	Kvrecall__Reply message = KVRECALL__REPLY__INIT;
	Kvrecall__Dropped body = KVRECALL__DROPPED__INIT;

	body.segment_count = from->dropped.segment_count;
	body.freed_bytes = from->dropped.freed_bytes;
	body.kept_count = from->dropped.kept_count;
	message.dropped = &body;
	return pack(from, &message, KVRECALL__REPLY__BODY_DROPPED, into);
}

static int64_t pack_metrics(
	const struct kvr_reply *from, struct kvr_message_arena *arena, struct kvr_span into)
{
	Kvrecall__Reply message = KVRECALL__REPLY__INIT;
	Kvrecall__Metrics body = KVRECALL__METRICS__INIT;

	KVR_ASSERT(from->metrics.count <= KVR_LIST_ENTRIES_MAX);
	for (uint32_t i = 0; i < from->metrics.count; i++) {
		const struct kvr_wire_metric *entry = &from->metrics.entries[i];
		Kvrecall__Metric *item = &arena->scratch.metrics.items[i];

		KVR_ASSERT(strnlen(entry->name, KVR_NAME_MAX) < KVR_NAME_MAX);
		kvrecall__metric__init(item);
		item->name = (char *)entry->name;
		item->value = isfinite(entry->value) ? entry->value : 0.0;
		item->text = !isfinite(entry->value) && entry->text[0] == '\0'
				     ? "not finite"
				     : kvr_message_give_text(entry->text,
					       arena->scratch.metrics.text[i], KVR_TEXT_MAX);
		arena->scratch.metrics.list[i] = item;
	}
	body.n_metrics = from->metrics.count;
	body.metrics = arena->scratch.metrics.list;
	body.next = from->metrics.next;
	message.metrics = &body;
	return pack(from, &message, KVRECALL__REPLY__BODY_METRICS, into);
}

static void give_segment(const struct kvr_wire_segment *from, Kvrecall__Segment *into)
{
	kvrecall__segment__init(into);
	into->hash = kvr_message_give_bytes(from->hash, KVR_HASH_BYTES);
	if (from->has_parent)
		into->parent = kvr_message_give_bytes(from->parent, KVR_HASH_BYTES);
	into->model = from->model;
	into->token_first = from->token_first;
	into->token_count = from->token_count;
	into->stored_bytes = from->stored_bytes;
	into->leases = from->leases;
	into->pins = from->pins;
	into->resident_bytes = from->resident_bytes;
	into->durable = from->durable;
	into->quarantined = from->quarantined;
}

static int64_t pack_segments(
	const struct kvr_reply *from, struct kvr_message_arena *arena, struct kvr_span into)
{
	Kvrecall__Reply message = KVRECALL__REPLY__INIT;
	Kvrecall__Segments body = KVRECALL__SEGMENTS__INIT;

	KVR_ASSERT(from->segments.count <= KVR_LIST_ENTRIES_MAX);
	for (uint32_t i = 0; i < from->segments.count; i++) {
		give_segment(&from->segments.entries[i], &arena->scratch.segments.items[i]);
		arena->scratch.segments.list[i] = &arena->scratch.segments.items[i];
	}
	body.n_segments = from->segments.count;
	body.segments = arena->scratch.segments.list;
	body.next = from->segments.next;
	message.segments = &body;
	return pack(from, &message, KVRECALL__REPLY__BODY_SEGMENTS, into);
}

/* Bodies of one number, and replies without any. */
static int64_t pack_small(const struct kvr_reply *from, struct kvr_span into)
{
	Kvrecall__Reply message = KVRECALL__REPLY__INIT;
	Kvrecall__Fetched fetched = KVRECALL__FETCHED__INIT;
	Kvrecall__Synced synced = KVRECALL__SYNCED__INIT;
	Kvrecall__Pinned pinned = KVRECALL__PINNED__INIT;

	if (from->code != KVR_CODE_OK)
		return pack(from, &message, KVRECALL__REPLY__BODY__NOT_SET, into);
	switch (from->kind) {
	case KVR_REQUEST_FETCH:
		fetched.staged_bytes = from->fetched.staged_bytes;
		message.fetched = &fetched;
		return pack(from, &message, KVRECALL__REPLY__BODY_FETCHED, into);
	case KVR_REQUEST_SYNC:
		synced.sealed_tokens = from->synced.sealed_tokens;
		message.synced = &synced;
		return pack(from, &message, KVRECALL__REPLY__BODY_SYNCED, into);
	case KVR_REQUEST_PIN:
		pinned.segment_count = from->pinned.segment_count;
		message.pinned = &pinned;
		return pack(from, &message, KVRECALL__REPLY__BODY_PINNED, into);
	default:
		KVR_ASSERT(from->kind == KVR_REQUEST_PING || from->kind == KVR_REQUEST_CLOSE);
		return pack(from, &message, KVRECALL__REPLY__BODY__NOT_SET, into);
	}
}

int64_t kvr_reply_pack(
	const struct kvr_reply *reply, struct kvr_message_arena *arena, struct kvr_span into)
{
	if (reply->code != KVR_CODE_OK) /* of whatever kind, known or not */
		return pack_small(reply, into);
	switch (reply->kind) {
	case KVR_REQUEST_PING:
	case KVR_REQUEST_CLOSE:
	case KVR_REQUEST_FETCH:
	case KVR_REQUEST_SYNC:
	case KVR_REQUEST_PIN: return pack_small(reply, into);
	case KVR_REQUEST_MODEL_REGISTER: return pack_model_registered(reply, into);
	case KVR_REQUEST_MODEL_LIST: return pack_models(reply, arena, into);
	case KVR_REQUEST_OPEN:
	case KVR_REQUEST_FORK: return pack_opened(reply, into);
	case KVR_REQUEST_APPEND: return pack_appended(reply, into);
	case KVR_REQUEST_RECALL: return pack_recalled(reply, arena, into);
	case KVR_REQUEST_DROP: return pack_dropped(reply, into);
	case KVR_REQUEST_STATS: return pack_metrics(reply, arena, into);
	case KVR_REQUEST_SEGMENT_LIST: return pack_segments(reply, arena, into);
	}
	kvr_assert_fail("reply->kind is one of the above", __FILE__, __LINE__);
}

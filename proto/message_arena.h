/* SPDX-License-Identifier: Apache-2.0 */
/* message_arena.h: the memory of messages, and what their packing and unpacking share.
 *
 * Private to proto/ and its tests; the only header that shows protobuf-c.
 *
 *   bytes ──► kvr_message_check ──► protobuf-c ──► message_request.c, message_reply.c ──► struct
 *             (every length and      (into the      (ranges)
 *              count, no memory)      arena)
 *
 * Invariants:
 *   M1  protobuf-c reads nothing that kvr_message_check has not passed: lengths, wire types, counts,
 *       text, the number of unknown fields.
 *   M2  What passes fits the arena (the sum below). Should it not, protobuf-c gets NULL, gives up,
 *       and the message is refused with -E2BIG.
 *   M3  After kvr_message_arena_open nothing allocates, and nothing is freed before close.
 *   M4  An error text holds names from our descriptors and numbers, never bytes of the message.
 *
 * Threads: an arena belongs to one thread. */
#ifndef KVR_PROTO_MESSAGE_ARENA_H
#define KVR_PROTO_MESSAGE_ARENA_H

#include <protobuf-c/protobuf-c.h>

#include "proto/kvrecall.pb-c.h"
#include "proto/message.h"
#include "proto/wire.h"

/* What a trimmed arena keeps: most messages need less. */
#define KVR_MESSAGE_KEPT_BYTES ((size_t)64 << 10)

/* Fields that this build does not know, per message: room for what later versions may add. */
#define KVR_MESSAGE_UNKNOWN_MAX 1024u
/* Fields of one message, and in an envelope the highest field number. */
#define KVR_MESSAGE_FIELDS_MAX 32u
/* Every allocation starts at a multiple of so many bytes. */
#define KVR_MESSAGE_ALIGN 16u
/* protobuf-c first lists a message's fields: 16 on its stack, then in slabs of 32, 64, ... entries
 * of at most 32 bytes, together less than 2 n + 16 for n fields. */
#define KVR_MESSAGE_SCAN_BYTES 32u

/* Contents of byte strings and text, token ids, unknown fields: copies of the message. */
#define KVR_MESSAGE_COPY_BYTES ((size_t)KVR_MESSAGE_BYTES_MAX)
/* The body, and what it has once: Geometry, Tokens, Span, RecalledItem, with slabs. */
#define KVR_MESSAGE_BODY_BYTES 8192u
/* Recall items, the largest of all lists: place in two slabs, pointer, message, plain struct, and
 * the padding of these and of the inline query. */
#define KVR_MESSAGE_ITEM_BYTES                                                                \
	(2 * (size_t)KVR_MESSAGE_SCAN_BYTES + sizeof(void *) + sizeof(Kvrecall__RecallItem) + \
		sizeof(struct kvr_wire_recall_item) + 3 * (size_t)KVR_MESSAGE_ALIGN)
/* Unknown fields: struct, padding, and the slabs of a message that they push past 16 fields (it has
 * n = 9 + u, u >= 8: 2 n + 16 <= 7 u). */
#define KVR_MESSAGE_LATER_BYTES                                                 \
	(sizeof(ProtobufCMessageUnknownField) + 2 * (size_t)KVR_MESSAGE_ALIGN + \
		7 * (size_t)KVR_MESSAGE_SCAN_BYTES)

#define KVR_MESSAGE_ARENA_BYTES                                 \
	(KVR_MESSAGE_COPY_BYTES + KVR_MESSAGE_BODY_BYTES +      \
		KVR_RECALL_ITEMS_MAX * KVR_MESSAGE_ITEM_BYTES + \
		KVR_MESSAGE_UNKNOWN_MAX * KVR_MESSAGE_LATER_BYTES)

/* Where packing builds protobuf-c's structs: one message at a time. */
union kvr_message_scratch {
	struct {
		Kvrecall__RecallItem *list[KVR_RECALL_ITEMS_MAX];
		Kvrecall__RecallItem items[KVR_RECALL_ITEMS_MAX];
	} recall;
	struct {
		Kvrecall__RecalledItem *list[KVR_RECALL_ITEMS_MAX];
		Kvrecall__RecalledItem items[KVR_RECALL_ITEMS_MAX];
	} recalled;
	struct {
		Kvrecall__LayerRows *list[KVR_APPEND_LAYERS_MAX];
		Kvrecall__LayerRows items[KVR_APPEND_LAYERS_MAX];
	} layers;
	struct {
		Kvrecall__Model *list[KVR_LIST_ENTRIES_MAX];
		Kvrecall__Model items[KVR_LIST_ENTRIES_MAX];
		Kvrecall__Geometry geometry[KVR_LIST_ENTRIES_MAX];
	} models;
	struct {
		Kvrecall__Metric *list[KVR_LIST_ENTRIES_MAX];
		Kvrecall__Metric items[KVR_LIST_ENTRIES_MAX];
		char text[KVR_LIST_ENTRIES_MAX][KVR_TEXT_MAX];
	} metrics;
	struct {
		Kvrecall__Segment *list[KVR_LIST_ENTRIES_MAX];
		Kvrecall__Segment items[KVR_LIST_ENTRIES_MAX];
	} segments;
};

struct kvr_message_arena {
	char error[KVR_TEXT_MAX];
	ProtobufCAllocator allocator;
	union kvr_message_scratch scratch; /* of packing */
	size_t capacity;                   /* KVR_MESSAGE_ARENA_BYTES; tests lower it */
	size_t used;
	size_t touched; /* the most that was used before the last reset, since the last trim */
	bool exhausted; /* an allocation was refused since the last reset */
	uint8_t memory[KVR_MESSAGE_ARENA_BYTES] __attribute__((aligned(KVR_MESSAGE_ALIGN)));
};

/* ---- memory and errors (message_arena.c) ------------------------------------------------------- */

/* Forgets what was unpacked, and the last error. */
void kvr_message_reset(struct kvr_message_arena *arena);

/* Memory until the next reset, aligned, not zeroed; NULL if the arena is full. */
void *kvr_message_alloc(struct kvr_message_arena *arena, size_t bytes);

/* Writes the error text and returns `error`. */
__attribute__((format(printf, 3, 4))) int kvr_message_refuse(
	struct kvr_message_arena *arena, int error, const char *format, ...);

/* 0; or -E2BIG if value > max, -EBADMSG if value < min, with a text. */
int kvr_message_bound(struct kvr_message_arena *arena, const char *field, uint64_t value,
	uint64_t min, uint64_t max);

/* As above for a float; NaN is refused. */
int kvr_message_bound_float(
	struct kvr_message_arena *arena, const char *field, float value, float min, float max);

/* Holds a message against its descriptor (message_check.c): M1. */
int kvr_message_check(struct kvr_message_arena *arena, const ProtobufCMessageDescriptor *descriptor,
	struct kvr_span from);

/* Checks an envelope (Request, Reply), not what is inside its body, and hands out its fields by
 * number: ret_fields[KVR_MESSAGE_FIELDS_MAX], zeroed by the caller. On failure it holds those that
 * stood before what was refused. */
int kvr_message_envelope(struct kvr_message_arena *arena,
	const ProtobufCMessageDescriptor *descriptor, struct kvr_span from,
	struct kvr_wire_field *ret_fields);

/* Checks, then unpacks into the arena. */
int kvr_message_unpack(struct kvr_message_arena *arena,
	const ProtobufCMessageDescriptor *descriptor, struct kvr_span from,
	const ProtobufCMessage **ret_message);

/* Packs a whole message; -EMSGSIZE if it needs more than `into` has, or than `bytes_max`. */
int64_t kvr_message_pack(const ProtobufCMessage *message, struct kvr_span into, size_t bytes_max);

/* ---- parts (message_parts.c) ------------------------------------------------------------------- */

/* `take` functions read a part of an unpacked message, `give` functions write one for packing. */

/* Text into a char array of `max` bytes. */
int kvr_message_take_text(struct kvr_message_arena *arena, const char *field, const char *from,
	char *into, size_t max);

/* Exactly `bytes` bytes. */
int kvr_message_take_bytes(struct kvr_message_arena *arena, const char *field,
	ProtobufCBinaryData from, uint8_t *into, size_t bytes);

/* A geometry as sent: what is 0 or "default" stays so, kvr_geometry_valid is the caller's. */
int kvr_message_take_geometry(
	struct kvr_message_arena *arena, const Kvrecall__Geometry *from, struct kvr_geometry *into);

/* `from` may be NULL: no tokens. */
int kvr_message_take_tokens(
	struct kvr_message_arena *arena, const Kvrecall__Tokens *from, struct kvr_tokens *into);

/* `from`, or where it is not text (a cut character, a control), its part before that, copied to
 * `spare`. Both are `max` bytes. */
char *kvr_message_give_text(const char *from, char *spare, size_t max);

ProtobufCBinaryData kvr_message_give_bytes(const uint8_t *from, size_t bytes);

/* `dense`: whether to send the dense lanes, borrowed from `from`. */
void kvr_message_give_geometry(
	const struct kvr_geometry *from, bool dense, Kvrecall__Geometry *into);

/* Returns whether there is anything to send. */
bool kvr_message_give_tokens(
	const struct kvr_tokens *from, Kvrecall__Tokens *into, Kvrecall__Span *region);

#endif

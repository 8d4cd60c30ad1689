/* SPDX-License-Identifier: Apache-2.0 */
/* message_check.c: whether bytes have the shape of a message, before anything is allocated for it.
 *
 * Walks a message and those inside it beside protobuf-c's descriptors. Looks at lengths, wire types,
 * counts and text; what the values mean is for the readers. An envelope (Request, Reply) is walked
 * without what is inside it, and its fields are handed out.
 *
 * Stricter than protobuf asks, so that two readers cannot understand a message differently:
 *   C1  A field that is not repeated stands at most once, and so does the one packed run of a list
 *       of numbers. (Hence protobuf-c never merges messages.)
 *   C2  A varint fits its field: 32 bits, or 0 and 1 for a bool.
 *   C3  Text is UTF-8 without control characters, so also without an embedded NUL.
 *   C4  A known field has its own wire type.
 *   C5  Lists keep to the table `lists`, unknown fields to KVR_MESSAGE_UNKNOWN_MAX.
 *
 * The recursion is as deep as the descriptors: Recall, RecallItem; Append, Tokens, Span. */
#include "proto/message_arena.h"

#include <errno.h>

#define DEPTH_MAX 4u
KVR_STATIC_ASSERT(KVR_MESSAGE_FIELDS_MAX <= 32); /* bits of a mask */

struct check {
	struct kvr_message_arena *arena;
	struct kvr_wire_field *envelope; /* by number, where one is read; else NULL */
	uint32_t unknown_count;
	uint32_t depth;
};

/* The most elements of each list, by what it is made of. */
static const struct {
	const ProtobufCMessageDescriptor *element;
	uint32_t max;
} lists[] = {
	{&kvrecall__recall_item__descriptor, KVR_RECALL_ITEMS_MAX},
	{&kvrecall__recalled_item__descriptor, KVR_RECALL_ITEMS_MAX},
	{&kvrecall__layer_rows__descriptor, KVR_APPEND_LAYERS_MAX},
	{&kvrecall__model__descriptor, KVR_LIST_ENTRIES_MAX},
	{&kvrecall__metric__descriptor, KVR_LIST_ENTRIES_MAX},
	{&kvrecall__segment__descriptor, KVR_LIST_ENTRIES_MAX},
};

static uint32_t list_max(const ProtobufCFieldDescriptor *field)
{
	uint32_t max = 0;

	if (field->type == PROTOBUF_C_TYPE_FIXED32)
		return KVR_TOKENS_INLINE_MAX;
	for (uint32_t i = 0; i < sizeof(lists) / sizeof(lists[0]); i++)
		if (lists[i].element == field->descriptor)
			max = lists[i].max;
	KVR_ASSERT(max > 0); /* a new list in kvrecall.proto needs a line above */
	return max;
}

/* Fields come in rising order as a rule, so the search starts where the last one ended. */
static const ProtobufCFieldDescriptor *find(
	const ProtobufCMessageDescriptor *descriptor, uint32_t number, uint32_t *hint)
{
	for (uint32_t i = 0; i < descriptor->n_fields; i++) {
		uint32_t index = *hint + i < descriptor->n_fields
					 ? *hint + i
					 : *hint + i - descriptor->n_fields;

		if (descriptor->fields[index].id == number) {
			*hint = index;
			return &descriptor->fields[index];
		}
	}
	return NULL;
}

static enum kvr_wire_type wire_type(const ProtobufCFieldDescriptor *field)
{
	switch (field->type) {
	case PROTOBUF_C_TYPE_UINT32:
	case PROTOBUF_C_TYPE_UINT64:
	case PROTOBUF_C_TYPE_BOOL: return KVR_WIRE_VARINT;
	case PROTOBUF_C_TYPE_FLOAT: return KVR_WIRE_FIXED32;
	case PROTOBUF_C_TYPE_DOUBLE: return KVR_WIRE_FIXED64;
	default: return KVR_WIRE_BYTES;
	}
}

static int refuse(struct check *check, const ProtobufCMessageDescriptor *descriptor,
	const ProtobufCFieldDescriptor *field, int error, const char *why)
{
	return kvr_message_refuse(
		check->arena, error, "%s.%s %s", descriptor->short_name, field->name, why);
}

static int check_message(
	struct check *check, const ProtobufCMessageDescriptor *descriptor, struct kvr_span from);

/* One occurrence of a field that the descriptor knows. */
static int check_field(struct check *check, const ProtobufCMessageDescriptor *descriptor,
	const ProtobufCFieldDescriptor *field, const struct kvr_wire_field *wire)
{
	if (wire->type != wire_type(field))
		return refuse(check, descriptor, field, -EBADMSG, "has another type"); /* C4 */
	switch (field->type) {
	case PROTOBUF_C_TYPE_UINT32:
		if (wire->value > UINT32_MAX) /* C2 */
			return refuse(check, descriptor, field, -EBADMSG, "is past 32 bits");
		return 0;
	case PROTOBUF_C_TYPE_BOOL:
		if (wire->value > 1) /* C2 */
			return refuse(check, descriptor, field, -EBADMSG, "is neither 0 nor 1");
		return 0;
	case PROTOBUF_C_TYPE_STRING:
		if (kvr_wire_text(wire->bytes) != wire->bytes.bytes) /* C3 */
			return refuse(check, descriptor, field, -EBADMSG,
				"is not UTF-8 text without control characters");
		return 0;
	case PROTOBUF_C_TYPE_MESSAGE:
		if (check->envelope != NULL)
			return 0; /* checked when it is unpacked, against its own descriptor */
		return check_message(check, field->descriptor, wire->bytes);
	default: return 0;
	}
}

/* One occurrence of a list: an element, or the packed run of token ids. */
static int check_list(struct check *check, const ProtobufCMessageDescriptor *descriptor,
	const ProtobufCFieldDescriptor *field, const struct kvr_wire_field *wire, uint32_t *count)
{
	uint32_t max = list_max(field);
	bool packed = field->type == PROTOBUF_C_TYPE_FIXED32;
	size_t more = packed ? wire->bytes.bytes / sizeof(uint32_t) : 1;

	if (wire->type != KVR_WIRE_BYTES) /* all lists, packed or of messages */
		return refuse(check, descriptor, field, -EBADMSG, "has another type"); /* C4 */
	if (packed && wire->bytes.bytes % sizeof(uint32_t) != 0)
		return refuse(check, descriptor, field, -EBADMSG, "ends inside an element");
	if (packed && *count > 0)
		return refuse(check, descriptor, field, -EBADMSG, "stands twice"); /* C1 */
	if (more > max || *count + more > max)                                     /* C5 */
		return kvr_message_refuse(check->arena, -E2BIG, "%s.%s has more than %u elements",
			descriptor->short_name, field->name, max);
	*count += more > 0 ? (uint32_t)more : 1; /* an empty run has stood, too */
	return packed ? 0 : check_message(check, field->descriptor, wire->bytes);
}

static int check_message(
	struct check *check, const ProtobufCMessageDescriptor *descriptor, struct kvr_span from)
{
	const ProtobufCFieldDescriptor *field;
	struct kvr_wire_field wire;
	uint32_t seen = 0, hint = 0;
	uint32_t count = 0; /* of list elements: no message has two lists */
	int more, error = 0;

	KVR_ASSERT(descriptor->n_fields <= KVR_MESSAGE_FIELDS_MAX);
	KVR_ASSERT(check->depth < DEPTH_MAX);
	check->depth++;
	while (error == 0 && (more = kvr_wire_next(&from, &wire)) != 0) {
		if (more < 0) {
			error = kvr_message_refuse(check->arena, -EBADMSG,
				"%s is cut off or no message", descriptor->short_name);
			break;
		}
		field = find(descriptor, wire.number, &hint);
		if (field == NULL) {
			if (++check->unknown_count > KVR_MESSAGE_UNKNOWN_MAX) /* C5 */
				error = kvr_message_refuse(check->arena, -E2BIG,
					"%s has more than %u unknown fields",
					descriptor->short_name, KVR_MESSAGE_UNKNOWN_MAX);
		} else if (field->label == PROTOBUF_C_LABEL_REPEATED) {
			error = check_list(check, descriptor, field, &wire, &count);
		} else if (seen >> hint & 1) { /* C1 */
			error = refuse(check, descriptor, field, -EBADMSG, "stands twice");
		} else {
			seen |= 1u << hint;
			error = check_field(check, descriptor, field, &wire);
			if (error == 0 && check->envelope != NULL)
				check->envelope[field->id] = wire;
		}
	}
	check->depth--;
	return error;
}

static int check_whole(
	struct check *check, const ProtobufCMessageDescriptor *descriptor, struct kvr_span from)
{
	if (from.bytes > KVR_MESSAGE_BYTES_MAX)
		return kvr_message_refuse(check->arena, -E2BIG, "%s has more than %u bytes",
			descriptor->short_name, KVR_MESSAGE_BYTES_MAX);
	return check_message(check, descriptor, from);
}

int kvr_message_check(struct kvr_message_arena *arena, const ProtobufCMessageDescriptor *descriptor,
	struct kvr_span from)
{
	struct check check = {.arena = arena};

	return check_whole(&check, descriptor, from);
}

int kvr_message_envelope(struct kvr_message_arena *arena,
	const ProtobufCMessageDescriptor *descriptor, struct kvr_span from,
	struct kvr_wire_field *ret_fields)
{
	struct check check = {.arena = arena, .envelope = ret_fields};

	KVR_ASSERT(descriptor->n_fields > 0);
	KVR_ASSERT(descriptor->fields[descriptor->n_fields - 1].id < KVR_MESSAGE_FIELDS_MAX);
	return check_whole(&check, descriptor, from);
}

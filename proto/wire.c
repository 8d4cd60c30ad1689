/* SPDX-License-Identifier: Apache-2.0 */
/* wire.c: see wire.h. Every read is preceded by a comparison with the end of the span. */
#include "proto/wire.h"

#include <errno.h>

#include "base/assert.h"

#define VARINT_BYTES_MAX 10u
#define NUMBER_MAX       ((1u << 29) - 1)

/* Takes a varint from *at, which is before `end`. Bits past the 64th are dropped, as every protobuf
 * reader does. */
static inline bool take_varint(const uint8_t **at, const uint8_t *end, uint64_t *ret_value)
{
	const uint8_t *byte = *at;
	uint64_t value = 0;

	if (byte < end && *byte < 0x80) { /* most are this short */
		*ret_value = *byte;
		*at = byte + 1;
		return true;
	}
	for (uint32_t i = 0; i < VARINT_BYTES_MAX && byte < end; i++, byte++) {
		value |= (uint64_t)(*byte & 0x7f) << (7 * i);
		if (*byte < 0x80) {
			*ret_value = value;
			*at = byte + 1;
			return true;
		}
	}
	return false;
}

int kvr_wire_next(struct kvr_span *from, struct kvr_wire_field *ret_field)
{
	const uint8_t *at = from->data, *end, *start;
	uint64_t tag, value = 0, bytes;

	if (from->bytes == 0)
		return 0;
	end = from->data + from->bytes;
	if (!take_varint(&at, end, &tag) || tag >> 3 == 0 || tag >> 3 > NUMBER_MAX)
		return -EBADMSG;
	start = at;
	switch (tag & 7) {
	case KVR_WIRE_VARINT:
		if (!take_varint(&at, end, &value))
			return -EBADMSG;
		bytes = (uint64_t)(at - start);
		break;
	case KVR_WIRE_BYTES:
		if (!take_varint(&at, end, &bytes))
			return -EBADMSG;
		start = at;
		break;
	case KVR_WIRE_FIXED64: bytes = 8; break;
	case KVR_WIRE_FIXED32: bytes = 4; break;
	default: return -EBADMSG; /* groups are history */
	}
	KVR_ASSERT(start <= end);
	if (bytes > (size_t)(end - start))
		return -EBADMSG;
	ret_field->number = (uint32_t)(tag >> 3);
	ret_field->type = (enum kvr_wire_type)(tag & 7);
	ret_field->value = value;
	ret_field->bytes = (struct kvr_span){(uint8_t *)start, (size_t)bytes};
	from->data = (uint8_t *)start + bytes;
	from->bytes = (size_t)(end - from->data);
	return 1;
}

/* Bytes of the character at `at`, of which `left` are there; 0 if it may not stand in text. */
static size_t character_bytes(const uint8_t *at, size_t left)
{
	uint32_t code, bytes;

	if (at[0] < 0x80)
		return at[0] >= 0x20 && at[0] != 0x7f ? 1 : 0;
	bytes = at[0] >= 0xf0 ? 4 : at[0] >= 0xe0 ? 3 : 2;
	if (at[0] < 0xc2 || at[0] > 0xf4 || bytes > left)
		return 0;
	code = at[0] & (0x7fu >> bytes);
	for (uint32_t i = 1; i < bytes; i++) {
		if ((at[i] & 0xc0) != 0x80)
			return 0;
		code = code << 6 | (at[i] & 0x3f);
	}
	if (code < 0xa0) /* C1 controls: terminals obey them */
		return 0;
	if (bytes == 3 && (code < 0x800 || (code >= 0xd800 && code <= 0xdfff)))
		return 0; /* overlong, or half of a surrogate pair */
	if (bytes == 4 && (code < 0x10000 || code > 0x10ffff))
		return 0;
	return bytes;
}

size_t kvr_wire_text(struct kvr_span text)
{
	size_t done = 0;

	while (done < text.bytes) {
		size_t bytes = character_bytes(text.data + done, text.bytes - done);

		if (bytes == 0)
			break;
		done += bytes;
	}
	KVR_ASSERT(done <= text.bytes);
	return done;
}

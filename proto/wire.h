/* SPDX-License-Identifier: Apache-2.0 */
/* wire.h: the protobuf encoding, field by field, as far as we read it ourselves.
 *
 * Only what must be known before protobuf-c may look at a message: where its fields are, and whether
 * text is text. It allocates nothing and knows no message. Private to proto/.
 *
 *   message = field*      field = varint (number << 3 | type), then by type:
 *
 *   TYPE  WHAT FOLLOWS
 *      0  varint: 7 bits per byte, lowest first, 1 to 10 bytes, the last one below 0x80
 *      1  8 bytes, little-endian
 *      2  varint n, then n bytes
 *      5  4 bytes, little-endian
 *
 * Threads: pure functions. Source: protobuf.dev, "Encoding". */
#ifndef KVR_PROTO_WIRE_H
#define KVR_PROTO_WIRE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/span.h"

enum kvr_wire_type {
	KVR_WIRE_VARINT = 0,
	KVR_WIRE_FIXED64 = 1,
	KVR_WIRE_BYTES = 2,
	KVR_WIRE_FIXED32 = 5,
};

struct kvr_wire_field {
	uint32_t number; /* 1 to 2^29 - 1 */
	enum kvr_wire_type type;
	uint64_t value;        /* of a varint; else 0 */
	struct kvr_span bytes; /* of type BYTES: its content; else the encoded value */
};

/* Takes the next field off `from`. Returns 1, 0 at the end, or -EBADMSG where no field is. */
int kvr_wire_next(struct kvr_span *from, struct kvr_wire_field *ret_field);

/* How many leading bytes are text that may be logged and shown: valid UTF-8 without control
 * characters (C0, DEL, C1). Cuts only between characters. */
size_t kvr_wire_text(struct kvr_span text);

#endif

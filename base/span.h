/* SPDX-License-Identifier: Apache-2.0 */
/* span.h: a borrowed run of bytes. Buffers travel as spans, never as bare pointer and length. */
#ifndef KVR_BASE_SPAN_H
#define KVR_BASE_SPAN_H

#include <stddef.h>
#include <stdint.h>

struct kvr_span {
	uint8_t *data;
	size_t bytes;
};

/* The part [offset, offset + bytes) of a span, or an empty span with data NULL where it does not
 * lie inside. Safe for any offset and length, also from outside. */
static inline struct kvr_span kvr_span_part(struct kvr_span span, uint64_t offset, uint64_t bytes)
{
	if (offset > span.bytes || bytes > span.bytes - offset)
		return (struct kvr_span){NULL, 0};
	return (struct kvr_span){span.data + offset, (size_t)bytes};
}

#endif

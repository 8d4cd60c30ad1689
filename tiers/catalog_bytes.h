/* SPDX-License-Identifier: Apache-2.0 */
/* catalog_bytes.h: numbers as bytes, and the checksum of a row: what the catalog_record files
 * share.
 *
 * Nothing else includes it. Lengths and ranges are the callers' business.
 *
 * Threads: none of its own. */
#ifndef KVR_TIERS_CATALOG_BYTES_H
#define KVR_TIERS_CATALOG_BYTES_H

#include <string.h>

#include "base/assert.h"
#include "kernels/crc.h"
#include "tiers/catalog_record.h"

#define KVR_CATALOG_CRC_BYTES 4u

static inline void kvr_put_little(uint8_t *to, uint64_t value, uint32_t bytes)
{
	for (uint32_t i = 0; i < bytes; i++)
		to[i] = (uint8_t)(value >> (8 * i));
}

static inline void kvr_put_big(uint8_t *to, uint64_t value, uint32_t bytes)
{
	for (uint32_t i = 0; i < bytes; i++)
		to[i] = (uint8_t)(value >> (8 * (bytes - 1 - i)));
}

static inline uint64_t kvr_get_big(const uint8_t *from, uint32_t bytes)
{
	uint64_t value = 0;

	for (uint32_t i = 0; i < bytes; i++)
		value = value << 8 | from[i];
	return value;
}

static inline uint64_t kvr_get64(const uint8_t *from)
{
	uint64_t value = 0;

	for (uint32_t i = 8; i-- > 0;)
		value = value << 8 | from[i];
	return value;
}

static inline uint32_t kvr_get32(const uint8_t *from)
{
	return (uint32_t)from[0] | (uint32_t)from[1] << 8 | (uint32_t)from[2] << 16 |
	       (uint32_t)from[3] << 24;
}

static inline uint32_t kvr_get16(const uint8_t *from)
{
	return (uint32_t)from[0] | (uint32_t)from[1] << 8;
}

static inline uint32_t kvr_row_crc(enum kvr_catalog_table table, const uint8_t *key,
	size_t key_bytes, const uint8_t *value, size_t value_bytes)
{
	uint8_t head[1 + KVR_CATALOG_KEY_MAX + KVR_CATALOG_VALUE_MAX];
	size_t bytes = 1 + key_bytes;

	head[0] = (uint8_t)table;
	memcpy(head + 1, key, key_bytes);
	/* Small rows in one go: the call costs more than the bytes. */
	if (value_bytes > KVR_CATALOG_VALUE_MAX)
		return kvr_crc32c(kvr_crc32c(0, head, bytes), value, value_bytes);
	if (value_bytes > 0)
		memcpy(head + bytes, value, value_bytes);
	return kvr_crc32c(0, head, bytes + value_bytes);
}

static inline void kvr_row_seal(enum kvr_catalog_table table, const uint8_t *key, size_t key_bytes,
	uint8_t *value, size_t value_bytes)
{
	kvr_put_little(value + value_bytes, kvr_row_crc(table, key, key_bytes, value, value_bytes),
		KVR_CATALOG_CRC_BYTES);
}

/* Whether a row is as it was written, with `value_bytes` in front of the checksum. */
static inline bool kvr_row_sealed(enum kvr_catalog_table table, struct kvr_span key,
	size_t key_bytes, struct kvr_span value, size_t value_bytes)
{
	if (key.bytes != key_bytes || key_bytes > KVR_CATALOG_KEY_MAX)
		return false;
	if (value.bytes != value_bytes + KVR_CATALOG_CRC_BYTES)
		return false;
	return kvr_get32(value.data + value_bytes) ==
	       kvr_row_crc(table, key.data, key_bytes, value.data, value_bytes);
}

#endif

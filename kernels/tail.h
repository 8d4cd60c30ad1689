/* SPDX-License-Identifier: Apache-2.0 */
/* tail.h: the memory of a sequence's newest tokens, as the kernels see it.
 *
 * A tail is an array of blocks of KVR_BLOCK_TOKENS tokens, all lanes. Inside a block
 *
 *   keys   [lane][KVR_BLOCK_TOKENS][Dk]     then     values [lane][KVR_BLOCK_TOKENS][Dv]
 *
 * so that the rows of a lane are contiguous inside a block. Blocks are 64-byte aligned. This file
 * only addresses them; daemon/sequence.c owns them. */
#ifndef KVR_KERNELS_TAIL_H
#define KVR_KERNELS_TAIL_H

#include "base/assert.h"
#include "base/geometry.h"

struct kvr_tail_view {
	const struct kvr_geometry *geometry;
	uint8_t *const *blocks;
	uint32_t block_count;
};

static inline size_t kvr_tail_block_bytes(const struct kvr_geometry *geometry)
{
	return KVR_BLOCK_TOKENS * kvr_geometry_token_bytes(geometry);
}

/* The key row of `token` (an index into the tail) of a lane; rows of the same block follow it. */
static inline uint8_t *kvr_tail_key(const struct kvr_tail_view *tail, uint32_t lane, uint32_t token)
{
	size_t row = (size_t)lane * KVR_BLOCK_TOKENS + token % KVR_BLOCK_TOKENS;

	KVR_ASSERT(token / KVR_BLOCK_TOKENS < tail->block_count);
	return tail->blocks[token / KVR_BLOCK_TOKENS] +
	       row * kvr_geometry_key_bytes(tail->geometry);
}

static inline uint8_t *kvr_tail_value(
	const struct kvr_tail_view *tail, uint32_t lane, uint32_t token)
{
	size_t row = (size_t)lane * KVR_BLOCK_TOKENS + token % KVR_BLOCK_TOKENS;
	size_t keys = (size_t)kvr_geometry_lanes(tail->geometry) * KVR_BLOCK_TOKENS *
		      kvr_geometry_key_bytes(tail->geometry);

	KVR_ASSERT(token / KVR_BLOCK_TOKENS < tail->block_count);
	return tail->blocks[token / KVR_BLOCK_TOKENS] + keys +
	       row * kvr_geometry_value_bytes(tail->geometry);
}

#endif

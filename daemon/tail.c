/* SPDX-License-Identifier: Apache-2.0 */
/* tail.c: blocks come, fill, move up and go. Does not know who fills them. */
#include "daemon/tail.h"

#include <errno.h>
#include <string.h>

#include "base/assert.h"
#include "daemon/daemon.h"

size_t kvr_sequence_block_bytes(const struct kvr_sequence *sequence)
{
	return kvr_tail_block_bytes(&sequence->model->geometry) +
	       KVR_BLOCK_TOKENS * sizeof(uint32_t);
}

uint32_t *kvr_sequence_token(const struct kvr_sequence *sequence, uint32_t index)
{
	uint8_t *block = sequence->blocks[index / KVR_BLOCK_TOKENS];
	uint32_t *tokens =
		(uint32_t *)(void *)(block + kvr_tail_block_bytes(&sequence->model->geometry));

	KVR_ASSERT(index / KVR_BLOCK_TOKENS < sequence->block_count);
	return &tokens[index % KVR_BLOCK_TOKENS];
}

int kvr_sequence_grow(struct kvr_sequence *sequence, uint32_t tokens)
{
	const uint32_t blocks = (tokens + KVR_BLOCK_TOKENS - 1) / KVR_BLOCK_TOKENS;
	const uint32_t before = sequence->block_count;
	int rc = 0;

	KVR_ASSERT(blocks <= KVR_TAIL_BLOCKS_MAX);
	while (sequence->block_count < blocks) {
		uint8_t *block = kvr_directory_alloc(&sequence->daemon->directory,
			sequence->model->tenant, kvr_sequence_block_bytes(sequence), &rc);

		if (!block) {
			kvr_tail_shrink(sequence, before * KVR_BLOCK_TOKENS);
			return rc;
		}
		sequence->blocks[sequence->block_count++] = block;
	}
	return 0;
}

void kvr_tail_shrink(struct kvr_sequence *sequence, uint32_t tokens)
{
	const uint32_t blocks = (tokens + KVR_BLOCK_TOKENS - 1) / KVR_BLOCK_TOKENS;

	while (sequence->block_count > blocks) {
		uint8_t **block = &sequence->blocks[--sequence->block_count];

		kvr_directory_free(&sequence->daemon->directory, sequence->model->tenant, *block,
			kvr_sequence_block_bytes(sequence));
		*block = NULL;
	}
}

/* Whole blocks: only pointers move. */
static void drop_blocks(struct kvr_sequence *sequence, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++)
		kvr_directory_free(&sequence->daemon->directory, sequence->model->tenant,
			sequence->blocks[i], kvr_sequence_block_bytes(sequence));
	sequence->block_count -= count;
	memmove(sequence->blocks, sequence->blocks + count,
		sequence->block_count * sizeof(*sequence->blocks));
	memset(sequence->blocks + sequence->block_count, 0, count * sizeof(*sequence->blocks));
}

/* Part of a block: rows move, a few of them: a short segment is sealed at the end of a turn. */
static void move_rows(struct kvr_sequence *sequence, uint32_t count)
{
	const struct kvr_geometry *geometry = &sequence->model->geometry;
	const size_t key_bytes = kvr_geometry_key_bytes(geometry);
	const size_t value_bytes = kvr_geometry_value_bytes(geometry);

	for (uint32_t lane = 0; lane < kvr_geometry_lanes(geometry); lane++) {
		const uint32_t fill = sequence->fill[lane / geometry->kv_heads];

		for (uint32_t row = count; row < fill; row++) {
			memcpy(kvr_tail_key(&sequence->tail, lane, row - count),
				kvr_tail_key(&sequence->tail, lane, row), key_bytes);
			memcpy(kvr_tail_value(&sequence->tail, lane, row - count),
				kvr_tail_value(&sequence->tail, lane, row), value_bytes);
		}
	}
	for (uint32_t i = count; i < sequence->known; i++)
		*kvr_sequence_token(sequence, i - count) = *kvr_sequence_token(sequence, i);
}

void kvr_tail_advance(struct kvr_sequence *sequence, uint32_t count)
{
	const uint32_t layers = sequence->model->geometry.layer_count;

	KVR_ASSERT(sequence->readers == 0); /* Q3 */
	KVR_ASSERT(!sequence->appending);
	KVR_ASSERT(count <= kvr_sequence_whole(sequence)); /* Q4 */
	KVR_ASSERT(count <= sequence->known);              /* Q2 */
	if (count % KVR_BLOCK_TOKENS == 0)
		drop_blocks(sequence, count / KVR_BLOCK_TOKENS);
	else
		move_rows(sequence, count);
	for (uint32_t layer = 0; layer < layers; layer++) {
		KVR_ASSERT(sequence->fill[layer] >= count);
		sequence->fill[layer] -= count;
	}
	sequence->known -= count;
	kvr_tail_shrink(sequence, sequence->known);
}

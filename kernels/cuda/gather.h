/* SPDX-License-Identifier: Apache-2.0 */
/* gather.h: rows of chosen clusters to the outputs of a recall, all lanes of a batch in one launch.
 *
 * It does not choose (kernels/choose.c), and writes neither weights nor positions. */
#ifndef KVR_KERNELS_CUDA_GATHER_H
#define KVR_KERNELS_CUDA_GATHER_H

#include <stdint.h>

#include "base/limits.h"
#include "kernels/cuda/stream.h"

#define KVR_CUDA_GATHER_PIECES_MAX (1u << 24) /* of a launch: a grid of one dimension holds them */

/* The first rows of a unit: K [rows][Dk] and V [rows][Dv], any alignment, and where they go. */
struct kvr_cuda_piece {
	const uint8_t *keys; /* NULL: a gap; nothing is written */
	const uint8_t *values;
	uint8_t *to_keys; /* out [rows][Dk], any alignment */
	uint8_t *to_values;
	uint32_t rows; /* 0 to rows_max of the launch */
};

struct kvr_cuda_gather {
	const struct kvr_cuda_piece *pieces; /* [piece_count] */
	uint32_t piece_count;                /* 1 to KVR_CUDA_GATHER_PIECES_MAX */
	uint32_t rows_max;                   /* of a piece, 1 to KVR_SEGMENT_TOKENS_MAX */
	uint32_t key_bytes;                  /* of a row, 1 to KVR_DIM_MAX * 4 */
	uint32_t value_bytes;
};

/* Copies every piece. Outputs overlap neither each other nor what is read. Errors: stream.h.
 * Cost: each byte is read and written once, 16 at a time where source and target lie alike towards 16 bytes,
 * else 4, 2 or 1. */
KVR_CUDA_API int kvr_cuda_gather(const struct kvr_cuda_gather *gather, struct CUstream_st *stream);

#endif

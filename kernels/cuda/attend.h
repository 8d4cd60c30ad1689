/* SPDX-License-Identifier: Apache-2.0 */
/* attend.h: exact attention over rows with log weights, all items of a batch in one launch.
 *
 * kernels/device.h, ATTEND. It does not choose rows. */
#ifndef KVR_KERNELS_CUDA_ATTEND_H
#define KVR_KERNELS_CUDA_ATTEND_H

#include <stddef.h>
#include <stdint.h>

#include "base/geometry.h"
#include "kernels/cuda/stream.h"

#define KVR_CUDA_ATTEND_ITEMS_MAX  65535u /* of a launch: a grid's second dimension */
#define KVR_CUDA_ATTEND_SPLITS_MAX 64u

/* The rows of one lane against its queries. Rows may lie anywhere that is aligned to their elements; where they and their
 * strides are multiples of 16 bytes they are read 16 bytes at a time. */
struct kvr_cuda_attend_item {
	const void *query;     /* [query_count][Dk] of query_dtype, aligned to it */
	const uint8_t *keys;   /* [row_count][Dk] of dtype */
	const uint8_t *values; /* [row_count][Dv] */
	size_t key_stride;     /* bytes from row to row */
	size_t value_stride;
	const float *weights; /* [row_count] log weights, finite or -INFINITY; NULL for 0 */
	uint32_t row_count;   /* 0: out is 0, and lse -INFINITY */
	float *out;           /* out [query_count][Dv] */
	float *lse;           /* out [query_count] */
};

struct kvr_cuda_attend {
	const struct kvr_cuda_attend_item *items; /* [item_count] */
	uint32_t item_count;                      /* 1 to KVR_CUDA_ATTEND_ITEMS_MAX */
	uint32_t query_count;                     /* of each item, 1 to KVR_GROUP_MAX */
	uint32_t key_dim, value_dim;              /* Dk, Dv, KVR_DIM_MIN to KVR_DIM_MAX */
	enum kvr_dtype dtype, query_dtype;
	float scale; /* of the logits; finite */
	uint32_t
		split_count; /* blocks among which the rows of an item are split, 1 to KVR_CUDA_ATTEND_SPLITS_MAX */
	float *work;       /* kvr_cuda_attend_work_bytes, any content */
	uint32_t *arrived; /* work [item_count][query_count], 0 before the launch and after it */
};

/* Bytes of `work` for launches of these sizes. */
static inline size_t kvr_cuda_attend_work_bytes(
	uint32_t item_count, uint32_t query_count, uint32_t value_dim, uint32_t split_count)
{
	return (size_t)item_count * query_count * split_count * ((size_t)value_dim + 2) *
	       sizeof(float);
}

/* Attends. The same input and split_count give the same bits. Errors: stream.h.
 * Cost: rows are read once for every 4 queries (2, with dims beyond 128), then from cache. Choose split_count so that items * splits
 * fill the device twice; a split of fewer than 64 rows costs more than it gives. */
KVR_CUDA_API int kvr_cuda_attend(const struct kvr_cuda_attend *attend, struct CUstream_st *stream);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* score.h: the clusters of a lane scored against its queries, all lanes of a batch in one launch.
 *
 * The same numbers as on the CPU (kernels/recall.h; kernels/device.h, RECALL): means of 8 bits, or 16, and
 * queries of 15 make dots that are exact before the last product with the step; so dots and steps are those of the CPU bit
 * for bit, and the shares agree within the rounding of exp. It does not choose. */
#ifndef KVR_KERNELS_CUDA_SCORE_H
#define KVR_KERNELS_CUDA_SCORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/geometry.h"
#include "kernels/cuda/stream.h"

#define KVR_CUDA_SCORE_SEGMENTS  4u     /* a block's */
#define KVR_CUDA_SCORE_LANES_MAX 65535u /* of a launch: a grid's second dimension */

/* One lane of one segment: arrays of its summary (kernels/segment.h) in device memory. */
struct kvr_cuda_score_segment {
	const int8_t *key_high; /* [clusters][Dk], 16-byte aligned where Dk is a multiple of 16 */
	const int8_t *key_low;  /* likewise; read only with `both` */
	const float *key_step;  /* [clusters] */
	const uint16_t *row_first; /* [clusters + 1] */
	uint32_t clusters;         /* 0 to KVR_CLUSTERS_MAX */
	uint32_t first;            /* clusters of the lane in the segments before it */
	bool both;                 /* planes (S7), or the rank is INNER_PRODUCT */
};

struct kvr_cuda_score_lane {
	const struct kvr_cuda_score_segment *segments; /* [segment_count] */
	uint32_t segment_count;                        /* 0 to segments_max of the launch */
	uint32_t clusters;                             /* of all segments */
	const void *query;                             /* [G][Dk] of query_dtype, aligned to it */
	float *dots;  /* out [G][clusters], as kvr_recall_ops.dots */
	float *steps; /* out [G] of the queries in fixed point; NaN: not finite, scored as zeros */
	float *density; /* out [clusters] share per row, mean over the G queries; 0 of those not finite */
};

struct kvr_cuda_score {
	const struct kvr_cuda_score_lane *lanes; /* [lane_count] */
	uint32_t lane_count;                     /* 1 to KVR_CUDA_SCORE_LANES_MAX */
	uint32_t segments_max;                   /* of a lane, 1 to KVR_SEQUENCE_SEGMENTS_MAX */
	uint32_t query_count;                    /* G, 1 to KVR_GROUP_MAX */
	uint32_t key_dim;                        /* Dk, KVR_DIM_MIN to KVR_DIM_MAX */
	enum kvr_dtype query_dtype;
	float scale;       /* of the logits; finite */
	float *work;       /* kvr_cuda_score_work_bytes, any content */
	uint32_t *arrived; /* work [lane_count], 0 before the launch and after it */
};

/* Bytes of `work` for launches of these sizes. */
static inline size_t kvr_cuda_score_work_bytes(
	uint32_t lane_count, uint32_t segments_max, uint32_t query_count)
{
	const size_t blocks =
		(segments_max + KVR_CUDA_SCORE_SEGMENTS - 1) / KVR_CUDA_SCORE_SEGMENTS;

	return lane_count * blocks * query_count * 2 * sizeof(float);
}

/* Scores. The same input gives the same bits, whatever else the device does. Errors: stream.h.
 * Cost: per lane the means once for every 16 queries, with all blocks of the device; then its dots once more, by one block: the
 * last of the lane, which knows every maximum and sum. */
KVR_CUDA_API int kvr_cuda_score(const struct kvr_cuda_score *score, struct CUstream_st *stream);

#endif

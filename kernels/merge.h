/* SPDX-License-Identifier: Apache-2.0 */
/* merge.h: the seam between chunked soft matching (kernels/merge.c) and its inner loops, one set per
 * instruction set. Internal to kernels/, its tests and benches.
 *
 * merge.c owns the algorithm: passes, chunks, which edges are kept, the order of the rows. The best
 * match of a row inside a chunk is an assignment as k-means makes it, to the rows B instead of
 * centroids, so its loops are those of kmeans.h, the tiles included. Here is what k-means has not:
 * weighted means, and rows of any dtype.
 *
 * Threads: a run belongs to the thread that made it. */
#ifndef KVR_KERNELS_MERGE_H
#define KVR_KERNELS_MERGE_H

#include "kernels/kmeans.h"

#define KVR_MERGE_CHUNK 256u /* rows that are matched with each other */

struct kvr_merge_ops {
	/* to = the running mean of the rows members[i], i below `count`, which is 1 or more, in that
	 * order: weights[i] is the share that member i has of the first i + 1; weights[0] is 1. Finite; of equal rows
	 * of 16-bit elements it is that row, to the bit. Zeros from the rows' dim up to their stride.
	 * `to` is 64-byte aligned. */
	void (*mean)(float *to, const struct kvr_kmeans_rows *rows, const uint16_t *members,
		const float *weights, size_t count);
	/* `count` floats, not beyond the largest element of the dtype, as elements of it, rounded
	 * to nearest, ties to even; `to` of any alignment. */
	void (*narrow)(uint8_t *to, const float *from, enum kvr_dtype dtype, size_t count);
};

extern const struct kvr_merge_ops kvr_merge_plain;
extern const struct kvr_merge_ops kvr_merge_avx2;
extern const struct kvr_merge_ops kvr_merge_avx512;

/* What kvr_cpu_merge does, with given loops. */
void kvr_merge_lane(const struct kvr_cluster_item *item, const struct kvr_merge_ops *ops,
	const struct kvr_kmeans_ops *match, struct kvr_span scratch);

#endif

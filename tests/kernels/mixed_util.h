/* SPDX-License-Identifier: Apache-2.0 */
/* mixed_util.h: what a MIXED recall estimates, held against plain arithmetic in double, written from the
 * words of kernels/device.h. Of the tests on chains and on worlds. */
#ifndef KVR_TESTS_KERNELS_MIXED_UTIL_H
#define KVR_TESTS_KERNELS_MIXED_UTIL_H

#include "tests/kernels/oracle_util.h"

#define MIXED_CLUSTERS_MAX 8192u

/* fold_out and fold_lse of an item that has run. left[c]: rows of cluster c, counted over the
 * segments, that were neither staged nor given as a centroid's row. */
void mixed_check_fold(const struct kvr_recall_item *item, const uint32_t *left);

/* The rows of centroids, the last of the item: which clusters they are, in what order, and every
 * element, position and weight. score[c]: the order of choosing, larger first, true within `slack`. Takes
 * their rows off `left`. */
void mixed_check_centroids(
	const struct kvr_recall_item *item, uint32_t *left, const double *score, double slack);

/* A hash of all that a fold writes. */
uint64_t mixed_hash(const struct kvr_recall_item *item);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* stage.h: the last part of recall: what was chosen becomes rows of the reply. Internal to recall.c and
 * stage.c.
 *
 *   sinks ─► units, in memory order ─► tail ─► centroids         each begins at `row` and moves it on
 *
 * Invariants:
 *   R4  Rows staged never exceed row_capacity. */
#ifndef KVR_KERNELS_STAGE_H
#define KVR_KERNELS_STAGE_H

#include "kernels/move.h"

/* A cluster or merged set that is taken, by the place of its rows. */
struct kvr_taken {
	uint32_t segment;
	uint16_t unit; /* kernels/segment.h */
	uint16_t rows; /* the first so many */
};

struct kvr_stage {
	struct kvr_recall_item *item;
	const struct kvr_move_ops *move;
	uint32_t row;             /* of the output: where the next one goes */
	struct kvr_run coming[2]; /* keys and values of a unit that is staged soon */
};

/* How many heads have weights of their own. */
static inline uint32_t kvr_stage_weight_heads(const struct kvr_recall_item *item)
{
	return item->form == KVR_FORM_MIXED && item->centroid_max > 0 ? item->query_count : 1;
}

/* Stages the sinks: at the start of the first segments, until one has none. */
void kvr_stage_sinks(struct kvr_stage *stage);

/* Stages `count` units, which are in memory order. density[c]: share per token of the lane's cluster c,
 * counted over the segments; NULL: nothing was scored. Returns how many rows were staged; ret_mass is the sum of
 * their shares, 0 where nothing was scored. */
uint32_t kvr_stage_taken(struct kvr_stage *stage, const struct kvr_taken *taken, uint32_t count,
	const float *density, double *ret_mass);

void kvr_stage_tail(struct kvr_stage *stage);

/* Stages a cluster's centroid as a row. Its weights are the caller's. */
void kvr_stage_centroid(
	struct kvr_stage *stage, const struct kvr_segment_view *segment, uint32_t cluster);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* score.h: the first part of recall: the clusters of one lane, how many rows each has and what share of
 * attention. Internal to recall.c and score.c; the inner loops stand in recall_<isa>.c.
 *
 *   count ─► measure ─► run: per pass of 16 heads prepare, dots, spread ─► density, key
 *
 * Invariants:
 *   R3  A head whose query is not finite adds nothing to any density. */
#ifndef KVR_KERNELS_SCORE_H
#define KVR_KERNELS_SCORE_H

#include "kernels/recall.h"

/* Clusters of a sequence: what full segments have, and one more per segment for rounding up. */
#define KVR_SCORE_CLUSTERS_MAX (KVR_SEQUENCE_CLUSTERS_MAX + KVR_SEQUENCE_SEGMENTS_MAX)

struct kvr_score {
	const struct kvr_recall_item *item;
	const struct kvr_recall_ops *ops;
	bool keep;                     /* the last pass's dots are wanted afterwards */
	uint32_t clusters;             /* of all segments */
	uint32_t padded;               /* the same, a multiple of KVR_RECALL_PAD */
	uint32_t rows;                 /* of these clusters */
	size_t stride;                 /* elements from one head's dots to the next's */
	float steps[KVR_RECALL_HEADS]; /* of the queries of the last pass; NaN: not finite */
	/* In scratch; R1. */
	uint8_t *block; /* as the instruction set wants them */
	float *tokens;  /* [padded] rows per cluster, 0 behind the last */
	float *density; /* [padded] share per row */
	uint32_t *key;  /* [padded] order: larger first */
	float *dots; /* [KVR_RECALL_HEADS][stride] of the last pass; without `keep`, work memory */
	float *work; /* [stride] free after `run`, if `keep` */
};

/* How many clusters the item's lane has in all segments. */
uint32_t kvr_score_count(const struct kvr_recall_item *item);

/* Lays the arrays out for `clusters` clusters, as tightly as they go, so that few pages are touched
 * and arrays do not meet in the same cache sets. Returns the bytes needed; data NULL only adds up. */
size_t kvr_score_bind(struct kvr_score *score, uint32_t clusters, uint8_t *data);

/* Sets tokens and rows. */
void kvr_score_measure(struct kvr_score *score);

/* Sets dots and steps of the query heads first .. first + heads - 1. After the last pass the caller calls
 * ops->release, where there is one. */
void kvr_score_pass(struct kvr_score *score, uint32_t first, uint32_t heads);

/* All passes: sets densities and keys. */
void kvr_score_run(struct kvr_score *score);

/* The heads of the pass that begins at `first`. */
static inline uint32_t kvr_score_heads(const struct kvr_recall_item *item, uint32_t first)
{
	const uint32_t left = item->query_count - first;

	return left < KVR_RECALL_HEADS ? left : KVR_RECALL_HEADS;
}

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* check_recall_util.h: what the checks of RECALL share: its outputs between canaries, and what the oracle
 * knows of the clusters. Of check_recall_util.c, check_chosen_util.c and check_mixed_util.c. */
#ifndef KVR_TESTS_KERNELS_CHECK_RECALL_UTIL_H
#define KVR_TESTS_KERNELS_CHECK_RECALL_UTIL_H

#include "tests/kernels/check_util.h"

#define CHECK_CLUSTERS_MAX (ORACLE_SEGMENTS_MAX * 256 / KVR_CLUSTER_TOKENS_MIN)

/* The clusters of a chain in memory order, without those of the sinks. */
struct check_scores {
	uint32_t count;
	uint32_t rows;                      /* of all */
	uint32_t size[CHECK_CLUSTERS_MAX];  /* n_c */
	uint32_t taken[CHECK_CLUSTERS_MAX]; /* rows staged */
	double score[CHECK_CLUSTERS_MAX];   /* the rank, larger first */
	double density[CHECK_CLUSTERS_MAX]; /* share per token */
	double magnitude;                   /* the largest logit or score */
};

struct check_outputs {
	struct oracle_guard keys, values, weights, positions;
};

/* Room for exactly what can be staged, unaligned, full of canaries; the item points there. */
void check_outputs_open(struct oracle_world *world, struct kvr_recall_item *item,
	struct check_outputs *ret_outputs);
void check_outputs_close(struct check_outputs *outputs); /* checks the canaries around */

/* The recall `whole`, whose rows are right, again with a list of what it takes, and with extents at
 * random in memory, below or lost: the list is true, gaps are left alone, and FILL makes of them what
 * `whole` has. */
void check_chosen(struct oracle_world *world, struct kvr_device *device,
	const struct kvr_recall_item *whole, const struct check_scores *scores,
	const struct check_tolerance *tolerance);

/* The recall `whole`, whose rows are right, again in the form MIXED. */
void check_mixed(struct oracle_world *world, struct kvr_device *device,
	const struct kvr_recall_item *whole, const struct check_scores *scores,
	const struct check_tolerance *tolerance);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* check_merge_util.h: lanes whose every row is known, merged by whoever is under test, and the
 * merged sets held against device.h's words in double.
 *
 * Nothing is asked of the merger but what MERGE promises. Which tokens a row stands for is found out by merging
 * the same keys again with other values: an indicator of each token in turn is not zero in the one
 * row that the token went to. */
#ifndef KVR_TESTS_KERNELS_CHECK_MERGE_UTIL_H
#define KVR_TESTS_KERNELS_CHECK_MERGE_UTIL_H

#include "tests/kernels/oracle_util.h"

#define CHECK_MERGE_LANES 3u

struct check_merge {
	struct oracle_random random;
	struct kvr_geometry geometry;
	struct kvr_tail_view tail;
	struct kvr_segment_view view;
	struct oracle_guard *block;
	uint8_t **block_data;
	struct oracle_guard summary;
	struct oracle_guard rows;                          /* all merged sets of all lanes */
	uint16_t *map[CHECK_MERGE_LANES][KVR_MERGED_SETS]; /* [token behind the sinks] its row */
};

/* Merges all items; `owner` is the merger's own. */
typedef void check_merge_run(void *owner, struct kvr_cluster_item *items, uint32_t count);

/* Lanes of a random shape, with so many tokens behind as many sinks as the shape has; rows zero. */
void check_merge_open(struct check_merge *merge, uint64_t seed, uint32_t tokens);
/* The same with a shape: one layer; kv_heads lanes. */
void check_merge_open_as(struct check_merge *merge, uint64_t seed,
	const struct kvr_geometry *geometry, uint32_t tokens);
void check_merge_close(struct check_merge *merge); /* checks all canaries */

/* A token's rows, in the tail; `token` counts from behind the sinks. */
uint8_t *check_merge_key(const struct check_merge *merge, uint32_t lane, uint32_t token);
uint8_t *check_merge_value(const struct check_merge *merge, uint32_t lane, uint32_t token);

/* Fills keys with some directions, a drift, large channels, repetitions and zeros, and values. */
void check_merge_fill(struct check_merge *merge);

/* Merges and checks all: canaries, dense lanes, equal bits when merged again, S9, that each set is
 * made of the one before it by a pass as device.h says, up to the rounding of cosines, and its means.
 * Leaves `map`. */
void check_merge_hold(struct check_merge *merge, check_merge_run *run, void *owner);

#endif

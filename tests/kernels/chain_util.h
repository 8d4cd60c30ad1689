/* SPDX-License-Identifier: Apache-2.0 */
/* chain_util.h: a chain of segments built by hand, and one recall on it.
 *
 * Random permutations (S1 to S4), random means, every extent an allocation of its own, so that a
 * sanitizer sees a byte too many. What recall staged is read back as rows per cluster. */
#ifndef KVR_TESTS_KERNELS_CHAIN_UTIL_H
#define KVR_TESTS_KERNELS_CHAIN_UTIL_H

#include "tests/kernels/oracle_util.h"

#define CHAIN_SEGMENTS_MAX 24u
#define CHAIN_CLUSTERS_MAX 8192u
#define CHAIN_LANE         1u /* the lane recalled, of two: offsets of lanes matter */

struct chain {
	struct kvr_geometry geometry;
	uint32_t count;
	uint32_t clusters; /* of CHAIN_LANE, without the sinks' */
	uint32_t rows;     /* of these */
	struct kvr_segment_view view[CHAIN_SEGMENTS_MAX];
	const struct kvr_segment_view *segments[CHAIN_SEGMENTS_MAX];
	uint8_t *memory[CHAIN_SEGMENTS_MAX];
	uint8_t *tail_block[1];
	struct kvr_tail_view tail;
};

/* One item, its guarded outputs and queries. */
struct trial {
	struct kvr_recall_item item;
	struct oracle_guard query, keys, values, weights, positions;
};

/* The device of the tests that CHAIN_ON_ALL lists: each runs on every instruction set. The seed is that of the trial in
 * hand, 0 after the last, and printed where a test failed. */
extern struct kvr_device *chain_device;
extern uint64_t chain_seed;
extern const enum kvr_isa chain_isas[3];
int chain_device_open(void **state); /* *state: an enum kvr_isa */
int chain_device_close(void **state);

#define CHAIN_ON(name, i)                                                  \
	{                                                                  \
#name "/" #i, name, chain_device_open, chain_device_close, \
			(void *)(uintptr_t)&chain_isas[i]                  \
	}
#define CHAIN_ON_ALL(name) CHAIN_ON(name, 0), CHAIN_ON(name, 1), CHAIN_ON(name, 2)

/* Skips the test where there is no device. `sinks` as in the geometry; the dtype and Dv are random. No segment yet, and no merged sets: before the
 * first segment the test may name them. */
void chain_open(struct chain *chain, struct oracle_random *random, uint32_t dim,
	uint32_t cluster_tokens, uint32_t sinks);
void chain_add(struct chain *chain, struct oracle_random *random, uint32_t tokens);
void chain_close(struct chain *chain);

/* An item with outputs of exactly the size needed, between canaries, and a query of garbage. */
void trial_open(struct trial *trial, struct chain *chain, uint32_t heads, uint32_t budget,
	uint32_t tail_count, bool sinks);
void trial_set_query(struct trial *trial, uint32_t i, double value);
void trial_close(struct trial *trial); /* checks the canaries */
void trial_run(struct trial *trial, struct kvr_device *device);

/* Checks every row of the reply, in its order: sinks, clusters in memory order, tail. Sets taken[c]
 * to the rows of each cluster. */
void trial_check_rows(const struct trial *trial, uint32_t *taken);
/* The oracle: density[c] in double, as kernels/device.h defines it, and size[c]. */
void trial_densities(const struct trial *trial, double *density, uint32_t *size);

#endif

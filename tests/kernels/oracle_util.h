/* SPDX-License-Identifier: Apache-2.0 */
/* oracle_util.h: what the tests of kernels/ share: a seeded generator, guarded buffers, elements as
 * double, and a world: a small sequence whose every row is known, built by the device under test.
 *
 * Nothing here uses a function of kernels/ to compute what a kernel computes. */
#ifndef KVR_TESTS_KERNELS_ORACLE_UTIL_H
#define KVR_TESTS_KERNELS_ORACLE_UTIL_H

#include "base/span.h"
#include "kernels/device.h"

/* ---- chance ---------------------------------------------------------------------------------- */

struct oracle_random {
	uint64_t state;
};

struct oracle_random oracle_random(uint64_t seed);
uint32_t oracle_pick(struct oracle_random *random, uint32_t low, uint32_t high); /* inclusive */
double oracle_gauss(struct oracle_random *random);

/* ---- elements, decoded from their bits ------------------------------------------------------- */

double oracle_get(const uint8_t *row, enum kvr_dtype dtype, size_t i);
void oracle_put(uint8_t *row, enum kvr_dtype dtype, size_t i, double value); /* rounds to zero */
double oracle_bf16(uint16_t bits);

/* ---- guarded buffers: canaries on both sides ------------------------------------------------- */

struct oracle_guard {
	uint8_t *memory;
	uint8_t *data; /* `shift` bytes behind a 64-byte boundary */
	size_t bytes;
};

void oracle_guard_open(struct oracle_guard *guard, size_t bytes, size_t shift);
void oracle_guard_check(const struct oracle_guard *guard); /* fails the test on a dead canary */
void oracle_guard_close(struct oracle_guard *guard);       /* checks once more */

/* ---- devices --------------------------------------------------------------------------------- */

/* Opens a CPU device, or skips the test where this processor lacks the instruction set. */
struct kvr_device *oracle_device(enum kvr_isa isa, uint32_t threads, uint32_t inline_item_us);

/* Skips the test where this processor lacks the instruction set, or the tiles that it asks for. */
void oracle_need_loops(enum kvr_isa isa, bool tiles);

/* Submits one job, waits for it and returns its status. */
int oracle_run(struct kvr_device *device, enum kvr_job_kind kind, void *items, uint32_t count);

/* ---- a world --------------------------------------------------------------------------------- */

#define ORACLE_SEGMENTS_MAX 4u

struct oracle_world {
	uint64_t seed;
	struct oracle_random random;
	uint64_t digest; /* of what MIXED recalls have estimated, in their order */
	struct kvr_geometry geometry;
	uint32_t token_count;
	uint8_t *keys;   /* [token][lane][Dk], the truth */
	uint8_t *values; /* [token][lane][Dv] */
	uint32_t segment_count;
	struct kvr_segment_view view[ORACLE_SEGMENTS_MAX];
	const struct kvr_segment_view *chain[ORACLE_SEGMENTS_MAX];
	struct oracle_guard summary[ORACLE_SEGMENTS_MAX];
	struct oracle_guard rows[ORACLE_SEGMENTS_MAX]; /* all extents of a segment */
	uint32_t tail_first;
	uint32_t tail_count;
	struct kvr_tail_view tail;
	struct oracle_guard *block;
	uint8_t **block_data;
};

/* Random shape and rows; nothing given to a device yet. */
void oracle_world_open(struct oracle_world *world, uint64_t seed);
void oracle_world_close(struct oracle_world *world); /* checks all canaries */

/* APPEND of the tokens first .. first + count - 1 to the tail's tokens 0 and on. */
void oracle_world_append(
	struct oracle_world *world, struct kvr_device *device, uint32_t first, uint32_t count);
/* The next segment: append, CLUSTER, places for its rows, PACK. */
void oracle_world_seal(struct oracle_world *world, struct kvr_device *device, uint32_t tokens);
/* Every segment and the tail. */
void oracle_world_build(struct oracle_world *world, struct kvr_device *device);

/* Element i of a cluster's mean key, from one plane or both. */
double oracle_mean(const struct kvr_segment_view *view, uint32_t lane, uint32_t cluster, uint32_t i,
	uint32_t planes);
/* The same with the planes that a recall of this rank scores with. */
double oracle_scored_mean(const struct kvr_segment_view *view, uint32_t lane, uint32_t cluster,
	uint32_t i, enum kvr_rank rank);
/* Writes a mean key [Dk] in fixed point, both planes. */
void oracle_put_mean(
	const struct kvr_segment_view *view, uint32_t lane, uint32_t cluster, const double *mean);

const uint8_t *oracle_key(const struct oracle_world *world, uint32_t lane, uint32_t token);
const uint8_t *oracle_value(const struct oracle_world *world, uint32_t lane, uint32_t token);

/* Fails the test unless S1 to S4 hold, means and spreads are those of the rows named (within rounding to
 * bf16) and what lies behind the last cluster is zero. Returns the mean cosine of a key and the
 * mean of its cluster. Key means may be off by half a step. `first` is the token of the sequence that is the segment's token 0. */
double oracle_check_lane(const struct oracle_world *world, const struct kvr_segment_view *view,
	uint32_t lane, uint32_t first);

#endif

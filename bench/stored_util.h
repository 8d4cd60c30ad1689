/* SPDX-License-Identifier: Apache-2.0 */
/* stored_util.h: where a sequence lies in a store's slabs.kvr, read from the slabs themselves.
 *
 * So that a reference can read the very bytes that a recall or a fetch has read. A part of a segment is named as the
 * daemon names it: number of the segment in the sequence, then offset in its stream (tiers/slab.h).
 *
 * Threads: the caller's. */
#ifndef KVR_BENCH_STORED_H
#define KVR_BENCH_STORED_H

#include <stdint.h>

#include "bench/disk_util.h"
#include "tiers/plan.h"

struct bench_stored;

/* Finds the sequence that bench_fill has made with this seed: `tokens` in whole segments of KVR's default. No daemon
 * writes to the store meanwhile. */
struct bench_stored *bench_stored_open(const char *dir, uint32_t tokens, uint32_t seed);
struct bench_stored *bench_stored_close(struct bench_stored *stored);

/* slabs.kvr of a store: what bench_disk_open takes. */
void bench_stored_path(const char *dir, char ret_path[96]);

/* The clusters of the lane that the rows at these positions come from, by number of segment and cluster. Returns how many;
 * ret_pieces has room for as many as there are rows. */
uint32_t bench_stored_pieces(const struct bench_stored *stored, uint32_t lane,
	const int32_t *positions, uint32_t rows, struct kvr_plan_piece *ret_pieces);

/* The same clusters, if those of each lane of each segment lay in an order drawn by `seed`. */
uint32_t bench_stored_shuffled(const struct bench_stored *stored, uint32_t lane,
	const int32_t *positions, uint32_t rows, uint32_t seed, struct kvr_plan_piece *ret_pieces);

/* All rows of some lanes of a segment, as one piece. */
struct kvr_plan_piece bench_stored_lanes(
	const struct bench_stored *stored, uint32_t segment, uint32_t lane_first, uint32_t lanes);

uint32_t bench_stored_segments(const struct bench_stored *stored);

/* A part of a stream as extents of the file: one, or more where it crosses slabs, each of at most max_bytes (0: no bound).
 * Returns how many; at most `max`. */
uint32_t bench_stored_extents(const struct bench_stored *stored, uint64_t offset, uint32_t bytes,
	uint32_t max_bytes, struct bench_extent *ret_extents, uint32_t max);

#endif

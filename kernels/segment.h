/* SPDX-License-Identifier: Apache-2.0 */
/* segment.h: a sealed segment as the kernels see it: its summary, and where its rows lie.
 *
 * The tokens of a segment are, per lane, permuted into cluster order. The sinks that fall into it
 * (only a segment at the start of a sequence has any) form one extra cluster behind the last, which
 * has no centroid and is never scored. Behind the clusters a lane has its merged sets, one for each
 * bit of geometry->merged: rows that stand for several tokens each (kernels/device.h, MERGE), none in a
 * dense lane. Clusters, sinks and merged sets are the units of a lane: what is placed, stored and read
 * as a whole. A unit's payload is its K rows, then its V rows:
 *
 *   extent[lane][unit] -> K [n][Dk], V [n][Dv]               n = kvr_segment_unit_rows
 *     unit 0 .. cluster_count - 1                 the clusters
 *          cluster_count                          the sinks; 0 rows where there are none
 *          .. cluster_max                         nothing, 0 rows
 *          cluster_max + 1 .. unit_count - 1      the merged sets, in the order of their bits
 *
 * Summary, one allocation, arrays in this order, each 64-byte aligned (kvr_segment_bind):
 *
 *   key_high      i8     [lane][cluster_max][Dk]        mean of the raw (post-RoPE) keys, in fixed
 *   key_low       i8     [lane][cluster_max][Dk]          point: key_step * (256 key_high + key_low)
 *   key_spread    u8     [lane][cluster_max][Dk]        variance of the keys: spread_step * key_spread
 *   value_mean    bf16   [lane][cluster_max][Dv]
 *   key_step      f32    [lane][cluster_max]
 *   spread_step   f32    [lane][cluster_max]
 *   row_first     u16    [lane][cluster_max + 2]        first row of a cluster, in cluster order
 *   row_token     u16    [lane][token_count]            token of a row, from the segment's start
 *   merged_tokens u16    [lane][merged_max]             tokens that a row of a merged set stands for
 *   cluster_count u16    [lane]                         without the sinks' cluster
 *   key_planes    u16    [lane]                         which planes recall scores with; see S7
 *
 * That is what is stored and read back as it is. Beside it, never stored:
 *
 *   extent        void * [lane][unit_count]             what of it a kernel can address; see S5
 *
 * Invariants, true from sealing until the segment is freed:
 *   S1  row_first[0] == 0; it never falls; row_first[cluster_count + 1] == token_count, and so is all behind.
 *   S2  row_token of a lane is a permutation of 0 .. token_count - 1, ascending inside a cluster.
 *   S3  the sinks' cluster holds the tokens 0 .. sink_count - 1; every other one has 1 row or more.
 *   S4  in a dense lane, row_token is the identity after the sinks.
 *   S5  an extent is the place of all rows of its unit; or NULL: they are not in host memory, and may
 *       be read from below; or KVR_EXTENT_LOST: they could not be read or were not what was written,
 *       and are not staged again.
 *   S6  what an extent has pointed to stays as it is until every job is reaped that was submitted
 *       while it did.
 *   S7  key_planes is 1 where the high plane alone tells the lane's clusters apart: what it leaves out is
 *       at most a sixteenth of the distance of the means from their mean (root mean square). Else it
 *       is 2: large channels that all clusters share leave too few bits for the others.
 *   S8  up to 63 bytes behind the planes, spreads and value means are readable: another array follows.
 *   S9  the merged_tokens of a set are 1 or more each, and sum to the tokens that are no sinks; 0 in a
 *       dense lane.
 *
 * Threads: written by device workers while it is being sealed, immutable afterwards, except for
 * `extent`. That is a map of host memory, which the core thread changes at any time, also while
 * recalls and fetches run: kvr_segment_set_extent. A kernel reads an extent once for each use, with
 * kvr_segment_get_extent, and works with what it got (S6). */
#ifndef KVR_KERNELS_SEGMENT_H
#define KVR_KERNELS_SEGMENT_H

#include "base/assert.h"
#include "base/geometry.h"
#include "base/span.h"

#define KVR_EXTENT_LOST ((uint8_t *)1) /* S5; no place is at this address */

struct kvr_segment_view {
	const struct kvr_geometry *geometry; /* borrowed; outlives the view */
	uint32_t token_first;                /* position of its first token in the sequence */
	uint32_t token_count;                /* 1 to S */
	uint32_t sink_count;                 /* of these, at its start */
	uint32_t cluster_max;                /* per lane, from kvr_segment_cluster_max */
	uint32_t unit_count;                 /* per lane */
	uint32_t merged_max;                 /* rows of all merged sets of a lane */
	uint8_t *memory; /* the summary: the arrays below, but for the extents */
	int8_t *key_high;
	int8_t *key_low;
	uint8_t *key_spread;
	uint16_t *value_mean;
	float *key_step;
	float *spread_step;
	uint8_t **extent;
	uint16_t *row_first;
	uint16_t *row_token;
	uint16_t *merged_tokens;
	uint16_t *cluster_count;
	uint16_t *key_planes;
};

/* How many of the segment's tokens are sinks. */
static inline uint32_t kvr_segment_sinks(
	const struct kvr_geometry *geometry, uint32_t token_first, uint32_t token_count)
{
	uint32_t left =
		token_first < geometry->sink_tokens ? geometry->sink_tokens - token_first : 0;

	return left < token_count ? left : token_count;
}

/* Clusters per lane for so many tokens without sinks: one per cluster_tokens, rounded up. */
static inline uint32_t kvr_segment_cluster_max(
	const struct kvr_geometry *geometry, uint32_t clustered_tokens)
{
	return (clustered_tokens + geometry->cluster_tokens - 1) / geometry->cluster_tokens;
}

/* Rows of merged set `set` (0 to KVR_MERGED_SETS - 1) for so many tokens without sinks, rounded up. */
static inline uint32_t kvr_segment_merged_rows(uint32_t set, uint32_t clustered_tokens)
{
	return (clustered_tokens + kvr_merged_divisors[set] - 1) / kvr_merged_divisors[set];
}

/* Fills in the shape (everything but the pointers). */
static inline void kvr_segment_shape(struct kvr_segment_view *view,
	const struct kvr_geometry *geometry, uint32_t token_first, uint32_t token_count)
{
	KVR_ASSERT(token_count >= 1);
	KVR_ASSERT(token_count <= geometry->segment_tokens);
	*view = (struct kvr_segment_view){
		.geometry = geometry,
		.token_first = token_first,
		.token_count = token_count,
		.sink_count = kvr_segment_sinks(geometry, token_first, token_count),
	};
	view->cluster_max = kvr_segment_cluster_max(geometry, token_count - view->sink_count);
	view->unit_count = view->cluster_max + 1;
	for (uint32_t set = 0; set < KVR_MERGED_SETS; set++) {
		if (!(geometry->merged >> set & 1))
			continue;
		view->unit_count++;
		view->merged_max += kvr_segment_merged_rows(set, token_count - view->sink_count);
	}
}

#define KVR_SEGMENT_ARRAYS 11u /* of the summary */

/* Points the arrays of the summary into `memory` (NULL: only adds up) and returns the bytes that they
 * need, a multiple of 64. `memory` is 64-byte aligned. */
static inline size_t kvr_segment_bind(struct kvr_segment_view *view, uint8_t *memory)
{
	const size_t lanes = kvr_geometry_lanes(view->geometry);
	const size_t clusters = view->cluster_max;
	const size_t bytes[KVR_SEGMENT_ARRAYS] = {
		lanes * clusters * view->geometry->key_dim,
		lanes * clusters * view->geometry->key_dim,
		lanes * clusters * view->geometry->key_dim,
		lanes * clusters * view->geometry->value_dim * sizeof(uint16_t), /* S8 */
		lanes * clusters * sizeof(float),
		lanes * clusters * sizeof(float),
		lanes * (clusters + 2) * sizeof(uint16_t),
		lanes * view->token_count * sizeof(uint16_t),
		lanes * view->merged_max * sizeof(uint16_t),
		lanes * sizeof(uint16_t),
		lanes * sizeof(uint16_t),
	};
	size_t at[KVR_SEGMENT_ARRAYS + 1] = {0};

	for (uint32_t i = 0; i < KVR_SEGMENT_ARRAYS; i++)
		at[i + 1] = at[i] + ((bytes[i] + 63) & ~(size_t)63);
	if (memory) {
		view->memory = memory;
		view->key_high = (int8_t *)(memory + at[0]);
		view->key_low = (int8_t *)(memory + at[1]);
		view->key_spread = memory + at[2];
		view->value_mean = (uint16_t *)(void *)(memory + at[3]);
		view->key_step = (float *)(void *)(memory + at[4]);
		view->spread_step = (float *)(void *)(memory + at[5]);
		view->row_first = (uint16_t *)(void *)(memory + at[6]);
		view->row_token = (uint16_t *)(void *)(memory + at[7]);
		view->merged_tokens = (uint16_t *)(void *)(memory + at[8]);
		view->cluster_count = (uint16_t *)(void *)(memory + at[9]);
		view->key_planes = (uint16_t *)(void *)(memory + at[10]);
	}
	return at[KVR_SEGMENT_ARRAYS];
}

/* How many extents there are, in all lanes. */
static inline size_t kvr_segment_extent_count(const struct kvr_segment_view *view)
{
	return (size_t)kvr_geometry_lanes(view->geometry) * view->unit_count;
}

/* The summary and, behind it, the extents, in one piece of memory: as kvr_segment_bind. */
static inline size_t kvr_segment_bind_all(struct kvr_segment_view *view, uint8_t *memory)
{
	const size_t summary = kvr_segment_bind(view, memory);

	if (memory)
		view->extent = (uint8_t **)(void *)(memory + summary);
	return (summary + kvr_segment_extent_count(view) * sizeof(uint8_t *) + 63) & ~(size_t)63;
}

/* The arrays of one lane. */
static inline int8_t *kvr_segment_key_high(const struct kvr_segment_view *view, uint32_t lane)
{
	return view->key_high + (size_t)lane * view->cluster_max * view->geometry->key_dim;
}

static inline int8_t *kvr_segment_key_low(const struct kvr_segment_view *view, uint32_t lane)
{
	return view->key_low + (size_t)lane * view->cluster_max * view->geometry->key_dim;
}

static inline uint8_t *kvr_segment_key_spread(const struct kvr_segment_view *view, uint32_t lane)
{
	return view->key_spread + (size_t)lane * view->cluster_max * view->geometry->key_dim;
}

static inline float *kvr_segment_spread_step(const struct kvr_segment_view *view, uint32_t lane)
{
	return view->spread_step + (size_t)lane * view->cluster_max;
}

static inline float *kvr_segment_key_step(const struct kvr_segment_view *view, uint32_t lane)
{
	return view->key_step + (size_t)lane * view->cluster_max;
}

static inline uint16_t *kvr_segment_value_mean(const struct kvr_segment_view *view, uint32_t lane)
{
	return view->value_mean + (size_t)lane * view->cluster_max * view->geometry->value_dim;
}

static inline uint8_t **kvr_segment_extent(const struct kvr_segment_view *view, uint32_t lane)
{
	return view->extent + (size_t)lane * view->unit_count;
}

static inline uint16_t *kvr_segment_row_first(const struct kvr_segment_view *view, uint32_t lane)
{
	return view->row_first + (size_t)lane * (view->cluster_max + 2);
}

static inline uint16_t *kvr_segment_row_token(const struct kvr_segment_view *view, uint32_t lane)
{
	return view->row_token + (size_t)lane * view->token_count;
}

/* The unit of a merged set that the geometry has; and its rows' merged_tokens. */
static inline uint32_t kvr_segment_merged_unit(
	const struct kvr_segment_view *view, uint32_t lane, uint32_t set, uint16_t **ret_tokens)
{
	const uint32_t clustered = view->token_count - view->sink_count;
	uint32_t unit = view->cluster_max + 1;

	KVR_ASSERT(view->geometry->merged >> set & 1);
	*ret_tokens = view->merged_tokens + (size_t)lane * view->merged_max;
	for (uint32_t before = 0; before < set; before++) {
		if (!(view->geometry->merged >> before & 1))
			continue;
		unit++;
		*ret_tokens += kvr_segment_merged_rows(before, clustered);
	}
	return unit;
}

/* How many rows a unit has, 0 to token_count: nothing is stored of one without rows. */
static inline uint32_t kvr_segment_unit_rows(
	const struct kvr_segment_view *view, uint32_t lane, uint32_t unit)
{
	const uint16_t *first = kvr_segment_row_first(view, lane);
	uint32_t left;

	KVR_ASSERT(unit < view->unit_count);
	if (unit <= view->cluster_max)
		return (uint32_t)first[unit + 1] - first[unit];
	if (kvr_geometry_is_dense(view->geometry, lane))
		return 0;
	left = unit - view->cluster_max;
	for (uint32_t set = 0; set < KVR_MERGED_SETS; set++)
		if ((view->geometry->merged >> set & 1) && --left == 0)
			return kvr_segment_merged_rows(set, view->token_count - view->sink_count);
	KVR_ASSERT(false);
	return 0;
}

/* Acquire: whoever sees a place sees its rows. Pairs with kvr_segment_set_extent. */
static inline uint8_t *kvr_segment_get_extent(
	const struct kvr_segment_view *view, uint32_t lane, uint32_t unit)
{
	return __atomic_load_n(kvr_segment_extent(view, lane) + unit, __ATOMIC_ACQUIRE);
}

static inline void kvr_segment_set_extent(
	const struct kvr_segment_view *view, uint32_t lane, uint32_t unit, uint8_t *extent)
{
	__atomic_store_n(kvr_segment_extent(view, lane) + unit, extent, __ATOMIC_RELEASE);
}

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* segment.h: a sealed segment as the kernels see it: its summary, and where its rows lie.
 *
 * The tokens of a segment are, per lane, permuted into cluster order. The sinks that fall into it
 * (only a segment at the start of a sequence has any) form one extra cluster behind the last, which
 * has no centroid and is never scored. A cluster's payload is its K rows, then its V rows:
 *
 *   extent[lane][cluster] -> K [n][Dk], V [n][Dv]      n = row_first[cluster + 1] - row_first[cluster]
 *
 * Summary, one allocation, arrays in this order, each 64-byte aligned (kvr_segment_bind):
 *
 *   key_mean      bf16   [lane][cluster_max][Dk]        mean of the raw (post-RoPE) keys
 *   value_mean    bf16   [lane][cluster_max][Dv]
 *   extent        void * [lane][cluster_max + 1]        NULL: not in memory that a kernel can address
 *   row_first     u16    [lane][cluster_max + 2]        first row of a cluster, in cluster order
 *   row_token     u16    [lane][token_count]            token of a row, from the segment's start
 *   cluster_count u16    [lane]                         without the sinks' cluster
 *
 * Invariants, true from sealing until the segment is freed:
 *   S1  row_first[0] == 0; it never falls; row_first[cluster_count + 1] == token_count.
 *   S2  row_token of a lane is a permutation of 0 .. token_count - 1, ascending inside a cluster.
 *   S3  the sinks' cluster holds the tokens 0 .. sink_count - 1; every other one has 1 row or more.
 *   S4  in a dense lane, row_token is the identity after the sinks.
 *
 * Threads: written by device workers while it is being sealed, immutable afterwards, except for
 * `extent`, which the core thread changes only while no recall or fetch uses the segment. */
#ifndef KVR_KERNELS_SEGMENT_H
#define KVR_KERNELS_SEGMENT_H

#include "base/assert.h"
#include "base/geometry.h"
#include "base/span.h"

struct kvr_segment_view {
	const struct kvr_geometry *geometry; /* borrowed; outlives the view */
	uint32_t token_first;                /* position of its first token in the sequence */
	uint32_t token_count;                /* 1 to S */
	uint32_t sink_count;                 /* of these, at its start */
	uint32_t cluster_max;                /* per lane, from kvr_segment_cluster_max */
	uint16_t *key_mean;
	uint16_t *value_mean;
	uint8_t **extent;
	uint16_t *row_first;
	uint16_t *row_token;
	uint16_t *cluster_count;
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
}

/* Points the arrays of a shaped view into `memory` (NULL: only adds up) and returns the bytes that
 * the summary needs. `memory` is 64-byte aligned. */
static inline size_t kvr_segment_bind(struct kvr_segment_view *view, uint8_t *memory)
{
	const size_t lanes = kvr_geometry_lanes(view->geometry);
	const size_t clusters = view->cluster_max;
	const size_t bytes[6] = {
		lanes * clusters * view->geometry->key_dim * sizeof(uint16_t),
		lanes * clusters * view->geometry->value_dim * sizeof(uint16_t),
		lanes * (clusters + 1) * sizeof(uint8_t *),
		lanes * (clusters + 2) * sizeof(uint16_t),
		lanes * view->token_count * sizeof(uint16_t),
		lanes * sizeof(uint16_t),
	};
	size_t at[7] = {0};

	for (int i = 0; i < 6; i++)
		at[i + 1] = at[i] + ((bytes[i] + 63) & ~(size_t)63);
	if (memory) {
		view->key_mean = (uint16_t *)(void *)(memory + at[0]);
		view->value_mean = (uint16_t *)(void *)(memory + at[1]);
		view->extent = (uint8_t **)(void *)(memory + at[2]);
		view->row_first = (uint16_t *)(void *)(memory + at[3]);
		view->row_token = (uint16_t *)(void *)(memory + at[4]);
		view->cluster_count = (uint16_t *)(void *)(memory + at[5]);
	}
	return at[6];
}

/* The arrays of one lane. */
static inline uint16_t *kvr_segment_key_mean(const struct kvr_segment_view *view, uint32_t lane)
{
	return view->key_mean + (size_t)lane * view->cluster_max * view->geometry->key_dim;
}

static inline uint16_t *kvr_segment_value_mean(const struct kvr_segment_view *view, uint32_t lane)
{
	return view->value_mean + (size_t)lane * view->cluster_max * view->geometry->value_dim;
}

static inline uint8_t **kvr_segment_extent(const struct kvr_segment_view *view, uint32_t lane)
{
	return view->extent + (size_t)lane * (view->cluster_max + 1);
}

static inline uint16_t *kvr_segment_row_first(const struct kvr_segment_view *view, uint32_t lane)
{
	return view->row_first + (size_t)lane * (view->cluster_max + 2);
}

static inline uint16_t *kvr_segment_row_token(const struct kvr_segment_view *view, uint32_t lane)
{
	return view->row_token + (size_t)lane * view->token_count;
}

#endif

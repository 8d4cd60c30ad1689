/* SPDX-License-Identifier: Apache-2.0 */
/* geometry.h: the shape of a model's keys and values, and how they are clustered.
 *
 * Axes, used in every header of the project:
 *   L layers, H query heads, K kv heads, G = H / K query heads that share a kv head,
 *   T tokens, C clusters, R rows, Dk key dim, Dv value dim.
 * A lane is one (layer, kv head): lane = layer * K + kv head. */
#ifndef KVR_BASE_GEOMETRY_H
#define KVR_BASE_GEOMETRY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/limits.h"

/* Values are on the wire: never renumber. */
enum kvr_dtype {
	KVR_DTYPE_F32 = 1,
	KVR_DTYPE_F16 = 2,
	KVR_DTYPE_BF16 = 3,
};

/* In what order clusters are taken (kernels/device.h). On the wire: never renumber. */
enum kvr_rank {
	KVR_RANK_SHARE = 1,
	KVR_RANK_INNER_PRODUCT = 2,
};

/* What a recall gives. On the wire: never renumber. */
enum kvr_form {
	KVR_FORM_CLUSTERS = 1, /* exact rows of the clusters chosen */
	KVR_FORM_MERGED = 2,   /* the merged set, whatever the query */
	KVR_FORM_MIXED = 3,    /* exact rows, and an estimate of the clusters not chosen */
};

/* Merged sets that a model may keep of its segments: one row for so many tokens. Set i is bit i of
 * kvr_geometry.merged: never renumber. */
#define KVR_MERGED_SETS 4u
static const uint8_t kvr_merged_divisors[KVR_MERGED_SETS] = {2, 4, 5, 8};

struct kvr_geometry {
	uint32_t layer_count;    /* L, 1 to KVR_LAYERS_MAX */
	uint32_t query_heads;    /* H, a multiple of kv_heads */
	uint32_t kv_heads;       /* K */
	uint32_t key_dim;        /* Dk, KVR_DIM_MIN to KVR_DIM_MAX */
	uint32_t value_dim;      /* Dv, likewise */
	enum kvr_dtype dtype;    /* of keys and values */
	uint32_t segment_tokens; /* S, a multiple of KVR_BLOCK_TOKENS */
	uint32_t cluster_tokens; /* mean tokens per cluster */
	uint32_t sink_tokens;    /* first tokens of a sequence kept exact, 0 to KVR_BLOCK_TOKENS */
	uint32_t merged;         /* which merged sets are kept: bits, see kvr_merged_divisors */
	/* Dense lanes (bit = lane) are stored in token order, recalled whole and never merged. */
	uint64_t dense[KVR_LANES_MAX / 64];
};

static inline size_t kvr_dtype_bytes(enum kvr_dtype dtype)
{
	return dtype == KVR_DTYPE_F32 ? 4 : 2;
}

static inline uint32_t kvr_geometry_lanes(const struct kvr_geometry *geometry)
{
	return geometry->layer_count * geometry->kv_heads;
}

static inline uint32_t kvr_geometry_group(const struct kvr_geometry *geometry)
{
	return geometry->query_heads / geometry->kv_heads;
}

static inline size_t kvr_geometry_key_bytes(const struct kvr_geometry *geometry)
{
	return geometry->key_dim * kvr_dtype_bytes(geometry->dtype);
}

static inline size_t kvr_geometry_value_bytes(const struct kvr_geometry *geometry)
{
	return geometry->value_dim * kvr_dtype_bytes(geometry->dtype);
}

/* Bytes of one token in all lanes. */
static inline size_t kvr_geometry_token_bytes(const struct kvr_geometry *geometry)
{
	return kvr_geometry_lanes(geometry) *
	       (kvr_geometry_key_bytes(geometry) + kvr_geometry_value_bytes(geometry));
}

static inline bool kvr_geometry_is_dense(const struct kvr_geometry *geometry, uint32_t lane)
{
	return (geometry->dense[lane / 64] >> (lane % 64)) & 1;
}

/* Whether a geometry, which may come from outside, is one that the project serves. */
static inline bool kvr_geometry_valid(const struct kvr_geometry *g)
{
	return g->layer_count >= 1 && g->layer_count <= KVR_LAYERS_MAX && g->kv_heads >= 1 &&
	       g->kv_heads <= KVR_KV_HEADS_MAX && g->query_heads >= g->kv_heads &&
	       g->query_heads <= KVR_QUERY_HEADS_MAX && g->query_heads % g->kv_heads == 0 &&
	       g->query_heads / g->kv_heads <= KVR_GROUP_MAX &&
	       g->layer_count * g->kv_heads <= KVR_LANES_MAX && g->key_dim >= KVR_DIM_MIN &&
	       g->key_dim <= KVR_DIM_MAX && g->value_dim >= KVR_DIM_MIN &&
	       g->value_dim <= KVR_DIM_MAX && g->dtype >= KVR_DTYPE_F32 &&
	       g->dtype <= KVR_DTYPE_BF16 && g->segment_tokens >= KVR_SEGMENT_TOKENS_MIN &&
	       g->segment_tokens <= KVR_SEGMENT_TOKENS_MAX &&
	       g->segment_tokens % KVR_BLOCK_TOKENS == 0 &&
	       g->cluster_tokens >= KVR_CLUSTER_TOKENS_MIN &&
	       g->cluster_tokens <= KVR_CLUSTER_TOKENS_MAX &&
	       g->cluster_tokens <= g->segment_tokens && g->sink_tokens <= KVR_BLOCK_TOKENS &&
	       g->merged < 1u << KVR_MERGED_SETS;
}

#endif

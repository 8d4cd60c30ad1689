/* SPDX-License-Identifier: Apache-2.0 */
/* cache.h: where an engine keeps keys and values: one table, two implementations.
 *
 *   full     everything in this process's memory; attention over all of it. The reference.
 *   recall   sinks and the newest tokens here, the rest in a source (source.h: kvrecalld); attention
 *            over what is here and what the source recalls for the query.
 *
 *          begin                attend, once per layer                end
 *   idle ─────────► tokens t .. ───────────────────────► attended ─────────► idle
 *
 * Axes: L layers, H query heads, K kv heads, D head dim. Keys and values are bf16, after RoPE.
 *
 * Threads: a cache belongs to one thread. */
#ifndef TINYLM_CACHE_H
#define TINYLM_CACHE_H

#include <stdbool.h>
#include <stdint.h>

#include "examples/tinylm/math.h"
#include "examples/tinylm/model.h"
#include "examples/tinylm/source.h"

struct tinylm_cache {
	const struct tinylm_cache_ops *ops;
};

/* A pass of consecutive tokens through all layers. */
struct tinylm_pass {
	const uint32_t *tokens; /* [count] ids */
	uint32_t first;         /* position of the first: the cache's next, if not held */
	uint32_t count;
	bool held; /* the cache has keys and values of these tokens already: only ask. count is 1 */
};

struct tinylm_layer_pass {
	const struct tinylm_pass *pass;
	uint32_t layer;
	const float *queries;   /* [count][H][D] after RoPE, unscaled */
	const uint16_t *keys;   /* [count][K][D]; not read if held */
	const uint16_t *values; /* [count][K][D] */
	float *out;             /* [count][H][D] */
};

struct tinylm_cache_ops {
	/* Errors of all three: -ENOBUFS (more tokens than the cache was opened for), the source's. */
	int (*begin)(struct tinylm_cache *cache, const struct tinylm_pass *pass);
	/* Keeps keys and values, attends each token over itself and what lies before it. */
	int (*attend)(struct tinylm_cache *cache, const struct tinylm_layer_pass *layer);
	int (*end)(struct tinylm_cache *cache, const struct tinylm_pass *pass);
	struct tinylm_cache *(*close)(struct tinylm_cache *cache);
};

/* Takes NULL. Returns NULL. */
static inline struct tinylm_cache *tinylm_cache_close(struct tinylm_cache *cache)
{
	return cache ? cache->ops->close(cache) : NULL;
}

/* ---- full ------------------------------------------------------------------------------------ */

/* Room for `capacity` tokens, passes of up to `batch`. Keeps model and math. Error: -ENOMEM. */
int tinylm_full_open(const struct tinylm_model *model, const struct tinylm_math *math,
	uint32_t capacity, uint32_t batch, struct tinylm_cache **ret_cache);

/* Copies tokens first .. first + count - 1 of a layer, which the cache has, as [count][K][D]. */
void tinylm_full_rows(const struct tinylm_cache *full, uint32_t layer, uint32_t first,
	uint32_t count, uint16_t *ret_keys, uint16_t *ret_values);

/* ---- recall ---------------------------------------------------------------------------------- */

struct tinylm_recall_config {
	const struct tinylm_model *model;
	const struct tinylm_math *math;
	struct tinylm_source *source; /* kept; outlives the cache */
	uint32_t own_capacity;        /* tokens kept here at most: what the source may not have
	                                 sealed yet, and one batch */
	uint32_t row_capacity;        /* rows per kv head that the source may stage */
	uint32_t batch;
	/* One request per token, with the queries of the token before, sent ahead of need; else one
	 * per layer, with the layer's own queries. */
	bool speculative;
};

/* A cache of the source's sequence, which already has `held` tokens, all of them sealed. With held
 * above 0, sink_keys and sink_values hold the first tokens, [L][sinks][K][D]; sinks = the lesser of
 * TINYLM_SINKS and held. Error: -ENOMEM. */
int tinylm_recall_open(const struct tinylm_recall_config *config, uint32_t held,
	const uint16_t *sink_keys, const uint16_t *sink_values, struct tinylm_cache **ret_cache);

/* What the passes have cost since the cache was opened. */
struct tinylm_recall_cost {
	uint64_t token_count;
	uint64_t staged_rows;  /* of all layers and kv heads */
	uint64_t own_rows;     /* sinks and own tokens, likewise */
	uint64_t missing_rows; /* chosen but unreadable: left out */
	uint64_t source_ns;    /* waiting for the source: recalls and appends */
};
struct tinylm_recall_cost tinylm_recall_cost(const struct tinylm_cache *recall);

#endif

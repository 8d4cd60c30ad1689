/* SPDX-License-Identifier: Apache-2.0 */
/* source.h: what the recall cache asks of the place that holds a sequence's keys and values.
 *
 * Implementations: remote.c, over libkvrecall; selftest.c has one that recalls every row, so that the
 * cache can be held against the full one without a daemon.
 *
 * Invariants:
 *   R1  Rows are chosen among the tokens sinks .. covered_tokens - 1; what lies before and after is
 *       the cache's own.
 *   R2  covered_tokens never shrinks.
 *
 * Axes: L layers, H query heads, K kv heads, D head dim.
 * Threads: a source belongs to one thread. */
#ifndef TINYLM_SOURCE_H
#define TINYLM_SOURCE_H

#include <stdint.h>

#include "examples/tinylm/model.h"

#define TINYLM_SINKS 16u /* first tokens of a sequence, which the cache keeps */

struct tinylm_source {
	const struct tinylm_source_ops *ops;
};

/* The rows of one layer. Valid until the source's next recall. */
struct tinylm_recalled {
	const uint16_t *keys;   /* [K][capacity][D] bf16 */
	const uint16_t *values; /* [K][capacity][D] bf16 */
	const float *weights;   /* [K][capacity] */
	const float
		*partial; /* [H][D]: what is estimated of the tokens not recalled; NULL: nothing */
	const float *partial_lse; /* [H] */
	uint32_t capacity;
	uint32_t row_counts[TINYLM_HEADS_MAX]; /* [K] */
	uint32_t missing_rows;
	uint32_t covered_tokens;
};

struct tinylm_source_ops {
	/* Appends tokens first .. first + count - 1; keys and values are [L][count][K][D]. They are
	 * copied; whether they arrived is known by the next call. */
	int (*append)(struct tinylm_source *source, const uint32_t *tokens, uint32_t first,
		uint32_t count, const uint16_t *keys, const uint16_t *values);
	/* Recalls layers first .. first + count - 1 with queries [count][H][D]. */
	int (*recall)(struct tinylm_source *source, uint32_t first, uint32_t count,
		const float *queries, struct tinylm_recalled *ret_recalled);
	/* The same for all layers in two halves: the queries are copied, and the rows are there
	 * when finish returns. Not more than one at a time, and no recall between. */
	int (*recall_start)(struct tinylm_source *source, const float *queries);
	int (*recall_finish)(struct tinylm_source *source, struct tinylm_recalled *ret_recalled);
	/* Tokens that are sealed as far as the source knows without asking. */
	uint32_t (*sealed_tokens)(const struct tinylm_source *source);
};

#endif

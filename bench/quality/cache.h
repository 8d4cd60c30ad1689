/* SPDX-License-Identifier: Apache-2.0 */
/* cache.h: tinylm's cache with a method's attention: a sealed prompt, a tail of its own.
 *
 * Threads: a cache belongs to one thread. */
#ifndef QUALITY_CACHE_H
#define QUALITY_CACHE_H

#include "bench/quality/input.h"
#include "bench/quality/method.h"
#include "examples/tinylm/cache.h"

struct quality_cache {
	struct tinylm_cache cache;
	struct quality_worker *worker;
	const struct quality_method *method;
	const struct quality_store *store; /* may be NULL for the method "full" */
	const struct quality_rows *prompt;
	struct quality_rows tail; /* what was stepped through */
	uint32_t budget_tokens;
	float *queries; /* [m][H of all layers][Dk]: those that were asked */
	float *logits;  /* [G][column_stride] */
	struct quality_answer answer;
};

/* For single tokens from the prompt's end on, `tail_tokens` at most. Keeps all that it is given. */
void quality_cache_open(struct quality_cache *cache, struct quality_worker *worker,
	const struct quality_method *method, const struct quality_store *store,
	const struct quality_rows *prompt, uint32_t tail_tokens, uint32_t budget_tokens);
void quality_cache_close(struct quality_cache *cache);

#endif

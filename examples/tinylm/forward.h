/* SPDX-License-Identifier: Apache-2.0 */
/* forward.h: the transformer: tokens in, logits out; keys and values go to a cache.
 *
 *   embed ─► [ RMSNorm ─► q, k, v ─► RoPE ─► cache ─► wo ─► + ─► RMSNorm ─► SwiGLU ─► + ] x L ─► RMSNorm
 *   ─► embedding^T
 *
 * RoPE turns the pairs (2i, 2i + 1) of a head by position * theta^(-2i / D).
 *
 * Threads: a forward belongs to one thread.
 * Source: Touvron et al., arXiv 2302.13971; Su et al., arXiv 2104.09864; Shazeer, arXiv 2002.05202. */
#ifndef TINYLM_FORWARD_H
#define TINYLM_FORWARD_H

#include <stdint.h>

#include "examples/tinylm/cache.h"
#include "examples/tinylm/math.h"
#include "examples/tinylm/model.h"

struct tinylm_forward;

/* For passes of up to `batch` tokens. Keeps model and math. Error: -ENOMEM. */
int tinylm_forward_open(const struct tinylm_model *model, const struct tinylm_math *math,
	uint32_t batch, struct tinylm_forward **ret_forward);
struct tinylm_forward *tinylm_forward_close(struct tinylm_forward *forward);

/* Runs a pass and writes the logits that follow its last `logit_count` tokens, [logit_count][V].
 * Errors: -EINVAL (an id or position out of range), the cache's. */
int tinylm_forward_run(struct tinylm_forward *forward, struct tinylm_cache *cache,
	const struct tinylm_pass *pass, float *ret_logits, uint32_t logit_count);

/* The same for any number of tokens, in passes of up to `batch`; logits of the last one (or NULL). */
int tinylm_forward_prefill(struct tinylm_forward *forward, struct tinylm_cache *cache,
	const uint32_t *tokens, uint32_t first, uint32_t count, float *ret_logits);

#endif

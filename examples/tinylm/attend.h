/* SPDX-License-Identifier: Apache-2.0 */
/* attend.h: exact attention of a few queries over rows that lie in several places.
 *
 * A row is a key, a value and a log weight: out = softmax(q . keys / sqrt(D) + weights) values. That is
 * the one formula for a sequence's own tokens (weight 0) and for everything that kvrecalld stages. A partial
 * output, of attention over rows that are not here, counts as one more row: its value, with its log-sum-exp as logit.
 *
 * Threads: no state. */
#ifndef TINYLM_ATTEND_H
#define TINYLM_ATTEND_H

#include <stdint.h>

#include "examples/tinylm/math.h"

/* Rows of one kv head. D is the same for keys and values. */
struct tinylm_run {
	const uint16_t *keys;   /* [row_count][D] bf16 */
	const uint16_t *values; /* [row_count][D] bf16 */
	const float *weights;   /* [row_count] or NULL: all 0 */
	uint32_t row_count;
};

struct tinylm_attention {
	const struct tinylm_math *math;
	const struct tinylm_run *runs;
	uint32_t run_count;
	const float *queries; /* [group][D], after RoPE, unscaled */
	uint32_t group;
	uint32_t head_dim;        /* D */
	const float *partial;     /* [group][D], or NULL: none */
	const float *partial_lse; /* [group] */
	float *scores;            /* scratch [group][score_stride] */
	uint32_t score_stride;    /* all rows and one, rounded up to TINYLM_PANEL, at least */
	float *out;               /* [group][D]; zero where there are no rows */
};

void tinylm_attend(const struct tinylm_attention *attention);

/* x[0 .. count - 1] -> softmax; x[count .. round_up(count) - 1] -> 0. count is 1 or more. */
void tinylm_softmax(const struct tinylm_math *math, float *x, uint32_t count);

#endif

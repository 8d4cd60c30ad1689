/* SPDX-License-Identifier: Apache-2.0 */
/* quality.h: how far one next-token distribution is from another, and how long steps take.
 *
 * Threads: no state. */
#ifndef TINYLM_QUALITY_H
#define TINYLM_QUALITY_H

#include <stdint.h>

struct tinylm_quality {
	double kl;    /* sum of KL(reference || tested), nats */
	double nll;   /* sum of -log p(token that follows) under the tested one, nats */
	double agree; /* how often both think the same token the likeliest */
	uint32_t count;
};

/* logits [vocab] -> log probabilities, in place. */
void tinylm_log_softmax(float *logits, uint32_t vocab);

/* Adds one position; both are log probabilities [vocab]. */
void tinylm_quality_add(struct tinylm_quality *quality, const float *reference, const float *tested,
	uint32_t vocab, uint32_t next);

/* The middle of values [count], which are sorted on the way. */
uint64_t tinylm_median(uint64_t *values, uint32_t count);

#endif

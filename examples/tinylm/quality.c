/* SPDX-License-Identifier: Apache-2.0 */
/* quality.c: see quality.h. Sums are in double: the divergences looked for are below 1e-3. */
#include "examples/tinylm/quality.h"

#include <math.h>
#include <stdlib.h>

void tinylm_log_softmax(float *logits, uint32_t vocab)
{
	float max = logits[0];
	double sum = 0;

	for (uint32_t i = 1; i < vocab; i++)
		max = logits[i] > max ? logits[i] : max;
	for (uint32_t i = 0; i < vocab; i++)
		sum += exp((double)(logits[i] - max));
	for (uint32_t i = 0; i < vocab; i++)
		logits[i] = (float)((double)(logits[i] - max) - log(sum));
}

void tinylm_quality_add(struct tinylm_quality *quality, const float *reference, const float *tested,
	uint32_t vocab, uint32_t next)
{
	uint32_t best_reference = 0;
	uint32_t best_tested = 0;

	for (uint32_t i = 0; i < vocab; i++) {
		const double log_p = (double)reference[i];

		quality->kl += exp(log_p) * (log_p - (double)tested[i]);
		if (reference[i] > reference[best_reference])
			best_reference = i;
		if (tested[i] > tested[best_tested])
			best_tested = i;
	}
	quality->nll -= (double)tested[next];
	quality->agree += best_reference == best_tested;
	quality->count++;
}

static int compare(const void *a, const void *b)
{
	const uint64_t left = *(const uint64_t *)a;
	const uint64_t right = *(const uint64_t *)b;

	return left < right ? -1 : left > right;
}

uint64_t tinylm_median(uint64_t *values, uint32_t count)
{
	qsort(values, count, sizeof(*values), compare);
	return count ? values[count / 2] : 0;
}

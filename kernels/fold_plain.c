/* SPDX-License-Identifier: Apache-2.0 */
/* fold_plain.c: the fold's inner loops in plain C, the oracle of the others. */

#include <math.h>

#include "kernels/fold.h"

static void square(const struct kvr_fold_block *block)
{
	const size_t stride = KVR_FOLD_ROUND(block->key_dim);

	for (uint32_t h = 0; h < block->heads; h++) {
		for (uint32_t c = 0; c < block->count; c++) {
			const uint8_t *spread = block->spread + (size_t)c * block->key_dim;
			float sum = 0;

			for (uint32_t i = 0; i < block->key_dim; i++)
				sum += block->squares[h * stride + i] * (float)spread[i];
			block->terms[h * KVR_FOLD_CLUSTERS + c] = sum;
		}
	}
}

/* NaN to the bottom. */
static float hold(float x)
{
	if (!(x > -KVR_RECALL_LOGIT_MAX))
		return -KVR_RECALL_LOGIT_MAX;
	return x < KVR_RECALL_LOGIT_MAX ? x : KVR_RECALL_LOGIT_MAX;
}

static float weigh(float *terms, const struct kvr_fold_weights *weights, float *max)
{
	float a[KVR_FOLD_CLUSTERS], most = *max, sum = 0;

	for (uint32_t c = 0; c < KVR_FOLD_CLUSTERS; c++) {
		const float rows = weights->rows[c];
		const float sigma = fminf(sqrtf(terms[c]) * weights->root[c] * weights->sigma_scale,
			KVR_RECALL_LOGIT_MAX);

		a[c] = rows > 0 ? hold(weights->dots[c] * weights->scale) + sigma : KVR_FOLD_LOWEST;
		terms[c] = rows * 0.5f * (1 + expf(fmaxf(-2 * sigma, -KVR_RECALL_DEPTH)));
		most = a[c] > most ? a[c] : most;
	}
	for (uint32_t c = 0; c < KVR_FOLD_CLUSTERS; c++) {
		terms[c] *= expf(fmaxf(a[c] - most, -KVR_RECALL_DEPTH));
		sum += terms[c];
	}
	*max = most;
	return sum;
}

static void gather(const struct kvr_fold_block *block)
{
	const uint32_t dim = block->value_dim;

	for (uint32_t h = 0; h < block->heads; h++) {
		const float *terms = block->terms + h * KVR_FOLD_CLUSTERS;
		float *out = block->out + h * KVR_FOLD_ROUND(dim);

		for (uint32_t i = 0; i < dim; i++)
			out[i] *= block->factor[h];
		for (uint32_t c = 0; c < block->count; c++)
			for (uint32_t i = 0; i < dim; i++)
				out[i] += terms[c] *
					  kvr_float_of_bf16(block->value[(size_t)c * dim + i]);
	}
}

const struct kvr_fold_ops kvr_fold_plain = {square, weigh, gather};

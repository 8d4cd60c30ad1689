/* SPDX-License-Identifier: Apache-2.0 */
/* recall_plain.c: recall's inner loops in plain C, the oracle of the others. */

#include <math.h>

#include "kernels/recall.h"

static void prepare(uint8_t *block, const float *query, uint32_t heads, uint32_t dim)
{
	memcpy(block, query, (size_t)heads * dim * sizeof(float));
}

/* NaN to the bottom. */
static float hold(float x)
{
	if (!(x > -KVR_RECALL_LOGIT_MAX))
		return -KVR_RECALL_LOGIT_MAX;
	return x < KVR_RECALL_LOGIT_MAX ? x : KVR_RECALL_LOGIT_MAX;
}

static void dots(const uint8_t *block, uint32_t heads, uint32_t dim, const uint16_t *mean,
	uint32_t count, const uint16_t *next, float *out, size_t stride)
{
	const float *query = (const float *)(const void *)block;

	(void)next;
	for (uint32_t c = 0; c < count; c++) {
		const uint16_t *row = mean + (size_t)c * dim;

		for (uint32_t h = 0; h < heads; h++) {
			float sum = 0;

			for (uint32_t i = 0; i < dim; i++)
				sum += query[(size_t)h * dim + i] * kvr_float_of_bf16(row[i]);
			out[h * stride + c] = hold(sum);
		}
	}
}

static void spread(
	float *dot, const float *tokens, uint32_t count, float scale, float part, float *density)
{
	float most = -KVR_RECALL_LOGIT_MAX;
	float sum = 0;

	for (uint32_t c = 0; c < count; c++) {
		dot[c] = hold(dot[c] * scale);
		most = dot[c] > most ? dot[c] : most;
	}
	for (uint32_t c = 0; c < count; c++) {
		dot[c] = expf(fmaxf(dot[c] - most, -KVR_RECALL_DEPTH));
		sum += tokens[c] * dot[c];
	}
	for (uint32_t c = 0; c < count; c++)
		density[c] += dot[c] * (part / sum);
}

static void widths(float *tokens, const uint16_t *first, uint32_t count)
{
	for (uint32_t c = 0; c < count; c++)
		tokens[c] = (float)((uint32_t)first[c + 1] - first[c]);
}

static uint32_t rows_from(const uint32_t *key, const float *tokens, uint32_t count, uint32_t low)
{
	uint32_t rows = 0;

	for (uint32_t c = 0; c < count; c++)
		rows += key[c] >= low ? (uint32_t)tokens[c] : 0;
	return rows;
}

static uint32_t find(
	const uint32_t *key, uint32_t count, uint32_t low, uint32_t high, uint32_t *list)
{
	uint32_t found = 0;

	for (uint32_t c = 0; c < count; c++) {
		list[found] = c;
		found += key[c] - low <= high - low;
	}
	return found;
}

const struct kvr_recall_ops kvr_recall_plain = {
	prepare, dots, NULL, spread, widths, rows_from, find};

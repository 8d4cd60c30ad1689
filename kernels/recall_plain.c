/* SPDX-License-Identifier: Apache-2.0 */
/* recall_plain.c: recall's inner loops in plain C, the oracle of the others. */

#include <math.h>

#include "kernels/recall.h"

static void prepare(uint8_t *block, float *steps, const uint8_t *query, enum kvr_dtype dtype,
	uint32_t heads, uint32_t dim)
{
	int16_t *to = (int16_t *)(void *)block;
	float wide[KVR_DIM_MAX];

	for (uint32_t h = 0; h < heads; h++, to += dim) {
		float largest = 0, scale;
		bool finite = true;

		kvr_floats_of(wide, query + h * dim * kvr_dtype_bytes(dtype), dtype, dim);
		for (uint32_t i = 0; i < dim; i++) {
			finite = finite && isfinite(wide[i]);
			largest = fmaxf(largest, fabsf(wide[i]));
		}
		steps[h] = finite ? largest / KVR_RECALL_STEPS : NAN;
		if (!finite || largest < KVR_RECALL_QUERY_MIN) {
			memset(to, 0, dim * sizeof(*to));
			continue;
		}
		scale = KVR_RECALL_STEPS / largest;
		for (uint32_t i = 0; i < dim; i++)
			to[i] = (int16_t)lrintf(wide[i] * scale);
	}
}

/* NaN to the bottom. */
static float hold(float x)
{
	if (!(x > -KVR_RECALL_LOGIT_MAX))
		return -KVR_RECALL_LOGIT_MAX;
	return x < KVR_RECALL_LOGIT_MAX ? x : KVR_RECALL_LOGIT_MAX;
}

static void dots(const uint8_t *block, uint32_t heads, uint32_t dim,
	const struct kvr_recall_means *means, float *out, size_t stride)
{
	const int16_t *query = (const int16_t *)(const void *)block;

	for (uint32_t c = 0; c < means->count; c++) {
		const int8_t *row = means->plane + (size_t)c * dim;
		const float step = means->factor * means->step[c];

		for (uint32_t h = 0; h < heads; h++) {
			int32_t sum = 0;

			for (uint32_t i = 0; i < dim; i++)
				sum += query[(size_t)h * dim + i] * row[i];
			out[h * stride + c] = hold((float)sum * step);
		}
	}
}

static void spread(const float *from, float *dot, const float *tokens, uint32_t count, float scale,
	float part, float *density)
{
	float most = -KVR_RECALL_LOGIT_MAX;
	float sum = 0;

	for (uint32_t c = 0; c < count; c++) {
		dot[c] = hold(from[c] * scale);
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

/* SPDX-License-Identifier: Apache-2.0 */
/* attend_plain.c: the inner loops of exact attention in plain C; the oracle of the others. */
#include <math.h>
#include <string.h>

#include "kernels/attend.h"
#include "kernels/cpu.h"

static void widen(float *to, size_t stride, const uint8_t *from, enum kvr_dtype dtype, size_t dim,
	size_t rows)
{
	for (size_t r = 0; r < rows; r++, to += stride) {
		kvr_floats_of(to, from + r * dim * kvr_dtype_bytes(dtype), dtype, dim);
		memset(to + dim, 0, (stride - dim) * sizeof(*to));
	}
}

static void score(const struct kvr_attend_block *block)
{
	for (size_t q = 0; q < block->query_count; q++) {
		const float *query = block->queries + q * block->key_stride;

		for (size_t r = 0; r < block->row_count; r++) {
			const float *key = block->keys + r * block->key_stride;
			float sum = 0.0f;

			for (size_t i = 0; i < block->key_stride; i++)
				sum += query[i] * key[i];
			block->scores[q * KVR_ATTEND_ROWS + r] = sum;
		}
	}
}

static float soften(float *scores, float *max)
{
	float sum = 0.0f;

	for (size_t r = 0; r < KVR_ATTEND_ROWS; r++)
		*max = scores[r] > *max ? scores[r] : *max;
	for (size_t r = 0; r < KVR_ATTEND_ROWS; r++) {
		scores[r] = scores[r] == -INFINITY ? 0.0f : expf(scores[r] - *max);
		sum += scores[r];
	}
	return sum;
}

static void gather(const struct kvr_attend_block *block)
{
	for (size_t q = 0; q < block->query_count; q++) {
		const float *scores = block->scores + (size_t)q * KVR_ATTEND_ROWS;
		float *out = block->out + q * block->value_stride;

		for (size_t i = 0; i < block->value_stride; i++) {
			float sum = out[i] * block->factor[q];

			for (size_t r = 0; r < block->row_count; r++)
				sum += scores[r] * block->values[r * block->value_stride + i];
			out[i] = sum;
		}
	}
}

const struct kvr_attend_ops kvr_attend_plain = {
	.widen = widen, .score = score, .soften = soften, .gather = gather};

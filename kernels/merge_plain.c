/* SPDX-License-Identifier: Apache-2.0 */
/* merge_plain.c: weighted means in plain C; the oracle of the others, and what runs on a processor
 * without AVX2. */
#include <float.h>
#include <math.h>
#include <string.h>

#include "kernels/cpu.h"
#include "kernels/merge.h"

static void mean(float *to, const struct kvr_kmeans_rows *rows, const uint16_t *members,
	const float *weights, size_t count)
{
	float wide[KVR_DIM_MAX];

	memset(to, 0, rows->stride * sizeof(*to));
	for (size_t m = 0; m < count; m++) {
		kvr_floats_of(wide, rows->row[members[m]], rows->dtype, rows->dim);
		for (size_t i = 0; i < rows->dim; i++)
			to[i] = (to[i] - weights[m] * to[i]) + weights[m] * wide[i];
	}
	/* Rounding must not make an infinity of the largest float. */
	for (size_t i = 0; i < rows->dim; i++)
		to[i] = fminf(fmaxf(to[i], -FLT_MAX), FLT_MAX);
}

static void narrow(uint8_t *to, const float *from, enum kvr_dtype dtype, size_t count)
{
	if (dtype == KVR_DTYPE_F32) {
		memcpy(to, from, count * sizeof(*from));
		return;
	}
	for (size_t i = 0; i < count; i++) {
		const uint16_t half = dtype == KVR_DTYPE_BF16 ? kvr_bf16_of_float(from[i])
							      : kvr_f16_of_float(from[i]);

		memcpy(to + i * sizeof(half), &half, sizeof(half));
	}
}

const struct kvr_merge_ops kvr_merge_plain = {.mean = mean, .narrow = narrow};

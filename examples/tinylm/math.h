/* SPDX-License-Identifier: Apache-2.0 */
/* math.h: the inner loops of the engine, in the version that this processor runs best.
 *
 * Matrices that are multiplied from the right lie in panels: PANEL outputs side by side, so that one
 * vector register holds the same inner index of PANEL outputs and no sum crosses lanes:
 *
 *   panels [outputs / PANEL][inner][PANEL] f32
 *
 * bf16 is the upper half of an f32. Every dimension is a multiple of PANEL unless said otherwise.
 *
 * Threads: no state. */
#ifndef TINYLM_MATH_H
#define TINYLM_MATH_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define TINYLM_PANEL 16u

struct tinylm_math {
	const char *name;
	/* out[t][o] = sum over i of x[t][i] * matrix[o][i]. Strides in elements. */
	void (*matmul)(float *out, size_t out_stride, const float *x, size_t x_stride,
		const float *panels, uint32_t tokens, uint32_t outputs, uint32_t inner);
	/* out[g][r] = q[g] . keys[r]; q [group][dim], keys [rows][dim] bf16; any number of rows. */
	void (*score)(float *out, size_t out_stride, const float *q, uint32_t group,
		const uint16_t *keys, uint32_t rows, uint32_t dim);
	/* out[g] += sum over r of share[g][r] * values[r]; values [rows][dim] bf16; any number of rows. */
	void (*mix)(float *out, const float *share, size_t share_stride, uint32_t group,
		const uint16_t *values, uint32_t rows, uint32_t dim);
	/* x[i] = exp(x[i] - max), where x[i] <= max or x[i] is -infinity (then 0, or nearly).
	 * Returns the sum. Relative error below 1e-6. */
	float (*exponentials)(float *x, uint32_t count, float max);
};

extern const struct tinylm_math tinylm_math_plain;
#if defined(__x86_64__)
extern const struct tinylm_math tinylm_math_avx2;
extern const struct tinylm_math tinylm_math_avx512;
#endif

/* The best version for this processor. Borrowed. */
const struct tinylm_math *tinylm_math_choose(void);

static inline uint32_t tinylm_round_up(uint32_t count)
{
	return (count + TINYLM_PANEL - 1) / TINYLM_PANEL * TINYLM_PANEL;
}

static inline float tinylm_from_bf16(uint16_t half)
{
	const uint32_t bits = (uint32_t)half << 16;
	float value;

	memcpy(&value, &bits, sizeof(value));
	return value;
}

/* To the nearest, ties to even. Not for NaN. */
static inline uint16_t tinylm_to_bf16(float value)
{
	uint32_t bits;

	memcpy(&bits, &value, sizeof(bits));
	return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

#endif

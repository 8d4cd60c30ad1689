/* SPDX-License-Identifier: Apache-2.0 */
/* math_avx2.c: the loops with eight lanes. Compiled with -mavx2 -mfma; empty elsewhere than x86-64. */
#include "examples/tinylm/math.h"

#if defined(__x86_64__)

#include <immintrin.h>

/* 4 tokens x 2 vectors of sums, 2 of weights, 1 token value: 11 of 16 registers. */
#define LANES        8
#define TILE_TOKENS  4
#define TILE_PANELS  1
#define FMA(a, b, c) _mm256_fmadd_ps(a, b, c)
#define WIDEN(bf16)                            \
	_mm256_castsi256_ps(_mm256_slli_epi32( \
		_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(bf16))), 16))
#define SUM(a)     sum8(a)
#define BODY_NAME  "avx2"
#define BODY_TABLE tinylm_math_avx2

static inline float sum8(__m256 a)
{
	const __m128 four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
	const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));

	return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

#include "examples/tinylm/math_body.h"

#endif

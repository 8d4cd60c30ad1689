/* SPDX-License-Identifier: Apache-2.0 */
/* math_avx512.c: the loops with sixteen lanes. Compiled with -mavx512f and kin; empty elsewhere than
 * x86-64. */
#include "examples/tinylm/math.h"

#if defined(__x86_64__)

#include <immintrin.h>

/* 8 tokens x 2 panels of sums, 2 of weights, 1 token value: 19 of 32 registers. */
#define LANES        16
#define TILE_TOKENS  8
#define TILE_PANELS  2
#define FMA(a, b, c) _mm512_fmadd_ps(a, b, c)
#define WIDEN(bf16)                            \
	_mm512_castsi512_ps(_mm512_slli_epi32( \
		_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(bf16))), 16))
#define SUM(a)     _mm512_reduce_add_ps(a)
#define BODY_NAME  "avx512"
#define BODY_TABLE tinylm_math_avx512

#include "examples/tinylm/math_body.h"

#endif

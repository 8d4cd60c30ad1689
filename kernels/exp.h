/* SPDX-License-Identifier: Apache-2.0 */
/* exp.h: exp of vectors, with the instruction set that the including file is compiled for. Internal to the
 * SIMD files of recall and of what it folds. */
#ifndef KVR_KERNELS_EXP_H
#define KVR_KERNELS_EXP_H

#include <immintrin.h>

/* All: exp(x) for x in [-KVR_RECALL_DEPTH, 0], to 2 units in the last place: 2^n times a polynomial in the
 * rest, which lies within half of log 2. */

#if defined(__AVX512F__)

static inline __attribute__((always_inline)) __m512 kvr_exp16(__m512 x)
{
	const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 8);
	__m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693145752f), x); /* log 2, high part */
	__m512 p = _mm512_set1_ps(1.0f / 5040);

	r = _mm512_fnmadd_ps(n, _mm512_set1_ps(1.42860677e-6f), r); /* log 2, the rest */
	p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 720));
	p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 120));
	p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 24));
	p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 6));
	p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.5f));
	p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
	p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
	return _mm512_scalef_ps(p, n);
}

#elif defined(__AVX2__)

static inline __attribute__((always_inline)) __m256 kvr_exp8(__m256 x)
{
	const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)),
		_MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
	const __m256i power = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
	__m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693145752f), x); /* log 2, high part */
	__m256 p = _mm256_set1_ps(1.0f / 5040);

	r = _mm256_fnmadd_ps(n, _mm256_set1_ps(1.42860677e-6f), r); /* log 2, the rest */
	p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 720));
	p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 120));
	p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 24));
	p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 6));
	p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.5f));
	p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
	p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
	return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), power));
}

#endif

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* recall_avx512.c: recall's inner loops for AVX-512 (F, BW, DQ, VL).
 *
 * A vector of 32 bf16 is two vectors of 16 floats: the even elements shifted up, the odd ones masked.
 * The queries are laid out to match: per 32 elements the 16 even ones, then the 16 odd ones, zeros
 * behind the last. Sixteen sums are kept in registers, of 16 clusters for one head, of 8 for two or
 * of 4 for four, so that a mean is converted once for the heads and a query read once for the
 * clusters. The order of additions inside a dot does not depend on where it stands. (P3) */

#include "kernels/recall.h"
#include "kernels/widen.h"

#define SUMS  16u
#define CHUNK 32u /* elements of a mean per step */

static uint32_t chunks_of(uint32_t dim)
{
	return (dim + CHUNK - 1) / CHUNK;
}

static void prepare(uint8_t *block, const float *query, uint32_t heads, uint32_t dim)
{
	const uint32_t padded = chunks_of(dim) * CHUNK;
	float *to = (float *)(void *)block;

	/* Three heads are scored as four: the fourth is zeros. */
	memset(to, 0, (size_t)(heads + 1) * padded * sizeof(float));
	for (uint32_t h = 0; h < heads; h++) {
		for (uint32_t i = 0; i < dim; i++) {
			const uint32_t at = i / CHUNK * CHUNK + i % 2 * (CHUNK / 2) + i % CHUNK / 2;

			to[(size_t)h * padded + at] = query[(size_t)h * dim + i];
		}
	}
}

/* Sums each of 16 vectors: lane i of the result is the sum of vector i. */
static inline __attribute__((always_inline)) __m512 sum_each(const __m512 *v)
{
	__m512 quad[4];

#pragma GCC unroll 4
	for (int i = 0; i < 4; i++) {
		const __m512 *w = v + i * 4;
		const __m512 ab = _mm512_add_ps(
			_mm512_unpacklo_ps(w[0], w[1]), _mm512_unpackhi_ps(w[0], w[1]));
		const __m512 cd = _mm512_add_ps(
			_mm512_unpacklo_ps(w[2], w[3]), _mm512_unpackhi_ps(w[2], w[3]));

		quad[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(
						_mm512_castps_pd(ab), _mm512_castps_pd(cd))),
			_mm512_castpd_ps(
				_mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd))));
	}
	const __m512 low = _mm512_add_ps(_mm512_shuffle_f32x4(quad[0], quad[1], 0x88),
		_mm512_shuffle_f32x4(quad[0], quad[1], 0xdd));
	const __m512 high = _mm512_add_ps(_mm512_shuffle_f32x4(quad[2], quad[3], 0x88),
		_mm512_shuffle_f32x4(quad[2], quad[3], 0xdd));

	return _mm512_add_ps(
		_mm512_shuffle_f32x4(low, high, 0x88), _mm512_shuffle_f32x4(low, high, 0xdd));
}

/* NaN to the bottom: maxps gives its second operand where the first is NaN. */
static inline __attribute__((always_inline)) __m512 hold(__m512 x)
{
	return _mm512_min_ps(_mm512_max_ps(x, _mm512_set1_ps(-KVR_RECALL_LOGIT_MAX)),
		_mm512_set1_ps(KVR_RECALL_LOGIT_MAX));
}

/* SUMS / heads clusters for `heads` (1, 2 or 4) heads; `row` are the means. */
static inline __attribute__((always_inline)) __m512 dots_of(const float *query,
	const uint32_t heads, uint32_t padded, const uint16_t *const *row, uint32_t chunks,
	__mmask32 last)
{
	const uint32_t clusters = SUMS / heads;
	const __m512i odd_mask = _mm512_set1_epi32((int)0xffff0000u);
	__m512 sum[SUMS];

	/* Unrolled whole, so that the arrays are registers. */
#pragma GCC unroll 16
	for (uint32_t i = 0; i < SUMS; i++)
		sum[i] = _mm512_setzero_ps();
	for (uint32_t k = 0; k < chunks; k++) {
		const __mmask32 mask = k + 1 == chunks ? last : 0xffffffffu;
		__m512 even_query[4], odd_query[4];

#pragma GCC unroll 4
		for (uint32_t h = 0; h < heads; h++) {
			even_query[h] = _mm512_load_ps(query + h * padded + k * CHUNK);
			odd_query[h] = _mm512_load_ps(query + h * padded + k * CHUNK + CHUNK / 2);
		}
#pragma GCC unroll 16
		for (uint32_t c = 0; c < clusters; c++) {
			const __m512i pair = _mm512_maskz_loadu_epi16(mask, row[c] + k * CHUNK);
			const __m512 even = _mm512_castsi512_ps(_mm512_slli_epi32(pair, 16));
			const __m512 odd = _mm512_castsi512_ps(_mm512_and_si512(pair, odd_mask));

#pragma GCC unroll 4
			for (uint32_t h = 0; h < heads; h++) {
				__m512 *s = &sum[h * clusters + c];

				*s = _mm512_fmadd_ps(even, even_query[h], *s);
				*s = _mm512_fmadd_ps(odd, odd_query[h], *s);
			}
		}
	}
	return hold(sum_each(sum));
}

static inline __attribute__((always_inline)) void dots_heads(const float *query,
	const uint32_t heads, uint32_t dim, const uint16_t *mean, uint32_t count,
	const uint16_t *next, float *dots, size_t stride)
{
	const uint32_t clusters = SUMS / heads, chunks = chunks_of(dim);
	const uint32_t rest = dim - (chunks - 1) * CHUNK;
	const __mmask32 last = rest == CHUNK ? 0xffffffffu : (1u << rest) - 1;
	const size_t ahead = (size_t)clusters * dim * sizeof(uint16_t);

	for (uint32_t c = 0; c < count; c += clusters) {
		const char *coming = (const char *)(next + (size_t)c * dim);
		const uint16_t *row[SUMS];
		__m512 sums;

		for (size_t i = 0; i < ahead; i += 64)
			_mm_prefetch(coming + i, _MM_HINT_T0);
		/* Behind the last mean, the last one again. */
		for (uint32_t i = 0; i < clusters; i++)
			row[i] = mean + (size_t)(c + i < count ? c + i : count - 1) * dim;
		sums = dots_of(query, heads, chunks * CHUNK, row, chunks, last);
		if (heads == 1)
			_mm512_storeu_ps(dots + c, sums);
		if (heads == 2) {
			_mm256_storeu_ps(dots + c, _mm512_castps512_ps256(sums));
			_mm256_storeu_ps(dots + stride + c, _mm512_extractf32x8_ps(sums, 1));
		}
		if (heads == 4) {
			_mm_storeu_ps(dots + c, _mm512_castps512_ps128(sums));
			_mm_storeu_ps(dots + stride + c, _mm512_extractf32x4_ps(sums, 1));
			_mm_storeu_ps(dots + 2 * stride + c, _mm512_extractf32x4_ps(sums, 2));
			_mm_storeu_ps(dots + 3 * stride + c, _mm512_extractf32x4_ps(sums, 3));
		}
	}
}

static void dots(const uint8_t *block, uint32_t heads, uint32_t dim, const uint16_t *mean,
	uint32_t count, const uint16_t *next, float *out, size_t stride)
{
	const size_t padded = chunks_of(dim) * CHUNK;

	for (uint32_t h = 0; h < heads; h += 4) {
		const float *query = (const float *)(const void *)block + h * padded;
		float *to = out + h * stride;

		if (heads - h == 1)
			dots_heads(query, 1, dim, mean, count, next, to, stride);
		else if (heads - h == 2)
			dots_heads(query, 2, dim, mean, count, next, to, stride);
		else
			dots_heads(query, 4, dim, mean, count, next, to, stride);
	}
}

/* exp(x) for x in [-KVR_RECALL_DEPTH, 0], to 2 units in the last place: 2^n times a polynomial in the
 * rest, which lies within half of log 2. */
static inline __attribute__((always_inline)) __m512 exp_of(__m512 x)
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

static void spread(
	float *dot, const float *tokens, uint32_t count, float scale, float part, float *density)
{
	const __m512 by = _mm512_set1_ps(scale), depth = _mm512_set1_ps(-KVR_RECALL_DEPTH);
	__m512 most = _mm512_set1_ps(-KVR_RECALL_LOGIT_MAX);
	__m512 sum = _mm512_setzero_ps();

	for (uint32_t c = 0; c < count; c += 16) {
		const __m512 x = hold(_mm512_mul_ps(_mm512_load_ps(dot + c), by));

		_mm512_store_ps(dot + c, x);
		most = _mm512_max_ps(most, x);
	}
	most = _mm512_set1_ps(_mm512_reduce_max_ps(most));
	for (uint32_t c = 0; c < count; c += 16) {
		const __m512 x = _mm512_sub_ps(_mm512_load_ps(dot + c), most);
		const __m512 e = exp_of(_mm512_max_ps(x, depth));

		_mm512_store_ps(dot + c, e);
		sum = _mm512_fmadd_ps(e, _mm512_load_ps(tokens + c), sum);
	}
	sum = _mm512_set1_ps(part / _mm512_reduce_add_ps(sum));
	for (uint32_t c = 0; c < count; c += 16)
		_mm512_store_ps(density + c,
			_mm512_fmadd_ps(_mm512_load_ps(dot + c), sum, _mm512_load_ps(density + c)));
}

static void widths(float *tokens, const uint16_t *first, uint32_t count)
{
	for (uint32_t c = 0; c < count; c += 16) {
		const __mmask16 mask = kvr_lanes16(count - c);
		const __m256i low = _mm256_maskz_loadu_epi16(mask, first + c);
		const __m256i high = _mm256_maskz_loadu_epi16(mask, first + c + 1);

		_mm512_mask_storeu_ps(tokens + c, mask,
			_mm512_cvtepi32_ps(_mm512_cvtepu16_epi32(_mm256_sub_epi16(high, low))));
	}
}

static uint32_t rows_from(const uint32_t *key, const float *tokens, uint32_t count, uint32_t low)
{
	const __m512i least = _mm512_set1_epi32((int)low);
	__m512 sum[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};

	KVR_STATIC_ASSERT(KVR_RECALL_PAD == 32);
	for (uint32_t c = 0; c < count; c += 32) {
		const __mmask16 in0 = _mm512_cmpge_epu32_mask(_mm512_load_si512(key + c), least);
		const __mmask16 in1 =
			_mm512_cmpge_epu32_mask(_mm512_load_si512(key + c + 16), least);

		sum[0] = _mm512_mask_add_ps(sum[0], in0, sum[0], _mm512_load_ps(tokens + c));
		sum[1] = _mm512_mask_add_ps(sum[1], in1, sum[1], _mm512_load_ps(tokens + c + 16));
	}
	return (uint32_t)_mm512_reduce_add_ps(_mm512_add_ps(sum[0], sum[1]));
}

static uint32_t find(
	const uint32_t *key, uint32_t count, uint32_t low, uint32_t high, uint32_t *list)
{
	const __m512i least = _mm512_set1_epi32((int)low);
	const __m512i range = _mm512_set1_epi32((int)(high - low));
	__m512i index = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
	uint32_t found = 0;

	for (uint32_t c = 0; c < count; c += 16) {
		const __mmask16 mask = kvr_lanes16(count - c);
		const __m512i k = _mm512_maskz_loadu_epi32(mask, key + c);
		const __mmask16 in =
			_mm512_mask_cmple_epu32_mask(mask, _mm512_sub_epi32(k, least), range);

		_mm512_storeu_si512(list + found, _mm512_maskz_compress_epi32(in, index));
		found += (uint32_t)__builtin_popcount(in);
		index = _mm512_add_epi32(index, _mm512_set1_epi32(16));
	}
	return found;
}

const struct kvr_recall_ops kvr_recall_avx512 = {
	prepare, dots, NULL, spread, widths, rows_from, find};

/* SPDX-License-Identifier: Apache-2.0 */
/* recall_avx2.c: recall's inner loops for AVX2 with FMA.
 *
 * As recall_avx512.c, with eight sums of eight floats: 8 clusters for one head, 4 for two, 2 for
 * four. A last chunk that is not whole goes through a buffer padded with zeros. */

#include <immintrin.h>

#include "kernels/recall.h"

#define SUMS  8u
#define CHUNK 16u /* elements of a mean per step */

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

/* Sums each of 8 vectors: lane i of the result is the sum of vector i. */
static inline __attribute__((always_inline)) __m256 sum_each(const __m256 *v)
{
	const __m256 low = _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
	const __m256 high = _mm256_hadd_ps(_mm256_hadd_ps(v[4], v[5]), _mm256_hadd_ps(v[6], v[7]));

	return _mm256_add_ps(
		_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31));
}

/* NaN to the bottom: maxps gives its second operand where the first is NaN. */
static inline __attribute__((always_inline)) __m256 hold(__m256 x)
{
	return _mm256_min_ps(_mm256_max_ps(x, _mm256_set1_ps(-KVR_RECALL_LOGIT_MAX)),
		_mm256_set1_ps(KVR_RECALL_LOGIT_MAX));
}

/* SUMS / heads clusters for `heads` (1, 2 or 4) heads; `row` are the means. */
static inline __attribute__((always_inline)) __m256 dots_of(const float *query,
	const uint32_t heads, uint32_t dim, const uint16_t *const *row, uint32_t chunks)
{
	const uint32_t clusters = SUMS / heads, rest = dim % CHUNK;
	const __m256i odd_mask = _mm256_set1_epi32((int)0xffff0000u);
	__m256 sum[SUMS];

	/* Unrolled whole, so that the sums are registers. */
#pragma GCC unroll 8
	for (uint32_t i = 0; i < SUMS; i++)
		sum[i] = _mm256_setzero_ps();
	for (uint32_t k = 0; k < chunks; k++) {
#pragma GCC unroll 8
		for (uint32_t c = 0; c < clusters; c++) {
			const uint16_t *from = row[c] + k * CHUNK;
			uint16_t padded[CHUNK];
			__m256i pair;

			if (rest != 0 && k + 1 == chunks) {
				memset(padded, 0, sizeof(padded));
				memcpy(padded, from, rest * sizeof(*from));
				from = padded;
			}
			pair = _mm256_loadu_si256((const __m256i *)(const void *)from);
			const __m256 even = _mm256_castsi256_ps(_mm256_slli_epi32(pair, 16));
			const __m256 odd = _mm256_castsi256_ps(_mm256_and_si256(pair, odd_mask));

#pragma GCC unroll 4
			for (uint32_t h = 0; h < heads; h++) {
				const float *q = query + (h * chunks + k) * CHUNK;
				__m256 *s = &sum[h * clusters + c];

				*s = _mm256_fmadd_ps(even, _mm256_load_ps(q), *s);
				*s = _mm256_fmadd_ps(odd, _mm256_load_ps(q + CHUNK / 2), *s);
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
	const size_t ahead = (size_t)clusters * dim * sizeof(uint16_t);

	for (uint32_t c = 0; c < count; c += clusters) {
		const char *coming = (const char *)(next + (size_t)c * dim);
		const uint16_t *row[SUMS];
		float sums[SUMS];

		for (size_t i = 0; i < ahead; i += 64)
			_mm_prefetch(coming + i, _MM_HINT_T0);
		/* Behind the last mean, the last one again. */
		for (uint32_t i = 0; i < clusters; i++)
			row[i] = mean + (size_t)(c + i < count ? c + i : count - 1) * dim;
		_mm256_storeu_ps(sums, dots_of(query, heads, dim, row, chunks));
		for (uint32_t h = 0; h < heads; h++)
			memcpy(dots + h * stride + c, sums + h * clusters,
				clusters * sizeof(*sums));
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
static inline __attribute__((always_inline)) __m256 exp_of(__m256 x)
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

/* In an order that does not depend on anything but the lanes. (P3) */
static float sum_lanes(__m256 v, int largest)
{
	float lane[SUMS];
	float result;

	_mm256_storeu_ps(lane, v);
	result = lane[0];
	for (uint32_t i = 1; i < SUMS; i++) {
		if (!largest)
			result += lane[i];
		else if (lane[i] > result)
			result = lane[i];
	}
	return result;
}

static void spread(
	float *dot, const float *tokens, uint32_t count, float scale, float part, float *density)
{
	const __m256 by = _mm256_set1_ps(scale), depth = _mm256_set1_ps(-KVR_RECALL_DEPTH);
	__m256 most = _mm256_set1_ps(-KVR_RECALL_LOGIT_MAX);
	__m256 sum = _mm256_setzero_ps();

	for (uint32_t c = 0; c < count; c += SUMS) {
		const __m256 x = hold(_mm256_mul_ps(_mm256_load_ps(dot + c), by));

		_mm256_store_ps(dot + c, x);
		most = _mm256_max_ps(most, x);
	}
	most = _mm256_set1_ps(sum_lanes(most, 1));
	for (uint32_t c = 0; c < count; c += SUMS) {
		const __m256 x = _mm256_sub_ps(_mm256_load_ps(dot + c), most);
		const __m256 e = exp_of(_mm256_max_ps(x, depth));

		_mm256_store_ps(dot + c, e);
		sum = _mm256_fmadd_ps(e, _mm256_load_ps(tokens + c), sum);
	}
	sum = _mm256_set1_ps(part / sum_lanes(sum, 0));
	for (uint32_t c = 0; c < count; c += SUMS)
		_mm256_store_ps(density + c,
			_mm256_fmadd_ps(_mm256_load_ps(dot + c), sum, _mm256_load_ps(density + c)));
}

static void widths(float *tokens, const uint16_t *first, uint32_t count)
{
	uint32_t c = 0;

	for (; c + SUMS <= count; c += SUMS) {
		const __m128i low = _mm_loadu_si128((const __m128i *)(const void *)(first + c));
		const __m128i high =
			_mm_loadu_si128((const __m128i *)(const void *)(first + c + 1));

		_mm256_storeu_ps(tokens + c,
			_mm256_cvtepi32_ps(_mm256_cvtepu16_epi32(_mm_sub_epi16(high, low))));
	}
	kvr_recall_plain.widths(tokens + c, first + c, count - c);
}

/* No compare of unsigned numbers: key >= low where the larger of the two is the key. */
static uint32_t rows_from(const uint32_t *key, const float *tokens, uint32_t count, uint32_t low)
{
	const __m256i least = _mm256_set1_epi32((int)low);
	__m256 sum = _mm256_setzero_ps();

	for (uint32_t c = 0; c < count; c += SUMS) {
		const __m256i k = _mm256_load_si256((const __m256i *)(const void *)(key + c));
		const __m256i in = _mm256_cmpeq_epi32(_mm256_max_epu32(k, least), k);

		sum = _mm256_add_ps(
			sum, _mm256_and_ps(_mm256_castsi256_ps(in), _mm256_load_ps(tokens + c)));
	}
	return (uint32_t)sum_lanes(sum, 0);
}

/* In plain C: there is no store of chosen elements. */
static uint32_t find(
	const uint32_t *key, uint32_t count, uint32_t low, uint32_t high, uint32_t *list)
{
	return kvr_recall_plain.find(key, count, low, high, list);
}

const struct kvr_recall_ops kvr_recall_avx2 = {
	prepare, dots, NULL, spread, widths, rows_from, find};

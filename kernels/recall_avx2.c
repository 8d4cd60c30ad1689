/* SPDX-License-Identifier: Apache-2.0 */
/* recall_avx2.c: recall's inner loops for AVX2 with FMA.
 *
 * As recall_avx512.c, with eight sums of eight: 8 clusters for one head, 4 for two, 2 for four. A last
 * chunk that is not whole goes through a buffer padded with zeros. */

#include <immintrin.h>

#include <float.h>
#include <math.h>

#include "kernels/exp.h"
#include "kernels/recall.h"
#include "kernels/widen.h"

#define SUMS  8u
#define CHUNK 16u /* elements of a mean per step */

static uint32_t chunks_of(uint32_t dim)
{
	return (dim + CHUNK - 1) / CHUNK;
}

/* To fixed point; writes zeros up to the next multiple of 16. Returns the step; or NaN, and has written
 * nothing. */
static float round_query(int16_t *to, const uint8_t *query, enum kvr_dtype dtype, uint32_t dim)
{
	const __m256i positive = _mm256_set1_epi32(0x7fffffff);
	float wide[KVR_DIM_MAX + CHUNK] = {0};
	uint32_t bits[SUMS], most = 0;
	__m256i top = _mm256_setzero_si256();
	__m256 scale;
	float largest;

	kvr_widen(wide, query, dtype, dim);
	/* Magnitudes order like their bits, and infinity and NaN come last. */
	for (uint32_t i = 0; i < dim; i += SUMS)
		top = _mm256_max_epi32(top,
			_mm256_and_si256(positive, _mm256_castps_si256(_mm256_loadu_ps(wide + i))));
	_mm256_storeu_si256((__m256i *)(void *)bits, top);
	for (uint32_t i = 0; i < SUMS; i++)
		most = bits[i] > most ? bits[i] : most;
	largest = kvr_float_of_bits(most);
	if (!(largest <= FLT_MAX))
		return NAN;
	scale = _mm256_set1_ps(largest >= KVR_RECALL_QUERY_MIN ? KVR_RECALL_STEPS / largest : 0.0f);
	for (uint32_t i = 0; i < dim; i += CHUNK) {
		const __m256i a =
			_mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(wide + i), scale));
		const __m256i b =
			_mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(wide + i + SUMS), scale));

		_mm256_storeu_si256((__m256i *)(void *)(to + i),
			_mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8));
	}
	return largest / KVR_RECALL_STEPS;
}

static void prepare(uint8_t *block, float *steps, const uint8_t *query, enum kvr_dtype dtype,
	uint32_t heads, uint32_t dim)
{
	const uint32_t padded = chunks_of(dim) * CHUNK;
	int16_t *to = (int16_t *)(void *)block;

	/* Three heads are scored as four: the fourth is zeros. */
	memset(to, 0, (size_t)(heads + 1) * padded * sizeof(*to));
	for (uint32_t h = 0; h < heads; h++)
		steps[h] = round_query(to + (size_t)h * padded,
			query + h * dim * kvr_dtype_bytes(dtype), dtype, dim);
}

/* Sums each of 8 vectors: lane i of the result is the sum of vector i. */
static inline __attribute__((always_inline)) __m256i sum_each(const __m256i *v)
{
	const __m256i low =
		_mm256_hadd_epi32(_mm256_hadd_epi32(v[0], v[1]), _mm256_hadd_epi32(v[2], v[3]));
	const __m256i high =
		_mm256_hadd_epi32(_mm256_hadd_epi32(v[4], v[5]), _mm256_hadd_epi32(v[6], v[7]));

	return _mm256_add_epi32(_mm256_permute2x128_si256(low, high, 0x20),
		_mm256_permute2x128_si256(low, high, 0x31));
}

/* NaN to the bottom: maxps gives its second operand where the first is NaN. */
static inline __attribute__((always_inline)) __m256 hold(__m256 x)
{
	return _mm256_min_ps(_mm256_max_ps(x, _mm256_set1_ps(-KVR_RECALL_LOGIT_MAX)),
		_mm256_set1_ps(KVR_RECALL_LOGIT_MAX));
}

/* SUMS / heads clusters for `heads` (1, 2 or 4) heads; `row` are the means. */
static inline __attribute__((always_inline)) __m256i dots_of(const int16_t *query,
	const uint32_t heads, uint32_t dim, const int8_t *const *row, uint32_t chunks)
{
	const uint32_t clusters = SUMS / heads, rest = dim % CHUNK;
	__m256i sum[SUMS];

	/* Unrolled whole, so that the sums are registers. */
#pragma GCC unroll 8
	for (uint32_t i = 0; i < SUMS; i++)
		sum[i] = _mm256_setzero_si256();
	for (uint32_t k = 0; k < chunks; k++) {
#pragma GCC unroll 8
		for (uint32_t c = 0; c < clusters; c++) {
			const int8_t *from = row[c] + k * CHUNK;
			int8_t padded[CHUNK];
			__m256i mean;

			if (rest != 0 && k + 1 == chunks) {
				memset(padded, 0, sizeof(padded));
				memcpy(padded, from, rest);
				from = padded;
			}
			mean = _mm256_cvtepi8_epi16(
				_mm_loadu_si128((const __m128i *)(const void *)from));
#pragma GCC unroll 4
			for (uint32_t h = 0; h < heads; h++) {
				const __m256i q = _mm256_loadu_si256(
					(const __m256i *)(const void *)(query +
									(h * chunks + k) * CHUNK));
				__m256i *s = &sum[h * clusters + c];

				*s = _mm256_add_epi32(*s, _mm256_madd_epi16(mean, q));
			}
		}
	}
	return sum_each(sum);
}

static inline __attribute__((always_inline)) void dots_heads(const int16_t *query,
	const uint32_t heads, uint32_t dim, const struct kvr_recall_means *means, float *dots,
	size_t stride)
{
	const uint32_t clusters = SUMS / heads, chunks = chunks_of(dim);

	for (uint32_t c = 0; c < means->count; c += clusters) {
		const uint32_t left = means->count - c;
		const char *coming = (const char *)(means->next + (size_t)c * dim);
		const int8_t *row[SUMS];
		float sums[SUMS], step[SUMS];
		__m256 products;

		for (size_t i = 0; i < (size_t)clusters * dim; i += 64)
			_mm_prefetch(coming + i, _MM_HINT_T0);
		/* Behind the last mean, the last one again. */
		for (uint32_t i = 0; i < clusters; i++)
			row[i] = means->plane + (size_t)(c + (i < left ? i : left - 1)) * dim;
		for (uint32_t i = 0; i < SUMS; i++)
			step[i] = means->step[c + (i % clusters < left ? i % clusters : 0)];
		products = _mm256_mul_ps(
			_mm256_cvtepi32_ps(dots_of(query, heads, dim, row, chunks)),
			_mm256_mul_ps(_mm256_loadu_ps(step), _mm256_set1_ps(means->factor)));
		_mm256_storeu_ps(sums, hold(products));
		for (uint32_t h = 0; h < heads; h++)
			memcpy(dots + h * stride + c, sums + h * clusters,
				clusters * sizeof(*sums));
	}
}

static void dots(const uint8_t *block, uint32_t heads, uint32_t dim,
	const struct kvr_recall_means *means, float *out, size_t stride)
{
	const size_t padded = chunks_of(dim) * CHUNK;

	for (uint32_t h = 0; h < heads; h += 4) {
		const int16_t *query = (const int16_t *)(const void *)block + h * padded;
		float *to = out + h * stride;

		if (heads - h == 1)
			dots_heads(query, 1, dim, means, to, stride);
		else if (heads - h == 2)
			dots_heads(query, 2, dim, means, to, stride);
		else
			dots_heads(query, 4, dim, means, to, stride);
	}
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

static void spread(const float *from, float *dot, const float *tokens, uint32_t count, float scale,
	float part, float *density)
{
	const __m256 by = _mm256_set1_ps(scale), depth = _mm256_set1_ps(-KVR_RECALL_DEPTH);
	__m256 most = _mm256_set1_ps(-KVR_RECALL_LOGIT_MAX);
	__m256 sum = _mm256_setzero_ps();

	for (uint32_t c = 0; c < count; c += SUMS) {
		const __m256 x = hold(_mm256_mul_ps(_mm256_load_ps(from + c), by));

		_mm256_store_ps(dot + c, x);
		most = _mm256_max_ps(most, x);
	}
	most = _mm256_set1_ps(sum_lanes(most, 1));
	for (uint32_t c = 0; c < count; c += SUMS) {
		const __m256 x = _mm256_sub_ps(_mm256_load_ps(dot + c), most);
		const __m256 e = kvr_exp8(_mm256_max_ps(x, depth));

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

/* SPDX-License-Identifier: Apache-2.0 */
/* recall_avx512.c: recall's inner loops for AVX-512 (F, BW, DQ, VL).
 *
 * A mean of 8 bits is widened to 16, 32 elements a vector, and multiplied with the queries in pairs, the
 * sums in 32 bits. Sixteen sums are kept in registers, of 16 clusters for one head, of 8 for two or of 4
 * for four, so that a mean is widened once for the heads and a query read once for the clusters. */

#include <float.h>
#include <math.h>

#include "kernels/exp.h"
#include "kernels/recall.h"
#include "kernels/widen.h"

#define SUMS  16u
#define CHUNK 32u /* elements of a mean per step */

static uint32_t chunks_of(uint32_t dim)
{
	return (dim + CHUNK - 1) / CHUNK;
}

static void prepare(uint8_t *block, float *steps, const uint8_t *query, enum kvr_dtype dtype,
	uint32_t heads, uint32_t dim)
{
	const uint32_t padded = chunks_of(dim) * CHUNK;
	int16_t *to = (int16_t *)(void *)block;

	/* Three heads are scored as four: the fourth is zeros. */
	memset(to, 0, (size_t)(heads + 1) * padded * sizeof(*to));
	for (uint32_t h = 0; h < heads; h++)
		steps[h] = kvr_recall_round_avx512(to + (size_t)h * padded,
			query + h * dim * kvr_dtype_bytes(dtype), dtype, dim);
}

/* To fixed point; writes up to the next multiple of 16. Returns the step, or NaN. */
float kvr_recall_round_avx512(int16_t *to, const uint8_t *query, enum kvr_dtype dtype, uint32_t dim)
{
	const __m512i positive = _mm512_set1_epi32(0x7fffffff);
	__m512i most = _mm512_setzero_si512();
	float largest;
	__m512 scale;

	/* Magnitudes order like their bits, and infinity and NaN come last. */
	for (uint32_t i = 0; i < dim; i += 16)
		most = _mm512_max_epu32(
			most, _mm512_and_si512(positive,
				      _mm512_castps_si512(kvr_widen16(query, dtype, i, dim))));
	largest = kvr_float_of_bits(_mm512_reduce_max_epu32(most));
	if (!(largest <= FLT_MAX))
		largest = NAN;
	scale = _mm512_set1_ps(largest >= KVR_RECALL_QUERY_MIN ? KVR_RECALL_STEPS / largest : 0.0f);
	for (uint32_t i = 0; i < dim; i += 16) {
		const __m512 x = _mm512_mul_ps(kvr_widen16(query, dtype, i, dim), scale);

		_mm256_storeu_si256(
			(__m256i *)(void *)(to + i), _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(x)));
	}
	return largest / KVR_RECALL_STEPS;
}

/* Sums each of 16 vectors: lane i of the result is the sum of vector i. */
static inline __attribute__((always_inline)) __m512i sum_each(const __m512i *v)
{
	__m512i quad[4];

#pragma GCC unroll 4
	for (int i = 0; i < 4; i++) {
		const __m512i *w = v + i * 4;
		const __m512i ab = _mm512_add_epi32(
			_mm512_unpacklo_epi32(w[0], w[1]), _mm512_unpackhi_epi32(w[0], w[1]));
		const __m512i cd = _mm512_add_epi32(
			_mm512_unpacklo_epi32(w[2], w[3]), _mm512_unpackhi_epi32(w[2], w[3]));

		quad[i] = _mm512_add_epi32(
			_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
	}
	const __m512i low = _mm512_add_epi32(_mm512_shuffle_i32x4(quad[0], quad[1], 0x88),
		_mm512_shuffle_i32x4(quad[0], quad[1], 0xdd));
	const __m512i high = _mm512_add_epi32(_mm512_shuffle_i32x4(quad[2], quad[3], 0x88),
		_mm512_shuffle_i32x4(quad[2], quad[3], 0xdd));

	return _mm512_add_epi32(
		_mm512_shuffle_i32x4(low, high, 0x88), _mm512_shuffle_i32x4(low, high, 0xdd));
}

/* NaN to the bottom: maxps gives its second operand where the first is NaN. */
static inline __attribute__((always_inline)) __m512 hold(__m512 x)
{
	return _mm512_min_ps(_mm512_max_ps(x, _mm512_set1_ps(-KVR_RECALL_LOGIT_MAX)),
		_mm512_set1_ps(KVR_RECALL_LOGIT_MAX));
}

/* SUMS / heads clusters for `heads` (1, 2 or 4) heads; `row` are the means. */
static inline __attribute__((always_inline)) __m512i dots_of(const int16_t *query,
	const uint32_t heads, uint32_t padded, const int8_t *const *row, uint32_t chunks,
	__mmask32 last)
{
	const uint32_t clusters = SUMS / heads;
	__m512i sum[SUMS];

	/* Unrolled whole, so that the arrays are registers. */
#pragma GCC unroll 16
	for (uint32_t i = 0; i < SUMS; i++)
		sum[i] = _mm512_setzero_si512();
	for (uint32_t k = 0; k < chunks; k++) {
		const __mmask32 mask = k + 1 == chunks ? last : 0xffffffffu;
		__m512i part[4];

#pragma GCC unroll 4
		for (uint32_t h = 0; h < heads; h++)
			part[h] = _mm512_loadu_si512(query + h * padded + k * CHUNK);
#pragma GCC unroll 16
		for (uint32_t c = 0; c < clusters; c++) {
			const __m512i mean = _mm512_cvtepi8_epi16(
				_mm256_maskz_loadu_epi8(mask, row[c] + k * CHUNK));

#pragma GCC unroll 4
			for (uint32_t h = 0; h < heads; h++) {
				__m512i *s = &sum[h * clusters + c];

				*s = _mm512_add_epi32(*s, _mm512_madd_epi16(mean, part[h]));
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
	const uint32_t rest = dim - (chunks - 1) * CHUNK;
	const __mmask32 last = rest == CHUNK ? 0xffffffffu : (1u << rest) - 1;
	const __m512 factor = _mm512_set1_ps(means->factor);
	float sums[SUMS] __attribute__((aligned(64)));

	for (uint32_t c = 0; c < means->count; c += clusters) {
		const uint32_t left = means->count - c;
		const char *coming = (const char *)(means->next + (size_t)c * dim);
		const int8_t *row[SUMS];
		__m512 step;

		for (size_t i = 0; i < (size_t)clusters * dim; i += 64)
			_mm_prefetch(coming + i, _MM_HINT_T0);
		/* Behind the last mean, the last one again. */
		for (uint32_t i = 0; i < clusters; i++)
			row[i] = means->plane + (size_t)(c + (i < left ? i : left - 1)) * dim;
		step = _mm512_maskz_loadu_ps(
			kvr_lanes16(left < clusters ? left : clusters), means->step + c);
		/* As often as there are heads. */
		if (heads == 2)
			step = _mm512_shuffle_f32x4(step, step, 0x44);
		if (heads == 4)
			step = _mm512_shuffle_f32x4(step, step, 0x00);
		step = _mm512_mul_ps(step, factor);
		_mm512_store_ps(
			sums, hold(_mm512_mul_ps(_mm512_cvtepi32_ps(dots_of(query, heads,
							 chunks * CHUNK, row, chunks, last)),
				      step)));
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

static void spread(const float *from, float *dot, const float *tokens, uint32_t count, float scale,
	float part, float *density)
{
	const __m512 by = _mm512_set1_ps(scale), depth = _mm512_set1_ps(-KVR_RECALL_DEPTH);
	__m512 most = _mm512_set1_ps(-KVR_RECALL_LOGIT_MAX);
	__m512 sum = _mm512_setzero_ps();

	for (uint32_t c = 0; c < count; c += 16) {
		const __m512 x = hold(_mm512_mul_ps(_mm512_load_ps(from + c), by));

		_mm512_store_ps(dot + c, x);
		most = _mm512_max_ps(most, x);
	}
	most = _mm512_set1_ps(_mm512_reduce_max_ps(most));
	for (uint32_t c = 0; c < count; c += 16) {
		const __m512 x = _mm512_sub_ps(_mm512_load_ps(dot + c), most);
		const __m512 e = kvr_exp16(_mm512_max_ps(x, depth));

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

/* SPDX-License-Identifier: Apache-2.0 */
/* attend_avx2.c: the inner loops of exact attention for AVX2 with FMA and F16C.
 *
 * Scores: tiles of 4 queries x 4 rows, each product summed along the dimensions in a register of its
 * own. Gather: 4 queries x 2 registers of values. One query alone has tiles of 1 x 4 and 1 x 2. */
#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "kernels/attend.h"
#include "kernels/widen.h"

#define LANES 8u
#define ROWS  4u /* of a tile */
#define PARTS 2u /* registers of values of a tile */

KVR_STATIC_ASSERT(KVR_ATTEND_ROWS % ROWS == 0);
KVR_STATIC_ASSERT(KVR_ATTEND_PAD % (PARTS * LANES) == 0);

static void widen(float *to, size_t stride, const uint8_t *from, enum kvr_dtype dtype, size_t dim,
	size_t rows)
{
	for (size_t r = 0; r < rows; r++, to += stride) {
		kvr_widen(to, from + r * dim * kvr_dtype_bytes(dtype), dtype, dim);
		memset(to + dim, 0, (stride - dim) * sizeof(*to));
	}
}

static inline float reduce(__m256 sum)
{
	__m128 four = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps(sum, 1));

	four = _mm_add_ps(four, _mm_movehl_ps(four, four));
	return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}

static inline float reduce_max(__m256 peak)
{
	__m128 four = _mm_max_ps(_mm256_castps256_ps128(peak), _mm256_extractf128_ps(peak, 1));

	four = _mm_max_ps(four, _mm_movehl_ps(four, four));
	return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
}

/* Scores of `queries` queries, a constant where it is called, and ROWS rows. */
static inline __attribute__((always_inline)) void score_tile(const struct kvr_attend_block *block,
	size_t first_query, size_t first_row, const size_t queries)
{
	const size_t stride = block->key_stride;
	const float *query = block->queries + first_query * stride;
	const float *key = block->keys + first_row * stride;
	float *scores = block->scores + (size_t)first_query * KVR_ATTEND_ROWS + first_row;
	__m256 sum[KVR_ATTEND_QUERIES][ROWS];

	KVR_UNROLL
	for (size_t q = 0; q < queries; q++) {
		KVR_UNROLL
		for (size_t r = 0; r < ROWS; r++)
			sum[q][r] = _mm256_setzero_ps();
	}
	for (size_t i = 0; i < stride; i += LANES) {
		__m256 keys[ROWS];

		KVR_UNROLL
		for (size_t r = 0; r < ROWS; r++)
			keys[r] = _mm256_load_ps(key + r * stride + i);
		KVR_UNROLL
		for (size_t q = 0; q < queries; q++) {
			const __m256 part = _mm256_load_ps(query + q * stride + i);

			KVR_UNROLL
			for (size_t r = 0; r < ROWS; r++)
				sum[q][r] = _mm256_fmadd_ps(part, keys[r], sum[q][r]);
		}
	}
	KVR_UNROLL
	for (size_t q = 0; q < queries; q++) {
		KVR_UNROLL
		for (size_t r = 0; r < ROWS; r++)
			scores[q * KVR_ATTEND_ROWS + r] = reduce(sum[q][r]);
	}
}

static void score(const struct kvr_attend_block *block)
{
	const size_t padded = (block->row_count + ROWS - 1) / ROWS * ROWS;

	memset(block->keys + (size_t)block->row_count * block->key_stride, 0,
		(size_t)(padded - block->row_count) * block->key_stride * sizeof(float));
	for (size_t r = 0; r < padded; r += ROWS) {
		if (block->query_count == 1)
			score_tile(block, 0, r, 1);
		else
			for (size_t q = 0; q < block->query_count; q += KVR_ATTEND_QUERIES)
				score_tile(block, q, r, KVR_ATTEND_QUERIES);
	}
}

/* exp(x) for x <= 0; relative error below 3e-7, and 0 where the result is no normal float. 2^n times
 * the Taylor polynomial of the rest, whose magnitude is at most log(2) / 2. */
static inline __m256 exponential(__m256 x)
{
	const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)),
		_MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
	const __m256 normal = _mm256_cmp_ps(x, _mm256_set1_ps(-87.0f), _CMP_GT_OQ);
	const __m256i power = _mm256_slli_epi32(
		_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
	__m256 rest = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693145752f), x); /* log(2), in two */
	__m256 sum = _mm256_set1_ps(1.0f / 720.0f);

	rest = _mm256_fnmadd_ps(n, _mm256_set1_ps(1.42860677e-6f), rest);
	sum = _mm256_fmadd_ps(sum, rest, _mm256_set1_ps(1.0f / 120.0f));
	sum = _mm256_fmadd_ps(sum, rest, _mm256_set1_ps(1.0f / 24.0f));
	sum = _mm256_fmadd_ps(sum, rest, _mm256_set1_ps(1.0f / 6.0f));
	sum = _mm256_fmadd_ps(sum, rest, _mm256_set1_ps(0.5f));
	sum = _mm256_fmadd_ps(sum, rest, _mm256_set1_ps(1.0f));
	sum = _mm256_fmadd_ps(sum, rest, _mm256_set1_ps(1.0f));
	return _mm256_and_ps(normal, _mm256_mul_ps(sum, _mm256_castsi256_ps(power)));
}

static float soften(float *scores, float *max)
{
	__m256 peak = _mm256_set1_ps(*max);
	__m256 sum = _mm256_setzero_ps();

	for (size_t r = 0; r < KVR_ATTEND_ROWS; r += LANES)
		peak = _mm256_max_ps(peak, _mm256_load_ps(scores + r));
	*max = reduce_max(peak);
	if (*max == -INFINITY) {
		memset(scores, 0, KVR_ATTEND_ROWS * sizeof(*scores));
		return 0.0f;
	}
	for (size_t r = 0; r < KVR_ATTEND_ROWS; r += LANES) {
		const __m256 share = exponential(
			_mm256_sub_ps(_mm256_load_ps(scores + r), _mm256_set1_ps(*max)));

		_mm256_store_ps(scores + r, share);
		sum = _mm256_add_ps(sum, share);
	}
	return reduce(sum);
}

/* `queries` queries, a constant where it is called, and PARTS registers of values from `i` on. */
static inline __attribute__((always_inline)) void gather_tile(
	const struct kvr_attend_block *block, size_t first_query, size_t i, const size_t queries)
{
	const size_t stride = block->value_stride;
	const float *scores = block->scores + (size_t)first_query * KVR_ATTEND_ROWS;
	float *out = block->out + first_query * stride + i;
	__m256 sum[KVR_ATTEND_QUERIES][PARTS];

	KVR_UNROLL
	for (size_t q = 0; q < queries; q++) {
		const __m256 factor = _mm256_set1_ps(block->factor[first_query + q]);

		KVR_UNROLL
		for (size_t p = 0; p < PARTS; p++)
			sum[q][p] =
				_mm256_mul_ps(_mm256_load_ps(out + q * stride + p * LANES), factor);
	}
	for (size_t r = 0; r < block->row_count; r++) {
		const float *value = block->values + r * stride + i;
		__m256 values[PARTS];

		KVR_UNROLL
		for (size_t p = 0; p < PARTS; p++)
			values[p] = _mm256_load_ps(value + p * LANES);
		KVR_UNROLL
		for (size_t q = 0; q < queries; q++) {
			const __m256 share = _mm256_set1_ps(scores[q * KVR_ATTEND_ROWS + r]);

			KVR_UNROLL
			for (size_t p = 0; p < PARTS; p++)
				sum[q][p] = _mm256_fmadd_ps(share, values[p], sum[q][p]);
		}
	}
	KVR_UNROLL
	for (size_t q = 0; q < queries; q++) {
		KVR_UNROLL
		for (size_t p = 0; p < PARTS; p++)
			_mm256_store_ps(out + q * stride + p * LANES, sum[q][p]);
	}
}

static void gather(const struct kvr_attend_block *block)
{
	for (size_t i = 0; i < block->value_stride; i += PARTS * LANES) {
		if (block->query_count == 1)
			gather_tile(block, 0, i, 1);
		else
			for (size_t q = 0; q < block->query_count; q += KVR_ATTEND_QUERIES)
				gather_tile(block, q, i, KVR_ATTEND_QUERIES);
	}
}

const struct kvr_attend_ops kvr_attend_avx2 = {
	.widen = widen, .score = score, .soften = soften, .gather = gather};

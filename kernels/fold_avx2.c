/* SPDX-License-Identifier: Apache-2.0 */
/* fold_avx2.c: the fold's inner loops for AVX2 with FMA.
 *
 * Squares: as recall_avx2.c's dots, in floats: eight sums in registers, of 8 clusters for one head, of 4 for two
 * or of 2 for four. Gather: 16 values of four heads (or fewer) in registers, over all clusters
 * of the block. */

#include "kernels/exp.h"
#include "kernels/fold.h"
#include "kernels/widen.h"

#define SUMS  8u
#define LANES 8u
#define PARTS 2u /* registers of values per head */

/* Sums each of 8 vectors: lane i of the result is the sum of vector i. */
static inline __attribute__((always_inline)) __m256 sum_each(const __m256 *v)
{
	const __m256 low = _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
	const __m256 high = _mm256_hadd_ps(_mm256_hadd_ps(v[4], v[5]), _mm256_hadd_ps(v[6], v[7]));

	return _mm256_add_ps(
		_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31));
}

static inline __attribute__((always_inline)) void fetch(const void *from, size_t at, size_t bytes)
{
	for (size_t i = 0; i < bytes; i += 64)
		_mm_prefetch((const char *)from + at + i, _MM_HINT_T0);
}

/* For `heads` (1, 2 or 4) heads. */
static inline __attribute__((always_inline)) void square_heads(
	const struct kvr_fold_block *block, uint32_t first, const uint32_t heads)
{
	const uint32_t clusters = SUMS / heads, dim = block->key_dim;
	const size_t stride = KVR_FOLD_ROUND(dim);
	const float *squares = block->squares + first * stride;
	float *terms = block->terms + (size_t)first * KVR_FOLD_CLUSTERS;
	float sums[SUMS] __attribute__((aligned(32)));

	for (uint32_t c = 0; c < block->count; c += clusters) {
		const uint32_t left = block->count - c;
		const uint8_t *row[SUMS];
		__m256 sum[SUMS];

		fetch(block->next_spread, (size_t)c * dim, (size_t)clusters * dim);
		/* Behind the last cluster, the last one again. */
#pragma GCC unroll 8
		for (uint32_t i = 0; i < clusters; i++)
			row[i] = block->spread + (size_t)(c + (i < left ? i : left - 1)) * dim;
#pragma GCC unroll 8
		for (uint32_t i = 0; i < SUMS; i++)
			sum[i] = _mm256_setzero_ps();
		for (uint32_t i = 0; i < dim; i += LANES) {
			__m256 part[KVR_FOLD_HEADS];

#pragma GCC unroll 4
			for (uint32_t h = 0; h < heads; h++)
				part[h] = _mm256_load_ps(squares + h * stride + i);
#pragma GCC unroll 8
			for (uint32_t k = 0; k < clusters; k++) {
				const __m256 spread =
					_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(
						(const __m128i *)(const void *)(row[k] + i))));

#pragma GCC unroll 4
				for (uint32_t h = 0; h < heads; h++) {
					__m256 *s = &sum[h * clusters + k];

					*s = _mm256_fmadd_ps(spread, part[h], *s);
				}
			}
		}
		_mm256_store_ps(sums, sum_each(sum));
#pragma GCC unroll 4
		for (uint32_t h = 0; h < heads; h++)
			memcpy(terms + h * KVR_FOLD_CLUSTERS + c, sums + h * clusters,
				clusters * sizeof(*sums));
	}
}

static void square(const struct kvr_fold_block *block)
{
	for (uint32_t h = 0; h < block->heads; h += KVR_FOLD_HEADS) {
		if (block->heads == 1)
			square_heads(block, h, 1);
		else if (block->heads == 2)
			square_heads(block, h, 2);
		else
			square_heads(block, h, KVR_FOLD_HEADS);
	}
}

/* NaN to the bottom: maxps gives its second operand where the first is NaN. */
static inline __attribute__((always_inline)) __m256 hold(__m256 x)
{
	return _mm256_min_ps(_mm256_max_ps(x, _mm256_set1_ps(-KVR_RECALL_LOGIT_MAX)),
		_mm256_set1_ps(KVR_RECALL_LOGIT_MAX));
}

/* In an order that does not depend on anything but the lanes. (P3) */
static float reduce(__m256 v, bool largest)
{
	float lane[LANES], result;

	_mm256_storeu_ps(lane, v);
	result = lane[0];
	for (uint32_t i = 1; i < LANES; i++) {
		if (!largest)
			result += lane[i];
		else if (lane[i] > result)
			result = lane[i];
	}
	return result;
}

static float weigh(float *terms, const struct kvr_fold_weights *weights, float *max)
{
	const __m256 half = _mm256_set1_ps(0.5f), depth = _mm256_set1_ps(-KVR_RECALL_DEPTH);
	__m256 a[KVR_FOLD_CLUSTERS / LANES], term[KVR_FOLD_CLUSTERS / LANES];
	__m256 most = _mm256_set1_ps(*max), sum = _mm256_setzero_ps();

	KVR_UNROLL
	for (uint32_t i = 0; i < KVR_FOLD_CLUSTERS / LANES; i++) {
		const uint32_t c = i * LANES;
		const __m256 rows = _mm256_load_ps(weights->rows + c);
		const __m256 logit = hold(_mm256_mul_ps(
			_mm256_loadu_ps(weights->dots + c), _mm256_set1_ps(weights->scale)));
		const __m256 root = _mm256_mul_ps(_mm256_sqrt_ps(_mm256_load_ps(terms + c)),
			_mm256_load_ps(weights->root + c));
		const __m256 sigma =
			_mm256_min_ps(_mm256_mul_ps(root, _mm256_set1_ps(weights->sigma_scale)),
				_mm256_set1_ps(KVR_RECALL_LOGIT_MAX));
		const __m256 rest =
			kvr_exp8(_mm256_max_ps(_mm256_mul_ps(sigma, _mm256_set1_ps(-2.0f)), depth));

		a[i] = _mm256_blendv_ps(_mm256_set1_ps(KVR_FOLD_LOWEST),
			_mm256_add_ps(logit, sigma),
			_mm256_cmp_ps(rows, _mm256_setzero_ps(), _CMP_GT_OQ));
		term[i] = _mm256_mul_ps(rows, _mm256_fmadd_ps(half, rest, half));
		most = _mm256_max_ps(most, a[i]);
	}
	*max = reduce(most, true);
	most = _mm256_set1_ps(*max);
	KVR_UNROLL
	for (uint32_t i = 0; i < KVR_FOLD_CLUSTERS / LANES; i++) {
		term[i] = _mm256_mul_ps(
			term[i], kvr_exp8(_mm256_max_ps(_mm256_sub_ps(a[i], most), depth)));
		_mm256_store_ps(terms + i * LANES, term[i]);
		sum = _mm256_add_ps(sum, term[i]);
	}
	return reduce(sum, false);
}

/* PARTS vectors of values of `heads` (1, 2 or 4) heads. */
static inline __attribute__((always_inline)) void gather_part(
	const struct kvr_fold_block *block, uint32_t first, const uint32_t heads, uint32_t at)
{
	const uint32_t dim = block->value_dim;
	const size_t stride = KVR_FOLD_ROUND(dim);
	const float *terms = block->terms + (size_t)first * KVR_FOLD_CLUSTERS;
	const uint16_t *value = block->value + at;
	float *out = block->out + first * stride + at;
	__m256 sum[KVR_FOLD_HEADS][PARTS];

#pragma GCC unroll 4
	for (uint32_t h = 0; h < heads; h++) {
		const __m256 factor = _mm256_set1_ps(block->factor[first + h]);

#pragma GCC unroll 4
		for (uint32_t i = 0; i < PARTS; i++)
			sum[h][i] =
				_mm256_mul_ps(factor, _mm256_load_ps(out + h * stride + i * LANES));
	}
	for (uint32_t c = 0; c < block->count; c++, value += dim) {
		__m256 wide[PARTS];

#pragma GCC unroll 4
		for (uint32_t i = 0; i < PARTS; i++)
			wide[i] = _mm256_castsi256_ps(_mm256_slli_epi32(
				_mm256_cvtepu16_epi32(_mm_loadu_si128(
					(const __m128i *)(const void *)(value + i * LANES))),
				16));
#pragma GCC unroll 4
		for (uint32_t h = 0; h < heads; h++) {
			const __m256 term = _mm256_set1_ps(terms[h * KVR_FOLD_CLUSTERS + c]);

#pragma GCC unroll 4
			for (uint32_t i = 0; i < PARTS; i++)
				sum[h][i] = _mm256_fmadd_ps(term, wide[i], sum[h][i]);
		}
	}
#pragma GCC unroll 4
	for (uint32_t h = 0; h < heads; h++)
#pragma GCC unroll 4
		for (uint32_t i = 0; i < PARTS; i++)
			_mm256_store_ps(out + h * stride + i * LANES, sum[h][i]);
}

static inline __attribute__((always_inline)) void gather_heads(
	const struct kvr_fold_block *block, uint32_t first, const uint32_t heads)
{
	const uint32_t stride = KVR_FOLD_ROUND(block->value_dim);
	const size_t bytes = (size_t)block->count * block->value_dim * sizeof(*block->value);

	KVR_STATIC_ASSERT(KVR_FOLD_PAD % (PARTS * LANES) == 0);
	for (uint32_t at = 0; at < stride; at += PARTS * LANES) {
		/* A part of what comes, as large as this one. */
		fetch(block->next_value, bytes * at / stride, bytes * PARTS * LANES / stride);
		gather_part(block, first, heads, at);
	}
}

static void gather(const struct kvr_fold_block *block)
{
	for (uint32_t h = 0; h < block->heads; h += KVR_FOLD_HEADS) {
		if (block->heads == 1)
			gather_heads(block, h, 1);
		else if (block->heads == 2)
			gather_heads(block, h, 2);
		else
			gather_heads(block, h, KVR_FOLD_HEADS);
	}
}

const struct kvr_fold_ops kvr_fold_avx2 = {square, weigh, gather};

/* SPDX-License-Identifier: Apache-2.0 */
/* fold_avx512.c: the fold's inner loops for AVX-512 (F, BW, DQ, VL).
 *
 * Squares: as recall_avx512.c's dots, in floats: sixteen sums in registers, of 16 clusters for one head, of 8
 * for two or of 4 for four. Gather: up to 64 values of four heads (or fewer) in registers, over all clusters
 * of the block. */

#include "kernels/exp.h"
#include "kernels/fold.h"
#include "kernels/widen.h"

#define SUMS  16u
#define LANES 16u

/* Sums each of 16 vectors: lane i of the result is the sum of vector i. */
static inline __attribute__((always_inline)) __m512 sum_each(const __m512 *v)
{
	__m512 quad[4];

#pragma GCC unroll 4
	for (int i = 0; i < 4; i++) {
		const __m512 *w = v + i * 4;
		const __m512d ab = _mm512_castps_pd(_mm512_add_ps(
			_mm512_unpacklo_ps(w[0], w[1]), _mm512_unpackhi_ps(w[0], w[1])));
		const __m512d cd = _mm512_castps_pd(_mm512_add_ps(
			_mm512_unpacklo_ps(w[2], w[3]), _mm512_unpackhi_ps(w[2], w[3])));

		quad[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd)),
			_mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)));
	}
	const __m512 low = _mm512_add_ps(_mm512_shuffle_f32x4(quad[0], quad[1], 0x88),
		_mm512_shuffle_f32x4(quad[0], quad[1], 0xdd));
	const __m512 high = _mm512_add_ps(_mm512_shuffle_f32x4(quad[2], quad[3], 0x88),
		_mm512_shuffle_f32x4(quad[2], quad[3], 0xdd));

	return _mm512_add_ps(
		_mm512_shuffle_f32x4(low, high, 0x88), _mm512_shuffle_f32x4(low, high, 0xdd));
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
	float sums[SUMS] __attribute__((aligned(64)));

	for (uint32_t c = 0; c < block->count; c += clusters) {
		const uint32_t left = block->count - c;
		const uint8_t *row[SUMS];
		__m512 sum[SUMS];

		fetch(block->next_spread, (size_t)c * dim, (size_t)clusters * dim);
		/* Behind the last cluster, the last one again. */
#pragma GCC unroll 16
		for (uint32_t i = 0; i < clusters; i++)
			row[i] = block->spread + (size_t)(c + (i < left ? i : left - 1)) * dim;
#pragma GCC unroll 16
		for (uint32_t i = 0; i < SUMS; i++)
			sum[i] = _mm512_setzero_ps();
		for (uint32_t i = 0; i < dim; i += LANES) {
			__m512 part[KVR_FOLD_HEADS];

#pragma GCC unroll 4
			for (uint32_t h = 0; h < heads; h++)
				part[h] = _mm512_load_ps(squares + h * stride + i);
#pragma GCC unroll 16
			for (uint32_t k = 0; k < clusters; k++) {
				const __m512 spread =
					_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(
						(const __m128i *)(const void *)(row[k] + i))));

#pragma GCC unroll 4
				for (uint32_t h = 0; h < heads; h++) {
					__m512 *s = &sum[h * clusters + k];

					*s = _mm512_fmadd_ps(spread, part[h], *s);
				}
			}
		}
		_mm512_store_ps(sums, sum_each(sum));
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
static inline __attribute__((always_inline)) __m512 hold(__m512 x)
{
	return _mm512_min_ps(_mm512_max_ps(x, _mm512_set1_ps(-KVR_RECALL_LOGIT_MAX)),
		_mm512_set1_ps(KVR_RECALL_LOGIT_MAX));
}

static float weigh(float *terms, const struct kvr_fold_weights *weights, float *max)
{
	const __m512 half = _mm512_set1_ps(0.5f), depth = _mm512_set1_ps(-KVR_RECALL_DEPTH);
	__m512 a[KVR_FOLD_CLUSTERS / LANES], term[KVR_FOLD_CLUSTERS / LANES];
	__m512 most = _mm512_set1_ps(*max), sum = _mm512_setzero_ps();

	KVR_UNROLL
	for (uint32_t i = 0; i < KVR_FOLD_CLUSTERS / LANES; i++) {
		const uint32_t c = i * LANES;
		const __m512 rows = _mm512_load_ps(weights->rows + c);
		const __m512 logit = hold(_mm512_mul_ps(
			_mm512_loadu_ps(weights->dots + c), _mm512_set1_ps(weights->scale)));
		const __m512 root = _mm512_mul_ps(_mm512_sqrt_ps(_mm512_load_ps(terms + c)),
			_mm512_load_ps(weights->root + c));
		const __m512 sigma =
			_mm512_min_ps(_mm512_mul_ps(root, _mm512_set1_ps(weights->sigma_scale)),
				_mm512_set1_ps(KVR_RECALL_LOGIT_MAX));
		const __m512 rest = kvr_exp16(
			_mm512_max_ps(_mm512_mul_ps(sigma, _mm512_set1_ps(-2.0f)), depth));

		a[i] = _mm512_mask_add_ps(_mm512_set1_ps(KVR_FOLD_LOWEST),
			_mm512_cmp_ps_mask(rows, _mm512_setzero_ps(), _CMP_GT_OQ), logit, sigma);
		term[i] = _mm512_mul_ps(rows, _mm512_fmadd_ps(half, rest, half));
		most = _mm512_max_ps(most, a[i]);
	}
	*max = _mm512_reduce_max_ps(most);
	most = _mm512_set1_ps(*max);
	KVR_UNROLL
	for (uint32_t i = 0; i < KVR_FOLD_CLUSTERS / LANES; i++) {
		term[i] = _mm512_mul_ps(
			term[i], kvr_exp16(_mm512_max_ps(_mm512_sub_ps(a[i], most), depth)));
		_mm512_store_ps(terms + i * LANES, term[i]);
		sum = _mm512_add_ps(sum, term[i]);
	}
	return _mm512_reduce_add_ps(sum);
}

/* `parts` vectors of values, a constant, of `heads` (1, 2 or 4) heads. */
static inline __attribute__((always_inline)) void gather_part(const struct kvr_fold_block *block,
	uint32_t first, const uint32_t heads, uint32_t at, const uint32_t parts)
{
	const uint32_t dim = block->value_dim;
	const size_t stride = KVR_FOLD_ROUND(dim);
	const float *terms = block->terms + (size_t)first * KVR_FOLD_CLUSTERS;
	const uint16_t *value = block->value + at;
	float *out = block->out + first * stride + at;
	__m512 sum[KVR_FOLD_HEADS][4];

#pragma GCC unroll 4
	for (uint32_t h = 0; h < heads; h++) {
		const __m512 factor = _mm512_set1_ps(block->factor[first + h]);

#pragma GCC unroll 4
		for (uint32_t i = 0; i < parts; i++)
			sum[h][i] =
				_mm512_mul_ps(factor, _mm512_load_ps(out + h * stride + i * LANES));
	}
	for (uint32_t c = 0; c < block->count; c++, value += dim) {
		__m512 wide[4];

#pragma GCC unroll 4
		for (uint32_t i = 0; i < parts; i++)
			wide[i] = _mm512_castsi512_ps(_mm512_slli_epi32(
				_mm512_cvtepu16_epi32(_mm256_loadu_si256(
					(const __m256i *)(const void *)(value + i * LANES))),
				16));
#pragma GCC unroll 4
		for (uint32_t h = 0; h < heads; h++) {
			const __m512 term = _mm512_set1_ps(terms[h * KVR_FOLD_CLUSTERS + c]);

#pragma GCC unroll 4
			for (uint32_t i = 0; i < parts; i++)
				sum[h][i] = _mm512_fmadd_ps(term, wide[i], sum[h][i]);
		}
	}
#pragma GCC unroll 4
	for (uint32_t h = 0; h < heads; h++)
#pragma GCC unroll 4
		for (uint32_t i = 0; i < parts; i++)
			_mm512_store_ps(out + h * stride + i * LANES, sum[h][i]);
}

static inline __attribute__((always_inline)) void gather_heads(
	const struct kvr_fold_block *block, uint32_t first, const uint32_t heads)
{
	const uint32_t stride = KVR_FOLD_ROUND(block->value_dim);
	const size_t bytes = (size_t)block->count * block->value_dim * sizeof(*block->value);
	uint32_t at = 0;

	for (; at + 4 * LANES <= stride; at += 4 * LANES) {
		/* A part of what comes, as large as this one. */
		fetch(block->next_value, bytes * at / stride, bytes * 4 * LANES / stride);
		gather_part(block, first, heads, at, 4);
	}
	if (at < stride)
		gather_part(block, first, heads, at, 2);
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

const struct kvr_fold_ops kvr_fold_avx512 = {square, weigh, gather};

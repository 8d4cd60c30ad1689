/* SPDX-License-Identifier: Apache-2.0 */
/* kmeans_avx512.c: the inner loops of k-means for AVX-512.
 *
 * A panel holds PANEL tokens, dimension by dimension, so that a register holds one dimension of 16
 * tokens. A block of centroids is broadcast against it; sums and the running argmax stay in
 * registers, and no sum ever needs a reduction across lanes:
 *
 *   panel [dim][PANEL]          VECTORS x BLOCK sums
 *     k: |16|16|16|16|    x     unit[c][k] ... unit[c + BLOCK - 1][k]
 *
 * A panel (dim 128: 32 KiB) stays in the first-level cache while all centroids pass by. */
#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "kernels/kmeans.h"
#include "kernels/widen.h"

#define LANES   16u
#define VECTORS 4u
#define PANEL   (VECTORS * LANES)
#define BLOCK   6u

KVR_STATIC_ASSERT(PANEL <= KVR_KMEANS_PANEL_MAX);
KVR_STATIC_ASSERT(KVR_KMEANS_PAD % LANES == 0);

float kvr_kmeans_dot_avx512(const float *a, const float *b, size_t count)
{
	__m512 even = _mm512_setzero_ps();
	__m512 odd = _mm512_setzero_ps();

	for (size_t i = 0; i < count; i += 2 * LANES) {
		even = _mm512_fmadd_ps(_mm512_load_ps(a + i), _mm512_load_ps(b + i), even);
		odd = _mm512_fmadd_ps(
			_mm512_load_ps(a + i + LANES), _mm512_load_ps(b + i + LANES), odd);
	}
	return _mm512_reduce_add_ps(_mm512_add_ps(even, odd));
}

bool kvr_kmeans_unit_avx512(float *vector, size_t count)
{
	const float square = kvr_kmeans_dot_avx512(vector, vector, count);
	__m512 scale;

	if (!(square >= KVR_KMEANS_SQUARE_MIN && square <= KVR_KMEANS_SQUARE_MAX))
		return false;
	scale = _mm512_set1_ps(1.0f / sqrtf(square));
	for (size_t i = 0; i < count; i += LANES)
		_mm512_store_ps(vector + i, _mm512_mul_ps(_mm512_load_ps(vector + i), scale));
	return true;
}

static void pack(float *panels, const struct kvr_kmeans_rows *keys)
{
	_Alignas(64) float wide[LANES][KVR_KMEANS_ROUND(KVR_DIM_MAX)];
	const size_t stride = keys->stride;
	const size_t padded = (keys->count + PANEL - 1) / PANEL * PANEL;

	for (size_t first = 0; first < padded; first += LANES) {
		float *panel = panels + (size_t)(first / PANEL) * PANEL * stride + first % PANEL;

		for (size_t i = 0; i < LANES; i++) {
			memset(wide[i], 0, stride * sizeof(float));
			if (first + i >= keys->count)
				continue;
			kvr_widen(wide[i], keys->row[first + i], keys->dtype, keys->dim);
			if (!kvr_kmeans_unit_avx512(wide[i], stride))
				kvr_kmeans_unit_exactly(wide[i], stride);
		}
		for (size_t k = 0; k < stride; k += LANES)
			kvr_transpose16(panel + k * PANEL, PANEL, wide[0] + k,
				KVR_KMEANS_ROUND(KVR_DIM_MAX));
	}
}

struct best {
	__m512 product[VECTORS];
	__m512i label[VECTORS];
};

/* `count` centroids, a constant where it is called, against one panel. */
static inline __attribute__((always_inline)) void block(struct best *best, const float *panel,
	const float *units, size_t dim, size_t stride, size_t first, const size_t count)
{
	__m512 sum[BLOCK][VECTORS];
	KVR_UNROLL
	for (size_t c = 0; c < count; c++) {
		KVR_UNROLL
		for (size_t v = 0; v < VECTORS; v++)
			sum[c][v] = _mm512_setzero_ps();
	}
	for (size_t k = 0; k < dim; k++) {
		__m512 key[VECTORS];
		KVR_UNROLL
		for (size_t v = 0; v < VECTORS; v++)
			key[v] = _mm512_load_ps(panel + k * PANEL + v * LANES);
		KVR_UNROLL
		for (size_t c = 0; c < count; c++) {
			const __m512 value = _mm512_set1_ps(units[c * stride + k]);
			KVR_UNROLL
			for (size_t v = 0; v < VECTORS; v++)
				sum[c][v] = _mm512_fmadd_ps(key[v], value, sum[c][v]);
		}
	}
	KVR_UNROLL
	for (size_t c = 0; c < count; c++) {
		const __m512i label = _mm512_set1_epi32((int)(first + c));
		KVR_UNROLL
		for (size_t v = 0; v < VECTORS; v++) {
			const __mmask16 more =
				_mm512_cmp_ps_mask(sum[c][v], best->product[v], _CMP_GT_OQ);

			best->product[v] = _mm512_mask_mov_ps(best->product[v], more, sum[c][v]);
			best->label[v] = _mm512_mask_mov_epi32(best->label[v], more, label);
		}
	}
}

static void assign(uint16_t *labels, const float *panels, const struct kvr_kmeans_rows *keys,
	const float *units, size_t cluster_count, float *work)
{
	const size_t stride = keys->stride;
	const size_t dim = keys->dim;

	(void)work;
	for (size_t first = 0; first < keys->count; first += PANEL) {
		const float *panel = panels + first * stride;
		struct best best;
		size_t c = 0;

		for (size_t v = 0; v < VECTORS; v++) {
			best.product[v] = _mm512_set1_ps(-2.0f);
			best.label[v] = _mm512_setzero_si512();
		}
		for (; c + BLOCK <= cluster_count; c += BLOCK)
			block(&best, panel, units + c * stride, dim, stride, c, BLOCK);
		for (; c + 2 <= cluster_count; c += 2)
			block(&best, panel, units + c * stride, dim, stride, c, 2);
		if (c < cluster_count)
			block(&best, panel, units + c * stride, dim, stride, c, 1);
		for (size_t v = 0; v < VECTORS; v++)
			_mm256_storeu_si256((__m256i *)(void *)(labels + first + v * LANES),
				_mm512_cvtepi32_epi16(best.label[v]));
	}
}

/* One dtype, a constant where it is called. */
static inline __attribute__((always_inline)) void add_of(float *sums,
	const struct kvr_kmeans_rows *rows, const uint16_t *labels, const enum kvr_dtype dtype)
{
	for (size_t t = 0; t < rows->count; t++) {
		float *sum = sums + (size_t)labels[t] * rows->stride;

		for (size_t i = 0; i < rows->dim; i += LANES)
			_mm512_store_ps(
				sum + i, _mm512_add_ps(_mm512_load_ps(sum + i),
						 kvr_widen16(rows->row[t], dtype, i, rows->dim)));
	}
}

void kvr_kmeans_add_avx512(float *sums, const struct kvr_kmeans_rows *rows, const uint16_t *labels)
{
	switch (rows->dtype) {
	case KVR_DTYPE_F32: add_of(sums, rows, labels, KVR_DTYPE_F32); break;
	case KVR_DTYPE_F16: add_of(sums, rows, labels, KVR_DTYPE_F16); break;
	case KVR_DTYPE_BF16: add_of(sums, rows, labels, KVR_DTYPE_BF16); break;
	}
}

static inline __attribute__((always_inline)) float deviate_of(float *squares,
	const struct kvr_kmeans_rows *rows, const uint16_t *token, size_t count, size_t sinks,
	const float *mean, enum kvr_dtype dtype)
{
	__m512 largest = _mm512_setzero_ps();

	for (size_t i = 0; i < rows->dim; i += LANES) {
		const __m512 middle = _mm512_load_ps(mean + i);
		__m512 sum = _mm512_setzero_ps();

		for (size_t r = 0; r < count; r++) {
			const uint8_t *row = rows->row[token[r] - sinks];
			const __m512 apart =
				_mm512_sub_ps(kvr_widen16(row, dtype, i, rows->dim), middle);

			sum = _mm512_fmadd_ps(apart, apart, sum);
		}
		_mm512_store_ps(squares + i, sum);
		largest = _mm512_max_ps(largest, sum);
	}
	return _mm512_reduce_max_ps(largest);
}

float kvr_kmeans_deviate_avx512(float *squares, const struct kvr_kmeans_rows *rows,
	const uint16_t *token, size_t count, size_t sinks, const float *mean)
{
	const enum kvr_dtype dtype = rows->dtype;

	if (dtype == KVR_DTYPE_F32)
		return deviate_of(squares, rows, token, count, sinks, mean, KVR_DTYPE_F32);
	if (dtype == KVR_DTYPE_F16)
		return deviate_of(squares, rows, token, count, sinks, mean, KVR_DTYPE_F16);
	return deviate_of(squares, rows, token, count, sinks, mean, KVR_DTYPE_BF16);
}

void kvr_kmeans_narrow8_avx512(uint8_t *to, const float *from, float scale, size_t count)
{
	for (size_t i = 0; i < count; i += LANES) {
		const __m512i steps = _mm512_cvtps_epi32(
			_mm512_mul_ps(_mm512_load_ps(from + i), _mm512_set1_ps(scale)));

		_mm_mask_storeu_epi8(to + i, kvr_lanes16(count - i), _mm512_cvtusepi32_epi8(steps));
	}
}

void kvr_kmeans_narrow_avx512(uint16_t *to, const float *from, float scale, size_t count)
{
	for (size_t i = 0; i < count; i += LANES) {
		const __m512i bits = _mm512_castps_si512(
			_mm512_mul_ps(_mm512_load_ps(from + i), _mm512_set1_ps(scale)));
		const __m512i odd =
			_mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
		const __m512i nearest =
			_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));

		_mm256_mask_storeu_epi16(to + i, kvr_lanes16(count - i),
			_mm512_cvtepi32_epi16(_mm512_srli_epi32(nearest, 16)));
	}
}

const struct kvr_kmeans_ops kvr_kmeans_avx512 = {.pack = pack,
	.assign = assign,
	.add = kvr_kmeans_add_avx512,
	.deviate = kvr_kmeans_deviate_avx512,
	.narrow8 = kvr_kmeans_narrow8_avx512,
	.unit = kvr_kmeans_unit_avx512,
	.dot = kvr_kmeans_dot_avx512,
	.narrow = kvr_kmeans_narrow_avx512};

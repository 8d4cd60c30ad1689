/* SPDX-License-Identifier: Apache-2.0 */
/* merge_avx512.c: weighted means for AVX-512: 64 elements of a mean stay in registers while all
 * members pass by, and are written once. */
#include <float.h>
#include <immintrin.h>
#include <string.h>

#include "kernels/merge.h"
#include "kernels/widen.h"

#define LANES   16u
#define VECTORS 4u /* registers of a mean: as many loads are on their way at once */

KVR_STATIC_ASSERT(KVR_KMEANS_PAD % LANES == 0);

/* `vectors` registers of the mean from element `i` on; vectors and dtype are constants where it is called.
 * Rounding must not make an infinity of the largest float. */
static inline __attribute__((always_inline)) void mean_part(float *to,
	const struct kvr_kmeans_rows *rows, const uint16_t *members, const float *weights,
	size_t count, size_t i, const size_t vectors, const enum kvr_dtype dtype)
{
	const __m512 most = _mm512_set1_ps(FLT_MAX), least = _mm512_set1_ps(-FLT_MAX);
	__m512 mean[VECTORS];

	KVR_UNROLL
	for (size_t v = 0; v < vectors; v++)
		mean[v] = kvr_widen16(rows->row[members[0]], dtype, i + v * LANES, rows->dim);
	for (size_t m = 1; m < count; m++) {
		const __m512 weight = _mm512_set1_ps(weights[m]);
		const uint8_t *row = rows->row[members[m]];

		KVR_UNROLL
		for (size_t v = 0; v < vectors; v++)
			mean[v] = _mm512_fmadd_ps(kvr_widen16(row, dtype, i + v * LANES, rows->dim),
				weight, _mm512_fnmadd_ps(weight, mean[v], mean[v]));
	}
	KVR_UNROLL
	for (size_t v = 0; v < vectors; v++)
		_mm512_store_ps(
			to + i + v * LANES, _mm512_min_ps(_mm512_max_ps(mean[v], least), most));
}

static inline __attribute__((always_inline)) void mean_of(float *to,
	const struct kvr_kmeans_rows *rows, const uint16_t *members, const float *weights,
	size_t count, const enum kvr_dtype dtype)
{
	size_t i = 0;

	for (; i + VECTORS * LANES <= rows->dim; i += VECTORS * LANES)
		mean_part(to, rows, members, weights, count, i, VECTORS, dtype);
	for (; i < rows->dim; i += LANES)
		mean_part(to, rows, members, weights, count, i, 1, dtype);
	for (; i < rows->stride; i += LANES)
		_mm512_store_ps(to + i, _mm512_setzero_ps());
}

static void mean(float *to, const struct kvr_kmeans_rows *rows, const uint16_t *members,
	const float *weights, size_t count)
{
	switch (rows->dtype) {
	case KVR_DTYPE_F32: mean_of(to, rows, members, weights, count, KVR_DTYPE_F32); break;
	case KVR_DTYPE_F16: mean_of(to, rows, members, weights, count, KVR_DTYPE_F16); break;
	case KVR_DTYPE_BF16: mean_of(to, rows, members, weights, count, KVR_DTYPE_BF16); break;
	}
}

/* 16 finite floats to bf16, to nearest, ties to even. */
static __m256i bf16_of(__m512 from)
{
	const __m512i bits = _mm512_castps_si512(from);
	const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
	const __m512i nearest =
		_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));

	return _mm512_cvtepi32_epi16(_mm512_srli_epi32(nearest, 16));
}

static void narrow(uint8_t *to, const float *from, enum kvr_dtype dtype, size_t count)
{
	if (dtype == KVR_DTYPE_F32) {
		memcpy(to, from, count * sizeof(*from));
		return;
	}
	for (size_t i = 0; i < count; i += LANES) {
		const __m512 wide = _mm512_load_ps(from + i); /* the padding is there to be read */

		_mm256_mask_storeu_epi16(to + i * 2, kvr_lanes16(count - i),
			dtype == KVR_DTYPE_BF16 ? bf16_of(wide)
						: _mm512_cvtps_ph(wide, _MM_FROUND_TO_NEAREST_INT));
	}
}

const struct kvr_merge_ops kvr_merge_avx512 = {.mean = mean, .narrow = narrow};

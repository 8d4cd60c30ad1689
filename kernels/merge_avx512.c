/* SPDX-License-Identifier: Apache-2.0 */
/* merge_avx512.c: weighted means for AVX-512: 16 elements of all members in a register, which is
 * written once. */
#include <float.h>
#include <immintrin.h>
#include <string.h>

#include "kernels/merge.h"
#include "kernels/widen.h"

#define LANES 16u

KVR_STATIC_ASSERT(KVR_KMEANS_PAD % LANES == 0);

/* One dtype, a constant where it is called. Rounding must not make an infinity of the largest float. */
static inline __attribute__((always_inline)) void mean_of(float *to,
	const struct kvr_kmeans_rows *rows, const uint16_t *members, const float *weights,
	size_t count, const enum kvr_dtype dtype)
{
	const __m512 most = _mm512_set1_ps(FLT_MAX), least = _mm512_set1_ps(-FLT_MAX);
	size_t i = 0;

	for (; i < rows->dim; i += LANES) {
		__m512 mean = _mm512_setzero_ps();

		for (size_t m = 0; m < count; m++) {
			const __m512 weight = _mm512_set1_ps(weights[m]);

			mean = _mm512_fmadd_ps(
				kvr_widen16(rows->row[members[m]], dtype, i, rows->dim), weight,
				_mm512_fnmadd_ps(weight, mean, mean));
		}
		_mm512_store_ps(to + i, _mm512_min_ps(_mm512_max_ps(mean, least), most));
	}
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

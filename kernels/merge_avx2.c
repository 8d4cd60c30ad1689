/* SPDX-License-Identifier: Apache-2.0 */
/* merge_avx2.c: weighted means for AVX2 with FMA and F16C; as merge_avx512.c, 8 elements at a time. */
#include <float.h>
#include <immintrin.h>
#include <string.h>

#include "kernels/merge.h"
#include "kernels/widen.h"

#define LANES 8u

KVR_STATIC_ASSERT(KVR_KMEANS_PAD % LANES == 0);

/* Elements i .. i + 7 of a row, of which `left` are there; zeros for the others. */
static inline __attribute__((always_inline)) __m256 widen8(
	const uint8_t *row, enum kvr_dtype dtype, size_t i, size_t left)
{
	const size_t bytes = dtype == KVR_DTYPE_F32 ? 4 : 2;
	uint8_t rest[LANES * sizeof(float)] = {0};

	if (left >= LANES)
		return kvr_widen8(row + i * bytes, dtype);
	memcpy(rest, row + i * bytes, left * bytes);
	return kvr_widen8(rest, dtype);
}

/* One dtype, a constant where it is called. Rounding must not make an infinity of the largest float. */
static inline __attribute__((always_inline)) void mean_of(float *to,
	const struct kvr_kmeans_rows *rows, const uint16_t *members, const float *weights,
	size_t count, const enum kvr_dtype dtype)
{
	const __m256 most = _mm256_set1_ps(FLT_MAX), least = _mm256_set1_ps(-FLT_MAX);
	size_t i = 0;

	for (; i < rows->dim; i += LANES) {
		__m256 mean = _mm256_setzero_ps();

		for (size_t m = 0; m < count; m++) {
			const __m256 weight = _mm256_set1_ps(weights[m]);

			mean = _mm256_fmadd_ps(
				widen8(rows->row[members[m]], dtype, i, rows->dim - i), weight,
				_mm256_fnmadd_ps(weight, mean, mean));
		}
		_mm256_store_ps(to + i, _mm256_min_ps(_mm256_max_ps(mean, least), most));
	}
	for (; i < rows->stride; i += LANES)
		_mm256_store_ps(to + i, _mm256_setzero_ps());
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

/* 8 finite floats to bf16, to nearest, ties to even. */
static __m128i bf16_of(__m256 from)
{
	const __m256i bits = _mm256_castps_si256(from);
	const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
	const __m256i nearest = _mm256_srli_epi32(
		_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);

	return _mm_packus_epi32(
		_mm256_castsi256_si128(nearest), _mm256_extracti128_si256(nearest, 1));
}

static void narrow(uint8_t *to, const float *from, enum kvr_dtype dtype, size_t count)
{
	if (dtype == KVR_DTYPE_F32) {
		memcpy(to, from, count * sizeof(*from));
		return;
	}
	for (size_t i = 0; i < count; i += LANES) {
		const __m256 wide = _mm256_load_ps(from + i); /* the padding is there to be read */
		const __m128i half = dtype == KVR_DTYPE_BF16
					     ? bf16_of(wide)
					     : _mm256_cvtps_ph(wide, _MM_FROUND_TO_NEAREST_INT);
		const size_t left = count - i < LANES ? count - i : LANES;

		if (left == LANES)
			_mm_storeu_si128((__m128i *)(void *)(to + i * 2), half);
		else
			memcpy(to + i * 2, &half, left * 2);
	}
}

const struct kvr_merge_ops kvr_merge_avx2 = {.mean = mean, .narrow = narrow};

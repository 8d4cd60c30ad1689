/* SPDX-License-Identifier: Apache-2.0 */
/* widen.h: rows of any dtype to floats, with the instruction set that the including file is compiled
 * for. Internal to the SIMD files of kernels/; plain C has kvr_floats_of (kernels/cpu.h). */
#ifndef KVR_KERNELS_WIDEN_H
#define KVR_KERNELS_WIDEN_H

#include <immintrin.h>

#include "kernels/cpu.h"

/* Before a loop of constant length over an array of registers, which it keeps out of memory. */
#if defined(__clang__)
#define KVR_UNROLL _Pragma("unroll")
#else
#define KVR_UNROLL _Pragma("GCC unroll 16")
#endif

#if defined(__AVX512F__) && defined(__AVX512BW__)

/* The first `count` of 16 lanes (all, where more are left). */
static inline __mmask16 kvr_lanes16(size_t count)
{
	return (__mmask16)(count >= 16 ? 0xffffu : (1u << count) - 1u);
}

/* Elements i .. i + 15 of a row; those behind `count` are neither read nor anything but zero. */
static inline __attribute__((always_inline)) __m512 kvr_widen16(
	const uint8_t *from, enum kvr_dtype dtype, size_t i, size_t count)
{
	const __mmask16 mask = kvr_lanes16(count - i);
	__m256i half;

	if (dtype == KVR_DTYPE_F32)
		return _mm512_maskz_loadu_ps(mask, from + i * 4);
	half = _mm256_maskz_loadu_epi16(mask, from + i * 2);
	if (dtype == KVR_DTYPE_F16)
		return _mm512_cvtph_ps(half);
	return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

/* `count` elements to floats; writes zeros up to the next multiple of 16. */
static inline void kvr_widen(float *to, const uint8_t *from, enum kvr_dtype dtype, size_t count)
{
	for (size_t i = 0; i < count; i += 16)
		_mm512_storeu_ps(to + i, kvr_widen16(from, dtype, i, count));
}

/* Writes 16 x 16 floats (or anything of 4 bytes), transposed: column i of the rows, which lie
 * `stride` apart, goes to `to + i * to_stride`. 64-byte aligned. */
static inline void kvr_transpose16(float *to, size_t to_stride, const float *rows, size_t stride)
{
	__m512 in[16], pair[16], quad[16];
	KVR_UNROLL
	for (size_t i = 0; i < 16; i++)
		in[i] = _mm512_load_ps(rows + i * stride);
	KVR_UNROLL
	for (size_t i = 0; i < 16; i += 2) {
		pair[i] = _mm512_unpacklo_ps(in[i], in[i + 1]);
		pair[i + 1] = _mm512_unpackhi_ps(in[i], in[i + 1]);
	}
	/* quad[4 g + j]: in its 128-bit lane l, column 4 l + j of the rows 4 g to 4 g + 3. */
	KVR_UNROLL
	for (size_t i = 0; i < 16; i += 4) {
		const __m512d low[2] = {_mm512_castps_pd(pair[i]), _mm512_castps_pd(pair[i + 2])};
		const __m512d high[2] = {
			_mm512_castps_pd(pair[i + 1]), _mm512_castps_pd(pair[i + 3])};

		quad[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(low[0], low[1]));
		quad[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low[0], low[1]));
		quad[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(high[0], high[1]));
		quad[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(high[0], high[1]));
	}
	KVR_UNROLL
	for (size_t j = 0; j < 4; j++) {
		const __m512 a = _mm512_shuffle_f32x4(quad[j], quad[4 + j], 0x88);
		const __m512 b = _mm512_shuffle_f32x4(quad[j], quad[4 + j], 0xdd);
		const __m512 c = _mm512_shuffle_f32x4(quad[8 + j], quad[12 + j], 0x88);
		const __m512 d = _mm512_shuffle_f32x4(quad[8 + j], quad[12 + j], 0xdd);

		_mm512_store_ps(to + j * to_stride, _mm512_shuffle_f32x4(a, c, 0x88));
		_mm512_store_ps(to + (4 + j) * to_stride, _mm512_shuffle_f32x4(b, d, 0x88));
		_mm512_store_ps(to + (8 + j) * to_stride, _mm512_shuffle_f32x4(a, c, 0xdd));
		_mm512_store_ps(to + (12 + j) * to_stride, _mm512_shuffle_f32x4(b, d, 0xdd));
	}
}

#elif defined(__AVX2__)

static inline __m256 kvr_widen8(const uint8_t *from, enum kvr_dtype dtype)
{
	__m128i half;

	if (dtype == KVR_DTYPE_F32)
		return _mm256_loadu_ps((const float *)(const void *)from);
	half = _mm_loadu_si128((const __m128i *)(const void *)from);
	if (dtype == KVR_DTYPE_F16)
		return _mm256_cvtph_ps(half);
	return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

/* `count` elements to floats; writes zeros up to the next multiple of 8. */
static inline void kvr_widen(float *to, const uint8_t *from, enum kvr_dtype dtype, size_t count)
{
	const size_t bytes = kvr_dtype_bytes(dtype);
	size_t i = 0;

	for (; i + 8 <= count; i += 8)
		_mm256_storeu_ps(to + i, kvr_widen8(from + i * bytes, dtype));
	if (i < count) {
		uint8_t rest[8 * sizeof(float)] = {0};

		memcpy(rest, from + i * bytes, (count - i) * bytes);
		_mm256_storeu_ps(to + i, kvr_widen8(rest, dtype));
	}
}

#endif

#endif

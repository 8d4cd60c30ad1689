/* SPDX-License-Identifier: Apache-2.0 */
/* move_avx2.c: moving bytes, 128 at a time.
 *
 * Plain loads and stores of whole vectors: for runs of a few KiB they beat the C library, whose string
 * instructions have a start-up cost, and stores that bypass the caches, because the reader of the
 * rows comes right behind. */

#include <immintrin.h>

#include "kernels/move.h"

#define VECTOR 32u
#define STEP   (4u * VECTOR)

static inline __attribute__((always_inline)) __m256i load(const uint8_t *from)
{
	return _mm256_loadu_si256((const __m256i *)(const void *)from);
}

static inline __attribute__((always_inline)) void store(uint8_t *to, __m256i vector)
{
	_mm256_storeu_si256((__m256i *)(void *)to, vector);
}

/* Four vectors; loads first, so that they are all under way before a store waits. */
static inline __attribute__((always_inline)) void move_step(uint8_t *to, const uint8_t *from)
{
	const __m256i a = load(from), b = load(from + VECTOR);
	const __m256i c = load(from + 2 * VECTOR), d = load(from + 3 * VECTOR);

	store(to, a);
	store(to + VECTOR, b);
	store(to + 2 * VECTOR, c);
	store(to + 3 * VECTOR, d);
}

static void move(uint8_t *to, const uint8_t *from, size_t bytes)
{
	size_t i = 0;

	for (; i + STEP <= bytes; i += STEP)
		move_step(to + i, from + i);
	memcpy(to + i, from + i, bytes - i);
}

static void move_pair(
	uint8_t *const to[2], const struct kvr_run from[2], const struct kvr_run coming[2])
{
	const size_t both = from[0].bytes < from[1].bytes ? from[0].bytes : from[1].bytes;
	size_t i = 0;

	for (; i + STEP <= both; i += STEP) {
		kvr_move_fetch(&coming[0], i, STEP);
		kvr_move_fetch(&coming[1], i, STEP);
		move_step(to[0] + i, from[0].data + i);
		move_step(to[1] + i, from[1].data + i);
	}
	move(to[0] + i, from[0].data + i, from[0].bytes - i);
	move(to[1] + i, from[1].data + i, from[1].bytes - i);
}

static bool move_finite(uint8_t *to, const uint8_t *from, size_t bytes, enum kvr_dtype dtype)
{
	const bool wide = dtype == KVR_DTYPE_F32;
	const __m256i exponent = wide ? _mm256_set1_epi32((int)kvr_move_exponent(dtype))
				      : _mm256_set1_epi16((short)kvr_move_exponent(dtype));
	__m256i bad = _mm256_setzero_si256();
	size_t i = 0;

	for (; i + VECTOR <= bytes; i += VECTOR) {
		__m256i v = load(from + i);
		__m256i bits;

		/* The compiler may not load it again: what is checked is what is stored. */
		__asm__("" : "+x"(v));
		bits = _mm256_and_si256(v, exponent);
		bad = _mm256_or_si256(bad, wide ? _mm256_cmpeq_epi32(bits, exponent)
						: _mm256_cmpeq_epi16(bits, exponent));
		store(to + i, v);
	}
	return kvr_move_plain.move_finite(to + i, from + i, bytes - i, dtype) &&
	       _mm256_testz_si256(bad, bad);
}

const struct kvr_move_ops kvr_move_avx2 = {move, move_pair, move_finite};

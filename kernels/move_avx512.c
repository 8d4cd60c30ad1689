/* SPDX-License-Identifier: Apache-2.0 */
/* move_avx512.c: moving bytes, 256 at a time, the rest under a mask.
 *
 * Plain loads and stores of whole vectors: for runs of a few KiB they beat the C library, whose string
 * instructions have a start-up cost, and stores that bypass the caches, because the reader of the
 * rows comes right behind. */

#include <immintrin.h>

#include "kernels/move.h"

#define VECTOR 64u
#define STEP   (4u * VECTOR)

#define OWN_AHEAD 1024u /* bytes between what is asked for and what is written */

/* The first `bytes` of a vector, 0 to 64. */
static inline __attribute__((always_inline)) __mmask64 first_bytes(size_t bytes)
{
	return bytes >= VECTOR ? ~(__mmask64)0 : ((__mmask64)1 << bytes) - 1;
}

/* Four vectors; loads first, so that they are all under way before a store waits. */
static inline __attribute__((always_inline)) void move_step(uint8_t *to, const uint8_t *from)
{
	const __m512i a = _mm512_loadu_si512(from), b = _mm512_loadu_si512(from + VECTOR);
	const __m512i c = _mm512_loadu_si512(from + 2 * VECTOR),
		      d = _mm512_loadu_si512(from + 3 * VECTOR);

	_mm512_storeu_si512(to, a);
	_mm512_storeu_si512(to + VECTOR, b);
	_mm512_storeu_si512(to + 2 * VECTOR, c);
	_mm512_storeu_si512(to + 3 * VECTOR, d);
}

static void move(uint8_t *to, const uint8_t *from, size_t bytes)
{
	size_t i = 0;

	for (; i + STEP <= bytes; i += STEP)
		move_step(to + i, from + i);
	for (; i < bytes; i += VECTOR) {
		const __mmask64 mask = first_bytes(bytes - i);

		_mm512_mask_storeu_epi8(to + i, mask, _mm512_maskz_loadu_epi8(mask, from + i));
	}
}

/* Asks for the lines of a later step, to write them. Every processor with AVX-512 knows the instruction;
 * one that does not passes over it. */
static inline __attribute__((always_inline)) void own_step(uint8_t *to)
{
	for (size_t i = 0; i < STEP; i += KVR_MOVE_LINE)
		__asm__ volatile("prefetchw %0" : : "m"(to[OWN_AHEAD + i]));
}

static void move_pair(
	uint8_t *const to[2], const struct kvr_run from[2], const struct kvr_run coming[2])
{
	const size_t both = from[0].bytes < from[1].bytes ? from[0].bytes : from[1].bytes;
	size_t i = 0;

	for (; i + STEP <= both; i += STEP) {
		kvr_move_fetch(&coming[0], i, STEP);
		kvr_move_fetch(&coming[1], i, STEP);
		own_step(to[0] + i);
		own_step(to[1] + i);
		move_step(to[0] + i, from[0].data + i);
		move_step(to[1] + i, from[1].data + i);
	}
	move(to[0] + i, from[0].data + i, from[0].bytes - i);
	move(to[1] + i, from[1].data + i, from[1].bytes - i);
}

static bool move_finite(uint8_t *to, const uint8_t *from, size_t bytes, enum kvr_dtype dtype)
{
	const bool wide = dtype == KVR_DTYPE_F32;
	const __m512i exponent = wide ? _mm512_set1_epi32((int)kvr_move_exponent(dtype))
				      : _mm512_set1_epi16((short)kvr_move_exponent(dtype));
	__mmask32 bad = 0;

	for (size_t i = 0; i < bytes; i += VECTOR) {
		const __mmask64 mask = first_bytes(bytes - i);
		__m512i v = _mm512_maskz_loadu_epi8(mask, from + i);
		__m512i bits;

		/* The compiler may not load it again: what is checked is what is stored. */
		__asm__("" : "+v"(v));
		bits = _mm512_and_si512(v, exponent);
		bad |= wide ? (__mmask32)_mm512_cmpeq_epi32_mask(bits, exponent)
			    : _mm512_cmpeq_epi16_mask(bits, exponent);
		_mm512_mask_storeu_epi8(to + i, mask, v);
	}
	return bad == 0;
}

const struct kvr_move_ops kvr_move_avx512 = {move, move_pair, move_finite};

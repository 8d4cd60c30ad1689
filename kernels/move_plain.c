/* SPDX-License-Identifier: Apache-2.0 */
/* move_plain.c: moving bytes in plain C, the oracle of the others. */

#include "kernels/move.h"

static void move(uint8_t *to, const uint8_t *from, size_t bytes)
{
	memcpy(to, from, bytes);
}

static void move_pair(
	uint8_t *const to[2], const struct kvr_run from[2], const struct kvr_run coming[2])
{
	(void)coming;
	memcpy(to[0], from[0].data, from[0].bytes);
	memcpy(to[1], from[1].data, from[1].bytes);
}

static bool move_finite(uint8_t *to, const uint8_t *from, size_t bytes, enum kvr_dtype dtype)
{
	const uint32_t exponent = kvr_move_exponent(dtype);
	const size_t size = kvr_dtype_bytes(dtype);
	bool finite = true;

	memcpy(to, from, bytes);
	/* What is checked now is what was stored: the compiler may not look at the source again. */
	__asm__ volatile("" ::: "memory");
	for (size_t i = 0; i < bytes; i += size) {
		uint32_t element = 0;

		memcpy(&element, to + i, size);
		finite = finite && (element & exponent) != exponent;
	}
	return finite;
}

const struct kvr_move_ops kvr_move_plain = {move, move_pair, move_finite};

/* SPDX-License-Identifier: Apache-2.0 */
/* move.h: moving bytes, one version per instruction set. Internal to move*.c and recall.c.
 *
 * Any alignment, any length; the runs do not overlap. Nothing is read or written outside them. */
#ifndef KVR_KERNELS_MOVE_H
#define KVR_KERNELS_MOVE_H

#include "kernels/cpu.h"

#define KVR_MOVE_LINE 64u /* bytes of a cache line */

/* Bytes that are read. */
struct kvr_run {
	const uint8_t *data;
	size_t bytes;
};

struct kvr_move_ops {
	void (*move)(uint8_t *to, const uint8_t *from, size_t bytes);
	/* Moves two runs side by side: two streams of reads from memory that is far away overlap. Fetches
	 * `coming`, which the caller moves soon, meanwhile, as far as the runs last. */
	void (*move_pair)(
		uint8_t *const to[2], const struct kvr_run from[2], const struct kvr_run coming[2]);
	/* Moves elements of a dtype (`bytes` is a multiple of its size). Returns whether all that it has
	 * stored is finite: every byte is read once, so a source that changes meanwhile changes nothing. */
	bool (*move_finite)(uint8_t *to, const uint8_t *from, size_t bytes, enum kvr_dtype dtype);
};

extern const struct kvr_move_ops kvr_move_plain;
extern const struct kvr_move_ops kvr_move_avx2;
extern const struct kvr_move_ops kvr_move_avx512;

static inline const struct kvr_move_ops *kvr_move_ops_of(enum kvr_isa isa)
{
	if (isa == KVR_ISA_AVX512)
		return &kvr_move_avx512;
	return isa == KVR_ISA_AVX2 ? &kvr_move_avx2 : &kvr_move_plain;
}

/* Fetches bytes at .. at + step - 1 of a run that is moved soon into the second cache. */
static inline __attribute__((always_inline)) void kvr_move_fetch(
	const struct kvr_run *coming, size_t at, size_t step)
{
	if (at >= coming->bytes)
		return;
	for (size_t i = 0; i < step; i += KVR_MOVE_LINE)
		__builtin_prefetch(coming->data + at + i, 0, 2);
}

/* The exponent bits of an element: NaN and infinity have all of them set. */
static inline uint32_t kvr_move_exponent(enum kvr_dtype dtype)
{
	if (dtype == KVR_DTYPE_F32)
		return 0x7f800000u;
	return dtype == KVR_DTYPE_BF16 ? 0x7f80u : 0x7c00u;
}

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* cpu.h: the seam between the CPU device's pool (kernels/cpu.c) and its operations.
 *
 * Internal to kernels/. It says nothing of jobs, queues or threads: an operation is a function that
 * does one item, start to end, on the thread that calls it.
 *
 *   cpu.c ──► item.c ── kvr_cpu_<op>(item, isa, scratch) ──► recall.c, move.c, fill.c, ...
 *                                                                │ by isa
 *                                                                ▼
 *                                                     <op>_plain.c  <op>_avx2.c  <op>_avx512.c
 *
 * Invariants:
 *   P1  isa is resolved (never KVR_ISA_BEST) and this processor has it.
 *   P2  scratch belongs to the caller's thread alone for the call, is 64-byte aligned and holds at
 *       least the operation's kvr_cpu_<op>_scratch() bytes. Its content is arbitrary at entry. It is
 *       reserved address space: pages that an operation does not touch cost nothing.
 *   P3  An operation's result depends on its item and isa only (D4): not on scratch, not on threads.
 *
 * An operation returns 0 or the -errno that its item's comment in device.h names, and has set the
 * item's status where the item has one. */
#ifndef KVR_KERNELS_CPU_H
#define KVR_KERNELS_CPU_H

#include <string.h>

#include "base/span.h"
#include "kernels/device.h"

int kvr_cpu_append(struct kvr_append_item *item, enum kvr_isa isa, struct kvr_span scratch);
int kvr_cpu_cluster(struct kvr_cluster_item *item, enum kvr_isa isa, struct kvr_span scratch);
int kvr_cpu_pack(struct kvr_cluster_item *item, enum kvr_isa isa, struct kvr_span scratch);
int kvr_cpu_merge(struct kvr_cluster_item *item, enum kvr_isa isa, struct kvr_span scratch);
int kvr_cpu_recall(struct kvr_recall_item *item, enum kvr_isa isa, struct kvr_span scratch);
int kvr_cpu_fetch(struct kvr_fetch_item *item, enum kvr_isa isa, struct kvr_span scratch);
int kvr_cpu_copy(struct kvr_copy_item *item, enum kvr_isa isa, struct kvr_span scratch);
int kvr_cpu_fill(struct kvr_fill_item *item, enum kvr_isa isa, struct kvr_span scratch);
int kvr_cpu_attend(struct kvr_attend_item *item, enum kvr_isa isa, struct kvr_span scratch);

/* The most scratch an operation ever uses, from base/limits.h; the others use none. */
size_t kvr_cpu_cluster_scratch(void);
size_t kvr_cpu_merge_scratch(void);
size_t kvr_cpu_recall_scratch(void);
size_t kvr_cpu_attend_scratch(void);

/* Runs item `index` of a job. */
void kvr_cpu_run(
	const struct kvr_job *job, uint32_t index, enum kvr_isa isa, struct kvr_span scratch);

/* The status of a job whose items have all run: that of the first failing one, the lowest index,
 * whichever worker was first. (D4) */
int kvr_cpu_status(const struct kvr_job *job);

/* About how long item `index` of a job takes on one core (kernels/cost.c). */
uint64_t kvr_cpu_cost_ns(const struct kvr_job *job, uint32_t index);

/* Whether this processor has tiles (AMX) and the kernel lets this process use them. The first call asks;
 * any thread may. */
bool kvr_kmeans_tiles_usable(void);

/* ---- conversions of elements, plain C, any alignment ----------------------------------------- */

static inline float kvr_float_of_bits(uint32_t bits)
{
	float value;

	memcpy(&value, &bits, sizeof(value));
	return value;
}

static inline uint32_t kvr_bits_of_float(float value)
{
	uint32_t bits;

	memcpy(&bits, &value, sizeof(bits));
	return bits;
}

static inline float kvr_float_of_bf16(uint16_t bf16)
{
	return kvr_float_of_bits((uint32_t)bf16 << 16);
}

/* Round to nearest, ties to even; NaN stays NaN. */
static inline uint16_t kvr_bf16_of_float(float value)
{
	uint32_t bits = kvr_bits_of_float(value);

	if ((bits & 0x7fffffffu) > 0x7f800000u)
		return (uint16_t)(bits >> 16 | 0x40);
	return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

/* Exact, subnormals, infinities and NaN included. */
static inline float kvr_float_of_f16(uint16_t f16)
{
	const uint32_t sign = (uint32_t)(f16 & 0x8000u) << 16;
	const uint32_t rest = (uint32_t)(f16 & 0x7fffu) << 13;
	const uint32_t exponent = rest & 0x0f800000u;

	if (exponent == 0x0f800000u) /* infinity or NaN: the exponent goes to all ones */
		return kvr_float_of_bits(sign | rest | 0x7f800000u);
	if (exponent == 0) /* zero or subnormal: 2^-14 of the fraction, without the hidden one */
		return kvr_float_of_bits(
			sign | kvr_bits_of_float(kvr_float_of_bits(rest + 0x38800000u) -
						 kvr_float_of_bits(0x38800000u)));
	return kvr_float_of_bits(sign | (rest + 0x38000000u)); /* bias 15 becomes 127 */
}

/* Round to nearest, ties to even; a finite number stays finite. */
static inline uint16_t kvr_f16_of_float(float value)
{
	const uint32_t bits = kvr_bits_of_float(value), magnitude = bits & 0x7fffffffu;
	const uint16_t sign = (uint16_t)(bits >> 16 & 0x8000u);
	uint32_t rounded;

	if (magnitude >= 0x7f800000u) /* infinity, NaN */
		return (uint16_t)(sign | (magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u));
	if (magnitude < 0x38800000u) { /* subnormal: the sum's last bit is 2^-24 */
		const float sum = kvr_float_of_bits(magnitude) + 0.5f;

		return (uint16_t)(sign | (kvr_bits_of_float(sum) - kvr_bits_of_float(0.5f)));
	}
	rounded = (magnitude + 0xfffu + (magnitude >> 13 & 1) - 0x38000000u) >> 13;
	return (uint16_t)(sign | (rounded < 0x7bffu ? rounded : 0x7bffu));
}

/* `count` elements of any dtype to floats. */
static inline void kvr_floats_of(float *to, const uint8_t *from, enum kvr_dtype dtype, size_t count)
{
	uint16_t half;

	if (dtype == KVR_DTYPE_F32) {
		memcpy(to, from, count * sizeof(*to));
		return;
	}
	for (size_t i = 0; i < count; i++) {
		memcpy(&half, from + i * sizeof(half), sizeof(half));
		to[i] = dtype == KVR_DTYPE_BF16 ? kvr_float_of_bf16(half) : kvr_float_of_f16(half);
	}
}

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* kmeans.h: the seam between k-means (kernels/kmeans.c) and its inner loops, one set per instruction
 * set. Internal to kernels/, its tests and benches.
 *
 * kmeans.c owns the algorithm: start, iteration, end, order. A set of loops owns the format of the
 * panels, in which it keeps the normalised keys, and knows nothing but arrays.
 *
 *   tail rows ──pack──► panels ─┐
 *      │                        ├─assign─► labels ──add──► sums ──(kmeans.c)──► units
 *      │                units ──┘                    ▲
 *      └─────────────────────────────────────────────┘
 *
 * Threads: a run belongs to the thread that made it. */
#ifndef KVR_KERNELS_KMEANS_H
#define KVR_KERNELS_KMEANS_H

#include "base/span.h"
#include "kernels/device.h"

#define KVR_KMEANS_ITERATIONS     10u /* at most; then a last assignment (ClusterKV 3.2) */
#define KVR_KMEANS_PANEL_MAX      64u /* no set of loops has wider panels, in tokens */
#define KVR_KMEANS_WORK(clusters) (((clusters) + 31) / 32 * 32)
#define KVR_KMEANS_PAD            32u /* rows of floats are padded with zeros to a multiple */
#define KVR_KMEANS_ROUND(dim)     (((dim) + KVR_KMEANS_PAD - 1) / KVR_KMEANS_PAD * KVR_KMEANS_PAD)

/* The rows of T tokens, of any alignment, and their shape. */
struct kvr_kmeans_rows {
	const uint8_t **row; /* [T] */
	size_t count;        /* T */
	size_t dim;          /* elements of a row */
	size_t stride;       /* dim rounded up to KVR_KMEANS_PAD */
	enum kvr_dtype dtype;
};

struct kvr_kmeans_ops {
	/* Writes the keys, each scaled to length 1 (a zero key stays zero), to `panels`: 64-byte
	 * aligned, room for T rounded up to KVR_KMEANS_PANEL_MAX rows of `stride` floats. */
	void (*pack)(float *panels, const struct kvr_kmeans_rows *keys);
	/* labels[t] = the c with the largest product of key t and units[c] ([C][stride], 64-byte
	 * aligned, padding zero); ties to the lower c. `labels` has room for T rounded up to
	 * KVR_KMEANS_PANEL_MAX, `work` for KVR_KMEANS_WORK(C) rows of `stride` floats. */
	void (*assign)(uint16_t *labels, const float *panels, const struct kvr_kmeans_rows *keys,
		const float *units, size_t cluster_count, float *work);
	/* sums[labels[t]] += row t, in the order of t; sums [C][stride]. */
	void (*add)(float *sums, const struct kvr_kmeans_rows *rows, const uint16_t *labels);
	/* squares[i] = sum over r < count of (row[i] - mean[i])^2, row number token[r] - sinks, in the order of r,
	 * for i < dim; squares and mean [stride], 64-byte aligned, the padding of the mean zero. What
	 * overflows is infinite. Returns the largest. */
	float (*deviate)(float *squares, const struct kvr_kmeans_rows *rows, const uint16_t *token,
		size_t count, size_t sinks, const float *mean);
	/* to[i] = from[i] * scale, rounded to the nearest, at most 255; from not negative, 64-byte aligned;
	 * of any count. */
	void (*narrow8)(uint8_t *to, const float *from, float scale, size_t count);
	/* Scales a vector of `count` floats, a multiple of KVR_KMEANS_PAD, to length 1. Returns
	 * false, and leaves it alone, if its square is no float that can be trusted. */
	bool (*unit)(float *vector, size_t count);
	/* The product of two vectors of `count` floats, a multiple of KVR_KMEANS_PAD. */
	float (*dot)(const float *a, const float *b, size_t count);
	/* to[i] = from[i] * scale, finite, rounded to bf16; to of any count. */
	void (*narrow)(uint16_t *to, const float *from, float scale, size_t count);
};

/* Squares of vectors between these have lost nothing to underflow or overflow. */
#define KVR_KMEANS_SQUARE_MIN 1e-24f
#define KVR_KMEANS_SQUARE_MAX 1e+30f

extern const struct kvr_kmeans_ops kvr_kmeans_plain;
extern const struct kvr_kmeans_ops kvr_kmeans_avx2;
extern const struct kvr_kmeans_ops kvr_kmeans_avx512;
extern const struct kvr_kmeans_ops kvr_kmeans_tiles; /* AVX-512 with bf16 tiles (AMX) */

/* Those of a resolved instruction set: the tiles, where AVX-512 has them. */
const struct kvr_kmeans_ops *kvr_kmeans_ops_of(enum kvr_isa isa);

/* The tiles only assign; the rest is that of AVX-512. */
void kvr_kmeans_add_avx512(float *sums, const struct kvr_kmeans_rows *rows, const uint16_t *labels);
float kvr_kmeans_deviate_avx512(float *squares, const struct kvr_kmeans_rows *rows,
	const uint16_t *token, size_t count, size_t sinks, const float *mean);
void kvr_kmeans_narrow8_avx512(uint8_t *to, const float *from, float scale, size_t count);
bool kvr_kmeans_unit_avx512(float *vector, size_t count);
float kvr_kmeans_dot_avx512(const float *a, const float *b, size_t count);
void kvr_kmeans_narrow_avx512(uint16_t *to, const float *from, float scale, size_t count);

/* Scales a vector to length 1 in double, whatever its magnitude. Zero stays. */
void kvr_kmeans_unit_exactly(float *vector, size_t count);

/* What kvr_cpu_cluster does; returns the number of assignments made (0 in a dense lane). */
uint32_t kvr_kmeans_cluster(
	struct kvr_cluster_item *item, enum kvr_isa isa, struct kvr_span scratch);

#endif

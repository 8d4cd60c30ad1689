/* SPDX-License-Identifier: Apache-2.0 */
/* attend.h: the seam between exact attention (kernels/attend.c) and its inner loops, one set per
 * instruction set. Internal to kernels/.
 *
 * attend.c widens a block of rows to floats and keeps the running maximum and sum of every query; a
 * set of loops sees aligned, padded floats only.
 *
 * Threads: a block belongs to the thread that made it. */
#ifndef KVR_KERNELS_ATTEND_H
#define KVR_KERNELS_ATTEND_H

#include "kernels/device.h"

#define KVR_ATTEND_ROWS    32u /* rows of a block; its keys and values stay in the first cache */
#define KVR_ATTEND_QUERIES 4u /* queries are padded with zeros to a multiple, unless there is one */
#define KVR_ATTEND_PAD     32u /* vectors are padded with zeros to a multiple */

/* A block of rows against all queries. All arrays are 64-byte aligned. */
struct kvr_attend_block {
	size_t query_count;  /* Q: 1, or a multiple of KVR_ATTEND_QUERIES */
	size_t row_count;    /* R: 1 to KVR_ATTEND_ROWS */
	size_t key_stride;   /* Dk rounded up to KVR_ATTEND_PAD */
	size_t value_stride; /* Dv likewise */
	float *queries;      /* [Q][key_stride], scaled */
	float *keys;         /* [KVR_ATTEND_ROWS][key_stride] */
	float *values;       /* [KVR_ATTEND_ROWS][value_stride] */
	float *scores;       /* [Q][KVR_ATTEND_ROWS]; those behind R mean nothing */
	float *factor;       /* [Q] what `out` is multiplied with before the block is added */
	float *out;          /* [Q][value_stride] */
};

struct kvr_attend_ops {
	/* `rows` rows of `dim` elements to floats, zeros up to the stride. */
	void (*widen)(float *to, size_t stride, const uint8_t *from, enum kvr_dtype dtype,
		size_t dim, size_t rows);
	/* scores[q][r] = queries[q] . keys[r] */
	void (*score)(const struct kvr_attend_block *block);
	/* Raises *max to the largest of KVR_ATTEND_ROWS scores, replaces each by exp(score - *max) and
	 * returns their sum. If *max stays -INFINITY, all become 0. */
	float (*soften)(float *scores, float *max);
	/* out[q] = out[q] * factor[q] + sum over r of scores[q][r] values[r] */
	void (*gather)(const struct kvr_attend_block *block);
};

extern const struct kvr_attend_ops kvr_attend_plain;
extern const struct kvr_attend_ops kvr_attend_avx2;
extern const struct kvr_attend_ops kvr_attend_avx512;

#endif

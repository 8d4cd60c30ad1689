/* SPDX-License-Identifier: Apache-2.0 */
/* fold.h: attention over the centroids of what a recall has not staged (kernels/device.h, MIXED), and the
 * seam to its inner loops. Internal to recall.c and fold*.c.
 *
 * A pass has up to KVR_RECALL_HEADS query heads and goes once over the clusters, in blocks:
 *
 *   spreads ─square─► sums [heads][block] ─┐
 *   dots, rows ───────────────────────────weigh─► terms [heads][block], running max ─┐
 *   value means ───────────────────────────────────────────────────────────────────gather─► out
 *
 * A term is rows * exp(logit - max) * cosh(sigma). With cosh(s) = exp(s) (1 + exp(-2 s)) / 2 the maximum is
 * taken of logit + sigma, and what is left of the rest lies between a half and one: nothing overflows,
 * however large sigma is, and no logarithm is needed.
 *
 * Invariants, for every head after each block, with a = logit + sigma over the clusters with rows left:
 *   F1  max is the largest a so far, or KVR_FOLD_LOWEST; sum = sum of the terms; out = sum of terms * value.
 *   F2  Rows count in units of 2^20, so that sums of terms are at most 1 and no out leaves the range of the
 *       values.
 *   F3  All is finite, whatever finite numbers query, scale, means and spreads hold.
 *
 * Threads: none; scratch is the caller's.
 *
 * Source: online softmax, as in attend.c; the weights are ours. */
#ifndef KVR_KERNELS_FOLD_H
#define KVR_KERNELS_FOLD_H

#include "kernels/recall.h"

#define KVR_FOLD_CLUSTERS 32u /* of a block: its spreads and value means stay in the first cache */
#define KVR_FOLD_HEADS    4u  /* heads are counted in fours, unless there are 1 or 2 */
#define KVR_FOLD_PAD      32u /* vectors are padded to a multiple */
#define KVR_FOLD_ROUND(n) (((n) + KVR_FOLD_PAD - 1) / KVR_FOLD_PAD * KVR_FOLD_PAD)

/* Below every a, and as far from the largest as floats can tell. */
#define KVR_FOLD_LOWEST (-3.0e38f)

#define KVR_FOLD_ROW (1.0f / (1u << 20)) /* F2 */
KVR_STATIC_ASSERT(KVR_SEQUENCE_TOKENS_MAX <= 1u << 20);

/* A block of clusters against all heads of a pass. H is `heads`, rounded up to KVR_FOLD_HEADS if more than
 * 2; what stands in the heads behind the last is finite and means nothing. */
struct kvr_fold_block {
	uint32_t heads;
	uint32_t count; /* clusters, 1 to KVR_FOLD_CLUSTERS */
	uint32_t key_dim, value_dim;
	const uint8_t *spread;      /* [count][key_dim] */
	const uint16_t *value;      /* [count][value_dim] bf16 */
	const uint8_t *next_spread; /* of the block behind this one: fetched */
	const uint16_t *next_value;
	float *squares; /* [H][KVR_FOLD_ROUND(key_dim)] of the query; 0 behind its end */
	float *terms;   /* [H][KVR_FOLD_CLUSTERS]: first the sums of `square` */
	float *factor;  /* [H] what `out` is multiplied with before the block is added */
	float *out;     /* [H][KVR_FOLD_ROUND(value_dim)] */
};

/* One head's part of a block. rows and root have KVR_FOLD_CLUSTERS elements, dots are read as far. */
struct kvr_fold_weights {
	const float *rows; /* left of each cluster, F2; 0 behind the last */
	const float *root; /* of the spread's step */
	const float *dots; /* of any value where there are no rows */
	float scale;       /* logit = scale * dot, held as in spread (recall.h) */
	float sigma_scale; /* sigma = sigma_scale * root * sqrt(sum), at most KVR_RECALL_LOGIT_MAX */
};

struct kvr_fold_ops {
	/* terms[h][c] = squares[h] . spread[c]. May read 63 bytes behind the spreads (S8). */
	void (*square)(const struct kvr_fold_block *block);
	/* From sums to terms of one head (F1). Raises *max and returns the sum of the terms. */
	float (*weigh)(float *terms, const struct kvr_fold_weights *weights, float *max);
	/* out[h] = out[h] * factor[h] + sum over c of terms[h][c] value[c]. May read 63 bytes behind the
	 * value means (S8). */
	void (*gather)(const struct kvr_fold_block *block);
};

extern const struct kvr_fold_ops kvr_fold_plain;
extern const struct kvr_fold_ops kvr_fold_avx2;
extern const struct kvr_fold_ops kvr_fold_avx512;

struct kvr_fold {
	const struct kvr_recall_item *item;
	const struct kvr_fold_ops *ops;
	struct kvr_fold_block block;
	float *rows, *root;             /* [KVR_FOLD_CLUSTERS] */
	float *sigma_scale, *max, *sum; /* [KVR_RECALL_HEADS] */
	bool *finite;
};

/* Lays the arrays out for these dims and returns the bytes needed, a multiple of 64; data NULL only adds up.
 * `data` is 64-byte aligned. */
size_t kvr_fold_bind(struct kvr_fold *fold, uint32_t key_dim, uint32_t value_dim, uint8_t *data);

/* Sets item and instruction set; before the first pass. */
void kvr_fold_init(struct kvr_fold *fold, const struct kvr_recall_item *item, enum kvr_isa isa);

/* Begins a pass with the query heads first .. first + heads - 1. */
void kvr_fold_begin(struct kvr_fold *fold, uint32_t first, uint32_t heads);

/* Adds one segment: rows[c] are left of its cluster c; dots[h * stride + c], times item->scale * steps[h], is
 * a logit; dots are readable up to KVR_RECALL_PAD elements behind the last. `next`: the segment that is
 * added next, or this one. */
void kvr_fold_add(struct kvr_fold *fold, const struct kvr_segment_view *segment, const float *rows,
	const float *dots, size_t stride, const float *steps, const struct kvr_segment_view *next);

/* Writes fold_out and fold_lse of the pass's heads, which began at `first`. */
void kvr_fold_end(struct kvr_fold *fold, uint32_t first);

/* Writes that nothing is left, for all heads. */
void kvr_fold_nothing(const struct kvr_recall_item *item);

/* The log weight of `rows` rows of one cluster for each head of the pass, to weights[h * stride]: log n
 * alone for a head that is not finite. */
void kvr_fold_weigh(struct kvr_fold *fold, const struct kvr_segment_view *segment, uint32_t cluster,
	uint32_t rows, float *weights, size_t stride);

#endif

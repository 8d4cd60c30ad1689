/* SPDX-License-Identifier: Apache-2.0 */
/* recall.h: the parts of recall that have one version per instruction set, and its choice.
 *
 * Internal to recall*.c and choose.c. recall.c is the flow; these are its inner loops:
 *
 *   queries ─prepare─► block, steps ─dots─► dots [heads][clusters] ─spread─► density [clusters]
 *                                                                          │ keys
 *                                                              choose: the last cluster taken
 *
 * Invariants:
 *   R1  Arrays over clusters are 64-byte aligned and may be read and written up to the next multiple
 *       of KVR_RECALL_PAD behind their last element.
 *   R2  Whatever the queries and means hold, spread leaves finite, normal, non-negative densities. */
#ifndef KVR_KERNELS_RECALL_H
#define KVR_KERNELS_RECALL_H

#include "kernels/cpu.h"

#define KVR_RECALL_PAD   32u /* elements */
#define KVR_RECALL_HEADS 16u /* query heads scored in one pass over the means */

/* Logits further than this below the largest count as exactly this far: nothing that could be
 * chosen is that far down, and every density stays a normal number (fast, and never 0):
 * exp(-60) / (2^20 tokens * KVR_GROUP_MAX) > FLT_MIN. */
#define KVR_RECALL_DEPTH 60.0f
/* Dots and logits are held within +- this, NaN at the bottom: their differences stay finite. */
#define KVR_RECALL_LOGIT_MAX 1.0e38f

/* Queries are in fixed point, too: so many steps at most, positive or negative. Then 2^31 holds the product
 * with the longest key of 8 bits. */
#define KVR_RECALL_STEPS 16319 /* 128 * 127 + 63: two parts of 8 bits, for the tiles */
KVR_STATIC_ASSERT(KVR_DIM_MAX <= INT32_MAX / KVR_RECALL_STEPS / 128);

/* A query whose largest element is smaller counts as zero: its steps would not be normal numbers. */
#define KVR_RECALL_QUERY_MIN 1.0e-30f

/* Bytes of a prepared block of queries: 16 bits an element, rows padded to whole vectors; in groups of 8
 * heads, which may be twice as many as there are. */
#define KVR_RECALL_BLOCK_BYTES (KVR_RECALL_HEADS * (KVR_DIM_MAX + 64u) * 2 * sizeof(int16_t))

/* Means of one plane, and what is scored after them. */
struct kvr_recall_means {
	const int8_t *plane; /* [count][dim] */
	const float *step;   /* [count] */
	float factor;        /* of step: 256 for a high plane */
	uint32_t count;
	const int8_t *next;
};

struct kvr_recall_ops {
	/* Rounds `heads` (1 to KVR_RECALL_HEADS) queries [heads][dim] of a dtype, of any alignment, to
	 * fixed point and lays them out in `block` for dots. steps[head]: of a query in `block`; NaN where the
	 * query is not finite, which counts as zeros. */
	void (*prepare)(uint8_t *block, float *steps, const uint8_t *query, enum kvr_dtype dtype,
		uint32_t heads, uint32_t dim);
	/* dots[head * stride + c] = query[head] . plane[c] * (factor * step[c]) for c < count, held within
	 * KVR_RECALL_LOGIT_MAX; planes and queries are integers, and their products exact. May write dots
	 * up to KVR_RECALL_PAD elements behind `count` and in rows up to KVR_RECALL_HEADS. Fetches
	 * `next`, the means that come after these, into the cache. May read 63 bytes behind the plane (S8). */
	void (*dots)(const uint8_t *block, uint32_t heads, uint32_t dim,
		const struct kvr_recall_means *means, float *dots, size_t stride);
	/* After the last dots of an item; or NULL. */
	void (*release)(void);
	/* Adds `part` of a softmax to the densities, the shares per token:
	 *   density[c] += part * exp(scale * dots[c]) / sum over c of tokens[c] * exp(scale * dots[c])
	 * `count` is a multiple of KVR_RECALL_PAD: the caller has padded tokens with 0 and dots with a
	 * copy of dots[0]. `work` has room for as many floats, and may be `dots`. */
	void (*spread)(const float *dots, float *work, const float *tokens, uint32_t count,
		float scale, float part, float *density);
	/* tokens[c] = first[c + 1] - first[c] for c < count. */
	void (*widths)(float *tokens, const uint16_t *first, uint32_t count);
	/* The sum of tokens[c] where key[c] >= low; count is padded as above. Exact. */
	uint32_t (*rows_from)(
		const uint32_t *key, const float *tokens, uint32_t count, uint32_t low);
	/* Lists, ascending, the c < count with low <= key[c] <= high; may write KVR_RECALL_PAD elements
	 * more than it returns. Returns how many. */
	uint32_t (*find)(
		const uint32_t *key, uint32_t count, uint32_t low, uint32_t high, uint32_t *list);
};

/* For the tiles, too: one query to fixed point; writes up to the next multiple of 16. Returns the step, or
 * NaN. */
float kvr_recall_round_avx512(
	int16_t *to, const uint8_t *query, enum kvr_dtype dtype, uint32_t dim);

extern const struct kvr_recall_ops kvr_recall_plain;
extern const struct kvr_recall_ops kvr_recall_avx2;
extern const struct kvr_recall_ops kvr_recall_avx512;
extern const struct kvr_recall_ops kvr_recall_tiles; /* AVX-512 and AMX */

/* The last cluster that a recall takes and how many of its rows. Every cluster before it in the
 * order (larger key; equal key and smaller index) is taken whole, none behind it. */
struct kvr_choice {
	uint32_t key;
	uint32_t index; /* UINT32_MAX, with key 0: every cluster is taken whole */
	uint32_t rows;
};

/* Memory of a choice, per cluster and of KVR_RECALL_PAD more. */
#define KVR_CHOOSE_CLUSTER_BYTES (2u * sizeof(uint64_t))

/* Chooses among `count` clusters of tokens[c] rows (whole numbers, R1, padded with 0) in the order of
 * keys until `budget` (1 or more) rows are taken and, if mass > 0, no further than where the shares,
 * tokens[c] * density[c], sum to `mass`. `room` has KVR_CHOOSE_CLUSTER_BYTES per cluster. */
struct kvr_choice kvr_choose(const struct kvr_recall_ops *ops, const uint32_t *key,
	const float *tokens, const float *density, uint32_t count, uint32_t budget, float mass,
	uint64_t *room);

#endif

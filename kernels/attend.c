/* SPDX-License-Identifier: Apache-2.0 */
/* attend.c: exact attention of some query heads over the rows of one lane, in one pass.
 *
 * It does not choose rows (RECALL does) and does not know instruction sets (attend_*.c do).
 *
 *   rows ──32 at a time──► floats ─► scores + weights ─► running max m, sum s ─► out
 *
 * Invariants, for every query after each block:
 *   A1  m is the largest logit so far; s = sum exp(logit - m); out = sum exp(logit - m) v.
 *   A2  While every logit so far is -INFINITY, m is -INFINITY and s and out are 0.
 *
 * Threads: none; scratch is the caller's.
 *
 * Source: online softmax, Milakov and Gimelshein, arXiv 1805.02867, section 3, by blocks. */
#include <math.h>
#include <string.h>

#include "base/assert.h"
#include "kernels/attend.h"
#include "kernels/cpu.h"

#define ROUND(count, unit) (((count) + (unit)-1) / (unit) * (unit))

struct run {
	const struct kvr_attend_ops *ops;
	struct kvr_attend_block block;
	float *max; /* [Q] m */
	float *sum; /* [Q] s */
};

/* Cuts `floats` off scratch; with base NULL it only adds up. */
static float *carve(uint8_t *base, size_t *at, size_t floats)
{
	uint8_t *place = base ? base + *at : NULL;

	*at += (floats * sizeof(float) + 63) & ~(size_t)63;
	return (float *)(void *)place;
}

/* Lays a run's arrays out in scratch and returns their bytes. Counts and strides are set. */
static size_t layout(struct run *run, uint8_t *base)
{
	struct kvr_attend_block *block = &run->block;
	const size_t queries = block->query_count;
	size_t at = 0;

	block->queries = carve(base, &at, queries * block->key_stride);
	block->out = carve(base, &at, queries * block->value_stride);
	block->keys = carve(base, &at, (size_t)KVR_ATTEND_ROWS * block->key_stride);
	block->values = carve(base, &at, (size_t)KVR_ATTEND_ROWS * block->value_stride);
	block->scores = carve(base, &at, queries * KVR_ATTEND_ROWS);
	block->factor = carve(base, &at, queries);
	run->max = carve(base, &at, queries);
	run->sum = carve(base, &at, queries);
	return at;
}

static void run_shape(struct run *run, size_t queries, size_t key_dim, size_t value_dim)
{
	run->block.query_count = queries == 1 ? 1 : ROUND(queries, KVR_ATTEND_QUERIES);
	run->block.key_stride = ROUND(key_dim, KVR_ATTEND_PAD);
	run->block.value_stride = ROUND(value_dim, KVR_ATTEND_PAD);
}

size_t kvr_cpu_attend_scratch(void)
{
	struct run run;

	run_shape(&run, KVR_GROUP_MAX, KVR_DIM_MAX, KVR_DIM_MAX);
	return layout(&run, NULL);
}

static const struct kvr_attend_ops *ops_of(enum kvr_isa isa)
{
	switch (isa) {
#if defined(__x86_64__)
	case KVR_ISA_AVX512: return &kvr_attend_avx512;
	case KVR_ISA_AVX2: return &kvr_attend_avx2;
#endif
	default: return &kvr_attend_plain;
	}
}

/* Takes the scores of one query into its maximum and sum (A1, A2). */
static void take_scores(struct run *run, size_t query, const float *weights)
{
	float *scores = run->block.scores + (size_t)query * KVR_ATTEND_ROWS;
	const float before = run->max[query];
	float sum;

	for (size_t r = 0; weights && r < run->block.row_count; r++)
		scores[r] += weights[r];
	for (size_t r = run->block.row_count; r < KVR_ATTEND_ROWS; r++)
		scores[r] = -INFINITY;
	sum = run->ops->soften(scores, &run->max[query]);
	run->block.factor[query] =
		run->max[query] == before ? 1.0f : expf(before - run->max[query]);
	run->sum[query] = run->sum[query] * run->block.factor[query] + sum;
}

/* Some rows to floats. */
static void widen(const struct run *run, float *to, size_t to_stride, const uint8_t *from,
	size_t stride, const struct kvr_geometry *geometry, size_t dim)
{
	const size_t rows = run->block.row_count;

	if (stride == dim * kvr_dtype_bytes(geometry->dtype)) {
		run->ops->widen(to, to_stride, from, geometry->dtype, dim, rows);
		return;
	}
	for (size_t r = 0; r < rows; r++)
		run->ops->widen(
			to + r * to_stride, to_stride, from + r * stride, geometry->dtype, dim, 1);
}

static void run_init(struct run *run, const struct kvr_attend_item *item, enum kvr_isa isa,
	struct kvr_span scratch)
{
	const struct kvr_geometry *geometry = item->geometry;
	struct kvr_attend_block *block = &run->block;
	float *queries;
	size_t bytes;

	*run = (struct run){.ops = ops_of(isa)};
	run_shape(run, item->query_count, geometry->key_dim, geometry->value_dim);
	KVR_ASSERT((uintptr_t)scratch.data % 64 == 0);
	bytes = layout(run, scratch.data);
	KVR_ASSERT(bytes <= scratch.bytes);
	queries = block->queries;
	memset(queries, 0, (size_t)block->query_count * block->key_stride * sizeof(float));
	memset(block->out, 0, (size_t)block->query_count * block->value_stride * sizeof(float));
	run->ops->widen(queries, block->key_stride, item->query, item->query_dtype,
		geometry->key_dim, item->query_count);
	for (size_t i = 0; i < (size_t)item->query_count * block->key_stride; i++)
		queries[i] *= item->scale;
	for (size_t q = 0; q < block->query_count; q++) {
		run->max[q] = -INFINITY;
		run->sum[q] = 0.0f;
	}
}

int kvr_cpu_attend(struct kvr_attend_item *item, enum kvr_isa isa, struct kvr_span scratch)
{
	const struct kvr_geometry *geometry = item->geometry;
	const size_t key_stride =
		item->key_stride ? item->key_stride : kvr_geometry_key_bytes(geometry);
	const size_t value_stride =
		item->value_stride ? item->value_stride : kvr_geometry_value_bytes(geometry);
	struct kvr_attend_block *block;
	struct run run;

	KVR_ASSERT(item->query_count >= 1);
	KVR_ASSERT(item->query_count <= KVR_GROUP_MAX);
	run_init(&run, item, isa, scratch);
	block = &run.block;
	for (size_t row = 0; row < item->row_count; row += KVR_ATTEND_ROWS) {
		const size_t left = item->row_count - row;

		block->row_count = left < KVR_ATTEND_ROWS ? left : KVR_ATTEND_ROWS;
		widen(&run, block->keys, block->key_stride, item->keys + row * key_stride,
			key_stride, geometry, geometry->key_dim);
		widen(&run, block->values, block->value_stride, item->values + row * value_stride,
			value_stride, geometry, geometry->value_dim);
		run.ops->score(block);
		for (size_t q = 0; q < block->query_count; q++)
			take_scores(&run, q, item->weights ? item->weights + row : NULL);
		run.ops->gather(block);
	}
	for (size_t q = 0; q < item->query_count; q++) {
		const float sum = run.sum[q];
		const float part = sum > 0.0f ? 1.0f / sum : 0.0f; /* A2 */
		float *out = item->out + q * geometry->value_dim;

		for (size_t i = 0; i < geometry->value_dim; i++)
			out[i] = block->out[q * block->value_stride + i] * part;
		item->lse[q] = sum > 0.0f ? run.max[q] + logf(sum) : -INFINITY;
	}
	return 0;
}

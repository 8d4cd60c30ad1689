/* SPDX-License-Identifier: Apache-2.0 */
/* fold.c: attention over the centroids of what a recall has not staged; see fold.h.
 *
 * It does not score: the products of queries and means are recall.c's. */

#include "kernels/fold.h"

#include <math.h>

/* Elements of a query that are smaller, as a part of the largest, count as zero: their squares would not be
 * normal numbers. */
#define ELEMENT_MIN 1e-15f

#define LOG_2       0.693147180559945309
#define LOG_ROW_MAX (20 * LOG_2) /* F2 */

static const struct kvr_fold_ops *ops_of(enum kvr_isa isa)
{
	if (isa == KVR_ISA_AVX512)
		return &kvr_fold_avx512;
	return isa == KVR_ISA_AVX2 ? &kvr_fold_avx2 : &kvr_fold_plain;
}

size_t kvr_fold_bind(struct kvr_fold *fold, uint32_t key_dim, uint32_t value_dim, uint8_t *data)
{
	const size_t bytes[10] = {
		KVR_RECALL_HEADS * KVR_FOLD_ROUND(key_dim) * sizeof(float),   /* squares */
		KVR_RECALL_HEADS * KVR_FOLD_ROUND(value_dim) * sizeof(float), /* out */
		KVR_RECALL_HEADS * KVR_FOLD_CLUSTERS * sizeof(float),         /* terms */
		KVR_RECALL_HEADS * sizeof(float),                             /* factor */
		KVR_FOLD_CLUSTERS * sizeof(float),                            /* rows */
		KVR_FOLD_CLUSTERS * sizeof(float),                            /* root */
		KVR_RECALL_HEADS * sizeof(float),                             /* sigma_scale */
		KVR_RECALL_HEADS * sizeof(float),                             /* max */
		KVR_RECALL_HEADS * sizeof(float),                             /* sum */
		KVR_RECALL_HEADS * sizeof(bool),                              /* finite */
	};
	size_t at[11] = {0};

	for (int i = 0; i < 10; i++)
		at[i + 1] = at[i] + ((bytes[i] + 63) & ~(size_t)63);
	if (data) {
		fold->block.squares = (float *)(void *)(data + at[0]);
		fold->block.out = (float *)(void *)(data + at[1]);
		fold->block.terms = (float *)(void *)(data + at[2]);
		fold->block.factor = (float *)(void *)(data + at[3]);
		fold->rows = (float *)(void *)(data + at[4]);
		fold->root = (float *)(void *)(data + at[5]);
		fold->sigma_scale = (float *)(void *)(data + at[6]);
		fold->max = (float *)(void *)(data + at[7]);
		fold->sum = (float *)(void *)(data + at[8]);
		fold->finite = (bool *)(data + at[9]);
	}
	return at[10];
}

void kvr_fold_init(struct kvr_fold *fold, const struct kvr_recall_item *item, enum kvr_isa isa)
{
	fold->item = item;
	fold->ops = ops_of(isa);
	fold->block.key_dim = item->geometry->key_dim;
	fold->block.value_dim = item->geometry->value_dim;
}

/* The squares of head `h`, as parts of the largest, which goes into the scale of sigma. (F3) */
static void square_query(struct kvr_fold *fold, uint32_t h, const uint8_t *query)
{
	const struct kvr_recall_item *item = fold->item;
	const uint32_t dim = fold->block.key_dim;
	float *squares = fold->block.squares + h * KVR_FOLD_ROUND(dim);
	float wide[KVR_DIM_MAX], largest = 0;
	bool finite = true;

	kvr_floats_of(wide, query, item->query_dtype, dim);
	for (uint32_t i = 0; i < dim; i++) {
		finite = finite && isfinite(wide[i]);
		largest = fmaxf(largest, fabsf(wide[i]));
	}
	fold->finite[h] = finite;
	fold->sigma_scale[h] = 0;
	if (!finite || largest < KVR_RECALL_QUERY_MIN)
		return;
	for (uint32_t i = 0; i < dim; i++) {
		const float part = wide[i] / largest;

		squares[i] = fabsf(part) < ELEMENT_MIN ? 0.0f : part * part;
	}
	if (!item->first_order)
		fold->sigma_scale[h] = (float)fmin(
			fabs((double)item->scale) * (double)largest, (double)KVR_RECALL_LOGIT_MAX);
}

void kvr_fold_begin(struct kvr_fold *fold, uint32_t first, uint32_t heads)
{
	const struct kvr_recall_item *item = fold->item;
	struct kvr_fold_block *block = &fold->block;
	const size_t query_bytes = block->key_dim * kvr_dtype_bytes(item->query_dtype);
	const size_t padded =
		heads > 2 ? (heads + KVR_FOLD_HEADS - 1) & ~(KVR_FOLD_HEADS - 1) : heads;

	KVR_ASSERT(heads <= KVR_RECALL_HEADS);
	block->heads = heads;
	memset(block->squares, 0, padded * KVR_FOLD_ROUND(block->key_dim) * sizeof(float));
	memset(block->out, 0, padded * KVR_FOLD_ROUND(block->value_dim) * sizeof(float));
	memset(block->terms, 0, padded * KVR_FOLD_CLUSTERS * sizeof(float));
	for (uint32_t h = 0; h < padded; h++) {
		fold->max[h] = KVR_FOLD_LOWEST;
		fold->sum[h] = 0;
		block->factor[h] = 1;
	}
	for (uint32_t h = 0; h < heads; h++)
		square_query(fold, h, item->query + (first + h) * query_bytes);
}

/* Points the block at clusters `at` and on of a segment; what is fetched is given. */
static void take_block(
	struct kvr_fold *fold, const struct kvr_segment_view *segment, uint32_t at, uint32_t count)
{
	const uint32_t lane = fold->item->lane;
	struct kvr_fold_block *block = &fold->block;
	const float *step = kvr_segment_spread_step(segment, lane) + at;

	block->count = count;
	block->spread = kvr_segment_key_spread(segment, lane) + (size_t)at * block->key_dim;
	block->value = kvr_segment_value_mean(segment, lane) + (size_t)at * block->value_dim;
	for (uint32_t c = 0; c < count; c++)
		fold->root[c] = sqrtf(step[c]);
	for (uint32_t c = count; c < KVR_FOLD_CLUSTERS; c++)
		fold->root[c] = 0;
}

/* Adds the block that has been taken. (F1) */
static void add_block(struct kvr_fold *fold, const float *dots, size_t stride, const float *steps)
{
	const struct kvr_recall_item *item = fold->item;
	struct kvr_fold_block *block = &fold->block;

	if (!item->first_order) /* else the terms are any finite numbers, and sigma_scale is 0 */
		fold->ops->square(block);
	for (uint32_t h = 0; h < block->heads; h++) {
		const struct kvr_fold_weights weights = {
			.rows = fold->rows,
			.root = fold->root,
			.dots = dots + h * stride,
			.scale = fold->finite[h] ? item->scale * steps[h] : 0,
			.sigma_scale = fold->sigma_scale[h],
		};
		const float before = fold->max[h];
		const float sum = fold->ops->weigh(
			block->terms + h * KVR_FOLD_CLUSTERS, &weights, &fold->max[h]);

		block->factor[h] = fold->max[h] == before ? 1.0f : expf(before - fold->max[h]);
		fold->sum[h] = fold->sum[h] * block->factor[h] + sum;
	}
	fold->ops->gather(block);
}

void kvr_fold_add(struct kvr_fold *fold, const struct kvr_segment_view *segment, const float *rows,
	const float *dots, size_t stride, const float *steps, const struct kvr_segment_view *next)
{
	const uint32_t lane = fold->item->lane, clusters = segment->cluster_count[lane];
	struct kvr_fold_block *block = &fold->block;

	for (uint32_t at = 0; at < clusters; at += KVR_FOLD_CLUSTERS) {
		const uint32_t left = clusters - at;
		const uint32_t count = left < KVR_FOLD_CLUSTERS ? left : KVR_FOLD_CLUSTERS;
		float any = 0;

		for (uint32_t c = 0; c < KVR_FOLD_CLUSTERS; c++) {
			fold->rows[c] = c < count ? rows[at + c] * KVR_FOLD_ROW : 0;
			any += fold->rows[c];
		}
		if (!(any > 0))
			continue;
		take_block(fold, segment, at, count);
		block->next_spread = kvr_segment_key_spread(next, lane);
		block->next_value = kvr_segment_value_mean(next, lane);
		if (left > count) {
			block->next_spread = block->spread + (size_t)count * block->key_dim;
			block->next_value = block->value + (size_t)count * block->value_dim;
		}
		add_block(fold, dots + at, stride, steps);
	}
}

void kvr_fold_end(struct kvr_fold *fold, uint32_t first)
{
	const struct kvr_fold_block *block = &fold->block;
	const size_t dim = block->value_dim;

	for (uint32_t h = 0; h < block->heads; h++) {
		const float *from = block->out + h * KVR_FOLD_ROUND(dim);
		float *to = fold->item->fold_out + (first + h) * dim;
		const bool some = fold->finite[h] && fold->sum[h] > 0;
		const float part = some ? 1.0f / fold->sum[h] : 0;

		for (size_t i = 0; i < dim; i++)
			to[i] = some ? from[i] * part : 0;
		fold->item->fold_lse[first + h] =
			some ? (float)((double)fold->max[h] + log((double)fold->sum[h]) +
				       LOG_ROW_MAX)
			     : -INFINITY;
	}
}

void kvr_fold_nothing(const struct kvr_recall_item *item)
{
	memset(item->fold_out, 0,
		(size_t)item->query_count * item->geometry->value_dim * sizeof(*item->fold_out));
	for (uint32_t h = 0; h < item->query_count; h++)
		item->fold_lse[h] = -INFINITY;
}

void kvr_fold_weigh(struct kvr_fold *fold, const struct kvr_segment_view *segment, uint32_t cluster,
	uint32_t rows, float *weights, size_t stride)
{
	struct kvr_fold_block *block = &fold->block;

	take_block(fold, segment, cluster, 1);
	block->next_spread = block->spread;
	block->next_value = block->value;
	fold->ops->square(block);
	for (uint32_t h = 0; h < block->heads; h++) {
		const double sigma =
			fmin(sqrt((double)block->terms[h * KVR_FOLD_CLUSTERS]) *
					(double)fold->root[0] * (double)fold->sigma_scale[h],
				(double)KVR_RECALL_LOGIT_MAX);

		weights[h * stride] =
			(float)(log((double)rows) + sigma + log1p(exp(-2 * sigma)) - LOG_2);
	}
}

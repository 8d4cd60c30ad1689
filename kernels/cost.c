/* SPDX-License-Identifier: Apache-2.0 */
/* cost.c: about how long an item takes on one CPU core.
 *
 * For two decisions only: whether a job is small enough to run inside submit, and how many items a
 * worker takes at once. A factor of two off does no harm. It looks at nothing but the item and its
 * geometry, and costs a few nanoseconds. */

#include "kernels/merge.h"
#include "kernels/recall.h"

/* Measured rates of one core with AVX-512, rounded down. */
#define CALL_NS           300u /* an item, whatever it does */
#define MOVE_BYTES_PER_NS 6u   /* rows, gathered or scattered */
#define COPY_BYTES_PER_NS 8u   /* one run */
#define READ_BYTES_PER_NS 12u  /* a checksum of what is in no cache */
#define FLOPS_PER_NS      40u  /* products of vectors */
#define KMEANS_ROUNDS     11u  /* assignments of every key */
/* A fold's channels, of spreads and value means, times heads: widening one costs as much as two heads. */
#define FOLD_PER_NS 48u
#define FOLD_HEADS  2u
#define CENTROID_NS 100u /* a row, per head: its weight */

static uint64_t row_bytes(const struct kvr_geometry *geometry)
{
	return kvr_geometry_key_bytes(geometry) + kvr_geometry_value_bytes(geometry);
}

/* Rows of merged sets and of the clusters behind them. */
static uint64_t merged_rows(const struct kvr_recall_item *item, uint64_t tokens)
{
	const uint64_t merged = (uint64_t)item->merged_segments * item->geometry->segment_tokens;

	if (kvr_geometry_is_dense(item->geometry, item->lane))
		return tokens;
	KVR_ASSERT(item->merged_set < KVR_MERGED_SETS);
	return tokens - merged + merged / kvr_merged_divisors[item->merged_set];
}

/* What a mixed recall's estimate of `clusters` clusters adds. */
static uint64_t cost_estimate(const struct kvr_recall_item *item, uint64_t clusters)
{
	const struct kvr_geometry *geometry = item->geometry;
	const uint64_t heads = item->query_count;
	uint64_t ns = item->centroid_max * heads * CENTROID_NS;

	if (item->fold_out)
		ns += clusters * (geometry->key_dim + geometry->value_dim) * (FOLD_HEADS + heads) /
		      FOLD_PER_NS;
	/* With more heads than one pass has, means are scored again. */
	if (item->fold_out && heads > KVR_RECALL_HEADS)
		ns += clusters * geometry->key_dim * 2 * heads / FLOPS_PER_NS;
	return ns;
}

static uint64_t cost_recall(const struct kvr_recall_item *item)
{
	const struct kvr_geometry *geometry = item->geometry;
	const bool dense = kvr_geometry_is_dense(geometry, item->lane);
	const uint64_t tokens = (uint64_t)item->segment_count * geometry->segment_tokens;
	const uint64_t clusters = tokens / geometry->cluster_tokens;
	uint64_t rows = tokens, ns = 0;

	if (item->form == KVR_FORM_MERGED)
		rows = merged_rows(item, tokens);
	else if (rows > item->budget_tokens && !dense)
		rows = item->budget_tokens;
	if (item->form != KVR_FORM_MERGED)
		ns = clusters * geometry->key_dim * 2 * item->query_count / FLOPS_PER_NS;
	if (item->form == KVR_FORM_MIXED && !dense)
		ns += cost_estimate(item, clusters);
	return ns + (rows + item->tail_count) * row_bytes(geometry) / MOVE_BYTES_PER_NS;
}

static uint64_t cost_cluster(const struct kvr_cluster_item *item)
{
	const struct kvr_segment_view *segment = item->segment;
	const uint64_t dots = (uint64_t)segment->token_count * segment->cluster_max;

	return dots * segment->geometry->key_dim * 2 * KMEANS_ROUNDS / FLOPS_PER_NS;
}

/* The passes see twice as many rows as there are tokens, and match half of them with half a chunk. */
static uint64_t cost_merge(const struct kvr_cluster_item *item)
{
	const struct kvr_segment_view *segment = item->segment;
	const struct kvr_geometry *geometry = segment->geometry;
	const uint64_t tokens = segment->token_count;

	if (geometry->merged == 0 || kvr_geometry_is_dense(geometry, item->lane))
		return 0;
	return tokens * KVR_MERGE_CHUNK * geometry->key_dim / FLOPS_PER_NS +
	       tokens * (geometry->key_dim + geometry->value_dim) * 2 * sizeof(float) /
		       MOVE_BYTES_PER_NS;
}

static uint64_t cost_attend(const struct kvr_attend_item *item)
{
	const uint64_t dims = item->geometry->key_dim + item->geometry->value_dim;

	return dims * item->row_count * 2 * item->query_count / FLOPS_PER_NS;
}

static uint64_t cost_fill(const struct kvr_fill_item *item)
{
	const uint64_t bytes = item->row_count * row_bytes(item->geometry);

	return bytes / READ_BYTES_PER_NS + (item->copy ? bytes / COPY_BYTES_PER_NS : 0) +
	       (item->keys ? item->rows * row_bytes(item->geometry) / COPY_BYTES_PER_NS : 0);
}

uint64_t kvr_cpu_cost_ns(const struct kvr_job *job, uint32_t index)
{
	const void *items = job->items;
	uint64_t ns = 0;

	KVR_ASSERT(index < job->item_count);
	switch (job->kind) {
	case KVR_JOB_APPEND: {
		const struct kvr_append_item *item = (const struct kvr_append_item *)items + index;

		ns = item->count * item->tail->geometry->kv_heads *
		     row_bytes(item->tail->geometry) / MOVE_BYTES_PER_NS;
		break;
	}
	case KVR_JOB_CLUSTER:
		ns = cost_cluster((const struct kvr_cluster_item *)items + index);
		break;
	case KVR_JOB_PACK: {
		const struct kvr_segment_view *segment =
			((const struct kvr_cluster_item *)items + index)->segment;

		ns = segment->token_count * row_bytes(segment->geometry) / MOVE_BYTES_PER_NS;
		break;
	}
	case KVR_JOB_MERGE: ns = cost_merge((const struct kvr_cluster_item *)items + index); break;
	case KVR_JOB_RECALL: ns = cost_recall((const struct kvr_recall_item *)items + index); break;
	case KVR_JOB_FETCH: {
		const struct kvr_fetch_item *item = (const struct kvr_fetch_item *)items + index;

		ns = item->count * row_bytes(item->geometry) / MOVE_BYTES_PER_NS;
		break;
	}
	case KVR_JOB_COPY:
		ns = ((const struct kvr_copy_item *)items + index)->bytes / COPY_BYTES_PER_NS;
		break;
	case KVR_JOB_FILL: ns = cost_fill((const struct kvr_fill_item *)items + index); break;
	case KVR_JOB_ATTEND: ns = cost_attend((const struct kvr_attend_item *)items + index); break;
	case KVR_JOB_KINDS: break;
	}
	return ns + CALL_NS;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* score.c: the clusters of one lane, how many rows each has and what share of attention; see score.h.
 *
 * Most of the time goes into waiting for memory: the summaries of many segments. So each loop touches
 * what it, or the loop behind it, needs a little later. */

#include "kernels/score.h"

#include <math.h>

#include "kernels/move.h"

/* Means scored per call of dots, which fetches as many of the next. Two strips fit the first cache. */
#define STRIP_BYTES 16384u
#define STRIP_MEANS 512u

#define SEGMENTS_AHEAD 4u /* segments whose view is fetched ahead */

static void fetch_run(const void *from, size_t bytes)
{
	for (size_t i = 0; i < bytes; i += KVR_MOVE_LINE)
		__builtin_prefetch((const char *)from + i);
}

/* Adds the low plane's dots of a strip to the high plane's, which lie at `out`. */
static void add_low(struct kvr_score *score, uint32_t heads, struct kvr_recall_means means,
	const int8_t *low, float *out)
{
	float rest[KVR_RECALL_HEADS][STRIP_MEANS + KVR_RECALL_PAD] __attribute__((aligned(64)));

	means.plane = low;
	means.factor = 1;
	score->ops->dots(score->block, heads, score->item->geometry->key_dim, &means, rest[0],
		STRIP_MEANS + KVR_RECALL_PAD);
	for (uint32_t h = 0; h < heads; h++)
		for (uint32_t c = 0; c < means.count; c++)
			out[h * score->stride + c] += rest[h][c];
}

/* The dots of the prepared heads with every mean, strip by strip. */
static void score_means(struct kvr_score *score, uint32_t heads)
{
	const struct kvr_recall_item *item = score->item;
	const uint32_t dim = item->geometry->key_dim, lane = item->lane;
	const uint32_t strip = STRIP_BYTES / dim < STRIP_MEANS ? STRIP_BYTES / dim : STRIP_MEANS;
	float *out = score->dots;

	for (uint32_t s = 0; s < item->segment_count; s++) {
		const struct kvr_segment_view *segment = item->segments[s];
		const int8_t *high = kvr_segment_key_high(segment, lane), *behind = high;
		const float *step = kvr_segment_key_step(segment, lane);
		const uint32_t clusters = segment->cluster_count[lane];
		const bool both = segment->key_planes[lane] > 1 ||
				  item->rank == KVR_RANK_INNER_PRODUCT; /* S7 */

		if (s + 1 < item->segment_count)
			behind = kvr_segment_key_high(item->segments[s + 1], lane);
		for (uint32_t c = 0; c < clusters; c += strip) {
			const size_t at = (size_t)c * dim;
			const struct kvr_recall_means means = {
				.plane = high + at,
				.step = step + c,
				.factor = 256,
				.count = clusters - c < strip ? clusters - c : strip,
				.next = c + strip < clusters ? high + at + (size_t)strip * dim
							     : behind,
			};

			score->ops->dots(score->block, heads, dim, &means, out + c, score->stride);
			if (both)
				add_low(score, heads, means,
					kvr_segment_key_low(segment, lane) + at, out + c);
		}
		out += clusters;
	}
}

/* A dot product as a number that orders like it; both zeros alike. */
static uint32_t key_of_dot(float dot)
{
	const uint32_t bits = kvr_bits_of_float(dot + 0.0f);

	return bits >> 31 ? ~bits : bits | 0x80000000u;
}

uint32_t kvr_score_count(const struct kvr_recall_item *item)
{
	uint32_t clusters = 0;

	KVR_ASSERT(item->segment_count <= KVR_SEQUENCE_SEGMENTS_MAX);
	for (uint32_t s = 0; s < item->segment_count; s++) {
		const struct kvr_segment_view *segment = item->segments[s];

		if (s + SEGMENTS_AHEAD < item->segment_count)
			fetch_run(item->segments[s + SEGMENTS_AHEAD], sizeof(*segment));
		__builtin_prefetch(kvr_segment_row_first(segment, item->lane));
		KVR_ASSERT(segment->cluster_count[item->lane] <= segment->cluster_max);
		clusters += segment->cluster_count[item->lane];
	}
	KVR_ASSERT(clusters <= KVR_SCORE_CLUSTERS_MAX);
	return clusters;
}

size_t kvr_score_bind(struct kvr_score *score, uint32_t clusters, uint8_t *data)
{
	const size_t padded = (clusters + KVR_RECALL_PAD - 1) / KVR_RECALL_PAD * KVR_RECALL_PAD;
	const size_t stride = padded + KVR_RECALL_PAD;
	const size_t bytes[6] = {
		KVR_RECALL_BLOCK_BYTES,                    /* block */
		padded * sizeof(float),                    /* tokens */
		padded * sizeof(float),                    /* density */
		padded * sizeof(uint32_t),                 /* key */
		KVR_RECALL_HEADS * stride * sizeof(float), /* dots */
		stride * sizeof(float),                    /* work */
	};
	size_t at[7] = {0};

	for (int i = 0; i < 6; i++)
		at[i + 1] = at[i] + ((bytes[i] + 63) & ~(size_t)63);
	if (data) {
		score->clusters = clusters;
		score->padded = (uint32_t)padded;
		score->stride = stride;
		score->block = data + at[0];
		score->tokens = (float *)(void *)(data + at[1]);
		score->density = (float *)(void *)(data + at[2]);
		score->key = (uint32_t *)(void *)(data + at[3]);
		score->dots = (float *)(void *)(data + at[4]);
		score->work = (float *)(void *)(data + at[5]);
	}
	return at[6];
}

void kvr_score_measure(struct kvr_score *score)
{
	const struct kvr_recall_item *item = score->item;
	uint32_t at = 0;

	score->rows = 0;
	for (uint32_t s = 0; s < item->segment_count; s++) {
		const struct kvr_segment_view *segment = item->segments[s];
		const uint16_t *first = kvr_segment_row_first(segment, item->lane);
		const uint32_t clusters = segment->cluster_count[item->lane];

		if (s + SEGMENTS_AHEAD < item->segment_count)
			fetch_run(kvr_segment_row_first(
					  item->segments[s + SEGMENTS_AHEAD], item->lane),
				clusters * sizeof(*first));
		score->ops->widths(score->tokens + at, first, clusters);
		score->rows += (uint32_t)first[clusters] - first[0];
		at += clusters;
	}
	for (; at < score->padded; at++)
		score->tokens[at] = 0;
}

void kvr_score_pass(struct kvr_score *score, uint32_t first, uint32_t heads)
{
	const struct kvr_recall_item *item = score->item;
	const size_t query_bytes = item->geometry->key_dim * kvr_dtype_bytes(item->query_dtype);

	score->ops->prepare(score->block, score->steps, item->query + first * query_bytes,
		item->query_dtype, heads, item->geometry->key_dim);
	score_means(score, heads);
}

void kvr_score_run(struct kvr_score *score)
{
	const struct kvr_recall_item *item = score->item;

	memset(score->density, 0, score->padded * sizeof(*score->density));
	for (uint32_t first = 0; first < item->query_count; first += KVR_RECALL_HEADS) {
		const uint32_t heads = kvr_score_heads(item, first);

		kvr_score_pass(score, first, heads);
		if (item->rank == KVR_RANK_INNER_PRODUCT)
			for (uint32_t c = 0; c < score->clusters; c++)
				score->key[c] = key_of_dot(score->dots[c]);
		for (uint32_t h = 0; h < heads; h++) {
			float *dots = score->dots + h * score->stride;

			for (uint32_t c = score->clusters; c < score->padded; c++)
				dots[c] = dots[0];
			if (!isnan(score->steps[h])) /* R3 */
				score->ops->spread(dots, score->keep ? score->work : dots,
					score->tokens, score->padded, item->scale * score->steps[h],
					1.0f / (float)item->query_count, score->density);
		}
	}
	if (score->ops->release)
		score->ops->release();
	/* Not negative, so the bits order like the numbers. (R2) */
	if (item->rank == KVR_RANK_SHARE)
		memcpy(score->key, score->density, score->clusters * sizeof(*score->key));
}

/* SPDX-License-Identifier: Apache-2.0 */
/* recall.c: recall of one lane on the CPU: score, choose, gather.
 *
 * The inner loops stand in recall_<isa>.c, the choice in choose.c, the rows of the reply in stage.c.
 *
 *   measure ─► score ─────────────────► choose ─► collect ─► stage: sinks, clusters, tail
 *   clusters   per pass of 16 heads:    last      in memory   K and V of a cluster, one move each
 *   and rows   prepare, dots, spread    cluster   order
 *
 * Scoring is skipped where its result could not matter: a dense lane, or a budget by tokens that
 * covers every cluster.
 *
 * Most of the time goes into waiting for memory: the summaries of many segments, then extents all over
 * the arena. So each loop touches what it, or the loop behind it, needs a little later.
 *
 * Invariants:
 *   R3  A head whose query is not finite adds nothing to any density. */

#include <math.h>

#include "kernels/recall.h"
#include "kernels/stage.h"

/* Clusters of a sequence: what full segments have, and one more per segment for rounding up. */
#define CLUSTERS_MAX (KVR_SEQUENCE_CLUSTERS_MAX + KVR_SEQUENCE_SEGMENTS_MAX)

/* Means scored per call of dots, which fetches as many of the next. Two strips fit the first cache. */
#define STRIP_BYTES 16384u
#define STRIP_MEANS 512u

#define SEGMENTS_AHEAD 4u /* segments whose view is fetched ahead */

KVR_STATIC_ASSERT(sizeof(struct kvr_taken) <= KVR_RECALL_HEADS * sizeof(float));

struct recall {
	struct kvr_recall_item *item;
	const struct kvr_recall_ops *ops;
	uint32_t clusters; /* of all segments */
	uint32_t padded;   /* the same, a multiple of KVR_RECALL_PAD */
	uint32_t rows;     /* of these clusters */
	size_t stride;     /* elements from one head's dots to the next's */
	/* In scratch; R1. */
	uint8_t *block; /* as the instruction set wants them */
	float *tokens;  /* [padded] rows per cluster, 0 behind the last */
	float *density; /* [padded] share per row */
	uint32_t *key;  /* [padded] order: larger first */
	uint64_t *room; /* choose's memory, then the list of what is taken */
	float *dots;    /* [KVR_RECALL_HEADS][stride], then: */
	struct kvr_taken *taken;
};

static const struct kvr_recall_ops *ops_of(enum kvr_isa isa)
{
	if (isa == KVR_ISA_AVX512)
		return kvr_kmeans_tiles_usable() ? &kvr_recall_tiles : &kvr_recall_avx512;
	return isa == KVR_ISA_AVX2 ? &kvr_recall_avx2 : &kvr_recall_plain;
}

/* ---- scratch --------------------------------------------------------------------------------- */

/* Lays the arrays out for `clusters` clusters, as tightly as they go, so that few pages are touched
 * and arrays do not meet in the same cache sets. Returns the bytes needed; data NULL only adds up. */
static size_t bind_scratch(struct recall *recall, uint32_t clusters, uint8_t *data)
{
	const size_t padded = (clusters + KVR_RECALL_PAD - 1) / KVR_RECALL_PAD * KVR_RECALL_PAD;
	const size_t stride = padded + KVR_RECALL_PAD;
	const size_t room = padded + 2 * KVR_RECALL_PAD;
	const size_t bytes[6] = {
		KVR_RECALL_BLOCK_BYTES,                    /* block */
		padded * sizeof(float),                    /* tokens */
		padded * sizeof(float),                    /* density */
		padded * sizeof(uint32_t),                 /* key */
		room * KVR_CHOOSE_CLUSTER_BYTES,           /* room, list */
		KVR_RECALL_HEADS * stride * sizeof(float), /* dots, taken */
	};
	size_t at[7] = {0};

	for (int i = 0; i < 6; i++)
		at[i + 1] = at[i] + ((bytes[i] + 63) & ~(size_t)63);
	if (data) {
		recall->clusters = clusters;
		recall->padded = (uint32_t)padded;
		recall->stride = stride;
		recall->block = data + at[0];
		recall->tokens = (float *)(void *)(data + at[1]);
		recall->density = (float *)(void *)(data + at[2]);
		recall->key = (uint32_t *)(void *)(data + at[3]);
		recall->room = (uint64_t *)(void *)(data + at[4]);
		recall->dots = (float *)(void *)(data + at[5]);
		recall->taken = (struct kvr_taken *)(void *)(data + at[5]);
	}
	return at[6];
}

size_t kvr_cpu_recall_scratch(void)
{
	return bind_scratch(NULL, CLUSTERS_MAX, NULL);
}

/* ---- measure --------------------------------------------------------------------------------- */

static void fetch_run(const void *from, size_t bytes)
{
	for (size_t i = 0; i < bytes; i += KVR_MOVE_LINE)
		__builtin_prefetch((const char *)from + i);
}

static uint32_t count_clusters(const struct kvr_recall_item *item)
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
	KVR_ASSERT(clusters <= CLUSTERS_MAX);
	return clusters;
}

static void measure(struct recall *recall)
{
	const struct kvr_recall_item *item = recall->item;
	uint32_t at = 0;

	recall->rows = 0;
	for (uint32_t s = 0; s < item->segment_count; s++) {
		const struct kvr_segment_view *segment = item->segments[s];
		const uint16_t *first = kvr_segment_row_first(segment, item->lane);
		const uint32_t clusters = segment->cluster_count[item->lane];

		if (s + SEGMENTS_AHEAD < item->segment_count)
			fetch_run(kvr_segment_row_first(
					  item->segments[s + SEGMENTS_AHEAD], item->lane),
				clusters * sizeof(*first));
		recall->ops->widths(recall->tokens + at, first, clusters);
		recall->rows += (uint32_t)first[clusters] - first[0];
		at += clusters;
	}
	for (; at < recall->padded; at++)
		recall->tokens[at] = 0;
}

/* ---- score ----------------------------------------------------------------------------------- */

/* Adds the low plane's dots of a strip to the high plane's, which lie at `out`. */
static void add_low(struct recall *recall, uint32_t heads, struct kvr_recall_means means,
	const int8_t *low, float *out)
{
	float rest[KVR_RECALL_HEADS][STRIP_MEANS + KVR_RECALL_PAD] __attribute__((aligned(64)));

	means.plane = low;
	means.factor = 1;
	recall->ops->dots(recall->block, heads, recall->item->geometry->key_dim, &means, rest[0],
		STRIP_MEANS + KVR_RECALL_PAD);
	for (uint32_t h = 0; h < heads; h++)
		for (uint32_t c = 0; c < means.count; c++)
			out[h * recall->stride + c] += rest[h][c];
}

/* The dots of the prepared heads with every mean, strip by strip. */
static void score_means(struct recall *recall, uint32_t heads)
{
	const struct kvr_recall_item *item = recall->item;
	const uint32_t dim = item->geometry->key_dim, lane = item->lane;
	const uint32_t strip = STRIP_BYTES / dim < STRIP_MEANS ? STRIP_BYTES / dim : STRIP_MEANS;
	float *out = recall->dots;

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

			recall->ops->dots(
				recall->block, heads, dim, &means, out + c, recall->stride);
			if (both)
				add_low(recall, heads, means,
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

static void score(struct recall *recall)
{
	const struct kvr_recall_item *item = recall->item;
	const size_t query_bytes = item->geometry->key_dim * kvr_dtype_bytes(item->query_dtype);
	float steps[KVR_RECALL_HEADS];

	memset(recall->density, 0, recall->padded * sizeof(*recall->density));
	for (uint32_t first = 0; first < item->query_count; first += KVR_RECALL_HEADS) {
		const uint32_t left = item->query_count - first;
		const uint32_t heads = left < KVR_RECALL_HEADS ? left : KVR_RECALL_HEADS;

		recall->ops->prepare(recall->block, steps, item->query + first * query_bytes,
			item->query_dtype, heads, item->geometry->key_dim);
		score_means(recall, heads);
		if (item->rank == KVR_RANK_INNER_PRODUCT)
			for (uint32_t c = 0; c < recall->clusters; c++)
				recall->key[c] = key_of_dot(recall->dots[c]);
		for (uint32_t h = 0; h < heads; h++) {
			float *dots = recall->dots + h * recall->stride;

			for (uint32_t c = recall->clusters; c < recall->padded; c++)
				dots[c] = dots[0];
			if (!isnan(steps[h])) /* R3 */
				recall->ops->spread(dots, recall->tokens, recall->padded,
					item->scale * steps[h], 1.0f / (float)item->query_count,
					recall->density);
		}
	}
	if (recall->ops->release)
		recall->ops->release();
	/* Not negative, so the bits order like the numbers. (R2) */
	if (item->rank == KVR_RANK_SHARE)
		memcpy(recall->key, recall->density, recall->clusters * sizeof(*recall->key));
}

/* ---- collect --------------------------------------------------------------------------------- */

/* Lists what is taken in memory order. `choice` NULL: everything. Returns how many clusters. */
static uint32_t collect(struct recall *recall, const struct kvr_choice *choice)
{
	const struct kvr_recall_item *item = recall->item;
	uint32_t *list = (uint32_t *)(void *)recall->room;
	uint32_t count = recall->clusters, taken = 0, segment = 0, first = 0;

	if (choice)
		count = recall->ops->find(
			recall->key, recall->clusters, choice->key, UINT32_MAX, list);
	for (uint32_t i = 0; i < count; i++) {
		const uint32_t at = choice ? list[i] : i;
		uint32_t rows = (uint32_t)recall->tokens[at];

		if (choice && recall->key[at] == choice->key && at >= choice->index) {
			if (at > choice->index)
				continue;
			rows = choice->rows;
		}
		while (at - first >= item->segments[segment]->cluster_count[item->lane])
			first += item->segments[segment++]->cluster_count[item->lane];
		__builtin_prefetch(
			kvr_segment_extent(item->segments[segment], item->lane) + at - first);
		recall->taken[taken++] =
			(struct kvr_taken){segment, (uint16_t)(at - first), (uint16_t)rows};
	}
	return taken;
}

/* ---- the operation --------------------------------------------------------------------------- */

static void check(const struct kvr_recall_item *item)
{
	KVR_ASSERT(item->lane < kvr_geometry_lanes(item->geometry));
	KVR_ASSERT(item->geometry->key_dim <= KVR_DIM_MAX);
	KVR_ASSERT(item->query_count >= 1);
	KVR_ASSERT(item->query_count <= KVR_GROUP_MAX);
	KVR_ASSERT(item->rank != KVR_RANK_INNER_PRODUCT || item->query_count == 1);
	KVR_ASSERT(item->tail_count == 0 || item->tail);
}

int kvr_cpu_recall(struct kvr_recall_item *item, enum kvr_isa isa, struct kvr_span scratch)
{
	struct recall recall = {.item = item, .ops = ops_of(isa)};
	struct kvr_stage stage = {.item = item, .move = kvr_move_ops_of(isa)};
	struct kvr_choice choice;
	uint32_t clusters, rows, taken = 0;
	double mass;
	size_t bytes;
	bool all;

	check(item);
	clusters = count_clusters(item);
	bytes = bind_scratch(&recall, clusters, scratch.data);
	KVR_ASSERT(bytes <= scratch.bytes); /* P2 */
	measure(&recall);
	item->row_count = 0;
	item->cluster_count = 0;
	item->token_missing = 0;
	item->chosen_count = 0;
	item->absent_count = 0;
	all = kvr_geometry_is_dense(item->geometry, item->lane) || recall.rows == 0 ||
	      (recall.rows <= item->budget_tokens && !(item->budget_mass > 0));
	if (all) {
		taken = collect(&recall, NULL);
	} else if (item->budget_tokens > 0) {
		score(&recall);
		choice = kvr_choose(recall.ops, recall.key, recall.tokens, recall.density, clusters,
			item->budget_tokens, item->budget_mass, recall.room);
		taken = collect(&recall, &choice);
	}
	if (item->sinks)
		kvr_stage_sinks(&stage);
	rows = kvr_stage_taken(&stage, recall.taken, taken, all ? NULL : recall.density, &mass);
	kvr_stage_tail(&stage);
	item->row_count = stage.row;
	if (all)
		mass = recall.rows > 0 ? (double)rows / recall.rows : 1;
	item->mass = mass < 1 ? (float)mass : 1;
	return 0;
}

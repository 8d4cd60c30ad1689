/* SPDX-License-Identifier: Apache-2.0 */
/* recall.c: recall of one lane on the CPU: score, choose, gather, estimate the rest.
 *
 * Clusters are scored in score.c and chosen in choose.c, the rows of the reply are written in stage.c, the
 * attention over centroids is in fold.c; the inner loops are in recall_<isa>.c and fold_<isa>.c.
 *
 *   score ─► choose ─► collect ─► stage: sinks, clusters, tail ─► estimate: centroids, fold
 *            last      in memory   K and V of a cluster,          MIXED: what is left
 *            cluster   order       one move each
 *
 * Scoring is skipped where its result could not matter: a dense lane, or a budget by tokens that
 * covers every cluster. A fold wants the dots again: those of one pass are kept, those of several are made
 * again, because 128 heads' would be 128 times the memory. */

#include "kernels/fold.h"
#include "kernels/score.h"
#include "kernels/stage.h"

KVR_STATIC_ASSERT(sizeof(struct kvr_taken) <= KVR_RECALL_HEADS * sizeof(float));

struct recall {
	struct kvr_recall_item *item;
	struct kvr_score score;
	struct kvr_stage stage;
	struct kvr_fold fold;
	/* In scratch. */
	uint64_t *room; /* choose's memory, then a list: of what is taken, of what comes next */
	struct kvr_taken *taken; /* where the dots are not kept, in their place */
};

static const struct kvr_recall_ops *ops_of(enum kvr_isa isa)
{
	if (isa == KVR_ISA_AVX512)
		return kvr_kmeans_tiles_usable() ? &kvr_recall_tiles : &kvr_recall_avx512;
	return isa == KVR_ISA_AVX2 ? &kvr_recall_avx2 : &kvr_recall_plain;
}

/* ---- scratch --------------------------------------------------------------------------------- */

/* Lays the arrays out for `clusters` clusters and returns the bytes needed; data NULL only adds up. */
static size_t bind_scratch(struct recall *recall, uint32_t clusters, uint32_t key_dim,
	uint32_t value_dim, uint8_t *data)
{
	const size_t padded = (clusters + KVR_RECALL_PAD - 1) / KVR_RECALL_PAD * KVR_RECALL_PAD;
	const size_t room = (padded + 2 * KVR_RECALL_PAD) * KVR_CHOOSE_CLUSTER_BYTES;
	size_t at = kvr_score_bind(&recall->score, clusters, data);

	if (data)
		recall->room = (uint64_t *)(void *)(data + at);
	at += (room + 63) & ~(size_t)63;
	if (data)
		recall->taken =
			(struct kvr_taken *)(void *)(recall->score.keep
							     ? data + at
							     : (uint8_t *)recall->score.dots);
	at += (padded * sizeof(struct kvr_taken) + 63) & ~(size_t)63;
	return at + kvr_fold_bind(&recall->fold, key_dim, value_dim, data ? data + at : NULL);
}

size_t kvr_cpu_recall_scratch(void)
{
	struct recall recall = {0};

	return bind_scratch(&recall, KVR_SCORE_CLUSTERS_MAX, KVR_DIM_MAX, KVR_DIM_MAX, NULL);
}

/* ---- collect --------------------------------------------------------------------------------- */

/* Lists what is taken in memory order. `choice` NULL: everything. Returns how many clusters. */
static uint32_t collect(struct recall *recall, const struct kvr_choice *choice)
{
	const struct kvr_recall_item *item = recall->item;
	uint32_t *list = (uint32_t *)(void *)recall->room;
	uint32_t count = recall->score.clusters, taken = 0, segment = 0, first = 0;

	if (choice)
		count = recall->score.ops->find(
			recall->score.key, recall->score.clusters, choice->key, UINT32_MAX, list);
	for (uint32_t i = 0; i < count; i++) {
		const uint32_t at = choice ? list[i] : i;
		uint32_t rows = (uint32_t)recall->score.tokens[at];

		if (choice && recall->score.key[at] == choice->key && at >= choice->index) {
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

/* Lists what a merged recall takes. Returns how many units: at most one per cluster, because a segment
 * whose merged set has rows has clusters. */
static uint32_t collect_merged(struct recall *recall)
{
	const struct kvr_recall_item *item = recall->item;
	const bool dense = kvr_geometry_is_dense(item->geometry, item->lane);
	uint32_t taken = 0;

	KVR_ASSERT(item->merged_segments <= item->segment_count);
	for (uint32_t s = 0; s < item->segment_count; s++) {
		const struct kvr_segment_view *segment = item->segments[s];
		const uint32_t clusters = segment->cluster_count[item->lane];
		uint16_t *tokens;
		uint32_t unit;

		if (!dense && s < item->merged_segments) {
			unit = kvr_segment_merged_unit(
				segment, item->lane, item->merged_set, &tokens);
			if (clusters > 0)
				recall->taken[taken++] = (struct kvr_taken){s, (uint16_t)unit,
					(uint16_t)kvr_segment_unit_rows(segment, item->lane, unit)};
			continue;
		}
		for (uint32_t c = 0; c < clusters; c++)
			recall->taken[taken++] = (struct kvr_taken){s, (uint16_t)c,
				(uint16_t)kvr_segment_unit_rows(segment, item->lane, c)};
	}
	return taken;
}

/* ---- estimate -------------------------------------------------------------------------------- */

/* Takes what is staged off the rows per cluster: what stays is to be estimated. Returns how many
 * clusters have none left. */
static uint32_t subtract_taken(struct recall *recall, uint32_t count)
{
	const struct kvr_recall_item *item = recall->item;
	uint32_t segment = 0, before = 0, whole = 0;

	for (uint32_t i = 0; i < count; i++) {
		const struct kvr_taken *taken = &recall->taken[i];
		float *left;

		for (; segment < taken->segment; segment++)
			before += item->segments[segment]->cluster_count[item->lane];
		left = &recall->score.tokens[before + taken->unit];
		*left -= (float)taken->rows;
		whole += !(*left > 0);
	}
	return whole;
}

/* Lists the next clusters in the order of choosing, centroid_max at most, in memory order. The
 * `whole` clusters without rows left come first in that order. Returns how many. */
static uint32_t list_next(struct recall *recall, uint32_t whole)
{
	const uint32_t clusters = recall->score.clusters, most = recall->item->centroid_max;
	uint32_t *list = (uint32_t *)(void *)recall->room;
	struct kvr_choice choice;
	uint32_t found, count = 0;

	if (whole == clusters)
		return 0;
	for (uint32_t c = 0; c < recall->score.padded; c++)
		recall->score.work[c] = c < clusters ? 1 : 0;
	choice = kvr_choose(recall->score.ops, recall->score.key, recall->score.work,
		recall->score.density, clusters, most < clusters - whole ? whole + most : clusters,
		0, recall->room);
	found = recall->score.ops->find(recall->score.key, clusters, choice.key, UINT32_MAX, list);
	for (uint32_t i = 0; i < found; i++)
		if (recall->score.tokens[list[i]] > 0 &&
			(recall->score.key[list[i]] > choice.key || list[i] <= choice.index))
			list[count++] = list[i];
	KVR_ASSERT(count <= most);
	return count;
}

/* Stages the listed centroids, and leaves none of their rows to the fold. */
static void stage_centroids(struct recall *recall, uint32_t count)
{
	struct kvr_recall_item *item = recall->item;
	const uint32_t *list = (const uint32_t *)(const void *)recall->room;
	const uint32_t row = recall->stage.row;

	for (uint32_t head = 0; head < item->query_count; head += KVR_RECALL_HEADS) {
		uint32_t segment = 0, before = 0;

		kvr_fold_begin(&recall->fold, head, kvr_score_heads(item, head));
		for (uint32_t i = 0; i < count; i++) {
			const struct kvr_segment_view *view;

			while (list[i] - before >=
				item->segments[segment]->cluster_count[item->lane])
				before += item->segments[segment++]->cluster_count[item->lane];
			view = item->segments[segment];
			if (head == 0)
				kvr_stage_centroid(&recall->stage, view, list[i] - before);
			if (item->weights)
				kvr_fold_weigh(&recall->fold, view, list[i] - before,
					(uint32_t)recall->score.tokens[list[i]],
					item->weights + (size_t)head * item->row_capacity + row + i,
					item->row_capacity);
		}
	}
	for (uint32_t i = 0; i < count; i++)
		recall->score.tokens[list[i]] = 0;
	item->centroid_count = count;
}

static void fold(struct recall *recall)
{
	const struct kvr_recall_item *item = recall->item;
	const bool again = item->query_count > KVR_RECALL_HEADS;

	for (uint32_t first = 0; first < item->query_count; first += KVR_RECALL_HEADS) {
		uint32_t at = 0;

		if (again)
			kvr_score_pass(&recall->score, first, kvr_score_heads(item, first));
		kvr_fold_begin(&recall->fold, first, kvr_score_heads(item, first));
		for (uint32_t s = 0; s < item->segment_count; s++) {
			const uint32_t next = s + 1 < item->segment_count ? s + 1 : s;

			kvr_fold_add(&recall->fold, item->segments[s], recall->score.tokens + at,
				recall->score.dots + at, recall->score.stride, recall->score.steps,
				item->segments[next]);
			at += item->segments[s]->cluster_count[item->lane];
		}
		kvr_fold_end(&recall->fold, first);
	}
	if (again && recall->score.ops->release)
		recall->score.ops->release();
}

/* ---- the operation --------------------------------------------------------------------------- */

static void check(const struct kvr_recall_item *item)
{
	KVR_ASSERT(item->lane < kvr_geometry_lanes(item->geometry));
	KVR_ASSERT(item->geometry->key_dim <= KVR_DIM_MAX);
	KVR_ASSERT(item->tail_count == 0 || item->tail);
	KVR_ASSERT(item->form <= KVR_FORM_MIXED);
	if (item->form == KVR_FORM_MERGED)
		return;
	KVR_ASSERT(item->query_count >= 1);
	KVR_ASSERT(item->query_count <= KVR_GROUP_MAX);
	KVR_ASSERT(item->rank != KVR_RANK_INNER_PRODUCT || item->query_count == 1);
	if (item->form == KVR_FORM_MIXED)
		KVR_ASSERT(!item->fold_out == !item->fold_lse);
}

static void take_scratch(struct recall *recall, enum kvr_isa isa, struct kvr_span scratch)
{
	const struct kvr_geometry *geometry = recall->item->geometry;
	const size_t bytes = bind_scratch(recall, kvr_score_count(recall->item), geometry->key_dim,
		geometry->value_dim, scratch.data);

	KVR_ASSERT(bytes <= scratch.bytes); /* P2 */
	kvr_fold_init(&recall->fold, recall->item, isa);
}

/* Writes the estimates, after the tail. `taken` clusters are; `all`: nothing was scored, nothing is left. */
static void estimate(struct recall *recall, uint32_t taken, bool all)
{
	const struct kvr_recall_item *item = recall->item;
	const uint32_t whole = all ? 0 : subtract_taken(recall, taken);

	if (!all && item->centroid_max > 0)
		stage_centroids(recall, list_next(recall, whole));
	if (!item->fold_out)
		return;
	if (all)
		kvr_fold_nothing(item);
	else
		fold(recall);
}

/* Whether every cluster is taken, so that scores could change nothing. */
static bool takes_all(const struct recall *recall)
{
	const struct kvr_recall_item *item = recall->item;

	return kvr_geometry_is_dense(item->geometry, item->lane) || recall->score.rows == 0 ||
	       (recall->score.rows <= item->budget_tokens && !(item->budget_mass > 0));
}

int kvr_cpu_recall(struct kvr_recall_item *item, enum kvr_isa isa, struct kvr_span scratch)
{
	const bool merged = item->form == KVR_FORM_MERGED;
	const bool estimates =
		item->form == KVR_FORM_MIXED && (item->fold_out || item->centroid_max > 0);
	struct recall recall = {.item = item,
		.score = {.item = item, .ops = ops_of(isa), .keep = estimates},
		.stage = {.item = item, .move = kvr_move_ops_of(isa)}};
	struct kvr_score *score = &recall.score;
	uint32_t taken = 0, rows;
	bool all = merged;
	double mass;

	check(item);
	item->row_count = 0;
	item->cluster_count = 0;
	item->centroid_count = 0;
	item->token_missing = 0;
	item->chosen_count = 0;
	item->absent_count = 0;
	take_scratch(&recall, isa, scratch);
	if (merged) {
		taken = collect_merged(&recall);
	} else {
		kvr_score_measure(score);
		all = takes_all(&recall);
		if (all)
			taken = collect(&recall, NULL);
		else if (item->budget_tokens > 0 || estimates)
			kvr_score_run(score);
	}
	if (!all && item->budget_tokens > 0) {
		const struct kvr_choice choice = kvr_choose(score->ops, score->key, score->tokens,
			score->density, score->clusters, item->budget_tokens, item->budget_mass,
			recall.room);

		taken = collect(&recall, &choice);
	}
	if (item->sinks)
		kvr_stage_sinks(&recall.stage);
	rows = kvr_stage_taken(
		&recall.stage, recall.taken, taken, all ? NULL : score->density, &mass);
	kvr_stage_tail(&recall.stage);
	if (estimates)
		estimate(&recall, taken, all);
	item->row_count = recall.stage.row;
	if (all)
		mass = score->rows > 0 ? (double)rows / score->rows : 1;
	item->mass = mass < 1 ? (float)mass : 1;
	return 0;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* stage.c: rows of clusters, sinks and tail to a recall's outputs; see stage.h.
 *
 * Most of the time goes into waiting for extents all over the arena. So moving a cluster fetches one that
 * is staged a little later. */

#include "kernels/stage.h"

#define TAKEN_AHEAD 2u /* clusters whose rows are fetched ahead */

/* Moves rows that are contiguous on both sides; keys NULL: only leaves room for them. Their positions
 * are the caller's. */
static void stage_rows(
	struct kvr_stage *stage, const uint8_t *keys, const uint8_t *values, uint32_t rows)
{
	const struct kvr_recall_item *item = stage->item;
	const size_t key_bytes = kvr_geometry_key_bytes(item->geometry);
	const size_t value_bytes = kvr_geometry_value_bytes(item->geometry);
	const struct kvr_run from[2] = {{keys, rows * key_bytes}, {values, rows * value_bytes}};
	uint8_t *const to[2] = {
		item->keys + stage->row * key_bytes, item->values + stage->row * value_bytes};

	KVR_ASSERT(rows <= item->row_capacity - stage->row); /* R4, D3 */
	if (keys)
		stage->move->move_pair(to, from, stage->coming);
	if (item->weights)
		memset(item->weights + stage->row, 0, rows * sizeof(*item->weights));
	stage->row += rows;
}

/* Notes that rows are staged from the next one on, or will be: a gap. */
static void list_chosen(struct kvr_recall_item *item, struct kvr_taken taken, uint32_t row,
	bool absent, double share)
{
	KVR_ASSERT(item->chosen_count < item->chosen_max); /* D3 */
	item->absent_count += absent;
	item->chosen[item->chosen_count++] = (struct kvr_chosen){
		.segment = (uint16_t)taken.segment,
		.cluster = taken.cluster,
		.rows = taken.rows,
		.absent = absent,
		.row = row,
		.share = (float)share,
	};
}

/* Stages the first rows of a cluster, or a gap for them, or counts them as missing. Returns whether
 * they are in the output. */
static bool stage_cluster(struct kvr_stage *stage, struct kvr_taken taken, double share)
{
	struct kvr_recall_item *item = stage->item;
	const struct kvr_segment_view *segment = item->segments[taken.segment];
	const uint16_t *first = kvr_segment_row_first(segment, item->lane) + taken.cluster;
	const uint16_t *token = kvr_segment_row_token(segment, item->lane) + *first;
	const uint8_t *keys = kvr_segment_get_extent(segment, item->lane, taken.cluster);
	const uint8_t *values = NULL;
	const uint32_t all = (uint32_t)first[1] - first[0];

	if (keys == KVR_EXTENT_LOST || (!keys && !item->chosen)) {
		item->token_missing += taken.rows;
		return false;
	}
	KVR_ASSERT(taken.rows <= all);
	if (item->chosen)
		list_chosen(item, taken, stage->row, !keys, share);
	if (item->positions)
		for (uint32_t i = 0; i < taken.rows; i++)
			item->positions[stage->row + i] =
				(int32_t)(segment->token_first + token[i]);
	if (keys)
		values = keys + all * kvr_geometry_key_bytes(item->geometry);
	stage_rows(stage, keys, values, taken.rows);
	return true;
}

/* Says which cluster is staged soon (NULL: none), so that moving another fetches it, and touches the
 * tokens of its rows. */
static void announce(struct kvr_stage *stage, const struct kvr_taken *taken)
{
	const struct kvr_recall_item *item = stage->item;
	const size_t key_bytes = kvr_geometry_key_bytes(item->geometry);
	const struct kvr_segment_view *segment;
	const uint8_t *keys;
	const uint16_t *first;

	memset(stage->coming, 0, sizeof(stage->coming));
	if (!taken)
		return;
	segment = item->segments[taken->segment];
	keys = kvr_segment_get_extent(segment, item->lane, taken->cluster);
	first = kvr_segment_row_first(segment, item->lane) + taken->cluster;
	if (!keys || keys == KVR_EXTENT_LOST)
		return;
	stage->coming[0] = (struct kvr_run){keys, taken->rows * key_bytes};
	stage->coming[1] = (struct kvr_run){keys + (size_t)(first[1] - first[0]) * key_bytes,
		taken->rows * kvr_geometry_value_bytes(item->geometry)};
	if (item->positions)
		__builtin_prefetch(kvr_segment_row_token(segment, item->lane) + *first);
}

void kvr_stage_sinks(struct kvr_stage *stage)
{
	const struct kvr_recall_item *item = stage->item;

	for (uint32_t s = 0; s < item->segment_count; s++) {
		const struct kvr_segment_view *segment = item->segments[s];

		if (segment->sink_count == 0)
			return;
		stage_cluster(stage,
			(struct kvr_taken){s, segment->cluster_count[item->lane],
				(uint16_t)segment->sink_count},
			0);
	}
}

uint32_t kvr_stage_taken(struct kvr_stage *stage, const struct kvr_taken *taken, uint32_t count,
	const float *density, double *ret_mass)
{
	struct kvr_recall_item *item = stage->item;
	uint32_t segment = 0, before = 0, rows = 0;
	double mass = 0, share = 0;

	for (uint32_t i = 0; i < count; i++) {
		announce(stage, i + TAKEN_AHEAD < count ? &taken[i + TAKEN_AHEAD] : NULL);
		for (; segment < taken[i].segment; segment++)
			before += item->segments[segment]->cluster_count[item->lane];
		if (density)
			share = (double)density[before + taken[i].cluster] * taken[i].rows;
		if (!stage_cluster(stage, taken[i], share))
			continue;
		item->cluster_count++;
		rows += taken[i].rows;
		mass += share;
	}
	*ret_mass = mass;
	return rows;
}

void kvr_stage_tail(struct kvr_stage *stage)
{
	const struct kvr_recall_item *item = stage->item;
	uint32_t run;

	for (uint32_t token = 0; token < item->tail_count; token += run) {
		run = item->tail_count - token < KVR_BLOCK_TOKENS ? item->tail_count - token
								  : KVR_BLOCK_TOKENS;
		if (item->positions)
			for (uint32_t i = 0; i < run; i++)
				item->positions[stage->row + i] =
					(int32_t)(item->tail_first + token + i);
		stage_rows(stage, kvr_tail_key(item->tail, item->lane, token),
			kvr_tail_value(item->tail, item->lane, token), run);
	}
}

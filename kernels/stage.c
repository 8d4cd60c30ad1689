/* SPDX-License-Identifier: Apache-2.0 */
/* stage.c: rows of clusters, merged sets, sinks, tail and centroids to a recall's outputs; see stage.h.
 *
 * Most of the time goes into waiting for extents all over the arena. So moving a unit fetches one that
 * is staged a little later. */

#include "kernels/stage.h"

#include <math.h>

#include "kernels/mean.h"

#define TAKEN_AHEAD 2u /* units whose rows are fetched ahead */

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
		for (uint32_t h = 0; h < kvr_stage_weight_heads(item); h++)
			memset(item->weights + (size_t)h * item->row_capacity + stage->row, 0,
				rows * sizeof(*item->weights));
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
		.cluster = taken.unit,
		.rows = taken.rows,
		.absent = absent,
		.row = row,
		.share = (float)share,
	};
}

/* Stages the first rows of a unit, or a gap for them, or counts them as missing. Returns whether they
 * are in the output. Positions and weights are the caller's, from `row` on, before it goes on. */
static bool stage_unit(struct kvr_stage *stage, struct kvr_taken taken, uint32_t all,
	uint32_t tokens, double share)
{
	struct kvr_recall_item *item = stage->item;
	const struct kvr_segment_view *segment = item->segments[taken.segment];
	const uint8_t *keys = kvr_segment_get_extent(segment, item->lane, taken.unit);
	const uint8_t *values = NULL;

	KVR_ASSERT(taken.rows <= all);
	if (keys == KVR_EXTENT_LOST || (!keys && !item->chosen)) {
		item->token_missing += tokens;
		return false;
	}
	if (item->chosen)
		list_chosen(item, taken, stage->row, !keys, share);
	if (keys)
		values = keys + all * kvr_geometry_key_bytes(item->geometry);
	stage_rows(stage, keys, values, taken.rows);
	return true;
}

static bool stage_cluster(struct kvr_stage *stage, struct kvr_taken taken, double share)
{
	struct kvr_recall_item *item = stage->item;
	const struct kvr_segment_view *segment = item->segments[taken.segment];
	const uint16_t *first = kvr_segment_row_first(segment, item->lane) + taken.unit;
	const uint16_t *token = kvr_segment_row_token(segment, item->lane) + *first;
	const uint32_t row = stage->row;

	if (!stage_unit(stage, taken, (uint32_t)first[1] - first[0], taken.rows, share))
		return false;
	if (item->positions)
		for (uint32_t i = 0; i < taken.rows; i++)
			item->positions[row + i] = (int32_t)(segment->token_first + token[i]);
	return true;
}

/* The rows of a merged set, whole. */
static bool stage_merged(struct kvr_stage *stage, struct kvr_taken taken)
{
	struct kvr_recall_item *item = stage->item;
	const struct kvr_segment_view *segment = item->segments[taken.segment];
	const uint32_t row = stage->row;
	uint16_t *tokens;
	uint32_t unit;

	unit = kvr_segment_merged_unit(segment, item->lane, item->merged_set, &tokens);
	KVR_ASSERT(unit == taken.unit);
	if (!stage_unit(stage, taken, taken.rows, segment->token_count - segment->sink_count, 0))
		return false;
	for (uint32_t i = 0; i < taken.rows; i++) {
		if (item->positions)
			item->positions[row + i] = -1;
		if (item->weights && tokens[i] > 1)
			item->weights[row + i] = logf(tokens[i]);
	}
	return true;
}

/* Says which unit is staged soon (NULL: none), so that moving another fetches it, and touches the
 * tokens of its rows. */
static void announce(struct kvr_stage *stage, const struct kvr_taken *taken)
{
	const struct kvr_recall_item *item = stage->item;
	const size_t key_bytes = kvr_geometry_key_bytes(item->geometry);
	const struct kvr_segment_view *segment;
	const uint16_t *first, *token;
	const uint8_t *keys;
	uint32_t all;

	memset(stage->coming, 0, sizeof(stage->coming));
	if (!taken)
		return;
	segment = item->segments[taken->segment];
	keys = kvr_segment_get_extent(segment, item->lane, taken->unit);
	if (!keys || keys == KVR_EXTENT_LOST)
		return;
	first = kvr_segment_row_first(segment, item->lane);
	token = kvr_segment_row_token(segment, item->lane);
	all = taken->rows;
	if (taken->unit <= segment->cluster_max) {
		all = (uint32_t)first[taken->unit + 1] - first[taken->unit];
		if (item->positions)
			__builtin_prefetch(token + first[taken->unit]);
	}
	stage->coming[0] = (struct kvr_run){keys, taken->rows * key_bytes};
	stage->coming[1] = (struct kvr_run){
		keys + all * key_bytes, taken->rows * kvr_geometry_value_bytes(item->geometry)};
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
			share = (double)density[before + taken[i].unit] * taken[i].rows;
		if (taken[i].unit > item->segments[taken[i].segment]->cluster_max
				? !stage_merged(stage, taken[i])
				: !stage_cluster(stage, taken[i], share))
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

/* ---- centroids ------------------------------------------------------------------------------- */

/* Rounds floats to a row of a dtype, finite ones to finite ones. */
static void narrow(uint8_t *to, const float *from, enum kvr_dtype dtype, size_t count)
{
	uint16_t half;

	if (dtype == KVR_DTYPE_F32) {
		memcpy(to, from, count * sizeof(*from));
		return;
	}
	for (size_t i = 0; i < count; i++) {
		half = dtype == KVR_DTYPE_BF16 ? kvr_bf16_of_float(from[i])
					       : kvr_f16_of_float(from[i]);
		memcpy(to + i * sizeof(half), &half, sizeof(half));
	}
}

void kvr_stage_centroid(
	struct kvr_stage *stage, const struct kvr_segment_view *segment, uint32_t cluster)
{
	const struct kvr_recall_item *item = stage->item;
	const struct kvr_geometry *geometry = item->geometry;
	const size_t key_at = (size_t)cluster * geometry->key_dim;
	const uint16_t *value =
		kvr_segment_value_mean(segment, item->lane) + (size_t)cluster * geometry->value_dim;
	float wide[KVR_DIM_MAX];

	KVR_ASSERT(stage->row < item->row_capacity); /* R4, D3 */
	kvr_mean_read(kvr_segment_key_high(segment, item->lane) + key_at,
		kvr_segment_key_low(segment, item->lane) + key_at,
		kvr_segment_key_step(segment, item->lane)[cluster], geometry->key_dim, wide);
	narrow(item->keys + stage->row * kvr_geometry_key_bytes(geometry), wide, geometry->dtype,
		geometry->key_dim);
	kvr_floats_of(wide, (const uint8_t *)value, KVR_DTYPE_BF16, geometry->value_dim);
	narrow(item->values + stage->row * kvr_geometry_value_bytes(geometry), wide,
		geometry->dtype, geometry->value_dim);
	if (item->positions)
		item->positions[stage->row] = -1;
	stage->row++;
}

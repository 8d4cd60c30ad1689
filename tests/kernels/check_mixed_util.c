/* SPDX-License-Identifier: Apache-2.0 */
/* check_mixed_util.c: RECALL in the form MIXED, on worlds that a device has built.
 *
 * What CLUSTERS gives is known. The same item as MIXED must give the same rows, to the bit, and beside
 * them an estimate of the rest: folded, as rows, or both. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/kernels/check_recall_util.h"
#include "tests/kernels/mixed_util.h"

struct fold {
	struct oracle_guard out, lse;
};

static void open_fold(struct kvr_recall_item *item, struct fold *ret_fold)
{
	const size_t heads = item->query_count;

	oracle_guard_open(&ret_fold->out, heads * item->geometry->value_dim * sizeof(float), 4);
	oracle_guard_open(&ret_fold->lse, heads * sizeof(float), 12);
	item->fold_out = (float *)(void *)ret_fold->out.data;
	item->fold_lse = (float *)(void *)ret_fold->lse.data;
}

/* The rows of CLUSTERS, then room for centroids; nothing behind them has been touched. */
static void check_rows(
	const struct kvr_recall_item *item, const struct kvr_recall_item *whole, uint8_t canary)
{
	const struct kvr_geometry *g = item->geometry;
	const size_t key_bytes = kvr_geometry_key_bytes(g);
	const size_t value_bytes = kvr_geometry_value_bytes(g);
	const uint32_t heads = item->centroid_max > 0 ? item->query_count : 1;
	const uint8_t *weights = (const uint8_t *)item->weights;

	assert_int_equal(item->row_count, whole->row_count + item->centroid_count);
	assert_int_equal(item->cluster_count, whole->cluster_count);
	assert_int_equal(item->token_missing, 0);
	assert_true(item->mass == whole->mass || whole->budget_tokens == 0);
	assert_memory_equal(item->keys, whole->keys, whole->row_count * key_bytes);
	assert_memory_equal(item->values, whole->values, whole->row_count * value_bytes);
	assert_memory_equal(
		item->positions, whole->positions, whole->row_count * sizeof(*item->positions));
	for (size_t i = item->row_count * key_bytes; i < item->row_capacity * key_bytes; i++)
		assert_int_equal(item->keys[i], canary);
	for (size_t i = item->row_count * value_bytes; i < item->row_capacity * value_bytes; i++)
		assert_int_equal(item->values[i], canary);
	for (uint32_t h = 0; h < heads; h++)
		for (size_t i = 0; i < item->row_capacity * sizeof(float); i++) {
			const uint8_t byte =
				weights[(size_t)h * item->row_capacity * sizeof(float) + i];

			if (i < whole->row_count * sizeof(float))
				assert_int_equal(byte, 0);
			else if (i >= item->row_count * sizeof(float))
				assert_int_equal(byte, canary);
		}
}

/* The same with no extent here, and a list: the estimate does not depend on that (D4). */
static void check_absent(struct kvr_device *device, const struct kvr_recall_item *mixed)
{
	struct kvr_recall_item item = *mixed;
	static uint8_t *was[CHECK_CLUSTERS_MAX + ORACLE_SEGMENTS_MAX];
	struct fold fold;
	struct oracle_guard keys, chosen;
	uint32_t at = 0;

	item.chosen_max = CHECK_CLUSTERS_MAX + ORACLE_SEGMENTS_MAX;
	open_fold(&item, &fold);
	oracle_guard_open(&chosen, item.chosen_max * sizeof(*item.chosen), 4);
	oracle_guard_open(&keys, item.row_capacity * kvr_geometry_key_bytes(item.geometry), 2);
	item.chosen = (struct kvr_chosen *)(void *)chosen.data;
	item.keys = keys.data; /* those of `mixed` are compared with */
	for (uint32_t s = 0; s < item.segment_count; s++)
		for (uint32_t c = 0; c <= item.segments[s]->cluster_count[item.lane]; c++) {
			was[at++] = kvr_segment_get_extent(item.segments[s], item.lane, c);
			kvr_segment_set_extent(item.segments[s], item.lane, c, NULL);
		}
	assert_int_equal(oracle_run(device, KVR_JOB_RECALL, &item, 1), 0);
	at = 0;
	for (uint32_t s = 0; s < item.segment_count; s++)
		for (uint32_t c = 0; c <= item.segments[s]->cluster_count[item.lane]; c++)
			kvr_segment_set_extent(item.segments[s], item.lane, c, was[at++]);
	assert_int_equal(item.row_count, mixed->row_count);
	assert_int_equal(item.absent_count, item.chosen_count);
	assert_memory_equal(fold.out.data, mixed->fold_out, fold.out.bytes);
	assert_memory_equal(fold.lse.data, mixed->fold_lse, fold.lse.bytes);
	at = item.row_count - item.centroid_count;
	assert_memory_equal(item.keys + at * kvr_geometry_key_bytes(item.geometry),
		mixed->keys + at * kvr_geometry_key_bytes(item.geometry),
		item.centroid_count * kvr_geometry_key_bytes(item.geometry));
	oracle_guard_close(&keys);
	oracle_guard_close(&chosen);
	oracle_guard_close(&fold.out);
	oracle_guard_close(&fold.lse);
}

void check_mixed(struct oracle_world *world, struct kvr_device *device,
	const struct kvr_recall_item *whole, const struct check_scores *scores,
	const struct check_tolerance *tolerance)
{
	const double slack = tolerance->score * (1.0 + scores->magnitude);
	struct kvr_recall_item item = *whole;
	static uint32_t left[CHECK_CLUSTERS_MAX];
	struct check_outputs outputs;
	struct fold fold;
	const uint32_t kind = oracle_pick(&world->random, 0, 2); /* folded, rows, both */

	item.form = KVR_FORM_MIXED;
	item.first_order = oracle_pick(&world->random, 0, 3) == 0;
	item.centroid_max = kind > 0 ? oracle_pick(&world->random, 1, 40) : 0;
	item.row_capacity += item.centroid_max;
	check_outputs_open(world, &item, &outputs);
	open_fold(&item, &fold);
	if (kind == 1)
		item.fold_out = item.fold_lse = NULL;
	assert_int_equal(oracle_run(device, KVR_JOB_RECALL, &item, 1), 0);
	check_rows(&item, whole, outputs.keys.memory[0]);
	for (uint32_t c = 0; c < scores->count; c++)
		left[c] = scores->size[c] - scores->taken[c];
	if (kind > 0)
		mixed_check_centroids(&item, left, scores->score, slack);
	else
		assert_int_equal(item.centroid_count, 0);
	if (item.fold_out) {
		mixed_check_fold(&item, left);
		check_absent(device, &item);
		world->digest = world->digest * 31 + mixed_hash(&item);
	}
	oracle_guard_close(&fold.out);
	oracle_guard_close(&fold.lse);
	check_outputs_close(&outputs);
}

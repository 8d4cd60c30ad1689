/* SPDX-License-Identifier: Apache-2.0 */
/* check_chosen_util.c: RECALL's list of what it takes, its gaps, and FILL, which closes them.
 *
 * What is taken is known from a recall with all extents here. It is done again with some of them gone,
 * into outputs full of canaries; entry by entry the list must name the same clusters, shares and
 * rows. The payloads of the gaps are then filled in from copies, some of them damaged. */
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/crc.h"
#include "tests/kernels/check_recall_util.h"

#define SEGMENT_CLUSTERS_MAX (256 / KVR_CLUSTER_TOKENS_MIN + 1) /* with the sinks' */

/* The recall in hand, and how far its list and rows have been read. */
struct reading {
	struct oracle_world *world;
	struct kvr_recall_item item;
	uint32_t entry, row, absent, missing;
	double share; /* of all clusters that are not lost */
	double tolerance;
	uint8_t canary;
};

/* Takes every extent of the lane as it comes: here, below or lost. Remembers what was there. */
static void scatter(
	struct oracle_world *world, uint32_t lane, uint8_t *(*was)[SEGMENT_CLUSTERS_MAX])
{
	const uint32_t here =
		oracle_pick(&world->random, 0, 4); /* of 4: now and then none or all */

	for (uint32_t s = 0; s < world->segment_count; s++) {
		for (uint32_t c = 0; c <= world->chain[s]->cluster_count[lane]; c++) {
			uint8_t *extent =
				oracle_pick(&world->random, 0, 5) ? NULL : KVR_EXTENT_LOST;

			was[s][c] = kvr_segment_get_extent(world->chain[s], lane, c);
			if (oracle_pick(&world->random, 1, 4) > here)
				kvr_segment_set_extent(world->chain[s], lane, c, extent);
		}
	}
}

static void restore(
	const struct oracle_world *world, uint32_t lane, uint8_t *(*was)[SEGMENT_CLUSTERS_MAX])
{
	for (uint32_t s = 0; s < world->segment_count; s++)
		for (uint32_t c = 0; c <= world->chain[s]->cluster_count[lane]; c++)
			kvr_segment_set_extent(world->chain[s], lane, c, was[s][c]);
}

static void check_bytes(const uint8_t *bytes, const uint8_t *truth, size_t count, uint8_t canary)
{
	if (truth)
		assert_memory_equal(bytes, truth, count);
	else
		for (size_t i = 0; i < count; i++)
			assert_int_equal(bytes[i], canary);
}

/* The next row: its place is right; keys and values are the token's, or nobody has touched them. */
static void check_row(struct reading *reading, uint32_t token, bool absent)
{
	const struct kvr_recall_item *item = &reading->item;
	const size_t key_bytes = kvr_geometry_key_bytes(item->geometry);
	const size_t value_bytes = kvr_geometry_value_bytes(item->geometry);
	const uint32_t row = reading->row++;
	int32_t position;
	float weight;

	assert_true(row < item->row_count);
	memcpy(&position, &item->positions[row], sizeof(position));
	memcpy(&weight, &item->weights[row], sizeof(weight));
	assert_int_equal(position, token);
	assert_true(weight == 0.0f);
	check_bytes(item->keys + row * key_bytes,
		absent ? NULL : oracle_key(reading->world, item->lane, token), key_bytes,
		reading->canary);
	check_bytes(item->values + row * value_bytes,
		absent ? NULL : oracle_value(reading->world, item->lane, token), value_bytes,
		reading->canary);
}

/* The next entry, unless the cluster is lost. */
static void check_entry(
	struct reading *reading, uint32_t segment, uint32_t cluster, uint32_t rows, double share)
{
	const struct kvr_recall_item *item = &reading->item;
	const struct kvr_segment_view *view = item->segments[segment];
	const uint16_t *first = kvr_segment_row_first(view, item->lane) + cluster;
	const uint16_t *token = kvr_segment_row_token(view, item->lane) + *first;
	const uint8_t *extent = kvr_segment_get_extent(view, item->lane, cluster);
	const struct kvr_chosen *chosen = &item->chosen[reading->entry];

	if (rows == 0)
		return;
	if (extent == KVR_EXTENT_LOST) {
		reading->missing += rows;
		return;
	}
	assert_true(reading->entry++ < item->chosen_count);
	assert_int_equal(chosen->segment, segment);
	assert_int_equal(chosen->cluster, cluster);
	assert_int_equal(chosen->rows, rows);
	assert_int_equal(chosen->row, reading->row);
	assert_int_equal(chosen->absent, !extent);
	assert_true(fabs((double)chosen->share - share) <= reading->tolerance);
	reading->absent += !extent;
	reading->share += (double)chosen->share;
	for (uint32_t i = 0; i < rows; i++)
		check_row(reading, view->token_first + token[i], !extent);
}

/* Everything that came back. `scored`: shares too. */
static void check_list(struct reading *reading, const struct check_scores *scores, bool scored)
{
	const struct kvr_recall_item *item = &reading->item;
	uint32_t cluster = 0;

	for (uint32_t s = 0; item->sinks && s < item->segment_count; s++)
		check_entry(reading, s, item->segments[s]->cluster_count[item->lane],
			item->segments[s]->sink_count, 0);
	for (uint32_t s = 0; s < item->segment_count; s++) {
		for (uint32_t c = 0; c < item->segments[s]->cluster_count[item->lane]; c++) {
			const uint32_t rows = scores->taken[cluster];

			check_entry(
				reading, s, c, rows, scored ? scores->density[cluster] * rows : 0);
			cluster++;
		}
	}
	for (uint32_t i = 0; i < item->tail_count; i++)
		check_row(reading, item->tail_first + i, false);
	assert_int_equal(item->chosen_count, reading->entry);
	assert_int_equal(item->row_count, reading->row);
	assert_int_equal(item->absent_count, reading->absent);
	assert_int_equal(item->token_missing, reading->missing);
	if (scored)
		assert_true(fabs((double)item->mass - fmin(reading->share, 1)) < 1e-5);
}

/* One gap: what is read for it, where it is kept, and what FILL shall make of it. */
struct gap {
	struct oracle_guard payload, copy;
	bool damaged, staged, kept;
};

static void open_gap(struct reading *reading, const struct kvr_chosen *chosen,
	const uint8_t *payload, struct gap *ret_gap, struct kvr_fill_item *ret_fill)
{
	struct oracle_random *random = &reading->world->random;
	const struct kvr_recall_item *item = &reading->item;
	const size_t key_bytes = kvr_geometry_key_bytes(item->geometry);
	const size_t value_bytes = kvr_geometry_value_bytes(item->geometry);
	const uint16_t *first = kvr_segment_row_first(item->segments[chosen->segment], item->lane) +
				chosen->cluster;
	const uint32_t rows = (uint32_t)first[1] - first[0];
	const size_t bytes = rows * (key_bytes + value_bytes);

	*ret_gap = (struct gap){.damaged = oracle_pick(random, 0, 3) == 0,
		.staged = oracle_pick(random, 0, 3) > 0,
		.kept = oracle_pick(random, 0, 1)};
	oracle_guard_open(&ret_gap->payload, bytes, oracle_pick(random, 0, 63));
	oracle_guard_open(&ret_gap->copy, bytes, oracle_pick(random, 0, 63));
	memcpy(ret_gap->payload.data, payload, bytes);
	*ret_fill = (struct kvr_fill_item){.payload = ret_gap->payload.data,
		.geometry = item->geometry,
		.row_count = rows,
		.crc = kvr_crc32c(0, payload, bytes),
		.rows = chosen->rows,
		.keys = ret_gap->staged ? item->keys + chosen->row * key_bytes : NULL,
		.values = ret_gap->staged ? item->values + chosen->row * value_bytes : NULL,
		.copy = ret_gap->kept ? ret_gap->copy.data : NULL,
		.status = 1};
	if (ret_gap->damaged)
		ret_gap->payload.data[oracle_pick(random, 0, (uint32_t)bytes - 1)] ^=
			(uint8_t)(1u << oracle_pick(random, 0, 7));
}

static void check_gap(struct reading *reading, const struct kvr_chosen *chosen, struct gap *gap,
	const struct kvr_fill_item *fill)
{
	const struct kvr_recall_item *item = &reading->item;
	const struct kvr_segment_view *view = item->segments[chosen->segment];
	const uint16_t *first = kvr_segment_row_first(view, item->lane) + chosen->cluster;
	const uint16_t *token = kvr_segment_row_token(view, item->lane) + *first;

	assert_int_equal(fill->status, gap->damaged ? -EIO : 0);
	check_bytes(gap->copy.data, gap->kept && !gap->damaged ? gap->payload.data : NULL,
		gap->copy.bytes, reading->canary);
	reading->row = chosen->row;
	for (uint32_t i = 0; i < chosen->rows; i++)
		check_row(reading, view->token_first + token[i], gap->damaged || !gap->staged);
	oracle_guard_close(&gap->payload);
	oracle_guard_close(&gap->copy);
}

/* Fills the gaps in one job, some with damaged payloads: these stay as they were. */
static void check_gaps(
	struct reading *reading, struct kvr_device *device, uint8_t *(*was)[SEGMENT_CLUSTERS_MAX])
{
	const struct kvr_recall_item *item = &reading->item;
	struct gap *gap = calloc(item->absent_count + 1, sizeof(*gap));
	struct kvr_fill_item *fill = calloc(item->absent_count + 1, sizeof(*fill));
	uint32_t count = 0;

	assert_non_null(gap);
	assert_non_null(fill);
	for (uint32_t i = 0; i < item->chosen_count; i++) {
		const struct kvr_chosen *chosen = &item->chosen[i];

		if (!chosen->absent)
			continue;
		open_gap(reading, chosen, was[chosen->segment][chosen->cluster], &gap[count],
			&fill[count]);
		count++;
	}
	if (count > 0)
		assert_int_equal(oracle_run(device, KVR_JOB_FILL, fill, count), 0);
	count = 0;
	for (uint32_t i = 0; i < item->chosen_count; i++) {
		if (!item->chosen[i].absent)
			continue;
		check_gap(reading, &item->chosen[i], &gap[count], &fill[count]);
		count++;
	}
	free(gap);
	free(fill);
}

void check_chosen(struct oracle_world *world, struct kvr_device *device,
	const struct kvr_recall_item *whole, const struct check_scores *scores,
	const struct check_tolerance *tolerance)
{
	uint8_t *was[ORACLE_SEGMENTS_MAX][SEGMENT_CLUSTERS_MAX];
	const bool dense = kvr_geometry_is_dense(whole->geometry, whole->lane);
	const bool scored = !dense && whole->budget_tokens > 0 && scores->rows > 0 &&
			    (whole->budget_tokens < scores->rows || whole->budget_mass > 0.0f);
	struct reading reading = {
		.world = world, .item = *whole, .tolerance = scored ? tolerance->mass : 0.0};
	struct kvr_recall_item *item = &reading.item;
	struct check_outputs outputs;
	struct oracle_guard chosen;

	check_outputs_open(world, item, &outputs);
	reading.canary = outputs.keys.memory[0];
	item->chosen_max = dense || scores->count < whole->budget_tokens ? scores->count
									 : whole->budget_tokens;
	for (uint32_t s = 0; whole->sinks && s < whole->segment_count; s++)
		item->chosen_max += whole->segments[s]->sink_count > 0;
	oracle_guard_open(&chosen, item->chosen_max * sizeof(*item->chosen), 4);
	item->chosen = (struct kvr_chosen *)(void *)chosen.data;
	scatter(world, whole->lane, was);
	assert_int_equal(oracle_run(device, KVR_JOB_RECALL, item, 1), 0);
	check_list(&reading, scores, scored);
	check_gaps(&reading, device, was);
	restore(world, whole->lane, was);
	oracle_guard_close(&chosen);
	check_outputs_close(&outputs);
}

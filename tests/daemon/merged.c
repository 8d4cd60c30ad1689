/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: what is on the disk as a merged set is what MERGE makes of the tokens, bit for bit, and comes back so after kill -9;
 * a set whose bytes are not what was written is left out and said to be missing, and nothing else is.
 * Method: the real kvrecalld, all four sets, one lane of four dense; the test makes the sets itself, on a device of its own,
 * and compares with slabs.kvr and with recalls. A bit of one set is flipped in the file while the daemon is dead. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/daemon/harness_util.h"
#include "tests/daemon/merged_util.h"
#include "tests/daemon/process_util.h"
#include "tiers/slab.h"

#define REGION    (8u << 20)
#define TOKENS    700u
#define SEGMENTS  6u /* five of 128 and one of 60 */
#define COVERED   4u /* of them, that end 64 tokens or more before the last one */
#define LANES     4u
#define DENSE     2u /* layer 1, kv head 0 */
#define SLABS     64u
#define CAPACITY  1024u
#define SINKS     16u
#define ROW_BYTES (2u * (32 + 24)) /* of harness_model */

/* What a segment must have. */
struct expected {
	struct kvr_segment_view view;
	uint8_t *memory, *payload;
	uint64_t slab; /* where it lies in slabs.kvr */
	struct kvr_slab_layout layout;
};

static struct world {
	struct harness_daemon daemon;
	struct kvr_model_config config;
	struct kvr_client *client;
	struct kvr_sequence *sequence;
	uint32_t ids[TOKENS];
	struct kvr_geometry geometry;
	struct expected segments[SEGMENTS];
} world;

static int slabs_file(void)
{
	char path[200];
	int fd;

	snprintf(path, sizeof(path), "%s/slabs.kvr", world.daemon.store);
	fd = open(path, O_RDWR | O_CLOEXEC);
	assert_true(fd >= 0);
	return fd;
}

/* ---- the daemon ------------------------------------------------------------------------------ */

static void attach(uint32_t matched_expected)
{
	static const uint32_t dense[1] = {DENSE};
	struct kvr_model *model;
	uint32_t matched;

	world.config = harness_model();
	world.config.merged = KVR_MERGED_2 | KVR_MERGED_4 | KVR_MERGED_5 | KVR_MERGED_8;
	world.config.dense_lanes = dense;
	world.config.dense_count = 1;
	world.client = harness_connect(&world.daemon, REGION);
	assert_int_equal(kvr_model_register(world.client, &world.config, &model), 0);
	assert_int_equal(kvr_open(model, world.ids, TOKENS, &world.sequence, &matched), 0);
	assert_int_equal(matched, matched_expected);
}

static void kill_daemon(void)
{
	harness_kill(&world.daemon);
	kvr_disconnect(world.client);
}

static void restart(void)
{
	harness_restart(&world.daemon, NULL);
	attach(TOKENS);
}

/* ---- what must be there ---------------------------------------------------------------------- */

static void fill_tail(const struct kvr_tail_view *tail, uint32_t first, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++) {
		for (uint32_t lane = 0; lane < LANES; lane++) {
			const uint32_t layer = lane / 2, head = lane % 2, at = first + i;

			harness_row(&world.config, world.ids[at], at, layer, head, false,
				kvr_tail_key(tail, lane, i));
			harness_row(&world.config, world.ids[at], at, layer, head, true,
				kvr_tail_value(tail, lane, i));
		}
	}
}

static void make_expected(struct expected *expected, uint32_t first, uint32_t count)
{
	struct kvr_segment_view *view = &expected->view;
	uint8_t *blocks[2];
	const struct kvr_tail_view tail = {&world.geometry, blocks, 2};

	kvr_segment_shape(view, &world.geometry, first, count);
	kvr_slab_layout(&world.geometry, first, count, &expected->layout);
	expected->memory = aligned_alloc(64, kvr_segment_bind_all(view, NULL));
	expected->payload = calloc(1, expected->layout.merged_bytes);
	memset(expected->memory, 0, kvr_segment_bind_all(view, NULL));
	kvr_segment_bind_all(view, expected->memory);
	for (uint32_t i = 0; i < 2; i++)
		blocks[i] = aligned_alloc(64, kvr_tail_block_bytes(&world.geometry));
	fill_tail(&tail, first, count);
	for (uint32_t lane = 0; lane < LANES; lane++) {
		for (uint32_t unit = view->cluster_max + 1; unit < view->unit_count; unit++) {
			uint32_t bytes;
			const uint64_t at =
				kvr_slab_unit_at(&expected->layout, view, lane, unit, &bytes);

			assert_int_equal(bytes > 0, lane != DENSE);
			if (bytes > 0)
				kvr_segment_set_extent(view, lane, unit,
					expected->payload + (at - expected->layout.merged_at));
		}
	}
	merged_make(view, &tail);
	free(blocks[0]);
	free(blocks[1]);
}

/* ---- on the disk ----------------------------------------------------------------------------- */

/* One slab is a whole segment of this model: its sets, and what their rows stand for. */
static void check_slab(const uint8_t *slab, uint64_t offset, const struct kvr_slab_head *head)
{
	const uint8_t *stream = slab + KVR_SLAB_HEADER_BYTES;
	struct expected *expected = &world.segments[head->token_first / 128];
	struct kvr_segment_view view;
	uint8_t *memory;
	size_t bytes;

	assert_int_equal(head->model.geometry.merged, 15);
	assert_null(expected->memory);
	world.geometry = head->model.geometry;
	make_expected(expected, head->token_first, head->token_count);
	expected->slab = offset;
	assert_int_equal(expected->layout.part_count, 1);
	kvr_segment_shape(&view, &world.geometry, head->token_first, head->token_count);
	bytes = kvr_segment_bind(&view, NULL);
	memory = aligned_alloc(64, bytes);
	memcpy(memory, stream + expected->layout.summary_at + head->token_count * sizeof(uint32_t),
		bytes);
	kvr_segment_bind(&view, memory);
	assert_true(kvr_slab_summary_valid(&view));
	assert_memory_equal(view.merged_tokens, expected->view.merged_tokens,
		(size_t)LANES * view.merged_max * sizeof(uint16_t));
	assert_memory_equal(stream + expected->layout.merged_at, expected->payload,
		expected->layout.merged_bytes);
	free(memory);
}

static void test_on_the_disk(void **state)
{
	static uint8_t slab[KVR_SLAB_BYTES];
	uint32_t found = 0;
	int fd;

	(void)state;
	kill_daemon();
	fd = slabs_file();
	for (uint32_t i = 0; i < SLABS; i++) {
		const off_t offset = (off_t)i * KVR_SLAB_BYTES;
		struct kvr_slab_header header;
		struct kvr_slab_head head;

		assert_true(pread(fd, slab, sizeof(slab), offset) == (ssize_t)sizeof(slab));
		if (kvr_slab_unpack_header(slab, &header) < 0)
			continue;
		assert_int_equal(kvr_slab_unpack_head(slab + KVR_SLAB_HEADER_BYTES, &head), 0);
		check_slab(slab, (uint64_t)offset, &head);
		found++;
	}
	close(fd);
	assert_int_equal(found, SEGMENTS);
	restart();
}

/* ---- recalled -------------------------------------------------------------------------------- */

/* Which set of which segment and lane is to be missing. */
struct lost {
	uint32_t segment, lane, set;
};

/* The rows of one segment behind those of the ones before it. Returns how many there are. */
static uint32_t check_rows(const struct kvr_recall_item *item, uint32_t lane, uint32_t set,
	const struct kvr_segment_view *view, uint32_t row)
{
	const size_t at = (size_t)(lane % 2) * CAPACITY + row;
	uint16_t *tokens;
	const uint32_t unit = kvr_segment_merged_unit(view, lane, set, &tokens);
	const uint32_t rows = kvr_segment_unit_rows(view, lane, unit);
	const uint8_t *payload = kvr_segment_get_extent(view, lane, unit);

	assert_memory_equal((const uint8_t *)item->keys + at * 64, payload, rows * 64);
	assert_memory_equal(
		(const uint8_t *)item->values + at * 48, payload + rows * 64, rows * 48);
	for (uint32_t i = 0; i < rows; i++)
		assert_true(fabsf(item->weights[at + i] - logf(tokens[i])) < 1e-5f);
	return rows;
}

static void check_lane(
	const struct kvr_recall_item *item, uint32_t lane, uint32_t set, const struct lost *lost)
{
	const struct kvr_rows *rows = &item->rows[lane % 2];
	uint32_t row = SINKS, missing = 0;

	for (uint32_t s = 0; s < COVERED; s++) {
		const struct kvr_segment_view *view = &world.segments[s].view;

		if (lost && lost->segment == s && lost->lane == lane && lost->set == set)
			missing += view->token_count - view->sink_count;
		else
			row += check_rows(item, lane, set, view, row);
	}
	assert_int_equal(rows->row_count, row);
	assert_int_equal(rows->missing_tokens, missing);
}

static void place(struct kvr_recall_item *item, uint32_t layer)
{
	uint8_t *at = (uint8_t *)kvr_region(world.client, NULL) + layer * (REGION / 2);

	*item = (struct kvr_recall_item){.sequence = world.sequence, .layer = layer};
	item->rows = (struct kvr_rows *)(void *)at;
	item->weights = (float *)(void *)(at + 4096);
	item->positions = (int32_t *)(void *)(at + 4096 + 8 * CAPACITY);
	item->keys = at + 4096 + 16 * CAPACITY;
	item->values = at + 4096 + 16 * CAPACITY + 2 * 64 * CAPACITY;
	memset(at, 0x7f, 4096 + 16 * CAPACITY + 2 * ROW_BYTES * CAPACITY);
}

/* Every set of every lane, as MERGE makes it, but for what is lost. */
static void check_recalls(const struct lost *lost)
{
	for (uint32_t set = 0; set < KVR_MERGED_SETS; set++) {
		struct kvr_recall_item items[2];
		struct kvr_recall recall = {.items = items,
			.item_count = 2,
			.form = KVR_RECALL_MERGED,
			.merged_divisor = kvr_merged_divisors[set],
			.row_capacity = CAPACITY,
			.sinks = true};

		place(&items[0], 0);
		place(&items[1], 1);
		assert_int_equal(kvr_recall(world.client, &recall), 0);
		for (uint32_t lane = 0; lane < LANES; lane++) {
			const struct kvr_recall_item *item = &items[lane / 2];

			assert_int_equal(item->covered_tokens, COVERED * 128);
			if (lane != DENSE)
				check_lane(item, lane, set, lost);
			else
				assert_int_equal(item->rows[0].row_count, COVERED * 128);
		}
	}
}

static void test_recalled(void **state)
{
	(void)state;
	check_recalls(NULL);
	assert_true(harness_metric(world.client, "nvme.read_bytes") > 0);
	check_recalls(NULL); /* from memory */
}

static void test_damaged(void **state)
{
	const struct lost lost = {process_random(0, COVERED - 1), process_random(0, 1) * 3,
		process_random(0, KVR_MERGED_SETS - 1)};
	const struct expected *segment = &world.segments[lost.segment];
	const uint32_t unit = segment->view.cluster_max + 1 + lost.set;
	uint32_t bytes;
	uint64_t at = kvr_slab_unit_at(&segment->layout, &segment->view, lost.lane, unit, &bytes);
	uint8_t byte;
	int fd;

	(void)state;
	kill_daemon();
	at += segment->slab + KVR_SLAB_HEADER_BYTES + process_random(0, bytes - 1);
	fd = slabs_file();
	assert_int_equal(pread(fd, &byte, 1, (off_t)at), 1);
	byte = (uint8_t)(byte ^ (1u << process_random(0, 7)));
	assert_int_equal(pwrite(fd, &byte, 1, (off_t)at), 1);
	close(fd);
	restart();
	check_recalls(&lost);
	check_recalls(&lost); /* nobody gets it later either */
	assert_true(harness_metric(world.client, "store.quarantined_count") > 0);
	harness_check_fetch(world.client, world.sequence, &world.config, world.ids, 0, TOKENS, 0);
}

/* ---- the group ------------------------------------------------------------------------------- */

static int start(void **state)
{
	uint32_t sealed;

	(void)state;
	harness_tokens(77, world.ids, TOKENS);
	harness_start_sized(&world.daemon, "64 MiB", NULL);
	attach(0);
	for (uint32_t at = 0; at < TOKENS; at += 350)
		assert_int_equal(harness_append(world.client, world.sequence, &world.config,
					 world.ids, at, 350, 0),
			0);
	assert_int_equal(kvr_sync(world.sequence, true, &sealed), 0);
	assert_int_equal(sealed, TOKENS);
	return 0;
}

static int stop(void **state)
{
	(void)state;
	kvr_disconnect(world.client);
	harness_stop(&world.daemon);
	for (uint32_t s = 0; s < SEGMENTS; s++) {
		free(world.segments[s].memory);
		free(world.segments[s].payload);
	}
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_on_the_disk),
		cmocka_unit_test(test_recalled),
		cmocka_unit_test(test_damaged),
	};

	process_seed_print();
	return cmocka_run_group_tests_name("daemon merged", tests, start, stop);
}

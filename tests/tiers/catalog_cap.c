/* SPDX-License-Identifier: Apache-2.0 */
/* catalog_cap.c: a catalog that is full.
 *
 * Goal: its files never take more blocks than their cap; a put that does not fit is refused and
 * changes nothing; a full catalog can be emptied, and holds as much again.
 *
 * Method: large segments until -ENOSPC, then turn by turn one out and one in, then all out; six
 * times. Blocks are counted by stat. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <cmocka.h>

#include "tests/tiers/catalog_util.h"
#include "tests/tiers/slow_util.h"

static struct kvr_books books;

static uint64_t blocks_bytes(const char *dir)
{
	static const char *const files[] = {"data.mdb", "lock.mdb", "owner"};
	uint64_t bytes = 0;

	for (uint32_t i = 0; i < 3; i++) {
		char path[300];
		struct stat stat_buffer;

		snprintf(path, sizeof(path), "%s/%s", dir, files[i]);
		assert_int_equal(stat(path, &stat_buffer), 0);
		assert_int_equal(stat_buffer.st_mode & 0777, 0600);
		bytes += (uint64_t)stat_buffer.st_blocks * 512;
	}
	return bytes;
}

enum { LANES = 256, CLUSTERS = 17 };

static struct kvr_catalog_unit clusters[LANES * CLUSTERS];
static uint32_t parts[4];

static void big_segment(
	const struct kvr_slab_model *model, uint64_t id, struct kvr_catalog_segment *ret_segment)
{
	*ret_segment = (struct kvr_catalog_segment){
		.id = id, .token_count = 64, .part_count = 4, .parts = parts};
	for (uint32_t i = 0; i < 4; i++)
		parts[i] = (uint32_t)(4 * id + i);
	for (uint32_t i = 0; i < LANES * CLUSTERS; i++)
		clusters[i] = (struct kvr_catalog_unit){.slab = parts[i % 4],
			.offset = KVR_SLAB_HEADER_BYTES,
			.bytes = 100,
			.rows = 4,
			.crc = i};
	memcpy(ret_segment->root, model->root, KVR_HASH_BYTES);
	memcpy(ret_segment->parent, model->root, KVR_HASH_BYTES);
	memcpy(ret_segment->hash, &id, sizeof(id));
}

static void big_model(struct kvr_slab_model *ret_model)
{
	kvr_books_init(&books, &(struct kvr_random){1});
	*ret_model = books.models[0];
	ret_model->geometry.layer_count = LANES / ret_model->geometry.kv_heads;
}

/* Fills it, empties it, and fills it again: always the same, within the cap, with nothing lost. */
static void test_full(void **state)
{
	struct kvr_slab_model model;
	struct kvr_catalog_segment segment;
	struct kvr_catalog_stat stat;
	struct kvr_catalog *catalog;
	uint64_t id = 1;
	uint64_t first = 1;
	uint64_t most = 0;
	char dir[256], line[160];
	uint64_t rows;

	(void)state;
	big_model(&model);
	kvr_books_dir(dir, true);
	catalog = kvr_books_open(dir, KVR_CATALOG_BYTES_MIN);
	for (uint32_t round = 0; round < (KVR_SLOW_THREAD ? 2 : 6); round++) {
		uint64_t count;
		int error;

		do {
			big_segment(&model, id, &segment);
			assert_int_equal(kvr_catalog_begin(catalog), 0);
			error = kvr_catalog_put(
				catalog, &model, &segment, clusters, CLUSTERS - 1, id);
			assert_true(error == 0 || error == -ENOSPC);
			assert_int_equal(
				kvr_catalog_commit(catalog), 0); /* a refusal changes nothing */
			id += error == 0;
		} while (error == 0);
		kvr_catalog_stat(catalog, &stat);
		count = id - first;
		assert_int_equal(stat.segment_count, count);
		if (count > most)
			most = count;
		assert_true(count >= most - most / 8);
		assert_true(count * LANES * CLUSTERS * 46 > KVR_CATALOG_BYTES_MIN * 3 / 4);
		assert_true(blocks_bytes(dir) <= KVR_CATALOG_BYTES_MIN); /* C3 */
		assert_int_equal(kvr_catalog_verify(catalog, &rows, line, sizeof(line)), 0);
		/* One goes, one comes: what a full store does all day. */
		for (uint32_t i = 0; i < 40; i++) {
			big_segment(&model, first++, &segment);
			assert_int_equal(kvr_catalog_begin(catalog), 0);
			assert_int_equal(kvr_catalog_remove(catalog, segment.hash), 0);
			assert_int_equal(kvr_catalog_commit(catalog), 0);
			big_segment(&model, id, &segment);
			assert_int_equal(kvr_catalog_begin(catalog), 0);
			assert_int_equal(kvr_catalog_put(catalog, &model, &segment, clusters,
						 CLUSTERS - 1, id++),
				0);
			assert_int_equal(kvr_catalog_commit(catalog), 0);
		}
		while (first < id) {
			big_segment(&model, first++, &segment);
			assert_int_equal(kvr_catalog_begin(catalog), 0);
			assert_int_equal(kvr_catalog_remove(catalog, segment.hash), 0);
			assert_int_equal(kvr_catalog_commit(catalog), 0);
		}
		assert_true(blocks_bytes(dir) <= KVR_CATALOG_BYTES_MIN);
	}
	kvr_catalog_stat(catalog, &stat);
	assert_int_equal(stat.segment_count, 0);
	assert_int_equal(stat.cluster_count, 0);
	assert_int_equal(stat.model_count, 0);
	kvr_catalog_close(catalog);
	kvr_books_dir_remove(dir);
}

/* Another cap at the next open: a higher one is used, one that the file exceeds is refused. */
static void test_other_cap(void **state)
{
	struct kvr_catalog_config config = {.bytes = KVR_CATALOG_BYTES_MIN};
	struct kvr_catalog_meta meta = {.slab_version = KVR_SLAB_VERSION};
	struct kvr_slab_model model;
	struct kvr_catalog_segment segment;
	struct kvr_catalog_stat stat;
	struct kvr_catalog *catalog;
	char dir[256];

	(void)state;
	big_model(&model);
	kvr_books_dir(dir, true);
	config.dir = dir;
	catalog = kvr_books_open(dir, 2 * KVR_CATALOG_BYTES_MIN);
	for (uint64_t id = 1; id <= 100; id++) {
		big_segment(&model, id, &segment);
		assert_int_equal(kvr_catalog_begin(catalog), 0);
		assert_int_equal(
			kvr_catalog_put(catalog, &model, &segment, clusters, CLUSTERS - 1, id), 0);
		assert_int_equal(kvr_catalog_commit(catalog), 0);
	}
	kvr_catalog_close(catalog);
	assert_int_equal(kvr_catalog_open(&config, &meta, &catalog), -EFBIG);
	config.bytes = KVR_CATALOG_BYTES_MIN - 1;
	assert_int_equal(kvr_catalog_open(&config, &meta, &catalog), -EINVAL);
	catalog = kvr_books_open(dir, 4 * KVR_CATALOG_BYTES_MIN);
	kvr_catalog_stat(catalog, &stat);
	assert_int_equal(stat.cap_bytes, 4 * KVR_CATALOG_BYTES_MIN);
	assert_true(stat.map_bytes > 3 * KVR_CATALOG_BYTES_MIN);
	assert_int_equal(stat.segment_count, 100);
	kvr_catalog_close(catalog);
	kvr_books_dir_remove(dir);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_full),
		cmocka_unit_test(test_other_cap),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

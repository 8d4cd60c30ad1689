/* SPDX-License-Identifier: Apache-2.0 */
/* catalog_threads.c: readers in several threads while one writes.
 *
 * Goal: every reader sees the rows of one commit from begin to end, whole segments only, while the
 * file grows from nothing to its cap and segments come and go; figures can be asked for by anyone.
 *
 * Method: one thread puts and removes segments whose rows follow from their ids, until the catalog
 * is full several times over. Readers walk the segments by use, and check every row against its id,
 * twice in a view. Run it under ThreadSanitizer. */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "tests/tiers/catalog_util.h"

enum { READERS = 3, LANES = 64, CLUSTERS = 9, PUTS = 600, KEPT = 250, ROOM_TRIES = 10000 };

static struct kvr_catalog *catalog;
static atomic_bool done;
static atomic_uint views, looks, wrong;

static struct kvr_catalog_unit expected(uint64_t id, uint32_t lane, uint32_t cluster)
{
	return (struct kvr_catalog_unit){
		.slab = (uint32_t)id,
		.offset = KVR_SLAB_HEADER_BYTES + lane,
		.bytes = 1 + cluster,
		.rows = 1 + (uint32_t)(id % 7),
		.crc = (uint32_t)(id * 1000003 + (uint64_t)lane * 101 + cluster),
	};
}

static void hash_of(uint64_t id, uint8_t ret_hash[KVR_HASH_BYTES])
{
	memset(ret_hash, (int)(id % 251), KVR_HASH_BYTES);
	memcpy(ret_hash + 8, &id, sizeof(id));
}

/* All segments of a view: how many, and that each is what its id says. */
static uint32_t look(struct kvr_catalog_reader *reader)
{
	struct kvr_catalog_unit rows[CLUSTERS];
	uint64_t used = 0;
	uint64_t id = 0;
	uint8_t hash[KVR_HASH_BYTES];
	uint8_t same[KVR_HASH_BYTES];
	uint32_t count = 0;
	int error;

	while ((error = kvr_catalog_oldest(reader, &used, &id, hash)) == 0) {
		struct kvr_catalog_segment segment;
		uint32_t part;
		const uint32_t lane = (uint32_t)(id * 13 % LANES);

		hash_of(id, same);
		wrong += memcmp(hash, same, KVR_HASH_BYTES) != 0;
		wrong += kvr_catalog_find(reader, hash, &part, 1, &segment) != 0 ||
			 segment.id != id || part != (uint32_t)id;
		if (kvr_catalog_lane(reader, id, lane, rows, CLUSTERS) != 0) {
			wrong++;
			continue;
		}
		for (uint32_t i = 0; i < CLUSTERS; i++) {
			const struct kvr_catalog_unit row = expected(id, lane, i);

			wrong += memcmp(&rows[i], &row, sizeof(row)) != 0;
		}
		count++;
	}
	wrong += error != -ENOENT;
	return count;
}

static void *read_on(void *unused)
{
	struct kvr_catalog_reader *reader;

	(void)unused;
	if (kvr_catalog_reader_open(catalog, &reader) < 0) {
		wrong++;
		return NULL;
	}
	while (!done) {
		struct kvr_catalog_stat stat;
		uint32_t count;

		if (kvr_catalog_read_begin(reader) < 0) {
			wrong++;
			break;
		}
		count = look(reader);
		wrong += look(reader) != count;
		kvr_catalog_read_end(reader);
		kvr_catalog_stat(catalog, &stat);
		wrong += stat.used_bytes > stat.map_bytes;
		views++;
		looks += count;
	}
	kvr_catalog_reader_close(reader);
	return NULL;
}

static void write_one(const struct kvr_slab_model *model, uint64_t id)
{
	static struct kvr_catalog_unit clusters[LANES * CLUSTERS];
	uint32_t part = (uint32_t)id;
	struct kvr_catalog_segment segment = {
		.id = id, .token_count = 64, .part_count = 1, .parts = &part};
	uint8_t old[KVR_HASH_BYTES];
	int rc;

	memcpy(segment.root, model->root, KVR_HASH_BYTES);
	memcpy(segment.parent, model->root, KVR_HASH_BYTES);
	hash_of(id, segment.hash);
	for (uint32_t i = 0; i < LANES * CLUSTERS; i++)
		clusters[i] = expected(id, i / CLUSTERS, i % CLUSTERS);
	/* A reader that sleeps keeps the pages of its view: then there is no room until it goes on. */
	for (uint32_t tries = 0;; tries++) {
		assert_int_equal(kvr_catalog_begin(catalog), 0);
		rc = kvr_catalog_put(catalog, model, &segment, clusters, CLUSTERS - 1, id);
		if (rc != -ENOSPC || tries == ROOM_TRIES)
			break;
		kvr_catalog_abort(catalog);
		usleep(1000);
	}
	assert_int_equal(rc, 0);
	if (id > KEPT) {
		hash_of(id - KEPT, old);
		assert_int_equal(kvr_catalog_remove(catalog, old), 0);
		assert_int_equal(kvr_catalog_wiped(catalog, (uint32_t)(id - KEPT)), 0);
	}
	assert_int_equal(kvr_catalog_commit(catalog), 0);
}

static void test_views(void **state)
{
	static struct kvr_books books;
	pthread_t threads[READERS];
	struct kvr_slab_model *model = &books.models[0];
	struct kvr_catalog_stat stat;
	char dir[256], line[160];
	uint64_t rows;

	kvr_books_init(&books, *state);
	model->geometry.layer_count = LANES / model->geometry.kv_heads;
	kvr_books_dir(dir, true);
	catalog = kvr_books_open(dir, KVR_CATALOG_BYTES_MIN);
	for (uint32_t i = 0; i < READERS; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, read_on, NULL), 0);
	for (uint64_t id = 1; id <= PUTS; id++)
		write_one(model, id);
	/* They read on until each has seen the end. */
	while (views < 4 * READERS && wrong == 0)
		sched_yield();
	done = true;
	for (uint32_t i = 0; i < READERS; i++)
		pthread_join(threads[i], NULL);
	print_message("%u views of %u segments\n", (uint32_t)views, (uint32_t)looks);
	assert_int_equal(wrong, 0);
	assert_true(looks > 0);
	kvr_catalog_stat(catalog, &stat);
	assert_int_equal(stat.segment_count, KEPT);
	assert_int_equal(kvr_catalog_verify(catalog, &rows, line, sizeof(line)), 0);
	kvr_catalog_close(catalog);
	kvr_books_dir_remove(dir);
}

int main(void)
{
	struct kvr_random random = kvr_random_start();
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_prestate(test_views, &random),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

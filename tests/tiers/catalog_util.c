/* SPDX-License-Identifier: Apache-2.0 */
/* catalog_util.c: the books that a catalog is compared with. */
#include <errno.h>
#include <ftw.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "tests/tiers/catalog_util.h"

#define LANES_MAX    8u
#define CLUSTERS_MAX 11u /* cluster_max */

static void draw_bytes(struct kvr_random *random, uint8_t *to, uint32_t bytes)
{
	for (uint32_t i = 0; i < bytes; i++)
		to[i] = (uint8_t)kvr_random_next(random);
}

void kvr_books_init(struct kvr_books *books, struct kvr_random *random)
{
	memset(books, 0, sizeof(*books));
	for (uint32_t i = 0; i < KVR_BOOKS_MODELS; i++) {
		struct kvr_slab_model *model = &books->models[i];
		const uint32_t heads = kvr_random_range(random, 1, 2);

		draw_bytes(random, model->root, KVR_HASH_BYTES);
		draw_bytes(random, model->digest, KVR_HASH_BYTES);
		snprintf(model->tenant, sizeof(model->tenant), "tenant-%u", i % 2);
		snprintf(model->name, sizeof(model->name), "model-%u", i);
		model->rank = i;
		model->geometry = (struct kvr_geometry){
			.layer_count = kvr_random_range(random, 1, LANES_MAX / heads),
			.query_heads = 2 * heads,
			.kv_heads = heads,
			.key_dim = 64,
			.value_dim = 128,
			.dtype = KVR_DTYPE_BF16,
			.segment_tokens = 1024,
			.cluster_tokens = 16,
			.sink_tokens = 16,
		};
		model->geometry.dense[0] = i;
		model->geometry.merged = i * 5; /* none, two and two, all */
	}
}

uint32_t kvr_books_count(const struct kvr_books *books)
{
	uint32_t count = 0;

	for (uint32_t i = 0; i < KVR_BOOKS_SEGMENTS; i++)
		count += books->segments[i].live;
	return count;
}

bool kvr_books_has_child(const struct kvr_books *books, const uint8_t hash[KVR_HASH_BYTES])
{
	for (uint32_t i = 0; i < KVR_BOOKS_SEGMENTS; i++)
		if (books->segments[i].live &&
			memcmp(books->segments[i].segment.parent, hash, KVR_HASH_BYTES) == 0)
			return true;
	return false;
}

/* A live one at random, or NULL. */
static struct kvr_books_segment *draw_live(struct kvr_books *books, struct kvr_random *random)
{
	const uint32_t count = kvr_books_count(books);
	uint32_t left = count > 0 ? kvr_random_range(random, 0, count - 1) : 0;

	for (uint32_t i = 0; count > 0 && i < KVR_BOOKS_SEGMENTS; i++)
		if (books->segments[i].live && left-- == 0)
			return &books->segments[i];
	return NULL;
}

static void draw_units(
	struct kvr_books *books, struct kvr_random *random, struct kvr_books_segment *one)
{
	const struct kvr_geometry *geometry = &books->models[one->model].geometry;

	memset(one->units, 0, sizeof(one->units));
	for (uint32_t lane = 0; lane < kvr_geometry_lanes(geometry); lane++) {
		const uint32_t sure = kvr_random_range(random, 0, one->cluster_max);

		for (uint32_t i = 0; i < one->unit_count; i++) {
			const bool merged = i > one->cluster_max;

			if (merged ? kvr_geometry_is_dense(geometry, lane)
				   : i != sure && kvr_random_range(random, 0, 5) == 0)
				continue;
			one->units[lane * one->unit_count + i] = (struct kvr_catalog_unit){
				.slab = one->parts[kvr_random_range(
					random, 0, one->segment.part_count - 1)],
				.offset = kvr_random_range(
					random, KVR_SLAB_HEADER_BYTES, KVR_SLAB_BYTES - 1),
				.bytes = kvr_random_range(random, 1, 100000),
				.rows = kvr_random_cluster(random),
				.crc = (uint32_t)kvr_random_next(random),
			};
		}
	}
}

struct kvr_books_segment *kvr_books_draw(struct kvr_books *books, struct kvr_random *random)
{
	struct kvr_books_segment *parent = draw_live(books, random);
	struct kvr_books_segment *one = NULL;
	struct kvr_catalog_segment *segment;
	uint32_t at;

	for (uint32_t i = 0; i < KVR_BOOKS_SEGMENTS && !one; i++)
		if (!books->segments[i].live)
			one = &books->segments[i];
	if (!one)
		return NULL;
	memset(one, 0, sizeof(*one));
	segment = &one->segment;
	segment->parts = one->parts;
	segment->part_count = kvr_random_range(random, 1, KVR_BOOKS_PARTS);
	at = kvr_random_range(random, 0, KVR_BOOKS_SLABS - 1);
	for (uint32_t i = 0, tries = 0; i < segment->part_count; at = (at + 1) % KVR_BOOKS_SLABS) {
		if (tries++ > KVR_BOOKS_SLABS)
			return NULL;
		if (books->slabs[at] == KVR_BOOKS_FREE || books->slabs[at] == KVR_BOOKS_FREED)
			one->parts[i++] = at;
	}
	/* Mostly ascending, as ids of a store are; some in between, as a rebuild has them. */
	segment->id = kvr_random_range(random, 0, 9) > 0
			      ? books->id_last + kvr_random_range(random, 2, 9)
			      : 0;
	for (uint64_t id = 2 + kvr_random_next(random) % (books->id_last + 2); segment->id == 0;
		id++) {
		bool taken = false;

		for (uint32_t i = 0; i < KVR_BOOKS_SEGMENTS; i++)
			taken |= books->segments[i].live && books->segments[i].segment.id == id;
		segment->id = taken ? 0 : id;
	}
	draw_bytes(random, segment->hash, KVR_HASH_BYTES);
	one->model = parent ? parent->model : 0;
	segment->token_first =
		parent ? parent->segment.token_first + parent->segment.token_count : 0;
	if (!parent || kvr_random_range(random, 0, 3) == 0 || segment->token_first > 1000000) {
		one->model = kvr_random_range(random, 0, KVR_BOOKS_MODELS - 1);
		segment->token_first = 0;
		parent = NULL;
	}
	memcpy(segment->root, books->models[one->model].root, KVR_HASH_BYTES);
	memcpy(segment->parent, parent ? parent->segment.hash : segment->root, KVR_HASH_BYTES);
	segment->token_count =
		kvr_random_range(random, 0, 1) ? 1024 : kvr_random_range(random, 1, 1023);
	one->cluster_max = kvr_random_range(random, 0, CLUSTERS_MAX);
	one->unit_count = one->cluster_max + 1;
	for (uint32_t set = 0; set < KVR_MERGED_SETS; set++)
		one->unit_count += books->models[one->model].geometry.merged >> set & 1;
	draw_units(books, random, one);
	one->state.id = segment->id;
	one->state.used = kvr_random_next(random) % 1000;
	memcpy(one->state.hash, segment->hash, KVR_HASH_BYTES);
	return one;
}

int kvr_books_put(
	struct kvr_books *books, struct kvr_books_segment *one, struct kvr_catalog *catalog)
{
	int error = kvr_catalog_put(catalog, &books->models[one->model], &one->segment, one->units,
		one->cluster_max, one->state.used);

	if (error < 0)
		return error;
	one->live = true;
	for (uint32_t i = 0; i < one->segment.part_count; i++)
		books->slabs[one->parts[i]] = one->segment.id;
	if (one->segment.id > books->id_last)
		books->id_last = one->segment.id;
	return 0;
}

static int change_remove(
	struct kvr_books *books, struct kvr_random *random, struct kvr_catalog *catalog)
{
	struct kvr_books_segment *one = draw_live(books, random);
	uint8_t hash[KVR_HASH_BYTES];
	int error;

	if (!one) {
		draw_bytes(random, hash, KVR_HASH_BYTES);
		assert_int_equal(kvr_catalog_remove(catalog, hash), -ENOENT);
		return 0;
	}
	error = kvr_catalog_remove(catalog, one->segment.hash);
	if (kvr_books_has_child(books, one->segment.hash)) {
		assert_int_equal(error, -ENOTEMPTY);
		return 0;
	}
	if (error < 0)
		return error;
	one->live = false;
	for (uint32_t i = 0; i < one->segment.part_count; i++)
		books->slabs[one->parts[i]] = KVR_BOOKS_FREED;
	return 0;
}

static int change_wiped(
	struct kvr_books *books, struct kvr_random *random, struct kvr_catalog *catalog)
{
	uint32_t slab = kvr_random_range(random, 0, KVR_BOOKS_SLABS - 1);
	int error;

	for (uint32_t i = 0; i < KVR_BOOKS_SLABS && books->slabs[slab] != KVR_BOOKS_FREED; i++)
		slab = (slab + 1) % KVR_BOOKS_SLABS;
	error = kvr_catalog_wiped(catalog, slab);
	if (books->slabs[slab] == KVR_BOOKS_FREE) {
		assert_int_equal(error, -ENOENT);
	} else if (books->slabs[slab] != KVR_BOOKS_FREED) {
		assert_int_equal(error, -EBUSY);
	} else if (error == 0) {
		books->slabs[slab] = KVR_BOOKS_FREE;
	} else {
		return error;
	}
	return 0;
}

static int change_mark(
	struct kvr_books *books, struct kvr_random *random, struct kvr_catalog *catalog)
{
	struct kvr_books_segment *one = draw_live(books, random);
	struct kvr_catalog_state state;
	int error;

	if (!one) {
		state = (struct kvr_catalog_state){.id = UINT64_MAX};
		assert_int_equal(kvr_catalog_mark(catalog, &state), -ENOENT);
		return 0;
	}
	state = one->state;
	state.flags = kvr_random_range(random, 0, 3);
	state.used = kvr_random_next(random) % 1000;
	error = kvr_catalog_mark(catalog, &state);
	if (error == 0)
		one->state = state;
	return error;
}

int kvr_books_change(
	struct kvr_books *books, struct kvr_random *random, struct kvr_catalog *catalog)
{
	const uint32_t kind = kvr_random_range(random, 0, 9);
	struct kvr_books_segment *one;
	int error;

	if (kind < 5) {
		one = kvr_books_draw(books, random);
		if (!one)
			return change_remove(books, random, catalog);
		error = kvr_books_put(books, one, catalog);
		if (error == 0 && kind == 0)
			assert_int_equal(kvr_catalog_put(catalog, &books->models[one->model],
						 &one->segment, one->units, one->cluster_max, 0),
				-EEXIST);
		return error;
	}
	if (kind < 7)
		return change_remove(books, random, catalog);
	return kind < 8 ? change_wiped(books, random, catalog)
			: change_mark(books, random, catalog);
}

/* ---- directories ------------------------------------------------------------------------------- */

void kvr_books_dir(char ret_dir[256], bool in_memory)
{
	const char *base = getenv("TMPDIR");

	if (in_memory && access("/dev/shm", W_OK | X_OK) == 0)
		base = "/dev/shm";
	snprintf(ret_dir, 256, "%s/kvr-catalog-XXXXXX", base ? base : "/tmp");
	assert_non_null(mkdtemp(ret_dir));
}

static int remove_one(const char *path, const struct stat *stat, int type, struct FTW *where)
{
	(void)stat;
	(void)type;
	(void)where;
	return remove(path);
}

void kvr_books_dir_remove(const char *dir)
{
	assert_int_equal(nftw(dir, remove_one, 8, FTW_DEPTH | FTW_PHYS), 0);
}

struct kvr_catalog *kvr_books_open(const char *dir, uint64_t bytes)
{
	const struct kvr_catalog_config config = {.dir = dir, .bytes = bytes};
	struct kvr_catalog_meta meta = {
		.slab_version = KVR_SLAB_VERSION,
		.uuid = "catalog's tests",
		.slabs_bytes = (uint64_t)KVR_BOOKS_SLABS * KVR_SLAB_BYTES,
	};
	struct kvr_catalog *catalog = NULL;

	assert_int_equal(kvr_catalog_open(&config, &meta, &catalog), 0);
	assert_string_equal((const char *)meta.uuid, "catalog's tests");
	return catalog;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* catalog_look_util.c: a catalog, read with every function there is and held against the books. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include "tests/tiers/catalog_util.h"

struct look {
	const struct kvr_books *books;
	struct kvr_catalog_reader *reader;
	struct kvr_books_found *found;
};

static void wrong(struct look *look, bool is_wrong, const char *what)
{
	look->found->wrong += is_wrong;
	if (is_wrong && !look->found->first)
		look->found->first = what;
}

static void missing(struct look *look, uint32_t count, const char *what)
{
	look->found->missing += count;
	if (count > 0 && !look->found->first)
		look->found->first = what;
}

/* Whether a call gave something to compare. */
static bool usable(struct look *look, int error, const char *what)
{
	if (error == 0)
		return true;
	if (error == -ENOENT)
		missing(look, 1, what);
	else
		look->found->errors++;
	if (!look->found->first)
		look->found->first = what;
	return false;
}

static bool same_model(const struct kvr_slab_model *a, const struct kvr_slab_model *b)
{
	return memcmp(a->root, b->root, KVR_HASH_BYTES) == 0 && strcmp(a->tenant, b->tenant) == 0 &&
	       strcmp(a->name, b->name) == 0 && memcmp(a->digest, b->digest, KVR_HASH_BYTES) == 0 &&
	       a->rank == b->rank && a->geometry.layer_count == b->geometry.layer_count &&
	       a->geometry.query_heads == b->geometry.query_heads &&
	       a->geometry.kv_heads == b->geometry.kv_heads &&
	       a->geometry.key_dim == b->geometry.key_dim &&
	       a->geometry.value_dim == b->geometry.value_dim &&
	       a->geometry.dtype == b->geometry.dtype &&
	       a->geometry.segment_tokens == b->geometry.segment_tokens &&
	       a->geometry.cluster_tokens == b->geometry.cluster_tokens &&
	       a->geometry.sink_tokens == b->geometry.sink_tokens &&
	       a->geometry.merged == b->geometry.merged &&
	       memcmp(a->geometry.dense, b->geometry.dense, sizeof(a->geometry.dense)) == 0;
}

static bool same_segment(const struct kvr_catalog_segment *a, const struct kvr_catalog_segment *b)
{
	return a->id == b->id && memcmp(a->hash, b->hash, KVR_HASH_BYTES) == 0 &&
	       memcmp(a->parent, b->parent, KVR_HASH_BYTES) == 0 &&
	       memcmp(a->root, b->root, KVR_HASH_BYTES) == 0 && a->token_first == b->token_first &&
	       a->token_count == b->token_count && a->part_count == b->part_count &&
	       memcmp(a->parts, b->parts, a->part_count * sizeof(uint32_t)) == 0;
}

static const struct kvr_books_segment *by_hash(
	const struct kvr_books *books, const uint8_t hash[KVR_HASH_BYTES])
{
	for (uint32_t i = 0; i < KVR_BOOKS_SEGMENTS; i++)
		if (books->segments[i].live &&
			memcmp(books->segments[i].segment.hash, hash, KVR_HASH_BYTES) == 0)
			return &books->segments[i];
	return NULL;
}

static bool same_state(const struct kvr_catalog_state *a, const struct kvr_catalog_state *b)
{
	return a->id == b->id && a->used == b->used && a->flags == b->flags &&
	       memcmp(a->hash, b->hash, KVR_HASH_BYTES) == 0;
}

static void look_at_lane(struct look *look, const struct kvr_books_segment *one, uint32_t lane)
{
	const struct kvr_geometry *geometry = &look->books->models[one->model].geometry;
	const struct kvr_catalog_unit *units = one->units + (size_t)lane * one->unit_count;
	struct kvr_catalog_unit got[KVR_BOOKS_UNITS];
	uint32_t unit = one->cluster_max + 1;
	int error = kvr_catalog_lane(look->reader, one->segment.id, lane, got, unit);

	if (usable(look, error, "lane"))
		wrong(look, memcmp(got, units, unit * sizeof(got[0])) != 0, "lane");
	error = kvr_catalog_merged(look->reader, one->segment.id, lane, got);
	if (geometry->merged == 0 || kvr_geometry_is_dense(geometry, lane)) {
		wrong(look, error == 0, "merged");
		return;
	}
	if (!usable(look, error, "merged"))
		return;
	for (uint32_t set = 0; set < KVR_MERGED_SETS; set++) {
		if (geometry->merged >> set & 1)
			wrong(look, memcmp(&got[set], &units[unit++], sizeof(got[0])) != 0,
				"merged");
		else
			wrong(look, got[set].rows != 0, "merged");
	}
}

static void look_at_segment(struct look *look, const struct kvr_books_segment *one)
{
	uint32_t parts[KVR_BOOKS_PARTS];
	struct kvr_catalog_segment segment;
	struct kvr_catalog_state state;
	const uint32_t lanes = kvr_geometry_lanes(&look->books->models[one->model].geometry);

	if (usable(look,
		    kvr_catalog_find(
			    look->reader, one->segment.hash, parts, KVR_BOOKS_PARTS, &segment),
		    "find"))
		wrong(look, !same_segment(&segment, &one->segment), "find");
	if (usable(look, kvr_catalog_state(look->reader, one->segment.id, &state), "state"))
		wrong(look, !same_state(&state, &one->state), "state");
	for (uint32_t lane = 0; lane < lanes; lane++)
		look_at_lane(look, one, lane);
}

/* The children of a segment or root: each of them, in order, and no other. */
static void look_at_children(struct look *look, const uint8_t parent[KVR_HASH_BYTES])
{
	uint32_t tokens = 0;
	uint32_t expected = 0;
	uint32_t got = 0;
	uint64_t id = 0;
	uint8_t hash[KVR_HASH_BYTES];
	int error;

	for (uint32_t i = 0; i < KVR_BOOKS_SEGMENTS; i++)
		expected += look->books->segments[i].live &&
			    memcmp(look->books->segments[i].segment.parent, parent,
				    KVR_HASH_BYTES) == 0;
	for (;;) {
		const uint32_t tokens_before = tokens;
		const uint64_t id_before = id;
		const struct kvr_books_segment *one;

		error = kvr_catalog_child(look->reader, parent, &tokens, &id, hash);
		if (error < 0)
			break;
		one = by_hash(look->books, hash);
		wrong(look,
			!one || one->segment.id != id || one->segment.token_count != tokens ||
				memcmp(one->segment.parent, parent, KVR_HASH_BYTES) != 0 ||
				tokens < tokens_before ||
				(tokens == tokens_before && id <= id_before),
			"child");
		if (got++ > KVR_BOOKS_SEGMENTS)
			break;
	}
	if (error == -ENOENT)
		missing(look, got < expected ? expected - got : 0, "child");
	else
		look->found->errors++;
}

static void look_at_use(struct look *look)
{
	uint64_t used = 0;
	uint64_t id = 0;
	uint32_t got = 0;
	uint8_t hash[KVR_HASH_BYTES];
	int error;

	for (;;) {
		const uint64_t used_before = used;
		const uint64_t id_before = id;
		const struct kvr_books_segment *one;

		error = kvr_catalog_oldest(look->reader, &used, &id, hash);
		if (error < 0)
			break;
		one = by_hash(look->books, hash);
		wrong(look,
			!one || one->state.id != id || one->state.used != used ||
				used < used_before || (used == used_before && id <= id_before),
			"oldest");
		if (got++ > KVR_BOOKS_SEGMENTS)
			break;
	}
	if (error == -ENOENT)
		missing(look, kvr_books_count(look->books) - got, "oldest");
	else
		look->found->errors++;
}

static void look_at_tenants(struct look *look)
{
	for (uint32_t tenant = 0; tenant < 2; tenant++) {
		uint64_t expected = 0;
		uint64_t got = 0;
		char name[KVR_NAME_MAX];
		int error;

		snprintf(name, sizeof(name), "tenant-%u", tenant);
		for (uint32_t i = 0; i < KVR_BOOKS_SEGMENTS; i++)
			if (look->books->segments[i].live &&
				look->books->segments[i].model % 2 == tenant)
				expected += look->books->segments[i].segment.part_count;
		error = kvr_catalog_tenant(look->reader, name, &got);
		if (error == -ENOENT && expected == 0)
			continue;
		if (usable(look, error, "tenant"))
			wrong(look, got != expected, "tenant");
	}
}

static void look_at_models(struct look *look)
{
	uint8_t root[KVR_HASH_BYTES] = {0};
	struct kvr_slab_model model;
	uint32_t expected = 0;
	uint32_t got = 0;
	int error;

	for (uint32_t i = 0; i < KVR_BOOKS_MODELS; i++) {
		const struct kvr_slab_model *one = &look->books->models[i];

		look_at_children(look, one->root);
		if (!kvr_books_has_child(look->books, one->root)) {
			wrong(look, kvr_catalog_model(look->reader, one->root, &model) == 0,
				"model");
			continue;
		}
		expected++;
		if (usable(look, kvr_catalog_model(look->reader, one->root, &model), "model"))
			wrong(look, !same_model(&model, one), "model");
	}
	while ((error = kvr_catalog_model_next(look->reader, root, &model)) == 0) {
		bool same = false;

		for (uint32_t i = 0; i < KVR_BOOKS_MODELS; i++)
			same |= same_model(&model, &look->books->models[i]);
		wrong(look, !same, "model_next");
		if (got++ > KVR_BOOKS_MODELS)
			break;
	}
	if (error == -ENOENT)
		missing(look, got < expected ? expected - got : 0, "model_next");
	else
		look->found->errors++;
}

static void look_at_slabs(struct look *look)
{
	uint32_t slab = UINT32_MAX;
	uint32_t expected = 0;
	uint32_t got = 0;
	uint64_t id;
	int error;

	for (uint32_t i = 0; i < KVR_BOOKS_SLABS; i++)
		expected += look->books->slabs[i] != KVR_BOOKS_FREE;
	while ((error = kvr_catalog_slab_next(look->reader, &slab, &id)) == 0) {
		const uint64_t owner =
			slab < KVR_BOOKS_SLABS ? look->books->slabs[slab] : KVR_BOOKS_FREE;

		wrong(look, owner == KVR_BOOKS_FREE || (owner == KVR_BOOKS_FREED ? 0 : owner) != id,
			"slab_next");
		if (got++ > KVR_BOOKS_SLABS)
			break;
	}
	if (error == -ENOENT)
		missing(look, got < expected ? expected - got : 0, "slab_next");
	else
		look->found->errors++;
}

static void look_at_list(struct look *look)
{
	uint8_t hash[KVR_HASH_BYTES] = {0};
	uint32_t parts[KVR_BOOKS_PARTS];
	struct kvr_catalog_segment segment;
	uint32_t got = 0;
	int error;

	while ((error = kvr_catalog_segment_next(
			look->reader, hash, parts, KVR_BOOKS_PARTS, &segment)) == 0) {
		const struct kvr_books_segment *one = by_hash(look->books, hash);

		wrong(look, !one || !same_segment(&segment, &one->segment), "segment_next");
		if (got++ > KVR_BOOKS_SEGMENTS)
			break;
	}
	if (error == -ENOENT)
		missing(look, kvr_books_count(look->books) - got, "segment_next");
	else
		look->found->errors++;
}

void kvr_books_compare(const struct kvr_books *books, struct kvr_catalog *catalog,
	struct kvr_books_found *ret_found)
{
	struct look look = {.books = books, .found = ret_found};

	*ret_found = (struct kvr_books_found){0};
	if (kvr_catalog_reader_open(catalog, &look.reader) < 0 ||
		kvr_catalog_read_begin(look.reader) < 0) {
		ret_found->errors++;
		ret_found->first = "read_begin";
		kvr_catalog_reader_close(look.reader);
		return;
	}
	for (uint32_t i = 0; i < KVR_BOOKS_SEGMENTS; i++) {
		if (!books->segments[i].live)
			continue;
		look_at_segment(&look, &books->segments[i]);
		look_at_children(&look, books->segments[i].segment.hash);
	}
	look_at_models(&look);
	look_at_tenants(&look);
	look_at_use(&look);
	look_at_slabs(&look);
	look_at_list(&look);
	kvr_catalog_read_end(look.reader);
	kvr_catalog_reader_close(look.reader);
}

void kvr_books_check(const struct kvr_books *books, struct kvr_catalog *catalog)
{
	struct kvr_books_found found;
	struct kvr_catalog_stat stat;
	char first[160];
	uint64_t rows = 0;

	kvr_books_compare(books, catalog, &found);
	if (found.first)
		print_error("%s: %u wrong, %u missing, %u errors\n", found.first, found.wrong,
			found.missing, found.errors);
	assert_int_equal(found.wrong, 0);
	assert_int_equal(found.missing, 0);
	assert_int_equal(found.errors, 0);
	if (kvr_catalog_verify(catalog, &rows, first, sizeof(first)) < 0)
		fail_msg("verify: %s", first);
	assert_true(rows >= 2 + 5 * kvr_books_count(books));
	kvr_catalog_stat(catalog, &stat);
	assert_int_equal(stat.segment_count, kvr_books_count(books));
	assert_true(stat.used_bytes <= stat.map_bytes);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* catalog_verify.c: whole catalogs: one against another, and one against itself.
 *
 * Both take as long as it takes to read all of it. They hold a read transaction that long, during
 * which freed pages are not used again. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/assert.h"
#include "tiers/catalog_lmdb.h"

/* A table that is read from one end to the other. */
struct scan {
	MDB_cursor *cursor;
	struct kvr_span key, value;
	bool ended;
};

static int scan_next(struct scan *scan)
{
	MDB_val key;
	MDB_val value;
	const int code = mdb_cursor_get(scan->cursor, &key, &value, MDB_NEXT);

	scan->ended = code == MDB_NOTFOUND;
	if (code != 0)
		return scan->ended ? 0 : kvr_catalog_error(code);
	scan->key = kvr_catalog_span(key);
	scan->value = kvr_catalog_span(value);
	return 0;
}

static int scan_open(
	struct scan *scan, struct kvr_catalog_reader *reader, enum kvr_catalog_table table)
{
	*scan = (struct scan){.ended = false};
	return kvr_catalog_error(
		mdb_cursor_open(reader->txn, reader->catalog->tables[table], &scan->cursor));
}

static void scan_close(struct scan *scan)
{
	if (scan->cursor)
		mdb_cursor_close(scan->cursor);
	scan->cursor = NULL;
}

/* A line about a row: its table, the first bytes of its key, and what about it. */
static void say(char *ret_line, uint32_t bytes, enum kvr_catalog_table table, struct kvr_span key,
	const char *what)
{
	char hex[2 * 12 + 1] = "";

	KVR_ASSERT(bytes > 0);
	for (uint32_t i = 0; i < 12 && i < key.bytes; i++)
		snprintf(hex + (size_t)2 * i, 3, "%02x", key.data[i]);
	snprintf(ret_line, bytes, "table %s, key %s%s: %s", kvr_catalog_names[table], hex,
		key.bytes > 12 ? "..." : "", what);
}

/* Opens a reader in a transaction. */
static int start(struct kvr_catalog *catalog, struct kvr_catalog_reader **ret_reader)
{
	int error = kvr_catalog_reader_open(catalog, ret_reader);

	if (error < 0)
		return error;
	error = kvr_catalog_read_begin(*ret_reader);
	if (error < 0)
		*ret_reader = kvr_catalog_reader_close(*ret_reader);
	return error;
}

static void stop(struct kvr_catalog_reader *reader)
{
	if (reader)
		kvr_catalog_read_end(reader);
	kvr_catalog_reader_close(reader);
}

/* All pages of a catalog, now that its reader keeps them. */
static int look_at_pages(struct kvr_catalog *catalog)
{
	struct kvr_catalog_tree_report report;
	int fd;
	int error = kvr_catalog_error(mdb_env_get_fd(catalog->env, &fd));

	if (error < 0)
		return error;
	return kvr_catalog_tree_check(fd, catalog->map_bytes, NULL, &report);
}

/* ---- two catalogs ------------------------------------------------------------------------------ */

struct comparison {
	struct kvr_catalog_reader *readers[2];
	uint64_t differing;
	char *first;
	uint32_t first_bytes;
};

static void differ(struct comparison *comparison, enum kvr_catalog_table table, struct kvr_span key,
	const char *what)
{
	if (comparison->differing++ == 0)
		say(comparison->first, comparison->first_bytes, table, key, what);
}

static int order(const struct scan *one, const struct scan *other)
{
	const size_t bytes = one->key.bytes < other->key.bytes ? one->key.bytes : other->key.bytes;
	int sign;

	if (one->ended || other->ended)
		return one->ended - other->ended;
	sign = memcmp(one->key.data, other->key.data, bytes);
	if (sign == 0 && one->key.bytes != other->key.bytes)
		sign = one->key.bytes < other->key.bytes ? -1 : 1;
	return sign;
}

static int compare_rows(
	struct comparison *comparison, enum kvr_catalog_table table, struct scan scans[2])
{
	int error = scan_next(&scans[0]);

	if (error == 0)
		error = scan_next(&scans[1]);
	while (error == 0 && !(scans[0].ended && scans[1].ended)) {
		const int sign = order(&scans[0], &scans[1]);

		if (sign != 0)
			differ(comparison, table, scans[sign > 0].key,
				sign < 0 ? "only in the first" : "only in the second");
		else if (scans[0].value.bytes != scans[1].value.bytes ||
			 memcmp(scans[0].value.data, scans[1].value.data, scans[0].value.bytes) !=
				 0)
			differ(comparison, table, scans[0].key, "differs");
		if (sign <= 0)
			error = scan_next(&scans[0]);
		if (error == 0 && sign >= 0)
			error = scan_next(&scans[1]);
	}
	return error;
}

static int compare_table(struct comparison *comparison, enum kvr_catalog_table table)
{
	struct scan scans[2] = {{.cursor = NULL}, {.cursor = NULL}};
	int error = scan_open(&scans[0], comparison->readers[0], table);

	if (error == 0)
		error = scan_open(&scans[1], comparison->readers[1], table);
	if (error == 0)
		error = compare_rows(comparison, table, scans);
	scan_close(&scans[0]);
	scan_close(&scans[1]);
	return error;
}

int kvr_catalog_compare(struct kvr_catalog *one, struct kvr_catalog *other, uint64_t *ret_differing,
	char *ret_first, uint32_t first_bytes)
{
	static const enum kvr_catalog_table tables[] = {KVR_CATALOG_TENANT, KVR_CATALOG_MODEL,
		KVR_CATALOG_SEGMENT, KVR_CATALOG_CHILD, KVR_CATALOG_CLUSTER, KVR_CATALOG_MERGED,
		KVR_CATALOG_SLAB};
	struct comparison comparison = {.first = ret_first, .first_bytes = first_bytes};
	int error = start(one, &comparison.readers[0]);

	if (error == 0)
		error = start(other, &comparison.readers[1]);
	if (error == 0)
		error = look_at_pages(one);
	if (error == 0)
		error = look_at_pages(other);
	if (error == 0 && memcmp(one->meta.uuid, other->meta.uuid, KVR_SLAB_UUID_BYTES) != 0)
		differ(&comparison, KVR_CATALOG_META,
			(struct kvr_span){one->meta.uuid, KVR_SLAB_UUID_BYTES}, "uuid differs");
	for (uint32_t i = 0; error == 0 && i < sizeof(tables) / sizeof(tables[0]); i++)
		error = compare_table(&comparison, tables[i]);
	stop(comparison.readers[0]);
	stop(comparison.readers[1]);
	if (error == 0)
		*ret_differing = comparison.differing;
	return error;
}

/* ---- one catalog ------------------------------------------------------------------------------- */

struct verification {
	struct kvr_catalog_reader *reader;
	uint64_t row_count;
	uint64_t segment_count, part_count, cluster_count, merged_count, owned_count;
	char *first;
	uint32_t first_bytes;
	uint32_t *parts;                   /* [KVR_SLAB_PARTS_MAX] */
	struct kvr_catalog_unit *clusters; /* [KVR_CLUSTERS_MAX + 1] */
};

static int refuse(struct verification *v, enum kvr_catalog_table table, struct kvr_span key,
	const char *what, int error)
{
	say(v->first, v->first_bytes, table, key, what);
	return error == -ENOENT ? -EBADMSG : error;
}

/* Every row by itself. */
static int verify_rows(struct verification *v, enum kvr_catalog_table table)
{
	struct scan scan;
	int error = scan_open(&scan, v->reader, table);

	if (error == 0)
		error = scan_next(&scan);
	while (error == 0 && !scan.ended) {
		error = kvr_catalog_unpack(table, scan.key, scan.value);
		if (error < 0) {
			error = refuse(v, table, scan.key, "damaged", error);
			break;
		}
		v->row_count++;
		if (table == KVR_CATALOG_SLAB) {
			uint32_t slab;
			uint64_t id;

			error = kvr_catalog_unpack_slab(scan.key, scan.value, &slab, &id);
			v->owned_count += error == 0 && id != 0;
		}
		if (error == 0)
			error = scan_next(&scan);
	}
	scan_close(&scan);
	return error;
}

/* The rows of a segment's lanes. Clusters are in each; merged sets are in those that are not dense, all
 * together as many as the segment says. */
static int verify_lanes(struct verification *v, uint64_t id, const struct kvr_geometry *geometry,
	uint32_t merged_count)
{
	uint32_t found = 0;
	int error = 0;

	for (uint32_t lane = 0; lane < kvr_geometry_lanes(geometry) && error == 0; lane++) {
		error = kvr_catalog_lane(v->reader, id, lane, v->clusters, KVR_CLUSTERS_MAX + 1);
		if (error < 0 || merged_count == 0)
			continue;
		error = kvr_catalog_merged(v->reader, id, lane, v->clusters);
		for (uint32_t set = 0; set < KVR_MERGED_SETS && error == 0; set++)
			found += v->clusters[set].rows > 0;
		if (error == -ENOENT)
			error = 0;
	}
	return error == 0 && found != merged_count ? -EBADMSG : error;
}

/* What a segment's row says, against the other tables. */
static int verify_segment(
	struct verification *v, const struct kvr_catalog_segment *segment, uint32_t merged_count)
{
	struct kvr_catalog *catalog = v->reader->catalog;
	struct kvr_catalog_key key = kvr_catalog_key_hash(segment->hash);
	const struct kvr_span named = {key.data, key.bytes};
	struct kvr_catalog_state state;
	struct kvr_slab_model model;
	struct kvr_catalog_key child =
		kvr_catalog_key_child(segment->parent, segment->token_count, segment->id);
	struct kvr_span value;
	int error = kvr_catalog_state(v->reader, segment->id, &state);

	if (error < 0 || memcmp(state.hash, segment->hash, KVR_HASH_BYTES) != 0)
		return refuse(
			v, KVR_CATALOG_SEGMENT, named, "no state", error < 0 ? error : -EBADMSG);
	error = kvr_catalog_get(catalog, v->reader->txn, KVR_CATALOG_CHILD, &child, &value);
	if (error < 0 || memcmp(value.data, segment->hash, KVR_HASH_BYTES) != 0)
		return refuse(v, KVR_CATALOG_SEGMENT, named, "not below its parent",
			error < 0 ? error : -EBADMSG);
	error = kvr_catalog_model(v->reader, segment->root, &model);
	if (error < 0)
		return refuse(v, KVR_CATALOG_SEGMENT, named, "no model", error);
	for (uint32_t i = 0; i < segment->part_count; i++) {
		struct kvr_catalog_key slab = kvr_catalog_key_slab(segment->parts[i]);
		uint32_t number;
		uint64_t owner = 0;

		error = kvr_catalog_get(catalog, v->reader->txn, KVR_CATALOG_SLAB, &slab, &value);
		if (error == 0)
			error = kvr_catalog_unpack_slab(
				(struct kvr_span){slab.data, slab.bytes}, value, &number, &owner);
		if (error < 0 || owner != segment->id)
			return refuse(v, KVR_CATALOG_SEGMENT, named, "a slab is another's",
				error < 0 ? error : -EBADMSG);
	}
	error = verify_lanes(v, segment->id, &model.geometry, merged_count);
	if (error < 0)
		return refuse(v, KVR_CATALOG_SEGMENT, named, "rows of a lane", error);
	return 0;
}

static int verify_segments(struct verification *v)
{
	struct kvr_catalog_segment segment;
	struct kvr_catalog_counts counts;
	struct scan scan;
	int error = scan_open(&scan, v->reader, KVR_CATALOG_SEGMENT);

	if (error == 0)
		error = scan_next(&scan);
	while (error == 0 && !scan.ended) {
		error = kvr_catalog_unpack_segment(
			scan.key, scan.value, v->parts, KVR_SLAB_PARTS_MAX, &segment, &counts);
		if (error == 0)
			error = verify_segment(v, &segment, counts.merged);
		if (error < 0)
			break;
		v->segment_count++;
		v->part_count += segment.part_count;
		v->cluster_count += counts.cluster;
		v->merged_count += counts.merged;
		error = scan_next(&scan);
	}
	scan_close(&scan);
	return error;
}

/* Whether there are as many rows as the segments need, so that none is nobody's. */
static int verify_counts(struct verification *v)
{
	const struct {
		enum kvr_catalog_table table;
		uint64_t expected;
	} counts[] = {
		{KVR_CATALOG_CHILD, v->segment_count},
		{KVR_CATALOG_STATE, v->segment_count},
		{KVR_CATALOG_USE, v->segment_count},
		{KVR_CATALOG_CLUSTER, v->cluster_count},
		{KVR_CATALOG_MERGED, v->merged_count},
	};
	const struct kvr_span none = {NULL, 0};

	for (uint32_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
		uint64_t count = 0;
		int error = kvr_catalog_rows(
			v->reader->catalog, v->reader->txn, counts[i].table, &count);

		if (error < 0)
			return error;
		if (count != counts[i].expected)
			return refuse(v, counts[i].table, none,
				"not as many rows as the segments need", -EBADMSG);
	}
	if (v->owned_count != v->part_count)
		return refuse(v, KVR_CATALOG_SLAB, none, "a slab is nobody's", -EBADMSG);
	return 0;
}

int kvr_catalog_verify(
	struct kvr_catalog *catalog, uint64_t *ret_row_count, char *ret_first, uint32_t first_bytes)
{
	struct verification v = {.first = ret_first, .first_bytes = first_bytes};
	int error = -ENOMEM;

	KVR_ASSERT(first_bytes > 0);
	ret_first[0] = '\0';
	v.parts = malloc(KVR_SLAB_PARTS_MAX * sizeof(*v.parts));
	v.clusters = malloc((KVR_CLUSTERS_MAX + 1) * sizeof(*v.clusters));
	if (v.parts && v.clusters)
		error = start(catalog, &v.reader);
	if (error == 0)
		error = look_at_pages(catalog);
	if (error == -EBADMSG)
		snprintf(ret_first, first_bytes, "pages are damaged");
	for (uint32_t table = 0; error == 0 && table < KVR_CATALOG_TABLES; table++)
		error = verify_rows(&v, (enum kvr_catalog_table)table);
	if (error == 0)
		error = verify_segments(&v);
	if (error == 0)
		error = verify_counts(&v);
	stop(v.reader);
	free(v.parts);
	free(v.clusters);
	if (error == 0)
		*ret_row_count = v.row_count;
	return error;
}

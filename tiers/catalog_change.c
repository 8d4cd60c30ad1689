/* SPDX-License-Identifier: Apache-2.0 */
/* catalog_change.c: what else a write transaction does: removals, and small changes.
 *
 * Puts and the transaction itself are in catalog_write.c. */
#include <errno.h>
#include <string.h>

#include "base/assert.h"
#include "tiers/catalog_lmdb.h"

/* ---- remove ------------------------------------------------------------------------------------ */

/* 1: a segment or root has children; 0: it has none. */
static int has_children(struct kvr_catalog *catalog, const uint8_t hash[KVR_HASH_BYTES])
{
	const struct kvr_catalog_key key = kvr_catalog_key_child(hash, 0, 0);
	struct kvr_span found;
	struct kvr_span value;
	int error =
		kvr_catalog_seek(catalog, catalog->write, KVR_CATALOG_CHILD, &key, &found, &value);

	if (error < 0)
		return error == -ENOENT ? 0 : error;
	return found.bytes >= KVR_HASH_BYTES && memcmp(found.data, hash, KVR_HASH_BYTES) == 0;
}

static int del_units(
	struct kvr_catalog *catalog, enum kvr_catalog_table table, uint64_t id, uint32_t expected)
{
	const struct kvr_catalog_key first = kvr_catalog_key_unit(id, 0, 0);
	MDB_val key_val = kvr_catalog_val(&first);
	MDB_val value_val;
	MDB_cursor *cursor;
	uint32_t count = 0;
	int code;

	KVR_ASSERT(id >= 1);
	code = mdb_cursor_open(catalog->write, catalog->tables[table], &cursor);
	if (code != 0)
		return kvr_catalog_error(code);
	code = mdb_cursor_get(cursor, &key_val, &value_val, MDB_SET_RANGE);
	while (code == 0 && key_val.mv_size == first.bytes &&
		memcmp(key_val.mv_data, first.data, sizeof(id)) == 0) {
		count++;
		code = mdb_cursor_del(cursor, 0);
		if (code == 0)
			code = mdb_cursor_get(cursor, &key_val, &value_val, MDB_NEXT);
	}
	mdb_cursor_close(cursor);
	if (code != 0 && code != MDB_NOTFOUND)
		return kvr_catalog_error(code);
	return count == expected ? 0 : -EBADMSG; /* C2 */
}

static int get_state(struct kvr_catalog *catalog, uint64_t id, struct kvr_catalog_state *ret_state)
{
	struct kvr_catalog_key key = kvr_catalog_key_state(id);
	struct kvr_span value;
	int error = kvr_catalog_get(catalog, catalog->write, KVR_CATALOG_STATE, &key, &value);

	if (error < 0)
		return error;
	return kvr_catalog_unpack_state((struct kvr_span){key.data, key.bytes}, value, ret_state);
}

static int del_state(struct kvr_catalog *catalog, uint64_t id)
{
	const struct kvr_catalog_key key = kvr_catalog_key_state(id);
	struct kvr_catalog_key use;
	struct kvr_catalog_state state;
	int error = get_state(catalog, id, &state);

	if (error < 0)
		return error == -ENOENT ? -EBADMSG : error;
	use = kvr_catalog_key_use(state.used, id);
	error = kvr_catalog_write_del(catalog, KVR_CATALOG_USE, &use);
	return error < 0 ? error : kvr_catalog_write_del(catalog, KVR_CATALOG_STATE, &key);
}

/* What its model's tenant has, less. */
static int discount(struct kvr_catalog *catalog, const struct kvr_catalog_segment *segment)
{
	struct kvr_catalog_key key = kvr_catalog_key_hash(segment->root);
	struct kvr_slab_model model;
	struct kvr_span value;
	int error = kvr_catalog_get(catalog, catalog->write, KVR_CATALOG_MODEL, &key, &value);

	if (error == 0)
		error = kvr_catalog_unpack_model(
			(struct kvr_span){key.data, key.bytes}, value, &model);
	if (error < 0)
		return error == -ENOENT ? -EBADMSG : error;
	return kvr_catalog_write_tenant(catalog, model.tenant, -(int64_t)segment->part_count);
}

/* The rows of a segment that was read. */
static int del_segment(struct kvr_catalog *catalog, const struct kvr_catalog_segment *segment,
	struct kvr_catalog_counts counts)
{
	const struct kvr_catalog_key key = kvr_catalog_key_hash(segment->hash);
	const struct kvr_catalog_key root = kvr_catalog_key_hash(segment->root);
	const struct kvr_catalog_key child =
		kvr_catalog_key_child(segment->parent, segment->token_count, segment->id);
	int error = discount(catalog, segment);

	if (error == 0)
		error = del_units(catalog, KVR_CATALOG_CLUSTER, segment->id, counts.cluster);
	if (error == 0 && counts.merged > 0)
		error = del_units(catalog, KVR_CATALOG_MERGED, segment->id, counts.merged);
	for (uint32_t i = 0; error == 0 && i < segment->part_count; i++)
		error = kvr_catalog_write_slab(catalog, segment->parts[i], 0);
	if (error == 0)
		error = del_state(catalog, segment->id);
	if (error == 0)
		error = kvr_catalog_write_del(catalog, KVR_CATALOG_CHILD, &child);
	if (error == 0)
		error = kvr_catalog_write_del(catalog, KVR_CATALOG_SEGMENT, &key);
	if (error < 0)
		return error;
	/* A model without segments goes, so that what a rebuild makes is the same. */
	error = has_children(catalog, segment->root);
	if (error == 0)
		error = kvr_catalog_write_del(catalog, KVR_CATALOG_MODEL, &root);
	return error < 0 ? error : 0;
}

int kvr_catalog_remove(struct kvr_catalog *catalog, const uint8_t hash[KVR_HASH_BYTES])
{
	struct kvr_catalog_key key = kvr_catalog_key_hash(hash);
	struct kvr_catalog_segment segment;
	struct kvr_span value;
	struct kvr_catalog_counts counts;
	int error;

	kvr_catalog_write_check(catalog);
	error = kvr_catalog_get(catalog, catalog->write, KVR_CATALOG_SEGMENT, &key, &value);
	if (error < 0)
		return error;
	error = has_children(catalog, hash);
	if (error != 0)
		return error < 0 ? error : -ENOTEMPTY;
	/* The part numbers are read into the room for rows: nothing is packed there meanwhile. */
	error = kvr_catalog_unpack_segment((struct kvr_span){key.data, key.bytes}, value,
		(uint32_t *)(void *)catalog->row, KVR_SLAB_PARTS_MAX, &segment, &counts);
	if (error == 0)
		error = kvr_catalog_look(catalog, KVR_CATALOG_CLUSTER, segment.id);
	if (error == 0 && counts.merged > 0)
		error = kvr_catalog_look(catalog, KVR_CATALOG_MERGED, segment.id);
	if (error < 0)
		return error;
	error = kvr_catalog_write_done(catalog, del_segment(catalog, &segment, counts));
	catalog->freed = true;
	return error;
}

/* ---- small changes ----------------------------------------------------------------------------- */

int kvr_catalog_wiped(struct kvr_catalog *catalog, uint32_t slab)
{
	struct kvr_catalog_key key = kvr_catalog_key_slab(slab);
	struct kvr_span value;
	uint32_t number = 0;
	uint64_t owner = 0;
	int error;

	kvr_catalog_write_check(catalog);
	error = kvr_catalog_get(catalog, catalog->write, KVR_CATALOG_SLAB, &key, &value);
	if (error == 0)
		error = kvr_catalog_unpack_slab(
			(struct kvr_span){key.data, key.bytes}, value, &number, &owner);
	if (error < 0)
		return error;
	if (owner != 0)
		return -EBUSY;
	return kvr_catalog_write_done(
		catalog, kvr_catalog_write_del(catalog, KVR_CATALOG_SLAB, &key));
}

int kvr_catalog_mark(struct kvr_catalog *catalog, const struct kvr_catalog_state *state)
{
	struct kvr_catalog_state now;
	struct kvr_catalog_key use;
	int error;

	kvr_catalog_write_check(catalog);
	error = get_state(catalog, state->id, &now);
	if (error < 0)
		return error;
	if (now.used == state->used && now.flags == state->flags)
		return 0;
	use = kvr_catalog_key_use(now.used, now.id);
	now.used = state->used;
	now.flags = state->flags;
	error = kvr_catalog_write_del(catalog, KVR_CATALOG_USE, &use);
	return kvr_catalog_write_done(
		catalog, error < 0 ? error : kvr_catalog_write_state(catalog, &now));
}

/* SPDX-License-Identifier: Apache-2.0 */
/* catalog_read.c: readers of the catalog.
 *
 *   open ─► reset ──begin──► renewed ──find, child, lane, ...──► renewed ──end──► reset ─► close
 *
 * A reset transaction keeps its place in LMDB's table of readers and no page. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/assert.h"
#include "tiers/catalog_lmdb.h"

static void check_begun(const struct kvr_catalog_reader *reader)
{
	KVR_ASSERT(reader->txn);
	KVR_ASSERT(reader->begun);
}

static struct kvr_span key_span(struct kvr_catalog_key *key)
{
	return (struct kvr_span){key->data, key->bytes};
}

static void count_reader(struct kvr_catalog *catalog, int32_t add, int stale)
{
	pthread_mutex_lock(&catalog->lock);
	catalog->stat.reader_count += (uint32_t)add;
	catalog->stat.reader_stale_count += (uint32_t)stale;
	pthread_mutex_unlock(&catalog->lock);
}

int kvr_catalog_reader_open(struct kvr_catalog *catalog, struct kvr_catalog_reader **ret_reader)
{
	struct kvr_catalog_reader *reader;
	int stale = 0;
	int code;

	if (catalog->pid != getpid())
		return -EBUSY;
	reader = calloc(1, sizeof(*reader));
	if (!reader)
		return -ENOMEM;
	code = mdb_txn_begin(catalog->env, NULL, MDB_RDONLY, &reader->txn);
	if (code == MDB_READERS_FULL) {
		/* Other programs of LMDB's may have read here and been killed. */
		code = mdb_reader_check(catalog->env, &stale);
		if (code == 0)
			code = mdb_txn_begin(catalog->env, NULL, MDB_RDONLY, &reader->txn);
	}
	if (code != 0) {
		free(reader);
		count_reader(catalog, 0, stale);
		return kvr_catalog_error(code);
	}
	mdb_txn_reset(reader->txn);
	reader->catalog = catalog;
	count_reader(catalog, 1, stale);
	*ret_reader = reader;
	return 0;
}

struct kvr_catalog_reader *kvr_catalog_reader_close(struct kvr_catalog_reader *reader)
{
	if (!reader)
		return NULL;
	KVR_ASSERT(!reader->begun);
	if (reader->catalog->pid == getpid()) {
		mdb_txn_abort(reader->txn);
		count_reader(reader->catalog, -1, 0);
	}
	free(reader);
	return NULL;
}

int kvr_catalog_read_begin(struct kvr_catalog_reader *reader)
{
	int error;

	KVR_ASSERT(!reader->begun);
	if (reader->catalog->pid != getpid())
		return -EBUSY;
	error = kvr_catalog_error(mdb_txn_renew(reader->txn));
	reader->begun = error == 0;
	return error;
}

void kvr_catalog_read_end(struct kvr_catalog_reader *reader)
{
	check_begun(reader);
	mdb_txn_reset(reader->txn); /* C5 */
	reader->begun = false;
}

/* ---- segments ---------------------------------------------------------------------------------- */

int kvr_catalog_find(struct kvr_catalog_reader *reader, const uint8_t hash[KVR_HASH_BYTES],
	uint32_t *parts, uint32_t part_max, struct kvr_catalog_segment *ret_segment)
{
	struct kvr_catalog_key key = kvr_catalog_key_hash(hash);
	struct kvr_span value;
	struct kvr_catalog_counts counts;
	int error;

	check_begun(reader);
	error = kvr_catalog_get(reader->catalog, reader->txn, KVR_CATALOG_SEGMENT, &key, &value);
	if (error < 0)
		return error;
	return kvr_catalog_unpack_segment(
		key_span(&key), value, parts, part_max, ret_segment, &counts);
}

/* The first row behind a hash. */
static int next_hash(struct kvr_catalog_reader *reader, enum kvr_catalog_table table,
	const uint8_t hash[KVR_HASH_BYTES], struct kvr_span *ret_key, struct kvr_span *ret_value)
{
	struct kvr_catalog_key key = kvr_catalog_key_hash(hash);
	uint32_t i = KVR_HASH_BYTES;

	check_begun(reader);
	/* Plus one: keys of this length have nothing in between. */
	while (i > 0 && ++key.data[i - 1] == 0)
		i--;
	if (i == 0)
		return -ENOENT;
	return kvr_catalog_seek(reader->catalog, reader->txn, table, &key, ret_key, ret_value);
}

int kvr_catalog_segment_next(struct kvr_catalog_reader *reader, uint8_t hash[KVR_HASH_BYTES],
	uint32_t *parts, uint32_t part_max, struct kvr_catalog_segment *ret_segment)
{
	struct kvr_span key;
	struct kvr_span value;
	struct kvr_catalog_counts counts;
	int error = next_hash(reader, KVR_CATALOG_SEGMENT, hash, &key, &value);

	if (error == 0)
		error = kvr_catalog_unpack_segment(
			key, value, parts, part_max, ret_segment, &counts);
	if (error == 0)
		memcpy(hash, ret_segment->hash, KVR_HASH_BYTES);
	return error;
}

int kvr_catalog_child(struct kvr_catalog_reader *reader, const uint8_t parent[KVR_HASH_BYTES],
	uint32_t *tokens, uint64_t *id, uint8_t ret_hash[KVR_HASH_BYTES])
{
	const struct kvr_catalog_key from =
		*id < UINT64_MAX ? kvr_catalog_key_child(parent, *tokens, *id + 1)
				 : kvr_catalog_key_child(parent, *tokens + 1, 0);
	uint8_t found[KVR_HASH_BYTES];
	uint8_t hash[KVR_HASH_BYTES];
	struct kvr_span key;
	struct kvr_span value;
	uint32_t found_tokens = 0;
	uint64_t found_id = 0;
	int error;

	check_begun(reader);
	error = kvr_catalog_seek(
		reader->catalog, reader->txn, KVR_CATALOG_CHILD, &from, &key, &value);
	if (error == 0)
		error = kvr_catalog_unpack_child(key, value, found, &found_tokens, &found_id, hash);
	if (error < 0)
		return error;
	if (memcmp(found, parent, KVR_HASH_BYTES) != 0)
		return -ENOENT;
	memcpy(ret_hash, hash, KVR_HASH_BYTES);
	*tokens = found_tokens;
	*id = found_id;
	return 0;
}

/* ---- units ------------------------------------------------------------------------------------- */

/* Reads rows from a key on while they are the lane's. Returns how many. */
static int read_lane(MDB_cursor *cursor, enum kvr_catalog_table table, uint64_t id, uint32_t lane,
	struct kvr_catalog_unit *ret_units, uint32_t max)
{
	struct kvr_catalog_key first = kvr_catalog_key_unit(id, lane, 0);
	const size_t prefix = first.bytes - sizeof(uint16_t);
	struct kvr_catalog_unit_row row = {.lane_count = 0};
	MDB_val key = kvr_catalog_val(&first);
	MDB_val value;
	uint32_t count = 0;
	int code = mdb_cursor_get(cursor, &key, &value, MDB_SET_RANGE);

	for (; code == 0; code = mdb_cursor_get(cursor, &key, &value, MDB_NEXT)) {
		const uint32_t before = row.lane_count;
		int error;

		if (key.mv_size < prefix || memcmp(key.mv_data, first.data, prefix) != 0)
			break;
		error = kvr_catalog_unpack_unit(
			table, kvr_catalog_span(key), kvr_catalog_span(value), &row);
		if (error < 0)
			return error;
		if (row.number >= max || (count > 0 && row.lane_count != before))
			return -EBADMSG;
		ret_units[row.number] = row.at;
		count++;
	}
	if (code != 0 && code != MDB_NOTFOUND)
		return kvr_catalog_error(code);
	if (count == 0)
		return -ENOENT;
	return count == row.lane_count ? 0 : -EBADMSG; /* C2 */
}

static int look_at_lane(struct kvr_catalog_reader *reader, enum kvr_catalog_table table,
	uint64_t id, uint32_t lane, struct kvr_catalog_unit *ret_units, uint32_t max)
{
	MDB_cursor *cursor = NULL;
	int error;

	check_begun(reader);
	error = kvr_catalog_look(reader->catalog, table, id);
	if (error == 0)
		error = kvr_catalog_error(
			mdb_cursor_open(reader->txn, reader->catalog->tables[table], &cursor));
	if (error < 0)
		return error;
	memset(ret_units, 0, max * sizeof(*ret_units));
	error = read_lane(cursor, table, id, lane, ret_units, max);
	mdb_cursor_close(cursor);
	return error;
}

int kvr_catalog_lane(struct kvr_catalog_reader *reader, uint64_t id, uint32_t lane,
	struct kvr_catalog_unit *ret_clusters, uint32_t max)
{
	return look_at_lane(reader, KVR_CATALOG_CLUSTER, id, lane, ret_clusters, max);
}

int kvr_catalog_merged(struct kvr_catalog_reader *reader, uint64_t id, uint32_t lane,
	struct kvr_catalog_unit ret_sets[KVR_MERGED_SETS])
{
	return look_at_lane(reader, KVR_CATALOG_MERGED, id, lane, ret_sets, KVR_MERGED_SETS);
}

/* ---- use --------------------------------------------------------------------------------------- */

int kvr_catalog_state(
	struct kvr_catalog_reader *reader, uint64_t id, struct kvr_catalog_state *ret_state)
{
	struct kvr_catalog_key key = kvr_catalog_key_state(id);
	struct kvr_span value;
	int error;

	check_begun(reader);
	error = kvr_catalog_get(reader->catalog, reader->txn, KVR_CATALOG_STATE, &key, &value);
	return error < 0 ? error : kvr_catalog_unpack_state(key_span(&key), value, ret_state);
}

int kvr_catalog_oldest(struct kvr_catalog_reader *reader, uint64_t *used, uint64_t *id,
	uint8_t ret_hash[KVR_HASH_BYTES])
{
	struct kvr_catalog_key from;
	struct kvr_catalog_state state;
	struct kvr_span key = {NULL, 0};
	struct kvr_span value = {NULL, 0};
	uint64_t found_used = 0;
	uint64_t found_id = 0;
	int error;

	check_begun(reader);
	if (*id == UINT64_MAX && *used == UINT64_MAX)
		return -ENOENT;
	from = kvr_catalog_key_use(*id < UINT64_MAX ? *used : *used + 1, *id + 1);
	error = kvr_catalog_seek(
		reader->catalog, reader->txn, KVR_CATALOG_USE, &from, &key, &value);
	if (error == 0)
		error = kvr_catalog_unpack_use(key, value, &found_used, &found_id);
	if (error < 0)
		return error;
	error = kvr_catalog_state(reader, found_id, &state);
	if (error < 0)
		return error == -ENOENT ? -EBADMSG : error;
	if (state.used != found_used)
		return -EBADMSG;
	memcpy(ret_hash, state.hash, KVR_HASH_BYTES);
	*used = found_used;
	*id = found_id;
	return 0;
}

/* ---- models and slabs -------------------------------------------------------------------------- */

int kvr_catalog_model(struct kvr_catalog_reader *reader, const uint8_t root[KVR_HASH_BYTES],
	struct kvr_slab_model *ret_model)
{
	struct kvr_catalog_key key = kvr_catalog_key_hash(root);
	struct kvr_span value;
	int error;

	check_begun(reader);
	error = kvr_catalog_get(reader->catalog, reader->txn, KVR_CATALOG_MODEL, &key, &value);
	return error < 0 ? error : kvr_catalog_unpack_model(key_span(&key), value, ret_model);
}

int kvr_catalog_model_next(struct kvr_catalog_reader *reader, uint8_t root[KVR_HASH_BYTES],
	struct kvr_slab_model *ret_model)
{
	struct kvr_span key;
	struct kvr_span value;
	int error = next_hash(reader, KVR_CATALOG_MODEL, root, &key, &value);

	if (error == 0)
		error = kvr_catalog_unpack_model(key, value, ret_model);
	if (error == 0)
		memcpy(root, ret_model->root, KVR_HASH_BYTES);
	return error;
}

int kvr_catalog_tenant(
	struct kvr_catalog_reader *reader, const char *tenant, uint64_t *ret_slab_count)
{
	struct kvr_catalog_key key = kvr_catalog_key_text(tenant);
	struct kvr_span value;
	char name[KVR_NAME_MAX];
	int error;

	check_begun(reader);
	error = kvr_catalog_get(reader->catalog, reader->txn, KVR_CATALOG_TENANT, &key, &value);
	return error < 0 ? error
			 : kvr_catalog_unpack_tenant(key_span(&key), value, name, ret_slab_count);
}

int kvr_catalog_slab_next(struct kvr_catalog_reader *reader, uint32_t *slab, uint64_t *ret_id)
{
	const struct kvr_catalog_key from = kvr_catalog_key_slab(*slab + 1); /* wraps to 0 */
	struct kvr_span key;
	struct kvr_span value;
	int error;

	check_begun(reader);
	error = kvr_catalog_seek(
		reader->catalog, reader->txn, KVR_CATALOG_SLAB, &from, &key, &value);
	return error < 0 ? error : kvr_catalog_unpack_slab(key, value, slab, ret_id);
}

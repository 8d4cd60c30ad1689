/* SPDX-License-Identifier: Apache-2.0 */
/* catalog_write.c: the catalog's one write transaction.
 *
 *        begin              put, remove, wiped, mark
 *   idle ─────► open ──┐ ◄──────────────────────────────┐
 *    ▲           │ └───┴──────── done, refused ─────────┘     refused: nothing has changed
 *    │           ├──────────────► failed                      failed: half of something is in it
 *    └───────────┴── abort ◄────────┘
 *    └── commit ─┘
 *
 * A put says how many pages it may need and is refused before it changes anything if they are not
 * there. A sixteenth of the map is kept back for removals, since taking rows out needs pages,
 * too. */
#include <errno.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/assert.h"
#include "tiers/catalog_lmdb.h"

#define KEPT_BACK 16u /* of the map's pages, one in so many is for removals */
/* Beside its key and value a row takes a node's head and an index. */
#define NODE_BYTES  10u
#define META_BYTES  512u /* of a meta page: its record, and no more than a sector */
#define PAGE_HEAD   16u
#define TREES_PAGES 48u /* copies of the paths from the roots of all trees, and their splits */
#define TREE_PAGES  5u  /* of one more */
#define UNIT_BYTES  (12u + 24u + NODE_BYTES)
#define SLAB_BYTES  (4u + 12u + NODE_BYTES)

static int put(struct kvr_catalog *catalog, enum kvr_catalog_table table,
	const struct kvr_catalog_key *key, const void *value, size_t bytes, unsigned int flags)
{
	MDB_val key_val = kvr_catalog_val(key);
	MDB_val value_val = {bytes, (void *)(uintptr_t)value};

	return kvr_catalog_error(
		mdb_put(catalog->write, catalog->tables[table], &key_val, &value_val, flags));
}

int kvr_catalog_write_row(struct kvr_catalog *catalog, enum kvr_catalog_table table,
	const struct kvr_catalog_key *key, const struct kvr_catalog_value *value)
{
	return put(catalog, table, key, value->data, value->bytes, 0);
}

int kvr_catalog_write_del(struct kvr_catalog *catalog, enum kvr_catalog_table table,
	const struct kvr_catalog_key *key)
{
	MDB_val key_val = kvr_catalog_val(key);
	int error =
		kvr_catalog_error(mdb_del(catalog->write, catalog->tables[table], &key_val, NULL));

	/* Whoever deletes has seen a row that says that this one is there. */
	return error == -ENOENT ? -EBADMSG : error;
}

/* Notes that a change was begun and not finished. */
int kvr_catalog_write_done(struct kvr_catalog *catalog, int error)
{
	KVR_ASSERT(error <= 0);
	if (error < 0)
		catalog->failed = true;
	return error;
}

void kvr_catalog_write_check(const struct kvr_catalog *catalog)
{
	KVR_ASSERT(catalog->write);
	KVR_ASSERT(!catalog->failed);
	KVR_ASSERT(pthread_equal(catalog->writer, pthread_self()));
}

/* ---- the transaction --------------------------------------------------------------------------- */

static int begin(struct kvr_catalog *catalog)
{
	int error = kvr_catalog_error(mdb_txn_begin(catalog->env, NULL, 0, &catalog->write));

	if (error < 0) {
		catalog->write = NULL;
		return error;
	}
	catalog->writer = pthread_self();
	catalog->failed = false;
	catalog->freed = false;
	return 0;
}

/* Pages that a transaction frees serve the second one after it. Where those beyond the end are few,
 * an empty transaction goes between, so that a put right behind a removal finds what it freed. */
static int free_up(struct kvr_catalog *catalog)
{
	const uint64_t map_pages = catalog->map_bytes / catalog->page_bytes;
	MDB_envinfo info;
	int error;

	if (!catalog->freed_before)
		return 0;
	mdb_env_info(catalog->env, &info);
	if (info.me_last_pgno < map_pages - map_pages / 4)
		return 0;
	error = begin(catalog);
	return error < 0 ? error : kvr_catalog_commit(catalog);
}

int kvr_catalog_begin(struct kvr_catalog *catalog)
{
	int error;

	KVR_ASSERT(!catalog->write);
	if (catalog->pid != getpid())
		return -EBUSY;
	error = free_up(catalog);
	return error < 0 ? error : begin(catalog);
}

/* The row by which an open knows that LMDB shows it the newest commit. */
static int put_commit(struct kvr_catalog *catalog)
{
	const struct kvr_catalog_key key = kvr_catalog_key_text("commit");
	struct kvr_catalog_commit commit = {.transaction = mdb_txn_id(catalog->write)};
	struct kvr_catalog_value value;
	int error = kvr_catalog_rows(
		catalog, catalog->write, KVR_CATALOG_CLUSTER, &commit.cluster_count);

	if (error == 0)
		error = kvr_catalog_rows(
			catalog, catalog->write, KVR_CATALOG_MERGED, &commit.merged_count);

	if (error < 0)
		return error;
	value = kvr_catalog_pack_commit(&key, &commit);
	return kvr_catalog_write_row(catalog, KVR_CATALOG_META, &key, &value);
}

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* The records in LMDB's two meta pages, which say what is newest; read (`write` false) or put back. */
static int move_metas(struct kvr_catalog *catalog, uint8_t metas[2][META_BYTES], bool write)
{
	int fd;
	int error = kvr_catalog_error(mdb_env_get_fd(catalog->env, &fd));

	for (uint32_t i = 0; error == 0 && i < 2; i++) {
		const off_t at = (off_t)i * catalog->page_bytes;
		const ssize_t bytes = write ? pwrite(fd, metas[i], META_BYTES, at)
					    : pread(fd, metas[i], META_BYTES, at);

		if (bytes != (ssize_t)META_BYTES)
			error = bytes < 0 ? -errno : -EIO;
	}
	if (error == 0 && write && fdatasync(fd) < 0)
		error = -errno;
	return error;
}

int kvr_catalog_commit(struct kvr_catalog *catalog)
{
	const uint64_t started = now_ns();
	uint8_t metas[2][META_BYTES];
	struct kvr_catalog_stat rows = {0};
	int error;

	kvr_catalog_write_check(catalog);
	error = put_commit(catalog);
	if (error == 0)
		error = kvr_catalog_count_rows(catalog, catalog->write, &rows);
	if (error == 0)
		error = move_metas(catalog, metas, false);
	if (error < 0) {
		kvr_catalog_abort(catalog);
		return error;
	}
	error = kvr_catalog_error(
		mdb_txn_commit(catalog->write)); /* C1; frees it, also on failure */
	catalog->write = NULL;
	if (error < 0) {
		/* A write of a meta page that fails leaves the new page, or what LMDB puts over it: the new roots under an old
		 * number. Neither is to be found by the next open. LMDB itself refuses everything until then. */
		(void)move_metas(catalog, metas, true);
		return error;
	}
	catalog->freed_before = catalog->freed;
	kvr_catalog_count(catalog, &rows, now_ns() - started);
	return 0;
}

void kvr_catalog_abort(struct kvr_catalog *catalog)
{
	KVR_ASSERT(catalog->write);
	KVR_ASSERT(pthread_equal(catalog->writer, pthread_self()));
	mdb_txn_abort(catalog->write);
	catalog->write = NULL;
	catalog->failed = false;
}

/* ---- put --------------------------------------------------------------------------------------- */

/* The units of a segment that go to one table. */
struct part {
	enum kvr_catalog_table table;
	const struct kvr_catalog_unit *units; /* the first lane's first */
	uint32_t lanes, stride;               /* units from one lane to the next */
	uint32_t count;                       /* per lane */
	uint32_t numbers; /* bits: the unit i has the number of the bit i + 1 from below; 0: i */
};

/* Units of a lane that have rows. */
static uint32_t lane_count(const struct part *part, uint32_t lane)
{
	const struct kvr_catalog_unit *units = part->units + (size_t)lane * part->stride;
	uint32_t count = 0;

	for (uint32_t i = 0; i < part->count; i++)
		count += units[i].rows > 0;
	return count;
}

static uint32_t all_count(const struct part *part)
{
	uint32_t count = 0;

	for (uint32_t lane = 0; lane < part->lanes; lane++)
		count += lane_count(part, lane);
	return count;
}

static uint32_t number_of(const struct part *part, uint32_t unit)
{
	uint32_t numbers = part->numbers;

	if (numbers == 0)
		return unit;
	while (unit-- > 0)
		numbers &= numbers - 1;
	KVR_ASSERT(numbers != 0);
	return (uint32_t)__builtin_ctz(numbers);
}

/* Whether so many rows have room, with what is kept back still free. */
static int check_room(
	struct kvr_catalog *catalog, struct kvr_catalog_counts counts, uint32_t part_count)
{
	const uint64_t map_pages = catalog->map_bytes / catalog->page_bytes;
	const uint64_t room = catalog->page_bytes - PAGE_HEAD;
	uint64_t need = TREES_PAGES;
	uint64_t used;
	int error = kvr_catalog_pages_used(catalog, catalog->write, &used);

	if (error < 0)
		return error;
	/* Appended pages are full; those of other orders are split in halves. */
	need += (uint64_t)counts.cluster * UNIT_BYTES / room * 17 / 16;
	if (counts.merged > 0)
		need += TREE_PAGES + (uint64_t)counts.merged * UNIT_BYTES / room * 17 / 16;
	need += 2 * (uint64_t)part_count * SLAB_BYTES / room;
	need += KVR_CATALOG_SEGMENT_BYTES / room * part_count / KVR_SLAB_PARTS_MAX;
	return used + need + map_pages / KEPT_BACK > map_pages ? -ENOSPC : 0;
}

/* What a put stands on: 0, or a refusal. */
static int check_put(struct kvr_catalog *catalog, const struct kvr_slab_model *model,
	const struct kvr_catalog_segment *segment)
{
	struct kvr_catalog_key key = kvr_catalog_key_hash(segment->hash);
	struct kvr_span value;
	int error = kvr_catalog_get(catalog, catalog->write, KVR_CATALOG_SEGMENT, &key, &value);

	if (error != -ENOENT)
		return error < 0 ? error : -EEXIST;
	key = kvr_catalog_key_state(segment->id);
	error = kvr_catalog_get(catalog, catalog->write, KVR_CATALOG_STATE, &key, &value);
	if (error != -ENOENT)
		return error < 0 ? error : -EEXIST;
	if (memcmp(segment->parent, model->root, KVR_HASH_BYTES) == 0)
		return 0;
	key = kvr_catalog_key_hash(segment->parent);
	return kvr_catalog_get(catalog, catalog->write, KVR_CATALOG_SEGMENT, &key, &value);
}

static int put_units(struct kvr_catalog *catalog, uint64_t id, const struct part *part)
{
	const struct kvr_catalog_key first = kvr_catalog_key_unit(id, 0, 0);
	struct kvr_catalog_unit_row row = {.id = id};
	MDB_cursor *cursor;
	MDB_val key_val;
	MDB_val value_val;
	unsigned int flags = 0;
	int code = mdb_cursor_open(catalog->write, catalog->tables[part->table], &cursor);

	if (code != 0)
		return kvr_catalog_error(code);
	/* Nothing behind it: it is the highest so far. */
	key_val = kvr_catalog_val(&first);
	code = mdb_cursor_get(cursor, &key_val, &value_val, MDB_SET_RANGE);
	if (code == MDB_NOTFOUND) {
		flags = MDB_APPEND;
		code = 0;
	}
	for (row.lane = 0; code == 0 && row.lane < part->lanes; row.lane++) {
		const struct kvr_catalog_unit *lane = part->units + (size_t)row.lane * part->stride;

		row.lane_count = lane_count(part, row.lane);
		for (uint32_t unit = 0; code == 0 && unit < part->count; unit++) {
			struct kvr_catalog_key key;
			struct kvr_catalog_value value;

			if (lane[unit].rows == 0)
				continue;
			row.number = number_of(part, unit);
			row.at = lane[unit];
			key = kvr_catalog_key_unit(id, row.lane, row.number);
			value = kvr_catalog_pack_unit(part->table, &key, &row);
			key_val = kvr_catalog_val(&key);
			value_val = (MDB_val){value.bytes, value.data};
			code = mdb_cursor_put(cursor, &key_val, &value_val, flags);
		}
	}
	mdb_cursor_close(cursor);
	return kvr_catalog_error(code);
}

/* A slab that is free, or freed and not yet wiped, becomes the segment's. */
int kvr_catalog_write_slab(struct kvr_catalog *catalog, uint32_t slab, uint64_t id)
{
	const struct kvr_catalog_key key = kvr_catalog_key_slab(slab);
	const struct kvr_catalog_value value = kvr_catalog_pack_slab(&key, id);
	struct kvr_span old;
	uint32_t old_slab;
	uint64_t owner;
	int error = kvr_catalog_get(catalog, catalog->write, KVR_CATALOG_SLAB, &key, &old);

	if (error == 0) {
		struct kvr_catalog_key copy = key;

		error = kvr_catalog_unpack_slab(
			(struct kvr_span){copy.data, copy.bytes}, old, &old_slab, &owner);
		if (error < 0)
			return error;
		if (owner != 0 && id != 0 && owner != id)
			return -EBADMSG;
	}
	if (error < 0 && error != -ENOENT)
		return error;
	return kvr_catalog_write_row(catalog, KVR_CATALOG_SLAB, &key, &value);
}

int kvr_catalog_write_state(struct kvr_catalog *catalog, const struct kvr_catalog_state *state)
{
	const struct kvr_catalog_key key = kvr_catalog_key_state(state->id);
	const struct kvr_catalog_key use = kvr_catalog_key_use(state->used, state->id);
	const struct kvr_catalog_value value = kvr_catalog_pack_state(&key, state);
	const struct kvr_catalog_value nothing = kvr_catalog_pack_use(&use);
	int error = kvr_catalog_write_row(catalog, KVR_CATALOG_STATE, &key, &value);

	return error < 0 ? error : kvr_catalog_write_row(catalog, KVR_CATALOG_USE, &use, &nothing);
}

static int put_model(struct kvr_catalog *catalog, const struct kvr_slab_model *model)
{
	const struct kvr_catalog_key key = kvr_catalog_key_hash(model->root);
	int error;

	kvr_catalog_pack_model(model, catalog->row);
	error = put(catalog, KVR_CATALOG_MODEL, &key, catalog->row, KVR_CATALOG_MODEL_BYTES,
		MDB_NOOVERWRITE);
	return error == -EEXIST ? 0 : error;
}

/* Slabs of a tenant, more or fewer. */
int kvr_catalog_write_tenant(struct kvr_catalog *catalog, const char *tenant, int64_t change)
{
	struct kvr_catalog_key key = kvr_catalog_key_text(tenant);
	struct kvr_catalog_value value;
	struct kvr_span stored;
	char name[KVR_NAME_MAX];
	uint64_t count = 0;
	int error = kvr_catalog_get(catalog, catalog->write, KVR_CATALOG_TENANT, &key, &stored);

	if (error == 0)
		error = kvr_catalog_unpack_tenant(
			(struct kvr_span){key.data, key.bytes}, stored, name, &count);
	if (error < 0 && error != -ENOENT)
		return error;
	if (change < 0 && count < (uint64_t)-change)
		return -EBADMSG;
	count += (uint64_t)change;
	if (count == 0)
		return kvr_catalog_write_del(catalog, KVR_CATALOG_TENANT, &key);
	value = kvr_catalog_pack_tenant(&key, count);
	return kvr_catalog_write_row(catalog, KVR_CATALOG_TENANT, &key, &value);
}

/* All but model, slabs and units. */
static int put_segment(struct kvr_catalog *catalog, const struct kvr_catalog_segment *segment,
	struct kvr_catalog_counts counts, uint64_t used)
{
	const struct kvr_catalog_key key = kvr_catalog_key_hash(segment->hash);
	const struct kvr_catalog_key child =
		kvr_catalog_key_child(segment->parent, segment->token_count, segment->id);
	const struct kvr_catalog_value value = kvr_catalog_pack_child(&child, segment->hash);
	struct kvr_catalog_state state = {.id = segment->id, .used = used};
	const uint32_t bytes = kvr_catalog_pack_segment(segment, counts, catalog->row);
	int error = put(catalog, KVR_CATALOG_SEGMENT, &key, catalog->row, bytes, 0);

	if (error == 0)
		error = kvr_catalog_write_row(catalog, KVR_CATALOG_CHILD, &child, &value);
	if (error < 0)
		return error;
	memcpy(state.hash, segment->hash, KVR_HASH_BYTES);
	return kvr_catalog_write_state(catalog, &state);
}

int kvr_catalog_put(struct kvr_catalog *catalog, const struct kvr_slab_model *model,
	const struct kvr_catalog_segment *segment, const struct kvr_catalog_unit *units,
	uint32_t cluster_max, uint64_t used)
{
	const uint32_t lanes = kvr_geometry_lanes(&model->geometry);
	const uint32_t sets = (uint32_t)__builtin_popcount(model->geometry.merged);
	const uint32_t stride = cluster_max + 1 + sets;
	const struct part clusters = {
		KVR_CATALOG_CLUSTER, units, lanes, stride, cluster_max + 1, 0};
	const struct part merged = {KVR_CATALOG_MERGED, units + cluster_max + 1, lanes, stride,
		sets, model->geometry.merged};
	const struct kvr_catalog_counts counts = {all_count(&clusters), all_count(&merged)};
	int error;

	kvr_catalog_write_check(catalog);
	KVR_ASSERT(model->tenant[0] != '\0');
	KVR_ASSERT(segment->id >= 1);
	KVR_ASSERT(segment->token_count >= 1);
	KVR_ASSERT(segment->token_count <= KVR_SEGMENT_TOKENS_MAX);
	KVR_ASSERT(cluster_max <= KVR_CLUSTERS_MAX);
	KVR_ASSERT(memcmp(segment->root, model->root, KVR_HASH_BYTES) == 0);
	for (uint32_t lane = 0; lane < lanes; lane++)
		KVR_ASSERT(lane_count(&clusters, lane) >= 1);
	error = check_put(catalog, model, segment);
	if (error == 0)
		error = check_room(catalog, counts, segment->part_count);
	if (error == 0)
		error = kvr_catalog_look(catalog, KVR_CATALOG_CLUSTER, segment->id);
	if (error == 0 && counts.merged > 0)
		error = kvr_catalog_look(catalog, KVR_CATALOG_MERGED, segment->id);
	if (error < 0)
		return error;
	error = put_model(catalog, model);
	if (error == 0)
		error = kvr_catalog_write_tenant(catalog, model->tenant, segment->part_count);
	if (error == 0)
		error = put_units(catalog, segment->id, &clusters);
	if (error == 0 && counts.merged > 0)
		error = put_units(catalog, segment->id, &merged);
	for (uint32_t i = 0; error == 0 && i < segment->part_count; i++)
		error = kvr_catalog_write_slab(catalog, segment->parts[i], segment->id);
	if (error == 0)
		error = put_segment(catalog, segment, counts, used);
	return kvr_catalog_write_done(catalog, error);
}

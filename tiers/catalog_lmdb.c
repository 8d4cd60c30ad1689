/* SPDX-License-Identifier: Apache-2.0 */
/* catalog_lmdb.c: the catalog's environment: opened, looked at, and closed.
 *
 * The map is as large as the cap from the start. It costs addresses, not memory and not disk, since
 * without WRITEMAP the file grows only as pages are written. So the map never has to grow while it
 * is in use, which LMDB would allow only with no transaction open in any thread. A higher cap is in
 * force with the next open. */
#include "tiers/catalog_lmdb.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/assert.h"

/* Taken from the cap: lock.mdb, owner, and what a file system counts for finding the blocks of a
 * scattered file. */
#define CAP_OVERHEAD(cap) (((uint64_t)128 << 10) + (cap) / 256)
#define READERS_MAX       64u

int kvr_catalog_error(int code)
{
	switch (code) {
	case MDB_SUCCESS: return 0;
	case MDB_NOTFOUND: return -ENOENT;
	case MDB_KEYEXIST: return -EEXIST;
	case MDB_MAP_FULL:
	case MDB_TXN_FULL:
	case ENOSPC:
	case EDQUOT: return -ENOSPC;
	case MDB_VERSION_MISMATCH: return -EPROTONOSUPPORT;
	case MDB_READERS_FULL: return -EMFILE;
	case MDB_CORRUPTED:
	case MDB_PAGE_NOTFOUND:
	case MDB_INVALID:
	case MDB_CURSOR_FULL:
	case MDB_PAGE_FULL:
	case MDB_BAD_VALSIZE:
	case MDB_INCOMPATIBLE: return -EBADMSG;
	default:
		return code > 0 ? -code
				: -EIO; /* also MDB_PANIC: a write of LMDB's own page failed */
	}
}

/* ---- rows -------------------------------------------------------------------------------------- */

int kvr_catalog_get(const struct kvr_catalog *catalog, MDB_txn *txn, enum kvr_catalog_table table,
	const struct kvr_catalog_key *key, struct kvr_span *ret_value)
{
	MDB_val key_val = kvr_catalog_val(key);
	MDB_val value_val;
	int code = mdb_get(txn, catalog->tables[table], &key_val, &value_val);

	if (code == 0)
		*ret_value = kvr_catalog_span(value_val);
	return kvr_catalog_error(code);
}

int kvr_catalog_seek(const struct kvr_catalog *catalog, MDB_txn *txn, enum kvr_catalog_table table,
	const struct kvr_catalog_key *key, struct kvr_span *ret_key, struct kvr_span *ret_value)
{
	MDB_val key_val = kvr_catalog_val(key);
	MDB_val value_val;
	MDB_cursor *cursor;
	int code = mdb_cursor_open(txn, catalog->tables[table], &cursor);

	if (code != 0)
		return kvr_catalog_error(code);
	code = mdb_cursor_get(cursor, &key_val, &value_val, MDB_SET_RANGE);
	mdb_cursor_close(cursor);
	if (code == 0) {
		*ret_key = kvr_catalog_span(key_val);
		*ret_value = kvr_catalog_span(value_val);
	}
	return kvr_catalog_error(code);
}

int kvr_catalog_rows(const struct kvr_catalog *catalog, MDB_txn *txn, enum kvr_catalog_table table,
	uint64_t *ret_count)
{
	MDB_stat stat;
	int code = mdb_stat(txn, catalog->tables[table], &stat);

	if (code == 0)
		*ret_count = stat.ms_entries;
	return kvr_catalog_error(code);
}

int kvr_catalog_pages_used(const struct kvr_catalog *catalog, MDB_txn *txn, uint64_t *ret_pages)
{
	const MDB_dbi own[2] = {0, 1}; /* LMDB's trees: free pages, and the tables */
	uint64_t pages = 2;            /* meta pages */

	for (uint32_t i = 0; i < 2 + KVR_CATALOG_TABLES; i++) {
		MDB_stat stat;
		int code = mdb_stat(txn, i < 2 ? own[i] : catalog->tables[i - 2], &stat);

		if (code != 0)
			return kvr_catalog_error(code);
		pages += stat.ms_branch_pages + stat.ms_leaf_pages + stat.ms_overflow_pages;
	}
	*ret_pages = pages;
	return 0;
}

/* Neighbours of ids spread over the places; they come in runs. */
static uint32_t seen_at(uint64_t id)
{
	return (uint32_t)(id ^ id >> 32) % KVR_CATALOG_SEEN;
}

int kvr_catalog_look(struct kvr_catalog *catalog, enum kvr_catalog_table table, uint64_t id)
{
	uint64_t *seen = &catalog->seen[table == KVR_CATALOG_MERGED][seen_at(id)];
	struct kvr_catalog_key first = kvr_catalog_key_unit(id, 0, 0);
	struct kvr_catalog_key last = kvr_catalog_key_unit(id, KVR_LANES_MAX - 1, KVR_CLUSTERS_MAX);
	int fd;
	int error;

	KVR_ASSERT(table == KVR_CATALOG_CLUSTER || table == KVR_CATALOG_MERGED);
	if (__atomic_load_n(seen, __ATOMIC_RELAXED) == id)
		return 0;
	error = kvr_catalog_error(mdb_env_get_fd(catalog->env, &fd));
	if (error == 0)
		error = kvr_catalog_tree_range(fd, kvr_catalog_names[table],
			(struct kvr_span){first.data, first.bytes},
			(struct kvr_span){last.data, last.bytes});
	if (error == 0)
		__atomic_store_n(seen, id, __ATOMIC_RELAXED);
	return error;
}

/* ---- figures ----------------------------------------------------------------------------------- */

int kvr_catalog_count_rows(struct kvr_catalog *catalog, MDB_txn *txn, struct kvr_catalog_stat *stat)
{
	uint64_t pages = 0;
	int error = kvr_catalog_rows(catalog, txn, KVR_CATALOG_SEGMENT, &stat->segment_count);

	if (error == 0)
		error = kvr_catalog_rows(catalog, txn, KVR_CATALOG_CLUSTER, &stat->cluster_count);
	if (error == 0)
		error = kvr_catalog_rows(catalog, txn, KVR_CATALOG_MERGED, &stat->merged_count);
	if (error == 0)
		error = kvr_catalog_rows(catalog, txn, KVR_CATALOG_MODEL, &stat->model_count);
	if (error == 0)
		error = kvr_catalog_rows(catalog, txn, KVR_CATALOG_SLAB, &stat->slab_count);
	if (error == 0)
		error = kvr_catalog_pages_used(catalog, txn, &pages);
	if (error == 0)
		stat->used_bytes = pages * catalog->page_bytes;
	return error;
}

void kvr_catalog_count(
	struct kvr_catalog *catalog, const struct kvr_catalog_stat *rows, uint64_t commit_ns)
{
	pthread_mutex_lock(&catalog->lock);
	catalog->stat.segment_count = rows->segment_count;
	catalog->stat.cluster_count = rows->cluster_count;
	catalog->stat.merged_count = rows->merged_count;
	catalog->stat.model_count = rows->model_count;
	catalog->stat.slab_count = rows->slab_count;
	catalog->stat.used_bytes = rows->used_bytes;
	catalog->stat.commit_count++;
	catalog->stat.commit_ns += commit_ns;
	pthread_mutex_unlock(&catalog->lock);
}

void kvr_catalog_stat(struct kvr_catalog *catalog, struct kvr_catalog_stat *ret_stat)
{
	pthread_mutex_lock(&catalog->lock);
	*ret_stat = catalog->stat;
	pthread_mutex_unlock(&catalog->lock);
}

/* ---- open: the environment --------------------------------------------------------------------- */

static int open_environment(struct kvr_catalog *catalog, const char *dir)
{
	MDB_stat stat;
	int stale = 0;
	int code = mdb_env_create(&catalog->env);

	if (code == 0)
		code = mdb_env_set_maxdbs(catalog->env, KVR_CATALOG_TABLES);
	if (code == 0)
		code = mdb_env_set_maxreaders(catalog->env, READERS_MAX);
	if (code == 0)
		code = mdb_env_set_mapsize(catalog->env, catalog->map_bytes);
	/* C1: neither NOSYNC nor NOMETASYNC nor WRITEMAP. */
	if (code == 0)
		code = mdb_env_open(catalog->env, dir, MDB_NOTLS, 0600);
	if (code == 0)
		code = mdb_reader_check(catalog->env, &stale);
	if (code == 0)
		code = mdb_env_stat(catalog->env, &stat);
	if (code != 0)
		return kvr_catalog_error(code);
	catalog->page_bytes = stat.ms_psize;
	catalog->stat.reader_stale_count = (uint32_t)stale;
	return 0;
}

/* The numbers of trees that only a look at all their leaf pages could confirm. */
static int check_counts(struct kvr_catalog *catalog)
{
	struct kvr_catalog_key key = kvr_catalog_key_text("commit");
	struct kvr_catalog_commit commit = {0};
	struct kvr_span value = {NULL, 0};
	uint64_t clusters = 0;
	uint64_t merged = 0;
	int error = kvr_catalog_get(catalog, catalog->write, KVR_CATALOG_META, &key, &value);

	if (error == 0)
		error = kvr_catalog_unpack_commit(
			(struct kvr_span){key.data, key.bytes}, value, &commit);
	if (error == 0)
		error = kvr_catalog_rows(catalog, catalog->write, KVR_CATALOG_CLUSTER, &clusters);
	if (error == 0)
		error = kvr_catalog_rows(catalog, catalog->write, KVR_CATALOG_MERGED, &merged);
	if (error < 0)
		return error == -ENOENT ? -EBADMSG : error;
	return commit.cluster_count == clusters && commit.merged_count == merged ? 0 : -EBADMSG;
}

/* Opens the tables in the write transaction and finds out what store this is. */
static int open_tables(struct kvr_catalog *catalog, const struct kvr_catalog_tree_report *report,
	struct kvr_catalog_meta *meta)
{
	const bool is_new = report->transaction == 0;
	struct kvr_catalog_key key = kvr_catalog_key_text("store");
	struct kvr_catalog_value value;
	struct kvr_span stored = {NULL, 0};
	int error = 0;

	/* The version comes first: a newer one may have other tables. */
	for (uint32_t i = 0; error == 0 && i < KVR_CATALOG_TABLES; i++) {
		error = kvr_catalog_error(mdb_dbi_open(catalog->write, kvr_catalog_names[i],
			is_new ? MDB_CREATE : 0, &catalog->tables[i]));
		if (error == -ENOENT)
			error = -EBADMSG;
		if (error < 0 || is_new || i != KVR_CATALOG_META)
			continue;
		error = kvr_catalog_get(catalog, catalog->write, KVR_CATALOG_META, &key, &stored);
		if (error == -ENOENT)
			error = -EBADMSG;
		if (error == 0)
			error = kvr_catalog_unpack_meta(
				(struct kvr_span){key.data, key.bytes}, stored, meta);
	}
	if (error == 0 && !is_new)
		error = check_counts(catalog);
	if (error < 0)
		return error;
	if (is_new) {
		meta->version = KVR_CATALOG_VERSION;
		meta->boot = 0;
	}
	if (meta->boot == UINT64_MAX)
		return -EBADMSG;
	meta->boot++;
	value = kvr_catalog_pack_meta(&key, meta);
	{
		MDB_val key_val = kvr_catalog_val(&key);
		MDB_val value_val = {value.bytes, value.data};

		return kvr_catalog_error(mdb_put(catalog->write, catalog->tables[KVR_CATALOG_META],
			&key_val, &value_val, 0));
	}
}

int kvr_catalog_open(const struct kvr_catalog_config *config, struct kvr_catalog_meta *meta,
	struct kvr_catalog **ret_catalog)
{
	struct kvr_catalog_tree_report report;
	struct kvr_catalog_meta found = *meta;
	struct kvr_catalog *catalog;
	bool complete = false;
	int error = -ENOMEM;

	if (config->bytes < KVR_CATALOG_BYTES_MIN)
		return -EINVAL;
	found.version = 0;
	catalog = calloc(1, sizeof(*catalog));
	if (!catalog)
		return -ENOMEM;
	catalog->directory_fd = -1;
	catalog->owner_fd = -1;
	catalog->pid = getpid();
	catalog->cap_bytes = config->bytes;
	catalog->map_bytes = (config->bytes - CAP_OVERHEAD(config->bytes)) & ~(uint64_t)(32768 - 1);
	catalog->stat.cap_bytes = catalog->cap_bytes;
	catalog->stat.map_bytes = catalog->map_bytes;
	catalog->row = malloc(KVR_CATALOG_SEGMENT_BYTES);
	if (!catalog->row || pthread_mutex_init(&catalog->lock, NULL) != 0)
		goto fail;
	catalog->lock_made = true;
	error = kvr_catalog_files_open(catalog, config->dir);
	if (error == 0)
		error = kvr_catalog_files_lock(catalog, &complete);
	if (error == 0)
		error = kvr_catalog_files_look(catalog, complete, &report, &found.version);
	if (error == 0)
		error = open_environment(catalog, config->dir);
	if (error == 0)
		error = kvr_catalog_begin(catalog);
	if (error == 0)
		error = open_tables(catalog, &report, &found);
	if (error == 0)
		error = kvr_catalog_commit(catalog);
	if (error == 0 && !complete)
		error = kvr_catalog_files_keep(catalog);
	if (error < 0)
		goto fail;
	catalog->meta = found;
	*meta = found;
	*ret_catalog = catalog;
	return 0;
fail:
	if (error == -EPROTONOSUPPORT)
		meta->version = found.version;
	kvr_catalog_close(catalog);
	return error;
}

struct kvr_catalog *kvr_catalog_close(struct kvr_catalog *catalog)
{
	if (!catalog)
		return NULL;
	/* In a fork, LMDB's close would give up what is its parent's. */
	if (catalog->pid == getpid()) {
		if (catalog->write)
			kvr_catalog_abort(catalog);
		if (catalog->env)
			mdb_env_close(catalog->env);
	}
	if (catalog->owner_fd >= 0)
		close(catalog->owner_fd);
	if (catalog->directory_fd >= 0)
		close(catalog->directory_fd);
	if (catalog->lock_made)
		pthread_mutex_destroy(&catalog->lock);
	free(catalog->row);
	free(catalog);
	return NULL;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* catalog_lmdb.h: what the catalog's files share: the environment, its tables, and LMDB's errors as
 * ours.
 *
 * No other file of the project knows LMDB.
 *
 *   catalog_files.c   the directory
 *   catalog_lmdb.c    the environment: open, close, rows, figures
 *   catalog_write.c   the one write transaction, and puts; catalog_change.c: what else it does
 *   catalog_read.c    readers
 *   catalog_verify.c  whole tables: compare, verify */
#ifndef KVR_TIERS_CATALOG_LMDB_H
#define KVR_TIERS_CATALOG_LMDB_H

#include <lmdb.h>
#include <pthread.h>
#include <sys/types.h>

#include "tiers/catalog_tree.h"
#include "tiers/catalog_record.h"

/* Segments whose rows of clusters, or of merged sets, have been looked at; a hash of the id finds the place. */
#define KVR_CATALOG_SEEN 8192u

struct kvr_catalog {
	/* Set at open, then only read. */
	MDB_env *env;
	MDB_dbi tables[KVR_CATALOG_TABLES];
	int directory_fd, owner_fd;
	pid_t pid; /* the process that opened it; a fork of it may not use it */
	uint64_t cap_bytes, map_bytes;
	uint32_t page_bytes;
	struct kvr_catalog_meta meta;
	/* The writer's thread's. */
	MDB_txn *write;
	pthread_t writer;
	bool failed;       /* the transaction can only be aborted */
	bool freed;        /* it has removed a segment */
	bool freed_before; /* the one before has: its pages cannot be used again yet */
	uint8_t *row;      /* room for the largest value */
	/* Any reader's. Ids, or 0; read and written atomically; a lost update costs a
	 * second look. */
	uint64_t seen[2][KVR_CATALOG_SEEN];
	/* Any thread's, under the lock. */
	pthread_mutex_t lock;
	bool lock_made;
	struct kvr_catalog_stat stat;
};

struct kvr_catalog_reader {
	struct kvr_catalog *catalog;
	MDB_txn *txn; /* reset between uses, so that it keeps no page (C5) */
	bool begun;
};

extern const char *const kvr_catalog_names[KVR_CATALOG_TABLES];

/* Those whose leaf pages an open leaves out; behind them NULL. */
extern const char *const kvr_catalog_lazy[];

/* ---- the directory: catalog_files.c ------------------------------------------------------------ */

int kvr_catalog_files_open(struct kvr_catalog *catalog, const char *dir);

/* Holds the directory for this process. ret_complete: data.mdb has been there. -EBUSY. */
int kvr_catalog_files_lock(struct kvr_catalog *catalog, bool *ret_complete);

/* What is there already: nothing, or a file that LMDB can follow, that shows the newest commit and
 * keeps to the cap. With -EPROTONOSUPPORT the version is set, if there is one. */
int kvr_catalog_files_look(struct kvr_catalog *catalog, bool complete,
	struct kvr_catalog_tree_report *ret_report, uint32_t *ret_version);

/* After the first commit: names of files and directory survive a crash, and data.mdb is missed if
 * it goes. */
int kvr_catalog_files_keep(struct kvr_catalog *catalog);

/* ---- rows: catalog_lmdb.c ---------------------------------------------------------------------- */

/* LMDB's code as -errno. 0 stays 0. */
int kvr_catalog_error(int code);

static inline MDB_val kvr_catalog_val(const struct kvr_catalog_key *key)
{
	return (MDB_val){key->bytes, (void *)(uintptr_t)key->data};
}

static inline struct kvr_span kvr_catalog_span(MDB_val val)
{
	return (struct kvr_span){(uint8_t *)val.mv_data, val.mv_size};
}

/* The value under a key; it lies in the map as long as the transaction does. -ENOENT. */
int kvr_catalog_get(const struct kvr_catalog *catalog, MDB_txn *txn, enum kvr_catalog_table table,
	const struct kvr_catalog_key *key, struct kvr_span *ret_value);

/* The first row at or behind a key. -ENOENT. */
int kvr_catalog_seek(const struct kvr_catalog *catalog, MDB_txn *txn, enum kvr_catalog_table table,
	const struct kvr_catalog_key *key, struct kvr_span *ret_key, struct kvr_span *ret_value);

/* Rows of a table in a transaction. */
int kvr_catalog_rows(const struct kvr_catalog *catalog, MDB_txn *txn, enum kvr_catalog_table table,
	uint64_t *ret_count);

/* Pages that are in use in a transaction, LMDB's own included. */
int kvr_catalog_pages_used(const struct kvr_catalog *catalog, MDB_txn *txn, uint64_t *ret_pages);

/* Before LMDB follows the pages of a segment's rows in table cluster or merged for the first time: whether
 * it can (catalog_tree.h). The caller has a transaction open, so that they stay. Any thread. */
int kvr_catalog_look(struct kvr_catalog *catalog, enum kvr_catalog_table table, uint64_t id);

/* ---- inside the write transaction: catalog_write.c --------------------------------------------- */

/* Asserts that there is one, of this thread, and not failed. */
void kvr_catalog_write_check(const struct kvr_catalog *catalog);

/* Notes that a change that was begun failed. Returns `error`. */
int kvr_catalog_write_done(struct kvr_catalog *catalog, int error);

int kvr_catalog_write_row(struct kvr_catalog *catalog, enum kvr_catalog_table table,
	const struct kvr_catalog_key *key, const struct kvr_catalog_value *value);

/* A row that another one says is there: -EBADMSG if it is not. */
int kvr_catalog_write_del(struct kvr_catalog *catalog, enum kvr_catalog_table table,
	const struct kvr_catalog_key *key);

/* A slab that is free, or freed and not yet wiped, becomes the segment's; or freed (id 0).
 * -EBADMSG: it is another's. */
int kvr_catalog_write_slab(struct kvr_catalog *catalog, uint32_t slab, uint64_t id);

/* Slabs of a tenant, more or fewer. */
int kvr_catalog_write_tenant(struct kvr_catalog *catalog, const char *tenant, int64_t change);

/* Rows of `state` and `use`. */
int kvr_catalog_write_state(struct kvr_catalog *catalog, const struct kvr_catalog_state *state);

/* ---- figures ----------------------------------------------------------------------------------- */

/* The figures that a transaction shows: counts of rows, pages in use. */
int kvr_catalog_count_rows(
	struct kvr_catalog *catalog, MDB_txn *txn, struct kvr_catalog_stat *ret_rows);

/* Takes them over after a commit that took so long. The writer's thread. */
void kvr_catalog_count(
	struct kvr_catalog *catalog, const struct kvr_catalog_stat *rows, uint64_t commit_ns);

#endif

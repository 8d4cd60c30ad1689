/* SPDX-License-Identifier: Apache-2.0 */
/* catalog.h: the durable index of what is in slabs.kvr, on LMDB.
 *
 * It stores rows and finds them. It does not read slabs, choose victims or know threads other than
 * its users'.
 *
 *   table    key                                value
 *   meta     "store", "commit"                  version, uuid, slabs_bytes, boots; which commit it is
 *   tenant   name                               how many slabs its segments have
 *   model    root [32]                          struct kvr_slab_model
 *   segment  chain hash [32]                    id, parent [32], root [32], tokens, slabs u32[]
 *   child    parent [32], tokens u32, id u64    chain hash [32]
 *   cluster  id u64, lane u16, cluster u16      slab, offset, bytes, n, CRC-32C
 *   merged   id u64, lane u16, set u16          likewise
 *   slab     slab u32                           id u64; 0: freed, its header not yet wiped
 *   state    id u64                             last use, flags (pinned, quarantined), chain hash
 *   use      last use u64, id u64               (nothing): the order of eviction
 *
 * Keys are big-endian, so that LMDB's order is theirs; values little-endian, each with a CRC-32C of
 * its own over table, key and value (byte tables in catalog_record.c). All but `state` and `use`
 * follow from the slabs (kvrecall rebuild).
 *
 * Damage. LMDB 0.9 has no checksums and believes its pages. So each page is looked at before LMDB
 * touches it for the first time after an open (catalog_tree.h), and each row is checked when it is
 * read. Found that way: every flipped bit in pages that are in use, every truncation that takes one of them, a lost data.mdb,
 * a commit that LMDB would take for the newest and is not. -EBADMSG; the remedy is a rebuild from the slabs. Not found: a bit of a key
 * that flips so that keys still ascend is seen by scans, but whoever asks for the key that it was
 * gets -ENOENT, until kvr_catalog_verify. An older copy of the whole directory is a sound catalog:
 * the store must find that slabs are not what it says. Not survived: pages that change under a
 * running process in the page cache, and a disk that fails when LMDB's map needs a page that the
 * kernel has dropped: SIGBUS.
 *
 * Invariants:
 *   C1  A commit is synchronous: when it returns 0 its rows survive any crash; before that none
 *       is visible.
 *   C2  The rows of a segment are all there or none; a missing one is noticed.
 *   C3  The catalog's files never take more than their cap; -ENOSPC then, before anything is
 *       changed. A sixteenth of it is kept back for removals, so that a full catalog can always
 *       be emptied.
 *   C4  Every value read is checked for length and range before it is used: -EBADMSG.
 *   C5  A read transaction lives from kvr_catalog_read_begin to _end; none is forgotten, so the
 *       file does not grow. One that is held long keeps all pages that are freed meanwhile.
 *
 * Threads: one writer, by the thread that began; each reader is used by one thread at a time;
 * kvr_catalog_stat by any. All calls may block on the disk. A fork of the process gets -EBUSY, and
 * may only close. */
#ifndef KVR_TIERS_CATALOG_H
#define KVR_TIERS_CATALOG_H

#include <stdbool.h>
#include <stdint.h>

#include "base/limits.h"
#include "tiers/slab.h"

struct kvr_catalog;        /* the environment and its one writer */
struct kvr_catalog_reader; /* a read transaction, renewed per use */

#define KVR_CATALOG_VERSION     2u
#define KVR_CATALOG_BYTES_MIN   ((uint64_t)16 << 20)
#define KVR_CATALOG_PINNED      1u
#define KVR_CATALOG_QUARANTINED 2u

struct kvr_catalog_config {
	const char *dir; /* of the LMDB environment; created with mode 0700 */
	/* Cap of its files, from KVR_CATALOG_BYTES_MIN; may be another one at the next open. */
	uint64_t bytes;
};

/* What the store is. */
struct kvr_catalog_meta {
	uint32_t version, slab_version;
	uint8_t uuid[KVR_SLAB_UUID_BYTES];
	uint64_t slabs_bytes; /* of slabs.kvr */
	uint64_t boot;        /* counted up at every open; high bits of the ids of that time */
};

struct kvr_catalog_segment {
	uint64_t id;
	uint8_t hash[KVR_HASH_BYTES];
	uint8_t parent[KVR_HASH_BYTES]; /* or root */
	uint8_t root[KVR_HASH_BYTES];
	uint32_t token_first, token_count;
	uint32_t part_count;
	uint32_t *parts; /* slab numbers, in stream order; the caller's memory */
};

/* Where a unit of a lane lies: a cluster, the sinks, a merged set (kernels/segment.h). */
struct kvr_catalog_unit {
	uint32_t slab, offset; /* of its first byte */
	uint32_t bytes, rows;
	uint32_t crc;
};

struct kvr_catalog_state {
	uint64_t id;
	uint64_t used; /* the store's clock: a count, or seconds since 1970 */
	uint32_t flags;
	uint8_t hash[KVR_HASH_BYTES];
};

struct kvr_catalog_stat {
	uint64_t cap_bytes, map_bytes,
		used_bytes; /* map: what of the cap is for pages; used: pages in use */
	uint64_t segment_count, cluster_count, merged_count, model_count, slab_count;
	uint64_t commit_count, commit_ns;
	uint32_t reader_count, reader_stale_count; /* stale: of dead processes, cleared */
};

/* Opens or creates, durably, also the directory's name. `meta` in: what to write into a new one
 * (slab_version, uuid, slabs_bytes); out: what is there, `boot` counted up and committed. Cost: a
 * look at all pages but those of rows of clusters and merged sets. Errors: -EBUSY (in use by another process:
 * kvr_catalog_owner), -EPROTONOSUPPORT (another version: meta->version, or 0 where LMDB's own differs),
 * -EBADMSG (damaged, or data.mdb is lost),
 * -EFBIG (larger than the cap), -EINVAL (a cap below the least), -ENOSPC, and open(2)'s. */
int kvr_catalog_open(const struct kvr_catalog_config *config, struct kvr_catalog_meta *meta,
	struct kvr_catalog **ret_catalog);

/* All readers are closed; an open transaction is aborted. Takes NULL; returns NULL. */
struct kvr_catalog *kvr_catalog_close(struct kvr_catalog *catalog);

/* The process that has a catalog open, for the message that goes with -EBUSY; 0: nobody. */
int kvr_catalog_owner(const char *dir);

/* ---- writing: one transaction at a time ------------------------------------------------------ */

/* -EEXIST, -ENOENT, -ENOTEMPTY, -EBUSY change nothing, and so does -ENOSPC of put: the transaction
 * goes on. After any other error (-ENOSPC, -EBADMSG, -EIO) it can only be aborted. A failed commit
 * has aborted. */
int kvr_catalog_begin(struct kvr_catalog *catalog);
int kvr_catalog_commit(struct kvr_catalog *catalog); /* on failure nothing of it is there */
void kvr_catalog_abort(struct kvr_catalog *catalog);

/* A segment with all its rows: segment, child, slab, state, use and, from `units`, cluster and merged rows
 * of every lane in order ([lane][cluster_max + 1 + one for each merged set of the model]; those with 0 rows
 * have none, but each lane has a cluster with rows): appended where the id is the highest so far, which is five times as fast. The
 * model's row is put if it is not there. Its slabs are free, or freed and not yet wiped. -EEXIST: a
 * segment of this hash, or id. -ENOENT: its parent is not here. -ENOSPC: the cap is reached.
 * -EBADMSG: a slab is another's. */
int kvr_catalog_put(struct kvr_catalog *catalog, const struct kvr_slab_model *model,
	const struct kvr_catalog_segment *segment, const struct kvr_catalog_unit *units,
	uint32_t cluster_max, uint64_t used);

/* Removes a leaf with all its rows; its slabs become `freed`. With its last segment a model goes.
 * -ENOENT; -ENOTEMPTY: it has children. */
int kvr_catalog_remove(struct kvr_catalog *catalog, const uint8_t hash[KVR_HASH_BYTES]);

/* The header of a freed slab is wiped: its row goes. -ENOENT; -EBUSY: it is in use. */
int kvr_catalog_wiped(struct kvr_catalog *catalog, uint32_t slab);

/* Sets last use and flags of an id; the hash is not looked at. -ENOENT. */
int kvr_catalog_mark(struct kvr_catalog *catalog, const struct kvr_catalog_state *state);

/* ---- reading --------------------------------------------------------------------------------- */

/* -EMFILE: too many (64). */
int kvr_catalog_reader_open(struct kvr_catalog *catalog, struct kvr_catalog_reader **ret_reader);
struct kvr_catalog_reader *kvr_catalog_reader_close(struct kvr_catalog_reader *reader);

/* One consistent view from begin to end. Errors of all below: -ENOENT, -EBADMSG, -EIO. */
int kvr_catalog_read_begin(struct kvr_catalog_reader *reader);
void kvr_catalog_read_end(struct kvr_catalog_reader *reader);

/* `parts` must hold part_max numbers; -E2BIG if there are more. parts NULL: not wanted. */
int kvr_catalog_find(struct kvr_catalog_reader *reader, const uint8_t hash[KVR_HASH_BYTES],
	uint32_t *parts, uint32_t part_max, struct kvr_catalog_segment *ret_segment);

/* The next child of `parent` behind (tokens, id), in the order of tokens, then id; ids start at

 * 1. */
int kvr_catalog_child(struct kvr_catalog_reader *reader, const uint8_t parent[KVR_HASH_BYTES],
	uint32_t *tokens, uint64_t *id, uint8_t ret_hash[KVR_HASH_BYTES]);

/* The rows of one lane by one range scan: ret_clusters[cluster] for cluster 0 .. max - 1, rows 0
 * where there is none; undefined on error. -EBADMSG also where one is missing, or is numbered max
 * or more. The first call for an id after an open looks at all pages of its rows. */
int kvr_catalog_lane(struct kvr_catalog_reader *reader, uint64_t id, uint32_t lane,
	struct kvr_catalog_unit *ret_clusters, uint32_t max);

/* The same of its merged sets: ret_sets[set]. -ENOENT: it has none. */
int kvr_catalog_merged(struct kvr_catalog_reader *reader, uint64_t id, uint32_t lane,
	struct kvr_catalog_unit ret_sets[KVR_MERGED_SETS]);

int kvr_catalog_state(
	struct kvr_catalog_reader *reader, uint64_t id, struct kvr_catalog_state *ret_state);

/* Segments in the order of last use: the next one behind (used, id). */
int kvr_catalog_oldest(struct kvr_catalog_reader *reader, uint64_t *used, uint64_t *id,
	uint8_t ret_hash[KVR_HASH_BYTES]);

/* The model of a root. The next model behind `root` (in: zeros to start; out: its root). */
int kvr_catalog_model(struct kvr_catalog_reader *reader, const uint8_t root[KVR_HASH_BYTES],
	struct kvr_slab_model *ret_model);
int kvr_catalog_model_next(struct kvr_catalog_reader *reader, uint8_t root[KVR_HASH_BYTES],
	struct kvr_slab_model *ret_model);

/* Slabs of a tenant's segments, all its models together. -ENOENT: it has none. */
int kvr_catalog_tenant(
	struct kvr_catalog_reader *reader, const char *tenant, uint64_t *ret_slab_count);

/* The next row of table `slab` behind *slab (UINT32_MAX: from the start), ascending. */
int kvr_catalog_slab_next(struct kvr_catalog_reader *reader, uint32_t *slab, uint64_t *ret_id);

/* The next segment behind `hash` in the order of hashes (zeros: from the start; hash is
 * overwritten). */
int kvr_catalog_segment_next(struct kvr_catalog_reader *reader, uint8_t hash[KVR_HASH_BYTES],
	uint32_t *parts, uint32_t part_max, struct kvr_catalog_segment *ret_segment);

void kvr_catalog_stat(struct kvr_catalog *catalog, struct kvr_catalog_stat *ret_stat);

/* Compares the tables that follow from the slabs, row for row: tenant, model, segment, child,
 * cluster, merged, slab; and the uuid. Returns 0 and the number of rows that differ or are in one only,
 * with a line about the first. Ids of segments are equal, too. */
int kvr_catalog_compare(struct kvr_catalog *one, struct kvr_catalog *other, uint64_t *ret_differing,
	char *ret_first, uint32_t first_bytes);

/* Reads all pages and all rows, and checks them against each other: each segment has its state,
 * place below its parent, model, slabs and lanes; no row is nobody's. Returns 0 and how many rows
 * there are, or -EBADMSG and a line about the first that is wrong. Any thread but the writer's
 * inside a transaction. */
int kvr_catalog_verify(struct kvr_catalog *catalog, uint64_t *ret_row_count, char *ret_first,
	uint32_t first_bytes);

#endif

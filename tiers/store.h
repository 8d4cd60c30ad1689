/* SPDX-License-Identifier: Apache-2.0 */
/* store.h: the durable home of segments: slabs on NVMe, and the catalog that finds them.
 *
 * It writes a sealed segment so that a crash loses it wholly or not at all, finds chains of segments by their names,
 * loads their summaries, evicts and drops. It does not read clusters for recalls: the core thread does that on a channel of
 * its own (kvr_store_tier), with the places that loads and puts have told. It knows neither tenants nor sequences.
 *
 *   core thread ──submit──► writer thread: PUT, DROP, MARK   one after the other, puts in groups
 *        ▲                  reader thread: MATCH, LOAD, LIST
 *        └──── reap, gone ◄──┘   both block on disk and catalog; the core thread never does
 *
 *   put:    reserve slabs ─► images + CRC-32C ─► WRITE ... ─► SYNC ─► catalog commit ─► durable, visible
 *   drop:   catalog commit (rows gone, slabs marked) ─► wipe first headers, SYNC ─► catalog commit ─► slabs free
 *
 * Holds keep what the core thread uses. A segment with a hold is neither evicted nor dropped. Who finds a segment (MATCH) or
 * puts one gets a hold with it; others ask for one, which fails once the segment is on its way out.
 *
 * Invariants:
 *   H1  Nothing is in the catalog before its slabs are durable; no slab is used again before its old segment is out of
 *       the catalog, durably.
 *   H2  What has a hold, a pin or a child in the catalog is not removed.
 *   H3  A segment's parent is in the catalog, or it is the first of a sequence.
 *   H4  The directory's blocks never exceed bytes + catalog_bytes + KVR_STORE_EXTRA_BYTES (lock, secret).
 *   H5  A job belongs to the store from submit to reap, with all that it names; each is reaped once.
 *   H6  What a load returns was checked: head, summary (CRC-32C and S1 to S4), token ids, cluster rows against the summary.
 *
 * Files in the directory: slabs.kvr, catalog/, lock, secret (32 random bytes: what tenants' salts come from; without it names
 * cannot be found again, so it is no part of the catalog and survives a rebuild).
 *
 * Threads: submit, reap, gone, hold, unhold and stat are the core thread's; holds are guarded by a mutex that is never held
 * over I/O. */
#ifndef KVR_TIERS_STORE_H
#define KVR_TIERS_STORE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/list.h"
#include "tiers/catalog.h"
#include "tiers/nvme.h"
#include "tiers/slab.h"
#include "tiers/tier.h"

#define KVR_STORE_EXTRA_BYTES  ((uint64_t)64 << 10)
#define KVR_STORE_SECRET_BYTES 32u
#define KVR_STORE_LIST_MAX     64u
#define KVR_STORE_MARKS_MAX    256u

struct kvr_store;

/* The name of the segment that follows `parent`: the caller's hash. Called on the reader thread. */
typedef void kvr_store_name(const void *context, const uint8_t parent[KVR_HASH_BYTES],
	const uint32_t *tokens, uint32_t count, uint8_t ret_hash[KVR_HASH_BYTES]);

struct kvr_store_config {
	const char *dir; /* created with mode 0700 if its parent exists */
	uint64_t bytes;  /* of slabs.kvr */
	uint64_t catalog_bytes;
	uint64_t write_bytes_per_day; /* 0: no bound */
	enum kvr_nvme_io io;
	uint32_t depth, batch;
	struct kvr_span
		read_memory; /* what the core thread reads into: borrowed, registered with the kernel */
};

/* A segment in the store. */
struct kvr_store_segment {
	uint64_t id;
	uint8_t hash[KVR_HASH_BYTES];
	uint8_t parent[KVR_HASH_BYTES];
	uint8_t root[KVR_HASH_BYTES];
	uint32_t token_first, token_count;
	uint64_t used;  /* microseconds since 1970 */
	uint32_t flags; /* KVR_CATALOG_PINNED, _QUARANTINED */
	uint32_t part_count;
};

enum kvr_store_op {
	KVR_STORE_PUT,
	KVR_STORE_DROP,
	KVR_STORE_MARK,
	KVR_STORE_MATCH,
	KVR_STORE_LOAD,
	KVR_STORE_LIST,
};

/* Makes a segment durable. Its clusters are in memory: every extent of the view is set, and stays.
 * Status: 0: done, with a hold; -EEXIST: there is one of this name; -ENOENT: its parent is not in the store;
 * -ENOSPC: no slabs or catalog pages, and nothing may go; -EDQUOT: the owner's bound; -EAGAIN: today's write budget is spent;
 * -EIO: the disk. */
struct kvr_store_put {
	const struct kvr_slab_model *model;
	const struct kvr_segment_view *view;
	const uint32_t *tokens; /* [view->token_count] */
	uint8_t hash[KVR_HASH_BYTES];
	uint8_t parent[KVR_HASH_BYTES]; /* or the model's root */
	uint64_t
		quota_bytes; /* slabs that the tenant model->tenant may have in all, in bytes; UINT64_MAX: no bound */
	/* Out. */
	uint64_t id;
	uint32_t *parts; /* [part_count] of kvr_slab_layout; the caller's memory */
	uint32_t *crcs;  /* [lane][cluster_max + 1]; the caller's memory */
};

/* Removes a segment and all that follow it, or all of a model (hash NULL: all under root), but for what has
 * holds, pins or children that stay. */
struct kvr_store_drop {
	uint8_t root[KVR_HASH_BYTES];
	uint8_t hash[KVR_HASH_BYTES];
	bool all; /* of the root; `hash` is not looked at */
	/* Out. */
	uint32_t segment_count, kept_count;
	uint64_t freed_bytes; /* of slabs */
};

/* Sets last use and flags of up to KVR_STORE_MARKS_MAX segments; those that are gone are passed over. */
struct kvr_store_mark {
	uint32_t count;
	struct {
		uint64_t id, used;
		uint32_t flags;
	} marks[KVR_STORE_MARKS_MAX];
};

/* The longest chain under `root` that the ids start with; never into or past a quarantined segment. */
struct kvr_store_match {
	uint8_t root[KVR_HASH_BYTES];
	kvr_store_name *name;
	const void *name_context;
	const uint32_t *
		tokens; /* may be a client's memory: a change meanwhile changes what is found, and nothing else */
	uint32_t token_count;
	/* Out: oldest first, each with a hold. Freed with kvr_store_match_fini. */
	struct kvr_store_segment *found;
	uint32_t found_count;
};

/* Reads what selection needs of a segment that has a hold. Status: 0, -ENOENT, -EIO or -EBADMSG (H6). */
struct kvr_store_load {
	uint64_t id;
	uint8_t hash[KVR_HASH_BYTES];
	struct kvr_segment_view *view; /* shaped and bound; filled in but for the extents */
	uint32_t *tokens;              /* [view->token_count], out */
	uint32_t *parts;               /* [part_count], out */
	uint32_t *crcs;                /* [lane][cluster_max + 1], out */
};

/* Entries `skip` .. of those under `root`, in the order of their names. */
struct kvr_store_list {
	uint8_t root[KVR_HASH_BYTES];
	uint32_t skip;
	/* Out. */
	uint32_t count;
	struct kvr_store_segment entries[KVR_STORE_LIST_MAX];
	bool more;
};

struct kvr_store_job {
	enum kvr_store_op op;
	void *owner; /* the submitter's */
	union {
		struct kvr_store_put put;
		struct kvr_store_drop drop;
		struct kvr_store_mark mark;
		struct kvr_store_match match;
		struct kvr_store_load load;
		struct kvr_store_list list;
	};
	int status;           /* out */
	struct kvr_list link; /* the store's, between submit and reap */
};

struct kvr_store_stat {
	struct kvr_nvme_report nvme;
	struct kvr_catalog_stat catalog;
	uint64_t capacity_bytes, used_bytes;             /* of slabs */
	uint64_t put_count, put_bytes, put_failed_count; /* bytes: of slabs written */
	uint64_t evicted_count, evicted_bytes, dropped_count;
	uint64_t load_count, load_bytes, match_count;
	uint64_t error_count;       /* I/O errors and failed checks */
	uint64_t quarantined_count; /* segments, since start */
	uint64_t budget_left_bytes; /* of today's writes; UINT64_MAX: no bound */
	uint32_t held_count;
};

#define KVR_STORE_TEXT_MAX 256u

/* Opens or creates a store, finishes what a crash left half done, and starts its threads. Blocks; the time does not depend on
 * how much is stored, but for one row per slab. On failure writes a sentence for people (what, on what, remedy) to ret_text
 * [KVR_STORE_TEXT_MAX]. Errors: -EBUSY (another daemon uses it), -EPROTONOSUPPORT (made by a newer version), -EBADMSG
 * (damaged: rebuild), -ENOSPC, -EFBIG (more is stored than `bytes` allows), -EXDEV (slabs of one store, catalog of another),
 * -ENOMEM, and open(2)'s. */
int kvr_store_open(
	const struct kvr_store_config *config, struct kvr_store **ret_store, char *ret_text);

/* What tenants' salts come from: KVR_STORE_SECRET_BYTES. Borrowed. */
const uint8_t *kvr_store_secret(const struct kvr_store *store);

/* The core thread's channel to the slabs, for reads of clusters. Borrowed. */
struct kvr_tier *kvr_store_tier(struct kvr_store *store);

/* Hands a job over. Never blocks, never fails: a job is the caller's memory. */
void kvr_store_submit(struct kvr_store *store, struct kvr_store_job *job);

/* Takes up to `max` finished jobs, oldest first. */
uint32_t kvr_store_reap(struct kvr_store *store, struct kvr_store_job **ret_jobs, uint32_t max);

/* Readable while reap or gone have something to return. Borrowed. */
int kvr_store_fd(const struct kvr_store *store);

/* Takes up to `max` ids of segments that the store has evicted or dropped since the last call. */
uint32_t kvr_store_gone(struct kvr_store *store, uint64_t *ret_ids, uint32_t max);

/* One more hold on a segment that has no or some holds. False: it is on its way out, or gone. */
bool kvr_store_hold(struct kvr_store *store, uint64_t id);
void kvr_store_unhold(struct kvr_store *store, uint64_t id);

/* Frees what a MATCH found; holds stay. */
void kvr_store_match_fini(struct kvr_store_match *match);

void kvr_store_stat(struct kvr_store *store, struct kvr_store_stat *ret_stat);

/* Finishes the jobs it has (a put group, a drop) and stops. No job may be unreaped afterwards: reap all first, or give them up: their
 * memory is no longer the store's. Takes NULL; returns NULL. */
struct kvr_store *kvr_store_close(struct kvr_store *store);

/* ---- offline: no daemon may use the store ---------------------------------------------------- */

struct kvr_store_report {
	uint64_t segment_count, cluster_count, slab_count;
	uint64_t bytes_read;
	uint64_t damaged_segment_count,
		damaged_cluster_count; /* rows whose slabs do not say the same, or do not check */
	/* Headers of segments that the catalog does not know: left from a crash; harmless. */
	uint64_t stale_slab_count;
	bool catalog_damaged; /* it does not agree with itself: rebuild */
};

/* Reads everything and checks every CRC-32C, every head and every row. `say` is called with one line per damage. Errors as of open; damage is
 * not an error. */
typedef void kvr_store_say(void *context, const char *line);
int kvr_store_verify(const struct kvr_store_config *config, kvr_store_say *say, void *say_context,
	struct kvr_store_report *ret_report, char *ret_text);

/* Makes a new catalog from the slabs alone, beside the old one, and puts it in its place (the old one stays as catalog.old until the next rebuild).
 * What is not whole or does not check is left out. Pins and last uses are lost: they are in the catalog alone. */
int kvr_store_rebuild(const struct kvr_store_config *config, kvr_store_say *say, void *say_context,
	struct kvr_store_report *ret_report, char *ret_text);

#endif

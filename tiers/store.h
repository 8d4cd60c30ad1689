/* SPDX-License-Identifier: Apache-2.0 */
/* store.h: the durable home of segments: slabs on NVMe, and the catalog that finds them.
 *
 * It writes a sealed segment so that a crash loses it wholly or not at all, finds chains of
 * segments by their names, loads their summaries, evicts and drops. It does not read clusters for
 * recalls: the core thread does that on a channel of its own (kvr_store_tier), with the places that
 * loads and puts have told. It knows of tenants no more than their names, and nothing of sequences.
 *
 *   core thread ──submit──► writer thread: PUT, DROP, MARK    in order, puts in groups
 *        ▲                  reader thread: MATCH, CHAIN, LOAD, LIST
 *        └──── reap, gone ◄──┘  both block on disk and catalog; the core thread never does
 *
 *   put:   reserve slabs ─► images + CRC-32C ─► WRITE ... ─► SYNC ─► commit ─► durable, visible
 *   drop:  commit (rows gone, slabs marked) ─► wipe first headers, SYNC ─► slabs free
 *          the marks go with the next commit
 *
 * Holds keep what the core thread uses. A segment with a hold is neither evicted nor dropped. Who
 * finds a segment (MATCH) or puts one gets a hold with it; others ask for one, which fails once the
 * segment is on its way out.
 *
 * Invariants:
 *   H1  Nothing is in the catalog before its slabs are durable; no slab is used again before its
 *       old segment is out of the catalog, durably.
 *   H2  What has a hold, a pin or a child in the catalog is not removed.
 *   H3  A segment's parent is in the catalog, or it is the first of a sequence.
 *   H4  The directory's blocks never exceed bytes + catalog_bytes + KVR_STORE_EXTRA_BYTES (lock,
 *       secret); after a rebuild there is the old catalog besides, until it is removed.
 *   H5  A job belongs to the store from submit to reap, with all that it names; each is reaped
 *       once.
 *   H6  What a load returns was checked: head, summary (CRC-32C, S1 to S4, S9), token ids, rows of
 *       units against the summary.
 *
 * Files in the directory: slabs.kvr, catalog/, lock, secret (32 random bytes: what tenants' salts
 * come from; without it names cannot be found again, so it is no part of the catalog and survives a
 * rebuild).
 *
 * Threads: submit, reap, gone, hold, unhold and stat are the core thread's; holds are guarded by a
 * mutex that is never held over I/O. */
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

/* Told now and then by verify and rebuild: so many bytes of slabs are read, of so many. */
typedef void kvr_store_progress(void *context, uint64_t done_bytes, uint64_t all_bytes);

struct kvr_store_config {
	const char *dir; /* created with mode 0700 if its parent exists */
	uint64_t bytes;  /* of slabs.kvr */
	uint64_t catalog_bytes;
	/* 0: no bound. Else what may be written at once; it comes back evenly over a day. Not kept
	 * over a restart. */
	uint64_t write_bytes_per_day;
	enum kvr_nvme_io io;
	uint32_t depth, batch;
	struct kvr_span read_memory;  /* the core thread's, for reads: borrowed, registered */
	kvr_store_progress *progress; /* or NULL */
	void *progress_context;
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
	KVR_STORE_CHAIN,
};

/* Makes a segment durable. Its units are in memory: every extent of the view is set, and stays.
 * Status:
 *   0         done, with a hold
 *   -EEXIST   there is one of this name: `id` is its, with a hold
 *   -EBUSY    there is one, on its way in or out: try again
 *   -ESTALE   there is one, but it is quarantined: drop it, and what follows it, and try again
 *   -ENOENT   its parent is not in the store
 *   -ENOSPC   no slabs or catalog pages, and nothing may go
 *   -EDQUOT   the tenant's bound, and nothing of its own may go
 *   -EAGAIN   today's write budget is spent
 *   -E2BIG    it needs more than KVR_SLAB_PARTS_MAX slabs
 *   -EIO, -EBADMSG, -ENOMEM   the disk; the catalog is damaged; memory */
struct kvr_store_put {
	const struct kvr_slab_model *model; /* its tenant has a name */
	const struct kvr_segment_view *view;
	const uint32_t *tokens; /* [view->token_count] */
	uint8_t hash[KVR_HASH_BYTES];
	uint8_t parent[KVR_HASH_BYTES]; /* or the model's root */
	uint64_t
		quota_bytes; /* of slabs that model->tenant may have in all; UINT64_MAX: no bound */
	/* Out. */
	uint64_t id;
	uint32_t *parts; /* [part_count] of kvr_slab_layout; the caller's memory */
	uint32_t *crcs;  /* [lane][unit_count]; the caller's memory */
};

/* Removes a segment and all that follow it, or all of a model (hash NULL: all under root), but for
 * what has holds, pins or children that stay. */
struct kvr_store_drop {
	uint8_t root[KVR_HASH_BYTES];
	uint8_t hash[KVR_HASH_BYTES];
	bool all; /* of the root; `hash` is not looked at */
	/* Out. */
	uint32_t segment_count, kept_count;
	uint64_t freed_bytes; /* of slabs */
};

/* Sets last use and flags of up to KVR_STORE_MARKS_MAX segments; those that are gone are passed
 * over. A quarantined one gets 0 as its last use, whatever is given: it is evicted before all
 * others. */
struct kvr_store_mark {
	uint32_t count;
	struct {
		uint64_t id, used;
		uint32_t flags;
		uint32_t kept; /* flags that stay as they are, whatever `flags` says */
	} marks[KVR_STORE_MARKS_MAX];
};

/* The longest chain under `root` that the ids start with; never into or past a quarantined
 * segment. */
struct kvr_store_match {
	uint8_t root[KVR_HASH_BYTES];
	kvr_store_name *name;
	const void *name_context;
	/* May be a client's memory: a change meanwhile changes what is found, and nothing else. */
	const uint32_t *tokens;
	uint32_t token_count;
	/* Out: oldest first, each with a hold. Freed with kvr_store_match_fini. */
	struct kvr_store_segment *found;
	uint32_t found_count;
};

/* All before a segment, and itself: who knows its name. -ENOENT: there is none. */
struct kvr_store_chain {
	uint8_t hash[KVR_HASH_BYTES];
	/* Out: as of a match, quarantined ones as well. */
	struct kvr_store_match match;
};

/* Reads what selection needs of a segment that has a hold. Status: 0, -ENOENT, -EIO or -EBADMSG
 * (H6). */
struct kvr_store_load {
	uint64_t id;
	uint8_t hash[KVR_HASH_BYTES];
	struct kvr_segment_view *view; /* shaped and bound; filled in but for the extents */
	uint32_t *tokens;              /* [view->token_count], out */
	uint32_t *parts;               /* [part_count], out */
	uint32_t *crcs;                /* [lane][unit_count], out */
};

/* Of those under `root`, each behind its parent: the ones behind `after`, at a cost per entry; where
 * it is not given (zeros) or not there any more, those behind the first `skip`, at a cost for these
 * as well. */
struct kvr_store_list {
	uint8_t root[KVR_HASH_BYTES];
	uint8_t after[KVR_HASH_BYTES];
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
		struct kvr_store_chain chain;
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

/* What is stored of a model. */
struct kvr_store_model {
	struct kvr_slab_model model;
	uint64_t segment_count, token_count;
};

#define KVR_STORE_MODELS_MAX 1024u /* that are listed; more may be stored */

/* The next model of a tenant from place *at on (0: the first); *at goes behind it. False: no more.
 * Asks no disk. */
bool kvr_store_model_next(struct kvr_store *store, const char *tenant, uint32_t *at,
	struct kvr_store_model *ret_model);

/* How much is stored under a root. Asks no disk. */
void kvr_store_model_count(struct kvr_store *store, const uint8_t root[KVR_HASH_BYTES],
	uint64_t *ret_segments, uint64_t *ret_tokens);

#define KVR_STORE_TEXT_MAX 256u

/* Opens or creates a store, finishes what a crash left half done, and starts its threads. Blocks;
 * the time does not depend on how much is stored, but for one row per slab and segment. On failure writes a
 * sentence for people (what, on what, remedy) to ret_text[KVR_STORE_TEXT_MAX]. Errors: -EBUSY
 * (another daemon uses it), -EPROTONOSUPPORT (made by another version), -EBADMSG (damaged: rebuild;
 * or no secret), -ENOENT (slabs.kvr is missing), -ENOSPC, -EFBIG (more is stored than `bytes`
 * allows), -EXDEV (slabs of one store, catalog of another), -ENOMEM, and open(2)'s. */
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

/* One more hold on a segment. False: it is on its way out, or gone. To be asked only for ids that
 * came with a hold once and that kvr_store_gone has not told since: what it tells, the store
 * forgets. (An id from LIST may be gone: the hold is then one on nothing, and a load says
 * -ENOENT.) */
bool kvr_store_hold(struct kvr_store *store, uint64_t id);
void kvr_store_unhold(struct kvr_store *store, uint64_t id);

/* Frees what a MATCH found; holds stay. */
void kvr_store_match_fini(struct kvr_store_match *match);

/* Another bound on what is written in a day, from the next put on; 0: none. */
void kvr_store_budget(struct kvr_store *store, uint64_t write_bytes_per_day);

void kvr_store_stat(struct kvr_store *store, struct kvr_store_stat *ret_stat);

/* Carries out the jobs that were submitted, and stops. What is not reaped by then is never reaped:
 * the jobs' memory is the caller's again. Takes NULL; returns NULL. */
struct kvr_store *kvr_store_close(struct kvr_store *store);

/* ---- offline: no daemon may use the store ---------------------------------------------------- */

struct kvr_store_report {
	uint64_t segment_count, cluster_count, merged_count,
		slab_count; /* merged: sets, of each lane */
	uint64_t bytes_read;
	/* Segments whose slabs do not check, or not say what the catalog says; clusters and merged
	 * sets likewise. */
	uint64_t damaged_segment_count, damaged_cluster_count, damaged_merged_count;
	/* Headers of segments that the catalog does not know: left from a crash; harmless. */
	uint64_t stale_slab_count;
	bool catalog_damaged; /* it does not agree with itself: rebuild */
};

/* Reads everything and checks every CRC-32C, every head and every row. `say` (or NULL) is called
 * with one line per damage. Errors as of open; damage is not an error, but for a catalog that
 * cannot be opened. */
typedef void kvr_store_say(void *context, const char *line);
int kvr_store_verify(const struct kvr_store_config *config, kvr_store_say *say, void *say_context,
	struct kvr_store_report *ret_report, char *ret_text);

/* Makes a new catalog from the slabs alone, beside the old one, and puts it in its place; the old
 * one stays as catalog.old until the next rebuild. What is not whole or does not check is left out,
 * with all that follows it. Pins and last uses are lost: they are in the catalog alone. */
int kvr_store_rebuild(const struct kvr_store_config *config, kvr_store_say *say, void *say_context,
	struct kvr_store_report *ret_report, char *ret_text);

#endif

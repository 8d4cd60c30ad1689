/* SPDX-License-Identifier: Apache-2.0 */
/* store_private.h: what the files of the store share. Nobody else includes it, but its tests.
 *
 *   store.c          submit, reap, holds, stat                  core thread
 *   store_open.c     open, close                                core thread
 *   store_recover.c  whose slabs are whose, after a crash       at open
 *   store_dir.c      directory, lock, secret                    at open
 *   store_holds.c    who uses a segment; which have gone        all, under the store's mutex
 *   store_io.c       transfers and streams over a channel       the channel's thread
 *   store_write.c    the writer thread: its queue and groups    writer
 *   store_put.c      a put's checks, slabs and rows              writer
 *   store_image.c    a put's slabs: copy, checksum, write       writer
 *   store_evict.c    which go, and how                          writer
 *   store_drop.c     DROP, MARK                                 writer
 *   store_read.c     the reader thread: MATCH, CHAIN            reader
 *   store_list.c     LIST                                       reader
 *   store_models.c   what is stored of which model              at open, writer, core thread
 *   store_load.c     LOAD                                       reader
 *   store_check.c    a whole segment against its checksums      offline
 *   store_verify.c, store_rebuild.c                             offline */
#ifndef KVR_TIERS_STORE_PRIVATE_H
#define KVR_TIERS_STORE_PRIVATE_H

#include <pthread.h>

#include "tiers/mapping.h"
#include "tiers/store.h"

#define KVR_STORE_IMAGES_MAX  16u /* slabs of puts being built or written */
#define KVR_STORE_SLOTS_MAX   8u  /* slabs of a stream being read */
#define KVR_STORE_GROUP_MAX   64u /* puts of one commit */
#define KVR_STORE_VICTIMS_MAX 512u
#define KVR_STORE_WIPED_MAX   ((size_t)2 * KVR_SLAB_PARTS_MAX)
#define KVR_STORE_HELD_MAX    (3u << 16) /* segments with a hold or on their way out */
#define KVR_STORE_BOOT_SHIFT  32u        /* a segment's id: boot, then a count from 1 on */
#define KVR_STORE_PATH_MAX    4096u
#define KVR_STORE_UNITS_MAX   (KVR_CLUSTERS_MAX + 1 + KVR_MERGED_SETS) /* of a lane */

/* ---- holds: under the store's mutex ---------------------------------------------------------- */

struct kvr_store_hold {
	uint64_t id;    /* 0: no entry */
	uint32_t count; /* holds */
	bool leaving;   /* being removed, or removed and not yet told to the core thread */
};

/* Segments with a hold or on their way out; every other one has no entry.
 *
 *                hold                 leave                   gone
 *   no entry ◄────────► held      no entry ──► leaving ─────────► told ──► no entry
 *              unhold                     stay (the commit failed) */
struct kvr_store_holds {
	struct kvr_store_hold *slots; /* open addressing */
	uint32_t used;
	uint32_t held_count;
	uint64_t *gone; /* ring of ids to tell */
	uint32_t gone_first, gone_count;
};

int kvr_store_holds_open(struct kvr_store_holds *holds);
void kvr_store_holds_close(struct kvr_store_holds *holds);

/* False: it is leaving, or there are too many. */
bool kvr_store_holds_add(struct kvr_store_holds *holds, uint64_t id);
void kvr_store_holds_sub(struct kvr_store_holds *holds, uint64_t id);

/* Marks what has no hold. False: it has one, is leaving already, or there are too many. */
bool kvr_store_holds_leave(struct kvr_store_holds *holds, uint64_t id);
bool kvr_store_holds_leaving(const struct kvr_store_holds *holds, uint64_t id);
void kvr_store_holds_stay(struct kvr_store_holds *holds, uint64_t id);

/* What was leaving is out of the catalog: it is told next. Takes what is told. */
void kvr_store_holds_left(struct kvr_store_holds *holds, uint64_t id);
uint32_t kvr_store_holds_take(struct kvr_store_holds *holds, uint64_t *ret_ids, uint32_t max);

/* ---- models: under the store's mutex ---------------------------------------------------------- */

/* Those that something is stored of; segment_count 0: a free place. */
struct kvr_store_models {
	struct kvr_store_model *entries;  /* [KVR_STORE_MODELS_MAX] */
	uint8_t (*roots)[KVR_HASH_BYTES]; /* likewise: of each entry, zeros of a free one */
	uint32_t end;                     /* behind the last that was ever used */
};

/* Counts what the catalog has: one row per model and one per segment. -ENOMEM, or the catalog's. */
int kvr_store_models_open(struct kvr_store_models *models, struct kvr_catalog_reader *reader);
void kvr_store_models_close(struct kvr_store_models *models);

/* A segment was put; one was removed. */
void kvr_store_models_add(
	struct kvr_store_models *models, const struct kvr_slab_model *model, uint32_t token_count);
void kvr_store_models_sub(
	struct kvr_store_models *models, const uint8_t root[KVR_HASH_BYTES], uint32_t token_count);

/* ---- transfers ------------------------------------------------------------------------------- */

struct kvr_store_transfer {
	struct kvr_tier_io io;
	bool flying; /* in the tier */
	int status;  /* 0 or -EIO, when it is back */
};

/* Starts reading or writing `bytes` of a slab; blocks while the tier is full. */
void kvr_store_start(struct kvr_tier *tier, struct kvr_store_transfer *transfer,
	enum kvr_tier_op op, uint32_t flow, uint64_t offset, struct kvr_span buffer);

/* Blocks until the transfer is back. Returns its status. */
int kvr_store_await(struct kvr_tier *tier, struct kvr_store_transfer *transfer);
int kvr_store_sync(struct kvr_tier *tier);

/* Overwrites the headers of slabs with zeros; `zeros` is a page of registered memory. Returns 0 or
 * the first error; ret_failed[i], unless NULL, says which. */
int kvr_store_wipe(struct kvr_tier *tier, uint8_t *zeros, const uint32_t *slabs, uint32_t count,
	bool *ret_failed);

/* A segment's stream, read in order with KVR_STORE_SLOTS_MAX slabs ahead. Each slab's header is
 * checked. */
struct kvr_store_stream {
	struct kvr_tier *tier;
	uint8_t *memory; /* KVR_STORE_SLOTS_MAX slabs, registered */
	const uint8_t *uuid;
	uint64_t segment;
	const uint32_t *parts;
	uint32_t part_count;
	uint64_t stream_bytes; /* of the whole */
	uint64_t end;          /* up to here it is read */
	uint64_t at;           /* what was taken so far */
	uint32_t started;      /* parts */
	struct kvr_store_transfer slots[KVR_STORE_SLOTS_MAX];
	uint64_t bytes_read;
};

/* Starts a stream whose fields down to `end` are set. */
void kvr_store_stream_start(struct kvr_store_stream *stream);

/* Takes the next bytes: copies them to `into` (NULL: does not), and adds them to *crc (NULL: does
 * not). Errors: -EIO, -EBADMSG (a slab that is not this part of the segment). */
int kvr_store_stream_take(
	struct kvr_store_stream *stream, void *into, uint64_t bytes, uint32_t *crc);

/* Takes what lies before `at`. */
int kvr_store_stream_seek(struct kvr_store_stream *stream, uint64_t at);

/* Waits for what is in flight. To be called after every start, whatever take said. */
void kvr_store_stream_stop(struct kvr_store_stream *stream);

/* ---- threads --------------------------------------------------------------------------------- */

struct kvr_store_queue {
	pthread_mutex_t mutex; /* guards the rest; never held over I/O */
	pthread_cond_t cond;
	struct kvr_list jobs;
	bool stop;
};

/* One put of a group. */
struct kvr_store_entry {
	struct kvr_store_job *job;
	struct kvr_slab_layout layout;
	uint64_t id;
	uint64_t parent; /* id that the writer holds meanwhile; 0: none */
	int status;      /* below 0: it failed */
	bool reserved;   /* put.parts are slabs of its own */
	bool held;       /* `id` has the hold that the put is to end with */
};

struct kvr_store_image {
	struct kvr_store_transfer transfer;
	uint8_t *memory;               /* one slab */
	struct kvr_store_entry *entry; /* whose bytes are being written; NULL: free */
};

/* Segments on their way out, with their slabs. */
struct kvr_store_victim {
	uint64_t id, used;
	uint8_t hash[KVR_HASH_BYTES];
	uint8_t parent[KVR_HASH_BYTES];
	uint8_t root[KVR_HASH_BYTES];
	uint32_t token_count;
	uint32_t part_first, part_count; /* of victims' parts */
};

/* The writer thread's own. */
struct kvr_store_writer {
	struct kvr_store *store;
	struct kvr_tier *tier;
	struct kvr_catalog_reader *reader;
	struct kvr_store_image images[KVR_STORE_IMAGES_MAX];
	uint32_t image_next;
	uint8_t *zeros; /* a page of registered memory */
	struct kvr_store_entry group[KVR_STORE_GROUP_MAX];
	uint32_t group_count;
	uint64_t id_next;
	uint64_t budget_bytes, budget_ns; /* what may be written, as of when */
	/* Scratch. */
	struct kvr_place *places;         /* [KVR_SLAB_PARTS_MAX] */
	uint32_t *place_bytes;            /* likewise, each a slab */
	struct kvr_catalog_unit *units;   /* grows to the largest segment's */
	size_t unit_count;                /* room */
	struct kvr_store_victim *victims; /* [KVR_STORE_VICTIMS_MAX] */
	uint32_t *victim_parts;           /* [KVR_STORE_WIPED_MAX] */
	uint32_t victim_count, victim_part_count;
	/* [KVR_STORE_WIPED_MAX] slabs that are free again, whose rows go with the next commit. */
	uint32_t *wiped;
	uint32_t wiped_count;
	struct kvr_store_step
		*steps; /* [KVR_SEQUENCE_SEGMENTS_MAX + 1] of walks through the catalog */
};

/* One segment of a path through the forest. */
struct kvr_store_step {
	struct kvr_store_segment segment;
	uint32_t child_tokens; /* where its children were left */
	uint64_t child_id;
	uint32_t end;  /* tokens up to and with it */
	bool occupied; /* something below it stays */
};

/* The reader thread's own. */
struct kvr_store_reader {
	struct kvr_store *store;
	struct kvr_tier *tier;
	struct kvr_catalog_reader *reader;
	struct kvr_store_stream stream;
	struct kvr_store_step *steps;   /* [KVR_SEQUENCE_SEGMENTS_MAX + 1] */
	struct kvr_store_segment *best; /* [KVR_SEQUENCE_SEGMENTS_MAX] */
	struct kvr_catalog_unit *lane;  /* [KVR_STORE_UNITS_MAX] */
	uint8_t *page;                  /* a head */
};

struct kvr_store {
	/* Fixed while it is open. */
	char path[KVR_STORE_PATH_MAX];
	int lock_fd;
	uint8_t secret[KVR_STORE_SECRET_BYTES];
	struct kvr_catalog_meta meta;
	uint64_t write_bytes_per_day; /* the writer's */
	uint64_t
		budget_wanted; /* atomic: set by the core thread, taken by the writer before a put */
	struct kvr_mapping memory; /* images, slots, a page of zeros */
	struct kvr_nvme *nvme;
	struct kvr_catalog *catalog;
	struct kvr_tier *core_tier;
	int event_fd;
	bool signalled; /* under the mutex: event_fd is readable */
	/* Guarded by the mutex, which is never held over I/O. */
	pthread_mutex_t mutex;
	struct kvr_list done;
	struct kvr_store_holds holds;
	struct kvr_store_models models;
	struct kvr_store_stat counters; /* but for what stat asks others for */
	/* The threads, and what is theirs. */
	struct kvr_store_queue write_queue, read_queue;
	pthread_t write_thread, read_thread;
	bool write_started, read_started;
	struct kvr_store_writer writer;
	struct kvr_store_reader reader;
};

/* For tests: what stands between a channel and its thread. */
struct kvr_store_hooks {
	/* Replaces a channel: 0 the core's, 1 the writer's, 2 the reader's. */
	struct kvr_tier *(*wrap)(void *context, struct kvr_tier *tier, int which);
	void *context;
};

enum kvr_store_mode {
	KVR_STORE_ONLINE,  /* everything, with its threads */
	KVR_STORE_VERIFY,  /* nothing is claimed, nothing runs */
	KVR_STORE_REBUILD, /* likewise, and no catalog */
};

int kvr_store_open_mode(const struct kvr_store_config *config, enum kvr_store_mode mode,
	const struct kvr_store_hooks *hooks, struct kvr_store **ret_store, char *ret_text);

/* A sentence about the store in `dir`, for people. Returns `error`. */
__attribute__((format(printf, 4, 5))) int kvr_store_say_why(
	char *ret_text, int error, const char *dir, const char *format, ...);

/* What is there is of `version`, this one is of `own`: the same sentence for catalog and slabs. Version 0 is
 * LMDB's affair, and newer. Returns -EPROTONOSUPPORT. */
int kvr_store_say_version(char *ret_text, const char *dir, uint32_t version, uint32_t own);

/* Claims the slabs of table `slab`, and finishes the wipes of those that have no owner. */
int kvr_store_recover(struct kvr_store *store, char *ret_text);

void kvr_store_queue_open(struct kvr_store_queue *queue);
void kvr_store_queue_stop(struct kvr_store_queue *queue);
void kvr_store_queue_close(struct kvr_store_queue *queue);

/* Counts: one of store->counters' fields. */
void kvr_store_count(struct kvr_store *store, uint64_t *counter, uint64_t more);
void kvr_store_done(struct kvr_store *store, struct kvr_store_job *job, int status);

enum kvr_store_pop {
	KVR_STORE_POP_ANY,
	KVR_STORE_POP_PUT,  /* unless it is another one */
	KVR_STORE_POP_WAIT, /* blocks until there is one */
};

/* The oldest job, or NULL: there is none, and after waiting: the thread is to end. */
struct kvr_store_job *kvr_store_queue_pop(struct kvr_store_queue *queue, enum kvr_store_pop how);

/* Says that reap or gone have something. Under the mutex. */
void kvr_store_signal(struct kvr_store *store);

/* ---- the directory --------------------------------------------------------------------------- */

/* A path in the store's directory. -ENAMETOOLONG. */
int kvr_store_path(const char *dir, const char *name, char ret_path[KVR_STORE_PATH_MAX]);
bool kvr_store_exists(const char *dir, const char *name);
int kvr_store_sync_dir(const char *dir);

/* Removes what a rebuild left half done; puts its result in the catalog's place, which becomes
 * catalog.old. */
#define KVR_STORE_CATALOG_NEW "catalog.new"
int kvr_store_catalog_clear(const char *dir);
int kvr_store_catalog_replace(const char *dir);

/* Makes the directory if it may, and takes the lock. */
int kvr_store_lock(const char *dir, bool make, int *ret_fd, char *ret_text);

/* Reads the secret; makes one where there is no store yet. */
int kvr_store_secret_load(
	const char *dir, bool make, uint8_t ret_secret[KVR_STORE_SECRET_BYTES], char *ret_text);

/* ---- writing --------------------------------------------------------------------------------- */

int kvr_store_writer_open(struct kvr_store_writer *writer, struct kvr_store *store);
void kvr_store_writer_close(struct kvr_store_writer *writer);
void *kvr_store_writer_run(void *writer);

/* Counts today's write budget up. */
void kvr_store_put_refill(struct kvr_store_writer *writer);

/* Everything up to the images: an id, a hold on it, and slabs. What it has taken before it failed
 * stays in the entry. */
int kvr_store_put_prepare(struct kvr_store_writer *writer, struct kvr_store_entry *entry);

/* Puts the entry's rows into the open transaction. */
int kvr_store_put_rows(
	struct kvr_store_writer *writer, const struct kvr_store_entry *entry, uint64_t used);

/* Copies a put's segment into images and starts their writes. Sets the entry's status on
 * failure. */
void kvr_store_image_put(struct kvr_store_writer *writer, struct kvr_store_entry *entry);

/* Waits for all writes; entries whose writes failed have their status. */
void kvr_store_image_settle(struct kvr_store_writer *writer);

/* Evicts at least so many slabs' worth, of one tenant (NULL: of all), if it may. Returns how many
 * segments went, or an error. */
int kvr_store_evict(struct kvr_store_writer *writer, const char *tenant, uint64_t slab_count);

/* Adds to the victims what may go: no hold, pin, or child but victims. Within a read. 0, or -EBUSY:
 * it stays; -ENOSPC: no more victims this time; or the catalog's error. */
int kvr_store_victim_add(struct kvr_store_writer *writer, const uint8_t hash[KVR_HASH_BYTES]);

/* Removes the victims: rows, headers, slabs. With `sync` the wipes are durable on return. On
 * failure all of them stay. */
int kvr_store_victims_remove(struct kvr_store_writer *writer, bool sync);

/* Commits the rows of wiped slabs that wait. */
int kvr_store_wiped_flush(struct kvr_store_writer *writer);
int kvr_store_wiped_put(struct kvr_store_writer *writer); /* into an open transaction */

void kvr_store_release_slabs(
	struct kvr_store_writer *writer, const uint32_t *slabs, uint32_t count);

int kvr_store_drop_run(struct kvr_store_writer *writer, struct kvr_store_drop *drop);
int kvr_store_mark_run(struct kvr_store_writer *writer, const struct kvr_store_mark *mark);

/* ---- reading --------------------------------------------------------------------------------- */

int kvr_store_reader_open(struct kvr_store_reader *reader, struct kvr_store *store);
void kvr_store_reader_close(struct kvr_store_reader *reader);
void *kvr_store_reader_run(void *reader);
int kvr_store_load_run(struct kvr_store_reader *reader, struct kvr_store_load *load);
int kvr_store_list_run(struct kvr_store_reader *reader, struct kvr_store_list *list);

/* The rows of a lane's units, in their order; zeros where there are none. Within a read. */
int kvr_store_lane(struct kvr_catalog_reader *reader, const struct kvr_segment_view *view,
	uint64_t id, uint32_t lane, struct kvr_catalog_unit *ret_units);

/* A segment with its state. Within a read. */
int kvr_store_find(struct kvr_store_reader *reader, const uint8_t hash[KVR_HASH_BYTES],
	struct kvr_store_segment *ret_segment);

/* ---- offline --------------------------------------------------------------------------------- */

/* A segment as its slabs have it. */
struct kvr_store_checked {
	/* In. */
	uint64_t id;
	const uint32_t *parts;
	uint32_t part_count;
	/* Out. */
	struct kvr_slab_head head;
	struct kvr_slab_layout layout;
	struct kvr_segment_view view; /* without extents */
	uint8_t *memory;
	uint32_t *tokens;
	uint32_t *crcs; /* of the units as they are now, [lane][unit_count] */
	/* Clusters and merged sets that are not what the segment's own checksums say. */
	uint64_t damaged_cluster_count, damaged_merged_count;
	uint64_t bytes_read; /* adds up */
};

/* Reads all of it. -EIO; -EBADMSG: damaged outside of units; -ENOMEM. Starts from zeroed memory
 * or an earlier result. */
int kvr_store_check(struct kvr_store *store, struct kvr_store_checked *checked);
void kvr_store_check_fini(struct kvr_store_checked *checked);

/* Reads header and head, two pages, of each of up to KVR_STORE_PAGES_MAX slabs. Returns where they
 * lie, in order, until the next read. */
#define KVR_STORE_PAGES_MAX 64u
const uint8_t *kvr_store_read_pages(
	struct kvr_store *store, const uint32_t *slabs, uint32_t count, int *ret_statuses);

uint8_t *kvr_store_slots(const struct kvr_store *store);

#endif

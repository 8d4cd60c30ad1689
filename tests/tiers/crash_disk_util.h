/* SPDX-License-Identifier: Apache-2.0 */
/* crash_disk_util.h: a disk in memory that loses power.
 *
 * It knows files, folders, and what was written since the last flush. It does not make system calls of the code under test
 * (crash_record_util.h does), nor know what is in the files.
 *
 *   log       write write FLUSH a name write FLUSH b ...       what a run did, in order
 *   cut                         ▲ here the power goes, before the flush takes effect
 *   durable   the disk as of all flushes before                pending: events that no flush has covered
 *   image     durable, and of each pending event, by a seeded coin: all, nothing, or some sectors
 *
 * What the disk promises, and no more:
 *   D1  A sector of 512 bytes is old or new. Sectors of one write are independent, and so are writes.
 *   D2  A flush of a file makes durable its bytes and its length, as of then; nothing of any other file, and not its name.
 *   D3  A flush of a folder makes durable the names in it. Names that are not flushed reach the disk in order, up to some point: a
 *       file system with a journal does that much. Renaming is one step.
 *   D4  A write through O_DSYNC is a flush of the pages that it touches.
 *   D5  A file that has grown without a flush has its old length, its new one, or one between; what was not written is zeros.
 *
 * The coins follow from a seed and from what they are thrown for, not from the order in which threads came. Seed 0 loses
 * everything, seed 1 keeps everything.
 *
 * Threads: the caller's. */
#ifndef KVR_TESTS_TIERS_CRASH_DISK_UTIL_H
#define KVR_TESTS_TIERS_CRASH_DISK_UTIL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define KVR_DISK_SECTOR 512u
#define KVR_DISK_PAGE   4096u
#define KVR_DISK_NODES  64u
#define KVR_DISK_NAMES  12u /* of one folder */
#define KVR_DISK_TEXT   24u /* of one name, with its NUL */
#define KVR_DISK_ROOT   0u  /* the folder that is always there */
#define KVR_DISK_NONE   UINT32_MAX

struct kvr_disk_name {
	char text[KVR_DISK_TEXT];
	uint32_t node;
};

struct kvr_disk_node {
	bool folder;
	uint64_t bytes;  /* of a file */
	uint8_t **pages; /* [page_count]; NULL: zeros. Behind `bytes` all is zero */
	uint32_t page_count;
	struct kvr_disk_name names[KVR_DISK_NAMES]; /* of a folder */
	uint32_t name_count;
};

struct kvr_disk {
	struct kvr_disk_node nodes[KVR_DISK_NODES];
	uint32_t node_count;
};

enum kvr_disk_op {
	KVR_DISK_WRITE,
	KVR_DISK_RESIZE,
	KVR_DISK_LINK,     /* a new file or folder: `target` gets `name` in `node` */
	KVR_DISK_UNLINK,   /* `name` in `node` goes */
	KVR_DISK_RENAME,   /* `name` in `node` becomes `other` */
	KVR_DISK_EXCHANGE, /* `name` and `other` in `node` */
	KVR_DISK_FLUSH,
	KVR_DISK_STEP, /* not of the disk: the workload's next step begins */
};

struct kvr_disk_event {
	enum kvr_disk_op op;
	uint32_t node;
	bool through; /* WRITE: D4 */
	bool folder;  /* LINK: the target is one */
	uint32_t target;
	uint64_t at, bytes; /* RESIZE: bytes is the new length */
	uint8_t *data;      /* WRITE: [bytes], the log's */
	char name[KVR_DISK_TEXT], other[KVR_DISK_TEXT];
};

struct kvr_disk_log {
	struct kvr_disk_event *events;
	uint32_t count, room;
};

/* A moment of a log at which the power goes. */
struct kvr_disk_cut {
	const struct kvr_disk_log *log;
	struct kvr_disk durable;
	uint32_t *pending; /* indices of events */
	uint32_t pending_count;
	uint32_t next;  /* event: the flush that does not happen; log->count: after everything */
	uint32_t flush; /* its number, from 0 */
	uint32_t step;  /* steps begun */
};

void kvr_disk_init(struct kvr_disk *disk); /* nothing but the root */
void kvr_disk_copy(struct kvr_disk *to, const struct kvr_disk *from);
void kvr_disk_fini(struct kvr_disk *disk);
void kvr_disk_apply(struct kvr_disk *disk, const struct kvr_disk_event *event);
uint32_t kvr_disk_find(const struct kvr_disk *disk, uint32_t folder, const char *name);

/* Adds an event; `data` of a write is copied. */
void kvr_disk_log_add(struct kvr_disk_log *log, const struct kvr_disk_event *event);
void kvr_disk_log_fini(struct kvr_disk_log *log);

/* The first flush of a log that began with `base`; the next one. False: there is none, the cut was after everything. */
void kvr_disk_cut_init(
	struct kvr_disk_cut *cut, const struct kvr_disk *base, const struct kvr_disk_log *log);
bool kvr_disk_cut_next(struct kvr_disk_cut *cut);
void kvr_disk_cut_fini(struct kvr_disk_cut *cut);

/* What is on the disk after it. */
void kvr_disk_cut_image(const struct kvr_disk_cut *cut, uint64_t seed, struct kvr_disk *ret_disk);

/* Writes a disk to a real folder, which is emptied before. */
void kvr_disk_unload(const struct kvr_disk *disk, const char *dir);

/* Whether a real folder holds the same; `but` is a file that is not looked at. Says what differs. */
bool kvr_disk_same(const struct kvr_disk *disk, const char *dir, const char *but);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* nvme.h: the NVMe tier: one preallocated file of 1 MiB slabs, moved by one thread.
 *
 * It allocates slabs and moves aligned spans between them and memory. It does not know what is in a slab
 * (tiers/slab.h), which segment is worth keeping, or where the catalog says things are (tiers/store.h).
 *
 *   channel (core) ────┐                      ┌─ io_uring: SINGLE_ISSUER, DEFER_TASKRUN, registered
 *   channel (writer) ──┼─► queue ─► mover ────┤   file and buffers, O_DIRECT
 *   channel (reader) ──┘     by priority,     └─ or pread/pwrite threads, where io_uring is forbidden
 *      ▲  eventfd            flows in turn
 *      └──────────────────────── done ◄──┘
 *
 * A channel is a struct kvr_tier, so that what holds for every tier holds here (tests/tiers/conformance.c):
 *   * reserve: each place is one slab, bytes[i] up to KVR_SLAB_BYTES; places of one call lie next to each other
 *     where there is room. Slab n is the file's bytes [n, n + 1) * KVR_SLAB_BYTES. `group` is not used.
 *   * READ, WRITE: `place` is any span inside the file, whose offset and length, like the buffer's address,
 *     are multiples of kvr_tier_stat.alignment. The buffer lies in memory that was registered at open.
 *     A WRITE goes to slabs that are reserved or claimed; a READ anywhere. A short transfer is continued;
 *     what cannot be continued is -EIO.
 *   * release wants the places' bytes as they were reserved; a claimed slab has KVR_SLAB_BYTES.
 *   * stat: counts of transfers are the channel's own, space is the file's.
 *   * SYNC: fdatasync, after every write of any channel that was reaped before. One that failed leaves open which of the
 *     writes since the last good one are durable: write them again.
 *   * io->priority and io->flow: KVR_TIER_URGENT goes before NORMAL before LATER, but a lower class that waits
 *     gets a small part of the bytes, so that it is not starved; flows of one class are served in turn, each up to
 *     `batch` at a time (tiers/nvme_queue.h).
 *
 * Invariants:
 *   N1  At most `depth` transfers are in the kernel.
 *   N2  The file never grows beyond `bytes`, and its blocks are there from the start: no -ENOSPC later.
 *   N3  A buffer that is handed to the kernel lies inside registered memory, and its span inside the
 *       file: checked before every submission, since no sanitizer sees the kernel write.
 *   N4  A slab is either free or reserved; the map is guarded by one mutex, as reserve and release are rare.
 *
 * Threads: a channel belongs to one thread. Open, claim and close by one, before and after all others. */
#ifndef KVR_TIERS_NVME_H
#define KVR_TIERS_NVME_H

#include <stdbool.h>
#include <stdint.h>

#include "base/span.h"
#include "tiers/tier.h"

#define KVR_SLAB_BYTES        ((uint32_t)1 << 20)
#define KVR_NVME_CHANNELS_MAX 8u
#define KVR_NVME_DEPTH_MAX    1024u
#define KVR_NVME_BUFFERS_MAX  16u

struct kvr_nvme;

enum kvr_nvme_io {
	KVR_NVME_IO_AUTO, /* io_uring where it is allowed, else threads */
	KVR_NVME_IO_URING,
	KVR_NVME_IO_THREADS,
};

struct kvr_nvme_config {
	const char *path; /* of the file; created with mode 0600 if it is not there */
	uint64_t bytes;   /* cap, a multiple of KVR_SLAB_BYTES; a larger file than that is -EFBIG */
	enum kvr_nvme_io io;
	uint32_t depth, batch; /* 1 to KVR_NVME_DEPTH_MAX; batch <= depth */
	/* Memory that buffers lie in, borrowed; aligned to the page size. What is in use of it is pinned: it is neither
	 * remapped nor punched while the tier is open. */
	const struct kvr_span *buffers;
	uint32_t buffer_count; /* to KVR_NVME_BUFFERS_MAX */
};

struct kvr_nvme_report {
	bool uring;      /* else threads */
	int uring_error; /* why not: the -errno of setup; 0 where it was not asked for */
	bool direct;     /* O_DIRECT; without it the page cache doubles what RAM holds */
	bool registered; /* memory in use is registered; else RLIMIT_MEMLOCK was too low for it */
	uint32_t alignment; /* of offsets and lengths on the disk */
	uint32_t depth;
	uint64_t slab_count, slab_free;
};

/* Opens or creates the file, preallocates it, starts the mover. Errors: -ENOSPC (the file system cannot give the
 * blocks), -EFBIG (the file is larger than the cap), -EPERM or -ENOSYS (KVR_NVME_IO_URING where it is forbidden), and
 * open(2)'s. */
int kvr_nvme_open(const struct kvr_nvme_config *config, struct kvr_nvme **ret_nvme);

/* A slab that the catalog says is in use, at start. Errors: -EINVAL (outside the file, or claimed already). */
int kvr_nvme_claim(struct kvr_nvme *nvme, uint32_t slab);

/* A channel for one more thread; closed with kvr_tier_close. Errors: -ENOMEM, -EMFILE. */
int kvr_tier_open_nvme(struct kvr_nvme *nvme, struct kvr_tier **ret_tier);

void kvr_nvme_report(const struct kvr_nvme *nvme, struct kvr_nvme_report *ret_report);

/* Stops the mover and closes the file; all channels are closed. Takes NULL; returns NULL. */
struct kvr_nvme *kvr_nvme_close(struct kvr_nvme *nvme);

#endif

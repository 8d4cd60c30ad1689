/* SPDX-License-Identifier: Apache-2.0 */
/* nvme_state.h: the NVMe tier's own structs. Internal to tiers/nvme*.c. */
#ifndef KVR_TIERS_NVME_STATE_H
#define KVR_TIERS_NVME_STATE_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "tiers/nvme.h"
#include "tiers/nvme_mover.h"

struct kvr_nvme_slab {
	uint32_t
		bytes; /* of its place; 0: free. Guarded by map_lock; constant while the slab is reserved */
	/* Ios submitted and not reaped that touch it (T5). Each is counted up and down by one thread; release, which
	 * looks at it, is ordered behind them by whoever hands places between threads. */
	uint32_t in_flight; /* atomic */
};

struct kvr_nvme_channel {
	struct kvr_tier tier;
	struct kvr_nvme *nvme;
	uint32_t index;
	uint32_t in_flight;        /* submitted and not reaped */
	struct kvr_tier_stat stat; /* counts of transfers */
	uint32_t
		running; /* atomic: submitted and not finished; up by the owner, down by the mover */
	int fd;          /* an eventfd: says that `done` is worth a look */
	pthread_mutex_t lock; /* guards what follows, and with it what fd says */
	struct kvr_list done;
	uint64_t untold_bytes; /* put into it since the owner was told */
	bool told;
};

struct kvr_nvme {
	struct kvr_nvme_work work;
	struct kvr_nvme_mover *mover;
	struct kvr_span buffers[KVR_NVME_BUFFERS_MAX];
	bool direct;
	int uring_error;
	bool uring;
	pthread_mutex_t map_lock; /* guards the slabs and what follows */
	struct kvr_nvme_slab *slabs;
	uint32_t slab_count;
	uint32_t slab_next;  /* where the next search begins */
	uint32_t used_count; /* slabs that are not free */
	uint64_t reserved_bytes;
	/* An entry is written by its channel's thread alone, with none of its ios submitted. */
	struct kvr_nvme_channel *channels[KVR_NVME_CHANNELS_MAX];
};

/* What was opened, in nvme_file.c. */
struct kvr_nvme_file {
	int fd;
	bool direct;
	uint32_t alignment;
};

/* Opens or creates the file and gives it `bytes` of blocks. Errors: those of kvr_nvme_open. */
int kvr_nvme_file_open(const char *path, uint64_t bytes, struct kvr_nvme_file *ret_file);

/* The map, in nvme.c. */
int kvr_nvme_reserve(
	struct kvr_nvme *nvme, const uint32_t *bytes, uint32_t count, struct kvr_place *ret_places);
void kvr_nvme_release(struct kvr_nvme *nvme, const struct kvr_place *places, uint32_t count);

#endif

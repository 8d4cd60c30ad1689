/* SPDX-License-Identifier: Apache-2.0 */
/* nvme.c: the store's file, its map of slabs, and the start and end of what moves them.
 *
 * The map is an array with an entry per slab. reserve looks for a run of free slabs from where it left off, so
 * that segments that are written one after the other lie one after the other and slabs wear evenly; where there
 * is no such run it takes single ones. A segment is reserved at a time, so a scan per segment is the whole cost:
 * 8 bytes per slab, 8 MiB for a file of 1 TiB.
 *
 * Threads: as nvme.h says; map_lock guards the map. */
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/assert.h"
#include "tiers/nvme_state.h"

KVR_STATIC_ASSERT(sizeof(struct kvr_nvme_slab) == 8);

/* ---- the map --------------------------------------------------------------------------------- */

/* The first slab of `count` free neighbours, searched from slab_next on, around the end. -ENOENT if there are none. */
static int64_t find_run(const struct kvr_nvme *nvme, uint32_t count)
{
	const uint32_t start = nvme->slab_next;
	uint32_t run = 0;

	for (uint64_t i = 0; i < (uint64_t)nvme->slab_count + count; i++) {
		const uint32_t slab = (uint32_t)((start + i) % nvme->slab_count);

		if (slab == 0)
			run = 0; /* the last slab and the first are no neighbours */
		run = nvme->slabs[slab].bytes == 0 ? run + 1 : 0;
		if (run == count)
			return (int64_t)slab + 1 - count;
	}
	return -ENOENT;
}

static uint32_t find_one(const struct kvr_nvme *nvme, uint32_t slab)
{
	uint32_t steps = 0;

	while (nvme->slabs[slab].bytes != 0) {
		slab = (slab + 1) % nvme->slab_count;
		steps++;
		KVR_ASSERT(steps < nvme->slab_count);
	}
	return slab;
}

static void take(struct kvr_nvme *nvme, uint32_t slab, uint32_t bytes)
{
	KVR_ASSERT(bytes >= 1);
	KVR_ASSERT(bytes <= KVR_SLAB_BYTES);
	KVR_ASSERT(nvme->slabs[slab].bytes == 0); /* N4, T1 */
	nvme->slabs[slab].bytes = bytes;
	nvme->used_count++;
	nvme->reserved_bytes += bytes;
	nvme->slab_next = (slab + 1) % nvme->slab_count;
}

int kvr_nvme_reserve(
	struct kvr_nvme *nvme, const uint32_t *bytes, uint32_t count, struct kvr_place *ret_places)
{
	int64_t first;
	int rc = -ENOSPC; /* T2 */

	pthread_mutex_lock(&nvme->map_lock);
	KVR_ASSERT(nvme->used_count <= nvme->slab_count);
	if (count <= nvme->slab_count - nvme->used_count) {
		first = find_run(nvme, count);
		if (first >= 0)
			nvme->slab_next = (uint32_t)first;
		for (uint32_t i = 0; i < count; i++) {
			const uint32_t slab = find_one(nvme, nvme->slab_next);

			take(nvme, slab, bytes[i]);
			ret_places[i] = (struct kvr_place){
				.offset = (uint64_t)slab * KVR_SLAB_BYTES,
				.bytes = bytes[i],
			};
		}
		rc = 0;
	}
	pthread_mutex_unlock(&nvme->map_lock);
	return rc;
}

void kvr_nvme_release(struct kvr_nvme *nvme, const struct kvr_place *places, uint32_t count)
{
	pthread_mutex_lock(&nvme->map_lock);
	for (uint32_t i = 0; i < count; i++) {
		const uint64_t index = places[i].offset / KVR_SLAB_BYTES;
		struct kvr_nvme_slab *slab;

		KVR_ASSERT(places[i].offset % KVR_SLAB_BYTES == 0);
		KVR_ASSERT(index < nvme->slab_count);
		slab = &nvme->slabs[index];
		KVR_ASSERT(slab->bytes == places[i].bytes);                           /* N4 */
		KVR_ASSERT(__atomic_load_n(&slab->in_flight, __ATOMIC_RELAXED) == 0); /* T5 */
		KVR_ASSERT(nvme->used_count > 0);
		KVR_ASSERT(nvme->reserved_bytes >= slab->bytes);
		nvme->reserved_bytes -= slab->bytes;
		nvme->used_count--;
		slab->bytes = 0;
	}
	pthread_mutex_unlock(&nvme->map_lock);
}

int kvr_nvme_claim(struct kvr_nvme *nvme, uint32_t slab)
{
	int rc = -EINVAL;

	pthread_mutex_lock(&nvme->map_lock);
	if (slab < nvme->slab_count && nvme->slabs[slab].bytes == 0) {
		take(nvme, slab, KVR_SLAB_BYTES);
		rc = 0;
	}
	pthread_mutex_unlock(&nvme->map_lock);
	return rc;
}

/* ---- open, close ----------------------------------------------------------------------------- */

static int start_mover(struct kvr_nvme *nvme, enum kvr_nvme_io io)
{
	int rc = -ENOSYS;

	if (io != KVR_NVME_IO_THREADS) {
		rc = kvr_nvme_ring_start(&nvme->work, &nvme->mover);
		nvme->uring = rc == 0;
		nvme->uring_error = rc;
	}
	/* Whatever made the kernel refuse a ring (seccomp, a sysctl, a limit on locked memory), threads need none of it. */
	if (rc < 0 && io != KVR_NVME_IO_URING)
		rc = kvr_nvme_threads_start(&nvme->work, &nvme->mover);
	return rc;
}

static void set_work(struct kvr_nvme *nvme, const struct kvr_nvme_config *config,
	const struct kvr_nvme_file *file)
{
	for (uint32_t i = 0; i < config->buffer_count; i++) {
		KVR_ASSERT((uintptr_t)config->buffers[i].data % file->alignment == 0);
		nvme->buffers[i] = config->buffers[i];
	}
	nvme->work.fd = file->fd;
	nvme->work.bytes = config->bytes;
	nvme->work.alignment = file->alignment;
	nvme->work.depth = config->depth;
	nvme->work.buffers = nvme->buffers;
	nvme->work.buffer_count = config->buffer_count;
	nvme->direct = file->direct;
	kvr_nvme_queue_init(&nvme->work.queue, config->depth, config->batch);
}

int kvr_nvme_open(const struct kvr_nvme_config *config, struct kvr_nvme **ret_nvme)
{
	struct kvr_nvme *nvme = calloc(1, sizeof(*nvme));
	struct kvr_nvme_file file;
	int rc;

	KVR_ASSERT(config->bytes >= KVR_SLAB_BYTES);
	KVR_ASSERT(config->bytes % KVR_SLAB_BYTES == 0);
	KVR_ASSERT(config->bytes / KVR_SLAB_BYTES <= UINT32_MAX);
	KVR_ASSERT(config->depth <= KVR_NVME_DEPTH_MAX);
	KVR_ASSERT(config->buffer_count <= KVR_NVME_BUFFERS_MAX);
	if (!nvme)
		return -ENOMEM;
	nvme->work.fd = -1;
	pthread_mutex_init(&nvme->work.lock, NULL);
	pthread_mutex_init(&nvme->map_lock, NULL);
	nvme->slab_count = (uint32_t)(config->bytes / KVR_SLAB_BYTES);
	nvme->slabs = calloc(nvme->slab_count, sizeof(*nvme->slabs));
	rc = nvme->slabs ? 0 : -ENOMEM;
	if (rc < 0)
		goto fail;
	rc = kvr_nvme_file_open(config->path, config->bytes, &file);
	if (rc < 0)
		goto fail;
	set_work(nvme, config, &file);
	rc = start_mover(nvme, config->io);
	if (rc < 0)
		goto fail;
	*ret_nvme = nvme;
	return 0;

fail:
	kvr_nvme_close(nvme);
	return rc;
}

void kvr_nvme_report(const struct kvr_nvme *nvme, struct kvr_nvme_report *ret_report)
{
	struct kvr_nvme *guarded = (struct kvr_nvme *)nvme; /* the lock alone changes */

	pthread_mutex_lock(&guarded->map_lock);
	*ret_report = (struct kvr_nvme_report){
		.uring = nvme->uring,
		.uring_error = nvme->uring_error,
		.direct = nvme->direct,
		.registered = __atomic_load_n(&nvme->mover->registered, __ATOMIC_RELAXED),
		.alignment = nvme->work.alignment,
		.depth = nvme->work.depth,
		.slab_count = nvme->slab_count,
		.slab_free = nvme->slab_count - nvme->used_count,
	};
	pthread_mutex_unlock(&guarded->map_lock);
}

struct kvr_nvme *kvr_nvme_close(struct kvr_nvme *nvme)
{
	if (!nvme)
		return NULL;
	for (uint32_t i = 0; i < KVR_NVME_CHANNELS_MAX; i++)
		KVR_ASSERT(nvme->channels[i] == NULL);
	if (nvme->mover) {
		pthread_mutex_lock(&nvme->work.lock);
		nvme->work.stopping = true;
		pthread_mutex_unlock(&nvme->work.lock);
		nvme->mover->ops->stop(nvme->mover);
	}
	if (nvme->work.fd >= 0)
		close(nvme->work.fd);
	pthread_mutex_destroy(&nvme->work.lock);
	pthread_mutex_destroy(&nvme->map_lock);
	free(nvme->slabs);
	free(nvme);
	return NULL;
}

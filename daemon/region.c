/* SPDX-License-Identifier: Apache-2.0 */
/* region.c: memfd, seals, mapping. Does not know who shares it. */
#include "daemon/region.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/assert.h"

#define ASIDE_BYTES ((size_t)64 << 20)

int kvr_region_open(struct kvr_region *region, uint64_t bytes)
{
	const int seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
	void *memory;
	int rc;

	KVR_ASSERT(bytes > 0);
	KVR_ASSERT(bytes % (2u << 20) == 0);
	*region = (struct kvr_region){.fd = -1};
	region->fd = memfd_create("kvrecall-region", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (region->fd < 0 || ftruncate(region->fd, (off_t)bytes) < 0 ||
		fcntl(region->fd, F_ADD_SEALS, seals) < 0)
		goto fail;
	memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, region->fd, 0);
	if (memory == MAP_FAILED)
		goto fail;
	region->memory = (struct kvr_span){memory, bytes};
	madvise(memory, bytes, MADV_HUGEPAGE); /* where shmem huge pages are allowed on advice */
	madvise(memory, bytes, MADV_DONTDUMP);
	return 0;
fail:
	rc = errno == EMFILE || errno == ENFILE ? -EMFILE : -ENOMEM;
	kvr_region_close(region);
	return rc;
}

static void unmap(const struct kvr_region *region)
{
	if (region->memory.data)
		munmap(region->memory.data, region->memory.bytes);
	if (region->fd >= 0)
		close(region->fd);
}

static void *unmap_thread(void *copy)
{
	unmap(copy);
	free(copy);
	return NULL;
}

/* Takes the region's memory and descriptor. Returns whether a thread does the rest. */
static bool unmap_aside(const struct kvr_region *region)
{
	struct kvr_region *copy = malloc(sizeof(*copy));
	pthread_t thread;

	if (!copy)
		return false;
	*copy = *region;
	if (pthread_create(&thread, NULL, unmap_thread, copy) == 0) {
		pthread_detach(thread);
		return true;
	}
	free(copy);
	return false;
}

void kvr_region_close(struct kvr_region *region)
{
	if (region->memory.bytes < ASIDE_BYTES || !unmap_aside(region))
		unmap(region);
	*region = (struct kvr_region){.fd = -1};
}

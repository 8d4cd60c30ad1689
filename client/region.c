/* SPDX-License-Identifier: Apache-2.0 */
/* region.c: reserving an address range once and mapping memory over it, again and again. */
#include "client/region.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "base/assert.h"
#include "base/limits.h"

int kvr_client_region_init(struct kvr_client_region *region, uint64_t bytes)
{
	const uint64_t align = KVR_CLIENT_REGION_ALIGN;
	uint64_t size, head, tail;
	uint8_t *all;

	KVR_ASSERT(bytes >= 1);
	KVR_ASSERT(bytes <= KVR_REGION_BYTES_MAX);
	size = (bytes + align - 1) / align * align;
	/* Reserve more than needed and give back what is not aligned. */
	all = mmap(
		NULL, size + align, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (all == MAP_FAILED)
		return -ENOMEM;
	head = (align - (uintptr_t)all % align) % align;
	tail = align - head;
	if (head)
		munmap(all, head);
	if (tail)
		munmap(all + head + size, tail);
	region->base = all + head;
	region->bytes = size;
	return 0;
}

void kvr_client_region_fini(struct kvr_client_region *region)
{
	if (region->base)
		munmap(region->base, region->bytes);
	region->base = NULL;
	region->bytes = 0;
}

int kvr_client_region_map(struct kvr_client_region *region, int fd)
{
	const int seals = F_SEAL_SHRINK | F_SEAL_GROW;
	struct stat status;
	int found;

	found = fcntl(fd, F_GET_SEALS);
	if (found < 0 || (found & seals) != seals) /* R2 */
		return -EPROTO;
	if (fstat(fd, &status) != 0 || status.st_size < 0 ||
		(uint64_t)status.st_size != region->bytes)
		return -EPROTO;
	/* MAP_FIXED replaces what was there in one step: no moment without a mapping. */
	if (mmap(region->base, region->bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd,
		    0) == MAP_FAILED)
		return -ENOMEM;
	return 0;
}

bool kvr_client_region_offset(const struct kvr_client_region *region, const void *pointer,
	uint64_t bytes, uint64_t *ret_offset)
{
	uintptr_t base = (uintptr_t)region->base;
	uintptr_t at = (uintptr_t)pointer;

	/* Differences, not sums: nothing here can wrap. */
	if (at < base || at - base > region->bytes || bytes > region->bytes - (at - base))
		return false;
	*ret_offset = at - base;
	return true;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* mapping.c: maps the arena's memory and finds out which pages it got. */
#include <errno.h>
#include <linux/memfd.h>
#include <stdbool.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/assert.h"
#include "tiers/mapping.h"

#define HUGE_BYTES  KVR_MAPPING_ALIGNMENT
#define SMALL_BYTES ((size_t)4096)

/* Reserved 2 MiB pages, or MAP_FAILED where the system has not enough of them. */
static void *map_hugetlb(size_t bytes)
{
	int fd = memfd_create("kvrecall-arena", MFD_CLOEXEC | MFD_HUGETLB | MFD_HUGE_2MB);
	void *memory = MAP_FAILED;

	if (fd < 0)
		return MAP_FAILED;
	if (ftruncate(fd, (off_t)bytes) == 0)
		memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	return memory;
}

/* Anonymous memory on a huge page's boundary, or MAP_FAILED. Anonymous rather than a memfd: most
 * systems give huge pages to anonymous memory that asks, and never to shared memory. */
static void *map_anonymous(size_t bytes)
{
	uint8_t *memory = mmap(NULL, bytes + HUGE_BYTES, PROT_READ | PROT_WRITE,
		MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	size_t before;

	if (memory == MAP_FAILED)
		return MAP_FAILED;
	before = (HUGE_BYTES - (uintptr_t)memory % HUGE_BYTES) % HUGE_BYTES;
	if (before > 0)
		munmap(memory, before);
	munmap(memory + before + bytes, HUGE_BYTES - before);
	return memory + before;
}

/* Advises huge pages and looks whether they come, since the system's settings do not tell all of it:
 * touching the first byte of a huge page makes its last byte resident. */
static bool make_transparent(uint8_t *memory, size_t bytes)
{
	unsigned char resident = 0;

	if (madvise(memory, bytes, MADV_HUGEPAGE) < 0)
		return false;
	*(volatile uint8_t *)memory = 0;
	return mincore(memory + HUGE_BYTES - SMALL_BYTES, SMALL_BYTES, &resident) == 0 &&
	       (resident & 1);
}

/* Locks all, or as much of the start as the limit allows; nothing where other locked memory has
 * used the limit up. MLOCK_ONFAULT locks pages as they are touched: filling tens of GiB now would
 * make every start slow. */
static size_t lock(uint8_t *memory, size_t bytes)
{
	struct rlimit limit;

	if (mlock2(memory, bytes, MLOCK_ONFAULT) == 0)
		return bytes;
	if (getrlimit(RLIMIT_MEMLOCK, &limit) < 0 || limit.rlim_cur >= bytes)
		return 0;
	bytes = limit.rlim_cur / SMALL_BYTES * SMALL_BYTES;
	if (bytes == 0 || mlock2(memory, bytes, MLOCK_ONFAULT) < 0)
		return 0;
	return bytes;
}

int kvr_mapping_open(size_t bytes, struct kvr_mapping *ret_mapping)
{
	enum kvr_pages pages = KVR_PAGES_HUGETLB;
	void *memory;

	KVR_ASSERT(bytes >= HUGE_BYTES);
	KVR_ASSERT(bytes % HUGE_BYTES == 0);
	memory = map_hugetlb(bytes);
	if (memory == MAP_FAILED) {
		memory = map_anonymous(bytes);
		if (memory == MAP_FAILED)
			return -ENOMEM;
		pages = make_transparent(memory, bytes) ? KVR_PAGES_TRANSPARENT : KVR_PAGES_SMALL;
	}
	KVR_ASSERT((uintptr_t)memory % HUGE_BYTES == 0);
	*ret_mapping = (struct kvr_mapping){
		.base = memory,
		.bytes = bytes,
		.locked_bytes = lock(memory, bytes),
		.pages = pages,
	};
	KVR_ASSERT(ret_mapping->locked_bytes <= bytes);
	return 0;
}

void kvr_mapping_close(struct kvr_mapping *mapping)
{
	if (mapping->base)
		munmap(mapping->base, mapping->bytes);
	*mapping = (struct kvr_mapping){0};
}

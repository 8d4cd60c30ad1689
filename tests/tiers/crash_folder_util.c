/* SPDX-License-Identifier: Apache-2.0 */
/* crash_folder_util.c: a simulated disk's files as real ones, and back. */
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/assert.h"
#include "tests/tiers/crash_disk_util.h"

#define RUN_PAGES 256u /* written at once */

static int remove_one(const char *path, const struct stat *status, int kind, struct FTW *walk)
{
	(void)status;
	(void)kind;
	return walk->level == 0 ? 0 : remove(path);
}

/* Writes the pages from `first` on that follow one on the other, `left` at most. Returns how many. */
static uint32_t unload_run(int fd, const struct kvr_disk_node *node, uint32_t first, uint32_t left)
{
	struct iovec run[RUN_PAGES];
	const uint32_t most = left < RUN_PAGES ? left : RUN_PAGES;
	uint32_t count = 0;

	for (; count < most && node->pages[first + count]; count++)
		run[count] = (struct iovec){node->pages[first + count], KVR_DISK_PAGE};
	KVR_ASSERT(pwritev(fd, run, (int)count, (off_t)first * KVR_DISK_PAGE) ==
		   (ssize_t)count * KVR_DISK_PAGE);
	return count;
}

static void unload_file(const struct kvr_disk_node *node, const char *path)
{
	const int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	const uint64_t pages = (node->bytes + KVR_DISK_PAGE - 1) / KVR_DISK_PAGE;
	const uint32_t count = pages < node->page_count ? (uint32_t)pages : node->page_count;

	KVR_ASSERT(fd >= 0);
	for (uint32_t i = 0; i < count;)
		i += node->pages[i] ? unload_run(fd, node, i, count - i) : 1;
	/* The last page may reach beyond the end. */
	KVR_ASSERT(ftruncate(fd, (off_t)node->bytes) == 0);
	close(fd);
}

static void unload(const struct kvr_disk *disk, uint32_t folder, const char *dir)
{
	for (uint32_t i = 0; i < disk->nodes[folder].name_count; i++) {
		const struct kvr_disk_name *name = &disk->nodes[folder].names[i];
		char path[512];

		snprintf(path, sizeof(path), "%s/%s", dir, name->text);
		if (!disk->nodes[name->node].folder) {
			unload_file(&disk->nodes[name->node], path);
			continue;
		}
		KVR_ASSERT(mkdir(path, 0700) == 0);
		unload(disk, name->node, path);
	}
}

void kvr_disk_unload(const struct kvr_disk *disk, const char *dir)
{
	(void)nftw(dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
	unload(disk, KVR_DISK_ROOT, dir);
}

static bool same_file(const struct kvr_disk_node *node, const char *path)
{
	static const uint8_t zeros[KVR_DISK_PAGE];
	uint8_t bytes[KVR_DISK_PAGE];
	const int fd = open(path, O_RDONLY | O_CLOEXEC);
	struct stat status;
	bool same = fd >= 0 && fstat(fd, &status) == 0 && (uint64_t)status.st_size == node->bytes;

	for (uint64_t at = 0; same && at < node->bytes; at += KVR_DISK_PAGE) {
		const uint64_t page = at / KVR_DISK_PAGE;
		const uint8_t *here =
			page < node->page_count && node->pages[page] ? node->pages[page] : zeros;
		const ssize_t count = pread(fd, bytes, sizeof(bytes), (off_t)at);

		same = count > 0 && memcmp(bytes, here, (size_t)count) == 0;
	}
	if (fd >= 0)
		close(fd);
	if (!same)
		fprintf(stderr, "%s is not what was written to it\n", path);
	return same;
}

static bool same(const struct kvr_disk *disk, uint32_t folder, const char *dir, const char *but)
{
	bool all = true;

	for (uint32_t i = 0; i < disk->nodes[folder].name_count; i++) {
		const struct kvr_disk_name *name = &disk->nodes[folder].names[i];
		char path[512];

		snprintf(path, sizeof(path), "%s/%s", dir, name->text);
		if (disk->nodes[name->node].folder)
			all = same(disk, name->node, path, but) && all;
		else if (strcmp(name->text, but) != 0)
			all = same_file(&disk->nodes[name->node], path) && all;
	}
	return all;
}

bool kvr_disk_same(const struct kvr_disk *disk, const char *dir, const char *but)
{
	return same(disk, KVR_DISK_ROOT, dir, but);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* crash_folder_util.c: a simulated disk's files as real ones, and back. */
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/assert.h"
#include "tests/tiers/crash_disk_util.h"

static int remove_one(const char *path, const struct stat *status, int kind, struct FTW *walk)
{
	(void)status;
	(void)kind;
	return walk->level == 0 ? 0 : remove(path);
}

static void unload_file(const struct kvr_disk_node *node, const char *path)
{
	const int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	KVR_ASSERT(fd >= 0);
	KVR_ASSERT(ftruncate(fd, (off_t)node->bytes) == 0);
	for (uint32_t i = 0; i < node->page_count; i++) {
		const uint64_t at = (uint64_t)i * KVR_DISK_PAGE;
		uint64_t some = KVR_DISK_PAGE;

		if (!node->pages[i] || at >= node->bytes)
			continue;
		some = node->bytes - at < some ? node->bytes - at : some;
		KVR_ASSERT(pwrite(fd, node->pages[i], some, (off_t)at) == (ssize_t)some);
	}
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

/* SPDX-License-Identifier: Apache-2.0 */
/* nvme_file.c: opens slabs.kvr, finds out how the disk wants to be spoken to, and takes its blocks.
 *
 *   O_DIRECT ──refused──► page cache          fallocate ──not there──► zeros, written
 *
 * A file that is shorter than its cap is extended; whatever it holds stays. Blocks are taken for the whole file
 * every time, since a crash or a copy may have left holes (N2).
 *
 * Threads: the opener. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/assert.h"
#include "tiers/nvme_state.h"

#define ALIGNMENT_MAX     4096u /* what slabs are laid out for (tiers/slab.h) */
#define ALIGNMENT_UNKNOWN 4096u /* of O_DIRECT, where the kernel does not say */
#define ALIGNMENT_CACHED  512u
#define ZEROS_BYTES       ((size_t)1 << 20)

/* What O_DIRECT asks for on this file; 0 where it cannot be had. */
static uint32_t direct_alignment(int fd)
{
	uint32_t alignment = ALIGNMENT_UNKNOWN;
#ifdef STATX_DIOALIGN
	struct statx stat;

	if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &stat) == 0 &&
		(stat.stx_mask & STATX_DIOALIGN) != 0) {
		alignment = stat.stx_dio_offset_align;
		if (stat.stx_dio_mem_align > alignment)
			alignment = stat.stx_dio_mem_align;
	}
#else
	(void)fd;
#endif
	if (alignment > ALIGNMENT_MAX || (alignment & (alignment - 1)) != 0)
		return 0;
	return alignment;
}

static int open_any(const char *path, struct kvr_nvme_file *file)
{
	const int flags = O_RDWR | O_CREAT | O_CLOEXEC;

	file->fd = open(path, flags | O_DIRECT, 0600);
	file->direct = file->fd >= 0;
	if (file->direct) {
		file->alignment = direct_alignment(file->fd);
		if (file->alignment > 0)
			return 0;
		close(file->fd);
		file->direct = false;
	} else if (errno != EINVAL && errno != EOPNOTSUPP) {
		return -errno;
	}
	file->alignment = ALIGNMENT_CACHED;
	file->fd = open(path, flags, 0600);
	return file->fd < 0 ? -errno : 0;
}

/* Appends zeros up to `bytes`. ftruncate would leave holes, and a hole is an -ENOSPC to come. */
static int write_zeros(int fd, uint64_t at, uint64_t bytes)
{
	uint8_t *zeros = NULL;
	int rc = -posix_memalign((void **)&zeros, ALIGNMENT_MAX, ZEROS_BYTES);

	if (rc < 0)
		return rc;
	memset(zeros, 0, ZEROS_BYTES);
	at -= at % ALIGNMENT_MAX; /* the file ends there, or in a torn block of zeros */
	while (rc == 0 && at < bytes) {
		const uint64_t left = bytes - at;
		ssize_t done =
			pwrite(fd, zeros, left < ZEROS_BYTES ? left : ZEROS_BYTES, (off_t)at);

		if (done > 0)
			at += (uint64_t)done;
		else if (done == 0)
			rc = -ENOSPC;
		else if (errno != EINTR)
			rc = -errno;
	}
	free(zeros);
	return rc;
}

/* N2: gives the file its size and its blocks. On an error it has its old size. */
static int take_blocks(int fd, uint64_t size, uint64_t bytes)
{
	int rc = 0;

	KVR_ASSERT(size <= bytes);
	while (fallocate(fd, 0, 0, (off_t)bytes) < 0 && rc == 0)
		rc = errno == EINTR ? 0 : -errno;
	if (rc == -EOPNOTSUPP || rc == -ENOSYS)
		rc = write_zeros(fd, size, bytes);
	if (rc == 0 && fsync(fd) < 0)
		rc = -errno;
	if (rc == 0)
		return 0;
	/* An -EFBIG of the system's is a limit on what may be taken: RLIMIT_FSIZE, or the file system's own. */
	if (rc == -EFBIG)
		rc = -ENOSPC;
	if (ftruncate(fd, (off_t)size) < 0)
		rc = -ENOSPC; /* nothing to add: the first error says what is wrong */
	return rc;
}

/* A new file is there after a crash when its directory says so. */
static int sync_folder(const char *path)
{
	char folder[PATH_MAX];
	const char *slash = strrchr(path, '/');
	const size_t length = slash ? (size_t)(slash - path) : 0;
	int rc = 0;
	int fd;

	if (length >= sizeof(folder))
		return -ENAMETOOLONG;
	memcpy(folder, path, length);
	folder[length] = '\0';
	fd = open(length > 0 ? folder : slash ? "/" : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	if (fsync(fd) < 0 && errno != EINVAL)
		rc = -errno;
	close(fd);
	return rc;
}

int kvr_nvme_file_open(const char *path, uint64_t bytes, struct kvr_nvme_file *ret_file)
{
	struct kvr_nvme_file file;
	struct stat stat;
	int rc = open_any(path, &file);

	if (rc < 0)
		return rc;
	rc = fstat(file.fd, &stat) < 0 ? -errno : 0;
	if (rc < 0)
		goto fail;
	rc = !S_ISREG(stat.st_mode) ? -EINVAL : (uint64_t)stat.st_size > bytes ? -EFBIG : 0;
	if (rc < 0)
		goto fail;
	rc = take_blocks(file.fd, (uint64_t)stat.st_size, bytes);
	if (rc < 0)
		goto fail;
	rc = sync_folder(path);
	if (rc < 0)
		goto fail;
	*ret_file = file;
	return 0;

fail:
	close(file.fd);
	return rc;
}

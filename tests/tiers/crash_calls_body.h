/* SPDX-License-Identifier: Apache-2.0 */
/* crash_calls_body.h: system calls of a test program that pass through the recorder. Included by one file of it.
 *
 * The dynamic linker finds a program's definitions before the C library's, for calls from shared libraries, too. Those of LMDB
 * and of the tiers are all here, in the names that they use; what is missing shows when files are compared with the log. */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/assert.h"
#include "tests/tiers/crash_record_util.h"

#define CALL __attribute__((visibility("default")))

static mode_t mode_of(int flags, va_list arguments)
{
	return flags & (O_CREAT | O_TMPFILE) ? va_arg(arguments, mode_t) : 0;
}

CALL int open(const char *path, int flags, ...)
{
	va_list arguments;
	mode_t mode;

	va_start(arguments, flags);
	mode = mode_of(flags, arguments);
	va_end(arguments);
	return kvr_record_open(AT_FDCWD, path, flags, mode);
}

CALL int openat(int folder, const char *path, int flags, ...)
{
	va_list arguments;
	mode_t mode;

	va_start(arguments, flags);
	mode = mode_of(flags, arguments);
	va_end(arguments);
	return kvr_record_open(folder, path, flags, mode);
}

CALL ssize_t pread(int fd, void *data, size_t bytes, off_t at)
{
	return kvr_record_pread(fd, data, bytes, at);
}

CALL ssize_t pwrite(int fd, const void *data, size_t bytes, off_t at)
{
	return kvr_record_pwrite(fd, data, bytes, at);
}

/* At the file's own place. Files below the root are written in this way by one thread each. */
CALL ssize_t write(int fd, const void *data, size_t bytes)
{
	const off_t at = kvr_record_knows(fd) ? lseek(fd, 0, SEEK_CUR) : -1;
	ssize_t rc;

	if (at < 0)
		return (ssize_t)syscall(SYS_write, fd, data, bytes);
	rc = kvr_record_pwrite(fd, data, bytes, at);
	if (rc > 0)
		lseek(fd, rc, SEEK_CUR);
	return rc;
}

CALL ssize_t writev(int fd, const struct iovec *parts, int count)
{
	ssize_t all = 0;

	if (!kvr_record_knows(fd))
		return (ssize_t)syscall(SYS_writev, fd, parts, count);
	for (int i = 0; i < count; i++) {
		const ssize_t rc = write(fd, parts[i].iov_base, parts[i].iov_len);

		if (rc < 0)
			return all > 0 ? all : rc;
		all += rc;
		if ((size_t)rc < parts[i].iov_len)
			break;
	}
	return all;
}

CALL int fsync(int fd)
{
	return kvr_record_sync(fd, false);
}

CALL int fdatasync(int fd)
{
	return kvr_record_sync(fd, true);
}

CALL int ftruncate(int fd, off_t bytes)
{
	return kvr_record_ftruncate(fd, bytes);
}

CALL int fallocate(int fd, int mode, off_t at, off_t bytes)
{
	return kvr_record_fallocate(fd, mode, at, bytes);
}

CALL int mkdir(const char *path, mode_t mode)
{
	return kvr_record_mkdir(path, mode);
}

CALL int rename(const char *from, const char *to)
{
	return kvr_record_rename(from, to, 0);
}

CALL int renameat2(
	int from_folder, const char *from, int to_folder, const char *to, unsigned int flags)
{
	KVR_ASSERT(from_folder == AT_FDCWD);
	KVR_ASSERT(to_folder == AT_FDCWD);
	return kvr_record_rename(from, to, flags);
}

CALL int unlink(const char *path)
{
	return kvr_record_unlink(AT_FDCWD, path, 0);
}

CALL int unlinkat(int folder, const char *path, int flags)
{
	return kvr_record_unlink(folder, path, flags);
}

CALL int rmdir(const char *path)
{
	return kvr_record_unlink(AT_FDCWD, path, AT_REMOVEDIR);
}

/* What is written through a mapping is not seen, and so must not be what is to last. */
CALL int msync(void *memory, size_t bytes, int flags)
{
	(void)memory;
	(void)bytes;
	(void)flags;
	KVR_ASSERT(false);
	return -1;
}

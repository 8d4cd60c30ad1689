/* SPDX-License-Identifier: Apache-2.0 */
/* store_dir.c: the store's directory, the lock that makes it one daemon's, and the secret.
 *
 *   DIR/           0700
 *     lock         flock, and the pid of who has it, for the message to others
 *     secret       0600, KVR_STORE_SECRET_BYTES random bytes; made once, before anything else is
 *     slabs.kvr    tiers/nvme.h
 *     catalog/     tiers/catalog.h
 *     catalog.new/, catalog.old/   a rebuild's
 *
 * A lock file is never removed: another process might have it open and lock what has no name any
 * more.
 *
 * Threads: the opener's. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/assert.h"
#include "tiers/store_private.h"

#define PID_BYTES 16u

int kvr_store_say_why(char *ret_text, int error, const char *dir, const char *format, ...)
{
	va_list arguments;
	int at;

	KVR_ASSERT(error < 0);
	at = snprintf(ret_text, KVR_STORE_TEXT_MAX, "store %s: ", dir);
	if (at < 0 || at >= (int)KVR_STORE_TEXT_MAX)
		return error;
	va_start(arguments, format);
	(void)vsnprintf(ret_text + at, KVR_STORE_TEXT_MAX - (size_t)at, format, arguments);
	va_end(arguments);
	return error;
}

int kvr_store_say_version(char *ret_text, const char *dir, uint32_t version, uint32_t own)
{
	KVR_ASSERT(version != own);
	if (version == 0 || version > own)
		return kvr_store_say_why(ret_text, -EPROTONOSUPPORT, dir,
			"made by a newer version: use that one, or give another store");
	return kvr_store_say_why(ret_text, -EPROTONOSUPPORT, dir,
		"made by an older version (format %u, not %u): use that one, or remove the store "
		"to "
		"begin anew",
		version, own);
}

int kvr_store_path(const char *dir, const char *name, char ret_path[KVR_STORE_PATH_MAX])
{
	const int bytes = snprintf(ret_path, KVR_STORE_PATH_MAX, "%s/%s", dir, name);

	return bytes > 0 && bytes < (int)KVR_STORE_PATH_MAX ? 0 : -ENAMETOOLONG;
}

bool kvr_store_exists(const char *dir, const char *name)
{
	char path[KVR_STORE_PATH_MAX];
	struct stat status;

	return kvr_store_path(dir, name, path) == 0 && lstat(path, &status) == 0;
}

int kvr_store_sync_dir(const char *dir)
{
	int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	int rc;

	if (fd < 0)
		return -errno;
	rc = fsync(fd) < 0 ? -errno : 0;
	close(fd);
	return rc;
}

/* ---- the lock -------------------------------------------------------------------------------- */

/* Who has the lock, or 0. */
static long read_pid(int fd)
{
	char text[PID_BYTES] = {0};
	const ssize_t bytes = pread(fd, text, sizeof(text) - 1, 0);

	return bytes > 0 ? strtol(text, NULL, 10) : 0;
}

static int write_pid(int fd)
{
	char text[PID_BYTES];
	const int bytes = snprintf(text, sizeof(text), "%ld\n", (long)getpid());

	if (ftruncate(fd, 0) < 0 || pwrite(fd, text, (size_t)bytes, 0) != bytes)
		return errno ? -errno : -EIO;
	return 0;
}

int kvr_store_lock(const char *dir, bool make, int *ret_fd, char *ret_text)
{
	char path[KVR_STORE_PATH_MAX];
	int rc = kvr_store_path(dir, "lock", path);
	int fd;

	if (rc < 0)
		return kvr_store_say_why(ret_text, rc, dir, "the path is too long");
	if (make && mkdir(dir, 0700) < 0 && errno != EEXIST)
		return kvr_store_say_why(ret_text, -errno, dir,
			"cannot make it (%s): make its parent, or give another one",
			strerror(errno));
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0)
		return kvr_store_say_why(ret_text, -errno, dir,
			"cannot open its lock (%s): look at owner and mode", strerror(errno));
	if (flock(fd, LOCK_EX | LOCK_NB) < 0) {
		rc = errno == EWOULDBLOCK ? -EBUSY : -errno;
		(void)kvr_store_say_why(ret_text, rc, dir,
			"in use by process %ld: stop that one, or give this one another store",
			read_pid(fd));
		close(fd);
		return rc;
	}
	rc = write_pid(fd);
	if (rc < 0) {
		(void)kvr_store_say_why(
			ret_text, rc, dir, "cannot write its lock (%s)", strerror(-rc));
		close(fd);
		return rc;
	}
	*ret_fd = fd;
	return 0;
}

/* ---- the secret ------------------------------------------------------------------------------ */

static int read_secret(const char *path, uint8_t ret_secret[KVR_STORE_SECRET_BYTES])
{
	uint8_t bytes[KVR_STORE_SECRET_BYTES + 1];
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	ssize_t count;

	if (fd < 0)
		return -errno;
	count = read(fd, bytes, sizeof(bytes));
	close(fd);
	if (count != (ssize_t)KVR_STORE_SECRET_BYTES)
		return -EBADMSG;
	memcpy(ret_secret, bytes, KVR_STORE_SECRET_BYTES);
	return 0;
}

/* Durable before anything is named with it: first whole, then under its name. */
static int make_secret(
	const char *dir, const char *path, const uint8_t secret[KVR_STORE_SECRET_BYTES])
{
	char fresh[KVR_STORE_PATH_MAX];
	char parent[KVR_STORE_PATH_MAX];
	int rc = kvr_store_path(dir, "secret.new", fresh);
	int fd;

	if (rc < 0)
		return rc;
	fd = open(fresh, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0)
		return -errno;
	errno = 0;
	if (write(fd, secret, KVR_STORE_SECRET_BYTES) != (ssize_t)KVR_STORE_SECRET_BYTES ||
		fsync(fd) < 0)
		rc = errno ? -errno : -EIO;
	close(fd);
	/* A store that has its secret has its own name, too. Who may not read the parent did not make the store in it. */
	if (rc == 0)
		rc = kvr_store_path(dir, "..", parent);
	if (rc == 0)
		rc = kvr_store_sync_dir(parent);
	if (rc == -EACCES)
		rc = 0;
	if (rc == 0 && rename(fresh, path) < 0)
		rc = -errno;
	return rc < 0 ? rc : kvr_store_sync_dir(dir);
}

int kvr_store_secret_load(
	const char *dir, bool make, uint8_t ret_secret[KVR_STORE_SECRET_BYTES], char *ret_text)
{
	char path[KVR_STORE_PATH_MAX];
	int rc = kvr_store_path(dir, "secret", path);

	if (rc == 0)
		rc = read_secret(path, ret_secret);
	if (rc == 0)
		return 0;
	if (rc != -ENOENT)
		return kvr_store_say_why(ret_text, rc, dir,
			"its secret cannot be read (%s): put back the file `secret` as it was",
			strerror(-rc));
	if (!make || kvr_store_exists(dir, "slabs.kvr") || kvr_store_exists(dir, "catalog"))
		return kvr_store_say_why(ret_text, -EBADMSG, dir,
			"the file `secret` is missing, and without it nothing can be found: put it "
			"back, or remove slabs.kvr and catalog to begin anew");
	if (getrandom(ret_secret, KVR_STORE_SECRET_BYTES, 0) != (ssize_t)KVR_STORE_SECRET_BYTES)
		return kvr_store_say_why(ret_text, -EIO, dir, "the system has no random bytes");
	rc = make_secret(dir, path, ret_secret);
	if (rc < 0)
		return kvr_store_say_why(
			ret_text, rc, dir, "cannot write its secret (%s)", strerror(-rc));
	return 0;
}

/* ---- catalogs -------------------------------------------------------------------------------- */

/* Removes a folder of files, if it is there. */
static int remove_folder(const char *dir, const char *name)
{
	char path[KVR_STORE_PATH_MAX];
	int rc = kvr_store_path(dir, name, path);
	struct dirent *entry;
	DIR *folder;

	if (rc < 0)
		return rc;
	folder = opendir(path);
	if (!folder)
		return errno == ENOENT ? 0 : -errno;
	while ((entry = readdir(folder)) != NULL) {
		if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
			continue;
		if (unlinkat(dirfd(folder), entry->d_name, 0) < 0)
			rc = -errno;
	}
	closedir(folder);
	if (rc == 0 && rmdir(path) < 0)
		rc = -errno;
	return rc;
}

int kvr_store_catalog_clear(const char *dir)
{
	return remove_folder(dir, KVR_STORE_CATALOG_NEW);
}

/* At every moment there is a whole catalog under the name, if there was one before. */
int kvr_store_catalog_replace(const char *dir)
{
	char fresh[KVR_STORE_PATH_MAX];
	char now[KVR_STORE_PATH_MAX];
	char old[KVR_STORE_PATH_MAX];
	int rc = kvr_store_path(dir, KVR_STORE_CATALOG_NEW, fresh);

	if (rc == 0)
		rc = kvr_store_path(dir, "catalog", now);
	if (rc == 0)
		rc = kvr_store_path(dir, "catalog.old", old);
	if (rc == 0)
		rc = remove_folder(dir, "catalog.old");
	if (rc < 0)
		return rc;
	if (renameat2(AT_FDCWD, fresh, AT_FDCWD, now, RENAME_EXCHANGE) == 0) {
		if (rename(fresh, old) < 0)
			return -errno;
	} else if (errno != ENOENT || rename(fresh, now) < 0) {
		return -errno;
	}
	return kvr_store_sync_dir(dir);
}

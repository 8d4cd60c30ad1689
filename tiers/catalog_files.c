/* SPDX-License-Identifier: Apache-2.0 */
/* catalog_files.c: the catalog's directory: whose it is, and a look at its files before LMDB has
 * them.
 *
 * Files in the directory: data.mdb and lock.mdb are LMDB's. `owner` is held with flock by the
 * process that has the catalog open; its first line is that process's id, its second one,
 * "complete", says that data.mdb has been there, so that a lost one is not taken for a new one. Until
 * then it is "new": nothing was acknowledged, and a data.mdb that a crash left half made is made anew. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/assert.h"
#include "tiers/catalog_lmdb.h"

#define OWNER_BYTES 64u
#define COMPLETE    "complete\n"
#define NEW         "new\n"

const char *const kvr_catalog_names[KVR_CATALOG_TABLES] = {
	"meta", "tenant", "model", "segment", "child", "cluster", "slab", "state", "use", "merged"};

const char *const kvr_catalog_lazy[] = {"cluster", "merged", NULL};

/* The directory. */
int kvr_catalog_files_open(struct kvr_catalog *catalog, const char *dir)
{
	if (mkdir(dir, 0700) < 0 && errno != EEXIST)
		return -errno;
	catalog->directory_fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return catalog->directory_fd < 0 ? -errno : 0;
}

static bool second_line_is(const char *text, const char *line)
{
	const char *end = strchr(text, '\n');

	return end && strcmp(end + 1, line) == 0;
}

/* Writes process id and mark. The length is always the same, so that a crash leaves the old ones or
 * the new ones. */
static int write_owner(struct kvr_catalog *catalog, bool complete)
{
	char text[OWNER_BYTES];
	int bytes = snprintf(
		text, sizeof(text), "%010ld\n%s", (long)catalog->pid, complete ? COMPLETE : NEW);

	KVR_ASSERT(bytes > 0);
	KVR_ASSERT((size_t)bytes < sizeof(text));
	if (pwrite(catalog->owner_fd, text, (size_t)bytes, 0) != bytes)
		return -EIO;
	return ftruncate(catalog->owner_fd, bytes) < 0 ? -errno : 0;
}

/* What has been made is found after a crash: the files' names, the directory's, and only then, by a
 * flush of its own, that it was there. */
int kvr_catalog_files_keep(struct kvr_catalog *catalog)
{
	int parent;
	int error;

	if (fsync(catalog->directory_fd) < 0)
		return -errno;
	parent = openat(catalog->directory_fd, "..", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (parent < 0)
		return -errno;
	error = fsync(parent) < 0 ? -errno : 0;
	close(parent);
	if (error == 0)
		error = write_owner(catalog, true);
	if (error == 0 && fsync(catalog->owner_fd) < 0)
		error = -errno;
	return error;
}

static ssize_t read_owner(int fd, char ret_text[OWNER_BYTES])
{
	const ssize_t bytes = pread(fd, ret_text, OWNER_BYTES - 1, 0);

	ret_text[bytes > 0 ? bytes : 0] = '\0';
	return bytes;
}

static bool has_data(const struct kvr_catalog *catalog)
{
	struct stat stat;

	return fstatat(catalog->directory_fd, "data.mdb", &stat, AT_SYMLINK_NOFOLLOW) == 0;
}

int kvr_catalog_files_lock(struct kvr_catalog *catalog, bool *ret_complete)
{
	char text[OWNER_BYTES];
	bool is_new;
	int error;

	catalog->owner_fd =
		openat(catalog->directory_fd, "owner", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (catalog->owner_fd < 0)
		return -errno;
	if (flock(catalog->owner_fd, LOCK_EX | LOCK_NB) < 0)
		return errno == EWOULDBLOCK ? -EBUSY : -errno;
	if (read_owner(catalog->owner_fd, text) < 0)
		return -errno;
	is_new = second_line_is(text, NEW);
	*ret_complete = second_line_is(text, COMPLETE) || (!is_new && has_data(catalog));
	error = write_owner(catalog, *ret_complete);
	if (error < 0 || *ret_complete || is_new)
		return error;
	/* It says so, durably, before data.mdb is begun: what is half made after a crash is known for that. */
	return fsync(catalog->owner_fd) < 0 || fsync(catalog->directory_fd) < 0 ? -errno : 0;
}

int kvr_catalog_owner(const char *dir)
{
	char text[OWNER_BYTES];
	int directory_fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	int pid = 0;
	int fd;

	if (directory_fd < 0)
		return 0;
	fd = openat(directory_fd, "owner", O_RDONLY | O_CLOEXEC);
	close(directory_fd);
	if (fd < 0)
		return 0;
	/* Shared and at once given back: nobody who wants it for good comes to wait. */
	if (flock(fd, LOCK_SH | LOCK_NB) < 0 && errno == EWOULDBLOCK && read_owner(fd, text) > 0)
		pid = (int)strtol(text, NULL, 10);
	close(fd);
	return pid > 0 ? pid : 0;
}

/* What a row of table meta was in the commit of a meta page; no bytes if there is none, or no
 * commit. */
static int meta_row(int fd, uint32_t slot, struct kvr_catalog_key *key,
	uint8_t room[KVR_CATALOG_VALUE_MAX], struct kvr_span *ret_value, uint64_t *ret_transaction)
{
	size_t bytes = 0;
	int error = kvr_catalog_tree_value(fd, slot, kvr_catalog_names[KVR_CATALOG_META],
		(struct kvr_span){key->data, key->bytes},
		(struct kvr_span){room, KVR_CATALOG_VALUE_MAX}, &bytes, ret_transaction);

	*ret_value = (struct kvr_span){room, bytes};
	return error;
}

/* Whether both commits that the file shows are of this version, and say which ones they are. If the
 * newest one's number were not the one that it was given, LMDB would take the one before for the
 * newest. */
static int look_at_commits(int fd, uint32_t *ret_version)
{
	struct kvr_catalog_key keys[] = {
		kvr_catalog_key_text("store"), kvr_catalog_key_text("commit")};
	int error = 0;

	for (uint32_t slot = 0; error == 0 && slot < 2; slot++) {
		uint8_t room[KVR_CATALOG_VALUE_MAX];
		struct kvr_catalog_meta meta = {0};
		struct kvr_catalog_commit commit = {0};
		struct kvr_span value;
		uint64_t transaction = 0;

		error = meta_row(fd, slot, &keys[0], room, &value, &transaction);
		if (error < 0 || transaction == 0)
			continue;
		error = kvr_catalog_unpack_meta(
			(struct kvr_span){keys[0].data, keys[0].bytes}, value, &meta);
		*ret_version = meta.version;
		if (error == 0)
			error = meta_row(fd, slot, &keys[1], room, &value, &transaction);
		if (error == 0)
			error = kvr_catalog_unpack_commit(
				(struct kvr_span){keys[1].data, keys[1].bytes}, value, &commit);
		if (error == 0 && commit.transaction != transaction)
			error = -EBADMSG;
	}
	return error;
}

/* What is there already: nothing, or a file that LMDB can follow and that keeps to the cap. */
int kvr_catalog_files_look(struct kvr_catalog *catalog, bool complete,
	struct kvr_catalog_tree_report *ret_report, uint32_t *ret_version)
{
	static const char *const files[] = {"data.mdb", "lock.mdb", "owner"};
	struct stat stat;
	uint64_t bytes = 0;
	int error;
	int fd;

	*ret_report = (struct kvr_catalog_tree_report){0};
	for (uint32_t i = 0; i < 3; i++)
		if (fstatat(catalog->directory_fd, files[i], &stat, AT_SYMLINK_NOFOLLOW) == 0)
			bytes += (uint64_t)stat.st_blocks * 512;
	if (bytes > catalog->cap_bytes) /* C3 */
		return -EFBIG;
	fd = openat(catalog->directory_fd, "data.mdb", O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	if (fd < 0)
		return errno != ENOENT ? -errno : complete ? -EBADMSG : 0;
	error = fstat(fd, &stat) < 0 ? -errno : 0;
	if (error == 0 && stat.st_size > 0)
		error = kvr_catalog_tree_check(
			fd, catalog->map_bytes, kvr_catalog_lazy, ret_report);
	if (error == 0 && stat.st_size > 0)
		error = look_at_commits(fd, ret_version);
	close(fd);
	if (error == -EBADMSG && !complete) {
		*ret_report = (struct kvr_catalog_tree_report){0};
		return unlinkat(catalog->directory_fd, "data.mdb", 0) < 0 ? -errno : 0;
	}
	if (error < 0)
		return error;
	return complete && ret_report->transaction == 0 ? -EBADMSG : 0;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* scratch_util.c: see scratch_util.h. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include "tests/daemon/scratch_util.h"

#include <dirent.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define SCRATCHES   16
#define PATH_BYTES  128
#define PREFIX      "kvrecall-test-store-"
#define AGE_SECONDS 60 /* who has just made one may not have locked it yet */

static struct scratch {
	char path[PATH_BYTES]; /* "": free */
	int lock_fd;
} scratches[SCRATCHES];

static pid_t maker; /* children that exit remove nothing */

static const char *base(void)
{
	const char *given = getenv("KVR_TEST_DIR");

	return given ? given : "/tmp";
}

static int remove_one(const char *path, const struct stat *stat, int kind, struct FTW *at)
{
	(void)stat;
	(void)kind;
	(void)at;
	return remove(path);
}

void scratch_remove_tree(const char *path)
{
	nftw(path, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

/* ---- what nobody removed --------------------------------------------------------------------- */

static void remove_all(void)
{
	if (getpid() != maker)
		return;
	for (int i = 0; i < SCRATCHES; i++) {
		if (scratches[i].path[0])
			scratch_remove_tree(scratches[i].path);
	}
}

/* The lock's descriptor if nobody else has it, or -1. */
static int lock_folder(const char *path)
{
	const int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);

	if (fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) < 0) {
		close(fd);
		return -1;
	}
	return fd;
}

/* Those of programs that were killed. */
static void remove_stale(void)
{
	char path[PATH_BYTES + 300];
	struct dirent *entry;
	struct stat stat;
	DIR *folder = opendir(base());
	int fd;

	while (folder && (entry = readdir(folder))) {
		if (strncmp(entry->d_name, PREFIX, strlen(PREFIX)) != 0)
			continue;
		snprintf(path, sizeof(path), "%s/%s", base(), entry->d_name);
		if (lstat(path, &stat) < 0 || stat.st_uid != geteuid() ||
			stat.st_mtime + AGE_SECONDS > time(NULL))
			continue;
		fd = lock_folder(path);
		if (fd < 0)
			continue;
		scratch_remove_tree(path);
		close(fd);
	}
	if (folder)
		closedir(folder);
}

/* ---- making, moving, removing ---------------------------------------------------------------- */

static struct scratch *find(const char *path)
{
	for (int i = 0; i < SCRATCHES; i++) {
		if (strcmp(scratches[i].path, path) == 0)
			return &scratches[i];
	}
	fail_msg("no scratch folder %s", path[0] ? path : "is free");
	return NULL;
}

void scratch_make(char *ret_path, size_t bytes)
{
	struct scratch *scratch = find("");

	if (maker != getpid()) {
		maker = getpid();
		atexit(remove_all);
		remove_stale();
	}
	snprintf(scratch->path, sizeof(scratch->path), "%s/" PREFIX "XXXXXX", base());
	if (!mkdtemp(scratch->path)) {
		scratch->path[0] = '\0';
		fail_msg("no folder can be made in %s", base());
	}
	scratch->lock_fd = lock_folder(scratch->path);
	assert_true(scratch->lock_fd >= 0);
	assert_true(strlen(scratch->path) < bytes);
	memcpy(ret_path, scratch->path, strlen(scratch->path) + 1);
}

void scratch_remove(const char *path)
{
	struct scratch *scratch = find(path);

	scratch_remove_tree(path);
	close(scratch->lock_fd);
	scratch->path[0] = '\0';
}

void scratch_move(const char *from, char *ret_to, size_t bytes)
{
	scratch_make(ret_to, bytes);
	/* An empty folder may be replaced: the lock on what is moved goes with it, and the new path's entry is kept. */
	assert_int_equal(rename(from, ret_to), 0);
	close(find(ret_to)->lock_fd);
	find(ret_to)->lock_fd = find(from)->lock_fd;
	find(from)->path[0] = '\0';
}

static void copy_file(const char *from, const char *to)
{
	const int in = open(from, O_RDONLY | O_CLOEXEC);
	const int out = open(to, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	ssize_t done;

	assert_true(in >= 0);
	assert_true(out >= 0);
	while ((done = sendfile(out, in, NULL, 1u << 30)) > 0)
		;
	assert_int_equal(done, 0);
	close(in);
	close(out);
}

void scratch_copy(const char *from, const char *to)
{
	char from_path[512], to_path[512];
	struct dirent *entry;
	struct stat stat;
	DIR *folder = opendir(from);

	assert_non_null(folder);
	while ((entry = readdir(folder))) {
		if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
			continue;
		snprintf(from_path, sizeof(from_path), "%s/%s", from, entry->d_name);
		snprintf(to_path, sizeof(to_path), "%s/%s", to, entry->d_name);
		assert_int_equal(lstat(from_path, &stat), 0);
		if (S_ISDIR(stat.st_mode)) {
			(void)mkdir(to_path, 0700); /* or it is there */
			scratch_copy(from_path, to_path);
		} else {
			copy_file(from_path, to_path);
		}
	}
	closedir(folder);
}

static uint64_t blocks;

static int add_one(const char *path, const struct stat *stat, int kind, struct FTW *at)
{
	(void)path;
	(void)at;
	if (kind == FTW_F)
		blocks += (uint64_t)stat->st_blocks * 512;
	return 0;
}

uint64_t scratch_blocks(const char *path)
{
	blocks = 0;
	nftw(path, add_one, 8, FTW_PHYS);
	return blocks;
}

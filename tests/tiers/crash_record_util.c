/* SPDX-License-Identifier: Apache-2.0 */
/* crash_record_util.c: system calls written down. */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/assert.h"
#include "tests/tiers/crash_record_util.h"

#define CALLS_MAX  65536u
#define PATH_BYTES 512u

struct place {
	uint32_t folder;
	const char *name;
};

static struct recorder {
	pthread_mutex_t mutex; /* guards the rest; a call that is written down is made under it */
	bool on;
	char root[PATH_BYTES];
	struct kvr_disk disk;         /* names, as they are now; no bytes */
	ino_t inodes[KVR_DISK_NODES]; /* 0: it has no name any more */
	struct kvr_disk_log log;
	struct kvr_record_plan plan;
	uint32_t calls, flushes;
	bool failed;
	uint8_t kinds[CALLS_MAX];
} recorder = {.mutex = PTHREAD_MUTEX_INITIALIZER};

/* ---- which file ------------------------------------------------------------------------------ */

static uint32_t node_of_inode(ino_t inode)
{
	for (uint32_t i = 0; i < recorder.disk.node_count; i++) {
		if (recorder.inodes[i] == inode)
			return i;
	}
	return KVR_DISK_NONE;
}

static uint32_t node_of(int fd)
{
	struct stat status;

	if (!recorder.on || fstat(fd, &status) < 0)
		return KVR_DISK_NONE;
	return node_of_inode(status.st_ino);
}

/* The folder and the name of a path below the root. */
static bool find_place(const char *path, struct place *ret_place)
{
	const size_t bytes = strlen(recorder.root);
	uint32_t folder = KVR_DISK_ROOT;
	const char *slash;

	if (!recorder.on || strncmp(path, recorder.root, bytes) != 0 || path[bytes] != '/')
		return false;
	path += bytes + 1;
	while ((slash = strchr(path, '/')) != NULL) {
		char name[KVR_DISK_TEXT];

		snprintf(name, sizeof(name), "%.*s", (int)(slash - path), path);
		folder = kvr_disk_find(&recorder.disk, folder, name);
		if (folder == KVR_DISK_NONE)
			return false;
		path = slash + 1;
	}
	*ret_place = (struct place){folder, path};
	return true;
}

/* Likewise of a path that may begin at an open folder. */
static bool find_place_at(int folder, const char *path, struct place *ret_place)
{
	if (path[0] == '/')
		return find_place(path, ret_place);
	if (folder == AT_FDCWD || strcmp(path, "..") == 0)
		return false;
	*ret_place = (struct place){node_of(folder), path};
	return ret_place->folder != KVR_DISK_NONE;
}

/* ---- events ---------------------------------------------------------------------------------- */

static void add(const struct kvr_disk_event *event)
{
	kvr_disk_log_add(&recorder.log, event);
	if (event->op >= KVR_DISK_LINK && event->op <= KVR_DISK_EXCHANGE)
		kvr_disk_apply(&recorder.disk, event);
}

static void add_name(enum kvr_disk_op op, struct place place, const char *other)
{
	struct kvr_disk_event event = {.op = op, .node = place.folder};

	snprintf(event.name, sizeof(event.name), "%s", place.name);
	snprintf(event.other, sizeof(event.other), "%s", other);
	add(&event);
}

static void add_new(struct place place, bool folder, ino_t inode)
{
	struct kvr_disk_event event = {
		.op = KVR_DISK_LINK,
		.node = place.folder,
		.folder = folder,
		.target = recorder.disk.node_count,
	};

	KVR_ASSERT(recorder.disk.node_count < KVR_DISK_NODES);
	snprintf(event.name, sizeof(event.name), "%s", place.name);
	add(&event);
	recorder.inodes[event.target] = inode;
}

static void add_write(int fd, uint32_t node, const void *data, uint64_t bytes, off_t at)
{
	const int flags = fcntl(fd, F_GETFL);
	struct kvr_disk_event event = {
		.op = KVR_DISK_WRITE,
		.node = node,
		.at = (uint64_t)at,
		.bytes = bytes,
		.data = (uint8_t *)(uintptr_t)data, /* copied */
		.through = (flags & O_DSYNC) != 0,
	};

	if (event.through && ++recorder.flushes == recorder.plan.swallow)
		event.through = false;
	add(&event);
}

/* ---- faults ---------------------------------------------------------------------------------- */

/* Counts a call. Whether it is the one that fails, in this way. */
static bool begin(enum kvr_record_call call)
{
	KVR_ASSERT(recorder.calls < CALLS_MAX);
	recorder.kinds[recorder.calls++] = (uint8_t)call;
	if (recorder.calls != recorder.plan.fault_at)
		return false;
	recorder.failed = true;
	return true;
}

/* Whether a call that is to fail does nothing. */
static bool refuse(bool fails)
{
	if (!fails || recorder.plan.fault >= KVR_RECORD_SHORT)
		return false;
	errno = recorder.plan.fault == KVR_RECORD_EIO ? EIO : ENOSPC;
	return true;
}

/* What a call that was done says. */
static ssize_t end(bool fails, ssize_t rc)
{
	if (!fails || recorder.plan.fault != KVR_RECORD_LATE || rc < 0)
		return rc;
	if (rc > 0 && recorder.kinds[recorder.calls - 1] == KVR_RECORD_NAME)
		close((int)rc); /* an open */
	errno = EIO;
	return -1;
}

/* How much a call is to move: all, or half, in sectors where there are some. */
static size_t share_of(bool fails, size_t bytes)
{
	if (!fails || recorder.plan.fault != KVR_RECORD_SHORT)
		return bytes;
	bytes /= 2;
	return bytes > KVR_DISK_SECTOR ? bytes / KVR_DISK_SECTOR * KVR_DISK_SECTOR : bytes;
}

/* ---- calls: each locked here ----------------------------------------------------------------- */

static void lock(void)
{
	pthread_mutex_lock(&recorder.mutex);
}

/* errno is the call's. */
static void unlock(void)
{
	const int error = errno;

	pthread_mutex_unlock(&recorder.mutex);
	errno = error;
}

bool kvr_record_knows(int fd)
{
	bool known;

	lock();
	known = node_of(fd) != KVR_DISK_NONE;
	unlock();
	return known;
}

/* A file that was opened: a new name, or one that is emptied. */
static void adopt(int fd, struct place place, int flags)
{
	const bool is_new =
		kvr_disk_find(&recorder.disk, place.folder, place.name) == KVR_DISK_NONE;
	struct stat status;

	KVR_ASSERT(fstat(fd, &status) == 0);
	if (is_new && (flags & O_CREAT))
		add_new(place, false, status.st_ino);
	else if (flags & O_TRUNC)
		add(&(struct kvr_disk_event){
			.op = KVR_DISK_RESIZE, .node = node_of_inode(status.st_ino)});
}

int kvr_record_open(int folder, const char *path, int flags, mode_t mode)
{
	struct place place;
	int fd = -1;

	lock();
	if (!find_place_at(folder, path, &place)) {
		fd = (int)syscall(SYS_openat, folder, path, flags, mode);
	} else {
		const bool fails = begin(KVR_RECORD_NAME);

		if (!refuse(fails))
			fd = (int)syscall(SYS_openat, folder, path, flags, mode);
		if (fd >= 0)
			adopt(fd, place, flags);
		fd = (int)end(fails, fd);
	}
	unlock();
	return fd;
}

ssize_t kvr_record_pread(int fd, void *data, size_t bytes, off_t at)
{
	ssize_t rc = -1;
	bool fails = false;

	lock();
	if (node_of(fd) != KVR_DISK_NONE)
		fails = begin(KVR_RECORD_READ);
	bytes = share_of(fails, bytes);
	if (!refuse(fails))
		rc = (ssize_t)syscall(SYS_pread64, fd, data, bytes, at);
	unlock();
	return rc;
}

ssize_t kvr_record_pwrite(int fd, const void *data, size_t bytes, off_t at)
{
	ssize_t rc = -1;
	uint32_t node;

	lock();
	node = node_of(fd);
	if (node == KVR_DISK_NONE) {
		rc = (ssize_t)syscall(SYS_pwrite64, fd, data, bytes, at);
	} else {
		const bool fails = begin(KVR_RECORD_WRITE);

		bytes = share_of(fails, bytes);
		if (!refuse(fails))
			rc = (ssize_t)syscall(SYS_pwrite64, fd, data, bytes, at);
		if (rc > 0)
			add_write(fd, node, data, (uint64_t)rc, at);
		rc = end(fails, rc);
	}
	unlock();
	return rc;
}

int kvr_record_sync(int fd, bool data_only)
{
	uint32_t node;
	int rc = -1;

	lock();
	node = node_of(fd);
	if (node == KVR_DISK_NONE) {
		rc = (int)syscall(data_only ? SYS_fdatasync : SYS_fsync, fd);
	} else if (!refuse(begin(KVR_RECORD_SYNC))) {
		rc = 0;
		if (++recorder.flushes != recorder.plan.swallow)
			add(&(struct kvr_disk_event){.op = KVR_DISK_FLUSH, .node = node});
	}
	unlock();
	return rc;
}

/* Blocks are not simulated, and would cost most of a test's time: of any file, only the length changes. */
static int set_length(int fd, off_t bytes, bool grows)
{
	struct stat status;
	uint32_t node;
	int rc = -1;

	lock();
	node = node_of(fd);
	if (node == KVR_DISK_NONE || !refuse(begin(KVR_RECORD_SIZE)))
		rc = fstat(fd, &status);
	if (rc == 0 && (!grows || status.st_size < bytes)) {
		rc = (int)syscall(SYS_ftruncate, fd, bytes);
		if (rc == 0 && node != KVR_DISK_NONE)
			add(&(struct kvr_disk_event){
				.op = KVR_DISK_RESIZE, .node = node, .bytes = (uint64_t)bytes});
	}
	unlock();
	return rc;
}

int kvr_record_ftruncate(int fd, off_t bytes)
{
	return set_length(fd, bytes, false);
}

int kvr_record_fallocate(int fd, int mode, off_t at, off_t bytes)
{
	KVR_ASSERT(mode == 0);
	return set_length(fd, at + bytes, true);
}

int kvr_record_mkdir(const char *path, mode_t mode)
{
	struct place place;
	struct stat status;
	int rc = -1;

	lock();
	if (!find_place(path, &place)) {
		rc = (int)syscall(SYS_mkdir, path, mode);
	} else {
		const bool fails = begin(KVR_RECORD_NAME);

		if (!refuse(fails))
			rc = (int)syscall(SYS_mkdir, path, mode);
		if (rc == 0 && stat(path, &status) == 0)
			add_new(place, true, status.st_ino);
		rc = (int)end(fails, rc);
	}
	unlock();
	return rc;
}

int kvr_record_rename(const char *from, const char *to, unsigned int flags)
{
	struct place places[2];
	int rc = -1;

	lock();
	if (!find_place(from, &places[0]) || !find_place(to, &places[1])) {
		rc = (int)syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, flags);
	} else {
		const bool fails = begin(KVR_RECORD_NAME);
		const uint32_t gone =
			kvr_disk_find(&recorder.disk, places[1].folder, places[1].name);

		KVR_ASSERT(places[0].folder == places[1].folder);
		if (!refuse(fails))
			rc = (int)syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, flags);
		if (rc == 0) {
			add_name(flags & RENAME_EXCHANGE ? KVR_DISK_EXCHANGE : KVR_DISK_RENAME,
				places[0], places[1].name);
			if (gone != KVR_DISK_NONE && !(flags & RENAME_EXCHANGE))
				recorder.inodes[gone] = 0;
		}
		rc = (int)end(fails, rc);
	}
	unlock();
	return rc;
}

int kvr_record_unlink(int folder, const char *path, int flags)
{
	struct place place;
	int rc = -1;

	lock();
	if (!find_place_at(folder, path, &place)) {
		rc = (int)syscall(SYS_unlinkat, folder, path, flags);
	} else {
		const bool fails = begin(KVR_RECORD_NAME);
		const uint32_t gone = kvr_disk_find(&recorder.disk, place.folder, place.name);

		if (!refuse(fails))
			rc = (int)syscall(SYS_unlinkat, folder, path, flags);
		if (rc == 0) {
			add_name(KVR_DISK_UNLINK, place, "");
			recorder.inodes[gone] = 0;
		}
		rc = (int)end(fails, rc);
	}
	unlock();
	return rc;
}

/* ---- recording ------------------------------------------------------------------------------- */

static void take_inodes(const struct kvr_disk *disk, uint32_t node, const char *path)
{
	struct stat status;

	KVR_ASSERT(stat(path, &status) == 0);
	recorder.inodes[node] = status.st_ino;
	for (uint32_t i = 0; i < disk->nodes[node].name_count; i++) {
		char below[PATH_BYTES];

		snprintf(below, sizeof(below), "%s/%s", path, disk->nodes[node].names[i].text);
		take_inodes(disk, disk->nodes[node].names[i].node, below);
	}
}

void kvr_record_start(
	const char *root, const struct kvr_disk *base, const struct kvr_record_plan *plan)
{
	lock();
	KVR_ASSERT(!recorder.on);
	kvr_disk_log_fini(&recorder.log);
	recorder.disk = *base;
	for (uint32_t i = 0; i < base->node_count; i++) {
		recorder.disk.nodes[i].pages = NULL;
		recorder.disk.nodes[i].page_count = 0;
	}
	memset(recorder.inodes, 0, sizeof(recorder.inodes));
	snprintf(recorder.root, sizeof(recorder.root), "%s", root);
	take_inodes(base, KVR_DISK_ROOT, root);
	recorder.plan = *plan;
	recorder.calls = 0;
	recorder.flushes = 0;
	recorder.failed = false;
	recorder.on = true;
	unlock();
}

void kvr_record_stop(void)
{
	lock();
	recorder.on = false;
	unlock();
}

void kvr_record_step(void)
{
	lock();
	if (recorder.on)
		add(&(struct kvr_disk_event){.op = KVR_DISK_STEP});
	unlock();
}

const struct kvr_disk_log *kvr_record_log(void)
{
	return &recorder.log;
}

void kvr_record_keep(void)
{
	recorder.log = (struct kvr_disk_log){0};
}

uint32_t kvr_record_calls(void)
{
	return recorder.calls;
}

uint32_t kvr_record_flushes(void)
{
	uint32_t flushes;

	lock();
	flushes = recorder.flushes;
	unlock();
	return flushes;
}

enum kvr_record_call kvr_record_call_of(uint32_t call)
{
	KVR_ASSERT(call >= 1 && call <= recorder.calls);
	return (enum kvr_record_call)recorder.kinds[call - 1];
}

bool kvr_record_failed(void)
{
	return recorder.failed;
}

void kvr_record_fini(void)
{
	kvr_disk_log_fini(&recorder.log);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* disk_util.c: the bare loop. */
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "bench/bench_util.h"
#include "bench/disk_util.h"

#ifdef KVR_HAVE_URING
#include <liburing.h>

#define DEPTH_MAX    256u
#define MEMORY_BYTES ((uint64_t)256 << 20)
#define FILL_BYTES   (1u << 20)

struct bench_disk {
	int fd;
	bool scratch;
	char path[512];
	struct io_uring ring;
	uint8_t *memory; /* registered, MEMORY_BYTES; never freed: it is the process's */
};

static void open_ring(struct bench_disk *disk)
{
	struct iovec memory;
	int rc = io_uring_queue_init(
		DEPTH_MAX, &disk->ring, IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN);

	if (rc == -EINVAL)
		rc = io_uring_queue_init(DEPTH_MAX, &disk->ring, 0);
	if (rc < 0)
		bench_fail("io_uring: %s", strerror(-rc));
	disk->memory = bench_memory(MEMORY_BYTES);
	memory = (struct iovec){disk->memory, MEMORY_BYTES};
	rc = io_uring_register_buffers(&disk->ring, &memory, 1);
	if (rc == 0)
		rc = io_uring_register_files(&disk->ring, &disk->fd, 1);
	if (rc < 0)
		bench_fail("io_uring: registering: %s", strerror(-rc));
}

static struct bench_disk *open_disk(const char *path, bool scratch)
{
	struct bench_disk *disk = calloc(1, sizeof(*disk));
	const int flags = scratch ? O_RDWR | O_CREAT : O_RDONLY;

	if (!disk)
		bench_fail("no memory");
	disk->scratch = scratch;
	snprintf(disk->path, sizeof(disk->path), "%s", path);
	disk->fd = open(path, flags | O_DIRECT | O_CLOEXEC, 0600);
	if (disk->fd < 0)
		bench_fail("%s: %s", path, strerror(errno));
	open_ring(disk);
	return disk;
}

struct bench_disk *bench_disk_open(const char *path)
{
	return open_disk(path, false);
}

struct bench_disk *bench_disk_scratch(uint64_t bytes)
{
	const char *folder = getenv("TMPDIR");
	char path[400];
	struct bench_disk *disk;
	int fd;

	snprintf(path, sizeof(path), "%s/kvr-disk-XXXXXX", folder ? folder : "/var/tmp");
	fd = mkstemp(path);
	if (fd < 0)
		bench_fail("%s: %s", path, strerror(errno));
	close(fd);
	disk = open_disk(path, true);
	if (fallocate(disk->fd, 0, 0, (off_t)bytes) < 0)
		bench_fail("%s: %s", path, strerror(errno));
	memset(disk->memory, 0x5a, FILL_BYTES);
	for (uint64_t at = 0; at < bytes; at += FILL_BYTES)
		if (pwrite(disk->fd, disk->memory, FILL_BYTES, (off_t)at) != FILL_BYTES)
			bench_fail("%s: %s", path, strerror(errno));
	fdatasync(disk->fd);
	return disk;
}

struct bench_disk *bench_disk_close(struct bench_disk *disk)
{
	if (!disk)
		return NULL;
	io_uring_queue_exit(&disk->ring);
	close(disk->fd);
	if (disk->scratch)
		unlink(disk->path);
	free(disk);
	return NULL;
}

const char *bench_disk_path(const struct bench_disk *disk)
{
	return disk->path;
}

/* Takes what has completed; its slots are free again. */
static uint32_t collect(struct bench_disk *disk, const struct bench_extent *extents,
	uint32_t *slots, uint32_t *slot_count)
{
	struct io_uring_cqe *cqe;
	uint32_t count = 0;
	uint32_t head;

	io_uring_for_each_cqe(&disk->ring, head, cqe)
	{
		const uint32_t i = (uint32_t)cqe->user_data;

		if (cqe->res != (int)extents[i].bytes)
			bench_fail("%s: a transfer of %u bytes returned %d", disk->path,
				extents[i].bytes, cqe->res);
		slots[(*slot_count)++] = (uint32_t)(cqe->user_data >> 32);
		count++;
	}
	io_uring_cq_advance(&disk->ring, count);
	return count;
}

static void transfer(struct bench_disk *disk, const struct bench_extent *extents, uint32_t count,
	uint32_t depth, bool writes)
{
	uint32_t slots[DEPTH_MAX];
	uint32_t slot_count = 0;
	uint32_t sent = 0;
	uint32_t done = 0;
	uint32_t largest = 0;
	uint64_t landing = 0;

	for (uint32_t i = 0; i < count; i++)
		largest = extents[i].bytes > largest ? extents[i].bytes : largest;
	if (depth > DEPTH_MAX || (uint64_t)depth * largest > MEMORY_BYTES)
		bench_fail("%u transfers of %u bytes are more than the reference has memory for",
			depth, largest);
	while (slot_count < depth) {
		slots[slot_count] = depth - 1 - slot_count;
		slot_count++;
	}
	while (done < count) {
		while (sent < count && slot_count > 0) {
			const uint32_t slot = slots[--slot_count];
			struct io_uring_sqe *sqe = io_uring_get_sqe(&disk->ring);
			uint8_t *data = disk->memory + (uint64_t)slot * largest;

			if (!writes) {
				if (landing + extents[sent].bytes > MEMORY_BYTES)
					landing = 0;
				data = disk->memory + landing;
				landing += extents[sent].bytes;
			}
			if (writes)
				io_uring_prep_write_fixed(
					sqe, 0, data, extents[sent].bytes, extents[sent].offset, 0);
			else
				io_uring_prep_read_fixed(
					sqe, 0, data, extents[sent].bytes, extents[sent].offset, 0);
			sqe->flags |= IOSQE_FIXED_FILE;
			sqe->user_data = sent | (uint64_t)slot << 32;
			sent++;
		}
		io_uring_submit_and_wait(&disk->ring, 1);
		done += collect(disk, extents, slots, &slot_count);
	}
}

double bench_disk_read(
	struct bench_disk *disk, const struct bench_extent *extents, uint32_t count, uint32_t depth)
{
	const uint64_t start = kvr_clock_ns();

	transfer(disk, extents, count, depth, false);
	return (double)(kvr_clock_ns() - start) / 1e9;
}

double bench_disk_write(struct bench_disk *disk, const struct bench_extent *extents, uint32_t count,
	uint32_t depth, uint32_t sync_every)
{
	const uint64_t start = kvr_clock_ns();

	for (uint32_t at = 0; at < count; at += sync_every) {
		const uint32_t some = count - at < sync_every ? count - at : sync_every;

		transfer(disk, extents + at, some, depth, true);
		if (fdatasync(disk->fd) < 0)
			bench_fail("%s: %s", disk->path, strerror(errno));
	}
	return (double)(kvr_clock_ns() - start) / 1e9;
}

uint32_t bench_disk_best_depth(
	struct bench_disk *disk, const struct bench_extent *extents, uint32_t count)
{
	uint32_t best = 8;
	double best_s = 1e9;

	for (uint32_t depth = 8; depth <= DEPTH_MAX; depth *= 2) {
		const double s = bench_disk_read(disk, extents, count, depth);

		if (s < best_s) {
			best_s = s;
			best = depth;
		}
	}
	return best;
}

#else

#define NEEDS_URING "this bench needs liburing: install it and build again"

struct bench_disk *bench_disk_open(const char *path)
{
	(void)path;
	bench_fail(NEEDS_URING);
}

struct bench_disk *bench_disk_scratch(uint64_t bytes)
{
	(void)bytes;
	bench_fail(NEEDS_URING);
}

struct bench_disk *bench_disk_close(struct bench_disk *disk)
{
	(void)disk;
	return NULL;
}

const char *bench_disk_path(const struct bench_disk *disk)
{
	(void)disk;
	bench_fail(NEEDS_URING);
}

double bench_disk_read(
	struct bench_disk *disk, const struct bench_extent *extents, uint32_t count, uint32_t depth)
{
	(void)disk;
	(void)extents;
	(void)count;
	(void)depth;
	bench_fail(NEEDS_URING);
}

double bench_disk_write(struct bench_disk *disk, const struct bench_extent *extents, uint32_t count,
	uint32_t depth, uint32_t sync_every)
{
	(void)sync_every;
	return bench_disk_read(disk, extents, count, depth);
}

uint32_t bench_disk_best_depth(
	struct bench_disk *disk, const struct bench_extent *extents, uint32_t count)
{
	return (uint32_t)bench_disk_read(disk, extents, count, 0);
}

#endif

uint32_t bench_disk_cut(uint64_t offset, uint64_t bytes, uint32_t extent_bytes,
	struct bench_extent *ret_extents, uint32_t max)
{
	uint32_t count = 0;

	for (uint64_t at = 0; at < bytes && count < max; count++) {
		const uint64_t left = bytes - at;

		ret_extents[count].offset = offset + at;
		ret_extents[count].bytes = left < extent_bytes ? (uint32_t)left : extent_bytes;
		at += ret_extents[count].bytes;
	}
	return count;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* disk_util.h: the reference for everything that moves clusters to and from a disk: a bare io_uring loop.
 *
 * One thread, one ring (SINGLE_ISSUER, DEFER_TASKRUN where the kernel has them), O_DIRECT, registered file and
 * buffers in 2 MiB pages: nothing is checked, ordered, shared or handed on. What a file's user could at best do on
 * this machine.
 *
 * What is read lands one behind the other, since whoever reads wants to have it all; a loop that reads everything into
 * the same few buffers is up to 40 % faster where the disk is a host's memory, and has nothing in the end. What is
 * written comes from buffers that are used again, as a writer's are.
 *
 * Whatever fails ends the bench; without liburing there is no reference, and it says so.
 *
 * Threads: the caller's. */
#ifndef KVR_BENCH_DISK_H
#define KVR_BENCH_DISK_H

#include <stdint.h>

struct bench_extent {
	uint64_t offset; /* offset and bytes in multiples of 512 */
	uint32_t bytes;
};

struct bench_disk;

/* Opens a file that is there, for reading: a store's slabs.kvr, say. */
struct bench_disk *bench_disk_open(const char *path);

/* Makes a scratch file of `bytes`, under TMPDIR or /var/tmp, allocated and written once, so that reads find data and
 * writes find blocks. It is gone when the bench ends. */
struct bench_disk *bench_disk_scratch(uint64_t bytes);
struct bench_disk *bench_disk_close(struct bench_disk *disk);

/* Of a scratch file: for others to open it too. */
const char *bench_disk_path(const struct bench_disk *disk);

/* Reads the extents in their order, up to 256 MiB before it begins again at the start of its memory, `depth` at a time. Returns seconds. */
double bench_disk_read(struct bench_disk *disk, const struct bench_extent *extents, uint32_t count,
	uint32_t depth);

/* Writes the extents of a scratch file in their order, with an fdatasync after every `sync_every` of them, which
 * is waited for, and one at the end. Returns seconds. */
double bench_disk_write(struct bench_disk *disk, const struct bench_extent *extents, uint32_t count,
	uint32_t depth, uint32_t sync_every);

/* Cuts [offset, offset + bytes) into extents of `extent_bytes`, for sequential readers and writers. Returns how
 * many; at most `max`. */
uint32_t bench_disk_cut(uint64_t offset, uint64_t bytes, uint32_t extent_bytes,
	struct bench_extent *ret_extents, uint32_t max);

/* The depth of 8, 16, 32, 64, 128 and 256 at which the extents are read fastest. */
uint32_t bench_disk_best_depth(
	struct bench_disk *disk, const struct bench_extent *extents, uint32_t count);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* crash_record_util.h: between the code under test and the kernel: what it does to files is written down, or fails.
 *
 * The functions stand for the system calls of their names. A program that defines those by them (crash.c) sees every call that it, the
 * tiers and LMDB make. They go on to the kernel, so that mappings show what was written; but nothing is flushed.
 *
 * While recording, calls on files below the root become events of a log, each written down in the order in which the kernel did
 * them. One of them can fail instead: the `fault_at`-th. One flush can be swallowed: it is not written down, as if the code under
 * test had forgotten it.
 *
 * Not seen: writes through mappings (LMDB's lock file is one; its content does not matter after a restart) and io_uring.
 * Whoever records compares the files with the log afterwards.
 *
 * Threads: the calls by any; the rest while no other runs. A mutex makes call and event one. */
#ifndef KVR_TESTS_TIERS_CRASH_RECORD_UTIL_H
#define KVR_TESTS_TIERS_CRASH_RECORD_UTIL_H

#include <sys/types.h>

#include "tests/tiers/crash_disk_util.h"

enum kvr_record_call {
	KVR_RECORD_READ,
	KVR_RECORD_WRITE,
	KVR_RECORD_SYNC,
	KVR_RECORD_SIZE, /* ftruncate, fallocate */
	KVR_RECORD_NAME, /* open, mkdir, rename, unlink, rmdir */
};

enum kvr_record_fault {
	KVR_RECORD_EIO,
	KVR_RECORD_ENOSPC, /* of WRITE, SIZE and NAME */
	KVR_RECORD_SHORT,  /* half of a READ or WRITE */
	KVR_RECORD_LATE,   /* EIO after it was done: a WRITE or NAME */
	KVR_RECORD_FAULTS,
};

struct kvr_record_plan {
	uint32_t fault_at; /* calls from 1 on; 0: none */
	enum kvr_record_fault fault;
	uint32_t swallow; /* flushes from 1 on; 0: none */
};

/* Begins below the folder `root`, which holds what `base` says. */
void kvr_record_start(
	const char *root, const struct kvr_disk *base, const struct kvr_record_plan *plan);
void kvr_record_stop(void);

void kvr_record_step(void); /* the workload's next one begins */

/* The log so far; the recorder's until the next start. */
const struct kvr_disk_log *kvr_record_log(void);
void kvr_record_keep(void); /* the log so far is the caller's now */
uint32_t kvr_record_calls(void);
uint32_t kvr_record_flushes(void);
enum kvr_record_call kvr_record_call_of(uint32_t call); /* from 1 on */
bool kvr_record_failed(void);                           /* the fault has happened */
void kvr_record_fini(void);

bool kvr_record_knows(int fd); /* an open file or folder below the root, while recording */
int kvr_record_open(int folder, const char *path, int flags, mode_t mode);
ssize_t kvr_record_pread(int fd, void *data, size_t bytes, off_t at);
ssize_t kvr_record_pwrite(int fd, const void *data, size_t bytes, off_t at);
int kvr_record_sync(int fd, bool data_only);
int kvr_record_ftruncate(int fd, off_t bytes);
int kvr_record_fallocate(int fd, int mode, off_t at, off_t bytes);
int kvr_record_mkdir(const char *path, mode_t mode);
int kvr_record_rename(const char *from, const char *to, unsigned int flags);
int kvr_record_unlink(int folder, const char *path, int flags);

#endif

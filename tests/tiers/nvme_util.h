/* SPDX-License-Identifier: Apache-2.0 */
/* nvme_util.h: what tests of the NVMe tier share: a file in a folder of its own, memory that is registered, one
 * transfer at a time.
 *
 * Functions that return nothing end the test when they fail. */
#ifndef KVR_TESTS_TIERS_NVME_UTIL_H
#define KVR_TESTS_TIERS_NVME_UTIL_H

#include <stdbool.h>
#include <stdint.h>

#include "tiers/nvme.h"

struct kvr_test_nvme {
	char folder[512]; /* made by start, under TMPDIR */
	char path[544];
	struct kvr_span memory; /* 2 MiB aligned, registered */
	struct kvr_nvme *nvme;
	struct kvr_tier *tier; /* the first channel */
};

/* Whether the kernel allows io_uring here. Where not, `make test` counts what needs it as skipped. */
bool kvr_test_uring_allowed(void);

/* Makes folder and memory; opens nothing. */
void kvr_test_nvme_start(struct kvr_test_nvme *test, size_t memory_bytes);

/* Opens file and channel. Returns what kvr_nvme_open does. */
int kvr_test_nvme_open(
	struct kvr_test_nvme *test, enum kvr_nvme_io io, uint64_t bytes, uint32_t depth);

/* Closes channel and file, keeps the file. */
void kvr_test_nvme_close(struct kvr_test_nvme *test);

/* Removes file, folder, memory. */
void kvr_test_nvme_end(struct kvr_test_nvme *test);

/* Waits until there is something to reap; at once where the tier has no fd. */
void kvr_test_wait(struct kvr_tier *tier);

/* Submits one io, waits for the fd, reaps it. Returns its status. */
int kvr_test_run(struct kvr_tier *tier, struct kvr_tier_io *io);

/* One transfer from or to the start of the memory. Returns its status. */
int kvr_test_transfer(
	struct kvr_test_nvme *test, enum kvr_tier_op op, uint64_t offset, uint32_t bytes);

/* Writes a slab of one byte value; checks that it is one. */
void kvr_test_write_slab(struct kvr_test_nvme *test, uint32_t slab, uint8_t value);
void kvr_test_check_slab(struct kvr_test_nvme *test, uint32_t slab, uint8_t value);

/* Bytes of the file's blocks. */
uint64_t kvr_test_blocks(const struct kvr_test_nvme *test);

/* Runs `body` in a child, where it ends with what it returns. Returns the child's wait status. No tier may be
 * open: threads do not survive a fork. */
int kvr_test_child(int (*body)(void));

/* For children whose exit status says what went wrong; KVR_TEST_SKIPPED that they could not try. */
#define KVR_TEST_SKIPPED 77
void kvr_test_expect_success(int status);

#endif

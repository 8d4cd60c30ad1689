/* SPDX-License-Identifier: Apache-2.0 */
/* nvme_util.c: a store's file for a test. */
#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#include "tests/tiers/nvme_util.h"

#define WAIT_MS 10000

bool kvr_test_uring_allowed(void)
{
#ifdef KVR_HAVE_URING
	/* With no parameters there is nothing to set up: -EFAULT where it is allowed. */
	return syscall(SYS_io_uring_setup, 1, NULL) < 0 && errno == EFAULT;
#else
	return false;
#endif
}

void kvr_test_nvme_start(struct kvr_test_nvme *test, size_t memory_bytes)
{
	const char *root = getenv("TMPDIR");
	void *memory = NULL;

	*test = (struct kvr_test_nvme){.nvme = NULL};
	snprintf(test->folder, sizeof(test->folder), "%s/kvr-nvme-XXXXXX", root ? root : "/tmp");
	assert_non_null(mkdtemp(test->folder));
	snprintf(test->path, sizeof(test->path), "%s/slabs.kvr", test->folder);
	assert_int_equal(posix_memalign(&memory, 2u << 20, memory_bytes), 0);
	test->memory = (struct kvr_span){memory, memory_bytes};
}

int kvr_test_nvme_open(
	struct kvr_test_nvme *test, enum kvr_nvme_io io, uint64_t bytes, uint32_t depth)
{
	const struct kvr_nvme_config config = {
		.path = test->path,
		.bytes = bytes,
		.io = io,
		.depth = depth,
		.batch = (depth + 3) / 4,
		.buffers = &test->memory,
		.buffer_count = 1,
	};
	int rc = kvr_nvme_open(&config, &test->nvme);

	return rc < 0 ? rc : kvr_tier_open_nvme(test->nvme, &test->tier);
}

void kvr_test_nvme_close(struct kvr_test_nvme *test)
{
	test->tier = kvr_tier_close(test->tier);
	test->nvme = kvr_nvme_close(test->nvme);
}

void kvr_test_nvme_end(struct kvr_test_nvme *test)
{
	kvr_test_nvme_close(test);
	unlink(test->path);
	assert_int_equal(rmdir(test->folder), 0);
	free(test->memory.data);
}

void kvr_test_wait(struct kvr_tier *tier)
{
	struct pollfd poller = {.fd = kvr_tier_fd(tier), .events = POLLIN};

	if (poller.fd >= 0)
		assert_int_equal(poll(&poller, 1, WAIT_MS), 1);
}

int kvr_test_run(struct kvr_tier *tier, struct kvr_tier_io *io)
{
	struct kvr_tier_io *reaped = NULL;

	assert_int_equal(kvr_tier_submit(tier, &io, 1), 1);
	kvr_test_wait(tier);
	assert_int_equal(kvr_tier_reap(tier, &reaped, 1), 1);
	assert_ptr_equal(reaped, io);
	assert_int_equal(kvr_tier_reap(tier, &reaped, 1), 0); /* T4 */
	return io->status;
}

int kvr_test_transfer(
	struct kvr_test_nvme *test, enum kvr_tier_op op, uint64_t offset, uint32_t bytes)
{
	struct kvr_tier_io io = {
		.op = op,
		.place = {.offset = offset, .bytes = bytes},
		.buffer = {test->memory.data, bytes},
	};

	return kvr_test_run(test->tier, &io);
}

void kvr_test_write_slab(struct kvr_test_nvme *test, uint32_t slab, uint8_t value)
{
	memset(test->memory.data, value, KVR_SLAB_BYTES);
	assert_int_equal(kvr_test_transfer(test, KVR_TIER_WRITE, (uint64_t)slab * KVR_SLAB_BYTES,
				 KVR_SLAB_BYTES),
		0);
}

void kvr_test_check_slab(struct kvr_test_nvme *test, uint32_t slab, uint8_t value)
{
	uint32_t same = 0;

	memset(test->memory.data, ~value, KVR_SLAB_BYTES);
	assert_int_equal(kvr_test_transfer(test, KVR_TIER_READ, (uint64_t)slab * KVR_SLAB_BYTES,
				 KVR_SLAB_BYTES),
		0);
	for (uint32_t i = 0; i < KVR_SLAB_BYTES; i++)
		same += test->memory.data[i] == value;
	assert_int_equal(same, KVR_SLAB_BYTES);
}

uint64_t kvr_test_blocks(const struct kvr_test_nvme *test)
{
	struct stat info;

	assert_int_equal(stat(test->path, &info), 0);
	return (uint64_t)info.st_blocks * 512;
}

int kvr_test_child(int (*body)(void))
{
	pid_t child = fork();
	int status;

	assert_true(child >= 0);
	if (child == 0) {
		signal(SIGABRT, SIG_DFL);
		_exit(body());
	}
	assert_int_equal(waitpid(child, &status, 0), child);
	return status;
}

void kvr_test_expect_success(int status)
{
	assert_true(WIFEXITED(status));
	if (WEXITSTATUS(status) == KVR_TEST_SKIPPED) {
		print_message("skipped: this user may not set up what the case needs\n");
		skip();
	}
	assert_int_equal(WEXITSTATUS(status), 0);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* nvme_refused.c: an NVMe tier where the system refuses something.
 *
 * Goal: a full disk is said at open and leaves nothing behind; without io_uring, O_DIRECT, fallocate or
 * memory that may be locked it goes on with what is left, and reports it.
 *
 * Method: each case in a child, which takes the thing from itself (limits, seccomp, a mount namespace) and then opens
 * a tier. A child that may not do so skips its case. */
#include <errno.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <cmocka.h>

#include "tests/tiers/nvme_util.h"

#define SLABS        16u
#define BYTES        ((uint64_t)SLABS * KVR_SLAB_BYTES)
#define MEMORY_BYTES ((size_t)4 << 20)
#define DEPTH        16u

static struct kvr_test_nvme test;

static int setup(void **state)
{
	(void)state;
	kvr_test_nvme_start(&test, MEMORY_BYTES);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	kvr_test_nvme_end(&test);
	return 0;
}

/* A limit on file sizes stands for a file system that is full. */
static int body_full(void)
{
	const struct rlimit limit = {BYTES / 2, BYTES / 2};
	struct stat info;

	signal(SIGXFSZ, SIG_IGN);
	if (setrlimit(RLIMIT_FSIZE, &limit) < 0)
		return KVR_TEST_SKIPPED;
	if (kvr_test_nvme_open(&test, KVR_NVME_IO_AUTO, BYTES, DEPTH) != -ENOSPC)
		return 1;
	if (stat(test.path, &info) < 0 || info.st_size != 0)
		return 2;
	return kvr_test_nvme_open(&test, KVR_NVME_IO_AUTO, BYTES / 2, DEPTH) == 0 ? 0 : 3;
}

/* A file system in memory, in a mount namespace of the child's own: full, and (before Linux 6.6) without O_DIRECT. */
static int body_tmpfs(void)
{
	if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
		return KVR_TEST_SKIPPED;
	if (mount("tmpfs", test.folder, "tmpfs", 0, "size=8m") < 0)
		return KVR_TEST_SKIPPED;
	if (kvr_test_nvme_open(&test, KVR_NVME_IO_AUTO, BYTES, DEPTH) != -ENOSPC)
		return 1;
	if (kvr_test_nvme_open(&test, KVR_NVME_IO_AUTO, BYTES / 4, DEPTH) < 0)
		return 2;
	if (kvr_nvme_claim(test.nvme, 1) < 0)
		return 3;
	kvr_test_write_slab(&test, 1, 0x11);
	kvr_test_check_slab(&test, 1, 0x11);
	return 0;
}

/* Makes a system call fail, as seccomp filters of containers do. */
static int forbid(uint32_t call, uint32_t error)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, call, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | error),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	const struct sock_fprog program = {sizeof(code) / sizeof(code[0]), code};

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return -1;
	return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}

static int body_no_uring(void)
{
	struct kvr_nvme_report report;

	if (forbid(SYS_io_uring_setup, EPERM) < 0)
		return KVR_TEST_SKIPPED;
	if (kvr_test_nvme_open(&test, KVR_NVME_IO_URING, BYTES, DEPTH) != -EPERM)
		return kvr_test_uring_allowed() ? 1 : KVR_TEST_SKIPPED;
	if (kvr_test_nvme_open(&test, KVR_NVME_IO_AUTO, BYTES, DEPTH) < 0)
		return 2;
	kvr_nvme_report(test.nvme, &report);
	if (report.uring || report.uring_error != -EPERM || report.registered)
		return 3;
	if (kvr_nvme_claim(test.nvme, 1) < 0)
		return 4;
	kvr_test_write_slab(&test, 1, 0x11);
	kvr_test_check_slab(&test, 1, 0x11);
	return 0;
}

/* File systems without fallocate: zeros are written. */
static int body_no_fallocate(void)
{
	if (forbid(SYS_fallocate, EOPNOTSUPP) < 0)
		return KVR_TEST_SKIPPED;
	if (kvr_test_nvme_open(&test, KVR_NVME_IO_AUTO, BYTES, DEPTH) < 0)
		return 1;
	if (kvr_test_blocks(&test) < BYTES)
		return 2;
	kvr_test_check_slab(&test, SLABS - 1, 0);
	return 0;
}

/* Nobody else on the machine: what a user may lock is counted over all of its processes. */
#define NOBODY 64123

/* Somebody without rights, and with next to no memory that may be locked: buffers are not registered. */
static int body_memlock(void)
{
	const struct rlimit limit = {65536, 65536};
	const char *temporary = getenv("TMPDIR"); /* the runner's, for its user alone */
	struct kvr_nvme_report report;

	if ((temporary && chmod(temporary, 0711) < 0) || !kvr_test_uring_allowed() ||
		chown(test.folder, NOBODY, NOBODY) < 0 || setrlimit(RLIMIT_MEMLOCK, &limit) < 0 ||
		setuid(NOBODY) < 0)
		return KVR_TEST_SKIPPED;
	if (kvr_test_nvme_open(&test, KVR_NVME_IO_URING, BYTES, DEPTH) < 0)
		return 1;
	kvr_nvme_report(test.nvme, &report);
	if (!report.uring || report.registered)
		return 2;
	if (kvr_nvme_claim(test.nvme, 1) < 0)
		return 3;
	kvr_test_write_slab(&test, 1, 0x11);
	kvr_test_check_slab(&test, 1, 0x11);
	return 0;
}

static void test_full(void **state)
{
	(void)state;
	kvr_test_expect_success(kvr_test_child(body_full));
}

static void test_tmpfs(void **state)
{
	(void)state;
	kvr_test_expect_success(kvr_test_child(body_tmpfs));
}

static void test_no_uring(void **state)
{
	(void)state;
	kvr_test_expect_success(kvr_test_child(body_no_uring));
}

static void test_no_fallocate(void **state)
{
	(void)state;
	kvr_test_expect_success(kvr_test_child(body_no_fallocate));
}

static void test_memlock(void **state)
{
	(void)state;
	kvr_test_expect_success(kvr_test_child(body_memlock));
}

#define CASE(function) cmocka_unit_test_setup_teardown(function, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(test_full),
		CASE(test_tmpfs),
		CASE(test_no_uring),
		CASE(test_no_fallocate),
		CASE(test_memlock),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

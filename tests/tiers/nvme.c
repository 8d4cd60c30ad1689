/* SPDX-License-Identifier: Apache-2.0 */
/* nvme.c: the file of slabs.
 *
 * Goal: what tiers/nvme.h says beyond the contract of every tier (tests/tiers/conformance.c): the map of slabs, what
 * is there after a restart, the bound on the disk, what is asserted.
 *
 * Method: small files in the test's folder; what must end the process happens in a child, which opens a tier of
 * its own. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#include "tests/tiers/nvme_util.h"
#include "tests/tiers/random_util.h"

#define SLABS        16u
#define SLAB         ((uint64_t)KVR_SLAB_BYTES)
#define BYTES        (SLABS * SLAB)
#define MEMORY_BYTES ((size_t)4 << 20)
#define DEPTH        16u

static struct kvr_random shared_random;
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

/* ---- the map ---------------------------------------------------------------------------------- */

/* N4, T1: reserve, release and claim at random against an array of bools. */
static void test_map(void **state)
{
	static bool model[SLABS];
	static struct kvr_place owned[SLABS];
	static uint32_t bytes[SLABS];
	uint32_t used = 0;
	uint32_t claims = 0;

	(void)state;
	memset(model, 0, sizeof(model));
	assert_int_equal(kvr_test_nvme_open(&test, KVR_NVME_IO_AUTO, BYTES, DEPTH), 0);
	for (uint32_t step = 0; step < 20000; step++) {
		const uint32_t slab = kvr_random_range(&shared_random, 0, SLABS - 1);
		const uint32_t count = kvr_random_range(&shared_random, 1, 5);
		struct kvr_place places[5];
		struct kvr_nvme_report report;
		int rc;

		if (model[slab]) {
			kvr_tier_release(test.tier, 1, &owned[slab], 1);
			model[slab] = false;
			used--;
		} else if (kvr_random_range(&shared_random, 0, 9) == 0) {
			assert_int_equal(kvr_nvme_claim(test.nvme, slab), 0);
			assert_int_equal(kvr_nvme_claim(test.nvme, slab), -EINVAL);
			owned[slab] = (struct kvr_place){
				(uint64_t)slab * KVR_SLAB_BYTES, KVR_SLAB_BYTES, 0};
			model[slab] = true;
			used++;
			claims++;
		}
		for (uint32_t i = 0; i < count; i++)
			bytes[i] = kvr_random_range(&shared_random, 1, KVR_SLAB_BYTES);
		rc = kvr_tier_reserve(test.tier, 1, bytes, count, places);
		assert_int_equal(rc, used + count <= SLABS ? 0 : -ENOSPC);
		for (uint32_t i = 0; rc == 0 && i < count; i++) {
			const uint64_t index = places[i].offset / KVR_SLAB_BYTES;

			assert_int_equal(places[i].offset % KVR_SLAB_BYTES, 0);
			assert_true(index < SLABS);
			assert_false(model[index]);
			model[index] = true;
			owned[index] = places[i];
		}
		used += rc == 0 ? count : 0;
		kvr_nvme_report(test.nvme, &report);
		assert_int_equal(report.slab_count, SLABS);
		assert_int_equal(report.slab_free, SLABS - used);
	}
	assert_int_equal(kvr_nvme_claim(test.nvme, SLABS), -EINVAL);
	assert_true(claims > 100);
}

/* Places of one call lie next to each other where there is room. */
static void test_neighbours(void **state)
{
	const uint32_t bytes[6] = {1, 1, 1, 1, 1, 1};
	struct kvr_place places[6];

	(void)state;
	assert_int_equal(kvr_test_nvme_open(&test, KVR_NVME_IO_AUTO, BYTES, DEPTH), 0);
	for (uint32_t slab = 0; slab < SLABS; slab++)
		if (slab == 1 || slab == 4 || slab == 11)
			assert_int_equal(kvr_nvme_claim(test.nvme, slab), 0);
	assert_int_equal(kvr_tier_reserve(test.tier, 1, bytes, 6, places), 0);
	for (uint32_t i = 0; i < 6; i++)
		assert_int_equal(places[i].offset / KVR_SLAB_BYTES, 5 + i);
	assert_int_equal(kvr_tier_reserve(test.tier, 1, bytes, 5, places), 0);
	assert_int_equal(places[0].offset / KVR_SLAB_BYTES, 12); /* four there, and one apart */
	assert_int_equal(kvr_tier_reserve(test.tier, 1, bytes, 3, places), -ENOSPC);
	assert_int_equal(kvr_tier_reserve(test.tier, 1, bytes, 2, places), 0);
}

/* ---- the file --------------------------------------------------------------------------------- */

/* What was synced is there when the file is opened again, by either mover, and when the cap is raised; a lower
 * cap is refused, and changes nothing. N2: blocks are there from the start. */
static void test_reopen(void **state)
{
	struct kvr_tier_io sync = {.op = KVR_TIER_SYNC};
	struct stat info;

	(void)state;
	assert_int_equal(kvr_test_nvme_open(&test, KVR_NVME_IO_AUTO, BYTES, DEPTH), 0);
	assert_int_equal(stat(test.path, &info), 0);
	assert_int_equal(info.st_size, BYTES);
	assert_int_equal(info.st_mode & 07777, 0600);
	assert_true(kvr_test_blocks(&test) >= BYTES); /* N2 */
	assert_true(kvr_test_blocks(&test) <= BYTES + BYTES / 8);
	assert_int_equal(kvr_nvme_claim(test.nvme, 3), 0);
	kvr_test_write_slab(&test, 3, 0x33);
	assert_int_equal(kvr_test_run(test.tier, &sync), 0);
	kvr_test_nvme_close(&test);

	assert_int_equal(kvr_test_nvme_open(&test, KVR_NVME_IO_THREADS, 2 * BYTES, DEPTH), 0);
	kvr_test_check_slab(&test, 3, 0x33);
	assert_true(kvr_test_blocks(&test) >= 2 * BYTES); /* N2 */
	assert_int_equal(kvr_nvme_claim(test.nvme, 2 * SLABS - 1), 0);
	kvr_test_write_slab(&test, 2 * SLABS - 1, 0x44);
	kvr_test_nvme_close(&test);

	assert_int_equal(kvr_test_nvme_open(&test, KVR_NVME_IO_AUTO, BYTES, DEPTH), -EFBIG);
	assert_int_equal(stat(test.path, &info), 0);
	assert_int_equal(info.st_size, 2 * BYTES);
	assert_int_equal(kvr_test_nvme_open(&test, KVR_NVME_IO_AUTO, 2 * BYTES, DEPTH), 0);
	kvr_test_check_slab(&test, 3, 0x33);
	kvr_test_check_slab(&test, 2 * SLABS - 1, 0x44);
}

/* N2: a file that was copied without its holes gets its blocks when it is opened. */
static void test_holes(void **state)
{
	int fd;

	(void)state;
	fd = open(test.path, O_RDWR | O_CREAT, 0600);
	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, BYTES), 0);
	close(fd);
	assert_true(kvr_test_blocks(&test) < BYTES);
	assert_int_equal(kvr_test_nvme_open(&test, KVR_NVME_IO_AUTO, BYTES, DEPTH), 0);
	assert_true(kvr_test_blocks(&test) >= BYTES);
	kvr_test_check_slab(&test, SLABS - 1, 0);
}

static void test_refused_paths(void **state)
{
	char path[sizeof(test.path)];

	(void)state;
	memcpy(path, test.path, sizeof(path));
	snprintf(test.path, sizeof(test.path), "%s/none/slabs.kvr", test.folder);
	assert_int_equal(kvr_test_nvme_open(&test, KVR_NVME_IO_AUTO, BYTES, DEPTH), -ENOENT);
	snprintf(test.path, sizeof(test.path), "%s", test.folder);
	assert_int_equal(kvr_test_nvme_open(&test, KVR_NVME_IO_AUTO, BYTES, DEPTH), -EISDIR);
	snprintf(test.path, sizeof(test.path), "/dev/null");
	assert_int_equal(kvr_test_nvme_open(&test, KVR_NVME_IO_AUTO, BYTES, DEPTH), -EINVAL);
	memcpy(test.path, path, sizeof(path));
}

/* A file that somebody cuts while it is in use: reads end with an error, and go on when it is whole again. */
static void test_cut(void **state)
{
	const enum kvr_nvme_io ios[] = {KVR_NVME_IO_AUTO, KVR_NVME_IO_THREADS};

	(void)state;
	for (uint32_t i = 0; i < 2; i++) {
		assert_int_equal(kvr_test_nvme_open(&test, ios[i], BYTES, DEPTH), 0);
		assert_int_equal(kvr_nvme_claim(test.nvme, 2), 0);
		assert_int_equal(truncate(test.path, 2 * KVR_SLAB_BYTES + 700000), 0);
		assert_int_equal(
			kvr_test_transfer(&test, KVR_TIER_READ, 2 * SLAB, KVR_SLAB_BYTES), -EIO);
		assert_int_equal(kvr_test_transfer(&test, KVR_TIER_READ, 5 * SLAB, 4096), -EIO);
		kvr_test_write_slab(&test, 2, 0x22);
		kvr_test_check_slab(&test, 2, 0x22);
		kvr_test_nvme_close(&test);
	}
}

/* ---- what is asserted --------------------------------------------------------------------------- */

static struct kvr_tier_io wrong_io;

/* Submits wrong_io. Never comes back, if all is well. */
static int body_wrong(void)
{
	struct kvr_tier_io *one = &wrong_io;

	close(STDERR_FILENO);
	if (kvr_test_nvme_open(&test, KVR_NVME_IO_AUTO, BYTES, DEPTH) < 0)
		return 1;
	if (kvr_nvme_claim(test.nvme, 0) < 0)
		return 1;
	kvr_tier_submit(test.tier, &one, 1);
	return 0;
}

/* N3, N4: what must not reach the kernel does not. */
static void test_asserted(void **state)
{
	uint8_t *data = test.memory.data;
	uint8_t *end = data + MEMORY_BYTES;
	static uint8_t elsewhere[4096] __attribute__((aligned(4096)));
	const struct {
		enum kvr_tier_op op;
		uint64_t offset;
		uint32_t bytes;
		uint8_t *data;
	} wrong[] = {
		{KVR_TIER_READ, 100, 4096, data},               /* the offset */
		{KVR_TIER_READ, 0, 4000, data},                 /* the length */
		{KVR_TIER_READ, 0, 4096, data + 8},             /* the address */
		{KVR_TIER_READ, BYTES, 4096, data},             /* outside the file */
		{KVR_TIER_READ, BYTES - 4096, 8192, data},      /* across its end */
		{KVR_TIER_READ, UINT64_MAX - 4095, 8192, data}, /* around the end of the numbers */
		{KVR_TIER_READ, 0, 4096, elsewhere},            /* outside the memory */
		{KVR_TIER_READ, 0, 8192, end - 4096},           /* across its end */
		{KVR_TIER_READ, 0, 4096, end},                  /* behind it */
		{KVR_TIER_WRITE, KVR_SLAB_BYTES, 4096, data},   /* a free slab */
		{KVR_TIER_WRITE, KVR_SLAB_BYTES - 4096, 8192, data}, /* across into one */
	};

	(void)state;
	for (uint32_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
		int status;

		wrong_io = (struct kvr_tier_io){
			.op = wrong[i].op,
			.place = {.offset = wrong[i].offset, .bytes = wrong[i].bytes},
			.buffer = {wrong[i].data, wrong[i].bytes},
		};
		status = kvr_test_child(body_wrong);
		if (!WIFSIGNALED(status))
			fail_msg("case %u went through", i);
		assert_int_equal(WTERMSIG(status), SIGABRT);
	}
}

static void test_channels_max(void **state)
{
	struct kvr_tier *tiers[KVR_NVME_CHANNELS_MAX];
	struct kvr_tier *more;

	(void)state;
	assert_int_equal(kvr_test_nvme_open(&test, KVR_NVME_IO_AUTO, BYTES, DEPTH), 0);
	for (uint32_t i = 1; i < KVR_NVME_CHANNELS_MAX; i++)
		assert_int_equal(kvr_tier_open_nvme(test.nvme, &tiers[i]), 0);
	assert_int_equal(kvr_tier_open_nvme(test.nvme, &more), -EMFILE);
	kvr_tier_close(tiers[3]);
	assert_int_equal(kvr_tier_open_nvme(test.nvme, &tiers[3]), 0);
	for (uint32_t i = 1; i < KVR_NVME_CHANNELS_MAX; i++)
		kvr_tier_close(tiers[i]);
}

#define CASE(function) cmocka_unit_test_setup_teardown(function, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(test_map),
		CASE(test_neighbours),
		CASE(test_reopen),
		CASE(test_holes),
		CASE(test_refused_paths),
		CASE(test_cut),
		CASE(test_asserted),
		CASE(test_channels_max),
	};

	shared_random = kvr_random_start();
	return cmocka_run_group_tests(tests, NULL, NULL);
}

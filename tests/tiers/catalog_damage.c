/* SPDX-License-Identifier: Apache-2.0 */
/* catalog_damage.c: a catalog whose file is not what was written.
 *
 * Goal: whatever bit of data.mdb is flipped and wherever it ends, no call returns a row that is not
 * what was put, none crashes or hangs, and a row that is not found is found missing by
 * kvr_catalog_verify.
 *
 * Method: a catalog is filled and closed. Then, 1,200 times (fewer under sanitizers), one bit of it
 * is flipped, and a child process opens it, reads everything, compares, verifies, and goes on to
 * write. The parent sees how the child ended. Some flips aim at the places that LMDB itself goes
 * by: meta pages, heads of pages, and their indexes. Truncations likewise. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#include "tests/tiers/catalog_util.h"
#include "tests/tiers/slow_util.h"

#define CAP           ((uint64_t)16 << 20)
#define NUMBER_AT     (16 + 128) /* of a commit's number in its meta page */
#define PAGE_BYTES    ((size_t)4096)
#define CHILD_SECONDS 60u

/* A fork takes a sanitizer long. */
#define FLIPS (KVR_SLOW_THREAD ? 20u : KVR_SLOW_ADDRESS ? 120u : 1200u)
#define CUTS  (FLIPS / 10)

/* How a child ends. */
enum verdict {
	REFUSED = 40,  /* by open */
	NOTICED = 41,  /* by a call that read, or by verify */
	HARMLESS = 42, /* everything is there: no row depends on the bit */
	WRONG = 43,
	SURPRISED = 44, /* an error that no flipped bit should give */
};

static struct kvr_books books;
static char dir[256], path[300];
static uint8_t *image;
static size_t image_bytes;

static void write_image(size_t bytes)
{
	int fd = open(path, O_WRONLY | O_TRUNC);

	assert_true(fd >= 0);
	assert_int_equal(write(fd, image, bytes), bytes);
	close(fd);
}

static int setup(void **state)
{
	struct kvr_random *random = *state;
	struct kvr_catalog *catalog;
	struct stat stat;
	int fd;

	kvr_books_dir(dir, true);
	snprintf(path, sizeof(path), "%s/data.mdb", dir);
	kvr_books_init(&books, random);
	catalog = kvr_books_open(dir, CAP);
	for (uint32_t round = 0; round < 25; round++) {
		assert_int_equal(kvr_catalog_begin(catalog), 0);
		for (uint32_t i = 0; i < 20; i++)
			assert_int_equal(kvr_books_change(&books, random, catalog), 0);
		assert_int_equal(kvr_catalog_commit(catalog), 0);
	}
	kvr_books_check(&books, catalog);
	kvr_catalog_close(catalog);
	fd = open(path, O_RDONLY);
	assert_true(fd >= 0 && fstat(fd, &stat) == 0);
	image_bytes = (size_t)stat.st_size;
	image = malloc(image_bytes);
	assert_int_equal(read(fd, image, image_bytes), image_bytes);
	close(fd);
	print_message(
		"%u segments in %zu pages\n", kvr_books_count(&books), image_bytes / PAGE_BYTES);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	free(image);
	kvr_books_dir_remove(dir);
	return 0;
}

/* Whether the transaction goes on after this. */
static bool goes_on(int error)
{
	return error == 0 || error == -ENOENT || error == -EEXIST || error == -ENOTEMPTY ||
	       error == -EBUSY;
}

/* Writes what comes to mind; errors are fine. */
static void write_on(struct kvr_catalog *catalog, struct kvr_random *random)
{
	for (uint32_t round = 0; round < 3; round++) {
		bool open = kvr_catalog_begin(catalog) == 0;

		for (uint32_t i = 0; open && i < 60; i++) {
			struct kvr_books_segment *one = &books.segments[kvr_random_range(
				random, 0, KVR_BOOKS_SEGMENTS - 1)];
			struct kvr_books_segment *fresh;

			if (one->live && kvr_random_range(random, 0, 1) == 0) {
				open = goes_on(kvr_catalog_remove(catalog, one->segment.hash));
			} else if (one->live) {
				open = goes_on(kvr_catalog_mark(catalog, &one->state));
			} else {
				fresh = kvr_books_draw(&books, random);
				open = !fresh || goes_on(kvr_books_put(&books, fresh, catalog));
			}
			if (!open)
				kvr_catalog_abort(catalog);
		}
		if (open)
			(void)kvr_catalog_commit(catalog);
	}
}

/* In the child. */
static enum verdict look(struct kvr_random *random)
{
	const struct kvr_catalog_config config = {.dir = dir, .bytes = CAP};
	struct kvr_catalog_meta meta = {.slab_version = KVR_SLAB_VERSION};
	struct kvr_books_found found;
	struct kvr_catalog *catalog;
	enum verdict verdict = HARMLESS;
	char first[160];
	uint64_t rows;
	int verified;
	int error = kvr_catalog_open(&config, &meta, &catalog);

	if (error < 0)
		return error == -EBADMSG || error == -EPROTONOSUPPORT || error == -EFBIG
			       ? REFUSED
			       : SURPRISED;
	kvr_books_compare(&books, catalog, &found);
	verified = kvr_catalog_verify(catalog, &rows, first, sizeof(first));
	if (found.wrong > 0 || (found.missing > 0 && verified == 0)) {
		print_error("%s: %u wrong, %u missing\n", found.first, found.wrong, found.missing);
		return WRONG;
	}
	if (verified != 0 && verified != -EBADMSG)
		verdict = SURPRISED;
	else if (verified != 0 || found.errors > 0)
		verdict = NOTICED;
	write_on(catalog, random);
	kvr_catalog_close(catalog);
	return verdict;
}

static enum verdict look_in_child(struct kvr_random *random)
{
	static const int deadly[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT};
	int status = 0;
	pid_t child = fork();

	assert_true(child >= 0);
	if (child == 0) {
		/* The test library's handlers would go on with the tests here. */
		for (size_t i = 0; i < sizeof(deadly) / sizeof(deadly[0]); i++)
			signal(deadly[i], SIG_DFL);
		alarm(CHILD_SECONDS);
		_exit((int)look(random));
	}
	assert_int_equal(waitpid(child, &status, 0), child);
	if (!WIFEXITED(status)) {
		print_error("child: signal %d\n", WTERMSIG(status));
		return WRONG;
	}
	return (enum verdict)WEXITSTATUS(status);
}

/* A bit of data.mdb. A third of them in what pages say of themselves: the first 64 bytes of one;
 * meta pages more often. */
static size_t draw_bit(struct kvr_random *random)
{
	const uint32_t kind = kvr_random_range(random, 0, 11);
	const uint32_t pages = (uint32_t)(image_bytes / PAGE_BYTES);
	const uint32_t page =
		kind == 0 ? kvr_random_range(random, 0, 1) : kvr_random_range(random, 0, pages - 1);
	const uint32_t byte = kind == 0  ? kvr_random_range(random, 0, 160)
			      : kind < 4 ? kvr_random_range(random, 0, 63)
					 : kvr_random_range(random, 0, (uint32_t)PAGE_BYTES - 1);

	return ((size_t)page * PAGE_BYTES + byte) * 8 + kvr_random_range(random, 0, 7);
}

static void test_flips(void **state)
{
	struct kvr_random *random = *state;
	uint32_t counts[SURPRISED + 1] = {0};

	for (uint32_t i = 0; i < FLIPS; i++) {
		const size_t bit = draw_bit(random);
		enum verdict verdict;

		image[bit / 8] ^= (uint8_t)(1u << (bit % 8));
		write_image(image_bytes);
		image[bit / 8] ^= (uint8_t)(1u << (bit % 8));
		verdict = look_in_child(random);
		if (verdict < REFUSED || verdict >= WRONG)
			fail_msg("flip %u: bit %zu of page %zu: %d", i, bit % (8 * PAGE_BYTES),
				bit / (8 * PAGE_BYTES), (int)verdict);
		counts[verdict]++;
	}
	print_message("%u refused at open, %u noticed later, %u harmless\n", counts[REFUSED],
		counts[NOTICED], counts[HARMLESS]);
	assert_true(counts[REFUSED] > 0);
	assert_true(counts[NOTICED] > FLIPS / 10);
}

/* Cut anywhere, also between pages. */
static void test_truncations(void **state)
{
	struct kvr_random *random = *state;
	uint32_t refused = 0;

	for (uint32_t i = 0; i < CUTS; i++) {
		const uint32_t at = kvr_random_range(random, 0, (uint32_t)image_bytes - 1);
		const uint32_t bytes = i % 2 ? at : at - at % (uint32_t)PAGE_BYTES;
		enum verdict verdict;

		write_image(bytes);
		verdict = look_in_child(random);
		if (verdict < REFUSED || verdict >= WRONG)
			fail_msg("cut at %u: %d", bytes, (int)verdict);
		refused += verdict == REFUSED;
	}
	assert_true(refused >= CUTS / 2);
}

/* The number of the newest commit, made lower or higher: LMDB would take the one before, which is
 * sound and not what was acknowledged, or count on from a wrong one. */
static void test_number_of_commit(void **state)
{
	struct kvr_random *random = *state;
	uint8_t *newest = image + NUMBER_AT;
	uint64_t numbers[2];
	uint64_t number;

	memcpy(&numbers[0], image + NUMBER_AT, 8);
	memcpy(&numbers[1], image + PAGE_BYTES + NUMBER_AT, 8);
	if (numbers[1] > numbers[0])
		newest += PAGE_BYTES;
	number = numbers[0] > numbers[1] ? numbers[0] : numbers[1];
	for (uint32_t bit = 0; bit < 64; bit += 1 + bit / 8) {
		const uint64_t other = number ^ (uint64_t)1 << bit;

		memcpy(newest, &other, 8);
		write_image(image_bytes);
		assert_int_equal(look_in_child(random), REFUSED);
	}
	memcpy(newest, &number, 8);
}

/* It was there once, and is not: no new store is made of that. */
static void test_lost(void **state)
{
	struct kvr_random *random = *state;

	write_image(0);
	assert_int_equal(look_in_child(random), REFUSED);
	assert_int_equal(unlink(path), 0);
	assert_int_equal(look_in_child(random), REFUSED);
}

int main(void)
{
	struct kvr_random random = kvr_random_start();
	const struct CMUnitTest tests[] = {
		{"test_flips", test_flips, setup, teardown, &random},
		{"test_truncations", test_truncations, setup, teardown, &random},
		{"test_number_of_commit", test_number_of_commit, setup, teardown, &random},
		{"test_lost", test_lost, setup, teardown, &random},
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

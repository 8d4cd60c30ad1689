/* SPDX-License-Identifier: Apache-2.0 */
/* catalog_crash.c: the process that writes a catalog is killed.
 *
 * Goal: what was acknowledged by a commit is there afterwards, every row of it; of the transaction
 * that was not, all or nothing.
 *
 * Method: a child changes a catalog at random and, after every commit, tells its parent by a byte
 * through a pipe. The parent kills it at a random moment, follows its changes with the same seed as
 * far as they were acknowledged, and compares everything; if that differs, it must be equal with
 * the next transaction. Then the next child goes on from there. */
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

#include "tests/tiers/catalog_util.h"
#include "tests/tiers/slow_util.h"

#define CAP     ((uint64_t)64 << 20)
#define KILL_US 30000u
#define ROUNDS  (KVR_SLOW_THREAD ? 15u : 60u)
#define CHANGES 12u

static struct kvr_books books, trial;

static void books_copy(struct kvr_books *to, const struct kvr_books *from)
{
	*to = *from;
	for (uint32_t i = 0; i < KVR_BOOKS_SEGMENTS; i++)
		to->segments[i].segment.parts = to->segments[i].parts;
}

/* What one transaction does. */
static int change(struct kvr_random *random, struct kvr_books *to, struct kvr_catalog *catalog)
{
	for (uint32_t i = 0; i < CHANGES; i++) {
		int error = kvr_books_change(to, random, catalog);

		if (error < 0)
			return error;
	}
	return 0;
}

static void run_child(const char *dir, struct kvr_random random, int tell)
{
	struct kvr_catalog *catalog = kvr_books_open(dir, CAP);
	const char byte = 1;

	if (write(tell, &byte, 1) != 1)
		_exit(1);
	for (;;) {
		if (kvr_catalog_begin(catalog) < 0 || change(&random, &books, catalog) < 0 ||
			kvr_catalog_commit(catalog) < 0 || write(tell, &byte, 1) != 1)
			_exit(1);
	}
}

/* Starts a child, kills it a while after it has told of so many things, its open and its commits, or was
 * started, and returns how many commits it told of. */
static uint32_t kill_one(const char *dir, struct kvr_random random, uint32_t wait_us, uint32_t told)
{
	const struct timespec wait = {0, (long)wait_us * 1000};
	uint32_t count = 0;
	int status = 0;
	int ends[2];
	char byte;
	pid_t child;

	assert_int_equal(pipe(ends), 0);
	child = fork();
	assert_true(child >= 0);
	if (child == 0) {
		close(ends[0]);
		run_child(dir, random, ends[1]);
	}
	close(ends[1]);
	while (count < told && read(ends[0], &byte, 1) == 1)
		count++;
	nanosleep(&wait, NULL);
	kill(child, SIGKILL);
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_true(WIFSIGNALED(status));
	while (read(ends[0], &byte, 1) == 1)
		count++;
	close(ends[0]);
	return count > 0 ? count - 1 : 0; /* the first byte was the open's */
}

static void test_kill(void **state)
{
	struct kvr_random *random = *state;
	uint32_t acknowledged = 0;
	uint32_t beyond = 0;
	char dirs[2][256];
	struct kvr_catalog *mirror;

	kvr_books_dir(dirs[0], false);
	kvr_books_dir(dirs[1], true);
	kvr_books_init(&books, random);
	/* What the child does is done again here, to another catalog. */
	mirror = kvr_books_open(dirs[1], CAP);
	for (uint32_t round = 0; round < ROUNDS; round++) {
		struct kvr_random same = {kvr_random_next(random)};
		const uint32_t wait_us = kvr_random_range(random, 0, KILL_US);
		const uint32_t told = round % 4 != 0 ? kvr_random_range(random, 3, 6) : 0;
		const uint32_t count = kill_one(dirs[0], same, wait_us, told);
		struct kvr_books_found found;
		struct kvr_catalog *catalog;
		uint64_t differing = 0;
		char line[160] = "";

		for (uint32_t i = 0; i < count; i++) {
			assert_int_equal(kvr_catalog_begin(mirror), 0);
			assert_int_equal(change(&same, &books, mirror), 0);
			assert_int_equal(kvr_catalog_commit(mirror), 0);
		}
		acknowledged += count;
		catalog = kvr_books_open(dirs[0], CAP);
		kvr_books_compare(&books, catalog, &found);
		if (found.wrong + found.missing > 0) {
			books_copy(&trial, &books);
			assert_int_equal(kvr_catalog_begin(mirror), 0);
			assert_int_equal(change(&same, &trial, mirror), 0);
			assert_int_equal(kvr_catalog_commit(mirror), 0);
			books_copy(&books, &trial);
			beyond++;
		}
		kvr_books_check(&books, catalog);
		assert_int_equal(
			kvr_catalog_compare(catalog, mirror, &differing, line, sizeof(line)), 0);
		if (differing > 0)
			fail_msg("round %u: %s", round, line);
		kvr_catalog_close(catalog);
	}
	print_message(
		"%u commits acknowledged, %u done and not acknowledged\n", acknowledged, beyond);
	assert_true(acknowledged > ROUNDS);
	kvr_catalog_close(mirror);
	kvr_books_dir_remove(dirs[0]);
	kvr_books_dir_remove(dirs[1]);
}

int main(void)
{
	struct kvr_random random = kvr_random_start();
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_prestate(test_kill, &random),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

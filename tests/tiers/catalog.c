/* SPDX-License-Identifier: Apache-2.0 */
/* catalog.c: the catalog against plain arrays, and everything that can go wrong without a crash.
 *
 * Goal: every function says what a naive model says; a transaction is there wholly or not at all; a
 * catalog that is in use, newer, or lost is refused with the error that names it.
 *
 * Method: random changes in transactions of random length, of which some are aborted, to the
 * catalog and to the books (catalog_util.h); now and then everything is read and compared, also
 * after closing and opening again. */
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
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

#include <lmdb.h>

#include "tests/tiers/catalog_util.h"
#include "tiers/catalog_record.h"

#define MIB ((uint64_t)1 << 20)
#define CAP (64 * MIB)

static struct kvr_books books, kept;

static void books_copy(struct kvr_books *to, const struct kvr_books *from)
{
	*to = *from;
	for (uint32_t i = 0; i < KVR_BOOKS_SEGMENTS; i++)
		to->segments[i].segment.parts = to->segments[i].parts;
}

static void test_random(void **state)
{
	struct kvr_random *random = *state;
	struct kvr_catalog *catalog;
	char dir[256];
	uint32_t most = 0;

	kvr_books_dir(dir, false);
	kvr_books_init(&books, random);
	catalog = kvr_books_open(dir, CAP);
	kvr_books_check(&books, catalog);
	for (uint32_t round = 0; round < 300; round++) {
		const uint32_t changes = kvr_random_range(random, 0, 30);

		books_copy(&kept, &books);
		assert_int_equal(kvr_catalog_begin(catalog), 0);
		for (uint32_t i = 0; i < changes; i++)
			assert_int_equal(kvr_books_change(&books, random, catalog), 0);
		if (kvr_random_range(random, 0, 3) == 0) {
			kvr_catalog_abort(catalog);
			books_copy(&books, &kept);
		} else {
			assert_int_equal(kvr_catalog_commit(catalog), 0);
		}
		if (round % 20 == 0) {
			kvr_books_check(&books, catalog);
			kvr_catalog_close(catalog);
			catalog = kvr_books_open(dir, CAP);
			kvr_books_check(&books, catalog);
		}
		if (kvr_books_count(&books) > most)
			most = kvr_books_count(&books);
	}
	kvr_books_check(&books, catalog);
	assert_true(most > 300);
	kvr_catalog_close(catalog);
	kvr_books_dir_remove(dir);
}

/* ---- who may open it --------------------------------------------------------------------------- */

static void test_in_use(void **state)
{
	struct kvr_catalog_config config = {.bytes = CAP};
	struct kvr_catalog_meta meta = {.slab_version = KVR_SLAB_VERSION};
	struct kvr_catalog *catalog;
	struct kvr_catalog *second = NULL;
	char dir[256];
	int status = 0;
	pid_t child;

	(void)state;
	kvr_books_dir(dir, false);
	config.dir = dir;
	assert_int_equal(kvr_catalog_owner(dir), 0);
	catalog = kvr_books_open(dir, CAP);
	assert_int_equal(kvr_catalog_owner(dir), getpid());
	assert_int_equal(kvr_catalog_open(&config, &meta, &second), -EBUSY); /* by ourselves, too */
	assert_null(second);
	child = fork();
	assert_true(child >= 0);
	if (child == 0) {
		/* A process of its own, and a fork that uses what its parent has open. */
		struct kvr_catalog_reader *reader;
		bool right = kvr_catalog_open(&config, &meta, &second) == -EBUSY &&
			     kvr_catalog_owner(dir) == getppid() &&
			     kvr_catalog_begin(catalog) == -EBUSY &&
			     kvr_catalog_reader_open(catalog, &reader) == -EBUSY;

		kvr_catalog_close(catalog);
		_exit(right ? 0 : 1);
	}
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
	/* The fork's close has taken nothing away. */
	assert_int_equal(kvr_catalog_owner(dir), getpid());
	assert_int_equal(kvr_catalog_open(&config, &meta, &second), -EBUSY);
	assert_int_equal(kvr_catalog_begin(catalog), 0);
	assert_int_equal(kvr_catalog_commit(catalog), 0);
	kvr_catalog_close(catalog);
	assert_int_equal(kvr_catalog_owner(dir), 0);
	catalog = kvr_books_open(dir, CAP);
	kvr_catalog_close(catalog);
	kvr_books_dir_remove(dir);
}

/* A boot per open; what a new store is, it stays. */
static void test_meta(void **state)
{
	struct kvr_catalog_config config = {.bytes = CAP};
	struct kvr_catalog_meta meta = {
		.slab_version = 7, .uuid = "first", .slabs_bytes = 123456789};
	struct kvr_catalog *catalog;
	char dir[256];

	(void)state;
	kvr_books_dir(dir, false);
	config.dir = dir;
	for (uint64_t boot = 1; boot <= 3; boot++) {
		assert_int_equal(kvr_catalog_open(&config, &meta, &catalog), 0);
		assert_int_equal(meta.version, KVR_CATALOG_VERSION);
		assert_int_equal(meta.slab_version, 7);
		assert_string_equal((const char *)meta.uuid, "first");
		assert_int_equal(meta.slabs_bytes, 123456789);
		assert_int_equal(meta.boot, boot);
		kvr_catalog_close(catalog);
		meta = (struct kvr_catalog_meta){.slab_version = 9, .uuid = "second"};
	}
	kvr_books_dir_remove(dir);
}

/* A catalog of another version, older or newer: refused as such, and left as it is. */
static void other_version(uint32_t version)
{
	struct kvr_catalog_config config = {.bytes = CAP};
	struct kvr_catalog_meta meta = {.slab_version = KVR_SLAB_VERSION};
	struct kvr_catalog_key key = kvr_catalog_key_text("store");
	struct kvr_catalog *catalog;
	MDB_env *env;
	MDB_txn *txn;
	MDB_dbi table;
	char dir[256];

	kvr_books_dir(dir, false);
	config.dir = dir;
	kvr_catalog_close(kvr_books_open(dir, CAP));
	assert_int_equal(mdb_env_create(&env), 0);
	assert_int_equal(mdb_env_set_maxdbs(env, KVR_CATALOG_TABLES), 0);
	assert_int_equal(mdb_env_open(env, dir, 0, 0600), 0);
	for (uint32_t i = 0; i < 2; i++) { /* both commits that the file shows */
		struct kvr_catalog_value value;
		MDB_val key_val = {key.bytes, key.data};
		MDB_val value_val;

		meta.version = version;
		meta.boot = 1 + i;
		value = kvr_catalog_pack_meta(&key, &meta);
		value_val = (MDB_val){value.bytes, value.data};
		assert_int_equal(mdb_txn_begin(env, NULL, 0, &txn), 0);
		assert_int_equal(mdb_dbi_open(txn, "meta", 0, &table), 0);
		assert_int_equal(mdb_put(txn, table, &key_val, &value_val, 0), 0);
		assert_int_equal(mdb_txn_commit(txn), 0);
	}
	mdb_env_close(env);
	for (uint32_t i = 0; i < 2; i++) {
		meta.version = 0;
		assert_int_equal(kvr_catalog_open(&config, &meta, &catalog), -EPROTONOSUPPORT);
		assert_int_equal(meta.version, version);
	}
	kvr_books_dir_remove(dir);
}

static void test_version(void **state)
{
	(void)state;
	other_version(KVR_CATALOG_VERSION + 1);
	other_version(KVR_CATALOG_VERSION - 1);
}

/* ---- readers ----------------------------------------------------------------------------------- */

/* 10,000 rounds of reading and writing: if a reader kept pages, the file would grow with each

 * (C5). */
static void test_no_leak(void **state)
{
	struct kvr_random *random = *state;
	struct kvr_catalog_reader *reader;
	struct kvr_catalog *catalog;
	struct stat before = {0};
	struct stat after;
	struct kvr_books_segment *one;
	char dir[256], path[300];

	kvr_books_dir(dir, true);
	snprintf(path, sizeof(path), "%s/data.mdb", dir);
	kvr_books_init(&books, random);
	catalog = kvr_books_open(dir, CAP);
	assert_int_equal(kvr_catalog_reader_open(catalog, &reader), 0);
	assert_int_equal(kvr_catalog_begin(catalog), 0);
	one = kvr_books_draw(&books, random);
	assert_int_equal(kvr_books_put(&books, one, catalog), 0);
	assert_int_equal(kvr_catalog_commit(catalog), 0);
	for (uint32_t i = 0; i < 10000; i++) {
		struct kvr_catalog_state got;

		assert_int_equal(kvr_catalog_read_begin(reader), 0);
		assert_int_equal(kvr_catalog_state(reader, one->segment.id, &got), 0);
		assert_int_equal(got.used, one->state.used);
		if (i % 4 == 0) {
			one->state.used++;
			assert_int_equal(kvr_catalog_begin(catalog), 0);
			assert_int_equal(kvr_catalog_mark(catalog, &one->state), 0);
			assert_int_equal(kvr_catalog_commit(catalog), 0);
			/* It still sees what it saw when it began. */
			assert_int_equal(kvr_catalog_state(reader, one->segment.id, &got), 0);
			assert_int_equal(got.used, one->state.used - 1);
		}
		kvr_catalog_read_end(reader);
		if (i == 100)
			assert_int_equal(stat(path, &before), 0);
	}
	assert_int_equal(stat(path, &after), 0);
	assert_true(after.st_size <= before.st_size + 65536);
	kvr_catalog_reader_close(reader);
	kvr_catalog_close(catalog);
	kvr_books_dir_remove(dir);
}

/* Readers of another program of LMDB's that was killed take all places: they are found dead and
 * their places used. */
static void test_stale_readers(void **state)
{
	enum { READERS = 64 };
	struct kvr_catalog_reader *readers[READERS];
	struct kvr_catalog_stat stat;
	struct kvr_catalog *catalog;
	char dir[256];
	int status = 0;
	pid_t child;

	(void)state;
	kvr_books_dir(dir, false);
	catalog = kvr_books_open(dir, CAP);
	child = fork();
	assert_true(child >= 0);
	if (child == 0) {
		MDB_env *env;
		MDB_txn *txn;
		bool right =
			mdb_env_create(&env) == 0 && mdb_env_open(env, dir, MDB_NOTLS, 0600) == 0;

		for (uint32_t i = 0; right && i < READERS; i++)
			right = mdb_txn_begin(env, NULL, MDB_RDONLY, &txn) == 0;
		right = right && mdb_txn_begin(env, NULL, MDB_RDONLY, &txn) == MDB_READERS_FULL;
		if (right)
			raise(SIGKILL);
		_exit(1);
	}
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_true(WIFSIGNALED(status));
	for (uint32_t i = 0; i < READERS; i++)
		assert_int_equal(kvr_catalog_reader_open(catalog, &readers[i]), 0);
	kvr_catalog_stat(catalog, &stat);
	assert_int_equal(stat.reader_stale_count, READERS);
	assert_int_equal(stat.reader_count, READERS);
	{
		struct kvr_catalog_reader *more;

		assert_int_equal(kvr_catalog_reader_open(catalog, &more), -EMFILE);
	}
	for (uint32_t i = 0; i < READERS; i++)
		assert_null(kvr_catalog_reader_close(readers[i]));
	kvr_catalog_stat(catalog, &stat);
	assert_int_equal(stat.reader_count, 0);
	kvr_catalog_close(catalog);
	kvr_books_dir_remove(dir);
}

/* ---- two catalogs ------------------------------------------------------------------------------ */

static void test_compare(void **state)
{
	struct kvr_random *random = *state;
	struct kvr_catalog *one, *other;
	struct kvr_catalog_state mark;
	char dirs[2][256], line[160];
	uint64_t differing = 99;

	kvr_books_dir(dirs[0], true);
	kvr_books_dir(dirs[1], true);
	kvr_books_init(&books, random);
	one = kvr_books_open(dirs[0], CAP);
	other = kvr_books_open(dirs[1], CAP);
	assert_int_equal(kvr_catalog_begin(one), 0);
	for (uint32_t i = 0; i < 50; i++)
		assert_int_equal(kvr_books_put(&books, kvr_books_draw(&books, random), one), 0);
	assert_int_equal(kvr_catalog_commit(one), 0);
	/* The same in another order, which parents allow only where they come first; and other
	 * uses. */
	for (uint32_t done = 0; done < 50;) {
		struct kvr_books_segment *segment =
			&books.segments[kvr_random_range(random, 0, KVR_BOOKS_SEGMENTS - 1)];
		int error;

		if (!segment->live)
			continue;
		assert_int_equal(kvr_catalog_begin(other), 0);
		error = kvr_catalog_put(other, &books.models[segment->model], &segment->segment,
			segment->units, segment->cluster_max, 5);
		assert_true(error == 0 || error == -EEXIST || error == -ENOENT);
		assert_int_equal(kvr_catalog_commit(other), 0);
		done += error == 0;
	}
	assert_int_equal(kvr_catalog_compare(one, other, &differing, line, sizeof(line)), 0);
	assert_int_equal(differing, 0);
	/* What does not follow from slabs is not compared; a row too few is. */
	mark = books.segments[0].state;
	mark.flags = KVR_CATALOG_QUARANTINED;
	assert_int_equal(kvr_catalog_begin(other), 0);
	assert_int_equal(kvr_catalog_mark(other, &mark), 0);
	assert_int_equal(kvr_catalog_commit(other), 0);
	assert_int_equal(kvr_catalog_compare(one, other, &differing, line, sizeof(line)), 0);
	assert_int_equal(differing, 0);
	for (uint32_t i = 0; i < KVR_BOOKS_SEGMENTS; i++) {
		struct kvr_books_segment *segment = &books.segments[i];

		if (!segment->live || kvr_books_has_child(&books, segment->segment.hash))
			continue;
		assert_int_equal(kvr_catalog_begin(other), 0);
		assert_int_equal(kvr_catalog_remove(other, segment->segment.hash), 0);
		assert_int_equal(kvr_catalog_commit(other), 0);
		assert_int_equal(
			kvr_catalog_compare(one, other, &differing, line, sizeof(line)), 0);
		/* segment, child, tenant, slabs, a cluster per lane; model, if it was its last */
		assert_true(differing >=
			    3 + segment->segment.part_count +
				    kvr_geometry_lanes(&books.models[segment->model].geometry));
		assert_non_null(strstr(line, "table "));
		break;
	}
	kvr_catalog_close(one);
	kvr_catalog_close(other);
	kvr_books_dir_remove(dirs[0]);
	kvr_books_dir_remove(dirs[1]);
}

int main(void)
{
	struct kvr_random random = kvr_random_start();
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_prestate(test_random, &random),
		cmocka_unit_test(test_in_use),
		cmocka_unit_test(test_meta),
		cmocka_unit_test(test_version),
		cmocka_unit_test_prestate(test_no_leak, &random),
		cmocka_unit_test(test_stale_readers),
		cmocka_unit_test_prestate(test_compare, &random),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

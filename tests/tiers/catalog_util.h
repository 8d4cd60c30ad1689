/* SPDX-License-Identifier: Apache-2.0 */
/* catalog_util.h: what should be in a catalog, kept in plain arrays, and random changes to both.
 *
 * A change is made to the catalog in a transaction and to the books beside it; both are committed,
 * or both go back. kvr_books_check reads a catalog with every function there is and compares. */
#ifndef KVR_TESTS_TIERS_CATALOG_UTIL_H
#define KVR_TESTS_TIERS_CATALOG_UTIL_H

#include "tests/tiers/random_util.h"
#include "tiers/catalog.h"

enum {
	KVR_BOOKS_SEGMENTS = 512,
	KVR_BOOKS_SLABS = 4096,
	KVR_BOOKS_MODELS = 4,
	KVR_BOOKS_UNITS = 8 * (12 + 4), /* of one segment: lanes x units, at most */
	KVR_BOOKS_PARTS = 12,
	KVR_BOOKS_FREE = 0,
	KVR_BOOKS_FREED = 1, /* not yet wiped; otherwise the id */
};

struct kvr_books_segment {
	bool live;
	uint32_t model, cluster_max, unit_count;
	struct kvr_catalog_segment segment;
	uint32_t parts[KVR_BOOKS_PARTS];
	struct kvr_catalog_unit units[KVR_BOOKS_UNITS]; /* [lane][unit_count] */
	struct kvr_catalog_state state;
};

struct kvr_books {
	struct kvr_slab_model models[KVR_BOOKS_MODELS];
	struct kvr_books_segment segments[KVR_BOOKS_SEGMENTS];
	uint64_t slabs[KVR_BOOKS_SLABS];
	uint64_t id_last;
};

/* Models, and nothing else. Ids start behind `id`. */
void kvr_books_init(struct kvr_books *books, struct kvr_random *random);

/* A random segment of a random model at the end of what is there, or at its root; not live yet.
 * NULL: the books are full. */
struct kvr_books_segment *kvr_books_draw(struct kvr_books *books, struct kvr_random *random);

/* Puts it into both. Returns what the catalog said. */
int kvr_books_put(
	struct kvr_books *books, struct kvr_books_segment *one, struct kvr_catalog *catalog);

/* One random change in the open transaction: mostly puts, while the books have room. Returns what
 * the catalog said. */
int kvr_books_change(
	struct kvr_books *books, struct kvr_random *random, struct kvr_catalog *catalog);

uint32_t kvr_books_count(const struct kvr_books *books);
bool kvr_books_has_child(const struct kvr_books *books, const uint8_t hash[KVR_HASH_BYTES]);

/* What a look at a catalog found. */
struct kvr_books_found {
	uint32_t wrong;    /* rows that are not what was put */
	uint32_t missing;  /* rows that were put and are not there */
	uint32_t errors;   /* calls that said so */
	const char *first; /* what was wrong first */
};

/* Reads everything. Never fails by itself. */
void kvr_books_compare(const struct kvr_books *books, struct kvr_catalog *catalog,
	struct kvr_books_found *ret_found);

/* The same, and asserts that nothing was found. */
void kvr_books_check(const struct kvr_books *books, struct kvr_catalog *catalog);

/* A fresh directory for a catalog, below TMPDIR, or in memory where there is such a file system and
 * syncs do not matter; and its end, with all in it. */
void kvr_books_dir(char ret_dir[256], bool in_memory);
void kvr_books_dir_remove(const char *dir);

/* Opens with a cap of so many bytes, and a uuid of the tests; asserts success. */
struct kvr_catalog *kvr_books_open(const char *dir, uint64_t bytes);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* store_util.h: a store in a temporary folder, and segments whose every byte follows from their
 * names. */
#ifndef KVR_TESTS_TIERS_STORE_UTIL_H
#define KVR_TESTS_TIERS_STORE_UTIL_H

#include "tests/tiers/random_util.h"
#include "tiers/store_private.h"

/* A segment as a daemon would have it: sealed, or loaded from the store. */
struct kvr_store_sealed {
	struct kvr_segment_view view;
	uint8_t hash[KVR_HASH_BYTES], parent[KVR_HASH_BYTES];
	uint8_t *memory;  /* summary and extents */
	uint8_t *payload; /* all units, in the order of the stream */
	uint32_t *tokens, *parts, *crcs;
	struct kvr_slab_layout layout;
	uint64_t id; /* 0: not in a store */
};

struct kvr_store_bed {
	char dir[64];
	struct kvr_store_config config;
	struct kvr_slab_model model;
	struct kvr_mapping memory; /* the core's */
	struct kvr_store *store;
	struct kvr_store_hooks hooks; /* used at open where wrap is set */
	char text[KVR_STORE_TEXT_MAX];
};

/* A folder, a model of 2 layers and 2 kv heads, and a store's configuration: so many slabs. */
void kvr_store_bed_init(struct kvr_store_bed *bed, uint32_t slabs, enum kvr_nvme_io io);
void kvr_store_bed_fini(struct kvr_store_bed *bed); /* closes, and removes the folder */
int kvr_store_test_open(struct kvr_store_bed *bed);
void kvr_store_test_close(struct kvr_store_bed *bed);
void kvr_store_test_reopen(struct kvr_store_bed *bed);

/* The names of the test's segments. */
void kvr_store_test_name(const void *context, const uint8_t parent[KVR_HASH_BYTES],
	const uint32_t *tokens, uint32_t count, uint8_t ret_hash[KVR_HASH_BYTES]);

/* One with its arrays and their memory, and nothing in them. To be freed. */
struct kvr_store_sealed *kvr_store_sealed_shape(
	const struct kvr_store_bed *bed, uint32_t token_first, uint32_t count);

/* A sealed segment behind `parent` (NULL: the first), with these ids. To be freed. */
struct kvr_store_sealed *kvr_store_sealed_make(const struct kvr_store_bed *bed,
	const struct kvr_store_sealed *parent, const uint32_t *tokens, uint32_t count);
/* One of S tokens, whose ids follow from `seed`. */
struct kvr_store_sealed *kvr_store_sealed_any(
	const struct kvr_store_bed *bed, const struct kvr_store_sealed *parent, uint64_t seed);
void kvr_store_sealed_free(struct kvr_store_sealed *segment);

/* Runs a job and returns its status. */
int kvr_store_test_run(struct kvr_store_bed *bed, struct kvr_store_job *job);

int kvr_store_test_put(struct kvr_store_bed *bed, struct kvr_store_sealed *segment);
/* As put, and gives the hold back. The status must be 0. */
void kvr_store_test_keep(struct kvr_store_bed *bed, struct kvr_store_sealed *segment);

/* Matches, gives holds back, and returns how many segments were found; their ids in ret_ids unless
 * NULL. */
uint32_t kvr_store_test_match(
	struct kvr_store_bed *bed, const uint32_t *tokens, uint32_t count, uint64_t *ret_ids);
/* Whether a segment is in the store. Looks through LIST. */
bool kvr_store_test_stored(struct kvr_store_bed *bed, const struct kvr_store_sealed *segment);

/* Loads it into fresh memory, reads all units back through the core's channel, and compares
 * every byte with the segment. Returns the load's status, or -EIO where one could not be
 * read. */
int kvr_store_test_load(struct kvr_store_bed *bed, const struct kvr_store_sealed *segment);

int kvr_store_test_mark(struct kvr_store_bed *bed, uint64_t id, uint64_t used, uint32_t flags);
uint32_t kvr_store_test_gone(struct kvr_store_bed *bed); /* takes all; returns how many */
/* Copies a folder with all in it; removes one. Names are the bed's. */
void kvr_store_test_copy(const struct kvr_store_bed *bed, const char *from, const char *to);
void kvr_store_test_remove(const struct kvr_store_bed *bed, const char *name);
void kvr_store_test_path(const struct kvr_store_bed *bed, const char *name, char ret_path[256]);

#endif

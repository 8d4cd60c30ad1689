/* SPDX-License-Identifier: Apache-2.0 */
/* naive_util.h: a directory in a small world of its own, and beside it a list of what should be in it,
 * searched from end to end. */
#ifndef KVR_TESTS_DAEMON_NAIVE_H
#define KVR_TESTS_DAEMON_NAIVE_H

#include "daemon/cache.h"
#include "daemon/directory.h"
#include "daemon/work.h"

#define NAIVE_RECORDS_MAX 8192u
#define NAIVE_COUNT_MAX   16u /* tokens of a segment here */
#define NAIVE_ALLOCS_MAX  8u
#define NAIVE_NONE        UINT32_MAX

/* A segment that was published. Its parent is a record, with a lower number. */
struct naive_record {
	bool alive, pinned;
	uint32_t segment, parent;
	uint32_t leases, count, first;
	uint32_t tokens[NAIVE_COUNT_MAX];
	uint8_t hash[KVR_HASH_BYTES];
	struct kvr_model *model;
	uint64_t bytes; /* of payload and memory */
};

struct naive_held {
	struct kvr_tenant *tenant;
	void *memory;
	size_t bytes;
};

struct naive {
	struct kvr_directory directory;
	struct kvr_cache cache;
	struct kvr_works works;  /* none run */
	struct kvr_arena *arena; /* 4 MiB */
	struct kvr_tier *host;
	struct kvr_tenant tenants[2]; /* the first has a quota of 512 KiB */
	struct kvr_model models[3];   /* the last two are the second tenant's */
	struct naive_record records[NAIVE_RECORDS_MAX];
	uint32_t record_count;
	struct naive_held held[NAIVE_ALLOCS_MAX];
};

extern struct naive naive;

void naive_open(enum kvr_policy_kind policy);

/* Drops everything and asserts that nothing is left, in the arena or on an account. */
void naive_close(void);

/* Whether nothing holds this record's segment. */
bool naive_may_go(uint32_t record);

/* A record that is alive, or NAIVE_NONE. */
uint32_t naive_random(void);

uint32_t naive_find(
	const struct kvr_model *model, uint32_t parent, const uint32_t *tokens, uint32_t count);

/* Whether all ids up to the end of this record stand at the prompt's start. */
bool naive_is_prefix(uint32_t record, const uint32_t *prompt, uint32_t count);

/* Writes, or checks, the bytes of a record's payload. */
void naive_payload(uint32_t record, bool write);

/* Finds out what was evicted, checks that it was allowed to go, and that all else is as it was. */
void naive_settle(void);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* bed_util.h: the tiers that the conformance suite runs on, and the bytes it fills them with.
 *
 * A new tier is a line in kvr_beds. Functions that return nothing end the test when they fail. */
#ifndef KVR_TESTS_TIERS_BED_UTIL_H
#define KVR_TESTS_TIERS_BED_UTIL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/assert.h"
#include "tests/tiers/nvme_util.h"
#include "tiers/arena.h"
#include "tiers/tier.h"

#define KVR_BEDS             6u
#define KVR_BED_CAPACITY     ((uint64_t)16 << 20)
#define KVR_BED_BUFFER_BYTES ((size_t)1 << 20)
#define KVR_BED_QUEUE_COUNT  2000u /* transfers of test_queue, more than any tier takes at once */
#define KVR_BED_QUEUE_BYTES  512u
#define KVR_BED_MEMORY_BYTES ((size_t)4 << 20) /* the buffer, and those of the queue */
#define KVR_BED_DEPTH        32u

KVR_STATIC_ASSERT(KVR_BED_BUFFER_BYTES + (size_t)KVR_BED_QUEUE_COUNT * KVR_BED_QUEUE_BYTES <=
		  KVR_BED_MEMORY_BYTES);

struct kvr_bed {
	const char *name;
	int (*open)(struct kvr_bed *bed);
	enum kvr_nvme_io io; /* of NVMe tiers */
	bool slabs; /* a place takes 1 MiB, whatever its bytes, and spans of it can be moved */
	bool faulty;
	bool placeless; /* refuses every place */
	struct kvr_arena *arena;
	struct kvr_test_nvme nvme;
	struct kvr_tier *tier;
	struct kvr_tier_stat stat; /* just after opening */
	uint8_t *buffer;           /* KVR_BED_BUFFER_BYTES, aligned for any tier */
	uint8_t *queue_buffer;     /* KVR_BED_QUEUE_COUNT of KVR_BED_QUEUE_BYTES */
};

extern struct kvr_bed kvr_beds[KVR_BEDS];

/* Opens and closes the tier alone; for cases that go on in a child. */
int kvr_bed_open(struct kvr_bed *bed);
void kvr_bed_close(struct kvr_bed *bed);

/* For cmocka: *state is a bed. */
int kvr_bed_setup(void **state);
int kvr_bed_teardown(void **state);

/* Bytes that follow from a number. */
void kvr_bed_fill(uint8_t *data, size_t bytes, uint64_t number);
void kvr_bed_check(const uint8_t *data, size_t bytes, uint64_t number);

/* The span that moves when all of a place does. */
struct kvr_place kvr_bed_whole(const struct kvr_bed *bed, struct kvr_place place);

/* Fills a place with the bytes of a number; reads it and compares. */
void kvr_bed_write(struct kvr_bed *bed, struct kvr_place place, uint64_t number);
void kvr_bed_read(struct kvr_bed *bed, struct kvr_place place, uint64_t number);

#endif

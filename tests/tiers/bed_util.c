/* SPDX-License-Identifier: Apache-2.0 */
/* bed_util.c: opens tiers for the conformance suite. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "tests/tiers/bed_util.h"
#include "tests/tiers/random_util.h"
#include "tiers/faulty.h"
#include "tiers/host.h"
#include "tiers/null.h"

static int open_host(struct kvr_bed *bed)
{
	int rc = kvr_arena_open(KVR_BED_CAPACITY, &bed->arena);

	return rc < 0 ? rc : kvr_tier_open_host(bed->arena, &bed->tier);
}

static int open_nvme(struct kvr_bed *bed)
{
	int rc = kvr_test_nvme_open(&bed->nvme, bed->io, KVR_BED_CAPACITY, KVR_BED_DEPTH);

	bed->tier = bed->nvme.tier;
	bed->nvme.tier = NULL; /* closed as the bed's */
	return rc;
}

static int open_null(struct kvr_bed *bed)
{
	return kvr_tier_open_null(&bed->tier);
}

/* With no fault armed, a faulty tier is what lies below it. */
struct kvr_bed kvr_beds[KVR_BEDS] = {
	{.name = "null", .open = open_null, .placeless = true},
	{.name = "host", .open = open_host},
	{.name = "faulty over host", .open = open_host, .faulty = true},
	{.name = "nvme, threads", .open = open_nvme, .io = KVR_NVME_IO_THREADS, .slabs = true},
	{.name = "faulty over nvme",
		.open = open_nvme,
		.io = KVR_NVME_IO_AUTO,
		.slabs = true,
		.faulty = true},
	{.name = "nvme, io_uring", .open = open_nvme, .io = KVR_NVME_IO_URING, .slabs = true},
};

int kvr_bed_open(struct kvr_bed *bed)
{
	int rc = bed->open(bed);

	if (rc == 0 && bed->faulty)
		rc = kvr_tier_open_faulty(bed->tier, &bed->tier);
	return rc;
}

void kvr_bed_close(struct kvr_bed *bed)
{
	bed->tier = kvr_tier_close(bed->tier);
	bed->arena = kvr_arena_close(bed->arena);
	kvr_test_nvme_close(&bed->nvme);
}

int kvr_bed_setup(void **state)
{
	struct kvr_bed *bed = *state;

	bed->arena = NULL;
	kvr_test_nvme_start(&bed->nvme, KVR_BED_MEMORY_BYTES);
	bed->buffer = bed->nvme.memory.data;
	bed->queue_buffer = bed->buffer + KVR_BED_BUFFER_BYTES;
	if (kvr_bed_open(bed) < 0)
		return -1;
	kvr_tier_stat(bed->tier, &bed->stat);
	return 0;
}

int kvr_bed_teardown(void **state)
{
	struct kvr_bed *bed = *state;

	kvr_bed_close(bed);
	kvr_test_nvme_end(&bed->nvme);
	return 0;
}

/* ---- the bytes of a place, and transfers ----------------------------------------------------- */

void kvr_bed_fill(uint8_t *data, size_t bytes, uint64_t number)
{
	struct kvr_random random = {number};

	for (size_t at = 0; at < bytes; at += 8) {
		uint64_t word = kvr_random_next(&random);

		memcpy(data + at, &word, bytes - at < 8 ? bytes - at : 8);
	}
}

void kvr_bed_check(const uint8_t *data, size_t bytes, uint64_t number)
{
	static uint8_t expected[KVR_BED_BUFFER_BYTES];

	kvr_bed_fill(expected, bytes, number);
	assert_memory_equal(data, expected, bytes);
}

struct kvr_place kvr_bed_whole(const struct kvr_bed *bed, struct kvr_place place)
{
	const uint32_t mask = bed->stat.alignment - 1;

	place.bytes = (place.bytes + mask) & ~mask;
	return place;
}

void kvr_bed_write(struct kvr_bed *bed, struct kvr_place place, uint64_t number)
{
	struct kvr_tier_io io = {
		.op = KVR_TIER_WRITE,
		.place = place = kvr_bed_whole(bed, place),
		.buffer = {bed->buffer, place.bytes},
		.owner = bed,
	};

	kvr_bed_fill(bed->buffer, place.bytes, number);
	assert_int_equal(kvr_test_run(bed->tier, &io), 0);
	kvr_bed_check(bed->buffer, place.bytes, number); /* a write leaves its buffer alone */
	assert_ptr_equal(io.owner, bed);
	assert_int_equal(io.place.bytes, place.bytes);
}

void kvr_bed_read(struct kvr_bed *bed, struct kvr_place place, uint64_t number)
{
	struct kvr_tier_io io = {
		.op = KVR_TIER_READ,
		.place = place = kvr_bed_whole(bed, place),
		.buffer = {bed->buffer, place.bytes},
	};

	memset(bed->buffer, 0, place.bytes);
	assert_int_equal(kvr_test_run(bed->tier, &io), 0);
	kvr_bed_check(bed->buffer, place.bytes, number); /* T3 */
}

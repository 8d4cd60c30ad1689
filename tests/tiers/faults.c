/* SPDX-License-Identifier: Apache-2.0 */
/* faults.c: the faulty tier and the null tier.
 *
 * Goal: the faulty tier fails exactly where it is told to, as its header says, and the null tier
 * holds nothing.
 *
 * Method: each fault is armed for its n-th call over a host tier; the calls before and after must
 * succeed, the io must come back as it was submitted but for its status, and the bytes below are
 * looked at through the address of the place. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "tests/tiers/nvme_util.h"
#include "tiers/faulty.h"
#include "tiers/host.h"
#include "tiers/null.h"

#define BYTES 8192u

struct bed {
	struct kvr_arena *arena;
	struct kvr_tier *tier;
	struct kvr_place place;
	uint8_t *memory; /* of the place */
	uint8_t buffer[BYTES];
};

static int setup(void **state)
{
	static struct bed bed;
	const uint32_t bytes = BYTES;
	struct kvr_tier *host;

	if (kvr_arena_open((uint64_t)4 << 20, &bed.arena) < 0)
		return -1;
	if (kvr_tier_open_host(bed.arena, &host) < 0 || kvr_tier_open_faulty(host, &bed.tier) < 0)
		return -1;
	if (kvr_tier_reserve(bed.tier, 1, &bytes, 1, &bed.place) < 0)
		return -1;
	bed.memory = kvr_tier_address(bed.tier, bed.place);
	*state = &bed;
	return 0;
}

static int teardown(void **state)
{
	struct bed *bed = *state;

	kvr_tier_release(bed->tier, 1, &bed->place, 1);
	kvr_tier_close(bed->tier);
	kvr_arena_close(bed->arena);
	return 0;
}

/* Runs one transfer and returns its status. */
static int run(struct bed *bed, enum kvr_tier_op op)
{
	struct kvr_tier_io io = {
		.op = op,
		.place = bed->place,
		.buffer = {bed->buffer, BYTES},
		.owner = bed,
	};
	struct kvr_tier_io *one = &io;
	struct kvr_tier_io *reaped = NULL;

	assert_int_equal(kvr_tier_submit(bed->tier, &one, 1), 1);
	assert_int_equal(kvr_tier_reap(bed->tier, &reaped, 1), 1);
	assert_ptr_equal(reaped, &io);
	assert_int_equal(io.op, op);
	assert_int_equal(io.place.offset, bed->place.offset);
	assert_int_equal(io.place.bytes, BYTES);
	assert_int_equal(io.buffer.bytes, BYTES);
	assert_ptr_equal(io.owner, bed);
	return io.status;
}

static uint64_t errors(struct bed *bed)
{
	struct kvr_tier_stat stat;

	kvr_tier_stat(bed->tier, &stat);
	return stat.error_count;
}

static uint32_t count_byte(const uint8_t *data, uint8_t value)
{
	uint32_t count = 0;

	for (uint32_t i = 0; i < BYTES; i++)
		count += data[i] == value;
	return count;
}

static void test_reserve(void **state)
{
	struct bed *bed = *state;
	const struct kvr_tier_faults faults = {.reserve_at = 2};
	const uint32_t bytes[2] = {100, 200};
	struct kvr_place first[2];
	struct kvr_place third[2];

	kvr_tier_faulty_arm(bed->tier, &faults);
	assert_int_equal(kvr_tier_reserve(bed->tier, 2, bytes, 2, first), 0);
	assert_int_equal(kvr_tier_reserve(bed->tier, 3, bytes, 2, third), -ENOSPC);
	assert_int_equal(kvr_tier_reserve(bed->tier, 3, bytes, 2, third), 0);
	assert_int_equal(errors(bed), 1);
	kvr_tier_release(bed->tier, 2, first, 2);
	kvr_tier_release(bed->tier, 3, third, 2);
}

static void test_read(void **state)
{
	struct bed *bed = *state;
	const struct kvr_tier_faults faults = {.read_error_at = 3};

	memset(bed->memory, 0x11, BYTES);
	kvr_tier_faulty_arm(bed->tier, &faults);
	for (int call = 1; call <= 5; call++) {
		memset(bed->buffer, 0, BYTES);
		assert_int_equal(run(bed, KVR_TIER_READ), call == 3 ? -EIO : 0);
		assert_int_equal(count_byte(bed->buffer, 0x11), call == 3 ? 0 : BYTES);
		assert_int_equal(run(bed, KVR_TIER_WRITE), 0); /* other kinds do not count */
		memset(bed->memory, 0x11, BYTES);
	}
	assert_int_equal(errors(bed), 1);
}

static void test_write(void **state)
{
	struct bed *bed = *state;
	const struct kvr_tier_faults faults = {.write_error_at = 2, .write_full_at = 3};
	const int status[5] = {0, -EIO, -ENOSPC, 0, 0};
	const uint32_t written[5] = {BYTES, BYTES / 2, 0, BYTES, BYTES};

	kvr_tier_faulty_arm(bed->tier, &faults);
	for (int call = 0; call < 5; call++) {
		memset(bed->memory, 0, BYTES);
		memset(bed->buffer, 0x22, BYTES);
		assert_int_equal(run(bed, KVR_TIER_WRITE), status[call]);
		assert_int_equal(count_byte(bed->memory, 0x22), written[call]);
		assert_int_equal(count_byte(bed->buffer, 0x22), BYTES);
	}
	assert_int_equal(errors(bed), 2);
}

static void test_sync(void **state)
{
	struct bed *bed = *state;
	const struct kvr_tier_faults faults = {.sync_error_at = 1};

	kvr_tier_faulty_arm(bed->tier, &faults);
	assert_int_equal(run(bed, KVR_TIER_READ), 0);
	assert_int_equal(run(bed, KVR_TIER_SYNC), -EIO);
	assert_int_equal(run(bed, KVR_TIER_SYNC), 0);
	assert_int_equal(errors(bed), 1);
}

/* Half of it is there, and the status says that it is not all. */
static void test_short(void **state)
{
	struct bed *bed = *state;
	const struct kvr_tier_faults faults = {.read_short_at = 1};

	memset(bed->memory, 0x11, BYTES);
	kvr_tier_faulty_arm(bed->tier, &faults);
	assert_int_equal(run(bed, KVR_TIER_READ), -EIO);
	assert_int_equal(count_byte(bed->buffer, 0x11), BYTES / 2);
	assert_int_equal(run(bed, KVR_TIER_READ), 0);
	assert_int_equal(count_byte(bed->buffer, 0x11), BYTES);
}

/* What claims to have gone well, and has not. */
static void test_silent(void **state)
{
	struct bed *bed = *state;
	const struct kvr_tier_faults faults = {
		.read_flip_at = 2, .write_lost_at = 2, .sync_lost_at = 1, .seed = 5};
	uint32_t bits = 0;

	kvr_tier_faulty_arm(bed->tier, &faults);
	memset(bed->buffer, 0x33, BYTES);
	assert_int_equal(run(bed, KVR_TIER_WRITE), 0);
	memset(bed->buffer, 0x44, BYTES);
	assert_int_equal(run(bed, KVR_TIER_WRITE), 0);
	assert_int_equal(count_byte(bed->memory, 0x33), BYTES);
	assert_int_equal(run(bed, KVR_TIER_READ), 0);
	assert_int_equal(count_byte(bed->buffer, 0x33), BYTES);
	assert_int_equal(run(bed, KVR_TIER_READ), 0);
	for (uint32_t i = 0; i < BYTES; i++)
		bits += (uint32_t)__builtin_popcount(bed->buffer[i] ^ 0x33u);
	assert_int_equal(bits, 1);
	assert_int_equal(run(bed, KVR_TIER_SYNC), 0);
	assert_int_equal(errors(bed), 3);
}

/* Rates: about as many as asked for, and the same ones from the same seed. */
static void test_rates(void **state)
{
	enum { CALLS = 20000 };
	struct bed *bed = *state;
	static int first[CALLS];
	const struct kvr_tier_faults faults = {.read_error_ppm = 50000,
		.write_full_ppm = 100000,
		.sync_error_ppm = 200000,
		.seed = 77};
	uint32_t failed[3] = {0, 0, 0};

	for (int pass = 0; pass < 2; pass++) {
		kvr_tier_faulty_arm(bed->tier, &faults);
		for (uint32_t i = 0; i < CALLS; i++) {
			const enum kvr_tier_op op = i % 3;
			const int status = run(bed, op);

			if (pass == 1)
				assert_int_equal(status, first[i]);
			first[i] = status;
			failed[op] += status < 0;
		}
	}
	assert_in_range(failed[KVR_TIER_READ], 2 * CALLS / 75, 2 * CALLS / 50);
	assert_in_range(failed[KVR_TIER_WRITE], 2 * CALLS / 35, 2 * CALLS / 26);
	assert_in_range(failed[KVR_TIER_SYNC], 2 * CALLS / 17, 2 * CALLS / 13);
}

/* Over a tier with a descriptor: what fails here wakes the owner as what comes from below does. */
static void test_descriptor(void **state)
{
	struct kvr_test_nvme nvme;
	struct kvr_tier *tier;
	struct kvr_tier_faults faults = {.read_error_at = 1, .seed = 3};
	struct kvr_tier_io io = {.op = KVR_TIER_WRITE};

	(void)state;
	kvr_test_nvme_start(&nvme, 2u << 20);
	assert_int_equal(
		kvr_test_nvme_open(&nvme, KVR_NVME_IO_AUTO, (uint64_t)4 * KVR_SLAB_BYTES, 4), 0);
	assert_int_equal(kvr_nvme_claim(nvme.nvme, 0), 0);
	assert_int_equal(kvr_tier_open_faulty(nvme.tier, &tier), 0);
	nvme.tier = NULL;
	io.place = (struct kvr_place){0, 65536, 0};
	io.buffer = (struct kvr_span){nvme.memory.data, 65536};
	memset(nvme.memory.data, 0x77, 65536);
	assert_int_equal(kvr_test_run(tier, &io), 0);
	kvr_tier_faulty_arm(tier, &faults);
	io.op = KVR_TIER_READ;
	assert_int_equal(kvr_test_run(tier, &io), -EIO);
	assert_int_equal(kvr_test_run(tier, &io), 0);
	assert_int_equal(nvme.memory.data[65535], 0x77);
	faults = (struct kvr_tier_faults){
		.sync_lost_at = 1, .write_error_at = 1, .read_short_at = 1};
	kvr_tier_faulty_arm(tier, &faults);
	assert_int_equal(kvr_test_run(tier, &io), -EIO);
	memset(nvme.memory.data, 0x88, 65536);
	io.op = KVR_TIER_SYNC;
	assert_int_equal(kvr_test_run(tier, &io), 0);
	io.op = KVR_TIER_WRITE;
	assert_int_equal(kvr_test_run(tier, &io), -EIO);
	io.op = KVR_TIER_READ;
	assert_int_equal(kvr_test_run(tier, &io), 0);
	assert_int_equal(nvme.memory.data[32767], 0x88);
	assert_int_equal(nvme.memory.data[32768], 0x77);
	kvr_tier_close(tier);
	kvr_test_nvme_end(&nvme);
}

static void test_delay(void **state)
{
	struct bed *bed = *state;
	const struct kvr_tier_faults faults = {.delay_reaps = 3};
	struct kvr_tier_io ios[2];
	struct kvr_tier_io *reaped[2];

	kvr_tier_faulty_arm(bed->tier, &faults);
	for (uint32_t i = 0; i < 2; i++) {
		struct kvr_tier_io *one = &ios[i];

		ios[i] = (struct kvr_tier_io){
			.op = KVR_TIER_READ,
			.place = bed->place,
			.buffer = {bed->buffer, BYTES},
		};
		assert_int_equal(kvr_tier_submit(bed->tier, &one, 1), 1);
		assert_int_equal(kvr_tier_reap(bed->tier, reaped, 2), 0);
	}
	assert_int_equal(kvr_tier_reap(bed->tier, reaped, 2), 0);
	assert_int_equal(kvr_tier_reap(bed->tier, reaped, 2), 1); /* held back 3 times */
	assert_ptr_equal(reaped[0], &ios[0]);
	assert_int_equal(kvr_tier_reap(bed->tier, reaped, 2), 1);
	assert_ptr_equal(reaped[0], &ios[1]);
	assert_int_equal(errors(bed), 0);
}

/* A fault waits for an io that is taken: a refused submit does not use it up. */
static void test_full_queue(void **state)
{
	enum { COUNT = 1000 };
	struct bed *bed = *state;
	const struct kvr_tier_faults none = {0};
	const struct kvr_tier_faults next = {.write_error_at = 1};
	static struct kvr_tier_io ios[COUNT];
	struct kvr_tier_io *list[COUNT];
	struct kvr_tier_io *reaped;
	uint32_t taken;

	for (uint32_t i = 0; i < COUNT; i++) {
		ios[i] = (struct kvr_tier_io){
			.op = KVR_TIER_WRITE,
			.place = bed->place,
			.buffer = {bed->buffer, BYTES},
		};
		list[i] = &ios[i];
	}
	kvr_tier_faulty_arm(bed->tier, &none);
	taken = kvr_tier_submit(bed->tier, list, COUNT);
	assert_in_range(taken, 1, COUNT - 1);
	kvr_tier_faulty_arm(bed->tier, &next);
	assert_int_equal(kvr_tier_submit(bed->tier, &list[taken], 1), 0);
	assert_int_equal(ios[taken].op, KVR_TIER_WRITE);
	assert_int_equal(ios[taken].place.bytes, BYTES);
	for (uint32_t i = 0; i < taken; i++) {
		assert_int_equal(kvr_tier_reap(bed->tier, &reaped, 1), 1);
		assert_ptr_equal(reaped, &ios[i]);
		assert_int_equal(reaped->status, 0);
	}
	assert_int_equal(run(bed, KVR_TIER_WRITE), -EIO);
}

static void test_null(void **state)
{
	enum { COUNT = 200 };
	const uint32_t bytes = 1;
	struct kvr_tier *tier;
	struct kvr_tier_stat stat;
	struct kvr_place place;
	struct kvr_tier_io ios[COUNT];
	struct kvr_tier_io *list[COUNT];
	uint32_t done = 0;

	(void)state;
	assert_int_equal(kvr_tier_open_null(&tier), 0);
	assert_int_equal(kvr_tier_reserve(tier, 0, &bytes, 1, &place), -ENOSPC);
	assert_int_equal(kvr_tier_fd(tier), -1);
	kvr_tier_stat(tier, &stat);
	assert_int_equal(stat.capacity_bytes, 0);
	assert_int_equal(stat.place_count, 0);
	for (uint32_t i = 0; i < COUNT; i++) {
		ios[i] = (struct kvr_tier_io){.op = KVR_TIER_SYNC, .status = -EINPROGRESS};
		list[i] = &ios[i];
	}
	while (done < COUNT) {
		struct kvr_tier_io *reaped[COUNT];
		uint32_t taken = kvr_tier_submit(tier, &list[done], COUNT - done);

		assert_true(taken > 0);
		assert_int_equal(kvr_tier_reap(tier, reaped, COUNT), taken);
		for (uint32_t i = 0; i < taken; i++) {
			assert_ptr_equal(reaped[i], list[done + i]);
			assert_int_equal(reaped[i]->status, 0);
		}
		done += taken;
	}
	assert_null(kvr_tier_close(tier));
	assert_null(kvr_tier_close(NULL));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_reserve, setup, teardown),
		cmocka_unit_test_setup_teardown(test_read, setup, teardown),
		cmocka_unit_test_setup_teardown(test_write, setup, teardown),
		cmocka_unit_test_setup_teardown(test_sync, setup, teardown),
		cmocka_unit_test_setup_teardown(test_short, setup, teardown),
		cmocka_unit_test_setup_teardown(test_silent, setup, teardown),
		cmocka_unit_test_setup_teardown(test_rates, setup, teardown),
		cmocka_unit_test(test_descriptor),
		cmocka_unit_test_setup_teardown(test_delay, setup, teardown),
		cmocka_unit_test_setup_teardown(test_full_queue, setup, teardown),
		cmocka_unit_test(test_null),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

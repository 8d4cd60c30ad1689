/* SPDX-License-Identifier: Apache-2.0 */
/* oracle_util.c: chance, elements, guarded buffers and devices for the tests of kernels/; the world
 * stands in world_util.c. */
#include "tests/kernels/oracle_util.h"

#include <errno.h>
#include <math.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/cpu.h"

#define CANARY_BYTES 128u
#define CANARY       0xa5u

struct oracle_random oracle_random(uint64_t seed)
{
	struct oracle_random random = {seed * 0x9e3779b97f4a7c15u + 1};

	return random;
}

static uint64_t next(struct oracle_random *random)
{
	random->state ^= random->state << 13;
	random->state ^= random->state >> 7;
	random->state ^= random->state << 17;
	return random->state * 0x2545f4914f6cdd1du;
}

uint32_t oracle_pick(struct oracle_random *random, uint32_t low, uint32_t high)
{
	return low + (uint32_t)((next(random) >> 32) % (high - low + 1));
}

double oracle_gauss(struct oracle_random *random)
{
	double sum = -6.0; /* of 12 uniform numbers: near enough to a bell */

	for (int i = 0; i < 12; i++)
		sum += (double)(next(random) >> 11) * 0x1p-53;
	return sum;
}

static double of_f32(uint32_t bits)
{
	float value;

	memcpy(&value, &bits, sizeof(value));
	return (double)value;
}

double oracle_bf16(uint16_t bits)
{
	return of_f32((uint32_t)bits << 16);
}

/* IEEE 754 binary16: sign, 5 bits of exponent, 10 of fraction. */
static double of_f16(uint16_t bits)
{
	const int exponent = bits >> 10 & 31;
	const double sign = bits >> 15 ? -1.0 : 1.0;
	const double fraction = bits & 1023;

	if (exponent == 31)
		return fraction > 0.0 ? (double)NAN : sign * (double)INFINITY;
	if (exponent == 0)
		return sign * fraction * 0x1p-24;
	return sign * (1024.0 + fraction) * (double)(1u << exponent) * 0x1p-25;
}

double oracle_get(const uint8_t *row, enum kvr_dtype dtype, size_t i)
{
	uint32_t wide;
	uint16_t half;

	if (dtype == KVR_DTYPE_F32) {
		memcpy(&wide, row + i * 4, sizeof(wide));
		return of_f32(wide);
	}
	memcpy(&half, row + i * 2, sizeof(half));
	return dtype == KVR_DTYPE_BF16 ? oracle_bf16(half) : of_f16(half);
}

void oracle_put(uint8_t *row, enum kvr_dtype dtype, size_t i, double value)
{
	const float narrow = (float)value;
	uint32_t wide;
	uint16_t half;
	int exponent;

	memcpy(&wide, &narrow, sizeof(wide));
	if (dtype == KVR_DTYPE_F32) {
		memcpy(row + i * 4, &wide, sizeof(wide));
		return;
	}
	half = (uint16_t)(wide >> 16);
	if (dtype == KVR_DTYPE_F16) {
		const double fraction = frexp(fabs(value), &exponent); /* [0.5, 1) */

		half = (uint16_t)(value < 0 ? 0x8000u : 0u);
		if (exponent >= -13 && fraction > 0.0) /* what is smaller becomes zero */
			half = (uint16_t)(half | (uint32_t)(exponent + 14) << 10 |
					  ((uint32_t)(fraction * 2048.0) & 0x3ffu));
	}
	memcpy(row + i * 2, &half, sizeof(half));
}

void oracle_guard_open(struct oracle_guard *guard, size_t bytes, size_t shift)
{
	const size_t all = (bytes + shift + 2 * CANARY_BYTES + 63) & ~(size_t)63;

	guard->memory = aligned_alloc(64, all);
	assert_non_null(guard->memory);
	memset(guard->memory, CANARY, all);
	guard->data = guard->memory + CANARY_BYTES + shift;
	guard->bytes = bytes;
}

void oracle_guard_check(const struct oracle_guard *guard)
{
	for (const uint8_t *byte = guard->memory; byte < guard->data; byte++)
		assert_int_equal(*byte, CANARY);
	for (size_t i = 0; i < CANARY_BYTES; i++)
		assert_int_equal(guard->data[guard->bytes + i], CANARY);
}

void oracle_guard_close(struct oracle_guard *guard)
{
	if (!guard->memory)
		return;
	oracle_guard_check(guard);
	free(guard->memory);
	*guard = (struct oracle_guard){0};
}

struct kvr_device *oracle_device(enum kvr_isa isa, uint32_t threads, uint32_t inline_item_us)
{
	const struct kvr_device_cpu_config config = {
		.threads = threads, .isa = isa, .inline_item_us = inline_item_us};
	struct kvr_device *device = NULL;
	const int error = kvr_device_open_cpu(&config, &device);

	if (error == -ENOTSUP) {
		print_message("skipped: this processor lacks the instruction set\n");
		skip();
	}
	assert_int_equal(error, 0);
	return device;
}

void oracle_need_loops(enum kvr_isa isa, bool tiles)
{
	kvr_device_close(oracle_device(isa, 1, 0));
	if (tiles && !kvr_kmeans_tiles_usable()) {
		print_message("skipped: this processor has no bf16 tiles\n");
		skip();
	}
}

int oracle_run(struct kvr_device *device, enum kvr_job_kind kind, void *items, uint32_t count)
{
	struct kvr_job job = {.kind = kind, .items = items, .item_count = count, .status = -1};
	struct pollfd wait = {kvr_device_fd(device), POLLIN, 0};
	struct kvr_job *done = NULL;

	assert_int_equal(kvr_device_submit(device, &job), 0);
	while (kvr_device_reap(device, &done, 1) == 0)
		assert_true(poll(&wait, 1, 60000) > 0);
	assert_ptr_equal(done, &job);
	return job.status;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* crc.c: CRC-32C (kernels/crc.h).
 *
 * Goal: every length and alignment gives the checksum that the definition gives, in one part or many, on
 * any thread; any change of up to three bits of a cluster's payload changes it.
 *
 * Method: published values; random runs against a division bit by bit; runs cut in two at every place;
 * more bytes than a signed 32-bit length can say; threads that all begin with their first call. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <cmocka.h>

#include "kernels/crc.h"
#include "tests/kernels/oracle_util.h"

#define THREADS 4u

static uint32_t by_bits(const uint8_t *data, size_t bytes)
{
	uint32_t crc = 0xffffffffu;

	for (size_t i = 0; i < bytes; i++) {
		crc ^= data[i];
		for (uint32_t bit = 0; bit < 8; bit++)
			crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78u : 0);
	}
	return ~crc;
}

static void *first_call(void *argument)
{
	uint32_t *crc = argument;

	*crc = kvr_crc32c(0, "123456789", 9);
	return NULL;
}

/* First, so that the library has not chosen its code yet. */
static void test_threads(void **state)
{
	pthread_t thread[THREADS];
	uint32_t crc[THREADS] = {0};

	(void)state;
	for (uint32_t i = 0; i < THREADS; i++)
		assert_int_equal(pthread_create(&thread[i], NULL, first_call, &crc[i]), 0);
	for (uint32_t i = 0; i < THREADS; i++) {
		pthread_join(thread[i], NULL);
		assert_int_equal(crc[i], 0xe3069283u);
	}
}

/* RFC 3720, appendix B.4. */
static void test_published(void **state)
{
	uint8_t bytes[32] = {0};

	(void)state;
	assert_int_equal(kvr_crc32c(0, NULL, 0), 0);
	assert_int_equal(kvr_crc32c(0, "123456789", 9), 0xe3069283u);
	assert_int_equal(kvr_crc32c(0, bytes, 32), 0x8a9136aau);
	memset(bytes, 0xff, sizeof(bytes));
	assert_int_equal(kvr_crc32c(0, bytes, 32), 0x62a8ab43u);
	for (uint8_t i = 0; i < 32; i++)
		bytes[i] = i;
	assert_int_equal(kvr_crc32c(0, bytes, 32), 0x46dd794eu);
}

static void test_random(void **state)
{
	struct oracle_random random = oracle_random(1);
	struct oracle_guard guard;

	(void)state;
	for (uint32_t trial = 0; trial < 400; trial++) {
		const uint32_t bytes = oracle_pick(&random, 0, trial < 200 ? 300 : 9000);
		const uint32_t cut = oracle_pick(&random, 0, bytes);
		uint32_t crc;

		oracle_guard_open(&guard, bytes, oracle_pick(&random, 0, 63));
		for (uint32_t i = 0; i < bytes; i++)
			guard.data[i] = (uint8_t)oracle_pick(&random, 0, 255);
		crc = kvr_crc32c(0, guard.data, bytes);
		assert_int_equal(crc, by_bits(guard.data, bytes));
		assert_int_equal(crc,
			kvr_crc32c(kvr_crc32c(0, guard.data, cut), guard.data + cut, bytes - cut));
		for (uint32_t flips = 1; bytes > 0 && flips <= 3; flips++) {
			guard.data[oracle_pick(&random, 0, bytes - 1)] ^=
				(uint8_t)(1u << oracle_pick(&random, 0, 7));
			if (flips % 2) /* two may have met on the same bit */
				assert_int_not_equal(crc, kvr_crc32c(0, guard.data, bytes));
		}
		oracle_guard_close(&guard);
	}
}

/* Longer than an int can say: pages of zeros that are all the same one. */
static void test_long(void **state)
{
	const size_t bytes = ((size_t)2 << 30) + 5, half = bytes / 2;
	uint8_t *zeros =
		mmap(NULL, bytes, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	(void)state;
	assert_ptr_not_equal(zeros, MAP_FAILED);
	assert_int_equal(kvr_crc32c(0, zeros, bytes),
		kvr_crc32c(kvr_crc32c(0, zeros, half), zeros + half, bytes - half));
	munmap(zeros, bytes);
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(test_threads),
		cmocka_unit_test(test_published), cmocka_unit_test(test_random),
		cmocka_unit_test(test_long)};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* move.c: moving bytes (kernels/move_<isa>.c) and what append makes of it.
 *
 * Goal: every length and alignment moves exactly its bytes; a NaN or infinity is found wherever it
 * stands, and nothing else is taken for one; what append stored is what it checked, even while the
 * source changes.
 *
 * Method: all lengths to a few steps of the widest loop, at all offsets that matter, between canaries.
 * Whole operations on random sequences are in conformance.c. */
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/move.h"
#include "tests/kernels/oracle_util.h"

#define BYTES_MAX 600u

static const enum kvr_isa isas[] = {KVR_ISA_PLAIN, KVR_ISA_AVX2, KVR_ISA_AVX512};

static const struct kvr_move_ops *ops_of(void **state)
{
	const enum kvr_isa isa = *(const enum kvr_isa *)*state;

	(void)kvr_device_close(oracle_device(isa, 1, 0)); /* skips what is not here */
	return kvr_move_ops_of(isa);
}

static void fill(uint8_t *bytes, size_t count, uint32_t seed)
{
	struct oracle_random random = oracle_random(seed);

	for (size_t i = 0; i < count; i++)
		bytes[i] = (uint8_t)oracle_pick(&random, 0, 255);
}

static void test_move(void **state)
{
	const struct kvr_move_ops *ops = ops_of(state);
	struct oracle_guard to, other;
	uint8_t *from = malloc(BYTES_MAX), *copy;

	fill(from, BYTES_MAX, 1);
	for (size_t bytes = 0; bytes < BYTES_MAX; bytes += bytes < 140 ? 1 : 7) {
		/* Exactly as long as what is read, so that a sanitizer sees a byte too many. */
		copy = malloc(bytes + 1);
		memcpy(copy + 1, from, bytes);
		oracle_guard_open(&to, bytes, bytes % 64);
		ops->move(to.data, copy + 1, bytes);
		assert_memory_equal(to.data, from, bytes);
		oracle_guard_close(&to);
		for (size_t second = 0; second < BYTES_MAX; second += 61) {
			const struct kvr_run runs[2] = {{copy + 1, bytes}, {from, second}};
			const struct kvr_run coming[2] = {{from, second}, {NULL, 0}};

			oracle_guard_open(&to, bytes, 3);
			oracle_guard_open(&other, second, 9);
			ops->move_pair((uint8_t *const[]){to.data, other.data}, runs, coming);
			assert_memory_equal(to.data, from, bytes);
			assert_memory_equal(other.data, from, second);
			oracle_guard_close(&to);
			oracle_guard_close(&other);
		}
		free(copy);
	}
	free(from);
}

/* Elements that are as near to the bad ones as can be, then one bad one at each place. */
static void test_finite(void **state)
{
	static const struct {
		enum kvr_dtype dtype;
		uint32_t good[4], bad[4];
	} kinds[] = {
		{KVR_DTYPE_F32, {0x7f7fffff, 0xff7fffff, 0x00000001, 0x807fff80},
			{0x7f800000, 0xff800000, 0x7f800001, 0xffc00000}},
		{KVR_DTYPE_F16, {0x7bff, 0xfbff, 0x0001, 0x83ff}, {0x7c00, 0xfc00, 0x7c01, 0xfe00}},
		{KVR_DTYPE_BF16, {0x7f7f, 0xff7f, 0x0001, 0x807f},
			{0x7f80, 0xff80, 0x7f81, 0xffc0}},
	};
	const struct kvr_move_ops *ops = ops_of(state);

	for (uint32_t k = 0; k < 3; k++) {
		const size_t size = kvr_dtype_bytes(kinds[k].dtype);

		for (size_t count = 0; count < 150; count += 1 + count / 40) {
			const size_t bytes = count * size;
			uint8_t *memory = malloc(bytes + 1), *from = memory + 1; /* odd */
			struct oracle_guard to;

			for (size_t i = 0; i < count; i++)
				memcpy(from + i * size, &kinds[k].good[i % 4], size);
			oracle_guard_open(&to, bytes, 2);
			assert_true(ops->move_finite(to.data, from, bytes, kinds[k].dtype));
			for (size_t i = 0; i < count; i++) {
				memcpy(from + i * size, &kinds[k].bad[i % 4], size);
				assert_false(
					ops->move_finite(to.data, from, bytes, kinds[k].dtype));
				assert_memory_equal(to.data, from, bytes);
				memcpy(from + i * size, &kinds[k].good[i % 4], size);
			}
			oracle_guard_close(&to);
			free(memory);
		}
	}
}

/* ---- a client that scribbles: a data race by intent, so not under TSan ----------------------- */

#if !defined(__SANITIZE_THREAD__)

struct scribbler {
	uint16_t *keys;
	uint32_t count;
	_Atomic bool stop;
};

/* NaN and 1 by turns. */
static void *scribble(void *argument)
{
	struct scribbler *scribbler = argument;
	volatile uint16_t *keys = scribbler->keys;

	for (uint32_t i = 0; !atomic_load_explicit(&scribbler->stop, memory_order_relaxed); i++)
		keys[i * 7 % scribbler->count] = i & 1024 ? 0x7fc0 : 0x3f80;
	return NULL;
}

/* An append that succeeds has left no NaN in the tail, whatever the source did meanwhile. */
static void test_scribble(void **state)
{
	const struct kvr_geometry g = {.layer_count = 1,
		.query_heads = 2,
		.kv_heads = 2,
		.key_dim = 24,
		.value_dim = 8,
		.dtype = KVR_DTYPE_BF16,
		.segment_tokens = 64,
		.cluster_tokens = 8};
	const uint32_t elements = KVR_BLOCK_TOKENS * 2 * 24;
	uint8_t *block = aligned_alloc(64, kvr_tail_block_bytes(&g));
	uint8_t *const blocks[] = {block};
	const struct kvr_tail_view tail = {&g, blocks, 1};
	struct scribbler scribbler = {.keys = calloc(elements, 2), .count = elements};
	uint8_t *values = calloc(elements, 2);
	struct kvr_append_item item = {.keys = (uint8_t *)scribbler.keys,
		.values = values,
		.tail = &tail,
		.count = KVR_BLOCK_TOKENS};
	pthread_t thread;
	uint32_t good = 0;

	(void)ops_of(state);
	assert_int_equal(pthread_create(&thread, NULL, scribble, &scribbler), 0);
	for (uint32_t round = 0; round < 2000; round++) {
		if (kvr_cpu_append(&item, *(const enum kvr_isa *)*state, (struct kvr_span){0}) != 0)
			continue;
		good++;
		for (uint32_t i = 0; i < elements; i++)
			assert_true(isfinite(oracle_get(block, KVR_DTYPE_BF16, i)));
	}
	atomic_store(&scribbler.stop, true);
	pthread_join(thread, NULL);
	memset(scribbler.keys, 0, elements * 2);
	assert_int_equal(
		kvr_cpu_append(&item, *(const enum kvr_isa *)*state, (struct kvr_span){0}), 0);
	print_message("%u of 2000 appends were finite\n", good);
	free(scribbler.keys);
	free(values);
	free(block);
}

#endif

#define ON(name, i)                                                         \
	{                                                                   \
#name "/" #i, name, NULL, NULL, (void *)(uintptr_t)&isas[i] \
	}
#define ON_ALL(name) ON(name, 0), ON(name, 1), ON(name, 2)

int main(void)
{
	const struct CMUnitTest tests[] = {
		ON_ALL(test_move),
		ON_ALL(test_finite),
#if !defined(__SANITIZE_THREAD__)
		ON_ALL(test_scribble),
#endif
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

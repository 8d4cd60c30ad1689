/* SPDX-License-Identifier: Apache-2.0 */
/* attend.c: exact attention at its edges; random shapes stand in conformance.c.
 *
 * Goal: logits of any size, weights of -INFINITY, no rows, one row, and the meaning of a weight: a
 * row of weight log N counts as N equal rows. Method: items with known answers, on every instruction
 * set. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/cpu.h"
#include "tests/kernels/oracle_util.h"

#define ROWS_MAX    200u
#define QUERIES_MAX KVR_GROUP_MAX

static struct attention {
	struct kvr_geometry geometry;
	float query[QUERIES_MAX * KVR_DIM_MAX];
	float keys[ROWS_MAX * KVR_DIM_MAX];
	float values[ROWS_MAX * KVR_DIM_MAX];
	float weights[ROWS_MAX];
	float out[QUERIES_MAX * KVR_DIM_MAX];
	float lse[QUERIES_MAX];
	struct kvr_attend_item item;
} a;

static void fill(uint32_t queries, uint32_t rows, uint32_t key_dim, uint32_t value_dim)
{
	struct oracle_random random = oracle_random(key_dim + rows);

	a.geometry.key_dim = key_dim;
	a.geometry.value_dim = value_dim;
	a.geometry.dtype = KVR_DTYPE_F32;
	for (uint32_t i = 0; i < queries * key_dim; i++)
		a.query[i] = (float)oracle_gauss(&random);
	for (uint32_t i = 0; i < rows * key_dim; i++)
		a.keys[i] = (float)oracle_gauss(&random);
	for (uint32_t i = 0; i < rows * value_dim; i++)
		a.values[i] = (float)oracle_gauss(&random);
	memset(a.weights, 0, sizeof(a.weights));
	memset(a.out, 0xff, sizeof(a.out)); /* NaN: every result must be written */
	memset(a.lse, 0xff, sizeof(a.lse));
	a.item = (struct kvr_attend_item){.geometry = &a.geometry,
		.query_count = queries,
		.query = (const uint8_t *)a.query,
		.query_dtype = KVR_DTYPE_F32,
		.scale = 1.0f,
		.row_count = rows,
		.keys = (const uint8_t *)a.keys,
		.values = (const uint8_t *)a.values,
		.weights = a.weights,
		.out = a.out,
		.lse = a.lse};
}

static void attend(void **state)
{
	struct oracle_guard scratch;
	enum kvr_isa isa;

	memcpy(&isa, *state, sizeof(isa));
	oracle_guard_open(&scratch, kvr_cpu_attend_scratch(), 0);
	assert_int_equal(
		kvr_cpu_attend(&a.item, isa, (struct kvr_span){scratch.data, scratch.bytes}), 0);
	oracle_guard_close(&scratch);
}

static void need_isa(void **state)
{
	enum kvr_isa isa;

	memcpy(&isa, *state, sizeof(isa));
	kvr_device_close(oracle_device(isa, 1, 0));
}

static void test_nothing(void **state)
{
	need_isa(state);
	for (uint32_t rows = 0; rows <= 100; rows += 50) {
		fill(3, rows, 64, 40);
		for (uint32_t r = 0; r < rows; r++)
			a.weights[r] = -INFINITY;
		attend(state);
		for (uint32_t q = 0; q < 3; q++)
			assert_true(isinf(a.lse[q]) && a.lse[q] < 0);
		for (uint32_t i = 0; i < 3 * 40; i++)
			assert_true(a.out[i] == 0.0f);
	}
}

/* Only the last row counts, however many blocks of nothing stand before it. */
static void test_one_row(void **state)
{
	need_isa(state);
	for (uint32_t rows = 1; rows <= ROWS_MAX; rows += 33) {
		fill(2, rows, 8, 576);
		for (uint32_t r = 0; r + 1 < rows; r++)
			a.weights[r] = -INFINITY;
		attend(state);
		for (uint32_t q = 0; q < 2; q++) {
			double logit = 0.0;

			for (uint32_t k = 0; k < 8; k++)
				logit += (double)a.query[q * 8 + k] *
					 (double)a.keys[(rows - 1) * 8 + k];
			assert_true(fabs((double)a.lse[q] - logit) < 1e-5 * (1 + fabs(logit)));
			for (uint32_t i = 0; i < 576; i++)
				assert_true(fabsf(a.out[q * 576 + i] -
						    a.values[(rows - 1) * 576 + i]) <= 1e-6f * 8);
		}
	}
}

/* A weight log N stands for N rows. */
static void test_weight(void **state)
{
	float out[5 * 72], lse[5];

	need_isa(state);
	fill(5, 40, 72, 72);
	a.item.scale = 0.1f;
	for (uint32_t r = 0; r < 40; r++)
		a.weights[r] = logf((float)(1 + r % 4));
	attend(state);
	memcpy(out, a.out, sizeof(out));
	memcpy(lse, a.lse, sizeof(lse));
	for (uint32_t r = 0, to = 100; r < 40; r++) { /* the same, written out: 100 rows */
		for (uint32_t n = 0; n < 1 + r % 4; n++, to++) {
			memcpy(a.keys + to * 72, a.keys + r * 72, 72 * sizeof(float));
			memcpy(a.values + to * 72, a.values + r * 72, 72 * sizeof(float));
		}
		a.item.row_count = to - 100;
	}
	assert_int_equal(a.item.row_count, 100);
	a.item.keys = (const uint8_t *)(a.keys + 100 * 72);
	a.item.values = (const uint8_t *)(a.values + 100 * 72);
	a.item.weights = NULL;
	attend(state);
	for (uint32_t i = 0; i < 5 * 72; i++)
		assert_true(fabsf(out[i] - a.out[i]) <= 1e-5f);
	for (uint32_t q = 0; q < 5; q++)
		assert_true(fabsf(lse[q] - a.lse[q]) <= 1e-5f * (1.0f + fabsf(lse[q])));
}

/* Logits of thousands neither overflow nor lose the maximum, rising or falling. */
static void test_large(void **state)
{
	need_isa(state);
	for (int falling = 0; falling < 2; falling++) {
		fill(KVR_GROUP_MAX, 180, 16, 8);
		for (uint32_t i = 0; i < KVR_GROUP_MAX * 16; i++)
			a.query[i] = 1.0f;
		for (uint32_t i = 0; i < 180 * 16; i++)
			a.keys[i] = (float)(falling ? 180 - i / 16 : i / 16) * 20.0f;
		attend(state);
		for (uint32_t q = 0; q < KVR_GROUP_MAX; q++) {
			const uint32_t top = falling ? 0 : 179;
			const float logit = a.keys[(size_t)top * 16] * 16.0f;

			assert_true(fabsf(a.lse[q] - logit) <= 1e-6f * logit);
			for (uint32_t i = 0; i < 8; i++)
				assert_true(
					fabsf(a.out[q * 8 + i] - a.values[top * 8 + i]) < 1e-5f);
		}
	}
}

/* Every third row, as it lies between others: bit for bit what the same rows close together give. */
static void test_strides(void **state)
{
	float out[4 * 40], lse[4];

	need_isa(state);
	fill(4, 180, 24, 40);
	a.item.row_count = 60;
	a.item.key_stride = 3 * 24 * sizeof(float);
	a.item.value_stride = 3 * 40 * sizeof(float);
	attend(state);
	memcpy(out, a.out, sizeof(out));
	memcpy(lse, a.lse, sizeof(lse));
	for (size_t r = 0; r < 60; r++) {
		memmove(a.keys + r * 24, a.keys + r * 3 * 24, 24 * sizeof(float));
		memmove(a.values + r * 40, a.values + r * 3 * 40, 40 * sizeof(float));
	}
	memset(a.out, 0xff, sizeof(a.out));
	a.item.key_stride = 0;
	a.item.value_stride = 0;
	attend(state);
	assert_memory_equal(out, a.out, sizeof(out));
	assert_memory_equal(lse, a.lse, sizeof(lse));
}

#define TESTS(isa)                                                  \
	{"nothing, " #isa, test_nothing, NULL, NULL, &isa},         \
		{"one row, " #isa, test_one_row, NULL, NULL, &isa}, \
		{"weight, " #isa, test_weight, NULL, NULL, &isa},   \
		{"strides, " #isa, test_strides, NULL, NULL, &isa}, \
	{                                                           \
		"large, " #isa, test_large, NULL, NULL, &isa        \
	}

int main(void)
{
	static enum kvr_isa plain = KVR_ISA_PLAIN, avx2 = KVR_ISA_AVX2, avx512 = KVR_ISA_AVX512;
	const struct CMUnitTest tests[] = {TESTS(plain), TESTS(avx2), TESTS(avx512)};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* choose.c: the choice of clusters (kernels/choose.c).
 *
 * Goal: for any keys and sizes, the last cluster taken is the one that a full sort finds.
 *
 * Method: random keys (anywhere, few different ones, all equal, the ends of the range), against a
 * sort by key and index and a walk along it; for the loops of each instruction set. Densities are
 * powers of two, so that sums are exact. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

#include "kernels/recall.h"
#include "tests/kernels/oracle_util.h"

#define COUNT_MAX 3000u
#define PADDED    ((COUNT_MAX / KVR_RECALL_PAD + 2) * KVR_RECALL_PAD)
#define TRIALS    1500u

static uint32_t key[PADDED] __attribute__((aligned(64)));
static float tokens[PADDED] __attribute__((aligned(64)));
static float density[PADDED] __attribute__((aligned(64)));
static uint64_t room[2 * (PADDED + 2 * KVR_RECALL_PAD)] __attribute__((aligned(64)));
static uint32_t order[COUNT_MAX];

static int compare(const void *a, const void *b)
{
	const uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	if (key[x] != key[y])
		return key[x] > key[y] ? -1 : 1;
	return (x > y) - (x < y);
}

static uint32_t random_key(struct oracle_random *random, uint32_t style)
{
	switch (style) {
	case 0: return oracle_pick(random, 0, 0xffff) << 16 | oracle_pick(random, 0, 0xffff);
	case 1: return oracle_pick(random, 5, 9) * 0x01234567u;
	case 2: return 0x3f800000u;
	case 3: return oracle_pick(random, 0, 1) ? UINT32_MAX : 0;
	default: return 0x3e000000u + oracle_pick(random, 0, 300);
	}
}

/* The oracle: the rows taken of every cluster are those up to `left` in order. */
static void check(struct kvr_choice choice, uint32_t count, uint32_t left, float mass)
{
	double sum = 0;

	for (uint32_t i = 0; i < count; i++)
		order[i] = i;
	qsort(order, count, sizeof(*order), compare);
	for (uint32_t i = 0; i < count; i++) {
		const uint32_t c = order[i], size = (uint32_t)tokens[c];
		const uint32_t rows = left < size ? left : size;
		const bool before =
			key[c] > choice.key || (key[c] == choice.key && c < choice.index);
		uint32_t got = before ? size : 0;

		if (c == choice.index)
			got = choice.rows;
		assert_int_equal(got, rows);
		left -= rows;
		sum += (double)size * (double)density[c];
		if (mass > 0 && sum >= (double)mass)
			left = 0;
	}
}

static void test_choose(void **state)
{
	const struct kvr_recall_ops *ops = *state;
	const uint64_t seed = 11;
	struct oracle_random random = oracle_random(seed);

	for (uint32_t trial = 0; trial < TRIALS; trial++) {
		const uint32_t count = oracle_pick(&random, 1, trial % 10 ? 200 : COUNT_MAX);
		const uint32_t style = oracle_pick(&random, 0, 4);
		const float mass = trial % 3 ? 0 : (float)oracle_pick(&random, 1, 64) / 64;
		uint32_t total = 0, budget;

		for (uint32_t c = 0; c < PADDED; c++) {
			key[c] = random_key(&random, style);
			tokens[c] = c < count ? (float)oracle_pick(&random, 1, 40) : 0;
			density[c] = 1.0f / 65536 * (float)(1u << oracle_pick(&random, 0, 3));
			total += (uint32_t)tokens[c];
		}
		budget = oracle_pick(&random, 1, total + 5);
		check(kvr_choose(ops, key, tokens, density, count, budget, mass, room), count,
			budget, mass);
	}
}

static void test_widths(void **state)
{
	const struct kvr_recall_ops *ops = *state;
	uint16_t first[70];

	for (uint32_t i = 0; i < 70; i++)
		first[i] = (uint16_t)(i * i * 13);
	for (uint32_t count = 0; count < 69; count++) {
		tokens[count] = -1;
		ops->widths(tokens, first, count);
		for (uint32_t c = 0; c < count; c++)
			assert_true(tokens[c] == (float)(first[c + 1] - first[c]));
		assert_true(tokens[count] == -1);
	}
}

static int need(void **state)
{
	const struct kvr_recall_ops *ops = *state;
	const enum kvr_isa isa = ops == &kvr_recall_plain  ? KVR_ISA_PLAIN
				 : ops == &kvr_recall_avx2 ? KVR_ISA_AVX2
							   : KVR_ISA_AVX512;

	(void)kvr_device_close(oracle_device(isa, 1, 0)); /* skips what is not here */
	return 0;
}

static void choose_plain(void **state)
{
	*state = (void *)(uintptr_t)&kvr_recall_plain;
	need(state);
	test_choose(state);
	test_widths(state);
}

static void choose_avx2(void **state)
{
	*state = (void *)(uintptr_t)&kvr_recall_avx2;
	need(state);
	test_choose(state);
	test_widths(state);
}

static void choose_avx512(void **state)
{
	*state = (void *)(uintptr_t)&kvr_recall_avx512;
	need(state);
	test_choose(state);
	test_widths(state);
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(choose_plain),
		cmocka_unit_test(choose_avx2), cmocka_unit_test(choose_avx512)};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

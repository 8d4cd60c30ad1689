/* SPDX-License-Identifier: Apache-2.0 */
/* merge.c: chunked soft matching of one lane, with every set of inner loops.
 *
 * Goal: every instruction set, the tiles included, makes merged sets as device.h says, for every input
 * that can occur; ties go where it says; means are right. Method: check_merge_util.h on random shapes
 * and on lanes built to be hard: one token and few, odd counts, counts beside a chunk's end, only
 * sinks, zeros, magnitudes at both ends of each dtype. Ties: keys that are one of some unit
 * vectors, so that every cosine is exactly 0 or 1 in any arithmetic, against a simulation in integers. */
#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/cpu.h"
#include "kernels/merge.h"
#include "tests/kernels/check_merge_util.h"

#define TOKENS_MAX 1400u /* of test_ties: no chunk of any pass is so short that a class has no B */

enum { plain, avx2, avx512, tiles };

static const struct loops {
	enum kvr_isa isa;
	bool tiles;
	const struct kvr_merge_ops *ops;
	const struct kvr_kmeans_ops *match;
} loops[] = {
	[plain] = {KVR_ISA_PLAIN, false, &kvr_merge_plain, &kvr_kmeans_plain},
	[avx2] = {KVR_ISA_AVX2, false, &kvr_merge_avx2, &kvr_kmeans_avx2},
	[avx512] = {KVR_ISA_AVX512, false, &kvr_merge_avx512, &kvr_kmeans_avx512},
	[tiles] = {KVR_ISA_AVX512, true, &kvr_merge_avx512, &kvr_kmeans_tiles},
};

static struct oracle_guard scratch; /* of all lanes, one after the other */

static int group_setup(void **state)
{
	(void)state;
	oracle_guard_open(&scratch, kvr_cpu_merge_scratch(), 0);
	return 0;
}

static int group_teardown(void **state)
{
	(void)state;
	oracle_guard_close(&scratch);
	return 0;
}

static void run(void *owner, struct kvr_cluster_item *items, uint32_t count)
{
	const struct loops *set = owner;

	for (uint32_t i = 0; i < count; i++)
		kvr_merge_lane(&items[i], set->ops, set->match,
			(struct kvr_span){scratch.data, scratch.bytes});
	oracle_guard_check(&scratch);
}

static void test_shapes(void **state)
{
	struct loops *set = *state;

	oracle_need_loops(set->isa, set->tiles);
	for (uint64_t seed = 1; seed <= 18; seed++) {
		struct oracle_random random = oracle_random(seed);
		struct check_merge merge;

		check_merge_open(&merge, seed, oracle_pick(&random, 1, seed % 6 ? 300 : 1300));
		check_merge_fill(&merge);
		check_merge_hold(&merge, run, set);
		check_merge_close(&merge);
	}
}

static void test_counts(void **state)
{
	static const uint32_t counts[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 63, 64, 65, 127, 255,
		256, 257, 258, 511, 512, 513, 514, 1023, 1025};
	struct loops *set = *state;

	oracle_need_loops(set->isa, set->tiles);
	for (uint32_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
		struct check_merge merge;

		check_merge_open(&merge, 100 + i, counts[i]);
		check_merge_fill(&merge);
		check_merge_hold(&merge, run, set);
		check_merge_close(&merge);
	}
}

static struct kvr_geometry shape(uint32_t key_dim, uint32_t value_dim, enum kvr_dtype dtype)
{
	return (struct kvr_geometry){.layer_count = 1,
		.query_heads = 1,
		.kv_heads = 1,
		.key_dim = key_dim,
		.value_dim = value_dim,
		.dtype = dtype,
		.segment_tokens = KVR_SEGMENT_TOKENS_MAX,
		.cluster_tokens = 16,
		.merged = 15};
}

/* Keys so large or small that a float's square is lost, and values whose sum is no float. */
static void test_magnitudes(void **state)
{
	static const double scales[] = {3e37, 1e30, 1e19, 1e-19, 1e-30, 1e-36};
	struct loops *set = *state;

	oracle_need_loops(set->isa, set->tiles);
	for (uint32_t i = 0; i < 2 * 6; i++) {
		const enum kvr_dtype dtype = i % 2 ? KVR_DTYPE_BF16 : KVR_DTYPE_F32;
		const struct kvr_geometry g = shape(32, 40, dtype);
		struct check_merge merge;

		check_merge_open_as(&merge, 7, &g, 300);
		check_merge_fill(&merge);
		for (uint32_t t = 0; t < 300; t++) {
			uint8_t *key = check_merge_key(&merge, 0, t);
			uint8_t *value = check_merge_value(&merge, 0, t);

			for (uint32_t k = 0; k < 32; k++)
				oracle_put(key, dtype, k,
					oracle_get(key, dtype, k) / 8.0 * scales[i / 2]);
			for (uint32_t k = 0; k < 40; k++) /* up to the largest there is */
				oracle_put(value, dtype, k,
					k % 2 ? oracle_get(value, dtype, k) * 5e37
					      : (t % 3 ? 3.38e38 : -3.38e38));
		}
		check_merge_hold(&merge, run, set);
		check_merge_close(&merge);
	}
	for (uint32_t i = 0; i < 3; i++) { /* all rows the largest float: no mean is infinite */
		const enum kvr_dtype dtype = (enum kvr_dtype)(KVR_DTYPE_F32 + i);
		const double most = i == 0 ? (double)FLT_MAX : i == 1 ? 65504.0 : 0x1.fep127;
		const struct kvr_geometry g = shape(8, 8, dtype);
		struct check_merge merge;

		check_merge_open_as(&merge, 7, &g, 277);
		for (uint32_t j = 0; j < 277 * 8; j++) {
			oracle_put(check_merge_key(&merge, 0, j / 8), dtype, j % 8, most);
			oracle_put(check_merge_value(&merge, 0, j / 8), dtype, j % 8, -most);
		}
		check_merge_hold(&merge, run, set);
		check_merge_close(&merge);
	}
}

/* One pass over classes: each A goes to the first B of its chunk and class; of all As the first
 * `merges`. Renames the rows of `map`; returns the rows. */
static uint32_t simulate(uint32_t *class, uint32_t count, uint32_t merges, uint16_t *map)
{
	uint32_t to[TOKENS_MAX], stays[TOKENS_MAX], rows = 0, left = merges;

	for (uint32_t p = 0; p < count; p++) {
		to[p] = p;
		if (p % 2 == 0 || left == 0)
			continue;
		to[p] = p / KVR_MERGE_CHUNK * KVR_MERGE_CHUNK;
		while (class[to[p]] != class[p])
			to[p] += 2;
		assert_true(to[p] < count && to[p] / KVR_MERGE_CHUNK == p / KVR_MERGE_CHUNK);
		left--;
	}
	for (uint32_t p = 0; p < count; p++) {
		stays[p] = rows;
		if (to[p] == p)
			class[rows++] = class[p];
	}
	for (uint32_t t = 0; t < TOKENS_MAX; t++)
		map[t] = (uint16_t)stays[to[map[t]]];
	return rows;
}

/* Equal keys in `classes` directions, none at all with `size` 0. */
static void check_ties(struct loops *set, enum kvr_dtype dtype, uint32_t classes, double size)
{
	const struct kvr_geometry g = shape(40, 96, dtype);
	static uint16_t map[KVR_MERGED_SETS][TOKENS_MAX];
	uint32_t class[2][TOKENS_MAX], count = TOKENS_MAX;
	struct check_merge merge;

	check_merge_open_as(&merge, classes, &g, TOKENS_MAX);
	for (uint32_t t = 0; t < TOKENS_MAX; t++) {
		class[0][t] = oracle_pick(&merge.random, 0, classes - 1);
		oracle_put(check_merge_key(&merge, 0, t), dtype, 3 + 7 * class[0][t], size);
		for (uint32_t k = 0; k < 96; k++)
			oracle_put(check_merge_value(&merge, 0, t), dtype, k,
				oracle_gauss(&merge.random));
		map[0][t] = (uint16_t)t;
	}
	check_merge_hold(&merge, run, set);
	count = simulate(class[0], count, count / 2, map[0]);
	memcpy(map[1], map[0], sizeof(map[0]));
	count = simulate(class[0], count, count / 2, map[1]);
	memcpy(map[2], map[1], sizeof(map[1]));
	memcpy(map[3], map[1], sizeof(map[1]));
	memcpy(class[1], class[0], sizeof(class[0]));
	assert_int_equal(count, TOKENS_MAX / 4);
	simulate(class[1], count, count - (TOKENS_MAX + 4) / 5, map[2]);
	simulate(class[0], count, count / 2, map[3]);
	for (uint32_t i = 0; i < KVR_MERGED_SETS; i++)
		assert_memory_equal(merge.map[0][i], map[i], sizeof(map[i]));
	check_merge_close(&merge);
}

static void test_ties(void **state)
{
	struct loops *set = *state;

	oracle_need_loops(set->isa, set->tiles);
	for (int dtype = KVR_DTYPE_F32; dtype <= KVR_DTYPE_BF16; dtype++) {
		check_ties(set, (enum kvr_dtype)dtype, 1, 0.0);
		check_ties(set, (enum kvr_dtype)dtype, 1, 0.25);
		check_ties(set, (enum kvr_dtype)dtype, 5, 2.0);
	}
}

/* Every fourth token is large and outlives two passes, every other one of these points the other way: of
 * the edges that 1/5 chooses among, the best are the least negative. */
static void test_opposed(void **state)
{
	enum { TOKENS = 1200, DIM = 8 };
	const struct kvr_geometry g = shape(DIM, 64, KVR_DTYPE_BF16);
	struct loops *set = *state;
	struct check_merge merge;

	oracle_need_loops(set->isa, set->tiles);
	check_merge_open_as(&merge, 3, &g, TOKENS);
	check_merge_fill(&merge);
	for (uint32_t t = 0; t < TOKENS; t++) {
		const double size = t % 4 == 0 ? 100.0 : 0.01, way = t % 8 == 0 ? 1.0 : -1.0;

		for (uint32_t k = 0; k < DIM; k++)
			oracle_put(check_merge_key(&merge, 0, t), g.dtype, k,
				size * ((k == 0 ? 2.0 * way : 0.0) +
					       0.3 * oracle_gauss(&merge.random)));
	}
	check_merge_hold(&merge, run, set);
	check_merge_close(&merge);
}

/* Rounding to the dtype, against a search for the nearest; every f16 and what lies half-way. */
static void test_narrow(void **state)
{
	enum { COUNT = 70 };
	const struct loops *set = *state;
	_Alignas(64) float from[96] = {0};
	uint8_t to[COUNT * 4 + 1];

	oracle_need_loops(set->isa, set->tiles);
	for (uint32_t half = 0; half < 0x7bff; half++) {
		const uint16_t bits[2] = {(uint16_t)half, (uint16_t)(half + 1)};
		const double low = oracle_get((const uint8_t *)bits, KVR_DTYPE_F16, 0);
		const double high = oracle_get((const uint8_t *)bits, KVR_DTYPE_F16, 1);
		const double middle = (low + high) / 2.0;

		from[0] = (float)low;
		from[1] = (float)-middle;
		from[2] = nextafterf((float)middle, 0.0f);
		from[3] = nextafterf((float)middle, 1e30f);
		set->ops->narrow(to + 1, from, KVR_DTYPE_F16, COUNT);
		for (uint32_t i = 0; i < 4; i++) {
			const uint32_t up = i == 3 || (i == 1 && half % 2 == 1);
			uint16_t found;

			memcpy(&found, to + 1 + i * 2, sizeof(found));
			assert_int_equal(found, (half + up) | (i == 1 ? 0x8000u : 0u));
		}
	}
	for (uint32_t i = 0; i < 96; i++)
		from[i] = (float)i * 1.7f - 60.0f;
	from[1] = 1.0f + 0x1p-8f; /* between two bf16s: to the even one */
	from[2] = 1.0f + 0x3p-8f;
	for (uint32_t count = 1; count <= COUNT; count++) {
		for (int dtype = KVR_DTYPE_F32; dtype <= KVR_DTYPE_BF16; dtype++) {
			const size_t bytes = kvr_dtype_bytes((enum kvr_dtype)dtype);

			memset(to, 0x5a, sizeof(to));
			set->ops->narrow(to + 1, from, (enum kvr_dtype)dtype, count);
			for (uint32_t i = 0; i < count; i++)
				assert_true(
					fabs(oracle_get(to + 1, (enum kvr_dtype)dtype, i) -
						(double)from[i]) <=
					(dtype == KVR_DTYPE_F32 ? 0.0
								: fabs((double)from[i]) / 256.0));
			for (size_t i = 1 + count * bytes; i < sizeof(to); i++)
				assert_int_equal(to[i], 0x5a);
			if (dtype == KVR_DTYPE_BF16 && count > 2) {
				assert_true(oracle_get(to + 1, KVR_DTYPE_BF16, 1) == 1.0);
				assert_true(oracle_get(to + 1, KVR_DTYPE_BF16, 2) == 1.0 + 0x1p-6);
			}
		}
	}
}

#define TESTS(set)                                                                       \
	{"shapes, " #set, test_shapes, NULL, NULL, (void *)&loops[set]},                 \
		{"counts, " #set, test_counts, NULL, NULL, (void *)&loops[set]},         \
		{"magnitudes, " #set, test_magnitudes, NULL, NULL, (void *)&loops[set]}, \
		{"ties, " #set, test_ties, NULL, NULL, (void *)&loops[set]},             \
		{"opposed, " #set, test_opposed, NULL, NULL, (void *)&loops[set]},       \
	{                                                                                \
		"narrow, " #set, test_narrow, NULL, NULL, (void *)&loops[set]            \
	}

int main(void)
{
	const struct CMUnitTest tests[] = {TESTS(plain), TESTS(avx2), TESTS(avx512), TESTS(tiles)};

	return cmocka_run_group_tests(tests, group_setup, group_teardown);
}

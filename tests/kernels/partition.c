/* SPDX-License-Identifier: Apache-2.0 */
/* partition.c: that odd against even places is the best equal split of a chunk, by trying all others.
 *
 * Chelsea / CentroidKV (arXiv 2506.11418) splits a chunk of n rows into A, the odd places, and B, the even ones,
 * and says that no other split into halves does better when similarity falls convexly with distance:
 * s(i, j) = f(|i - j|), where f falls and f(d - 1) + f(d + 1) >= 2 f(d). Here, for chunks of up to 20 rows, f is held
 * against every split into halves, with two measures of what matching finds:
 *
 *   best   the sum over A of the similarity to the best B: what a pass merges
 *   cut    the sum over all pairs of an A and a B: what an edge has on average, however it is drawn
 *
 * Claims:
 *   1  best: no other split is better, for any f that falls, convexly or not. (Each A has a B beside it, and
 *      nothing is more similar than a neighbour.) Where f does not fall, as with keys whose phase turns by
 *      half a circle per place, it fails: the control.
 *   2  cut: no other split is better, for any f that falls convexly. Here convexity is needed: for f that falls
 *      concavely, as n^2 - d^2, other splits are better: the control.
 *
 * Method: it is enough to try some f. Where f falls, the best B is the nearest, so both sums are linear in f. On the
 * distances 1 .. n - 1 every falling f is a constant and a sum, with factors of 0 or more, of steps, 1 below k and 0
 * from there; every convex one, of tents, max(0, k - d). A constant gives all splits the same. What
 * holds for all steps or tents holds for their sums. All in integers. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#define ROWS_MAX 20u

/* Of one split: A is a set of places. */
struct split {
	uint32_t nearest[ROWS_MAX]; /* [d] As whose nearest B is d away */
	uint32_t pairs[ROWS_MAX];   /* [d] pairs of an A and a B that are d apart */
};

static uint32_t odd_places(uint32_t rows)
{
	return 0xaaaaaaaau & ((1u << rows) - 1);
}

static struct split measure(uint32_t a, uint32_t rows)
{
	const uint32_t all = (1u << rows) - 1, b = all & ~a;
	struct split split = {.nearest = {0}};
	uint32_t left = a; /* As without a B so near */

	for (uint32_t d = 1; d < rows; d++) {
		const uint32_t reached = (b << d | b >> d) & left;

		split.nearest[d] = (uint32_t)__builtin_popcount(reached);
		split.pairs[d] = (uint32_t)(__builtin_popcount((b << d) & a) +
					    __builtin_popcount((b >> d) & a));
		left &= ~reached;
	}
	assert_int_equal(left, 0);
	return split;
}

static int64_t sum(const uint32_t *count, const int64_t *f, uint32_t rows)
{
	int64_t total = 0;

	for (uint32_t d = 1; d < rows; d++)
		total += count[d] * f[d];
	return total;
}

/* The next larger number with as many bits; the last of `rows` bits is followed by a larger one. */
static uint32_t next_split(uint32_t a)
{
	const uint32_t low = a & -a, up = a + low;

	return up | ((a ^ up) / low) >> 2;
}

/* Over all splits with as many As as odd places: the largest sums for f, and those of odd against even. */
struct result {
	int64_t best, best_odd, cut, cut_odd;
	uint32_t splits;
};

static struct result search(const int64_t *f, uint32_t rows)
{
	const struct split odd = measure(odd_places(rows), rows);
	struct result result = {.best = INT64_MIN,
		.best_odd = sum(odd.nearest, f, rows),
		.cut = INT64_MIN,
		.cut_odd = sum(odd.pairs, f, rows)};

	for (uint32_t a = (1u << (rows / 2)) - 1; a < 1u << rows; a = next_split(a)) {
		const struct split split = measure(a, rows);
		const int64_t best = sum(split.nearest, f, rows), cut = sum(split.pairs, f, rows);

		result.best = best > result.best ? best : result.best;
		result.cut = cut > result.cut ? cut : result.cut;
		result.splits++;
	}
	return result;
}

/* What lies at the distance of the nearest B is not the best where f does not fall: this looks at all Bs. */
static int64_t best_of_all(uint32_t a, const int64_t *f, uint32_t rows)
{
	int64_t total = 0;

	for (uint32_t i = 0; i < rows; i++) {
		int64_t best = INT64_MIN;

		for (uint32_t j = 0; (a >> i & 1) && j < rows; j++) {
			const int64_t similarity = f[i < j ? j - i : i - j];

			if (!(a >> j & 1) && similarity > best)
				best = similarity;
		}
		total += a >> i & 1 ? best : 0;
	}
	return total;
}

static void test_search_is_exhaustive(void **state)
{
	static const uint32_t binomial[] = {2, 6, 20, 70, 252}; /* 2, 4, .. 10 rows */
	const int64_t f[ROWS_MAX] = {0};

	(void)state;
	for (uint32_t i = 0; i < 5; i++)
		assert_int_equal(search(f, 2 * i + 2).splits, binomial[i]);
	assert_int_equal(search(f, ROWS_MAX).splits, 184756);
}

/* Claim 1, also for odd chunks, where A is the smaller part. */
static void test_best_where_similarity_falls(void **state)
{
	(void)state;
	for (uint32_t rows = 2; rows <= ROWS_MAX; rows++) {
		for (uint32_t k = 2; k <= rows; k++) {
			int64_t step[ROWS_MAX];
			struct result result;

			for (uint32_t d = 0; d < ROWS_MAX; d++)
				step[d] = d < k;
			result = search(step, rows);
			assert_true(result.best == result.best_odd);
			assert_true(result.best == rows / 2); /* no split can have more */
		}
	}
}

/* The control of claim 1: f rises from 1 to 2. */
static void test_best_where_it_does_not_fall(void **state)
{
	static const int64_t f[ROWS_MAX] = {
		0, 0, 9, 0, 8, 0, 7, 0, 6, 0, 5, 0, 4, 0, 3, 0, 2, 0, 1, 0};

	(void)state;
	for (uint32_t rows = 4; rows <= 12; rows += 2) {
		const int64_t odd = best_of_all(odd_places(rows), f, rows);
		bool beaten = false;

		for (uint32_t a = (1u << (rows / 2)) - 1; a < 1u << rows; a = next_split(a))
			beaten |= best_of_all(a, f, rows) > odd;
		assert_true(beaten);
	}
}

/* Claim 2. */
static void test_cut_where_similarity_falls_convexly(void **state)
{
	(void)state;
	for (uint32_t rows = 2; rows <= ROWS_MAX; rows += 2) {
		for (uint32_t k = 2; k <= rows; k++) {
			int64_t tent[ROWS_MAX];
			struct result result;

			for (uint32_t d = 0; d < ROWS_MAX; d++)
				tent[d] = d < k ? k - d : 0;
			result = search(tent, rows);
			assert_true(result.cut == result.cut_odd);
			assert_true(result.best == result.best_odd);
		}
	}
}

/* The control of claim 2; claim 1 holds all the same. */
static void test_cut_where_it_falls_concavely(void **state)
{
	(void)state;
	for (uint32_t rows = 4; rows <= ROWS_MAX; rows += 2) {
		int64_t f[ROWS_MAX];
		struct result result;

		for (uint32_t d = 0; d < ROWS_MAX; d++)
			f[d] = (int64_t)rows * rows - (int64_t)d * d;
		result = search(f, rows);
		assert_true(result.cut > result.cut_odd);
		assert_true(result.best == result.best_odd);
	}
}

/* The sum by distance to the nearest is the sum over all Bs where f falls: what the method leans on. */
static void test_nearest_is_best(void **state)
{
	enum { ROWS = 12 };
	int64_t f[ROWS_MAX];

	(void)state;
	for (uint32_t d = 0; d < ROWS_MAX; d++)
		f[d] = 1000 / (d + 1) - 7 * d;
	for (uint32_t a = (1u << (ROWS / 2)) - 1; a < 1u << ROWS; a = next_split(a)) {
		const struct split split = measure(a, ROWS);

		assert_true(sum(split.nearest, f, ROWS) == best_of_all(a, f, ROWS));
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_search_is_exhaustive),
		cmocka_unit_test(test_nearest_is_best),
		cmocka_unit_test(test_best_where_similarity_falls),
		cmocka_unit_test(test_best_where_it_does_not_fall),
		cmocka_unit_test(test_cut_where_similarity_falls_convexly),
		cmocka_unit_test(test_cut_where_it_falls_concavely),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

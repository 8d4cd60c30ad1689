/* SPDX-License-Identifier: Apache-2.0 */
/* cuda_score.c: the CUDA scores, run on the CPU (kernels/cuda/emulate.h).
 *
 * Goal: dots and steps are those of the plain C kernel to the bit, and near those of plain arithmetic in
 * double; densities are the softmax over all clusters of a lane, mean over its queries; queries that are
 * not finite, or zero, means of any size, lanes without segments and segments without clusters do no harm.
 *
 * Method: batches of random lanes in one launch, every output between canaries, all orders of blocks and
 * threads; every array ends where its memory does. */
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/cuda/score.h"
#include "kernels/recall.h"
#include "tests/kernels/cuda_util.h"

/* ThreadSanitizer has one thread to look at, and takes its time over fibers. */
#if defined(__SANITIZE_THREAD__)
#define TRIALS 5u
#else
#define TRIALS 16u
#endif
#define LANES_MAX    4u
#define SEGMENTS_MAX 11u
#define CLUSTERS_MAX 70u /* of a segment */
#define OUTPUTS      3u  /* of a lane */

/* Of a segment, what its pointers lead to. */
static struct kvr_cuda_score_segment segments[LANES_MAX][SEGMENTS_MAX];
static struct kvr_cuda_score_lane lanes[LANES_MAX];
static struct oracle_guard outputs[LANES_MAX * OUTPUTS];
static uint32_t arrived[LANES_MAX];
static bool wild; /* means and queries of any size, some not finite */

static void *memory(size_t bytes)
{
	void *place = NULL;

	assert_int_equal(posix_memalign(&place, 64, bytes > 0 ? bytes : 1), 0);
	return place;
}

static void fill_segment(
	struct oracle_random *random, struct kvr_cuda_score_segment *segment, uint32_t dim)
{
	const uint32_t count = segment->clusters;
	int8_t *high = memory((size_t)count * dim), *low = memory((size_t)count * dim);
	float *step = memory(count * sizeof(*step));
	uint16_t *first = memory((count + 1) * sizeof(*first));

	for (size_t i = 0; i < (size_t)count * dim; i++) {
		high[i] = (int8_t)((int32_t)oracle_pick(random, 0, 254) - 127);
		low[i] = (int8_t)((int32_t)oracle_pick(random, 0, 255) - 128);
	}
	first[0] = 0;
	for (uint32_t c = 0; c < count; c++) {
		step[c] = (float)(1e-5 + 1e-5 * fabs(oracle_gauss(random)));
		if (wild && oracle_pick(random, 0, 3) == 0)
			step[c] = (float)ldexp(1, (int)oracle_pick(random, 0, 220) - 110);
		first[c + 1] = (uint16_t)(first[c] + oracle_pick(random, 1, 40));
	}
	*segment = (struct kvr_cuda_score_segment){.key_high = high,
		.key_low = low,
		.key_step = step,
		.row_first = first,
		.clusters = count,
		.first = segment->first,
		.both = oracle_pick(random, 0, 1) == 1};
}

/* One query is not finite, or large; another is zero. */
static void spoil(struct oracle_random *random, const struct kvr_cuda_score *score, uint8_t *query)
{
	static const uint32_t infinite = 0x7f800000u;
	static const uint16_t infinite16 = 0x7c00u, infinite_bf16 = 0x7f80u;
	const size_t bytes = kvr_dtype_bytes(score->query_dtype);
	const uint32_t head = oracle_pick(random, 0, score->query_count - 1);
	uint8_t *first = query + (size_t)head * score->key_dim * bytes;

	for (uint32_t i = 0; i < score->key_dim && head > 0; i++)
		oracle_put(query, score->query_dtype, i, 0);
	if (oracle_pick(random, 0, 1))
		oracle_put(first, score->query_dtype, 0, 6e4);
	else if (score->query_dtype == KVR_DTYPE_F32)
		memcpy(first, &infinite, bytes);
	else
		memcpy(first, score->query_dtype == KVR_DTYPE_F16 ? &infinite16 : &infinite_bf16,
			bytes);
}

static void fill_lane(struct oracle_random *random, const struct kvr_cuda_score *score, uint32_t l)
{
	struct kvr_cuda_score_lane *lane = &lanes[l];
	const size_t elements = (size_t)score->query_count * score->key_dim;
	uint8_t *query = memory(elements * kvr_dtype_bytes(score->query_dtype));

	lane->segments = segments[l];
	lane->segment_count = oracle_pick(random, 0, score->segments_max);
	lane->clusters = 0;
	for (uint32_t s = 0; s < lane->segment_count; s++) {
		segments[l][s].first = lane->clusters;
		segments[l][s].clusters =
			oracle_pick(random, 0, 9) ? oracle_pick(random, 1, CLUSTERS_MAX) : 0;
		fill_segment(random, &segments[l][s], score->key_dim);
		lane->clusters += segments[l][s].clusters;
	}
	for (size_t i = 0; i < elements; i++)
		oracle_put(query, score->query_dtype, i, oracle_gauss(random));
	if (wild)
		spoil(random, score, query);
	lane->query = query;
	oracle_guard_open(&outputs[l * OUTPUTS],
		(size_t)score->query_count * lane->clusters * sizeof(float), 4);
	oracle_guard_open(&outputs[l * OUTPUTS + 1], score->query_count * sizeof(float), 8);
	oracle_guard_open(&outputs[l * OUTPUTS + 2], lane->clusters * sizeof(float), 12);
	lane->dots = (float *)(void *)outputs[l * OUTPUTS].data;
	lane->steps = (float *)(void *)outputs[l * OUTPUTS + 1].data;
	lane->density = (float *)(void *)outputs[l * OUTPUTS + 2].data;
}

static void free_lane(struct kvr_cuda_score_lane *lane, uint32_t l)
{
	for (uint32_t s = 0; s < lane->segment_count; s++) {
		free((void *)(uintptr_t)segments[l][s].key_high);
		free((void *)(uintptr_t)segments[l][s].key_low);
		free((void *)(uintptr_t)segments[l][s].key_step);
		free((void *)(uintptr_t)segments[l][s].row_first);
	}
	free((void *)(uintptr_t)lane->query);
	for (uint32_t i = 0; i < OUTPUTS; i++)
		oracle_guard_close(&outputs[l * OUTPUTS + i]);
}

/* ---- what must come out ---------------------------------------------------------------------- */

/* The plain C kernel's dots of one segment with up to KVR_RECALL_HEADS queries. */
static void hold_dots(const struct kvr_cuda_score *score, const struct kvr_cuda_score_lane *lane,
	const struct kvr_cuda_score_segment *segment, uint32_t head_first, uint32_t heads)
{
	static float dots[KVR_RECALL_HEADS * CLUSTERS_MAX], low[KVR_RECALL_HEADS * CLUSTERS_MAX];
	static uint8_t block[KVR_RECALL_BLOCK_BYTES] __attribute__((aligned(64)));
	const size_t query_bytes = score->key_dim * kvr_dtype_bytes(score->query_dtype);
	struct kvr_recall_means means = {.plane = segment->key_high,
		.step = segment->key_step,
		.factor = 256,
		.count = segment->clusters};
	float steps[KVR_RECALL_HEADS];

	kvr_recall_plain.prepare(block, steps,
		(const uint8_t *)lane->query + head_first * query_bytes, score->query_dtype, heads,
		score->key_dim);
	assert_memory_equal(lane->steps + head_first, steps, heads * sizeof(float));
	kvr_recall_plain.dots(block, heads, score->key_dim, &means, dots, CLUSTERS_MAX);
	means.plane = segment->key_low;
	means.factor = 1;
	kvr_recall_plain.dots(block, heads, score->key_dim, &means, low, CLUSTERS_MAX);
	for (uint32_t h = 0; h < heads; h++) {
		const float *got =
			lane->dots + (size_t)(head_first + h) * lane->clusters + segment->first;

		for (uint32_t c = 0; c < segment->clusters; c++) {
			const float want = dots[h * CLUSTERS_MAX + c] +
					   (segment->both ? low[h * CLUSTERS_MAX + c] : 0.0f);

			assert_true(got[c] == want);
		}
	}
}

/* A dot as the words of device.h have it, in double: mean and query as they are. */
static void hold_products(const struct kvr_cuda_score *score,
	const struct kvr_cuda_score_lane *lane, const struct kvr_cuda_score_segment *segment)
{
	for (uint32_t h = 0; h < score->query_count; h++) {
		const float *dots = lane->dots + (size_t)h * lane->clusters + segment->first;

		for (uint32_t c = 0; c < segment->clusters; c += 7) {
			double dot = 0, size = 0, most = 0;

			for (uint32_t i = 0; i < score->key_dim; i++) {
				const size_t at = (size_t)c * score->key_dim + i;
				const double mean =
					(double)segment->key_step[c] *
					(256.0 * segment->key_high[at] +
						(segment->both ? segment->key_low[at] : 0));
				const double q = oracle_get(lane->query, score->query_dtype,
					(size_t)h * score->key_dim + i);

				dot += mean * q;
				size += fabs(mean);
				most = fmax(most, fabs(q));
			}
			assert_true(fabs((double)dots[c] * (double)lane->steps[h] - dot) <=
				    size * most / KVR_RECALL_STEPS * 0.51 + 1e-5 * fabs(dot));
		}
	}
}

/* Densities from the dots, in double. */
static void hold_density(const struct kvr_cuda_score *score, const struct kvr_cuda_score_lane *lane)
{
	double *want = calloc(lane->clusters + 1, sizeof(*want));

	assert_non_null(want);
	for (uint32_t h = 0; h < score->query_count; h++) {
		const float *dots = lane->dots + (size_t)h * lane->clusters;
		const float scale = score->scale * lane->steps[h];
		double most = -1e300, sum = 0;

		if (isnan(scale))
			continue;
		for (uint32_t c = 0; c < lane->clusters; c++)
			most = fmax(most, fmax(fmin((double)(dots[c] * scale), 1e38), -1e38));
		for (int pass = 0; pass < 2; pass++) {
			for (uint32_t s = 0; s < lane->segment_count; s++) {
				const struct kvr_cuda_score_segment *segment = &lane->segments[s];

				for (uint32_t c = 0; c < segment->clusters; c++) {
					const float logit = dots[segment->first + c] * scale;
					const double term = exp(
						fmax(fmax(fmin((double)logit, 1e38), -1e38) - most,
							-60.0));

					if (pass == 0)
						sum += term * (segment->row_first[c + 1] -
								      segment->row_first[c]);
					else
						want[segment->first + c] +=
							term / sum / score->query_count;
				}
			}
		}
	}
	for (uint32_t c = 0; c < lane->clusters; c++)
		assert_true(fabs((double)lane->density[c] - want[c]) <= 1e-4 * want[c]);
	free(want);
}

static int launch(const void *owner)
{
	return kvr_cuda_score(owner, NULL);
}

static void try_batch(uint64_t seed)
{
	struct oracle_random random = oracle_random(seed);
	const bool many = seed % 6 == 0;
	struct kvr_cuda_score score = {.lanes = lanes,
		.lane_count = oracle_pick(&random, 1, many ? 1 : LANES_MAX),
		.segments_max = oracle_pick(&random, 1, many ? 5 : SEGMENTS_MAX),
		.query_count = many ? oracle_pick(&random, 17, 40) : oracle_pick(&random, 1, 9),
		.key_dim = seed % 2 ? 16 * oracle_pick(&random, 1, 9)
				    : oracle_pick(&random, KVR_DIM_MIN, 200),
		.query_dtype = (enum kvr_dtype)oracle_pick(&random, 1, 3),
		.scale = 0.1f,
		.arrived = arrived};
	const struct oracle_guard *all[LANES_MAX * OUTPUTS + 1];
	struct oracle_guard work;

	oracle_guard_open(&work,
		kvr_cuda_score_work_bytes(score.lane_count, score.segments_max, score.query_count),
		0);
	score.work = (float *)(void *)work.data;
	for (uint32_t l = 0; l < score.lane_count; l++)
		fill_lane(&random, &score, l);
	for (uint32_t i = 0; i < score.lane_count * OUTPUTS; i++)
		all[i] = &outputs[i];
	cuda_run(launch, &score, all, score.lane_count * OUTPUTS);
	for (uint32_t l = 0; l < score.lane_count; l++) {
		assert_int_equal(arrived[l], 0);
		for (uint32_t s = 0; s < lanes[l].segment_count; s++) {
			for (uint32_t h = 0; h < score.query_count; h += KVR_RECALL_HEADS)
				hold_dots(&score, &lanes[l], &segments[l][s], h,
					score.query_count - h < KVR_RECALL_HEADS
						? score.query_count - h
						: KVR_RECALL_HEADS);
			if (!wild)
				hold_products(&score, &lanes[l], &segments[l][s]);
		}
		hold_density(&score, &lanes[l]);
		free_lane(&lanes[l], l);
	}
	oracle_guard_close(&work);
}

static void test_random(void **state)
{
	(void)state;
	wild = false;
	for (uint64_t seed = 1; seed <= TRIALS; seed++)
		try_batch(seed);
}

static void test_wild(void **state)
{
	(void)state;
	wild = true;
	for (uint64_t seed = 101; seed <= 100 + TRIALS; seed++)
		try_batch(seed);
}

static void test_ranges(void **state)
{
	const struct kvr_cuda_score right = {.lanes = lanes,
		.lane_count = 1,
		.segments_max = 1,
		.query_count = 1,
		.key_dim = 8,
		.query_dtype = KVR_DTYPE_F32,
		.scale = 1,
		.arrived = arrived};
	struct kvr_cuda_score wrong[13];

	(void)state;
	memset(lanes, 0, sizeof(lanes)); /* no segments */
	for (uint32_t i = 0; i < 13; i++)
		wrong[i] = right;
	wrong[1].lane_count = 0;
	wrong[2].lane_count = KVR_CUDA_SCORE_LANES_MAX + 1;
	wrong[3].segments_max = 0;
	wrong[4].segments_max = KVR_SEQUENCE_SEGMENTS_MAX + 1;
	wrong[5].query_count = 0;
	wrong[6].query_count = KVR_GROUP_MAX + 1;
	wrong[7].key_dim = KVR_DIM_MIN - 1;
	wrong[8].key_dim = KVR_DIM_MAX + 1;
	wrong[9].query_dtype = (enum kvr_dtype)0;
	wrong[10].scale = -INFINITY;
	wrong[11].scale = NAN;
	wrong[12].scale = INFINITY;
	kvr_emulate_begin(KVR_EMULATE_RISING, 1);
	assert_int_equal(kvr_cuda_score(&wrong[0], NULL), 0);
	for (uint32_t i = 1; i < 13; i++)
		assert_int_equal(kvr_cuda_score(&wrong[i], NULL), -EINVAL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_random),
		cmocka_unit_test(test_wild),
		cmocka_unit_test(test_ranges),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* cuda_attend.c: the CUDA attention, run on the CPU (kernels/cuda/emulate.h).
 *
 * Goal: out and log-sum-exp are those of plain arithmetic in double, for all types, dims, strides, numbers of
 * queries, rows and splits; weights of -INFINITY, items without rows and splits without rows do no harm; logits of
 * any size neither overflow nor lose the maximum; and how rows are split changes nothing but rounding.
 *
 * Method: batches of random items in one launch, outputs between canaries, rows that end where their memory
 * does, all orders of blocks and threads. */
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/cuda/attend.h"
#include "tests/kernels/cuda_util.h"

/* ThreadSanitizer has one thread to look at, and takes its time over fibers. */
#if defined(__SANITIZE_THREAD__)
#define TRIALS 5u
#else
#define TRIALS 30u
#endif
#define ITEMS_MAX 3u
#define TOLERANCE \
	2e-5 /* of an output in parts of the largest value; of the log-sum-exp in parts of it, or 1 */

static struct kvr_cuda_attend_item items[ITEMS_MAX];
static struct oracle_guard outputs[ITEMS_MAX * 2];
static struct oracle_guard work;
static uint32_t arrived[ITEMS_MAX * KVR_GROUP_MAX];
static double growth; /* of keys, row by row; 0: random keys */

static void *memory(size_t bytes, size_t shift, uint8_t **ret_memory)
{
	void *place = NULL;

	assert_int_equal(posix_memalign(&place, 64, bytes + shift + (bytes + shift == 0)), 0);
	*ret_memory = place;
	return *ret_memory + shift;
}

static uint8_t *made[ITEMS_MAX][4]; /* what items point to */

/* Rows of a dtype `stride` bytes apart; the last one ends the memory. */
static uint8_t *rows_of(struct oracle_random *random, uint32_t count, uint32_t dim, size_t stride,
	enum kvr_dtype dtype, size_t shift, uint8_t **ret_memory)
{
	const size_t row_bytes = dim * kvr_dtype_bytes(dtype);
	uint8_t *rows = memory(count > 0 ? (count - 1) * stride + row_bytes : 0, shift, ret_memory);

	for (uint32_t r = 0; r < count; r++)
		for (uint32_t i = 0; i < dim; i++)
			oracle_put(rows + r * stride, dtype, i,
				growth != 0 ? growth * r : oracle_gauss(random));
	return rows;
}

static void fill_item(struct oracle_random *random, const struct kvr_cuda_attend *attend,
	uint32_t at, bool aligned)
{
	const size_t bytes = kvr_dtype_bytes(attend->dtype), step = aligned ? 16 : bytes;
	const uint32_t weighing =
		oracle_pick(random, 0, 3); /* no, some, -INFINITY too, only that */
	const double grown = growth;
	struct kvr_cuda_attend_item *item = &items[at];

	item->row_count = oracle_pick(random, 0, 5) ? oracle_pick(random, 1, 170) : 0;
	item->key_stride = attend->key_dim * bytes + oracle_pick(random, 0, 3) * step;
	item->value_stride = attend->value_dim * bytes + oracle_pick(random, 0, 3) * step;
	item->keys = rows_of(random, item->row_count, attend->key_dim, item->key_stride,
		attend->dtype, oracle_pick(random, 0, 3) * step, &made[at][0]);
	growth = 0;
	item->values = rows_of(random, item->row_count, attend->value_dim, item->value_stride,
		attend->dtype, oracle_pick(random, 0, 3) * step, &made[at][1]);
	item->query = rows_of(random, attend->query_count, attend->key_dim,
		attend->key_dim * kvr_dtype_bytes(attend->query_dtype), attend->query_dtype, 0,
		&made[at][2]);
	growth = grown;
	item->weights = NULL;
	made[at][3] = NULL;
	if (weighing > 0) {
		float *weights = memory(item->row_count * sizeof(float), 4, &made[at][3]);

		for (uint32_t r = 0; r < item->row_count; r++)
			weights[r] = weighing == 3 || (weighing == 2 && oracle_pick(random, 0, 1))
					     ? -INFINITY
					     : (float)oracle_gauss(random);
		item->weights = weights;
	}
	oracle_guard_open(&outputs[2 * at],
		(size_t)attend->query_count * attend->value_dim * sizeof(float), 4);
	oracle_guard_open(&outputs[2 * at + 1], attend->query_count * sizeof(float), 12);
	item->out = (float *)(void *)outputs[2 * at].data;
	item->lse = (float *)(void *)outputs[2 * at + 1].data;
}

static void free_items(uint32_t count)
{
	for (uint32_t at = 0; at < count; at++) {
		for (uint32_t i = 0; i < 4; i++)
			free(made[at][i]);
		oracle_guard_close(&outputs[2 * at]);
		oracle_guard_close(&outputs[2 * at + 1]);
	}
	oracle_guard_close(&work);
}

/* One query of an item, as the words of device.h have it. */
static void hold(const struct kvr_cuda_attend *attend, const struct kvr_cuda_attend_item *item,
	uint32_t query)
{
	const float *out = item->out + (size_t)query * attend->value_dim;
	const uint8_t *q = (const uint8_t *)item->query +
			   (size_t)query * attend->key_dim * kvr_dtype_bytes(attend->query_dtype);
	double logits[256], want[KVR_DIM_MAX] = {0}, most = -INFINITY, sum = 0, largest = 0;

	for (uint32_t r = 0; r < item->row_count; r++) {
		logits[r] = 0;
		for (uint32_t i = 0; i < attend->key_dim; i++)
			logits[r] +=
				oracle_get(q, attend->query_dtype, i) *
				oracle_get(item->keys + r * item->key_stride, attend->dtype, i);
		logits[r] = logits[r] * (double)attend->scale +
			    (item->weights ? (double)item->weights[r] : 0.0);
		most = fmax(most, logits[r]);
	}
	for (uint32_t r = 0; r < item->row_count && most > -INFINITY; r++) {
		const double part = exp(logits[r] - most);

		sum += part;
		for (uint32_t i = 0; i < attend->value_dim; i++) {
			const double value =
				oracle_get(item->values + r * item->value_stride, attend->dtype, i);

			want[i] += part * value;
			largest = fmax(largest, fabs(value));
		}
	}
	if (!(sum > 0)) {
		assert_true(isinf(item->lse[query]) && item->lse[query] < 0);
		for (uint32_t i = 0; i < attend->value_dim; i++)
			assert_true(out[i] == 0.0f);
		return;
	}
	assert_true(
		fabs((double)item->lse[query] - (most + log(sum))) <= TOLERANCE * (1 + fabs(most)));
	/* An error of a logit is one of its row's part. */
	for (uint32_t i = 0; i < attend->value_dim; i++)
		assert_true(fabs((double)out[i] - want[i] / sum) <=
			    TOLERANCE * (1 + fabs(most)) * largest);
}

static int launch(const void *owner)
{
	return kvr_cuda_attend(owner, NULL);
}

static void try_batch(uint64_t seed)
{
	struct oracle_random random = oracle_random(seed);
	const uint32_t dim_max = seed % 4 == 0 ? KVR_DIM_MAX : seed % 4 == 1 ? 256 : 128;
	const bool aligned = seed % 3 != 0;
	const uint32_t unit = aligned ? 8 : 1;
	struct kvr_cuda_attend attend = {.items = items,
		.item_count = oracle_pick(&random, 1, ITEMS_MAX),
		.query_count = oracle_pick(&random, 1, 9),
		.key_dim = unit * oracle_pick(&random, KVR_DIM_MIN / unit, dim_max / unit),
		.value_dim = unit * oracle_pick(&random, KVR_DIM_MIN / unit, dim_max / unit),
		.dtype = (enum kvr_dtype)oracle_pick(&random, 1, 3),
		.query_dtype = (enum kvr_dtype)oracle_pick(&random, 1, 3),
		.split_count = oracle_pick(&random, 0, 1) ? oracle_pick(&random, 2, 7) : 1,
		.arrived = arrived};
	const struct oracle_guard *all[ITEMS_MAX * 2];

	attend.scale = 1.0f / sqrtf((float)attend.key_dim);
	oracle_guard_open(&work,
		kvr_cuda_attend_work_bytes(attend.item_count, attend.query_count, attend.value_dim,
			attend.split_count),
		0);
	attend.work = (float *)(void *)work.data;
	for (uint32_t i = 0; i < attend.item_count; i++)
		fill_item(&random, &attend, i, aligned);
	for (uint32_t i = 0; i < attend.item_count * 2; i++)
		all[i] = &outputs[i];
	cuda_run(launch, &attend, all, attend.item_count * 2);
	for (uint32_t i = 0; i < attend.item_count; i++)
		for (uint32_t q = 0; q < attend.query_count; q++)
			hold(&attend, &items[i], q);
	for (uint32_t i = 0; i < ITEMS_MAX * KVR_GROUP_MAX; i++)
		assert_int_equal(arrived[i], 0);
	free_items(attend.item_count);
}

static void test_random(void **state)
{
	(void)state;
	growth = 0;
	for (uint64_t seed = 1; seed <= TRIALS; seed++)
		try_batch(seed);
}

/* Logits that rise, or fall, by thousands. */
static void test_large(void **state)
{
	(void)state;
	for (uint64_t seed = 101; seed <= 108; seed++) {
		growth = seed % 2 ? 8 : -8;
		try_batch(seed);
	}
	growth = 0;
}

/* The most splits, and more splits than rows. */
static void test_splits(void **state)
{
	struct oracle_random random = oracle_random(7);
	struct kvr_cuda_attend attend = {.items = items,
		.item_count = 1,
		.query_count = 2,
		.key_dim = 64,
		.value_dim = 64,
		.dtype = KVR_DTYPE_BF16,
		.query_dtype = KVR_DTYPE_F32,
		.scale = 0.125f,
		.split_count = KVR_CUDA_ATTEND_SPLITS_MAX,
		.arrived = arrived};
	const struct oracle_guard *all[] = {&outputs[0], &outputs[1]};

	(void)state;
	oracle_guard_open(
		&work, kvr_cuda_attend_work_bytes(1, 2, 64, KVR_CUDA_ATTEND_SPLITS_MAX), 0);
	attend.work = (float *)(void *)work.data;
	fill_item(&random, &attend, 0, true);
	for (uint32_t rows = 0; rows <= items[0].row_count; rows = rows * 3 + 1) {
		struct kvr_cuda_attend_item whole = items[0];

		items[0].row_count = rows;
		cuda_run(launch, &attend, all, 2);
		hold(&attend, &items[0], 0);
		hold(&attend, &items[0], 1);
		items[0] = whole;
	}
	free_items(1);
}

static void test_ranges(void **state)
{
	const struct kvr_cuda_attend right = {.items = items,
		.item_count = 1,
		.query_count = 1,
		.key_dim = 8,
		.value_dim = 8,
		.dtype = KVR_DTYPE_F32,
		.query_dtype = KVR_DTYPE_F32,
		.scale = 1,
		.split_count = 1,
		.arrived = arrived};
	struct kvr_cuda_attend wrong[16];
	float query[8] = {0}, out[8], lse;

	(void)state;
	items[0] = (struct kvr_cuda_attend_item){.query = query, .out = out, .lse = &lse};
	for (uint32_t i = 0; i < 16; i++)
		wrong[i] = right;
	wrong[1].item_count = 0;
	wrong[2].item_count = KVR_CUDA_ATTEND_ITEMS_MAX + 1;
	wrong[3].query_count = 0;
	wrong[4].query_count = KVR_GROUP_MAX + 1;
	wrong[5].key_dim = KVR_DIM_MIN - 1;
	wrong[6].key_dim = KVR_DIM_MAX + 1;
	wrong[7].value_dim = KVR_DIM_MIN - 1;
	wrong[8].value_dim = KVR_DIM_MAX + 1;
	wrong[9].dtype = (enum kvr_dtype)0;
	wrong[10].scale = NAN;
	wrong[11].query_dtype = (enum kvr_dtype)0;
	wrong[12].scale = -INFINITY;
	wrong[13].scale = INFINITY;
	wrong[14].split_count = 0;
	wrong[15].split_count = KVR_CUDA_ATTEND_SPLITS_MAX + 1;
	kvr_emulate_begin(KVR_EMULATE_RISING, 1);
	assert_int_equal(kvr_cuda_attend(&wrong[0], NULL), 0);
	assert_true(isinf(lse) && lse < 0);
	for (uint32_t i = 1; i < 16; i++)
		assert_int_equal(kvr_cuda_attend(&wrong[i], NULL), -EINVAL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_random),
		cmocka_unit_test(test_large),
		cmocka_unit_test(test_splits),
		cmocka_unit_test(test_ranges),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* cuda_gather.c: the CUDA gather, run on the CPU (kernels/cuda/emulate.h).
 *
 * Goal: every byte of every piece arrives, nothing else is written, whatever lengths, alignments, gaps and
 * long pieces a launch mixes; a number out of range is refused.
 *
 * Method: random launches; sources exactly as long as what may be read, so that a sanitizer sees a byte too
 * many; outputs between canaries and untouched where no piece goes, compared byte by byte; all orders of
 * blocks and threads. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/cuda/gather.h"
#include "tests/kernels/cuda_util.h"

#define TRIALS     60u
#define PIECES_MAX 40u
#define HOLE_MAX   20u /* bytes left untouched between two pieces */

static struct piece {
	uint8_t *keys, *values;  /* where their memory begins */
	size_t key_at, value_at; /* of the outputs */
} made[PIECES_MAX];
static struct kvr_cuda_piece pieces[PIECES_MAX];

static int launch(const void *owner)
{
	return kvr_cuda_gather(owner, NULL);
}

/* Random bytes `shift` behind a 16-byte boundary. */
static uint8_t *source(
	struct oracle_random *random, size_t bytes, size_t shift, uint8_t **ret_memory)
{
	void *place = NULL;
	uint8_t *memory;

	assert_int_equal(posix_memalign(&place, 16, bytes + shift + (bytes + shift == 0)), 0);
	memory = place;
	for (size_t i = 0; i < bytes; i++)
		memory[shift + i] = (uint8_t)oracle_pick(random, 0, 255);
	*ret_memory = memory;
	return memory + shift;
}

/* Makes pieces and places in the outputs for them; returns the bytes of the outputs. */
static void make(struct oracle_random *random, struct kvr_cuda_gather *gather, bool aligned,
	size_t *ret_key_bytes, size_t *ret_value_bytes)
{
	const uint32_t step = aligned ? 16 : 1;
	size_t keys = 0, values = 0;

	gather->rows_max = 0;
	for (uint32_t i = 0; i < gather->piece_count; i++) {
		const bool large = oracle_pick(random, 0, 15) == 0;
		const uint32_t rows = oracle_pick(random, 0, large ? 300 : 30);

		pieces[i].keys = source(random, (size_t)rows * gather->key_bytes,
			(size_t)oracle_pick(random, 0, 16 / step - 1) * step, &made[i].keys);
		pieces[i].values = source(random, (size_t)rows * gather->value_bytes,
			(size_t)oracle_pick(random, 0, 16 / step - 1) * step, &made[i].values);
		pieces[i].rows = rows;
		if (oracle_pick(random, 0, 7) == 0)
			pieces[i].keys = NULL;
		made[i].key_at = keys;
		made[i].value_at = values;
		keys += (size_t)rows * gather->key_bytes +
			(size_t)oracle_pick(random, 0, HOLE_MAX) * step;
		values += (size_t)rows * gather->value_bytes +
			  (size_t)oracle_pick(random, 0, HOLE_MAX) * step;
		gather->rows_max = rows > gather->rows_max ? rows : gather->rows_max;
	}
	gather->rows_max += gather->rows_max == 0;
	*ret_key_bytes = keys;
	*ret_value_bytes = values;
}

/* Whether an output is what it should be: the rows of its pieces, and nothing else. */
static void hold(const struct oracle_guard *out, const struct kvr_cuda_gather *gather, bool keys)
{
	size_t at = 0;

	for (uint32_t i = 0; i < gather->piece_count; i++) {
		const size_t first = keys ? made[i].key_at : made[i].value_at;
		const size_t bytes =
			(size_t)pieces[i].rows * (keys ? gather->key_bytes : gather->value_bytes);

		for (; at < first; at++)
			assert_int_equal(out->data[at], CUDA_UNTOUCHED);
		if (!pieces[i].keys)
			continue;
		assert_memory_equal(
			out->data + at, keys ? pieces[i].keys : pieces[i].values, bytes);
		at += bytes;
	}
	for (; at < out->bytes; at++)
		assert_int_equal(out->data[at], CUDA_UNTOUCHED);
}

static void test_random(void **state)
{
	(void)state;
	for (uint32_t trial = 0; trial < TRIALS; trial++) {
		struct oracle_random random = oracle_random(trial + 1);
		const bool aligned = trial % 3 == 0;
		struct kvr_cuda_gather gather = {
			.pieces = pieces,
			.piece_count = oracle_pick(&random, 1, PIECES_MAX),
			.key_bytes = aligned ? 16 * oracle_pick(&random, 1, 32)
					     : 2 * oracle_pick(&random, 4, 300),
			.value_bytes = aligned ? 256 : 2 * oracle_pick(&random, 4, 300),
		};
		struct oracle_guard keys, values;
		const struct oracle_guard *outputs[] = {&keys, &values};
		size_t key_bytes, value_bytes;

		make(&random, &gather, aligned, &key_bytes, &value_bytes);
		oracle_guard_open(&keys, key_bytes, aligned ? 0 : oracle_pick(&random, 0, 15));
		oracle_guard_open(&values, value_bytes, aligned ? 16 : 2);
		for (uint32_t i = 0; i < gather.piece_count; i++) {
			pieces[i].to_keys = keys.data + made[i].key_at;
			pieces[i].to_values = values.data + made[i].value_at;
		}
		cuda_run(launch, &gather, outputs, 2);
		hold(&keys, &gather, true);
		hold(&values, &gather, false);
		oracle_guard_close(&keys);
		oracle_guard_close(&values);
		for (uint32_t i = 0; i < gather.piece_count; i++) {
			free(made[i].keys);
			free(made[i].values);
		}
	}
}

static void test_ranges(void **state)
{
	const struct kvr_cuda_gather right = {.pieces = pieces,
		.piece_count = 1,
		.rows_max = 1,
		.key_bytes = 2,
		.value_bytes = 2};
	struct kvr_cuda_gather wrong[10];

	(void)state;
	memset(pieces, 0, sizeof(pieces)); /* gaps */
	for (uint32_t i = 0; i < 10; i++)
		wrong[i] = right;
	wrong[1].piece_count = 0;
	wrong[2].piece_count = KVR_CUDA_GATHER_PIECES_MAX + 1;
	wrong[3].rows_max = 0;
	wrong[4].rows_max = KVR_SEGMENT_TOKENS_MAX + 1;
	wrong[5].key_bytes = 0;
	wrong[6].key_bytes = KVR_DIM_MAX * 4 + 1;
	wrong[7].value_bytes = 0;
	wrong[8].value_bytes = KVR_DIM_MAX * 4 + 1;
	wrong[9].piece_count = UINT32_MAX;
	kvr_emulate_begin(KVR_EMULATE_RISING, 1);
	assert_int_equal(kvr_cuda_gather(&wrong[0], NULL), 0);
	for (uint32_t i = 1; i < 10; i++)
		assert_int_equal(kvr_cuda_gather(&wrong[i], NULL), -EINVAL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_random),
		cmocka_unit_test(test_ranges),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* plan.c: spans for pieces.
 *
 * Goal: kvr_plan keeps I1 and I2, merges exactly what its rule says, and keeps the pieces.
 *
 * Method: 10,000 random cases, against a naive model that grows spans one piece at a time from a copy that was
 * sorted by insertion, byte for byte and span for span; and a handful of cases by hand, at the edges of the rule. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "tests/tiers/random_util.h"
#include "tiers/plan.h"

#define CASES      10000u
#define PIECES_MAX 300u

static struct kvr_random shared_random;

/* A case: pieces in the order drawn, and what the model makes of them. */
struct sample {
	bool overlapping;
	struct kvr_plan_rule rule;
	uint32_t count;
	struct kvr_plan_piece pieces[PIECES_MAX];
	struct kvr_plan_piece sorted[PIECES_MAX];
	uint32_t span_count;
	struct kvr_plan_span spans[PIECES_MAX];
};

static void sort_slowly(struct sample *sample)
{
	for (uint32_t i = 0; i < sample->count; i++) {
		uint32_t at = i;

		while (at > 0 && sample->sorted[at - 1].offset > sample->pieces[i].offset) {
			sample->sorted[at] = sample->sorted[at - 1];
			at--;
		}
		sample->sorted[at] = sample->pieces[i];
	}
}

/* The rule again, in the words of the header. */
static void model(struct sample *sample)
{
	uint64_t start = 0;
	uint64_t end = 0;

	sort_slowly(sample);
	sample->span_count = 0;
	for (uint32_t i = 0; i < sample->count; i++) {
		const struct kvr_plan_piece piece = sample->sorted[i];
		const uint64_t new_end =
			piece.offset + piece.bytes > end ? piece.offset + piece.bytes : end;
		struct kvr_plan_span *span;

		if (sample->span_count == 0 || piece.offset > end + sample->rule.gap_bytes ||
			(new_end > end && new_end - start > sample->rule.span_bytes_max) ||
			sample->spans[sample->span_count - 1].piece_count ==
				sample->rule.piece_max) {
			span = &sample->spans[sample->span_count++];
			*span = (struct kvr_plan_span){.piece_first = i};
			start = piece.offset;
			end = piece.offset + piece.bytes;
		} else {
			end = new_end;
		}
		span = &sample->spans[sample->span_count - 1];
		span->piece_count++;
		span->offset = start / sample->rule.alignment * sample->rule.alignment;
		span->bytes = 0;
		while (span->offset + span->bytes < end)
			span->bytes += sample->rule.alignment;
	}
}

/* Pieces as clusters of lanes lie: ascending or not, touching, apart, now and then one over the other. */
static void draw(struct sample *sample, struct kvr_random *random)
{
	const uint32_t spread = kvr_random_range(random, 0, 3);
	const bool shuffled = kvr_random_range(random, 0, 1) == 1;
	uint64_t at = kvr_random_next(random) >> (24 + kvr_random_range(random, 0, 30));

	sample->rule = (struct kvr_plan_rule){
		.alignment = 1u << kvr_random_range(random, 0, 12),
		.gap_bytes = kvr_random_range(random, 0, 3) * 3000,
		.span_bytes_max = kvr_random_range(random, 1, 60000),
		.piece_max = kvr_random_range(random, 1, kvr_random_range(random, 1, PIECES_MAX)),
	};
	sample->overlapping = kvr_random_range(random, 0, 1) == 1;
	sample->count = kvr_random_range(random, 0, PIECES_MAX);
	for (uint32_t i = 0; i < sample->count; i++) {
		struct kvr_plan_piece piece = {
			.offset = at,
			.bytes = kvr_random_range(random, 1, spread == 0 ? 10 : 12000),
			.tag = i,
		};
		uint32_t other = i;

		at += piece.bytes;
		if (sample->overlapping && kvr_random_range(random, 0, 9) == 0)
			at -= piece.bytes / 2;
		if (kvr_random_range(random, 0, spread) > 0)
			at += kvr_random_range(random, 1, 15000);
		if (shuffled)
			other = kvr_random_range(random, 0, i);
		sample->pieces[i] = sample->pieces[other];
		sample->pieces[other] = piece;
	}
}

static void check_sample(const struct sample *sample, const struct kvr_plan_piece *pieces,
	const struct kvr_plan_span *spans, uint32_t span_count)
{
	uint32_t next = 0;

	assert_int_equal(span_count, sample->span_count);
	for (uint32_t s = 0; s < span_count; s++) {
		const struct kvr_plan_span span = spans[s];

		assert_int_equal(span.offset, sample->spans[s].offset);
		assert_int_equal(span.bytes, sample->spans[s].bytes);
		assert_int_equal(span.offset % sample->rule.alignment, 0); /* I2 */
		assert_int_equal(span.bytes % sample->rule.alignment, 0);  /* I2 */
		assert_int_equal(span.piece_first, next);
		assert_true(span.piece_count >= 1);
		if (s > 0 && !sample->overlapping)
			assert_true(spans[s - 1].offset + spans[s - 1].bytes <=
				    span.offset + sample->rule.alignment); /* I1 */
		for (uint32_t i = next; i < next + span.piece_count; i++) {
			assert_true(pieces[i].offset >= span.offset); /* I1 */
			assert_true(pieces[i].offset + pieces[i].bytes <= span.offset + span.bytes);
		}
		next += span.piece_count;
	}
	assert_int_equal(next, sample->count);
}

static void test_random(void **state)
{
	static struct sample sample;
	static struct kvr_plan_piece pieces[PIECES_MAX];
	static struct kvr_plan_span spans[PIECES_MAX];
	static bool seen[PIECES_MAX];
	uint64_t merged = 0;

	(void)state;
	for (uint32_t i = 0; i < CASES; i++) {
		uint32_t count;

		draw(&sample, &shared_random);
		model(&sample);
		memcpy(pieces, sample.pieces, sizeof(pieces));
		count = kvr_plan(&sample.rule, pieces, sample.count, spans);
		check_sample(&sample, pieces, spans, count);
		merged += sample.count - count;
		memset(seen, 0, sizeof(seen));
		for (uint32_t p = 0; p < sample.count; p++) {
			const uint32_t tag = pieces[p].tag;

			assert_true(tag < sample.count);
			assert_false(seen[tag]);
			seen[tag] = true;
			assert_true(p == 0 || pieces[p - 1].offset <= pieces[p].offset);
		}
	}
	assert_true(merged > CASES); /* the cases do merge */
}

static void test_by_hand(void **state)
{
	const struct kvr_plan_rule rule = {512, 1000, 5000, 3};
	struct kvr_plan_piece pieces[] = {
		{20000, 9000, 0}, /* longer than a span may be */
		{3000, 2000, 1},  /* ends at 5000: just fits behind the first */
		{0, 2000, 2},     /* a gap of 1000 to the next: just merged */
		{6001, 1000, 3},  /* a gap of 1001: not merged */
	};
	struct kvr_plan_span spans[4];

	(void)state;
	assert_int_equal(kvr_plan(&rule, pieces, 4, spans), 3);
	assert_int_equal(spans[0].offset, 0);
	assert_int_equal(spans[0].bytes, 5120);
	assert_int_equal(spans[0].piece_count, 2);
	assert_int_equal(spans[1].offset, 5632);
	assert_int_equal(spans[1].bytes, 7168 - 5632);
	assert_int_equal(spans[2].offset, 19968);
	assert_int_equal(spans[2].bytes, 29184 - 19968);
	assert_int_equal(pieces[0].tag, 2);
	assert_int_equal(pieces[3].tag, 0);
	assert_int_equal(kvr_plan(&rule, pieces, 0, spans), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_by_hand),
		cmocka_unit_test(test_random),
	};

	shared_random = kvr_random_start();
	return cmocka_run_group_tests(tests, NULL, NULL);
}

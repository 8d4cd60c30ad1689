/* SPDX-License-Identifier: Apache-2.0 */
/* recall_hot.c: bytes staged per second by a recall, request to reply, against memcpy.
 *
 * Goal: asking the daemon for the rows that a query needs must cost little more than copying them.
 *
 * Method: 8 lanes of one layer (K 8, H 32, Dk = Dv = 128, bf16), 32 Ki tokens in the host tier, a budget
 * of 1,024 tokens per lane, content as content_util.h says, other queries each time. What each of the
 * queries recalls is found out first: which tokens, in how many clusters. The reference copies as many
 * extents of the same sizes, a cluster's keys and its values apart, from places at random in the same
 * segments of a store of the same size in 2 MiB pages, with memcpy, into another part of the same
 * region; on as many threads as the daemon works on, lane by lane. Ten recalls and ten copies in turn,
 * 600 of each, the order of the queries differing, medians.
 *
 * With --verbose it says where the time goes, on stderr: an empty request, the choice alone (a budget of
 * one token), the whole. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "bench/bench_util.h"
#include "bench/copy_util.h"
#include "bench/recall_util.h"
#include "bench/tiny.h"

#define TOKENS  BENCH_SIZE(32768u, 4096u)
#define SEGMENT 1024u
#define BUDGET  1024u
#define QUERIES 64u
#define BLOCK   10u
#define WARM_UP BENCH_SIZE(50u, 10u)
#define ROUNDS  BENCH_SIZE(600u, 20u)

static const struct bench_shape shape = {.layers = 1, .query_heads = 32, .kv_heads = 8, .dim = 128};
#define LANES     8u
#define ROW_BYTES ((size_t)128 * 2)

struct hot {
	struct kvr_client *client;
	struct bench_content *content;
	struct bench_recall *recall;
	uint8_t *store;  /* [TOKENS / SEGMENT][LANES][SEGMENT] tokens, keys and values */
	uint8_t *target; /* in the region: [LANES] keys, then [LANES] values, [BUDGET] rows each */
	struct bench_batch batches[QUERIES][LANES];
	uint32_t random;
};

static uint32_t random_below(struct hot *hot, uint32_t limit)
{
	hot->random = hot->random * 1664525u + 1013904223u;
	return (uint32_t)((uint64_t)hot->random * limit >> 32);
}

/* Where a lane's rows are cut into clusters: where positions fall or the segment changes; and, since
 * that misses clusters that happen to follow upon each other, in the middle of the longest run until
 * there are as many as the daemon says. Marks first rows; returns how many. */
static uint32_t cut(
	const int32_t *positions, uint32_t rows, uint32_t clusters, bool first[static BUDGET + 1])
{
	uint32_t count = 0;

	memset(first, 0, BUDGET + 1);
	for (uint32_t i = 0; i < rows; i++) {
		first[i] = i == 0 || positions[i] < positions[i - 1] ||
			   positions[i] / (int32_t)SEGMENT != positions[i - 1] / (int32_t)SEGMENT;
		count += first[i];
	}
	while (count < clusters && count < rows) {
		uint32_t longest = 0, middle = 0;

		for (uint32_t i = 0, end; i < rows; i = end) {
			for (end = i + 1; end < rows && !first[end]; end++)
				;
			if (end - i > longest) {
				longest = end - i;
				middle = i + longest / 2;
			}
		}
		first[middle] = true;
		count++;
	}
	return count;
}

/* The copies that stand for what the last recall has staged in one lane. */
static struct bench_batch plan_lane(struct hot *hot, uint32_t lane)
{
	const struct kvr_recall_item *item = &hot->recall->recall.items[0];
	const int32_t *positions = item->positions + (size_t)lane * BUDGET;
	const uint32_t rows = item->rows[lane].row_count;
	uint8_t *keys = hot->target + (size_t)lane * BUDGET * ROW_BYTES;
	uint8_t *values = keys + (size_t)LANES * BUDGET * ROW_BYTES;
	bool first[BUDGET + 1];
	const uint32_t count = cut(positions, rows, item->rows[lane].cluster_count, first);
	struct bench_copy *copies = calloc(2 * (size_t)count + 1, sizeof(*copies)), *copy = copies;

	if (!copies)
		bench_fail("no memory");
	for (uint32_t i = 0, end; i < rows; i = end) {
		const size_t segment = (size_t)(positions[i] / (int32_t)SEGMENT);
		const uint8_t *from;
		size_t bytes;

		for (end = i + 1; end < rows && !first[end]; end++)
			;
		bytes = (end - i) * ROW_BYTES;
		from = hot->store + (segment * LANES + lane) * SEGMENT * 2 * ROW_BYTES +
		       random_below(hot, SEGMENT - (end - i) + 1) * 2 * ROW_BYTES;
		*copy++ = (struct bench_copy){keys + i * ROW_BYTES, from, bytes};
		*copy++ = (struct bench_copy){values + i * ROW_BYTES, from + bytes, bytes};
	}
	return (struct bench_batch){copies, 2 * count};
}

/* Recalls with every query once, with positions, and plans the copies. */
static void plan(struct hot *hot)
{
	uint64_t extents = 0;

	for (uint32_t query = 0; query < QUERIES; query++) {
		bench_recall_ask(hot->recall, hot->content, TOKENS, query);
		bench_recall_run(hot->client, hot->recall, 0, 1);
		for (uint32_t lane = 0; lane < LANES; lane++) {
			hot->batches[query][lane] = plan_lane(hot, lane);
			extents += hot->batches[query][lane].count / 2;
		}
	}
	fprintf(stderr, "recall_hot: %.1f clusters of %.1f rows per lane\n",
		(double)extents / (QUERIES * LANES),
		(double)BUDGET * QUERIES * LANES / (double)extents);
	hot->recall->recall.items[0].positions = NULL; /* the copies write none either */
}

/* The median of recalls with another budget; 0: of empty requests. */
static double time_part(struct hot *hot, uint32_t budget)
{
	const uint32_t rounds = ROUNDS / 2;
	double times[ROUNDS];

	hot->recall->recall.budget_tokens = budget;
	for (uint32_t i = 0; i < rounds; i++) {
		uint64_t start;

		bench_recall_ask(hot->recall, hot->content, TOKENS, i);
		start = kvr_clock_ns();
		if (budget) {
			times[i] = bench_recall_run(hot->client, hot->recall, 0, 1);
		} else {
			bench_need(hot->client, kvr_ping(hot->client), "kvr_ping");
			times[i] = (double)(kvr_clock_ns() - start) / 1000;
		}
	}
	hot->recall->recall.budget_tokens = BUDGET;
	return bench_median(times, rounds);
}

/* What the daemon's recalls have taken together so far, from unpacked request to reply, in us. */
static double daemon_time(struct hot *hot)
{
	return bench_metric(hot->client, "recall.mean_ns") *
	       bench_metric(hot->client, "recall.requests_count") / 1000;
}

static void explain(struct hot *hot, double recall, double inside, double copy)
{
	const double rpc = time_part(hot, 0), choice = time_part(hot, 1);

	fprintf(stderr,
		"recall_hot: whole %.1f us = empty request %.1f + score and choose %.1f + gather "
		"%.1f; mean inside the daemon %.1f; memcpy %.1f\n",
		recall, rpc, choice - rpc, recall - choice, inside, copy);
}

static void measure(struct hot *hot, bool verbose)
{
	struct bench_copier *copier = bench_copier_open(bench_cpus());
	static double recall[ROUNDS], copy[ROUNDS];
	double bytes, ours, reference, inside = 0;

	for (uint32_t i = 0; i < WARM_UP + ROUNDS; i += BLOCK) {
		const uint32_t at = i < WARM_UP ? 0 : i - WARM_UP;

		if (i == WARM_UP)
			inside = daemon_time(hot);
		for (uint32_t k = 0; k < BLOCK; k++) {
			bench_recall_ask(
				hot->recall, hot->content, TOKENS, random_below(hot, QUERIES));
			recall[at + k] = bench_recall_run(hot->client, hot->recall, 0, 1);
		}
		for (uint32_t k = 0; k < BLOCK; k++)
			copy[at + k] =
				bench_copy(copier, hot->batches[random_below(hot, QUERIES)], LANES);
	}
	inside = (daemon_time(hot) - inside) / ROUNDS;
	bytes = (double)bench_recall_staged(hot->recall);
	ours = bench_median(recall, ROUNDS);
	reference = bench_median(copy, ROUNDS);
	bench_copier_close(copier);
	bench_print((struct bench_result){
		.bench = "recall_hot",
		.value = bytes / ours * 1e6,
		.unit = "bytes/s",
		.reference = "memcpy of the same extents, same threads",
		.reference_value = bytes / reference * 1e6,
		.ratio = reference / ours,
	});
	if (verbose)
		explain(hot, ours, inside, reference);
}

int main(int argc, char **argv)
{
	const bool verbose = bench_verbose(argc, argv);
	const uint64_t recall_bytes = bench_recall_bytes(shape, 1, BUDGET);
	const uint64_t target_bytes = 2 * LANES * BUDGET * ROW_BYTES;
	static struct hot hot;
	struct bench_daemon daemon;
	struct kvr_sequence *sequence;

	bench_start(&daemon, "512MiB");
	hot.client = bench_connect(&daemon, recall_bytes + target_bytes);
	hot.content = bench_content_open(shape, 1);
	sequence = bench_fill(hot.client, bench_model(hot.client, shape), hot.content, TOKENS, 1);
	hot.recall = bench_recall_open(hot.client, sequence, shape, 1, BUDGET, 0);
	hot.target = (uint8_t *)kvr_region(hot.client, NULL) + recall_bytes;
	hot.store = bench_memory(TOKENS * bench_token_bytes(shape));
	plan(&hot);
	measure(&hot, verbose);
	for (uint32_t i = 0; i < QUERIES * LANES; i++)
		free((void *)(uintptr_t)hot.batches[i / LANES][i % LANES].copies);
	bench_recall_close(hot.recall);
	bench_content_close(hot.content);
	kvr_disconnect(hot.client);
	bench_stop(&daemon);
	return 0;
}

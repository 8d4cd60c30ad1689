/* SPDX-License-Identifier: Apache-2.0 */
/* gap.c: which rule for merging neighbours (tiers/plan.h) gets clusters off a disk fastest.
 *
 * Goal: KVR_PLAN_GAP_BYTES and KVR_PLAN_SPAN_BYTES by measurement: the most recalled bytes per second that costs at most
 * 1.25 bytes read per byte recalled.
 *
 * Method: 64 lanes (8 layers of 8) of 32 segments, a lane of a segment 512 KiB: clusters of unequal size, 16 tokens in
 * the mean, of 512 bytes per token, one behind the other as in a store. A recall takes 64 of a lane's 2,048
 * clusters (also 16, 128, and all of them); one in six is the neighbour of the one before, as store order makes it
 * (clusters of a recall lie in 16 % fewer runs). The spans of a layer are planned together and submitted at once,
 * through a channel of an NVMe tier; the reference is the bare io_uring loop over the same spans at its best depth.
 * Rules and reference take turns; the median of ROUNDS.
 *
 *   gap_CHOSEN_GAP_SPAN    recalled bytes per second; GAP and SPAN in KiB
 *   reads_CHOSEN_GAP_SPAN  bytes read per byte recalled */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/clock.h"
#include "bench/bench_util.h"
#include "bench/disk_util.h"
#include "bench/tiny.h"
#include "tiers/nvme.h"
#include "tiers/plan.h"

#define LAYERS         BENCH_SIZE(8u, 2u)
#define LANES          8u /* per layer */
#define SEGMENTS       32u
#define LANE_BYTES     ((uint64_t)512 << 10)
#define TOKEN_BYTES    ((uint64_t)512)
#define CLUSTERS       64u /* of a lane of a segment, in the mean and at most */
#define CHOSEN_MAX     128u
#define CHOSEN_ALL     (SEGMENTS * CLUSTERS)
#define PIECES_MAX     (LANES * CHOSEN_MAX)
#define SPANS_MAX      (LAYERS * PIECES_MAX)
#define FILE_BYTES     ((uint64_t)LAYERS * LANES * SEGMENTS * LANE_BYTES)
#define MEMORY_BYTES   ((uint64_t)512 << 20)
#define DEPTH          128u
#define ROUNDS         BENCH_SIZE(7u, 2u)
#define RULES_MAX      6u
#define NEIGHBOUR_RATE 6u /* one in so many */

static uint64_t random_state = 20231023;

/* splitmix64 (Steele et al., OOPSLA 2014). */
static uint32_t draw(uint32_t below)
{
	uint64_t z = random_state += 0x9e3779b97f4a7c15u;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
	return (uint32_t)((z ^ (z >> 31)) % below);
}

/* Where the clusters of each lane of each segment begin, in tokens; the last entry is their end. */
static uint16_t firsts[LAYERS * LANES * SEGMENTS][CLUSTERS + 1];

/* Sizes of a sum of three uniform draws: unequal, as those of k-means are, and 1,024 tokens in all. */
static void make_clusters(void)
{
	for (uint32_t i = 0; i < LAYERS * LANES * SEGMENTS; i++) {
		uint32_t weights[CLUSTERS];
		uint32_t sum = 0;
		uint32_t at = 0;

		for (uint32_t c = 0; c < CLUSTERS; c++) {
			weights[c] = 1 + draw(100) * draw(100) / 100 + draw(30);
			sum += weights[c];
		}
		for (uint32_t c = 0; c < CLUSTERS; c++) {
			firsts[i][c] = (uint16_t)((uint64_t)at * (LANE_BYTES / TOKEN_BYTES) / sum);
			at += weights[c];
		}
		firsts[i][CLUSTERS] = LANE_BYTES / TOKEN_BYTES;
	}
}

struct recall {
	struct kvr_plan_piece pieces[LAYERS][PIECES_MAX];
	uint32_t piece_counts[LAYERS];
	uint64_t bytes;
};

/* Adds a lane's choice to its layer's pieces. */
static void choose(struct recall *recall, uint32_t layer, uint32_t lane, uint32_t chosen)
{
	static bool taken[SEGMENTS][CLUSTERS];
	uint32_t segment = 0;
	uint32_t cluster = 0;

	memset(taken, 0, sizeof(taken));
	for (uint32_t n = 0; n < chosen;) {
		uint32_t place;
		uint32_t first;
		uint32_t last;

		if (n > 0 && draw(NEIGHBOUR_RATE) == 0 && cluster + 1 < CLUSTERS) {
			cluster++;
		} else {
			segment = draw(SEGMENTS);
			cluster = draw(CLUSTERS);
		}
		place = (segment * LAYERS + layer) * LANES + lane;
		first = firsts[place][cluster];
		last = firsts[place][cluster + 1];
		if (taken[segment][cluster] || first == last)
			continue;
		taken[segment][cluster] = true;
		recall->pieces[layer][recall->piece_counts[layer]++] = (struct kvr_plan_piece){
			.offset = (uint64_t)place * LANE_BYTES + first * TOKEN_BYTES,
			.bytes = (uint32_t)((last - first) * TOKEN_BYTES),
		};
		recall->bytes += (last - first) * TOKEN_BYTES;
		n++;
	}
}

/* All of a layer, in the order of the file: what fetch reads. Pieces are runs of clusters, to be fewer. */
static void choose_all(struct recall *recall, uint32_t layer)
{
	const uint32_t bytes = (uint32_t)LANE_BYTES / (PIECES_MAX / (SEGMENTS * LANES));

	for (uint32_t i = 0; i < PIECES_MAX; i++) {
		const uint64_t at = (uint64_t)i * bytes;
		const uint64_t segment = at / (LANES * LANE_BYTES);

		recall->pieces[layer][i] = (struct kvr_plan_piece){
			.offset = at + segment * (LAYERS - 1) * LANES * LANE_BYTES +
				  (uint64_t)layer * LANES * LANE_BYTES,
			.bytes = bytes,
		};
		recall->bytes += bytes;
	}
	recall->piece_counts[layer] = PIECES_MAX;
}

static void make_recall(struct recall *recall, uint32_t chosen)
{
	memset(recall, 0, sizeof(*recall));
	for (uint32_t layer = 0; layer < LAYERS; layer++) {
		for (uint32_t lane = 0; lane < LANES && chosen < CHOSEN_ALL; lane++)
			choose(recall, layer, lane, chosen);
		if (chosen == CHOSEN_ALL && layer < 2) /* 256 MiB */
			choose_all(recall, layer);
	}
}

/* All layers' spans, one layer after the other. */
static uint32_t plan(struct recall *recall, const struct kvr_plan_rule *rule,
	struct bench_extent *ret_extents, uint64_t *ret_bytes)
{
	static struct kvr_plan_span spans[PIECES_MAX];
	uint32_t count = 0;

	*ret_bytes = 0;
	for (uint32_t layer = 0; layer < LAYERS; layer++) {
		const uint32_t some =
			kvr_plan(rule, recall->pieces[layer], recall->piece_counts[layer], spans);

		for (uint32_t i = 0; i < some; i++) {
			ret_extents[count++] =
				(struct bench_extent){spans[i].offset, spans[i].bytes};
			*ret_bytes += spans[i].bytes;
		}
	}
	return count;
}

/* Reads the extents through a channel. Returns seconds. */
static double read_tier(
	struct kvr_tier *tier, uint8_t *memory, const struct bench_extent *extents, uint32_t count)
{
	static struct kvr_tier_io ios[SPANS_MAX];
	static struct kvr_tier_io *list[SPANS_MAX];
	struct kvr_tier_io *reaped[64];
	struct pollfd poller = {.fd = kvr_tier_fd(tier), .events = POLLIN};
	const uint64_t start = kvr_clock_ns();
	uint64_t at = 0;
	uint32_t sent = 0;
	uint32_t done = 0;

	for (uint32_t i = 0; i < count; i++) {
		if (at + extents[i].bytes > MEMORY_BYTES)
			at = 0;
		ios[i] = (struct kvr_tier_io){
			.op = KVR_TIER_READ,
			.priority = KVR_TIER_URGENT,
			.place = {.offset = extents[i].offset, .bytes = extents[i].bytes},
			.buffer = {memory + at, extents[i].bytes},
		};
		at += extents[i].bytes;
		list[i] = &ios[i];
	}
	while (done < count) {
		uint32_t some;

		sent += kvr_tier_submit(tier, list + sent, count - sent);
		poll(&poller, 1, -1);
		while ((some = kvr_tier_reap(tier, reaped, 64)) > 0) {
			for (uint32_t i = 0; i < some; i++)
				if (reaped[i]->status < 0)
					bench_fail("a read failed");
			done += some;
		}
	}
	return (double)(kvr_clock_ns() - start) / 1e9;
}

struct place_to_read {
	struct bench_disk *disk;
	struct kvr_tier *tier;
	uint8_t *memory;
};

/* A rule, what it made of the recall, and how long that took. */
struct trial {
	struct kvr_plan_rule rule;
	struct bench_extent extents[SPANS_MAX];
	uint32_t count;
	uint64_t read_bytes;
	double ours[ROUNDS], bare[ROUNDS]; /* recalled bytes per second */
};

static void report(
	struct trial *trial, const struct recall *recall, uint32_t chosen, uint32_t depth)
{
	const uint32_t gap_kib = trial->rule.gap_bytes >> 10;
	const uint32_t span_kib = trial->rule.span_bytes_max >> 10;
	const double ours = bench_median(trial->ours, ROUNDS);
	const double bare = bench_median(trial->bare, ROUNDS);
	char name[64];

	snprintf(name, sizeof(name), "gap_%u_%u_%u", chosen, gap_kib, span_kib);
	bench_print((struct bench_result){
		.bench = name,
		.value = ours,
		.unit = "bytes/s",
		.reference = "bare io_uring loop, the same spans, its best depth",
		.reference_value = bare,
		.ratio = ours / bare,
	});
	snprintf(name, sizeof(name), "reads_%u_%u_%u", chosen, gap_kib, span_kib);
	bench_print((struct bench_result){
		.bench = name,
		.value = (double)trial->read_bytes,
		.unit = "bytes",
		.reference = "bytes recalled",
		.reference_value = (double)recall->bytes,
		.ratio = (double)trial->read_bytes / (double)recall->bytes,
	});
	fprintf(stderr,
		"%4u chosen, gap %2u KiB, span %4u KiB: %5u spans, %.2f GB/s, bare %.2f at depth "
		"%u, "
		"read %.3f\n",
		chosen, gap_kib, span_kib, trial->count, ours / 1e9, bare / 1e9, depth,
		(double)trial->read_bytes / (double)recall->bytes);
}

static void measure(const struct place_to_read *place, uint32_t chosen,
	const struct kvr_plan_rule *rules, uint32_t rule_count)
{
	static struct trial trials[RULES_MAX];
	static struct recall recall;
	uint32_t depth;

	make_recall(&recall, chosen);
	for (uint32_t i = 0; i < rule_count; i++) {
		trials[i].rule = rules[i];
		trials[i].count =
			plan(&recall, &rules[i], trials[i].extents, &trials[i].read_bytes);
	}
	depth = bench_disk_best_depth(place->disk, trials[0].extents, trials[0].count);
	for (uint32_t round = 0; round < ROUNDS; round++) {
		for (uint32_t i = 0; i < rule_count; i++) {
			struct trial *trial = &trials[i];

			trial->ours[round] =
				(double)recall.bytes /
				read_tier(place->tier, place->memory, trial->extents, trial->count);
			trial->bare[round] =
				(double)recall.bytes /
				bench_disk_read(place->disk, trial->extents, trial->count, depth);
		}
	}
	for (uint32_t i = 0; i < rule_count; i++)
		report(&trials[i], &recall, chosen, depth);
}

int main(int argc, char **argv)
{
	static const struct kvr_plan_rule gaps[RULES_MAX] = {
		{512, 0, 256u << 10, 512},
		{512, 4u << 10, 256u << 10, 512},
		{512, 8u << 10, 256u << 10, 512},
		{512, 16u << 10, 256u << 10, 512},
		{512, 24u << 10, 256u << 10, 512},
		{512, 32u << 10, 256u << 10, 512},
	};
	static const struct kvr_plan_rule spans[] = {
		{512, 8u << 10, 128u << 10, 512},
		{512, 8u << 10, 256u << 10, 512},
		{512, 8u << 10, 512u << 10, 512},
		{512, 8u << 10, 1024u << 10, 512},
	};
	struct bench_disk *disk;
	struct kvr_nvme *nvme;
	struct kvr_span memory = {bench_memory(MEMORY_BYTES), MEMORY_BYTES};
	struct kvr_nvme_config config = {
		.bytes = FILE_BYTES,
		.depth = DEPTH,
		.batch = DEPTH / 4,
		.buffers = &memory,
		.buffer_count = 1,
	};
	struct place_to_read place = {.memory = memory.data};

	bench_verbose(argc, argv);
	disk = place.disk = bench_disk_scratch(FILE_BYTES);
	config.path = bench_disk_path(disk);
	if (kvr_nvme_open(&config, &nvme) < 0 || kvr_tier_open_nvme(nvme, &place.tier) < 0)
		bench_fail("no NVMe tier on %s", config.path);
	make_clusters();
	measure(&place, 16, gaps, RULES_MAX);
	measure(&place, 64, gaps, RULES_MAX);
	measure(&place, CHOSEN_MAX, gaps, RULES_MAX);
	measure(&place, CHOSEN_ALL, spans, sizeof(spans) / sizeof(spans[0]));
	kvr_tier_close(place.tier);
	kvr_nvme_close(nvme);
	bench_disk_close(disk);
	return 0;
}

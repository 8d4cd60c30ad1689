/* SPDX-License-Identifier: Apache-2.0 */
/* soft_match.c: tokens merged per second on one core, against a plain C loop compiled -O3.
 *
 * Goal: merged sets are made in the background of every sealed segment, so they must cost little beside
 * k-means. Method: lanes of made-up keys with traits of real ones (directions that many tokens share, a slow
 * drift along the text, two channels far larger than the rest), S = 1024, 128 dims, bf16, all four sets, which
 * both sides write as bf16. Ours is the whole of MERGE; the reference (soft_match_util.c) does the same in
 * loops that a compiler vectorises, for any x86-64. One thread, in turn, its CPU time, medians over the rounds.
 * `soft_match_wide` holds ours against the same loops where the compiler may use AVX-512: what
 * intrinsics and tiles add to a good compiler. Both sides must agree on nearly all rows: rounding decides
 * near ties. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "bench/lane_util.h"
#include "bench/soft_match_util.h"
#include "bench/tiny.h"
#include "kernels/cpu.h"

#define TOKENS SOFT_MATCH_TOKENS
#define DIM    SOFT_MATCH_DIM
#define LANES  8u
#define ROUNDS BENCH_SIZE(31u, 1u)
#define BLOCKS (TOKENS / KVR_BLOCK_TOKENS)
#define AGREE  0.95 /* of the rows stand for as many tokens on both sides */

struct bench {
	struct kvr_geometry geometry;
	struct kvr_segment_view view;
	struct kvr_tail_view tail;
	uint8_t *blocks[BLOCKS];
	struct kvr_span scratch;
	struct soft_match lane[LANES]; /* of the reference */
};

/* What this thread has had of its core: others may want it too. */
static uint64_t cpu_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* The same rows for both sides: in blocks for ours, in one piece for the reference. */
static void make_lane(struct bench *bench, uint32_t lane)
{
	struct soft_match *plain = &bench->lane[lane];
	uint16_t *keys = bench_lane_need(sizeof(*keys) * TOKENS * DIM);
	uint16_t *values = bench_lane_need(sizeof(*values) * TOKENS * DIM);

	bench_lane_make(keys, values, TOKENS, DIM);
	for (uint32_t t = 0; t < TOKENS; t++) {
		memcpy(kvr_tail_key(&bench->tail, lane, t), keys + (size_t)t * DIM,
			DIM * sizeof(*keys));
		memcpy(kvr_tail_value(&bench->tail, lane, t), values + (size_t)t * DIM,
			DIM * sizeof(*values));
	}
	plain->keys = keys;
	plain->values = values;
	for (uint32_t set = 0; set < SOFT_MATCH_SETS; set++) {
		const size_t rows = kvr_segment_merged_rows(set, TOKENS);
		const uint32_t unit = bench->view.cluster_max + 1 + set;

		plain->merged_keys[set] = bench_lane_need(rows * DIM * sizeof(uint16_t));
		plain->merged_values[set] = bench_lane_need(rows * DIM * sizeof(uint16_t));
		plain->tokens[set] = bench_lane_need(rows * sizeof(uint16_t));
		kvr_segment_set_extent(&bench->view, lane, unit,
			bench_lane_need(2 * rows * DIM * sizeof(uint16_t)));
	}
}

static void bench_init(struct bench *bench)
{
	*bench = (struct bench){.geometry = {.layer_count = LANES,
					.query_heads = 1,
					.kv_heads = 1,
					.key_dim = DIM,
					.value_dim = DIM,
					.dtype = KVR_DTYPE_BF16,
					.segment_tokens = TOKENS,
					.cluster_tokens = KVR_CLUSTER_TOKENS,
					.merged = (1u << KVR_MERGED_SETS) - 1}};
	for (uint32_t i = 0; i < BLOCKS; i++)
		bench->blocks[i] = bench_lane_need(kvr_tail_block_bytes(&bench->geometry));
	bench->tail = (struct kvr_tail_view){&bench->geometry, bench->blocks, BLOCKS};
	kvr_segment_shape(&bench->view, &bench->geometry, 0, TOKENS);
	kvr_segment_bind_all(
		&bench->view, bench_lane_need(kvr_segment_bind_all(&bench->view, NULL)));
	bench->scratch.bytes = kvr_cpu_merge_scratch();
	bench->scratch.data = bench_lane_need(bench->scratch.bytes);
	for (uint32_t lane = 0; lane < LANES; lane++)
		make_lane(bench, lane);
}

/* The widest instruction set of this processor. */
static enum kvr_isa best_isa(void)
{
	for (enum kvr_isa isa = KVR_ISA_AVX512; isa > KVR_ISA_PLAIN; isa--) {
		const struct kvr_device_cpu_config config = {.threads = 1, .isa = isa};
		struct kvr_device *device;

		if (kvr_device_open_cpu(&config, &device) == 0) {
			kvr_device_close(device);
			return isa;
		}
	}
	return KVR_ISA_PLAIN;
}

/* All lanes; each returns ns. */
static double ours(struct bench *bench, enum kvr_isa isa)
{
	const uint64_t begin = cpu_ns();

	for (uint32_t lane = 0; lane < LANES; lane++) {
		struct kvr_cluster_item item = {&bench->tail, &bench->view, lane};

		kvr_cpu_merge(&item, isa, bench->scratch);
	}
	return (double)(cpu_ns() - begin);
}

static double plain(struct bench *bench)
{
	const uint64_t begin = cpu_ns();

	for (uint32_t lane = 0; lane < LANES; lane++)
		soft_match_loop(&bench->lane[lane]);
	return (double)(cpu_ns() - begin);
}

/* 0 where this processor has nothing wider. */
static double wide(struct bench *bench)
{
	const uint64_t begin = cpu_ns();

	for (uint32_t lane = 0; lane < LANES; lane++) {
		if (!soft_match_loop_wide(&bench->lane[lane]))
			return 0.0;
	}
	return (double)(cpu_ns() - begin);
}

/* The part of all rows that stand for as many tokens on both sides. */
static double agreement(const struct bench *bench)
{
	uint32_t rows = 0, equal = 0;

	for (uint32_t i = 0; i < LANES * SOFT_MATCH_SETS; i++) {
		const uint32_t lane = i / SOFT_MATCH_SETS, set = i % SOFT_MATCH_SETS;
		const uint32_t count = kvr_segment_merged_rows(set, TOKENS);
		uint16_t *tokens;

		kvr_segment_merged_unit(&bench->view, lane, set, &tokens);
		for (uint32_t r = 0; r < count; r++)
			equal += tokens[r] == bench->lane[lane].tokens[set][r];
		rows += count;
	}
	return (double)equal / rows;
}

static int compare(const void *a, const void *b)
{
	const double left = *(const double *)a;
	const double right = *(const double *)b;

	return (left > right) - (left < right);
}

static double median(double *values)
{
	qsort(values, ROUNDS, sizeof(*values), compare);
	return values[ROUNDS / 2];
}

static void print(const char *name, const char *reference, double ours_ns, double reference_ns)
{
	printf("{\"bench\":\"%s\",\"value\":%.0f,\"unit\":\"tokens/s\","
	       "\"reference\":\"%s\",\"reference_value\":%.0f,\"ratio\":%.2f}\n",
		name, LANES * TOKENS / ours_ns * 1e9, reference,
		LANES * TOKENS / reference_ns * 1e9, reference_ns / ours_ns);
}

int main(void)
{
	const enum kvr_isa isa = best_isa();
	static struct bench bench;
	double ns[3][ROUNDS];

	bench_init(&bench);
	ours(&bench, isa);
	plain(&bench);
	if (agreement(&bench) < AGREE) {
		fprintf(stderr, "soft_match: only %.3f of the rows are those of the reference\n",
			agreement(&bench));
		return 1;
	}
	for (uint32_t round = 0; round < ROUNDS; round++) {
		ns[0][round] = ours(&bench, isa);
		ns[1][round] = plain(&bench);
		ns[2][round] = wide(&bench);
	}
	for (uint32_t i = 0; i < 3; i++)
		ns[i][0] = median(ns[i]);
	print("soft_match", "plain C loop, -O3, x86-64", ns[0][0], ns[1][0]);
	if (ns[2][0] > 0.0)
		print("soft_match_wide", "plain C loop, -O3, AVX-512", ns[0][0], ns[2][0]);
	return 0;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* kernel_recall.c: what recall costs above moving the rows.
 *
 * Goal: how near one recall job (score, choose, gather) is to a loop of memcpy over as many extents of
 * the same size, and how it grows with the context.
 *
 * Method: 8 lanes of bf16, Dk = Dv = 128, 4 query heads per lane, segments of 1024 tokens in clusters
 * of 16, a budget of 1024 tokens, for contexts of 4 Ki to 256 Ki tokens. Recall and reference run on
 * the same two threads, lane by lane from one counter, interleaved, each time with other queries and
 * other extents, so that neither finds its rows in a near cache because the other left them there.
 * Medians. The line `kernel_recall_job` is the same through the device: submit to reap, the owner asleep
 * on the device's fd meanwhile.
 *
 * `kernel_mixed` is one lane of a folded MIXED recall beside the same of CLUSTERS, on one thread;
 * `kernel_fold` is what the fold alone adds to a recall of one cluster, beside that recall, which is scoring
 * and little else. The four take turns lane by lane, so that what one reads the others have pushed out
 * of the second cache.
 *
 * Prints one JSON object per line; see bench/ for the fields. */

#include <math.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "base/clock.h"
#include "bench/tiny.h"
#include "kernels/cpu.h"

#define LANES       8u
#define DIM         128u
#define HEADS       4u
#define BUDGET      1024u
#define CLUSTER     16u
#define SEGMENT     1024u
#define CLUSTERS    (SEGMENT / CLUSTER)
#define EXTENT      ((size_t)CLUSTER * DIM * 2 * 2)
#define TAKEN       (BUDGET / CLUSTER)
#define ROUNDS      BENCH_SIZE(300u, 4u)
#define QUERIES     32u
#define SEGMENT_MAX 256u
#define HUGE_BYTES  ((size_t)2 << 20)

struct bench {
	struct kvr_geometry geometry;
	uint32_t segment_count;
	struct kvr_segment_view view[SEGMENT_MAX];
	const struct kvr_segment_view *segments[SEGMENT_MAX];
	uint8_t *arena;
	uint8_t *summaries;
	uint16_t *queries; /* [QUERIES][LANES][HEADS][DIM] */
	uint8_t *out;      /* [LANES][BUDGET][2 * DIM] bf16 */
	uint32_t *random;  /* [QUERIES][LANES][TAKEN], ascending */
	float *fold;       /* [HEADS][DIM], then [HEADS] */
	struct kvr_recall_item item[LANES];
	struct kvr_span scratch[2];
	/* The two threads: generation starts a round, next hands out lanes, ended counts threads. */
	_Atomic uint32_t generation, next, ended;
	bool recall; /* else the reference; written between rounds */
	uint32_t round;
	bool quit;
};

static uint64_t random_state = 1;

static uint32_t random_u32(void)
{
	random_state = random_state * 6364136223846793005u + 1442695040888963407u;
	return (uint32_t)(random_state >> 33);
}

/* About normal, as bf16. */
static uint16_t random_bf16(void)
{
	float sum = -6;

	for (int i = 0; i < 12; i++)
		sum += (float)(random_u32() & 0xffff) / 65536.0f;
	return kvr_bf16_of_float(sum);
}

static uint8_t *map_touched(size_t bytes)
{
	const size_t whole = (bytes + 2 * HUGE_BYTES - 1) / HUGE_BYTES * HUGE_BYTES;
	uint8_t *data =
		mmap(NULL, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (data == MAP_FAILED) {
		fprintf(stderr, "kernel_recall: no memory for %zu bytes\n", bytes);
		exit(1);
	}
	data = (uint8_t *)(((uintptr_t)data + HUGE_BYTES - 1) & ~(uintptr_t)(HUGE_BYTES - 1));
	madvise(data, bytes, MADV_HUGEPAGE);
	memset(data, 1, bytes);
	return data;
}

static void make_segment(struct bench *bench, uint32_t s)
{
	struct kvr_segment_view *view = &bench->view[s];

	kvr_segment_shape(view, &bench->geometry, s * SEGMENT, SEGMENT);
	/* One behind the other: segments at equal offsets of large pages would share cache sets. */
	if (s == 0)
		bench->summaries =
			map_touched(bench->segment_count * kvr_segment_bind_all(view, NULL));
	kvr_segment_bind_all(view, bench->summaries + s * kvr_segment_bind_all(view, NULL));
	bench->segments[s] = view;
	for (uint32_t lane = 0; lane < LANES; lane++) {
		int8_t *mean = kvr_segment_key_high(view, lane);

		view->cluster_count[lane] = CLUSTERS;
		for (uint32_t i = 0; i < CLUSTERS * DIM; i++)
			mean[i] = (int8_t)fmaxf(
				-127, fminf(127, kvr_float_of_bf16(random_bf16()) * 30));
		for (uint32_t i = 0; i < CLUSTERS; i++)
			kvr_segment_key_step(view, lane)[i] = 1.0f / 30 / 256;
		view->key_planes[lane] = 1;
		for (uint32_t i = 0; i < CLUSTERS * DIM; i++) {
			kvr_segment_key_spread(view, lane)[i] = (uint8_t)random_u32();
			kvr_segment_value_mean(view, lane)[i] = random_bf16();
		}
		for (uint32_t i = 0; i < CLUSTERS; i++)
			kvr_segment_spread_step(view, lane)[i] = 4.0f / 255;
		for (uint32_t i = 0; i < SEGMENT; i++)
			kvr_segment_row_token(view, lane)[i] = (uint16_t)i;
		for (uint32_t c = 0; c <= CLUSTERS + 1; c++)
			kvr_segment_row_first(view, lane)[c] =
				(uint16_t)(c < CLUSTERS ? c * CLUSTER : SEGMENT);
		for (uint32_t c = 0; c < CLUSTERS; c++)
			kvr_segment_extent(view, lane)[c] =
				bench->arena + (((size_t)s * LANES + lane) * CLUSTERS + c) * EXTENT;
		kvr_segment_extent(view, lane)[CLUSTERS] = NULL;
	}
}

static int compare_u32(const void *a, const void *b)
{
	const uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return (x > y) - (x < y);
}

static int compare_double(const void *a, const void *b)
{
	const double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static void make(struct bench *bench, uint32_t tokens)
{
	bench->geometry = (struct kvr_geometry){.layer_count = 1,
		.query_heads = LANES * HEADS,
		.kv_heads = LANES,
		.key_dim = DIM,
		.value_dim = DIM,
		.dtype = KVR_DTYPE_BF16,
		.segment_tokens = SEGMENT,
		.cluster_tokens = CLUSTER};
	bench->segment_count = tokens / SEGMENT;
	bench->arena = map_touched((size_t)bench->segment_count * LANES * CLUSTERS * EXTENT);
	bench->out = map_touched((size_t)LANES * BUDGET * DIM * 2 * 2);
	bench->queries = (uint16_t *)(void *)map_touched(QUERIES * LANES * HEADS * DIM * 2);
	bench->random = (uint32_t *)(void *)map_touched(QUERIES * LANES * TAKEN * 4);
	bench->fold = (float *)(void *)map_touched((HEADS * DIM + HEADS) * sizeof(float));
	for (uint32_t s = 0; s < bench->segment_count; s++)
		make_segment(bench, s);
	for (uint32_t i = 0; i < QUERIES * LANES * HEADS * DIM; i++)
		bench->queries[i] = random_bf16();
	for (uint32_t i = 0; i < QUERIES * LANES; i++) {
		for (uint32_t c = 0; c < TAKEN; c++)
			bench->random[i * TAKEN + c] =
				random_u32() % (bench->segment_count * CLUSTERS);
		qsort(bench->random + (size_t)i * TAKEN, TAKEN, sizeof(uint32_t), compare_u32);
	}
	for (uint32_t lane = 0; lane < LANES; lane++)
		bench->item[lane] = (struct kvr_recall_item){.segments = bench->segments,
			.segment_count = bench->segment_count,
			.geometry = &bench->geometry,
			.lane = lane,
			.rank = KVR_RANK_SHARE,
			.query_count = HEADS,
			.query_dtype = KVR_DTYPE_BF16,
			.scale = 0.0883883f,
			.budget_tokens = BUDGET,
			.row_capacity = BUDGET,
			.keys = bench->out + (size_t)lane * BUDGET * DIM * 4,
			.values = bench->out + (size_t)lane * BUDGET * DIM * 4 + BUDGET * DIM * 2};
}

static void set_queries(struct bench *bench, uint32_t round)
{
	for (uint32_t lane = 0; lane < LANES; lane++)
		bench->item[lane].query =
			(const uint8_t *)(bench->queries +
					  (size_t)(round % QUERIES * LANES + lane) * HEADS * DIM);
}

/* The reference: as many extents, at random, by memcpy, keys and values apart. */
static void copy_lane(const struct bench *bench, uint32_t lane)
{
	const uint32_t *taken =
		bench->random + (size_t)(bench->round % QUERIES * LANES + lane) * TAKEN;
	uint8_t *keys = bench->item[lane].keys, *values = bench->item[lane].values;

	for (uint32_t i = 0; i < TAKEN; i++) {
		const uint8_t *from =
			bench->arena + (((size_t)(taken[i] / CLUSTERS) * LANES + lane) * CLUSTERS +
					       taken[i] % CLUSTERS) *
					       EXTENT;

		memcpy(keys + i * EXTENT / 2, from, EXTENT / 2);
		memcpy(values + i * EXTENT / 2, from + EXTENT / 2, EXTENT / 2);
	}
}

static void run_lanes(struct bench *bench, uint32_t thread)
{
	uint32_t lane;

	while ((lane = atomic_fetch_add(&bench->next, 1)) < LANES) {
		if (bench->recall)
			kvr_cpu_recall(&bench->item[lane], KVR_ISA_AVX512, bench->scratch[thread]);
		else
			copy_lane(bench, lane);
	}
	atomic_fetch_add(&bench->ended, 1);
}

static void *other_thread(void *argument)
{
	struct bench *bench = argument;
	uint32_t seen = 0;

	for (;;) {
		while (atomic_load(&bench->generation) == seen)
			__builtin_ia32_pause();
		seen++;
		if (bench->quit)
			return NULL;
		run_lanes(bench, 1);
	}
}

static double run_round(struct bench *bench, bool recall, uint32_t round)
{
	uint64_t start;

	bench->recall = recall;
	bench->round = round;
	set_queries(bench, round);
	start = kvr_clock_ns();
	atomic_store(&bench->next, 0);
	atomic_store(&bench->ended, 0);
	atomic_fetch_add(&bench->generation, 1);
	run_lanes(bench, 0);
	while (atomic_load(&bench->ended) < 2)
		__builtin_ia32_pause();
	return (double)(kvr_clock_ns() - start) / 1000;
}

static double run_job(struct bench *bench, struct kvr_device *device, uint32_t round)
{
	struct kvr_job job = {
		.kind = KVR_JOB_RECALL, .urgent = true, .items = bench->item, .item_count = LANES};
	struct pollfd wait = {.fd = kvr_device_fd(device), .events = POLLIN};
	struct kvr_job *done;
	uint64_t start;

	set_queries(bench, round);
	start = kvr_clock_ns();
	kvr_device_submit(device, &job);
	while (kvr_device_reap(device, &done, 1) == 0)
		poll(&wait, 1, -1);
	return (double)(kvr_clock_ns() - start) / 1000;
}

static double median(double *values, uint32_t count)
{
	qsort(values, count, sizeof(*values), compare_double);
	return values[count / 2];
}

static void print(
	const char *name, uint32_t tokens, double value, const char *reference, double other)
{
	printf("{\"bench\":\"%s_%uk\",\"value\":%.1f,\"unit\":\"us\",\"reference\":\"%s\","
	       "\"reference_value\":%.1f,\"ratio\":%.3f}\n",
		name, tokens / 1024, value, reference, other, value / other);
	fflush(stdout);
}

/* One lane, on this thread. */
static double run_lane(struct bench *bench, uint32_t lane, uint32_t budget, bool mixed)
{
	struct kvr_recall_item item = bench->item[lane];
	uint64_t start;

	item.budget_tokens = budget;
	if (mixed) {
		item.form = KVR_FORM_MIXED;
		item.fold_out = bench->fold;
		item.fold_lse = bench->fold + (size_t)HEADS * DIM;
	}
	start = kvr_clock_ns();
	kvr_cpu_recall(&item, KVR_ISA_AVX512, bench->scratch[0]);
	return (double)(kvr_clock_ns() - start) / 1000;
}

static void measure_mixed(struct bench *bench, uint32_t tokens)
{
	static double clusters[ROUNDS], mixed[ROUNDS], score[ROUNDS], fold[ROUNDS];
	double alone;

	for (uint32_t i = 0; i < ROUNDS; i++) {
		set_queries(bench, i);
		clusters[i] = run_lane(bench, i % LANES, BUDGET, false);
		mixed[i] = run_lane(bench, (i + 2) % LANES, BUDGET, true);
		score[i] = run_lane(bench, (i + 4) % LANES, CLUSTER, false);
		fold[i] = run_lane(bench, (i + 6) % LANES, CLUSTER, true);
	}
	alone = median(score, ROUNDS);
	print("kernel_mixed", tokens, median(mixed, ROUNDS), "clusters, one lane",
		median(clusters, ROUNDS));
	print("kernel_fold", tokens, median(fold, ROUNDS) - alone, "scoring, one lane", alone);
}

static double measure(uint32_t tokens, double shortest)
{
	static double recall[ROUNDS], copy[ROUNDS], job[ROUNDS];
	struct kvr_device_cpu_config config = {.threads = 2, .isa = KVR_ISA_AVX512, .spin_us = 50};
	struct bench *bench = calloc(1, sizeof(*bench));
	struct kvr_device *device;
	pthread_t thread;
	double values[3];

	make(bench, tokens);
	for (int i = 0; i < 2; i++) {
		bench->scratch[i].bytes = kvr_cpu_recall_scratch();
		bench->scratch[i].data = mmap(NULL, bench->scratch[i].bytes, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	}
	pthread_create(&thread, NULL, other_thread, bench);
	for (uint32_t i = 0; i < ROUNDS; i++) {
		recall[i] = run_round(bench, true, i);
		copy[i] = run_round(bench, false, i);
	}
	bench->quit = true;
	atomic_fetch_add(&bench->generation, 1);
	pthread_join(thread, NULL);
	measure_mixed(bench, tokens);
	if (kvr_device_open_cpu(&config, &device) < 0)
		exit(1);
	for (uint32_t i = 0; i < ROUNDS; i++)
		job[i] = run_job(bench, device, i);
	kvr_device_close(device);
	free(bench);
	values[0] = median(recall, ROUNDS);
	values[1] = median(copy, ROUNDS);
	values[2] = median(job, ROUNDS);
	print("kernel_recall", tokens, values[0], "memcpy of as many extents", values[1]);
	print("kernel_recall_job", tokens, values[2], "memcpy of as many extents", values[1]);
	if (shortest > 0)
		print("kernel_recall_growth", tokens, values[0], "kernel_recall_4k", shortest);
	return values[0];
}

int main(void)
{
	double shortest;

	if (!__builtin_cpu_supports("avx512bw")) {
		fprintf(stderr, "kernel_recall: skipped, no AVX-512\n");
		return 0;
	}
	shortest = measure(4096, 0);
	measure(32768, shortest);
	measure(262144, shortest);
	return 0;
}

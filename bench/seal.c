/* SPDX-License-Identifier: Apache-2.0 */
/* seal.c: tokens clustered per second on one core, against FAISS's k-means.
 *
 * Goal: sealing is the daemon's one heavy computation; it must not be slower than what a good library
 * would do. Method: lanes of made-up keys with the traits of real ones (directions that many tokens
 * share, a slow drift along the text, two channels far larger than the rest), S = 1024, 16 tokens
 * per cluster, bf16. Ours is the whole of CLUSTER: widening, k-means, order, means of keys and
 * values. FAISS gets floats, already widened and normalised, the same first centroids, and as many
 * iterations as ours made (no subsampling, no repetition); it runs by inner product (spherical) and
 * by Euclidean distance, and the faster of the two is the reference. One thread each, interleaved,
 * medians over the rounds. Beside the speed stands the mean cosine of a key and the mean of its
 * cluster, so that speed is not bought with quality. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "bench/lane_util.h"
#include "bench/tiny.h"
#include "kernels/cpu.h"
#include "kernels/kmeans.h"

#define TOKENS  KVR_SEGMENT_TOKENS
#define LANES   8u
#define ROUNDS  BENCH_SIZE(15u, 1u)
#define DIM_MAX BENCH_LANE_DIM_MAX
#define BLOCKS  (TOKENS / KVR_BLOCK_TOKENS)

/* bench/seal_faiss.cc */
void seal_faiss(const float *keys, size_t count, size_t dim, size_t clusters, unsigned iterations,
	int inner_product, int64_t *labels, float *centroids);

struct bench {
	struct kvr_geometry geometry;
	struct kvr_segment_view view;
	struct kvr_tail_view tail;
	uint8_t *blocks[BLOCKS];
	float *units; /* [LANES][TOKENS][Dk], for FAISS and for the cosines */
	struct kvr_span scratch;
	uint32_t made[LANES]; /* assignments per lane */
};

/* One lane's rows, and their units as floats. */
static void make_lane(struct bench *bench, uint32_t lane)
{
	const uint32_t dim = bench->geometry.key_dim;
	static uint16_t keys[TOKENS * DIM_MAX], values[TOKENS * DIM_MAX];

	bench_lane_make(keys, values, TOKENS, dim);
	for (uint32_t t = 0; t < TOKENS; t++) {
		const uint16_t *key = keys + (size_t)t * dim;
		float *unit = bench->units + ((size_t)lane * TOKENS + t) * dim;
		float square = 0.0f;

		memcpy(kvr_tail_key(&bench->tail, lane, t), key, dim * sizeof(*key));
		memcpy(kvr_tail_value(&bench->tail, lane, t), values + (size_t)t * dim,
			dim * sizeof(*values));
		for (uint32_t k = 0; k < dim; k++) {
			unit[k] = kvr_float_of_bf16(key[k]);
			square += unit[k] * unit[k];
		}
		for (uint32_t k = 0; k < dim; k++)
			unit[k] /= sqrtf(square);
	}
}

static void bench_init(struct bench *bench, uint32_t dim)
{
	*bench = (struct bench){
		.geometry = {.layer_count = LANES,
			.query_heads = 1,
			.kv_heads = 1,
			.key_dim = dim,
			.value_dim = dim,
			.dtype = KVR_DTYPE_BF16,
			.segment_tokens = TOKENS,
			.cluster_tokens = KVR_CLUSTER_TOKENS},
	};
	for (uint32_t i = 0; i < BLOCKS; i++)
		bench->blocks[i] = bench_lane_need(kvr_tail_block_bytes(&bench->geometry));
	bench->tail = (struct kvr_tail_view){&bench->geometry, bench->blocks, BLOCKS};
	kvr_segment_shape(&bench->view, &bench->geometry, 0, TOKENS);
	kvr_segment_bind_all(
		&bench->view, bench_lane_need(kvr_segment_bind_all(&bench->view, NULL)));
	bench->units = bench_lane_need((size_t)LANES * TOKENS * dim * sizeof(float));
	bench->scratch.bytes = kvr_cpu_cluster_scratch();
	bench->scratch.data = bench_lane_need(bench->scratch.bytes);
	for (uint32_t lane = 0; lane < LANES; lane++)
		make_lane(bench, lane);
}

static void bench_fini(struct bench *bench)
{
	for (uint32_t i = 0; i < BLOCKS; i++)
		free(bench->blocks[i]);
	free(bench->view.memory);
	free(bench->units);
	free(bench->scratch.data);
}

/* Mean cosine of a key and the mean of its cluster's raw keys. */
static double cosine(struct bench *bench, uint32_t lane, const int64_t *labels)
{
	const uint32_t dim = bench->geometry.key_dim;
	static double mean[TOKENS][DIM_MAX];
	double total = 0.0;

	memset(mean, 0, sizeof(mean));
	for (uint32_t t = 0; t < TOKENS; t++) {
		const uint16_t *key = (void *)kvr_tail_key(&bench->tail, lane, t);

		for (uint32_t k = 0; k < dim; k++)
			mean[labels[t]][k] += (double)kvr_float_of_bf16(key[k]);
	}
	for (uint32_t t = 0; t < TOKENS; t++) {
		const float *unit = bench->units + ((size_t)lane * TOKENS + t) * dim;
		double product = 0.0, square = 0.0;

		for (uint32_t k = 0; k < dim; k++) {
			product += (double)unit[k] * mean[labels[t]][k];
			square += mean[labels[t]][k] * mean[labels[t]][k];
		}
		total += product / sqrt(square);
	}
	return total / TOKENS;
}

/* All lanes with ours; returns ns, and the mean cosine where asked. */
static double ours(struct bench *bench, enum kvr_isa isa, double *ret_cosine)
{
	const uint64_t begin = kvr_clock_ns();
	double sum = 0.0;
	uint64_t end;

	for (uint32_t lane = 0; lane < LANES; lane++) {
		struct kvr_cluster_item item = {&bench->tail, &bench->view, lane};

		bench->made[lane] = kvr_kmeans_cluster(&item, isa, bench->scratch);
	}
	end = kvr_clock_ns();
	for (uint32_t lane = 0; ret_cosine && lane < LANES; lane++) {
		const uint16_t *first = kvr_segment_row_first(&bench->view, lane);
		const uint16_t *token = kvr_segment_row_token(&bench->view, lane);
		int64_t labels[TOKENS];

		for (uint32_t c = 0; c < bench->view.cluster_count[lane]; c++) {
			for (uint32_t row = first[c]; row < first[c + 1]; row++)
				labels[token[row]] = c;
		}
		sum += cosine(bench, lane, labels);
	}
	if (ret_cosine)
		*ret_cosine = sum / LANES;
	return (double)(end - begin);
}

/* The same with FAISS. */
static double faiss(struct bench *bench, int inner_product, double *ret_cosine)
{
	const uint32_t dim = bench->geometry.key_dim;
	const uint32_t clusters = bench->view.cluster_max;
	float *centroids = bench_lane_need((size_t)clusters * dim * sizeof(float));
	int64_t labels[TOKENS];
	uint64_t spent = 0;
	double sum = 0.0;

	for (uint32_t lane = 0; lane < LANES; lane++) {
		const float *units = bench->units + (size_t)lane * TOKENS * dim;
		uint64_t begin;

		for (uint32_t c = 0; c < clusters; c++)
			memcpy(centroids + (size_t)c * dim,
				units + (size_t)((2 * c + 1) * TOKENS / (2 * clusters)) * dim,
				dim * sizeof(float));
		begin = kvr_clock_ns();
		seal_faiss(units, TOKENS, dim, clusters, bench->made[lane] - 1, inner_product,
			labels, centroids);
		spent += kvr_clock_ns() - begin;
		if (ret_cosine)
			sum += cosine(bench, lane, labels);
	}
	if (ret_cosine)
		*ret_cosine = sum / LANES;
	free(centroids);
	return (double)spent;
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

static void measure(uint32_t dim, enum kvr_isa isa, const char *name)
{
	static struct bench bench;
	double ns[3][ROUNDS], cosines[3], rate[3];
	int best;

	bench_init(&bench, dim);
	ours(&bench, isa, &cosines[0]);
	faiss(&bench, 1, &cosines[1]);
	faiss(&bench, 0, &cosines[2]);
	for (uint32_t round = 0; round < ROUNDS; round++) {
		ns[0][round] = ours(&bench, isa, NULL);
		ns[1][round] = faiss(&bench, 1, NULL);
		ns[2][round] = faiss(&bench, 0, NULL);
	}
	for (int i = 0; i < 3; i++)
		rate[i] = LANES * TOKENS / median(ns[i]) * 1e9;
	best = rate[1] > rate[2] ? 1 : 2;
	printf("{\"bench\":\"%s\",\"value\":%.0f,\"unit\":\"tokens/s\","
	       "\"reference\":\"faiss k-means by %s, one thread\",\"reference_value\":%.0f,"
	       "\"ratio\":%.2f,\"cosine\":%.5f,\"reference_cosine\":%.5f}\n",
		name, rate[0], best == 1 ? "inner product" : "Euclidean distance", rate[best],
		rate[0] / rate[best], cosines[0], cosines[best]);
	bench_fini(&bench);
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

int main(void)
{
	const enum kvr_isa isa = best_isa();

	measure(128, isa, "seal");
	measure(64, isa, "seal_dim64");
	return 0;
}

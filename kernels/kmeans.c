/* SPDX-License-Identifier: Apache-2.0 */
/* kmeans.c: groups the keys of one lane of one segment by direction, and writes the lane's summary.
 *
 * It does not move rows (PACK does) and does not know instruction sets (kmeans_*.c do).
 *
 *   C keys, evenly ──► units ──► assign ──► no label changed, or 10 iterations made? ──yes──► end
 *     spread             ▲         │                    │ no
 *                        └─────────┼─ mean of raw keys ◄┘
 *                                  ▼
 *   end: empty clusters removed ─► STORE ORDER ─► row_first, row_token ─► means of keys and values
 *
 * STORE ORDER. Clusters that one query wants are often similar to each other. Stored side by side
 * they are one longer run of memory, and later one longer read of a disk. The order is a greedy
 * chain: it starts with the cluster least like the mean of all units (an end of the cloud) and goes
 * on to the nearest cluster left, by cosine; ties to the lower number. It costs C * C * Dk / 2
 * products, less than a hundredth of the k-means before it, and depends on nothing but the keys.
 *
 * Invariants (S1 to S4 of segment.h are established here):
 *   K1  A run depends on the lane's rows and the instruction set alone; one thread does all of it.
 *   K2  Every finite key ends in a cluster, and every mean is finite, whatever the magnitudes: where
 *       floats overflow, the slow path in double takes over.
 *   K3  What the summary holds behind the last cluster is zero (means) or token_count (row_first).
 *
 * Threads: none; scratch is the caller's.
 *
 * Source: ClusterKV, arXiv 2412.03213, section 3.2. Ours: the start (the paper draws keys at random),
 * the stop when no label changes, and STORE ORDER. */
#include <math.h>
#include <string.h>

#include "base/assert.h"
#include "kernels/cpu.h"
#include "kernels/kmeans.h"
#include "kernels/mean.h"

#define BF16_MAX 0x7f7fu

/* One run: what it reads, and its arrays in scratch. */
struct run {
	const struct kvr_kmeans_ops *ops;
	struct kvr_kmeans_rows keys; /* sinks left out */
	struct kvr_kmeans_rows values;
	size_t cluster_count;
	float *panels;
	float *units;       /* [C][key stride] centroids of length 1 */
	float *sums;        /* [C][stride of keys or values]; work memory of an assignment */
	uint16_t *labels;   /* [T] */
	uint16_t *previous; /* [T] labels one assignment ago */
	uint16_t *left;     /* [C] while ordering: clusters not in the chain yet */
	uint16_t *number;   /* [C] a cluster's number in STORE ORDER */
	uint32_t *sizes;    /* [C] */
};

/* Cuts `*at` bytes further into scratch; with base NULL it only adds up. */
static void *carve(uint8_t *base, size_t *at, size_t bytes)
{
	uint8_t *place = base ? base + *at : NULL;

	*at += (bytes + 63) & ~(size_t)63;
	return place;
}

/* Lays a run's arrays out in scratch and returns their bytes. */
static size_t layout(struct run *run, uint8_t *base, size_t tokens, size_t clusters,
	size_t key_stride, size_t value_stride)
{
	const size_t padded = tokens + KVR_KMEANS_PANEL_MAX; /* loops write whole panels */
	const size_t sum_stride = key_stride > value_stride ? key_stride : value_stride;
	size_t at = 0;

	run->keys.row = carve(base, &at, tokens * sizeof(*run->keys.row));
	run->values.row = carve(base, &at, tokens * sizeof(*run->values.row));
	run->panels = carve(base, &at, padded * key_stride * sizeof(float));
	run->units = carve(base, &at, clusters * key_stride * sizeof(float));
	run->sums = carve(base, &at, KVR_KMEANS_WORK(clusters) * sum_stride * sizeof(float));
	run->labels = carve(base, &at, padded * sizeof(*run->labels));
	run->previous = carve(base, &at, padded * sizeof(*run->previous));
	run->left = carve(base, &at, clusters * sizeof(*run->left));
	run->number = carve(base, &at, clusters * sizeof(*run->number));
	run->sizes = carve(base, &at, (clusters + 1) * sizeof(*run->sizes));
	return at;
}

size_t kvr_cpu_cluster_scratch(void)
{
	struct run run;

	return layout(&run, NULL, KVR_SEGMENT_TOKENS_MAX, KVR_CLUSTERS_MAX,
		KVR_KMEANS_ROUND(KVR_DIM_MAX), KVR_KMEANS_ROUND(KVR_DIM_MAX));
}

const struct kvr_kmeans_ops *kvr_kmeans_ops_of(enum kvr_isa isa)
{
	switch (isa) {
#if defined(__x86_64__)
	case KVR_ISA_AVX512:
		return kvr_kmeans_tiles_usable() ? &kvr_kmeans_tiles : &kvr_kmeans_avx512;
	case KVR_ISA_AVX2: return &kvr_kmeans_avx2;
#endif
	default: return &kvr_kmeans_plain;
	}
}

void kvr_kmeans_unit_exactly(float *vector, size_t count)
{
	double square = 0.0;

	for (size_t i = 0; i < count; i++) /* K2: no float's square leaves the range of double */
		square += (double)vector[i] * (double)vector[i];
	for (size_t i = 0; square > 0.0 && i < count; i++)
		vector[i] = (float)((double)vector[i] / sqrt(square));
}

/* The mean of a cluster's rows where the sum of floats overflowed. */
static void mean_exactly(float *mean, const struct kvr_kmeans_rows *rows, const uint16_t *labels,
	size_t cluster, size_t size)
{
	double sum[KVR_DIM_MAX] = {0};
	float wide[KVR_DIM_MAX];

	for (size_t t = 0; t < rows->count; t++) {
		if (labels[t] != cluster)
			continue;
		kvr_floats_of(wide, rows->row[t], rows->dtype, rows->dim);
		for (size_t i = 0; i < rows->dim; i++)
			sum[i] += (double)wide[i];
	}
	for (size_t i = 0; i < rows->dim; i++)
		mean[i] = (float)(sum[i] / (double)size);
}

static void count_sizes(struct run *run)
{
	memset(run->sizes, 0, run->cluster_count * sizeof(*run->sizes));
	for (size_t t = 0; t < run->keys.count; t++)
		run->sizes[run->labels[t]]++;
}

/* Units from the keys of each cluster; an empty one keeps the unit it has. */
static void update(struct run *run)
{
	const size_t stride = run->keys.stride;

	count_sizes(run);
	memset(run->sums, 0, run->cluster_count * stride * sizeof(float));
	run->ops->add(run->sums, &run->keys, run->labels);
	for (size_t c = 0; c < run->cluster_count; c++) {
		float *sum = run->sums + c * stride;

		if (run->sizes[c] == 0)
			continue;
		if (!run->ops->unit(sum, stride)) { /* K2 */
			mean_exactly(sum, &run->keys, run->labels, c, run->sizes[c]);
			kvr_kmeans_unit_exactly(sum, stride);
		}
		memcpy(run->units + c * stride, sum, stride * sizeof(float));
	}
}

/* The iterations; returns the number of assignments. */
static uint32_t iterate(struct run *run)
{
	const struct kvr_kmeans_rows *keys = &run->keys;
	const size_t clusters = run->cluster_count;
	const size_t label_bytes = keys->count * sizeof(*run->labels);
	uint32_t made = 0;

	run->ops->pack(run->panels, keys);
	for (size_t c = 0; c < clusters; c++) {
		const size_t middle = (2 * c + 1) * keys->count / (2 * clusters);
		float *unit = run->units + c * keys->stride;

		memset(unit, 0, keys->stride * sizeof(float));
		kvr_floats_of(unit, keys->row[middle], keys->dtype, keys->dim);
		if (!run->ops->unit(unit, keys->stride))
			kvr_kmeans_unit_exactly(unit, keys->stride);
	}
	for (;;) {
		uint16_t *swap = run->previous;

		run->previous = run->labels;
		run->labels = swap;
		run->ops->assign(run->labels, run->panels, keys, run->units, clusters, run->sums);
		made++;
		if (made == KVR_KMEANS_ITERATIONS + 1)
			break;
		if (made > 1 && memcmp(run->labels, run->previous, label_bytes) == 0)
			break;
		update(run);
	}
	count_sizes(run);
	return made;
}

/* Removes empty clusters: closes the ranks of units and sizes and renames the labels. */
static void remove_empty(struct run *run)
{
	const size_t stride = run->keys.stride;
	size_t kept = 0;

	for (size_t c = 0; c < run->cluster_count; c++) {
		if (run->sizes[c] == 0)
			continue;
		run->number[c] = (uint16_t)kept;
		run->sizes[kept] = run->sizes[c];
		if (kept != c)
			memcpy(run->units + kept * stride, run->units + c * stride,
				stride * sizeof(float));
		kept++;
	}
	for (size_t t = 0; t < run->keys.count; t++)
		run->labels[t] = run->number[run->labels[t]];
	run->cluster_count = kept;
}

/* The index into `left` of the cluster whose product with `vector` is the largest; with sign -1, the
 * smallest. */
static size_t nearest(const struct run *run, size_t left_count, const float *vector, float sign)
{
	const size_t stride = run->keys.stride;
	size_t at = 0;
	float best = -INFINITY;

	for (size_t i = 0; i < left_count; i++) {
		const float *unit = run->units + (size_t)run->left[i] * stride;
		const float product = sign * run->ops->dot(unit, vector, stride);

		if (product > best || (product == best && run->left[i] < run->left[at])) {
			best = product;
			at = i;
		}
	}
	return at;
}

/* Renames the clusters by STORE ORDER. */
static void order(struct run *run)
{
	const size_t stride = run->keys.stride;
	const size_t clusters = run->cluster_count;
	const float *vector = run->sums; /* first the sum of all units, then the chain's end */

	memset(run->sums, 0, stride * sizeof(float));
	for (size_t c = 0; c < clusters; c++) {
		for (size_t i = 0; i < stride; i++)
			run->sums[i] += run->units[c * stride + i];
		run->left[c] = (uint16_t)c;
	}
	for (uint32_t made = 0; made < clusters; made++) {
		const size_t left_count = clusters - made;
		const size_t at = nearest(run, left_count, vector, made == 0 ? -1.0f : 1.0f);
		const uint16_t c = run->left[at];

		run->number[c] = (uint16_t)made;
		run->left[at] = run->left[left_count - 1];
		vector = run->units + c * stride;
	}
	for (size_t t = 0; t < run->keys.count; t++)
		run->labels[t] = run->number[run->labels[t]];
	count_sizes(run);
}

/* Writes row_first, row_token and cluster_count from labels and sizes (S1, S2, S3). */
static void write_rows(const struct run *run, struct kvr_segment_view *view, uint32_t lane)
{
	uint16_t *first = kvr_segment_row_first(view, lane);
	uint16_t *token = kvr_segment_row_token(view, lane);
	uint32_t *next = run->sizes; /* sizes become each cluster's next row */
	size_t row = 0;

	for (size_t c = 0; c < run->cluster_count; c++) {
		const size_t size = next[c];

		KVR_ASSERT(size >= 1); /* S3 */
		first[c] = (uint16_t)row;
		next[c] = (uint32_t)row;
		row += size;
	}
	KVR_ASSERT(row == run->keys.count);
	for (size_t t = 0; t < run->keys.count; t++)
		token[next[run->labels[t]]++] = (uint16_t)(view->sink_count + t);
	for (size_t t = 0; t < view->sink_count; t++)
		token[row + t] = (uint16_t)t;
	first[run->cluster_count] = (uint16_t)row;
	for (size_t c = run->cluster_count + 1; c < view->cluster_max + 2; c++)
		first[c] = (uint16_t)view->token_count; /* S1, K3 */
	view->cluster_count[lane] = (uint16_t)run->cluster_count;
}

/* To bf16, a finite number to a finite one (K2). */
static uint16_t bf16_finite(float value)
{
	const uint16_t bf16 = kvr_bf16_of_float(value);

	return (bf16 & 0x7fffu) > BF16_MAX ? (uint16_t)((bf16 & 0x8000u) | BF16_MAX) : bf16;
}

static void add_rows(const struct run *run, const struct kvr_kmeans_rows *rows)
{
	memset(run->sums, 0, run->cluster_count * rows->stride * sizeof(float));
	run->ops->add(run->sums, rows, run->labels);
}

/* What a cluster's sum is to be multiplied with to be its mean: 1 where the sum cannot be trusted and has been
 * replaced by the mean. */
static float factor_of(const struct run *run, const struct kvr_kmeans_rows *rows,
	const uint16_t *first, size_t cluster)
{
	const size_t size = (size_t)first[cluster + 1] - first[cluster];
	float *sum = run->sums + cluster * rows->stride;

	if (run->ops->dot(sum, sum, rows->stride) <= KVR_KMEANS_SQUARE_MAX)
		return 1.0f / (float)size;
	mean_exactly(sum, rows, run->labels, cluster, size); /* K2 */
	return 1.0f;
}

static void write_value_means(
	const struct run *run, const struct kvr_segment_view *view, uint32_t lane)
{
	const struct kvr_kmeans_rows *rows = &run->values;
	const uint16_t *first = kvr_segment_row_first(view, lane);
	uint16_t *to = kvr_segment_value_mean(view, lane);

	add_rows(run, rows);
	for (size_t c = 0; c < run->cluster_count; c++, to += rows->dim) {
		const float factor = factor_of(run, rows, first, c);
		const float *sum = run->sums + c * rows->stride;

		if (factor < 1.0f) {
			run->ops->narrow(to, sum, factor, rows->dim);
			continue;
		}
		for (size_t i = 0; i < rows->dim; i++)
			to[i] = bf16_finite(sum[i]);
	}
	memset(to, 0, (view->cluster_max - run->cluster_count) * rows->dim * sizeof(*to)); /* K3 */
}

/* In two planes, and which of them tell the clusters apart (S7). */
static void write_key_means(
	const struct run *run, const struct kvr_segment_view *view, uint32_t lane)
{
	const struct kvr_kmeans_rows *rows = &run->keys;
	const uint16_t *first = kvr_segment_row_first(view, lane);
	const size_t dim = rows->dim, none = (view->cluster_max - run->cluster_count) * dim;
	int8_t *high = kvr_segment_key_high(view, lane), *low = kvr_segment_key_low(view, lane);
	float *step = kvr_segment_key_step(view, lane);
	double left_out = 0.0;

	add_rows(run, rows);
	for (size_t c = 0; c < run->cluster_count; c++) {
		float *mean = run->sums + c * rows->stride;
		const float factor = factor_of(run, rows, first, c);

		for (size_t i = 0; i < dim; i++)
			mean[i] *= factor;
		left_out += kvr_mean_write(mean, dim, high + c * dim, low + c * dim, &step[c]);
	}
	memset(high + run->cluster_count * dim, 0, none); /* K3 */
	memset(low + run->cluster_count * dim, 0, none);
	memset(step + run->cluster_count, 0,
		(view->cluster_max - run->cluster_count) * sizeof(*step));
	view->key_planes[lane] =
		kvr_mean_planes(run->sums, run->cluster_count, dim, rows->stride, left_out);
}

/* The variances of one cluster where sums of floats overflow or underflow. (K2) */
static void write_spread_exactly(const struct run *run, const uint16_t *token, size_t count,
	size_t sinks, const float *mean, uint8_t *spread, float *ret_step)
{
	const struct kvr_kmeans_rows *rows = &run->keys;
	double variance[KVR_DIM_MAX] = {0};
	float wide[KVR_DIM_MAX];

	for (size_t r = 0; r < count; r++) {
		kvr_floats_of(wide, rows->row[token[r] - sinks], rows->dtype, rows->dim);
		for (size_t i = 0; i < rows->dim; i++) {
			const double apart = (double)wide[i] - (double)mean[i];

			variance[i] += apart * apart / (double)count;
		}
	}
	kvr_mean_write_spread(variance, rows->dim, spread, ret_step);
}

/* How far the keys of each cluster lie from its mean, which stands in `sums`: as kvr_mean_write_spread. */
static void write_key_spreads(
	const struct run *run, const struct kvr_segment_view *view, uint32_t lane)
{
	const uint16_t *first = kvr_segment_row_first(view, lane);
	const uint16_t *token = kvr_segment_row_token(view, lane);
	const size_t dim = run->keys.dim, none = view->cluster_max - run->cluster_count;
	uint8_t *spread = kvr_segment_key_spread(view, lane);
	float *step = kvr_segment_spread_step(view, lane);
	_Alignas(64) float squares[KVR_KMEANS_ROUND(KVR_DIM_MAX)];

	for (size_t c = 0; c < run->cluster_count; c++) {
		const float *mean = run->sums + c * run->keys.stride;
		const size_t count = (size_t)first[c + 1] - first[c];
		const float largest = run->ops->deviate(
			squares, &run->keys, token + first[c], count, view->sink_count, mean);

		if (largest < KVR_KMEANS_SQUARE_MIN || largest > KVR_KMEANS_SQUARE_MAX) {
			write_spread_exactly(run, token + first[c], count, view->sink_count, mean,
				spread + c * dim, &step[c]);
			continue;
		}
		run->ops->narrow8(spread + c * dim, squares, UINT8_MAX / largest, dim);
		step[c] = largest / (UINT8_MAX * (float)count);
	}
	memset(spread + run->cluster_count * dim, 0, none * dim); /* K3 */
	memset(step + run->cluster_count, 0, none * sizeof(*step));
}

static void run_init(struct run *run, const struct kvr_cluster_item *item, enum kvr_isa isa,
	struct kvr_span scratch)
{
	const struct kvr_segment_view *view = item->segment;
	const struct kvr_geometry *geometry = view->geometry;
	const uint32_t count = view->token_count - view->sink_count;
	const size_t key_stride = KVR_KMEANS_ROUND(geometry->key_dim);
	const size_t value_stride = KVR_KMEANS_ROUND(geometry->value_dim);
	size_t bytes;

	*run = (struct run){
		.ops = kvr_kmeans_ops_of(isa),
		.keys = {NULL, count, geometry->key_dim, key_stride, geometry->dtype},
		.values = {NULL, count, geometry->value_dim, value_stride, geometry->dtype},
		.cluster_count = view->cluster_max,
	};
	KVR_ASSERT((uintptr_t)scratch.data % 64 == 0);
	bytes = layout(run, scratch.data, count, view->cluster_max, key_stride, value_stride);
	KVR_ASSERT(bytes <= scratch.bytes);
	for (uint32_t t = 0; t < count; t++) {
		run->keys.row[t] = kvr_tail_key(item->tail, item->lane, view->sink_count + t);
		run->values.row[t] = kvr_tail_value(item->tail, item->lane, view->sink_count + t);
	}
}

uint32_t kvr_kmeans_cluster(
	struct kvr_cluster_item *item, enum kvr_isa isa, struct kvr_span scratch)
{
	struct kvr_segment_view *view = item->segment;
	const uint32_t lane = item->lane;
	uint32_t made = 0;
	struct run run;

	KVR_ASSERT(lane < kvr_geometry_lanes(view->geometry));
	KVR_ASSERT(view->cluster_max <= KVR_CLUSTERS_MAX);
	run_init(&run, item, isa, scratch);
	if (kvr_geometry_is_dense(view->geometry, lane)) { /* S4 */
		for (size_t t = 0; t < run.keys.count; t++)
			run.labels[t] = (uint16_t)(t / view->geometry->cluster_tokens);
		count_sizes(&run);
	} else if (run.keys.count > 0) {
		made = iterate(&run);
		remove_empty(&run);
		order(&run);
	}
	write_rows(&run, view, lane);
	write_key_means(&run, view, lane);
	write_key_spreads(&run, view, lane);
	write_value_means(&run, view, lane);
	return made;
}

int kvr_cpu_cluster(struct kvr_cluster_item *item, enum kvr_isa isa, struct kvr_span scratch)
{
	kvr_kmeans_cluster(item, isa, scratch);
	return 0;
}

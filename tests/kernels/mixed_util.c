/* SPDX-License-Identifier: Apache-2.0 */
/* mixed_util.c: see mixed_util.h.
 *
 * A query has 15 bits below its largest element where it meets means (kernels/device.h), so the oracle rounds it
 * the same way; then what a device computes in floats is off by their rounding alone. */
#include "tests/kernels/mixed_util.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#define QUERY_STEPS 16319.0 /* 15 bits, as two signed parts of 8 */
#define LOGIT_MAX   1e38    /* products and logits are held within */

/* One query head: its elements, and in steps as scores see it. */
struct head {
	double exact[KVR_DIM_MAX], steps[KVR_DIM_MAX];
	double step; /* of the rounding */
	bool finite;
};

static void read_head(const struct kvr_recall_item *item, uint32_t index, struct head *ret_head)
{
	const uint32_t dim = item->geometry->key_dim;
	double largest = 0.0;

	ret_head->finite = true;
	for (uint32_t i = 0; i < dim; i++) {
		const double x = oracle_get(item->query, item->query_dtype, index * dim + i);

		ret_head->exact[i] = x;
		ret_head->finite = ret_head->finite && isfinite(x);
		largest = fmax(largest, fabs(x));
	}
	ret_head->step = largest / QUERY_STEPS;
	for (uint32_t i = 0; i < dim; i++) {
		if (largest < 1e-30 || !ret_head->finite)
			ret_head->exact[i] = ret_head->steps[i] = 0.0;
		else /* in floats: which way a half goes is theirs to say */
			ret_head->steps[i] = (double)rintf(
				(float)ret_head->exact[i] * ((float)QUERY_STEPS / (float)largest));
	}
}

/* NaN to the bottom. */
static double hold(double x)
{
	return fmin(fmax(x, -LOGIT_MAX), LOGIT_MAX);
}

static double logit_of(const struct kvr_recall_item *item, const struct head *head,
	const struct kvr_segment_view *view, uint32_t cluster)
{
	/* As a float: it may be infinite. */
	const double scale = (double)(item->scale * (float)head->step);
	double dot = 0.0;

	for (uint32_t i = 0; i < item->geometry->key_dim; i++)
		dot += head->steps[i] *
		       oracle_scored_mean(view, item->lane, cluster, i, item->rank);
	return hold(hold(dot) * scale);
}

/* log(n cosh sigma), and sigma itself for the tolerance. */
static double weight_of(const struct kvr_recall_item *item, const struct head *head,
	const struct kvr_segment_view *view, uint32_t cluster, uint32_t rows, double *ret_sigma)
{
	const uint32_t dim = item->geometry->key_dim;
	const uint8_t *spread = kvr_segment_key_spread(view, item->lane) + cluster * dim;
	const double step = (double)kvr_segment_spread_step(view, item->lane)[cluster];
	double sum = 0.0, sigma;

	for (uint32_t i = 0; i < dim && !item->first_order; i++)
		sum += head->exact[i] * head->exact[i] * (step * spread[i]);
	sigma = fmin(fabs((double)item->scale) * sqrt(sum), LOGIT_MAX);
	*ret_sigma = sigma;
	return log(rows) + (sigma < 20 ? log(cosh(sigma)) : sigma - log(2.0));
}

/* One head's partial attention against what the item has. */
static void check_head(const struct kvr_recall_item *item, const uint32_t *left, uint32_t index)
{
	static double logit[MIXED_CLUSTERS_MAX];
	const uint32_t dim = item->geometry->value_dim, lane = item->lane;
	const float *out = item->fold_out + (size_t)index * dim;
	const double lse = (double)item->fold_lse[index];
	double most = -(double)INFINITY, magnitude = 0.0, sum = 0.0, off, sigma;
	double mean[KVR_DIM_MAX] = {0}, largest[KVR_DIM_MAX] = {0};
	struct head head;
	uint32_t at = 0, some = 0;

	read_head(item, index, &head);
	for (uint32_t s = 0; s < item->segment_count; s++)
		for (uint32_t c = 0; c < item->segments[s]->cluster_count[lane]; c++, at++) {
			if (left[at] == 0)
				continue;
			logit[at] = logit_of(item, &head, item->segments[s], c);
			magnitude = fmax(magnitude, fabs(logit[at]));
			logit[at] += weight_of(item, &head, item->segments[s], c, left[at], &sigma);
			magnitude = fmax(magnitude, sigma);
			most = fmax(most, logit[at]);
			some++;
		}
	assert_true(at <= MIXED_CLUSTERS_MAX);
	if (some == 0 || !head.finite) {
		assert_true(lse == -(double)INFINITY);
		for (uint32_t i = 0; i < dim; i++)
			assert_true(out[i] == 0.0f);
		return;
	}
	at = 0;
	for (uint32_t s = 0; s < item->segment_count; s++)
		for (uint32_t c = 0; c < item->segments[s]->cluster_count[lane]; c++, at++) {
			const uint16_t *value =
				kvr_segment_value_mean(item->segments[s], lane) + c * dim;
			const double part = left[at] > 0 ? exp(logit[at] - most) : 0.0;

			sum += part;
			for (uint32_t i = 0; left[at] > 0 && i < dim; i++) {
				mean[i] += part * oracle_bf16(value[i]);
				largest[i] = fmax(largest[i], fabs(oracle_bf16(value[i])));
			}
		}
	off = 2e-5 + 1e-6 * magnitude; /* of a logit, as floats go */
	assert_true(fabs(lse - (most + log(sum))) <= off);
	/* Where logits are so large that rounding decides, any mean of the values is right. */
	for (uint32_t i = 0; i < dim; i++)
		assert_true(off < 0.1 ? fabs((double)out[i] - mean[i] / sum) <= 4 * off * largest[i]
				      : fabs((double)out[i]) <= largest[i] * (1 + 1e-5));
}

void mixed_check_fold(const struct kvr_recall_item *item, const uint32_t *left)
{
	for (uint32_t h = 0; h < item->query_count; h++)
		check_head(item, left, h);
}

/* Whether a row's element is the nearest of its dtype to x; a saturated one is near enough. */
static bool is_rounded(double got, double x, enum kvr_dtype dtype)
{
	static const double unit[] = {0, 0x1p-24, 0x1p-11, 0x1p-8};
	static const double least[] = {0, 0x1p-149, 0x1p-25, 0x1p-134};

	if (dtype == KVR_DTYPE_F16 && fabs(x) > 65504.0)
		return fabs(got) == 65504.0;
	/* The mean itself is a float, twice rounded. */
	return fabs(got - x) <= fabs(x) * (unit[dtype] + 0x1p-22) + least[dtype];
}

static bool is_centroid(const struct kvr_recall_item *item, uint32_t row,
	const struct kvr_segment_view *view, uint32_t cluster)
{
	const struct kvr_geometry *g = item->geometry;
	const uint8_t *key = item->keys + row * kvr_geometry_key_bytes(g);
	const uint8_t *value = item->values + row * kvr_geometry_value_bytes(g);
	const uint16_t *mean = kvr_segment_value_mean(view, item->lane) + cluster * g->value_dim;

	for (uint32_t i = 0; i < g->key_dim; i++)
		if (!is_rounded(oracle_get(key, g->dtype, i),
			    oracle_mean(view, item->lane, cluster, i, 2), g->dtype))
			return false;
	for (uint32_t i = 0; i < g->value_dim; i++)
		if (!is_rounded(oracle_get(value, g->dtype, i), oracle_bf16(mean[i]), g->dtype))
			return false;
	return true;
}

static void check_weights(const struct kvr_recall_item *item, uint32_t row,
	const struct kvr_segment_view *view, uint32_t cluster, uint32_t rows)
{
	struct head head;
	double sigma;
	float weight;

	for (uint32_t h = 0; h < item->query_count; h++) {
		double expected;

		read_head(item, h, &head);
		expected = weight_of(item, &head, view, cluster, rows, &sigma);
		memcpy(&weight, item->weights + (size_t)h * item->row_capacity + row,
			sizeof(weight));
		assert_true(fabs((double)weight - expected) <= 1e-5 + 2e-6 * sigma);
	}
}

void mixed_check_centroids(
	const struct kvr_recall_item *item, uint32_t *left, const double *score, double slack)
{
	uint32_t row = item->row_count - item->centroid_count, at = 0, candidates = 0;
	double worst = (double)INFINITY, best = -(double)INFINITY;

	for (uint32_t s = 0; s < item->segment_count; s++) {
		const struct kvr_segment_view *view = item->segments[s];

		for (uint32_t c = 0; c < view->cluster_count[item->lane]; c++, at++) {
			int32_t position;

			if (left[at] == 0)
				continue;
			candidates++;
			if (row == item->row_count || !is_centroid(item, row, view, c)) {
				best = fmax(best, score[at]);
				continue;
			}
			memcpy(&position, &item->positions[row], sizeof(position));
			assert_int_equal(position, -1);
			check_weights(item, row, view, c, left[at]);
			worst = fmin(worst, score[at]);
			left[at] = 0;
			row++;
		}
	}
	assert_int_equal(row, item->row_count);
	assert_int_equal(item->centroid_count,
		candidates < item->centroid_max ? candidates : item->centroid_max);
	assert_true(worst >= best - slack);
}

uint64_t mixed_hash(const struct kvr_recall_item *item)
{
	const size_t counts[2] = {
		(size_t)item->query_count * item->geometry->value_dim, item->query_count};
	const float *const parts[2] = {item->fold_out, item->fold_lse};
	uint64_t hash = 0xcbf29ce484222325u;

	for (int part = 0; part < 2; part++)
		for (size_t i = 0; i < counts[part]; i++) {
			uint32_t bits;

			memcpy(&bits, parts[part] + i, sizeof(bits));
			hash = (hash ^ bits) * 0x100000001b3u;
		}
	return hash;
}

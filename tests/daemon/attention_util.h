/* SPDX-License-Identifier: Apache-2.0 */
/* attention_util.h: attention in double, over the content of harness_util.h and over rows that a recall has staged. */
#ifndef KVR_TESTS_DAEMON_ATTENTION_H
#define KVR_TESTS_DAEMON_ATTENTION_H

#include "tests/daemon/harness_util.h"

#define ATTENTION_DIM_MAX 64u

/* A sum of weighted values in the making: of one query head. */
struct attention {
	double most, sum,
		out[ATTENTION_DIM_MAX]; /* out / sum is the output; most + log(sum) the lse */
};

void attention_start(struct attention *attention);

/* Adds one row of the model's type: logit scale q . key + weight, scale 1 / sqrt(Dk). */
void attention_add(struct attention *attention, const struct kvr_model_config *config,
	const float *query, const void *key, const void *value, double weight);

/* Adds a partial output. */
void attention_merge(struct attention *attention, uint32_t dim, const float *out, double lse);

double attention_lse(const struct attention *attention);

/* |a - b| of the outputs; and the same over |b|. */
double attention_apart(const struct attention *a, const struct attention *b, uint32_t dim);
double attention_distance(const struct attention *a, const struct attention *b, uint32_t dim);

/* Adds the first `count` tokens of `ids`, in one lane. */
void attention_add_tokens(struct attention *attention, const struct kvr_model_config *config,
	const uint32_t *ids, uint32_t count, uint32_t layer, uint32_t head, const float *query);

/* Adds the rows `first` .. `first` + `count` - 1 of one head of an item, with the weights of query head `query_head` of
 * `group` where weights are per query head (group > 1), else with the head's. */
void attention_add_rows(struct attention *attention, const struct kvr_model_config *config,
	const struct kvr_recall_item *item, uint32_t capacity, uint32_t head, uint32_t first,
	uint32_t count, uint32_t weights_at, const float *query);

/* Element i of a row of the model's type. */
double attention_element(const struct kvr_model_config *config, const void *row, uint32_t i);

/* A query [H][Dk] that depends on `seed`. */
void attention_query(const struct kvr_model_config *config, uint32_t seed, float *ret_query);

#endif

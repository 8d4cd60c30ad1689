/* SPDX-License-Identifier: Apache-2.0 */
/* attention_util.c: see attention_util.h. A sum in the making is kept relative to its largest logit. */
#include "tests/daemon/attention_util.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

void attention_start(struct attention *attention)
{
	*attention = (struct attention){.most = -INFINITY};
}

double attention_element(const struct kvr_model_config *config, const void *row, uint32_t i)
{
	uint32_t bits = 0;
	float value;

	assert_true(config->type == KVR_BF16 || config->type == KVR_F32);
	if (config->type == KVR_BF16) {
		memcpy((uint8_t *)&bits + 2, (const uint8_t *)row + i * 2, 2);
		memcpy(&value, &bits, sizeof(value));
	} else {
		memcpy(&value, (const uint8_t *)row + i * 4, sizeof(value));
	}
	return (double)value;
}

/* Makes `logit` count among the largest. */
static void raise_to(struct attention *attention, double logit)
{
	double factor;

	if (logit <= attention->most)
		return;
	factor = exp(attention->most - logit);
	attention->most = logit;
	attention->sum *= factor;
	for (uint32_t i = 0; i < ATTENTION_DIM_MAX; i++)
		attention->out[i] *= factor;
}

void attention_add(struct attention *attention, const struct kvr_model_config *config,
	const float *query, const void *key, const void *value, double weight)
{
	double logit = 0, share;

	assert_true(config->value_dim <= ATTENTION_DIM_MAX);
	for (uint32_t i = 0; i < config->key_dim; i++)
		logit += (double)query[i] * attention_element(config, key, i);
	logit = logit / sqrt(config->key_dim) + weight;
	raise_to(attention, logit);
	share = exp(logit - attention->most);
	attention->sum += share;
	for (uint32_t i = 0; i < config->value_dim; i++)
		attention->out[i] += share * attention_element(config, value, i);
}

void attention_merge(struct attention *attention, uint32_t dim, const float *out, double lse)
{
	double share;

	if (isinf(lse) && lse < 0)
		return;
	raise_to(attention, lse);
	share = exp(lse - attention->most);
	attention->sum += share;
	for (uint32_t i = 0; i < dim; i++)
		attention->out[i] += share * (double)out[i];
}

double attention_lse(const struct attention *attention)
{
	return attention->most + log(attention->sum);
}

double attention_apart(const struct attention *a, const struct attention *b, uint32_t dim)
{
	double apart = 0;

	for (uint32_t i = 0; i < dim; i++)
		apart += pow(a->out[i] / a->sum - b->out[i] / b->sum, 2);
	return sqrt(apart);
}

double attention_distance(const struct attention *a, const struct attention *b, uint32_t dim)
{
	const struct attention zero = {.sum = 1};

	return attention_apart(a, b, dim) / attention_apart(b, &zero, dim);
}

void attention_add_tokens(struct attention *attention, const struct kvr_model_config *config,
	const uint32_t *ids, uint32_t count, uint32_t layer, uint32_t head, const float *query)
{
	uint8_t key[ATTENTION_DIM_MAX * 4], value[ATTENTION_DIM_MAX * 4];

	for (uint32_t i = 0; i < count; i++) {
		harness_row(config, ids[i], i, layer, head, false, key);
		harness_row(config, ids[i], i, layer, head, true, value);
		attention_add(attention, config, query, key, value, 0);
	}
}

void attention_add_rows(struct attention *attention, const struct kvr_model_config *config,
	const struct kvr_recall_item *item, uint32_t capacity, uint32_t head, uint32_t first,
	uint32_t count, uint32_t weights_at, const float *query)
{
	for (uint32_t r = first; r < first + count; r++) {
		const size_t row = (size_t)head * capacity + r;

		attention_add(attention, config, query,
			(const uint8_t *)item->keys + row * harness_row_bytes(config, false),
			(const uint8_t *)item->values + row * harness_row_bytes(config, true),
			item->weights ? (double)item->weights[weights_at * capacity + r] : 0);
	}
}

void attention_query(const struct kvr_model_config *config, uint32_t seed, float *ret_query)
{
	uint32_t state = seed * 2654435761u + 1;

	for (uint32_t i = 0; i < config->query_heads * config->key_dim; i++) {
		state = state * 1664525u + 1013904223u;
		ret_query[i] = (float)(state >> 8) / (1u << 23) - 1.0f;
	}
}

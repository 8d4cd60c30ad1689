/* SPDX-License-Identifier: Apache-2.0 */
/* cache_full.c: the full cache.
 *
 * Rows lie per layer and kv head in token order. One token attends over them as they lie; a batch
 * repacks keys and values as panels (math.h) first, and attention is two matrix products. */
#include "examples/tinylm/cache.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "examples/tinylm/attend.h"

struct full {
	struct tinylm_cache cache;
	const struct tinylm_model *model;
	const struct tinylm_math *math;
	uint32_t capacity; /* a multiple of TINYLM_PANEL */
	uint32_t batch;
	uint16_t *keys;                   /* [L][K][capacity][D] */
	uint16_t *values;                 /* [L][K][capacity][D] */
	float *key_panels, *value_panels; /* of one lane: capacity * D each */
	float *scores;                    /* [batch, or H / K][capacity] */
};

static struct full *full_of(struct tinylm_cache *cache)
{
	return (struct full *)(void *)cache;
}

static size_t row_at(const struct full *full, uint32_t layer, uint32_t head, uint32_t token)
{
	const size_t lane = (size_t)layer * full->model->kv_heads + head;

	return (lane * full->capacity + token) * full->model->head_dim;
}

static int full_begin(struct tinylm_cache *cache, const struct tinylm_pass *pass)
{
	const struct full *full = full_of(cache);

	if (pass->count > full->batch || pass->first > full->capacity ||
		pass->count > full->capacity - pass->first)
		return -ENOBUFS;
	return 0;
}

static int full_end(struct tinylm_cache *cache, const struct tinylm_pass *pass)
{
	(void)cache;
	(void)pass;
	return 0;
}

/* Keys and values of one lane as panels; tokens beyond `tokens` up to the panel's edge are zero. */
static void panels_fill(struct full *full, uint32_t layer, uint32_t head, uint32_t tokens)
{
	const uint32_t dim = full->model->head_dim;
	const uint32_t padded = tinylm_round_up(tokens);

	for (uint32_t t = 0; t < padded; t++) {
		const size_t row = row_at(full, layer, head, t);
		float *key = full->key_panels + (size_t)(t / TINYLM_PANEL) * TINYLM_PANEL * dim +
			     t % TINYLM_PANEL;

		for (uint32_t d = 0; d < dim; d++) {
			float *value = full->value_panels +
				       ((size_t)(d / TINYLM_PANEL) * padded + t) * TINYLM_PANEL +
				       d % TINYLM_PANEL;

			key[(size_t)d * TINYLM_PANEL] =
				t < tokens ? tinylm_from_bf16(full->keys[row + d]) : 0;
			*value = t < tokens ? tinylm_from_bf16(full->values[row + d]) : 0;
		}
	}
}

static void attend_batch(struct full *full, const struct tinylm_layer_pass *layer, uint32_t head)
{
	const struct tinylm_pass *pass = layer->pass;
	const uint32_t dim = full->model->head_dim;
	const uint32_t group = full->model->query_heads / full->model->kv_heads;
	const uint32_t padded = tinylm_round_up(pass->first + pass->count);
	const size_t stride = (size_t)full->model->query_heads * dim;
	const float scale = 1 / sqrtf((float)dim);

	panels_fill(full, layer->layer, head, pass->first + pass->count);
	for (uint32_t g = 0; g < group; g++) {
		const size_t column = (size_t)(head * group + g) * dim;

		full->math->matmul(full->scores, padded, layer->queries + column, stride,
			full->key_panels, pass->count, padded, dim);
		for (uint32_t t = 0; t < pass->count; t++) {
			float *scores = full->scores + (size_t)t * padded;
			const uint32_t seen = pass->first + t + 1;

			for (uint32_t i = 0; i < seen; i++)
				scores[i] *= scale;
			tinylm_softmax(full->math, scores, seen);
			for (uint32_t i = tinylm_round_up(seen); i < padded; i++)
				scores[i] = 0;
		}
		full->math->matmul(layer->out + column, stride, full->scores, padded,
			full->value_panels, pass->count, dim, padded);
	}
}

static void attend_one(struct full *full, const struct tinylm_layer_pass *layer, uint32_t head)
{
	const uint32_t group = full->model->query_heads / full->model->kv_heads;
	const size_t column = (size_t)head * group * full->model->head_dim;
	const size_t row = row_at(full, layer->layer, head, 0);
	const struct tinylm_run run = {
		full->keys + row, full->values + row, NULL, layer->pass->first + 1};

	tinylm_attend(&(struct tinylm_attention){.math = full->math,
		.runs = &run,
		.run_count = 1,
		.queries = layer->queries + column,
		.group = group,
		.head_dim = full->model->head_dim,
		.scores = full->scores,
		.score_stride = full->capacity,
		.out = layer->out + column});
}

static int full_attend(struct tinylm_cache *cache, const struct tinylm_layer_pass *layer)
{
	struct full *full = full_of(cache);
	const struct tinylm_pass *pass = layer->pass;
	const uint32_t dim = full->model->head_dim;

	for (uint32_t head = 0; head < full->model->kv_heads; head++) {
		for (uint32_t t = 0; t < pass->count && !pass->held; t++) {
			const size_t from = ((size_t)t * full->model->kv_heads + head) * dim;
			const size_t to = row_at(full, layer->layer, head, pass->first + t);

			memcpy(full->keys + to, layer->keys + from, dim * sizeof(uint16_t));
			memcpy(full->values + to, layer->values + from, dim * sizeof(uint16_t));
		}
		if (pass->count > 1)
			attend_batch(full, layer, head);
		else
			attend_one(full, layer, head);
	}
	return 0;
}

void tinylm_full_rows(const struct tinylm_cache *cache, uint32_t layer, uint32_t first,
	uint32_t count, uint16_t *ret_keys, uint16_t *ret_values)
{
	const struct full *full = (const struct full *)(const void *)cache;
	const uint32_t dim = full->model->head_dim;

	for (uint32_t t = 0; t < count; t++)
		for (uint32_t head = 0; head < full->model->kv_heads; head++) {
			const size_t from = row_at(full, layer, head, first + t);

			memcpy(ret_keys, full->keys + from, dim * sizeof(uint16_t));
			memcpy(ret_values, full->values + from, dim * sizeof(uint16_t));
			ret_keys += dim;
			ret_values += dim;
		}
}

static struct tinylm_cache *full_close(struct tinylm_cache *cache)
{
	struct full *full = full_of(cache);

	free(full->keys);
	free(full->values);
	free(full->key_panels);
	free(full->value_panels);
	free(full->scores);
	free(full);
	return NULL;
}

static const struct tinylm_cache_ops full_ops = {full_begin, full_attend, full_end, full_close};

int tinylm_full_open(const struct tinylm_model *model, const struct tinylm_math *math,
	uint32_t capacity, uint32_t batch, struct tinylm_cache **ret_cache)
{
	struct full *full = calloc(1, sizeof(*full));
	const uint32_t group = model->query_heads / model->kv_heads;
	size_t lane;

	if (!full)
		return -ENOMEM;
	full->cache.ops = &full_ops;
	full->model = model;
	full->math = math;
	full->capacity = tinylm_round_up(capacity);
	full->batch = batch;
	lane = (size_t)full->capacity * model->head_dim;
	full->keys = calloc(model->layer_count * model->kv_heads * lane, sizeof(uint16_t));
	full->values = calloc(model->layer_count * model->kv_heads * lane, sizeof(uint16_t));
	full->key_panels = calloc(lane, sizeof(float));
	full->value_panels = calloc(lane, sizeof(float));
	full->scores =
		calloc((size_t)(batch > group ? batch : group) * full->capacity, sizeof(float));
	if (!full->keys || !full->values || !full->key_panels || !full->value_panels ||
		!full->scores) {
		full_close(&full->cache);
		return -ENOMEM;
	}
	*ret_cache = &full->cache;
	return 0;
}

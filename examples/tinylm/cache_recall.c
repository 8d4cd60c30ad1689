/* SPDX-License-Identifier: Apache-2.0 */
/* cache_recall.c: the recall cache.
 *
 *   position   0 .. 15        16 .. covered - 1              covered .. next - 1
 *              sinks, here    source: rows for the query     own tokens, here
 *
 * `covered` moves forward while the source seals; every reply says where it is. Own tokens are kept
 * until a reply has covered them.
 *
 * Invariants:
 *   C1  own_first <= covered of any reply still to come, so no token is missing between the two.
 *   C2  own tokens are own_first .. own_first + own_count - 1, without gaps.
 *
 * The queries of the last token are kept per layer: they are what speculation asks with. */
#include "examples/tinylm/cache.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "examples/tinylm/attend.h"

struct recall {
	struct tinylm_cache cache;
	struct tinylm_recall_config config;
	uint32_t own_first, own_count;
	uint16_t *own_keys, *own_values;     /* [L][K][own_capacity][D] */
	uint16_t *sink_keys, *sink_values;   /* [L][K][TINYLM_SINKS][D] */
	uint16_t *batch_keys, *batch_values; /* [L][batch][K][D]: what end appends */
	float *queries;                      /* [L][H][D] */
	float *scores;                       /* [H / K][score_stride] */
	uint32_t score_stride;
	bool started;                                       /* a speculative recall is under way */
	struct tinylm_recalled recalled[TINYLM_LAYERS_MAX]; /* the rows of the token's layers */
	struct tinylm_recall_cost cost;
};

static struct recall *recall_of(struct tinylm_cache *cache)
{
	return (struct recall *)(void *)cache;
}

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static uint32_t least(uint32_t a, uint32_t b)
{
	return a < b ? a : b;
}

/* Forgets own tokens before `covered`. C1 */
static void own_trim(struct recall *recall, uint32_t covered)
{
	const struct tinylm_model *model = recall->config.model;
	const size_t lane = (size_t)recall->config.own_capacity * model->head_dim;
	uint32_t gone, left;

	if (covered <= recall->own_first)
		return;
	gone = least(covered - recall->own_first, recall->own_count);
	left = recall->own_count - gone;
	for (uint32_t l = 0; l < model->layer_count * model->kv_heads; l++) {
		uint16_t *keys = recall->own_keys + l * lane;
		uint16_t *values = recall->own_values + l * lane;

		memmove(keys, keys + (size_t)gone * model->head_dim,
			(size_t)left * model->head_dim * sizeof(*keys));
		memmove(values, values + (size_t)gone * model->head_dim,
			(size_t)left * model->head_dim * sizeof(*values));
	}
	recall->own_first += gone;
	recall->own_count = left;
}

/* Room for `count` more. What the source has sealed is safe to forget only while no reply is under
 * way that was made before (C1). */
static int own_reserve(struct recall *recall, uint32_t first, uint32_t count)
{
	uint32_t covered = UINT32_MAX;

	if (first != recall->own_first + recall->own_count || count > recall->config.batch)
		return -ENOBUFS;
	if (recall->own_count + count <= recall->config.own_capacity)
		return 0;
	for (uint32_t l = 0; l < recall->config.model->layer_count; l++)
		covered = least(covered, recall->recalled[l].covered_tokens);
	if (!recall->started)
		covered = recall->config.source->ops->sealed_tokens(recall->config.source);
	own_trim(recall, covered);
	return recall->own_count + count <= recall->config.own_capacity ? 0 : -ENOBUFS;
}

static int recall_begin(struct tinylm_cache *cache, const struct tinylm_pass *pass)
{
	struct recall *recall = recall_of(cache);

	if (pass->held) /* Asking again is for the last token alone. */
		return pass->count == 1 && pass->first + 1 == recall->own_first + recall->own_count
			       ? 0
			       : -ENOBUFS;
	return own_reserve(recall, pass->first, pass->count);
}

/* Takes keys and values [count][K][D] of one layer; the tokens are counted as own at the end. */
static void own_keep(struct recall *recall, uint32_t layer, uint32_t first, uint32_t count,
	const uint16_t *keys, const uint16_t *values)
{
	const struct tinylm_model *model = recall->config.model;
	const size_t dim = model->head_dim;
	const size_t bytes = dim * sizeof(*keys);
	const size_t token_width = model->kv_heads * dim;
	const size_t batch = (size_t)layer * recall->config.batch * token_width;

	memcpy(recall->batch_keys + batch, keys, count * model->kv_heads * bytes);
	memcpy(recall->batch_values + batch, values, count * model->kv_heads * bytes);
	for (uint32_t t = 0; t < count; t++)
		for (uint32_t head = 0; head < model->kv_heads; head++) {
			const size_t lane = (size_t)layer * model->kv_heads + head;
			const size_t from = t * token_width + head * dim;
			const size_t own = lane * recall->config.own_capacity +
					   (first + t - recall->own_first);
			const size_t sink = lane * TINYLM_SINKS + first + t;

			memcpy(recall->own_keys + own * dim, keys + from, bytes);
			memcpy(recall->own_values + own * dim, values + from, bytes);
			if (first + t >= TINYLM_SINKS)
				continue;
			memcpy(recall->sink_keys + sink * dim, keys + from, bytes);
			memcpy(recall->sink_values + sink * dim, values + from, bytes);
		}
}

/* The rows for one token of one layer, in recall->recalled[layer]. */
static int rows_get(struct recall *recall, const struct tinylm_pass *pass, uint32_t layer)
{
	const struct tinylm_model *model = recall->config.model;
	const size_t width = (size_t)model->query_heads * model->head_dim;
	struct tinylm_source *source = recall->config.source;
	const uint64_t start = now_ns();
	int error = 0;

	if (!recall->started)
		error = source->ops->recall(source, layer, 1, recall->queries + layer * width,
			&recall->recalled[layer]);
	else if (layer == 0)
		error = source->ops->recall_finish(source, recall->recalled);
	if (recall->started && (error || layer + 1 == model->layer_count || pass->count > 1))
		recall->started = false;
	recall->cost.source_ns += now_ns() - start;
	return error;
}

/* Attention of one token, one kv head, over sinks, recalled rows and own tokens. */
static void attend_head(
	struct recall *recall, uint32_t layer, uint32_t head, uint32_t position, float *out)
{
	const struct tinylm_model *model = recall->config.model;
	const struct tinylm_recalled *rows = &recall->recalled[layer];
	const size_t dim = model->head_dim;
	const uint32_t group = model->query_heads / model->kv_heads;
	const size_t lane = (size_t)layer * model->kv_heads + head;
	const size_t column = (size_t)head * group * dim;
	const size_t staged = (size_t)head * rows->capacity;
	const uint32_t sinks = least(position + 1, TINYLM_SINKS);
	/* Own tokens start where the rows end, or after the sinks (R1). */
	const uint32_t own_from = rows->covered_tokens > sinks ? rows->covered_tokens : sinks;
	const uint32_t own_rows = position + 1 > own_from ? position + 1 - own_from : 0;
	const size_t own =
		lane * recall->config.own_capacity + (own_rows ? own_from - recall->own_first : 0);
	const struct tinylm_run runs[3] = {
		{recall->sink_keys + lane * TINYLM_SINKS * dim,
			recall->sink_values + lane * TINYLM_SINKS * dim, NULL, sinks},
		{rows->keys + staged * dim, rows->values + staged * dim, rows->weights + staged,
			rows->row_counts[head]},
		{recall->own_keys + own * dim, recall->own_values + own * dim, NULL, own_rows},
	};

	tinylm_attend(&(struct tinylm_attention){.math = recall->config.math,
		.runs = runs,
		.run_count = 3,
		.queries = recall->queries + (size_t)layer * model->query_heads * dim + column,
		.group = group,
		.head_dim = model->head_dim,
		.partial = rows->partial ? rows->partial + column : NULL,
		.partial_lse = rows->partial ? rows->partial_lse + (size_t)head * group : NULL,
		.scores = recall->scores,
		.score_stride = recall->score_stride,
		.out = out + column});
	recall->cost.staged_rows += rows->row_counts[head];
	recall->cost.own_rows += sinks + own_rows;
}

static int recall_attend(struct tinylm_cache *cache, const struct tinylm_layer_pass *layer)
{
	struct recall *recall = recall_of(cache);
	const struct tinylm_model *model = recall->config.model;
	const struct tinylm_pass *pass = layer->pass;
	const size_t width = (size_t)model->query_heads * model->head_dim;
	float *queries = recall->queries + layer->layer * width;

	if (!pass->held)
		own_keep(
			recall, layer->layer, pass->first, pass->count, layer->keys, layer->values);
	for (uint32_t t = 0; t < pass->count; t++) {
		int error;

		memcpy(queries, layer->queries + t * width, width * sizeof(float));
		error = rows_get(recall, pass, layer->layer);
		if (error)
			return error;
		/* R2, on the source's word: the tokens between would be nowhere. */
		if (recall->recalled[layer->layer].covered_tokens < recall->own_first)
			return -EPROTO;
		for (uint32_t head = 0; head < model->kv_heads; head++)
			attend_head(recall, layer->layer, head, pass->first + t,
				layer->out + t * width);
		recall->cost.missing_rows += recall->recalled[layer->layer].missing_rows;
	}
	return 0;
}

/* Appends what own_keep has put into the batch: [L][batch] is closed up to [L][count]. */
static int batch_append(
	struct recall *recall, const uint32_t *tokens, uint32_t first, uint32_t count)
{
	const struct tinylm_model *model = recall->config.model;
	const size_t token_width = (size_t)model->kv_heads * model->head_dim;
	struct tinylm_source *source = recall->config.source;

	for (uint32_t l = 1; l < model->layer_count; l++) {
		const size_t from = (size_t)l * recall->config.batch * token_width;
		const size_t to = (size_t)l * count * token_width;

		memmove(recall->batch_keys + to, recall->batch_keys + from,
			count * token_width * sizeof(*recall->batch_keys));
		memmove(recall->batch_values + to, recall->batch_values + from,
			count * token_width * sizeof(*recall->batch_values));
	}
	recall->own_count += count;
	return source->ops->append(
		source, tokens, first, count, recall->batch_keys, recall->batch_values);
}

static int recall_end(struct tinylm_cache *cache, const struct tinylm_pass *pass)
{
	struct recall *recall = recall_of(cache);
	struct tinylm_source *source = recall->config.source;
	const uint64_t start = now_ns();
	int error = 0;

	if (!pass->held)
		error = batch_append(recall, pass->tokens, pass->first, pass->count);
	if (!error && recall->config.speculative && pass->count == 1) {
		error = source->ops->recall_start(source, recall->queries);
		recall->started = !error;
	}
	recall->cost.token_count += pass->count;
	recall->cost.source_ns += now_ns() - start;
	return error;
}

struct tinylm_recall_cost tinylm_recall_cost(const struct tinylm_cache *cache)
{
	return ((const struct recall *)(const void *)cache)->cost;
}

static struct tinylm_cache *recall_close(struct tinylm_cache *cache)
{
	struct recall *recall = recall_of(cache);

	if (recall->started) /* The rows are not wanted any more, but the request is the source's. */
		recall->config.source->ops->recall_finish(recall->config.source, recall->recalled);
	free(recall->own_keys);
	free(recall->own_values);
	free(recall->sink_keys);
	free(recall->sink_values);
	free(recall->batch_keys);
	free(recall->batch_values);
	free(recall->queries);
	free(recall->scores);
	free(recall);
	return NULL;
}

/* [L][sinks][K][D] -> [L][K][TINYLM_SINKS][D]. */
static void sinks_take(
	struct recall *recall, uint32_t sinks, const uint16_t *keys, const uint16_t *values)
{
	const struct tinylm_model *model = recall->config.model;
	const size_t dim = model->head_dim;

	for (uint32_t l = 0; l < model->layer_count; l++)
		for (uint32_t t = 0; t < sinks; t++)
			for (uint32_t head = 0; head < model->kv_heads; head++) {
				const size_t lane = (size_t)l * model->kv_heads + head;
				const size_t to = (lane * TINYLM_SINKS + t) * dim;

				memcpy(recall->sink_keys + to, keys, dim * sizeof(*keys));
				memcpy(recall->sink_values + to, values, dim * sizeof(*values));
				keys += dim;
				values += dim;
			}
}

static const struct tinylm_cache_ops recall_ops = {
	recall_begin, recall_attend, recall_end, recall_close};

int tinylm_recall_open(const struct tinylm_recall_config *config, uint32_t held,
	const uint16_t *sink_keys, const uint16_t *sink_values, struct tinylm_cache **ret_cache)
{
	struct recall *recall = calloc(1, sizeof(*recall));
	const struct tinylm_model *model = config->model;
	const size_t lanes = (size_t)model->layer_count * model->kv_heads;
	const size_t own = lanes * config->own_capacity * model->head_dim;
	const size_t sinks = lanes * TINYLM_SINKS * model->head_dim;
	const size_t batch = lanes * config->batch * model->head_dim;
	const size_t width = (size_t)model->query_heads * model->head_dim;

	if (!recall)
		return -ENOMEM;
	recall->cache.ops = &recall_ops;
	recall->config = *config;
	recall->own_first = held;
	recall->score_stride =
		tinylm_round_up(TINYLM_SINKS + config->row_capacity + config->own_capacity + 1);
	recall->own_keys = calloc(own, sizeof(uint16_t));
	recall->own_values = calloc(own, sizeof(uint16_t));
	recall->sink_keys = calloc(sinks, sizeof(uint16_t));
	recall->sink_values = calloc(sinks, sizeof(uint16_t));
	recall->batch_keys = calloc(batch, sizeof(uint16_t));
	recall->batch_values = calloc(batch, sizeof(uint16_t));
	recall->queries = calloc(model->layer_count * width, sizeof(float));
	recall->scores =
		calloc((size_t)(model->query_heads / model->kv_heads) * recall->score_stride,
			sizeof(float));
	if (!recall->own_keys || !recall->own_values || !recall->sink_keys ||
		!recall->sink_values || !recall->batch_keys || !recall->batch_values ||
		!recall->queries || !recall->scores) {
		recall_close(&recall->cache);
		return -ENOMEM;
	}
	sinks_take(recall, least(held, TINYLM_SINKS), sink_keys, sink_values);
	*ret_cache = &recall->cache;
	return 0;
}

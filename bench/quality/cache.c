/* SPDX-License-Identifier: Apache-2.0 */
/* cache.c: see cache.h. */
#include "bench/quality/cache.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench/quality/memory.h"

static int begin(struct tinylm_cache *tinylm, const struct tinylm_pass *pass)
{
	struct quality_cache *cache = (struct quality_cache *)(void *)tinylm;
	const uint32_t first = cache->prompt->token_count;

	if (pass->count != 1 || pass->held || pass->first < first ||
		pass->first - first >= cache->tail.token_count)
		return -ENOBUFS;
	return 0;
}

static int attend(struct tinylm_cache *tinylm, const struct tinylm_layer_pass *layer)
{
	struct quality_cache *cache = (struct quality_cache *)(void *)tinylm;
	const struct kvr_geometry *geometry = &cache->prompt->geometry;
	const uint32_t group = kvr_geometry_group(geometry);
	const uint32_t index = layer->pass->first - cache->prompt->token_count;
	const size_t dim = geometry->key_dim, heads = geometry->query_heads;
	struct quality_partial tail;

	memcpy(cache->queries +
			((size_t)index * geometry->layer_count + layer->layer) * heads * dim,
		layer->queries, heads * dim * sizeof(float));
	for (uint32_t head = 0; head < geometry->kv_heads; head++) {
		const uint32_t lane = layer->layer * geometry->kv_heads + head;
		struct quality_question question = {cache->prompt, lane, group,
			1 / sqrtf((float)dim), layer->queries + head * group * dim, cache->logits};

		memcpy(quality_rows_key(&cache->tail, lane, index), layer->keys + head * dim,
			dim * sizeof(uint16_t));
		memcpy(quality_rows_value(&cache->tail, lane, index), layer->values + head * dim,
			dim * sizeof(uint16_t));
		if (cache->method->scored)
			quality_question_score(&question);
		cache->method->answer(cache->method, cache->worker, cache->store, &question,
			cache->budget_tokens, &cache->answer);
		quality_attend(cache->worker, &question, quality_rows_key(&cache->tail, lane, 0),
			quality_rows_value(&cache->tail, lane, 0), NULL, index + 1, &tail);
		quality_merge(&cache->answer.partial, &tail, group, (uint32_t)dim);
		for (uint32_t g = 0; g < group; g++)
			memcpy(layer->out + (head * group + g) * dim, cache->answer.partial.out[g],
				dim * sizeof(float));
	}
	return 0;
}

static int end(struct tinylm_cache *cache, const struct tinylm_pass *pass)
{
	(void)cache;
	(void)pass;
	return 0;
}

/* What is in a quality_cache is freed by quality_cache_close. */
static struct tinylm_cache *close_nothing(struct tinylm_cache *cache)
{
	(void)cache;
	return NULL;
}

static const struct tinylm_cache_ops ops = {begin, attend, end, close_nothing};

void quality_cache_open(struct quality_cache *cache, struct quality_worker *worker,
	const struct quality_method *method, const struct quality_store *store,
	const struct quality_rows *prompt, uint32_t tail_tokens, uint32_t budget_tokens)
{
	const struct kvr_geometry *geometry = &prompt->geometry;

	*cache = (struct quality_cache){.cache = {&ops},
		.worker = worker,
		.method = method,
		.store = store,
		.prompt = prompt,
		.budget_tokens = budget_tokens};
	quality_rows_open(&cache->tail, geometry, tail_tokens);
	cache->queries =
		quality_need((size_t)tail_tokens * geometry->layer_count * geometry->query_heads,
			geometry->key_dim * sizeof(float));
	cache->logits = quality_need(
		(size_t)kvr_geometry_group(geometry) * prompt->column_stride, sizeof(float));
	quality_answer_open(&cache->answer, prompt);
}

void quality_cache_close(struct quality_cache *cache)
{
	quality_rows_close(&cache->tail);
	free(cache->queries);
	free(cache->logits);
	quality_answer_close(&cache->answer);
}

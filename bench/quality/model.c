/* SPDX-License-Identifier: Apache-2.0 */
/* model.c: see model.h. */
#include "bench/quality/model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/quality/cache.h"
#include "bench/quality/memory.h"
#include "bench/quality/text.h"
#include "examples/tinylm/forward.h"
#include "examples/tinylm/tokenizer.h"

#define FOLDER "examples/tinylm/model/"
#define BATCH  128u /* tokens of a pass of the prefill */

struct quality_model {
	struct tinylm_model *tinylm;
	struct tinylm_tokenizer *tokenizer;
	const struct tinylm_math *math;
};

struct quality_model *quality_model_open(void)
{
	struct quality_model *model = quality_need(1, sizeof(*model));

	quality_must(tinylm_model_open(FOLDER "weights.tlm", &model->tinylm), FOLDER "weights.tlm");
	quality_must(
		tinylm_tokenizer_open(FOLDER "tokenizer.vocab", model->tinylm->vocab,
			model->tinylm->vocab_bytes, model->tinylm->vocab_crc, &model->tokenizer),
		FOLDER "tokenizer.vocab");
	model->math = tinylm_math_choose();
	return model;
}

struct quality_model *quality_model_close(struct quality_model *model)
{
	tinylm_tokenizer_close(model->tokenizer);
	tinylm_model_close(model->tinylm);
	free(model);
	return NULL;
}

/* <s> and the text: count tokens of it, and one more that is only there to be predicted. */
static uint32_t *read_tokens(const struct quality_model *model, const char *name, uint32_t count)
{
	size_t bytes;
	char *text = quality_text_read(name, &bytes);
	uint32_t *tokens = quality_need(bytes + 1, sizeof(*tokens));
	int64_t encoded;

	tokens[0] = TINYLM_TOKEN_START;
	encoded = tinylm_encode(model->tokenizer, text, bytes, tokens + 1, bytes);
	quality_must((int)(encoded < 0 ? encoded : 0), "the tokenizer");
	if (encoded < count)
		quality_fail("%s has %lld tokens, %u are wanted", name, (long long)encoded, count);
	free(text);
	return tokens;
}

static struct kvr_geometry geometry_of(const struct tinylm_model *tinylm)
{
	return (struct kvr_geometry){.layer_count = tinylm->layer_count,
		.query_heads = tinylm->query_heads,
		.kv_heads = tinylm->kv_heads,
		.key_dim = tinylm->head_dim,
		.value_dim = tinylm->head_dim,
		.dtype = KVR_DTYPE_BF16,
		.segment_tokens = KVR_SEGMENT_TOKENS,
		.cluster_tokens = KVR_CLUSTER_TOKENS,
		.sink_tokens = QUALITY_SINKS};
}

/* Keys and values of the prompt, with full attention. */
static void prefill(
	const struct quality_model *model, const uint32_t *tokens, struct quality_rows *rows)
{
	const struct kvr_geometry *geometry = &rows->geometry;
	const size_t width = (size_t)geometry->kv_heads * geometry->key_dim;
	const uint32_t count = rows->token_count;
	uint16_t *keys = quality_need(count * width, sizeof(*keys));
	uint16_t *values = quality_need(count * width, sizeof(*values));
	struct tinylm_forward *forward;
	struct tinylm_cache *full;

	quality_must(tinylm_forward_open(model->tinylm, model->math, BATCH, &forward), "forward");
	quality_must(tinylm_full_open(model->tinylm, model->math, count, BATCH, &full), "a cache");
	quality_must(tinylm_forward_prefill(forward, full, tokens, 0, count, NULL), "prefill");
	for (uint32_t layer = 0; layer < geometry->layer_count; layer++) {
		tinylm_full_rows(full, layer, 0, count, keys, values);
		for (uint32_t i = 0; i < count * geometry->kv_heads; i++) {
			const uint32_t lane = layer * geometry->kv_heads + i % geometry->kv_heads;
			const uint32_t token = i / geometry->kv_heads;

			memcpy(quality_rows_key(rows, lane, token), keys + i * geometry->key_dim,
				kvr_geometry_key_bytes(geometry));
			memcpy(quality_rows_value(rows, lane, token),
				values + i * geometry->value_dim,
				kvr_geometry_value_bytes(geometry));
		}
	}
	tinylm_cache_close(full);
	tinylm_forward_close(forward);
	free(keys);
	free(values);
}

/* Steps through the tail; log probabilities behind each step go to `each`. */
static void step(const struct quality_model *model, const uint32_t *tokens,
	struct quality_cache *cache, void (*each)(void *context, uint32_t index, float *log_p),
	void *context)
{
	const uint32_t first = cache->prompt->token_count;
	float *logits = quality_need(model->tinylm->vocab, sizeof(float));
	struct tinylm_forward *forward;

	quality_must(tinylm_forward_open(model->tinylm, model->math, 1, &forward), "forward");
	for (uint32_t i = 0; i < cache->tail.token_count; i++) {
		const struct tinylm_pass pass = {tokens + first + i, first + i, 1, false};

		quality_must(
			tinylm_forward_run(forward, &cache->cache, &pass, logits, 1), "a step");
		tinylm_log_softmax(logits, model->tinylm->vocab);
		each(context, i, logits);
	}
	tinylm_forward_close(forward);
	free(logits);
}

static void keep_reference(void *context, uint32_t index, float *log_p)
{
	struct quality_input *input = context;

	memcpy(input->reference + (size_t)index * input->vocab, log_p,
		input->vocab * sizeof(float));
}

void quality_model_input(const struct quality_model *model, const char *text,
	uint32_t context_tokens, uint32_t tail_tokens, struct quality_worker *worker,
	struct quality_input *ret_input)
{
	const struct kvr_geometry geometry = geometry_of(model->tinylm);
	struct quality_input *input = ret_input;
	struct quality_cache cache;

	*input = (struct quality_input){.context_tokens = context_tokens,
		.tokens = read_tokens(model, text, context_tokens),
		.vocab = model->tinylm->vocab};
	snprintf(input->name, sizeof(input->name), "%s_%u", text, context_tokens);
	quality_rows_open(&input->prompt, &geometry, context_tokens - tail_tokens);
	prefill(model, input->tokens, &input->prompt);
	quality_rows_widen(&input->prompt);
	input->reference = quality_need((size_t)tail_tokens * input->vocab, sizeof(float));
	quality_cache_open(
		&cache, worker, quality_method_find("full"), NULL, &input->prompt, tail_tokens, 0);
	step(model, input->tokens, &cache, keep_reference, input);
	input->tail = cache.tail; /* moved, like the queries */
	input->queries = cache.queries;
	cache.tail = (struct quality_rows){0};
	cache.queries = NULL;
	quality_cache_close(&cache);
}

struct comparison {
	const struct quality_input *input;
	struct tinylm_quality *quality;
};

static void compare(void *context, uint32_t index, float *log_p)
{
	const struct comparison *comparison = context;
	const struct quality_input *input = comparison->input;

	tinylm_quality_add(comparison->quality, input->reference + (size_t)index * input->vocab,
		log_p, input->vocab, input->tokens[input->prompt.token_count + index + 1]);
}

void quality_model_steps(const struct quality_model *model, const struct quality_input *input,
	const struct quality_store *store, const struct quality_method *method,
	uint32_t budget_tokens, struct quality_worker *worker, struct tinylm_quality *ret_quality)
{
	struct comparison comparison = {input, ret_quality};
	struct quality_cache cache;

	*ret_quality = (struct tinylm_quality){0};
	quality_cache_open(&cache, worker, method, store, &input->prompt, input->tail.token_count,
		budget_tokens);
	step(model, input->tokens, &cache, compare, &comparison);
	quality_cache_close(&cache);
}

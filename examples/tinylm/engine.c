/* SPDX-License-Identifier: Apache-2.0 */
/* engine.c: see engine.h. */
#include "examples/tinylm/engine.h"

#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

uint64_t tinylm_now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

uint32_t tinylm_argmax(const float *x, uint32_t count)
{
	uint32_t best = 0;

	for (uint32_t i = 1; i < count; i++)
		if (x[i] > x[best])
			best = i;
	return best;
}

/* Reads the text and keeps token_count + 1 of its tokens: the last is only there to be predicted. */
static int text_read(struct tinylm_engine *engine)
{
	const uint32_t wanted = engine->options.token_count;
	uint8_t *text;
	size_t bytes;
	int64_t count;
	int error = tinylm_map(engine->options.text, &text, &bytes);

	if (error)
		return error;
	engine->tokens = calloc(bytes + 1, sizeof(*engine->tokens));
	if (engine->tokens) {
		engine->tokens[0] = TINYLM_TOKEN_START;
		count = tinylm_encode(
			engine->tokenizer, (const char *)text, bytes, engine->tokens + 1, bytes);
		error = count < 0 ? (int)count : count < wanted ? -ERANGE : 0;
	} else {
		error = -ENOMEM;
	}
	tinylm_unmap(text, bytes);
	return error;
}

int tinylm_engine_open(const struct tinylm_options *options, struct tinylm_engine *ret_engine)
{
	struct tinylm_engine engine = {.options = *options, .math = tinylm_math_choose()};
	char path[PATH_MAX];
	const char *what = path;
	int error;

	snprintf(path, sizeof(path), "%s/weights.tlm", options->model);
	error = tinylm_model_open(path, &engine.model);
	if (error)
		goto fail;
	snprintf(path, sizeof(path), "%s/tokenizer.vocab", options->model);
	error = tinylm_tokenizer_open(path, engine.model->vocab, engine.model->vocab_bytes,
		engine.model->vocab_crc, &engine.tokenizer);
	if (error)
		goto fail;
	what = "the forward pass";
	error = tinylm_forward_open(engine.model, engine.math, TINYLM_BATCH, &engine.forward);
	if (error)
		goto fail;
	engine.logits = calloc(engine.model->vocab, sizeof(float));
	error = engine.logits ? 0 : -ENOMEM;
	if (error)
		goto fail;
	what = options->text;
	error = options->text ? text_read(&engine) : 0;
	if (error)
		goto fail;
	*ret_engine = engine;
	return 0;
fail:
	fprintf(stderr, "tinylm: %s: %s\n", what,
		error == -ERANGE ? "too short: give a longer text or fewer --tokens"
				 : strerror(-error));
	tinylm_engine_close(&engine);
	return error;
}

void tinylm_engine_close(struct tinylm_engine *engine)
{
	tinylm_forward_close(engine->forward);
	tinylm_tokenizer_close(engine->tokenizer);
	tinylm_model_close(engine->model);
	free(engine->tokens);
	free(engine->logits);
	*engine = (struct tinylm_engine){0};
}

uint32_t tinylm_engine_budget(const struct tinylm_engine *engine, uint32_t percent)
{
	return engine->options.token_count * percent / 100;
}

uint32_t tinylm_engine_rows(const struct tinylm_engine *engine, uint32_t percent)
{
	const uint32_t tokens = engine->options.token_count + engine->options.generate_count;
	const uint32_t segment = engine->options.segment_tokens;
	const uint32_t merged = tokens / TINYLM_MERGED_DIVISOR + tokens / segment + 1;
	const uint32_t budget = tinylm_engine_budget(engine, percent);

	return merged + 2 * segment + TINYLM_BATCH > budget ? merged + 2 * segment + TINYLM_BATCH
							    : budget;
}

int tinylm_engine_connect(
	const struct tinylm_engine *engine, uint32_t percent, struct tinylm_store **ret_store)
{
	const struct tinylm_store_config config = {.socket = engine->options.socket,
		.model = engine->model,
		.segment_tokens = engine->options.segment_tokens,
		.row_capacity = tinylm_engine_rows(engine, percent),
		.batch = TINYLM_BATCH};
	const int error = tinylm_store_open(&config, ret_store);

	if (error)
		fprintf(stderr, "tinylm: cannot attach to %s: %s; is kvrecalld running?\n",
			engine->options.socket ? engine->options.socket : "kvrecalld",
			strerror(-error));
	return error;
}

int tinylm_engine_recall_open(const struct tinylm_engine *engine, struct tinylm_source *source,
	uint32_t held, uint32_t row_capacity, bool speculative, struct tinylm_cache **ret_cache)
{
	const struct tinylm_model *model = engine->model;
	const size_t width = (size_t)model->layer_count * model->kv_heads * model->head_dim;
	const uint32_t sinks = held < TINYLM_SINKS ? held : TINYLM_SINKS;
	/* The daemon seals S tokens while the next S arrive. */
	const struct tinylm_recall_config config = {.model = model,
		.math = engine->math,
		.source = source,
		.own_capacity = 2 * engine->options.segment_tokens + TINYLM_BATCH,
		.row_capacity = row_capacity,
		.batch = TINYLM_BATCH,
		.speculative = speculative};
	uint16_t *rows = calloc(2 * width * TINYLM_SINKS, sizeof(*rows));
	int error = rows ? 0 : -ENOMEM;

	if (!error && sinks)
		error = tinylm_remote_fetch(source, 0, sinks, rows, rows + width * sinks);
	if (!error)
		error = tinylm_recall_open(&config, held, rows, rows + width * sinks, ret_cache);
	free(rows);
	return error;
}

int tinylm_engine_generate(const struct tinylm_engine *engine, struct tinylm_cache *cache,
	uint32_t first, float *logits, uint32_t *ret_tokens, uint32_t count)
{
	int error = 0;

	for (uint32_t i = 0; !error && i < count; i++) {
		const struct tinylm_pass pass = {&ret_tokens[i], first + i, 1, false};

		ret_tokens[i] = tinylm_argmax(logits, engine->model->vocab);
		if (i + 1 < count)
			error = tinylm_forward_run(engine->forward, cache, &pass, logits, 1);
	}
	return error;
}

void tinylm_engine_print(const struct tinylm_engine *engine, const uint32_t *tokens, uint32_t count)
{
	char text[TINYLM_PIECE_BYTES];

	for (uint32_t i = 0; i < count; i++) {
		const size_t bytes = tinylm_decode(engine->tokenizer, tokens[i], text);

		for (size_t b = 0; b < bytes; b++)
			if (isspace((unsigned char)text[b]))
				putchar(' ');
			else
				putchar(isprint((unsigned char)text[b]) ? text[b] : '?');
	}
}

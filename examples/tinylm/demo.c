/* SPDX-License-Identifier: Apache-2.0 */
/* demo.c: what recall costs and what it gives, measured on a text.
 *
 *   reference   prefill the prompt, then step the rest one by one, with the full cache
 *   store       the prompt's keys and values into kvrecalld, sealed, and read back to compare
 *   runs        fork the sequence per budget and mode; the same steps, with the recall cache
 *   continue    the whole text stored; 60 tokens with either cache
 *   second      another process opens the same text
 *
 * Every step gets the text's own token, whatever was predicted: the distributions are comparable. */
#include "examples/tinylm/engine.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "examples/tinylm/figures.h"
#include "examples/tinylm/revive.h"
#include "examples/tinylm/second.h"

static const uint32_t percents[TINYLM_BUDGETS] = {5, 10, 20};

struct demo {
	struct tinylm_engine engine;
	struct tinylm_store *store;
	struct tinylm_cache *full;
	struct tinylm_source *source; /* the sequence of the text */
	float *reference;             /* [steps][V] log probabilities with full attention */
	uint64_t *step_ns;            /* [steps] */
	uint16_t *rows, *rows_back;   /* keys and values of one batch: [2][L][batch][K][D] */
	struct tinylm_figures figures;
};

/* Elements of the keys of `count` tokens, all layers. */
static size_t keys_count(const struct demo *demo, uint32_t count)
{
	const struct tinylm_model *model = demo->engine.model;

	return (size_t)count * model->layer_count * model->kv_heads * model->head_dim;
}

/* Steps through the rest of the text. `keep`: the distributions are the reference; else they are
 * compared with it. */
static int steps_run(struct demo *demo, struct tinylm_cache *cache, bool keep,
	struct tinylm_quality *quality, uint64_t *ret_step_ns)
{
	const struct tinylm_engine *engine = &demo->engine;
	const uint32_t vocab = engine->model->vocab;

	for (uint32_t i = 0; i < demo->figures.steps; i++) {
		const uint32_t at = demo->figures.prompt + i;
		const uint64_t start = tinylm_now_ns();
		float *reference = demo->reference + (size_t)i * vocab;
		int error = tinylm_forward_run(engine->forward, cache,
			&(struct tinylm_pass){&engine->tokens[at], at, 1, false}, engine->logits,
			1);

		if (error)
			return error;
		demo->step_ns[i] = tinylm_now_ns() - start;
		tinylm_log_softmax(engine->logits, vocab);
		if (keep)
			memcpy(reference, engine->logits, vocab * sizeof(*reference));
		tinylm_quality_add(
			quality, reference, engine->logits, vocab, engine->tokens[at + 1]);
	}
	*ret_step_ns = tinylm_median(demo->step_ns, demo->figures.steps);
	return 0;
}

static int reference_run(struct demo *demo)
{
	struct tinylm_figures *figures = &demo->figures;
	const uint64_t start = tinylm_now_ns();
	int error = tinylm_forward_prefill(
		demo->engine.forward, demo->full, demo->engine.tokens, 0, figures->prompt, NULL);

	figures->prefill_ns = tinylm_now_ns() - start;
	/* A step reads the keys and values of all tokens up to its own. */
	figures->full_step_bytes = (double)keys_count(demo, 1) * 2 * sizeof(uint16_t) *
				   (figures->prompt + (figures->steps + 1) / 2.0);
	return error ? error
		     : steps_run(demo, demo->full, true, &figures->full, &figures->full_step_ns);
}

/* The keys and values of a batch, from the full cache: [2][L][count][K][D]. */
static void rows_copy(struct demo *demo, uint32_t first, uint32_t count)
{
	const struct tinylm_model *model = demo->engine.model;
	const size_t layer = (size_t)count * model->kv_heads * model->head_dim;

	for (uint32_t l = 0; l < model->layer_count; l++)
		tinylm_full_rows(demo->full, l, first, count, demo->rows + l * layer,
			demo->rows + keys_count(demo, count) + l * layer);
}

/* Appends tokens first .. end - 1 and seals them. */
static int store_tokens(struct demo *demo, uint32_t first, uint32_t end, uint32_t *ret_sealed)
{
	struct tinylm_figures *figures = &demo->figures;
	uint64_t start = tinylm_now_ns();
	int error = 0;

	while (!error && first < end) {
		const uint32_t count = end - first < TINYLM_BATCH ? end - first : TINYLM_BATCH;

		rows_copy(demo, first, count);
		error = demo->source->ops->append(demo->source, demo->engine.tokens + first, first,
			count, demo->rows, demo->rows + keys_count(demo, count));
		first += count;
		figures->append_bytes += 2 * keys_count(demo, count) * sizeof(*demo->rows);
	}
	figures->append_ns += tinylm_now_ns() - start;
	start = tinylm_now_ns();
	if (!error)
		error = tinylm_remote_sync(demo->source, ret_sealed);
	figures->seal_ns += tinylm_now_ns() - start;
	return error;
}

/* Reads tokens 0 .. end - 1 back and compares every bit. */
static int read_back(struct demo *demo, uint32_t end)
{
	demo->figures.identical = true;
	for (uint32_t first = 0; first < end; first += TINYLM_BATCH) {
		const uint32_t count = end - first < TINYLM_BATCH ? end - first : TINYLM_BATCH;
		const size_t keys = keys_count(demo, count);
		const int error = tinylm_remote_fetch(
			demo->source, first, count, demo->rows_back, demo->rows_back + keys);

		if (error)
			return error;
		rows_copy(demo, first, count);
		if (memcmp(demo->rows, demo->rows_back, 2 * keys * sizeof(*demo->rows)) != 0)
			demo->figures.identical = false;
	}
	return 0;
}

/* One budget and form, on a fork of the prompt, so that every run starts from the same place. */
static int recall_run(struct demo *demo, struct tinylm_run_figures *run, uint32_t budget,
	enum tinylm_form form, bool ahead)
{
	struct tinylm_source *fork = NULL;
	struct tinylm_cache *cache = NULL;
	uint32_t held = 0;
	int error;

	tinylm_store_budget(demo->store, budget);
	tinylm_store_form(demo->store, form);
	error = tinylm_remote_fork(demo->source, &fork, &held);
	if (!error && held != demo->figures.prompt)
		error = -EPROTO;
	if (!error)
		error = tinylm_engine_recall_open(&demo->engine, fork, held,
			tinylm_engine_rows(&demo->engine, percents[TINYLM_BUDGETS - 1]), ahead,
			&cache);
	if (!error)
		error = steps_run(demo, cache, false, &run->quality, &run->step_ns);
	if (!error)
		run->cost = tinylm_recall_cost(cache);
	tinylm_cache_close(cache);
	tinylm_remote_close(fork, true);
	tinylm_store_form(demo->store, TINYLM_CLUSTERS);
	return error;
}

/* Every budget in every mode, and the merged set. */
static int recall_runs(struct demo *demo)
{
	struct tinylm_figures *figures = &demo->figures;
	int error = 0;

	for (uint32_t b = 0; !error && b < TINYLM_BUDGETS; b++)
		for (uint32_t m = 0; !error && m < TINYLM_MODES; m++)
			error = recall_run(demo, &figures->runs[b][m], figures->budgets[b],
				m == TINYLM_MODE_MIXED ? TINYLM_MIXED : TINYLM_CLUSTERS,
				m == TINYLM_MODE_AHEAD);
	return error ? error : recall_run(demo, &figures->merged, 0, TINYLM_MERGED, false);
}

/* The text goes on, once with either cache. Both start by asking for what follows the last token. */
static int continue_run(struct demo *demo)
{
	const struct tinylm_engine *engine = &demo->engine;
	struct tinylm_figures *figures = &demo->figures;
	const struct tinylm_pass last = {
		&engine->tokens[figures->context - 1], figures->context - 1, 1, true};
	struct tinylm_cache *cache = NULL;
	int error;

	tinylm_store_budget(demo->store, tinylm_engine_budget(engine, TINYLM_SECOND_PERCENT));
	error = tinylm_forward_run(engine->forward, demo->full, &last, engine->logits, 1);
	if (!error)
		error = tinylm_engine_generate(engine, demo->full, figures->context, engine->logits,
			figures->full_tokens, figures->generate_count);
	if (!error)
		error = tinylm_engine_recall_open(engine, demo->source, figures->context,
			tinylm_engine_rows(engine, percents[TINYLM_BUDGETS - 1]), false, &cache);
	if (!error)
		error = tinylm_forward_run(engine->forward, cache, &last, engine->logits, 1);
	if (!error)
		error = tinylm_engine_generate(engine, cache, figures->context, engine->logits,
			figures->recall_tokens, figures->generate_count);
	tinylm_cache_close(cache);
	while (figures->agreed < figures->generate_count &&
		figures->full_tokens[figures->agreed] == figures->recall_tokens[figures->agreed])
		figures->agreed++;
	return error;
}

/* The number after "name": in a JSON text; `after` is then behind it. -1: there is none. */
static int64_t number_after(const char *text, const char *name, char **ret_after)
{
	const char *at = strstr(text, name);
	const char *from = at ? at + strlen(name) : "";
	const unsigned long value = strtoul(from, ret_after, 10);

	return *ret_after == from || value > UINT32_MAX ? -1 : (int64_t)value;
}

/* Takes the second process's figures out of its JSON object. */
static int second_read(struct tinylm_figures *figures)
{
	char *at;
	const int64_t matched = number_after(figures->second, "\"matched_tokens\":", &at);
	const int64_t appended = number_after(figures->second, "\"appended_tokens\":", &at);
	int64_t token = number_after(figures->second, "\"tokens\":[", &at);

	if (matched < 0 || appended < 0 || token < 0)
		return -EPROTO;
	figures->second_matched = (uint32_t)matched;
	figures->second_appended = (uint32_t)appended;
	figures->second_same = true;
	for (uint32_t i = 0; i < figures->generate_count; i++) {
		if (token != figures->recall_tokens[i])
			figures->second_same = false;
		token = number_after(at, ",", &at);
	}
	return 0;
}

static int demo_run(struct demo *demo)
{
	struct tinylm_figures *figures = &demo->figures;
	int error = reference_run(demo);

	if (!error)
		error = tinylm_remote_open(demo->store, demo->engine.tokens, figures->prompt,
			&demo->source, &figures->matched);
	if (!error)
		error = store_tokens(demo, figures->matched, figures->prompt, &figures->sealed);
	if (!error && figures->sealed != figures->prompt)
		error = -EPROTO;
	if (!error)
		error = read_back(demo, figures->prompt);
	return error ? error : recall_runs(demo);
}

/* Writes aside what the daemon should still have after anything: the text's keys and values, and how it went on. */
static int keep(struct demo *demo, const char *path)
{
	struct tinylm_figures *figures = &demo->figures;
	const struct tinylm_kept kept = {figures->context, figures->generate_count, TINYLM_BATCH};
	FILE *file = fopen(path, "wb");
	int error = file ? tinylm_kept_begin(file, &kept, figures->recall_tokens) : -errno;

	for (uint32_t first = 0; !error && first < figures->context; first += TINYLM_BATCH) {
		const uint32_t left = figures->context - first;
		const uint32_t count = left < TINYLM_BATCH ? left : TINYLM_BATCH;
		const size_t elements = 2 * keys_count(demo, count);

		rows_copy(demo, first, count);
		if (fwrite(demo->rows, sizeof(*demo->rows), elements, file) != elements)
			error = -EIO;
	}
	if (file && fclose(file) != 0 && !error)
		error = -EIO;
	return error;
}

static int demo_finish(struct demo *demo, struct tinylm_second *second)
{
	struct tinylm_figures *figures = &demo->figures;
	const struct tinylm_figures prompt = *figures;
	uint32_t sealed;
	int error = store_tokens(demo, figures->prompt, figures->context, &sealed);

	/* The figures are those of the prompt; the rest of the text was stored beside them. */
	figures->append_ns = prompt.append_ns;
	figures->append_bytes = prompt.append_bytes;
	figures->seal_ns = prompt.seal_ns;
	if (!error && sealed != figures->context)
		error = -EPROTO;
	if (!error)
		error = continue_run(demo);
	if (!error && demo->engine.options.kept)
		error = keep(demo, demo->engine.options.kept);
	/* What was generated is nobody's prompt. */
	demo->source = tinylm_remote_close(demo->source, true);
	if (!error)
		error = tinylm_second_collect(second, figures->second, sizeof(figures->second));
	return error ? error : second_read(figures);
}

static int demo_open(struct demo *demo, const struct tinylm_options *options)
{
	struct tinylm_figures *figures = &demo->figures;
	const uint32_t largest = percents[TINYLM_BUDGETS - 1];
	int error = tinylm_engine_open(options, &demo->engine);

	if (error)
		return error;
	figures->context = options->token_count;
	figures->steps = options->step_count;
	figures->prompt = options->token_count - options->step_count;
	figures->generate_count = options->generate_count;
	figures->generate_percent = TINYLM_SECOND_PERCENT;
	for (uint32_t b = 0; b < TINYLM_BUDGETS; b++) {
		figures->percents[b] = percents[b];
		figures->budgets[b] = tinylm_engine_budget(&demo->engine, percents[b]);
	}
	demo->reference = calloc(
		(size_t)figures->steps * demo->engine.model->vocab, sizeof(*demo->reference));
	demo->step_ns = calloc(figures->steps, sizeof(*demo->step_ns));
	demo->rows = calloc(2 * keys_count(demo, TINYLM_BATCH), sizeof(*demo->rows));
	demo->rows_back = calloc(2 * keys_count(demo, TINYLM_BATCH), sizeof(*demo->rows_back));
	if (!demo->reference || !demo->step_ns || !demo->rows || !demo->rows_back)
		return -ENOMEM;
	error = tinylm_full_open(demo->engine.model, demo->engine.math,
		figures->context + figures->generate_count, TINYLM_BATCH, &demo->full);
	return error ? error : tinylm_engine_connect(&demo->engine, largest, &demo->store);
}

static void demo_close(struct demo *demo)
{
	demo->source = tinylm_remote_close(demo->source, true);
	demo->store = tinylm_store_close(demo->store);
	demo->full = tinylm_cache_close(demo->full);
	free(demo->reference);
	free(demo->step_ns);
	free(demo->rows);
	free(demo->rows_back);
	tinylm_engine_close(&demo->engine);
}

int tinylm_demo(const struct tinylm_options *options)
{
	static struct demo demo;
	struct tinylm_second second = {0, -1, -1};
	int error = tinylm_second_start(options, &second);

	if (!error)
		error = demo_open(&demo, options);
	if (!error)
		error = demo_run(&demo);
	if (!error)
		error = demo_finish(&demo, &second);
	if (!error && !options->json_only)
		tinylm_figures_print(&demo.engine, &demo.figures);
	if (!error)
		tinylm_figures_json(&demo.engine, &demo.figures);
	else
		fprintf(stderr, "tinylm demo: %s%s%s\n",
			demo.store ? tinylm_store_error(demo.store) : "",
			demo.store && tinylm_store_error(demo.store)[0] ? ": " : "",
			strerror(-error));
	tinylm_second_stop(&second);
	/* Wrong bytes are a failure, whatever the figures say. */
	if (!error && (!demo.figures.identical || !demo.figures.second_same ||
			      demo.figures.second_appended != 0))
		error = -EPROTO;
	demo_close(&demo);
	return error ? 1 : 0;
}

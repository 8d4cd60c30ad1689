/* SPDX-License-Identifier: Apache-2.0 */
/* selftest.c: checks the engine without a daemon.
 *
 *   tokenizer   ids and round trips of selftest_data.h, made with the sentencepiece library
 *   logits      of a short text against numpy's (reference.py), with every instruction set there is
 *   partial     attention over some rows and a partial output of the others, against attention over all
 *   recall      the recall cache over a source that recalls every row, against the full cache: the
 *               same distributions, exactly and ahead, while covered_tokens moves
 *   refusals    a truncated and a flipped weights file
 *
 * The engine and numpy sum in different orders, and now and then a key or value is rounded to the
 * other bf16 neighbour: hence tolerances. */
#include "examples/tinylm/engine.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "examples/tinylm/attend.h"
#include "examples/tinylm/quality.h"
#include "examples/tinylm/selftest_data.h"

#define COUNT(array)     (sizeof(array) / sizeof((array)[0]))
#define REFERENCE_TOKENS ((uint32_t)COUNT(reference_tokens))
#define LOGIT_TOLERANCE  0.02f /* logits are of magnitude 10 */
#define NLL_TOLERANCE    2e-4  /* nats */
#define KL_TOLERANCE     1e-5  /* nats, per position */
#define SEGMENT          64u   /* of the source that recalls everything */
#define PREFILL          100u  /* tokens in batches; the rest in steps */
#define SMALL_BATCH      16u
#define PARTIAL_ROWS     77u
#define PARTIAL_GROUP    3u
#define PARTIAL_DIM      48u
#define PARTIAL_STRIDE   96u   /* PARTIAL_ROWS and one, rounded up, and more */
#define PARTIAL_CLOSE    1e-5f /* outputs are of magnitude 1 */

static bool check(bool good, const char *what)
{
	printf("  %s  %s\n", good ? "ok    " : "FAILED", what);
	return good;
}

static bool tokenizer_test(const struct tinylm_engine *engine)
{
	bool good = true;

	for (size_t c = 0; c < COUNT(tokenizer_cases); c++) {
		const struct tinylm_case *test = &tokenizer_cases[c];
		uint32_t ids[COUNT(test->ids)];
		char text[COUNT(test->ids) * TINYLM_PIECE_BYTES];
		size_t bytes = 0;
		const int64_t count =
			tinylm_encode(engine->tokenizer, test->text, test->bytes, ids, COUNT(ids));

		good &= count == test->count &&
			memcmp(ids, test->ids, test->count * sizeof(ids[0])) == 0;
		for (int64_t i = 0; i < count; i++)
			bytes += tinylm_decode(engine->tokenizer, ids[i], text + bytes);
		/* U+2581 comes back as a space: the tokenizer cannot tell them apart. */
		if (!strstr(test->text, "\xe2\x96\x81"))
			good &= bytes == test->bytes && memcmp(text, test->text, bytes) == 0;
	}
	return check(good, "tokenizer: ids and texts as sentencepiece has them");
}

/* Logits of all reference tokens with the full cache, [tokens][V]. */
static int full_logits(
	const struct tinylm_engine *engine, const struct tinylm_math *math, float *ret_logits)
{
	struct tinylm_forward *forward = NULL;
	struct tinylm_cache *cache = NULL;
	int error = tinylm_forward_open(engine->model, math, TINYLM_BATCH, &forward);

	if (!error)
		error = tinylm_full_open(
			engine->model, math, REFERENCE_TOKENS, TINYLM_BATCH, &cache);
	for (uint32_t t = 0; !error && t < REFERENCE_TOKENS; t += TINYLM_BATCH) {
		const uint32_t left = REFERENCE_TOKENS - t;
		const uint32_t count = left < TINYLM_BATCH ? left : TINYLM_BATCH;
		const struct tinylm_pass pass = {reference_tokens + t, t, count, false};

		error = tinylm_forward_run(forward, cache, &pass,
			ret_logits + (size_t)t * engine->model->vocab, count);
	}
	tinylm_cache_close(cache);
	tinylm_forward_close(forward);
	return error;
}

static bool logits_test(
	const struct tinylm_engine *engine, const struct tinylm_math *math, float *logits)
{
	const uint32_t vocab = engine->model->vocab;
	char what[128];
	float worst = 0;
	double nll = 0;
	const int error = full_logits(engine, math, logits);

	for (size_t i = 0; i < COUNT(reference_logits); i++) {
		const struct tinylm_logit *logit = &reference_logits[i];
		const float value = logits[(size_t)logit->position * vocab + logit->id];

		worst = fmaxf(worst, fabsf(value - logit->value));
	}
	for (uint32_t t = 0; t < REFERENCE_TOKENS; t++) {
		tinylm_log_softmax(logits + (size_t)t * vocab, vocab);
		if (t + 1 < REFERENCE_TOKENS)
			nll -= (double)logits[(size_t)t * vocab + reference_tokens[t + 1]];
	}
	nll /= REFERENCE_TOKENS - 1;
	snprintf(what, sizeof(what), "%s: logits as numpy has them (off by %.5f; NLL %.5f, %.5f)",
		math->name, (double)worst, nll, reference_nll);
	return check(!error && worst < LOGIT_TOLERANCE && fabs(nll - reference_nll) < NLL_TOLERANCE,
		what);
}

/* ---- partial outputs -------------------------------------------------------------------------- */

struct partial_world {
	uint16_t keys[PARTIAL_ROWS * PARTIAL_DIM], values[PARTIAL_ROWS * PARTIAL_DIM];
	float weights[PARTIAL_ROWS];
	float queries[PARTIAL_GROUP * PARTIAL_DIM];
	float scores[PARTIAL_GROUP * PARTIAL_STRIDE];
	float all[PARTIAL_GROUP * PARTIAL_DIM];     /* attention over all rows */
	float partial[PARTIAL_GROUP * PARTIAL_DIM]; /* over the last ones */
	float lse[PARTIAL_GROUP];                   /* of these */
	float out[PARTIAL_GROUP * PARTIAL_DIM];     /* over the first ones, with `partial` */
};

/* Between -1 and 1, the same in every run. */
static float next_number(uint32_t *random)
{
	*random = *random * 1664525u + 1013904223u;
	return (float)(*random >> 8) / (1u << 23) - 1;
}

static void partial_fill(struct partial_world *world)
{
	uint32_t random = 6;

	for (uint32_t i = 0; i < PARTIAL_ROWS * PARTIAL_DIM; i++) {
		world->keys[i] = tinylm_to_bf16(next_number(&random));
		world->values[i] = tinylm_to_bf16(next_number(&random));
	}
	for (uint32_t r = 0; r < PARTIAL_ROWS; r++)
		world->weights[r] = 2 * next_number(&random);
	/* Large enough that some rows count much more than others. */
	for (uint32_t i = 0; i < PARTIAL_GROUP * PARTIAL_DIM; i++)
		world->queries[i] = 4 * next_number(&random);
}

/* Attention over the rows first .. end - 1, and over `partial` if `merge`. */
static void partial_attend(struct partial_world *world, const struct tinylm_math *math,
	uint32_t first, uint32_t end, bool merge, float *ret_out)
{
	const struct tinylm_run run = {world->keys + first * PARTIAL_DIM,
		world->values + first * PARTIAL_DIM, world->weights + first, end - first};
	const struct tinylm_attention attention = {.math = math,
		.runs = &run,
		.run_count = 1,
		.queries = world->queries,
		.group = PARTIAL_GROUP,
		.head_dim = PARTIAL_DIM,
		.partial = merge ? world->partial : NULL,
		.partial_lse = world->lse,
		.scores = world->scores,
		.score_stride = PARTIAL_STRIDE,
		.out = ret_out};

	tinylm_attend(&attention);
}

/* The log-sum-exp of the rows from `first` on, in double; -INFINITY for none. */
static float partial_lse(const struct partial_world *world, uint32_t group, uint32_t first)
{
	double sum = 0;

	for (uint32_t r = first; r < PARTIAL_ROWS; r++) {
		double logit = 0;

		for (uint32_t i = 0; i < PARTIAL_DIM; i++)
			logit += (double)world->queries[group * PARTIAL_DIM + i] *
				 (double)tinylm_from_bf16(world->keys[r * PARTIAL_DIM + i]);
		sum += exp(logit / sqrt(PARTIAL_DIM) + (double)world->weights[r]);
	}
	return (float)log(sum);
}

/* All rows here, none, and some: no matter how many, and which fill a panel. */
static bool partial_test(const struct tinylm_math *math)
{
	static const uint32_t splits[] = {0, 1, 15, 16, 45, 76, PARTIAL_ROWS};
	static struct partial_world world;
	char what[128];
	float worst = 0;

	partial_fill(&world);
	partial_attend(&world, math, 0, PARTIAL_ROWS, false, world.all);
	for (size_t s = 0; s < COUNT(splits); s++) {
		partial_attend(&world, math, splits[s], PARTIAL_ROWS, false, world.partial);
		for (uint32_t g = 0; g < PARTIAL_GROUP; g++)
			world.lse[g] = partial_lse(&world, g, splits[s]);
		partial_attend(&world, math, 0, splits[s], true, world.out);
		for (size_t i = 0; i < COUNT(world.out); i++) {
			const float off = fabsf(world.out[i] - world.all[i]);

			worst = off <= worst ? worst : off; /* also if it is no number */
		}
	}
	snprintf(what, sizeof(what), "%s: a partial output stands for its rows (off by %.1e)",
		math->name, (double)worst);
	return check(worst < PARTIAL_CLOSE, what);
}

/* ---- a source that recalls everything --------------------------------------------------------- */

/* Every row comes twice, each with half the weight, last tokens first: attention must not notice. */
struct whole {
	struct tinylm_source source;
	const struct tinylm_model *model;
	uint32_t token_count;
	uint16_t *keys, *values;         /* [L][K][REFERENCE_TOKENS][D] */
	uint16_t *row_keys, *row_values; /* [L][K][2 * REFERENCE_TOKENS][D] */
	float *weights;                  /* the same for every lane */
};

static int whole_append(struct tinylm_source *source, const uint32_t *tokens, uint32_t first,
	uint32_t count, const uint16_t *keys, const uint16_t *values)
{
	struct whole *whole = (struct whole *)(void *)source;
	const size_t dim = whole->model->head_dim;
	const uint32_t heads = whole->model->kv_heads;

	if (first != whole->token_count || tokens[0] != reference_tokens[first])
		return -ERANGE;
	for (uint32_t l = 0; l < whole->model->layer_count; l++)
		for (uint32_t t = 0; t < count; t++)
			for (uint32_t head = 0; head < heads; head++) {
				const size_t lane = (size_t)l * heads + head;
				const size_t to = (lane * REFERENCE_TOKENS + first + t) * dim;
				const size_t from = (((size_t)l * count + t) * heads + head) * dim;

				memcpy(whole->keys + to, keys + from, dim * sizeof(*keys));
				memcpy(whole->values + to, values + from, dim * sizeof(*values));
			}
	whole->token_count += count;
	return 0;
}

/* Sealing lags: the last full segment is covered only when another token has come. */
static uint32_t whole_covered(const struct tinylm_source *source)
{
	const struct whole *whole = (const struct whole *)(const void *)source;

	return whole->token_count ? (whole->token_count - 1) / SEGMENT * SEGMENT : 0;
}

static int whole_recall(struct tinylm_source *source, uint32_t first, uint32_t count,
	const float *queries, struct tinylm_recalled *ret_recalled)
{
	struct whole *whole = (struct whole *)(void *)source;
	const size_t dim = whole->model->head_dim;
	const uint32_t covered = whole_covered(source);
	const uint32_t rows = covered > TINYLM_SINKS ? 2 * (covered - TINYLM_SINKS) : 0;
	const size_t lane_rows = 2 * (size_t)REFERENCE_TOKENS;

	(void)queries;
	for (uint32_t i = 0; i < count; i++) {
		const size_t lane_first = (size_t)(first + i) * whole->model->kv_heads;

		ret_recalled[i] = (struct tinylm_recalled){
			.keys = whole->row_keys + lane_first * lane_rows * dim,
			.values = whole->row_values + lane_first * lane_rows * dim,
			.weights = whole->weights,
			.capacity = (uint32_t)lane_rows,
			.covered_tokens = covered};
		for (uint32_t head = 0; head < whole->model->kv_heads; head++) {
			const size_t lane = lane_first + head;

			ret_recalled[i].row_counts[head] = rows;
			for (uint32_t r = 0; r < rows; r++) {
				const size_t from =
					(lane * REFERENCE_TOKENS + covered - 1 - r / 2) * dim;
				const size_t to = (lane * lane_rows + r) * dim;

				memcpy(whole->row_keys + to, whole->keys + from, dim * 2);
				memcpy(whole->row_values + to, whole->values + from, dim * 2);
			}
		}
	}
	return 0;
}

/* What is recalled ahead is what was there when it was asked for; here: already gathered. */
static struct tinylm_recalled started[TINYLM_LAYERS_MAX];

static int whole_recall_start(struct tinylm_source *source, const float *queries)
{
	const struct whole *whole = (const struct whole *)(const void *)source;

	return whole_recall(source, 0, whole->model->layer_count, queries, started);
}

static int whole_recall_finish(struct tinylm_source *source, struct tinylm_recalled *ret_recalled)
{
	const struct whole *whole = (const struct whole *)(const void *)source;

	memcpy(ret_recalled, started, whole->model->layer_count * sizeof(*started));
	return 0;
}

static const struct tinylm_source_ops whole_ops = {
	whole_append, whole_recall, whole_recall_start, whole_recall_finish, whole_covered};

static void whole_close(struct whole *whole)
{
	free(whole->keys);
	free(whole->values);
	free(whole->row_keys);
	free(whole->row_values);
	free(whole->weights);
}

static int whole_open(const struct tinylm_model *model, struct whole *ret_whole)
{
	const size_t count =
		(size_t)model->layer_count * model->kv_heads * REFERENCE_TOKENS * model->head_dim;
	struct whole whole = {.source = {&whole_ops}, .model = model};

	whole.keys = calloc(count, sizeof(uint16_t));
	whole.values = calloc(count, sizeof(uint16_t));
	whole.row_keys = calloc(2 * count, sizeof(uint16_t));
	whole.row_values = calloc(2 * count, sizeof(uint16_t));
	/* Room for every lane, since the cache reads [K][capacity]. */
	whole.weights = calloc(2 * (size_t)model->kv_heads * REFERENCE_TOKENS, sizeof(float));
	if (!whole.keys || !whole.values || !whole.row_keys || !whole.row_values ||
		!whole.weights) {
		whole_close(&whole);
		return -ENOMEM;
	}
	for (uint32_t r = 0; r < 2 * model->kv_heads * REFERENCE_TOKENS; r++)
		whole.weights[r] = -0.69314718f; /* log 1/2 */
	*ret_whole = whole;
	return 0;
}

/* `reference` [tokens][V]: log probabilities of the full cache. */
static bool recall_test(
	const struct tinylm_engine *engine, bool speculative, const float *reference)
{
	const struct tinylm_model *model = engine->model;
	struct tinylm_forward *forward = NULL;
	struct tinylm_cache *cache = NULL;
	struct tinylm_quality quality = {0};
	struct whole whole = {0};
	double worst = 0;
	char what[128];
	int error = whole_open(model, &whole);

	if (!error)
		error = tinylm_forward_open(model, engine->math, SMALL_BATCH, &forward);
	if (!error)
		error = tinylm_recall_open(&(struct tinylm_recall_config){.model = model,
						   .math = engine->math,
						   .source = &whole.source,
						   .own_capacity = SEGMENT + SMALL_BATCH + 1,
						   .row_capacity = 2 * REFERENCE_TOKENS,
						   .batch = SMALL_BATCH,
						   .speculative = speculative},
			0, NULL, NULL, &cache);
	if (!error)
		error = tinylm_forward_prefill(forward, cache, reference_tokens, 0, PREFILL, NULL);
	for (uint32_t t = PREFILL; !error && t + 1 < REFERENCE_TOKENS; t++) {
		const double before = quality.kl;

		error = tinylm_forward_run(forward, cache,
			&(struct tinylm_pass){&reference_tokens[t], t, 1, false}, engine->logits,
			1);
		tinylm_log_softmax(engine->logits, model->vocab);
		tinylm_quality_add(&quality, reference + (size_t)t * model->vocab, engine->logits,
			model->vocab, reference_tokens[t + 1]);
		worst = fmax(worst, fabs(quality.kl - before));
	}
	snprintf(what, sizeof(what), "recall of every row, %s: as full attention (KL up to %.1e)",
		speculative ? "ahead" : "exact", worst);
	tinylm_cache_close(cache);
	tinylm_forward_close(forward);
	whole_close(&whole);
	return check(!error && worst < KL_TOLERANCE, what);
}

/* A copy of the weights with one bit flipped at `flip`, cut to `bytes`, must be refused. */
static bool refused(const uint8_t *data, size_t bytes, size_t flip)
{
	struct tinylm_model *model = NULL;
	char path[64];
	int error = -EBADMSG;
	const int fd = memfd_create("weights", MFD_CLOEXEC);
	const uint8_t flipped = data[flip] ^ 0x10;

	if (fd < 0)
		return false;
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	if (write(fd, data, bytes) == (ssize_t)bytes && pwrite(fd, &flipped, 1, (off_t)flip) == 1)
		error = tinylm_model_open(path, &model);
	close(fd);
	tinylm_model_close(model);
	return error == -EBADMSG;
}

static bool refusals_test(const char *folder)
{
	char path[4096];
	uint8_t *data;
	size_t bytes;
	bool good;

	snprintf(path, sizeof(path), "%s/weights.tlm", folder);
	if (tinylm_map(path, &data, &bytes) < 0)
		return check(false, "refusals: weights.tlm");
	/* Magic, version, a dimension, the size, a scale, the last weight; then truncations. */
	good = refused(data, bytes, 2) && refused(data, bytes, 8) && refused(data, bytes, 20) &&
	       refused(data, bytes, 57) && refused(data, bytes, 200) &&
	       refused(data, bytes, bytes - 1) && refused(data, bytes - 4, 3) &&
	       refused(data, 64, 3) && refused(data, 1, 0);
	tinylm_unmap(data, bytes);
	return check(good, "refusals: weights with a flipped bit, or truncated");
}

/* What depends on the instruction set. */
static bool math_test(
	const struct tinylm_engine *engine, const struct tinylm_math *math, float *logits)
{
	const bool good = logits_test(engine, math, logits);

	return partial_test(math) && good;
}

int tinylm_selftest(const struct tinylm_options *options)
{
	struct tinylm_options own = *options;
	struct tinylm_engine engine = {0};
	float *logits;
	bool good;

	own.text = NULL;
	if (tinylm_engine_open(&own, &engine) < 0)
		return 1;
	logits = calloc((size_t)REFERENCE_TOKENS * engine.model->vocab, sizeof(*logits));
	good = logits != NULL;
	if (logits) {
		good &= tokenizer_test(&engine);
		good &= math_test(&engine, &tinylm_math_plain, logits);
#if defined(__x86_64__)
		if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
			good &= math_test(&engine, &tinylm_math_avx2, logits);
#endif
		good &= math_test(&engine, engine.math, logits);
		good &= recall_test(&engine, false, logits);
		good &= recall_test(&engine, true, logits);
		good &= refusals_test(own.model);
	}
	free(logits);
	tinylm_engine_close(&engine);
	return good ? 0 : 1;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* engine.h: what one engine process has: model, tokenizer, forward pass and a text as tokens.
 *
 * Threads: an engine belongs to one thread. */
#ifndef TINYLM_ENGINE_H
#define TINYLM_ENGINE_H

#include <stdint.h>

#include "examples/tinylm/cache.h"
#include "examples/tinylm/forward.h"
#include "examples/tinylm/remote.h"
#include "examples/tinylm/tokenizer.h"

#define TINYLM_BATCH          128u  /* tokens of a prefill pass, of an append and of a fetch */
#define TINYLM_SEGMENT_TOKENS 1024u /* S, where nothing else is asked for */
#define TINYLM_GENERATE_MAX   1024u /* tokens of a continuation */

struct tinylm_options {
	const char *socket;      /* NULL: the library's default */
	const char *model;       /* folder of weights.tlm and tokenizer.vocab */
	const char *text;        /* file */
	const char *kept;        /* file: demo writes it, revive reads it; NULL: none */
	uint32_t token_count;    /* of the text: the context */
	uint32_t step_count;     /* of these, measured one by one at the end */
	uint32_t generate_count; /* tokens of the continuation */
	uint32_t segment_tokens;
	bool json_only;
	bool wait; /* second: start when told so on standard input */
};

struct tinylm_engine {
	struct tinylm_options options;
	const struct tinylm_math *math;
	struct tinylm_model *model;
	struct tinylm_tokenizer *tokenizer;
	struct tinylm_forward *forward;
	uint32_t *tokens; /* <s> and the text; token_count of the options, and one more */
	float *logits;    /* [V] scratch */
};

/* Opens everything in `options`, which is copied; complains on standard error. Returns 0 or -errno. */
int tinylm_engine_open(const struct tinylm_options *options, struct tinylm_engine *ret_engine);
void tinylm_engine_close(struct tinylm_engine *engine);

/* Rows per kv head that `percent` of the context is. */
uint32_t tinylm_engine_budget(const struct tinylm_engine *engine, uint32_t percent);

/* Rows per kv head that a store connected for `percent` has room for: that, or the merged set of the context with the tokens
 * that are not merged yet: of up to two segments and a few. */
uint32_t tinylm_engine_rows(const struct tinylm_engine *engine, uint32_t percent);

/* Connects a store with room for these rows; complains on standard error. */
int tinylm_engine_connect(
	const struct tinylm_engine *engine, uint32_t percent, struct tinylm_store **ret_store);

/* A recall cache on a source that holds `held` tokens, all sealed. Reads the sinks back from the
 * daemon: the engine need not be the one that appended them. */
int tinylm_engine_recall_open(const struct tinylm_engine *engine, struct tinylm_source *source,
	uint32_t held, uint32_t row_capacity, bool speculative, struct tinylm_cache **ret_cache);

/* Continues greedily after `first` tokens that the cache holds, the last of which has `logits` [V]
 * behind it, which are overwritten. */
int tinylm_engine_generate(const struct tinylm_engine *engine, struct tinylm_cache *cache,
	uint32_t first, float *logits, uint32_t *ret_tokens, uint32_t count);

/* Index of the largest of x [count]. */
uint32_t tinylm_argmax(const float *x, uint32_t count);

uint64_t tinylm_now_ns(void);

/* Prints the text of tokens on one line: line ends become spaces, broken characters "?". */
void tinylm_engine_print(
	const struct tinylm_engine *engine, const uint32_t *tokens, uint32_t count);

/* ---- the programs: return an exit status ------------------------------------------------------ */

int tinylm_demo(const struct tinylm_options *options);
int tinylm_second(const struct tinylm_options *options);
int tinylm_revive(const struct tinylm_options *options); /* revive.h */
int tinylm_selftest(const struct tinylm_options *options);

#endif

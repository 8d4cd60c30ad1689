/* SPDX-License-Identifier: Apache-2.0 */
/* figures.h: what the demo has measured, and how it is printed.
 *
 * Threads: one. */
#ifndef TINYLM_FIGURES_H
#define TINYLM_FIGURES_H

#include <stdint.h>

#include "examples/tinylm/engine.h"
#include "examples/tinylm/quality.h"

#define TINYLM_BUDGETS 3u /* 5, 10 and 20 % of the context */
#define TINYLM_MODES   3u /* TINYLM_MODE_... */

enum tinylm_mode {
	TINYLM_MODE_EXACT, /* clusters, one request per layer */
	TINYLM_MODE_AHEAD, /* clusters, one request ahead for all layers */
	TINYLM_MODE_MIXED, /* as exact, with an estimate of everything that was not recalled */
};

/* The steps of one budget and mode. */
struct tinylm_run_figures {
	struct tinylm_quality quality;
	struct tinylm_recall_cost cost;
	uint64_t step_ns; /* median */
};

struct tinylm_figures {
	uint32_t context, prompt, steps; /* tokens; steps = context - prompt */
	uint64_t prefill_ns;
	uint64_t append_ns, append_bytes; /* the prompt, into the daemon */
	uint64_t seal_ns;                 /* from the last append until all is sealed */
	uint32_t matched, sealed;         /* tokens of the prompt */
	bool identical;                   /* fetched back bit for bit */
	struct tinylm_quality full;
	uint64_t full_step_ns; /* median */
	double full_step_bytes;
	uint32_t percents[TINYLM_BUDGETS], budgets[TINYLM_BUDGETS];
	struct tinylm_run_figures runs[TINYLM_BUDGETS][TINYLM_MODES];
	struct tinylm_run_figures merged; /* whatever the budget */
	uint32_t generate_count;
	uint32_t full_tokens[TINYLM_GENERATE_MAX], recall_tokens[TINYLM_GENERATE_MAX];
	uint32_t generate_percent;
	uint32_t agreed; /* tokens of both continuations until they first differ */
	/* The second process; `second` is its own JSON object. */
	char second[16384];
	uint32_t second_matched, second_appended;
	bool second_same; /* it continued exactly as the first process did with recall */
};

/* Prints the tables for people. */
void tinylm_figures_print(const struct tinylm_engine *engine, const struct tinylm_figures *figures);

/* Prints one line: a JSON object with all of it. */
void tinylm_figures_json(const struct tinylm_engine *engine, const struct tinylm_figures *figures);

#endif

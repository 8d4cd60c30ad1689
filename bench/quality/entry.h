/* SPDX-License-Identifier: Apache-2.0 */
/* entry.h: one line of the table: a method with a budget on an input, and what was measured.
 *
 * Threads: an entry belongs to one thread. */
#ifndef QUALITY_ENTRY_H
#define QUALITY_ENTRY_H

#include "bench/quality/input.h"
#include "bench/quality/method.h"

struct quality_entry {
	const struct quality_input *input;
	const struct quality_store *store;
	const struct quality_method *method;
	const char *variant; /* of a sweep, else NULL */
	double percent;      /* the budget, of the context's tokens */
	uint32_t budget_tokens;
	/* Over all lanes, heads and queries. */
	double mass;  /* part of full attention that goes to tokens which the answer has exactly */
	double error; /* |out - full out| / |full out|, mean */
	double error_p95; /* 95th percentile */
	/* Means over lanes and queries. */
	double staged_bytes;
	double read_bytes;
	double summary_part; /* bytes of the summaries over those of keys and values; of variants */
	/* Of the model's next token, means; has_steps says whether they were measured. */
	bool has_steps;
	double kl;   /* divergence of the distribution from that with full attention, nats */
	double top1; /* part of the positions where both think the same token the likeliest */
	double nll;  /* negative log-likelihood of the text's token, nats */
};

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* oracle.c: exact top-k tokens: the best that a number of exact tokens can do, nearly.
 *
 * "Nearly", because what has the largest share is not always what changes the output most. */
#include <math.h>
#include <stdlib.h>

#include "bench/quality/memory.h"
#include "bench/quality/method.h"

/* Adds the shares of head g among the prompt's tokens behind the sinks. */
static void add_shares(
	const struct quality_question *question, uint32_t g, struct quality_ranked *ranked)
{
	const struct quality_rows *rows = question->rows;
	const uint32_t sinks = rows->geometry.sink_tokens;
	const float *logits = question->logits + (size_t)g * rows->column_stride;
	float most = -INFINITY;
	double sum = 0.0;

	/* Sinks count in the sum: a head that looks at nothing else has no say in the selection. */
	for (uint32_t t = 0; t < rows->token_count; t++)
		most = fmaxf(most, logits[t]);
	for (uint32_t t = 0; t < rows->token_count; t++)
		sum += exp((double)(logits[t] - most));
	for (uint32_t t = sinks; t < rows->token_count; t++)
		ranked[t - sinks].share += exp((double)(logits[t] - most)) / sum;
}

static void choose(const struct quality_question *question, uint32_t head_first,
	uint32_t head_count, uint32_t budget, struct quality_answer *answer)
{
	const uint32_t sinks = question->rows->geometry.sink_tokens;
	const uint32_t count = question->rows->token_count - sinks;
	struct quality_ranked *ranked = quality_need(count, sizeof(*ranked));

	for (uint32_t i = 0; i < count; i++)
		ranked[i].number = sinks + i;
	for (uint32_t g = head_first; g < head_first + head_count; g++)
		add_shares(question, g, ranked);
	quality_rank(ranked, count);
	answer->token_count[head_first] = budget < count ? budget : count;
	for (uint32_t i = 0; i < answer->token_count[head_first]; i++)
		answer->tokens[head_first][i] = ranked[i].number;
	free(ranked);
}

static void count_bytes(
	const struct quality_question *question, uint32_t sets, struct quality_answer *answer)
{
	const struct quality_rows *rows = question->rows;

	answer->staged_bytes = sets * answer->token_count[0] * quality_token_bytes(rows);
	answer->read_bytes = rows->token_count * (double)kvr_geometry_key_bytes(&rows->geometry) +
			     answer->staged_bytes;
}

void quality_oracle_answer(const struct quality_method *method, struct quality_worker *worker,
	const struct quality_store *store, const struct quality_question *question,
	uint32_t budget_tokens, struct quality_answer *answer)
{
	(void)method;
	(void)worker;
	(void)store;
	choose(question, 0, question->group, budget_tokens, answer);
	quality_answer_share(question, answer);
	for (uint32_t g = 0; g < question->group; g++)
		quality_answer_attend(question, g, answer);
	count_bytes(question, 1, answer);
}

void quality_oracle_heads_answer(const struct quality_method *method, struct quality_worker *worker,
	const struct quality_store *store, const struct quality_question *question,
	uint32_t budget_tokens, struct quality_answer *answer)
{
	(void)method;
	(void)worker;
	(void)store;
	for (uint32_t g = 0; g < question->group; g++) {
		choose(question, g, 1, budget_tokens, answer);
		quality_answer_attend(question, g, answer);
	}
	count_bytes(question, question->group, answer);
}

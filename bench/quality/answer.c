/* SPDX-License-Identifier: Apache-2.0 */
/* answer.c: see answer.h. Plain C; sums of weights are in double. */
#include "bench/quality/answer.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench/quality/memory.h"

void quality_answer_open(struct quality_answer *answer, const struct quality_rows *rows)
{
	const uint32_t group = kvr_geometry_group(&rows->geometry);

	*answer = (struct quality_answer){0};
	for (uint32_t g = 0; g < group; g++)
		answer->tokens[g] = quality_need(rows->token_count, sizeof(uint32_t));
}

void quality_answer_close(struct quality_answer *answer)
{
	for (uint32_t g = 0; g < QUALITY_GROUP_MAX; g++)
		free(answer->tokens[g]);
}

void quality_question_score(struct quality_question *question)
{
	const struct quality_rows *rows = question->rows;

	for (uint32_t g = 0; g < question->group; g++)
		quality_rows_score(rows, question->lane,
			question->queries + (size_t)g * rows->geometry.key_dim, question->scale,
			question->logits + (size_t)g * rows->column_stride);
}

void quality_merge(struct quality_partial *partial, const struct quality_partial *with,
	uint32_t group, uint32_t dim)
{
	for (uint32_t g = 0; g < group; g++) {
		const float most = fmaxf(partial->lse[g], with->lse[g]);
		double own, other;

		if (!(with->lse[g] > -INFINITY))
			continue;
		own = exp((double)(partial->lse[g] - most));
		other = exp((double)(with->lse[g] - most));
		for (uint32_t d = 0; d < dim; d++)
			partial->out[g][d] = (float)((own * (double)partial->out[g][d] +
							     other * (double)with->out[g][d]) /
						     (own + other));
		partial->lse[g] = most + (float)log(own + other);
	}
}

/* One head's attention over rows with a logit and a value each. */
struct sum {
	double weight;
	float most;
	float *out;
	uint32_t dim;
};

static void sum_add(struct sum *sum, float logit, const float *value)
{
	const float weight = expf(logit - sum->most);

	sum->weight += (double)weight;
	for (uint32_t d = 0; d < sum->dim; d++)
		sum->out[d] += weight * value[d];
}

static void sum_end(struct sum *sum, float *ret_lse)
{
	for (uint32_t d = 0; d < sum->dim; d++)
		sum->out[d] = (float)((double)sum->out[d] / sum->weight);
	*ret_lse = sum->most + (float)log(sum->weight);
}

void quality_answer_attend(
	const struct quality_question *question, uint32_t g, struct quality_answer *answer)
{
	const struct quality_rows *rows = question->rows;
	const float *logits = question->logits + (size_t)g * rows->column_stride;
	const uint32_t dim = rows->geometry.value_dim;
	const float *values = rows->value_floats + (size_t)question->lane * rows->token_count * dim;
	struct sum sum = {0.0, -INFINITY, answer->partial.out[g], dim};

	memset(sum.out, 0, dim * sizeof(float));
	for (uint32_t t = 0; t < rows->geometry.sink_tokens; t++)
		sum.most = fmaxf(sum.most, logits[t]);
	for (uint32_t i = 0; i < answer->token_count[g]; i++)
		sum.most = fmaxf(sum.most, logits[answer->tokens[g][i]]);
	answer->partial.lse[g] = -INFINITY;
	if (!(sum.most > -INFINITY))
		return;
	for (uint32_t t = 0; t < rows->geometry.sink_tokens; t++)
		sum_add(&sum, logits[t], values + (size_t)t * dim);
	for (uint32_t i = 0; i < answer->token_count[g]; i++) {
		const uint32_t token = answer->tokens[g][i];

		sum_add(&sum, logits[token], values + (size_t)token * dim);
	}
	sum_end(&sum, &answer->partial.lse[g]);
}

void quality_answer_estimate(const struct quality_question *question, uint32_t g,
	const float *logits, const float *values, uint32_t count, struct quality_answer *answer)
{
	const uint32_t dim = question->rows->geometry.value_dim;
	struct quality_partial with;
	struct sum sum = {0.0, -INFINITY, with.out[0], dim};
	struct quality_partial own;

	memset(sum.out, 0, dim * sizeof(float));
	for (uint32_t i = 0; i < count; i++)
		sum.most = fmaxf(sum.most, logits[i]);
	if (!(sum.most > -INFINITY))
		return;
	for (uint32_t i = 0; i < count; i++)
		if (logits[i] > -INFINITY)
			sum_add(&sum, logits[i], values + (size_t)i * dim);
	sum_end(&sum, &with.lse[0]);
	memcpy(own.out[0], answer->partial.out[g], dim * sizeof(float));
	own.lse[0] = answer->partial.lse[g];
	quality_merge(&own, &with, 1, dim);
	memcpy(answer->partial.out[g], own.out[0], dim * sizeof(float));
	answer->partial.lse[g] = own.lse[0];
}

void quality_answer_share(const struct quality_question *question, struct quality_answer *answer)
{
	for (uint32_t g = 1; g < question->group; g++) {
		answer->token_count[g] = answer->token_count[0];
		memcpy(answer->tokens[g], answer->tokens[0],
			answer->token_count[0] * sizeof(uint32_t));
	}
}

double quality_token_bytes(const struct quality_rows *rows)
{
	return (double)(kvr_geometry_key_bytes(&rows->geometry) +
			kvr_geometry_value_bytes(&rows->geometry));
}

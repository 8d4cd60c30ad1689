/* SPDX-License-Identifier: Apache-2.0 */
/* measure.c: see measure.h.
 *
 * Lanes are asked in parallel; what they find is added up in their order, so that the figures do not depend
 * on the number of CPUs. */
#include "bench/quality/measure.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench/quality/memory.h"

/* ---- attention --------------------------------------------------------------------------------- */

struct attention {
	struct quality_entry *entries;
	uint32_t count;
	uint32_t stride;
	uint32_t asked; /* queries of each head */
	float *errors;  /* [entry][lane][query][head] */
	float *masses;  /* likewise */
	double *bytes;  /* [entry][lane] staged, then read */
};

/* One lane with one query per head. */
struct asked {
	struct quality_question question;
	struct quality_partial tail;
	struct quality_partial full; /* with the tail */
};

static void ask(struct asked *asked, struct quality_worker *worker,
	const struct quality_input *input, uint32_t index)
{
	struct quality_question *question = &asked->question;
	const uint32_t lane = question->lane;

	question->queries = quality_input_queries(input, index, lane);
	quality_question_score(question);
	quality_attend(worker, question, quality_rows_key(&input->tail, lane, 0),
		quality_rows_value(&input->tail, lane, 0), NULL, index + 1, &asked->tail);
	quality_attend(worker, question, quality_rows_key(&input->prompt, lane, 0),
		quality_rows_value(&input->prompt, lane, 0), NULL, input->prompt.token_count,
		&asked->full);
	quality_merge(
		&asked->full, &asked->tail, question->group, question->rows->geometry.value_dim);
}

/* Part of full attention that goes to the sinks, the tail and the answer's tokens. */
static float mass_of(const struct asked *asked, const struct quality_answer *answer, uint32_t g)
{
	const struct quality_question *question = &asked->question;
	const float *logits = question->logits + (size_t)g * question->rows->column_stride;
	const float full = asked->full.lse[g];
	double sum = exp((double)(asked->tail.lse[g] - full));

	for (uint32_t t = 0; t < question->rows->geometry.sink_tokens; t++)
		sum += exp((double)(logits[t] - full));
	for (uint32_t i = 0; i < answer->token_count[g]; i++)
		sum += exp((double)(logits[answer->tokens[g][i]] - full));
	return (float)sum;
}

static float error_of(const struct asked *asked, const struct quality_answer *answer, uint32_t g)
{
	const uint32_t dim = asked->question.rows->geometry.value_dim;
	double apart = 0.0, length = 0.0;

	for (uint32_t d = 0; d < dim; d++) {
		const double full = (double)asked->full.out[g][d];
		const double off = (double)answer->partial.out[g][d] - full;

		apart += off * off;
		length += full * full;
	}
	return length > 0.0 ? (float)sqrt(apart / length) : apart > 0.0 ? INFINITY : 0.0f;
}

static void ask_lane(struct quality_worker *worker, void *context, uint32_t lane)
{
	struct attention *attention = context;
	const struct quality_input *input = attention->entries[0].input;
	const struct kvr_geometry *geometry = &input->prompt.geometry;
	const uint32_t lanes = kvr_geometry_lanes(geometry);
	const uint32_t group = kvr_geometry_group(geometry);
	struct asked asked = {.question = {.rows = &input->prompt,
				      .lane = lane,
				      .group = group,
				      .scale = 1 / sqrtf((float)geometry->key_dim)}};
	struct quality_answer answer;

	quality_answer_open(&answer, &input->prompt);
	asked.question.logits =
		quality_need((size_t)group * input->prompt.column_stride, sizeof(float));
	for (uint32_t i = 0; i < attention->asked; i++) {
		ask(&asked, worker, input, (i + 1) * attention->stride - 1);
		for (uint32_t e = 0; e < attention->count; e++) {
			const struct quality_entry *entry = &attention->entries[e];
			const size_t at =
				(((size_t)e * lanes + lane) * attention->asked + i) * group;
			double *bytes = attention->bytes + ((size_t)e * lanes + lane) * 2;

			entry->method->answer(entry->method, worker, entry->store, &asked.question,
				entry->budget_tokens, &answer);
			quality_merge(&answer.partial, &asked.tail, group, geometry->value_dim);
			for (uint32_t g = 0; g < group; g++) {
				attention->errors[at + g] = error_of(&asked, &answer, g);
				attention->masses[at + g] = mass_of(&asked, &answer, g);
			}
			bytes[0] += answer.staged_bytes;
			bytes[1] += answer.read_bytes;
		}
	}
	quality_answer_close(&answer);
	free(asked.question.logits);
}

static int compare(const void *a, const void *b)
{
	const float x = *(const float *)a, y = *(const float *)b;

	return (x > y) - (x < y);
}

static double mean(const float *values, size_t count)
{
	double sum = 0.0;

	for (size_t i = 0; i < count; i++)
		sum += (double)values[i];
	return sum / (double)count;
}

void quality_measure_attention(struct quality_entry *entries, uint32_t count, uint32_t stride)
{
	const struct quality_input *input = entries[0].input;
	const struct kvr_geometry *geometry = &input->prompt.geometry;
	const size_t lanes = kvr_geometry_lanes(geometry);
	struct attention attention = {.entries = entries,
		.count = count,
		.stride = stride,
		.asked = input->tail.token_count / stride};
	const size_t each = lanes * attention.asked * kvr_geometry_group(geometry);

	attention.errors = quality_need(count * each, sizeof(float));
	attention.masses = quality_need(count * each, sizeof(float));
	attention.bytes = quality_need(count * lanes * 2, sizeof(double));
	quality_work((uint32_t)lanes, ask_lane, &attention);
	for (uint32_t e = 0; e < count; e++) {
		float *errors = attention.errors + e * each;
		const double *bytes = attention.bytes + e * lanes * 2;

		entries[e].error = mean(errors, each);
		entries[e].mass = mean(attention.masses + e * each, each);
		qsort(errors, each, sizeof(*errors), compare);
		entries[e].error_p95 = (double)errors[each * 95 / 100];
		for (size_t lane = 0; lane < lanes; lane++) {
			entries[e].staged_bytes += bytes[lane * 2];
			entries[e].read_bytes += bytes[lane * 2 + 1];
		}
		entries[e].staged_bytes /= (double)lanes * attention.asked;
		entries[e].read_bytes /= (double)lanes * attention.asked;
	}
	free(attention.errors);
	free(attention.masses);
	free(attention.bytes);
}

/* ---- the model's next token -------------------------------------------------------------------- */

struct steps {
	struct quality_entry *const *entries;
	const struct quality_model *model;
};

static void step_entry(struct quality_worker *worker, void *context, uint32_t index)
{
	const struct steps *steps = context;
	struct quality_entry *entry = steps->entries[index];
	struct tinylm_quality quality;

	quality_model_steps(steps->model, entry->input, entry->store, entry->method,
		entry->budget_tokens, worker, &quality);
	entry->has_steps = true;
	entry->kl = quality.kl / quality.count;
	entry->top1 = quality.agree / quality.count;
	entry->nll = quality.nll / quality.count;
}

void quality_measure_steps(
	struct quality_entry *const *entries, uint32_t count, const struct quality_model *model)
{
	struct steps steps = {entries, model};

	quality_work(count, step_entry, &steps);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* answer.h: what a method is asked, and what it answers.
 *
 * The tokens of a sequence are, at any time:
 *
 *   position   0 .. 15     16 .. P - 1                     P .. now
 *              sinks       the prompt, which is sealed     tail
 *
 * A question is one lane's G queries at one time. An answer is attention over the sinks and the
 * prompt, exact or not, as an output and its log-sum-exp per head; the tail is attended exactly by
 * whoever asks, and merged as in split attention. So sinks and tail are exact in every method, and
 * neither counts against a budget.
 *
 * Threads: a question and an answer belong to one thread. */
#ifndef QUALITY_ANSWER_H
#define QUALITY_ANSWER_H

#include "bench/quality/rows.h"

#define QUALITY_GROUP_MAX 16u /* query heads of a lane */

struct quality_question {
	const struct quality_rows *rows; /* the prompt */
	uint32_t lane;
	uint32_t group;       /* G */
	float scale;          /* of the logits: 1 / sqrt(Dk) */
	const float *queries; /* [G][Dk] after RoPE, unscaled */
	float *logits;        /* [G][column_stride], scaled; those of the prompt's tokens */
};

/* Output and log-sum-exp of attention over some tokens, per head; out 0 and lse -INFINITY for none. */
struct quality_partial {
	float out[QUALITY_GROUP_MAX][KVR_DIM_MAX];
	float lse[QUALITY_GROUP_MAX];
};

struct quality_answer {
	struct quality_partial partial; /* sinks and prompt */
	/* Tokens of the prompt that are in it with their own keys and values, per head; no sinks. */
	uint32_t *tokens[QUALITY_GROUP_MAX]; /* [prompt's tokens] */
	uint32_t token_count[QUALITY_GROUP_MAX];
	double staged_bytes; /* handed to the engine, for this lane and query */
	double read_bytes;   /* of summaries, keys and values, to make the answer */
};

void quality_answer_open(struct quality_answer *answer, const struct quality_rows *rows);
void quality_answer_close(struct quality_answer *answer);

/* Fills in the question's logits. */
void quality_question_score(struct quality_question *question);

/* The partial becomes that of both. */
void quality_merge(struct quality_partial *partial, const struct quality_partial *with,
	uint32_t group, uint32_t dim);

/* Attends head `g` over the sinks and the answer's tokens, exactly, in plain C. */
void quality_answer_attend(
	const struct quality_question *question, uint32_t g, struct quality_answer *answer);

/* Adds rows that have a logit and a value, but are no tokens: count of them, values [count][Dv]. One
 * whose logit is -INFINITY counts for nothing. */
void quality_answer_estimate(const struct quality_question *question, uint32_t g,
	const float *logits, const float *values, uint32_t count, struct quality_answer *answer);

/* Every head takes the tokens of head 0. */
void quality_answer_share(const struct quality_question *question, struct quality_answer *answer);

/* Bytes of a token in one lane: key and value. */
double quality_token_bytes(const struct quality_rows *rows);

#endif

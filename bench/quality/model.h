/* SPDX-License-Identifier: Apache-2.0 */
/* model.h: the project's language model: texts as tokens, their keys, values and queries, and what the
 * model says next when its attention is a method's.
 *
 *   tokens ─► prefill, full attention ─► prompt ─► store ─┐
 *      └────► steps, one by one, from P on ───────────────┴─► log probabilities
 *
 * Threads: the model is read-only; each run has its own memory. */
#ifndef QUALITY_MODEL_H
#define QUALITY_MODEL_H

#include "bench/quality/input.h"
#include "bench/quality/method.h"
#include "examples/tinylm/quality.h"

struct quality_model;

/* From the folder examples/tinylm/model, below the working directory. */
struct quality_model *quality_model_open(void);
struct quality_model *quality_model_close(struct quality_model *model);

/* A text of the project's own: "prose" or "code". Prefills all but the last `tail_tokens` of
 * `context_tokens` tokens, and steps through these with full attention. */
void quality_model_input(const struct quality_model *model, const char *text,
	uint32_t context_tokens, uint32_t tail_tokens, struct quality_worker *worker,
	struct quality_input *ret_input);

/* Steps through the tail again, with the method in every layer, against the input's reference. */
void quality_model_steps(const struct quality_model *model, const struct quality_input *input,
	const struct quality_store *store, const struct quality_method *method,
	uint32_t budget_tokens, struct quality_worker *worker, struct tinylm_quality *ret_quality);

#endif

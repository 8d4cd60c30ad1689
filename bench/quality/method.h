/* SPDX-License-Identifier: Apache-2.0 */
/* method.h: the methods that are compared: one table.
 *
 * Threads: no state. */
#ifndef QUALITY_METHOD_H
#define QUALITY_METHOD_H

#include "bench/quality/recipe.h"
#include "bench/quality/store.h"

#define QUALITY_METHODS_MAX 32u

struct quality_method {
	const char *name; /* in JSON */
	const char *says; /* for people */
	/* Rows of the prompt that may be exact, in percent of the context; 0: asked with each budget. */
	double fixed_percent;
	/* Whether `answer` needs the question's logits. Reads what the daemon would not know without
	 * reading all keys only where its comment says so. */
	bool scored;
	void (*answer)(const struct quality_method *method, struct quality_worker *worker,
		const struct quality_store *store, const struct quality_question *question,
		uint32_t budget_tokens, struct quality_answer *answer);
	struct quality_recipe recipe; /* of those in plain C */
	uint32_t form;                /* of the device's */
	bool first_order;
	uint32_t merged_set;
};

extern const struct quality_method quality_methods[];
extern const uint32_t quality_method_count;

/* NULL if there is none. */
const struct quality_method *quality_method_find(const char *name);

/* Ours in plain C, by the method's recipe on the store's `summary`: what the device does, where there is such a
 * recall, and what it might do. */
void quality_summary_answer(const struct quality_method *method, struct quality_worker *worker,
	const struct quality_store *store, const struct quality_question *question,
	uint32_t budget_tokens, struct quality_answer *answer);

/* ---- the ones that have files of their own ----------------------------------------------------- */

/* oracle.c: the tokens with the largest exact shares: one selection for the group, or one per head. Reads all keys. */
void quality_oracle_answer(const struct quality_method *method, struct quality_worker *worker,
	const struct quality_store *store, const struct quality_question *question,
	uint32_t budget_tokens, struct quality_answer *answer);
void quality_oracle_heads_answer(const struct quality_method *method, struct quality_worker *worker,
	const struct quality_store *store, const struct quality_question *question,
	uint32_t budget_tokens, struct quality_answer *answer);

/* quest.c: pages by the upper bound of their logits, per head. */
void quality_quest_answer(const struct quality_method *method, struct quality_worker *worker,
	const struct quality_store *store, const struct quality_question *question,
	uint32_t budget_tokens, struct quality_answer *answer);

/* recall.c: what the device recalls. */
void quality_recall_answer(const struct quality_method *method, struct quality_worker *worker,
	const struct quality_store *store, const struct quality_question *question,
	uint32_t budget_tokens, struct quality_answer *answer);
void quality_clusterkv_answer(const struct quality_method *method, struct quality_worker *worker,
	const struct quality_store *store, const struct quality_question *question,
	uint32_t budget_tokens, struct quality_answer *answer);
void quality_merged_answer(const struct quality_method *method, struct quality_worker *worker,
	const struct quality_store *store, const struct quality_question *question,
	uint32_t budget_tokens, struct quality_answer *answer);

#endif

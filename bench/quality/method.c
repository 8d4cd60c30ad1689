/* SPDX-License-Identifier: Apache-2.0 */
/* method.c: the table of methods, and those that are a recipe on a partition. */
#include "bench/quality/method.h"

#include <string.h>

/* Everything is exact. */
static void full_answer(const struct quality_method *method, struct quality_worker *worker,
	const struct quality_store *store, const struct quality_question *question,
	uint32_t budget_tokens, struct quality_answer *answer)
{
	const struct quality_rows *rows = question->rows;
	const uint32_t sinks = rows->geometry.sink_tokens;

	(void)method;
	(void)store;
	(void)budget_tokens;
	for (uint32_t t = sinks; t < rows->token_count; t++)
		answer->tokens[0][t - sinks] = t;
	answer->token_count[0] = rows->token_count - sinks;
	quality_answer_share(question, answer);
	quality_attend(worker, question, quality_rows_key(rows, question->lane, 0),
		quality_rows_value(rows, question->lane, 0), NULL, rows->token_count,
		&answer->partial);
	answer->staged_bytes = answer->token_count[0] * quality_token_bytes(rows);
	answer->read_bytes = answer->staged_bytes;
}

static void pages_answer(const struct quality_method *method, struct quality_worker *worker,
	const struct quality_store *store, const struct quality_question *question,
	uint32_t budget_tokens, struct quality_answer *answer)
{
	(void)worker;
	quality_recipe_answer(
		&method->recipe, &store->pages[question->lane], question, budget_tokens, answer);
}

/* RetroInfer, arXiv 2505.02922, section 4: the retrieval zone is exact, the estimation zone is one row per
 * cluster, what lies behind counts for nothing. Zones are parts of the clusters. Its 64 newest tokens, exact, are
 * the tail here. */
static void retro_answer(const struct quality_method *method, struct quality_worker *worker,
	const struct quality_store *store, const struct quality_question *question,
	uint32_t budget_tokens, struct quality_answer *answer)
{
	(void)worker;
	quality_recipe_answer(
		&method->recipe, &store->retro[question->lane], question, budget_tokens, answer);
}

void quality_summary_answer(const struct quality_method *method, struct quality_worker *worker,
	const struct quality_store *store, const struct quality_question *question,
	uint32_t budget_tokens, struct quality_answer *answer)
{
	(void)worker;
	quality_recipe_answer(
		&method->recipe, &store->summary[question->lane], question, budget_tokens, answer);
}

const struct quality_method quality_methods[] = {
	{.name = "full", .says = "full attention", .fixed_percent = 100, .answer = full_answer},
	{.name = "oracle",
		.says = "exact top-k tokens",
		.scored = true,
		.answer = quality_oracle_answer},
	{.name = "oracle_heads",
		.says = "exact top-k tokens, each head its own",
		.scored = true,
		.answer = quality_oracle_heads_answer},
	{.name = "quest",
		.says = "Quest, pages of 16",
		.scored = true,
		.answer = quality_quest_answer},
	{.name = "pages",
		.says = "pages of 16, mean key",
		.scored = true,
		.answer = pages_answer,
		.recipe = {QUALITY_ORDER_SHARE, QUALITY_ESTIMATE_NONE, 0.0, false}},
	{.name = "clusterkv", .says = "ClusterKV", .answer = quality_clusterkv_answer},
	{.name = "retroinfer",
		.says = "RetroInfer, 23.2 % estimated",
		.scored = true,
		.answer = retro_answer,
		.recipe = {QUALITY_ORDER_LOGIT, QUALITY_ESTIMATE_FIRST, 0.232, false}},
	{.name = "retroinfer_published",
		.says = "RetroInfer, 1.8 % and 23.2 %",
		.fixed_percent = 1.8,
		.scored = true,
		.answer = retro_answer,
		.recipe = {QUALITY_ORDER_LOGIT, QUALITY_ESTIMATE_FIRST, 0.232, false}},
	{.name = "centroid_2",
		.says = "CentroidKV, 1/2",
		.fixed_percent = 50,
		.answer = quality_merged_answer,
		.merged_set = 0},
	{.name = "centroid_4",
		.says = "CentroidKV, 1/4",
		.fixed_percent = 25,
		.answer = quality_merged_answer,
		.merged_set = 1},
	{.name = "centroid_5",
		.says = "CentroidKV, 1/5",
		.fixed_percent = 20,
		.answer = quality_merged_answer,
		.merged_set = 2},
	{.name = "centroid_8",
		.says = "CentroidKV, 1/8",
		.fixed_percent = 12.5,
		.answer = quality_merged_answer,
		.merged_set = 3},
	{.name = "clusters",
		.says = "CLUSTERS",
		.answer = quality_recall_answer,
		.form = KVR_FORM_CLUSTERS},
	{.name = "clusters_rescored",
		.says = "CLUSTERS, rescored",
		.scored = true,
		.answer = quality_summary_answer,
		.recipe = {QUALITY_ORDER_SHARE, QUALITY_ESTIMATE_NONE, 0.0, true}},
	{.name = "mixed1",
		.says = "MIXED, first order",
		.answer = quality_recall_answer,
		.form = KVR_FORM_MIXED,
		.first_order = true},
	{.name = "mixed1_rescored",
		.says = "MIXED, first order, rescored",
		.scored = true,
		.answer = quality_summary_answer,
		.recipe = {QUALITY_ORDER_SHARE, QUALITY_ESTIMATE_FIRST, 1.0, true}},
	{.name = "mixed2",
		.says = "MIXED, second order",
		.answer = quality_recall_answer,
		.form = KVR_FORM_MIXED},
	{.name = "mixed2_rescored",
		.says = "MIXED, second order, rescored",
		.scored = true,
		.answer = quality_summary_answer,
		.recipe = {QUALITY_ORDER_SHARE, QUALITY_ESTIMATE_SECOND, 1.0, true}},
};
const uint32_t quality_method_count = sizeof(quality_methods) / sizeof(quality_methods[0]);

_Static_assert(sizeof(quality_methods) / sizeof(quality_methods[0]) <= QUALITY_METHODS_MAX,
	"arrays over methods");

const struct quality_method *quality_method_find(const char *name)
{
	for (uint32_t i = 0; i < quality_method_count; i++)
		if (!strcmp(quality_methods[i].name, name))
			return &quality_methods[i];
	return NULL;
}

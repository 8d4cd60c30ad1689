/* SPDX-License-Identifier: Apache-2.0 */
/* recall.c: the methods that the device answers: RECALL, then ATTEND over what it has staged.
 *
 *   question ─► RECALL ─┬─► rows: sinks, clusters or merged rows ─► ATTEND ─┬─► partial
 *                       └─► fold: the clusters not taken ───────────────────┘ */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench/quality/memory.h"
#include "bench/quality/method.h"

/* Heads that are asked together. */
struct heads {
	uint32_t first, count;
};

static struct kvr_recall_item make_item(const struct quality_sealed *sealed,
	const struct quality_question *question, struct heads heads)
{
	const struct kvr_geometry *geometry = &sealed->geometry;
	const size_t query = (size_t)heads.first * geometry->key_dim;

	return (struct kvr_recall_item){.segments = sealed->segments,
		.segment_count = sealed->segment_count,
		.geometry = geometry,
		.lane = question->lane,
		.sinks = true,
		.form = KVR_FORM_CLUSTERS,
		.rank = KVR_RANK_SHARE,
		.query_count = heads.count,
		.query = (const uint8_t *)(question->queries + query),
		.query_dtype = KVR_DTYPE_F32,
		.scale = question->scale};
}

/* The rows of the sinks come first; every other one that is a token's is one of the answer's. */
static void take_tokens(
	const struct kvr_recall_item *item, struct heads heads, struct quality_answer *answer)
{
	uint32_t *tokens = answer->tokens[heads.first];
	uint32_t count = 0;

	for (uint32_t r = 0; r < item->row_count; r++)
		if (item->positions[r] >= (int32_t)item->geometry->sink_tokens)
			tokens[count++] = (uint32_t)item->positions[r];
	for (uint32_t g = heads.first; g < heads.first + heads.count; g++) {
		answer->token_count[g] = count;
		if (g > heads.first)
			memcpy(answer->tokens[g], tokens, count * sizeof(*tokens));
	}
}

/* Recalls, attends over what was staged, and merges what was folded. Rows are not the sinks'. */
static void recall(struct quality_worker *worker, const struct quality_question *question,
	struct kvr_recall_item *item, struct heads heads, struct quality_answer *answer)
{
	const struct kvr_geometry *geometry = item->geometry;
	const size_t key = kvr_geometry_key_bytes(geometry);
	const size_t value = kvr_geometry_value_bytes(geometry);
	const struct quality_question part = {question->rows, question->lane, heads.count,
		question->scale, question->queries + (size_t)heads.first * geometry->key_dim, NULL};
	struct quality_partial staged, fold;
	float fold_out[QUALITY_GROUP_MAX * KVR_DIM_MAX];

	item->keys = quality_need(item->row_capacity, key);
	item->values = quality_need(item->row_capacity, value);
	item->positions = quality_need(item->row_capacity, sizeof(*item->positions));
	item->weights = quality_need(item->row_capacity, sizeof(float));
	if (item->form == KVR_FORM_MIXED) {
		item->fold_out = fold_out;
		item->fold_lse = fold.lse;
	}
	quality_run_job(worker, KVR_JOB_RECALL, item, 1);
	if (item->token_missing > 0)
		quality_fail("%u rows are missing in memory that has all", item->token_missing);
	take_tokens(item, heads, answer);
	quality_attend(
		worker, &part, item->keys, item->values, item->weights, item->row_count, &staged);
	if (item->form == KVR_FORM_MIXED) {
		for (uint32_t g = 0; g < heads.count; g++)
			memcpy(fold.out[g], fold_out + (size_t)g * geometry->value_dim,
				geometry->value_dim * sizeof(float));
		quality_merge(&staged, &fold, heads.count, geometry->value_dim);
	}
	for (uint32_t g = 0; g < heads.count; g++) {
		memcpy(answer->partial.out[heads.first + g], staged.out[g],
			geometry->value_dim * sizeof(float));
		answer->partial.lse[heads.first + g] = staged.lse[g];
	}
	free(item->keys);
	free(item->values);
	free(item->positions);
	free(item->weights);
}

void quality_recall_answer(const struct quality_method *method, struct quality_worker *worker,
	const struct quality_store *store, const struct quality_question *question,
	uint32_t budget_tokens, struct quality_answer *answer)
{
	const struct quality_sealed *sealed = &store->ours;
	const struct kvr_geometry *geometry = &sealed->geometry;
	const struct heads all = {0, question->group};
	struct kvr_recall_item item = make_item(sealed, question, all);
	const double clusters = quality_sealed_clusters(sealed, question->lane);
	double summary;

	item.form = (enum kvr_form)method->form;
	item.first_order = method->first_order;
	item.budget_tokens = budget_tokens;
	item.row_capacity = budget_tokens + geometry->sink_tokens;
	recall(worker, question, &item, all, answer);
	answer->staged_bytes =
		(item.row_count - geometry->sink_tokens) * quality_token_bytes(question->rows);
	summary = geometry->key_dim * (double)sealed->views[0].key_planes[question->lane];
	answer->read_bytes = answer->staged_bytes;
	if (item.form == KVR_FORM_MIXED) {
		summary +=
			2.0 * geometry->value_dim + (method->first_order ? 0.0 : geometry->key_dim);
		answer->staged_bytes += question->group * (geometry->value_dim + 1) * 4.0;
	}
	answer->read_bytes += clusters * summary;
}

void quality_clusterkv_answer(const struct quality_method *method, struct quality_worker *worker,
	const struct quality_store *store, const struct quality_question *question,
	uint32_t budget_tokens, struct quality_answer *answer)
{
	const struct quality_sealed *sealed = &store->clusterkv;
	const double clusters = quality_sealed_clusters(sealed, question->lane);
	uint32_t rows = 0;

	(void)method;
	for (uint32_t g = 0; g < question->group; g++) {
		const struct heads one = {g, 1};
		struct kvr_recall_item item = make_item(sealed, question, one);

		item.rank = KVR_RANK_INNER_PRODUCT;
		item.budget_tokens = budget_tokens;
		item.row_capacity = budget_tokens + sealed->geometry.sink_tokens;
		recall(worker, question, &item, one, answer);
		rows += item.row_count - sealed->geometry.sink_tokens;
	}
	answer->staged_bytes = rows * quality_token_bytes(question->rows);
	answer->read_bytes = answer->staged_bytes + clusters * 2.0 * sealed->geometry.key_dim;
}

/* The merged sets of all segments, which no query chooses from. */
void quality_merged_answer(const struct quality_method *method, struct quality_worker *worker,
	const struct quality_store *store, const struct quality_question *question,
	uint32_t budget_tokens, struct quality_answer *answer)
{
	const struct quality_sealed *sealed = &store->ours;
	const struct heads all = {0, question->group};
	struct kvr_recall_item item = make_item(sealed, question, all);

	(void)budget_tokens;
	item.form = KVR_FORM_MERGED;
	item.merged_set = method->merged_set;
	item.merged_segments = sealed->segment_count;
	item.row_capacity = sealed->geometry.sink_tokens;
	for (uint32_t s = 0; s < sealed->segment_count; s++)
		item.row_capacity += kvr_segment_merged_rows(method->merged_set,
			sealed->views[s].token_count - sealed->views[s].sink_count);
	recall(worker, question, &item, all, answer);
	answer->staged_bytes = (item.row_count - sealed->geometry.sink_tokens) *
			       (quality_token_bytes(question->rows) + sizeof(float));
	answer->read_bytes = answer->staged_bytes;
}

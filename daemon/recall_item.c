/* SPDX-License-Identifier: Apache-2.0 */
/* recall_item.c: see recall_item.h. */
#include "daemon/recall_item.h"

#include <string.h>

#include "base/assert.h"
#include "daemon/daemon.h"

/* The newest tokens are never merged: attention to them is the largest (Chelsea, section 3). */
#define NEWEST_TOKENS 64u

static bool is_merged(const struct kvr_call *call)
{
	return call->request.recall.form == KVR_FORM_MERGED;
}

static bool is_folded(const struct kvr_call *call)
{
	return call->request.recall.form == KVR_FORM_MIXED &&
	       call->request.recall.centroid_rows == 0;
}

/* Whether each query head chooses for itself. */
static bool per_query(const struct kvr_call *call)
{
	return call->request.recall.rank == KVR_RANK_INNER_PRODUCT && !is_merged(call);
}

uint32_t kvr_recall_heads(const struct kvr_call *call, const struct kvr_geometry *geometry)
{
	return per_query(call) ? geometry->query_heads : geometry->kv_heads;
}

static struct kvr_wire_budget budget_of(
	const struct kvr_call *call, const struct kvr_wire_recall_item *item, uint32_t head)
{
	struct kvr_wire_budget budget = {
		call->request.recall.budget_tokens, call->request.recall.budget_mass};

	if (item->budgets.data)
		memcpy(&budget, item->budgets.data + head * sizeof(budget), sizeof(budget));
	return budget;
}

/* ---- the chain ------------------------------------------------------------------------------- */

/* How many segments of the chain end at `position` or before. */
static uint32_t segments_before(const struct kvr_sequence *sequence, uint64_t position)
{
	uint32_t low = 0, high = sequence->chain_count;

	while (low < high) {
		const uint32_t middle = low + (high - low) / 2;
		const struct kvr_segment_view *view = sequence->views[middle];

		if ((uint64_t)view->token_first + view->token_count <= position)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

/* Where what is merged ends, in a layer of so many tokens. */
static uint32_t merged_end(const struct kvr_sequence *sequence, uint32_t token_count)
{
	const struct kvr_segment_view *last;
	uint32_t segments;

	if (token_count < NEWEST_TOKENS)
		return 0;
	segments = segments_before(sequence, token_count - NEWEST_TOKENS);
	if (segments == 0)
		return 0;
	last = sequence->views[segments - 1];
	return last->token_first + last->token_count;
}

static uint32_t sinks_of(const struct kvr_sequence *sequence)
{
	const uint32_t sinks = sequence->model->geometry.sink_tokens;

	return sinks < sequence->covered ? sinks : sequence->covered;
}

/* ---- checks ---------------------------------------------------------------------------------- */

static bool has_dense(const struct kvr_geometry *geometry, uint32_t layer)
{
	for (uint32_t head = 0; head < geometry->kv_heads; head++)
		if (kvr_geometry_is_dense(geometry, layer * geometry->kv_heads + head))
			return true;
	return false;
}

/* The most rows of clusters that a head of this item can get. */
static uint64_t cluster_rows(const struct kvr_call *call, const struct kvr_wire_recall_item *item,
	const struct kvr_sequence *sequence)
{
	const struct kvr_geometry *geometry = &sequence->model->geometry;
	const uint64_t clustered = sequence->covered - sinks_of(sequence);
	const uint32_t heads = item->budgets.data ? kvr_recall_heads(call, geometry) : 1;
	uint64_t most = 0;

	for (uint32_t head = 0; head < heads; head++) {
		const struct kvr_wire_budget budget = budget_of(call, item, head);

		most = budget.tokens > most ? budget.tokens : most;
	}
	return most > clustered || has_dense(geometry, item->layer) ? clustered : most;
}

static uint64_t centroid_rows(const struct kvr_call *call, const struct kvr_sequence *sequence)
{
	const uint64_t clustered = sequence->covered - sinks_of(sequence);
	const uint64_t wanted = call->request.recall.centroid_rows;

	return wanted < clustered ? wanted : clustered;
}

uint32_t kvr_recall_rows(
	const struct kvr_call *call, uint32_t at, const struct kvr_sequence *sequence)
{
	KVR_ASSERT(!is_merged(call));
	return (uint32_t)(cluster_rows(call, &call->request.recall.items[at], sequence) +
			  centroid_rows(call, sequence) + sinks_of(sequence));
}

/* The most rows that a head of a merged item can get from segments. */
static uint64_t merged_rows(const struct kvr_call *call, const struct kvr_wire_recall_item *item,
	const struct kvr_sequence *sequence, uint32_t end)
{
	const struct kvr_geometry *geometry = &sequence->model->geometry;
	const uint32_t divisor = kvr_merged_divisors[call->request.recall.merged_set];
	const uint32_t segments =
		segments_before(sequence, end) - segments_before(sequence, item->first);
	uint64_t rows = end - item->first;

	if (!has_dense(geometry, item->layer))
		rows = rows / divisor + segments; /* rounded up in each */
	if (call->request.recall.tail)
		rows += sequence->covered - end;
	return rows;
}

/* The most rows that a head of this item can get. */
static uint64_t rows_needed(const struct kvr_call *call, const struct kvr_wire_recall_item *item,
	const struct kvr_sequence *sequence, uint32_t covered)
{
	uint64_t rows = is_merged(call) ? merged_rows(call, item, sequence, covered)
					: cluster_rows(call, item, sequence) +
						  centroid_rows(call, sequence);

	if (call->request.recall.sinks)
		rows += sinks_of(sequence);
	if (call->request.recall.tail)
		rows += sequence->fill[item->layer];
	return rows;
}

/* A set that the model keeps, from where a segment begins, up to `end`. */
static bool check_merged(struct kvr_call *call, const struct kvr_wire_recall_item *item,
	const struct kvr_sequence *sequence, uint32_t end)
{
	const uint32_t set = call->request.recall.merged_set;
	const uint32_t before = segments_before(sequence, item->first);
	const uint32_t begins = before == sequence->chain_count
					? sequence->covered
					: sequence->views[before]->token_first;

	if (!(sequence->model->geometry.merged >> set & 1)) {
		kvr_call_refuse(call, KVR_CODE_ARGUMENT,
			"a merged set of one row for %u tokens: the model was not registered with "
			"it",
			kvr_merged_divisors[set]);
		return false;
	}
	if (item->first != begins || item->first > end) {
		kvr_call_refuse(call, KVR_CODE_ARGUMENT,
			"first %u: no segment begins there, or it is not merged yet (up to %u is)",
			item->first, end);
		return false;
	}
	if (!call->request.recall.want_weights) {
		kvr_call_refuse(call, KVR_CODE_ARGUMENT, "merged rows without weights");
		return false;
	}
	return true;
}

/* An output in the region, of numbers of 32 bits. */
static bool check_numbers(struct kvr_call *call, uint64_t offset, uint64_t count, const char *what)
{
	if (offset % sizeof(uint32_t)) {
		kvr_call_refuse(
			call, KVR_CODE_ARGUMENT, "%s at an offset that 4 does not divide", what);
		return false;
	}
	return kvr_call_region(call, offset, count * sizeof(uint32_t), what).data;
}

/* Where the item's query is, and how many bytes. */
static bool check_query(struct kvr_call *call, const struct kvr_wire_recall_item *item,
	const struct kvr_geometry *geometry)
{
	const uint64_t bytes = (uint64_t)geometry->query_heads * geometry->key_dim *
			       kvr_dtype_bytes(call->request.recall.query_dtype);

	if (item->query.data && item->query.bytes != bytes) {
		kvr_call_refuse(call, KVR_CODE_ARGUMENT, "a query of %zu bytes; [H][Dk] needs %llu",
			item->query.bytes, (unsigned long long)bytes);
		return false;
	}
	return item->query.data || kvr_call_region(call, item->query_offset, bytes, "query").data;
}

/* Where the item's rows and table go. */
static bool check_memory(struct kvr_call *call, const struct kvr_wire_recall_item *item,
	const struct kvr_geometry *geometry)
{
	const uint64_t heads = kvr_recall_heads(call, geometry);
	const uint64_t capacity = call->request.recall.row_capacity;
	const uint64_t rows = heads * capacity;
	const bool weights_per_query = call->request.recall.centroid_rows > 0;

	return kvr_call_region(call, item->keys, rows * kvr_geometry_key_bytes(geometry), "keys")
		       .data &&
	       kvr_call_region(
		       call, item->values, rows * kvr_geometry_value_bytes(geometry), "values")
		       .data &&
	       (!call->request.recall.want_weights ||
		       check_numbers(call, item->weights,
			       weights_per_query ? geometry->query_heads * capacity : rows,
			       "weights")) &&
	       (!call->request.recall.want_positions ||
		       check_numbers(call, item->positions, rows, "positions")) &&
	       (!is_folded(call) ||
		       (check_numbers(call, item->outputs,
				(uint64_t)geometry->query_heads * geometry->value_dim, "outputs") &&
			       check_numbers(call, item->lse, geometry->query_heads, "lse"))) &&
	       kvr_call_region(call, item->table, heads * sizeof(struct kvr_wire_rows), "table")
		       .data;
}

bool kvr_recall_check(struct kvr_call *call, uint32_t at, const struct kvr_sequence *sequence)
{
	const struct kvr_wire_recall_item *item = &call->request.recall.items[at];
	const struct kvr_geometry *geometry = &sequence->model->geometry;
	struct kvr_wire_recalled *recalled = &call->recalled[at];
	const size_t budgets = kvr_recall_heads(call, geometry) * sizeof(struct kvr_wire_budget);
	uint64_t needed;

	if (item->layer >= geometry->layer_count) {
		kvr_call_refuse(call, KVR_CODE_ARGUMENT, "layer %u: the model has %u", item->layer,
			geometry->layer_count);
		return false;
	}
	if (item->budgets.data && item->budgets.bytes != budgets) {
		kvr_call_refuse(call, KVR_CODE_ARGUMENT, "budgets of %zu bytes; [heads] needs %zu",
			item->budgets.bytes, budgets);
		return false;
	}
	if (call->request.recall.centroid_rows > 0 &&
		(call->request.recall.form != KVR_FORM_MIXED ||
			!call->request.recall.want_weights)) {
		kvr_call_refuse(call, KVR_CODE_ARGUMENT,
			"centroid_rows in a recall that is not MIXED, or has no weights");
		return false;
	}
	*recalled = (struct kvr_wire_recalled){
		sequence->covered + sequence->fill[item->layer], sequence->covered};
	if (is_merged(call)) {
		recalled->covered_tokens = merged_end(sequence, recalled->token_count);
		if (!check_merged(call, item, sequence, recalled->covered_tokens))
			return false;
	} else if (!check_query(call, item, geometry)) {
		return false;
	}
	needed = rows_needed(call, item, sequence, recalled->covered_tokens);
	if (needed > call->request.recall.row_capacity) {
		kvr_call_refuse(call, KVR_CODE_ROWS, "layer %u: row_capacity %u; it can take %llu",
			item->layer, call->request.recall.row_capacity, (unsigned long long)needed);
		return false;
	}
	return check_memory(call, item, geometry);
}

/* ---- for the device -------------------------------------------------------------------------- */

/* What of the chain a merged item is made of. */
static void describe_merged(const struct kvr_call *call, const struct kvr_wire_recall_item *item,
	const struct kvr_wire_recalled *recalled, const struct kvr_sequence *sequence,
	struct kvr_recall_item *into)
{
	const uint32_t first = segments_before(sequence, item->first);
	const uint32_t end = segments_before(sequence, recalled->covered_tokens);

	KVR_ASSERT(first <= end);
	into->merged_set = call->request.recall.merged_set;
	into->merged_segments = end - first;
	if (first > 0) /* where there are none, there is no array */
		into->segments += first;
	into->segment_count = (call->request.recall.tail ? sequence->chain_count : end) - first;
}

/* Where the outputs of one head begin. */
static void describe_memory(const struct kvr_call *call, const struct kvr_wire_recall_item *item,
	uint32_t head, struct kvr_recall_item *into)
{
	const struct kvr_geometry *geometry = into->geometry;
	const size_t capacity = call->request.recall.row_capacity;
	const size_t query_head = (size_t)head * into->query_count;
	uint8_t *region = call->session->region.memory.data;

	into->row_capacity = (uint32_t)capacity;
	into->keys = region + item->keys + head * capacity * kvr_geometry_key_bytes(geometry);
	into->values = region + item->values + head * capacity * kvr_geometry_value_bytes(geometry);
	if (call->request.recall.want_weights)
		into->weights = (float *)(void *)(region + item->weights) +
				(into->centroid_max > 0 ? query_head : head) * capacity;
	if (call->request.recall.want_positions)
		into->positions = (int32_t *)(void *)(region + item->positions) + head * capacity;
	if (!is_folded(call))
		return;
	into->fold_out =
		(float *)(void *)(region + item->outputs) + query_head * geometry->value_dim;
	into->fold_lse = (float *)(void *)(region + item->lse) + query_head;
}

/* The vector of query head `head`. A merged item has none: nobody has looked at where it says that one is. */
static const uint8_t *query_of(const struct kvr_call *call, const struct kvr_wire_recall_item *item,
	const struct kvr_geometry *geometry, uint32_t head)
{
	const size_t bytes = geometry->key_dim * kvr_dtype_bytes(call->request.recall.query_dtype);

	if (is_merged(call))
		return NULL;
	return (item->query.data ? item->query.data
				 : call->session->region.memory.data + item->query_offset) +
	       head * bytes;
}

void kvr_recall_describe(
	const struct kvr_call *call, uint32_t at, uint32_t head, struct kvr_recall_item *ret_item)
{
	const struct kvr_wire_recall_item *item = &call->request.recall.items[at];
	const struct kvr_wire_recalled *recalled = &call->recalled[at];
	const struct kvr_sequence *sequence = call->sequences[at];
	const struct kvr_geometry *geometry = &sequence->model->geometry;
	const uint32_t group = per_query(call) ? 1 : kvr_geometry_group(geometry);
	const struct kvr_wire_budget budget = budget_of(call, item, head);

	*ret_item = (struct kvr_recall_item){
		.segments = sequence->views,
		.segment_count = sequence->chain_count,
		.tail = &sequence->tail,
		.tail_first = sequence->covered,
		.tail_count =
			call->request.recall.tail ? recalled->token_count - sequence->covered : 0,
		.geometry = geometry,
		.lane = item->layer * geometry->kv_heads +
			(per_query(call) ? head / kvr_geometry_group(geometry) : head),
		.sinks = call->request.recall.sinks,
		.form = call->request.recall.form,
		.rank = call->request.recall.rank,
		.query_count = group,
		.query = query_of(call, item, geometry, head * group),
		.query_dtype = call->request.recall.query_dtype,
		.scale = call->request.recall.scale,
		.budget_tokens = budget.tokens,
		.budget_mass = budget.mass,
		.centroid_max = call->request.recall.centroid_rows,
	};
	if (call->request.recall.scale == 0)
		ret_item->scale = 1.0f / __builtin_sqrtf((float)geometry->key_dim);
	if (ret_item->centroid_max > sequence->covered) /* not 0: it says what shape weights have */
		ret_item->centroid_max = sequence->covered > 0 ? sequence->covered : 1;
	if (is_merged(call))
		describe_merged(call, item, recalled, sequence, ret_item);
	describe_memory(call, item, head, ret_item);
}

uint32_t kvr_recall_chosen_max(const struct kvr_recall_item *item)
{
	const bool dense = kvr_geometry_is_dense(item->geometry, item->lane);
	uint32_t clusters = 0;

	for (uint32_t i = 0; i < item->segment_count; i++)
		clusters += item->form == KVR_FORM_MERGED && i < item->merged_segments && !dense
				    ? 1
				    : item->segments[i]->cluster_max;
	if (item->form != KVR_FORM_MERGED && clusters > item->budget_tokens && !dense)
		clusters = item->budget_tokens;
	return clusters + (item->sinks ? item->geometry->sink_tokens : 0); /* segments with sinks */
}

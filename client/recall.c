/* SPDX-License-Identifier: Apache-2.0 */
/* recall.c: queries out, and where their rows land.
 *
 * The rows themselves are written by the daemon, into the region; what comes back in the message
 * are two numbers per item (call.c hands them to the items). */
#include "client/client.h"

#include <errno.h>
#include <math.h>

#include "base/assert.h"

static int check(struct kvr_client *client, const struct kvr_recall *recall)
{
	if (!recall->items || recall->item_count < 1 || recall->item_count > KVR_RECALL_ITEMS_MAX)
		return kvr_client_argument(client, "items is NULL, or item_count %u not 1 to %u",
			recall->item_count, KVR_RECALL_ITEMS_MAX);
	if ((uint32_t)recall->rank > KVR_WIRE_RANK_MAX)
		return kvr_client_argument(client, "rank is %u", (uint32_t)recall->rank);
	if (recall->form != KVR_RECALL_MERGED &&
		(recall->query_type < KVR_F32 || recall->query_type > KVR_BF16))
		return kvr_client_argument(
			client, "query_type is %u", (uint32_t)recall->query_type);
	if (!isfinite(recall->scale) || recall->scale < 0)
		return kvr_client_argument(client, "scale is not finite, or negative");
	if (!(recall->budget_mass >= 0 && recall->budget_mass <= 1))
		return kvr_client_argument(client, "budget_mass is not in [0, 1]");
	if (recall->row_capacity < 1)
		return kvr_client_argument(client, "row_capacity is 0");
	return 0;
}

/* What is wanted, and as what; writes it to the request. */
static int check_form(
	struct kvr_client *client, const struct kvr_recall *recall, struct kvr_request *request)
{
	uint32_t set = 0;

	if ((uint32_t)recall->form > KVR_WIRE_FORM_MAX)
		return kvr_client_argument(client, "form is %u", (uint32_t)recall->form);
	if (recall->centroid_rows > 0 && recall->form != KVR_RECALL_MIXED)
		return kvr_client_argument(client, "centroid_rows without KVR_RECALL_MIXED");
	if (recall->centroid_rows > KVR_SEQUENCE_TOKENS_MAX)
		return kvr_client_argument(client, "centroid_rows %u is more than %u",
			recall->centroid_rows, KVR_SEQUENCE_TOKENS_MAX);
	while (recall->form == KVR_RECALL_MERGED && set < KVR_MERGED_SETS &&
		kvr_merged_divisors[set] != recall->merged_divisor)
		set++;
	if (set == KVR_MERGED_SETS)
		return kvr_client_argument(
			client, "merged_divisor is %u, not 2, 4, 5 or 8", recall->merged_divisor);
	request->recall.form = recall->form ? (uint32_t)recall->form : KVR_FORM_CLUSTERS;
	request->recall.merged_set = set;
	request->recall.centroid_rows = recall->centroid_rows;
	return 0;
}

/* Heads that rows are chosen for. */
static uint32_t heads_of(const struct kvr_recall *recall, const struct kvr_geometry *geometry)
{
	return recall->rank == KVR_BY_INNER_PRODUCT && recall->form != KVR_RECALL_MERGED
		       ? geometry->query_heads
		       : geometry->kv_heads;
}

/* An output in the region. Arrays of 32-bit numbers must lie where such a number may. */
static int place_output(struct kvr_client *client, const char *what, const void *pointer,
	uint64_t bytes, bool numbers, uint64_t *ret_offset)
{
	int rc = kvr_client_offset(client, what, pointer, bytes, ret_offset);

	if (rc == 0 && numbers && *ret_offset % sizeof(uint32_t) != 0)
		return kvr_client_argument(client, "%s is not aligned to 4 bytes", what);
	return rc;
}

static int place_item(struct kvr_client *client, const struct kvr_recall *recall,
	struct kvr_recall_item *item, struct kvr_wire_recall_item *into)
{
	const struct kvr_geometry *geometry = &item->sequence->model->geometry;
	/* At most 256 heads of 2^32 rows of 2,304 bytes: no product here wraps. */
	uint64_t heads = heads_of(recall, geometry);
	uint64_t rows = heads * recall->row_capacity;
	/* A centroid's weight is another one for each query head. */
	uint64_t weights = recall->centroid_rows > 0
				   ? geometry->query_heads * (uint64_t)recall->row_capacity
				   : rows;
	size_t query_bytes = (size_t)geometry->query_heads * geometry->key_dim *
			     kvr_dtype_bytes((enum kvr_dtype)recall->query_type);
	int rc;

	*into = (struct kvr_wire_recall_item){
		.sequence = item->sequence->number, .layer = item->layer};
	/* Outside the region a query travels in the message. The cast drops const: nothing writes
	 * through a span that is packed. */
	if (recall->form != KVR_RECALL_MERGED &&
		!kvr_client_region_offset(
			&client->region, item->query, query_bytes, &into->query_offset))
		into->query = (struct kvr_span){(uint8_t *)(uintptr_t)item->query, query_bytes};
	rc = place_output(client, "keys", item->keys, rows * kvr_geometry_key_bytes(geometry),
		false, &into->keys);
	if (rc == 0)
		rc = place_output(client, "values", item->values,
			rows * kvr_geometry_value_bytes(geometry), false, &into->values);
	if (rc == 0 && item->weights)
		rc = place_output(client, "weights", item->weights,
			weights * sizeof(*item->weights), true, &into->weights);
	if (rc == 0 && item->positions)
		rc = place_output(client, "positions", item->positions,
			rows * sizeof(*item->positions), true, &into->positions);
	if (rc == 0)
		rc = place_output(client, "rows", item->rows, heads * sizeof(*item->rows), true,
			&into->table);
	return rc;
}

/* The parts of an item that only some forms have. */
static int place_form(struct kvr_client *client, const struct kvr_recall *recall, uint32_t index,
	struct kvr_wire_recall_item *into)
{
	const struct kvr_recall_item *item = &recall->items[index];
	const struct kvr_geometry *geometry = &item->sequence->model->geometry;
	const uint32_t heads = heads_of(recall, geometry);
	int rc;

	into->first = recall->form == KVR_RECALL_MERGED ? item->first : 0;
	for (uint32_t i = 0; item->budgets && i < heads; i++)
		if (!(item->budgets[i].mass >= 0 && item->budgets[i].mass <= 1))
			return kvr_client_argument(
				client, "items[%u]: budgets[%u].mass is not in [0, 1]", index, i);
	if (item->budgets)
		into->budgets = (struct kvr_span){
			(uint8_t *)(uintptr_t)item->budgets, heads * sizeof(*item->budgets)};
	if (!item->weights && (recall->form == KVR_RECALL_MERGED || recall->centroid_rows > 0))
		return kvr_client_argument(client,
			"items[%u]: weights is NULL, and rows stand for several tokens", index);
	if (recall->form != KVR_RECALL_MIXED || recall->centroid_rows > 0)
		return 0;
	rc = place_output(client, "outputs", item->outputs,
		(uint64_t)geometry->query_heads * geometry->value_dim * sizeof(*item->outputs),
		true, &into->outputs);
	if (rc < 0)
		return rc;
	return place_output(client, "lse", item->lse, geometry->query_heads * sizeof(*item->lse),
		true, &into->lse);
}

/* Checks a recall and makes the request; its items are in client->items. */
static int prepare(
	struct kvr_client *client, struct kvr_recall *recall, struct kvr_request *request)
{
	int rc;

	if (!client)
		return -EINVAL;
	if (!recall)
		return kvr_client_argument(client, "recall is NULL");
	rc = check(client, recall);
	if (rc == 0)
		rc = check_form(client, recall, request);
	if (rc < 0)
		return rc;
	for (uint32_t i = 0; i < recall->item_count; i++) {
		struct kvr_recall_item *item = &recall->items[i];
		const struct kvr_recall_item *first = &recall->items[0];

		/* One look at the attach socket serves all items of a sequence. */
		if (i == 0 || item->sequence != recall->items[i - 1].sequence)
			rc = kvr_client_begin_sequence(client, item->sequence);
		if (rc < 0)
			return rc;
		if ((!item->query && recall->form != KVR_RECALL_MERGED) ||
			item->layer >= item->sequence->model->geometry.layer_count)
			return kvr_client_argument(
				client, "items[%u]: query is NULL, or no layer %u", i, item->layer);
		if (!item->weights != !first->weights || !item->positions != !first->positions)
			return kvr_client_argument(
				client, "weights and positions: all items or none");
		rc = place_item(client, recall, item, &client->items[i]);
		if (rc == 0)
			rc = place_form(client, recall, i, &client->items[i]);
		if (rc < 0)
			return rc;
	}
	request->kind = KVR_REQUEST_RECALL;
	request->recall.items = client->items;
	request->recall.item_count = recall->item_count;
	request->recall.rank = recall->rank ? (uint32_t)recall->rank : KVR_BY_SHARE;
	request->recall.query_dtype = recall->form == KVR_RECALL_MERGED
					      ? KVR_DTYPE_F32
					      : (enum kvr_dtype)recall->query_type;
	request->recall.scale = recall->scale;
	request->recall.budget_tokens = recall->budget_tokens;
	request->recall.budget_mass = recall->budget_mass;
	request->recall.row_capacity = recall->row_capacity;
	request->recall.sinks = recall->sinks;
	request->recall.tail = recall->tail;
	request->recall.background = recall->background;
	request->recall.want_weights = recall->items[0].weights != NULL;
	request->recall.want_positions = recall->items[0].positions != NULL;
	return 0;
}

int kvr_recall(struct kvr_client *client, struct kvr_recall *recall)
{
	struct kvr_request request = {0};
	int rc = prepare(client, recall, &request);

	if (rc < 0)
		return rc;
	return kvr_client_call(client, &request, recall, kvr_client_deadline(client));
}

int kvr_recall_submit(struct kvr_client *client, struct kvr_recall *recall, uint64_t *ret_ticket)
{
	struct kvr_request request = {0};
	int rc = prepare(client, recall, &request);

	if (rc < 0)
		return rc;
	if (!ret_ticket)
		return kvr_client_argument(client, "ret_ticket is NULL");
	return kvr_client_submit(client, &request, recall, ret_ticket);
}

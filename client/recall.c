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
	if (recall->query_type < KVR_F32 || recall->query_type > KVR_BF16)
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
	uint64_t heads =
		recall->rank == KVR_BY_INNER_PRODUCT ? geometry->query_heads : geometry->kv_heads;
	uint64_t rows = heads * recall->row_capacity;
	size_t query_bytes = (size_t)geometry->query_heads * geometry->key_dim *
			     kvr_dtype_bytes((enum kvr_dtype)recall->query_type);
	int rc;

	*into = (struct kvr_wire_recall_item){
		.sequence = item->sequence->number, .layer = item->layer};
	/* Outside the region a query travels in the message. The cast drops const: nothing writes
	 * through a span that is packed. */
	if (!kvr_client_region_offset(
		    &client->region, item->query, query_bytes, &into->query_offset))
		into->query = (struct kvr_span){(uint8_t *)(uintptr_t)item->query, query_bytes};
	rc = place_output(client, "keys", item->keys, rows * kvr_geometry_key_bytes(geometry),
		false, &into->keys);
	if (rc == 0)
		rc = place_output(client, "values", item->values,
			rows * kvr_geometry_value_bytes(geometry), false, &into->values);
	if (rc == 0 && item->weights)
		rc = place_output(client, "weights", item->weights, rows * sizeof(*item->weights),
			true, &into->weights);
	if (rc == 0 && item->positions)
		rc = place_output(client, "positions", item->positions,
			rows * sizeof(*item->positions), true, &into->positions);
	if (rc == 0)
		rc = place_output(client, "rows", item->rows, heads * sizeof(*item->rows), true,
			&into->table);
	return rc;
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
		if (!item->query || item->layer >= item->sequence->model->geometry.layer_count)
			return kvr_client_argument(
				client, "items[%u]: query is NULL, or no layer %u", i, item->layer);
		if (!item->weights != !first->weights || !item->positions != !first->positions)
			return kvr_client_argument(
				client, "weights and positions: all items or none");
		rc = place_item(client, recall, item, &client->items[i]);
		if (rc < 0)
			return rc;
	}
	request->kind = KVR_REQUEST_RECALL;
	request->recall.items = client->items;
	request->recall.item_count = recall->item_count;
	request->recall.rank = recall->rank ? (uint32_t)recall->rank : KVR_BY_SHARE;
	request->recall.query_dtype = (enum kvr_dtype)recall->query_type;
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

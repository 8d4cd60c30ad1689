/* SPDX-License-Identifier: Apache-2.0 */
/* append.c: keys and values on their way into the daemon; and what append, fetch and recall share:
 * pointers into the region become offsets, and nothing outside it is ever named to the daemon. */
#include "client/client.h"

#include <errno.h>

#include "base/assert.h"

int kvr_client_offset(struct kvr_client *client, const char *what, const void *pointer,
	uint64_t bytes, uint64_t *ret_offset)
{
	if (kvr_client_region_offset(&client->region, pointer, bytes, ret_offset))
		return 0;
	return kvr_client_refuse(client, EFAULT, kvr_code_remedy(KVR_CODE_REGION),
		"%s: %llu bytes, not all in the region", what, (unsigned long long)bytes);
}

int kvr_client_layer(struct kvr_client *client, const struct kvr_sequence *sequence, uint32_t count,
	uint32_t index, struct kvr_client_layer layer)
{
	const struct kvr_geometry *geometry = &sequence->model->geometry;
	/* At most 2^32 tokens of 128 heads of 2,304 bytes: no product here wraps. */
	uint64_t heads = (uint64_t)count * geometry->kv_heads;
	struct kvr_wire_layer *into = &client->layers[index];
	int rc;

	KVR_ASSERT(index < KVR_APPEND_LAYERS_MAX);
	if (layer.layer >= geometry->layer_count)
		return kvr_client_argument(client, "layers[%u].layer is %u of %u", index,
			layer.layer, geometry->layer_count);
	into->layer = layer.layer;
	rc = kvr_client_offset(
		client, "keys", layer.keys, heads * kvr_geometry_key_bytes(geometry), &into->keys);
	if (rc < 0)
		return rc;
	return kvr_client_offset(client, "values", layer.values,
		heads * kvr_geometry_value_bytes(geometry), &into->values);
}

static int place_tokens(
	struct kvr_client *client, const struct kvr_append *append, struct kvr_tokens *ret_tokens)
{
	uint64_t bytes = (uint64_t)append->count * sizeof(*append->tokens);
	uint64_t offset;

	if (!append->tokens) {
		*ret_tokens = (struct kvr_tokens){.ids = NULL, .count = 0};
		return 0;
	}
	*ret_tokens = (struct kvr_tokens){.ids = append->tokens, .count = append->count};
	if (append->count <= KVR_TOKENS_INLINE_MAX)
		return 0;
	/* Unlike kvr_open: the region's last bytes may be keys and values of this very append. */
	if (!kvr_client_region_offset(&client->region, append->tokens, bytes, &offset))
		return kvr_client_refuse(client, E2BIG,
			"put the token ids into the region, or append fewer at once",
			"%u token ids in one message, at most %u", append->count,
			KVR_TOKENS_INLINE_MAX);
	*ret_tokens = (struct kvr_tokens){.count = append->count, .offset = offset};
	return 0;
}

/* Checks an append and makes the request; its layers are in client->layers. */
static int prepare(
	struct kvr_client *client, const struct kvr_append *append, struct kvr_request *request)
{
	int rc;

	if (!client)
		return -EINVAL;
	if (!append)
		return kvr_client_argument(client, "append is NULL");
	rc = kvr_client_begin_sequence(client, append->sequence);
	if (rc < 0)
		return rc;
	if (append->count < 1 || append->count > KVR_SEQUENCE_TOKENS_MAX)
		return kvr_client_argument(
			client, "count is %u, not 1 to %u", append->count, KVR_SEQUENCE_TOKENS_MAX);
	if (!append->layers || append->layer_count < 1 ||
		append->layer_count > KVR_APPEND_LAYERS_MAX)
		return kvr_client_argument(client, "layers is NULL, or layer_count %u not 1 to %u",
			append->layer_count, KVR_APPEND_LAYERS_MAX);
	for (uint32_t i = 0; i < append->layer_count; i++) {
		const struct kvr_append_layer *from = &append->layers[i];

		rc = kvr_client_layer(client, append->sequence, append->count, i,
			(struct kvr_client_layer){from->layer, from->keys, from->values});
		if (rc < 0)
			return rc;
	}
	request->kind = KVR_REQUEST_APPEND;
	request->append.sequence = append->sequence->number;
	request->append.first = append->first;
	request->append.count = append->count;
	request->append.layers = client->layers;
	request->append.layer_count = append->layer_count;
	return place_tokens(client, append, &request->append.tokens);
}

int kvr_append(struct kvr_client *client, const struct kvr_append *append,
	struct kvr_appended *ret_appended)
{
	struct kvr_request request = {0};
	int rc = prepare(client, append, &request);

	if (rc == 0)
		rc = kvr_client_call(client, &request, NULL, kvr_client_deadline(client));
	if (rc == 0 && ret_appended) {
		ret_appended->token_count = client->reply.appended.token_count;
		ret_appended->sealed_tokens = client->reply.appended.sealed_tokens;
	}
	return rc;
}

int kvr_append_submit(
	struct kvr_client *client, const struct kvr_append *append, uint64_t *ret_ticket)
{
	struct kvr_request request = {0};
	int rc = prepare(client, append, &request);

	if (rc < 0)
		return rc;
	if (!ret_ticket)
		return kvr_client_argument(client, "ret_ticket is NULL");
	return kvr_client_submit(client, &request, NULL, ret_ticket);
}

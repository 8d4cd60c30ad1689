/* SPDX-License-Identifier: Apache-2.0 */
/* fetch.c: tokens back in token order. */
#include "client/client.h"

#include <errno.h>

int kvr_fetch(struct kvr_client *client, const struct kvr_fetch *fetch)
{
	struct kvr_request request = {.kind = KVR_REQUEST_FETCH};
	int rc;

	if (!client)
		return -EINVAL;
	if (!fetch)
		return kvr_client_argument(client, "fetch is NULL");
	rc = kvr_client_begin_sequence(client, fetch->sequence);
	if (rc < 0)
		return rc;
	if (fetch->count < 1 || fetch->count > KVR_SEQUENCE_TOKENS_MAX)
		return kvr_client_argument(
			client, "count is %u, not 1 to %u", fetch->count, KVR_SEQUENCE_TOKENS_MAX);
	if (!fetch->layers || fetch->layer_count < 1 || fetch->layer_count > KVR_APPEND_LAYERS_MAX)
		return kvr_client_argument(client, "layers is NULL, or layer_count %u not 1 to %u",
			fetch->layer_count, KVR_APPEND_LAYERS_MAX);
	for (uint32_t i = 0; i < fetch->layer_count; i++) {
		const struct kvr_fetch_layer *from = &fetch->layers[i];

		rc = kvr_client_layer(client, fetch->sequence, fetch->count, i,
			(struct kvr_client_layer){from->layer, from->keys, from->values});
		if (rc < 0)
			return rc;
	}
	request.fetch.sequence = fetch->sequence->number;
	request.fetch.first = fetch->first;
	request.fetch.count = fetch->count;
	request.fetch.layers = client->layers;
	request.fetch.layer_count = fetch->layer_count;
	return kvr_client_call(client, &request, NULL, kvr_client_deadline(client));
}

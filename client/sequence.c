/* SPDX-License-Identifier: Apache-2.0 */
/* sequence.c: sequences: opening, forking, closing, sealing, pinning.
 *
 * A handle names a sequence of one daemon (C2). When that daemon is gone the handle is good for
 * kvr_close alone. */
#include "client/client.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"

int kvr_client_begin_sequence(struct kvr_client *client, const struct kvr_sequence *sequence)
{
	if (!client)
		return -EINVAL;
	if (!sequence)
		return kvr_client_argument(client, "sequence is NULL");
	if (sequence->client != client)
		return kvr_client_argument(client, "the sequence is another client's");
	kvr_client_look(client);
	if (client->attach_fd < 0 || sequence->generation != client->generation) /* C2 */
		return kvr_client_refuse(client, ESTALE, "open the sequence again",
			"a sequence of attachment %u, which is over", sequence->generation);
	return 0;
}

/* A handle, before there is a sequence to it: then an open or fork cannot fail after the daemon has
 * done it. NULL: no memory; kvr_error is filled. */
static struct kvr_sequence *sequence_new(struct kvr_client *client, struct kvr_model *model)
{
	struct kvr_sequence *sequence = calloc(1, sizeof(*sequence));

	if (!sequence) {
		kvr_client_refuse(client, ENOMEM, "free memory", "a sequence's handle");
		return NULL;
	}
	kvr_list_init(&sequence->link);
	sequence->client = client;
	sequence->model = model;
	return sequence;
}

/* Gives a new handle its sequence: the reply is that of an open or fork. */
static void sequence_begin(struct kvr_sequence *sequence)
{
	struct kvr_client *client = sequence->client;

	sequence->number = client->reply.opened.sequence;
	sequence->generation = client->generation;
	kvr_list_push(&client->sequences, &sequence->link);
}

/* Where the token ids of an open go: the message if they are few, else the region. `renewed`: the
 * region was emptied during this call, so ids that lie there are gone. */
static int place_tokens(struct kvr_client *client, const uint32_t *tokens, uint32_t count,
	bool renewed, struct kvr_tokens *ret_tokens)
{
	uint64_t bytes = (uint64_t)count * sizeof(*tokens);
	const struct kvr_client_region *region = &client->region;
	uint64_t offset;
	bool inside = kvr_client_region_offset(region, tokens, bytes, &offset);

	if (inside && renewed && count)
		return kvr_client_code(client, KVR_CODE_LOST,
			"the region was renewed, and the token ids in it are gone");
	*ret_tokens = (struct kvr_tokens){.ids = tokens, .count = count};
	if (count <= KVR_TOKENS_INLINE_MAX)
		return 0;
	if (!inside) {
		if (bytes > region->bytes)
			return kvr_client_refuse(client, E2BIG, "attach with a larger region",
				"%u token ids, %llu bytes of region", count,
				(unsigned long long)region->bytes);
		offset = region->bytes - bytes;
		memmove(region->base + offset, tokens, bytes);
	}
	ret_tokens->ids = NULL;
	ret_tokens->offset = offset;
	return 0;
}

int kvr_open(struct kvr_model *model, const uint32_t *tokens, uint32_t count,
	struct kvr_sequence **ret_sequence, uint32_t *ret_matched)
{
	struct kvr_request request = {.kind = KVR_REQUEST_OPEN};
	struct kvr_client *client;
	struct kvr_sequence *sequence;
	uint64_t deadline_ns;
	uint32_t generation;
	int rc;

	if (!model)
		return -EINVAL;
	client = model->client;
	if (!ret_sequence || !ret_matched || (count && !tokens))
		return kvr_client_argument(client, "ret_sequence, ret_matched or tokens is NULL");
	if (count > KVR_SEQUENCE_TOKENS_MAX)
		return kvr_client_refuse(client, E2BIG, kvr_code_remedy(KVR_CODE_LIMIT),
			"%u tokens, at most %u", count, KVR_SEQUENCE_TOKENS_MAX);
	sequence = sequence_new(client, model);
	if (!sequence)
		return -ENOMEM;
	generation = client->generation;
	deadline_ns = kvr_client_deadline(client);
	rc = kvr_client_begin_model(model, deadline_ns);
	if (rc == 0)
		rc = place_tokens(client, tokens, count, client->generation != generation,
			&request.open.tokens);
	request.open.model = model->number;
	if (rc == 0)
		rc = kvr_client_call(client, &request, NULL, deadline_ns);
	if (rc == 0 && client->reply.opened.matched_tokens > count)
		rc = kvr_client_refuse(client, EPROTO, "use a daemon of the library's version",
			"%u tokens matched of %u", client->reply.opened.matched_tokens, count);
	if (rc < 0) {
		free(sequence);
		return rc;
	}
	sequence_begin(sequence);
	*ret_sequence = sequence;
	*ret_matched = client->reply.opened.matched_tokens;
	return 0;
}

int kvr_fork(
	struct kvr_sequence *sequence, struct kvr_sequence **ret_sequence, uint32_t *ret_tokens)
{
	struct kvr_request request = {.kind = KVR_REQUEST_FORK};
	struct kvr_client *client = sequence ? sequence->client : NULL;
	struct kvr_sequence *fork;
	int rc = kvr_client_begin_sequence(client, sequence);

	if (rc < 0)
		return rc;
	if (!ret_sequence || !ret_tokens)
		return kvr_client_argument(client, "ret_sequence or ret_tokens is NULL");
	fork = sequence_new(client, sequence->model);
	if (!fork)
		return -ENOMEM;
	request.fork.sequence = sequence->number;
	rc = kvr_client_call(client, &request, NULL, kvr_client_deadline(client));
	if (rc < 0) {
		free(fork);
		return rc;
	}
	sequence_begin(fork);
	*ret_sequence = fork;
	*ret_tokens = client->reply.opened.matched_tokens;
	return 0;
}

int kvr_close(struct kvr_sequence *sequence, bool discard)
{
	struct kvr_request request = {.kind = KVR_REQUEST_CLOSE};
	struct kvr_client *client;
	int rc;

	if (!sequence)
		return 0;
	client = sequence->client;
	rc = kvr_client_begin_sequence(client, sequence);
	request.close.sequence = sequence->number;
	request.close.discard_tail = discard;
	if (rc == 0)
		rc = kvr_client_call(client, &request, NULL, kvr_client_deadline(client));
	kvr_list_remove(&sequence->link);
	free(sequence);
	return rc;
}

int kvr_sync(struct kvr_sequence *sequence, bool seal_tail, uint32_t *ret_sealed_tokens)
{
	struct kvr_request request = {.kind = KVR_REQUEST_SYNC};
	struct kvr_client *client = sequence ? sequence->client : NULL;
	int rc = kvr_client_begin_sequence(client, sequence);

	if (rc < 0)
		return rc;
	request.sync.sequence = sequence->number;
	request.sync.seal_tail = seal_tail;
	rc = kvr_client_call(client, &request, NULL, kvr_client_deadline(client));
	if (rc == 0 && ret_sealed_tokens)
		*ret_sealed_tokens = client->reply.synced.sealed_tokens;
	return rc;
}

int kvr_pin(struct kvr_sequence *sequence, bool unpin, uint32_t *ret_segments)
{
	struct kvr_request request = {.kind = KVR_REQUEST_PIN};
	struct kvr_client *client = sequence ? sequence->client : NULL;
	int rc = kvr_client_begin_sequence(client, sequence);

	if (rc < 0)
		return rc;
	request.pin.sequence = sequence->number;
	request.pin.unpin = unpin;
	rc = kvr_client_call(client, &request, NULL, kvr_client_deadline(client));
	if (rc == 0 && ret_segments)
		*ret_segments = client->reply.pinned.segment_count;
	return rc;
}

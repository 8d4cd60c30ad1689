/* SPDX-License-Identifier: Apache-2.0 */
/* admin.c: what is there, and getting rid of it: calls on segments, models and metrics by name, for
 * tools. Listings are paged by the daemon; each takes as many pages as the caller has room for, all
 * within one deadline. */
#include "client/client.h"

#include <errno.h>
#include <string.h>

#include "base/assert.h"

int kvr_client_page(struct kvr_client *client, uint32_t first, uint32_t next)
{
	if (next > first)
		return 0;
	return kvr_client_refuse(client, EPROTO, "use a daemon of the library's version",
		"a listing goes on at %u after %u", next, first);
}

/* One request that any daemon answers. */
static int ask(struct kvr_client *client, struct kvr_request *request)
{
	uint64_t deadline_ns = kvr_client_deadline(client);
	int rc = kvr_client_begin(client, deadline_ns);

	if (rc < 0)
		return rc;
	return kvr_client_call(client, request, NULL, deadline_ns);
}

int kvr_pin_segment(
	struct kvr_client *client, const uint8_t hash[32], bool unpin, uint32_t *ret_segments)
{
	struct kvr_request request = {.kind = KVR_REQUEST_PIN};
	int rc;

	if (!client)
		return -EINVAL;
	if (!hash)
		return kvr_client_argument(client, "hash is NULL");
	memcpy(request.pin.segment, hash, sizeof(request.pin.segment));
	request.pin.unpin = unpin;
	rc = ask(client, &request);
	if (rc == 0 && ret_segments)
		*ret_segments = client->reply.pinned.segment_count;
	return rc;
}

static int drop(
	struct kvr_client *client, struct kvr_request *request, struct kvr_dropped *ret_dropped)
{
	int rc = ask(client, request);

	if (rc == 0 && ret_dropped) {
		ret_dropped->segment_count = client->reply.dropped.segment_count;
		ret_dropped->freed_bytes = client->reply.dropped.freed_bytes;
		ret_dropped->kept_count = client->reply.dropped.kept_count;
	}
	return rc;
}

int kvr_drop_segment(
	struct kvr_client *client, const uint8_t hash[32], struct kvr_dropped *ret_dropped)
{
	struct kvr_request request = {.kind = KVR_REQUEST_DROP};

	if (!client)
		return -EINVAL;
	if (!hash)
		return kvr_client_argument(client, "hash is NULL");
	memcpy(request.drop.segment, hash, sizeof(request.drop.segment));
	request.drop.has_segment = true;
	return drop(client, &request, ret_dropped);
}

int kvr_drop_model(struct kvr_client *client, uint32_t model, struct kvr_dropped *ret_dropped)
{
	struct kvr_request request = {.kind = KVR_REQUEST_DROP};

	if (!client)
		return -EINVAL;
	request.drop.model = model;
	return drop(client, &request, ret_dropped);
}

static void to_info(const struct kvr_wire_segment *from, struct kvr_segment_info *ret_info)
{
	memset(ret_info, 0, sizeof(*ret_info));
	memcpy(ret_info->hash, from->hash, sizeof(ret_info->hash));
	if (from->has_parent)
		memcpy(ret_info->parent, from->parent, sizeof(ret_info->parent));
	ret_info->model = from->model;
	ret_info->token_first = from->token_first;
	ret_info->token_count = from->token_count;
	ret_info->stored_bytes = from->stored_bytes;
	ret_info->leases = from->leases;
	ret_info->pins = from->pins;
	ret_info->resident_bytes = from->resident_bytes;
	ret_info->durable = from->durable;
	ret_info->quarantined = from->quarantined;
}

int kvr_segment_list(struct kvr_client *client, uint32_t model, uint32_t first,
	struct kvr_segment_info *ret_segments, uint32_t max)
{
	const struct kvr_reply *reply;
	uint32_t cursor = 0, passed = 0; /* the daemon's own place; entries before `first` */
	uint64_t deadline_ns;
	uint32_t count = 0;
	int rc;

	if (!client)
		return -EINVAL;
	if (!ret_segments && max)
		return kvr_client_argument(client, "ret_segments is NULL");
	reply = &client->reply;
	deadline_ns = kvr_client_deadline(client);
	rc = kvr_client_begin(client, deadline_ns);
	while (rc == 0 && count < max) {
		struct kvr_request request = {.kind = KVR_REQUEST_SEGMENT_LIST};

		request.segment_list.first = cursor;
		request.segment_list.model = model;
		rc = kvr_client_call(client, &request, NULL, deadline_ns);
		if (rc < 0)
			break;
		for (uint32_t i = 0; i < reply->segments.count && count < max; i++) {
			if (passed++ >= first)
				to_info(&reply->segments.entries[i], &ret_segments[count++]);
		}
		if (reply->segments.next == 0)
			break;
		rc = kvr_client_page(client, cursor, reply->segments.next);
		cursor = reply->segments.next;
	}
	return rc < 0 ? rc : (int)count;
}

int kvr_stats(
	struct kvr_client *client, uint32_t first, struct kvr_metric *ret_metrics, uint32_t max)
{
	const struct kvr_reply *reply;
	uint64_t deadline_ns;
	uint32_t count = 0;
	int rc;

	if (!client)
		return -EINVAL;
	if (!ret_metrics && max)
		return kvr_client_argument(client, "ret_metrics is NULL");
	reply = &client->reply;
	deadline_ns = kvr_client_deadline(client);
	rc = kvr_client_begin(client, deadline_ns);
	while (rc == 0 && count < max) {
		struct kvr_request request = {.kind = KVR_REQUEST_STATS};

		request.stats.first = first;
		rc = kvr_client_call(client, &request, NULL, deadline_ns);
		if (rc < 0)
			break;
		for (uint32_t i = 0; i < reply->metrics.count && count < max; i++) {
			const struct kvr_wire_metric *from = &reply->metrics.entries[i];
			struct kvr_metric *into = &ret_metrics[count++];

			memcpy(into->name, from->name, sizeof(into->name));
			into->value = from->value;
			memcpy(into->text, from->text, sizeof(into->text));
		}
		if (reply->metrics.next == 0)
			break;
		rc = kvr_client_page(client, first, reply->metrics.next);
		first = reply->metrics.next;
	}
	return rc < 0 ? rc : (int)count;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* fake_reply_util.c: made-up numbers that a test can recognise. */
#include "tests/client/fake_reply_util.h"

#include <stdio.h>
#include <string.h>

/* How many of FAKE_LIST_TOTAL come in this reply, and where to go on. */
static uint32_t page(uint32_t first, uint32_t *ret_next)
{
	uint32_t left = first < FAKE_LIST_TOTAL ? FAKE_LIST_TOTAL - first : 0;
	uint32_t count = left < FAKE_LIST_PAGE ? left : FAKE_LIST_PAGE;

	*ret_next = left > count ? first + count : 0;
	return count;
}

static void reply_models(struct fake_arrays *arrays, uint32_t first, struct kvr_reply *reply)
{
	reply->models.entries = arrays->models;
	reply->models.count = page(first, &reply->models.next);
	for (uint32_t i = 0; i < reply->models.count; i++) {
		struct kvr_wire_model *each = &arrays->models[i];

		*each = (struct kvr_wire_model){.model = first + i + 1,
			.rank = 3,
			.segment_count = first + i,
			.stored_bytes = 1000,
			.geometry = {2, 4, 2, 64, 32, KVR_DTYPE_BF16, 1024, 16, 16, 0, {0}}};
		snprintf(each->name, sizeof(each->name), "model-%u", first + i);
		memset(each->digest, (int)(first + i), sizeof(each->digest));
	}
}

static void reply_segments(struct fake_arrays *arrays, uint32_t first, struct kvr_reply *reply)
{
	reply->segments.entries = arrays->segments;
	reply->segments.count = page(first, &reply->segments.next);
	for (uint32_t i = 0; i < reply->segments.count; i++) {
		struct kvr_wire_segment *each = &arrays->segments[i];

		*each = (struct kvr_wire_segment){.model = FAKE_MODEL,
			.has_parent = first + i > 0,
			.token_first = (first + i) * 64,
			.token_count = 64,
			.stored_bytes = 4096,
			.leases = 1,
			.pins = 2};
		memset(each->hash, (int)(first + i + 1), sizeof(each->hash));
		memset(each->parent, (int)(first + i), sizeof(each->parent));
	}
}

static void reply_metrics(struct fake_arrays *arrays, uint32_t first, struct kvr_reply *reply)
{
	reply->metrics.entries = arrays->metrics;
	reply->metrics.count = page(first, &reply->metrics.next);
	for (uint32_t i = 0; i < reply->metrics.count; i++) {
		struct kvr_wire_metric *each = &arrays->metrics[i];

		*each = (struct kvr_wire_metric){.value = (double)(first + i) / 2};
		snprintf(each->name, sizeof(each->name), "fake.metric%u", first + i);
		if ((first + i) % 2)
			snprintf(each->text, sizeof(each->text), "text %u", first + i);
	}
}

static void reply_recall(
	struct fake_arrays *arrays, const struct kvr_request *request, struct kvr_reply *reply)
{
	reply->recalled.items = arrays->recalled;
	reply->recalled.count = request->recall.item_count;
	for (uint32_t i = 0; i < request->recall.item_count; i++)
		arrays->recalled[i] = (struct kvr_wire_recalled){1000 + i, 900 + i};
}

/* A good reply to anything. */
void fake_reply_make(
	struct fake_arrays *arrays, const struct kvr_request *request, struct kvr_reply *reply)
{
	struct kvr_geometry *geometry = &reply->model_registered.geometry;

	memset(reply, 0, sizeof(*reply));
	reply->id = request->id;
	reply->kind = request->kind;
	switch (request->kind) {
	case KVR_REQUEST_MODEL_REGISTER:
		reply->model_registered.model = FAKE_MODEL;
		*geometry = request->model_register.geometry;
		if (!geometry->segment_tokens)
			geometry->segment_tokens = KVR_SEGMENT_TOKENS;
		if (!geometry->cluster_tokens)
			geometry->cluster_tokens = KVR_CLUSTER_TOKENS;
		if (geometry->sink_tokens == UINT32_MAX)
			geometry->sink_tokens = KVR_SINK_TOKENS;
		break;
	case KVR_REQUEST_MODEL_LIST: reply_models(arrays, request->model_list.first, reply); break;
	case KVR_REQUEST_OPEN:
		reply->opened.sequence = FAKE_SEQUENCE + arrays->sequences++;
		reply->opened.matched_tokens = request->open.tokens.count / 2;
		break;
	case KVR_REQUEST_APPEND:
		reply->appended.token_count = request->append.first + request->append.count;
		reply->appended.sealed_tokens = request->append.first;
		break;
	case KVR_REQUEST_RECALL: reply_recall(arrays, request, reply); break;
	case KVR_REQUEST_FETCH: reply->fetched.staged_bytes = 1; break;
	case KVR_REQUEST_SYNC: reply->synced.sealed_tokens = 64; break;
	case KVR_REQUEST_FORK:
		reply->opened.sequence = FAKE_SEQUENCE + arrays->sequences++;
		reply->opened.matched_tokens = 33;
		break;
	case KVR_REQUEST_DROP:
		reply->dropped.segment_count = 3;
		reply->dropped.freed_bytes = 4096;
		reply->dropped.kept_count = 1;
		break;
	case KVR_REQUEST_PIN: reply->pinned.segment_count = 5; break;
	case KVR_REQUEST_STATS: reply_metrics(arrays, request->stats.first, reply); break;
	case KVR_REQUEST_SEGMENT_LIST:
		reply_segments(arrays, request->segment_list.first, reply);
		break;
	case KVR_REQUEST_PING:
	case KVR_REQUEST_CLOSE: break;
	}
}

/* SPDX-License-Identifier: Apache-2.0 */
/* model_calls.c: requests about models: register, list. */
#include <string.h>

#include "base/assert.h"
#include "daemon/daemon.h"

/* 0 (sinks: UINT32_MAX) stands for the default. */
static void fill_defaults(struct kvr_geometry *geometry)
{
	if (geometry->segment_tokens == 0)
		geometry->segment_tokens = KVR_SEGMENT_TOKENS;
	if (geometry->cluster_tokens == 0)
		geometry->cluster_tokens = KVR_CLUSTER_TOKENS;
	if (geometry->sink_tokens == UINT32_MAX)
		geometry->sink_tokens = KVR_SINK_TOKENS;
}

enum kvr_outcome kvr_handle_model_register(struct kvr_daemon *daemon, struct kvr_call *call)
{
	struct kvr_geometry *geometry = &call->request.model_register.geometry;
	struct kvr_model *model;

	fill_defaults(geometry);
	if (!kvr_geometry_valid(geometry))
		return kvr_call_refuse(call, KVR_CODE_GEOMETRY,
			"model %s: L %u, H %u, K %u, Dk %u, Dv %u, dtype %d, S %u, c %u, sinks %u",
			call->request.model_register.name, geometry->layer_count,
			geometry->query_heads, geometry->kv_heads, geometry->key_dim,
			geometry->value_dim, (int)geometry->dtype, geometry->segment_tokens,
			geometry->cluster_tokens, geometry->sink_tokens);
	if (kvr_models_register(&daemon->models, call->session->tenant,
		    call->request.model_register.name, call->request.model_register.digest,
		    geometry, call->request.model_register.rank, &model) < 0)
		return kvr_call_refuse(call, KVR_CODE_FULL,
			"%u models of this tenant, or %u of all, are in use; drop the segments of "
			"some",
			KVR_TENANT_MODELS_MAX, KVR_MODELS_MAX);
	call->reply.model_registered.model = model->number;
	call->reply.model_registered.geometry = model->geometry;
	return KVR_OUTCOME_DONE;
}

void kvr_call_models(struct kvr_call *call)
{
	struct kvr_daemon *daemon = call->daemon;
	struct kvr_tenant *tenant = call->session->tenant;
	const uint32_t number = daemon->models.number_last;
	struct kvr_store_model stored;
	uint32_t at = 0;

	/* What cannot be made known stays stored, and is found as soon as it is registered. */
	for (uint32_t count = 0; daemon->store && count < KVR_TENANT_MODELS_MAX &&
				 kvr_store_model_next(daemon->store, tenant->name, &at, &stored);
		count++)
		(void)kvr_models_restore(&daemon->models, tenant, &stored.model, number);
}

static void describe(const struct kvr_daemon *daemon, const struct kvr_model *model,
	struct kvr_wire_model *ret_entry)
{
	uint64_t segments = 0, tokens = 0;

	KVR_ASSERT(model->number > 0);
	if (daemon->store)
		kvr_store_model_count(daemon->store, model->root, &segments, &tokens);
	*ret_entry = (struct kvr_wire_model){
		.model = model->number,
		.geometry = model->geometry,
		.rank = model->rank,
		.segment_count = model->segment_count + (uint32_t)segments,
		.stored_bytes =
			model->stored_bytes + tokens * kvr_geometry_token_bytes(&model->geometry),
	};
	memcpy(ret_entry->name, model->name, sizeof(ret_entry->name));
	memcpy(ret_entry->digest, model->digest, sizeof(ret_entry->digest));
}

/* Of entries without dense lanes, which are told at registration; far below KVR_REPLY_BYTES_MAX. */
#define PAGE_MAX 32u

enum kvr_outcome kvr_handle_model_list(struct kvr_daemon *daemon, struct kvr_call *call)
{
	static struct kvr_wire_model page[PAGE_MAX]; /* packed before the next call runs */
	uint32_t count = 0, at = call->request.model_list.first;

	KVR_STATIC_ASSERT(PAGE_MAX <= KVR_LIST_ENTRIES_MAX);
	if (at == 0)
		kvr_call_models(call);
	for (; at < KVR_MODELS_MAX && count < PAGE_MAX; at++) {
		const struct kvr_model *model = &daemon->models.entries[at];

		if (!model->number || model->tenant != call->session->tenant)
			continue;
		describe(daemon, model, &page[count++]);
	}
	KVR_ASSERT(count <= PAGE_MAX);
	call->reply.models.entries = page;
	call->reply.models.count = count;
	call->reply.models.next = at < KVR_MODELS_MAX ? at : 0;
	return KVR_OUTCOME_DONE;
}

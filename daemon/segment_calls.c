/* SPDX-License-Identifier: Apache-2.0 */
/* segment_calls.c: requests about what is stored: list, pin, drop. A tenant sees its own alone. */
#include <string.h>

#include "base/assert.h"
#include "daemon/daemon.h"

enum kvr_outcome kvr_handle_drop(struct kvr_daemon *daemon, struct kvr_call *call)
{
	const struct kvr_tenant *tenant = call->session->tenant;
	struct kvr_directory *directory = &daemon->directory;
	struct kvr_dropped_count dropped = {0};

	if (call->request.drop.has_segment) {
		uint32_t segment =
			kvr_directory_find_hash(directory, tenant, call->request.drop.segment);

		if (segment == KVR_SEGMENT_NONE)
			return kvr_call_refuse(
				call, KVR_CODE_NO_SEGMENT, "no segment of this hash");
		kvr_directory_drop(directory, segment, &dropped);
	} else {
		struct kvr_model *model =
			kvr_models_find(&daemon->models, tenant, call->request.drop.model);

		if (!model)
			return kvr_call_refuse(
				call, KVR_CODE_NO_MODEL, "model %u", call->request.drop.model);
		kvr_directory_drop_model(directory, model, &dropped);
	}
	call->reply.dropped.segment_count = dropped.segment_count;
	call->reply.dropped.freed_bytes = dropped.freed_bytes;
	call->reply.dropped.kept_count = dropped.kept_count;
	return KVR_OUTCOME_DONE;
}

enum kvr_outcome kvr_handle_pin(struct kvr_daemon *daemon, struct kvr_call *call)
{
	struct kvr_directory *directory = &daemon->directory;
	uint32_t segment = KVR_SEGMENT_NONE;

	if (call->request.pin.sequence) {
		struct kvr_sequence *sequence = kvr_call_sequence(call, call->request.pin.sequence);

		if (!sequence)
			return KVR_OUTCOME_DONE;
		if (sequence->chain_count > 0)
			segment = sequence->chain[sequence->chain_count - 1];
	} else {
		segment = kvr_directory_find_hash(
			directory, call->session->tenant, call->request.pin.segment);
		if (segment == KVR_SEGMENT_NONE)
			return kvr_call_refuse(
				call, KVR_CODE_NO_SEGMENT, "no segment of this hash");
	}
	call->reply.pinned.segment_count =
		kvr_directory_pin(directory, segment, !call->request.pin.unpin);
	return KVR_OUTCOME_DONE;
}

static void describe(const struct kvr_directory *directory, const struct kvr_segment *segment,
	struct kvr_wire_segment *ret_entry)
{
	*ret_entry = (struct kvr_wire_segment){
		.has_parent = segment->parent != KVR_SEGMENT_NONE,
		.model = segment->model->number,
		.token_first = segment->view.token_first,
		.token_count = segment->view.token_count,
		.stored_bytes = segment->payload_bytes,
		.leases = segment->leases,
		.pins = segment->pinned,
	};
	KVR_ASSERT(segment->state == KVR_SEGMENT_READY);
	KVR_ASSERT(!ret_entry->has_parent || segment->view.token_first > 0);
	memcpy(ret_entry->hash, segment->hash, KVR_HASH_BYTES);
	if (ret_entry->has_parent)
		memcpy(ret_entry->parent, directory->segments[segment->parent].hash,
			KVR_HASH_BYTES);
}

/* Slots looked at for one page, which may be short or empty for it: a list of few among many segments
 * does not hold up other requests. */
#define SCAN_MAX 8192u

enum kvr_outcome kvr_handle_segment_list(struct kvr_daemon *daemon, struct kvr_call *call)
{
	static struct kvr_wire_segment page[KVR_LIST_ENTRIES_MAX]; /* packed before the next call */
	const uint32_t model = call->request.segment_list.model;
	const uint32_t first = call->request.segment_list.first;
	uint32_t count = 0, at = first;

	for (; at < KVR_SEGMENTS_MAX && at - first < SCAN_MAX && count < KVR_LIST_ENTRIES_MAX;
		at++) {
		const struct kvr_segment *segment = &daemon->directory.segments[at];

		if (segment->state != KVR_SEGMENT_READY ||
			segment->model->tenant != call->session->tenant ||
			(model && segment->model->number != model))
			continue;
		describe(&daemon->directory, segment, &page[count++]);
	}
	call->reply.segments.entries = page;
	call->reply.segments.count = count;
	call->reply.segments.next = at < KVR_SEGMENTS_MAX ? at : 0;
	return KVR_OUTCOME_DONE;
}

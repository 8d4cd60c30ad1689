/* SPDX-License-Identifier: Apache-2.0 */
/* fetch.c: tokens read back in token order, bit-identical, from chain and tail. In rounds, as recall. */
#include <errno.h>

#include "base/assert.h"
#include "daemon/daemon.h"

static bool check_layer(struct kvr_call *call, const struct kvr_wire_layer *layer,
	const struct kvr_sequence *sequence)
{
	const struct kvr_geometry *geometry = &sequence->model->geometry;
	const uint32_t first = call->request.fetch.first, count = call->request.fetch.count;
	const uint64_t rows = (uint64_t)count * geometry->kv_heads;
	uint32_t have;

	if (layer->layer >= geometry->layer_count) {
		kvr_call_refuse(call, KVR_CODE_ARGUMENT, "layer %u: the model has %u", layer->layer,
			geometry->layer_count);
		return false;
	}
	have = sequence->covered + sequence->fill[layer->layer];
	if (first > have || count > have - first) {
		kvr_call_refuse(call, KVR_CODE_RANGE, "tokens %u to %llu; layer %u has %u", first,
			(unsigned long long)first + count, layer->layer, have);
		return false;
	}
	return kvr_call_region(call, layer->keys, rows * kvr_geometry_key_bytes(geometry), "keys")
		       .data &&
	       kvr_call_region(
		       call, layer->values, rows * kvr_geometry_value_bytes(geometry), "values")
		       .data;
}

static void fill_item(
	const struct kvr_call *call, uint32_t at, uint32_t head, struct kvr_fetch_item *ret_item)
{
	const struct kvr_sequence *sequence = call->sequence;
	const struct kvr_geometry *geometry = &sequence->model->geometry;
	const struct kvr_wire_layer *layer = &call->request.fetch.layers[at];
	const size_t key_bytes = kvr_geometry_key_bytes(geometry);
	const size_t value_bytes = kvr_geometry_value_bytes(geometry);
	uint8_t *region = call->session->region.memory.data;

	*ret_item = (struct kvr_fetch_item){
		.segments = sequence->views,
		.segment_count = sequence->chain_count,
		.tail = &sequence->tail,
		.tail_first = sequence->covered,
		.geometry = geometry,
		.lane = layer->layer * geometry->kv_heads + head,
		.first = call->request.fetch.first,
		.count = call->request.fetch.count,
		.keys = region + layer->keys + head * key_bytes,
		.values = region + layer->values + head * value_bytes,
		.key_stride = geometry->kv_heads * key_bytes,
		.value_stride = geometry->kv_heads * value_bytes,
	};
}

static void round_done(struct kvr_work *work);

static void submit_round(struct kvr_call *call, struct kvr_work *work)
{
	const uint32_t heads = call->sequence->model->geometry.kv_heads;
	uint32_t count = 0;

	while (count < KVR_WORK_ITEMS_MAX && call->cursor_item < call->request.fetch.layer_count) {
		fill_item(call, call->cursor_item, call->cursor_head, &work->items.fetch[count++]);
		if (++call->cursor_head == heads) {
			call->cursor_head = 0;
			call->cursor_item++;
		}
	}
	KVR_ASSERT(count > 0);
	kvr_work_submit(work, KVR_JOB_FETCH, count, true, round_done, call);
}

static void round_done(struct kvr_work *work)
{
	struct kvr_call *call = work->owner;
	struct kvr_sequence *sequence = call->sequence;
	const int status = work->job.status;

	call->reply.fetched.staged_bytes +=
		(uint64_t)work->job.item_count * call->request.fetch.count *
		(kvr_geometry_key_bytes(&sequence->model->geometry) +
			kvr_geometry_value_bytes(&sequence->model->geometry));
	/* For a client that is gone the rounds end here. */
	if (status == 0 && call->cursor_item < call->request.fetch.layer_count &&
		call->session->state == KVR_SESSION_ATTACHED) {
		submit_round(call, work);
		return;
	}
	kvr_work_give(work);
	KVR_ASSERT(status == 0 || status == -EIO); /* device.h */
	KVR_ASSERT(call->works_running == 1);
	call->works_running--;
	KVR_ASSERT(sequence->readers > 0);
	sequence->readers--;
	kvr_sequence_touch(sequence);
	call->daemon->counters.fetch_bytes += call->reply.fetched.staged_bytes;
	if (status < 0)
		kvr_call_refuse(call, KVR_CODE_INTERNAL, "tokens %u to %u could not be read",
			call->request.fetch.first,
			call->request.fetch.first + call->request.fetch.count - 1);
	kvr_call_done(call);
}

enum kvr_outcome kvr_handle_fetch(struct kvr_daemon *daemon, struct kvr_call *call)
{
	struct kvr_sequence *sequence = kvr_call_sequence(call, call->request.fetch.sequence);
	struct kvr_work *work;

	if (!sequence)
		return KVR_OUTCOME_DONE;
	if (kvr_sequence_queued(sequence) || !kvr_sequence_readable(sequence))
		return kvr_call_wait(call, sequence);
	if (call->request.fetch.count == 0 || call->request.fetch.layer_count == 0)
		return kvr_call_refuse(call, KVR_CODE_ARGUMENT, "no tokens or no layers");
	for (uint32_t i = 0; i < call->request.fetch.layer_count; i++) {
		if (!check_layer(call, &call->request.fetch.layers[i], sequence))
			return KVR_OUTCOME_DONE;
	}
	work = kvr_work_take(&daemon->works);
	if (!work)
		return kvr_call_wait_work(call, sequence);
	call->sequence = sequence;
	call->works_running = 1;
	sequence->readers++;
	submit_round(call, work);
	return KVR_OUTCOME_PENDING;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* append.c: keys, values and token ids of some tokens, from the client's region into a tail.
 *
 *   check everything ─► blocks, token ids ─► APPEND items, layer by layer ─► fill moves on ─► reply
 *
 * Nothing counts before all of it is copied and checked: fill and known move only then. One append
 * of a sequence runs at a time. */
#include <errno.h>
#include <string.h>

#include "base/assert.h"
#include "daemon/daemon.h"
#include "daemon/tail.h"

#define CHUNK_TOKENS 256u /* of one item, so that long appends spread over the workers */

/* Refuses unless each layer is named once and `first` is its next position. */
static bool check_layers(struct kvr_call *call, const struct kvr_sequence *sequence)
{
	const struct kvr_geometry *geometry = &sequence->model->geometry;
	const uint32_t first = call->request.append.first;
	uint64_t seen[KVR_LAYERS_MAX / 64] = {0};

	for (uint32_t i = 0; i < call->request.append.layer_count; i++) {
		const uint32_t layer = call->request.append.layers[i].layer;

		if (layer >= geometry->layer_count || (seen[layer / 64] >> (layer % 64) & 1)) {
			kvr_call_refuse(call, KVR_CODE_ARGUMENT,
				"layer %u: the model has %u, each once", layer,
				geometry->layer_count);
			return false;
		}
		seen[layer / 64] |= 1ull << (layer % 64);
		if (first != sequence->covered + sequence->fill[layer]) {
			kvr_call_refuse(call, KVR_CODE_POSITION,
				"layer %u at position %u; its next is %u", layer, first,
				sequence->covered + sequence->fill[layer]);
			return false;
		}
	}
	return true;
}

static bool check_memory(struct kvr_call *call, const struct kvr_geometry *geometry)
{
	const uint64_t rows = (uint64_t)call->request.append.count * geometry->kv_heads;

	for (uint32_t i = 0; i < call->request.append.layer_count; i++) {
		const struct kvr_wire_layer *layer = &call->request.append.layers[i];

		if (!kvr_call_region(
			    call, layer->keys, rows * kvr_geometry_key_bytes(geometry), "keys")
				.data ||
			!kvr_call_region(call, layer->values,
				rows * kvr_geometry_value_bytes(geometry), "values")
				 .data)
			return false;
	}
	return true;
}

/* Holds the ids against those that are known; writes the others behind them, where they do not count
 * before `known` moves. Ids in the region are read once. */
static bool take_tokens(struct kvr_call *call, struct kvr_sequence *sequence, uint32_t at)
{
	const struct kvr_tokens *tokens = &call->request.append.tokens;
	const uint32_t count = call->request.append.count;
	const uint8_t *from = (const uint8_t *)tokens->ids;

	if (tokens->count == 0) {
		if (at + count > sequence->known)
			kvr_call_refuse(call, KVR_CODE_TOKENS, "no ids for positions %u to %u",
				sequence->covered + sequence->known,
				sequence->covered + at + count - 1);
		return at + count <= sequence->known;
	}
	if (!from)
		from = kvr_call_region(call, tokens->offset,
			tokens->count * (uint64_t)sizeof(uint32_t), "token ids")
			       .data;
	if (!from)
		return false;
	KVR_ASSERT(at <= sequence->known); /* Q2: at is some layer's fill */
	for (uint32_t i = 0; i < count; i++) {
		uint32_t id;

		memcpy(&id, from + i * sizeof(id), sizeof(id));
		if (at + i >= sequence->known) {
			*kvr_sequence_token(sequence, at + i) = id;
		} else if (*kvr_sequence_token(sequence, at + i) != id) {
			kvr_call_refuse(call, KVR_CODE_TOKENS, "another id at position %u",
				sequence->covered + at + i);
			return false;
		}
	}
	return true;
}

static void append_done(struct kvr_work *work)
{
	struct kvr_call *call = work->owner;
	struct kvr_daemon *daemon = call->daemon;
	struct kvr_sequence *sequence = call->sequence;
	const uint32_t first = call->request.append.first, count = call->request.append.count;
	const uint32_t layers = call->request.append.layer_count;
	uint32_t bad = 0;

	KVR_ASSERT(sequence->appending);
	KVR_ASSERT(call->works_running == 1);
	sequence->appending = false;
	call->works_running--;
	if (work->job.status == 0) {
		for (uint32_t i = 0; i < layers; i++)
			sequence->fill[call->request.append.layers[i].layer] += count;
		if (first - sequence->covered + count > sequence->known)
			sequence->known = first - sequence->covered + count;
		if (call->start_ns >= sequence->seal.retry_ns)
			sequence->seal.error = 0; /* memory may have become free: try again */
		daemon->counters.append_tokens += count;
		daemon->counters.append_bytes +=
			(uint64_t)count * layers *
			(kvr_geometry_token_bytes(&sequence->model->geometry) /
				sequence->model->geometry.layer_count);
		call->reply.appended.token_count = sequence->covered + kvr_sequence_whole(sequence);
		call->reply.appended.sealed_tokens = sequence->covered;
	} else {
		KVR_ASSERT(work->job.status == -EDOM); /* device.h: there is no other */
		while (work->items.append[bad].status == 0)
			bad++;
		KVR_ASSERT(bad < work->job.item_count);
		kvr_call_refuse(call, KVR_CODE_NOT_FINITE,
			"layer %u, positions %u to %u: a key or value is NaN or infinite",
			work->items.append[bad].layer, first, first + count - 1);
	}
	kvr_tail_shrink(sequence, sequence->known); /* a refusal keeps no memory */
	kvr_work_give(work);
	kvr_sequence_touch(sequence);
	kvr_call_done(call);
}

static void submit(struct kvr_call *call, struct kvr_work *work, uint32_t at)
{
	struct kvr_sequence *sequence = call->sequence;
	const struct kvr_geometry *geometry = &sequence->model->geometry;
	const size_t key_bytes = geometry->kv_heads * kvr_geometry_key_bytes(geometry);
	const size_t value_bytes = geometry->kv_heads * kvr_geometry_value_bytes(geometry);
	const uint8_t *region = call->session->region.memory.data;
	const uint32_t layers = call->request.append.layer_count;
	const uint32_t count = call->request.append.count;
	uint32_t chunk = CHUNK_TOKENS, items = 0;

	while (layers * ((count + chunk - 1) / chunk) > KVR_WORK_ITEMS_MAX)
		chunk *= 2;
	for (uint32_t i = 0; i < layers; i++) {
		const struct kvr_wire_layer *layer = &call->request.append.layers[i];

		for (uint32_t done = 0; done < count; done += chunk)
			work->items.append[items++] = (struct kvr_append_item){
				.keys = region + layer->keys + done * key_bytes,
				.values = region + layer->values + done * value_bytes,
				.tail = &sequence->tail,
				.layer = layer->layer,
				.first = at + done,
				.count = count - done < chunk ? count - done : chunk,
			};
	}
	KVR_ASSERT(items <= KVR_WORK_ITEMS_MAX);
	KVR_ASSERT(at + count <= sequence->block_count * KVR_BLOCK_TOKENS);
	sequence->appending = true;
	call->works_running = 1;
	kvr_work_submit(work, KVR_JOB_APPEND, items, true, append_done, call);
}

/* The tail cannot take so many tokens: waits for a seal that will make room, else refuses. A seal that
 * has failed is tried once more. */
static enum kvr_outcome no_room(struct kvr_call *call, struct kvr_sequence *sequence)
{
	if (sequence->seal.state != KVR_SEAL_IDLE)
		return kvr_call_wait(call, sequence);
	if (sequence->seal.error && !call->started) { /* memory may have become free: try again */
		call->started = true;
		sequence->seal.error = 0;
		kvr_sequence_touch(sequence);
		return kvr_call_wait(call, sequence);
	}
	if (sequence->seal.error)
		return kvr_call_refuse(call, kvr_call_code(sequence->seal.error),
			"sealing sequence %llu", (unsigned long long)sequence->id);
	return kvr_call_refuse(call, KVR_CODE_LIMIT,
		"%u tokens at position %u: a layer may run %u tokens ahead of what is sealed",
		call->request.append.count, call->request.append.first, KVR_TAIL_TOKENS_MAX);
}

enum kvr_outcome kvr_handle_append(struct kvr_daemon *daemon, struct kvr_call *call)
{
	struct kvr_sequence *sequence = kvr_call_sequence(call, call->request.append.sequence);
	const uint32_t first = call->request.append.first, count = call->request.append.count;
	struct kvr_work *work;
	int rc;

	KVR_STATIC_ASSERT(KVR_APPEND_LAYERS_MAX <= KVR_WORK_ITEMS_MAX);
	if (!sequence)
		return KVR_OUTCOME_DONE;
	if (kvr_sequence_queued(sequence) || !kvr_sequence_writable(sequence))
		return kvr_call_wait(call, sequence);
	if (count == 0 || call->request.append.layer_count == 0)
		return kvr_call_refuse(call, KVR_CODE_ARGUMENT, "no tokens or no layers");
	if (call->request.append.tokens.count && call->request.append.tokens.count != count)
		return kvr_call_refuse(call, KVR_CODE_TOKENS, "%u ids for %u tokens",
			call->request.append.tokens.count, count);
	if (!check_layers(call, sequence))
		return KVR_OUTCOME_DONE;
	if (first > KVR_SEQUENCE_TOKENS_MAX || count > KVR_SEQUENCE_TOKENS_MAX - first)
		return kvr_call_refuse(call, KVR_CODE_LIMIT, "a sequence holds at most %u tokens",
			KVR_SEQUENCE_TOKENS_MAX);
	if (!check_memory(call, &sequence->model->geometry))
		return KVR_OUTCOME_DONE;
	if (first - sequence->covered + count > KVR_TAIL_TOKENS_MAX)
		return no_room(call, sequence);
	work = kvr_work_take(&daemon->works);
	if (!work)
		return kvr_call_wait_work(call, sequence);
	rc = kvr_sequence_grow(sequence, first - sequence->covered + count);
	if (rc < 0 || !take_tokens(call, sequence, first - sequence->covered)) {
		kvr_tail_shrink(sequence, sequence->known); /* a refusal keeps no memory */
		kvr_work_give(work);
		if (rc == -EAGAIN)
			return kvr_call_wait_memory(call, sequence);
		return rc == 0 ? KVR_OUTCOME_DONE
			       : kvr_call_refuse(call, kvr_call_code(rc),
					 "%u tokens of sequence %llu", count,
					 (unsigned long long)sequence->id);
	}
	call->sequence = sequence;
	submit(call, work, first - sequence->covered);
	return KVR_OUTCOME_PENDING;
}

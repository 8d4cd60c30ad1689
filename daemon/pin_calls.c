/* SPDX-License-Identifier: Apache-2.0 */
/* pin_calls.c: requests to pin and unpin, in memory and on the disk.
 *
 *   pin ─► memory: the segment and all before it that are here
 *      └─► store: CHAIN (the same, by name, each with a hold) ─► MARK those whose flag differs ─► reply
 *
 * Once the reply is there, what is durable of the chain keeps its pin over a restart. What is not yet in the
 * store is told when it gets there (kvr_directory_stored). The flag on the disk decides what the store may evict; memory
 * tells of its own only when it has changed it (kvr_keep_flush), since a segment may be loaded just
 * before its flag is set here.
 *
 * Threads: the core thread's. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "daemon/daemon.h"

/* A pin that asks the store. */
struct ask {
	struct kvr_store_job chain, mark;
	struct kvr_call *call;
	uint32_t at; /* of the chain, what is marked next */
};

static void submit(struct ask *ask, struct kvr_store_job *job)
{
	struct kvr_daemon *daemon = ask->call->daemon;

	KVR_ASSERT(daemon->store != NULL);
	KVR_ASSERT(ask->call->works_running == 0);
	job->owner = ask;
	ask->call->works_running = 1;
	daemon->asks_running++;
	kvr_store_submit(daemon->store, job);
}

static enum kvr_outcome refuse(struct kvr_call *call)
{
	return kvr_call_refuse(call, KVR_CODE_NO_SEGMENT, "no segment of this hash");
}

/* The last segment that the store has of what ends in `segment`, or KVR_SEGMENT_NONE. */
static uint32_t last_stored(const struct kvr_directory *directory, uint32_t segment)
{
	while (segment != KVR_SEGMENT_NONE &&
		directory->segments[segment].stored != KVR_STORED_YES &&
		directory->segments[segment].stored != KVR_STORED_TWIN)
		segment = directory->segments[segment].parent;
	return segment;
}

/* The segment that a pin names, if it is in memory. False: refused. */
static bool named(struct kvr_call *call, uint32_t *ret_segment)
{
	const struct kvr_directory *directory = &call->daemon->directory;
	const struct kvr_sequence *sequence;

	*ret_segment = KVR_SEGMENT_NONE;
	if (call->request.pin.sequence) {
		sequence = kvr_call_sequence(call, call->request.pin.sequence);
		if (sequence && sequence->chain_count > 0)
			*ret_segment = sequence->chain[sequence->chain_count - 1];
		return sequence != NULL;
	}
	*ret_segment = kvr_directory_find_hash(
		directory, call->session->tenant, call->request.pin.segment);
	return true;
}

enum kvr_outcome kvr_handle_pin(struct kvr_daemon *daemon, struct kvr_call *call)
{
	const uint8_t *hash = call->request.pin.segment;
	struct kvr_directory *directory = &daemon->directory;
	struct ask *ask;
	uint32_t segment;

	if (!named(call, &segment))
		return KVR_OUTCOME_DONE;
	call->started = segment != KVR_SEGMENT_NONE;
	call->reply.pinned.segment_count =
		kvr_directory_pin(directory, segment, !call->request.pin.unpin);
	if (!call->started && call->request.pin.sequence)
		return KVR_OUTCOME_DONE; /* nothing of it is sealed */
	if (call->started) {
		segment = last_stored(directory, segment);
		if (segment == KVR_SEGMENT_NONE)
			return KVR_OUTCOME_DONE;
		hash = directory->segments[segment].hash;
		KVR_ASSERT(daemon->store != NULL); /* or nothing would be stored */
	} else if (!daemon->store) {
		return refuse(call);
	}
	ask = calloc(1, sizeof(*ask));
	if (!ask)
		return kvr_call_refuse(call, KVR_CODE_FULL, "no memory to ask the store");
	ask->call = call;
	ask->chain.op = KVR_STORE_CHAIN;
	memcpy(ask->chain.chain.hash, hash, KVR_HASH_BYTES);
	submit(ask, &ask->chain);
	return KVR_OUTCOME_PENDING;
}

/* ---- what the store has answered ------------------------------------------------------------- */

/* Whether the chain is of one of the tenant's models: others' names say nothing to it. */
static bool is_own(const struct ask *ask)
{
	const struct kvr_store_match *match = &ask->chain.chain.match;
	const struct kvr_models *models = &ask->call->daemon->models;

	for (uint32_t i = 0; i < KVR_MODELS_MAX && match->found_count > 0; i++) {
		const struct kvr_model *model = &models->entries[i];

		if (model->number && model->tenant == ask->call->session->tenant &&
			memcmp(model->root, match->found[0].root, KVR_HASH_BYTES) == 0)
			return true;
	}
	return false;
}

/* The next batch of those whose flag on the disk differs. False: there are none. */
static bool mark(struct ask *ask)
{
	const uint32_t flag = ask->call->request.pin.unpin ? 0 : KVR_CATALOG_PINNED;
	const struct kvr_store_match *match = &ask->chain.chain.match;
	struct kvr_store_mark *into = &ask->mark.mark;

	ask->mark.op = KVR_STORE_MARK;
	into->count = 0;
	for (; ask->at < match->found_count && into->count < KVR_STORE_MARKS_MAX; ask->at++) {
		const struct kvr_store_segment *found = &match->found[ask->at];

		if ((found->flags & KVR_CATALOG_PINNED) == flag)
			continue;
		into->marks[into->count].id = found->id;
		into->marks[into->count].used = found->used;
		into->marks[into->count].flags = flag;
		into->marks[into->count++].kept = KVR_CATALOG_QUARANTINED;
	}
	KVR_ASSERT(into->count <= KVR_STORE_MARKS_MAX);
	KVR_ASSERT(ask->at <= match->found_count);
	if (into->count > 0)
		submit(ask, &ask->mark);
	return into->count > 0;
}

/* What was loaded meanwhile gets the same pin in memory; what is on the disk alone is counted here. */
static uint32_t change(const struct ask *ask)
{
	const bool pin = !ask->call->request.pin.unpin;
	const struct kvr_store_match *match = &ask->chain.chain.match;
	struct kvr_directory *directory = &ask->call->daemon->directory;
	uint32_t last = KVR_SEGMENT_NONE;
	uint32_t changed = 0;

	for (uint32_t i = 0; i < match->found_count; i++) {
		const struct kvr_store_segment *found = &match->found[i];
		const uint32_t segment =
			kvr_directory_find_hash(directory, ask->call->session->tenant, found->hash);

		if (segment != KVR_SEGMENT_NONE)
			last = segment;
		else
			changed += ((found->flags & KVR_CATALOG_PINNED) != 0) != pin;
	}
	return changed + kvr_directory_pin(directory, last, pin);
}

static void end(struct ask *ask)
{
	struct kvr_store_match *match = &ask->chain.chain.match;
	struct kvr_call *call = ask->call;

	KVR_ASSERT(call->works_running == 0);
	KVR_ASSERT(match->found != NULL || match->found_count == 0);
	for (uint32_t i = 0; i < match->found_count; i++)
		kvr_store_unhold(call->daemon->store, match->found[i].id);
	kvr_store_match_fini(match);
	free(ask);
	kvr_call_done(call);
}

/* Whether marks are under way now. */
static bool chain_done(struct ask *ask)
{
	const struct kvr_store_match *match = &ask->chain.chain.match;
	struct kvr_call *call = ask->call;

	if (ask->chain.status < 0 && ask->chain.status != -ENOENT) {
		kvr_call_refuse(call, KVR_CODE_INTERNAL, "looking for a segment: %s",
			strerror(-ask->chain.status));
		return false;
	}
	kvr_call_models(call);
	if (match->found_count == 0 || !is_own(ask)) {
		if (!call->started) /* else it has gone from the disk, and what is here is done */
			refuse(call);
		return false;
	}
	call->reply.pinned.segment_count += change(ask);
	return mark(ask);
}

void kvr_pin_done(struct kvr_daemon *daemon, struct kvr_store_job *job)
{
	struct ask *ask = job->owner;

	KVR_ASSERT(daemon->asks_running > 0);
	KVR_ASSERT(ask->call->works_running == 1);
	KVR_ASSERT(job == &ask->chain || job == &ask->mark);
	daemon->asks_running--;
	ask->call->works_running = 0;
	if (job == &ask->chain) {
		if (chain_done(ask))
			return;
	} else if (job->status < 0) {
		kvr_call_refuse(ask->call, KVR_CODE_INTERNAL, "marking a segment: %s; %s",
			strerror(-job->status), kvr_keep_remedy(job->status));
	} else if (mark(ask)) {
		return;
	}
	end(ask);
}

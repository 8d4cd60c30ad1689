/* SPDX-License-Identifier: Apache-2.0 */
/* segment_calls.c: requests about what is stored: list, drop. A tenant sees its own alone. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "daemon/daemon.h"

/* ---- drop ------------------------------------------------------------------------------------ */

/* A drop or a list that asks the store. */
struct ask {
	struct kvr_store_job job;
	struct kvr_call *call;
	uint32_t model; /* slot of the one that is asked about */
};

static struct ask *ask_new(struct kvr_call *call, enum kvr_store_op op)
{
	struct ask *ask = calloc(1, sizeof(*ask));

	if (!ask)
		return NULL;
	ask->call = call;
	ask->job.op = op;
	ask->job.owner = ask;
	return ask;
}

/* The call stays until the job is done. */
static enum kvr_outcome submit(struct ask *ask)
{
	struct kvr_daemon *daemon = ask->call->daemon;

	kvr_keep_flush(daemon);
	ask->call->works_running = 1;
	daemon->asks_running++;
	kvr_store_submit(daemon->store, &ask->job);
	return KVR_OUTCOME_PENDING;
}

static enum kvr_outcome out_of_memory(struct kvr_call *call)
{
	return kvr_call_refuse(call, KVR_CODE_FULL, "no memory to ask the store");
}

/* The tenant's next model from slot *at on, or NULL. */
static struct kvr_model *next_model(const struct kvr_call *call, uint32_t *at)
{
	for (; *at < KVR_MODELS_MAX; ++*at) {
		struct kvr_model *model = &call->daemon->models.entries[*at];

		if (model->number && model->tenant == call->session->tenant)
			return model;
	}
	return NULL;
}

static void count_dropped(struct kvr_call *call, const struct kvr_dropped_count *dropped)
{
	call->reply.dropped.segment_count += dropped->segment_count;
	call->reply.dropped.freed_bytes += dropped->freed_bytes;
	call->reply.dropped.kept_count += dropped->kept_count;
}

/* What is in memory goes at once; what the store has, by the store, which tells what is gone. */
static enum kvr_outcome drop_model(struct kvr_call *call, struct kvr_model *model)
{
	struct kvr_dropped_count dropped = {0};
	struct ask *ask;

	kvr_directory_drop_model(&call->daemon->directory, model, &dropped);
	count_dropped(call, &dropped);
	if (!call->daemon->store)
		return KVR_OUTCOME_DONE;
	ask = ask_new(call, KVR_STORE_DROP);
	if (!ask)
		return out_of_memory(call);
	ask->model = KVR_MODELS_MAX;
	ask->job.drop.all = true;
	memcpy(ask->job.drop.root, model->root, KVR_HASH_BYTES);
	return submit(ask);
}

/* Asks for the segment under the tenant's models, one after the other: it is one of theirs or nobody's. */
static enum kvr_outcome drop_segment(struct kvr_call *call)
{
	struct kvr_directory *directory = &call->daemon->directory;
	const uint32_t segment = kvr_directory_find_hash(
		directory, call->session->tenant, call->request.drop.segment);
	struct kvr_dropped_count dropped = {0};
	const struct kvr_model *model;
	struct ask *ask;

	if (segment != KVR_SEGMENT_NONE)
		kvr_directory_drop(directory, segment, &dropped);
	count_dropped(call, &dropped);
	call->started = segment != KVR_SEGMENT_NONE;
	if (!call->daemon->store)
		return call->started ? KVR_OUTCOME_DONE
				     : kvr_call_refuse(call, KVR_CODE_NO_SEGMENT,
					       "no segment of this hash");
	ask = ask_new(call, KVR_STORE_DROP);
	if (!ask)
		return out_of_memory(call);
	kvr_call_models(call);
	model = next_model(call, &ask->model);
	if (!model) {
		free(ask);
		return kvr_call_refuse(call, KVR_CODE_NO_SEGMENT, "no segment of this hash");
	}
	memcpy(ask->job.drop.hash, call->request.drop.segment, KVR_HASH_BYTES);
	memcpy(ask->job.drop.root, model->root, KVR_HASH_BYTES);
	return submit(ask);
}

enum kvr_outcome kvr_handle_drop(struct kvr_daemon *daemon, struct kvr_call *call)
{
	struct kvr_model *model;

	if (kvr_audit_yield(&daemon->audit, call->session->tenant))
		return kvr_call_wait_on(call, &daemon->audit.waiters);
	if (call->request.drop.has_segment)
		return drop_segment(call);
	model = kvr_models_find(&daemon->models, call->session->tenant, call->request.drop.model);
	if (!model)
		return kvr_call_refuse(
			call, KVR_CODE_NO_MODEL, "model %u", call->request.drop.model);
	return drop_model(call, model);
}

/* Ends a drop, or goes on with the next model. Returns whether it has ended. */
static bool drop_done(struct ask *ask)
{
	struct kvr_call *call = ask->call;
	const struct kvr_store_drop *drop = &ask->job.drop;
	const struct kvr_dropped_count dropped = {
		drop->segment_count, drop->freed_bytes, drop->kept_count};
	const struct kvr_model *model;

	if (ask->job.status == -ENOENT && !drop->all) {
		ask->model++;
		model = next_model(call, &ask->model);
		if (model) {
			memcpy(ask->job.drop.root, model->root, KVR_HASH_BYTES);
			submit(ask);
			return false;
		}
		if (!call->started)
			kvr_call_refuse(call, KVR_CODE_NO_SEGMENT, "no segment of this hash");
		return true;
	}
	count_dropped(call, &dropped);
	if (ask->job.status < 0 && ask->job.status != -ENOENT)
		kvr_call_refuse(call, KVR_CODE_INTERNAL, "dropping: %s; %s",
			strerror(-ask->job.status), kvr_keep_remedy(ask->job.status));
	return true;
}

/* ---- list ------------------------------------------------------------------------------------ */

static void describe(const struct kvr_directory *directory, const struct kvr_segment *segment,
	struct kvr_wire_segment *ret_entry)
{
	*ret_entry = (struct kvr_wire_segment){
		.has_parent = segment->parent != KVR_SEGMENT_NONE,
		.model = segment->model->number,
		.token_first = segment->view.token_first,
		.token_count = segment->view.token_count,
		.stored_bytes = kvr_directory_token_bytes(segment),
		.resident_bytes = kvr_directory_token_bytes(segment),
		.leases = segment->leases,
		.pins = segment->pinned,
		.quarantined = segment->quarantined,
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

/* A page's number: slots of the memory's table first; then, with LIST_STORED, the model's slot and how many of its
 * stored segments were listed. */
#define LIST_STORED      0x80000000u
#define LIST_MODEL_SHIFT 23
#define LIST_SKIP_MASK   ((1u << LIST_MODEL_SHIFT) - 1)
KVR_STATIC_ASSERT(KVR_MODELS_MAX <= 1u << (31 - LIST_MODEL_SHIFT));
KVR_STATIC_ASSERT(KVR_STORE_LIST_MAX <= KVR_LIST_ENTRIES_MAX);

static struct kvr_wire_segment page[KVR_LIST_ENTRIES_MAX]; /* packed before the next call */

static bool listed(const struct kvr_call *call, const struct kvr_model *model)
{
	return model->tenant == call->session->tenant &&
	       (!call->request.segment_list.model ||
		       model->number == call->request.segment_list.model);
}

static void describe_stored(const struct kvr_daemon *daemon, const struct kvr_model *model,
	const struct kvr_store_segment *stored, struct kvr_wire_segment *ret_entry)
{
	const uint32_t index =
		kvr_directory_find_hash(&daemon->directory, model->tenant, stored->hash);
	const struct kvr_segment *segment;

	*ret_entry = (struct kvr_wire_segment){
		.has_parent = stored->token_first > 0,
		.model = model->number,
		.token_first = stored->token_first,
		.token_count = stored->token_count,
		.stored_bytes =
			stored->token_count * (uint64_t)kvr_geometry_token_bytes(&model->geometry),
		.pins = (stored->flags & KVR_CATALOG_PINNED) != 0,
		.durable = true,
		.quarantined = (stored->flags & KVR_CATALOG_QUARANTINED) != 0,
	};
	if (index != KVR_SEGMENT_NONE) {
		segment = &daemon->directory.segments[index];
		ret_entry->leases = segment->leases;
		ret_entry->pins |= segment->pinned;
		ret_entry->quarantined |= segment->quarantined;
		ret_entry->resident_bytes = segment->stored == KVR_STORED_YES
						    ? segment->kept_bytes
						    : kvr_directory_token_bytes(segment);
	}
	memcpy(ret_entry->hash, stored->hash, KVR_HASH_BYTES);
	memcpy(ret_entry->parent, stored->parent, KVR_HASH_BYTES);
}

/* Where pages ended lately: the one behind it goes on there, and need not pass over all that was listed before. What is
 * not here any more costs just that. */
static struct place {
	uint32_t model, skip; /* number, and segments listed up to here */
	uint8_t hash[KVR_HASH_BYTES];
} places[16];

static void remember_place(uint32_t model, uint32_t skip, const uint8_t hash[KVR_HASH_BYTES])
{
	static uint32_t next;
	const uint32_t max = sizeof(places) / sizeof(places[0]);
	uint32_t at = 0;

	while (at < max && (places[at].model != model || places[at].skip != skip))
		at++;
	if (at == max)
		at = next++ % max;
	places[at] = (struct place){.model = model, .skip = skip};
	memcpy(places[at].hash, hash, KVR_HASH_BYTES);
}

static void find_place(uint32_t model, uint32_t skip, uint8_t ret_hash[KVR_HASH_BYTES])
{
	KVR_ASSERT(model > 0);
	memset(ret_hash, 0, KVR_HASH_BYTES);
	for (size_t i = 0; i < sizeof(places) / sizeof(places[0]) && skip > 0; i++) {
		if (places[i].model == model && places[i].skip == skip)
			memcpy(ret_hash, places[i].hash, KVR_HASH_BYTES);
	}
}

/* The page of the store that begins at model slot and skip; `ask` NULL: the first. */
static enum kvr_outcome list_stored(
	struct kvr_call *call, struct ask *ask, uint32_t at, uint32_t skip)
{
	struct kvr_model *model;

	for (;; at++) {
		model = next_model(call, &at);
		if (!model || listed(call, model))
			break;
	}
	if (!model) {
		call->reply.segments.next = 0;
		return KVR_OUTCOME_DONE;
	}
	if (!ask)
		ask = ask_new(call, KVR_STORE_LIST);
	if (!ask)
		return out_of_memory(call);
	KVR_ASSERT(at < KVR_MODELS_MAX);
	KVR_ASSERT(&call->daemon->models.entries[at] == model);
	ask->model = at;
	model->users++; /* M2: until it is done */
	ask->job.list.skip = skip;
	find_place(model->number, skip, ask->job.list.after);
	memcpy(ask->job.list.root, model->root, KVR_HASH_BYTES);
	return submit(ask);
}

static bool list_done(struct ask *ask)
{
	struct kvr_call *call = ask->call;
	const struct kvr_store_list *list = &ask->job.list;
	struct kvr_model *model = &call->daemon->models.entries[ask->model];
	const uint32_t skip = list->skip + list->count;

	KVR_ASSERT(model->users > 0);
	KVR_ASSERT(list->count <= KVR_STORE_LIST_MAX);
	KVR_ASSERT(list->count > 0 || !list->more);
	model->users--;
	if (ask->job.status < 0) {
		kvr_call_refuse(call, KVR_CODE_INTERNAL, "listing: %s", strerror(-ask->job.status));
		return true;
	}
	if (list->count == 0 && !list->more) {
		enum kvr_outcome outcome = list_stored(call, ask, ask->model + 1, 0);

		return outcome == KVR_OUTCOME_DONE;
	}
	for (uint32_t i = 0; i < list->count; i++)
		describe_stored(call->daemon, model, &list->entries[i], &page[i]);
	call->reply.segments.entries = page;
	call->reply.segments.count = list->count;
	if (list->more)
		remember_place(model->number, skip, list->entries[list->count - 1].hash);
	if (list->more)
		call->reply.segments.next =
			LIST_STORED | ask->model << LIST_MODEL_SHIFT | (skip & LIST_SKIP_MASK);
	else
		call->reply.segments.next = ask->model + 1 < KVR_MODELS_MAX
						    ? LIST_STORED | (ask->model + 1)
									    << LIST_MODEL_SHIFT
						    : 0;
	return true;
}

enum kvr_outcome kvr_handle_segment_list(struct kvr_daemon *daemon, struct kvr_call *call)
{
	const uint32_t first = call->request.segment_list.first;
	uint32_t count = 0, at = first;

	if (first == 0)
		kvr_call_models(call);
	if (first & LIST_STORED)
		return daemon->store
			       ? list_stored(call, NULL, (first & ~LIST_STORED) >> LIST_MODEL_SHIFT,
					 first & LIST_SKIP_MASK)
			       : KVR_OUTCOME_DONE;
	for (; at < KVR_SEGMENTS_MAX && at - first < SCAN_MAX && count < KVR_LIST_ENTRIES_MAX;
		at++) {
		const struct kvr_segment *segment = &daemon->directory.segments[at];

		if (segment->state == KVR_SEGMENT_READY && segment->stored != KVR_STORED_YES &&
			segment->stored != KVR_STORED_TWIN && listed(call, segment->model))
			describe(&daemon->directory, segment, &page[count++]);
	}
	call->reply.segments.entries = page;
	call->reply.segments.count = count;
	call->reply.segments.next = at < KVR_SEGMENTS_MAX ? at : daemon->store ? LIST_STORED : 0;
	return KVR_OUTCOME_DONE;
}

/* ---- what the store has answered ------------------------------------------------------------- */

void kvr_segment_done(struct kvr_daemon *daemon, struct kvr_store_job *job)
{
	struct ask *ask = job->owner;
	struct kvr_call *call = ask->call;

	KVR_ASSERT(daemon->asks_running > 0);
	KVR_ASSERT(call->works_running == 1);
	daemon->asks_running--;
	call->works_running = 0;
	if (job->op == KVR_STORE_DROP ? !drop_done(ask) : !list_done(ask))
		return;
	free(ask);
	kvr_call_done(call);
}

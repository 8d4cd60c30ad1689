/* SPDX-License-Identifier: Apache-2.0 */
/* find.c: opening sequences on what the store has. */
#include "daemon/find.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "daemon/cache.h"
#include "daemon/daemon.h"
#include "daemon/log.h"

struct find {
	struct kvr_store_job match, load;
	struct kvr_call *call;
	struct kvr_model *model;
	struct kvr_waiter waiter; /* for another's build, or for memory */
	uint32_t *chain;          /* leased, oldest first: of match.match.found[0 .. at) */
	uint32_t at;
	uint32_t loading; /* the BUILDING segment of found[at]; KVR_SEGMENT_NONE */
	uint32_t tokens[KVR_SEGMENT_TOKENS_MAX]; /* its ids as they were stored */
};

static void go_on(struct find *find);

static void wake(struct kvr_waiter *waiter)
{
	go_on(KVR_CONTAINER_OF(waiter, struct find, waiter));
}

static void name(const void *context, const uint8_t parent[KVR_HASH_BYTES], const uint32_t *tokens,
	uint32_t count, uint8_t ret_hash[KVR_HASH_BYTES])
{
	kvr_model_name(context, parent, tokens, count, ret_hash);
}

int kvr_find_start(struct kvr_call *call, struct kvr_model *model, const uint32_t *tokens,
	uint32_t token_count)
{
	struct find *find = calloc(1, sizeof(*find));

	if (!find)
		return -ENOMEM;
	find->call = call;
	find->model = model;
	find->loading = KVR_SEGMENT_NONE;
	kvr_waiter_init(&find->waiter, wake);
	find->match = (struct kvr_store_job){
		.op = KVR_STORE_MATCH,
		.owner = find,
		.match = {.name = name,
			.name_context = model,
			.tokens = tokens,
			.token_count = token_count},
	};
	memcpy(find->match.match.root, model->root, KVR_HASH_BYTES);
	model->users++; /* M2 */
	call->works_running = 1;
	call->daemon->asks_running++;
	kvr_store_submit(call->daemon->store, &find->match);
	return 0;
}

/* ---- the end --------------------------------------------------------------------------------- */

static void end(struct find *find)
{
	struct kvr_call *call = find->call;
	struct kvr_daemon *daemon = call->daemon;
	struct kvr_store_match *match = &find->match.match;

	KVR_ASSERT(find->loading == KVR_SEGMENT_NONE);
	KVR_ASSERT(kvr_list_empty(&find->waiter.link));
	/* What is loaded is in memory now, and leased: the best match is the memory's. */
	if (call->session->state == KVR_SESSION_ATTACHED)
		kvr_call_open(call, find->model, match->tokens, match->token_count);
	for (uint32_t i = 0; find->chain && i < find->at; i++)
		kvr_directory_unlease(&daemon->directory, find->chain[i]);
	for (uint32_t i = find->at; i < match->found_count; i++)
		kvr_store_unhold(daemon->store, match->found[i].id);
	kvr_store_match_fini(match);
	find->model->users--;
	free(find->chain);
	free(find);
	call->works_running = 0;
	KVR_ASSERT(daemon->asks_running > 0);
	daemon->asks_running--;
	kvr_call_done(call);
}

/* ---- one segment after the other ------------------------------------------------------------- */

/* The segment of this name in memory, READY or BUILDING, under `parent`. */
static uint32_t in_memory(const struct find *find, const struct kvr_store_segment *found)
{
	const struct kvr_directory *directory = &find->call->daemon->directory;
	const uint32_t *tokens = find->match.match.tokens + found->token_first;
	const uint32_t parent = find->at ? find->chain[find->at - 1] : KVR_SEGMENT_NONE;

	return kvr_directory_find(
		directory, find->model, parent, found->hash, tokens, found->token_count);
}

/* Begins to load found[at]. Returns 0, -EAGAIN (memory will be free), or another error: it ends here. */
static int load(struct find *find)
{
	struct kvr_daemon *daemon = find->call->daemon;
	struct kvr_directory *directory = &daemon->directory;
	const struct kvr_store_segment *found = &find->match.match.found[find->at];
	const uint32_t parent = find->at ? find->chain[find->at - 1] : KVR_SEGMENT_NONE;
	const uint32_t covered = find->at ? found[-1].token_first + found[-1].token_count : 0;
	struct kvr_segment *segment;
	int rc;

	if (found->token_first != covered || found->token_count == 0 ||
		found->token_count > find->model->geometry.segment_tokens)
		return -EBADMSG; /* the catalog is wrong; loading would tell */
	rc = kvr_directory_begin(directory, find->model, parent, found->hash,
		find->match.match.tokens + covered, found->token_count, &find->loading);
	if (rc < 0)
		return rc;
	segment = &directory->segments[find->loading];
	find->load = (struct kvr_store_job){.op = KVR_STORE_LOAD, .owner = find};
	find->load.load = (struct kvr_store_load){
		.id = found->id,
		.view = &segment->view,
		.tokens = find->tokens,
		.parts = segment->parts,
		.crcs = segment->crcs,
	};
	memcpy(find->load.load.hash, found->hash, KVR_HASH_BYTES);
	kvr_store_submit(daemon->store, &find->load);
	return 0;
}

/* found[at] is READY: the match's hold makes way for a lease. False: it has gone meanwhile. */
static bool take(struct find *find, uint32_t index)
{
	struct kvr_daemon *daemon = find->call->daemon;

	if (daemon->directory.segments[index].quarantined ||
		!kvr_directory_lease(&daemon->directory, index))
		return false;
	KVR_ASSERT(find->at < find->match.match.found_count);
	KVR_ASSERT(daemon->directory.segments[index].state == KVR_SEGMENT_READY);
	kvr_store_unhold(daemon->store, find->match.match.found[find->at].id);
	find->chain[find->at++] = index;
	return true;
}

static void go_on(struct find *find)
{
	struct kvr_daemon *daemon = find->call->daemon;
	const struct kvr_store_match *match = &find->match.match;

	while (find->at < match->found_count &&
		find->call->session->state == KVR_SESSION_ATTACHED) {
		const uint32_t index = in_memory(find, &match->found[find->at]);
		struct kvr_segment *segment = &daemon->directory.segments[index];
		int rc;

		if (index == KVR_SEGMENT_NONE) {
			rc = load(find);
			if (rc == 0)
				return;
			if (rc != -EAGAIN)
				break;
			kvr_list_push(&daemon->cache.waiters, &find->waiter.link);
			return;
		}
		if (segment->state == KVR_SEGMENT_BUILDING) {
			kvr_list_push(&segment->waiters, &find->waiter.link);
			return;
		}
		if (!take(find, index))
			break;
	}
	end(find);
}

static void matched(struct find *find)
{
	const struct kvr_store_match *match = &find->match.match;

	if (match->found_count > 0)
		find->chain = calloc(match->found_count, sizeof(*find->chain));
	if (match->found_count > 0 && !find->chain)
		end(find);
	else
		go_on(find);
}

static void loaded(struct find *find)
{
	struct kvr_daemon *daemon = find->call->daemon;
	struct kvr_directory *directory = &daemon->directory;
	const uint64_t id = find->load.load.id;
	const uint32_t index = find->loading;
	struct kvr_segment *segment = &directory->segments[index];
	/* The ids that were stored and those of the prompt: a name alone never decides (G1). */
	const bool same = memcmp(segment->tokens, find->tokens,
				  segment->view.token_count * sizeof(*segment->tokens)) == 0;
	struct kvr_list waiters, *node;

	find->loading = KVR_SEGMENT_NONE;
	kvr_list_init(&waiters);
	while ((node = kvr_list_pop(&segment->waiters)))
		kvr_list_push(&waiters, node);
	if (find->load.status == 0 && same) {
		kvr_store_hold(daemon->store, id); /* succeeds: the match has one */
		segment->pinned =
			(find->match.match.found[find->at].flags & KVR_CATALOG_PINNED) != 0;
		kvr_directory_stored(directory, index, id);
		kvr_directory_publish(directory, index);
		kvr_waiters_wake(&waiters);
		go_on(find);
		return;
	}
	if (find->load.status == -EIO || find->load.status == -EBADMSG) {
		kvr_log(KVR_LOG_ERROR,
			"segment %llu cannot be read (%s) and is not used any more; "
			"kvrecall verify tells what is damaged",
			(unsigned long long)id, strerror(-find->load.status));
		kvr_keep_quarantine(&daemon->keep, id);
		daemon->counters.quarantined++;
	}
	kvr_directory_remove(directory, index);
	kvr_waiters_wake(&waiters);
	end(find);
}

void kvr_find_done(struct kvr_daemon *daemon, struct kvr_store_job *job)
{
	struct find *find = job->owner;

	KVR_ASSERT(find->call->daemon == daemon);
	KVR_ASSERT(job == &find->match || job == &find->load);
	if (job == &find->match)
		matched(find);
	else
		loaded(find);
}

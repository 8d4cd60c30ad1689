/* SPDX-License-Identifier: Apache-2.0 */
/* sequence_calls.c: requests about a sequence's life: open, fork, sync, close. */
#include <errno.h>
#include <string.h>

#include "base/assert.h"
#include "daemon/daemon.h"

/* The ids of a request, inline or in the region; NULL with a refusal, or where there are none. */
static const uint32_t *tokens_of(struct kvr_call *call, const struct kvr_tokens *tokens)
{
	struct kvr_span span;

	if (tokens->ids || tokens->count == 0)
		return tokens->ids;
	if (tokens->offset % sizeof(uint32_t) != 0) {
		kvr_call_refuse(
			call, KVR_CODE_ARGUMENT, "token ids at an offset that 4 does not divide");
		return NULL;
	}
	span = kvr_call_region(
		call, tokens->offset, tokens->count * (uint64_t)sizeof(uint32_t), "token ids");
	return (const uint32_t *)(const void *)span.data;
}

#define OPEN_TRIES 8 /* what the store lets go of meanwhile is not matched again */

enum kvr_outcome kvr_call_open(
	struct kvr_call *call, struct kvr_model *model, const uint32_t *ids, uint32_t count)
{
	struct kvr_directory *directory = &call->daemon->directory;
	struct kvr_sequence *sequence;
	int rc = -EAGAIN;

	for (int tries = 0; tries < OPEN_TRIES && rc == -EAGAIN; tries++) {
		const uint32_t last = ids && tries < OPEN_TRIES - 1
					      ? kvr_directory_match(directory, model, ids, count)
					      : KVR_SEGMENT_NONE;

		rc = kvr_sequence_open(call->daemon, call->session, model, last, &sequence);
		if (rc == -EAGAIN)
			kvr_directory_gone(directory);
	}
	if (rc < 0)
		return kvr_call_refuse(call, kvr_call_code(rc), "opening a sequence");
	directory->asked_tokens += count;
	directory->matched_tokens += sequence->covered;
	call->reply.opened.sequence = sequence->id;
	call->reply.opened.matched_tokens = sequence->covered;
	return KVR_OUTCOME_DONE;
}

enum kvr_outcome kvr_handle_open(struct kvr_daemon *daemon, struct kvr_call *call)
{
	const struct kvr_tokens *tokens = &call->request.open.tokens;
	struct kvr_model *model =
		kvr_models_find(&daemon->models, call->session->tenant, call->request.open.model);
	const uint32_t *ids;
	uint32_t last;
	int rc;

	if (!model)
		return kvr_call_refuse(
			call, KVR_CODE_NO_MODEL, "model %u", call->request.open.model);
	if (tokens->count > KVR_SEQUENCE_TOKENS_MAX)
		return kvr_call_refuse(call, KVR_CODE_LIMIT, "%u token ids; at most %u",
			tokens->count, KVR_SEQUENCE_TOKENS_MAX);
	ids = tokens_of(call, tokens);
	if (call->reply.code)
		return KVR_OUTCOME_DONE;
	last = ids ? kvr_directory_match(&daemon->directory, model, ids, tokens->count)
		   : KVR_SEGMENT_NONE;
	if (ids && daemon->store && kvr_directory_end(&daemon->directory, last) < tokens->count) {
		rc = kvr_find_start(call, model, ids, tokens->count);
		return rc == 0 ? KVR_OUTCOME_PENDING
			       : kvr_call_refuse(call, kvr_call_code(rc), "looking into the store");
	}
	return kvr_call_open(call, model, ids, tokens->count);
}

/* ---- fork ------------------------------------------------------------------------------------ */

static void fork_done(struct kvr_work *work)
{
	struct kvr_call *call = work->owner;
	struct kvr_sequence *from = call->sequence, *made = call->made;

	kvr_work_give(work);
	call->works_running--;
	KVR_ASSERT(from->readers > 0);
	KVR_ASSERT(from->copying > 0);
	from->readers--;
	from->copying--;
	made->appending = false;
	kvr_sequence_touch(from);
	kvr_sequence_touch(made);
	call->reply.opened.sequence = made->id;
	call->reply.opened.matched_tokens = made->covered + kvr_sequence_whole(made);
	kvr_call_done(call);
}

/* Gives `made` the counters and empty blocks of `from`. */
static int copy_tail(struct kvr_sequence *made, const struct kvr_sequence *from)
{
	int rc = kvr_sequence_grow(made, from->known);

	if (rc < 0)
		return rc;
	memcpy(made->fill, from->fill, sizeof(made->fill));
	made->known = from->known;
	return 0;
}

enum kvr_outcome kvr_handle_fork(struct kvr_daemon *daemon, struct kvr_call *call)
{
	struct kvr_sequence *from = kvr_call_sequence(call, call->request.fork.sequence), *made;
	struct kvr_work *work;
	uint32_t last, blocks;
	int rc;

	KVR_STATIC_ASSERT(KVR_TAIL_BLOCKS_MAX <= KVR_WORK_ITEMS_MAX);
	if (!from)
		return KVR_OUTCOME_DONE;
	if (kvr_sequence_queued(from) || !kvr_sequence_readable(from))
		return kvr_call_wait(call, from);
	work = kvr_work_take(&daemon->works);
	if (!work)
		return kvr_call_wait_work(call, from);
	last = from->chain_count ? from->chain[from->chain_count - 1] : KVR_SEGMENT_NONE;
	rc = kvr_sequence_open(daemon, call->session, from->model, last, &made);
	if (rc == 0) {
		rc = copy_tail(made, from);
		if (rc < 0)
			kvr_sequence_close(made, true);
	}
	blocks = from->block_count;
	if (rc < 0 || from->known == 0) {
		kvr_work_give(work);
		if (rc == -EAGAIN)
			return kvr_call_wait_memory(call, from);
		if (rc < 0)
			return kvr_call_refuse(call, kvr_call_code(rc), "forking sequence %llu",
				(unsigned long long)from->id);
		call->reply.opened.sequence = made->id;
		call->reply.opened.matched_tokens = made->covered;
		return KVR_OUTCOME_DONE;
	}
	KVR_ASSERT(made->block_count <= blocks);
	for (uint32_t i = 0; i < made->block_count; i++)
		work->items.copy[i] = (struct kvr_copy_item){
			made->blocks[i], from->blocks[i], kvr_sequence_block_bytes(from)};
	call->sequence = from;
	call->made = made;
	call->works_running = 1;
	from->readers++;
	from->copying++;
	made->appending = true;
	kvr_work_submit(work, KVR_JOB_COPY, made->block_count, true, fork_done, call);
	return KVR_OUTCOME_PENDING;
}

/* ---- sync and close -------------------------------------------------------------------------- */

/* Waits until the first cursor_item segments of the chain are durable. Not in the sequence's queue: others go on meanwhile. */
static enum kvr_outcome wait_durable(
	struct kvr_daemon *daemon, struct kvr_call *call, const struct kvr_sequence *sequence)
{
	const uint32_t count = call->cursor_item;
	const struct kvr_segment *last;
	int rc;

	KVR_ASSERT(count <= sequence->chain_count);
	call->reply.synced.sealed_tokens = 0;
	if (count == 0)
		return KVR_OUTCOME_DONE;
	last = &daemon->directory.segments[sequence->chain[count - 1]];
	rc = daemon->store ? kvr_keep_status(&daemon->directory, sequence->chain[count - 1]) : 0;
	if (rc == -EINPROGRESS)
		return kvr_call_wait_on(call, &daemon->keep.waiters);
	if (rc < 0)
		return kvr_call_refuse(call, KVR_CODE_NOT_STORED, "sequence %llu: %s: %s",
			(unsigned long long)sequence->id, strerror(-rc), kvr_keep_remedy(rc));
	call->reply.synced.sealed_tokens = last->view.token_first + last->view.token_count;
	return KVR_OUTCOME_DONE;
}

/* Starts what the request asks for, then waits until the sequence has nothing to seal, and what is sealed is
 * durable. */
enum kvr_outcome kvr_handle_sync(struct kvr_daemon *daemon, struct kvr_call *call)
{
	struct kvr_sequence *sequence = kvr_call_sequence(call, call->request.sync.sequence);
	uint32_t whole, count;

	if (!sequence)
		return KVR_OUTCOME_DONE;
	if (call->cursor_item > 0)
		return wait_durable(daemon, call, sequence);
	if (kvr_sequence_queued(sequence) || sequence->appending ||
		sequence->seal.state != KVR_SEAL_IDLE)
		return kvr_call_wait(call, sequence);
	if (call->started && sequence->seal.error)
		return kvr_call_refuse(call, kvr_call_code(sequence->seal.error),
			"sealing sequence %llu", (unsigned long long)sequence->id);
	whole = kvr_sequence_whole(sequence);
	count = sequence->model->geometry.segment_tokens;
	if (whole < count)
		count = call->request.sync.seal_tail ? whole : 0;
	if (count == 0) {
		call->cursor_item = sequence->chain_count;
		return wait_durable(daemon, call, sequence);
	}
	call->started = true;
	kvr_seal_start(sequence, count);
	return kvr_call_wait(call, sequence);
}

enum kvr_outcome kvr_handle_close(struct kvr_daemon *daemon, struct kvr_call *call)
{
	struct kvr_sequence *sequence = kvr_call_sequence(call, call->request.close.sequence);

	(void)daemon;
	if (!sequence)
		return KVR_OUTCOME_DONE;
	/* What was sent before it comes before it: an append may still be waiting. */
	if (kvr_sequence_queued(sequence) || sequence->appending)
		return kvr_call_wait(call, sequence);
	kvr_sequence_close(sequence, call->request.close.discard_tail);
	return KVR_OUTCOME_DONE;
}

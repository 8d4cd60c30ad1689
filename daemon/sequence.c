/* SPDX-License-Identifier: Apache-2.0 */
/* sequence.c: opening, growing, settling and ending sequences. The tail's memory is in tail.c; what
 * requests do with a sequence is in the files of their handlers. */
#include "daemon/sequence.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "daemon/daemon.h"
#include "daemon/tail.h"

static void wake(struct kvr_waiter *waiter);

#define INDEX_BITS      20u /* of an id; the rest counts, so that ids are never used again */
#define CHAIN_MAX_FIRST 16u
KVR_STATIC_ASSERT(KVR_SEQUENCES_MAX <= 1u << INDEX_BITS);

int kvr_sequences_open(struct kvr_sequences *sequences)
{
	*sequences = (struct kvr_sequences){0};
	kvr_list_init(&sequences->dirty);
	sequences->entries = calloc(KVR_SEQUENCES_MAX, sizeof(struct kvr_sequence *));
	sequences->tokens = calloc(KVR_SEGMENT_TOKENS_MAX, sizeof(*sequences->tokens));
	if (sequences->entries && sequences->tokens)
		return 0;
	kvr_sequences_close(sequences);
	return -ENOMEM;
}

void kvr_sequences_close(struct kvr_sequences *sequences)
{
	KVR_ASSERT(sequences->count == 0);
	free(sequences->entries);
	free(sequences->tokens);
	*sequences = (struct kvr_sequences){0};
}

/* ---- chain ----------------------------------------------------------------------------------- */

/* Room for one more segment. Only while no reader holds the arrays (Q3). */
static int grow_chain(struct kvr_sequence *sequence, uint32_t count)
{
	uint32_t max = sequence->chain_max ? sequence->chain_max : CHAIN_MAX_FIRST;
	uint32_t *chain;
	const struct kvr_segment_view **views;

	KVR_ASSERT(sequence->readers == 0); /* Q3 */
	if (count <= sequence->chain_max)
		return 0;
	if (count > KVR_SEQUENCE_SEGMENTS_MAX)
		return -ENOSPC;
	while (max < count)
		max *= 2;
	chain = realloc(sequence->chain, max * sizeof(*chain));
	if (!chain)
		return -ENOMEM;
	sequence->chain = chain;
	views = realloc(sequence->views, max * sizeof(*views));
	if (!views)
		return -ENOMEM;
	sequence->views = views;
	sequence->chain_max = max;
	return 0;
}

/* Adds a segment that the sequence has leased. There is room. */
static void push_segment(struct kvr_sequence *sequence, uint32_t index)
{
	const struct kvr_segment *segment = &sequence->daemon->directory.segments[index];

	KVR_ASSERT(sequence->chain_count < sequence->chain_max);
	KVR_ASSERT(segment->leases > 0);                            /* Q1 */
	KVR_ASSERT(segment->view.token_first == sequence->covered); /* Q1 */
	sequence->chain[sequence->chain_count] = index;
	sequence->views[sequence->chain_count] = &segment->view;
	sequence->chain_count++;
	sequence->covered += segment->view.token_count;
}

/* Leases `last` and all before it, oldest first in the chain. */
static int lease_chain(struct kvr_sequence *sequence, uint32_t last)
{
	struct kvr_directory *directory = &sequence->daemon->directory;
	uint32_t count = 0, at = last, place;
	int rc;

	for (; at != KVR_SEGMENT_NONE; at = directory->segments[at].parent)
		count++;
	rc = grow_chain(sequence, count);
	if (rc < 0)
		return rc;
	place = count;
	for (at = last; at != KVR_SEGMENT_NONE; at = directory->segments[at].parent) {
		if (!kvr_directory_lease(directory, at)) {
			for (; place < count; place++)
				kvr_directory_unlease(directory, sequence->chain[place]);
			return -EAGAIN;
		}
		sequence->chain[--place] = at;
	}
	for (uint32_t i = 0; i < count; i++)
		push_segment(sequence, sequence->chain[i]);
	return 0;
}

/* ---- life ------------------------------------------------------------------------------------ */

static struct kvr_sequence **free_entry(struct kvr_sequences *sequences, uint32_t *ret_index)
{
	for (uint32_t i = 0; i < KVR_SEQUENCES_MAX; i++) {
		uint32_t index = (sequences->search_from + i) % KVR_SEQUENCES_MAX;

		if (!sequences->entries[index]) {
			sequences->search_from = index + 1;
			*ret_index = index;
			return &sequences->entries[index];
		}
	}
	return NULL;
}

int kvr_sequence_open(struct kvr_daemon *daemon, struct kvr_session *session,
	struct kvr_model *model, uint32_t last, struct kvr_sequence **ret_sequence)
{
	struct kvr_sequences *sequences = &daemon->sequences;
	uint32_t index = 0;
	struct kvr_sequence **entry = free_entry(sequences, &index);
	struct kvr_sequence *sequence;
	int rc;

	if (!entry)
		return -ENOSPC;
	sequence = calloc(1, sizeof(*sequence));
	if (!sequence)
		return -ENOMEM;
	sequence->daemon = daemon;
	sequence->session = session;
	sequence->model = model;
	sequence->tail =
		(struct kvr_tail_view){&model->geometry, sequence->blocks, KVR_TAIL_BLOCKS_MAX};
	kvr_list_init(&sequence->waiters);
	kvr_waiter_init(&sequence->work_waiter, wake);
	kvr_list_init(&sequence->dirty_link);
	kvr_seal_init(&sequence->seal);
	rc = lease_chain(sequence, last);
	if (rc < 0) {
		free(sequence->chain);
		free(sequence->views);
		free(sequence);
		return rc;
	}
	sequence->id = ++sequences->counter << INDEX_BITS | index;
	kvr_list_push(&session->sequences, &sequence->session_link);
	model->users++;
	sequences->count++;
	*entry = sequence;
	*ret_sequence = sequence;
	return 0;
}

struct kvr_sequence *kvr_sequence_find(
	struct kvr_daemon *daemon, const struct kvr_session *session, uint64_t id)
{
	const uint32_t index = (uint32_t)(id & ((1u << INDEX_BITS) - 1));
	struct kvr_sequence *sequence;

	if (index >= KVR_SEQUENCES_MAX)
		return NULL;
	sequence = daemon->sequences.entries[index];
	return sequence && sequence->id == id && sequence->session == session ? sequence : NULL;
}

void kvr_sequence_close(struct kvr_sequence *sequence, bool discard)
{
	KVR_ASSERT(sequence->session);
	KVR_ASSERT(!sequence->closing);
	kvr_list_remove(&sequence->session_link);
	sequence->session = NULL;
	sequence->closing = true;
	sequence->discard_tail = discard;
	if (discard)
		kvr_seal_abandon(sequence);
	kvr_sequence_touch(sequence);
}

static void free_sequence(struct kvr_sequence *sequence)
{
	struct kvr_daemon *daemon = sequence->daemon;
	const uint32_t index = (uint32_t)(sequence->id & ((1u << INDEX_BITS) - 1));

	KVR_ASSERT(sequence->readers == 0);
	KVR_ASSERT(!sequence->appending);
	KVR_ASSERT(sequence->seal.state == KVR_SEAL_IDLE);
	KVR_ASSERT(kvr_list_empty(&sequence->seal.waiter.link));
	KVR_ASSERT(kvr_list_empty(&sequence->waiters));
	for (uint32_t i = 0; i < sequence->chain_count; i++)
		kvr_directory_unlease(&daemon->directory, sequence->chain[i]);
	kvr_tail_shrink(sequence, 0);
	KVR_ASSERT(sequence->model->users > 0);
	sequence->model->users--;
	daemon->sequences.entries[index] = NULL;
	daemon->sequences.count--;
	kvr_list_remove(&sequence->work_waiter.link);
	kvr_list_remove(&sequence->dirty_link); /* a seal that failed at once has touched it */
	free(sequence->chain);
	free(sequence->views);
	free(sequence);
}

/* ---- who may start now ----------------------------------------------------------------------- */

uint32_t kvr_sequence_whole(const struct kvr_sequence *sequence)
{
	uint32_t whole = sequence->fill[0];

	for (uint32_t layer = 1; layer < sequence->model->geometry.layer_count; layer++) {
		if (sequence->fill[layer] < whole)
			whole = sequence->fill[layer];
	}
	return whole;
}

bool kvr_sequence_queued(const struct kvr_sequence *sequence)
{
	return !sequence->waking && !kvr_list_empty(&sequence->waiters); /* Q5 */
}

bool kvr_sequence_readable(const struct kvr_sequence *sequence)
{
	return !sequence->appending && sequence->seal.state != KVR_SEAL_JOINABLE;
}

bool kvr_sequence_writable(const struct kvr_sequence *sequence)
{
	return !sequence->appending && sequence->copying == 0 &&
	       sequence->seal.state != KVR_SEAL_JOINABLE;
}

/* ---- settling -------------------------------------------------------------------------------- */

void kvr_sequence_touch(struct kvr_sequence *sequence)
{
	if (kvr_list_empty(&sequence->dirty_link))
		kvr_list_push(&sequence->daemon->sequences.dirty, &sequence->dirty_link);
}

/* A finished seal's segment takes the place of the tail's first tokens. */
static void join(struct kvr_sequence *sequence)
{
	struct kvr_directory *directory = &sequence->daemon->directory;
	const uint32_t count = sequence->seal.count;
	const uint32_t segment = kvr_seal_take(sequence);

	if (grow_chain(sequence, sequence->chain_count + 1) < 0) {
		/* The tail stays as it is: the next append tries again. */
		kvr_directory_unlease(directory, segment);
		sequence->seal.error = -ENOSPC;
		return;
	}
	push_segment(sequence, segment);
	kvr_tail_advance(sequence, count);
}

/* Starts to seal what should be: full segments always, a closed sequence's rest at its end. Readers do
 * not keep it from starting: under a steady stream of them nothing would ever be sealed. */
static void start_seal(struct kvr_sequence *sequence)
{
	const uint32_t whole = kvr_sequence_whole(sequence);
	const uint32_t segment_tokens = sequence->model->geometry.segment_tokens;

	if (sequence->seal.state != KVR_SEAL_IDLE || sequence->seal.error)
		return;
	if (sequence->closing && sequence->discard_tail)
		return;
	if (sequence->daemon->stopping) /* what is sealed now is gone with the daemon */
		return;
	if (whole >= segment_tokens)
		kvr_seal_start(sequence, segment_tokens);
	else if (whole > 0 && sequence->closing)
		kvr_seal_start(sequence, whole);
}

/* Runs waiters in order until one must wait again (Q5). */
static void serve(struct kvr_sequence *sequence)
{
	struct kvr_list *node;

	while ((node = kvr_list_pop(&sequence->waiters))) {
		struct kvr_waiter *waiter = KVR_CONTAINER_OF(node, struct kvr_waiter, link);

		sequence->waking = true;
		waiter->wake(waiter);
		sequence->waking = false;
		if (sequence->waiters.prev == node) {
			kvr_list_remove(node);
			kvr_list_push(sequence->waiters.next, node); /* the first again */
			return;
		}
	}
}

static void settle(struct kvr_sequence *sequence)
{
	if (!sequence->appending) {
		if (sequence->seal.state == KVR_SEAL_JOINABLE && sequence->readers == 0)
			join(sequence);
		start_seal(sequence);
	}
	serve(sequence); /* who still waits for a closed one is refused */
	if (sequence->closing && sequence->readers == 0 && !sequence->appending &&
		sequence->seal.state == KVR_SEAL_IDLE)
		free_sequence(sequence);
}

/* A work is free for the first waiter. */
static void wake(struct kvr_waiter *waiter)
{
	settle(KVR_CONTAINER_OF(waiter, struct kvr_sequence, work_waiter));
}

void kvr_sequences_settle(struct kvr_sequences *sequences)
{
	struct kvr_list *node;

	while ((node = kvr_list_pop(&sequences->dirty)))
		settle(KVR_CONTAINER_OF(node, struct kvr_sequence, dirty_link));
}

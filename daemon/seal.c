/* SPDX-License-Identifier: Apache-2.0 */
/* seal.c: the steps of a seal. When to start one, and what becomes of it, is the sequence's affair. */
#include "daemon/seal.h"

#include <errno.h>

#include "base/assert.h"
#include "base/clock.h"
#include "daemon/daemon.h"

#define RETRY_NS 200000000u

static void begin(struct kvr_sequence *sequence);
static void place(struct kvr_sequence *sequence);
static void submit_round(struct kvr_sequence *sequence);

static struct kvr_sequence *sequence_of(struct kvr_waiter *waiter)
{
	struct kvr_seal *seal = KVR_CONTAINER_OF(waiter, struct kvr_seal, waiter);

	return KVR_CONTAINER_OF(seal, struct kvr_sequence, seal);
}

/* What the seal waited for is there: another's build has ended, or a work is free. */
static void wake(struct kvr_waiter *waiter)
{
	struct kvr_sequence *sequence = sequence_of(waiter);

	if (sequence->seal.state == KVR_SEAL_WAITING)
		begin(sequence);
	else if (sequence->seal.state == KVR_SEAL_PLACING)
		place(sequence);
	else
		submit_round(sequence);
}

void kvr_seal_init(struct kvr_seal *seal)
{
	*seal = (struct kvr_seal){.segment = KVR_SEGMENT_NONE};
	kvr_waiter_init(&seal->waiter, wake);
}

void kvr_seal_start(struct kvr_sequence *sequence, uint32_t count)
{
	struct kvr_seal *seal = &sequence->seal;

	KVR_ASSERT(seal->state == KVR_SEAL_IDLE);
	KVR_ASSERT(count >= 1);
	KVR_ASSERT(count <= sequence->model->geometry.segment_tokens);
	KVR_ASSERT(count <= kvr_sequence_whole(sequence)); /* Q4 */
	seal->count = count;
	seal->error = 0;
	begin(sequence);
}

static void fail(struct kvr_sequence *sequence, int error)
{
	sequence->seal.state = KVR_SEAL_IDLE;
	sequence->seal.segment = KVR_SEGMENT_NONE;
	sequence->seal.error = error;
	sequence->seal.retry_ns = kvr_clock_ns() + RETRY_NS;
	sequence->daemon->counters.seal_failures++;
	kvr_sequence_touch(sequence);
}

/* The segment is READY: hold it until the sequence joins it. */
static void hold(struct kvr_sequence *sequence, uint32_t segment)
{
	if (!kvr_directory_lease(&sequence->daemon->directory, segment)) { /* L1 */
		fail(sequence, -EAGAIN); /* the store let go of it at this moment: build it again */
		return;
	}
	sequence->seal.segment = segment;
	sequence->seal.state = KVR_SEAL_JOINABLE;
	kvr_sequence_touch(sequence);
}

/* Clusters of others are on their way out. */
static void wait_memory(struct kvr_sequence *sequence)
{
	if (sequence->seal.state == KVR_SEAL_IDLE)
		sequence->seal.state = KVR_SEAL_WAITING;
	kvr_list_push(&sequence->daemon->cache.waiters, &sequence->seal.waiter.link);
}

/* Finds the segment, waits for it, or begins to build it (L2). */
static void begin(struct kvr_sequence *sequence)
{
	struct kvr_daemon *daemon = sequence->daemon;
	struct kvr_directory *directory = &daemon->directory;
	struct kvr_seal *seal = &sequence->seal;
	uint32_t *tokens = daemon->sequences.tokens;
	uint32_t parent = KVR_SEGMENT_NONE, found;
	uint8_t hash[KVR_HASH_BYTES];
	int rc;

	if (sequence->chain_count > 0)
		parent = sequence->chain[sequence->chain_count - 1]; /* L3 */
	for (uint32_t i = 0; i < seal->count; i++)
		tokens[i] = *kvr_sequence_token(sequence, i);
	kvr_directory_hash(directory, sequence->model, parent, tokens, seal->count, hash);
	found = kvr_directory_find(directory, sequence->model, parent, hash, tokens, seal->count);
	if (found != KVR_SEGMENT_NONE && directory->segments[found].quarantined &&
		kvr_directory_forget(directory, found))
		found = KVR_SEGMENT_NONE; /* it is built anew */
	if (found != KVR_SEGMENT_NONE) {
		struct kvr_segment *segment = &directory->segments[found];

		if (segment->quarantined) {
			fail(sequence, -EAGAIN); /* others still read what is left of it */
		} else if (segment->state == KVR_SEGMENT_READY) {
			daemon->counters.deduplicated_segments++;
			hold(sequence, found);
		} else {
			seal->state = KVR_SEAL_WAITING;
			kvr_list_push(&segment->waiters, &seal->waiter.link);
		}
		return;
	}
	rc = kvr_directory_begin(
		directory, sequence->model, parent, hash, tokens, seal->count, &seal->segment);
	if (rc == -EAGAIN) {
		wait_memory(sequence);
		return;
	}
	if (rc < 0) {
		fail(sequence, rc);
		return;
	}
	seal->state = KVR_SEAL_CLUSTERING;
	seal->lane = 0;
	submit_round(sequence);
}

/* Ends a build: the segment is READY or gone; others that waited for it go on. */
static void end_build(struct kvr_sequence *sequence, int error)
{
	struct kvr_daemon *daemon = sequence->daemon;
	struct kvr_segment *segment = &daemon->directory.segments[sequence->seal.segment];
	struct kvr_list waiters, *node;

	kvr_list_init(&waiters);
	while ((node = kvr_list_pop(&segment->waiters)))
		kvr_list_push(&waiters, node);
	if (error) {
		kvr_directory_remove(&daemon->directory, sequence->seal.segment);
		fail(sequence, error);
	} else {
		kvr_directory_publish(&daemon->directory, sequence->seal.segment);
		daemon->counters.sealed_segments++;
		daemon->counters.sealed_tokens += sequence->seal.count;
		hold(sequence, sequence->seal.segment);
		kvr_keep_put(daemon, sequence->seal.segment);
	}
	kvr_waiters_wake(&waiters);
}

/* Whether the segment has merged sets: the model keeps some, and it is not all sinks. */
static bool merges(const struct kvr_sequence *sequence)
{
	const struct kvr_directory *directory = &sequence->daemon->directory;

	return directory->segments[sequence->seal.segment].view.merged_max > 0;
}

static void round_done(struct kvr_work *work)
{
	struct kvr_sequence *sequence = work->owner;
	struct kvr_seal *seal = &sequence->seal;

	KVR_ASSERT(work->job.status == 0);             /* device.h: none of them fails */
	KVR_ASSERT(seal->segment != KVR_SEGMENT_NONE); /* L1 */
	seal->lane += work->job.item_count;
	kvr_work_give(work);
	if (seal->lane < kvr_geometry_lanes(&sequence->model->geometry)) {
		submit_round(sequence);
		return;
	}
	if (seal->state == KVR_SEAL_CLUSTERING) {
		seal->state = KVR_SEAL_PLACING;
		place(sequence);
	} else if (seal->state == KVR_SEAL_PACKING && merges(sequence)) {
		seal->state = KVR_SEAL_MERGING;
		seal->lane = 0;
		submit_round(sequence);
	} else {
		KVR_ASSERT(seal->state == KVR_SEAL_PACKING || seal->state == KVR_SEAL_MERGING);
		end_build(sequence, 0);
	}
}

static void place(struct kvr_sequence *sequence)
{
	struct kvr_seal *seal = &sequence->seal;
	int rc = kvr_directory_place(&sequence->daemon->directory, seal->segment);

	KVR_ASSERT(seal->state == KVR_SEAL_PLACING);
	if (rc == -EAGAIN) {
		wait_memory(sequence);
		return;
	}
	if (rc < 0) {
		end_build(sequence, rc);
		return;
	}
	seal->state = KVR_SEAL_PACKING;
	seal->lane = 0;
	submit_round(sequence);
}

static enum kvr_job_kind job_of(enum kvr_seal_state state)
{
	KVR_ASSERT(state == KVR_SEAL_CLUSTERING || state == KVR_SEAL_PACKING ||
		   state == KVR_SEAL_MERGING);
	if (state == KVR_SEAL_CLUSTERING)
		return KVR_JOB_CLUSTER;
	return state == KVR_SEAL_PACKING ? KVR_JOB_PACK : KVR_JOB_MERGE;
}

static void submit_round(struct kvr_sequence *sequence)
{
	struct kvr_daemon *daemon = sequence->daemon;
	struct kvr_seal *seal = &sequence->seal;
	struct kvr_segment *segment = &daemon->directory.segments[seal->segment];
	uint32_t count = kvr_geometry_lanes(&sequence->model->geometry) - seal->lane;
	struct kvr_work *work = kvr_work_take(&daemon->seal_works);

	if (!work) {
		kvr_list_push(&daemon->seal_works.waiters, &seal->waiter.link);
		return;
	}
	if (count > KVR_WORK_ITEMS_MAX)
		count = KVR_WORK_ITEMS_MAX;
	for (uint32_t i = 0; i < count; i++)
		work->items.cluster[i] =
			(struct kvr_cluster_item){&sequence->tail, &segment->view, seal->lane + i};
	kvr_work_submit(work, job_of(seal->state), count, false, round_done, sequence);
}

uint32_t kvr_seal_take(struct kvr_sequence *sequence)
{
	const uint32_t segment = sequence->seal.segment;

	KVR_ASSERT(sequence->seal.state == KVR_SEAL_JOINABLE);
	sequence->seal.state = KVR_SEAL_IDLE;
	sequence->seal.segment = KVR_SEGMENT_NONE;
	return segment;
}

void kvr_seal_abandon(struct kvr_sequence *sequence)
{
	if (sequence->seal.state != KVR_SEAL_WAITING)
		return;
	kvr_list_remove(&sequence->seal.waiter.link);
	sequence->seal.state = KVR_SEAL_IDLE;
}

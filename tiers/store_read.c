/* SPDX-License-Identifier: Apache-2.0 */
/* store_read.c: the reader thread; MATCH and CHAIN.
 *
 * A match goes down from the root. At a segment, the children's lengths are gone through; for each
 * that the rest of the ids is long enough for, these ids are hashed once, and the name is looked
 * up. Each way down is tried, the longest chain wins. Then its segments are held, and looked up
 * again in a new view of the catalog (store_holds.c says why).
 *
 *   root ─┬─ 1024 ─┬─ 1024 ─── 1024 ✗     path: steps[0 .. depth]; best: the longest so far
 *         │        └─ 37 ✗
 *         └─ 512 ✗
 *
 * Cost: a lookup and a hash per length and segment on the way; segments are no more than those that
 * the ids start with.
 *
 * Threads: the reader's. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "tiers/store_private.h"

/* Ways down that a match looks at: a prompt that was stored cut into pieces in many ways must not
 * hold up others. */
#define MATCH_STEPS_MAX (4u * KVR_SEQUENCE_SEGMENTS_MAX)

int kvr_store_find(struct kvr_store_reader *reader, const uint8_t hash[KVR_HASH_BYTES],
	struct kvr_store_segment *ret_segment)
{
	struct kvr_catalog_segment segment = {0};
	struct kvr_catalog_state state = {0};
	int rc = kvr_catalog_find(reader->reader, hash, NULL, 0, &segment);

	if (rc == 0)
		rc = kvr_catalog_state(reader->reader, segment.id, &state);
	if (rc < 0)
		return rc;
	*ret_segment = (struct kvr_store_segment){
		.id = segment.id,
		.token_first = segment.token_first,
		.token_count = segment.token_count,
		.used = state.used,
		.flags = state.flags,
		.part_count = segment.part_count,
	};
	memcpy(ret_segment->hash, segment.hash, KVR_HASH_BYTES);
	memcpy(ret_segment->parent, segment.parent, KVR_HASH_BYTES);
	memcpy(ret_segment->root, segment.root, KVR_HASH_BYTES);
	return 0;
}

/* ---- match ----------------------------------------------------------------------------------- */

/* A damaged row is one that is not there: it ends this way down, and no other. */
static int lose(struct kvr_store_reader *reader)
{
	kvr_store_count(reader->store, &reader->store->counters.error_count, 1);
	return -ENOENT;
}

/* The next child of a step that the ids go on with. -ENOENT: none. */
static int next_child(struct kvr_store_reader *reader, const struct kvr_store_match *match,
	struct kvr_store_step *step, struct kvr_store_step *ret_child)
{
	const uint32_t left = match->token_count - step->end;
	uint8_t hash[KVR_HASH_BYTES];

	for (;;) {
		int rc = kvr_catalog_child(reader->reader, step->segment.hash, &step->child_tokens,
			&step->child_id, hash);

		if (rc < 0)
			return rc;
		if (step->child_tokens > left)
			return -ENOENT;      /* they ascend */
		step->child_id = UINT64_MAX; /* the next length, not the next child of this one */
		match->name(match->name_context, step->segment.hash, match->tokens + step->end,
			step->child_tokens, hash);
		memset(ret_child, 0, sizeof(*ret_child));
		rc = kvr_store_find(reader, hash, &ret_child->segment);
		if (rc == -EBADMSG)
			rc = lose(reader);
		if (rc == -ENOENT)
			continue;
		if (rc < 0)
			return rc;
		/* What the catalog says of it must fit to where it hangs. */
		if (ret_child->segment.token_first != step->end ||
			ret_child->segment.token_count != step->child_tokens)
			continue;
		if (ret_child->segment.flags & KVR_CATALOG_QUARANTINED)
			continue;
		ret_child->end = step->end + step->child_tokens;
		return 0;
	}
}

/* Keeps the path as the best one, if it is. */
static void keep_best(
	struct kvr_store_reader *reader, uint32_t depth, uint32_t *best_end, uint32_t *ret_count)
{
	if (reader->steps[depth].end <= *best_end)
		return;
	*best_end = reader->steps[depth].end;
	*ret_count = depth;
	for (uint32_t i = 0; i < depth; i++)
		reader->best[i] = reader->steps[i + 1].segment;
}

/* The longest chain, into reader->best. */
static int walk(
	struct kvr_store_reader *reader, const struct kvr_store_match *match, uint32_t *ret_count)
{
	struct kvr_store_step *steps = reader->steps;
	uint32_t best_end = 0;
	uint32_t depth = 0;
	int rc = kvr_catalog_read_begin(reader->reader);

	*ret_count = 0;
	if (rc < 0)
		return rc;
	memset(&steps[0], 0, sizeof(steps[0]));
	memcpy(steps[0].segment.hash, match->root, KVR_HASH_BYTES);
	for (uint32_t looked = 0; looked < MATCH_STEPS_MAX; looked++) {
		rc = depth < KVR_SEQUENCE_SEGMENTS_MAX
			     ? next_child(reader, match, &steps[depth], &steps[depth + 1])
			     : -ENOENT;
		if (rc == 0) {
			depth++;
			continue;
		}
		if (rc != -ENOENT)
			break;
		rc = 0;
		keep_best(reader, depth, &best_end, ret_count); /* a path is copied at its end */
		if (depth == 0)
			break;
		depth--;
	}
	keep_best(reader, depth, &best_end, ret_count);
	kvr_catalog_read_end(reader->reader);
	return rc;
}

/* Holds the first of the best chain that let themselves be held. */
static uint32_t hold_best(struct kvr_store_reader *reader, uint32_t count)
{
	struct kvr_store *store = reader->store;
	uint32_t held;

	pthread_mutex_lock(&store->mutex);
	for (held = 0; held < count; held++) {
		if (!kvr_store_holds_add(&store->holds, reader->best[held].id))
			break;
	}
	pthread_mutex_unlock(&store->mutex);
	return held;
}

/* How many of the held are still there: those at the end may have gone between look and hold. */
static int recheck(struct kvr_store_reader *reader, uint32_t held, uint32_t *ret_count)
{
	int rc = kvr_catalog_read_begin(reader->reader);
	uint32_t count;

	*ret_count = 0;
	if (rc < 0)
		return rc;
	for (count = 0; count < held && rc == 0; count++) {
		struct kvr_store_segment now;

		rc = kvr_store_find(reader, reader->best[count].hash, &now);
		if (rc < 0 || now.id != reader->best[count].id)
			break;
	}
	kvr_catalog_read_end(reader->reader);
	*ret_count = count;
	return rc == -ENOENT ? 0 : rc;
}

static void unhold_from(struct kvr_store_reader *reader, uint32_t first, uint32_t count)
{
	struct kvr_store *store = reader->store;

	pthread_mutex_lock(&store->mutex);
	for (uint32_t i = first; i < count; i++)
		kvr_store_holds_sub(&store->holds, reader->best[i].id);
	pthread_mutex_unlock(&store->mutex);
}

/* Holds the best chain, as far as it is still there, and gives it out. */
static int hand_over(
	struct kvr_store_reader *reader, struct kvr_store_match *match, uint32_t best_count)
{
	const uint32_t held = hold_best(reader, best_count);
	uint32_t count;
	int rc = recheck(reader, held, &count);

	KVR_ASSERT(held <= best_count);
	KVR_ASSERT(count <= held);
	unhold_from(reader, count, held);
	if (rc == 0 && count > 0) {
		match->found = malloc(count * sizeof(*match->found));
		if (match->found)
			memcpy(match->found, reader->best, count * sizeof(*match->found));
		else
			rc = -ENOMEM;
	}
	if (rc < 0) {
		unhold_from(reader, 0, count);
		return rc;
	}
	match->found_count = count;
	return 0;
}

static int run_match(struct kvr_store_reader *reader, struct kvr_store_match *match)
{
	uint32_t count;
	int rc;

	match->found = NULL;
	match->found_count = 0;
	rc = walk(reader, match, &count);
	if (rc < 0)
		return rc;
	KVR_ASSERT(count <= KVR_SEQUENCE_SEGMENTS_MAX);
	kvr_store_count(reader->store, &reader->store->counters.match_count, 1);
	return hand_over(reader, match, count);
}

/* ---- chain ----------------------------------------------------------------------------------- */

/* What ends in a segment, into reader->best. */
static int climb(
	struct kvr_store_reader *reader, const uint8_t hash[KVR_HASH_BYTES], uint32_t *ret_count)
{
	struct kvr_store_segment *const end = reader->best + KVR_SEQUENCE_SEGMENTS_MAX;
	struct kvr_store_segment *at = end;
	int rc = kvr_catalog_read_begin(reader->reader);

	if (rc < 0)
		return rc;
	while (rc == 0 && (at == end || at->token_first > 0)) {
		const uint8_t *next = at == end ? hash : at->parent;

		/* What the catalog says must fit together: each ends where the next one begins. */
		rc = at == reader->best ? -EBADMSG : kvr_store_find(reader, next, at - 1);
		if (rc == -ENOENT && at < end)
			rc = -EBADMSG;
		if (rc == 0)
			at--;
		if (rc == 0 && at + 1 < end &&
			at->token_first + at->token_count != at[1].token_first)
			rc = -EBADMSG;
	}
	kvr_catalog_read_end(reader->reader);
	*ret_count = (uint32_t)(end - at);
	memmove(reader->best, at, *ret_count * sizeof(*at));
	return rc;
}

static int run_chain(struct kvr_store_reader *reader, struct kvr_store_chain *chain)
{
	uint32_t count;
	int rc = climb(reader, chain->hash, &count);

	chain->match.found = NULL;
	chain->match.found_count = 0;
	return rc < 0 ? rc : hand_over(reader, &chain->match, count);
}

/* ---- the thread ------------------------------------------------------------------------------ */

static int run_job(struct kvr_store_reader *reader, struct kvr_store_job *job)
{
	switch (job->op) {
	case KVR_STORE_MATCH: return run_match(reader, &job->match);
	case KVR_STORE_LOAD: return kvr_store_load_run(reader, &job->load);
	case KVR_STORE_LIST: return kvr_store_list_run(reader, &job->list);
	default: KVR_ASSERT(job->op == KVR_STORE_CHAIN); return run_chain(reader, &job->chain);
	}
}

void *kvr_store_reader_run(void *argument)
{
	struct kvr_store_reader *reader = argument;
	struct kvr_store_job *job;

	while ((job = kvr_store_queue_pop(&reader->store->read_queue, KVR_STORE_POP_WAIT))) {
		const int rc = run_job(reader, job);

		if (rc < 0 && rc != -ENOENT)
			kvr_store_count(reader->store, &reader->store->counters.error_count, 1);
		kvr_store_done(reader->store, job, rc);
	}
	return NULL;
}

int kvr_store_reader_open(struct kvr_store_reader *reader, struct kvr_store *store)
{
	int rc = kvr_catalog_reader_open(store->catalog, &reader->reader);

	if (rc < 0)
		return rc;
	reader->store = store;
	reader->steps = calloc(KVR_SEQUENCE_SEGMENTS_MAX + 1, sizeof(*reader->steps));
	reader->best = calloc(KVR_SEQUENCE_SEGMENTS_MAX, sizeof(*reader->best));
	reader->lane = calloc(KVR_STORE_UNITS_MAX, sizeof(*reader->lane));
	reader->page = malloc(KVR_SLAB_HEADER_BYTES);
	if (!reader->steps || !reader->best || !reader->lane || !reader->page)
		return -ENOMEM;
	return 0;
}

void kvr_store_reader_close(struct kvr_store_reader *reader)
{
	kvr_catalog_reader_close(reader->reader);
	kvr_tier_close(reader->tier);
	free(reader->steps);
	free(reader->best);
	free(reader->lane);
	free(reader->page);
	*reader = (struct kvr_store_reader){0};
}

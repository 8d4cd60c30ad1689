/* SPDX-License-Identifier: Apache-2.0 */
/* store_read.c: the reader thread; MATCH and LIST.
 *
 * A match goes down from the root. At a segment, the children's lengths are gone through; for each that the rest of the ids
 * is long enough for, these ids are hashed once, and the name is looked up. Each way down is tried, the longest chain
 * wins. Then its segments are held, and looked up again in a new view of the catalog (store_holds.c says why).
 *
 *   root ─┬─ 1024 ─┬─ 1024 ─── 1024 ✗          path: steps[0 .. depth], best: the longest path so far
 *         │        └─ 37 ✗
 *         └─ 512 ✗
 *
 * Cost: a lookup and a hash per length and segment on the way; segments are no more than those that the ids start with.
 *
 * Threads: the reader's. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "tiers/store_private.h"

/* Ways down that a match looks at: a prompt that was stored cut into pieces in many ways must not hold up others. */
#define MATCH_STEPS_MAX (4u * KVR_SEQUENCE_SEGMENTS_MAX)

static int find_segment(struct kvr_store_reader *reader, const uint8_t hash[KVR_HASH_BYTES],
	struct kvr_store_segment *ret_segment)
{
	struct kvr_catalog_segment segment = {0};
	struct kvr_catalog_state state;
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
		rc = find_segment(reader, hash, &ret_child->segment);
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
		if (steps[depth].end > best_end) {
			best_end = steps[depth].end;
			*ret_count = depth;
			for (uint32_t i = 0; i < depth; i++)
				reader->best[i] = steps[i + 1].segment;
		}
		if (depth == 0)
			break;
		depth--;
	}
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

		rc = find_segment(reader, reader->best[count].hash, &now);
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

static int run_match(struct kvr_store_reader *reader, struct kvr_store_match *match)
{
	uint32_t count;
	uint32_t held;
	int rc;

	match->found = NULL;
	match->found_count = 0;
	KVR_ASSERT(match->token_count <= KVR_SEQUENCE_TOKENS_MAX);
	rc = walk(reader, match, &count);
	if (rc < 0)
		return rc;
	held = hold_best(reader, count);
	rc = recheck(reader, held, &count);
	unhold_from(reader, count, held);
	if (rc == 0 && count > 0) {
		match->found = malloc(count * sizeof(*match->found));
		rc = match->found ? 0 : -ENOMEM;
	}
	if (rc < 0) {
		unhold_from(reader, 0, count);
		return rc;
	}
	if (count > 0)
		memcpy(match->found, reader->best, count * sizeof(*match->found));
	match->found_count = count;
	kvr_store_count(reader->store, &reader->store->counters.match_count, 1);
	return 0;
}

/* ---- list ------------------------------------------------------------------------------------ */

static int list_entries(struct kvr_store_reader *reader, struct kvr_store_list *list)
{
	struct kvr_catalog_segment segment = {0};
	uint8_t hash[KVR_HASH_BYTES] = {0};
	uint32_t passed = 0;
	int rc;

	while ((rc = kvr_catalog_segment_next(reader->reader, hash, NULL, 0, &segment)) == 0) {
		if (memcmp(segment.root, list->root, KVR_HASH_BYTES) != 0)
			continue;
		if (passed++ < list->skip)
			continue;
		if (list->count == KVR_STORE_LIST_MAX) {
			list->more = true;
			return 0;
		}
		rc = find_segment(reader, segment.hash, &list->entries[list->count]);
		if (rc < 0)
			return rc == -ENOENT ? -EBADMSG : rc;
		list->count++;
	}
	return rc == -ENOENT ? 0 : rc;
}

static int run_list(struct kvr_store_reader *reader, struct kvr_store_list *list)
{
	int rc;

	list->count = 0;
	list->more = false;
	rc = kvr_catalog_read_begin(reader->reader);
	if (rc < 0)
		return rc;
	rc = list_entries(reader, list);
	kvr_catalog_read_end(reader->reader);
	return rc;
}

/* ---- the thread ------------------------------------------------------------------------------ */

static int run_job(struct kvr_store_reader *reader, struct kvr_store_job *job)
{
	switch (job->op) {
	case KVR_STORE_MATCH: return run_match(reader, &job->match);
	case KVR_STORE_LOAD: return kvr_store_load_run(reader, &job->load);
	default: KVR_ASSERT(job->op == KVR_STORE_LIST); return run_list(reader, &job->list);
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
	reader->lane = calloc(KVR_CLUSTERS_MAX + 1, sizeof(*reader->lane));
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

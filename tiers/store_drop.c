/* SPDX-License-Identifier: Apache-2.0 */
/* store_drop.c: DROP, which removes trees of segments, and MARK, which sets last uses and flags.
 *
 * A drop walks depth first and collects what may go, children before parents; what has to stay
 * keeps its ancestors. Large trees go in several rounds, each with its commits, and each walks
 * anew: no view of the catalog lives longer than a round, so that its old pages can be used again.
 *
 * A quarantined segment gets 0 as its last use: it is evicted before all others.
 *
 * Threads: the writer's. */
#include <errno.h>
#include <string.h>

#include "base/assert.h"
#include "tiers/store_private.h"

#define MARK_TRIES 3u /* each after evicting some, where the catalog is full */

/* Ends a step whose children are done: the segment goes or stays. */
static int end_step(struct kvr_store_writer *writer, struct kvr_store_step *step, uint32_t *kept)
{
	int rc = step->occupied ? -EBUSY : kvr_store_victim_add(writer, step->segment.hash);

	/* What is damaged in the catalog cannot be taken out of it piece by piece. */
	if (rc != -EBUSY && rc != -EBADMSG)
		return rc;
	(*kept)++;
	(step - 1)->occupied = true;
	return 0;
}

/* Collects victims under `top`, and `top` itself unless it is a root. Returns 0, 1 where there are
 * more than fit, or an error. */
static int collect(struct kvr_store_writer *writer, const uint8_t top[KVR_HASH_BYTES], bool root,
	uint32_t *ret_kept)
{
	/* steps[0] stands above the top, so that every step has one above it. */
	struct kvr_store_step *step = &writer->steps[1];
	struct kvr_store_step *const last = &writer->steps[KVR_SEQUENCE_SEGMENTS_MAX];
	int rc = 0;

	*ret_kept = 0;
	memset(step, 0, sizeof(*step));
	memcpy(step->segment.hash, top, KVR_HASH_BYTES);
	while (rc == 0 && step > writer->steps) {
		uint8_t child[KVR_HASH_BYTES];

		rc = kvr_catalog_child(writer->reader, step->segment.hash, &step->child_tokens,
			&step->child_id, child);
		if (rc == 0 && step < last) {
			step++;
			memset(step, 0, sizeof(*step));
			memcpy(step->segment.hash, child, KVR_HASH_BYTES);
		} else if (rc == 0) {
			step->occupied = true; /* deeper than any sequence can be */
		} else if (rc == -ENOENT) {
			rc = root && step == &writer->steps[1] ? 0
							       : end_step(writer, step, ret_kept);
			step--;
		}
	}
	return rc == -ENOSPC ? 1 : rc;
}

/* Whether the segment is there and under the root. */
static int check_root(struct kvr_store_writer *writer, const struct kvr_store_drop *drop)
{
	struct kvr_catalog_segment segment = {0};
	int rc = kvr_catalog_find(writer->reader, drop->hash, NULL, 0, &segment);

	if (rc < 0)
		return rc;
	return memcmp(segment.root, drop->root, KVR_HASH_BYTES) == 0 ? 0 : -ENOENT;
}

int kvr_store_drop_run(struct kvr_store_writer *writer, struct kvr_store_drop *drop)
{
	const uint8_t *top = drop->all ? drop->root : drop->hash;
	int more = 1;

	drop->segment_count = 0;
	drop->freed_bytes = 0;
	while (more == 1) {
		uint32_t count;
		uint64_t parts;
		int rc = kvr_catalog_read_begin(writer->reader);

		if (rc < 0)
			return rc;
		if (!drop->all && drop->segment_count == 0)
			rc = check_root(writer, drop);
		more = rc < 0 ? rc : collect(writer, top, drop->all, &drop->kept_count);
		kvr_catalog_read_end(writer->reader);
		count = writer->victim_count;
		parts = writer->victim_part_count;
		if (count == 0)
			break;
		rc = kvr_store_victims_remove(writer, true);
		if (rc < 0)
			return rc;
		drop->segment_count += count;
		drop->freed_bytes += parts * KVR_SLAB_BYTES;
	}
	KVR_ASSERT(writer->victim_count == 0);
	return more < 0 ? more : 0;
}

/* Reads what is there of the marked segments. Those that are gone get id 0. */
static int find_marked(struct kvr_store_writer *writer, const struct kvr_store_mark *mark,
	struct kvr_catalog_state *ret_states)
{
	int rc = kvr_catalog_read_begin(writer->reader);

	if (rc < 0)
		return rc;
	for (uint32_t i = 0; i < mark->count && rc == 0; i++) {
		rc = kvr_catalog_state(writer->reader, mark->marks[i].id, &ret_states[i]);
		if (rc == -ENOENT) {
			ret_states[i].id = 0;
			rc = 0;
		}
	}
	kvr_catalog_read_end(writer->reader);
	return rc;
}

static int commit_marks(struct kvr_store_writer *writer, const struct kvr_store_mark *mark,
	struct kvr_catalog_state *states)
{
	struct kvr_catalog *catalog = writer->store->catalog;
	int rc = kvr_catalog_begin(catalog);

	if (rc < 0)
		return rc;
	rc = kvr_store_wiped_put(writer);
	for (uint32_t i = 0; i < mark->count && rc == 0; i++) {
		const uint32_t kept = mark->marks[i].kept;
		const uint32_t flags = (mark->marks[i].flags & ~kept) | (states[i].flags & kept);

		if (states[i].id == 0)
			continue;
		states[i].flags = flags;
		states[i].used = flags & KVR_CATALOG_QUARANTINED ? 0 : mark->marks[i].used;
		rc = kvr_catalog_mark(catalog, &states[i]);
	}
	if (rc < 0) {
		kvr_catalog_abort(catalog);
		return rc;
	}
	rc = kvr_catalog_commit(catalog);
	if (rc == 0)
		writer->wiped_count = 0;
	return rc;
}

int kvr_store_mark_run(struct kvr_store_writer *writer, const struct kvr_store_mark *mark)
{
	struct kvr_catalog_state states[KVR_STORE_MARKS_MAX];
	uint64_t quarantined = 0;
	int rc = -ENOSPC;

	KVR_ASSERT(mark->count <= KVR_STORE_MARKS_MAX);
	for (uint32_t try = 0; try < MARK_TRIES && rc == -ENOSPC; try++) {
		if (try > 0 && kvr_store_evict(writer, NULL, 1) <= 0)
			break;
		rc = find_marked(writer, mark, states);
		for (uint32_t i = 0; i < mark->count && rc == 0 && try == 0; i++)
			quarantined +=
				states[i].id != 0 && (mark->marks[i].flags & ~states[i].flags &
							     KVR_CATALOG_QUARANTINED) != 0;
		if (rc == 0)
			rc = commit_marks(writer, mark, states);
	}
	if (rc == 0)
		kvr_store_count(
			writer->store, &writer->store->counters.quarantined_count, quarantined);
	return rc;
}

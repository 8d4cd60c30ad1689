/* SPDX-License-Identifier: Apache-2.0 */
/* store_evict.c: which segments go when room is needed, and how a segment goes.
 *
 *   in the catalog ──victim_add──► leaving ──commit──► out ──wipe──► wiped, slabs free
 *                                     │                 told (gone)      `freed` rows go with
 *                                     └─► stays                          the next commit
 *                                  the commit failed
 *
 * The order is that of last use, oldest first, leaves only: a parent is at least as useful as what
 * hangs on it. A parent that was passed over because of a child goes right after its last child.
 * What was quarantined has 0 as its last use (store_drop.c), and so goes first.
 *
 * Between the commit and the wipe a crash leaves rows in table `slab` without an owner; the next
 * open wipes and frees them. A first header that cannot be wiped keeps its segment's slabs out of
 * use until then.
 *
 * Threads: the writer's. */
#include <errno.h>
#include <string.h>

#include "base/assert.h"
#include "tiers/store_private.h"

/* Somewhat more than needed goes at once, so that commits are shared: a part of all slabs, at most
 * so many. */
#define EXTRA_SHIFT 6u
#define EXTRA_MAX   128u

/* Whether all children of a segment are leaving. */
static bool is_leaf(struct kvr_store_writer *writer, const uint8_t hash[KVR_HASH_BYTES])
{
	uint8_t child[KVR_HASH_BYTES];
	uint32_t tokens = 0;
	uint64_t id = 0;
	int rc;

	while ((rc = kvr_catalog_child(writer->reader, hash, &tokens, &id, child)) == 0) {
		bool leaving;

		pthread_mutex_lock(&writer->store->mutex);
		leaving = kvr_store_holds_leaving(&writer->store->holds, id);
		pthread_mutex_unlock(&writer->store->mutex);
		if (!leaving)
			return false;
	}
	return rc == -ENOENT;
}

static bool leave(struct kvr_store_writer *writer, uint64_t id)
{
	bool leaves;

	pthread_mutex_lock(&writer->store->mutex);
	leaves = kvr_store_holds_leave(&writer->store->holds, id); /* H2 */
	pthread_mutex_unlock(&writer->store->mutex);
	return leaves;
}

int kvr_store_victim_add(struct kvr_store_writer *writer, const uint8_t hash[KVR_HASH_BYTES])
{
	struct kvr_catalog_segment segment = {
		.parts = writer->victim_parts + writer->victim_part_count};
	struct kvr_catalog_state state = {0};
	struct kvr_store_victim *victim;
	int rc;

	if (writer->victim_count == KVR_STORE_VICTIMS_MAX ||
		KVR_STORE_WIPED_MAX - writer->victim_part_count < KVR_SLAB_PARTS_MAX)
		return -ENOSPC;
	rc = kvr_catalog_find(writer->reader, hash, segment.parts, KVR_SLAB_PARTS_MAX, &segment);
	if (rc == 0)
		rc = kvr_catalog_state(writer->reader, segment.id, &state);
	if (rc < 0)
		return rc;
	if ((state.flags & KVR_CATALOG_PINNED) || !is_leaf(writer, hash) ||
		!leave(writer, segment.id))
		return -EBUSY;
	victim = &writer->victims[writer->victim_count++];
	*victim = (struct kvr_store_victim){
		.id = segment.id,
		.used = state.used,
		.part_first = writer->victim_part_count,
		.part_count = segment.part_count,
	};
	memcpy(victim->hash, segment.hash, KVR_HASH_BYTES);
	memcpy(victim->parent, segment.parent, KVR_HASH_BYTES);
	memcpy(victim->root, segment.root, KVR_HASH_BYTES);
	victim->token_count = segment.token_count;
	writer->victim_part_count += segment.part_count;
	KVR_ASSERT(writer->victim_part_count <= KVR_STORE_WIPED_MAX);
	return 0;
}

/* ---- choosing -------------------------------------------------------------------------------- */

/* Whether a segment is the tenant's. NULL: everybody's are. */
static bool belongs(
	struct kvr_store_writer *writer, const uint8_t hash[KVR_HASH_BYTES], const char *tenant)
{
	struct kvr_catalog_segment segment = {0};
	struct kvr_slab_model model;

	if (!tenant)
		return true;
	return kvr_catalog_find(writer->reader, hash, NULL, 0, &segment) == 0 &&
	       kvr_catalog_model(writer->reader, segment.root, &model) == 0 &&
	       strcmp(model.tenant, tenant) == 0;
}

/* After a victim, those of its ancestors that were passed over before it and are leaves now. */
static int choose_ancestors(
	struct kvr_store_writer *writer, uint64_t used, uint64_t id, uint64_t slab_count)
{
	while (writer->victim_part_count < slab_count) {
		const struct kvr_store_victim *last = &writer->victims[writer->victim_count - 1];
		struct kvr_catalog_segment parent = {0};
		struct kvr_catalog_state state = {0};
		int rc = kvr_catalog_find(writer->reader, last->parent, NULL, 0, &parent);

		if (rc == 0)
			rc = kvr_catalog_state(writer->reader, parent.id, &state);
		if (rc == -ENOENT)
			return 0;
		if (rc < 0)
			return rc;
		if (state.used > used || (state.used == used && parent.id > id))
			return 0; /* its turn comes */
		rc = kvr_store_victim_add(writer, parent.hash);
		if (rc < 0)
			return rc == -EBUSY ? 0 : rc;
	}
	return 0;
}

/* Chooses victims of so many slabs, as far as there are any. One view of the catalog. */
static int choose(struct kvr_store_writer *writer, const char *tenant, uint64_t slab_count)
{
	uint8_t hash[KVR_HASH_BYTES];
	uint64_t used = 0;
	uint64_t id = 0;
	int rc = kvr_catalog_read_begin(writer->reader);

	if (rc < 0)
		return rc;
	while (rc == 0 && writer->victim_part_count < slab_count) {
		rc = kvr_catalog_oldest(writer->reader, &used, &id, hash);
		if (rc < 0 || !belongs(writer, hash, tenant))
			continue;
		rc = kvr_store_victim_add(writer, hash);
		if (rc == 0)
			rc = choose_ancestors(writer, used, id, slab_count);
		/* What is damaged cannot go either: verify and rebuild tell about it. */
		if (rc == -EBUSY || rc == -EBADMSG)
			rc = 0;
	}
	kvr_catalog_read_end(writer->reader);
	return rc == -ENOENT || rc == -ENOSPC ? 0 : rc;
}

int kvr_store_evict(struct kvr_store_writer *writer, const char *tenant, uint64_t slab_count)
{
	struct kvr_store *store = writer->store;
	uint64_t extra = (store->meta.slabs_bytes / KVR_SLAB_BYTES) >> EXTRA_SHIFT;
	uint32_t count;
	int rc;

	KVR_ASSERT(writer->victim_count == 0);
	if (extra > EXTRA_MAX)
		extra = EXTRA_MAX;
	rc = choose(writer, tenant, slab_count + extra);
	count = writer->victim_count;
	if (count == 0)
		return rc;
	rc = kvr_store_victims_remove(writer, false);
	return rc < 0 ? rc : (int)count;
}

/* ---- removing -------------------------------------------------------------------------------- */

void kvr_store_release_slabs(struct kvr_store_writer *writer, const uint32_t *slabs, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++)
		writer->places[i] = (struct kvr_place){
			.offset = (uint64_t)slabs[i] * KVR_SLAB_BYTES,
			.bytes = KVR_SLAB_BYTES,
		};
	if (count > 0)
		kvr_tier_release(writer->tier, 0, writer->places, count);
}

int kvr_store_wiped_put(struct kvr_store_writer *writer)
{
	int rc = 0;

	for (uint32_t i = 0; i < writer->wiped_count && rc == 0; i++)
		rc = kvr_catalog_wiped(writer->store->catalog, writer->wiped[i]);
	return rc;
}

int kvr_store_wiped_flush(struct kvr_store_writer *writer)
{
	struct kvr_catalog *catalog = writer->store->catalog;
	int rc;

	if (writer->wiped_count == 0)
		return 0;
	rc = kvr_catalog_begin(catalog);
	if (rc < 0)
		return rc;
	rc = kvr_store_wiped_put(writer);
	if (rc < 0) {
		kvr_catalog_abort(catalog);
		return rc;
	}
	rc = kvr_catalog_commit(catalog);
	if (rc == 0)
		writer->wiped_count = 0;
	return rc;
}

/* The rows of all victims, with those of earlier ones' slabs, in one commit. */
static int remove_rows(struct kvr_store_writer *writer)
{
	struct kvr_catalog *catalog = writer->store->catalog;
	int rc = kvr_catalog_begin(catalog);

	if (rc < 0)
		return rc;
	rc = kvr_store_wiped_put(writer);
	for (uint32_t i = 0; i < writer->victim_count && rc == 0; i++)
		rc = kvr_catalog_remove(catalog, writer->victims[i].hash);
	if (rc < 0) {
		kvr_catalog_abort(catalog);
		return rc;
	}
	rc = kvr_catalog_commit(catalog);
	if (rc == 0)
		writer->wiped_count = 0;
	return rc;
}

/* Wipes the victims' first headers; the slabs of those where it worked are free. */
static int free_slabs(struct kvr_store_writer *writer, bool sync)
{
	uint32_t firsts[KVR_STORE_VICTIMS_MAX];
	bool failed[KVR_STORE_VICTIMS_MAX];
	int rc;

	for (uint32_t i = 0; i < writer->victim_count; i++)
		firsts[i] = writer->victim_parts[writer->victims[i].part_first];
	rc = kvr_store_wipe(writer->tier, writer->zeros, firsts, writer->victim_count, failed);
	if (sync && kvr_store_sync(writer->tier) < 0) {
		memset(failed, true, sizeof(failed));
		rc = -EIO;
	}
	for (uint32_t i = 0; i < writer->victim_count; i++) {
		const struct kvr_store_victim *victim = &writer->victims[i];
		const uint32_t *parts = writer->victim_parts + victim->part_first;

		if (failed[i])
			continue;
		kvr_store_release_slabs(writer, parts, victim->part_count);
		KVR_ASSERT(victim->part_count <= KVR_STORE_WIPED_MAX - writer->wiped_count);
		memcpy(writer->wiped + writer->wiped_count, parts,
			victim->part_count * sizeof(*parts));
		writer->wiped_count += victim->part_count;
	}
	return rc;
}

int kvr_store_victims_remove(struct kvr_store_writer *writer, bool sync)
{
	struct kvr_store *store = writer->store;
	int rc = remove_rows(writer); /* H1: durable before the slabs are anybody's */

	pthread_mutex_lock(&store->mutex);
	for (uint32_t i = 0; i < writer->victim_count; i++) {
		const struct kvr_store_victim *victim = &writer->victims[i];

		if (rc < 0) {
			kvr_store_holds_stay(&store->holds, victim->id);
		} else {
			kvr_store_holds_left(&store->holds, victim->id);
			kvr_store_models_sub(&store->models, victim->root, victim->token_count);
		}
	}
	if (rc == 0)
		kvr_store_signal(store);
	pthread_mutex_unlock(&store->mutex);
	if (rc == 0) {
		const uint64_t bytes = (uint64_t)writer->victim_part_count * KVR_SLAB_BYTES;

		kvr_store_count(
			store, &store->counters.evicted_count, sync ? 0 : writer->victim_count);
		kvr_store_count(store, &store->counters.evicted_bytes, sync ? 0 : bytes);
		kvr_store_count(
			store, &store->counters.dropped_count, sync ? writer->victim_count : 0);
		if (free_slabs(writer, sync) < 0)
			kvr_store_count(store, &store->counters.error_count, 1);
	}
	writer->victim_count = 0;
	writer->victim_part_count = 0;
	return rc;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* store_write.c: the writer thread: takes jobs in order, and puts in groups.
 *
 *   for each put, while more come:   check ─► reserve (evict) ─► images, writes begun
 *   then, once for all of them:      writes back ─► SYNC ─► rows, commit ─► done
 *
 * A put that fails takes none with it but those that hang on it; a SYNC or commit that fails takes
 * all of the group, since nobody knows what of it is on the disk. The thread goes on in either
 * case.
 *
 * Invariants:
 *   W1  An entry with status 0 has slabs of its own and a hold on its parent until the group ends.
 *   W2  No read of the catalog is open while a transaction is.
 *   W3  The slabs of a put that failed are free again, and the first header is wiped as far as the
 *       disk lets it be, so that no rebuild finds it.
 *
 * Threads: the writer's own. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/assert.h"
#include "base/clock.h"
#include "tiers/store_private.h"

#define GROUP_SLABS_MAX 512u /* bounds how long the first put of a group waits for its last */
#define EVICT_TRIES     8u

/* ---- the group ------------------------------------------------------------------------------- */

/* Fails entries whose parent in the group has failed. Parents come before their children. */
static void fail_orphans(struct kvr_store_writer *writer)
{
	for (uint32_t i = 0; i < writer->group_count; i++) {
		for (uint32_t k = i + 1; writer->group[i].status < 0 && k < writer->group_count;
			k++) {
			struct kvr_store_entry *child = &writer->group[k];

			if (child->status == 0 && child->parent == 0 &&
				memcmp(child->job->put.parent, writer->group[i].job->put.hash,
					KVR_HASH_BYTES) == 0)
				child->status = -ENOENT;
		}
	}
}

/* One transaction for the live entries of [first, first + count). */
static int commit_some(struct kvr_store_writer *writer, uint32_t first, uint32_t count)
{
	struct kvr_catalog *catalog = writer->store->catalog;
	struct timespec now;
	int rc = kvr_catalog_begin(catalog);

	if (rc < 0)
		return rc;
	clock_gettime(CLOCK_REALTIME, &now);
	rc = kvr_store_wiped_put(writer);
	for (uint32_t i = first; i < first + count && rc == 0; i++) {
		if (writer->group[i].status == 0)
			rc = kvr_store_put_rows(writer, &writer->group[i],
				(uint64_t)now.tv_sec * 1000000u + (uint64_t)now.tv_nsec / 1000u);
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

/* Commits the group. Where the catalog is full, some segments are evicted for it; if that does not
 * help, fewer puts are tried at once, so that those for which there is room succeed. */
static void commit(struct kvr_store_writer *writer)
{
	uint32_t chunk = writer->group_count;
	uint32_t tries = 0;

	for (uint32_t first = 0; first < writer->group_count;) {
		const uint32_t left = writer->group_count - first;
		int rc;

		if (chunk > left)
			chunk = left;
		rc = commit_some(writer, first, chunk);
		if (rc == 0) {
			first += chunk;
		} else if (rc == -ENOSPC && tries < EVICT_TRIES &&
			   kvr_store_evict(writer, NULL, (uint64_t)1 << tries) > 0) {
			tries++;
		} else if (rc == -ENOSPC && chunk > 1) {
			chunk /= 2;
		} else {
			for (uint32_t i = first; i < first + chunk; i++) {
				if (writer->group[i].status == 0)
					writer->group[i].status = rc;
			}
			fail_orphans(writer);
			first += chunk;
		}
	}
}

/* Ends an entry: gives back what it must not keep (W3). */
static void end_entry(struct kvr_store_writer *writer, struct kvr_store_entry *entry)
{
	struct kvr_store *store = writer->store;
	struct kvr_store_put *put = &entry->job->put;
	const uint32_t count = entry->layout.part_count;

	if (entry->status < 0 && entry->reserved) {
		(void)kvr_store_wipe(writer->tier, writer->zeros, put->parts, 1, NULL);
		kvr_store_release_slabs(writer, put->parts, count);
	}
	pthread_mutex_lock(&store->mutex);
	if (entry->parent != 0)
		kvr_store_holds_sub(&store->holds, entry->parent);
	if (entry->status < 0 && entry->held)
		kvr_store_holds_sub(&store->holds, entry->id);
	if (entry->status == 0) {
		put->id = entry->id;
		kvr_store_models_add(&store->models, put->model, put->view->token_count);
		store->counters.put_count++;
		store->counters.put_bytes += (uint64_t)count * KVR_SLAB_BYTES;
	} else if (entry->status != -EEXIST) {
		store->counters.put_failed_count++;
		store->counters.error_count += entry->status == -EIO;
	}
	pthread_mutex_unlock(&store->mutex);
	kvr_store_done(store, entry->job, entry->status);
}

/* What the core thread may not ask others for itself. */
static void publish(struct kvr_store_writer *writer)
{
	struct kvr_store *store = writer->store;
	struct kvr_catalog_stat stat;

	kvr_catalog_stat(store->catalog, &stat);
	kvr_store_put_refill(writer);
	pthread_mutex_lock(&store->mutex);
	store->counters.catalog = stat;
	store->counters.budget_left_bytes =
		store->write_bytes_per_day > 0 ? writer->budget_bytes : UINT64_MAX;
	pthread_mutex_unlock(&store->mutex);
}

static void end_group(struct kvr_store_writer *writer)
{
	bool live = false;

	kvr_store_image_settle(writer);
	fail_orphans(writer);
	for (uint32_t i = 0; i < writer->group_count; i++)
		live = live || writer->group[i].status == 0;
	if (live && kvr_store_sync(writer->tier) < 0) {
		for (uint32_t i = 0; i < writer->group_count; i++) {
			if (writer->group[i].status == 0)
				writer->group[i].status = -EIO;
		}
	} else if (live) {
		commit(writer); /* H1 */
	}
	publish(writer);
	for (uint32_t i = 0; i < writer->group_count; i++)
		end_entry(writer, &writer->group[i]);
	writer->group_count = 0;
}

/* Prepares puts as long as they come, then makes them durable together. */
static void run_group(struct kvr_store_writer *writer, struct kvr_store_job *job)
{
	uint64_t slabs = 0;

	KVR_ASSERT(writer->group_count == 0);
	while (job) {
		struct kvr_store_entry *entry = &writer->group[writer->group_count];

		*entry = (struct kvr_store_entry){.job = job};
		entry->status = kvr_store_put_prepare(writer, entry);
		writer->group_count++;
		if (entry->status == 0) {
			kvr_store_image_put(writer, entry);
			slabs += entry->layout.part_count;
		}
		job = NULL;
		if (writer->group_count < KVR_STORE_GROUP_MAX && slabs < GROUP_SLABS_MAX)
			job = kvr_store_queue_pop(&writer->store->write_queue, KVR_STORE_POP_PUT);
	}
	end_group(writer);
}

/* ---- the thread ------------------------------------------------------------------------------ */

static void run_job(struct kvr_store_writer *writer, struct kvr_store_job *job)
{
	int rc;

	if (job->op == KVR_STORE_PUT) {
		run_group(writer, job);
		return;
	}
	KVR_ASSERT(job->op == KVR_STORE_DROP || job->op == KVR_STORE_MARK);
	rc = job->op == KVR_STORE_DROP ? kvr_store_drop_run(writer, &job->drop)
				       : kvr_store_mark_run(writer, &job->mark);
	if (rc < 0 && rc != -ENOENT)
		kvr_store_count(writer->store, &writer->store->counters.error_count, 1);
	publish(writer);
	kvr_store_done(writer->store, job, rc);
}

void *kvr_store_writer_run(void *argument)
{
	struct kvr_store_writer *writer = argument;
	struct kvr_store_queue *queue = &writer->store->write_queue;

	for (;;) {
		struct kvr_store_job *job = kvr_store_queue_pop(queue, KVR_STORE_POP_ANY);

		if (!job) {
			/* Idle: what waited for somebody's commit gets its own. A failure leaves it
			 * waiting. */
			(void)kvr_store_wiped_flush(writer);
			publish(writer);
			job = kvr_store_queue_pop(queue, KVR_STORE_POP_WAIT);
		}
		if (!job)
			break;
		run_job(writer, job);
	}
	(void)kvr_store_wiped_flush(writer);
	return NULL;
}

int kvr_store_writer_open(struct kvr_store_writer *writer, struct kvr_store *store)
{
	int rc = kvr_catalog_reader_open(store->catalog, &writer->reader);

	if (rc < 0)
		return rc;
	writer->store = store;
	writer->id_next = store->meta.boot << KVR_STORE_BOOT_SHIFT | 1;
	writer->budget_bytes = store->write_bytes_per_day;
	writer->budget_ns = kvr_clock_ns();
	for (uint32_t i = 0; i < KVR_STORE_IMAGES_MAX; i++)
		writer->images[i].memory = store->memory.base + (size_t)i * KVR_SLAB_BYTES;
	writer->places = calloc(KVR_SLAB_PARTS_MAX, sizeof(*writer->places));
	writer->place_bytes = calloc(KVR_SLAB_PARTS_MAX, sizeof(*writer->place_bytes));
	writer->victims = calloc(KVR_STORE_VICTIMS_MAX, sizeof(*writer->victims));
	writer->victim_parts = calloc(KVR_STORE_WIPED_MAX, sizeof(*writer->victim_parts));
	writer->wiped = calloc(KVR_STORE_WIPED_MAX, sizeof(*writer->wiped));
	writer->steps = calloc(KVR_SEQUENCE_SEGMENTS_MAX + 1, sizeof(*writer->steps));
	if (!writer->places || !writer->place_bytes || !writer->victims || !writer->victim_parts ||
		!writer->wiped || !writer->steps)
		return -ENOMEM;
	for (uint32_t i = 0; i < KVR_SLAB_PARTS_MAX; i++)
		writer->place_bytes[i] = KVR_SLAB_BYTES;
	publish(writer);
	return 0;
}

void kvr_store_writer_close(struct kvr_store_writer *writer)
{
	kvr_catalog_reader_close(writer->reader);
	kvr_tier_close(writer->tier);
	free(writer->places);
	free(writer->place_bytes);
	free(writer->units);
	free(writer->victims);
	free(writer->victim_parts);
	free(writer->wiped);
	free(writer->steps);
	*writer = (struct kvr_store_writer){0};
}

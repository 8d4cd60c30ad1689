/* SPDX-License-Identifier: Apache-2.0 */
/* keep.c: puts and marks. Finding and loading is in find.c. */
#include "daemon/keep.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/assert.h"
#include "base/clock.h"
#include "daemon/daemon.h"
#include "daemon/log.h"

#define SAY_AGAIN_NS 60000000000u

int kvr_keep_open(struct kvr_keep *keep)
{
	*keep = (struct kvr_keep){0};
	kvr_list_init(&keep->free);
	kvr_list_init(&keep->queue);
	kvr_list_init(&keep->later);
	kvr_list_init(&keep->changed);
	kvr_list_init(&keep->waiters);
	keep->puts = calloc(KVR_KEEP_JOBS_MAX, sizeof(*keep->puts));
	keep->bad = calloc(1, sizeof(*keep->bad));
	if (!keep->puts || !keep->bad) {
		kvr_keep_close(keep);
		return -ENOMEM;
	}
	for (uint32_t i = 0; i < KVR_KEEP_JOBS_MAX; i++)
		kvr_list_push(&keep->free, &keep->puts[i].link);
	return 0;
}

void kvr_keep_close(struct kvr_keep *keep)
{
	KVR_ASSERT(keep->running == 0);
	KVR_ASSERT(keep->marks_running == 0);
	free(keep->puts);
	free(keep->bad);
	keep->puts = NULL;
	keep->bad = NULL;
}

/* ---- puts ------------------------------------------------------------------------------------ */

/* The parent is leased while its child is on its way, so that the store does not let go of it in between. False: it has
 * already; the child stays in memory alone. */
static bool begin_put(struct kvr_daemon *daemon, struct kvr_segment *segment)
{
	struct kvr_directory *directory = &daemon->directory;

	if (segment->parent != KVR_SEGMENT_NONE) {
		if (!kvr_directory_lease(directory, segment->parent)) {
			segment->store_error = -ENOENT;
			return false;
		}
		segment->parent_leased = true;
	}
	kvr_directory_putting(directory, (uint32_t)(segment - directory->segments), true);
	kvr_list_push(&daemon->keep.queue, &segment->keep_link);
	return true;
}

static void end_put(struct kvr_daemon *daemon, struct kvr_segment *segment)
{
	struct kvr_directory *directory = &daemon->directory;

	kvr_directory_putting(directory, (uint32_t)(segment - directory->segments), false);
	if (segment->parent_leased)
		kvr_directory_unlease(directory, segment->parent);
	segment->parent_leased = false;
}

void kvr_keep_put(struct kvr_daemon *daemon, uint32_t index)
{
	struct kvr_segment *segment = &daemon->directory.segments[index];

	if (!daemon->store)
		return;
	KVR_ASSERT(segment->state == KVR_SEGMENT_READY);
	KVR_ASSERT(segment->stored == KVR_STORED_NONE);
	if (!begin_put(daemon, segment))
		kvr_list_push(&daemon->keep.later, &segment->keep_link);
}

static void describe_model(const struct kvr_model *model, struct kvr_slab_model *ret_model)
{
	*ret_model = (struct kvr_slab_model){.rank = model->rank, .geometry = model->geometry};
	memcpy(ret_model->root, model->root, KVR_HASH_BYTES);
	memcpy(ret_model->digest, model->digest, KVR_HASH_BYTES);
	memcpy(ret_model->tenant, model->tenant->name, sizeof(ret_model->tenant));
	memcpy(ret_model->name, model->name, sizeof(ret_model->name));
}

static void submit(struct kvr_daemon *daemon, struct kvr_keep_put *put, uint32_t index)
{
	struct kvr_directory *directory = &daemon->directory;
	struct kvr_segment *segment = &directory->segments[index];
	const uint8_t *parent = segment->parent == KVR_SEGMENT_NONE
					? segment->model->root
					: directory->segments[segment->parent].hash;

	KVR_ASSERT(segment->stored == KVR_STORED_PUTTING);
	KVR_ASSERT(segment->state == KVR_SEGMENT_READY);
	describe_model(segment->model, &put->model);
	put->segment = index;
	put->job = (struct kvr_store_job){.op = KVR_STORE_PUT, .owner = put};
	put->job.put = (struct kvr_store_put){
		.model = &put->model,
		.view = &segment->view,
		.tokens = segment->tokens,
		.quota_bytes = segment->model->tenant->store_quota_bytes,
		.parts = segment->parts,
		.crcs = segment->crcs,
	};
	memcpy(put->job.put.hash, segment->hash, KVR_HASH_BYTES);
	memcpy(put->job.put.parent, parent, KVR_HASH_BYTES);
	daemon->keep.running++;
	kvr_store_submit(daemon->store, &put->job);
}

/* It stays in memory alone until it is tried again. */
static void put_off(struct kvr_daemon *daemon, uint32_t index, int error)
{
	struct kvr_segment *segment = &daemon->directory.segments[index];

	KVR_ASSERT(error < 0);
	end_put(daemon, segment);
	KVR_ASSERT(kvr_list_empty(&segment->keep_link));
	segment->store_error = error;
	kvr_list_push(&daemon->keep.later, &segment->keep_link);
}

/* A damaged segment of this name is in the way. It goes with what follows it, which nothing can reach; then ours is put. */
static void drop_damaged(struct kvr_daemon *daemon, struct kvr_keep_put *put)
{
	const struct kvr_store_put was = put->job.put;

	put->job = (struct kvr_store_job){.op = KVR_STORE_DROP, .owner = put};
	memcpy(put->job.drop.root, put->model.root, KVR_HASH_BYTES);
	memcpy(put->job.drop.hash, was.hash, KVR_HASH_BYTES);
	kvr_store_submit(daemon->store, &put->job);
}

static void drop_done(struct kvr_daemon *daemon, struct kvr_keep_put *put)
{
	const bool gone = put->job.status == 0 && put->job.drop.kept_count == 0;

	KVR_ASSERT(daemon->keep.running > 0);
	daemon->keep.running--;
	if (gone) {
		submit(daemon, put, put->segment);
		return;
	}
	put_off(daemon, put->segment, -EBUSY); /* others still read what is left of it */
	kvr_list_push(&daemon->keep.free, &put->link);
	daemon->keep.settled = true;
}

/* Once per kind and minute, not per segment. */
static void say_failed(struct kvr_keep *keep, int status)
{
	const uint64_t now = kvr_clock_ns();

	if (status == -ENOENT || (status == keep->said_error && now < keep->said_ns + SAY_AGAIN_NS))
		return;
	keep->said_error = status;
	keep->said_ns = now;
	kvr_log(KVR_LOG_WARNING, "storing a segment: %s; it is in memory alone; %s",
		strerror(-status), kvr_keep_remedy(status));
}

static void put_done(struct kvr_daemon *daemon, struct kvr_keep_put *put)
{
	struct kvr_keep *keep = &daemon->keep;
	const int status = put->job.status;

	if (status == -ESTALE) {
		drop_damaged(daemon, put);
		return;
	}
	KVR_ASSERT(keep->running > 0);
	keep->running--;
	if (status == 0 || status == -EEXIST) {
		end_put(daemon, &daemon->directory.segments[put->segment]);
		daemon->directory.segments[put->segment].store_error = 0;
		if (status == 0)
			kvr_directory_stored(&daemon->directory, put->segment, put->job.put.id);
		else
			kvr_directory_twin(&daemon->directory, put->segment, put->job.put.id);
		keep->last_error = 0;
	} else {
		keep->failed_count++;
		if (status != -ENOENT)
			keep->last_error = status;
		say_failed(keep, status);
		put_off(daemon, put->segment, status);
	}
	kvr_list_push(&keep->free, &put->link);
	keep->settled = true;
}

/* Whether the segment's parent is in the store, or will be before it. */
static bool parent_goes(const struct kvr_directory *directory, const struct kvr_segment *segment)
{
	return segment->parent == KVR_SEGMENT_NONE ||
	       directory->segments[segment->parent].stored != KVR_STORED_NONE;
}

static void start_puts(struct kvr_daemon *daemon)
{
	struct kvr_keep *keep = &daemon->keep;

	while (!kvr_list_empty(&keep->queue) && !kvr_list_empty(&keep->free)) {
		struct kvr_segment *segment =
			KVR_CONTAINER_OF(kvr_list_pop(&keep->queue), struct kvr_segment, keep_link);
		const uint32_t index = (uint32_t)(segment - daemon->directory.segments);
		struct kvr_list *node;

		if (!parent_goes(&daemon->directory, segment)) {
			put_off(daemon, index, -ENOENT);
			keep->settled = true;
			continue;
		}
		node = kvr_list_pop(&keep->free);
		submit(daemon, KVR_CONTAINER_OF(node, struct kvr_keep_put, link), index);
	}
}

static void retry(struct kvr_daemon *daemon, uint64_t now)
{
	struct kvr_keep *keep = &daemon->keep;
	struct kvr_list again, *node;

	if (kvr_list_empty(&keep->later) || now < keep->retry_ns || daemon->stopping)
		return;
	keep->retry_ns = now + KVR_KEEP_RETRY_MS * 1000000ull;
	kvr_list_init(&again);
	while ((node = kvr_list_pop(&keep->later))) {
		struct kvr_segment *segment = KVR_CONTAINER_OF(node, struct kvr_segment, keep_link);

		/* Without its parent it can neither be stored nor matched: it goes as soon as nobody reads it. */
		if (!begin_put(daemon, segment) &&
			!kvr_directory_forget(&daemon->directory,
				(uint32_t)(segment - daemon->directory.segments)))
			kvr_list_push(&again, node);
	}
	while ((node = kvr_list_pop(&again)))
		kvr_list_push(&keep->later, node);
}

/* ---- marks ----------------------------------------------------------------------------------- */

static uint64_t wall_clock_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	return (uint64_t)now.tv_sec * 1000000u + (uint64_t)now.tv_nsec / 1000u;
}

static uint32_t flags_of(const struct kvr_segment *segment)
{
	return (segment->pinned ? KVR_CATALOG_PINNED : 0) |
	       (segment->quarantined ? KVR_CATALOG_QUARANTINED : 0);
}

/* What the store knows better: memory's pin may be older than one that was set on the disk (daemon/pin_calls.c), and
 * nothing becomes readable again. */
static uint32_t kept_of(const struct kvr_segment *segment)
{
	return (segment->pin_changed ? 0 : KVR_CATALOG_PINNED) |
	       (segment->quarantined ? 0 : KVR_CATALOG_QUARANTINED);
}

/* A batch of what is to be told. Returns whether there was one, and memory for it. */
static bool send_mark(struct kvr_daemon *daemon)
{
	struct kvr_keep *keep = &daemon->keep;
	const uint64_t now_us = wall_clock_us();
	struct kvr_store_job *job;

	if (keep->bad->count == 0 && kvr_list_empty(&keep->changed))
		return false;
	job = calloc(1, sizeof(*job));
	if (!job)
		return false;
	job->op = KVR_STORE_MARK;
	job->owner = keep;
	job->mark = *keep->bad;
	keep->bad->count = 0;
	while (job->mark.count < KVR_STORE_MARKS_MAX && !kvr_list_empty(&keep->changed)) {
		struct kvr_segment *segment = KVR_CONTAINER_OF(
			kvr_list_pop(&keep->changed), struct kvr_segment, keep_link);

		KVR_ASSERT(segment->id > 0);
		job->mark.marks[job->mark.count].id = segment->id;
		job->mark.marks[job->mark.count].used = now_us;
		job->mark.marks[job->mark.count].flags = flags_of(segment);
		job->mark.marks[job->mark.count++].kept = kept_of(segment);
		segment->pin_changed = false;
	}
	keep->marks_running++;
	kvr_store_submit(daemon->store, job);
	return true;
}

void kvr_keep_flush(struct kvr_daemon *daemon)
{
	while (daemon->store && send_mark(daemon))
		;
}

int kvr_keep_status(const struct kvr_directory *directory, uint32_t index)
{
	int status = 0;

	for (; index != KVR_SEGMENT_NONE; index = directory->segments[index].parent) {
		const struct kvr_segment *segment = &directory->segments[index];

		if (segment->stored == KVR_STORED_PUTTING)
			return -EINPROGRESS;
		if (segment->gone)
			status = -ENOENT;
		if (segment->stored ==
			KVR_STORED_NONE) /* the oldest is the cause: others wait for it */
			status = segment->store_error ? segment->store_error : -EIO;
	}
	return status;
}

const char *kvr_keep_remedy(int error)
{
	switch (error) {
	case -ENOSPC: return "all that is stored is in use or pinned; raise store.bytes";
	case -EDQUOT: return "the tenant's store_quota_bytes is reached";
	case -EBUSY: return "a damaged copy of it is still in use; it is tried again";
	case -EAGAIN: return "today's store.write_bytes_per_day is spent";
	default: return "the disk failed; see the daemon's log";
	}
}

void kvr_keep_mark(struct kvr_keep *keep, struct kvr_segment *segment)
{
	if (segment->id && kvr_list_empty(&segment->keep_link))
		kvr_list_push(&keep->changed, &segment->keep_link);
}

void kvr_keep_quarantine(struct kvr_keep *keep, uint64_t id)
{
	struct kvr_store_mark *bad = keep->bad;

	if (bad->count == KVR_STORE_MARKS_MAX) /* it will be found again */
		return;
	bad->marks[bad->count].id = id;
	bad->marks[bad->count].used = 0; /* the first to go */
	bad->marks[bad->count].kept = KVR_CATALOG_PINNED;
	bad->marks[bad->count++].flags = KVR_CATALOG_QUARANTINED;
}

/* ---- rounds ---------------------------------------------------------------------------------- */

bool kvr_keep_owns(const struct kvr_keep *keep, const struct kvr_store_job *job)
{
	const uintptr_t at = (uintptr_t)job, first = (uintptr_t)keep->puts;

	return at >= first && at < first + KVR_KEEP_JOBS_MAX * sizeof(*keep->puts);
}

void kvr_keep_done(struct kvr_daemon *daemon, struct kvr_store_job *job)
{
	if (job->op == KVR_STORE_PUT) {
		put_done(daemon, job->owner);
		return;
	}
	if (job->op == KVR_STORE_DROP) {
		drop_done(daemon, job->owner);
		return;
	}
	KVR_ASSERT(job->op == KVR_STORE_MARK);
	KVR_ASSERT(daemon->keep.marks_running > 0);
	daemon->keep.marks_running--;
	free(job);
}

static bool has_later(const struct kvr_keep *keep)
{
	return !kvr_list_empty(&keep->later) || !kvr_list_empty(&keep->changed) ||
	       keep->bad->count > 0;
}

void kvr_keep_settle(struct kvr_daemon *daemon)
{
	struct kvr_keep *keep = &daemon->keep;
	uint64_t now;

	if (!daemon->store)
		return;
	start_puts(daemon);
	if (keep->settled) {
		keep->settled = false;
		kvr_waiters_wake(&keep->waiters);
		kvr_waiters_wake(
			&daemon->cache.waiters); /* for memory, which a put may have made free */
	}
	if (!has_later(keep))
		return;
	now = kvr_clock_ns();
	retry(daemon, now);
	start_puts(daemon);
	if (now >= keep->tick_ns || daemon->stopping) {
		keep->tick_ns = now + KVR_KEEP_TICK_MS * 1000000ull;
		kvr_keep_flush(daemon);
	}
}

bool kvr_keep_putting(const struct kvr_keep *keep)
{
	return keep->puts && (keep->running > 0 || !kvr_list_empty(&keep->queue));
}

bool kvr_keep_busy(const struct kvr_keep *keep)
{
	return keep->puts &&
	       (keep->running > 0 || keep->marks_running > 0 || keep->bad->count > 0 ||
		       !kvr_list_empty(&keep->queue) || !kvr_list_empty(&keep->changed));
}

int kvr_keep_wait_ms(const struct kvr_keep *keep)
{
	return keep->puts && has_later(keep) ? (int)KVR_KEEP_TICK_MS : -1;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* work.c: pools of jobs. Knows nothing of what they are for. */
#include "daemon/work.h"

#include <errno.h>
#include <stdlib.h>

#include "base/assert.h"

KVR_STATIC_ASSERT(KVR_WORKS_MAX + KVR_SEAL_WORKS_MAX + KVR_FILL_WORKS_MAX <= KVR_DEVICE_JOBS_MAX);

#define REAP_MAX 64u

int kvr_works_open(struct kvr_works *works, struct kvr_device *device, uint32_t count)
{
	*works = (struct kvr_works){.device = device, .count = count};
	kvr_list_init(&works->free);
	kvr_list_init(&works->waiters);
	works->entries = calloc(count, sizeof(*works->entries));
	if (!works->entries)
		return -ENOMEM;
	for (uint32_t i = 0; i < count; i++) {
		works->entries[i].pool = works;
		kvr_list_push(&works->free, &works->entries[i].link);
	}
	return 0;
}

void kvr_works_close(struct kvr_works *works)
{
	KVR_ASSERT(works->running == 0);
	free(works->entries);
	works->entries = NULL;
}

struct kvr_work *kvr_work_take(struct kvr_works *works)
{
	struct kvr_list *node = kvr_list_pop(&works->free);

	return node ? KVR_CONTAINER_OF(node, struct kvr_work, link) : NULL;
}

void kvr_work_give(struct kvr_work *work)
{
	struct kvr_works *works = work->pool;

	KVR_ASSERT(kvr_list_empty(&work->link));
	/* At the front: the next to take it finds its memory in the cache. */
	kvr_list_push(works->free.next, &work->link);
}

void kvr_works_serve(struct kvr_works *works)
{
	struct kvr_list *node;

	while (!kvr_list_empty(&works->free) && (node = kvr_list_pop(&works->waiters))) {
		struct kvr_waiter *waiter = KVR_CONTAINER_OF(node, struct kvr_waiter, link);

		waiter->wake(waiter); /* waits again only when it found none free */
	}
}

void kvr_work_submit(struct kvr_work *work, enum kvr_job_kind kind, uint32_t item_count,
	bool urgent, void (*done)(struct kvr_work *), void *owner)
{
	int rc;

	KVR_ASSERT(item_count >= 1);
	KVR_ASSERT(item_count <= KVR_WORK_ITEMS_MAX);
	KVR_ASSERT(done);
	KVR_ASSERT(work->pool->running < work->pool->count);
	work->done = done;
	work->owner = owner;
	work->job = (struct kvr_job){
		.kind = kind,
		.urgent = urgent,
		.items = &work->items,
		.item_count = item_count,
		.owner = work,
	};
	work->pool->running++;
	work->stamp = ++work->pool->stamp;
	rc = kvr_device_submit(work->pool->device, &work->job);
	KVR_ASSERT(rc == 0); /* fewer works than the device takes jobs */
}

uint64_t kvr_works_oldest(const struct kvr_works *works)
{
	uint64_t oldest = UINT64_MAX;

	for (uint32_t i = 0; i < works->count && works->running > 0; i++) {
		const uint64_t stamp = works->entries[i].stamp;

		if (stamp > 0 && stamp < oldest)
			oldest = stamp;
	}
	return oldest;
}

void kvr_works_reap(struct kvr_device *device)
{
	struct kvr_job *jobs[REAP_MAX];
	uint32_t count;

	while ((count = kvr_device_reap(device, jobs, REAP_MAX)) > 0) {
		for (uint32_t i = 0; i < count; i++) {
			struct kvr_work *work = jobs[i]->owner;

			KVR_ASSERT(work->pool->running > 0);
			work->pool->running--;
			work->stamp = 0;
			work->done(work);
		}
	}
}

/* SPDX-License-Identifier: Apache-2.0 */
/* store.c: the core thread's side: jobs go to the thread that does them and come back, holds,
 * figures.
 *
 * Threads: the core thread's but for the queues' other ends, kvr_store_done and kvr_store_count. */
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/assert.h"
#include "tiers/store_private.h"

/* ---- queues ---------------------------------------------------------------------------------- */

void kvr_store_queue_open(struct kvr_store_queue *queue)
{
	pthread_mutex_init(&queue->mutex, NULL);
	pthread_cond_init(&queue->cond, NULL);
	kvr_list_init(&queue->jobs);
}

void kvr_store_queue_stop(struct kvr_store_queue *queue)
{
	pthread_mutex_lock(&queue->mutex);
	queue->stop = true;
	pthread_cond_signal(&queue->cond);
	pthread_mutex_unlock(&queue->mutex);
}

void kvr_store_queue_close(struct kvr_store_queue *queue)
{
	KVR_ASSERT(kvr_list_empty(&queue->jobs));
	pthread_cond_destroy(&queue->cond);
	pthread_mutex_destroy(&queue->mutex);
}

static void push(struct kvr_store_queue *queue, struct kvr_store_job *job)
{
	pthread_mutex_lock(&queue->mutex);
	KVR_ASSERT(!queue->stop);
	kvr_list_push(&queue->jobs, &job->link);
	pthread_cond_signal(&queue->cond);
	pthread_mutex_unlock(&queue->mutex);
}

struct kvr_store_job *kvr_store_queue_pop(struct kvr_store_queue *queue, enum kvr_store_pop how)
{
	struct kvr_store_job *job = NULL;

	pthread_mutex_lock(&queue->mutex);
	while (how == KVR_STORE_POP_WAIT && kvr_list_empty(&queue->jobs) && !queue->stop)
		pthread_cond_wait(&queue->cond, &queue->mutex);
	if (!kvr_list_empty(&queue->jobs)) {
		job = KVR_CONTAINER_OF(queue->jobs.next, struct kvr_store_job, link);
		if (how == KVR_STORE_POP_PUT && job->op != KVR_STORE_PUT)
			job = NULL;
		else
			kvr_list_remove(&job->link);
	}
	pthread_mutex_unlock(&queue->mutex);
	return job;
}

/* ---- coming back ----------------------------------------------------------------------------- */

void kvr_store_signal(struct kvr_store *store)
{
	const uint64_t one = 1;

	if (store->signalled)
		return;
	store->signalled = true;
	/* It never blocks: the count is 0. */
	if (write(store->event_fd, &one, sizeof(one)) < 0)
		KVR_ASSERT(errno == EAGAIN);
}

/* Under the mutex: the descriptor is readable while there is something. */
static void quiet_if_empty(struct kvr_store *store)
{
	uint64_t count;

	/* Asked in every round of the owner's loop: a system call only where there is something to
	 * take back. */
	if (!store->signalled || !kvr_list_empty(&store->done) || store->holds.gone_count > 0)
		return;
	store->signalled = false;
	if (read(store->event_fd, &count, sizeof(count)) < 0)
		KVR_ASSERT(errno == EAGAIN);
}

void kvr_store_done(struct kvr_store *store, struct kvr_store_job *job, int status)
{
	KVR_ASSERT(status <= 0);
	job->status = status;
	pthread_mutex_lock(&store->mutex);
	kvr_list_push(&store->done, &job->link);
	kvr_store_signal(store);
	pthread_mutex_unlock(&store->mutex);
}

void kvr_store_count(struct kvr_store *store, uint64_t *counter, uint64_t more)
{
	pthread_mutex_lock(&store->mutex);
	*counter += more;
	pthread_mutex_unlock(&store->mutex);
}

/* ---- the core thread ------------------------------------------------------------------------- */

const uint8_t *kvr_store_secret(const struct kvr_store *store)
{
	return store->secret;
}

struct kvr_tier *kvr_store_tier(struct kvr_store *store)
{
	return store->core_tier;
}

void kvr_store_submit(struct kvr_store *store, struct kvr_store_job *job)
{
	const bool writes =
		job->op == KVR_STORE_PUT || job->op == KVR_STORE_DROP || job->op == KVR_STORE_MARK;

	KVR_ASSERT(job->op <= KVR_STORE_CHAIN);
	push(writes ? &store->write_queue : &store->read_queue, job); /* H5 */
}

uint32_t kvr_store_reap(struct kvr_store *store, struct kvr_store_job **ret_jobs, uint32_t max)
{
	uint32_t count = 0;

	pthread_mutex_lock(&store->mutex);
	while (count < max && !kvr_list_empty(&store->done)) {
		struct kvr_list *node = kvr_list_pop(&store->done); /* H5 */

		ret_jobs[count++] = KVR_CONTAINER_OF(node, struct kvr_store_job, link);
	}
	quiet_if_empty(store);
	pthread_mutex_unlock(&store->mutex);
	return count;
}

int kvr_store_fd(const struct kvr_store *store)
{
	return store->event_fd;
}

uint32_t kvr_store_gone(struct kvr_store *store, uint64_t *ret_ids, uint32_t max)
{
	uint32_t count;

	pthread_mutex_lock(&store->mutex);
	count = kvr_store_holds_take(&store->holds, ret_ids, max);
	quiet_if_empty(store);
	pthread_mutex_unlock(&store->mutex);
	return count;
}

bool kvr_store_hold(struct kvr_store *store, uint64_t id)
{
	bool held;

	pthread_mutex_lock(&store->mutex);
	held = kvr_store_holds_add(&store->holds, id);
	pthread_mutex_unlock(&store->mutex);
	return held;
}

void kvr_store_unhold(struct kvr_store *store, uint64_t id)
{
	pthread_mutex_lock(&store->mutex);
	kvr_store_holds_sub(&store->holds, id);
	pthread_mutex_unlock(&store->mutex);
}

void kvr_store_match_fini(struct kvr_store_match *match)
{
	free(match->found);
	match->found = NULL;
	match->found_count = 0;
}

void kvr_store_budget(struct kvr_store *store, uint64_t write_bytes_per_day)
{
	__atomic_store_n(&store->budget_wanted, write_bytes_per_day, __ATOMIC_RELAXED);
}

void kvr_store_stat(struct kvr_store *store, struct kvr_store_stat *ret_stat)
{
	pthread_mutex_lock(&store->mutex);
	*ret_stat = store->counters;
	ret_stat->held_count = store->holds.held_count;
	pthread_mutex_unlock(&store->mutex);
	kvr_nvme_report(store->nvme, &ret_stat->nvme);
	KVR_ASSERT(ret_stat->nvme.slab_free <= ret_stat->nvme.slab_count);
	ret_stat->capacity_bytes = ret_stat->nvme.slab_count * KVR_SLAB_BYTES;
	ret_stat->used_bytes =
		(ret_stat->nvme.slab_count - ret_stat->nvme.slab_free) * KVR_SLAB_BYTES;
}

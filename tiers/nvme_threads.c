/* SPDX-License-Identifier: Apache-2.0 */
/* nvme_threads.c: the mover over pread and pwrite, where io_uring is forbidden (containers, seccomp).
 *
 *   threads: wait ─► pop ─► pread, pwrite or fdatasync ─► settle ─► finish ─► pop ...
 *
 * One thread per transfer that is under way, at most THREADS_MAX, and one more, so that a sync takes no reader's
 * place. Whoever pops an io while more could go wakes the next thread.
 *
 * Invariants:
 *   P1  While an io may go, a thread is awake to take it, or all threads are at work.
 *
 * Threads: start and stop by the opener; wake by anyone; work->lock guards `waiting`. */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/assert.h"
#include "tiers/nvme_mover.h"

#define THREADS_MAX 16u

struct threads {
	struct kvr_nvme_mover mover;
	struct kvr_nvme_work *work; /* borrowed */
	pthread_cond_t more;        /* the queue has something, or stopping */
	uint32_t waiting;
	uint32_t count;
	pthread_t ids[THREADS_MAX + 1];
};

/* One try: the bytes moved, or -errno. */
static int64_t try_once(const struct kvr_nvme_work *work, const struct kvr_tier_io *io)
{
	uint8_t *data;
	size_t bytes;
	off_t offset;
	ssize_t rc;

	if (io->op == KVR_TIER_SYNC) {
		rc = fdatasync(work->fd);
		return rc < 0 ? -errno : 0;
	}
	kvr_nvme_check(work, io); /* N3 */
	data = io->buffer.data + io->done_bytes;
	bytes = io->place.bytes - io->done_bytes;
	offset = (off_t)(io->place.offset + io->done_bytes);
	if (io->op == KVR_TIER_READ)
		rc = pread(work->fd, data, bytes, offset);
	else
		rc = pwrite(work->fd, data, bytes, offset);
	return rc < 0 ? -errno : rc;
}

static void transfer(struct kvr_nvme_work *work, struct kvr_tier_io *io)
{
	uint32_t retries = 0;
	struct kvr_list finished;

	while (!kvr_nvme_settle(io, try_once(work, io), work->alignment, &retries))
		;
	pthread_mutex_lock(&work->lock);
	kvr_nvme_queue_done(&work->queue, io);
	pthread_mutex_unlock(&work->lock);
	kvr_list_init(&finished);
	kvr_list_push(&finished, &io->link);
	kvr_nvme_finish(work, &finished);
}

static void *thread_main(void *argument)
{
	struct threads *threads = argument;
	struct kvr_nvme_work *work = threads->work;

	pthread_mutex_lock(&work->lock);
	while (!work->stopping) {
		struct kvr_tier_io *io = kvr_nvme_queue_pop(&work->queue);

		if (!io) {
			work->idle = true; /* M1 */
			threads->waiting++;
			pthread_cond_wait(&threads->more, &work->lock);
			threads->waiting--;
			continue;
		}
		if (kvr_nvme_queue_ready(&work->queue))
			pthread_cond_signal(&threads->more); /* P1 */
		pthread_mutex_unlock(&work->lock);
		transfer(work, io);
		pthread_mutex_lock(&work->lock);
	}
	pthread_mutex_unlock(&work->lock);
	return NULL;
}

static void threads_wake(struct kvr_nvme_mover *mover, uint32_t count)
{
	struct threads *threads = KVR_CONTAINER_OF(mover, struct threads, mover);

	pthread_mutex_lock(&threads->work->lock);
	if (count > threads->waiting)
		count = threads->waiting;
	while (count-- > 0)
		pthread_cond_signal(&threads->more);
	threads->work->idle = threads->waiting > 0; /* M1: those that were not woken */
	pthread_mutex_unlock(&threads->work->lock);
}

static void threads_stop(struct kvr_nvme_mover *mover)
{
	struct threads *threads = KVR_CONTAINER_OF(mover, struct threads, mover);

	pthread_mutex_lock(&threads->work->lock);
	KVR_ASSERT(threads->work->stopping);
	pthread_cond_broadcast(&threads->more);
	pthread_mutex_unlock(&threads->work->lock);
	while (threads->count > 0)
		pthread_join(threads->ids[--threads->count], NULL);
	pthread_cond_destroy(&threads->more);
	free(threads);
}

static const struct kvr_nvme_mover_ops threads_ops = {
	.wake = threads_wake,
	.stop = threads_stop,
};

int kvr_nvme_threads_start(struct kvr_nvme_work *work, struct kvr_nvme_mover **ret_mover)
{
	struct threads *threads = calloc(1, sizeof(*threads));
	const uint32_t count = (work->depth < THREADS_MAX ? work->depth : THREADS_MAX) + 1;
	int rc = 0;

	if (!threads)
		return -ENOMEM;
	threads->mover.ops = &threads_ops;
	threads->work = work;
	pthread_cond_init(&threads->more, NULL);
	while (rc == 0 && threads->count < count) {
		rc = kvr_nvme_thread_create(&threads->ids[threads->count], thread_main, threads);
		threads->count += rc == 0;
	}
	if (rc < 0 && threads->count < 2) {
		pthread_mutex_lock(&work->lock);
		work->stopping = true;
		pthread_mutex_unlock(&work->lock);
		threads_stop(&threads->mover);
		return rc;
	}
	*ret_mover = &threads->mover; /* fewer threads than asked for are slower, and enough */
	return 0;
}

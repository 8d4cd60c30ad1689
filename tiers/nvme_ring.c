/* SPDX-License-Identifier: Apache-2.0 */
/* nvme_ring.c: the mover over io_uring: one thread, one ring. The one owner of liburing.
 *
 *   take ─► slot, SQE ─► enter: submit, sleep for one completion ─► harvest ─► finish ─┐
 *    ▲  queue                 ▲ wake: a read of an eventfd is always in the ring       │
 *    └─────────────────────────────────────────────────────────────────────────────────┘
 *
 * The thread sleeps in one place only, in the kernel. Task work is deferred to it (DEFER_TASKRUN), so that completions
 * cost no interrupt of another thread. A sync is an FSYNC with DATASYNC, which the kernel gives to a worker of
 * its own: reads go on meanwhile.
 *
 * Invariants:
 *   R1  A slot is free, or holds one io that is in the ring: its number is the completion's user_data.
 *   R2  The SQ has room for every slot and the wake-up: each of them has at most one entry in it.
 *
 * Threads: all but wake belong to the ring's thread. Start waits until it has set up the ring; stop joins it.
 *
 * Source: io_uring_setup(2), io_uring_enter(2), io_uring_register(2). */
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "base/assert.h"
#include "tiers/nvme.h"
#include "tiers/nvme_mover.h"

#ifdef KVR_HAVE_URING
#include <liburing.h>

#define SLOT_WAKE       UINT32_MAX                /* user_data of the wake-up's read */
#define SLOTS_MAX       (KVR_NVME_DEPTH_MAX + 1u) /* one for the sync */
#define FILE_SLABS      0                         /* registered files */
#define FILE_WAKE       1
#define PIECES_MAX      16384u            /* registered buffers, the kernel's bound */
#define PIECE_BYTES_MIN ((size_t)2 << 20) /* a huge page */
#define PIECE_BYTES_MAX ((size_t)1 << 30) /* the kernel's bound */
#define PIECE_USES      16u               /* transfers before a piece is registered */
#define WAIT_PART       8u                /* of what is in the kernel: completions to sleep for */

/* Flags that headers before liburing 2.3 do not have; what the kernel does not have, it refuses. */
#ifndef IORING_SETUP_COOP_TASKRUN
#define IORING_SETUP_COOP_TASKRUN (1u << 8)
#endif
#ifndef IORING_SETUP_SINGLE_ISSUER
#define IORING_SETUP_SINGLE_ISSUER (1u << 12)
#endif
#ifndef IORING_SETUP_DEFER_TASKRUN
#define IORING_SETUP_DEFER_TASKRUN (1u << 13)
#endif

struct slot {
	struct kvr_tier_io *io; /* R1; NULL: free */
	uint32_t retries;
};

struct ring {
	struct kvr_nvme_mover mover;
	struct kvr_nvme_work *work; /* borrowed */
	pthread_t thread;
	sem_t started;
	int start_error; /* written before `started` */
	int wake_fd;
	uint64_t wake_count; /* the kernel reads into it */
	bool wake_armed;
	struct io_uring uring;
	bool uring_open;
	size_t piece_bytes;
	uint32_t piece_first[KVR_NVME_BUFFERS_MAX]; /* number of a buffer's first piece */
	uint8_t *piece_uses; /* up to PIECE_USES: from then on the piece is registered */
	uint32_t slot_count;
	uint32_t free_count;
	uint32_t free_slots[SLOTS_MAX]; /* a stack */
	struct slot slots[SLOTS_MAX];
	struct kvr_list finished; /* seen, not yet handed out */
};

/* ---- setting up ------------------------------------------------------------------------------ */

/* The best flags that this kernel takes: DEFER_TASKRUN came with 6.1, SINGLE_ISSUER with 6.0, COOP_TASKRUN with 5.19. */
static int setup(struct ring *ring, uint32_t entries)
{
	static const uint32_t flags[] = {
		IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN,
		IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_COOP_TASKRUN,
		IORING_SETUP_COOP_TASKRUN,
		0,
	};
	int rc = -EINVAL;

	for (uint32_t i = 0; rc == -EINVAL && i < sizeof(flags) / sizeof(flags[0]); i++)
		rc = io_uring_queue_init(entries, &ring->uring, flags[i]);
	ring->uring_open = rc == 0;
	return rc;
}

/* ---- registered memory -----------------------------------------------------------------------
 *
 * A registered buffer is pinned, so that transfers save the pinning. To register gigabytes at once would also touch
 * them all: seconds at start, and memory that nobody uses yet. So memory is registered in pieces, each once
 * it has proved to be in use. A transfer that lies on both sides of a seam goes unregistered. */

static uint32_t cut(const struct kvr_nvme_work *work, size_t piece_bytes, uint32_t *ret_first)
{
	size_t count = 0;

	for (uint32_t i = 0; i < work->buffer_count; i++) {
		ret_first[i] = (uint32_t)count;
		count += (work->buffers[i].bytes + piece_bytes - 1) / piece_bytes;
	}
	return count <= PIECES_MAX ? (uint32_t)count : UINT32_MAX;
}

/* Registers piece `number`, which begins `at` bytes into its buffer. */
static bool register_piece(struct ring *ring, uint32_t buffer, size_t at, uint32_t number)
{
	const struct kvr_span span = ring->work->buffers[buffer];
	const size_t left = span.bytes - at;
	const struct iovec piece = {
		.iov_base = span.data + at,
		.iov_len = left < ring->piece_bytes ? left : ring->piece_bytes,
	};
	const bool done =
		io_uring_register_buffers_update_tag(&ring->uring, number, &piece, NULL, 1) == 1;

	KVR_ASSERT(at < span.bytes);
	if (done)
		ring->piece_uses[number] = PIECE_USES;
	else /* RLIMIT_MEMLOCK, mostly: what is registered stays so, and no more is tried */
		__atomic_store_n(&ring->mover.registered, false, __ATOMIC_RELAXED);
	return done;
}

/* Makes a table of pieces, all empty, and registers the first, to see whether it is allowed. */
static int open_pieces(struct ring *ring)
{
	struct iovec *empty = NULL;
	uint32_t count;

	ring->piece_bytes = PIECE_BYTES_MIN;
	count = cut(ring->work, ring->piece_bytes, ring->piece_first);
	while (count == UINT32_MAX && ring->piece_bytes < PIECE_BYTES_MAX) {
		ring->piece_bytes *= 2;
		count = cut(ring->work, ring->piece_bytes, ring->piece_first);
	}
	if (count == 0 || count == UINT32_MAX)
		return 0;
	ring->piece_uses = calloc(count, 1);
	empty = calloc(count, sizeof(*empty));
	if (!ring->piece_uses || !empty) {
		free(empty);
		return -ENOMEM;
	}
	ring->mover.registered = io_uring_register_buffers(&ring->uring, empty, count) == 0;
	free(empty);
	if (ring->mover.registered)
		register_piece(ring, 0, 0, 0);
	return 0;
}

/* The number of the registered piece that holds [data, data + bytes), or -1. */
static int fixed_index(struct ring *ring, uint32_t buffer, const uint8_t *data, size_t bytes)
{
	const size_t at = (size_t)(data - ring->work->buffers[buffer].data);
	const size_t piece = at / ring->piece_bytes;
	const uint32_t number = ring->piece_first[buffer] + (uint32_t)piece;

	if (!ring->piece_uses || piece != (at + bytes - 1) / ring->piece_bytes)
		return -1;
	if (ring->piece_uses[number] == PIECE_USES)
		return (int)number;
	if (!ring->mover.registered)
		return -1;
	if (ring->piece_uses[number] < PIECE_USES - 1) {
		ring->piece_uses[number]++;
		return -1;
	}
	return register_piece(ring, buffer, piece * ring->piece_bytes, number) ? (int)number : -1;
}

static int ring_setup(struct ring *ring)
{
	int files[2];
	int rc;

	rc = setup(ring, ring->slot_count + 1); /* R2 */
	if (rc < 0)
		return rc;
	files[FILE_SLABS] = ring->work->fd;
	files[FILE_WAKE] = ring->wake_fd;
	rc = io_uring_register_files(&ring->uring, files, 2);
	if (rc < 0)
		return rc;
	return open_pieces(ring);
}

/* ---- into the kernel ------------------------------------------------------------------------- */

static struct io_uring_sqe *next_sqe(struct ring *ring)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&ring->uring);

	KVR_ASSERT(sqe != NULL); /* R2 */
	return sqe;
}

static void arm_wake(struct ring *ring)
{
	struct io_uring_sqe *sqe = next_sqe(ring);

	KVR_ASSERT(!ring->wake_armed);
	io_uring_prep_read(sqe, FILE_WAKE, &ring->wake_count, sizeof(ring->wake_count), 0);
	sqe->flags |= IOSQE_FIXED_FILE;
	sqe->user_data = SLOT_WAKE;
	ring->wake_armed = true;
}

/* Sends a slot's io, from where it has got to. */
static void issue(struct ring *ring, uint32_t number)
{
	struct kvr_tier_io *io = ring->slots[number].io;
	struct io_uring_sqe *sqe = next_sqe(ring);
	uint64_t offset;
	uint8_t *data;
	uint32_t bytes;
	int fixed;

	if (io->op == KVR_TIER_SYNC) {
		io_uring_prep_fsync(sqe, FILE_SLABS, IORING_FSYNC_DATASYNC);
	} else {
		const uint32_t buffer = kvr_nvme_check(ring->work, io); /* N3 */

		data = io->buffer.data + io->done_bytes;
		bytes = io->place.bytes - io->done_bytes;
		offset = io->place.offset + io->done_bytes;
		fixed = fixed_index(ring, buffer, data, bytes);
		if (fixed < 0 && io->op == KVR_TIER_READ)
			io_uring_prep_read(sqe, FILE_SLABS, data, bytes, offset);
		else if (fixed < 0)
			io_uring_prep_write(sqe, FILE_SLABS, data, bytes, offset);
		else if (io->op == KVR_TIER_READ)
			io_uring_prep_read_fixed(sqe, FILE_SLABS, data, bytes, offset, fixed);
		else
			io_uring_prep_write_fixed(sqe, FILE_SLABS, data, bytes, offset, fixed);
	}
	sqe->flags |= IOSQE_FIXED_FILE;
	sqe->user_data = number;
}

/* Books what has finished, hands it out, and takes what may go. Returns false at the end. */
static bool take(struct ring *ring)
{
	struct kvr_nvme_work *work = ring->work;
	const struct kvr_list *node;
	struct kvr_tier_io *io;
	struct kvr_list taken;
	struct kvr_list *next;
	bool stopping;

	kvr_list_init(&taken);
	pthread_mutex_lock(&work->lock);
	KVR_LIST_EACH (node, &ring->finished)
		kvr_nvme_queue_done(
			&work->queue, KVR_CONTAINER_OF(node, const struct kvr_tier_io, link));
	while ((io = kvr_nvme_queue_pop(&work->queue)) != NULL)
		kvr_list_push(&taken, &io->link);
	/* M1: the wake-up's read is armed before the thread sleeps. With the depth in use, a completion wakes it. */
	work->idle = work->queue.running < work->queue.depth;
	stopping = work->stopping;
	pthread_mutex_unlock(&work->lock);
	while ((next = kvr_list_pop(&taken)) != NULL) {
		uint32_t number;

		KVR_ASSERT(ring->free_count > 0); /* N1 */
		number = ring->free_slots[--ring->free_count];
		KVR_ASSERT(ring->slots[number].io == NULL); /* R1 */
		ring->slots[number] = (struct slot){
			.io = KVR_CONTAINER_OF(next, struct kvr_tier_io, link),
		};
		issue(ring, number);
	}
	if (!ring->wake_armed && !stopping)
		arm_wake(ring);
	return !stopping;
}

/* Submits, and sleeps until there is a completion, or a few where many are on their way: fewer sleeps, and larger
 * batches to submit. What the kernel says here is passing (no memory, a signal, a full
 * CQ): the entries it did not take are submitted again next time. */
static void enter(struct ring *ring)
{
	const struct timespec pause = {.tv_nsec = 1000000};
	const uint32_t part = (ring->slot_count - ring->free_count) / WAIT_PART;
	int rc = io_uring_submit_and_wait(&ring->uring, part > 1 ? part : 1);

	if (rc < 0 && rc != -EINTR && io_uring_cq_ready(&ring->uring) == 0)
		nanosleep(&pause, NULL);
}

/* ---- out of the kernel ----------------------------------------------------------------------- */

static void complete(struct ring *ring, uint64_t number, int32_t result)
{
	struct slot *slot;

	if (number == SLOT_WAKE) {
		ring->wake_armed = false;
		return;
	}
	KVR_ASSERT(number < ring->slot_count);
	slot = &ring->slots[number];
	KVR_ASSERT(slot->io != NULL); /* R1 */
	if (!kvr_nvme_settle(slot->io, result, ring->work->alignment, &slot->retries)) {
		issue(ring, (uint32_t)number);
		return;
	}
	kvr_list_push(&ring->finished, &slot->io->link);
	slot->io = NULL;
	ring->free_slots[ring->free_count++] = (uint32_t)number;
}

static void harvest(struct ring *ring)
{
	struct io_uring_cqe *cqe;
	uint32_t count = 0;
	uint32_t head;

	io_uring_for_each_cqe(&ring->uring, head, cqe)
	{
		complete(ring, cqe->user_data, cqe->res);
		count++;
	}
	io_uring_cq_advance(&ring->uring, count);
}

static void *ring_main(void *argument)
{
	struct ring *ring = argument;

	ring->start_error = ring_setup(ring);
	sem_post(&ring->started);
	if (ring->start_error < 0)
		return NULL;
	while (take(ring)) {
		if (!kvr_list_empty(&ring->finished))
			kvr_nvme_finish(ring->work, &ring->finished);
		enter(ring);
		harvest(ring);
	}
	while (ring->wake_armed) { /* M2: stop has written to the eventfd, or will */
		enter(ring);
		harvest(ring);
	}
	KVR_ASSERT(ring->free_count == ring->slot_count); /* M2 */
	return NULL;
}

/* ---- from outside ---------------------------------------------------------------------------- */

static void ring_wake(struct kvr_nvme_mover *mover, uint32_t count)
{
	const struct ring *ring = KVR_CONTAINER_OF(mover, struct ring, mover);

	(void)count;
	eventfd_write(ring->wake_fd, 1);
}

/* Frees what there is of a ring whose thread has ended, or never was. */
static void ring_free(struct ring *ring)
{
	if (ring->uring_open)
		io_uring_queue_exit(&ring->uring);
	if (ring->wake_fd >= 0)
		close(ring->wake_fd);
	sem_destroy(&ring->started);
	free(ring->piece_uses);
	free(ring);
}

static void ring_stop(struct kvr_nvme_mover *mover)
{
	struct ring *ring = KVR_CONTAINER_OF(mover, struct ring, mover);

	ring_wake(mover, 1);
	pthread_join(ring->thread, NULL);
	ring_free(ring);
}

static const struct kvr_nvme_mover_ops ring_ops = {
	.wake = ring_wake,
	.stop = ring_stop,
};

int kvr_nvme_ring_start(struct kvr_nvme_work *work, struct kvr_nvme_mover **ret_mover)
{
	struct ring *ring = calloc(1, sizeof(*ring));
	int rc;

	if (!ring)
		return -ENOMEM;
	ring->mover.ops = &ring_ops;
	ring->work = work;
	ring->slot_count = work->depth + 1; /* and the sync */
	KVR_ASSERT(ring->slot_count <= SLOTS_MAX);
	while (ring->free_count < ring->slot_count) {
		ring->free_slots[ring->free_count] = ring->slot_count - 1 - ring->free_count;
		ring->free_count++;
	}
	kvr_list_init(&ring->finished);
	sem_init(&ring->started, 0, 0);
	ring->wake_fd = eventfd(0, EFD_CLOEXEC);
	rc = ring->wake_fd < 0 ? -errno : 0;
	if (rc < 0)
		goto fail;
	rc = kvr_nvme_thread_create(&ring->thread, ring_main, ring);
	if (rc < 0)
		goto fail;
	while (sem_wait(&ring->started) < 0)
		; /* a signal */
	rc = ring->start_error;
	if (rc < 0) {
		pthread_join(ring->thread, NULL);
		goto fail;
	}
	*ret_mover = &ring->mover;
	return 0;

fail:
	ring_free(ring);
	return rc;
}

#else

int kvr_nvme_ring_start(struct kvr_nvme_work *work, struct kvr_nvme_mover **ret_mover)
{
	(void)work;
	(void)ret_mover;
	return -ENOSYS;
}

#endif

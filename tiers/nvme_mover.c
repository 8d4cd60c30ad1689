/* SPDX-License-Identifier: Apache-2.0 */
/* nvme_mover.c: what both movers share: checks before the kernel sees an io, and the reading of its answer. */
#include <errno.h>
#include <signal.h>

#include "base/assert.h"
#include "tiers/nvme_mover.h"

#define RETRIES_MAX 16u /* of one io, on EINTR, EAGAIN and transfers without progress */

int kvr_nvme_thread_create(pthread_t *ret_thread, void *(*main)(void *), void *argument)
{
	sigset_t all;
	sigset_t before;
	int rc;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	rc = pthread_create(ret_thread, NULL, main, argument);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return -rc;
}

uint32_t kvr_nvme_check(const struct kvr_nvme_work *work, const struct kvr_tier_io *io)
{
	const uintptr_t data = (uintptr_t)io->buffer.data;
	uint32_t i = 0;

	KVR_ASSERT(io->place.offset % work->alignment == 0);
	KVR_ASSERT(io->place.bytes % work->alignment == 0);
	KVR_ASSERT(data % work->alignment == 0);
	KVR_ASSERT(io->buffer.bytes == io->place.bytes);
	KVR_ASSERT(io->done_bytes < io->place.bytes);
	KVR_ASSERT(io->place.offset < work->bytes);
	KVR_ASSERT(io->place.bytes <= work->bytes - io->place.offset); /* N3 */
	while (i < work->buffer_count) {
		const uintptr_t base = (uintptr_t)work->buffers[i].data;

		if (data >= base && data - base < work->buffers[i].bytes)
			break;
		i++;
	}
	KVR_ASSERT(i < work->buffer_count); /* N3 */
	KVR_ASSERT(io->buffer.bytes <=
		   work->buffers[i].bytes - (data - (uintptr_t)work->buffers[i].data)); /* N3 */
	return i;
}

static int status_of(const struct kvr_tier_io *io, int64_t result)
{
	if (io->op == KVR_TIER_WRITE && (result == -ENOSPC || result == -EDQUOT))
		return -ENOSPC;
	return -EIO;
}

bool kvr_nvme_settle(struct kvr_tier_io *io, int64_t result, uint32_t alignment, uint32_t *retries)
{
	if (result == -EINTR || result == -EAGAIN) {
		(*retries)++;
		io->status = -EIO;
		return *retries > RETRIES_MAX;
	}
	if (io->op == KVR_TIER_SYNC || result < 0) {
		io->status = result < 0 ? status_of(io, result) : 0;
		return true;
	}
	/* A kernel that moved more than it was asked for has written where it must not: nothing here is sure. */
	if (result > (int64_t)(io->place.bytes - io->done_bytes)) {
		io->status = -EIO;
		return true;
	}
	io->done_bytes += (uint32_t)result;
	io->status = 0;
	if (io->done_bytes == io->place.bytes)
		return true;
	/* The rest starts at a sector again. No progress is the end of the file: cut from outside. */
	io->done_bytes -= io->done_bytes % alignment;
	(*retries)++;
	io->status = -EIO;
	return result < (int64_t)alignment || *retries > RETRIES_MAX;
}

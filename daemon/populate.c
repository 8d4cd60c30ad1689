/* SPDX-License-Identifier: Apache-2.0 */
/* populate.c: see populate.h. */
#include "daemon/populate.h"

#include <errno.h>
#include <sys/mman.h>

#include "base/assert.h"

#define STEP_BYTES ((size_t)16 << 20)

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* Linux 5.14; glibc before 2.35 does not name it */
#endif

static void *run(void *argument)
{
	struct kvr_populate *populate = argument;
	size_t at = 0;

	while (at < populate->memory.bytes && !__atomic_load_n(&populate->stop, __ATOMIC_RELAXED)) {
		const size_t left = populate->memory.bytes - at;
		const size_t step = left < STEP_BYTES ? left : STEP_BYTES;

		/* A kernel that does not know it, or has no memory: pages come as they are used. */
		if (madvise(populate->memory.data + at, step, MADV_POPULATE_WRITE) < 0)
			break;
		at += step;
		__atomic_store_n(&populate->done_bytes, at, __ATOMIC_RELAXED);
	}
	return NULL;
}

int kvr_populate_start(struct kvr_populate *populate, struct kvr_span memory)
{
	KVR_ASSERT(!populate->started);
	*populate = (struct kvr_populate){.memory = memory};
	if (pthread_create(&populate->thread, NULL, run, populate) != 0)
		return -EAGAIN;
	populate->started = true;
	return 0;
}

void kvr_populate_stop(struct kvr_populate *populate)
{
	if (!populate->started)
		return;
	__atomic_store_n(&populate->stop, true, __ATOMIC_RELAXED);
	pthread_join(populate->thread, NULL);
	KVR_ASSERT(populate->done_bytes <= populate->memory.bytes);
	populate->started = false;
}

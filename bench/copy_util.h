/* SPDX-License-Identifier: Apache-2.0 */
/* copy_util.h: the reference for everything that moves rows: memcpy on as many threads.
 *
 * The threads live as long as the pool, each on a CPU of its own. Between rounds they sleep, so that
 * they take no time from a daemon that is measured meanwhile. The clock runs from when all of them
 * are awake until the last one is done: the reference pays for no wake-up.
 *
 * Threads: the caller's and the pool's; the caller sleeps during a round. */
#ifndef KVR_BENCH_COPY_H
#define KVR_BENCH_COPY_H

#include <stddef.h>
#include <stdint.h>

struct bench_copy {
	void *to;
	const void *from;
	size_t bytes;
};

/* Copies that one thread takes at once, as a worker of the daemon takes a lane. */
struct bench_batch {
	const struct bench_copy *copies;
	uint32_t count;
};

struct bench_copier;

struct bench_copier *bench_copier_open(uint32_t threads);
struct bench_copier *bench_copier_close(struct bench_copier *copier);

/* Carries all batches out; returns the time it took in us. */
double bench_copy(struct bench_copier *copier, const struct bench_batch *batches, uint32_t count);

#endif

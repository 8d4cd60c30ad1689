/* SPDX-License-Identifier: Apache-2.0 */
/* populate.h: takes the arena's memory from the system in the background (memory.populate).
 *
 * Without it each page is taken when it is first written, which the core thread pays for when it places a segment on
 * memory that was never used: up to half a second for 128 MiB. What is in use meanwhile is left as it is.
 *
 * Threads: started and stopped by the core thread; one of its own in between. */
#ifndef KVR_DAEMON_POPULATE_H
#define KVR_DAEMON_POPULATE_H

#include <pthread.h>
#include <stdbool.h>

#include "base/span.h"

struct kvr_populate {
	struct kvr_span memory;
	pthread_t thread;
	bool started;
	bool stop;         /* atomic: set by stop, read between two steps */
	size_t done_bytes; /* atomic */
};

/* Starts on `memory`, page aligned, borrowed until stop. Errors: -EAGAIN (no thread). */
int kvr_populate_start(struct kvr_populate *populate, struct kvr_span memory);

/* Ends it within a step of 16 MiB. Takes one that was never started. */
void kvr_populate_stop(struct kvr_populate *populate);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* find.h: the longest chain of segments that a prompt starts with, out of the store if it is there.
 *
 *          MATCH                      not in memory: LOAD
 *   start ───────► each found segment ────────────────────► READY ─► next ... ─► open the sequence, reply
 *                       │ in memory: lease    │ being built: wait
 *                       └─────────────────────┘ damaged, or no room: the chain ends here
 *
 * Segments are loaded oldest first; each is leased until the sequence, which leases all, is open. What cannot be loaded
 * shortens the match and is never an error of the request.
 *
 * Threads: the core thread's. */
#ifndef KVR_DAEMON_FIND_H
#define KVR_DAEMON_FIND_H

#include <stdint.h>

struct kvr_call;
struct kvr_daemon;
struct kvr_model;
struct kvr_store_job;

/* Goes on with an `open` call whose prompt the memory does not hold all of; ends in kvr_call_done. The ids stay where
 * they are until then. Errors: -ENOMEM. */
int kvr_find_start(struct kvr_call *call, struct kvr_model *model, const uint32_t *tokens,
	uint32_t token_count);

/* Takes a finished MATCH or LOAD. */
void kvr_find_done(struct kvr_daemon *daemon, struct kvr_store_job *job);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* durable.h: the store and all that goes with it in the daemon: opened, served, closed together.
 *
 *   read arena ─► store ─► reads, stages, keep        nothing of it where store.dir is empty
 *
 * Threads: the core thread's. */
#ifndef KVR_DAEMON_DURABLE_H
#define KVR_DAEMON_DURABLE_H

#include <stdbool.h>

struct kvr_daemon;

/* Opens what the configuration asks for; logs what it finds and what fails. Blocks on the disk. */
int kvr_durable_open(struct kvr_daemon *daemon);

/* Takes what the store and its tier have finished. */
void kvr_durable_reap(struct kvr_daemon *daemon);

/* Whether the store has something under way that the daemon should not end without. */
bool kvr_durable_busy(const struct kvr_daemon *daemon);

/* Takes half of it. Nothing reads or writes any more. */
void kvr_durable_close(struct kvr_daemon *daemon);

#endif

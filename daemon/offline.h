/* SPDX-License-Identifier: Apache-2.0 */
/* offline.h: what kvrecalld does with a store instead of serving: verify and rebuild it.
 *
 * Result on stdout, as lines for people or as one JSON document; damage, errors and progress (on a terminal) on
 * stderr. `kvrecall verify` and `kvrecall rebuild` run this.
 *
 * Threads: the caller's. */
#ifndef KVR_DAEMON_OFFLINE_H
#define KVR_DAEMON_OFFLINE_H

#include <stdbool.h>

#include "daemon/config.h"

enum kvr_offline {
	KVR_OFFLINE_NONE,
	KVR_OFFLINE_VERIFY,
	KVR_OFFLINE_REBUILD,
};

/* The exit status: 0 sound, 1 damage found (by a rebuild: something is left out), 2 wrong settings, 4 cannot. */
int kvr_offline_run(const struct kvr_config *config, enum kvr_offline what, bool json);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* region.h: the memory a client shares with the daemon: a sealed memfd, mapped by both.
 *
 * The seals (no shrinking, no growing, no further seals) are what lets the daemon touch the mapping
 * without fear of SIGBUS. What lies inside is the client's to scribble on at any time: nothing read
 * from it is trusted twice. */
#ifndef KVR_DAEMON_REGION_H
#define KVR_DAEMON_REGION_H

#include <stdint.h>

#include "base/span.h"

struct kvr_region {
	struct kvr_span memory;
	int fd; /* -1: closed */
};

/* Makes and maps a region of `bytes`, a multiple of 2 MiB; pages come as they are touched.
 * Errors: -ENOMEM, -EMFILE. */
int kvr_region_open(struct kvr_region *region, uint64_t bytes);

/* Unmaps; of a large region in a thread of its own, for the system takes a tenth of a second and more to
 * free a GiB. The client's mapping lives on until it ends it. Takes a closed region. */
void kvr_region_close(struct kvr_region *region);

#endif

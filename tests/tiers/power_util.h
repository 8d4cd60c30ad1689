/* SPDX-License-Identifier: Apache-2.0 */
/* power_util.h: a disk with a cache of its own, whose power can be cut.
 *
 * What is written through a wrapped tier is volatile until a SYNC that came after it has succeeded. At a cut every
 * volatile write is kept, lost or torn (each sector of 512 bytes for itself), drawn from the seed. The file is that of
 * an NVMe tier, named by its path, since the bytes from before must be put back behind the tier's back.
 *
 * The cut happens at the n-th SYNC, instead of it. Then `gone` is called, on the thread that submitted the SYNC: a child
 * ends its process there, as a machine does. Where it returns or is NULL, the disk is dead: every later WRITE and SYNC is -EIO.
 *
 *   write ─► before[] (old bytes) ──SYNC succeeded──► forgotten
 *                 └──cut──► kept: forgotten; lost: written back; torn: sectors of it written back
 *
 * Threads: one; one tier per disk. Ask the tier for its descriptor at every wait: it changes where an io ends here. */
#ifndef KVR_TESTS_TIERS_POWER_UTIL_H
#define KVR_TESTS_TIERS_POWER_UTIL_H

#include <stdbool.h>
#include <stdint.h>

#include "tests/tiers/random_util.h"
#include "tiers/tier.h"

#define KVR_POWER_WRITES_MAX 4096u /* volatile at a time */

struct kvr_power_write;

struct kvr_power {
	uint32_t cut_at; /* the n-th SYNC from now on; 0: none */
	void (*gone)(void *context);
	void *context;
	struct kvr_random random;
	/* Since the start. */
	uint32_t sync_count;
	uint32_t kept_count, lost_count, torn_count;
	bool dead;
	/* Its own. */
	int fd;
	struct kvr_power_write *writes;
	uint32_t write_count;
};

/* Puts a disk below `below`, which it takes: the tier returned closes it. Set cut_at and gone afterwards. */
struct kvr_tier *kvr_power_wrap(
	struct kvr_power *power, const char *path, uint64_t seed, struct kvr_tier *below);

/* Cuts now. No write may be in flight. */
void kvr_power_cut(struct kvr_power *power);

#endif

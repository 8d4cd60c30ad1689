/* SPDX-License-Identifier: Apache-2.0 */
/* host.h: the host tier: clusters in RAM, inside the arena. Addressable, not durable. */
#ifndef KVR_TIERS_HOST_H
#define KVR_TIERS_HOST_H

#include "tiers/arena.h"
#include "tiers/tier.h"

/* Opens a tier on an arena, which it borrows and shares with others: places take what the arena has left.
 * Places that are not released before it closes stay taken in the arena. kvr_tier_stat: `capacity_bytes` is
 * the arena's, the rest is the tier's own part. Errors: -ENOMEM. */
int kvr_tier_open_host(struct kvr_arena *arena, struct kvr_tier **ret_tier);

#endif

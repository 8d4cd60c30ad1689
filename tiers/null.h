/* SPDX-License-Identifier: Apache-2.0 */
/* null.h: a tier that holds nothing: every reserve is -ENOSPC. The floor below the lowest tier. */
#ifndef KVR_TIERS_NULL_H
#define KVR_TIERS_NULL_H

#include "tiers/tier.h"

/* Errors: -ENOMEM. */
int kvr_tier_open_null(struct kvr_tier **ret_tier);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* faulty.h: a tier for tests: forwards to another tier, and fails where it is told to.
 *
 * Faults are counted down per kind of call: `*_at` = n makes the n-th such call from now on fail (1:
 * the next one); 0 never. A failing read leaves the buffer filled with a pattern, as a half-finished
 * transfer would. An io that is to fail goes to the tier below all the same, so that the fd of that
 * one stays true. */
#ifndef KVR_TIERS_FAULTY_H
#define KVR_TIERS_FAULTY_H

#include "tiers/tier.h"

struct kvr_tier_faults {
	uint64_t reserve_at;     /* -ENOSPC */
	uint64_t read_error_at;  /* status -EIO */
	uint64_t write_error_at; /* status -EIO, half of the bytes written */
	uint64_t write_full_at;  /* status -ENOSPC, nothing written */
	uint64_t sync_error_at;  /* status -EIO */
	uint64_t delay_reaps;    /* every io submitted is held back for so many calls of reap, which
	                          * the caller then makes whatever kvr_tier_fd says */
};

/* Takes `below` on success: closes it with itself. No io of it may be in flight. Errors: -ENOMEM. */
int kvr_tier_open_faulty(struct kvr_tier *below, struct kvr_tier **ret_tier);

/* Arms the faults; `faults` is copied. */
void kvr_tier_faulty_arm(struct kvr_tier *tier, const struct kvr_tier_faults *faults);

#endif

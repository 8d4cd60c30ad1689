/* SPDX-License-Identifier: Apache-2.0 */
/* faulty.h: a tier for tests: forwards to another tier, and fails where it is told to.
 *
 * Two ways to tell it, for each kind of fault:
 *   * `*_at` = n makes the n-th call of its kind from now on fail (1: the next one); 0 never;
 *   * `*_ppm` makes so many of a million calls fail, drawn from `seed`: the same calls, the same faults.
 *
 * An io that fails without any effect below (a read error, a full disk, a sync) does not go there: it waits in this
 * tier to be reaped. A failing read leaves the buffer filled with a pattern, as a half-finished transfer would. */
#ifndef KVR_TIERS_FAULTY_H
#define KVR_TIERS_FAULTY_H

#include "tiers/tier.h"

struct kvr_tier_faults {
	uint64_t reserve_at;    /* -ENOSPC */
	uint64_t read_error_at; /* status -EIO */
	uint64_t read_short_at; /* status -EIO, the second half of the bytes is not there */
	uint64_t read_flip_at;  /* status 0, and one bit wrong: what T3 forbids and a disk may do */
	uint64_t write_error_at; /* status -EIO, half of the bytes written */
	uint64_t write_full_at;  /* status -ENOSPC, nothing written */
	uint64_t write_lost_at;  /* status 0, nothing written */
	uint64_t sync_error_at;  /* status -EIO */
	uint64_t sync_lost_at;   /* status 0, nothing synced */
	uint32_t reserve_ppm;
	uint32_t read_error_ppm, read_short_ppm, read_flip_ppm;
	uint32_t write_error_ppm, write_full_ppm, write_lost_ppm;
	uint32_t sync_error_ppm, sync_lost_ppm;
	uint64_t seed;
	uint64_t delay_reaps; /* every io submitted is held back for so many calls of reap, which
	                       * the caller then makes whatever kvr_tier_fd says */
};

/* Takes `below` on success: closes it with itself. No io of it may be in flight. Errors: -ENOMEM, -EMFILE. */
int kvr_tier_open_faulty(struct kvr_tier *below, struct kvr_tier **ret_tier);

/* Arms the faults; `faults` is copied. By the tier's owner. */
void kvr_tier_faulty_arm(struct kvr_tier *tier, const struct kvr_tier_faults *faults);

#endif

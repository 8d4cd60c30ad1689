/* SPDX-License-Identifier: Apache-2.0 */
/* planted_util.h: small kernels with the mistakes that the emulation must catch, and what they would be without. */
#ifndef KVR_TESTS_KERNELS_PLANTED_UTIL_H
#define KVR_TESTS_KERNELS_PLANTED_UTIL_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define PLANTED_THREADS 96u /* of a block: three warps */
#define PLANTED_BLOCKS  5u

enum planted {
	PLANTED_NOTHING,
	/* Caught because the bits depend on the order. */
	PLANTED_NO_BARRIER_BEFORE_READ,
	PLANTED_NO_BARRIER_BUT_WARPS,
	PLANTED_NO_BARRIER_BEFORE_WRITE,
	PLANTED_NO_SYNCWARP,
	PLANTED_UNWRITTEN,
	PLANTED_BLOCKS_RACE,
	/* Caught as faults. */
	PLANTED_BARRIER_MISSED,
	PLANTED_BARRIER_RETURNED,
	PLANTED_BARRIERS_CROSSED,
	PLANTED_LANE_MISSING,
	PLANTED_LANE_OUTSIDE,
	PLANTED_LANE_WRONG_MASK,
	PLANTED_SHARED_TOO_LARGE,
	PLANTED_BLOCK_TOO_LARGE,
	/* Caught by AddressSanitizer, or by a canary. */
	PLANTED_WRITE_BEHIND,
	PLANTED_WRITE_BEFORE,
	PLANTED_WRITE_BEHIND_DYNAMIC,
	/* Caught by sanitizers alone. */
	PLANTED_READ_BEHIND,
	PLANTED_MISALIGNED,
};

/* Reverses in [PLANTED_BLOCKS][PLANTED_THREADS] inside each block, adds the sum of the block, and of all
 * blocks before it, and writes out of the same shape; counter is 0 before and after. Returns 0 or -EIO. */
int planted_launch(enum planted mistake, const uint32_t *in, uint32_t *out, uint32_t *counter);

#ifdef __cplusplus
}
#endif

#endif

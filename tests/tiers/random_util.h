/* SPDX-License-Identifier: Apache-2.0 */
/* random_util.h: the one seeded generator of the tests of this folder. Not for anything secret.
 *
 * A program prints its seed before its cases run; KVR_TEST_SEED=n in the environment repeats it. */
#ifndef KVR_TESTS_TIERS_RANDOM_UTIL_H
#define KVR_TESTS_TIERS_RANDOM_UTIL_H

#include <stdint.h>

struct kvr_random {
	uint64_t state;
};

/* The seed of this run, printed. */
struct kvr_random kvr_random_start(void);

uint64_t kvr_random_next(struct kvr_random *random);

/* Uniform in first .. last. */
uint32_t kvr_random_range(struct kvr_random *random, uint32_t first, uint32_t last);

/* Uniform in [0, 1). */
double kvr_random_unit(struct kvr_random *random);

/* Tokens of a cluster: 1 to 80, about 16 in the mean, as k-means leaves them (a gamma distribution of
 * shape 3). */
uint32_t kvr_random_cluster(struct kvr_random *random);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* check_util.h: one random item of each operation on a world, held against its oracle. A function
 * returns where all is right and fails the test otherwise. */
#ifndef KVR_TESTS_KERNELS_CHECK_UTIL_H
#define KVR_TESTS_KERNELS_CHECK_UTIL_H

#include "tests/kernels/oracle_util.h"

struct check_tolerance {
	double score;  /* RECALL: of a score, in parts of the largest magnitude among them */
	double mass;   /* RECALL: of the mass, absolute */
	double attend; /* ATTEND: of an output in parts of the largest value; of the log-sum-exp */
};

/* Keys or values that are NaN or infinite, somewhere. */
void check_append_refuses(struct oracle_world *world, struct kvr_device *device, uint32_t trial);
void check_pack(const struct oracle_world *world);
/* Also the same again with some extents missing, with a list of what is taken, and with gaps that FILL
 * closes. */
void check_recall(struct oracle_world *world, struct kvr_device *device,
	const struct check_tolerance *tolerance);
/* Recalls and fetches while another thread takes extents away and puts them back: what came back is
 * right, and what did not is said. */
void check_flip(struct oracle_world *world, struct kvr_device *device, uint32_t trials);
void check_fetch(struct oracle_world *world, struct kvr_device *device);
void check_attend(struct oracle_world *world, struct kvr_device *device,
	const struct check_tolerance *tolerance);

/* Waits until something is done and reaps it. */
uint32_t check_reap(struct kvr_device *device, struct kvr_job **ret_jobs, uint32_t max);

#endif

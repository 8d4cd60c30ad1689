/* SPDX-License-Identifier: Apache-2.0 */
/* stored_util.h: a daemon with a store in which two sequences lie, and the tool beside it. */
#ifndef KVR_TESTS_DAEMON_STORED_H
#define KVR_TESTS_DAEMON_STORED_H

#include "tests/daemon/harness_util.h"

#define STORED_TOKENS     1000u /* of each, in segments of 128, the last one shorter */
#define STORED_SEGMENTS   8u
#define STORED_BRANCH     5u /* segments that the second sequence shares with the first */
#define STORED_ALL        (STORED_SEGMENTS + STORED_SEGMENTS - STORED_BRANCH)
#define STORED_OUTPUT_MAX 65536u

struct stored {
	struct harness_daemon daemon;
	struct kvr_model_config config;
	struct kvr_client *client;
	uint32_t ids[2][STORED_TOKENS];
};

extern char stored_out[STORED_OUTPUT_MAX], stored_err[STORED_OUTPUT_MAX]; /* of the last run */

void stored_start(struct stored *world); /* both are durable */
void stored_stop(struct stored *world);
void stored_end(struct stored *world); /* SIGKILL; the store stays */
void stored_start_again(struct stored *world);
void stored_restart(struct stored *world);

struct kvr_model *stored_model(struct stored *world);
struct kvr_sequence *stored_open(struct stored *world, uint32_t which, uint32_t *ret_matched);

/* Both match and come back bit for bit. */
void stored_check(struct stored *world);

/* All segments, asserted to be STORED_ALL. */
void stored_list(struct stored *world, struct kvr_segment_info segments[STORED_ALL]);

/* Flips a bit in each of 8 pages of the first slab, behind header and head. The same again undoes it. */
void stored_flip(const struct stored *world);

/* Runs a line of the shell where $K is the tool and $S the store, in the daemon's folder; asserts the exit code, and that the
 * output `says` so. */
void stored_run(const struct stored *world, const char *command, int code, const char *says);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* crash_run_util.h: thousands of small worlds, looked at by a few processes.
 *
 * A worker is a child that takes its share of the states in turn, in a folder of its own, with what the parent has recorded. What ends
 * it (a check that fails, an assertion, a hang) is told with the state that it was at, so that this one can be repeated.
 *
 * Threads: the test's own. No thread of the code under test runs when a child is made. */
#ifndef KVR_TESTS_TIERS_CRASH_RUN_UTIL_H
#define KVR_TESTS_TIERS_CRASH_RUN_UTIL_H

#include "tests/tiers/crash_record_util.h"
#include "tests/tiers/crash_util.h"
#include "tests/tiers/slow_util.h"

/* Under a sanitizer a part of the states has to do. */
#define KVR_CRASH_SLOW (KVR_SLOW_ADDRESS || KVR_SLOW_THREAD)

#define KVR_CRASH_WORKERS 2u

/* How far a worker has come; shared with its parent. */
struct kvr_crash_progress {
	uint32_t at;    /* a flush, a call */
	uint64_t with;  /* a seed, a fault */
	uint64_t count; /* states */
	char why[320];
};

struct kvr_crash_run {
	struct kvr_crash_world world;
	struct kvr_disk nothing; /* an empty disk */
	/* Of the run that was recorded last: before step k, and after the last one; flushes before it. */
	struct kvr_crash_beliefs beliefs[KVR_CRASH_STEPS + 1];
	uint32_t flushes[KVR_CRASH_STEPS + 1];
	struct kvr_crash_progress *progress; /* [KVR_CRASH_WORKERS] */
	char text[512];                      /* what a worker found */
};

extern struct kvr_crash_run kvr_crash_run;

/* For cmocka. */
int kvr_crash_run_setup(void **state);
int kvr_crash_run_teardown(void **state);

/* Runs the workload from an empty disk; the log stays with the recorder. */
void kvr_crash_run_record(const struct kvr_record_plan *plan);

/* False: world.why says what is wrong. */
typedef bool kvr_crash_work(struct kvr_crash_progress *mine, uint32_t worker);

/* Runs the work in all workers. Returns what one of them found, or NULL; run.text says it in words. */
const struct kvr_crash_progress *kvr_crash_run_workers(kvr_crash_work *work);
uint64_t kvr_crash_run_count(void); /* states, of all workers */

/* One more state. It must be over soon. */
void kvr_crash_run_at(struct kvr_crash_progress *mine, uint32_t at, uint64_t with);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* crash_faults.c: every system call below the store fails once.
 *
 * Goal: whichever call fails, in whichever way, the store says so and ends nobody; it loses nothing that it acknowledged; nothing
 * half is visible; it can be closed and opened again, and then is as good as before.
 *
 * Method: as in crash.c the system calls of the tiers and of LMDB pass through crash_record_util.h. The workload of
 * crash_util.h runs once to count them. Then, for every call, it runs again, and this call fails: with EIO, with ENOSPC, half
 * done, or done and yet with EIO. Jobs may fail then, and what they were to do may be there or not. Afterwards the store is
 * closed, opened without faults and looked at from all sides (crash_check_util.c). A rebuild likewise.
 *
 * KVR_CRASH_ONE=call:fault: that one alone. Threads make the order of some neighbouring calls differ from run to run. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "tests/tiers/crash_calls_body.h"
#include "tests/tiers/crash_run_util.h"

enum {
	CALLS_MAX = 65536,
	EACH = KVR_SLOW_THREAD    ? 48
	       : KVR_SLOW_ADDRESS ? 16
				  : 1, /* every so-manieth call */
};

static uint32_t call_count;
static uint8_t kinds[CALLS_MAX];
static uint32_t only_call; /* 0: all */
static uint32_t only_fault;
static struct kvr_disk stored; /* before a rebuild */

static const struct kvr_record_plan no_plan;

/* Whether a call of this kind can fail so. */
static bool can_fail(enum kvr_record_call call, enum kvr_record_fault fault)
{
	switch (fault) {
	case KVR_RECORD_ENOSPC:
		return call == KVR_RECORD_WRITE || call == KVR_RECORD_SIZE ||
		       call == KVR_RECORD_NAME;
	case KVR_RECORD_SHORT: return call == KVR_RECORD_READ || call == KVR_RECORD_WRITE;
	case KVR_RECORD_LATE: return call == KVR_RECORD_WRITE || call == KVR_RECORD_NAME;
	default: return true;
	}
}

static void take_kinds(void)
{
	call_count = kvr_record_calls();
	assert_true(call_count <= CALLS_MAX);
	for (uint32_t i = 0; i < call_count; i++)
		kinds[i] = (uint8_t)kvr_record_call_of(i + 1);
}

static bool fail_one(const struct kvr_record_plan *plan)
{
	static const unsigned int also[2] = {KVR_CRASH_REBUILD, KVR_CRASH_FILL};
	struct kvr_crash_run *run = &kvr_crash_run;

	run->world.tolerant = true;
	kvr_crash_run_record(plan);
	return kvr_crash_check(
		&run->world, &run->world.now, &run->world.now, false, also[plan->fault_at % 2]);
}

static void count_line(void *context, const char *line)
{
	uint32_t *lines = context;

	(void)line;
	(*lines)++;
}

static bool fail_rebuild(const struct kvr_record_plan *plan)
{
	struct kvr_crash_run *run = &kvr_crash_run;
	struct kvr_crash_beliefs beliefs = run->world.now;
	struct kvr_store_report report;
	uint32_t lines = 0;
	int rc;

	for (uint32_t i = 0; i < KVR_CRASH_SEGMENTS; i++)
		beliefs.segments[i].unmarked = true;
	kvr_disk_unload(&stored, run->world.root);
	kvr_record_start(run->world.root, &stored, plan);
	rc = kvr_store_rebuild(
		&run->world.bed.config, count_line, &lines, &report, run->world.bed.text);
	kvr_record_stop();
	/* What it could not read it leaves out, and says so. */
	for (uint32_t i = 0; i < KVR_CRASH_SEGMENTS; i++) {
		if (rc == 0 && lines > 0 && beliefs.segments[i].there == KVR_CRASH_PRESENT)
			beliefs.segments[i].there = KVR_CRASH_EITHER;
	}
	return kvr_crash_check(&run->world, &beliefs, &beliefs, false, KVR_CRASH_REBUILD);
}

/* This worker's share of calls, each in every way. */
static bool fail_all(struct kvr_crash_progress *mine, uint32_t worker,
	bool (*run_one)(const struct kvr_record_plan *plan))
{
	for (uint32_t i = worker; i < call_count; i += KVR_CRASH_WORKERS) {
		if (only_call ? only_call != i + 1 : i / KVR_CRASH_WORKERS % EACH != 0)
			continue;
		for (uint32_t fault = 0; fault < KVR_RECORD_FAULTS; fault++) {
			const struct kvr_record_plan plan = {
				.fault_at = i + 1, .fault = (enum kvr_record_fault)fault};

			if (!can_fail((enum kvr_record_call)kinds[i], plan.fault) ||
				(only_call && only_fault != fault))
				continue;
			kvr_crash_run_at(mine, i + 1, fault);
			if (!run_one(&plan))
				return false;
		}
	}
	return true;
}

static bool work_store(struct kvr_crash_progress *mine, uint32_t worker)
{
	return fail_all(mine, worker, fail_one);
}

static bool work_rebuild(struct kvr_crash_progress *mine, uint32_t worker)
{
	return fail_all(mine, worker, fail_rebuild);
}

static void run(kvr_crash_work *work)
{
	const struct kvr_crash_progress *found = kvr_crash_run_workers(work);

	if (found)
		fail_msg("KVR_CRASH_ONE=%u:%llu: %s", found->at, (unsigned long long)found->with,
			kvr_crash_run.text);
	print_message(
		"%llu faults in %u calls\n", (unsigned long long)kvr_crash_run_count(), call_count);
}

static void test_store(void **state)
{
	(void)state;
	kvr_crash_run_record(&no_plan);
	take_kinds();
	run(work_store);
}

static void test_rebuild(void **state)
{
	struct kvr_crash_world *world = &kvr_crash_run.world;
	const struct kvr_disk_log *log = kvr_record_log();
	struct kvr_store_report report;

	(void)state;
	kvr_crash_run_record(&no_plan);
	kvr_disk_copy(&stored, &kvr_crash_run.nothing);
	for (uint32_t i = 0; i < log->count; i++)
		kvr_disk_apply(&stored, &log->events[i]);
	kvr_record_start(world->root, &stored, &no_plan);
	assert_int_equal(
		kvr_store_rebuild(&world->bed.config, NULL, NULL, &report, world->bed.text), 0);
	kvr_record_stop();
	take_kinds();
	run(work_rebuild);
	kvr_disk_fini(&stored);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_store),
		cmocka_unit_test(test_rebuild),
	};
	const char *one = getenv("KVR_CRASH_ONE");

	if (one) {
		char *end;

		only_call = (uint32_t)strtoul(one, &end, 0);
		only_fault = *end == ':' ? (uint32_t)strtoul(end + 1, NULL, 0) : 0;
	}
	return cmocka_run_group_tests(tests, kvr_crash_run_setup, kvr_crash_run_teardown);
}

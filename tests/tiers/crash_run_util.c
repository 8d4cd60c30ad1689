/* SPDX-License-Identifier: Apache-2.0 */
/* crash_run_util.c: children and what they tell. */
#include <malloc.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#include "tests/tiers/crash_run_util.h"

#define HANG_S 100u /* of one state, on a loaded machine */

struct kvr_crash_run kvr_crash_run;

int kvr_crash_run_setup(void **state)
{
	struct kvr_crash_run *run = &kvr_crash_run;

	(void)state;
	/* Nothing here reaches a disk, so that memory may stand for one. */
	if (access("/dev/shm", W_OK) == 0)
		setenv("TMPDIR", "/dev/shm", 1);
	/* A store's buffers and tables are mostly not used: nobody is to fill them with zeros. */
	prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	mallopt(M_MMAP_THRESHOLD, 64 << 10);
	run->progress = mmap(NULL, KVR_CRASH_WORKERS * sizeof(*run->progress),
		PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	assert_true(run->progress != MAP_FAILED);
	kvr_disk_init(&run->nothing);
	kvr_crash_world_init(&run->world);
	return 0;
}

int kvr_crash_run_teardown(void **state)
{
	struct kvr_crash_run *run = &kvr_crash_run;

	(void)state;
	kvr_crash_world_fini(&run->world);
	kvr_record_fini();
	kvr_disk_fini(&run->nothing);
	munmap(run->progress, KVR_CRASH_WORKERS * sizeof(*run->progress));
	return 0;
}

void kvr_crash_run_record(const struct kvr_record_plan *plan)
{
	struct kvr_crash_run *run = &kvr_crash_run;

	kvr_disk_unload(&run->nothing, run->world.root);
	memset(&run->world.now, 0, sizeof(run->world.now));
	kvr_record_start(run->world.root, &run->nothing, plan);
	run->beliefs[0] = run->world.now;
	run->flushes[0] = 0;
	for (uint32_t step = 0; step < KVR_CRASH_STEPS; step++) {
		kvr_crash_step(&run->world, step);
		run->beliefs[step + 1] = run->world.now;
		run->flushes[step + 1] = kvr_record_flushes();
	}
	kvr_record_stop();
}

/* A worker's life. A check of cmocka's that fails ends it with a signal, as an assertion of the code and a hang do. */
static void run_worker(kvr_crash_work *work, uint32_t worker)
{
	struct kvr_crash_progress *mine = &kvr_crash_run.progress[worker];
	bool right;

	setenv("CMOCKA_TEST_ABORT", "1", 1);
	kvr_crash_world_move(&kvr_crash_run.world, worker + 1);
	right = work(mine, worker);
	memcpy(mine->why, kvr_crash_run.world.why, sizeof(mine->why));
	_exit(right ? 0 : 1);
}

const struct kvr_crash_progress *kvr_crash_run_workers(kvr_crash_work *work)
{
	struct kvr_crash_run *run = &kvr_crash_run;
	const struct kvr_crash_progress *found = NULL;
	pid_t children[KVR_CRASH_WORKERS];

	memset(run->progress, 0, KVR_CRASH_WORKERS * sizeof(*run->progress));
	fflush(NULL);
	for (uint32_t i = 0; i < KVR_CRASH_WORKERS; i++) {
		children[i] = fork();
		assert_true(children[i] >= 0);
		if (children[i] == 0)
			run_worker(work, i);
	}
	for (uint32_t i = 0; i < KVR_CRASH_WORKERS; i++) {
		int status = 0;

		assert_int_equal(waitpid(children[i], &status, 0), children[i]);
		if (status == 0 || found)
			continue;
		found = &run->progress[i];
		snprintf(run->text, sizeof(run->text), "%s%s%s", found->why,
			WIFSIGNALED(status) ? "ended by " : "",
			WIFSIGNALED(status) ? strsignal(WTERMSIG(status)) : "");
	}
	return found;
}

uint64_t kvr_crash_run_count(void)
{
	uint64_t count = 0;

	for (uint32_t i = 0; i < KVR_CRASH_WORKERS; i++)
		count += kvr_crash_run.progress[i].count;
	return count;
}

void kvr_crash_run_at(struct kvr_crash_progress *mine, uint32_t at, uint64_t with)
{
	mine->at = at;
	mine->with = with;
	mine->count++;
	alarm(HANG_S);
}

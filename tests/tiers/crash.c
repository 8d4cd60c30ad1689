/* SPDX-License-Identifier: Apache-2.0 */
/* crash.c: power cuts below the NVMe tier and below the catalog.
 *
 * Goal: whenever the power goes, everything acknowledged is there afterwards and every byte of it checks, nothing half is
 * visible, no slab is lost or has two owners, and a rebuild from slabs finds the same, and nothing that was dropped.
 *
 * Method: this program's system calls pass through crash_record_util.h, those of the tiers and of LMDB included. A
 * workload (crash_util.h) runs once and is written down. Then, for every flush of it and every seed, the disk is put together
 * as a power cut at that flush leaves it (crash_disk_util.h); the store is opened on it and looked at from all sides
 * (crash_check_util.c). A quarter of these openings are cut in turn. So is a rebuild. That this finds mistakes is shown by
 * forgetting flushes: each one that the store needs must be missed.
 *
 * KVR_CRASH_SEEDS=n: so many seeds. KVR_CRASH_ONE=flush:seed: that cut alone, as a failure names it. */
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
	SEEDS = KVR_CRASH_SLOW ? 4 : 200,
	SEEDS_REBUILD = KVR_CRASH_SLOW ? 4 : 50,
	SEEDS_FORGOTTEN = 16,
	FORGOTTEN_EACH = KVR_CRASH_SLOW ? 8 : 1,
};

/* Which cuts. */
static struct {
	uint32_t first; /* flush */
	uint32_t only;  /* flush; UINT32_MAX: all */
	uint64_t seed_first, seed_end;
} scope;

static const struct kvr_record_plan no_plan;

/* Opens and closes the store on this disk, with a cut at one of the flushes that this takes. */
static bool cut_again(struct kvr_disk *image, uint64_t seed)
{
	struct kvr_crash_world *world = &kvr_crash_run.world;
	struct kvr_disk_cut cut;
	uint32_t flush;
	int rc;

	kvr_record_start(world->root, image, &no_plan);
	rc = kvr_store_test_open(&world->bed);
	kvr_store_test_close(&world->bed);
	kvr_record_stop();
	if (rc < 0) {
		snprintf(world->why, sizeof(world->why), "open: %.200s", world->bed.text);
		return false;
	}
	flush = (uint32_t)(seed / 4) % (kvr_record_flushes() + 1);
	kvr_disk_cut_init(&cut, image, kvr_record_log());
	for (uint32_t i = 0; i < flush; i++)
		assert_true(kvr_disk_cut_next(&cut));
	kvr_disk_fini(image);
	kvr_disk_cut_image(&cut, seed, image);
	kvr_disk_cut_fini(&cut);
	kvr_disk_unload(image, world->root);
	return true;
}

/* One cut with one seed, and all that is to be so afterwards. */
static bool look_at(const struct kvr_disk_cut *cut, uint64_t seed)
{
	static const unsigned int also[4] = {KVR_CRASH_REBUILD, KVR_CRASH_FILL, 0, 0};
	struct kvr_crash_run *run = &kvr_crash_run;
	struct kvr_disk image;
	bool right = true;

	kvr_disk_cut_image(cut, seed, &image);
	kvr_disk_unload(&image, run->world.root);
	if (seed % 4 == 3)
		right = cut_again(&image, seed);
	kvr_disk_fini(&image);
	return right &&
	       kvr_crash_check(&run->world, &run->beliefs[cut->step - 1], &run->beliefs[cut->step],
		       kvr_crash_is_atomic(cut->step - 1), also[seed % 4]);
}

static bool is_mine(uint32_t flush, uint64_t seed, uint32_t worker)
{
	if (flush < scope.first || (scope.only != UINT32_MAX && scope.only != flush))
		return false;
	return (flush + seed) % KVR_CRASH_WORKERS == worker;
}

static bool work_cuts(struct kvr_crash_progress *mine, uint32_t worker)
{
	struct kvr_disk_log log = *kvr_record_log();
	struct kvr_disk_cut cut;
	bool right = true;

	kvr_record_keep(); /* the recorder begins anew */
	kvr_disk_cut_init(&cut, &kvr_crash_run.nothing, &log);
	do {
		for (uint64_t seed = scope.seed_first; seed < scope.seed_end && right; seed++) {
			if (!is_mine(cut.flush, seed, worker))
				continue;
			kvr_crash_run_at(mine, cut.flush, seed);
			right = look_at(&cut, seed);
		}
	} while (right && kvr_disk_cut_next(&cut));
	kvr_disk_cut_fini(&cut);
	kvr_disk_log_fini(&log);
	return right;
}

/* What was written down is what the files hold: nothing got past the recorder. LMDB maps its lock file. */
static void replay(const struct kvr_disk *base, struct kvr_disk *ret_disk)
{
	const struct kvr_disk_log *log = kvr_record_log();

	kvr_disk_copy(ret_disk, base);
	for (uint32_t i = 0; i < log->count; i++)
		kvr_disk_apply(ret_disk, &log->events[i]);
	assert_true(kvr_disk_same(ret_disk, kvr_crash_run.world.root, "lock.mdb"));
}

static void test_cuts(void **state)
{
	const struct kvr_crash_progress *found;
	struct kvr_disk disk;

	(void)state;
	kvr_crash_run_record(&no_plan);
	replay(&kvr_crash_run.nothing, &disk);
	kvr_disk_fini(&disk);
	found = kvr_crash_run_workers(work_cuts);
	if (found)
		fail_msg("KVR_CRASH_ONE=%u:%llu: %s", found->at, (unsigned long long)found->with,
			kvr_crash_run.text);
	print_message("%llu cuts at %u flushes\n", (unsigned long long)kvr_crash_run_count(),
		kvr_record_flushes() + 1);
}

/* ---- a rebuild ------------------------------------------------------------------------------- */

static struct kvr_disk stored; /* before the rebuild */

static bool work_rebuild(struct kvr_crash_progress *mine, uint32_t worker)
{
	struct kvr_crash_run *run = &kvr_crash_run;
	struct kvr_crash_beliefs beliefs = run->world.now;
	struct kvr_disk_log log = *kvr_record_log();
	struct kvr_disk_cut cut;
	bool right = true;

	for (uint32_t i = 0; i < KVR_CRASH_SEGMENTS; i++)
		beliefs.segments[i].unmarked =
			true; /* pins and last uses are the old catalog's alone */
	kvr_record_keep();
	kvr_disk_cut_init(&cut, &stored, &log);
	do {
		for (uint64_t seed = 0; seed < SEEDS_REBUILD && right; seed++) {
			struct kvr_disk image;

			if ((cut.flush + seed) % KVR_CRASH_WORKERS != worker)
				continue;
			kvr_crash_run_at(mine, cut.flush, seed);
			kvr_disk_cut_image(&cut, seed, &image);
			kvr_disk_unload(&image, run->world.root);
			kvr_disk_fini(&image);
			right = kvr_crash_check(
				&run->world, &beliefs, &beliefs, true, KVR_CRASH_REBUILD);
		}
	} while (right && kvr_disk_cut_next(&cut));
	kvr_disk_cut_fini(&cut);
	kvr_disk_log_fini(&log);
	return right;
}

/* At every moment of a rebuild there is a whole catalog, the old one or the new one. */
static void test_rebuild(void **state)
{
	struct kvr_crash_world *world = &kvr_crash_run.world;
	const struct kvr_crash_progress *found;
	struct kvr_store_report report;
	struct kvr_disk disk;

	(void)state;
	kvr_crash_run_record(&no_plan);
	replay(&kvr_crash_run.nothing, &stored);
	kvr_record_start(world->root, &stored, &no_plan);
	assert_int_equal(
		kvr_store_rebuild(&world->bed.config, NULL, NULL, &report, world->bed.text), 0);
	kvr_record_stop();
	replay(&stored, &disk);
	kvr_disk_fini(&disk);
	found = kvr_crash_run_workers(work_rebuild);
	kvr_disk_fini(&stored);
	if (found)
		fail_msg("flush %u, seed %llu: %s", found->at, (unsigned long long)found->with,
			kvr_crash_run.text);
	print_message("%llu cuts at %u flushes\n", (unsigned long long)kvr_crash_run_count(),
		kvr_record_flushes() + 1);
}

/* ---- forgotten flushes ----------------------------------------------------------------------- */

/* Whether the workload with one flush forgotten shows something wrong. */
static bool is_missed(uint32_t flush)
{
	kvr_crash_run_record(&(struct kvr_record_plan){.swallow = flush});
	scope.first = flush - 1; /* nothing differs before */
	scope.seed_first = 0;
	scope.seed_end = SEEDS_FORGOTTEN;
	return kvr_crash_run_workers(work_cuts) != NULL;
}

static void test_forgotten(void **state)
{
	uint32_t flushes[KVR_CRASH_STEPS + 1];
	uint32_t count = 0;

	(void)state;
	if (scope.only != UINT32_MAX)
		return;
	kvr_crash_run_record(&no_plan);
	memcpy(flushes, kvr_crash_run.flushes, sizeof(flushes));
	for (uint32_t step = 1; step < KVR_CRASH_STEPS; step++) {
		const uint32_t needed = kvr_crash_needed(step, flushes[step + 1] - flushes[step]);

		for (uint32_t i = 1; i <= needed; i++) {
			if ((flushes[step] + i) % FORGOTTEN_EACH != 0)
				continue;
			count++;
			if (!is_missed(flushes[step] + i))
				fail_msg("step %u: nobody misses flush %u of %u", step, i, needed);
		}
	}
	print_message("%u forgotten flushes missed\n", count);
	assert_true(count > 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_cuts),
		cmocka_unit_test(test_rebuild),
		cmocka_unit_test(test_forgotten),
	};
	const char *seeds = getenv("KVR_CRASH_SEEDS");
	const char *one = getenv("KVR_CRASH_ONE");

	scope.only = UINT32_MAX;
	scope.seed_end = seeds ? strtoull(seeds, NULL, 0) : SEEDS;
	if (one) {
		char *end;

		scope.only = (uint32_t)strtoul(one, &end, 0);
		scope.seed_first = *end == ':' ? strtoull(end + 1, NULL, 0) : 0;
		scope.seed_end = scope.seed_first + 1;
	}
	return cmocka_run_group_tests(tests, kvr_crash_run_setup, kvr_crash_run_teardown);
}

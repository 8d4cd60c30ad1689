/* SPDX-License-Identifier: Apache-2.0 */
/* tool_store.c: `kvrecall verify` and `kvrecall rebuild`, as a user runs them.
 *
 * Goal: verify tells a sound store from a damaged one and from one in use; rebuild makes the catalog that was there, and
 * a daemon serves it; refusals are clear.
 * Method: a real daemon with a store, killed and started again; the real tool as a child; bits of slabs.kvr flipped, the
 * catalog removed; catalogs compared row for row. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <string.h>

#include "tests/daemon/stored_util.h"
#include "tiers/catalog.h"

static void test_verify(void **state)
{
	struct stored world;

	(void)state;
	stored_start(&world);
	stored_run(&world, "$K verify --store $S", 4, "in use by process");
	assert_string_equal(stored_out, "");
	stored_run(&world, "$K verify --store $S --json", 4,
		"{\"error\":{\"code\":0,\"name\":\"EBUSY\"");
	stored_end(&world);
	stored_run(&world, "$K verify --store $S", 0, "sound");
	assert_string_equal(stored_err, "");
	stored_run(
		&world, "$K --json verify --store $S", 0, "\"sound\":true,\"segments_count\":11,");
	stored_run(&world, "cd $S && $K verify --store .", 0, "sound");
	stored_flip(&world);
	stored_run(&world, "$K verify --store $S", 1, "damaged segments  1\n");
	assert_true(strstr(stored_err, "kvrecalld: segment ") != NULL);
	stored_run(&world, "$K verify --store $S --json", 1, "\"sound\":false");
	assert_true(strstr(stored_out, "\"damage\":[\"segment ") != NULL);
	assert_string_equal(stored_err, "");
	stored_flip(&world);
	stored_run(&world, "$K verify --store $S", 0, "sound");
	stored_start_again(&world);
	stored_check(&world);
	stored_stop(&world);
}

static void test_refusals(void **state)
{
	struct stored world;

	(void)state;
	stored_start(&world);
	stored_run(&world, "$K verify --store /nowhere", 4, "/nowhere/slabs.kvr: No such file");
	stored_run(&world, "$K rebuild --store $S/catalog", 4, "name the directory of a store");
	stored_run(&world, "$K verify --config /nowhere.conf", 2, "/nowhere.conf");
	stored_run(&world, "$K verify now", 2, "unexpected argument");
	stored_run(&world, "$K rebuild --help", 0, "4 cannot be done");
	stored_run(&world, "cp $K tool; PATH=/nowhere ./tool verify --store $S", 4,
		"cannot run kvrecalld");
	stored_stop(&world);
}

static struct kvr_catalog *open_catalog(const struct stored *world, const char *name)
{
	char path[128];
	const struct kvr_catalog_config config = {.dir = path, .bytes = 256u << 20};
	struct kvr_catalog_meta meta = {0};
	struct kvr_catalog *catalog;

	snprintf(path, sizeof(path), "%s/%s", world->daemon.store, name);
	assert_int_equal(kvr_catalog_open(&config, &meta, &catalog), 0);
	return catalog;
}

static void test_rebuild(void **state)
{
	struct kvr_catalog *before, *after;
	struct stored world;
	uint64_t differing = 0;
	char first[160] = "";

	(void)state;
	stored_start(&world);
	stored_end(&world);
	stored_run(&world, "cp -r $S/catalog $S/before && rm -r $S/catalog", 0, "");
	stored_run(&world, "$K verify --store $S", 1, "kvrecall rebuild");
	stored_run(&world, "$K rebuild --store $S --json", 0,
		"\"complete\":true,\"segments_count\":11,");
	stored_run(&world, "$K verify --store $S", 0, "sound");
	before = open_catalog(&world, "before");
	after = open_catalog(&world, "catalog");
	assert_int_equal(kvr_catalog_compare(before, after, &differing, first, sizeof(first)), 0);
	if (differing > 0)
		fail_msg("%llu rows differ; the first: %s", (unsigned long long)differing, first);
	kvr_catalog_close(before);
	kvr_catalog_close(after);
	stored_run(&world, "rm -r $S/before", 0, "");
	stored_start_again(&world);
	stored_check(&world);
	stored_end(&world);
	/* What is damaged is left stored_out, with what follows it: here, everything. */
	stored_flip(&world);
	stored_run(&world, "$K rebuild --store $S", 1, "segments          0\n");
	stored_run(&world, "$K verify --store $S", 0, "sound");
	stored_start_again(&world);
	assert_int_equal((int)harness_metric(world.client, "store.segments_count"), 0);
	stored_stop(&world);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_verify),
		cmocka_unit_test(test_refusals),
		cmocka_unit_test(test_rebuild),
	};

	return cmocka_run_group_tests_name("tool and store", tests, NULL, NULL);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: of a file that has changed, what may change at run time is taken, and everything else is named.
 * Method: kvr_config_reload on pairs of files: each setting in turn. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/config.h"

#define SALT "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"

static void read_complete(struct kvr_config *config, const char *text)
{
	char path[] = "/tmp/kvrecall-test-conf-XXXXXX", error[512] = "";
	int fd = mkstemp(path);

	assert_true(fd >= 0);
	assert_int_equal(write(fd, text, strlen(text)), strlen(text));
	close(fd);
	kvr_config_default(config);
	if (kvr_config_read(config, path, error, sizeof(error)) < 0 ||
		kvr_config_complete(config, error, sizeof(error)) < 0)
		fail_msg("%s", error);
	unlink(path);
}

static void test_settings(void **state)
{
	static const struct {
		const char *text, *taken, *kept;
	} cases[] = {
		{"", "", ""},
		{"log_level = \"error\";", "log_level", ""},
		{"memory: { region_bytes_max = \"8 MiB\"; };", "memory.region_bytes_max", ""},
		{"memory: { regions_bytes_max = \"8 GiB\"; };", "memory.regions_bytes_max", ""},
		{"telemetry: { audit_every = 7; };", "telemetry.audit_every", ""},
		{"store: { write_bytes_per_day = \"1 TiB\"; };", "store.write_bytes_per_day", ""},
		{"sessions: { credits = 5; };", "", "sessions.credits"},
		{"runtime_dir = \"/run/k\";", "", "runtime_dir"},
		{"socket_mode = \"0600\";", "", "socket_mode"},
		{"memory: { host_bytes = \"2 GiB\"; policy = \"lru\"; populate = true; };", "",
			"memory.host_bytes, memory.policy, memory.populate"},
		{"store: { dir = \"/srv/k\"; io = \"threads\"; };", "", "store.dir, store.io"},
		/* The catalog's cap follows the store's. */
		{"store: { bytes = \"1 GiB\"; };", "", "store.bytes, store.catalog_bytes"},
		{"store: { depth = 32; batch = 4; };", "", "store.depth, store.batch"},
		{"store: { read_buffer_bytes = \"80 MiB\"; };", "", "store.read_buffer_bytes"},
		{"device: { threads = 3; isa = \"plain\"; spin_us = 1; inline_item_us = 1; };", "",
			"device.threads, device.isa, device.spin_us, device.inline_item_us"},
		{"log_level = \"debug\"; device: { threads = 3; };", "log_level", "device.threads"},
		{"tenants = ( { name = \"a\"; uids = [ 1 ]; } );", "", "tenants (their list)"},
	};
	struct kvr_config running, fresh, again;
	struct kvr_config_change change;

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		read_complete(&running, "");
		read_complete(&fresh, cases[i].text);
		kvr_config_reload(&running, &fresh, &change);
		assert_string_equal(change.taken, cases[i].taken);
		assert_string_equal(change.kept, cases[i].kept);
		/* What was taken is there: a second reload takes nothing. */
		kvr_config_reload(&running, &fresh, &change);
		assert_string_equal(change.taken, "");
		assert_string_equal(change.kept, cases[i].kept);
		kvr_config_fini(&fresh);
		kvr_config_fini(&running);
	}
	read_complete(&running, "");
	read_complete(&fresh, "store: { dir = \"/srv/k\"; write_bytes_per_day = \"9\"; };\n"
			      "sessions: { tenant_per_uid = true; };\n");
	read_complete(&again, "");
	kvr_config_reload(&running, &fresh, &change);
	assert_string_equal(running.store_dir, again.store_dir);
	assert_int_equal(running.write_bytes_per_day, 9);
}

static void test_tenants(void **state)
{
	static const char first[] =
		"tenants = ( { name = \"a\"; uids = [ 1 ]; },\n"
		"  { name = \"b\"; gids = [ 2 ]; quota_bytes = \"1 GiB\"; } );\n";
	static const struct {
		const char *text, *taken, *kept;
	} cases[] = {
		{"tenants = ( { name = \"a\"; uids = [ 1 ]; quota_bytes = \"5\"; },\n"
		 "  { name = \"b\"; gids = [ 2 ]; store_quota_bytes = \"1 TiB\"; } );",
			"quota_bytes of tenant a, quota_bytes of tenant b, "
			"store_quota_bytes of tenant b",
			""},
		{"tenants = ( { name = \"a\"; uids = [ 1, 7 ]; },\n"
		 "  { name = \"b\"; gids = [ 3 ]; quota_bytes = \"1 GiB\"; } );",
			"uids and gids of tenant a, uids and gids of tenant b", ""},
		{"tenants = ( { name = \"a\"; uids = [ 1 ]; salt = \"" SALT "\"; },\n"
		 "  { name = \"b\"; gids = [ 2 ]; quota_bytes = \"2 GiB\"; } );",
			"quota_bytes of tenant b", "salt of tenant a"},
		/* Another order, another name, one more, one less. */
		{"tenants = ( { name = \"b\"; gids = [ 2 ]; quota_bytes = \"1 GiB\"; },\n"
		 "  { name = \"a\"; uids = [ 1 ]; } );",
			"", "tenants (their list)"},
		{"tenants = ( { name = \"a\"; uids = [ 1 ]; },\n"
		 "  { name = \"c\"; gids = [ 2 ]; quota_bytes = \"1 GiB\"; } );",
			"", "tenants (their list)"},
		{"tenants = ( { name = \"a\"; uids = [ 9 ]; } );", "", "tenants (their list)"},
		{"", "", "tenants (their list)"},
	};
	struct kvr_config running, fresh;
	struct kvr_config_change change;

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		const struct kvr_config_tenant *array;

		read_complete(&running, first);
		array = running.tenants;
		read_complete(&fresh, cases[i].text);
		kvr_config_reload(&running, &fresh, &change);
		assert_string_equal(change.taken, cases[i].taken);
		assert_string_equal(change.kept, cases[i].kept);
		assert_ptr_equal(running.tenants, array);
		assert_int_equal(running.tenant_count, 2);
		assert_false(running.tenants[0].has_salt);
		kvr_config_fini(&fresh);
		kvr_config_fini(&running);
	}
	read_complete(&running, first);
	read_complete(&fresh, cases[1].text);
	kvr_config_reload(&running, &fresh, &change);
	assert_int_equal(running.tenants[0].uid_count, 2);
	assert_int_equal(running.tenants[0].uids[1], 7);
	assert_int_equal(running.tenants[1].gids[0], 3);
	kvr_config_fini(&fresh);
	kvr_config_fini(&running);
}

/* More names than there is room for: the list ends, and nothing else happens. */
static void test_many_names(void **state)
{
	static char texts[2][65536];
	struct kvr_config running, fresh;
	struct kvr_config_change change;

	(void)state;
	for (int t = 0; t < 2; t++) {
		size_t at = (size_t)snprintf(texts[t], sizeof(texts[t]), "tenants = ( ");

		for (int i = 0; i < 128; i++)
			at += (size_t)snprintf(texts[t] + at, sizeof(texts[t]) - at,
				"%s{ name = \"a tenant number %d\"; uids = [ %d ];\n"
				" quota_bytes = \"%d\"; }",
				i ? ", " : "", i, i, t + 1);
		snprintf(texts[t] + at, sizeof(texts[t]) - at, " );\n");
	}
	read_complete(&running, texts[0]);
	read_complete(&fresh, texts[1]);
	kvr_config_reload(&running, &fresh, &change);
	assert_int_equal(strlen(change.taken), KVR_CONFIG_NAMES_BYTES - 1);
	assert_int_equal(running.tenants[127].quota_bytes, 2);
	kvr_config_fini(&fresh);
	kvr_config_fini(&running);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_settings),
		cmocka_unit_test(test_tenants),
		cmocka_unit_test(test_many_names),
	};

	return cmocka_run_group_tests_name("daemon config_reload", tests, NULL, NULL);
}

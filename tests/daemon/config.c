/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: every setting is read, and every mistake in a configuration is refused with file, line, what is
 * wrong and what would be right; flags override the file; exit codes are as --help says.
 * Method: daemon/config.c on files made here, the real kvrecalld for its command line. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/config.h"
#include "tests/daemon/process_util.h"

#define SALT "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1eff"

static char path[] = "/tmp/kvrecall-test-conf-XXXXXX", error[512];

static int make_file(void **state)
{
	int fd = mkstemp(path);

	(void)state;
	if (fd < 0)
		return -1;
	return close(fd);
}

static int remove_file(void **state)
{
	(void)state;
	return unlink(path);
}

static void write_file(const char *text)
{
	FILE *file = fopen(path, "w");

	assert_non_null(file);
	fputs(text, file);
	assert_int_equal(fclose(file), 0);
}

static int read_text(struct kvr_config *config, const char *text)
{
	write_file(text);
	kvr_config_default(config);
	error[0] = 0;
	return kvr_config_read(config, path, error, sizeof(error));
}

static void assert_reads(struct kvr_config *config, const char *text)
{
	if (read_text(config, text) != 0)
		fail_msg("%s", error);
}

/* The text is refused; the message begins with file and line and has `part` in it. */
static void assert_refuses(const char *text, uint32_t line, const char *part)
{
	struct kvr_config config;
	char start[100];
	int rc = read_text(&config, text);

	kvr_config_fini(&config);
	if (rc != -EINVAL)
		fail_msg("accepted: %s", text);
	snprintf(start, sizeof(start), "%s:%u: ", path, line);
	if (strncmp(error, start, strlen(start)) != 0 || !strstr(error, part))
		fail_msg("'%s' gives '%s', not '%s...%s'", text, error, start, part);
}

/* ---- the file -------------------------------------------------------------------------------- */

static void test_every_setting(void **state)
{
	struct kvr_config config;

	(void)state;
	assert_reads(&config,
		"runtime_dir = \"/tmp/somewhere\";\n"
		"log_level = \"debug\";\n"
		"socket_mode = \"0600\";\n"
		"memory: { host_bytes = \"3 GiB\"; region_bytes_max = \"4194304\";\n"
		"  regions_bytes_max = 17179869184L; policy = \"lru\";\n"
		"  populate = true; };\n"
		"store: { dir = \"/srv/kv\"; bytes = \"2 TiB\"; depth = 32;\n"
		"  catalog_bytes = \"20MiB\"; batch = 8; io = \"threads\";\n"
		"  read_buffer_bytes = \"128 MiB\";\n"
		"  write_bytes_per_day = \"3 TiB\"; };\n"
		"sessions: { credits = 7; tenant_per_uid = false; };\n"
		"device: { threads = 3; isa = \"avx2\"; spin_us = 0;\n"
		"  inline_item_us = 1000; };\n"
		"tenants = ( { name = \"chat\"; uids = [ 1000, 1001 ];\n"
		"  quota_bytes = \"5MiB\"; store_quota_bytes = \"7 GiB\"; salt = \"" SALT "\"; },\n"
		"  { name = \"batch\"; gids = [ 50 ]; } );\n");
	assert_string_equal(config.runtime_dir, "/tmp/somewhere");
	assert_int_equal(config.log_level, KVR_LOG_DEBUG);
	assert_int_equal(config.socket_mode, 0600);
	assert_int_equal(config.host_bytes, 3ull << 30);
	assert_int_equal(config.region_bytes_max, 4 << 20);
	assert_int_equal(config.regions_bytes_max, 16ull << 30);
	assert_int_equal(config.policy, KVR_POLICY_LRU);
	assert_true(config.populate);
	assert_string_equal(config.store_dir, "/srv/kv");
	assert_int_equal(config.store_bytes, 2ull << 40);
	assert_int_equal(config.catalog_bytes, 20 << 20);
	assert_int_equal(config.store_depth, 32);
	assert_int_equal(config.store_batch, 8);
	assert_int_equal(config.store_io, KVR_NVME_IO_THREADS);
	assert_int_equal(config.read_buffer_bytes, 128 << 20);
	assert_int_equal(config.write_bytes_per_day, 3ull << 40);
	assert_int_equal(config.credits, 7);
	assert_false(config.tenant_per_uid);
	assert_int_equal(config.device.threads, 3);
	assert_int_equal(config.device.isa, KVR_ISA_AVX2);
	assert_int_equal(config.device.spin_us, 0);
	assert_int_equal(config.device.inline_item_us, 1000);
	assert_int_equal(config.tenant_count, 2);
	assert_string_equal(config.tenants[0].name, "chat");
	assert_int_equal(config.tenants[0].uid_count, 2);
	assert_int_equal(config.tenants[0].uids[1], 1001);
	assert_int_equal(config.tenants[0].gid_count, 0);
	assert_int_equal(config.tenants[0].quota_bytes, 5 << 20);
	assert_int_equal(config.tenants[0].store_quota_bytes, 7ull << 30);
	assert_true(config.tenants[0].has_salt);
	assert_int_equal(config.tenants[0].salt[30], 0x1e);
	assert_int_equal(config.tenants[0].salt[31], 0xff);
	assert_string_equal(config.tenants[1].name, "batch");
	assert_int_equal(config.tenants[1].gids[0], 50);
	assert_int_equal(config.tenants[1].quota_bytes, 0);
	assert_false(config.tenants[1].has_salt);
	assert_int_equal(kvr_config_complete(&config, error, sizeof(error)), 0);
	kvr_config_fini(&config);
}

/* Member by member: what lies between members is anything. */
static void assert_same(const struct kvr_config *one, const struct kvr_config *other)
{
	assert_string_equal(one->runtime_dir, other->runtime_dir);
	assert_int_equal(one->log_level, other->log_level);
	assert_int_equal(one->socket_mode, other->socket_mode);
	assert_int_equal(one->host_bytes, other->host_bytes);
	assert_int_equal(one->region_bytes_max, other->region_bytes_max);
	assert_int_equal(one->regions_bytes_max, other->regions_bytes_max);
	assert_int_equal(one->credits, other->credits);
	assert_int_equal(one->policy, other->policy);
	assert_int_equal(one->device.threads, other->device.threads);
	assert_int_equal(one->device.isa, other->device.isa);
	assert_int_equal(one->device.spin_us, other->device.spin_us);
	assert_int_equal(one->device.inline_item_us, other->device.inline_item_us);
	assert_int_equal(one->populate, other->populate);
	assert_string_equal(one->store_dir, other->store_dir);
	assert_int_equal(one->store_bytes, other->store_bytes);
	assert_int_equal(one->catalog_bytes, other->catalog_bytes);
	assert_int_equal(one->store_depth, other->store_depth);
	assert_int_equal(one->store_batch, other->store_batch);
	assert_int_equal(one->store_io, other->store_io);
	assert_int_equal(one->read_buffer_bytes, other->read_buffer_bytes);
	assert_int_equal(one->write_bytes_per_day, other->write_bytes_per_day);
	assert_int_equal(one->tenant_per_uid, other->tenant_per_uid);
	assert_int_equal(one->tenant_count, other->tenant_count);
}

/* What a file does not name stays as it was. */
static void test_defaults_stay(void **state)
{
	struct kvr_config config, defaults;

	(void)state;
	kvr_config_default(&defaults);
	assert_reads(&config, "# nothing but a comment\n");
	assert_same(&config, &defaults);
	assert_reads(&config, "memory: { };\n");
	assert_same(&config, &defaults);
	assert_int_equal(kvr_config_complete(&defaults, error, sizeof(error)), 0);
	kvr_config_fini(&config);
	/* The last list of tenants counts, and the one before is not leaked. */
	assert_reads(&config, "tenants = ( { name = \"a\"; uids = [ 1 ]; } );\n");
	assert_int_equal(kvr_config_read(&config, path, error, sizeof(error)), 0);
	assert_int_equal(config.tenant_count, 1);
	kvr_config_fini(&config);
}

static void test_wrong_settings(void **state)
{
	static const struct {
		const char *text;
		uint32_t line;
		const char *part;
	} cases[] = {
		{"\n\nmemroy: { a = 1; };\n", 3, "unknown key memroy"},
		{"\n\nmemroy: { };\n", 3, "unknown key memroy"},
		{"\nhost_bytes = 5;\n", 2, "unknown key host_bytes"},
		{"memory:\n{\n  host_byte = 5;\n};\n", 3, "unknown key memory.host_byte"},
		{"memory: { host_bytes: { x = 1; }; };\n", 1, "memory.host_bytes must be a size"},
		{"memory = 5;\n", 1, "unknown key memory"},
		{"runtime_dir = 5;\n", 1, "runtime_dir must be a path"},
		{"runtime_dir = \"\";\n", 1, "runtime_dir must be a path"},
		{"log_level = \"loud\";\n", 1, "error, warning, info, debug"},
		{"log_level = 6;\n", 1, "error, warning, info, debug"},
		{"socket_mode = 0660;\n", 1, "socket_mode must be octal digits in quotes"},
		{"socket_mode = \"0001\";\n", 1, "\"0600\" to \"0777\""},
		{"socket_mode = \"0668\";\n", 1, "octal"},
		{"memory: { host_bytes = 4303355904; };\n", 1, "memory.host_bytes must be a size"},
		{"memory: { host_bytes = 1.5; };\n", 1, "memory.host_bytes must be a size"},
		{"memory: { host_bytes = -1; };\n", 1, "memory.host_bytes must be a size"},
		{"memory: { host_bytes = \"lots\"; };\n", 1, "8 GiB"},
		{"memory: { host_bytes = \"8 GB\"; };\n", 1, "8 GiB"},
		{"memory: { host_bytes = \"4096\"; };\n", 1, "give 4194304 to"},
		{"memory: { host_bytes = \"99999 TiB\"; };\n", 1, "memory.host_bytes is"},
		{"memory: { region_bytes_max = \"65 GiB\"; };\n", 1, "memory.region_bytes_max is"},
		{"memory: { policy = \"fifo\"; };\n", 1, "s3fifo, lru, decay"},
		{"memory: { populate = 1; };\n", 1, "memory.populate must be true or false"},
		{"store = \"/srv\";\n", 1, "unknown key store"},
		{"store: {\n dirs = \"/srv\"; };\n", 2, "unknown key store.dirs"},
		{"store: { dir = 5; };\n", 1, "store.dir must be a path of at most 255"},
		{"store: { bytes = \"63 MiB\"; };\n", 1, "store.bytes is 66060288; give 67108864"},
		{"store: { bytes = \"65 TiB\"; };\n", 1, "store.bytes is"},
		{"store: { bytes = 64; };\n", 1, "store.bytes must be a size in quotes"},
		{"store: { catalog_bytes = \"15 MiB\"; };\n", 1, "store.catalog_bytes is"},
		{"store: { depth = 0; };\n", 1, "store.depth is 0; give 1 to 1024"},
		{"store: { depth = 1025; };\n", 1, "store.depth is 1025"},
		{"store: { batch = 0; };\n", 1, "store.batch is 0"},
		{"store: { read_buffer_bytes = \"63 MiB\"; };\n", 1, "store.read_buffer_bytes is"},
		{"store: { write_bytes_per_day = \"2048 TiB\"; };\n", 1,
			"store.write_bytes_per_day is"},
		{"store: { write_bytes_per_day = 0; };\n", 1, "must be a size in quotes"},
		{"store: { io = \"sync\"; };\n", 1, "auto, uring, threads"},
		{"sessions: { credits = 0; };\n", 1, "sessions.credits is 0; give 1 to 64"},
		{"sessions: { credits = 65; };\n", 1, "sessions.credits is 65"},
		{"sessions: { credits = \"8\"; };\n", 1, "must be a whole number"},
		{"sessions: { credits = 4294967297L; };\n", 1, "sessions.credits is 4294967297"},
		{"sessions: { tenant_per_uid = 1; };\n", 1, "must be true or false"},
		{"device: { threads = 65; };\n", 1, "device.threads is 65"},
		{"device: { isa = \"neon\"; };\n", 1, "best, plain, avx2, avx512"},
		{"device: { spin_us = 1001; };\n", 1, "device.spin_us is 1001"},
		{"\nlog_level ! 5;\n", 2, "syntax error"},
		{"log_level = \"info\";\nlog_level = \"info\";\n", 2, "duplicate setting"},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
		assert_refuses(cases[i].text, cases[i].line, cases[i].part);
}

static void test_wrong_tenants(void **state)
{
	static const struct {
		const char *text;
		uint32_t line;
		const char *part;
	} cases[] = {
		{"tenants = 5;\n", 1, "must be a list"},
		{"tenants = ( 5 );\n", 1, "list of groups"},
		{"tenants = ( {\n nam = \"a\"; } );\n", 2, "unknown key nam"},
		{"tenants = ( {\n uids = [ 1 ]; } );\n", 1, "needs a name"},
		{"tenants = ( { name = \"\"; uids = [ 1 ]; } );\n", 1, "needs a name"},
		{"tenants = ( { name = \"a\"; } );\n", 1, "admits nobody"},
		{"tenants = ( { name = \"a\"; uids = [ ]; } );\n", 1, "admits nobody"},
		{"tenants = ( { name = \"a\"; uids = 5; } );\n", 1, "array of numbers"},
		{"tenants = ( { name = \"a\"; uids = [ -1 ]; } );\n", 1, "user or group numbers"},
		{"tenants = ( { name = \"a\"; uids = [ \"x\" ]; } );\n", 1, "user or group"},
		{"tenants = ( { name = \"a\"; uids = [ 4294967295L ]; } );\n", 1, "user or group"},
		{"tenants = ( { name = \"a\"; uids = [ 1 ];\n quota_bytes = \"x\"; } );\n", 2,
			"quota_bytes must be a size"},
		{"tenants = ( { name = \"a\"; uids = [ 1 ];\n store_quota_bytes = 5; } );\n", 2,
			"store_quota_bytes must be a size"},
		{"tenants = ( { name = \"uid#5\"; uids = [ 5 ]; } );\n", 1, "give another"},
		{"tenants = ( { name = \"a\"; uids = [ 1 ]; },\n { name = \"a\"; uids = [ 2 ]; } "
		 ");\n",
			2, "a second tenant a"},
		{"tenants = ( { name = \"a\"; uids = [ 1 ];\n salt = \"abc\"; } );\n", 2,
			"64 hexadecimal digits"},
		{"tenants = ( { name = \"a\"; uids = [ 1 ];\n salt = 5; } );\n", 2, "hexadecimal"},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
		assert_refuses(cases[i].text, cases[i].line, cases[i].part);
}

/* More ids or tenants than there is room for. */
static void test_too_many(void **state)
{
	static char text[65536];
	size_t at;

	(void)state;
	at = (size_t)snprintf(text, sizeof(text), "tenants = ( { name = \"a\"; uids = [ 0");
	for (uint32_t i = 1; i <= KVR_CONFIG_IDS_MAX; i++)
		at += (size_t)snprintf(text + at, sizeof(text) - at, ", %u", i);
	snprintf(text + at, sizeof(text) - at, " ]; } );\n");
	assert_refuses(text, 1, "at most 64 ids");
	at = (size_t)snprintf(text, sizeof(text), "tenants = ( ");
	for (uint32_t i = 0; i <= KVR_TENANTS_MAX / 2; i++)
		at += (size_t)snprintf(text + at, sizeof(text) - at,
			"%s{ name = \"t%u\"; uids = [ %u ]; }", i ? ", " : "", i, i);
	snprintf(text + at, sizeof(text) - at, " );\n");
	assert_refuses(text, 1, "at most 128 groups");
}

static void test_between_settings(void **state)
{
	struct kvr_config config;

	(void)state;
	assert_reads(&config, "memory: { region_bytes_max = \"32 GiB\"; };\n");
	assert_int_equal(kvr_config_complete(&config, error, sizeof(error)), -EINVAL);
	assert_non_null(strstr(error, "regions_bytes_max"));
	assert_reads(&config, "sessions: { tenant_per_uid = false; };\n");
	assert_int_equal(kvr_config_complete(&config, error, sizeof(error)), -EINVAL);
	assert_non_null(strstr(error, "nobody may attach"));
	kvr_config_fini(&config);
}

/* A store needs a place that outlives the daemon; its caps are whole units, the catalog's follows. */
static void test_store(void **state)
{
	static const struct {
		const char *text, *part;
	} cases[] = {
		{"store: { dir = \"kvrecall\"; };\n", "store.dir is not absolute"},
		{"store: { dir = \"/run/kvrecall\"; };\n", "store.dir lies in runtime_dir"},
		{"store: { dir = \"/run/kvrecall/x\"; };\n", "store.dir lies in runtime_dir"},
		{"runtime_dir = \"/srv/\"; store: { dir = \"/srv/x\"; };\n", "runtime_dir"},
		{"store: { dir = \"/srv/x\"; depth = 8; batch = 9; };\n", "store.batch exceeds"},
	};
	struct kvr_config config;

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		assert_reads(&config, cases[i].text);
		if (kvr_config_complete(&config, error, sizeof(error)) != -EINVAL ||
			!strstr(error, cases[i].part))
			fail_msg("'%s' gives '%s'", cases[i].text, error);
	}
	assert_reads(&config, "store: { dir = \"/run/kvrecall-2\"; bytes = \"128000000\";\n"
			      "  read_buffer_bytes = \"65 MiB\"; };\n");
	assert_int_equal(kvr_config_complete(&config, error, sizeof(error)), 0);
	assert_int_equal(config.store_bytes, 122 << 20);
	assert_int_equal(config.read_buffer_bytes, 64 << 20);
	assert_int_equal(config.catalog_bytes, (122 << 20) / 64 + (64 << 20));
}

static void test_sizes(void **state)
{
	static const struct {
		const char *text;
		int rc;
		uint64_t bytes;
	} cases[] = {
		{"0", 0, 0},
		{"1", 0, 1},
		{"17 B", 0, 17},
		{"8KiB", 0, 8192},
		{"512 MiB", 0, 512ull << 20},
		{"8 GiB", 0, 8ull << 30},
		{"3TiB", 0, 3ull << 40},
		{"16777215 TiB", 0, 16777215ull << 40},
		{"18446744073709551615", 0, UINT64_MAX},
		{"16777216 TiB", -EINVAL, 0},
		{"18446744073709551616", -EINVAL, 0},
		{"99999999999999999999 GiB", -EINVAL, 0},
		{"", -EINVAL, 0},
		{" 1", -EINVAL, 0},
		{"-1", -EINVAL, 0},
		{"+1", -EINVAL, 0},
		{"1.5GiB", -EINVAL, 0},
		{"8 GB", -EINVAL, 0},
		{"8 gib", -EINVAL, 0},
		{"8 GiB ", -EINVAL, 0},
		{"8 GiBs", -EINVAL, 0},
		{"GiB", -EINVAL, 0},
		{"0x10", -EINVAL, 0},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		uint64_t bytes = 0;

		if (kvr_config_size(cases[i].text, &bytes) != cases[i].rc ||
			bytes != cases[i].bytes)
			fail_msg("'%s' is %llu", cases[i].text, (unsigned long long)bytes);
	}
}

static void test_no_file(void **state)
{
	struct kvr_config config;

	(void)state;
	kvr_config_default(&config);
	assert_int_equal(
		kvr_config_read(&config, "/nowhere/at/all", error, sizeof(error)), -ENOENT);
	assert_non_null(strstr(error, "/nowhere/at/all"));
	assert_non_null(strstr(error, "--config"));
	assert_true(kvr_config_read(&config, "/tmp", error, sizeof(error)) < 0);
}

/* ---- the command line ------------------------------------------------------------------------ */

/* Runs kvrecalld with arguments in one line; asserts the exit code and a part of the output. */
static void assert_runs(const char *line, int code, const char *part)
{
	char output[16384], copy[512];
	const char *arguments[12] = {NULL};
	int got, count = 0;

	snprintf(copy, sizeof(copy), "%s", line);
	for (char *rest, *word = strtok_r(copy, " ", &rest); word && count < 11;
		word = strtok_r(NULL, " ", &rest))
		arguments[count++] = strcmp(word, "FILE") == 0 ? path : word;
	got = process_run("kvrecalld", arguments, output, sizeof(output));
	if (got != code || !strstr(output, part))
		fail_msg("kvrecalld %s: exit %d, says: %s", line, got, output);
}

static void test_command_line(void **state)
{
	(void)state;
	assert_runs("--help", 0, "Usage: kvrecalld");
	assert_runs("-h", 0, "tenants = (");
	assert_runs("--version", 0, "kvrecalld " KVR_BUILD_VERSION);
	assert_runs("--check-config", 0, "configuration ok");
	assert_runs("--nonsense", 2, "--help lists the options");
	assert_runs("-m", 2, "--help lists the options");
	assert_runs("something", 2, "something");
	assert_runs("-m 12 --check-config", 2, "--host-bytes 12");
	assert_runs("-m many --check-config", 2, "--host-bytes many");
	assert_runs("--store relative --check-config", 2, "store.dir is not absolute");
	assert_runs("--store /srv/kv --store-bytes 128MiB --check-config", 0, "configuration ok");
	assert_runs("--store-bytes 1MiB --check-config", 2, "--store-bytes 1MiB");
	assert_runs("-j 65 --check-config", 2, "--threads 65");
	assert_runs("-j -1 --check-config", 2, "--threads -1");
	assert_runs("-j 2x --check-config", 2, "--threads 2x");
	assert_runs("-l chatty --check-config", 2, "--log-level chatty");
	assert_runs("-c /nowhere/at/all --check-config", 2, "/nowhere/at/all");
	assert_runs("-r /nowhere/at/all/run -m 8MiB", 1, "/nowhere/at/all/run");
}

static void test_file_and_flags(void **state)
{
	(void)state;
	write_file("log_level = \"error\";\nmemory: { host_bytes = \"1\"; };\n");
	assert_runs("--config FILE --check-config", 2, ":2: memory.host_bytes is 1");
	write_file("runtime_dir = \"/nowhere/in/the/file\";\nmemory: { host_bytes = \"8MiB\"; };\n"
		   "log_level = \"warning\";\n");
	assert_runs("--config FILE --check-config", 0, "configuration ok");
	assert_runs("-c FILE", 1, "/nowhere/in/the/file");
	assert_runs("-r /nowhere/on/the/line -c FILE", 1, "/nowhere/on/the/line");
	assert_runs("-c FILE -r /nowhere/on/the/line", 1, "/nowhere/on/the/line");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_every_setting),
		cmocka_unit_test(test_defaults_stay),
		cmocka_unit_test(test_wrong_settings),
		cmocka_unit_test(test_wrong_tenants),
		cmocka_unit_test(test_too_many),
		cmocka_unit_test(test_between_settings),
		cmocka_unit_test(test_store),
		cmocka_unit_test(test_sizes),
		cmocka_unit_test(test_no_file),
		cmocka_unit_test(test_command_line),
		cmocka_unit_test(test_file_and_flags),
	};

	return cmocka_run_group_tests_name("daemon config", tests, make_file, remove_file);
}

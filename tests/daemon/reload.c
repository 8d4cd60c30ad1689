/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: at SIGHUP the daemon takes from the file what may change at run time, names what may not, and a
 * broken file changes nothing; clients stay.
 * Method: the real kvrecalld with a file that changes below it, its log in a file, and a client. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/daemon/harness_util.h"
#include "tests/daemon/manager_util.h"

static char path[] = "/tmp/kvrecall-test-conf-XXXXXX", log_path[] = "/tmp/kvrecall-test-log-XXXXXX";

static int make_files(void **state)
{
	int one = mkstemp(path), other = mkstemp(log_path);

	(void)state;
	unsetenv("WATCHDOG_USEC");
	return one < 0 || other < 0 || close(one) < 0 || close(other) < 0 ? -1 : 0;
}

static int remove_files(void **state)
{
	(void)state;
	return unlink(path) < 0 || unlink(log_path) < 0 ? -1 : 0;
}

static void write_file(const char *text)
{
	FILE *file = fopen(path, "w");

	assert_non_null(file);
	fputs(text, file);
	assert_int_equal(fclose(file), 0);
}

/* Starts a daemon that reads `path` and whose log goes to log_path. */
static void start(struct harness_daemon *daemon, struct manager *manager, const char *text)
{
	const char *arguments[] = {"-c", path, NULL};
	int to = open(log_path, O_WRONLY | O_TRUNC | O_APPEND | O_CLOEXEC),
	    kept = dup(STDERR_FILENO);

	assert_true(to >= 0 && kept >= 0);
	write_file(text);
	manager_open(manager, 0, 0);
	assert_int_equal(dup2(to, STDERR_FILENO), STDERR_FILENO);
	harness_start(daemon, arguments);
	assert_int_equal(dup2(kept, STDERR_FILENO), STDERR_FILENO);
	close(kept);
	close(to);
	manager_wait(manager, "READY=1");
}

static void reload(struct harness_daemon *daemon, struct manager *manager, const char *text)
{
	write_file(text);
	assert_int_equal(kill(daemon->pid, SIGHUP), 0);
	manager_wait(manager, "RELOADING=1");
	manager_wait(manager, "READY=1");
}

static void assert_log(const char *part, bool there)
{
	static char text[65536];
	FILE *file = fopen(log_path, "r");
	size_t got;

	assert_non_null(file);
	got = fread(text, 1, sizeof(text) - 1, file);
	fclose(file);
	text[got] = 0;
	if ((strstr(text, part) != NULL) != there)
		fail_msg("'%s' is %sin the log:\n%s", part, there ? "not " : "", text);
}

static int connect_rc(const struct harness_daemon *daemon, uint64_t region_bytes)
{
	const struct kvr_client_config config = {
		.attach_path = daemon->socket, .region_bytes = region_bytes, .timeout_ms = 60000};
	struct kvr_client *client = NULL;
	int rc = kvr_connect(&config, &client);

	kvr_disconnect(client);
	return rc;
}

#define MEMORY "memory: { host_bytes = \"16 MiB\"; "

static void test_daemon(void **state)
{
	struct harness_daemon daemon;
	struct kvr_client *client;
	struct manager manager;
	char text[512];

	(void)state;
	snprintf(text, sizeof(text),
		MEMORY
		"};\ntenants = ( { name = \"us\"; uids = [ %u ]; quota_bytes = \"9 MiB\"; } );\n",
		(unsigned)getuid());
	start(&daemon, &manager, text);
	client = harness_connect(&daemon, 8 << 20);
	assert_int_equal((int)harness_metric(client, "tenant.quota_bytes"), 9 << 20);
	assert_int_equal(connect_rc(&daemon, 8 << 20), 0);
	snprintf(text, sizeof(text),
		MEMORY "region_bytes_max = \"4 MiB\"; regions_bytes_max = \"6 MiB\"; };\n"
		       "tenants = ( { name = \"us\"; uids = [ %u ]; quota_bytes = \"3 MiB\"; } );\n"
		       "sessions: { credits = 3; };\n",
		(unsigned)getuid());
	reload(&daemon, &manager, text);
	assert_log("needs a restart: sessions.credits", true);
	assert_int_equal((int)harness_metric(client, "tenant.quota_bytes"), 3 << 20);
	/* The client that is there has more than all may have now; it stays, and nobody else comes. */
	assert_int_equal(kvr_ping(client), 0);
	assert_true(connect_rc(&daemon, 8 << 20) < 0);
	assert_true(connect_rc(&daemon, 2 << 20) < 0);
	kvr_disconnect(client);
	client = harness_connect(&daemon, 2 << 20);
	/* A mistake, a file that is gone: as before. */
	reload(&daemon, &manager, "\nmemory: { host_bytes = 5; };\n");
	assert_log(":2: memory.host_bytes must be a size", true);
	assert_log("settings stay as they were", true);
	assert_int_equal((int)harness_metric(client, "tenant.quota_bytes"), 3 << 20);
	assert_int_equal(kvr_ping(client), 0);
	kvr_disconnect(client);
	harness_stop(&daemon);
	manager_close(&manager);
}

/* The log's level changes, unless a flag says what it is: the harness gives "-l warning". */
static void test_flags_stay(void **state)
{
	struct harness_daemon daemon;
	struct manager manager;

	(void)state;
	start(&daemon, &manager, MEMORY "};\n");
	reload(&daemon, &manager, "log_level = \"info\";\n" MEMORY "};\n");
	assert_log("settings read again", false);
	reload(&daemon, &manager, "log_level = \"info\";\nmemory: { host_bytes = \"32 MiB\"; };\n");
	assert_log("needs a restart: memory.host_bytes", true);
	assert_int_equal(unlink(path), 0);
	assert_int_equal(kill(daemon.pid, SIGHUP), 0);
	manager_wait(&manager, "STATUS=the last reload failed: ");
	manager_wait(&manager, "READY=1");
	assert_log("No such file", true);
	write_file("");
	harness_assert_alive(&daemon);
	harness_stop(&daemon);
	manager_close(&manager);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_daemon),
		cmocka_unit_test(test_flags_stay),
	};

	return cmocka_run_group_tests_name("daemon reload", tests, make_files, remove_files);
}

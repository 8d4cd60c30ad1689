/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: what `make install` puts in place is right for systemd: paths, modes, users, the unit's settings and
 * its exposure; and the unit starts, reloads, is missed when it hangs, comes back, and stops.
 * Method: tests/daemon/unit.sh installs this build into folders of its own and asks systemd's tools; for
 * the running unit it starts a manager in namespaces of its own, where that is allowed. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/daemon/harness_util.h"
#include "tests/daemon/process_util.h"

#define SCRIPT     "tests/daemon/unit.sh"
#define SKIPPED    77
#define TIMEOUT_MS 240000

/* Runs one step; its output is this program's. */
static void step(const char *name)
{
	char build[600];
	pid_t pid;
	int code;

	harness_program("", build, sizeof(build));
	fflush(stdout);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGTERM);
		execl(SCRIPT, SCRIPT, name, build, (char *)NULL);
		perror(SCRIPT ": run this in the top folder");
		_exit(127);
	}
	code = process_wait(pid, TIMEOUT_MS);
	if (code == SKIPPED)
		skip(); /* the script has said why */
	assert_int_equal(code, 0);
}

static void test_install(void **state)
{
	(void)state;
	step("install");
}

static void test_verify(void **state)
{
	(void)state;
	step("verify");
}

/* At most 1.0 of 10: a line that got lost shows. */
static void test_exposure(void **state)
{
	(void)state;
	step("exposure");
}

static void test_users(void **state)
{
	(void)state;
	step("users");
}

static void test_run(void **state)
{
	(void)state;
	step("run");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_install),
		cmocka_unit_test(test_verify),
		cmocka_unit_test(test_exposure),
		cmocka_unit_test(test_users),
		cmocka_unit_test(test_run),
	};

	return cmocka_run_group_tests_name("daemon unit", tests, NULL, NULL);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: the service manager hears what the daemon does, when it does it, and a core thread that is stuck
 * is missed within the interval; a manager that does not listen changes nothing.
 * Method: daemon/notify.c and the real kvrecalld against a notify socket that this test reads. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "daemon/notify.h"
#include "tests/daemon/harness_util.h"
#include "tests/daemon/manager_util.h"
#include "tests/daemon/process_util.h"

#define RELOADING "RELOADING=1\nMONOTONIC_USEC="

static void assert_next(struct manager *manager, const char *text)
{
	char got[1024];

	manager_next(manager, got, sizeof(got), 0);
	assert_string_equal(got, text);
}

static void test_messages(void **state)
{
	struct manager manager;
	unsigned long long usec;

	(void)state;
	for (int abstract = 0; abstract < 2; abstract++) {
		manager_open(&manager, abstract, 0);
		assert_int_equal(kvr_notify_open(), 0);
		kvr_notify_status("%d clients\nREADY=1", 7);
		assert_next(&manager, "STATUS=7 clients");
		kvr_notify_ready();
		assert_next(&manager, "READY=1");
		kvr_notify_reloading();
		usec = strtoull(manager_wait(&manager, RELOADING) + strlen(RELOADING), NULL, 10);
		assert_true(usec <= kvr_clock_ns() / 1000);
		assert_true(usec + 20000000 > kvr_clock_ns() / 1000);
		kvr_notify_stopping();
		assert_next(&manager, "STOPPING=1");
		kvr_notify_tick(); /* nobody asked for pings */
		assert_next(&manager, "");
		assert_int_equal(kvr_notify_wait_ms(-1), -1);
		assert_int_equal(kvr_notify_wait_ms(50), 50);
		kvr_notify_close();
		manager_close(&manager);
	}
}

static void send_all(void)
{
	kvr_notify_status("nobody reads this");
	kvr_notify_ready();
	kvr_notify_reloading();
	kvr_notify_stopping();
	kvr_notify_tick();
}

/* No manager, one that is gone, addresses that mean nothing. */
static void test_nobody(void **state)
{
	static const char *const names[] = {"", "/", "@", "relative", "vsock:2:1234", NULL};
	char name_long[120];
	struct manager manager;

	(void)state;
	assert_int_equal(kvr_notify_open(), 0);
	send_all();
	kvr_notify_close();
	memset(name_long, '/', sizeof(name_long) - 1); /* an address holds 107 */
	name_long[sizeof(name_long) - 1] = 0;
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		setenv("NOTIFY_SOCKET", names[i] ? names[i] : name_long, 1);
		assert_int_equal(kvr_notify_open(), -EINVAL);
		send_all();
		kvr_notify_close();
	}
	manager_open(&manager, 0, 0);
	assert_int_equal(kvr_notify_open(), 0);
	manager_close(&manager);
	send_all();
	kvr_notify_close();
}

/* N1: the socket's queue is full after a few hundred messages at most. */
static void test_manager_stuck(void **state)
{
	struct manager manager;
	char got[1024];
	uint32_t count = 0;

	(void)state;
	manager_open(&manager, 0, 1000);
	assert_int_equal(kvr_notify_open(), 0);
	alarm(60); /* a call that waits would wait for ever */
	for (uint32_t i = 0; i < 10000; i++)
		kvr_notify_ready();
	alarm(0);
	for (manager_next(&manager, got, sizeof(got), 0); got[0]; count++)
		manager_next(&manager, got, sizeof(got), 0);
	assert_true(count > 0);
	assert_true(count < 10000);
	kvr_notify_ready();
	assert_next(&manager, "READY=1"); /* it is heard again */
	kvr_notify_close();
	manager_close(&manager);
}

static void test_watchdog_settings(void **state)
{
	static const char *const wrong[] = {
		"", "soon", "-1", "1s", "39999", "99999999999999999999"};
	struct manager manager;
	char pid[16];

	(void)state;
	manager_open(&manager, 0, 400);
	assert_int_equal(kvr_notify_open(), 0);
	assert_int_equal(kvr_notify_wait_ms(-1), 100);
	assert_int_equal(kvr_notify_wait_ms(50), 50);
	assert_int_equal(kvr_notify_wait_ms(0), 0);
	assert_int_equal(kvr_notify_wait_ms(5000), 100);
	kvr_notify_tick();
	assert_next(&manager, "WATCHDOG=1");
	kvr_notify_tick(); /* too early */
	assert_next(&manager, "");
	kvr_notify_close();
	/* Another process is watched. */
	setenv("WATCHDOG_PID", "1", 1);
	assert_int_equal(kvr_notify_open(), 0);
	assert_int_equal(kvr_notify_wait_ms(-1), -1);
	kvr_notify_close();
	snprintf(pid, sizeof(pid), "%d", (int)getpid());
	setenv("WATCHDOG_PID", pid, 1);
	assert_int_equal(kvr_notify_open(), 0);
	assert_int_equal(kvr_notify_wait_ms(-1), 100);
	kvr_notify_close();
	for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
		setenv("WATCHDOG_USEC", wrong[i], 1);
		assert_int_equal(kvr_notify_open(), -EINVAL);
		assert_int_equal(kvr_notify_wait_ms(-1), -1);
		kvr_notify_close();
	}
	manager_close(&manager);
}

/* ---- the daemon ------------------------------------------------------------------------------ */

/* READY comes when a client can attach, and not before. */
static void test_life(void **state)
{
	static const char *const small[] = {"-m", "8MiB", NULL};
	struct harness_daemon daemon;
	struct manager manager;

	(void)state;
	manager_open(&manager, 0, 0);
	harness_start(&daemon, small);
	manager_wait(&manager, "STATUS=serving ");
	manager_wait(&manager, "READY=1");
	harness_assert_alive(&daemon);
	assert_int_equal(kill(daemon.pid, SIGHUP), 0);
	manager_wait(&manager, RELOADING);
	manager_wait(&manager, "READY=1");
	harness_assert_alive(&daemon);
	harness_stop(&daemon);
	manager_wait(&manager, "STOPPING=1");
	manager_close(&manager);
}

/* N2: an idle loop pings; a core thread that does not turn its loop does not, and is missed. Whether pings
 * are in time is not judged here beyond the whole interval, twice over: this machine may be busy. */
static void test_watchdog(void **state)
{
	static const char *const small[] = {"-m", "8MiB", NULL};
	const uint32_t interval_ms = PROCESS_SLOW > 1 ? 3000 : 1000;
	struct harness_daemon daemon;
	struct manager manager;
	char text[1024];
	uint64_t start_ns;

	(void)state;
	manager_open(&manager, 0, interval_ms);
	harness_start(&daemon, small);
	manager_wait(&manager, "READY=1");
	start_ns = kvr_clock_ns();
	for (int i = 0; i < 8; i++) {
		manager_next(&manager, text, sizeof(text), (int)(2 * interval_ms));
		assert_string_equal(text, "WATCHDOG=1");
	}
	/* Not more often than each quarter: 8 pings are 7 quarters. */
	assert_true(kvr_clock_ns() - start_ns > interval_ms * 1000000ull / 4 * 6);
	assert_int_equal(kill(daemon.pid, SIGSTOP), 0);
	do /* what was sent before it stopped */
		manager_next(&manager, text, sizeof(text), (int)interval_ms);
	while (text[0] && kvr_clock_ns() - start_ns < 30ull * interval_ms * 1000000);
	assert_string_equal(text, "");
	assert_int_equal(kill(daemon.pid, SIGCONT), 0);
	manager_wait(&manager, "WATCHDOG=1");
	harness_stop(&daemon);
	manager_close(&manager);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_messages),
		cmocka_unit_test(test_nobody),
		cmocka_unit_test(test_manager_stuck),
		cmocka_unit_test(test_watchdog_settings),
		cmocka_unit_test(test_life),
		cmocka_unit_test(test_watchdog),
	};

	unsetenv("NOTIFY_SOCKET");
	unsetenv("WATCHDOG_USEC");
	unsetenv("WATCHDOG_PID");
	return cmocka_run_group_tests_name("daemon notify", tests, NULL, NULL);
}

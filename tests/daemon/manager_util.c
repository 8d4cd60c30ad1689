/* SPDX-License-Identifier: Apache-2.0 */
/* manager_util.c: see manager_util.h. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include "tests/daemon/manager_util.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/clock.h"

#define WAIT_MS 20000

void manager_open(struct manager *manager, int abstract, uint32_t watchdog_ms)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	socklen_t bytes;
	char text[32];

	snprintf(manager->name, sizeof(manager->name), "%skvrecall-test-%d.notify",
		abstract ? "@" : "/tmp/", (int)getpid());
	bytes = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(manager->name));
	memcpy(address.sun_path, manager->name, strlen(manager->name));
	if (abstract)
		address.sun_path[0] = 0;
	manager->fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	assert_true(manager->fd >= 0);
	assert_int_equal(bind(manager->fd, (struct sockaddr *)&address, bytes), 0);
	assert_int_equal(setenv("NOTIFY_SOCKET", manager->name, 1), 0);
	snprintf(text, sizeof(text), "%u", watchdog_ms * 1000);
	if (watchdog_ms > 0)
		assert_int_equal(setenv("WATCHDOG_USEC", text, 1), 0);
}

void manager_close(struct manager *manager)
{
	close(manager->fd);
	if (manager->name[0] == '/')
		unlink(manager->name);
	unsetenv("NOTIFY_SOCKET");
	unsetenv("WATCHDOG_USEC");
	unsetenv("WATCHDOG_PID");
}

void manager_next(struct manager *manager, char *ret_text, uint32_t bytes, int timeout_ms)
{
	struct pollfd poller = {manager->fd, POLLIN, 0};
	ssize_t got = 0;

	if (poll(&poller, 1, timeout_ms) > 0)
		got = recv(manager->fd, ret_text, bytes - 1, MSG_DONTWAIT);
	ret_text[got > 0 ? got : 0] = 0;
}

const char *manager_wait(struct manager *manager, const char *start)
{
	static char text[1024];
	const uint64_t end = kvr_clock_ns() + WAIT_MS * 1000000ull;

	while (kvr_clock_ns() < end) {
		manager_next(manager, text, sizeof(text), 1000);
		if (strncmp(text, start, strlen(start)) == 0)
			return text;
	}
	fail_msg("no message %s", start);
	return NULL;
}

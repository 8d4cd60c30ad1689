/* SPDX-License-Identifier: Apache-2.0 */
/* notify.c: datagrams to the service manager. Does not decide when: main.c and the loop do.
 *
 * Pings are sent when a quarter of the interval has passed, and the loop sleeps at most a quarter: so
 * they are at most half of it apart (N2), whatever else the loop does in between. */
#include "daemon/notify.h"

#include <errno.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/clock.h"

#define WATCHDOG_MS_MIN 40u         /* below, pings would be all the loop does */
#define WATCHDOG_MS_MAX 0x7fffffffu /* what a loop's timeout can hold */

static struct {
	struct sockaddr_un address;
	socklen_t address_bytes;
	int fd; /* valid while address_bytes > 0 */
	uint64_t quarter_ns,
		ping_ns; /* quarter_ns 0: no watchdog; ping_ns: when the last was sent */
} notify;

static void send_text(const char *text)
{
	if (notify.address_bytes == 0)
		return;
	KVR_ASSERT(notify.fd >= 0);
	/* N1. What fails here fails again at the next message; nobody could do anything about it. */
	(void)!sendto(notify.fd, text, strlen(text), MSG_DONTWAIT | MSG_NOSIGNAL,
		(const struct sockaddr *)&notify.address, notify.address_bytes);
}

/* An absolute path, or '@' and an abstract name. */
static int set_address(const char *name)
{
	const size_t length = strlen(name);

	if ((name[0] != '/' && name[0] != '@') || length < 2 ||
		length >= sizeof(notify.address.sun_path))
		return -EINVAL;
	notify.address = (struct sockaddr_un){.sun_family = AF_UNIX};
	memcpy(notify.address.sun_path, name, length);
	if (name[0] == '@')
		notify.address.sun_path[0] = 0;
	notify.address_bytes = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length);
	return 0;
}

/* The manager says which process it watches: not a child that inherited the variable. */
static int set_watchdog(const char *usec, const char *pid)
{
	char *end;
	unsigned long long interval_ms;

	if (!usec || (pid && strtoll(pid, NULL, 10) != getpid()))
		return 0;
	errno = 0;
	interval_ms = strtoull(usec, &end, 10) / 1000;
	if (usec[0] < '0' || usec[0] > '9' || *end || errno != 0 || interval_ms < WATCHDOG_MS_MIN ||
		interval_ms > WATCHDOG_MS_MAX)
		return -EINVAL;
	notify.quarter_ns = interval_ms * 1000000u / 4;
	KVR_ASSERT(notify.quarter_ns >= 1000000); /* the loop's timeout is in ms */
	return 0;
}

int kvr_notify_open(void)
{
	const char *name = secure_getenv("NOTIFY_SOCKET");
	int rc;

	KVR_ASSERT(notify.address_bytes == 0);
	if (!name)
		return 0;
	notify.fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (notify.fd < 0)
		return -errno;
	rc = set_address(name);
	if (rc < 0) {
		close(notify.fd);
		return rc;
	}
	return set_watchdog(secure_getenv("WATCHDOG_USEC"), secure_getenv("WATCHDOG_PID"));
}

void kvr_notify_close(void)
{
	if (notify.address_bytes > 0)
		close(notify.fd);
	memset(&notify, 0, sizeof(notify));
}

void kvr_notify_status(const char *format, ...)
{
	char text[512] = "STATUS=";
	const size_t start = strlen(text);
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(text + start, sizeof(text) - start, format, arguments);
	va_end(arguments);
	text[strcspn(text, "\n")] = 0; /* the next line would be a message of its own */
	send_text(text);
}

void kvr_notify_ready(void)
{
	send_text("READY=1");
	notify.ping_ns = 0; /* the manager's clock starts now: the next tick pings */
}

/* The time is for Type=notify-reload (systemd 253), which ignores a READY=1 from before; others ignore
 * the time. */
void kvr_notify_reloading(void)
{
	char text[64];

	snprintf(text, sizeof(text), "RELOADING=1\nMONOTONIC_USEC=%llu",
		(unsigned long long)(kvr_clock_ns() / 1000));
	send_text(text);
}

void kvr_notify_stopping(void)
{
	send_text("STOPPING=1");
}

void kvr_notify_tick(void)
{
	uint64_t now;

	if (notify.quarter_ns == 0)
		return;
	now = kvr_clock_ns();
	if (now - notify.ping_ns < notify.quarter_ns)
		return;
	notify.ping_ns = now;
	send_text("WATCHDOG=1");
}

int kvr_notify_wait_ms(int timeout_ms)
{
	const int quarter_ms = (int)(notify.quarter_ns / 1000000);

	KVR_ASSERT(timeout_ms >= -1);
	if (notify.quarter_ns == 0 || (timeout_ms >= 0 && timeout_ms < quarter_ms))
		return timeout_ms;
	return quarter_ms;
}

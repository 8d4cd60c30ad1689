/* SPDX-License-Identifier: Apache-2.0 */
/* manager_util.h: the service manager's end of the notify socket, played by a test. */
#ifndef KVR_TESTS_DAEMON_MANAGER_H
#define KVR_TESTS_DAEMON_MANAGER_H

#include <stdint.h>

struct manager {
	int fd;
	char name[108]; /* as in NOTIFY_SOCKET */
};

/* Listens on a path below /tmp, or on an abstract name, and sets NOTIFY_SOCKET for this process and
 * those it starts; with watchdog_ms > 0 WATCHDOG_USEC as well. */
void manager_open(struct manager *manager, int abstract, uint32_t watchdog_ms);

/* Unsets what manager_open has set. */
void manager_close(struct manager *manager);

/* The next message, or "" after `timeout_ms`. */
void manager_next(struct manager *manager, char *ret_text, uint32_t bytes, int timeout_ms);

/* Reads messages until one begins with `start`, at most 20 s, and returns it; else fails the test. */
const char *manager_wait(struct manager *manager, const char *start);

#endif

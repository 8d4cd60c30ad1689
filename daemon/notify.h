/* SPDX-License-Identifier: Apache-2.0 */
/* notify.h: tells the service manager how the daemon is: sd_notify(3)'s protocol, without its library.
 *
 *   open ──► ready ──┬─► tick ... tick ──┬─► stopping
 *                    └─► reloading ──────┘
 *                            └──► ready
 *
 * A message is a datagram to the Unix socket that $NOTIFY_SOCKET names. Without that variable every
 * function does nothing. A lost message is no error: the manager acts by its own time limits.
 *
 * Invariants:
 *   N1  Nothing here waits: where the manager does not read, messages are dropped.
 *   N2  While the core thread turns its loop, a WATCHDOG=1 follows the one before within half of the
 *       interval that the manager demands.
 *
 * Threads: the core thread's. State is the process's own, as the socket and the log are. */
#ifndef KVR_DAEMON_NOTIFY_H
#define KVR_DAEMON_NOTIFY_H

/* Reads $NOTIFY_SOCKET, $WATCHDOG_USEC and $WATCHDOG_PID. Errors: -EINVAL (an address or interval that
 * means nothing), -EMFILE; then messages are not sent. */
int kvr_notify_open(void);
void kvr_notify_close(void);

/* One line for `systemctl status`. Also at long steps of the start. */
__attribute__((format(printf, 1, 2))) void kvr_notify_status(const char *format, ...);

/* The daemon serves; after kvr_notify_reloading: with its new settings. */
void kvr_notify_ready(void);
void kvr_notify_reloading(void);
void kvr_notify_stopping(void);

/* To be called in every round of the core thread's loop: sends WATCHDOG=1 when it is due. */
void kvr_notify_tick(void);

/* How long the loop may sleep: `timeout_ms` (-1: for ever), or less, so that N2 holds. */
int kvr_notify_wait_ms(int timeout_ms);

#endif

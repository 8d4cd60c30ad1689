/* SPDX-License-Identifier: Apache-2.0 */
/* log.h: lines for the operator, on standard error, where journald reads it with its <priority>.
 *
 * One line per event, where it is handled: what failed, on what, and the remedy. Nothing a client can
 * cause at will is logged above debug: it is counted instead. */
#ifndef KVR_DAEMON_LOG_H
#define KVR_DAEMON_LOG_H

enum kvr_log_level {
	KVR_LOG_ERROR = 3, /* syslog priorities */
	KVR_LOG_WARNING = 4,
	KVR_LOG_INFO = 6,
	KVR_LOG_DEBUG = 7,
};

/* Lines less urgent than `level` are left out. Like every line, the core thread's business. */
void kvr_log_set_level(enum kvr_log_level level);

__attribute__((format(printf, 2, 3))) void kvr_log(
	enum kvr_log_level level, const char *format, ...);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* log.c: one line per event. Does not rotate, colour or buffer: journald and terminals do. */
#include "daemon/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

static enum kvr_log_level log_level = KVR_LOG_INFO;

void kvr_log_set_level(enum kvr_log_level level)
{
	log_level = level;
}

void kvr_log(enum kvr_log_level level, const char *format, ...)
{
	static const char *const word[] = {
		[KVR_LOG_ERROR] = "error: ", [KVR_LOG_WARNING] = "warning: ", [KVR_LOG_DEBUG] = ""};
	char line[1024];
	va_list arguments;
	int at;

	if (level > log_level)
		return;
	if (!secure_getenv("JOURNAL_STREAM")) /* set where journald reads standard error */
		at = snprintf(line, sizeof(line), "kvrecalld: %s",
			level == KVR_LOG_INFO ? "" : word[level]);
	else
		at = snprintf(line, sizeof(line), "<%d>", (int)level);
	va_start(arguments, format);
	vsnprintf(line + at, sizeof(line) - (size_t)at, format, arguments);
	va_end(arguments);
	fprintf(stderr, "%s\n", line);
}

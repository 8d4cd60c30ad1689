/* SPDX-License-Identifier: Apache-2.0 */
/* memory.c: see memory.h. */
#include "bench/quality/memory.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void quality_fail(const char *format, ...)
{
	va_list arguments;

	fputs("quality: ", stderr);
	va_start(arguments, format);
	vfprintf(stderr, format, arguments);
	va_end(arguments);
	fputc('\n', stderr);
	exit(1);
}

void quality_must(int rc, const char *what)
{
	if (rc < 0)
		quality_fail("%s: %s", what, strerror(-rc));
}

void *quality_need(size_t count, size_t bytes)
{
	size_t all;
	void *memory;

	if (__builtin_mul_overflow(count, bytes, &all) || all > SIZE_MAX / 2)
		quality_fail("%zu things of %zu bytes are too much", count, bytes);
	all = (all + 127) & ~(size_t)63;
	memory = aligned_alloc(64, all);
	if (!memory)
		quality_fail("no memory for %zu bytes", all);
	return memset(memory, 0, all);
}

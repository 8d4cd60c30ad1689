/* SPDX-License-Identifier: Apache-2.0 */
/* assert.h: assertions that stay on in release builds.
 *
 * They state what our own code guarantees, one condition each. Data from outside (messages, files,
 * other processes) is never asserted on: it is checked, counted and refused with an error. */
#ifndef KVR_BASE_ASSERT_H
#define KVR_BASE_ASSERT_H

#include <stdio.h>
#include <stdlib.h>

/* Relations of constants, checked when compiled; in C and C++. */
#ifdef __cplusplus
#define KVR_STATIC_ASSERT(condition) static_assert(condition, #condition)
#else
#define KVR_STATIC_ASSERT(condition) _Static_assert(condition, #condition)
#endif

#define KVR_ASSERT(condition)                                            \
	do {                                                             \
		if (__builtin_expect(!(condition), 0))                   \
			kvr_assert_fail(#condition, __FILE__, __LINE__); \
	} while (0)

__attribute__((noreturn, cold)) static inline void kvr_assert_fail(
	const char *condition, const char *file, int line)
{
	fprintf(stderr, "kvrecall: assertion failed: %s (%s:%d)\n", condition, file, line);
	abort();
}

#endif

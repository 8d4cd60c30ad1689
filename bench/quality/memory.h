/* SPDX-License-Identifier: Apache-2.0 */
/* memory.h: memory that is there, or the end of the bench; and how a bench ends that cannot go on.
 *
 * Threads: any. */
#ifndef QUALITY_MEMORY_H
#define QUALITY_MEMORY_H

#include <stddef.h>

__attribute__((noreturn, format(printf, 1, 2))) void quality_fail(const char *format, ...);

/* Fails with `what` if rc is negative. */
void quality_must(int rc, const char *what);

/* Zeroed, 64-byte aligned, and 64 bytes more, so that it is never nothing. For free(). */
void *quality_need(size_t count, size_t bytes);

#endif

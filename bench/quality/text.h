/* SPDX-License-Identifier: Apache-2.0 */
/* text.h: the texts that the bench is run on: all of them the project's own.
 *
 * Threads: any. */
#ifndef QUALITY_TEXT_H
#define QUALITY_TEXT_H

#include <stddef.h>

/* The files of "prose" or "code", one behind the other, as many as are there; in files that the
 * bench finds below its working directory. For free(). */
char *quality_text_read(const char *name, size_t *ret_bytes);

#endif

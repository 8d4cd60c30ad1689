/* SPDX-License-Identifier: Apache-2.0 */
/* dump.h: keys, values and queries of anyone's model, from .npy files (bench/README.md says what they hold).
 *
 * Threads: any. */
#ifndef QUALITY_DUMP_H
#define QUALITY_DUMP_H

#include "bench/quality/input.h"

/* Reads PATH_K.npy, PATH_V.npy and PATH_Q.npy. What does not fit together ends the bench with a sentence. */
void quality_dump_read(const char *path, struct quality_input *ret_input);

/* Writes an input as such files, for others to read; keys and values as f32. */
void quality_dump_write(const char *path, const struct quality_input *input);

#endif

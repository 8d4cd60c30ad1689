/* SPDX-License-Identifier: Apache-2.0 */
/* revive.h: what the demo keeps aside of what it stored, and the check that a daemon which was killed still has it.
 *
 * The file, little-endian as the machine is, is for the demo's own use and for minutes:
 *   context, generate_count, batch   u32 each
 *   tokens of the continuation       u32 [generate_count]
 *   keys and values                  per batch of tokens: u16 [2][L][batch][K][D], the last batch shorter */
#ifndef TINYLM_REVIVE_H
#define TINYLM_REVIVE_H

#include <stdint.h>
#include <stdio.h>

#include "examples/tinylm/engine.h"

struct tinylm_kept {
	uint32_t context, generate_count, batch;
};

/* Writes the file's head. Returns 0 or -errno. */
int tinylm_kept_begin(FILE *file, const struct tinylm_kept *kept, const uint32_t *tokens);

#endif

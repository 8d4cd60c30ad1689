/* SPDX-License-Identifier: Apache-2.0 */
/* measure.h: fills in entries: attention alone, and the model's next token.
 *
 * Threads: both use all CPUs, and return when they are done. */
#ifndef QUALITY_MEASURE_H
#define QUALITY_MEASURE_H

#include "bench/quality/entry.h"
#include "bench/quality/model.h"

/* Mass, errors and bytes. All entries are of one input; every `stride`-th query is asked. */
void quality_measure_attention(struct quality_entry *entries, uint32_t count, uint32_t stride);

/* KL, top-1 and NLL. The entries may be of several inputs, all of the model. */
void quality_measure_steps(
	struct quality_entry *const *entries, uint32_t count, const struct quality_model *model);

#endif

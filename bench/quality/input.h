/* SPDX-License-Identifier: Apache-2.0 */
/* input.h: keys, values and queries of one context: what is measured on.
 *
 *   tokens 0 .. P - 1     the prompt: sealed
 *          P .. T - 1     the tail: m tokens, each of which asks when it is the newest
 *
 * From a model that runs here (model.h), or from a dump (dump.h).
 *
 * Threads: read-only once it is made. */
#ifndef QUALITY_INPUT_H
#define QUALITY_INPUT_H

#include "bench/quality/rows.h"

struct quality_input {
	char name[64];
	uint32_t context_tokens; /* T = P + m */
	bool counted;            /* in the figures that are claimed */
	struct quality_rows prompt;
	struct quality_rows tail;
	float *queries; /* [m][H of all layers][Dk], after RoPE, unscaled */
	/* Of a model that runs here; else NULL. */
	uint32_t *tokens; /* [T + 1] */
	float *reference; /* [m][V] log probabilities of what follows, under full attention */
	uint32_t vocab;   /* V */
};

/* The G queries of a lane that the tail's token `index` asks with: [G][Dk]. */
static inline const float *quality_input_queries(
	const struct quality_input *input, uint32_t index, uint32_t lane)
{
	const struct kvr_geometry *geometry = &input->prompt.geometry;
	const size_t heads = (size_t)geometry->layer_count * geometry->query_heads;
	const size_t head = (size_t)lane * kvr_geometry_group(geometry);

	return input->queries + (index * heads + head) * geometry->key_dim;
}

void quality_input_close(struct quality_input *input);

#endif

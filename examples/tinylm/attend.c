/* SPDX-License-Identifier: Apache-2.0 */
/* attend.c: see attend.h. */
#include "examples/tinylm/attend.h"

#include <math.h>
#include <string.h>

void tinylm_softmax(const struct tinylm_math *math, float *x, uint32_t count)
{
	const uint32_t padded = tinylm_round_up(count);
	float max = x[0];
	float inverse;

	for (uint32_t i = 1; i < count; i++)
		max = x[i] > max ? x[i] : max;
	for (uint32_t i = count; i < padded; i++)
		x[i] = -INFINITY;
	inverse = 1 / math->exponentials(x, padded, max);
	for (uint32_t i = 0; i < count; i++)
		x[i] *= inverse;
	for (uint32_t i = count; i < padded; i++)
		x[i] = 0;
}

/* The partial output, as the row behind all others. */
static void add_partial(const struct tinylm_attention *attention, uint32_t row)
{
	for (uint32_t g = 0; attention->partial && g < attention->group; g++) {
		const float share = attention->scores[(size_t)g * attention->score_stride + row];
		const size_t at = (size_t)g * attention->head_dim;

		for (uint32_t i = 0; i < attention->head_dim; i++)
			attention->out[at + i] += share * attention->partial[at + i];
	}
}

void tinylm_attend(const struct tinylm_attention *attention)
{
	const float scale = 1 / sqrtf((float)attention->head_dim);
	uint32_t rows = 0;

	memset(attention->out, 0, (size_t)attention->group * attention->head_dim * sizeof(float));
	for (uint32_t r = 0; r < attention->run_count; r++) {
		const struct tinylm_run *run = &attention->runs[r];

		attention->math->score(attention->scores + rows, attention->score_stride,
			attention->queries, attention->group, run->keys, run->row_count,
			attention->head_dim);
		for (uint32_t g = 0; g < attention->group; g++) {
			float *scores =
				attention->scores + (size_t)g * attention->score_stride + rows;

			for (uint32_t i = 0; i < run->row_count; i++)
				scores[i] =
					scores[i] * scale + (run->weights ? run->weights[i] : 0);
		}
		rows += run->row_count;
	}
	if (!rows && !attention->partial)
		return;
	for (uint32_t g = 0; g < attention->group; g++) {
		float *scores = attention->scores + (size_t)g * attention->score_stride;

		if (attention->partial)
			scores[rows] = attention->partial_lse[g];
		tinylm_softmax(attention->math, scores, rows + (attention->partial != NULL));
	}
	add_partial(attention, rows);
	rows = 0;
	for (uint32_t r = 0; r < attention->run_count; r++) {
		const struct tinylm_run *run = &attention->runs[r];

		attention->math->mix(attention->out, attention->scores + rows,
			attention->score_stride, attention->group, run->values, run->row_count,
			attention->head_dim);
		rows += run->row_count;
	}
}

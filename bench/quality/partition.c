/* SPDX-License-Identifier: Apache-2.0 */
/* partition.c: see partition.h. */
#include "bench/quality/partition.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench/quality/memory.h"
#include "kernels/cpu.h"

/* ---- making ------------------------------------------------------------------------------------ */

static void open_arrays(
	struct quality_partition *partition, const struct kvr_geometry *geometry, uint32_t tokens)
{
	const uint32_t clusters = partition->cluster_count;

	partition->first = quality_need(clusters + 1, sizeof(*partition->first));
	partition->tokens = quality_need(tokens, sizeof(*partition->tokens));
	partition->key_mean = quality_need((size_t)clusters * geometry->key_dim, sizeof(float));
	partition->variance = quality_need((size_t)clusters * geometry->key_dim, sizeof(float));
	partition->value_mean = quality_need((size_t)clusters * geometry->value_dim, sizeof(float));
}

/* Means and variances of cluster c over its tokens. */
static void compute(struct quality_partition *partition, const struct quality_rows *rows,
	uint32_t lane, uint32_t c)
{
	const uint32_t key_dim = rows->geometry.key_dim, value_dim = rows->geometry.value_dim;
	const uint32_t size = partition->first[c + 1] - partition->first[c];
	double keys[KVR_DIM_MAX] = {0}, squares[KVR_DIM_MAX] = {0}, values[KVR_DIM_MAX] = {0};
	float row[KVR_DIM_MAX];

	for (uint32_t i = partition->first[c]; i < partition->first[c + 1]; i++) {
		const uint32_t token = partition->tokens[i];
		const float *value =
			rows->value_floats + ((size_t)lane * rows->token_count + token) * value_dim;

		quality_rows_get_key(rows, lane, token, row);
		for (uint32_t d = 0; d < key_dim; d++) {
			keys[d] += (double)row[d] / size;
			squares[d] += (double)row[d] * (double)row[d] / size;
		}
		for (uint32_t d = 0; d < value_dim; d++)
			values[d] += (double)value[d] / size;
	}
	for (uint32_t d = 0; d < key_dim; d++) {
		partition->key_mean[(size_t)c * key_dim + d] = (float)keys[d];
		partition->variance[(size_t)c * key_dim + d] =
			(float)fmax(0.0, squares[d] - keys[d] * keys[d]);
	}
	for (uint32_t d = 0; d < value_dim; d++)
		partition->value_mean[(size_t)c * value_dim + d] = (float)values[d];
}

/* The same as cluster `from` of a segment's summary has them. */
static void copy_summary(struct quality_partition *partition, const struct kvr_segment_view *view,
	uint32_t lane, uint32_t from, uint32_t c)
{
	const uint32_t key_dim = view->geometry->key_dim, value_dim = view->geometry->value_dim;
	const int8_t *high = kvr_segment_key_high(view, lane) + (size_t)from * key_dim;
	const int8_t *low = kvr_segment_key_low(view, lane) + (size_t)from * key_dim;
	const uint8_t *spread = kvr_segment_key_spread(view, lane) + (size_t)from * key_dim;
	const uint16_t *value = kvr_segment_value_mean(view, lane) + (size_t)from * value_dim;
	const float step = kvr_segment_key_step(view, lane)[from];
	const float spread_step = kvr_segment_spread_step(view, lane)[from];

	for (uint32_t d = 0; d < key_dim; d++) {
		const int steps = 256 * high[d] + (view->key_planes[lane] > 1 ? low[d] : 0);

		partition->key_mean[(size_t)c * key_dim + d] = step * (float)steps;
		partition->variance[(size_t)c * key_dim + d] = spread_step * (float)spread[d];
	}
	for (uint32_t d = 0; d < value_dim; d++)
		partition->value_mean[(size_t)c * value_dim + d] = kvr_float_of_bf16(value[d]);
}

void quality_partition_sealed(struct quality_partition *partition,
	const struct quality_sealed *sealed, uint32_t lane, bool exact)
{
	uint32_t c = 0, at = 0;

	*partition =
		(struct quality_partition){.cluster_count = quality_sealed_clusters(sealed, lane)};
	open_arrays(partition, &sealed->geometry, sealed->rows->token_count);
	for (uint32_t s = 0; s < sealed->segment_count; s++) {
		const struct kvr_segment_view *view = &sealed->views[s];
		const uint16_t *first = kvr_segment_row_first(view, lane);
		const uint16_t *token = kvr_segment_row_token(view, lane);

		for (uint32_t from = 0; from < view->cluster_count[lane]; from++, c++) {
			for (uint32_t r = first[from]; r < first[from + 1]; r++)
				partition->tokens[at++] = view->token_first + token[r];
			partition->first[c + 1] = at;
			if (exact)
				compute(partition, sealed->rows, lane, c);
			else
				copy_summary(partition, view, lane, from, c);
		}
	}
}

void quality_partition_pages(struct quality_partition *partition, const struct quality_rows *rows,
	uint32_t lane, uint32_t page_tokens)
{
	const uint32_t sinks = rows->geometry.sink_tokens;
	const uint32_t tokens = rows->token_count - sinks;

	*partition = (struct quality_partition){
		.cluster_count = (tokens + page_tokens - 1) / page_tokens};
	open_arrays(partition, &rows->geometry, tokens);
	for (uint32_t i = 0; i < tokens; i++)
		partition->tokens[i] = sinks + i;
	for (uint32_t c = 0; c < partition->cluster_count; c++) {
		const uint32_t end = (c + 1) * page_tokens;

		partition->first[c + 1] = end < tokens ? end : tokens;
		compute(partition, rows, lane, c);
	}
}

void quality_partition_close(struct quality_partition *partition)
{
	free(partition->first);
	free(partition->tokens);
	free(partition->key_mean);
	free(partition->variance);
	free(partition->value_mean);
	*partition = (struct quality_partition){0};
}

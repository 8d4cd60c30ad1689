/* SPDX-License-Identifier: Apache-2.0 */
/* rows.c: see rows.h. */
#include "bench/quality/rows.h"

#include <stdlib.h>
#include <string.h>

#include "bench/quality/memory.h"
#include "kernels/cpu.h"

void quality_rows_open(
	struct quality_rows *rows, const struct kvr_geometry *geometry, uint32_t token_count)
{
	const size_t lanes = kvr_geometry_lanes(geometry);

	*rows = (struct quality_rows){.geometry = *geometry, .token_count = token_count};
	rows->column_stride =
		(token_count + QUALITY_COLUMNS - 1) / QUALITY_COLUMNS * QUALITY_COLUMNS;
	rows->keys = quality_need(lanes * token_count, kvr_geometry_key_bytes(geometry));
	rows->values = quality_need(lanes * token_count, kvr_geometry_value_bytes(geometry));
}

void quality_rows_close(struct quality_rows *rows)
{
	free(rows->keys);
	free(rows->values);
	free(rows->key_columns);
	free(rows->value_floats);
	*rows = (struct quality_rows){0};
}

uint8_t *quality_rows_key(const struct quality_rows *rows, uint32_t lane, uint32_t token)
{
	return rows->keys +
	       ((size_t)lane * rows->token_count + token) * kvr_geometry_key_bytes(&rows->geometry);
}

uint8_t *quality_rows_value(const struct quality_rows *rows, uint32_t lane, uint32_t token)
{
	return rows->values + ((size_t)lane * rows->token_count + token) *
				      kvr_geometry_value_bytes(&rows->geometry);
}

void quality_rows_get_key(
	const struct quality_rows *rows, uint32_t lane, uint32_t token, float *ret_key)
{
	kvr_floats_of(ret_key, quality_rows_key(rows, lane, token), rows->geometry.dtype,
		rows->geometry.key_dim);
}

void quality_rows_widen(struct quality_rows *rows)
{
	const struct kvr_geometry *geometry = &rows->geometry;
	const uint32_t lanes = kvr_geometry_lanes(geometry);
	float key[KVR_DIM_MAX];

	rows->key_columns = quality_need(
		(size_t)lanes * geometry->key_dim * rows->column_stride, sizeof(float));
	rows->value_floats = quality_need(
		(size_t)lanes * rows->token_count * geometry->value_dim, sizeof(float));
	for (uint32_t lane = 0; lane < lanes; lane++) {
		float *columns =
			rows->key_columns + (size_t)lane * geometry->key_dim * rows->column_stride;

		for (uint32_t t = 0; t < rows->token_count; t++) {
			quality_rows_get_key(rows, lane, t, key);
			for (uint32_t d = 0; d < geometry->key_dim; d++)
				columns[(size_t)d * rows->column_stride + t] = key[d];
			kvr_floats_of(rows->value_floats + ((size_t)lane * rows->token_count + t) *
								   geometry->value_dim,
				quality_rows_value(rows, lane, t), geometry->dtype,
				geometry->value_dim);
		}
	}
}

void quality_rows_score(
	const struct quality_rows *rows, uint32_t lane, const float *query, float scale, float *out)
{
	const uint32_t dim = rows->geometry.key_dim;
	const float *columns = rows->key_columns + (size_t)lane * dim * rows->column_stride;

	for (uint32_t t = 0; t < rows->column_stride; t += QUALITY_COLUMNS) {
		float sums[QUALITY_COLUMNS] = {0};

		for (uint32_t d = 0; d < dim; d++) {
			const float *column = columns + (size_t)d * rows->column_stride + t;

			for (uint32_t i = 0; i < QUALITY_COLUMNS; i++)
				sums[i] += query[d] * column[i];
		}
		for (uint32_t i = 0; i < QUALITY_COLUMNS; i++)
			out[t + i] = scale * sums[i];
	}
}

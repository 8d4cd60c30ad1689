/* SPDX-License-Identifier: Apache-2.0 */
/* rows.h: keys and values of consecutive tokens, as a model made them: what every method works on.
 *
 * As they are, for the device, and as floats, for the methods in plain C. Lanes and axes as in
 * base/geometry.h.
 *
 * Threads: read-only once it is filled. */
#ifndef QUALITY_ROWS_H
#define QUALITY_ROWS_H

#include "base/geometry.h"

#define QUALITY_SINKS   16u /* first tokens, exact in every method */
#define QUALITY_COLUMNS 16u /* key_columns are padded with zeros to a multiple */

struct quality_rows {
	struct kvr_geometry geometry;
	uint32_t token_count;
	uint32_t column_stride; /* token_count rounded up to QUALITY_COLUMNS */
	uint8_t *keys;          /* [lane][token][Dk] of the geometry's dtype */
	uint8_t *values;        /* [lane][token][Dv] */
	float *key_columns;     /* [lane][Dk][column_stride]; NULL before quality_rows_widen */
	float *value_floats;    /* [lane][token][Dv] */
};

void quality_rows_open(
	struct quality_rows *rows, const struct kvr_geometry *geometry, uint32_t token_count);
void quality_rows_close(struct quality_rows *rows);

uint8_t *quality_rows_key(const struct quality_rows *rows, uint32_t lane, uint32_t token);
uint8_t *quality_rows_value(const struct quality_rows *rows, uint32_t lane, uint32_t token);

/* Makes the floats, once keys and values are there. */
void quality_rows_widen(struct quality_rows *rows);

/* Key of a token as floats, [Dk]. */
void quality_rows_get_key(
	const struct quality_rows *rows, uint32_t lane, uint32_t token, float *ret_key);

/* out[t] = scale * query . key t, for all tokens; out has room for column_stride. */
void quality_rows_score(const struct quality_rows *rows, uint32_t lane, const float *query,
	float scale, float *out);

#endif

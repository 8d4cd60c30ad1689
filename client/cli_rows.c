/* SPDX-License-Identifier: Apache-2.0 */
/* cli_rows.c: layout and files of what a recall stages; the table is in cli_rows.h.
 *
 * Threads: one. */
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "client/cli_rows.h"
#include "client/cli_source.h"

#define ALIGN    64u
#define DIMS_MAX 4u

static const char *const names[KVR_ROWS_PARTS] = {
	[KVR_ROWS_KEYS] = "K",
	[KVR_ROWS_VALUES] = "V",
	[KVR_ROWS_WEIGHTS] = "weights",
	[KVR_ROWS_POSITIONS] = "positions",
	[KVR_ROWS_OUTPUTS] = "outputs",
	[KVR_ROWS_LSE] = "lse",
};

/* The shape of a part in its file. Returns how many axes. */
static uint32_t shape_of(const struct kvr_cli_rows *rows, int part, uint64_t shape[DIMS_MAX])
{
	const struct kvr_model_info *model = rows->model;
	const bool of_query = part == KVR_ROWS_OUTPUTS || part == KVR_ROWS_LSE;

	shape[0] = rows->layer_count;
	shape[1] = of_query                   ? model->query_heads
		   : part == KVR_ROWS_WEIGHTS ? rows->weight_heads
					      : rows->heads;
	shape[2] = part == KVR_ROWS_OUTPUTS ? model->value_dim : rows->capacity;
	shape[3] = part == KVR_ROWS_KEYS ? model->key_dim : model->value_dim;
	return part == KVR_ROWS_LSE ? 2 : part <= KVR_ROWS_VALUES ? 4 : 3;
}

static enum kvr_npy_type type_of(const struct kvr_cli_rows *rows, int part)
{
	if (part <= KVR_ROWS_VALUES)
		return kvr_source_npy_type(rows->model->type);
	return part == KVR_ROWS_POSITIONS ? KVR_NPY_I4 : KVR_NPY_F4;
}

/* Whether there is such a part, and a file of it. */
static bool has_file(const struct kvr_cli_rows *rows, int part)
{
	return rows->prefix && part >= KVR_ROWS_KEYS && part <= KVR_ROWS_LSE &&
	       rows->part_bytes[part];
}

static void lay_out(struct kvr_cli_rows *rows)
{
	const struct kvr_model_info *model = rows->model;
	const size_t element = kvr_source_type_bytes(model->type);
	const size_t count = (size_t)rows->heads * rows->capacity;
	size_t *bytes = rows->part_bytes;

	bytes[KVR_ROWS_QUERY] = rows->query_type ? (size_t)model->query_heads * model->key_dim *
							   kvr_source_type_bytes(rows->query_type)
						 : 0;
	bytes[KVR_ROWS_KEYS] = count * model->key_dim * element;
	bytes[KVR_ROWS_VALUES] = count * model->value_dim * element;
	bytes[KVR_ROWS_WEIGHTS] = (size_t)rows->weight_heads * rows->capacity * sizeof(float);
	bytes[KVR_ROWS_POSITIONS] = count * sizeof(int32_t);
	bytes[KVR_ROWS_LSE] = rows->folded ? model->query_heads * sizeof(float) : 0;
	bytes[KVR_ROWS_OUTPUTS] = bytes[KVR_ROWS_LSE] * model->value_dim;
	bytes[KVR_ROWS_COUNTS] = rows->heads * sizeof(struct kvr_rows);
	for (int i = 0; i < KVR_ROWS_PARTS; i++)
		rows->part_at[i + 1] = rows->part_at[i] + (bytes[i] + ALIGN - 1) / ALIGN * ALIGN;
}

static int path_of(const struct kvr_cli_rows *rows, int part, char *into, size_t into_bytes)
{
	return snprintf(into, into_bytes, "%s_%s.npy", rows->prefix, names[part]);
}

static int create_files(struct kvr_cli *cli, struct kvr_cli_rows *rows)
{
	struct kvr_npy_error why;
	char path[4096];

	for (int part = 0; part < KVR_ROWS_PARTS; part++) {
		uint64_t shape[DIMS_MAX];
		uint32_t dims;
		int error;

		if (!has_file(rows, part))
			continue;
		if (path_of(rows, part, path, sizeof(path)) >= (int)sizeof(path))
			return kvr_cli_usage(cli, "--out: the path is too long");
		dims = shape_of(rows, part, shape);
		error = kvr_npy_create(
			path, type_of(rows, part), shape, dims, &rows->files[part], &why);
		if (error)
			return kvr_source_refused(cli, error, &why);
	}
	return 0;
}

int kvr_cli_rows_open(struct kvr_cli *cli, struct kvr_cli_rows *rows, size_t region_bytes)
{
	KVR_ASSERT(rows->heads > 0 && rows->weight_heads % rows->heads == 0);
	lay_out(rows);
	if (rows->part_at[KVR_ROWS_PARTS] > region_bytes)
		return kvr_cli_refuse(cli, ENOBUFS,
			"give a larger --region, or room for fewer rows",
			"%zu bytes of rows for one layer do not fit the region of %zu",
			rows->part_at[KVR_ROWS_PARTS], region_bytes);
	rows->counts = calloc((size_t)rows->layer_count * rows->heads, sizeof(*rows->counts));
	if (!rows->counts)
		return kvr_cli_refuse(cli, ENOMEM, "", "no memory for row counts");
	return create_files(cli, rows);
}

void kvr_cli_rows_close(struct kvr_cli_rows *rows)
{
	for (int part = 0; part < KVR_ROWS_PARTS; part++)
		kvr_npy_close(&rows->files[part]);
	free(rows->counts);
	rows->counts = NULL;
}

void kvr_cli_rows_place(
	const struct kvr_cli_rows *rows, uint8_t *layer, struct kvr_recall_item *item)
{
	const size_t *at = rows->part_at;

	item->query = rows->query_type ? layer + at[KVR_ROWS_QUERY] : NULL;
	item->keys = layer + at[KVR_ROWS_KEYS];
	item->values = layer + at[KVR_ROWS_VALUES];
	item->weights = (float *)(void *)(layer + at[KVR_ROWS_WEIGHTS]);
	item->positions = (int32_t *)(void *)(layer + at[KVR_ROWS_POSITIONS]);
	item->rows = (struct kvr_rows *)(void *)(layer + at[KVR_ROWS_COUNTS]);
	if (rows->folded) {
		item->outputs = (float *)(void *)(layer + at[KVR_ROWS_OUTPUTS]);
		item->lse = (float *)(void *)(layer + at[KVR_ROWS_LSE]);
	}
}

/* One part of what has rows, head by head: those in use, then absent ones. */
static void take_rows(struct kvr_cli_rows *rows, const struct kvr_rows *counts, int part,
	const uint8_t *from, uint8_t *to)
{
	const uint32_t heads = part == KVR_ROWS_WEIGHTS ? rows->weight_heads : rows->heads;
	const size_t row_bytes = rows->part_bytes[part] / heads / rows->capacity;
	const float absent_weight = -INFINITY;
	const int32_t absent_position = -1;
	const void *absent = part == KVR_ROWS_WEIGHTS     ? (const void *)&absent_weight
			     : part == KVR_ROWS_POSITIONS ? &absent_position
							  : NULL;

	for (uint32_t head = 0; head < heads; head++) {
		const uint32_t used = counts[head / (heads / rows->heads)].row_count;
		const size_t at = (size_t)head * rows->capacity * row_bytes;

		KVR_ASSERT(used <= rows->capacity);
		memcpy(to + at, from + at, used * row_bytes);
		for (uint32_t row = used; absent && row < rows->capacity; row++)
			memcpy(to + at + row * row_bytes, absent, row_bytes);
	}
}

void kvr_cli_rows_take(struct kvr_cli_rows *rows, uint32_t index, const uint8_t *layer)
{
	struct kvr_rows *counts = rows->counts + (size_t)index * rows->heads;

	KVR_ASSERT(index < rows->layer_count);
	memcpy(counts, layer + rows->part_at[KVR_ROWS_COUNTS], rows->part_bytes[KVR_ROWS_COUNTS]);
	for (int part = 0; part < KVR_ROWS_PARTS; part++) {
		const uint8_t *from = layer + rows->part_at[part];
		uint8_t *to;

		if (!has_file(rows, part))
			continue;
		to = rows->files[part].data.data + index * rows->part_bytes[part];
		if (part <= KVR_ROWS_POSITIONS)
			take_rows(rows, counts, part, from, to);
		else
			memcpy(to, from, rows->part_bytes[part]);
	}
}

uint64_t kvr_cli_rows_staged(const struct kvr_cli_rows *rows)
{
	const size_t row_bytes = (size_t)(rows->model->key_dim + rows->model->value_dim) *
				 kvr_source_type_bytes(rows->model->type);
	uint64_t staged = rows->layer_count * (uint64_t)(rows->part_bytes[KVR_ROWS_OUTPUTS] +
							 rows->part_bytes[KVR_ROWS_LSE]);

	for (uint32_t i = 0; i < rows->layer_count * rows->heads; i++)
		staged += rows->counts[i].row_count * row_bytes;
	return staged;
}

int kvr_cli_rows_commit(struct kvr_cli *cli, struct kvr_cli_rows *rows)
{
	struct kvr_npy_error why;

	for (int part = 0; part < KVR_ROWS_PARTS; part++) {
		int error = has_file(rows, part) ? kvr_npy_commit(&rows->files[part], &why) : 0;

		if (error)
			return kvr_source_refused(cli, error, &why);
	}
	return 0;
}

static const char *axes_of(const struct kvr_cli_rows *rows, int part)
{
	const bool of_query = rows->heads == rows->model->query_heads;

	switch (part) {
	case KVR_ROWS_OUTPUTS: return "[layer][query head][dim]";
	case KVR_ROWS_LSE: return "[layer][query head]";
	case KVR_ROWS_WEIGHTS:
		return rows->weight_heads == rows->model->query_heads ? "[layer][query head][row]"
								      : "[layer][kv head][row]";
	case KVR_ROWS_POSITIONS:
		return of_query ? "[layer][query head][row]" : "[layer][kv head][row]";
	default: return of_query ? "[layer][query head][row][dim]" : "[layer][kv head][row][dim]";
	}
}

void kvr_cli_rows_report(const struct kvr_cli_rows *rows, struct kvr_report *report)
{
	if (!rows->prefix)
		return;
	kvr_report_table(report, "files");
	for (int part = 0; part < KVR_ROWS_PARTS; part++) {
		char path[4096], shape[4 * 24];
		uint64_t dims[DIMS_MAX];
		uint32_t count;
		size_t at = 0;

		if (!has_file(rows, part))
			continue;
		path_of(rows, part, path, sizeof(path));
		count = shape_of(rows, part, dims);
		for (uint32_t i = 0; i < count; i++)
			at += (size_t)snprintf(shape + at, sizeof(shape) - at, "%s%" PRIu64,
				i ? "x" : "", dims[i]);
		kvr_report_row(report);
		kvr_report_text(report, "file", path);
		kvr_report_text(report, "axes", axes_of(rows, part));
		kvr_report_text(report, "shape", shape);
		kvr_report_text(report, "type", kvr_npy_descr(type_of(rows, part)));
		kvr_report_end(report);
	}
	kvr_report_end(report);
}

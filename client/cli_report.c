/* SPDX-License-Identifier: Apache-2.0 */
/* cli_report.c: one result, as tables for people or as JSON.
 *
 * For people, cells are gathered until a block is complete, because columns are as wide as their
 * widest cell:
 *
 *   FIELDS ──group──► FIELDS (under a heading) ──end──► FIELDS
 *      └─────table──► TABLE ──row──► ROW ──end──► TABLE ──end──► FIELDS
 *
 * Invariants:
 *   R1  FIELDS: cells are pairs (label, value). ROW and TABLE: cells are whole rows, but for the
 *       one being filled; the first `columns` cells are the headings.
 *   R2  A block is printed and its cells are freed when the state goes back to FIELDS.
 *
 * Threads: a report belongs to one thread. */
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/assert.h"
#include "client/cli_json.h"
#include "client/cli_report.h"

#define COLUMNS_MAX 16

enum state { FIELDS, GROUP, TABLE, ROW };

struct cell {
	char *text;
	bool right; /* numbers stand right */
};

struct kvr_report {
	struct kvr_json *json; /* NULL: for people */
	enum state state;
	struct cell *cells;
	size_t cell_count, cell_max;
	size_t columns;     /* of the table; 0: its first row is not complete */
	size_t row_columns; /* cells of the row being filled */
	struct cell headings[COLUMNS_MAX];
	bool printed; /* a blank line goes before the next block */
	bool colour;
	bool failed;
};

/* What kvr_report_open returns when there is no memory: every call leaves it as it is. */
static struct kvr_report no_memory = {.failed = true};

struct kvr_report *kvr_report_open(bool json)
{
	struct kvr_report *report = calloc(1, sizeof(*report));

	if (!report)
		return &no_memory;
	report->json = json ? kvr_json_open() : NULL;
	report->failed = json && !report->json;
	report->colour = isatty(STDOUT_FILENO) && !getenv("NO_COLOR");
	return report;
}

static void push(struct kvr_report *report, const char *text, bool right)
{
	if (report->cell_count == report->cell_max) {
		size_t max = report->cell_max ? 2 * report->cell_max : 64;
		struct cell *cells = reallocarray(report->cells, max, sizeof(*cells));

		if (!cells) {
			report->failed = true;
			return;
		}
		report->cells = cells;
		report->cell_max = max;
	}
	report->cells[report->cell_count].text = strdup(text);
	report->cells[report->cell_count].right = right;
	if (report->cells[report->cell_count].text)
		report->cell_count++;
	else
		report->failed = true;
}

/* Columns of a text: bytes that begin a UTF-8 character. */
static size_t width_of(const char *text)
{
	size_t width = 0;

	for (; *text; text++)
		width += ((unsigned char)*text & 0xc0) != 0x80;
	return width;
}

/* Prints one cell; the last of a line has no padding behind it. Text comes from other processes:
 * what could steer a terminal is not passed on. */
static void print_cell(const struct cell *cell, size_t width, bool last)
{
	size_t used = width_of(cell->text);
	int padding = used < width ? (int)(width - used) : 0;

	if (cell->right)
		printf("%*s", padding, "");
	for (const char *c = cell->text; *c; c++)
		putchar(iscntrl((unsigned char)*c) ? '?' : *c);
	if (!cell->right && !last)
		printf("%*s", padding, "");
	if (!last)
		printf("  ");
}

/* Prints and frees the cells, `columns` a line. */
static void flush_cells(struct kvr_report *report, size_t columns, const char *indent)
{
	size_t widths[COLUMNS_MAX] = {0};
	bool table = report->state == TABLE;

	if (report->failed)
		return;
	for (size_t i = 0; table && i < columns; i++)
		widths[i] = width_of(report->headings[i].text);
	for (size_t i = 0; i < report->cell_count; i++) {
		size_t width = width_of(report->cells[i].text);

		if (width > widths[i % columns])
			widths[i % columns] = width;
	}
	if (table && report->colour)
		printf("\033[1m");
	for (size_t i = 0; table && i < columns; i++)
		print_cell(&report->headings[i], widths[i], i + 1 == columns);
	if (table)
		printf(report->colour ? "\033[0m\n" : "\n");
	for (size_t i = 0; i < report->cell_count; i++) {
		bool last = (i + 1) % columns == 0;

		if (i % columns == 0)
			fputs(indent, stdout);
		print_cell(&report->cells[i], widths[i % columns], last);
		if (last)
			putchar('\n');
	}
	report->printed |= report->cell_count > 0;
	for (size_t i = 0; i < report->cell_count; i++)
		free(report->cells[i].text);
	report->cell_count = 0; /* R2 */
}

/* The heading of a column, in capitals. */
static void push_heading(struct kvr_report *report, const char *name, bool right)
{
	struct cell *heading = &report->headings[report->row_columns];
	char label[80];

	kvr_cli_label(name, label, sizeof(label));
	for (char *c = label; *c; c++)
		*c = (char)toupper((unsigned char)*c);
	heading->text = strdup(label);
	heading->right = right;
	report->failed |= !heading->text;
}

static void push_field(struct kvr_report *report, const char *name, const char *value, bool right)
{
	char label[80];

	if (report->failed)
		return;
	KVR_ASSERT(report->state != TABLE);
	if (report->state != ROW) {
		kvr_cli_label(name, label, sizeof(label));
		push(report, label, false); /* R1 */
		push(report, value, false);
		return;
	}
	KVR_ASSERT(report->row_columns < COLUMNS_MAX);
	if (!report->columns)
		push_heading(report, name, right);
	push(report, value, right);
	report->row_columns++;
}

void kvr_report_number(struct kvr_report *report, const char *name, double value)
{
	char text[64];

	if (report->json) {
		kvr_json_number(report->json, name, value);
		return;
	}
	kvr_cli_format(name, value, text, sizeof(text));
	push_field(report, name, text, true);
}

void kvr_report_text(struct kvr_report *report, const char *name, const char *value)
{
	if (report->json)
		kvr_json_text(report->json, name, value);
	else
		push_field(report, name, value, false);
}

static void begin(struct kvr_report *report, const char *name, enum state state)
{
	KVR_ASSERT(report->state == FIELDS);
	if (!report->json) {
		flush_cells(report, 2, "");
		if (report->printed)
			putchar('\n');
	}
	if (!report->json && state == GROUP) {
		printf(report->colour ? "\033[1m%s\033[0m\n" : "%s\n", name);
		report->printed = true;
	}
	report->state = state;
}

void kvr_report_group(struct kvr_report *report, const char *name)
{
	if (report == &no_memory)
		return;
	begin(report, name, GROUP);
	kvr_json_object(report->json, name);
}

void kvr_report_table(struct kvr_report *report, const char *name)
{
	if (report == &no_memory)
		return;
	begin(report, name, TABLE);
	kvr_json_array(report->json, name);
}

void kvr_report_row(struct kvr_report *report)
{
	if (report == &no_memory)
		return;
	KVR_ASSERT(report->state == TABLE);
	report->state = ROW;
	report->row_columns = 0;
	kvr_json_object(report->json, NULL);
}

static void free_headings(struct kvr_report *report)
{
	for (size_t i = 0; i < COLUMNS_MAX; i++) {
		free(report->headings[i].text);
		report->headings[i].text = NULL;
	}
	report->columns = 0;
}

void kvr_report_end(struct kvr_report *report)
{
	if (report == &no_memory)
		return;
	KVR_ASSERT(report->state != FIELDS);
	kvr_json_end(report->json);
	if (report->state == ROW) {
		KVR_ASSERT(!report->columns || report->failed ||
			   report->columns == report->row_columns); /* R1 */
		report->columns = report->row_columns;
		report->state = TABLE;
		return;
	}
	if (report->state == TABLE && report->columns && !report->json)
		flush_cells(report, report->columns, "");
	else if (report->state == GROUP && !report->json)
		flush_cells(report, 2, "  ");
	free_headings(report);
	report->state = FIELDS;
}

int kvr_report_close(struct kvr_cli *cli, struct kvr_report *report, bool discard)
{
	bool failed = report->failed;
	int error = 0;

	if (report != &no_memory && !discard && !failed) {
		KVR_ASSERT(report->state == FIELDS);
		if (report->json)
			error = kvr_json_print(report->json, stdout);
		else
			flush_cells(report, 2, "");
	}
	if (report != &no_memory) {
		free_headings(report);
		for (size_t i = 0; i < report->cell_count; i++)
			free(report->cells[i].text);
		free(report->cells);
		kvr_json_close(report->json);
		free(report);
	}
	if (discard)
		return 0;
	if (failed)
		error = -ENOMEM;
	else if (!error && (fflush(stdout) || ferror(stdout)))
		error = -EIO;
	if (error)
		return kvr_cli_refuse(
			cli, -error, "", "cannot write the result to stdout: %s", strerror(-error));
	return 0;
}

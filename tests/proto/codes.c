/* SPDX-License-Identifier: Apache-2.0 */
/* codes.c: docs/PROTOCOL.md against the code.
 *
 * Goal: docs/PROTOCOL.md says what the code does: the codes, the kinds of request and reply, and the
 * limits in its tables are exactly those of base/code.h, proto/kvrecall.proto and base/limits.h.
 *
 * Method: the tables are read from the document, row by row, and compared. The test runs in the top
 * folder. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "proto/message_arena.h"

#define DOCUMENT     "docs/PROTOCOL.md"
#define LINE_BYTES   1024u
#define CELLS_MAX    8u
#define ROWS_MAX     64u
#define CELL_TEXT    256u
#define HEADER_LINES 2u

/* One table: the cells of its rows, trimmed, without backquotes. */
struct table {
	uint32_t row_count;
	char cells[ROWS_MAX][CELLS_MAX][CELL_TEXT];
};

static void clean(const char *from, const char *end, char *into)
{
	size_t used = 0;

	while (from < end && *from == ' ')
		from++;
	while (end > from && end[-1] == ' ')
		end--;
	for (; from < end && used + 1 < CELL_TEXT; from++)
		if (*from != '`')
			into[used++] = *from;
	into[used] = '\0';
}

static void read_row(const char *line, struct table *table)
{
	uint32_t cell = 0;

	assert_true(table->row_count < ROWS_MAX);
	for (const char *end; cell < CELLS_MAX && (end = strchr(line + 1, '|')) != NULL; cell++) {
		clean(line + 1, end, table->cells[table->row_count][cell]);
		line = end;
	}
	table->row_count++;
}

/* The first table after the heading `heading`. */
static struct table *read_table(const char *heading)
{
	static struct table table;
	char line[LINE_BYTES];
	bool found = false, inside = false;
	FILE *file = fopen(DOCUMENT, "r");

	if (file == NULL)
		fail_msg(DOCUMENT " is not here: run this in the top folder");
	memset(&table, 0, sizeof(table));
	while (fgets(line, sizeof(line), file) != NULL) {
		assert_true(strlen(line) + 1 < sizeof(line));
		if (!found)
			found = strncmp(line, heading, strlen(heading)) == 0;
		else if (line[0] == '|')
			inside = true;
		else if (inside)
			break;
		if (inside)
			read_row(line, &table);
	}
	fclose(file);
	if (table.row_count <= HEADER_LINES)
		fail_msg("no table under \"%s\"", heading);
	return &table;
}

static void codes_are_those_of_code_h(void **state)
{
	static const struct {
		const char *name, *error, *remedy;
		uint32_t number;
	} codes[] = {
#define ROW(name, number, error, remedy) {#name, #error, remedy, number},
		KVR_CODES(ROW)
#undef ROW
	};
	const uint32_t count = sizeof(codes) / sizeof(codes[0]);
	const struct table *table = read_table("## Codes");

	(void)state;
	assert_int_equal(table->row_count - HEADER_LINES, count);
	for (uint32_t i = 0; i < count; i++) {
		const char(*row)[CELL_TEXT] = table->cells[i + HEADER_LINES];
		char number[16];

		snprintf(number, sizeof(number), "%u", codes[i].number);
		assert_string_equal(row[0], number);
		assert_string_equal(row[1], codes[i].name);
		assert_string_equal(row[2], codes[i].error);
		assert_true(row[3][0] != '\0');
		assert_string_equal(row[4], codes[i].remedy);
	}
}

/* base/code.h: numbers rise without a gap, and its functions agree with its list. */
static void codes_have_numbers_errnos_and_remedies(void **state)
{
	uint32_t expected = 0;

	(void)state;
#define CHECK(name, number, error, remedy)                                \
	assert_int_equal(number, expected++);                             \
	assert_int_equal(KVR_CODE_##name, number);                        \
	assert_int_equal(kvr_code_errno(number), error);                  \
	assert_string_equal(kvr_code_name(number), #name);                \
	assert_string_equal(kvr_code_remedy(number), remedy);             \
	assert_true(number == 0 ? remedy[0] == '\0' : remedy[0] != '\0'); \
	assert_true(sizeof(remedy) <= KVR_TEXT_MAX);
	KVR_CODES(CHECK)
#undef CHECK
	assert_int_equal(kvr_code_errno(expected), EPROTO);
	assert_string_equal(kvr_code_name(expected), "UNKNOWN");
	assert_string_equal(kvr_code_remedy(expected), "");
}

/* The message that a body's field is made of. */
static const char *body_name(const ProtobufCMessageDescriptor *envelope, uint32_t number)
{
	const ProtobufCFieldDescriptor *field =
		protobuf_c_message_descriptor_get_field(envelope, number);

	if (field == NULL)
		return "";
	return ((const ProtobufCMessageDescriptor *)field->descriptor)->short_name;
}

static void kinds_are_those_of_the_messages(void **state)
{
	const struct table *table = read_table("## Kinds");

	(void)state;
	assert_int_equal(
		table->row_count - HEADER_LINES, KVR_REQUEST_SEGMENT_LIST - KVR_REQUEST_PING + 1);
	for (uint32_t i = HEADER_LINES; i < table->row_count; i++) {
		uint32_t kind = KVR_REQUEST_PING + i - HEADER_LINES;
		/* A fork is answered like an open. */
		uint32_t reply = kind == KVR_REQUEST_FORK ? KVR_REQUEST_OPEN : kind;

		assert_int_equal(strtoul(table->cells[i][0], NULL, 10), kind);
		assert_string_equal(
			table->cells[i][1], body_name(&kvrecall__request__descriptor, kind));
		assert_string_equal(
			table->cells[i][2], body_name(&kvrecall__reply__descriptor, reply));
	}
}

static void limits_are_those_of_limits_h(void **state)
{
	static const struct {
		const char *name;
		unsigned long long value;
	} limits[] = {
#define LIMIT(name) {#name, name}
		LIMIT(KVR_MESSAGE_BYTES_MAX),
		LIMIT(KVR_REPLY_BYTES_MAX),
		LIMIT(KVR_CREDITS_MAX),
		LIMIT(KVR_DEADLINE_MS_MAX),
		LIMIT(KVR_REGION_BYTES_MAX),
		LIMIT(KVR_SEQUENCE_TOKENS_MAX),
		LIMIT(KVR_TOKENS_INLINE_MAX),
		LIMIT(KVR_RECALL_ITEMS_MAX),
		LIMIT(KVR_APPEND_LAYERS_MAX),
		LIMIT(KVR_LIST_ENTRIES_MAX),
		LIMIT(KVR_NAME_MAX),
		LIMIT(KVR_TEXT_MAX),
		LIMIT(KVR_SECRET_BYTES),
		LIMIT(KVR_HASH_BYTES),
	};
	const struct table *table = read_table("## Limits");

	(void)state;
	assert_int_equal(table->row_count - HEADER_LINES, sizeof(limits) / sizeof(limits[0]));
	for (uint32_t i = 0; i < sizeof(limits) / sizeof(limits[0]); i++) {
		assert_string_equal(table->cells[i + HEADER_LINES][0], limits[i].name);
		assert_int_equal(
			strtoull(table->cells[i + HEADER_LINES][1], NULL, 10), limits[i].value);
	}
}

/* The row of a recall's table lies in memory as the document says. */
static void rows_lie_as_documented(void **state)
{
	static const struct {
		const char *name;
		size_t offset, bytes;
	} fields[] = {
#define FIELD(name) \
	{#name, offsetof(struct kvr_wire_rows, name), sizeof(((struct kvr_wire_rows *)0)->name)}
		FIELD(row_count), FIELD(cluster_count), FIELD(centroid_count), FIELD(token_missing),
		FIELD(mass)};
	const struct table *table = read_table("A row of the table");

	(void)state;
	assert_int_equal(table->row_count - HEADER_LINES, 5);
	for (uint32_t i = 0; i < 5; i++) {
		const char(*row)[CELL_TEXT] = table->cells[i + HEADER_LINES];

		assert_int_equal(strtoul(row[0], NULL, 10), fields[i].offset);
		assert_int_equal(strtoul(row[1], NULL, 10), fields[i].bytes);
		assert_memory_equal(row[2], fields[i].name, strlen(fields[i].name));
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(codes_are_those_of_code_h),
		cmocka_unit_test(codes_have_numbers_errnos_and_remedies),
		cmocka_unit_test(kinds_are_those_of_the_messages),
		cmocka_unit_test(limits_are_those_of_limits_h),
		cmocka_unit_test(rows_lie_as_documented),
	};

	return cmocka_run_group_tests_name("proto/codes", tests, NULL, NULL);
}

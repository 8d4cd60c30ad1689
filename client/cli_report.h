/* SPDX-License-Identifier: Apache-2.0 */
/* cli_report.h: the result of a command, said once, shown as tables for people or as JSON.
 *
 *   field field ...            top level: aligned "label  value" lines     {"key": value, ...
 *   group ... end              the same under a heading                     "key": {...},
 *   table, (row ... end)*, end a heading and aligned columns                "key": [{...}, ...]}
 *
 * Names carry units as kvr_cli_format says; JSON has the names and the bare numbers. All rows of a
 * table have the same fields in the same order. Errors are remembered until kvr_report_close.
 *
 * Threads: a report belongs to one thread. */
#ifndef KVR_CLIENT_CLI_REPORT_H
#define KVR_CLIENT_CLI_REPORT_H

#include "client/cli.h"

struct kvr_report;

/* Never NULL: a report that has no memory fails when it is closed. */
struct kvr_report *kvr_report_open(bool json);

void kvr_report_number(struct kvr_report *report, const char *name, double value);
void kvr_report_text(struct kvr_report *report, const char *name, const char *value);

void kvr_report_group(struct kvr_report *report, const char *name);
void kvr_report_table(struct kvr_report *report, const char *name);
void kvr_report_row(struct kvr_report *report);
void kvr_report_end(struct kvr_report *report); /* of a row, a table or a group */

/* Prints what was not printed yet and frees the report. Returns 0, or -errno after reporting through
 * `cli`. With `discard` nothing more is printed and nothing reported. */
int kvr_report_close(struct kvr_cli *cli, struct kvr_report *report, bool discard);

#endif

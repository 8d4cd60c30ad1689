/* SPDX-License-Identifier: Apache-2.0 */
/* report.h: the entries as a table for people and as a JSON file for plot.py.
 *
 * Threads: one. */
#ifndef QUALITY_REPORT_H
#define QUALITY_REPORT_H

#include <stdio.h>

#include "bench/quality/entry.h"

/* The methods' entries of one input. */
void quality_report_table(FILE *to, const struct quality_entry *entries, uint32_t count,
	const struct quality_input *input);

/* Errors of the variants, a line each; a column per input and budget. */
void quality_report_variants(FILE *to, const struct quality_entry *entries, uint32_t count);

/* A list of objects, one per entry. */
void quality_report_json(FILE *to, const struct quality_entry *entries, uint32_t count);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* cli_quality.c: what audited recalls were worth; see cli_quality.h.
 *
 * Threads: one. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/cli_quality.h"

#define HEADS   "heads_count" /* of every layer that has been audited */
#define NAME    128u
#define SUMMARY 64u

static void name_of(uint32_t model, uint32_t layer, const char *what, char into[NAME])
{
	snprintf(into, NAME, KVR_QUALITY_GROUP ".%u.%u.%s", model, layer, what);
}

/* Reads digits up to a dot, and moves behind it. */
static bool read_number(const char **at, uint32_t *ret_number)
{
	char *end = NULL;
	unsigned long number;

	if (**at < '0' || **at > '9')
		return false;
	number = strtoul(*at, &end, 10);
	if (*end != '.' || number > UINT32_MAX)
		return false;
	*at = end + 1;
	*ret_number = (uint32_t)number;
	return true;
}

/* Reads "edge:count" and moves behind it. */
static bool read_bin(const char **at, double *ret_edge, unsigned long *ret_count)
{
	char *end = NULL;
	const double edge = strtod(*at, &end);

	if (end == *at || *end != ':')
		return false;
	*at = end + 1;
	*ret_edge = edge;
	*ret_count = strtoul(*at, &end, 10);
	if (end == *at)
		return false;
	*at = end;
	return true;
}

/* Reads model and layer of a heads_count. While the daemon lists, a layer may come up that moves those behind
 * it: the same metric twice is one. */
static bool is_first(const struct kvr_cli_metrics *metrics, uint32_t index, uint32_t *ret_model,
	uint32_t *ret_layer)
{
	const struct kvr_metric *metric = &metrics->entries[index];
	const char *at = metric->name + sizeof(KVR_QUALITY_GROUP); /* behind the dot */
	char name[NAME];

	if (!kvr_cli_metrics_in(metric, KVR_QUALITY_GROUP) || !read_number(&at, ret_model) ||
		!read_number(&at, ret_layer))
		return false;
	name_of(*ret_model, *ret_layer, HEADS, name);
	return kvr_cli_metrics_find(metrics, name) == metric;
}

/* The worst bin that has heads, of "edge:count edge:count ...": the lowest of masses, the highest of errors. */
static void worst_of(const char *histogram, bool lowest, char into[SUMMARY])
{
	double below = 0, edge = 0;
	unsigned long count = 0;

	snprintf(into, SUMMARY, "-");
	for (const char *at = histogram; read_bin(&at, &edge, &count);) {
		if (count && lowest) {
			snprintf(into, SUMMARY, "up to %g %% (%lu)", 100 * edge, count);
			return;
		}
		if (count)
			snprintf(into, SUMMARY, "above %g %% (%lu)", 100 * below, count);
		below = edge;
	}
}

static void report_row(const struct kvr_cli_metrics *metrics, struct kvr_report *report,
	uint32_t model, uint32_t layer, bool full)
{
	static const char *const kinds[2] = {"mass", "error"};
	char name[NAME], what[NAME / 2], summary[SUMMARY];

	kvr_report_row(report);
	kvr_report_number(report, "model", model);
	kvr_report_number(report, "layer", layer);
	name_of(model, layer, HEADS, name);
	kvr_report_number(report, HEADS, kvr_cli_metrics_value(metrics, name));
	for (int i = 0; i < 2; i++) {
		snprintf(what, sizeof(what), "%s_mean", kinds[i]);
		name_of(model, layer, what, name);
		snprintf(what, sizeof(what), "%s_ratio", kinds[i]);
		kvr_report_number(report, what, kvr_cli_metrics_value(metrics, name));
	}
	for (int i = 0; i < 2; i++) {
		const struct kvr_metric *metric;

		snprintf(what, sizeof(what), "%s_histogram", kinds[i]);
		name_of(model, layer, what, name);
		metric = kvr_cli_metrics_find(metrics, name);
		worst_of(metric ? metric->text : "", i == 0, summary);
		kvr_report_text(report, i == 0 ? "lowest_mass" : "largest_error", summary);
		if (full)
			kvr_report_text(report, what, metric ? metric->text : "");
	}
	kvr_report_end(report);
}

uint32_t kvr_cli_quality_report(const struct kvr_cli_metrics *metrics, struct kvr_report *report,
	uint32_t rows_max, bool full)
{
	uint32_t found = 0, model, layer;

	for (uint32_t i = 0; i < metrics->count; i++) {
		if (!is_first(metrics, i, &model, &layer))
			continue;
		if (!found)
			kvr_report_table(report, KVR_QUALITY_GROUP);
		if (found++ < rows_max)
			report_row(metrics, report, model, layer, full);
	}
	if (found)
		kvr_report_end(report);
	return found > rows_max ? found - rows_max : 0;
}

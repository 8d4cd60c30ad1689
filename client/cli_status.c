/* SPDX-License-Identifier: Apache-2.0 */
/* cli_status.c: `kvrecall status`: all metrics of the daemon, by group, warnings first, quality last.
 *
 * A metric is "group.name". Knows no metric by name; the groups "warning" and "quality" alone are special.
 *
 * Threads: one. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "client/cli.h"
#include "client/cli_metrics.h"
#include "client/cli_quality.h"
#include "client/cli_report.h"

static bool same_group(const char *a, const char *b)
{
	size_t length = strcspn(a, ".");

	return length == strcspn(b, ".") && !memcmp(a, b, length);
}

/* Prints the group that the metric at `first` begins, and marks what it printed. */
static void print_group(struct kvr_report *report, const struct kvr_cli_metrics *metrics,
	uint32_t first, bool *printed)
{
	char group[sizeof(metrics->entries->name)];
	size_t length = strcspn(metrics->entries[first].name, ".");

	memcpy(group, metrics->entries[first].name, length);
	group[length] = 0;
	kvr_report_group(report, group);
	for (uint32_t i = first; i < metrics->count; i++) {
		const struct kvr_metric *metric = &metrics->entries[i];
		const char *name = metric->name[length] ? metric->name + length + 1 : metric->name;

		if (printed[i] || !same_group(metric->name, group))
			continue;
		printed[i] = true;
		if (metric->text[0])
			kvr_report_text(report, name, metric->text);
		else
			kvr_report_number(report, name, metric->value);
	}
	kvr_report_end(report);
}

/* Prints all groups but the quality, which has a table of its own. */
static void print_groups(
	struct kvr_report *report, const struct kvr_cli_metrics *metrics, bool *printed)
{
	for (int pass = 0; pass < 2; pass++)
		for (uint32_t i = 0; i < metrics->count; i++) {
			const struct kvr_metric *metric = &metrics->entries[i];

			if (!printed[i] && !kvr_cli_metrics_in(metric, KVR_QUALITY_GROUP) &&
				(pass || kvr_cli_metrics_in(metric, "warning")))
				print_group(report, metrics, i, printed);
		}
}

static int run(struct kvr_cli *cli, int argc, char **argv)
{
	struct kvr_cli_metrics metrics = {0};
	bool *printed = NULL;
	struct kvr_report *report;
	int error = kvr_cli_parse(cli, NULL, argc, argv);

	if (!error)
		error = kvr_cli_connect(cli);
	if (error)
		return error;
	error = kvr_cli_metrics_load(cli->client, &metrics);
	if (error && error != -ENOMEM) {
		kvr_cli_metrics_free(&metrics);
		return kvr_cli_refused(cli, error);
	}
	printed = error ? NULL : calloc(metrics.count + 1, sizeof(*printed));
	if (printed) {
		report = kvr_report_open(cli->json);
		print_groups(report, &metrics, printed);
		kvr_cli_quality_report(&metrics, report, UINT32_MAX, cli->json);
		error = kvr_report_close(cli, report, false);
	} else {
		error = kvr_cli_refuse(cli, ENOMEM, "", "no memory for metrics");
	}
	free(printed);
	kvr_cli_metrics_free(&metrics);
	return error;
}

const struct kvr_cli_command kvr_cli_status = {
	.name = "status",
	.summary = "what the daemon does and holds; warnings first",
	.synopsis = "[OPTIONS]",
	.text = "Metrics are grouped by the first word of their names. With --json a group is an\n"
		"object; sizes are bytes, times are nanoseconds. The quality of audited recalls is "
		"a\n"
		"table: captured mass and output error of each layer, their means, and the worst "
		"bins\n"
		"with the heads in them; with --json also the histograms.\n\n"
		"Examples:\n"
		"  kvrecall status\n"
		"  kvrecall status --json | jq .host.used_bytes\n",
	.run = run,
};

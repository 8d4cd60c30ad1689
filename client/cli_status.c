/* SPDX-License-Identifier: Apache-2.0 */
/* cli_status.c: `kvrecall status`: all metrics of the daemon, by group, warnings first.
 *
 * A metric is "group.name". Knows no metric by name; the group "warning" alone is special.
 *
 * Threads: one. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "client/cli.h"
#include "client/cli_report.h"

#define METRICS_MAX 4096u /* against a daemon that never stops listing */
#define PAGE        64u

struct metrics {
	struct kvr_metric *entries;
	uint32_t count;
};

static int load(struct kvr_cli *cli, struct metrics *metrics)
{
	metrics->entries = calloc(METRICS_MAX + PAGE, sizeof(*metrics->entries));
	if (!metrics->entries)
		return kvr_cli_refuse(cli, ENOMEM, "", "no memory for metrics");
	while (metrics->count < METRICS_MAX) {
		int got = kvr_stats(
			cli->client, metrics->count, metrics->entries + metrics->count, PAGE);

		if (got < 0)
			return kvr_cli_refused(cli, got);
		if (!got)
			break;
		metrics->count += (uint32_t)got;
	}
	return 0;
}

static bool same_group(const char *a, const char *b)
{
	size_t length = strcspn(a, ".");

	return length == strcspn(b, ".") && !memcmp(a, b, length);
}

/* Prints the group that the metric at `first` begins, and marks what it printed. */
static void print_group(
	struct kvr_report *report, const struct metrics *metrics, uint32_t first, bool *printed)
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

static int run(struct kvr_cli *cli, int argc, char **argv)
{
	bool printed[METRICS_MAX + PAGE] = {false};
	struct metrics metrics = {0};
	struct kvr_report *report;
	int error = kvr_cli_parse(cli, NULL, argc, argv);

	if (!error)
		error = kvr_cli_connect(cli);
	if (!error)
		error = load(cli, &metrics);
	if (error) {
		free(metrics.entries);
		return error;
	}
	report = kvr_report_open(cli->json);
	for (int pass = 0; pass < 2; pass++)
		for (uint32_t i = 0; i < metrics.count; i++)
			if (!printed[i] &&
				(pass || !strncmp(metrics.entries[i].name, "warning", 7)))
				print_group(report, &metrics, i, printed);
	free(metrics.entries);
	return kvr_report_close(cli, report, false);
}

const struct kvr_cli_command kvr_cli_status = {
	.name = "status",
	.summary = "what the daemon does and holds; warnings first",
	.synopsis = "[OPTIONS]",
	.text = "Metrics are grouped by the first word of their names. With --json a group is an\n"
		"object; sizes are bytes, times are nanoseconds.\n\n"
		"Examples:\n"
		"  kvrecall status\n"
		"  kvrecall status --json | jq .host.used_bytes\n",
	.run = run,
};

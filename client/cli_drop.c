/* SPDX-License-Identifier: Apache-2.0 */
/* cli_drop.c: `kvrecall drop`: removes a segment and all after it, or everything of a model.
 *
 * Threads: one. */
#include "client/cli.h"
#include "client/cli_report.h"
#include "client/cli_source.h"

static int run(struct kvr_cli *cli, int argc, char **argv)
{
	const char *segment = NULL, *model = NULL;
	bool yes = false;
	const struct kvr_cli_option options[] = {
		{"segment", 0, KVR_CLI_TEXT, false, &segment, "HEX",
			"this segment and all that follow it; the first\ndigits of the hash do"},
		{"model", 'm', KVR_CLI_TEXT, false, &model, "NAME",
			"everything of this model: its name, or its number"},
		{"yes", 'y', KVR_CLI_FLAG, false, &yes, NULL, "needed with --model: no way back"},
		{0},
	};
	struct kvr_dropped dropped = {0};
	struct kvr_model_info info = {0};
	struct kvr_report *report;
	uint8_t hash[32];
	int error = kvr_cli_parse(cli, options, argc, argv);

	if (error)
		return error;
	if (!segment == !model)
		return kvr_cli_usage(cli, "give either --segment or --model");
	if (model && !yes)
		return kvr_cli_usage(
			cli, "everything of model '%s' would be dropped: say --yes", model);
	error = kvr_cli_connect(cli);
	if (!error)
		error = segment ? kvr_cli_segment(cli, segment, hash)
				: kvr_source_find(cli, model, &info);
	if (error)
		return error;
	error = segment ? kvr_drop_segment(cli->client, hash, &dropped)
			: kvr_drop_model(cli->client, info.model, &dropped);
	if (error)
		return kvr_cli_refused(cli, error);
	report = kvr_report_open(cli->json);
	kvr_report_number(report, "dropped_segments", dropped.segment_count);
	kvr_report_number(report, "freed_bytes", (double)dropped.freed_bytes);
	kvr_report_number(report, "kept_segments", dropped.kept_count);
	return kvr_report_close(cli, report, false);
}

const struct kvr_cli_command kvr_cli_drop = {
	.name = "drop",
	.summary = "remove a segment and all after it, or everything of a model",
	.synopsis = "(--segment HEX | --model NAME --yes) [OPTIONS]",
	.text = "Segments that a sequence leases or that are pinned are kept, and counted as "
		"kept.\n\n"
		"Examples:\n"
		"  kvrecall drop --segment 3f9a21\n"
		"  kvrecall drop --model tiny --yes\n",
	.run = run,
};

/* SPDX-License-Identifier: Apache-2.0 */
/* cli_pin.c: `kvrecall pin` and `kvrecall unpin`: protects segments from eviction, or no longer.
 *
 * Threads: one. */
#include "client/cli.h"
#include "client/cli_report.h"

static int change(struct kvr_cli *cli, const char *segment, bool unpin)
{
	struct kvr_report *report;
	uint32_t count = 0;
	uint8_t hash[32];
	int error = kvr_cli_connect(cli);

	if (!error)
		error = kvr_cli_segment(cli, segment, hash);
	if (error)
		return error;
	error = kvr_pin_segment(cli->client, hash, unpin, &count);
	if (error)
		return kvr_cli_refused(cli, error);
	report = kvr_report_open(cli->json);
	kvr_report_number(report, unpin ? "unpinned_segments" : "pinned_segments", count);
	return kvr_report_close(cli, report, false);
}

static int run_pin(struct kvr_cli *cli, int argc, char **argv)
{
	const char *segment = NULL;
	bool unpin = false;
	const struct kvr_cli_option options[] = {
		{"segment", 0, KVR_CLI_TEXT, true, &segment, "HEX",
			"the segment; the first digits of its hash do"},
		{"unpin", 'u', KVR_CLI_FLAG, false, &unpin, NULL, "the other way round"},
		{0},
	};
	int error = kvr_cli_parse(cli, options, argc, argv);

	return error ? error : change(cli, segment, unpin);
}

static int run_unpin(struct kvr_cli *cli, int argc, char **argv)
{
	const char *segment = NULL;
	const struct kvr_cli_option options[] = {
		{"segment", 0, KVR_CLI_TEXT, true, &segment, "HEX",
			"the segment; the first digits of its hash do"},
		{0},
	};
	int error = kvr_cli_parse(cli, options, argc, argv);

	return error ? error : change(cli, segment, true);
}

const struct kvr_cli_command kvr_cli_pin = {
	.name = "pin",
	.summary = "protect a segment and all before it from eviction",
	.synopsis = "--segment HEX [--unpin] [OPTIONS]",
	.text = "Pins are kept over a restart, and it need not be in memory.\n\n"
		"Examples:\n"
		"  kvrecall pin --segment 3f9a21\n"
		"  kvrecall pin --segment 3f9a21 --unpin\n",
	.run = run_pin,
};

const struct kvr_cli_command kvr_cli_unpin = {
	.name = "unpin",
	.summary = "protect them no longer",
	.synopsis = "--segment HEX [OPTIONS]",
	.text = "Examples:\n"
		"  kvrecall unpin --segment 3f9a21\n",
	.run = run_unpin,
};

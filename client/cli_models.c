/* SPDX-License-Identifier: Apache-2.0 */
/* cli_models.c: `kvrecall models`: the models of the caller's tenant.
 *
 * Threads: one. */
#include <stdio.h>

#include "client/cli.h"
#include "client/cli_merged.h"
#include "client/cli_report.h"

#define PAGE 16u

static void print_model(struct kvr_report *report, const struct kvr_model_info *info, bool full)
{
	static const char *const types[] = {"?", "f32", "f16", "bf16"};
	char merged[KVR_MERGED_TEXT];
	char digest[65];

	kvr_cli_hash(info->digest, full ? 32 : 6, digest);
	kvr_report_row(report);
	kvr_report_number(report, "model", info->model);
	kvr_report_text(report, "name", info->name);
	kvr_report_text(report, "dtype", types[info->type <= KVR_BF16 ? info->type : 0]);
	kvr_report_number(report, "layers", info->layers);
	kvr_report_number(report, "query_heads", info->query_heads);
	kvr_report_number(report, "kv_heads", info->kv_heads);
	kvr_report_number(report, "key_dim", info->key_dim);
	kvr_report_number(report, "value_dim", info->value_dim);
	if (full) {
		kvr_report_number(report, "segment_tokens", info->segment_tokens);
		kvr_report_number(report, "cluster_tokens", info->cluster_tokens);
		kvr_report_number(report, "sink_tokens", info->sink_tokens);
		kvr_report_number(report, "rank", info->rank);
	}
	kvr_cli_merged_text(info->merged, merged);
	kvr_report_text(report, "merged", merged);
	kvr_report_number(report, "segments", info->segment_count);
	kvr_report_number(report, "stored_bytes", (double)info->stored_bytes);
	kvr_report_text(report, "digest", digest);
	kvr_report_end(report);
}

static int run(struct kvr_cli *cli, int argc, char **argv)
{
	bool full = false;
	const struct kvr_cli_option options[] = {
		{"long", 'l', KVR_CLI_FLAG, false, &full, NULL,
			"all columns, digests in full; as --json has them"},
		{0},
	};
	struct kvr_model_info page[PAGE];
	struct kvr_report *report;
	uint32_t first = 0;
	int got = kvr_cli_parse(cli, options, argc, argv), error;

	if (!got)
		got = kvr_cli_connect(cli);
	if (got)
		return got;
	report = kvr_report_open(cli->json);
	kvr_report_table(report, "models");
	for (;;) {
		got = kvr_model_list(cli->client, first, page, PAGE);
		if (got <= 0)
			break;
		for (int i = 0; i < got; i++)
			print_model(report, &page[i], full || cli->json);
		first += (uint32_t)got;
	}
	kvr_report_end(report);
	if (got < 0)
		kvr_cli_refused(cli, got);
	else if (!first && !cli->json)
		fprintf(stderr, "no models\n");
	error = kvr_report_close(cli, report, got < 0);
	return got < 0 ? got : error;
}

const struct kvr_cli_command kvr_cli_models = {
	.name = "models",
	.summary = "the models that are registered or stored, and what is stored for each",
	.synopsis = "[OPTIONS]",
	.text = "The number in the first column names a model wherever --model is asked for,\n"
		"until the daemon ends: it gives numbers anew. The merged sets that a model keeps "
		"are named by the tokens that one row stands for.\n\n"
		"Examples:\n"
		"  kvrecall models\n"
		"  kvrecall models -l\n",
	.run = run,
};

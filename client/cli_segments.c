/* SPDX-License-Identifier: Apache-2.0 */
/* cli_segments.c: `kvrecall segments`, and finding a segment by the first digits of its hash.
 *
 * Threads: one. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/cli.h"
#include "client/cli_report.h"
#include "client/cli_source.h"

#define PAGE        8192u /* each page is looked for from the first segment on: so, few pages */
#define SHORT_BYTES 6u    /* of a hash in tables: 48 bits tell 65,536 segments apart */
#define PREFIX_MIN  4     /* digits of a hash that is typed */

static void print_segment(struct kvr_report *report, const struct kvr_segment_info *info, bool full)
{
	static const uint8_t none[32];
	char hash[65], parent[65];
	size_t shown = full ? 32 : SHORT_BYTES;
	bool first = !memcmp(info->parent, none, sizeof(none));

	kvr_cli_hash(info->hash, shown, hash);
	kvr_cli_hash(info->parent, shown, parent);
	kvr_report_row(report);
	kvr_report_text(report, "hash", hash);
	kvr_report_text(report, "parent", first ? "-" : parent);
	kvr_report_number(report, "model", info->model);
	kvr_report_number(report, "first_token", info->token_first);
	kvr_report_number(report, "tokens", info->token_count);
	kvr_report_number(report, "stored_bytes", (double)info->stored_bytes);
	kvr_report_text(report, "where",
		!info->durable         ? "memory"
		: info->resident_bytes ? "disk, memory"
				       : "disk");
	kvr_report_number(report, "resident_bytes", (double)info->resident_bytes);
	kvr_report_number(report, "leases", info->leases);
	kvr_report_number(report, "pins", info->pins);
	kvr_report_text(report, "state", info->quarantined ? "quarantined" : "good");
	kvr_report_end(report);
}

/* Memory for a page; to be freed. NULL: reported. */
static struct kvr_segment_info *make_page(struct kvr_cli *cli)
{
	struct kvr_segment_info *page = calloc(PAGE, sizeof(*page));

	if (!page)
		kvr_cli_refuse(cli, ENOMEM, "", "no memory for a list");
	return page;
}

static int run(struct kvr_cli *cli, int argc, char **argv)
{
	const char *model = NULL;
	bool full = false;
	const struct kvr_cli_option options[] = {
		{"model", 'm', KVR_CLI_TEXT, false, &model, "NAME",
			"of this model only: its name, or its number"},
		{"long", 'l', KVR_CLI_FLAG, false, &full, NULL,
			"hashes in full; as --json has them"},
		{0},
	};
	struct kvr_segment_info *page;
	struct kvr_model_info info = {0};
	struct kvr_report *report;
	uint32_t first = 0;
	int got = kvr_cli_parse(cli, options, argc, argv), error;

	if (!got)
		got = kvr_cli_connect(cli);
	if (!got && model)
		got = kvr_source_find(cli, model, &info);
	if (got)
		return got;
	page = make_page(cli);
	if (!page)
		return -ENOMEM;
	report = kvr_report_open(cli->json);
	kvr_report_table(report, "segments");
	for (;;) {
		got = kvr_segment_list(cli->client, info.model, first, page, PAGE);
		if (got <= 0)
			break;
		for (int i = 0; i < got; i++)
			print_segment(report, &page[i], full || cli->json);
		first += (uint32_t)got;
	}
	kvr_report_end(report);
	free(page);
	if (got < 0)
		kvr_cli_refused(cli, got);
	else if (!first && !cli->json)
		fprintf(stderr, "no segments\n");
	error = kvr_report_close(cli, report, got < 0);
	return got < 0 ? got : error;
}

static bool begins_with(const uint8_t hash[32], const uint8_t wanted[32], int digits)
{
	size_t whole = (size_t)digits / 2;

	return !memcmp(hash, wanted, whole) &&
	       (digits % 2 == 0 || hash[whole] >> 4 == wanted[whole] >> 4);
}

/* Counts the segments that begin so; the last of them goes to ret_hash. Returns 0 or what was reported. */
static int find(struct kvr_cli *cli, const uint8_t wanted[32], int digits, uint8_t ret_hash[32],
	uint32_t *ret_found)
{
	struct kvr_segment_info *page = make_page(cli);
	uint32_t first = 0;
	int got = page ? 1 : -ENOMEM;

	*ret_found = 0;
	while (got > 0) {
		got = kvr_segment_list(cli->client, 0, first, page, PAGE);
		if (got < 0)
			kvr_cli_refused(cli, got);
		for (int i = 0; i < got; i++)
			if (begins_with(page[i].hash, wanted, digits)) {
				memcpy(ret_hash, page[i].hash, sizeof(page[i].hash));
				++*ret_found;
			}
		first += got > 0 ? (uint32_t)got : 0;
	}
	free(page);
	return got;
}

int kvr_cli_segment(struct kvr_cli *cli, const char *hex, uint8_t ret_hash[32])
{
	uint8_t wanted[32], hash[32] = {0};
	uint32_t found = 0;
	int digits = kvr_cli_hex(hex, wanted), error;

	if (digits < PREFIX_MIN)
		return kvr_cli_usage(
			cli, "--segment takes 4 to 64 hexadecimal digits, not '%s'", hex);
	if (digits == 64) {
		memcpy(ret_hash, wanted, sizeof(wanted));
		return 0;
	}
	error = find(cli, wanted, digits, hash, &found);
	if (error)
		return error;
	if (found != 1)
		return kvr_cli_refuse(cli, found ? EINVAL : ENOENT,
			found ? "give more digits" : "kvrecall segments lists those there are",
			"%u segments begin with %s", found, hex);
	memcpy(ret_hash, hash, sizeof(hash));
	return 0;
}

const struct kvr_cli_command kvr_cli_segments = {
	.name = "segments",
	.summary = "the stored segments, and who holds them",
	.synopsis = "[--model NAME] [OPTIONS]",
	.text = "A segment is named by its chain hash; the first digits do wherever --segment is\n"
		"asked for, as long as they are those of one segment only. Parents stand before "
		"what\n"
		"follows them. RESIDENT says how much of it is in memory; what is in memory alone "
		"is\n"
		"not durable yet. What is quarantined could not be read: it is not matched any "
		"more,\n"
		"and is the first to be evicted.\n\n"
		"Examples:\n"
		"  kvrecall segments --model tiny\n"
		"  kvrecall segments -l\n"
		"  kvrecall segments --json | jq '[.segments[].stored_bytes] | add'\n",
	.run = run,
};

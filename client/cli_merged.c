/* SPDX-License-Identifier: Apache-2.0 */
/* cli_merged.c: merged sets on the command line; see cli_merged.h.
 *
 * Threads: one. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "client/cli_merged.h"

#define SETS 4u
#define PAGE 8192u /* each page is looked for from the first segment on: so, few pages */

static const struct {
	uint32_t divisor, bit;
} sets[SETS] = {{2, KVR_MERGED_2}, {4, KVR_MERGED_4}, {5, KVR_MERGED_5}, {8, KVR_MERGED_8}};

/* The bit of a set; 0: there is none of that name. */
static uint32_t bit_of(uint32_t divisor)
{
	for (uint32_t i = 0; i < SETS; i++)
		if (sets[i].divisor == divisor)
			return sets[i].bit;
	return 0;
}

int kvr_cli_merged_read(const char *text, uint32_t *ret_sets)
{
	uint32_t found = 0;

	if (!strcmp(text, "all")) {
		*ret_sets = KVR_MERGED_2 | KVR_MERGED_4 | KVR_MERGED_5 | KVR_MERGED_8;
		return 0;
	}
	for (;; text += 2) {
		uint32_t bit =
			text[0] >= '0' && text[0] <= '9' ? bit_of((uint32_t)text[0] - '0') : 0;

		if (!bit || found & bit || (text[1] && text[1] != ','))
			return -EINVAL;
		found |= bit;
		if (!text[1])
			break;
	}
	*ret_sets = found;
	return 0;
}

void kvr_cli_merged_text(uint32_t kept, char into[KVR_MERGED_TEXT])
{
	size_t at = 0;

	for (uint32_t i = 0; i < SETS; i++)
		if (kept & sets[i].bit)
			at += (size_t)snprintf(into + at, KVR_MERGED_TEXT - at, "%s%u",
				at ? "," : "", sets[i].divisor);
	KVR_ASSERT(at < KVR_MERGED_TEXT);
	if (!at)
		snprintf(into, KVR_MERGED_TEXT, "-");
}

int kvr_cli_merged_choose(struct kvr_cli *cli, const struct kvr_model_info *model, uint32_t wanted,
	uint32_t *ret_divisor)
{
	static const char remedy[] = "put says with --merged which sets a new model keeps, and "
				     "kvrecall models shows it";
	char kept[KVR_MERGED_TEXT];

	kvr_cli_merged_text(model->merged, kept);
	if (!model->merged)
		return kvr_cli_refuse(
			cli, EINVAL, remedy, "model '%s' keeps no merged sets", model->name);
	if (wanted && !(model->merged & bit_of(wanted)))
		return kvr_cli_refuse(cli, EINVAL, remedy,
			"model '%s' keeps the merged sets %s: not that of %u tokens per row",
			model->name, kept, wanted);
	for (uint32_t i = 0; i < SETS && !wanted; i++)
		if (model->merged == sets[i].bit)
			wanted = sets[i].divisor;
	if (!wanted)
		return kvr_cli_usage(cli, "say which set: --tokens-per-row takes one of %s", kept);
	*ret_divisor = wanted;
	return 0;
}

/* Marks at which tokens in front of `end` a segment begins, in whatever sequence. */
static int mark_segments(
	struct kvr_cli *cli, const struct kvr_model_info *model, bool *begins, uint32_t end)
{
	struct kvr_segment_info *page = calloc(PAGE, sizeof(*page));
	uint32_t first = 0;
	int got;

	if (!page)
		return kvr_cli_refuse(cli, ENOMEM, "", "no memory for a list");
	for (;;) {
		got = kvr_segment_list(cli->client, model->model, first, page, PAGE);
		if (got <= 0)
			break;
		for (int i = 0; i < got; i++)
			if (page[i].token_first < end)
				begins[page[i].token_first] = true;
		first += (uint32_t)got;
	}
	free(page);
	return got < 0 ? kvr_cli_refused(cli, got) : 0;
}

int kvr_cli_merged_rows(struct kvr_cli *cli, const struct kvr_model_info *model, uint32_t first,
	uint32_t end, uint32_t divisor, uint32_t *ret_rows)
{
	uint32_t rows = (end - first) / divisor;
	bool *begins;
	int error;

	KVR_ASSERT(first <= end);
	KVR_ASSERT(divisor > 0);
	begins = calloc((size_t)end + 1, sizeof(*begins));
	if (!begins)
		return kvr_cli_refuse(cli, ENOMEM, "", "no memory for %u tokens", end);
	error = mark_segments(cli, model, begins, end);
	for (uint32_t i = first; i < end; i++)
		rows += begins[i];
	free(begins);
	if (error)
		return error;
	*ret_rows = rows;
	return 0;
}

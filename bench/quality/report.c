/* SPDX-License-Identifier: Apache-2.0 */
/* report.c: see report.h. */
#include "bench/quality/report.h"

#include <string.h>

void quality_report_table(FILE *to, const struct quality_entry *entries, uint32_t count,
	const struct quality_input *input)
{
	fprintf(to, "\n%s: %u tokens, of which the last %u ask; %u lanes of %u query heads\n\n",
		input->name, input->context_tokens, input->tail.token_count,
		kvr_geometry_lanes(&input->prompt.geometry),
		kvr_geometry_group(&input->prompt.geometry));
	fprintf(to, "  %-38s %6s %7s %7s %7s %10s %10s %9s %7s %7s\n", "", "budget", "mass",
		"error", "p95", "staged", "read", "KL", "top-1", "NLL");
	for (uint32_t i = 0; i < count; i++) {
		const struct quality_entry *entry = &entries[i];

		if (entry->input != input || entry->variant)
			continue;
		fprintf(to, "  %-38s %4.1f %% %7.4f %7.4f %7.4f %6.1f KiB %6.1f KiB",
			entry->method->says, entry->percent, entry->mass, entry->error,
			entry->error_p95, entry->staged_bytes / 1024, entry->read_bytes / 1024);
		if (entry->has_steps)
			fprintf(to, " %9.6f %7.4f %7.4f", entry->kl, entry->top1, entry->nll);
		fputc('\n', to);
	}
}

/* The next tokens of one variant: means over the inputs that have them. */
static void print_steps(
	FILE *to, const struct quality_entry *entries, uint32_t count, const char *variant)
{
	double kl = 0.0, top1 = 0.0;
	uint32_t inputs = 0;

	for (uint32_t i = 0; i < count; i++) {
		const struct quality_entry *entry = &entries[i];

		if (!entry->variant || strcmp(entry->variant, variant) != 0 || !entry->has_steps)
			continue;
		kl += entry->kl;
		top1 += entry->top1;
		inputs++;
	}
	if (inputs > 0)
		fprintf(to, "  %.6f %.4f", kl / inputs, top1 / inputs);
}

void quality_report_variants(FILE *to, const struct quality_entry *entries, uint32_t count)
{
	const char *last = NULL;

	fputs("\nMIXED, second order, sealed and chosen otherwise: bytes of the summaries over "
	      "those of "
	      "keys\nand values; error, per input and budget; KL and top-1 with the last budget, "
	      "where "
	      "they are measured\n\n",
		to);
	fprintf(to, "  %-38s summary", "");
	for (uint32_t i = 0; i < count; i++) {
		if (!entries[i].variant || (last && strcmp(last, entries[i].variant) != 0))
			continue;
		last = entries[i].variant;
		fprintf(to, " %10.10s %2g %%", entries[i].input->name, entries[i].percent);
	}
	last = NULL;
	for (uint32_t i = 0; i < count; i++) {
		if (!entries[i].variant)
			continue;
		if (!last || strcmp(last, entries[i].variant) != 0) {
			if (last)
				print_steps(to, entries, count, last);
			fprintf(to, "\n  %-38s %5.1f %%", entries[i].variant,
				100 * entries[i].summary_part);
		}
		last = entries[i].variant;
		fprintf(to, "%16.4f", entries[i].error);
	}
	if (last)
		print_steps(to, entries, count, last);
	fputc('\n', to);
}

void quality_report_json(FILE *to, const struct quality_entry *entries, uint32_t count)
{
	fputs("[\n", to);
	for (uint32_t i = 0; i < count; i++) {
		const struct quality_entry *entry = &entries[i];

		/* Names are our own, or a file's: what JSON would have to escape is left out of it. */
		fputs("{\"input\":\"", to);
		for (const char *at = entry->input->name; *at; at++)
			if (*at >= ' ' && *at != '"' && *at != '\\')
				fputc(*at, to);
		fprintf(to,
			"\",\"method\":\"%s\",\"says\":\"%s\",\"variant\":\"%s\",\"fixed\":%s,"
			"\"percent\":%g,\"budget_tokens\":%u,\"mass\":%.6f,\"error\":%.6f,"
			"\"error_p95\":%.6f,\"staged_bytes\":%.0f,\"read_bytes\":%.0f",
			entry->method->name, entry->method->says,
			entry->variant ? entry->variant : "",
			entry->method->fixed_percent > 0 ? "true" : "false", entry->percent,
			entry->budget_tokens, entry->mass, entry->error, entry->error_p95,
			entry->staged_bytes, entry->read_bytes);
		if (entry->has_steps)
			fprintf(to, ",\"kl\":%.8f,\"top1\":%.5f,\"nll\":%.5f", entry->kl,
				entry->top1, entry->nll);
		fputs(i + 1 < count ? "},\n" : "}\n", to);
	}
	fputs("]\n", to);
}

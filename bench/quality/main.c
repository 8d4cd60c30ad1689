/* SPDX-License-Identifier: Apache-2.0 */
/* main.c: the quality bench: what each method loses, on real keys, values and queries.
 *
 *   inputs ─► stores ─► attention of every method ─► next tokens with it ─► sweeps ─► tables, JSON, figures
 *
 * What is measured, and how, stands in bench/README.md. */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/clock.h"
#include "bench/quality/dump.h"
#include "bench/quality/figure.h"
#include "bench/quality/measure.h"
#include "bench/quality/memory.h"
#include "bench/quality/plan.h"
#include "bench/quality/report.h"
#include "bench/tiny.h"

#define INPUTS_MAX  8u
#define TAIL_TOKENS 512u
#define STEPS_LONG  10.0 /* the one budget of long contexts whose next tokens are measured */
/* One query in so many is asked about attention in long contexts, and in sweeps: neighbours are much
 * alike. In short contexts all are. */
#define STRIDE_LONG    2u
#define STRIDE_VARIANT 8u

struct bench {
	const char *folder; /* NULL: no files are written */
	bool quick;
	struct quality_model *model; /* NULL: only dumps */
	uint32_t input_count;
	const char *names[INPUTS_MAX]; /* a text's, or a dump's path */
	uint32_t contexts[INPUTS_MAX]; /* tokens of a text; 0: a dump */
	struct quality_input inputs[INPUTS_MAX];
	struct quality_store stores[INPUTS_MAX];
	struct quality_store variants[INPUTS_MAX]; /* of the variant that is measured */
	const struct quality_variant *variant;
	uint32_t count;
	struct quality_entry *entries;
	uint64_t said_ns; /* when something was said last */
};

/* ---- making ------------------------------------------------------------------------------------ */

static void open_input(struct quality_worker *worker, void *context, uint32_t i)
{
	struct bench *bench = context;
	struct quality_input *input = &bench->inputs[i];

	if (bench->contexts[i] == 0)
		quality_dump_read(bench->names[i], input);
	else
		quality_model_input(bench->model, bench->names[i], bench->contexts[i],
			bench->quick ? TAIL_TOKENS / 8 : TAIL_TOKENS, worker, input);
	input->counted = bench->contexts[i] <= 4096;
	quality_store_open(&bench->stores[i], &input->prompt, worker);
}

static void open_variant(struct quality_worker *worker, void *context, uint32_t i)
{
	struct bench *bench = context;

	quality_store_open_variant(&bench->variants[i], &bench->inputs[i].prompt,
		&bench->variant->sealing, bench->variant->exact, worker);
}

/* ---- measuring --------------------------------------------------------------------------------- */

/* Says what is done, and how long it took. */
static void say(struct bench *bench, const char *what)
{
	const uint64_t now = kvr_clock_ns();

	fprintf(stderr, "quality: %s: %.0f s\n", what, (double)(now - bench->said_ns) / 1e9);
	bench->said_ns = now;
}

/* Whose next tokens are measured: all of the short contexts, some of the long ones. */
static bool has_steps(const struct bench *bench, const struct quality_entry *entry)
{
	const char *name = entry->method->name;

	if (!entry->input->reference)
		return false;
	if (!bench->quick && entry->input->counted)
		return true;
	return entry->percent == STEPS_LONG &&
	       (!strcmp(name, "clusterkv") || !strcmp(name, "clusters") || !strcmp(name, "mixed2"));
}

static void measure_methods(struct bench *bench)
{
	struct quality_entry **steps;
	uint32_t step_count = 0;

	for (uint32_t i = 0; i < bench->input_count; i++) {
		struct quality_entry *entries = bench->entries + bench->count;
		const uint32_t count =
			quality_plan_methods(&bench->inputs[i], &bench->stores[i], entries);

		quality_measure_attention(entries, count,
			bench->quick               ? STRIDE_VARIANT
			: bench->inputs[i].counted ? 1
						   : STRIDE_LONG);
		bench->count += count;
	}
	say(bench, "attention");
	steps = quality_need(bench->count, sizeof(*steps));
	for (uint32_t e = 0; e < bench->count; e++)
		if (has_steps(bench, &bench->entries[e]))
			steps[step_count++] = &bench->entries[e];
	if (step_count > 0)
		quality_measure_steps(steps, step_count, bench->model);
	free(steps);
	say(bench, "next tokens");
}

/* A variant on all inputs: attention, and next tokens behind the short contexts with the last budget. */
static void measure_variant(struct bench *bench)
{
	struct quality_entry *steps[INPUTS_MAX];
	uint32_t step_count = 0;

	quality_work(bench->input_count, open_variant, bench);
	for (uint32_t i = 0; i < bench->input_count; i++) {
		struct quality_entry *entries = bench->entries + bench->count;

		quality_plan_variant(
			&bench->inputs[i], &bench->variants[i], bench->variant, entries);
		quality_measure_attention(entries, QUALITY_SWEPT, STRIDE_VARIANT);
		if (bench->inputs[i].counted && bench->inputs[i].reference)
			steps[step_count++] = &entries[QUALITY_SWEPT - 1];
		bench->count += QUALITY_SWEPT;
	}
	if (step_count > 0)
		quality_measure_steps(steps, step_count, bench->model);
	for (uint32_t i = 0; i < bench->input_count; i++)
		quality_store_close(&bench->variants[i]);
}

/* ---- saying ------------------------------------------------------------------------------------ */

static void print_tables(const struct bench *bench, FILE *to)
{
	for (uint32_t i = 0; i < bench->input_count; i++)
		quality_report_table(to, bench->entries, bench->count, &bench->inputs[i]);
	quality_report_variants(to, bench->entries, bench->count);
}

static FILE *open_file(const struct bench *bench, const char *name)
{
	char path[512];
	FILE *file;

	snprintf(path, sizeof(path), "%s/%s", bench->folder, name);
	file = fopen(path, "w");
	if (!file)
		quality_fail("%s: %s", path, strerror(errno));
	return file;
}

static void close_file(FILE *file)
{
	const int broken = ferror(file);

	if (fclose(file) || broken)
		quality_fail("a file of results cannot be written: %s", strerror(errno));
}

static void write_files(const struct bench *bench)
{
	FILE *file;

	if (mkdir(bench->folder, 0777) && errno != EEXIST)
		quality_fail("%s: %s", bench->folder, strerror(errno));
	file = open_file(bench, "table.txt");
	print_tables(bench, file);
	close_file(file);
	file = open_file(bench, "quality.json");
	quality_report_json(file, bench->entries, bench->count);
	close_file(file);
}

/* ---- what is asked for ------------------------------------------------------------------------- */

static void usage(void)
{
	fputs("usage: quality [--out FOLDER] [--quick] [--dump PATH]...\n"
	      "  --out FOLDER  table.txt and quality.json go there\n"
	      "  --quick       one short text, few queries\n"
	      "  --dump PATH   PATH_K.npy, PATH_V.npy and PATH_Q.npy instead of the project's "
	      "model\n",
		stderr);
	exit(2);
}

static void add_input(struct bench *bench, const char *name, uint32_t context_tokens)
{
	if (bench->input_count == INPUTS_MAX)
		quality_fail("more than %u inputs", INPUTS_MAX);
	bench->names[bench->input_count] = name;
	bench->contexts[bench->input_count++] = context_tokens;
}

static void read_options(struct bench *bench, int argc, char **argv)
{
	static const struct option options[] = {{"out", required_argument, NULL, 'o'},
		{"quick", no_argument, NULL, 'q'}, {"dump", required_argument, NULL, 'd'},
		{NULL, 0, NULL, 0}};
	int option;

	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (option == 'o')
			bench->folder = optarg;
		else if (option == 'q')
			bench->quick = true;
		else if (option == 'd')
			add_input(bench, optarg, 0);
		else
			usage();
	}
	if (optind < argc)
		usage();
	if (bench->input_count > 0)
		return;
	bench->model = quality_model_open();
	if (bench->quick) {
		add_input(bench, "prose", 1024);
		return;
	}
	add_input(bench, "prose", 4096);
	add_input(bench, "code", 4096);
	add_input(bench, "prose", 8192);
	add_input(bench, "code", 8192);
}

int main(int argc, char **argv)
{
	struct bench bench = {.quick = BENCH_SIZE(false, true), .said_ns = kvr_clock_ns()};

	read_options(&bench, argc, argv);
	bench.entries = quality_need(
		bench.input_count * (QUALITY_ENTRIES_MAX + QUALITY_VARIANTS_MAX * QUALITY_SWEPT),
		sizeof(*bench.entries));
	quality_work(bench.input_count, open_input, &bench);
	say(&bench, "inputs");
	measure_methods(&bench);
	for (uint32_t v = 0; v < quality_variant_count; v++) {
		bench.variant = &quality_variants[v];
		measure_variant(&bench);
	}
	say(&bench, "sweeps");
	print_tables(&bench, stderr);
	if (bench.folder)
		write_files(&bench);
	quality_figures_print(bench.entries, bench.count);
	for (uint32_t i = 0; i < bench.input_count; i++) {
		quality_store_close(&bench.stores[i]);
		quality_input_close(&bench.inputs[i]);
	}
	if (bench.model)
		quality_model_close(bench.model);
	free(bench.entries);
	return 0;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* cli_recall.c: `kvrecall recall`: recalls rows for queries from a .npy file, or merged rows for none.
 *
 * Layers are recalled in batches, as many in one request as the region holds. Where rows lie and which files
 * they go to is cli_rows.h's matter.
 *
 * Threads: one. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/clock.h"
#include "base/limits.h"
#include "client/cli.h"
#include "client/cli_merged.h"
#include "client/cli_report.h"
#include "client/cli_rows.h"
#include "client/cli_source.h"

#define NEWEST 64u /* tokens that are never merged yet */

struct recall {
	struct kvr_source_options options;
	const char *queries_path, *rank_name, *form_name, *layer_text, *out;
	uint32_t budget, capacity, centroid_rows, tokens_per_row, first;
	int32_t query_index;
	float mass;
	bool sinks, tail;

	struct kvr_source source; /* the tokens */
	struct kvr_npy queries;   /* [layer][query head][m][Dk] */
	enum kvr_type query_type; /* 0: no queries */
	struct kvr_model_info model;
	struct kvr_sequence *sequence;
	enum kvr_rank_by rank;
	enum kvr_recall_form form;
	uint32_t matched, covered;
	uint32_t layer_first, layer_count;
	struct kvr_cli_rows rows;
	uint64_t wall_ns;
};

static const char *const form_names[] = {
	[KVR_RECALL_CLUSTERS] = "clusters",
	[KVR_RECALL_MERGED] = "merged",
	[KVR_RECALL_MIXED] = "mixed",
};

/* ---- what was asked for ---------------------------------------------------------------------- */

static int read_names(struct kvr_cli *cli, struct recall *recall)
{
	const char *form = recall->form_name ? recall->form_name : "clusters";

	recall->rank = KVR_BY_SHARE;
	if (recall->rank_name && !strcmp(recall->rank_name, "inner-product"))
		recall->rank = KVR_BY_INNER_PRODUCT;
	else if (recall->rank_name && strcmp(recall->rank_name, "share") != 0)
		return kvr_cli_usage(
			cli, "--rank takes share or inner-product, not '%s'", recall->rank_name);
	for (int i = KVR_RECALL_CLUSTERS; i <= KVR_RECALL_MIXED; i++)
		if (!strcmp(form, form_names[i]))
			recall->form = (enum kvr_recall_form)i;
	return recall->form ? 0
			    : kvr_cli_usage(cli, "--form takes clusters, mixed or merged, not '%s'",
				      form);
}

/* Refuses options that mean nothing for the form, and asks for those that it cannot do without. */
static int check_form(struct kvr_cli *cli, const struct recall *recall)
{
	const bool merged = recall->form == KVR_RECALL_MERGED;
	const bool mixed = recall->form == KVR_RECALL_MIXED;
	const struct {
		const char *name;
		bool given, meant;
	} options[] = {
		{"queries", recall->queries_path != NULL, !merged},
		{"query", recall->query_index != -1, !merged},
		{"budget", recall->budget > 0, !merged},
		{"mass", recall->mass > 0, !merged},
		{"rank", recall->rank_name != NULL, !merged},
		{"centroids", recall->centroid_rows > 0, mixed},
		{"tokens-per-row", recall->tokens_per_row > 0, merged},
		{"first", recall->first > 0, merged},
		{"tail", recall->tail, merged},
	};
	const uint32_t divisor = recall->tokens_per_row;

	for (size_t i = 0; i < sizeof(options) / sizeof(options[0]); i++)
		if (options[i].given && !options[i].meant)
			return kvr_cli_usage(cli, "--%s says nothing with --form %s",
				options[i].name, form_names[recall->form]);
	if (!merged && !recall->queries_path)
		return kvr_cli_usage(cli, "--queries FILE is missing");
	if (!merged && !recall->budget)
		return kvr_cli_usage(cli, "--budget is missing, or 0: it takes 1 or more");
	if (divisor && divisor != 2 && divisor != 4 && divisor != 5 && divisor != 8)
		return kvr_cli_usage(cli, "--tokens-per-row takes 2, 4, 5 or 8, not %u", divisor);
	return 0;
}

static int choose_layers(struct kvr_cli *cli, struct recall *recall)
{
	const char *text = recall->layer_text;
	char *end = NULL;
	unsigned long layer;

	recall->layer_first = 0;
	recall->layer_count = recall->model.layers;
	if (!text || !strcmp(text, "all"))
		return 0;
	layer = strtoul(text, &end, 10);
	if (text[0] < '0' || text[0] > '9' || *end || layer >= recall->model.layers)
		return kvr_cli_usage(cli, "--layer takes all, or a number below %u, not '%s'",
			recall->model.layers, text);
	recall->layer_first = (uint32_t)layer;
	recall->layer_count = 1;
	return 0;
}

/* Compares the queries with the model, and makes the index of the query count from the start. */
static int choose_query(struct kvr_cli *cli, struct recall *recall)
{
	const uint64_t *shape = recall->queries.shape;
	int64_t count = (int64_t)shape[2];
	int64_t index = recall->query_index < 0 ? count + recall->query_index : recall->query_index;

	if (shape[0] != recall->model.layers || shape[1] != recall->model.query_heads ||
		shape[3] != recall->model.key_dim)
		return kvr_cli_refuse(cli, EINVAL,
			"give [layer][query head][m][key dim]; put --query-heads sets the heads",
			"%s: %llu layers, %llu heads, dim %llu; the model has %u, %u, %u",
			recall->queries_path, (unsigned long long)shape[0],
			(unsigned long long)shape[1], (unsigned long long)shape[3],
			recall->model.layers, recall->model.query_heads, recall->model.key_dim);
	if (index < 0 || index >= count)
		return kvr_cli_usage(cli, "--query %d: %s holds %lld queries per head",
			recall->query_index, recall->queries_path, (long long)count);
	recall->query_index = (int32_t)index;
	return 0;
}

/* How many rows a head can have. */
static int choose_capacity(struct kvr_cli *cli, struct recall *recall)
{
	const struct kvr_model_info *model = &recall->model;
	uint64_t rows = recall->sinks ? model->sink_tokens : 0;
	uint32_t merged = 0;
	int error = 0;

	if (recall->form == KVR_RECALL_MERGED) {
		const uint32_t rest = model->segment_tokens + NEWEST;

		if (recall->options.dense)
			merged = recall->matched - recall->first;
		else
			error = kvr_cli_merged_rows(cli, model, recall->first, recall->matched,
				recall->tokens_per_row, &merged);
		rows += merged;
		if (recall->tail)
			rows += rest < recall->matched ? rest : recall->matched;
	} else {
		rows += (uint64_t)recall->budget + recall->centroid_rows;
	}
	if (!recall->capacity)
		recall->capacity = rows < UINT32_MAX ? (uint32_t)rows : UINT32_MAX;
	if (!recall->capacity)
		recall->capacity = 1; /* nothing to stage; an array has an element all the same */
	return error;
}

static int choose_range(struct kvr_cli *cli, struct recall *recall)
{
	int error = 0;

	if (recall->first > recall->matched)
		return kvr_cli_usage(
			cli, "--first %u: %u tokens are stored", recall->first, recall->matched);
	if (recall->form == KVR_RECALL_MERGED)
		error = kvr_cli_merged_choose(
			cli, &recall->model, recall->tokens_per_row, &recall->tokens_per_row);
	return error ? error : choose_capacity(cli, recall);
}

static void describe_rows(struct recall *recall)
{
	const struct kvr_model_info *model = &recall->model;
	const uint32_t heads = recall->rank == KVR_BY_SHARE ? model->kv_heads : model->query_heads;

	recall->rows.model = model;
	recall->rows.query_type = recall->query_type;
	recall->rows.layer_count = recall->layer_count;
	recall->rows.heads = heads;
	recall->rows.weight_heads = recall->centroid_rows ? model->query_heads : heads;
	recall->rows.capacity = recall->capacity;
	recall->rows.folded = recall->form == KVR_RECALL_MIXED && !recall->centroid_rows;
	recall->rows.prefix = recall->out;
}

/* ---- recalling ------------------------------------------------------------------------------- */

/* Puts the query of a layer, [query head][Dk], into the region. */
static void fill_query(const struct recall *recall, uint32_t layer, uint8_t *into)
{
	const struct kvr_npy *queries = &recall->queries;
	size_t bytes = (size_t)recall->model.key_dim * queries->element_bytes;

	for (uint32_t head = 0; recall->query_type && head < recall->model.query_heads; head++) {
		uint64_t row =
			((uint64_t)layer * recall->model.query_heads + head) * queries->shape[2] +
			(uint32_t)recall->query_index;

		memcpy(into + head * bytes, queries->data.data + row * bytes, bytes);
	}
}

/* Recalls `count` layers from the `first`-th of those asked for. */
static int recall_batch(struct kvr_cli *cli, struct recall *recall, uint32_t first, uint32_t count)
{
	struct kvr_recall_item items[KVR_LAYERS_MAX] = {{0}};
	struct kvr_recall request = {
		.items = items,
		.item_count = count,
		.rank = recall->rank,
		.query_type = recall->query_type,
		.budget_tokens = recall->budget,
		.budget_mass = recall->mass,
		.row_capacity = recall->capacity,
		.sinks = recall->sinks,
		.tail = recall->tail,
		.form = recall->form,
		.centroid_rows = recall->centroid_rows,
		.merged_divisor = recall->tokens_per_row,
	};
	const size_t layer_bytes = recall->rows.part_at[KVR_ROWS_PARTS];
	uint8_t *region = kvr_region(cli->client, NULL);
	uint64_t start;
	int error;

	KVR_ASSERT(count <= KVR_LAYERS_MAX);
	for (uint32_t i = 0; i < count; i++) {
		uint8_t *layer = region + i * layer_bytes;

		fill_query(recall, recall->layer_first + first + i, layer);
		items[i].sequence = recall->sequence;
		items[i].layer = recall->layer_first + first + i;
		items[i].first = recall->first;
		kvr_cli_rows_place(&recall->rows, layer, &items[i]);
	}
	start = kvr_clock_ns();
	error = kvr_recall(cli->client, &request);
	recall->wall_ns += kvr_clock_ns() - start;
	if (error)
		return kvr_cli_refused(cli, error);
	for (uint32_t i = 0; i < count; i++) {
		recall->covered = items[i].covered_tokens;
		kvr_cli_rows_take(&recall->rows, first + i, region + i * layer_bytes);
	}
	return 0;
}

static int recall_all(struct kvr_cli *cli, struct recall *recall)
{
	size_t region_bytes = 0, batch;
	int error;

	kvr_region(cli->client, &region_bytes);
	error = kvr_cli_rows_open(cli, &recall->rows, region_bytes);
	if (error)
		return error;
	batch = region_bytes / recall->rows.part_at[KVR_ROWS_PARTS];
	if (batch > KVR_LAYERS_MAX)
		batch = KVR_LAYERS_MAX;
	for (uint32_t first = 0; first < recall->layer_count && !error; first += (uint32_t)batch) {
		uint32_t left = recall->layer_count - first;

		error = recall_batch(cli, recall, first, left < batch ? left : (uint32_t)batch);
	}
	return error ? error : kvr_cli_rows_commit(cli, &recall->rows);
}

/* ---- the result ------------------------------------------------------------------------------ */

/* How the rows are to be used. */
static const char *attention_of(const struct recall *recall)
{
	if (recall->rows.folded)
		return "softmax(q.K / sqrt(dim) + weights) V, merged with outputs by lse";
	if (recall->centroid_rows)
		return "softmax(q.K / sqrt(dim) + weights of the query head) V";
	return "softmax(q.K / sqrt(dim) + weights) V";
}

static void print_heads(const struct recall *recall, struct kvr_report *report)
{
	const struct kvr_cli_rows *rows = &recall->rows;
	const bool merged = recall->form == KVR_RECALL_MERGED;

	kvr_report_table(report, "heads");
	for (uint32_t i = 0; i < recall->layer_count * rows->heads; i++) {
		const struct kvr_rows *counts = &rows->counts[i];
		const uint32_t layer = recall->layer_first + i / rows->heads;

		kvr_report_row(report);
		kvr_report_number(report, "layer", layer);
		kvr_report_number(report, "head", i % rows->heads);
		kvr_report_number(report, "rows", counts->row_count);
		kvr_report_number(
			report, merged ? "merged_sets" : "clusters", counts->cluster_count);
		if (recall->form == KVR_RECALL_MIXED)
			kvr_report_number(report, "centroids", counts->centroid_count);
		kvr_report_number(report, "missing_tokens", counts->missing_tokens);
		/* An estimate in single precision has no ninth digit. */
		if (!merged)
			kvr_report_number(
				report, "mass_ratio", round((double)counts->mass * 1e6) / 1e6);
		kvr_report_end(report);
	}
	kvr_report_end(report);
}

static int print(struct kvr_cli *cli, const struct recall *recall)
{
	struct kvr_report *report = kvr_report_open(cli->json);
	const double staged_bytes = (double)kvr_cli_rows_staged(&recall->rows);

	kvr_report_text(report, "model", recall->model.name);
	kvr_report_text(report, "form", form_names[recall->form]);
	kvr_report_number(report, "matched_tokens", recall->matched);
	kvr_report_number(report, "covered_tokens", recall->covered);
	if (recall->form == KVR_RECALL_MERGED) {
		kvr_report_number(report, "first_token", recall->first);
		kvr_report_number(report, "tokens_per_row", recall->tokens_per_row);
	} else {
		kvr_report_number(report, "query", recall->query_index);
		kvr_report_text(
			report, "rank", recall->rank == KVR_BY_SHARE ? "share" : "inner-product");
		kvr_report_number(report, "budget_tokens", recall->budget);
	}
	if (recall->form == KVR_RECALL_MIXED)
		kvr_report_number(report, "centroid_rows", recall->centroid_rows);
	kvr_report_number(report, "row_capacity", recall->capacity);
	kvr_report_text(report, "attention", attention_of(recall));
	kvr_report_number(report, "staged_bytes", staged_bytes);
	kvr_report_number(report, "recall_ns", (double)recall->wall_ns);
	kvr_report_number(
		report, "recall_bytes_per_s", staged_bytes / ((double)recall->wall_ns / 1e9));
	print_heads(recall, report);
	kvr_cli_rows_report(&recall->rows, report);
	return kvr_report_close(cli, report, false);
}

static int open_queries(struct kvr_cli *cli, struct recall *recall)
{
	const char *axes = "4: [layer][query head][m][dim]";
	int error;

	if (recall->form == KVR_RECALL_MERGED)
		return 0;
	error = kvr_source_array(cli, recall->queries_path, 4, axes, &recall->queries);
	return error ? error
		     : kvr_source_type(cli, &recall->queries, recall->queries_path,
			       recall->options.dtype, &recall->query_type);
}

static int work(struct kvr_cli *cli, struct recall *recall)
{
	int error = read_names(cli, recall);

	if (!error)
		error = check_form(cli, recall);
	if (!error)
		error = kvr_source_open(cli, &recall->options, &recall->source);
	if (!error)
		error = open_queries(cli, recall);
	if (!error)
		error = kvr_cli_connect(cli);
	if (!error)
		error = kvr_source_sequence(cli, &recall->options, &recall->source, &recall->model,
			&recall->sequence, &recall->matched);
	if (!error)
		error = choose_layers(cli, recall);
	if (!error && recall->query_type)
		error = choose_query(cli, recall);
	if (!error)
		error = choose_range(cli, recall);
	if (error)
		return error;
	if (recall->matched < recall->source.token_count)
		fprintf(stderr, "note: %u of %u tokens are stored; recalling among these\n",
			recall->matched, recall->source.token_count);
	describe_rows(recall);
	error = recall_all(cli, recall);
	return error ? error : print(cli, recall);
}

static int run(struct kvr_cli *cli, int argc, char **argv)
{
	struct recall recall = {.query_index = -1};
	struct kvr_source_options *source = &recall.options;
	const struct kvr_cli_option options[] = {
		{"model", 'm', KVR_CLI_TEXT, true, &source->model, "NAME",
			"name or number of the model"},
		KVR_SOURCE_TOKENS(source),
		{"keys", 'K', KVR_CLI_TEXT, false, &source->keys, "FILE",
			"instead of --tokens: what put was given"},
		{"values", 'V', KVR_CLI_TEXT, false, &source->values, "FILE", "likewise"},
		{"form", 'f', KVR_CLI_TEXT, false, &recall.form_name, "FORM",
			"clusters (default): exact rows; mixed: these, and an\n"
			"estimate of all else; merged: rows that stand for\n"
			"several tokens, whatever the query"},
		{"queries", 'Q', KVR_CLI_TEXT, false, &recall.queries_path, "FILE",
			"queries after RoPE: a .npy,\n[layer][query head][m][dim]; not of merged"},
		{"query", 'q', KVR_CLI_I32, false, &recall.query_index, "M",
			"which of the m queries; negative: from the end;\ndefault -1"},
		{"layer", 0, KVR_CLI_TEXT, false, &recall.layer_text, "N|all",
			"one layer, or all of them; default all"},
		{"budget", 'b', KVR_CLI_U32, false, &recall.budget, "B",
			"exact rows per head, at most; not of merged"},
		{"mass", 0, KVR_CLI_SHARE, false, &recall.mass, "P",
			"stop at this estimated share of the attention"},
		{"rank", 0, KVR_CLI_TEXT, false, &recall.rank_name, "RANK",
			"share (default) or inner-product"},
		{"centroids", 0, KVR_CLI_U32, false, &recall.centroid_rows, "N",
			"of mixed: the estimate as rows, one for each of the N\n"
			"next best clusters; default: one partial output and\n"
			"its log-sum-exp per query head"},
		{"tokens-per-row", 0, KVR_CLI_U32, false, &recall.tokens_per_row, "N",
			"of merged: 2, 4, 5 or 8; default: the set that the\n"
			"model keeps, if there is one only"},
		{"first", 0, KVR_CLI_U32, false, &recall.first, "POSITION",
			"of merged: from here on; the covered tokens of an\n"
			"earlier recall; default 0"},
		{"tail", 0, KVR_CLI_FLAG, false, &recall.tail, NULL,
			"of merged: stage what is not merged yet, exactly"},
		{"sinks", 0, KVR_CLI_FLAG, false, &recall.sinks, NULL,
			"stage the first tokens too"},
		{"rows", 0, KVR_CLI_U32, false, &recall.capacity, "N",
			"room per head; default: what the form can need.\n"
			"Dense layers need one per covered token"},
		{"out", 'o', KVR_CLI_TEXT, false, &recall.out, "PREFIX",
			"write PREFIX_K, _V, _weights, _positions.npy, and of\n"
			"folded mixed _outputs, _lse.npy; absent rows have\n"
			"weight -inf"},
		KVR_SOURCE_DTYPE(source),
		KVR_SOURCE_DENSE(source),
		{0},
	};
	int error = kvr_cli_parse(cli, options, argc, argv);

	if (!error)
		error = work(cli, &recall);
	kvr_close(recall.sequence, true);
	kvr_cli_rows_close(&recall.rows);
	kvr_npy_close(&recall.queries);
	kvr_source_close(&recall.source);
	return error;
}

const struct kvr_cli_command kvr_cli_recall = {
	.name = "recall",
	.summary = "stage the rows that queries from a .npy file need",
	.synopsis = "--model NAME --tokens FILE (--queries FILE --budget B | --form merged)\n"
		    "       [OPTIONS]",
	.text = "Opens the stored sequence by its tokens and recalls with one query per head. "
		"Attention\n"
		"over the rows written is softmax(q.K / sqrt(dim) + weights) V. Weights are per\n"
		"query head where mixed has centroid rows. Folded, with o and l the attention "
		"over\n"
		"the rows and its log-sum-exp, and m = max(l, lse), the output is\n"
		"(exp(l - m) o + exp(lse - m) outputs) / (exp(l - m) + exp(lse - m)).\n\n"
		"Merged rows need a model that was put with --merged. What is covered ends with a\n"
		"segment, 64 tokens before the last one or earlier; the result says where.\n\n"
		"Examples:\n"
		"  kvrecall recall --model tiny -T T.npy -Q Q.npy --budget 256\n"
		"  kvrecall recall --model tiny -K K.npy -V V.npy -Q Q.npy -b 512 --mass 0.95 \\\n"
		"      --layer 3 --out rows\n"
		"  kvrecall recall --model tiny -T T.npy -Q Q.npy -b 256 --form mixed --sinks -o "
		"rows\n"
		"  kvrecall recall --model tiny -T T.npy --form merged --tokens-per-row 4 --sinks "
		"\\\n"
		"      --tail -o rows\n",
	.run = run,
};

/* SPDX-License-Identifier: Apache-2.0 */
/* cli_recall.c: `kvrecall recall`: recalls rows for queries from a .npy file.
 *
 * Layers are recalled in batches, as many in one request as the region holds. Per layer it has
 *
 *   query [H][Dk] | keys [heads][R][Dk] | values [heads][R][Dv] | weights | positions | rows [heads]
 *
 * with R rows of capacity per head, each part aligned to 64 bytes. Files take the parts over as they
 * are, [layer][head][R][dim]; what a head has less than R rows is zero, with weight -inf and
 * position -1, so that softmax(q.K / sqrt(d) + weights) V needs no other mask.
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
#include "client/cli_report.h"
#include "client/cli_source.h"

enum { PART_QUERY, PART_KEYS, PART_VALUES, PART_WEIGHTS, PART_POSITIONS, PART_ROWS, PART_COUNT };
enum { OUT_KEYS, OUT_VALUES, OUT_WEIGHTS, OUT_POSITIONS, OUT_COUNT };

struct recall {
	struct kvr_source_options options;
	const char *queries_path, *rank_name, *layer_text, *out;
	uint32_t budget, capacity;
	int32_t query_index;
	float mass;
	bool sinks;

	struct kvr_source source; /* the tokens */
	struct kvr_npy queries;   /* [layer][query head][m][Dk] */
	enum kvr_type query_type;
	struct kvr_model_info model;
	struct kvr_sequence *sequence;
	enum kvr_rank_by rank;
	uint32_t matched, covered;
	uint32_t layer_first, layer_count, heads;
	size_t part_at[PART_COUNT + 1]; /* offsets inside a layer; the last is its size */
	size_t part_bytes[PART_COUNT];
	struct kvr_npy outs[OUT_COUNT];
	struct kvr_rows *rows; /* [layer_count][heads] */
	uint64_t staged_bytes, wall_ns;
};

/* ---- what was asked for ---------------------------------------------------------------------- */

static int read_names(struct kvr_cli *cli, struct recall *recall)
{
	recall->rank = KVR_BY_SHARE;
	if (!recall->rank_name || !strcmp(recall->rank_name, "share"))
		return recall->budget ? 0 : kvr_cli_usage(cli, "--budget takes 1 or more");
	if (strcmp(recall->rank_name, "inner-product") != 0)
		return kvr_cli_usage(
			cli, "--rank takes share or inner-product, not '%s'", recall->rank_name);
	recall->rank = KVR_BY_INNER_PRODUCT;
	return recall->budget ? 0 : kvr_cli_usage(cli, "--budget takes 1 or more");
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

static void lay_out(struct recall *recall)
{
	const struct kvr_model_info *model = &recall->model;
	size_t element = kvr_source_type_bytes(model->type), rows;

	recall->heads = recall->rank == KVR_BY_SHARE ? model->kv_heads : model->query_heads;
	if (!recall->capacity)
		recall->capacity = recall->budget + (recall->sinks ? model->sink_tokens : 0);
	rows = (size_t)recall->heads * recall->capacity;
	recall->part_bytes[PART_QUERY] = (size_t)model->query_heads * model->key_dim *
					 kvr_source_type_bytes(recall->query_type);
	recall->part_bytes[PART_KEYS] = rows * model->key_dim * element;
	recall->part_bytes[PART_VALUES] = rows * model->value_dim * element;
	recall->part_bytes[PART_WEIGHTS] = rows * sizeof(float);
	recall->part_bytes[PART_POSITIONS] = rows * sizeof(int32_t);
	recall->part_bytes[PART_ROWS] = recall->heads * sizeof(struct kvr_rows);
	for (int i = 0; i < PART_COUNT; i++)
		recall->part_at[i + 1] =
			recall->part_at[i] + (recall->part_bytes[i] + 63) / 64 * 64;
}

/* ---- files ----------------------------------------------------------------------------------- */

static int create_outs(struct kvr_cli *cli, struct recall *recall)
{
	static const char *const names[OUT_COUNT] = {"K", "V", "weights", "positions"};
	enum kvr_npy_type row = kvr_source_npy_type(recall->model.type);
	const enum kvr_npy_type types[OUT_COUNT] = {row, row, KVR_NPY_F4, KVR_NPY_I4};
	uint64_t shape[4] = {recall->layer_count, recall->heads, recall->capacity, 0};
	struct kvr_npy_error why;
	char path[4096];

	for (int i = 0; i < OUT_COUNT; i++) {
		int error;

		if (snprintf(path, sizeof(path), "%s_%s.npy", recall->out, names[i]) >=
			(int)sizeof(path))
			return kvr_cli_usage(cli, "--out: the path is too long");
		shape[3] = i == OUT_KEYS ? recall->model.key_dim : recall->model.value_dim;
		error = kvr_npy_create(
			path, types[i], shape, i <= OUT_VALUES ? 4 : 3, &recall->outs[i], &why);
		if (error)
			return kvr_source_refused(cli, error, &why);
	}
	return 0;
}

/* Takes one layer's rows over into the files. */
static void write_layer(struct recall *recall, uint32_t index, const uint8_t *layer)
{
	for (int i = 0; i < OUT_COUNT; i++) {
		int part = PART_KEYS + i;
		size_t row_bytes = recall->part_bytes[part] / recall->heads / recall->capacity;
		uint8_t *to = recall->outs[i].data.data + index * recall->part_bytes[part];

		for (uint32_t head = 0; head < recall->heads; head++) {
			uint32_t used = recall->rows[index * recall->heads + head].row_count;
			size_t at = (size_t)head * recall->capacity * row_bytes;
			const float absent_weight = -INFINITY;
			const int32_t absent_position = -1;

			memcpy(to + at, layer + recall->part_at[part] + at, used * row_bytes);
			for (uint32_t row = used; row < recall->capacity && i >= OUT_WEIGHTS; row++)
				memcpy(to + at + row * row_bytes,
					i == OUT_WEIGHTS ? (const void *)&absent_weight
							 : &absent_position,
					4);
		}
	}
}

static int commit_outs(struct kvr_cli *cli, struct recall *recall)
{
	struct kvr_npy_error why;

	for (int i = 0; i < OUT_COUNT && recall->out; i++) {
		int error = kvr_npy_commit(&recall->outs[i], &why);

		if (error)
			return kvr_source_refused(cli, error, &why);
	}
	return 0;
}

/* ---- recalling ------------------------------------------------------------------------------- */

/* Puts the query of a layer, [query head][Dk], into the region. */
static void fill_query(const struct recall *recall, uint32_t layer, uint8_t *into)
{
	const struct kvr_npy *queries = &recall->queries;
	size_t bytes = (size_t)recall->model.key_dim * queries->element_bytes;

	for (uint32_t head = 0; head < recall->model.query_heads; head++) {
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
	};
	uint8_t *region = kvr_region(cli->client, NULL);
	const size_t *at = recall->part_at;
	uint64_t start;
	int error;

	KVR_ASSERT(count <= KVR_LAYERS_MAX);
	for (uint32_t i = 0; i < count; i++) {
		uint8_t *layer = region + i * at[PART_COUNT];

		fill_query(recall, recall->layer_first + first + i, layer);
		items[i].sequence = recall->sequence;
		items[i].layer = recall->layer_first + first + i;
		items[i].query = layer;
		items[i].keys = layer + at[PART_KEYS];
		items[i].values = layer + at[PART_VALUES];
		items[i].weights = (float *)(void *)(layer + at[PART_WEIGHTS]);
		items[i].positions = (int32_t *)(void *)(layer + at[PART_POSITIONS]);
		items[i].rows = (struct kvr_rows *)(void *)(layer + at[PART_ROWS]);
	}
	start = kvr_clock_ns();
	error = kvr_recall(cli->client, &request);
	recall->wall_ns += kvr_clock_ns() - start;
	if (error)
		return kvr_cli_refused(cli, error);
	for (uint32_t i = 0; i < count; i++) {
		memcpy(recall->rows + (size_t)(first + i) * recall->heads, items[i].rows,
			recall->part_bytes[PART_ROWS]);
		recall->covered = items[i].covered_tokens;
		if (recall->out)
			write_layer(recall, first + i, region + i * at[PART_COUNT]);
	}
	return 0;
}

static int recall_all(struct kvr_cli *cli, struct recall *recall)
{
	size_t row_bytes = (size_t)(recall->model.key_dim + recall->model.value_dim) *
			   kvr_source_type_bytes(recall->model.type);
	size_t layer_bytes = recall->part_at[PART_COUNT], region_bytes = 0;
	uint32_t batch;
	int error = 0;

	kvr_region(cli->client, &region_bytes);
	if (layer_bytes > region_bytes)
		return kvr_cli_refuse(cli, ENOBUFS, "give a larger --region, or a smaller --budget",
			"%zu bytes of rows for one layer do not fit the region of %zu", layer_bytes,
			region_bytes);
	batch = region_bytes / layer_bytes < KVR_LAYERS_MAX ? (uint32_t)(region_bytes / layer_bytes)
							    : KVR_LAYERS_MAX;
	recall->rows = calloc((size_t)recall->layer_count * recall->heads, sizeof(*recall->rows));
	if (!recall->rows)
		return kvr_cli_refuse(cli, ENOMEM, "", "no memory for row counts");
	if (recall->out)
		error = create_outs(cli, recall);
	for (uint32_t first = 0; first < recall->layer_count && !error; first += batch) {
		uint32_t left = recall->layer_count - first;

		error = recall_batch(cli, recall, first, left < batch ? left : batch);
	}
	for (uint32_t i = 0; i < recall->layer_count * recall->heads && !error; i++)
		recall->staged_bytes += recall->rows[i].row_count * row_bytes;
	return error ? error : commit_outs(cli, recall);
}

static int print(struct kvr_cli *cli, const struct recall *recall)
{
	struct kvr_report *report = kvr_report_open(cli->json);

	kvr_report_text(report, "model", recall->model.name);
	kvr_report_number(report, "matched_tokens", recall->matched);
	kvr_report_number(report, "covered_tokens", recall->covered);
	kvr_report_number(report, "query", recall->query_index);
	kvr_report_text(report, "rank", recall->rank == KVR_BY_SHARE ? "share" : "inner-product");
	kvr_report_number(report, "budget_tokens", recall->budget);
	kvr_report_number(report, "staged_bytes", (double)recall->staged_bytes);
	kvr_report_number(report, "recall_ns", (double)recall->wall_ns);
	kvr_report_number(report, "recall_bytes_per_s",
		(double)recall->staged_bytes / ((double)recall->wall_ns / 1e9));
	kvr_report_table(report, "heads");
	for (uint32_t i = 0; i < recall->layer_count * recall->heads; i++) {
		const struct kvr_rows *rows = &recall->rows[i];
		uint32_t layer = recall->layer_first + i / recall->heads;

		kvr_report_row(report);
		kvr_report_number(report, "layer", layer);
		kvr_report_number(report, "head", i % recall->heads);
		kvr_report_number(report, "rows", rows->row_count);
		kvr_report_number(report, "clusters", rows->cluster_count);
		kvr_report_number(report, "missing_tokens", rows->missing_tokens);
		/* An estimate in single precision has no ninth digit. */
		kvr_report_number(report, "mass_ratio", round((double)rows->mass * 1e6) / 1e6);
		kvr_report_end(report);
	}
	kvr_report_end(report);
	return kvr_report_close(cli, report, false);
}

static int work(struct kvr_cli *cli, struct recall *recall)
{
	const char *axes = "4: [layer][query head][m][dim]";
	int error = read_names(cli, recall);

	if (!error)
		error = kvr_source_open(cli, &recall->options, &recall->source);
	if (!error)
		error = kvr_source_array(cli, recall->queries_path, 4, axes, &recall->queries);
	if (!error)
		error = kvr_source_type(cli, &recall->queries, recall->queries_path,
			recall->options.dtype, &recall->query_type);
	if (!error)
		error = kvr_cli_connect(cli);
	if (!error)
		error = kvr_source_sequence(cli, &recall->options, &recall->source, &recall->model,
			&recall->sequence, &recall->matched);
	if (!error)
		error = choose_layers(cli, recall);
	if (!error)
		error = choose_query(cli, recall);
	if (error)
		return error;
	if (recall->matched < recall->source.token_count)
		fprintf(stderr, "note: %u of %u tokens are stored; recalling among these\n",
			recall->matched, recall->source.token_count);
	lay_out(recall);
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
		{"queries", 'Q', KVR_CLI_TEXT, true, &recall.queries_path, "FILE",
			"queries after RoPE: a .npy,\n[layer][query head][m][dim]"},
		{"query", 'q', KVR_CLI_I32, false, &recall.query_index, "M",
			"which of the m queries; negative: from the end;\ndefault -1"},
		{"layer", 0, KVR_CLI_TEXT, false, &recall.layer_text, "N|all",
			"one layer, or all of them; default all"},
		{"budget", 'b', KVR_CLI_U32, true, &recall.budget, "B", "rows per head, at most"},
		{"mass", 0, KVR_CLI_SHARE, false, &recall.mass, "P",
			"stop at this estimated share of the attention"},
		{"rank", 0, KVR_CLI_TEXT, false, &recall.rank_name, "RANK",
			"share (default) or inner-product"},
		{"sinks", 0, KVR_CLI_FLAG, false, &recall.sinks, NULL,
			"stage the first tokens too"},
		{"rows", 0, KVR_CLI_U32, false, &recall.capacity, "N",
			"room per head; default: the budget and the sinks.\n"
			"Dense layers need one per covered token"},
		{"out", 'o', KVR_CLI_TEXT, false, &recall.out, "PREFIX",
			"write PREFIX_K, _V, _weights, _positions.npy,\n"
			"[layer][head][row]..., absent rows with weight -inf"},
		KVR_SOURCE_DTYPE(source),
		KVR_SOURCE_DENSE(source),
		{0},
	};
	int error = kvr_cli_parse(cli, options, argc, argv);

	if (!error)
		error = work(cli, &recall);
	kvr_close(recall.sequence, true);
	for (int i = 0; i < OUT_COUNT; i++)
		kvr_npy_close(&recall.outs[i]);
	kvr_npy_close(&recall.queries);
	kvr_source_close(&recall.source);
	free(recall.rows);
	return error;
}

const struct kvr_cli_command kvr_cli_recall = {
	.name = "recall",
	.summary = "stage the rows that queries from a .npy file need",
	.synopsis = "--model NAME --tokens FILE --queries FILE --budget B [OPTIONS]",
	.text = "Opens the stored sequence by its tokens and recalls with one query per head. "
		"Attention\n"
		"over the rows written is softmax(q.K / sqrt(dim) + weights) V.\n\n"
		"Examples:\n"
		"  kvrecall recall --model tiny -T T.npy -Q Q.npy --budget 256\n"
		"  kvrecall recall --model tiny -K K.npy -V V.npy -Q Q.npy -b 512 --mass 0.95 \\\n"
		"      --layer 3 --out rows\n",
	.run = run,
};

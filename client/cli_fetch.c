/* SPDX-License-Identifier: Apache-2.0 */
/* cli_fetch.c: `kvrecall fetch`: writes stored keys and values to .npy files, as put takes them.
 *
 * The bytes are those that were appended. Fetched in chunks, as many tokens as the region holds.
 *
 * Threads: one. */
#include <errno.h>
#include <stdio.h>

#include "base/assert.h"
#include "base/clock.h"
#include "base/limits.h"
#include "client/cli.h"
#include "client/cli_report.h"
#include "client/cli_source.h"

struct fetch {
	struct kvr_source_options options;
	const char *out;
	uint32_t first, count;
	struct kvr_source source;
	struct kvr_model_info model;
	struct kvr_sequence *sequence;
	uint32_t matched;
	struct kvr_npy outs[2]; /* keys, values */
	uint64_t wall_ns;
};

static size_t row_bytes(const struct fetch *fetch, int part)
{
	return (size_t)(part ? fetch->model.value_dim : fetch->model.key_dim) *
	       kvr_source_type_bytes(fetch->model.type);
}

static int create_outs(struct kvr_cli *cli, struct fetch *fetch)
{
	uint64_t shape[4] = {fetch->model.layers, fetch->model.kv_heads, fetch->count, 0};
	struct kvr_npy_error why;
	char path[4096];

	for (int part = 0; part < 2; part++) {
		int error;

		if (snprintf(path, sizeof(path), "%s_%c.npy", fetch->out, "KV"[part]) >=
			(int)sizeof(path))
			return kvr_cli_usage(cli, "--out: the path is too long");
		shape[3] = part ? fetch->model.value_dim : fetch->model.key_dim;
		error = kvr_npy_create(path, kvr_source_npy_type(fetch->model.type), shape, 4,
			&fetch->outs[part], &why);
		if (error)
			return kvr_source_refused(cli, error, &why);
	}
	return 0;
}

/* Fetches tokens [at, at + count) of those asked for, all layers, into the files. */
static int fetch_chunk(struct kvr_cli *cli, struct fetch *fetch, uint32_t at, uint32_t count)
{
	struct kvr_fetch_layer layers[KVR_LAYERS_MAX];
	struct kvr_fetch request = {
		.sequence = fetch->sequence,
		.first = fetch->first + at,
		.count = count,
		.layers = layers,
		.layer_count = fetch->model.layers,
	};
	uint8_t *next = kvr_region(cli->client, NULL);
	uint64_t start;
	int error;

	for (uint32_t layer = 0; layer < fetch->model.layers; layer++) {
		layers[layer].layer = layer;
		layers[layer].keys = next;
		next += (size_t)count * fetch->model.kv_heads * row_bytes(fetch, 0);
		layers[layer].values = next;
		next += (size_t)count * fetch->model.kv_heads * row_bytes(fetch, 1);
	}
	start = kvr_clock_ns();
	error = kvr_fetch(cli->client, &request);
	fetch->wall_ns += kvr_clock_ns() - start;
	if (error)
		return kvr_cli_refused(cli, error);
	for (uint32_t i = 0; i < 2 * fetch->model.layers; i++) {
		struct kvr_source_move move = {
			.file = fetch->outs[i % 2].data.data,
			.region = i % 2 ? layers[i / 2].values : layers[i / 2].keys,
			.layer = i / 2,
			.heads = fetch->model.kv_heads,
			.file_tokens = fetch->count,
			.file_first = at,
			.count = count,
			.row_bytes = row_bytes(fetch, i % 2),
		};

		kvr_source_move(&move);
	}
	return 0;
}

static int fetch_all(struct kvr_cli *cli, struct fetch *fetch)
{
	size_t token_bytes = (size_t)fetch->model.layers * fetch->model.kv_heads *
			     (row_bytes(fetch, 0) + row_bytes(fetch, 1));
	size_t region_bytes = 0, chunk;
	struct kvr_npy_error why;
	int error;

	kvr_region(cli->client, &region_bytes);
	chunk = region_bytes / token_bytes;
	if (!chunk)
		return kvr_cli_refuse(cli, ENOBUFS, "give a larger --region",
			"a token of %zu bytes in all layers does not fit the region of %zu",
			token_bytes, region_bytes);
	error = create_outs(cli, fetch);
	for (uint32_t at = 0; at < fetch->count && !error;) {
		uint32_t left = fetch->count - at;
		uint32_t count = left < chunk ? left : (uint32_t)chunk;

		error = fetch_chunk(cli, fetch, at, count);
		at += count;
	}
	for (int part = 0; part < 2 && !error; part++) {
		error = kvr_npy_commit(&fetch->outs[part], &why);
		if (error)
			return kvr_source_refused(cli, error, &why);
	}
	return error;
}

static int print(struct kvr_cli *cli, const struct fetch *fetch)
{
	struct kvr_report *report = kvr_report_open(cli->json);
	double bytes = (double)fetch->count * fetch->model.layers * fetch->model.kv_heads *
		       (double)(row_bytes(fetch, 0) + row_bytes(fetch, 1));

	kvr_report_text(report, "model", fetch->model.name);
	kvr_report_number(report, "matched_tokens", fetch->matched);
	kvr_report_number(report, "first", fetch->first);
	kvr_report_number(report, "fetched_tokens", fetch->count);
	kvr_report_number(report, "fetched_bytes", bytes);
	kvr_report_number(report, "fetch_ns", (double)fetch->wall_ns);
	kvr_report_number(report, "fetch_bytes_per_s", bytes / ((double)fetch->wall_ns / 1e9));
	return kvr_report_close(cli, report, false);
}

static int work(struct kvr_cli *cli, struct fetch *fetch)
{
	int error = kvr_source_open(cli, &fetch->options, &fetch->source);

	if (!error)
		error = kvr_cli_connect(cli);
	if (!error)
		error = kvr_source_sequence(cli, &fetch->options, &fetch->source, &fetch->model,
			&fetch->sequence, &fetch->matched);
	if (error)
		return error;
	if (fetch->first >= fetch->matched ||
		(fetch->count && fetch->count > fetch->matched - fetch->first))
		return kvr_cli_refuse(cli, ERANGE, "ask for stored tokens with --first and --count",
			"tokens from %u on, %u of them: %u are stored", fetch->first, fetch->count,
			fetch->matched);
	if (!fetch->count)
		fetch->count = fetch->matched - fetch->first;
	error = fetch_all(cli, fetch);
	return error ? error : print(cli, fetch);
}

static int run(struct kvr_cli *cli, int argc, char **argv)
{
	struct fetch fetch = {0};
	struct kvr_source_options *source = &fetch.options;
	const struct kvr_cli_option options[] = {
		{"model", 'm', KVR_CLI_TEXT, true, &source->model, "NAME",
			"name or number of the model"},
		KVR_SOURCE_TOKENS(source),
		{"keys", 'K', KVR_CLI_TEXT, false, &source->keys, "FILE",
			"instead of --tokens: what put was given"},
		{"values", 'V', KVR_CLI_TEXT, false, &source->values, "FILE", "likewise"},
		{"first", 0, KVR_CLI_U32, false, &fetch.first, "N", "first token; default 0"},
		{"count", 0, KVR_CLI_U32, false, &fetch.count, "N",
			"tokens; default: all that are stored from there on"},
		{"out", 'o', KVR_CLI_TEXT, true, &fetch.out, "PREFIX",
			"write PREFIX_K.npy and PREFIX_V.npy"},
		KVR_SOURCE_DTYPE(source),
		KVR_SOURCE_DENSE(source),
		{0},
	};
	int error = kvr_cli_parse(cli, options, argc, argv);

	if (!error)
		error = work(cli, &fetch);
	kvr_close(fetch.sequence, true);
	for (int part = 0; part < 2; part++)
		kvr_npy_close(&fetch.outs[part]);
	kvr_source_close(&fetch.source);
	return error;
}

const struct kvr_cli_command kvr_cli_fetch = {
	.name = "fetch",
	.summary = "write stored keys and values to .npy files, bit-identical",
	.synopsis = "--model NAME --tokens FILE --out PREFIX [OPTIONS]",
	.text = "The files have the layout that put takes; bfloat16 is written as <u2.\n\n"
		"Examples:\n"
		"  kvrecall fetch --model tiny -T T.npy --out copy && cmp copy_K.npy K.npy\n"
		"  kvrecall fetch --model tiny -T T.npy --first 1024 --count 512 --out part\n",
	.run = run,
};

/* SPDX-License-Identifier: Apache-2.0 */
/* cli_put.c: `kvrecall put`: stores keys and values from .npy files, as an engine would.
 *
 *   register ─► open (what matches is not sent again) ─► append, append ... ─► sync ─► close
 *
 * The region holds two chunks: while the daemon copies one, the next is turned into its layout.
 *
 * Threads: one. */
#include <errno.h>
#include <string.h>
#include <time.h>

#include "base/assert.h"
#include "base/clock.h"
#include "base/limits.h"
#include "client/cli.h"
#include "client/cli_merged.h"
#include "client/cli_report.h"
#include "client/cli_source.h"

#define TIMEOUT_MS 120000u /* unless --timeout says other: a long put is sealed for a while */

struct put {
	struct kvr_source_options options;
	const char *tokens_out, *merged;
	uint32_t query_heads, segment_tokens, cluster_tokens;
	int32_t sinks;
	struct kvr_source source;
	struct kvr_model *model;
	struct kvr_sequence *sequence;
	uint32_t matched, sealed;
	uint64_t append_ns, seal_ns;
	uint64_t sent_bytes;
};

/* Bytes of one token in all layers. */
static size_t token_bytes(const struct kvr_source *source)
{
	return (size_t)source->layers * source->kv_heads * (source->key_dim + source->value_dim) *
	       kvr_source_type_bytes(source->type);
}

static int register_model(struct kvr_cli *cli, struct put *put)
{
	uint32_t lanes[KVR_LANES_MAX];
	struct kvr_model_config config = {
		.name = put->options.model,
		.layers = put->source.layers,
		.query_heads = put->query_heads ? put->query_heads : put->source.kv_heads,
		.kv_heads = put->source.kv_heads,
		.key_dim = put->source.key_dim,
		.value_dim = put->source.value_dim,
		.type = put->source.type,
		.segment_tokens = put->segment_tokens,
		.cluster_tokens = put->cluster_tokens,
		.sink_tokens = put->sinks,
		.dense_lanes = lanes,
	};
	int count = 0, error;

	if (put->options.dense)
		count = kvr_cli_lanes(
			put->options.dense, config.layers, config.kv_heads, lanes, KVR_LANES_MAX);
	if (count < 0)
		return kvr_cli_usage(cli, "--dense takes layers below %u, like 0-1,5, not '%s'",
			config.layers, put->options.dense);
	config.dense_count = (uint32_t)count;
	if (put->merged && kvr_cli_merged_read(put->merged, &config.merged))
		return kvr_cli_usage(
			cli, "--merged takes all, or some of 2,4,5,8, not '%s'", put->merged);
	error = kvr_source_digest(cli, put->options.digest, config.name, config.digest);
	if (error)
		return error;
	error = kvr_model_register(cli->client, &config, &put->model);
	return error ? kvr_cli_refused(cli, error) : 0;
}

/* Puts `count` tokens from `first` on into the region at `at`, and names them in `layers`. */
static void fill(const struct put *put, uint8_t *at, uint32_t first, uint32_t count,
	struct kvr_append_layer *layers)
{
	const struct kvr_source *source = &put->source;

	for (uint32_t i = 0; i < 2 * source->layers; i++) {
		const struct kvr_npy *array = i % 2 ? &source->values : &source->keys;
		struct kvr_source_move move = {
			.file = array->data.data,
			.region = at,
			.layer = i / 2,
			.heads = source->kv_heads,
			.file_tokens = source->token_count,
			.file_first = first,
			.count = count,
			.row_bytes = (size_t)array->shape[3] * array->element_bytes,
			.to_region = true,
		};

		kvr_source_move(&move);
		layers[i / 2].layer = i / 2;
		*(i % 2 ? &layers[i / 2].values : &layers[i / 2].keys) = at;
		at += move.row_bytes * source->kv_heads * count;
	}
}

/* Sends an append and tries again while the daemon is busy, until the deadline. */
static int submit(struct kvr_cli *cli, const struct kvr_append *append, uint64_t *ret_ticket)
{
	uint64_t until = kvr_clock_ns() + (uint64_t)cli->timeout_ms * 1000000;
	int error;

	while ((error = kvr_append_submit(cli->client, append, ret_ticket)) == -EAGAIN &&
		kvr_clock_ns() < until)
		nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
	return error;
}

/* Waits for an append; one that the daemon had no room for yet is sent again. */
static int finish(struct kvr_cli *cli, const struct kvr_append *append, uint64_t ticket)
{
	uint64_t until = kvr_clock_ns() + (uint64_t)cli->timeout_ms * 1000000;

	for (;;) {
		struct kvr_completion done = {0};
		int error = kvr_wait(cli->client, ticket, &done);

		if (!error)
			error = done.status;
		if (error != -EAGAIN || kvr_clock_ns() >= until)
			return error;
		/* Sealing frees the tail; the daemon says "again" rather than make us wait. */
		nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL);
		error = submit(cli, append, &ticket);
		if (error)
			return error;
	}
}

static int append_all(struct kvr_cli *cli, struct put *put)
{
	struct kvr_append_layer layers[2][KVR_LAYERS_MAX];
	struct kvr_append appends[2] = {{0}};
	const struct kvr_source *source = &put->source;
	size_t region_bytes = 0;
	uint8_t *region = kvr_region(cli->client, &region_bytes);
	size_t half = region_bytes / 2 / 64 * 64;
	uint32_t chunk = put->segment_tokens ? put->segment_tokens : KVR_SEGMENT_TOKENS;
	uint32_t turn = 0;
	uint64_t ticket = 0;
	int error = 0;

	if (half / token_bytes(source) < chunk)
		chunk = (uint32_t)(half / token_bytes(source));
	if (!chunk)
		return kvr_cli_refuse(cli, ENOBUFS, "give a larger --region",
			"a token of %zu bytes in all layers does not fit half the region of %zu",
			token_bytes(source), region_bytes);
	for (uint32_t first = put->matched; first < source->token_count && !error; turn++) {
		struct kvr_append *append = &appends[turn % 2];
		uint32_t left = source->token_count - first;

		*append = (struct kvr_append){
			.sequence = put->sequence,
			.first = first,
			.count = left < chunk ? left : chunk,
			.tokens = source->tokens + first,
			.layers = layers[turn % 2],
			.layer_count = source->layers,
		};
		fill(put, region + turn % 2 * half, first, append->count, layers[turn % 2]);
		if (turn)
			error = finish(cli, &appends[(turn - 1) % 2], ticket);
		if (!error)
			error = submit(cli, append, &ticket);
		first += append->count;
		put->sent_bytes += append->count * token_bytes(source);
	}
	if (!error && turn)
		error = finish(cli, &appends[(turn - 1) % 2], ticket);
	return error ? kvr_cli_refused(cli, error) : 0;
}

static int store(struct kvr_cli *cli, struct put *put)
{
	uint64_t start;
	int error = register_model(cli, put);

	if (error)
		return error;
	error = kvr_open(put->model, put->source.tokens, put->source.token_count, &put->sequence,
		&put->matched);
	if (error)
		return kvr_cli_refused(cli, error);
	start = kvr_clock_ns();
	error = append_all(cli, put);
	put->append_ns = kvr_clock_ns() - start;
	if (error)
		return error;
	start = kvr_clock_ns();
	error = kvr_sync(put->sequence, true, &put->sealed);
	put->seal_ns = kvr_clock_ns() - start;
	if (!error) {
		struct kvr_sequence *sequence = put->sequence;

		put->sequence = NULL; /* close frees it also when it fails */
		error = kvr_close(sequence, false);
	}
	return error ? kvr_cli_refused(cli, error) : 0;
}

static int write_tokens(struct kvr_cli *cli, const struct put *put)
{
	uint64_t shape[1] = {put->source.token_count};
	struct kvr_npy_error why;
	struct kvr_npy array;
	int error = kvr_npy_create(put->tokens_out, KVR_NPY_U4, shape, 1, &array, &why);

	if (!error) {
		memcpy(array.data.data, put->source.tokens, array.data.bytes);
		error = kvr_npy_commit(&array, &why);
		kvr_npy_close(&array);
	}
	return error ? kvr_source_refused(cli, error, &why) : 0;
}

static int print(struct kvr_cli *cli, const struct put *put)
{
	struct kvr_report *report = kvr_report_open(cli->json);
	double seconds = (double)put->append_ns / 1e9;

	kvr_report_text(report, "model", put->options.model);
	kvr_report_number(report, "tokens", put->source.token_count);
	kvr_report_number(report, "matched_tokens", put->matched);
	kvr_report_number(report, "appended_tokens", put->source.token_count - put->matched);
	kvr_report_number(report, "sealed_tokens", put->sealed);
	kvr_report_number(report, "appended_bytes", (double)put->sent_bytes);
	kvr_report_number(report, "append_ns", (double)put->append_ns);
	kvr_report_number(report, "append_bytes_per_s",
		put->sent_bytes ? (double)put->sent_bytes / seconds : 0);
	kvr_report_number(report, "seal_ns", (double)put->seal_ns);
	return kvr_report_close(cli, report, false);
}

static int run(struct kvr_cli *cli, int argc, char **argv)
{
	struct put put = {.sinks = -1};
	struct kvr_source_options *source = &put.options;
	const struct kvr_cli_option options[] = {
		{"model", 'm', KVR_CLI_TEXT, true, &source->model, "NAME", "name of the model"},
		{"keys", 'K', KVR_CLI_TEXT, true, &source->keys, "FILE",
			"keys after RoPE: a .npy of f16, f32 or bf16,\n"
			"[layer][kv head][token][dim]"},
		{"values", 'V', KVR_CLI_TEXT, true, &source->values, "FILE",
			"values: the same axes and type"},
		KVR_SOURCE_TOKENS(source),
		{"tokens-out", 0, KVR_CLI_TEXT, false, &put.tokens_out, "FILE",
			"write the token ids used, for recall and fetch"},
		KVR_SOURCE_DTYPE(source),
		{"digest", 0, KVR_CLI_TEXT, false, &source->digest, "HEX",
			"64 digits that stand for weights and RoPE; without:\n"
			"made from the name"},
		{"query-heads", 0, KVR_CLI_U32, false, &put.query_heads, "H",
			"of the model; default: as many as kv heads"},
		{"segment-tokens", 0, KVR_CLI_U32, false, &put.segment_tokens, "S",
			"64 to 8192, a multiple of 64; default 1024"},
		{"cluster-tokens", 0, KVR_CLI_U32, false, &put.cluster_tokens, "N",
			"mean tokens per cluster, 4 to 1024; default 16"},
		{"sinks", 0, KVR_CLI_I32, false, &put.sinks, "N",
			"first tokens that are kept exact, 0 to 64; default 16"},
		KVR_SOURCE_DENSE(source),
		{"merged", 0, KVR_CLI_TEXT, false, &put.merged, "SETS",
			"merged sets to keep: tokens per row, like 2,8, or all;\n"
			"they belong to the model: give the same ones each time"},
		{0},
	};
	int error = kvr_cli_parse(cli, options, argc, argv);

	if (!error && !cli->timeout_ms)
		cli->timeout_ms = TIMEOUT_MS;
	if (!error)
		error = kvr_source_open(cli, source, &put.source);
	if (!error)
		error = kvr_cli_connect(cli);
	if (!error)
		error = store(cli, &put);
	if (!error && put.tokens_out)
		error = write_tokens(cli, &put);
	if (!error)
		error = print(cli, &put);
	kvr_close(put.sequence, true);
	kvr_source_close(&put.source);
	return error;
}

const struct kvr_cli_command kvr_cli_put = {
	.name = "put",
	.summary = "store keys and values from .npy files",
	.synopsis = "--model NAME --keys FILE --values FILE [OPTIONS]",
	.text = "Tokens that the daemon holds already are matched and not sent again. The rest is\n"
		"appended and sealed, so that other sequences match all of it.\n\n"
		"Examples:\n"
		"  kvrecall put --model tiny --keys K.npy --values V.npy --query-heads 4 \\\n"
		"      --tokens-out T.npy\n"
		"  kvrecall put --model big -K K.npy -V V.npy -T T.npy --dtype bf16 --dense 0-1\n"
		"  kvrecall put --model lean -K K.npy -V V.npy -T T.npy --merged 4,8\n",
	.run = run,
};

/* SPDX-License-Identifier: Apache-2.0 */
/* cli_bench.c: `kvrecall bench`: a quick measurement against the daemon that runs.
 *
 *   ping ... ─► append random keys and values ─► sync ─► recall ... ─► close, drop
 *
 * The model "kvrecall-bench" has one layer; token ids start from the clock, so that nothing of an
 * earlier run matches. Also after a failure and after Ctrl-C what was stored is dropped again.
 * Random keys have no clusters worth the name: time is measured here, not quality.
 *
 * Threads: one. */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/limits.h"
#include "client/cli.h"
#include "client/cli_report.h"
#include "client/cli_source.h"

#define MODEL_NAME "kvrecall-bench"
#define CHUNK      512u /* tokens per append */
#define TIMEOUT_MS 120000u
#define DROP_TRIES 50 /* 10 ms apart */

struct bench {
	uint32_t lanes, dim, tokens, budget, rounds;
	const char *dtype;
	enum kvr_type type;
	uint64_t random;
	struct kvr_model *model;
	struct kvr_sequence *sequence;
	uint8_t digest[32];
	uint64_t *times; /* [rounds] */
	uint64_t ping_ns[2];
	uint64_t append_bytes, append_ns, seal_ns;
	uint64_t recall_ns[2], recall_bytes; /* bytes of the last recall */
};

/* Set by Ctrl-C; pairs with nothing, it is only looked at between requests. */
static volatile sig_atomic_t interrupted;

static void interrupt(int number)
{
	(void)number;
	interrupted = 1;
}

static uint64_t next_random(struct bench *bench)
{
	/* xorshift64* (Vigna): enough for data that only has to differ. */
	bench->random ^= bench->random >> 12;
	bench->random ^= bench->random << 25;
	bench->random ^= bench->random >> 27;
	return bench->random * 0x2545f4914f6cdd1du;
}

/* Fills memory with numbers of magnitude 0.5 to 1 in the type: sign and mantissa are random. */
static void fill(struct bench *bench, uint8_t *into, size_t bytes)
{
	uint64_t keep = 0x807f807f807f807fu, set = 0x3f003f003f003f00u; /* bfloat16 */

	if (bench->type == KVR_F16) {
		keep = 0x83ff83ff83ff83ffu;
		set = 0x3800380038003800u;
	} else if (bench->type == KVR_F32) {
		keep = 0x807fffff807fffffu;
		set = 0x3f0000003f000000u;
	}
	for (size_t at = 0; at < bytes; at += 8) {
		uint64_t word = (next_random(bench) & keep) | set;

		memcpy(into + at, &word, bytes - at < 8 ? bytes - at : 8);
	}
}

static int compare(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

/* The median and the 99th percentile. */
static void percentiles(uint64_t *times, uint32_t count, uint64_t ret_ns[2])
{
	qsort(times, count, sizeof(*times), compare);
	ret_ns[0] = times[count / 2];
	ret_ns[1] = times[(uint64_t)count * 99 / 100];
}

static int measure_ping(struct kvr_cli *cli, struct bench *bench)
{
	for (uint32_t i = 0; i < bench->rounds; i++) {
		uint64_t start = kvr_clock_ns();
		int error = interrupted ? -EINTR : kvr_ping(cli->client);

		bench->times[i] = kvr_clock_ns() - start;
		if (error)
			return error;
	}
	percentiles(bench->times, bench->rounds, bench->ping_ns);
	return 0;
}

static int open_sequence(struct kvr_cli *cli, struct bench *bench)
{
	struct kvr_model_config config = {
		.name = MODEL_NAME,
		.layers = 1,
		.query_heads = bench->lanes,
		.kv_heads = bench->lanes,
		.key_dim = bench->dim,
		.value_dim = bench->dim,
		.type = bench->type,
		.sink_tokens = -1,
	};
	uint32_t token = (uint32_t)next_random(bench), matched = 0;
	int error = kvr_source_digest(cli, NULL, MODEL_NAME, bench->digest);

	memcpy(config.digest, bench->digest, sizeof(config.digest));
	if (!error)
		error = kvr_model_register(cli->client, &config, &bench->model);
	if (!error)
		error = kvr_open(bench->model, &token, 1, &bench->sequence, &matched);
	return error;
}

/* Appends, trying again while the daemon is busy sealing. */
static int append(struct kvr_cli *cli, const struct kvr_append *append)
{
	uint64_t until = kvr_clock_ns() + (uint64_t)cli->timeout_ms * 1000000;
	int error;

	while ((error = kvr_append(cli->client, append, NULL)) == -EAGAIN && !interrupted &&
		kvr_clock_ns() < until)
		nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
	return error;
}

static int measure_append(struct kvr_cli *cli, struct bench *bench)
{
	size_t token_bytes = (size_t)bench->lanes * bench->dim * kvr_source_type_bytes(bench->type);
	uint8_t *region = kvr_region(cli->client, NULL);
	struct kvr_append_layer layer = {.keys = region, .values = region + token_bytes * CHUNK};
	uint32_t ids[CHUNK], sealed = 0;
	uint64_t start;
	int error;

	for (uint32_t first = 0; first < bench->tokens; first += CHUNK) {
		uint32_t left = bench->tokens - first;
		struct kvr_append request = {
			.sequence = bench->sequence,
			.first = first,
			.count = left < CHUNK ? left : CHUNK,
			.tokens = ids,
			.layers = &layer,
			.layer_count = 1,
		};

		for (uint32_t i = 0; i < CHUNK; i++)
			ids[i] = (uint32_t)next_random(bench);
		fill(bench, region, token_bytes * CHUNK * 2);
		start = kvr_clock_ns();
		error = interrupted ? -EINTR : append(cli, &request);
		bench->append_ns += kvr_clock_ns() - start;
		if (error)
			return error;
		bench->append_bytes += token_bytes * request.count * 2;
	}
	start = kvr_clock_ns();
	error = kvr_sync(bench->sequence, true, &sealed);
	bench->seal_ns = kvr_clock_ns() - start;
	return error;
}

static int measure_recall(struct kvr_cli *cli, struct bench *bench)
{
	size_t row_bytes = bench->dim * (size_t)kvr_source_type_bytes(bench->type);
	size_t part = ((size_t)bench->lanes * bench->budget * row_bytes + 63) / 64 * 64;
	size_t query_bytes = (bench->lanes * row_bytes + 63) / 64 * 64;
	uint8_t *region = kvr_region(cli->client, NULL);
	struct kvr_recall_item item = {
		.sequence = bench->sequence,
		.query = region,
		.keys = region + query_bytes,
		.values = region + query_bytes + part,
		.rows = (struct kvr_rows *)(void *)(region + query_bytes + 2 * part),
	};
	struct kvr_recall request = {
		.items = &item,
		.item_count = 1,
		.query_type = bench->type,
		.budget_tokens = bench->budget,
		.row_capacity = bench->budget,
	};

	for (uint32_t i = 0; i < bench->rounds; i++) {
		uint64_t start;
		int error;

		fill(bench, region, bench->lanes * row_bytes);
		start = kvr_clock_ns();
		error = interrupted ? -EINTR : kvr_recall(cli->client, &request);
		bench->times[i] = kvr_clock_ns() - start;
		if (error)
			return error;
	}
	for (uint32_t lane = 0; lane < bench->lanes; lane++)
		bench->recall_bytes += row_bytes * item.rows[lane].row_count * 2;
	percentiles(bench->times, bench->rounds, bench->recall_ns);
	return 0;
}

/* Drops what a model holds. Leases may outlast their sequence for a moment, so what is kept is tried
 * again for a while; but those of other runs protect theirs. */
static void drop(struct kvr_cli *cli, uint32_t model)
{
	struct kvr_dropped dropped = {0};

	for (int i = 0; i < DROP_TRIES; i++) {
		if (kvr_drop_model(cli->client, model, &dropped) || !dropped.kept_count)
			return;
		nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
	}
}

/* Drops what bench models hold. */
static void clean_up(struct kvr_cli *cli, struct bench *bench)
{
	struct kvr_model_info page[16];
	uint32_t first = 0;
	int got;

	kvr_close(bench->sequence, true);
	bench->sequence = NULL;
	while ((got = kvr_model_list(cli->client, first, page, 16)) > 0) {
		for (int i = 0; i < got; i++)
			if (!memcmp(page[i].digest, bench->digest, sizeof(bench->digest)))
				drop(cli, page[i].model);
		first += (uint32_t)got;
	}
}

static int print(struct kvr_cli *cli, const struct bench *bench)
{
	struct kvr_report *report = kvr_report_open(cli->json);

	kvr_report_number(report, "lanes", bench->lanes);
	kvr_report_number(report, "dim", bench->dim);
	kvr_report_number(report, "tokens", bench->tokens);
	kvr_report_number(report, "budget_tokens", bench->budget);
	kvr_report_number(report, "ping_ns_p50", (double)bench->ping_ns[0]);
	kvr_report_number(report, "ping_ns_p99", (double)bench->ping_ns[1]);
	kvr_report_number(report, "append_bytes_per_s",
		(double)bench->append_bytes / ((double)bench->append_ns / 1e9));
	kvr_report_number(report, "seal_ns", (double)bench->seal_ns);
	kvr_report_number(report, "recall_ns_p50", (double)bench->recall_ns[0]);
	kvr_report_number(report, "recall_ns_p99", (double)bench->recall_ns[1]);
	kvr_report_number(report, "recall_bytes", (double)bench->recall_bytes);
	kvr_report_number(report, "recall_bytes_per_s",
		(double)bench->recall_bytes / ((double)bench->recall_ns[0] / 1e9));
	return kvr_report_close(cli, report, false);
}

/* Attaches. A daemon may give less memory than it was asked for. */
static int attach(struct kvr_cli *cli)
{
	size_t region_bytes = 0;
	int error = kvr_cli_connect(cli);

	if (error)
		return error;
	kvr_region(cli->client, &region_bytes);
	if (region_bytes >= cli->region_bytes)
		return 0;
	return kvr_cli_refuse(cli, ENOBUFS, "give fewer --lanes or a smaller --budget",
		"the daemon gave a region of %zu bytes, not %llu", region_bytes,
		(unsigned long long)cli->region_bytes);
}

/* Checks what sizes memory here, and asks for a region that is large enough. */
static int prepare(struct kvr_cli *cli, struct bench *bench)
{
	size_t row_bytes;

	bench->type = KVR_BF16;
	if (bench->dtype && !strcmp(bench->dtype, "f16"))
		bench->type = KVR_F16;
	else if (bench->dtype && !strcmp(bench->dtype, "f32"))
		bench->type = KVR_F32;
	else if (bench->dtype && strcmp(bench->dtype, "bf16") != 0)
		return kvr_cli_usage(cli, "--dtype takes bf16, f16 or f32");
	if (bench->lanes < 1 || bench->lanes > KVR_KV_HEADS_MAX || bench->dim < KVR_DIM_MIN ||
		bench->dim > KVR_DIM_MAX)
		return kvr_cli_usage(cli, "--lanes takes 1 to %u, --dim %u to %u", KVR_KV_HEADS_MAX,
			KVR_DIM_MIN, KVR_DIM_MAX);
	if (bench->tokens < 1 || bench->tokens > KVR_SEQUENCE_TOKENS_MAX || bench->budget < 1 ||
		bench->budget > KVR_SEQUENCE_TOKENS_MAX || bench->rounds < 1 ||
		bench->rounds > 1000000)
		return kvr_cli_usage(cli,
			"--tokens and --budget take 1 to %u, --rounds 1 to 1000000",
			KVR_SEQUENCE_TOKENS_MAX);
	row_bytes = bench->lanes * (size_t)bench->dim * kvr_source_type_bytes(bench->type);
	if (!cli->timeout_ms)
		cli->timeout_ms = TIMEOUT_MS;
	cli->region_bytes =
		(2 * (uint64_t)(bench->budget > CHUNK ? bench->budget : CHUNK) + 1) * row_bytes +
		bench->lanes * sizeof(struct kvr_rows) + 256; /* four parts, aligned */
	bench->times = calloc(bench->rounds, sizeof(*bench->times));
	if (!bench->times)
		return kvr_cli_refuse(cli, ENOMEM, "give fewer --rounds", "no memory for times");
	bench->random = kvr_clock_ns() | 1;
	return 0;
}

static int run(struct kvr_cli *cli, int argc, char **argv)
{
	struct bench bench = {
		.lanes = 8, .dim = 128, .tokens = 8192, .budget = 1024, .rounds = 500};
	const struct kvr_cli_option options[] = {
		{"lanes", 0, KVR_CLI_U32, false, &bench.lanes, "N", "kv heads; default 8"},
		{"dim", 0, KVR_CLI_U32, false, &bench.dim, "N", "of keys and values; default 128"},
		{"tokens", 0, KVR_CLI_U32, false, &bench.tokens, "N",
			"tokens appended; default 8192"},
		{"budget", 'b', KVR_CLI_U32, false, &bench.budget, "B",
			"rows recalled per lane; default 1024"},
		{"dtype", 0, KVR_CLI_TEXT, false, &bench.dtype, "TYPE",
			"bf16 (default), f16 or f32"},
		{"rounds", 'n', KVR_CLI_U32, false, &bench.rounds, "N",
			"pings and recalls; default 500"},
		{0},
	};
	int error = kvr_cli_parse(cli, options, argc, argv);

	if (!error)
		error = prepare(cli, &bench);
	if (!error)
		error = attach(cli);
	if (error) {
		free(bench.times);
		return error;
	}
	signal(SIGINT, interrupt);
	error = measure_ping(cli, &bench);
	if (!error)
		error = open_sequence(cli, &bench);
	if (!error)
		error = measure_append(cli, &bench);
	if (!error)
		error = measure_recall(cli, &bench);
	if (error == -EINTR)
		kvr_cli_refuse(cli, EINTR, "", "interrupted; what was stored is dropped");
	else if (error)
		kvr_cli_refused(cli, error);
	if (error != -ECONNRESET && error != -ENOTCONN) /* else it went with the daemon */
		clean_up(cli, &bench);
	free(bench.times);
	return error ? error : print(cli, &bench);
}

const struct kvr_cli_command kvr_cli_bench = {
	.name = "bench",
	.summary = "a quick measurement against the daemon that runs",
	.synopsis = "[OPTIONS]",
	.text = "Measures an empty round trip, appending, sealing and recall with random data, "
		"and\n"
		"drops what it stored. Other clients of the daemon are slowed down meanwhile.\n\n"
		"Examples:\n"
		"  kvrecall bench\n"
		"  kvrecall bench --lanes 8 --dim 128 --tokens 32768 --budget 1024 --json\n",
	.run = run,
};

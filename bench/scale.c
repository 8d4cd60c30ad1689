/* SPDX-License-Identifier: Apache-2.0 */
/* scale.c: how a recall's time grows with the context, at the same budget.
 *
 * Goal: what a recall moves does not grow; only the summaries that it reads do.
 *
 * Method: 8 lanes (K 8, H 32, Dk = Dv = 128, bf16), a budget of 1,024 tokens per lane, sequences of 4, 16,
 * 64 and 256 Ki tokens in one daemon; one recall of each in turn, other queries each time; medians of
 * 200 rounds, request to reply. The ratio is the time over that at 4 Ki. */
#include <stdio.h>

#include "bench/bench_util.h"
#include "bench/recall_util.h"
#include "bench/tiny.h"

#define SIZES   4u
#define BUDGET  1024u
#define WARM_UP BENCH_SIZE(10u, 1u)
#define ROUNDS  BENCH_SIZE(200u, 2u)

static const struct bench_shape shape = {.layers = 1, .query_heads = 32, .kv_heads = 8, .dim = 128};
static const uint32_t tokens[SIZES] = {
	4096, BENCH_SIZE(16384, 8192), BENCH_SIZE(65536, 12288), BENCH_SIZE(262144, 16384)};

static void measure(struct kvr_client *client, struct bench_content *content,
	struct bench_recall *const recalls[SIZES])
{
	static double times[SIZES][ROUNDS];
	double first = 0;

	for (uint32_t i = 0; i < WARM_UP + ROUNDS; i++) {
		for (uint32_t size = 0; size < SIZES; size++) {
			bench_recall_ask(recalls[size], content, tokens[size], i * SIZES + size);
			times[size][i < WARM_UP ? i : i - WARM_UP] =
				bench_recall_run(client, recalls[size], 0, 1);
		}
	}
	for (uint32_t size = 0; size < SIZES; size++) {
		const double time = bench_median(times[size], ROUNDS);
		char name[32];

		if (size == 0)
			first = time;
		snprintf(name, sizeof(name), "scale_%uk", tokens[size] / 1024);
		bench_print((struct bench_result){
			.bench = name,
			.value = time,
			.unit = "us",
			.reference = "the same at 4 Ki tokens",
			.reference_value = first,
			.ratio = time / first,
		});
	}
}

int main(int argc, char **argv)
{
	const uint64_t bytes = bench_recall_bytes(shape, 1, BUDGET);
	struct bench_content *content = bench_content_open(shape, 4);
	struct bench_recall *recalls[SIZES];
	struct bench_daemon daemon;
	struct kvr_client *client;
	struct kvr_model *model;

	bench_verbose(argc, argv);
	bench_start(&daemon, "2GiB");
	client = bench_connect(&daemon, SIZES * bytes);
	model = bench_model(client, shape);
	for (uint32_t i = 0; i < SIZES; i++)
		recalls[i] = bench_recall_open(client,
			bench_fill(client, model, content, tokens[i], i + 1), shape, 1, BUDGET,
			i * bytes);
	measure(client, content, recalls);
	for (uint32_t i = 0; i < SIZES; i++)
		bench_recall_close(recalls[i]);
	kvr_disconnect(client);
	bench_stop(&daemon);
	bench_content_close(content);
	return 0;
}

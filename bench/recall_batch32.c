/* SPDX-License-Identifier: Apache-2.0 */
/* recall_batch32.c: what a layer costs when 32 layers travel in one request.
 *
 * Goal: an engine that asks for all its layers at once must not pay for a round trip per layer.
 *
 * Method: 32 layers as one request, and as 32 requests one after the other, in turn; other queries each
 * time; medians of the time per layer. The ratio is how many times faster a layer is in the batch.
 *   recall_batch32       a small model: H 8, K 2, Dk = Dv = 64, 4 Ki tokens, a budget of 128
 *   recall_batch32_wide  Llama-3-8B's shape: H 32, K 8, Dk = Dv = 128, 4 Ki tokens, a budget of 512;
 *                        moving rows takes most of the time, and no batch saves that */
#include "bench/bench_util.h"
#include "bench/recall_util.h"
#include "bench/tiny.h"

#define LAYERS     BENCH_SIZE(32u, 4u)
#define TOKENS     BENCH_SIZE(4096u, 2048u)
#define WARM_UP    BENCH_SIZE(20u, 2u)
#define ROUNDS_MAX BENCH_SIZE(300u, 4u)

struct batch {
	const char *name;
	struct bench_shape shape;
	uint32_t budget, rounds;
	const char *host_bytes;
	uint64_t region_bytes; /* also of the appends */
};

static void measure(const struct batch *batch, struct kvr_client *client,
	struct bench_content *content, struct bench_recall *recall)
{
	static double whole[ROUNDS_MAX], single[ROUNDS_MAX];
	double ours, reference;

	for (uint32_t i = 0; i < WARM_UP + batch->rounds; i++) {
		const uint32_t at = i < WARM_UP ? i : i - WARM_UP;
		double sum = 0;

		bench_recall_ask(recall, content, TOKENS, 2 * i);
		whole[at] = bench_recall_run(client, recall, 0, LAYERS) / LAYERS;
		bench_recall_ask(recall, content, TOKENS, 2 * i + 1);
		for (uint32_t layer = 0; layer < LAYERS; layer++)
			sum += bench_recall_run(client, recall, layer, 1);
		single[at] = sum / LAYERS;
	}
	ours = bench_median(whole, batch->rounds);
	reference = bench_median(single, batch->rounds);
	bench_print((struct bench_result){
		.bench = batch->name,
		.value = ours,
		.unit = "us/layer",
		.reference = "32 single requests",
		.reference_value = reference,
		.ratio = reference / ours,
	});
}

static void run(const struct batch *batch)
{
	struct bench_content *content = bench_content_open(batch->shape, 2);
	struct bench_daemon daemon;
	struct bench_recall *recall;
	struct kvr_client *client;

	bench_start(&daemon, batch->host_bytes);
	client = bench_connect(&daemon, batch->region_bytes);
	recall = bench_recall_open(client,
		bench_fill(client, bench_model(client, batch->shape), content, TOKENS, 1),
		batch->shape, LAYERS, batch->budget, 0);
	measure(batch, client, content, recall);
	bench_recall_close(recall);
	kvr_disconnect(client);
	bench_stop(&daemon);
	bench_content_close(content);
}

int main(int argc, char **argv)
{
	static const struct batch batches[] = {
		{"recall_batch32", {LAYERS, 8, 2, 64}, 128, ROUNDS_MAX, "256MiB", 16u << 20},
		{"recall_batch32_wide", {LAYERS, 32, 8, 128}, 512, BENCH_SIZE(40, ROUNDS_MAX),
			"1GiB", 96u << 20},
	};

	bench_verbose(argc, argv);
	for (uint32_t i = 0; i < sizeof(batches) / sizeof(batches[0]); i++)
		run(&batches[i]);
	return 0;
}

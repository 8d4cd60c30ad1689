/* SPDX-License-Identifier: Apache-2.0 */
/* metadata.c: how much memory the daemon needs beside the keys and values that it holds.
 *
 * Goal: summaries and directory must stay a small part of what they index.
 *
 * Method: 8 lanes of Dk = Dv = 128, bf16, 16 tokens per cluster, segments of 1,024 tokens; 64 Ki tokens
 * sealed. Nothing is timed.
 *   metadata           summaries, token ids and directory entries, by the daemon's own count, over the
 *                      bytes of keys and values
 *   metadata_resident  what the daemon's resident memory has grown by while it took the tokens, less
 *                      the keys and values, over them: with rounding, free tail blocks and heap
 *   waste              what rounding takes of the arena: used over requested, less one */
#include "bench/bench_util.h"
#include "bench/content_util.h"
#include "bench/tiny.h"

#define TOKENS BENCH_SIZE(65536u, 4096u)

static const struct bench_shape shape = {.layers = 1, .query_heads = 32, .kv_heads = 8, .dim = 128};

int main(int argc, char **argv)
{
	const double held = (double)TOKENS * (double)bench_token_bytes(shape);
	struct bench_content *content = bench_content_open(shape, 3);
	struct bench_daemon daemon;
	struct kvr_client *client;
	double before, grown, used, requested;

	bench_verbose(argc, argv);
	bench_start(&daemon, "1GiB");
	client = bench_connect(&daemon, 4u << 20);
	/* The daemon maps the region too: it is touched, and counted, before. */
	bench_fill(client, bench_model(client, shape), content, 1024, 1);
	before = bench_resident(daemon.pid);
	bench_fill(client, bench_model(client, shape), content, TOKENS, 2);
	grown = bench_resident(daemon.pid) - before - held;
	bench_print((struct bench_result){
		.bench = "metadata",
		.value = bench_metric(client, "segment.metadata_ratio") *
			 bench_metric(client, "segment.payload_bytes"),
		.unit = "bytes",
		.reference = "key and value bytes held",
		.reference_value = bench_metric(client, "segment.payload_bytes"),
		.ratio = bench_metric(client, "segment.metadata_ratio"),
	});
	bench_print((struct bench_result){
		.bench = "metadata_resident",
		.value = grown,
		.unit = "bytes",
		.reference = "key and value bytes held",
		.reference_value = held,
		.ratio = grown / held,
	});
	used = bench_metric(client, "host.used_bytes");
	requested = bench_metric(client, "host.requested_bytes");
	bench_print((struct bench_result){
		.bench = "waste",
		.value = used - requested,
		.unit = "bytes",
		.reference = "arena bytes requested",
		.reference_value = requested,
		.ratio = used / requested - 1,
	});
	kvr_disconnect(client);
	bench_stop(&daemon);
	bench_content_close(content);
	return 0;
}

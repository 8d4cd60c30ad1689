/* SPDX-License-Identifier: Apache-2.0 */
/* reads.c: what a recall reads from NVMe for the bytes that it stages, and what the order of clusters on the disk saves.
 *
 * Goal: no more than 1.25 bytes read per byte recalled, in few reads: clusters lie whole and next to those that are similar.
 *
 * Method: 4 layers of 8 lanes (H 32, Dk = Dv = 128, bf16), 32 Ki tokens on NVMe, a budget of 1,024 tokens per lane, a request for
 * all layers, 16 queries. A daemon that was started after the tokens were stored, and whose host memory has no room for
 * clusters, counts what it reads; what it had in memory all the same is taken off what it staged.
 *
 * For store order the clusters that each reply took are planned (tiers/plan.h) twice: where they lie, and where they would lie if the
 * clusters of each lane of each segment were in an order drawn by chance. No disk takes part in that.
 *
 *   reads        bytes read per byte recalled
 *   reads_order  reads per request, against those in an order drawn by chance */
#include <stdio.h>
#include <stdlib.h>

#include "bench/bench_util.h"
#include "bench/recall_util.h"
#include "bench/stored_util.h"
#include "bench/tiny.h"

#define LAYERS  4u
#define HEADS   8u
#define LANES   (LAYERS * HEADS)
#define TOKENS  BENCH_SIZE(32768u, 4096u)
#define BUDGET  1024u
#define QUERIES BENCH_SIZE(16u, 2u)

static const struct bench_shape shape = {
	.layers = LAYERS, .query_heads = 32, .kv_heads = HEADS, .dim = 128};

/* What plans come to, all queries together. */
struct sum {
	uint64_t reads, read_bytes, piece_bytes;
};

static void add_plan(struct sum *sum, struct kvr_plan_piece *pieces, uint32_t count)
{
	static const struct kvr_plan_rule rule = {
		512, KVR_PLAN_GAP_BYTES, KVR_PLAN_SPAN_BYTES, 512};
	static struct kvr_plan_span spans[LANES * BUDGET];

	for (uint32_t i = 0; i < count; i++)
		sum->piece_bytes += pieces[i].bytes;
	count = kvr_plan(&rule, pieces, count, spans);
	sum->reads += count;
	for (uint32_t i = 0; i < count; i++)
		sum->read_bytes += spans[i].bytes;
}

/* Plans what the last recall took, with the clusters in an order drawn by `seed`; 0: as they are stored. */
static void plan(struct sum *sum, const struct bench_stored *stored,
	const struct bench_recall *recall, uint32_t seed)
{
	static struct kvr_plan_piece pieces[LANES * BUDGET];
	uint32_t count = 0;

	for (uint32_t lane = 0; lane < LANES; lane++) {
		const struct kvr_recall_item *item = &recall->recall.items[lane / HEADS];

		count += bench_stored_shuffled(stored, lane,
			item->positions + (size_t)(lane % HEADS) * BUDGET,
			item->rows[lane % HEADS].row_count, seed, pieces + count);
	}
	add_plan(sum, pieces, count);
}

static void report(const struct sum *stored, const struct sum *shuffled, double read, double staged)
{
	bench_print((struct bench_result){
		.bench = "reads",
		.value = read / QUERIES,
		.unit = "bytes/request",
		.reference = "bytes recalled",
		.reference_value = staged / QUERIES,
		.ratio = read / staged,
	});
	bench_print((struct bench_result){
		.bench = "reads_order",
		.value = (double)stored->reads / QUERIES,
		.unit = "reads/request",
		.reference = "clusters of a lane in an order drawn by chance",
		.reference_value = (double)shuffled->reads / QUERIES,
		.ratio = (double)stored->reads / (double)shuffled->reads,
	});
	fprintf(stderr,
		"reads: planned %.3f bytes per byte of clusters in store order, %.3f in an order "
		"drawn "
		"by chance\n",
		(double)stored->read_bytes / (double)stored->piece_bytes,
		(double)shuffled->read_bytes / (double)shuffled->piece_bytes);
}

static void measure(const struct bench_daemon *daemon, const struct bench_stored *stored,
	struct bench_content *content)
{
	struct kvr_client *client =
		bench_connect(daemon, bench_recall_bytes(shape, LAYERS, BUDGET));
	struct kvr_sequence *sequence = bench_reopen(client, bench_model(client, shape), TOKENS, 1);
	struct bench_recall *recall = bench_recall_open(client, sequence, shape, LAYERS, BUDGET, 0);
	struct sum as_stored = {0}, shuffled = {0};
	double staged = 0;

	for (uint32_t query = 0; query < QUERIES; query++) {
		bench_recall_ask(recall, content, TOKENS, query);
		bench_recall_run(client, recall, 0, LAYERS);
		staged += (double)bench_recall_staged(recall);
		plan(&as_stored, stored, recall, 0);
		plan(&shuffled, stored, recall, 1 + query);
	}
	staged -= bench_metric(client, "cache.hit_bytes");
	report(&as_stored, &shuffled, bench_metric(client, "nvme.read_bytes"), staged);
	bench_recall_close(recall);
	kvr_disconnect(client);
}

int main(int argc, char **argv)
{
	struct bench_content *content = bench_content_open(shape, 1);
	struct bench_setup setup = {.host_bytes = "64MiB", .store_bytes = "1GiB"};
	struct bench_daemon daemon;
	struct bench_stored *stored;
	struct kvr_client *client;
	char dir[64];

	bench_verbose(argc, argv);
	bench_dir(dir);
	setup.store = dir;
	bench_start_with(&daemon, &(struct bench_setup){"512MiB", false, dir, "1GiB"});
	client = bench_connect(&daemon, bench_token_bytes(shape) * 1024);
	bench_fill(client, bench_model(client, shape), content, TOKENS, 1);
	kvr_disconnect(client);
	bench_stop(&daemon);
	stored = bench_stored_open(dir, TOKENS, 1);
	bench_start_with(&daemon, &setup);
	measure(&daemon, stored, content);
	bench_stop(&daemon);
	bench_stored_close(stored);
	bench_content_close(content);
	return 0;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* recall_cold.c: bytes staged per second by a recall of which nothing is in host memory, against a bare io_uring loop.
 *
 * Goal: scores, checksums, copies and requests must hide behind the disk.
 *
 * Method: a model of 32 layers of 8 lanes (H 32, Dk = Dv = 128, bf16), 32 Ki tokens on NVMe, a budget of 1,024
 * tokens per lane, requests of 8 layers: 64 lanes, 32 MiB. The daemon is started anew for every pass, with its memory
 * taken from the system (memory.populate), opens the sequence, and recalls layers 0-7, 8-15, 16-23, 24-31, each once:
 * nothing that is asked for can be in the host tier, and the bench fails if the daemon counts a hit. The first request of a
 * pass, other layers each time, warms up what a new process has never touched (buffers, the ring, the client's region) and
 * is not counted.
 *
 * The reference reads the clusters of the very same requests from the same file: in merged spans by the daemon's rule or
 * cluster by cluster, whichever is faster, at its best depth. Before the daemon's turn in one pass, behind it in the next, since who
 * reads second may find the disk's own caches warm. What is counted for both is the bytes staged. Medians.
 *
 * With --verbose it says on stderr what the disk was asked for. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench/bench_util.h"
#include "bench/recall_util.h"
#include "bench/stored_util.h"
#include "bench/tiny.h"

#define LAYERS     BENCH_SIZE(32u, 16u)
#define BATCH      8u /* layers */
#define BATCHES    (LAYERS / BATCH)
#define HEADS      8u
#define TOKENS     BENCH_SIZE(32768u, 2048u)
#define BUDGET     1024u
#define PASSES     BENCH_SIZE(8u, 2u)
#define SAMPLES    (PASSES * (BATCHES - 1))
#define PIECES_MAX (BATCH * HEADS * BUDGET)
#define TRIES      BENCH_SIZE(3u, 1u)

static const struct bench_shape shape = {
	.layers = LAYERS, .query_heads = 32, .kv_heads = HEADS, .dim = 128};

/* What the reference reads for one request. */
struct reads {
	struct bench_extent *extents;
	uint32_t count;
	uint64_t bytes;
};

struct cold {
	struct bench_daemon daemon;
	struct bench_setup setup;
	struct bench_content *content;
	struct bench_stored *stored;
	struct bench_disk *disk;
	struct kvr_client *client;
	struct bench_recall *recall;
	struct reads spans[PASSES][BATCHES], clusters[PASSES][BATCHES];
	bool merged; /* the reference is faster with spans */
	uint32_t depth;
	double ours[SAMPLES], reference[SAMPLES]; /* bytes staged per second */
	uint32_t sample_count;
	double read_bytes, read_count, staged_bytes; /* of the daemon's, all samples */
};

static void start(struct cold *cold)
{
	struct kvr_model *model;

	bench_start_with(&cold->daemon, &cold->setup);
	cold->client = bench_connect(&cold->daemon, bench_recall_bytes(shape, BATCH, BUDGET));
	model = bench_model(cold->client, shape);
	cold->recall = bench_recall_open(cold->client, bench_reopen(cold->client, model, TOKENS, 1),
		shape, BATCH, BUDGET, 0);
	bench_populated(cold->client);
}

static void stop(struct cold *cold)
{
	cold->recall = bench_recall_close(cold->recall);
	kvr_disconnect(cold->client);
	bench_stop(&cold->daemon);
}

/* Recalls a batch of layers with the queries of a pass, into the same part of the region as any other. Returns seconds. */
static double recall_batch(struct cold *cold, uint32_t pass, uint32_t batch)
{
	for (uint32_t i = 0; i < BATCH; i++)
		cold->recall->recall.items[i].layer = batch * BATCH + i;
	bench_recall_ask(cold->recall, cold->content, TOKENS, pass);
	return bench_recall_run(cold->client, cold->recall, 0, BATCH) / 1e6;
}

/* ---- the reference --------------------------------------------------------------------------- */

static struct reads reads_of(
	const struct cold *cold, struct kvr_plan_piece *pieces, uint32_t count, uint32_t gap_bytes)
{
	const struct kvr_plan_rule rule = {
		512, gap_bytes, gap_bytes ? KVR_PLAN_SPAN_BYTES : 1, 512};
	struct kvr_plan_span *spans = calloc(count, sizeof(*spans));
	struct reads reads = {.extents = calloc(2 * (size_t)count, sizeof(*reads.extents))};

	if (!spans || !reads.extents)
		bench_fail("no memory");
	count = kvr_plan(&rule, pieces, count, spans);
	for (uint32_t i = 0; i < count; i++)
		reads.count += bench_stored_extents(cold->stored, spans[i].offset, spans[i].bytes,
			0, reads.extents + reads.count, 2);
	for (uint32_t i = 0; i < reads.count; i++)
		reads.bytes += reads.extents[i].bytes;
	free(spans);
	return reads;
}

/* Asks with the queries of every pass, with positions, to learn which clusters they take. */
static void plan(struct cold *cold)
{
	static struct kvr_plan_piece pieces[PIECES_MAX];

	start(cold);
	for (uint32_t pass = 0; pass < PASSES; pass++) {
		for (uint32_t batch = 0; batch < BATCHES; batch++) {
			uint32_t count = 0;

			recall_batch(cold, pass, batch);
			for (uint32_t i = 0; i < BATCH * HEADS; i++) {
				const struct kvr_recall_item *item =
					&cold->recall->recall.items[i / HEADS];

				count +=
					bench_stored_pieces(cold->stored, batch * BATCH * HEADS + i,
						item->positions + (size_t)(i % HEADS) * BUDGET,
						item->rows[i % HEADS].row_count, pieces + count);
			}
			cold->clusters[pass][batch] = reads_of(cold, pieces, count, 0);
			cold->spans[pass][batch] =
				reads_of(cold, pieces, count, KVR_PLAN_GAP_BYTES);
		}
	}
	stop(cold);
}

static double best_of(struct cold *cold, const struct reads *reads, uint32_t *ret_depth)
{
	double best = 1e9;

	*ret_depth = bench_disk_best_depth(cold->disk, reads->extents, reads->count);
	for (uint32_t i = 0; i < TRIES; i++) {
		const double s =
			bench_disk_read(cold->disk, reads->extents, reads->count, *ret_depth);

		best = s < best ? s : best;
	}
	return best;
}

/* How the reference reads fastest. */
static void tune(struct cold *cold)
{
	uint32_t merged_depth, depth;
	const double merged = best_of(cold, &cold->spans[0][0], &merged_depth);
	const double single = best_of(cold, &cold->clusters[0][0], &depth);

	cold->merged = merged < single;
	cold->depth = cold->merged ? merged_depth : depth;
}

static double read_bare(struct cold *cold, uint32_t pass, uint32_t batch)
{
	const struct reads *reads =
		cold->merged ? &cold->spans[pass][batch] : &cold->clusters[pass][batch];

	return bench_disk_read(cold->disk, reads->extents, reads->count, cold->depth);
}

/* ---- ours ------------------------------------------------------------------------------------ */

static void measure_pass(struct cold *cold, uint32_t pass)
{
	double bytes, count;

	start(cold);
	for (uint32_t i = 0; i < BATCH; i++)
		cold->recall->recall.items[i].positions = NULL;
	recall_batch(cold, pass, pass % BATCHES);
	bytes = bench_metric(cold->client, "nvme.read_bytes");
	count = bench_metric(cold->client, "nvme.reads_count");
	for (uint32_t i = 1; i < BATCHES; i++) {
		const uint32_t batch = (pass + i) % BATCHES, sample = cold->sample_count++;
		double staged, ours, bare = 0;

		if (pass % 2 == 0)
			bare = read_bare(cold, pass, batch);
		ours = recall_batch(cold, pass, batch);
		if (pass % 2 == 1)
			bare = read_bare(cold, pass, batch);
		staged = (double)bench_recall_staged(cold->recall);
		cold->ours[sample] = staged / ours;
		cold->reference[sample] = staged / bare;
		cold->staged_bytes += staged;
	}
	cold->read_bytes += bench_metric(cold->client, "nvme.read_bytes") - bytes;
	cold->read_count += bench_metric(cold->client, "nvme.reads_count") - count;
	if (bench_metric(cold->client, "cache.hit_bytes") > 0)
		bench_fail("something was in host memory");
	stop(cold);
}

static void report(struct cold *cold, bool verbose)
{
	const double ours = bench_median(cold->ours, cold->sample_count);
	const double reference = bench_median(cold->reference, cold->sample_count);
	const struct reads *reads = cold->merged ? &cold->spans[0][0] : &cold->clusters[0][0];

	bench_print((struct bench_result){
		.bench = "recall_cold",
		.value = ours,
		.unit = "bytes/s",
		.reference = "bare io_uring loop, the same clusters, its best depth",
		.reference_value = reference,
		.ratio = ours / reference,
	});
	if (!verbose)
		return;
	fprintf(stderr,
		"recall_cold: daemon %.0f reads of %.1f KiB a request, %.3f bytes read per byte "
		"staged; "
		"reference %s, %u reads of %.1f KiB at depth %u\n",
		cold->read_count / cold->sample_count, cold->read_bytes / cold->read_count / 1024,
		cold->read_bytes / cold->staged_bytes, cold->merged ? "merged" : "by cluster",
		reads->count, (double)reads->bytes / reads->count / 1024, cold->depth);
	fprintf(stderr, "recall_cold: ours %.2f to %.2f GB/s, reference %.2f to %.2f\n",
		cold->ours[0] / 1e9, cold->ours[cold->sample_count - 1] / 1e9,
		cold->reference[0] / 1e9, cold->reference[cold->sample_count - 1] / 1e9);
}

/* Puts the sequence into a store, and ends the daemon. */
static void fill(struct cold *cold)
{
	bench_start_with(&cold->daemon, &cold->setup);
	cold->client = bench_connect(&cold->daemon, bench_recall_bytes(shape, BATCH, BUDGET));
	bench_fill(cold->client, bench_model(cold->client, shape), cold->content, TOKENS, 1);
	kvr_disconnect(cold->client);
	bench_stop(&cold->daemon);
}

int main(int argc, char **argv)
{
	const bool verbose = bench_verbose(argc, argv);
	static struct cold cold;
	char dir[64], path[96];

	bench_dir(dir);
	cold.setup = (struct bench_setup){
		.host_bytes = "768MiB", .populate = true, .store = dir, .store_bytes = "5GiB"};
	cold.content = bench_content_open(shape, 1);
	fill(&cold);
	cold.stored = bench_stored_open(dir, TOKENS, 1);
	bench_stored_path(dir, path);
	cold.disk = bench_disk_open(path);
	plan(&cold);
	tune(&cold);
	for (uint32_t pass = 0; pass < PASSES; pass++)
		measure_pass(&cold, pass);
	report(&cold, verbose);
	for (uint32_t i = 0; i < PASSES * BATCHES; i++) {
		free(cold.spans[i / BATCHES][i % BATCHES].extents);
		free(cold.clusters[i / BATCHES][i % BATCHES].extents);
	}
	bench_disk_close(cold.disk);
	bench_stored_close(cold.stored);
	bench_content_close(cold.content);
	return 0;
}

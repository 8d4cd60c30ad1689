/* SPDX-License-Identifier: Apache-2.0 */
/* restart.c: from the start of the daemon to the reply of the first recall, with ten times as much stored.
 *
 * Goal: a start looks at little of what there is: its time does not grow with the store.
 *
 * Method: two stores. One has a sequence of 32 Ki tokens, 8 layers of 8 lanes (Dk = Dv = 128, bf16): 1 GiB. The other has the same and
 * nine times as much of another model, whose lanes are dense, so that it is sealed quickly. The time runs from fork to the reply to a
 * recall of all layers (budget 1,024): the daemon starts and opens the store, the client attaches, registers the model, opens the
 * sequence by its tokens, and asks. Before each start the system is told to forget the catalog's pages. In turn, medians.
 *
 * With --verbose it says on stderr how long the parts take. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/clock.h"
#include "bench/bench_util.h"
#include "bench/recall_util.h"
#include "bench/tiny.h"

#define LAYERS  BENCH_SIZE(8u, 2u)
#define HEADS   8u
#define LANES   (LAYERS * HEADS)
#define DIM     128u
#define TOKENS  BENCH_SIZE(32768u, 4096u)
#define OTHERS  BENCH_SIZE(9u, 2u) /* sequences of the other model */
#define BUDGET  1024u
#define CHUNK   512u
#define ROUNDS  BENCH_SIZE(7u, 1u)
#define WARM_UP 1u

static const struct bench_shape shape = {
	.layers = LAYERS, .query_heads = 32, .kv_heads = HEADS, .dim = DIM};

struct trial {
	struct bench_setup setup;
	char dir[64];
	double whole[ROUNDS], started[ROUNDS], opened[ROUNDS]; /* ms */
};

/* ---- what is stored -------------------------------------------------------------------------- */

static struct kvr_model *dense_model(struct kvr_client *client)
{
	uint32_t lanes[LANES];
	const struct kvr_model_config config = {
		.name = "dense",
		.digest = {1},
		.layers = LAYERS,
		.query_heads = 32,
		.kv_heads = HEADS,
		.key_dim = DIM,
		.value_dim = DIM,
		.type = KVR_BF16,
		.sink_tokens = -1,
		.dense_lanes = lanes,
		.dense_count = LANES,
	};
	struct kvr_model *model = NULL;

	for (uint32_t i = 0; i < LANES; i++)
		lanes[i] = i;
	bench_need(client, kvr_model_register(client, &config, &model), "kvr_model_register");
	return model;
}

/* A sequence of the same rows again and again, under ids of its own. The region has them already. */
static void fill_dense(struct kvr_client *client, struct kvr_model *model,
	const struct kvr_append_layer *layers, uint32_t seed)
{
	struct kvr_sequence *sequence = NULL;
	uint32_t ids[CHUNK] = {seed << 24}, matched;

	bench_need(client, kvr_open(model, ids, 1, &sequence, &matched), "kvr_open");
	for (uint32_t first = 0; first < TOKENS; first += CHUNK) {
		const struct kvr_append append = {sequence, first, CHUNK, ids, layers, LAYERS};

		for (uint32_t i = 0; i < CHUNK; i++)
			ids[i] = seed << 24 | (first + i);
		bench_need(client, kvr_append(client, &append, NULL), "kvr_append");
		/* So that what is not stored yet takes little memory. */
		bench_need(client, kvr_sync(sequence, false, NULL), "kvr_sync");
	}
	bench_need(client, kvr_close(sequence, true), "kvr_close");
}

static void fill(const struct trial *trial, struct bench_content *content, uint32_t others)
{
	const size_t layer_bytes = (size_t)CHUNK * HEADS * DIM * sizeof(uint16_t);
	struct kvr_append_layer layers[LAYERS];
	struct bench_daemon daemon;
	struct kvr_client *client;
	struct kvr_model *model;
	uint8_t *region;

	bench_start_with(&daemon, &trial->setup);
	client = bench_connect(&daemon, 2 * LAYERS * layer_bytes);
	region = kvr_region(client, NULL);
	model = dense_model(client);
	for (uint32_t i = 0; i < LAYERS; i++) {
		layers[i] = (struct kvr_append_layer){
			i, region + 2 * i * layer_bytes, region + (2 * i + 1) * layer_bytes};
		bench_rows(content, i, 0, CHUNK, (uint16_t *)(void *)(region + 2 * i * layer_bytes),
			(uint16_t *)(void *)(region + (2 * i + 1) * layer_bytes));
	}
	for (uint32_t i = 0; i < others; i++)
		fill_dense(client, model, layers, 2 + i);
	bench_fill(client, bench_model(client, shape), content, TOKENS, 1);
	kvr_disconnect(client);
	bench_stop(&daemon);
}

/* ---- starting -------------------------------------------------------------------------------- */

/* The catalog is read through the page cache; after a restart of the machine nothing of it is there. */
static void forget(const struct trial *trial)
{
	char path[128];
	int fd;

	snprintf(path, sizeof(path), "%s/catalog/data.mdb", trial->dir);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED) != 0)
		bench_fail("%s: cannot be taken out of the page cache", path);
	close(fd);
}

static double ms_since(uint64_t start_ns)
{
	return (double)(kvr_clock_ns() - start_ns) / 1e6;
}

static void start(struct trial *trial, struct bench_content *content, uint32_t round)
{
	struct bench_daemon daemon;
	struct bench_recall *recall;
	struct kvr_sequence *sequence;
	struct kvr_client *client;
	uint64_t begin;

	forget(trial);
	begin = kvr_clock_ns();
	bench_start_with(&daemon, &trial->setup);
	trial->started[round] = ms_since(begin);
	client = bench_connect(&daemon, bench_recall_bytes(shape, LAYERS, BUDGET));
	sequence = bench_reopen(client, bench_model(client, shape), TOKENS, 1);
	trial->opened[round] = ms_since(begin);
	recall = bench_recall_open(client, sequence, shape, LAYERS, BUDGET, 0);
	bench_recall_ask(recall, content, TOKENS, round);
	bench_recall_run(client, recall, 0, LAYERS);
	trial->whole[round] = ms_since(begin);
	bench_recall_close(recall);
	kvr_disconnect(client);
	bench_stop(&daemon);
}

static void explain(struct trial *trial, const char *name, double whole)
{
	const double started = bench_median(trial->started, ROUNDS);
	const double opened = bench_median(trial->opened, ROUNDS);

	fprintf(stderr,
		"restart: %s: %.0f ms = daemon serves %.0f + sequence opened %.0f + recall %.0f\n",
		name, whole, started, opened - started, whole - opened);
}

int main(int argc, char **argv)
{
	const bool verbose = bench_verbose(argc, argv);
	struct bench_content *content = bench_content_open(shape, 1);
	static struct trial small = {.setup = {.host_bytes = "512MiB", .store_bytes = "1200MiB"}};
	static struct trial large = {.setup = {.host_bytes = "512MiB", .store_bytes = "12000MiB"}};
	double ours, reference;

	bench_dir(small.dir);
	bench_dir(large.dir);
	small.setup.store = small.dir;
	large.setup.store = large.dir;
	fill(&small, content, 0);
	fill(&large, content, OTHERS);
	for (uint32_t i = 0; i < WARM_UP + ROUNDS; i++) {
		const uint32_t at = i < WARM_UP ? 0 : i - WARM_UP;

		start(&small, content, at);
		start(&large, content, at);
	}
	ours = bench_median(large.whole, ROUNDS);
	reference = bench_median(small.whole, ROUNDS);
	bench_print((struct bench_result){
		.bench = "restart",
		.value = ours,
		.unit = "ms",
		.reference = "with a tenth of it stored",
		.reference_value = reference,
		.ratio = ours / reference,
	});
	if (verbose) {
		explain(&small, "1 GiB", reference);
		explain(&large, "10 GiB", ours);
	}
	bench_content_close(content);
	return 0;
}

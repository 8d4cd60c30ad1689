/* SPDX-License-Identifier: Apache-2.0 */
/* append.c: how fast keys and values get into the daemon, request to reply, against memcpy.
 *
 * Goal: an append checks every number and copies it once; that must not cost much more than copying.
 *
 * Method: 8 lanes (K 8, Dk = Dv = 128, bf16), 256 tokens per append, 1 MiB. What has come together to a
 * segment is sealed between the appends, outside the time measured. The reference copies the same
 * bytes from the region into memory of 2 MiB pages, on as many threads as the daemon works on, two
 * times 64 tokens at once. Both in turn, 400 rounds, medians. */
#include <stdlib.h>

#include "base/clock.h"
#include "bench/bench_util.h"
#include "bench/content_util.h"
#include "bench/copy_util.h"
#include "bench/tiny.h"

#define CHUNK   256u
#define PARTS   4u
#define WARM_UP BENCH_SIZE(40u, 2u)
#define ROUNDS  BENCH_SIZE(400u, 4u)

static const struct bench_shape shape = {.layers = 1, .query_heads = 32, .kv_heads = 8, .dim = 128};
#define ROW ((size_t)8 * 128)

struct appending {
	struct kvr_client *client;
	struct kvr_sequence *sequence;
	uint16_t *region, *store;
	uint32_t position;
};

/* Appends the next tokens; the content stays the same, the token ids do not. */
static double time_append(struct appending *it)
{
	const struct kvr_append_layer layer = {0, it->region, it->region + CHUNK * ROW};
	uint32_t ids[CHUNK];
	const struct kvr_append append = {it->sequence, it->position, CHUNK, ids, &layer, 1};
	uint64_t start;
	double time;

	for (uint32_t i = 0; i < CHUNK; i++)
		ids[i] = it->position + i;
	start = kvr_clock_ns();
	bench_need(it->client, kvr_append(it->client, &append, NULL), "kvr_append");
	time = (double)(kvr_clock_ns() - start) / 1000;
	it->position += CHUNK;
	bench_need(it->client, kvr_sync(it->sequence, false, NULL), "kvr_sync");
	return time;
}

static double time_copy(struct appending *it, struct bench_copier *copier)
{
	const size_t bytes = 2 * CHUNK * ROW * sizeof(uint16_t);
	struct bench_copy copies[PARTS];
	struct bench_batch batches[PARTS];

	for (uint32_t i = 0; i < PARTS; i++) {
		const size_t at = i * bytes / PARTS;

		copies[i] = (struct bench_copy){
			(uint8_t *)it->store + it->position / CHUNK * bytes + at,
			(const uint8_t *)it->region + at, bytes / PARTS};
		batches[i] = (struct bench_batch){&copies[i], 1};
	}
	return bench_copy(copier, batches, PARTS);
}

int main(int argc, char **argv)
{
	const double bytes = CHUNK * (double)bench_token_bytes(shape);
	static double append[ROUNDS], copy[ROUNDS];
	struct bench_content *content = bench_content_open(shape, 5);
	struct bench_copier *copier;
	struct bench_daemon daemon;
	struct appending it = {0};
	double ours, reference;
	uint32_t matched;

	bench_verbose(argc, argv);
	bench_start(&daemon, "1GiB");
	it.client = bench_connect(&daemon, 2 * CHUNK * ROW * sizeof(uint16_t));
	it.region = kvr_region(it.client, NULL);
	bench_need(it.client,
		kvr_open(bench_model(it.client, shape), &(uint32_t){0}, 1, &it.sequence, &matched),
		"kvr_open");
	bench_rows(content, 0, 0, CHUNK, it.region, it.region + CHUNK * ROW);
	it.store = bench_memory((uint64_t)(WARM_UP + ROUNDS + 1) * (uint64_t)bytes);
	copier = bench_copier_open(bench_cpus());
	for (uint32_t i = 0; i < WARM_UP + ROUNDS; i++) {
		const uint32_t at = i < WARM_UP ? i : i - WARM_UP;

		append[at] = time_append(&it);
		copy[at] = time_copy(&it, copier);
	}
	bench_copier_close(copier);
	ours = bench_median(append, ROUNDS);
	reference = bench_median(copy, ROUNDS);
	bench_print((struct bench_result){
		.bench = "append",
		.value = bytes / ours * 1e6,
		.unit = "bytes/s",
		.reference = "memcpy of the same bytes, same threads",
		.reference_value = bytes / reference * 1e6,
		.ratio = reference / ours,
	});
	kvr_disconnect(it.client);
	bench_stop(&daemon);
	bench_content_close(content);
	return 0;
}

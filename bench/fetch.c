/* SPDX-License-Identifier: Apache-2.0 */
/* fetch.c: bytes read back per second, in token order and bit-identical, against a bare sequential reader.
 *
 * Goal: what was stored in the order of clusters comes back in that of tokens, checked, at the speed of the disk.
 *
 * Method: 4 layers of 8 lanes (Dk = Dv = 128, bf16), 32 Ki tokens on NVMe: 512 MiB, by one request, in a daemon that was started
 * after they were stored, and whose host memory has no room for them. The reference reads the same rows where they lie in
 * slabs.kvr, in the order of the file, by a bare io_uring loop, in reads of a slab or of a quarter of one, whichever is faster, at its best
 * depth; it leaves them as they are. In turn, medians. A first fetch is not counted: nobody has touched the client's region
 * before it. */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "bench/bench_util.h"
#include "bench/content_util.h"
#include "bench/stored_util.h"
#include "bench/tiny.h"

#define LAYERS      4u
#define HEADS       8u
#define DIM         128u
#define TOKENS      BENCH_SIZE(32768u, 4096u)
#define ROUNDS      BENCH_SIZE(9u, 2u)
#define EXTENTS_MAX 8192u

static const struct bench_shape shape = {
	.layers = LAYERS, .query_heads = 32, .kv_heads = HEADS, .dim = DIM};

struct extents {
	struct bench_extent list[EXTENTS_MAX];
	uint32_t count, depth;
	double s; /* at its best depth */
};

/* All rows, in the order of the file, in reads of at most max_bytes. */
static void cut(struct extents *extents, const struct bench_stored *stored, struct bench_disk *disk,
	uint32_t max_bytes)
{
	for (uint32_t i = 0; i < bench_stored_segments(stored); i++) {
		const struct kvr_plan_piece piece =
			bench_stored_lanes(stored, i, 0, LAYERS * HEADS);

		extents->count += bench_stored_extents(stored, piece.offset, piece.bytes, max_bytes,
			extents->list + extents->count, EXTENTS_MAX - extents->count);
	}
	extents->depth = bench_disk_best_depth(disk, extents->list, extents->count);
	extents->s = bench_disk_read(disk, extents->list, extents->count, extents->depth);
}

static double fetch(struct kvr_client *client, struct kvr_sequence *sequence)
{
	const size_t layer_bytes = (size_t)TOKENS * HEADS * DIM * sizeof(uint16_t);
	struct kvr_fetch_layer layers[LAYERS];
	const struct kvr_fetch request = {sequence, 0, TOKENS, layers, LAYERS};
	uint8_t *region = kvr_region(client, NULL);
	uint64_t start;

	for (uint32_t i = 0; i < LAYERS; i++)
		layers[i] = (struct kvr_fetch_layer){
			i, region + 2 * i * layer_bytes, region + (2 * i + 1) * layer_bytes};
	start = kvr_clock_ns();
	bench_need(client, kvr_fetch(client, &request), "kvr_fetch");
	return (double)(kvr_clock_ns() - start) / 1e9;
}

static void check(struct kvr_client *client, struct bench_content *content)
{
	const size_t row = (size_t)HEADS * DIM;
	const uint16_t *keys = kvr_region(client, NULL);
	uint16_t *expected = calloc(2 * row, sizeof(*expected));

	if (!expected)
		bench_fail("no memory");
	for (uint32_t token = 0; token < TOKENS; token += 997) {
		bench_rows(content, 0, token, 1, expected, expected + row);
		if (memcmp(keys + token * row, expected, row * sizeof(*keys)) != 0 ||
			memcmp(keys + (TOKENS + token) * row, expected + row,
				row * sizeof(*keys)) != 0)
			bench_fail("token %u is not what was appended", token);
	}
	free(expected);
}

static void measure(struct kvr_client *client, struct kvr_sequence *sequence,
	struct bench_disk *disk, const struct extents *extents)
{
	const double bytes = (double)TOKENS * (double)bench_token_bytes(shape);
	double ours[ROUNDS], reference[ROUNDS];
	const double before = bench_metric(client, "nvme.read_bytes");

	for (uint32_t i = 0; i < ROUNDS; i++) {
		if (i % 2 == 0)
			ours[i] = fetch(client, sequence);
		reference[i] = bench_disk_read(disk, extents->list, extents->count, extents->depth);
		if (i % 2 == 1)
			ours[i] = fetch(client, sequence);
	}
	if (bench_metric(client, "nvme.read_bytes") - before < bytes * ROUNDS)
		bench_fail("something was in host memory");
	bench_print((struct bench_result){
		.bench = "fetch",
		.value = bytes / bench_median(ours, ROUNDS),
		.unit = "bytes/s",
		.reference = "bare io_uring sequential reader, its best depth",
		.reference_value = bytes / bench_median(reference, ROUNDS),
		.ratio = bench_median(reference, ROUNDS) / bench_median(ours, ROUNDS),
	});
}

int main(int argc, char **argv)
{
	const uint64_t region_bytes = TOKENS * bench_token_bytes(shape);
	static struct extents slabs, quarters;
	struct bench_content *content = bench_content_open(shape, 1);
	struct bench_setup setup = {.host_bytes = "256MiB", .store_bytes = "1GiB"};
	struct bench_stored *stored;
	struct bench_daemon daemon;
	struct bench_disk *disk;
	struct kvr_sequence *sequence;
	struct kvr_client *client;
	char dir[64], path[96];

	bench_verbose(argc, argv);
	bench_dir(dir);
	setup.store = dir;
	bench_start_with(&daemon, &setup);
	client = bench_connect(&daemon, bench_token_bytes(shape) * 1024);
	bench_fill(client, bench_model(client, shape), content, TOKENS, 1);
	kvr_disconnect(client);
	bench_stop(&daemon);
	stored = bench_stored_open(dir, TOKENS, 1);
	bench_stored_path(dir, path);
	disk = bench_disk_open(path);
	cut(&slabs, stored, disk, 0);
	cut(&quarters, stored, disk, 256u << 10);
	bench_start_with(&daemon, &setup);
	client = bench_connect(&daemon, region_bytes);
	sequence = bench_reopen(client, bench_model(client, shape), TOKENS, 1);
	fetch(client, sequence);
	check(client, content);
	measure(client, sequence, disk, slabs.s < quarters.s ? &slabs : &quarters);
	kvr_disconnect(client);
	bench_stop(&daemon);
	bench_disk_close(disk);
	bench_stored_close(stored);
	bench_content_close(content);
	return 0;
}

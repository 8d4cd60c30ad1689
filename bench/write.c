/* SPDX-License-Identifier: Apache-2.0 */
/* write.c: bytes of sealed segments made durable per second, against a bare sequential writer.
 *
 * Goal: copying into slabs, checksums and the catalog must hide behind the disk.
 *
 * Method: the store's own put path (tiers/store.h), from segments that are sealed in memory until all of them are durable and
 * in the catalog. A chain of 24 segments of 1,024 tokens, 64 lanes, Dk = Dv = 128, bf16: 32 MiB of keys and values each, 0.8 GiB
 * in all, up to 16 in the store's hands at a time, as the daemon does. Sealing itself is not in it (bench seal). The segments are dropped
 * between rounds, outside the time, and the first rounds are not counted: in the others all slabs have been written before, as those
 * of the reference's file have.
 *
 * The reference writes as many slabs of 1 MiB, one behind the other, by a bare io_uring loop at its best depth, with as many
 * fdatasyncs as the store's commits had, evenly spread. The catalog's own syncs (LMDB) are only in ours. In turn, medians. */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "bench/bench_util.h"
#include "bench/disk_util.h"
#include "bench/tiny.h"
#include "tiers/store.h"

#define SEGMENTS     BENCH_SIZE(24u, 4u)
#define PAYLOADS     8u  /* segments share them in turn: more than a cache holds */
#define RUNNING_MAX  16u /* KVR_KEEP_JOBS_MAX */
#define TOKENS       1024u
#define CLUSTER      16u
#define WARM_UP      BENCH_SIZE(2u, 1u)
#define ROUNDS       BENCH_SIZE(7u, 1u)
#define MEMORY_BYTES ((size_t)2 << 20)

static const struct kvr_slab_model model = {
	.root = {1},
	.tenant = "bench",
	.name = "bench",
	.geometry =
		{
			.layer_count = 8,
			.query_heads = 32,
			.kv_heads = 8,
			.key_dim = 128,
			.value_dim = 128,
			.dtype = KVR_DTYPE_BF16,
			.segment_tokens = TOKENS,
			.cluster_tokens = CLUSTER,
		},
};

struct sealed {
	struct kvr_segment_view view;
	struct kvr_slab_layout layout;
	uint32_t tokens[TOKENS];
	struct kvr_store_job job;
};

struct bed {
	struct kvr_store *store;
	struct sealed segments[SEGMENTS];
	uint32_t slabs; /* of all segments */
};

/* ---- segments -------------------------------------------------------------------------------- */

/* Clusters of equal size, in the order of tokens; what the rows are does not matter here. */
static void seal(struct sealed *segment, uint32_t number, uint8_t *payload)
{
	struct kvr_segment_view *view = &segment->view;
	struct kvr_store_put *put = &segment->job.put;
	uint32_t bytes;

	kvr_segment_shape(view, &model.geometry, number * TOKENS, TOKENS);
	kvr_segment_bind_all(view, bench_memory(kvr_segment_bind_all(view, NULL)));
	kvr_slab_layout(&model.geometry, number * TOKENS, TOKENS, &segment->layout);
	for (uint32_t lane = 0; lane < kvr_geometry_lanes(&model.geometry); lane++) {
		uint16_t *row_first = kvr_segment_row_first(view, lane);

		view->cluster_count[lane] = (uint16_t)view->cluster_max;
		for (uint32_t c = 0; c <= view->cluster_max; c++)
			row_first[c] = (uint16_t)(c * CLUSTER);
		row_first[view->cluster_max + 1] = TOKENS;
		for (uint32_t c = 0; c <= view->cluster_max; c++)
			kvr_segment_set_extent(view, lane, c,
				payload +
					(kvr_slab_unit_at(&segment->layout, view, lane, c, &bytes) -
						segment->layout.payload_at));
	}
	segment->job.op = KVR_STORE_PUT;
	*put = (struct kvr_store_put){
		.model = &model,
		.view = view,
		.tokens = segment->tokens,
		.hash = {2, (uint8_t)number},
		.parent = {2, (uint8_t)(number - 1)},
		.quota_bytes = UINT64_MAX,
		.parts = calloc(segment->layout.part_count, sizeof(*put->parts)),
		.crcs = calloc(kvr_segment_extent_count(view), sizeof(*put->crcs)),
	};
	if (number == 0)
		memcpy(put->parent, model.root, sizeof(put->parent));
	if (!put->parts || !put->crcs)
		bench_fail("no memory");
}

static void seal_all(struct bed *bed)
{
	uint8_t *payloads[PAYLOADS];

	for (uint32_t i = 0; i < SEGMENTS; i++) {
		const size_t bytes = TOKENS * kvr_geometry_token_bytes(&model.geometry);

		if (i < PAYLOADS)
			payloads[i] = bench_memory(bytes);
		seal(&bed->segments[i], i, payloads[i % PAYLOADS]);
		bed->slabs += bed->segments[i].layout.part_count;
	}
}

/* ---- ours ------------------------------------------------------------------------------------ */

/* Waits for at least one job. Returns how many are done. */
static uint32_t reap(struct bed *bed)
{
	struct pollfd poller = {.fd = kvr_store_fd(bed->store), .events = POLLIN};
	struct kvr_store_job *jobs[SEGMENTS];
	uint64_t gone[SEGMENTS];
	uint32_t count;

	poll(&poller, 1, -1);
	count = kvr_store_reap(bed->store, jobs, SEGMENTS);
	for (uint32_t i = 0; i < count; i++) {
		if (jobs[i]->status < 0)
			bench_fail("the store: %s", strerror(-jobs[i]->status));
		if (jobs[i]->op == KVR_STORE_PUT)
			kvr_store_unhold(bed->store, jobs[i]->put.id);
	}
	(void)kvr_store_gone(bed->store, gone, SEGMENTS);
	return count;
}

static double put_all(struct bed *bed)
{
	const uint64_t start = kvr_clock_ns();
	uint32_t sent = 0, done = 0;

	while (done < SEGMENTS) {
		while (sent < SEGMENTS && sent - done < RUNNING_MAX)
			kvr_store_submit(bed->store, &bed->segments[sent++].job);
		done += reap(bed);
	}
	return (double)(kvr_clock_ns() - start) / 1e9;
}

static void drop_all(struct bed *bed)
{
	static struct kvr_store_job job;

	job = (struct kvr_store_job){.op = KVR_STORE_DROP, .drop = {.all = true}};
	memcpy(job.drop.root, model.root, sizeof(job.drop.root));
	kvr_store_submit(bed->store, &job);
	while (reap(bed) == 0)
		;
	if (job.drop.segment_count != SEGMENTS)
		bench_fail("%u segments dropped", job.drop.segment_count);
}

static uint64_t commits(const struct bed *bed)
{
	struct kvr_store_stat stat;

	kvr_store_stat(bed->store, &stat);
	return stat.catalog.commit_count;
}

/* ---- both ------------------------------------------------------------------------------------ */

struct reference {
	struct bench_disk *disk;
	struct bench_extent *extents;
	uint32_t count, depth;
};

static void open_reference(struct reference *reference, uint32_t slabs)
{
	double best = 1e9;

	reference->disk = bench_disk_scratch((uint64_t)slabs * KVR_SLAB_BYTES);
	reference->extents = calloc(slabs, sizeof(*reference->extents));
	if (!reference->extents)
		bench_fail("no memory");
	reference->count = bench_disk_cut(
		0, (uint64_t)slabs * KVR_SLAB_BYTES, KVR_SLAB_BYTES, reference->extents, slabs);
	for (uint32_t depth = 2; depth <= 64; depth *= 2) {
		const double s = bench_disk_write(
			reference->disk, reference->extents, reference->count, depth, slabs / 2);

		if (s < best) {
			best = s;
			reference->depth = depth;
		}
	}
}

static void measure(struct bed *bed, const struct reference *reference)
{
	const double bytes = SEGMENTS * TOKENS * (double)kvr_geometry_token_bytes(&model.geometry);
	double ours[ROUNDS + WARM_UP], bare[ROUNDS];
	uint64_t syncs = 0;

	for (uint32_t i = 0; i < WARM_UP + ROUNDS; i++) {
		const uint64_t before = commits(bed);

		ours[i] = put_all(bed);
		syncs = commits(bed) - before;
		drop_all(bed);
		if (i >= WARM_UP)
			bare[i - WARM_UP] = bench_disk_write(reference->disk, reference->extents,
				reference->count, reference->depth,
				(uint32_t)((reference->count + syncs - 1) / syncs));
	}
	fprintf(stderr, "write: %llu syncs a round; the reference at depth %u\n",
		(unsigned long long)syncs, reference->depth);
	bench_print((struct bench_result){
		.bench = "write",
		.value = bytes / bench_median(ours + WARM_UP, ROUNDS),
		.unit = "bytes/s",
		.reference = "bare io_uring sequential writer, the same fdatasyncs",
		.reference_value = bytes / bench_median(bare, ROUNDS),
		.ratio = bench_median(bare, ROUNDS) / bench_median(ours + WARM_UP, ROUNDS),
	});
}

int main(int argc, char **argv)
{
	static struct bed bed;
	char dir[64], path[80], text[KVR_STORE_TEXT_MAX];
	struct kvr_store_config config = {
		.dir = path,
		.catalog_bytes = (uint64_t)256 << 20,
		.depth = 128,
		.batch = 16,
		.read_memory = {bench_memory(MEMORY_BYTES), MEMORY_BYTES},
	};
	struct reference reference = {0};

	bench_verbose(argc, argv);
	bench_dir(dir);
	snprintf(path, sizeof(path), "%s/store", dir);
	seal_all(&bed);
	config.bytes = (uint64_t)(bed.slabs + 8) * KVR_SLAB_BYTES;
	if (kvr_store_open(&config, &bed.store, text) < 0)
		bench_fail("%s", text);
	open_reference(&reference, bed.slabs);
	measure(&bed, &reference);
	bed.store = kvr_store_close(bed.store);
	bench_disk_close(reference.disk);
	free(reference.extents);
	for (uint32_t i = 0; i < SEGMENTS; i++) {
		free(bed.segments[i].job.put.parts);
		free(bed.segments[i].job.put.crcs);
	}
	return 0;
}

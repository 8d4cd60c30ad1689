/* SPDX-License-Identifier: Apache-2.0 */
/* store_util.c: what the tests of the store share. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#include "kernels/crc.h"
#include "tests/tiers/store_util.h"
#include "tiers/plan.h"

#define MEMORY_BYTES ((size_t)32 << 20)
#define WAIT_MS      60000

/* ---- the bed --------------------------------------------------------------------------------- */

void kvr_store_bed_init(struct kvr_store_bed *bed, uint32_t slabs, enum kvr_nvme_io io)
{
	const char *folder = getenv("TMPDIR");

	memset(bed, 0, sizeof(*bed));
	snprintf(bed->dir, sizeof(bed->dir), "%s/kvr-store-XXXXXX", folder ? folder : "/var/tmp");
	assert_non_null(mkdtemp(bed->dir));
	assert_int_equal(kvr_mapping_open(MEMORY_BYTES, &bed->memory), 0);
	bed->model = (struct kvr_slab_model){
		.root = {7, 7, 7},
		.tenant = "tenant",
		.name = "model",
		.digest = {1, 2, 3},
		.rank = 3,
		.geometry = {.layer_count = 2,
			.query_heads = 4,
			.kv_heads = 2,
			.key_dim = 32,
			.value_dim = 16,
			.dtype = KVR_DTYPE_BF16,
			.segment_tokens = 64,
			.cluster_tokens = 8,
			.sink_tokens = 4,
			.merged = 5,
			.dense = {2}},
	};
	bed->config = (struct kvr_store_config){
		.dir = bed->dir,
		.bytes = (uint64_t)slabs * KVR_SLAB_BYTES,
		.catalog_bytes = KVR_CATALOG_BYTES_MIN,
		.io = io,
		.depth = 32,
		.batch = 8,
		.read_memory = {bed->memory.base, bed->memory.bytes},
	};
}

static int remove_one(const char *path, const struct stat *status, int kind, struct FTW *walk)
{
	(void)status;
	(void)kind;
	(void)walk;
	return remove(path);
}

void kvr_store_bed_fini(struct kvr_store_bed *bed)
{
	kvr_store_test_close(bed);
	kvr_mapping_close(&bed->memory);
	(void)nftw(bed->dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

int kvr_store_test_open(struct kvr_store_bed *bed)
{
	return kvr_store_open_mode(
		&bed->config, KVR_STORE_ONLINE, &bed->hooks, &bed->store, bed->text);
}

void kvr_store_test_close(struct kvr_store_bed *bed)
{
	bed->store = kvr_store_close(bed->store);
}

void kvr_store_test_reopen(struct kvr_store_bed *bed)
{
	int rc;

	kvr_store_test_close(bed);
	rc = kvr_store_test_open(bed);
	if (rc < 0)
		print_message("%s\n", bed->text);
	assert_int_equal(rc, 0);
}

void kvr_store_test_path(const struct kvr_store_bed *bed, const char *name, char ret_path[256])
{
	snprintf(ret_path, 256, "%s/%s", bed->dir, name);
}

static void copy_file(const char *from, const char *to)
{
	static uint8_t buffer[1 << 16];
	int in = open(from, O_RDONLY);
	int out = open(to, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	ssize_t bytes;

	assert_true(in >= 0 && out >= 0);
	while ((bytes = read(in, buffer, sizeof(buffer))) > 0)
		assert_int_equal(write(out, buffer, (size_t)bytes), bytes);
	assert_int_equal(bytes, 0);
	close(in);
	close(out);
}

void kvr_store_test_copy(const struct kvr_store_bed *bed, const char *from, const char *to)
{
	struct dirent *entry;
	char path[256];
	DIR *folder;

	kvr_store_test_path(bed, to, path);
	assert_int_equal(mkdir(path, 0700), 0);
	kvr_store_test_path(bed, from, path);
	folder = opendir(path);
	assert_non_null(folder);
	while ((entry = readdir(folder)) != NULL) {
		char names[2][128];
		char paths[2][256];
		struct stat status;

		if (entry->d_name[0] == '.' || strcmp(entry->d_name, to) == 0)
			continue;
		snprintf(names[0], sizeof(names[0]), "%.40s/%.80s", from, entry->d_name);
		snprintf(names[1], sizeof(names[1]), "%.40s/%.80s", to, entry->d_name);
		kvr_store_test_path(bed, names[0], paths[0]);
		kvr_store_test_path(bed, names[1], paths[1]);
		assert_int_equal(stat(paths[0], &status), 0);
		if (S_ISDIR(status.st_mode))
			kvr_store_test_copy(bed, names[0], names[1]);
		else
			copy_file(paths[0], paths[1]);
	}
	closedir(folder);
}

void kvr_store_test_remove(const struct kvr_store_bed *bed, const char *name)
{
	char path[256];

	kvr_store_test_path(bed, name, path);
	assert_int_equal(nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS), 0);
}

/* ---- jobs ------------------------------------------------------------------------------------ */

int kvr_store_test_run(struct kvr_store_bed *bed, struct kvr_store_job *job)
{
	struct pollfd ready = {.fd = kvr_store_fd(bed->store), .events = POLLIN};
	struct kvr_store_job *done = NULL;

	kvr_store_submit(bed->store, job);
	while (kvr_store_reap(bed->store, &done, 1) == 0)
		assert_int_equal(poll(&ready, 1, WAIT_MS), 1);
	assert_ptr_equal(done, job);
	return job->status;
}

int kvr_store_test_put(struct kvr_store_bed *bed, struct kvr_store_sealed *segment)
{
	struct kvr_store_job job = {
		.op = KVR_STORE_PUT,
		.put = {.model = &bed->model,
			.view = &segment->view,
			.tokens = segment->tokens,
			.quota_bytes = UINT64_MAX,
			.parts = segment->parts,
			.crcs = segment->crcs},
	};
	int rc;

	memcpy(job.put.hash, segment->hash, KVR_HASH_BYTES);
	memcpy(job.put.parent, segment->parent, KVR_HASH_BYTES);
	rc = kvr_store_test_run(bed, &job);
	if (rc == 0)
		segment->id = job.put.id;
	return rc;
}

void kvr_store_test_keep(struct kvr_store_bed *bed, struct kvr_store_sealed *segment)
{
	assert_int_equal(kvr_store_test_put(bed, segment), 0);
	kvr_store_unhold(bed->store, segment->id);
}

uint32_t kvr_store_test_match(
	struct kvr_store_bed *bed, const uint32_t *tokens, uint32_t count, uint64_t *ret_ids)
{
	struct kvr_store_job job = {
		.op = KVR_STORE_MATCH,
		.match = {.name = kvr_store_test_name, .tokens = tokens, .token_count = count},
	};
	uint32_t found;

	memcpy(job.match.root, bed->model.root, KVR_HASH_BYTES);
	assert_int_equal(kvr_store_test_run(bed, &job), 0);
	found = job.match.found_count;
	for (uint32_t i = 0; i < found; i++) {
		if (ret_ids)
			ret_ids[i] = job.match.found[i].id;
		kvr_store_unhold(bed->store, job.match.found[i].id);
	}
	kvr_store_match_fini(&job.match);
	return found;
}

bool kvr_store_test_stored(struct kvr_store_bed *bed, const struct kvr_store_sealed *segment)
{
	struct kvr_store_job job = {.op = KVR_STORE_LIST};

	memcpy(job.list.root, bed->model.root, KVR_HASH_BYTES);
	do {
		assert_int_equal(kvr_store_test_run(bed, &job), 0);
		for (uint32_t i = 0; i < job.list.count; i++) {
			if (memcmp(job.list.entries[i].hash, segment->hash, KVR_HASH_BYTES) == 0)
				return true;
		}
		job.list.skip += job.list.count;
	} while (job.list.more);
	return false;
}

int kvr_store_test_mark(struct kvr_store_bed *bed, uint64_t id, uint64_t used, uint32_t flags)
{
	struct kvr_store_job job = {.op = KVR_STORE_MARK, .mark = {.count = 1}};

	job.mark.marks[0].id = id;
	job.mark.marks[0].used = used;
	job.mark.marks[0].flags = flags;
	return kvr_store_test_run(bed, &job);
}

uint32_t kvr_store_test_gone(struct kvr_store_bed *bed)
{
	uint64_t ids[16];
	uint32_t all = 0;
	uint32_t count;

	while ((count = kvr_store_gone(bed->store, ids, 16)) > 0)
		all += count;
	return all;
}

/* ---- reading back ---------------------------------------------------------------------------- */

static int read_once(struct kvr_tier *tier, uint64_t offset, uint8_t *to, uint32_t bytes)
{
	struct kvr_store_transfer transfer = {0};

	kvr_store_start(tier, &transfer, KVR_TIER_READ, 1, offset, (struct kvr_span){to, bytes});
	return kvr_store_await(tier, &transfer);
}

/* One span of the stream: a read per slab that it lies in. */
static int read_span(struct kvr_store_bed *bed, const struct kvr_store_sealed *loaded,
	const struct kvr_plan_span *span)
{
	for (uint32_t done = 0; done < span->bytes;) {
		uint32_t offset;
		uint32_t left;
		const uint32_t part = kvr_slab_part(span->offset + done, &offset, &left);
		const uint32_t some = span->bytes - done < left ? span->bytes - done : left;
		int rc = read_once(kvr_store_tier(bed->store),
			(uint64_t)loaded->parts[part] * KVR_SLAB_BYTES + offset,
			bed->memory.base + done, some);

		if (rc < 0)
			return rc;
		done += some;
	}
	return 0;
}

/* cmocka's own check is slow where all is well. */
static void assert_same(const void *a, const void *b, size_t bytes)
{
	if (memcmp(a, b, bytes) != 0)
		assert_memory_equal(a, b, bytes);
}

/* All units, as a recall would read them; compared with what was put. */
static int read_units(struct kvr_store_bed *bed, const struct kvr_store_sealed *loaded,
	const struct kvr_store_sealed *expected)
{
	const struct kvr_plan_rule rule = {4096, KVR_PLAN_GAP_BYTES, KVR_PLAN_SPAN_BYTES, 512};
	const uint32_t stride = loaded->view.unit_count;
	const size_t max = kvr_segment_extent_count(&loaded->view);
	struct kvr_plan_piece *pieces = calloc(max, sizeof(*pieces));
	struct kvr_plan_span *spans = calloc(max, sizeof(*spans));
	uint32_t count = 0;
	uint32_t span_count;
	int rc = 0;

	for (uint32_t i = 0; i < max; i++) {
		struct kvr_plan_piece *piece = &pieces[count];

		piece->offset = kvr_slab_unit_at(
			&loaded->layout, &loaded->view, i / stride, i % stride, &piece->bytes);
		piece->tag = i;
		count += piece->bytes > 0;
	}
	span_count = kvr_plan(&rule, pieces, count, spans);
	for (uint32_t i = 0; i < span_count && rc == 0; i++) {
		rc = read_span(bed, loaded, &spans[i]);
		for (uint32_t k = 0; k < spans[i].piece_count && rc == 0; k++) {
			const struct kvr_plan_piece *piece = &pieces[spans[i].piece_first + k];
			const uint8_t *bytes = bed->memory.base + (piece->offset - spans[i].offset);

			if (kvr_crc32c(0, bytes, piece->bytes) != loaded->crcs[piece->tag])
				rc = -EBADMSG;
			else
				assert_same(bytes,
					expected->payload +
						(piece->offset - loaded->layout.payload_at),
					piece->bytes);
		}
	}
	free(pieces);
	free(spans);
	return rc;
}

int kvr_store_test_load(struct kvr_store_bed *bed, const struct kvr_store_sealed *segment)
{
	struct kvr_store_sealed *loaded =
		kvr_store_sealed_shape(bed, segment->view.token_first, segment->view.token_count);
	struct kvr_store_job job = {
		.op = KVR_STORE_LOAD,
		.load = {.id = segment->id,
			.view = &loaded->view,
			.tokens = loaded->tokens,
			.parts = loaded->parts,
			.crcs = loaded->crcs},
	};
	int rc;

	memcpy(job.load.hash, segment->hash, KVR_HASH_BYTES);
	rc = kvr_store_test_run(bed, &job);
	if (rc == 0) {
		assert_same(loaded->memory, segment->memory,
			kvr_segment_bind(&loaded->view, loaded->memory));
		assert_same(loaded->tokens, segment->tokens,
			segment->view.token_count * sizeof(*segment->tokens));
		rc = read_units(bed, loaded, segment);
	}
	kvr_store_sealed_free(loaded);
	return rc;
}

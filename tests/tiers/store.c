/* SPDX-License-Identifier: Apache-2.0 */
/* store.c: what was put is found and read, before and after a restart.
 *
 * Goal: put, match and load do what tiers/store.h says, over io_uring and over threads, for
 * segments from one token to more than a slab per cluster; names, files and locks are as promised.
 *
 * Method: segments of random content, whose bytes follow from their names; put, store closed and
 * opened again, matched, loaded, and all clusters read back through the core's channel by the plan
 * that recalls use, every byte compared. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#include "tests/tiers/store_util.h"

enum {
	CHAIN = 5,
};

static enum kvr_nvme_io mover; /* of this round */

/* The ids of a chain, one after the other. */
static uint32_t chain_tokens(
	struct kvr_store_sealed *const *chain, uint32_t count, uint32_t *ret_tokens)
{
	uint32_t at = 0;

	for (uint32_t i = 0; i < count; i++) {
		memcpy(ret_tokens + at, chain[i]->tokens,
			chain[i]->view.token_count * sizeof(*ret_tokens));
		at += chain[i]->view.token_count;
	}
	return at;
}

static void test_chain_survives_restart(void **state)
{
	struct kvr_store_sealed *chain[CHAIN];
	uint32_t tokens[CHAIN * 64 + 1] = {0};
	uint64_t ids[CHAIN];
	struct kvr_store_bed bed;
	uint32_t count;

	(void)state;
	kvr_store_bed_init(&bed, 32, mover);
	kvr_store_test_reopen(&bed);
	for (uint32_t i = 0; i < CHAIN; i++) {
		chain[i] = kvr_store_sealed_any(&bed, i > 0 ? chain[i - 1] : NULL, i);
		kvr_store_test_keep(&bed, chain[i]);
		assert_int_equal(kvr_store_test_load(&bed, chain[i]), 0);
	}
	count = chain_tokens(chain, CHAIN, tokens);
	for (uint32_t round = 0; round < 2; round++) {
		assert_int_equal(kvr_store_test_match(&bed, tokens, count, ids), CHAIN);
		for (uint32_t i = 0; i < CHAIN; i++) {
			assert_int_equal(ids[i], chain[i]->id);
			assert_int_equal(kvr_store_test_load(&bed, chain[i]), 0);
			assert_true(kvr_store_test_stored(&bed, chain[i]));
		}
		/* One id less than the last segment has, one more, and another one in the third. */
		assert_int_equal(kvr_store_test_match(&bed, tokens, count - 1, ids), CHAIN - 1);
		assert_int_equal(kvr_store_test_match(&bed, tokens, count + 1, ids), CHAIN);
		assert_int_equal(kvr_store_test_match(&bed, tokens, 63, ids), 0);
		assert_int_equal(kvr_store_test_match(&bed, tokens, 0, ids), 0);
		tokens[2 * 64 + 7]++;
		assert_int_equal(kvr_store_test_match(&bed, tokens, count, ids), 2);
		tokens[2 * 64 + 7]--;
		kvr_store_test_reopen(&bed);
	}
	for (uint32_t i = 0; i < CHAIN; i++)
		kvr_store_sealed_free(chain[i]);
	kvr_store_bed_fini(&bed);
}

/* From the root 64 and then 10; 10 and then 64, 64; 37: the longest chain wins, whatever is found
 * first. */
static void test_siblings_of_all_lengths(void **state)
{
	static const uint32_t cuts[3][3] = {{64, 10, 0}, {10, 64, 64}, {37, 0, 0}};
	struct kvr_store_sealed *all[9];
	uint32_t tokens[200];
	uint64_t ids[9];
	struct kvr_store_bed bed;
	uint32_t made = 0;

	(void)state;
	kvr_store_bed_init(&bed, 32, mover);
	kvr_store_test_reopen(&bed);
	for (uint32_t i = 0; i < 200; i++)
		tokens[i] = i * 3;
	for (uint32_t c = 0; c < 3; c++) {
		struct kvr_store_sealed *parent = NULL;
		uint32_t at = 0;

		for (uint32_t k = 0; k < 3 && cuts[c][k] > 0; k++) {
			all[made] = kvr_store_sealed_make(&bed, parent, tokens + at, cuts[c][k]);
			kvr_store_test_keep(&bed, all[made]);
			assert_int_equal(kvr_store_test_load(&bed, all[made]), 0);
			parent = all[made++];
			at += cuts[c][k];
		}
	}
	assert_int_equal(kvr_store_test_match(&bed, tokens, 200, ids), 3);
	assert_int_equal(ids[0], all[2]->id);
	assert_int_equal(ids[2], all[4]->id);
	assert_int_equal(kvr_store_test_match(&bed, tokens, 137, ids),
		2); /* 64 + 10 and 10 + 64 are equal */
	assert_int_equal(kvr_store_test_match(&bed, tokens, 63, ids), 1);
	assert_int_equal(ids[0], all[5]->id);
	assert_int_equal(kvr_store_test_match(&bed, tokens, 36, ids), 1);
	assert_int_equal(ids[0], all[2]->id);
	for (uint32_t i = 0; i < made; i++)
		kvr_store_sealed_free(all[i]);
	kvr_store_bed_fini(&bed);
}

static void test_same_name_and_orphans(void **state)
{
	struct kvr_store_sealed *one;
	struct kvr_store_sealed *child;
	struct kvr_store_stat stat;
	struct kvr_store_bed bed;

	(void)state;
	kvr_store_bed_init(&bed, 32, mover);
	kvr_store_test_reopen(&bed);
	one = kvr_store_sealed_any(&bed, NULL, 1);
	child = kvr_store_sealed_any(&bed, one, 2);
	assert_int_equal(kvr_store_test_put(&bed, child), -ENOENT);
	assert_int_equal(kvr_store_test_put(&bed, one), 0);
	assert_int_equal(kvr_store_test_put(&bed, one), -EEXIST);
	assert_int_equal(kvr_store_test_put(&bed, child), 0);
	kvr_store_stat(bed.store, &stat);
	assert_int_equal(stat.put_count, 2);
	assert_int_equal(stat.held_count, 2);
	assert_int_equal(stat.used_bytes, 2 * KVR_SLAB_BYTES);
	kvr_store_sealed_free(one);
	kvr_store_sealed_free(child);
	kvr_store_bed_fini(&bed);
}

/* A group of puts, each the parent of the next, two of the same name, in one go. */
static void test_group(void **state)
{
	struct kvr_store_sealed *chain[CHAIN];
	struct kvr_store_job jobs[CHAIN + 1];
	struct kvr_store_job *done[CHAIN + 1];
	struct kvr_store_bed bed;
	uint32_t reaped = 0;

	(void)state;
	kvr_store_bed_init(&bed, 32, mover);
	kvr_store_test_reopen(&bed);
	for (uint32_t i = 0; i < CHAIN; i++)
		chain[i] = kvr_store_sealed_any(&bed, i > 0 ? chain[i - 1] : NULL, i);
	for (uint32_t i = 0; i <= CHAIN; i++) {
		struct kvr_store_sealed *segment = chain[i < CHAIN ? i : CHAIN - 1];

		jobs[i] = (struct kvr_store_job){
			.op = KVR_STORE_PUT,
			.put = {.model = &bed.model,
				.view = &segment->view,
				.tokens = segment->tokens,
				.quota_bytes = UINT64_MAX,
				.parts = segment->parts,
				.crcs = segment->crcs},
		};
		memcpy(jobs[i].put.hash, segment->hash, KVR_HASH_BYTES);
		memcpy(jobs[i].put.parent, segment->parent, KVR_HASH_BYTES);
		kvr_store_submit(bed.store, &jobs[i]);
	}
	while (reaped < CHAIN + 1) {
		reaped += kvr_store_reap(bed.store, done + reaped, CHAIN + 1 - reaped);
		usleep(100);
	}
	for (uint32_t i = 0; i <= CHAIN; i++) {
		assert_ptr_equal(done[i], &jobs[i]);
		if (i < CHAIN)
			assert_int_equal(jobs[i].status, 0);
	}
	/* The twin: of the same group, which has no ids yet, or of the next. */
	if (jobs[CHAIN].status != -EBUSY) {
		assert_int_equal(jobs[CHAIN].status, -EEXIST);
		assert_int_equal(jobs[CHAIN].put.id, jobs[CHAIN - 1].put.id);
	}
	for (uint32_t i = 0; i < CHAIN; i++) {
		chain[i]->id = jobs[i].put.id;
		assert_int_equal(kvr_store_test_load(&bed, chain[i]), 0);
		kvr_store_sealed_free(chain[i]);
	}
	kvr_store_bed_fini(&bed);
}

/* A lane of one cluster that is larger than a slab, so that clusters, summary and checksums cross
 * slabs. */
static void test_large_clusters(void **state)
{
	struct kvr_store_sealed *segment;
	struct kvr_store_bed bed;

	(void)state;
	kvr_store_bed_init(&bed, 32, mover);
	bed.model.geometry.key_dim = 576;
	bed.model.geometry.value_dim = 576;
	bed.model.geometry.dtype = KVR_DTYPE_F32;
	bed.model.geometry.segment_tokens = 1024;
	bed.model.geometry.cluster_tokens = 1024;
	kvr_store_test_reopen(&bed);
	segment = kvr_store_sealed_any(&bed, NULL, 1);
	assert_in_range(segment->layout.part_count, 18, 30);
	kvr_store_test_keep(&bed, segment);
	assert_int_equal(kvr_store_test_load(&bed, segment), 0);
	kvr_store_test_reopen(&bed);
	assert_int_equal(kvr_store_test_load(&bed, segment), 0);
	kvr_store_sealed_free(segment);
	kvr_store_bed_fini(&bed);
}

/* Many small clusters: a summary larger than a slab. */
static void test_large_summary(void **state)
{
	struct kvr_store_sealed *segment;
	struct kvr_store_bed bed;

	(void)state;
	kvr_store_bed_init(&bed, 32, mover);
	bed.model.geometry.layer_count = 8;
	bed.model.geometry.key_dim = 128;
	bed.model.geometry.value_dim = 128;
	bed.model.geometry.segment_tokens = 1024;
	bed.model.geometry.cluster_tokens = 4;
	kvr_store_test_reopen(&bed);
	segment = kvr_store_sealed_any(&bed, NULL, 1);
	assert_true(segment->layout.payload_at > 2 * KVR_SLAB_BODY_BYTES);
	kvr_store_test_keep(&bed, segment);
	kvr_store_test_reopen(&bed);
	assert_int_equal(kvr_store_test_load(&bed, segment), 0);
	kvr_store_sealed_free(segment);
	kvr_store_bed_fini(&bed);
}

/* ---- files ----------------------------------------------------------------------------------- */

static void test_one_daemon_at_a_time(void **state)
{
	struct kvr_store_bed bed;
	struct kvr_store *other = NULL;
	char text[KVR_STORE_TEXT_MAX];
	char pid[16];

	(void)state;
	kvr_store_bed_init(&bed, 4, mover);
	kvr_store_test_reopen(&bed);
	snprintf(pid, sizeof(pid), "%d", (int)getpid());
	assert_int_equal(kvr_store_open(&bed.config, &other, text), -EBUSY);
	assert_non_null(strstr(text, pid));
	kvr_store_bed_fini(&bed);
}

static void test_files_and_modes(void **state)
{
	uint8_t secret[KVR_STORE_SECRET_BYTES];
	struct kvr_store_bed bed;
	char path[256];
	char moved[256];
	struct stat status;

	(void)state;
	kvr_store_bed_init(&bed, 4, mover);
	assert_int_equal(rmdir(bed.dir), 0);
	kvr_store_test_reopen(&bed);
	assert_int_equal(stat(bed.dir, &status), 0);
	assert_int_equal(status.st_mode & 0777, 0700);
	kvr_store_test_path(&bed, "secret", path);
	assert_int_equal(stat(path, &status), 0);
	assert_int_equal(status.st_mode & 0777, 0600);
	assert_int_equal(status.st_size, KVR_STORE_SECRET_BYTES);
	memcpy(secret, kvr_store_secret(bed.store), sizeof(secret));
	kvr_store_test_reopen(&bed);
	assert_memory_equal(secret, kvr_store_secret(bed.store), sizeof(secret));
	kvr_store_test_close(&bed);

	/* Without the secret, or with a part of it, it is refused, and nothing is made anew. */
	assert_int_equal(truncate(path, 5), 0);
	assert_int_equal(kvr_store_test_open(&bed), -EBADMSG);
	assert_int_equal(unlink(path), 0);
	assert_int_equal(kvr_store_test_open(&bed), -EBADMSG);
	assert_non_null(strstr(bed.text, "secret"));
	assert_int_equal(access(path, F_OK), -1);
	kvr_store_bed_fini(&bed);

	/* Slabs without a catalog. */
	kvr_store_bed_init(&bed, 4, mover);
	kvr_store_test_reopen(&bed);
	kvr_store_test_close(&bed);
	kvr_store_test_path(&bed, "catalog", path);
	kvr_store_test_path(&bed, "elsewhere", moved);
	assert_int_equal(rename(path, moved), 0);
	assert_int_equal(kvr_store_test_open(&bed), -EBADMSG);
	assert_non_null(strstr(bed.text, "rebuild"));
	kvr_store_bed_fini(&bed);
}

/* A store that was moved works; slabs of one with the catalog of another are refused. */
static void test_moved_and_mixed(void **state)
{
	struct kvr_store_sealed *segment;
	struct kvr_store_bed bed[2];
	char from[256];
	char to[256];

	(void)state;
	for (uint32_t i = 0; i < 2; i++) {
		kvr_store_bed_init(&bed[i], 4, mover);
		kvr_store_test_reopen(&bed[i]);
		segment = kvr_store_sealed_any(&bed[i], NULL, 1);
		kvr_store_test_keep(&bed[i], segment);
		kvr_store_test_close(&bed[i]);
		if (i == 0)
			kvr_store_sealed_free(segment);
	}
	snprintf(to, sizeof(bed[1].dir), "%.50s-moved", bed[1].dir);
	assert_int_equal(rename(bed[1].dir, to), 0);
	memcpy(bed[1].dir, to, sizeof(bed[1].dir));
	kvr_store_test_reopen(&bed[1]);
	assert_int_equal(kvr_store_test_load(&bed[1], segment), 0);
	kvr_store_test_close(&bed[1]);
	kvr_store_test_path(&bed[0], "slabs.kvr", from);
	kvr_store_test_path(&bed[1], "slabs.kvr", to);
	assert_int_equal(rename(from, to), 0);
	assert_int_equal(kvr_store_test_open(&bed[1]), -EXDEV);
	kvr_store_sealed_free(segment);
	kvr_store_bed_fini(&bed[0]);
	kvr_store_bed_fini(&bed[1]);
}

/* Copy and original are both whole, and go their own ways. */
static void test_copied(void **state)
{
	struct kvr_store_sealed *segment;
	struct kvr_store_bed bed;
	char original[64];

	(void)state;
	kvr_store_bed_init(&bed, 4, mover);
	kvr_store_test_reopen(&bed);
	segment = kvr_store_sealed_any(&bed, NULL, 1);
	kvr_store_test_keep(&bed, segment);
	kvr_store_test_close(&bed);
	kvr_store_test_copy(&bed, ".", "copy");
	memcpy(original, bed.dir, sizeof(original));
	snprintf(bed.dir, sizeof(bed.dir), "%.50s/copy", original);
	for (uint32_t i = 0; i < 2; i++) {
		struct kvr_store_sealed *fresh = kvr_store_sealed_any(&bed, segment, i);

		kvr_store_test_reopen(&bed);
		assert_int_equal(kvr_store_test_load(&bed, segment), 0);
		kvr_store_test_keep(&bed, fresh);
		assert_int_equal(kvr_store_test_load(&bed, fresh), 0);
		kvr_store_test_close(&bed);
		kvr_store_sealed_free(fresh);
		memcpy(bed.dir, original, sizeof(original));
	}
	kvr_store_sealed_free(segment);
	kvr_store_bed_fini(&bed);
}

static void test_smaller_bound(void **state)
{
	struct kvr_store_bed bed;

	(void)state;
	kvr_store_bed_init(&bed, 8, mover);
	kvr_store_test_reopen(&bed);
	kvr_store_test_close(&bed);
	bed.config.bytes /= 2;
	assert_int_equal(kvr_store_test_open(&bed), -EFBIG);
	assert_true(bed.text[0] != 0);
	bed.config.bytes *= 4;
	kvr_store_test_reopen(&bed);
	kvr_store_bed_fini(&bed);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_chain_survives_restart),
		cmocka_unit_test(test_siblings_of_all_lengths),
		cmocka_unit_test(test_same_name_and_orphans),
		cmocka_unit_test(test_group),
		cmocka_unit_test(test_large_clusters),
		cmocka_unit_test(test_large_summary),
		cmocka_unit_test(test_one_daemon_at_a_time),
		cmocka_unit_test(test_files_and_modes),
		cmocka_unit_test(test_moved_and_mixed),
		cmocka_unit_test(test_copied),
		cmocka_unit_test(test_smaller_bound),
	};
	int failed;

	mover = KVR_NVME_IO_THREADS;
	failed = cmocka_run_group_tests_name("threads", tests, NULL, NULL);
	mover = KVR_NVME_IO_AUTO;
	return failed +
	       cmocka_run_group_tests_name("io_uring where it is allowed", tests, NULL, NULL);
}

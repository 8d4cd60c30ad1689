/* SPDX-License-Identifier: Apache-2.0 */
/* store_faults.c: a disk that fails.
 *
 * Goal: a write, read or SYNC that fails, fails the job that it belongs to and no other; nothing
 * half is ever visible, nothing leaks, and the store goes on. A disk that has gone fails every job
 * and ends no daemon.
 *
 * Method: faulty tiers between the store and its channels, armed for the n-th call for every n that
 * the job makes; after each failure the same job must succeed, and used slabs, holds and what is
 * found must be as if it had never failed. slabs.kvr cut to nothing while the store is open. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "tests/tiers/store_util.h"
#include "tiers/faulty.h"

enum {
	SLABS = 16,
	WRITER = 1,
	READER = 2,
};

static struct kvr_tier *faulty[3]; /* of the store that is open, by channel */

static struct kvr_tier *wrap(void *context, struct kvr_tier *tier, int which)
{
	(void)context;
	assert_int_equal(kvr_tier_open_faulty(tier, &faulty[which]), 0);
	return faulty[which];
}

static void setup_bed(struct kvr_store_bed *bed)
{
	kvr_store_bed_init(bed, SLABS, KVR_NVME_IO_THREADS);
	bed->hooks.wrap = wrap;
	bed->model.geometry.segment_tokens = 256;
	bed->model.geometry.key_dim = 256;
	bed->model.geometry.value_dim = 256; /* two slabs */
	kvr_store_test_reopen(bed);
}

static uint64_t used_slabs(struct kvr_store_bed *bed, uint32_t *ret_held)
{
	struct kvr_store_stat stat;

	kvr_store_stat(bed->store, &stat);
	*ret_held = stat.held_count;
	return stat.used_bytes / KVR_SLAB_BYTES;
}

/* A put under these faults fails with -EIO and leaves nothing; without them it succeeds. */
static void fail_put(struct kvr_store_bed *bed, struct kvr_store_sealed *parent, uint64_t seed,
	const struct kvr_tier_faults *faults)
{
	struct kvr_store_sealed *segment = kvr_store_sealed_any(bed, parent, seed);
	uint32_t held[2];
	const uint64_t used = used_slabs(bed, &held[0]);

	kvr_tier_faulty_arm(faulty[WRITER], faults);
	assert_int_equal(kvr_store_test_put(bed, segment), -EIO);
	kvr_tier_faulty_arm(faulty[WRITER], &(struct kvr_tier_faults){0});
	assert_int_equal(used_slabs(bed, &held[1]), used);
	assert_int_equal(held[1], held[0]);
	assert_false(kvr_store_test_stored(bed, segment));
	kvr_store_test_keep(bed, segment);
	assert_int_equal(kvr_store_test_load(bed, segment), 0);
	kvr_store_sealed_free(segment);
}

static void test_put(void **state)
{
	struct kvr_store_sealed *parent;
	struct kvr_store_report report;
	struct kvr_store_stat stat;
	struct kvr_store_bed bed;

	(void)state;
	setup_bed(&bed);
	parent = kvr_store_sealed_any(&bed, NULL, 1);
	kvr_store_test_keep(&bed, parent);
	fail_put(&bed, parent, 2, &(struct kvr_tier_faults){.write_error_at = 1});
	fail_put(&bed, parent, 3, &(struct kvr_tier_faults){.write_error_at = 2});
	fail_put(&bed, parent, 4, &(struct kvr_tier_faults){.write_full_at = 1});
	fail_put(&bed, parent, 5, &(struct kvr_tier_faults){.sync_error_at = 1});
	assert_int_equal(kvr_store_test_load(&bed, parent), 0);
	kvr_store_stat(bed.store, &stat);
	assert_int_equal(stat.put_failed_count, 4);
	assert_int_equal(stat.error_count, 4);
	kvr_store_test_close(&bed);
	assert_int_equal(kvr_store_rebuild(&bed.config, NULL, NULL, &report, bed.text), 0);
	assert_int_equal(report.segment_count, 5);
	assert_int_equal(kvr_store_verify(&bed.config, NULL, NULL, &report, bed.text), 0);
	assert_int_equal(report.segment_count, 5);
	assert_int_equal(report.damaged_segment_count, 0);
	assert_false(report.catalog_damaged);
	kvr_store_sealed_free(parent);
	kvr_store_bed_fini(&bed);
}

/* In a group the failed one takes its children with it, and nobody else. */
static void test_group(void **state)
{
	struct kvr_store_sealed *segments[4]; /* 0 -> 1 -> 2, and 3 */
	static const int expected[2][4] = {{-EIO, -ENOENT, -ENOENT, 0}, {-EIO, -EIO, -EIO, -EIO}};
	static const struct kvr_tier_faults faults[2] = {
		{.write_error_at = 1}, {.sync_error_at = 1}};
	struct kvr_store_job blocker = {.op = KVR_STORE_MARK};
	struct kvr_store_job jobs[4];
	struct kvr_store_bed bed;
	uint32_t held;

	(void)state;
	setup_bed(&bed);
	for (uint32_t i = 0; i < 4; i++)
		segments[i] =
			kvr_store_sealed_any(&bed, i == 1 || i == 2 ? segments[i - 1] : NULL, i);
	for (uint32_t round = 0; round < 2; round++) {
		struct kvr_store_job *done[5];
		uint32_t reaped = 0;

		kvr_tier_faulty_arm(faulty[WRITER], &faults[round]);
		for (uint32_t i = 0; i < 4; i++) {
			jobs[i] = (struct kvr_store_job){
				.op = KVR_STORE_PUT,
				.put = {.model = &bed.model,
					.view = &segments[i]->view,
					.tokens = segments[i]->tokens,
					.quota_bytes = UINT64_MAX,
					.parts = segments[i]->parts,
					.crcs = segments[i]->crcs},
			};
			memcpy(jobs[i].put.hash, segments[i]->hash, KVR_HASH_BYTES);
			memcpy(jobs[i].put.parent, segments[i]->parent, KVR_HASH_BYTES);
		}
		/* While the writer is busy with a mark, the puts gather to one group. */
		pthread_mutex_lock(&bed.store->write_queue.mutex);
		kvr_list_push(&bed.store->write_queue.jobs, &blocker.link);
		for (uint32_t i = 0; i < 4; i++)
			kvr_list_push(&bed.store->write_queue.jobs, &jobs[i].link);
		pthread_cond_signal(&bed.store->write_queue.cond);
		pthread_mutex_unlock(&bed.store->write_queue.mutex);
		while (reaped < 5) {
			reaped += kvr_store_reap(bed.store, done + reaped, 5 - reaped);
			usleep(100);
		}
		for (uint32_t i = 0; i < 4; i++)
			assert_int_equal(jobs[i].status, expected[round][i]);
		if (round == 0) {
			kvr_store_unhold(bed.store, jobs[3].put.id);
			memcpy(segments[3]->hash, "another name", 12);
		}
		assert_int_equal(used_slabs(&bed, &held), 2);
		assert_int_equal(held, 0);
	}
	kvr_tier_faulty_arm(faulty[WRITER], &(struct kvr_tier_faults){0});
	for (uint32_t i = 0; i < 4; i++) {
		kvr_store_test_keep(&bed, segments[i]);
		assert_int_equal(kvr_store_test_load(&bed, segments[i]), 0);
		kvr_store_sealed_free(segments[i]);
	}
	kvr_store_bed_fini(&bed);
}

static void test_load(void **state)
{
	struct kvr_store_sealed *segment;
	struct kvr_store_bed bed;

	(void)state;
	setup_bed(&bed);
	segment = kvr_store_sealed_any(&bed, NULL, 1);
	kvr_store_test_keep(&bed, segment);
	kvr_tier_faulty_arm(faulty[READER], &(struct kvr_tier_faults){.read_error_at = 1});
	assert_int_equal(kvr_store_test_load(&bed, segment), -EIO);
	assert_int_equal(kvr_store_test_load(&bed, segment), 0);
	kvr_tier_faulty_arm(faulty[0], &(struct kvr_tier_faults){.read_error_at = 1});
	assert_int_equal(kvr_store_test_load(&bed, segment), -EIO);
	assert_int_equal(kvr_store_test_load(&bed, segment), 0);
	kvr_store_sealed_free(segment);
	kvr_store_bed_fini(&bed);
}

/* A drop whose wipe or SYNC fails: the segment is out; its slabs come back at the next open. */
static void test_drop(void **state)
{
	static const struct kvr_tier_faults faults[2] = {
		{.write_error_at = 1}, {.sync_error_at = 1}};
	struct kvr_store_report report;
	struct kvr_store_bed bed;
	uint32_t held;

	(void)state;
	setup_bed(&bed);
	for (uint32_t round = 0; round < 2; round++) {
		struct kvr_store_sealed *segment = kvr_store_sealed_any(&bed, NULL, round);
		struct kvr_store_job job = {.op = KVR_STORE_DROP};

		kvr_store_test_keep(&bed, segment);
		memcpy(job.drop.root, bed.model.root, KVR_HASH_BYTES);
		memcpy(job.drop.hash, segment->hash, KVR_HASH_BYTES);
		kvr_tier_faulty_arm(faulty[WRITER], &faults[round]);
		assert_int_equal(kvr_store_test_run(&bed, &job), 0);
		assert_int_equal(job.drop.segment_count, 1);
		assert_false(kvr_store_test_stored(&bed, segment));
		assert_int_equal(used_slabs(&bed, &held), 2);
		kvr_store_test_reopen(&bed);
		assert_int_equal(used_slabs(&bed, &held), 0);
		kvr_store_sealed_free(segment);
	}
	kvr_store_test_close(&bed);
	assert_int_equal(kvr_store_rebuild(&bed.config, NULL, NULL, &report, bed.text), 0);
	assert_int_equal(report.segment_count, 0);
	kvr_store_bed_fini(&bed);
}

/* Nothing is left of slabs.kvr while the store is open: reads find nothing, every job ends. */
static void test_slabs_vanish(void **state)
{
	struct kvr_store_sealed *segment;
	struct kvr_store_bed bed;
	char path[256];
	int rc;

	(void)state;
	setup_bed(&bed);
	segment = kvr_store_sealed_any(&bed, NULL, 1);
	kvr_store_test_keep(&bed, segment);
	kvr_store_test_path(&bed, "slabs.kvr", path);
	assert_int_equal(truncate(path, 0), 0);
	rc = kvr_store_test_load(&bed, segment);
	assert_true(rc == -EIO || rc == -EBADMSG);
	kvr_store_test_close(&bed);
	kvr_store_sealed_free(segment);
	kvr_store_bed_fini(&bed);
}

/* Every call of the writer fails from some point on: puts fail, matches and holds go on, close
 * ends. */
static void test_writer_dead(void **state)
{
	struct kvr_store_sealed *stored;
	struct kvr_store_bed bed;

	(void)state;
	setup_bed(&bed);
	stored = kvr_store_sealed_any(&bed, NULL, 1);
	kvr_store_test_keep(&bed, stored);
	for (uint64_t seed = 10; seed < 20; seed++) {
		struct kvr_store_sealed *segment = kvr_store_sealed_any(&bed, stored, seed);

		kvr_tier_faulty_arm(faulty[WRITER],
			&(struct kvr_tier_faults){.write_error_at = 1, .sync_error_at = 1});
		assert_int_equal(kvr_store_test_put(&bed, segment), -EIO);
		kvr_store_sealed_free(segment);
		assert_int_equal(kvr_store_test_match(&bed, stored->tokens, 256, NULL), 1);
		assert_int_equal(kvr_store_test_load(&bed, stored), 0);
	}
	kvr_store_sealed_free(stored);
	kvr_store_bed_fini(&bed);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_put),
		cmocka_unit_test(test_group),
		cmocka_unit_test(test_load),
		cmocka_unit_test(test_drop),
		cmocka_unit_test(test_slabs_vanish),
		cmocka_unit_test(test_writer_dead),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

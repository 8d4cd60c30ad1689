/* SPDX-License-Identifier: Apache-2.0 */
/* store_bounds.c: bounds other than slabs, quarantine, and drops of everything.
 *
 * Goal: a full catalog, a tenant's quota and the day's write budget are held to, and answered as
 * tiers/store.h says; quarantined segments end a match and go first; a drop of a root takes all of
 * it and nothing else.
 *
 * Method: each bound is made small and run into, before and after a restart; a drop of more
 * segments than one round takes. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "tests/tiers/store_util.h"

enum {
	SLABS = 24, /* fewer than 64, so that not more than needed is evicted */
};

/* ---- bounds ---------------------------------------------------------------------------------- */

/* More rows than the catalog holds: old segments go, although there are slabs. */
static void test_full_catalog(void **state)
{
	struct kvr_store_sealed *last = NULL;
	struct kvr_store_stat stat;
	struct kvr_store_bed bed;

	(void)state;
	kvr_store_bed_init(&bed, 256, KVR_NVME_IO_THREADS);
	bed.model.geometry = (struct kvr_geometry){.layer_count = 8,
		.query_heads = 8,
		.kv_heads = 8,
		.key_dim = 8,
		.value_dim = 8,
		.dtype = KVR_DTYPE_BF16,
		.segment_tokens = 256,
		.cluster_tokens = 4,
		.dense = {~(uint64_t)0}};
	kvr_store_test_reopen(&bed);
	for (uint32_t i = 0; i < 240; i++) {
		last = kvr_store_sealed_any(&bed, NULL, i);
		kvr_store_test_keep(&bed, last);
		if (i < 239)
			kvr_store_sealed_free(last);
	}
	kvr_store_stat(bed.store, &stat);
	assert_int_equal(stat.put_count, 240);
	assert_true(stat.evicted_count > 0);
	assert_true(stat.used_bytes < stat.capacity_bytes);
	assert_true(stat.catalog.used_bytes <= bed.config.catalog_bytes);
	assert_int_equal(kvr_store_test_gone(&bed), stat.evicted_count);
	assert_int_equal(kvr_store_test_load(&bed, last), 0);
	kvr_store_sealed_free(last);
	kvr_store_bed_fini(&bed);
}

static int put_with(struct kvr_store_bed *bed, uint64_t seed, uint64_t quota)
{
	struct kvr_store_sealed *segment = kvr_store_sealed_any(bed, NULL, seed);
	struct kvr_store_job job = {
		.op = KVR_STORE_PUT,
		.put = {.model = &bed->model,
			.view = &segment->view,
			.tokens = segment->tokens,
			.quota_bytes = quota,
			.parts = segment->parts,
			.crcs = segment->crcs},
	};
	int rc;

	memcpy(job.put.hash, segment->hash, KVR_HASH_BYTES);
	memcpy(job.put.parent, segment->parent, KVR_HASH_BYTES);
	rc = kvr_store_test_run(bed, &job);
	kvr_store_sealed_free(segment);
	return rc;
}

/* A tenant's bound: its own go for it, others' never; and it is known after a restart. */
static void test_quota(void **state)
{
	const uint64_t three = 3 * (uint64_t)KVR_SLAB_BYTES;
	struct kvr_store_sealed *others;
	struct kvr_store_stat stat;
	struct kvr_store_bed bed;

	(void)state;
	kvr_store_bed_init(&bed, SLABS, KVR_NVME_IO_THREADS);
	kvr_store_test_reopen(&bed);
	others = kvr_store_sealed_any(&bed, NULL, 99);
	kvr_store_test_keep(&bed, others);
	strcpy(bed.model.tenant, "bounded");
	bed.model.root[0]++;
	for (uint64_t seed = 0; seed < 3; seed++)
		assert_int_equal(put_with(&bed, seed, three), 0); /* each keeps its hold */
	assert_int_equal(put_with(&bed, 3, three), -EDQUOT);
	assert_int_equal(put_with(&bed, 3, KVR_SLAB_BYTES - 1), -EDQUOT);
	kvr_store_test_reopen(&bed);
	assert_int_equal(put_with(&bed, 3, three), 0); /* no holds any more: the oldest goes */
	assert_int_equal(put_with(&bed, 4, three), 0);
	kvr_store_stat(bed.store, &stat);
	assert_int_equal(stat.evicted_count, 2);
	assert_int_equal(stat.used_bytes, 4 * KVR_SLAB_BYTES);
	bed.model.root[0]--;
	assert_int_equal(kvr_store_test_load(&bed, others), 0);
	kvr_store_sealed_free(others);
	kvr_store_bed_fini(&bed);
}

static void test_write_budget(void **state)
{
	struct kvr_store_stat stat;
	struct kvr_store_bed bed;

	(void)state;
	kvr_store_bed_init(&bed, SLABS, KVR_NVME_IO_THREADS);
	bed.config.write_bytes_per_day = 3 * (uint64_t)KVR_SLAB_BYTES;
	kvr_store_test_reopen(&bed);
	for (uint64_t seed = 0; seed < 3; seed++)
		assert_int_equal(put_with(&bed, seed, UINT64_MAX), 0);
	assert_int_equal(put_with(&bed, 3, UINT64_MAX), -EAGAIN);
	kvr_store_stat(bed.store, &stat);
	assert_int_equal(stat.put_count, 3);
	assert_int_equal(stat.put_failed_count, 1);
	assert_true(stat.budget_left_bytes < KVR_SLAB_BYTES);
	kvr_store_bed_fini(&bed);
}

/* ---- quarantine and drops -------------------------------------------------------------------- */

static void test_quarantine(void **state)
{
	struct kvr_store_sealed *chain[3];
	uint32_t tokens[3 * 64];
	struct kvr_store_stat stat;
	struct kvr_store_bed bed;
	uint64_t id;

	(void)state;
	kvr_store_bed_init(&bed, SLABS, KVR_NVME_IO_THREADS);
	kvr_store_test_reopen(&bed);
	for (uint32_t i = 0; i < 3; i++) {
		chain[i] = kvr_store_sealed_any(&bed, i > 0 ? chain[i - 1] : NULL, i);
		kvr_store_test_keep(&bed, chain[i]);
		memcpy(tokens + i * 64, chain[i]->tokens, 64 * sizeof(*tokens));
	}
	assert_int_equal(kvr_store_test_match(&bed, tokens, 192, NULL), 3);
	assert_int_equal(
		kvr_store_test_mark(&bed, chain[1]->id, UINT64_MAX, KVR_CATALOG_QUARANTINED), 0);
	assert_int_equal(kvr_store_test_mark(&bed, 1, 5, 0), 0); /* no such segment */
	assert_int_equal(kvr_store_test_match(&bed, tokens, 192, NULL), 1);
	kvr_store_test_reopen(&bed);
	assert_int_equal(kvr_store_test_match(&bed, tokens, 192, NULL), 1);
	assert_int_equal(
		kvr_store_test_mark(&bed, chain[2]->id, UINT64_MAX, KVR_CATALOG_QUARANTINED), 0);
	kvr_store_stat(bed.store, &stat);
	assert_int_equal(stat.quarantined_count, 1); /* since start */
	/* They go before all others, the leaf first. */
	for (uint64_t seed = 10; seed < 10 + SLABS - 3 + 2; seed++)
		assert_int_equal(put_with(&bed, seed, UINT64_MAX), 0);
	assert_int_equal(kvr_store_gone(bed.store, &id, 1), 1);
	assert_int_equal(id, chain[2]->id);
	assert_int_equal(kvr_store_gone(bed.store, &id, 1), 1);
	assert_int_equal(id, chain[1]->id);
	for (uint32_t i = 0; i < 3; i++)
		kvr_store_sealed_free(chain[i]);
	kvr_store_bed_fini(&bed);
}

/* All of a root, more than one round's worth; the other root's stay. */
static void test_drop_all(void **state)
{
	struct kvr_store_job job = {.op = KVR_STORE_DROP, .drop = {.all = true}};
	struct kvr_store_sealed *others;
	struct kvr_store_bed bed;

	(void)state;
	kvr_store_bed_init(&bed, KVR_STORE_VICTIMS_MAX + 100, KVR_NVME_IO_THREADS);
	kvr_store_test_reopen(&bed);
	others = kvr_store_sealed_any(&bed, NULL, 99);
	kvr_store_test_keep(&bed, others);
	bed.model.root[0]++;
	for (uint32_t i = 0; i < KVR_STORE_VICTIMS_MAX + 20; i++) {
		struct kvr_store_sealed *segment = kvr_store_sealed_any(&bed, NULL, i);

		kvr_store_test_keep(&bed, segment);
		kvr_store_sealed_free(segment);
	}
	memcpy(job.drop.root, bed.model.root, KVR_HASH_BYTES);
	assert_int_equal(kvr_store_test_run(&bed, &job), 0);
	assert_int_equal(job.drop.segment_count, KVR_STORE_VICTIMS_MAX + 20);
	assert_int_equal(job.drop.kept_count, 0);
	bed.model.root[0]--;
	assert_int_equal(kvr_store_test_load(&bed, others), 0);
	job.drop.all = false;
	memcpy(job.drop.hash, others->hash, KVR_HASH_BYTES);
	assert_int_equal(kvr_store_test_run(&bed, &job), -ENOENT); /* of another root */
	kvr_store_sealed_free(others);
	kvr_store_bed_fini(&bed);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_full_catalog),
		cmocka_unit_test(test_quota),
		cmocka_unit_test(test_write_budget),
		cmocka_unit_test(test_quarantine),
		cmocka_unit_test(test_drop_all),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

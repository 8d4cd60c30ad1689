/* SPDX-License-Identifier: Apache-2.0 */
/* store_evict.c: what goes when slabs, catalog, quota or budget run out, and what may not go.
 *
 * Goal: the store removes the least recently used leaf, never what has a hold, a pin or a child (H2), tells what
 * went, and says the right thing where nothing may go. What a match found with a hold can be loaded, whatever the
 * writer does meanwhile.
 *
 * Method: random puts, marks, holds and drops beside a model that keeps all segments in an array and looks for the
 * victim by going through all of it; a bounded catalog filled with rows; matches and puts that overlap. */
#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "tests/tiers/store_util.h"

enum {
	SLABS = 24, /* fewer than 64, so that not more than needed is evicted */
	STEPS = 1500,
	MADE = 2048,
};

/* ---- the model ------------------------------------------------------------------------------- */

struct entry {
	struct kvr_store_sealed *segment;
	uint64_t used;
	uint32_t parent; /* MADE: none */
	uint32_t holds;
	bool stored, pinned;
};

struct model {
	struct entry entries[MADE];
	uint32_t count, stored;
};

static bool has_child(const struct model *model, uint32_t entry)
{
	for (uint32_t i = 0; i < model->count; i++) {
		if (model->entries[i].stored && model->entries[i].parent == entry)
			return true;
	}
	return false;
}

static bool may_go(const struct model *model, uint32_t entry)
{
	const struct entry *e = &model->entries[entry];

	return e->stored && !e->pinned && e->holds == 0 && !has_child(model, entry);
}

/* Of those that may go, but for one, the least recently used. MADE: none. */
static uint32_t victim(const struct model *model, uint32_t but)
{
	uint32_t best = MADE;

	for (uint32_t i = 0; i < model->count; i++) {
		const struct entry *e = &model->entries[i];

		if (i == but || !may_go(model, i))
			continue;
		if (best == MADE || e->used < model->entries[best].used ||
			(e->used == model->entries[best].used &&
				e->segment->id < model->entries[best].segment->id))
			best = i;
	}
	return best;
}

static uint32_t pick(const struct model *model, struct kvr_random *random)
{
	uint32_t entry = kvr_random_range(random, 0, model->count - 1);

	for (uint32_t i = 0; i < model->count && !model->entries[entry].stored; i++)
		entry = (entry + 1) % model->count;
	return model->entries[entry].stored ? entry : MADE;
}

static uint32_t find_id(const struct model *model, uint64_t id)
{
	for (uint32_t i = 0; i < model->count; i++) {
		if (model->entries[i].segment->id == id)
			return i;
	}
	return MADE;
}

/* ---- operations on both ---------------------------------------------------------------------- */

static void do_put(struct kvr_store_bed *bed, struct model *model, struct kvr_random *random)
{
	const uint32_t parent =
		model->count > 0 && kvr_random_range(random, 0, 3) > 0 ? pick(model, random) : MADE;
	struct entry *entry = &model->entries[model->count];
	const uint32_t out = model->stored == SLABS ? victim(model, parent) : MADE;
	uint64_t id = 0;
	int rc;

	entry->segment = kvr_store_sealed_any(bed,
		parent == MADE ? NULL : model->entries[parent].segment, kvr_random_next(random));
	if (entry->segment->layout.part_count != 1)
		fail();
	rc = kvr_store_test_put(bed, entry->segment);
	if (model->stored == SLABS && out == MADE) {
		assert_int_equal(rc, -ENOSPC);
		kvr_store_sealed_free(entry->segment);
		return;
	}
	assert_int_equal(rc, 0);
	if (out != MADE) {
		assert_int_equal(kvr_store_gone(bed->store, &id, 1), 1);
		assert_int_equal(id, model->entries[out].segment->id);
		model->entries[out].stored = false;
		model->stored--;
	}
	assert_int_equal(kvr_store_gone(bed->store, &id, 1), 0);
	kvr_store_unhold(bed->store, entry->segment->id);
	/* Uses are the test's own from here on; those of puts would be the clock's. */
	entry->used = kvr_random_range(random, 0, 40);
	assert_int_equal(kvr_store_test_mark(bed, entry->segment->id, entry->used, 0), 0);
	entry->parent = parent;
	entry->stored = true;
	model->stored++;
	model->count++;
}

static void do_mark(struct kvr_store_bed *bed, struct model *model, struct kvr_random *random)
{
	const uint32_t i = pick(model, random);

	if (i == MADE)
		return;
	model->entries[i].used = kvr_random_range(random, 0, 40);
	model->entries[i].pinned = kvr_random_range(random, 0, 5) == 0;
	assert_int_equal(
		kvr_store_test_mark(bed, model->entries[i].segment->id, model->entries[i].used,
			model->entries[i].pinned ? KVR_CATALOG_PINNED : 0),
		0);
}

static void do_hold(struct kvr_store_bed *bed, struct model *model, struct kvr_random *random)
{
	const uint32_t i = pick(model, random);

	if (i == MADE)
		return;
	if (model->entries[i].holds > 0 && kvr_random_range(random, 0, 2) > 0) {
		kvr_store_unhold(bed->store, model->entries[i].segment->id);
		model->entries[i].holds--;
	} else {
		assert_true(kvr_store_hold(bed->store, model->entries[i].segment->id));
		model->entries[i].holds++;
	}
}

/* Removes what a drop of the entry should; returns how many stay. Children have higher numbers. */
static uint32_t drop_model(struct model *model, uint32_t top, uint32_t *ret_removed)
{
	bool below[MADE] = {false};
	uint32_t kept = 0;

	below[top] = true;
	for (uint32_t i = top + 1; i < model->count; i++)
		below[i] = model->entries[i].stored && model->entries[i].parent != MADE &&
			   below[model->entries[i].parent];
	for (uint32_t i = model->count; i-- > top;) {
		if (!below[i] || !model->entries[i].stored)
			continue;
		if (may_go(model, i)) {
			model->entries[i].stored = false;
			model->stored--;
			(*ret_removed)++;
		} else {
			kept++;
		}
	}
	return kept;
}

static void do_drop(struct kvr_store_bed *bed, struct model *model, struct kvr_random *random)
{
	struct kvr_store_job job = {.op = KVR_STORE_DROP};
	const uint32_t i = pick(model, random);
	uint32_t removed = 0;
	uint32_t kept;
	uint64_t id;

	if (i == MADE)
		return;
	memcpy(job.drop.root, bed->model.root, KVR_HASH_BYTES);
	memcpy(job.drop.hash, model->entries[i].segment->hash, KVR_HASH_BYTES);
	kept = drop_model(model, i, &removed);
	assert_int_equal(kvr_store_test_run(bed, &job), 0);
	assert_int_equal(job.drop.segment_count, removed);
	assert_int_equal(job.drop.kept_count, kept);
	assert_int_equal(job.drop.freed_bytes, (uint64_t)removed * KVR_SLAB_BYTES);
	while (kvr_store_gone(bed->store, &id, 1) == 1) {
		assert_false(model->entries[find_id(model, id)].stored);
		removed--;
	}
	assert_int_equal(removed, 0);
}

static void check_all(struct kvr_store_bed *bed, const struct model *model)
{
	struct kvr_store_stat stat;

	kvr_store_stat(bed->store, &stat);
	assert_int_equal(stat.used_bytes, (uint64_t)model->stored * KVR_SLAB_BYTES);
	for (uint32_t i = 0; i < model->count; i++) {
		if (model->entries[i].stored)
			assert_int_equal(kvr_store_test_load(bed, model->entries[i].segment), 0);
	}
}

static void test_against_model(void **state)
{
	struct kvr_random random = kvr_random_start();
	struct model *model = calloc(1, sizeof(*model));
	struct kvr_store_bed bed;

	(void)state;
	kvr_store_bed_init(&bed, SLABS, KVR_NVME_IO_THREADS);
	kvr_store_test_reopen(&bed);
	for (uint32_t step = 0; step < STEPS; step++) {
		const uint32_t what = kvr_random_range(&random, 0, 99);

		if (model->count == 0 || what < 50)
			do_put(&bed, model, &random);
		else if (what < 70)
			do_mark(&bed, model, &random);
		else if (what < 95)
			do_hold(&bed, model, &random);
		else
			do_drop(&bed, model, &random);
		if (step % 250 == 249) {
			check_all(&bed, model);
			/* Holds end with the daemon; what was put is still there. */
			for (uint32_t i = 0; i < model->count; i++)
				model->entries[i].holds = 0;
			kvr_store_test_reopen(&bed);
			check_all(&bed, model);
		}
	}
	for (uint32_t i = 0; i < model->count; i++)
		kvr_store_sealed_free(model->entries[i].segment);
	free(model);
	kvr_store_bed_fini(&bed);
}

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

/* ---- at the same time ------------------------------------------------------------------------ */

/* Takes jobs back until both of these are. */
static void reap_two(struct kvr_store_bed *bed)
{
	struct kvr_store_job *done[2];
	uint32_t count = 0;

	while (count < 2) {
		struct pollfd ready = {.fd = kvr_store_fd(bed->store), .events = POLLIN};

		assert_int_equal(poll(&ready, 1, 60000), 1);
		count += kvr_store_reap(bed->store, done + count, 2 - count);
		(void)kvr_store_test_gone(bed); /* so that entries of the leaving vanish */
	}
}

/* A full store of two chains; a put evicts the end of one while a match looks for it: what it found with a hold, loads. */
static void test_match_while_evicting(void **state)
{
	struct kvr_random random = kvr_random_start();
	struct kvr_store_sealed *all[SLABS];
	uint32_t tokens[2][SLABS / 2 * 64];
	struct kvr_store_bed bed;

	(void)state;
	kvr_store_bed_init(&bed, SLABS, KVR_NVME_IO_THREADS);
	kvr_store_test_reopen(&bed);
	for (uint32_t i = 0; i < SLABS; i++) {
		all[i] = kvr_store_sealed_any(&bed, i % (SLABS / 2) ? all[i - 1] : NULL, i);
		kvr_store_test_keep(&bed, all[i]);
		memcpy(tokens[i / (SLABS / 2)] + i % (SLABS / 2) * 64, all[i]->tokens,
			64 * sizeof(**tokens));
	}
	for (uint32_t round = 0; round < 150; round++) {
		const uint32_t chain = kvr_random_range(&random, 0, 1);
		struct kvr_store_sealed *fresh =
			kvr_store_sealed_any(&bed, NULL, kvr_random_next(&random));
		struct kvr_store_job put = {
			.op = KVR_STORE_PUT,
			.put = {.model = &bed.model,
				.view = &fresh->view,
				.tokens = fresh->tokens,
				.quota_bytes = UINT64_MAX,
				.parts = fresh->parts,
				.crcs = fresh->crcs},
		};
		struct kvr_store_job match = {
			.op = KVR_STORE_MATCH,
			.match = {.name = kvr_store_test_name,
				.tokens = tokens[chain],
				.token_count = SLABS / 2 * 64},
		};

		memcpy(put.put.hash, fresh->hash, KVR_HASH_BYTES);
		memcpy(put.put.parent, fresh->parent, KVR_HASH_BYTES);
		memcpy(match.match.root, bed.model.root, KVR_HASH_BYTES);
		kvr_store_submit(bed.store, &put);
		kvr_store_submit(bed.store, &match);
		reap_two(&bed);
		assert_int_equal(match.status, 0);
		assert_int_equal(put.status, 0);
		kvr_store_unhold(bed.store, put.put.id);
		for (uint32_t i = 0; i < match.match.found_count; i++) {
			struct kvr_store_sealed *segment = all[chain * (SLABS / 2) + i];

			segment->id = match.match.found[i].id;
			assert_int_equal(kvr_store_test_load(&bed, segment), 0);
			kvr_store_unhold(bed.store, segment->id);
		}
		/* What is missing of the chain is put again. */
		for (uint32_t i = match.match.found_count; i < SLABS / 2; i++) {
			const int rc = kvr_store_test_put(&bed, all[chain * (SLABS / 2) + i]);

			if (rc == 0)
				kvr_store_unhold(bed.store, all[chain * (SLABS / 2) + i]->id);
			else
				assert_int_equal(rc, -ENOENT); /* its parent has gone again */
		}
		kvr_store_match_fini(&match.match);
		kvr_store_sealed_free(fresh);
	}
	for (uint32_t i = 0; i < SLABS; i++)
		kvr_store_sealed_free(all[i]);
	kvr_store_bed_fini(&bed);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_against_model),
		cmocka_unit_test(test_full_catalog),
		cmocka_unit_test(test_quota),
		cmocka_unit_test(test_write_budget),
		cmocka_unit_test(test_quarantine),
		cmocka_unit_test(test_drop_all),
		cmocka_unit_test(test_match_while_evicting),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* store_evict.c: what goes when slabs run out, and what may not go.
 *
 * Goal: the store removes the least recently used leaf, never what has a hold, a pin or a child
 * (H2), tells what went, and says so where nothing may go. What a match found with a hold can be
 * loaded, whatever the writer does meanwhile.
 *
 * Method: random puts, marks, holds and drops beside a model that keeps all segments in an array
 * and looks for the victim by going through all of it; matches and puts that overlap. */
#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "tests/tiers/slow_util.h"
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

/* A full store of two chains; a put evicts the end of one while a match looks for it: what it found
 * with a hold, loads. */
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
	for (uint32_t round = 0; round < (KVR_SLOW_THREAD ? 60 : 150); round++) {
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
		cmocka_unit_test(test_match_while_evicting),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

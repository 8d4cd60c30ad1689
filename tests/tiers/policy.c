/* SPDX-License-Identifier: Apache-2.0 */
/* policy.c: S3-FIFO and LRU.
 *
 * Goal: tiers/policy.h evicts in the order that S3-FIFO and LRU prescribe, keeps P1 and P2, never takes an
 * entry that may not go, and S3-FIFO is not worse than LRU where it claims to be better.
 *
 * Method: random operations side by side with a model that keeps its queues in plain arrays and its
 * ghost as a set of names, and must choose the same victim each time; a long random run that walks
 * the lists now and then; hit ratios on a stream of popular names (Zipf) mixed with scans. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <math.h>
#include <cmocka.h>

#include "tests/tiers/random_util.h"
#include "tiers/policy.h"

enum {
	ENTRIES = 64,
	NAMES = 96,
	GHOSTS = 65536, /* so many that the model's ghost need not forget */
};

static struct kvr_policy_ghost ghosts[GHOSTS];

/* ---- the model ------------------------------------------------------------------------------- */

struct model_queue {
	uint32_t count;
	uint32_t entries[ENTRIES]; /* oldest first */
};

struct model {
	enum kvr_policy_kind kind;
	struct model_queue small;
	struct model_queue main;
	uint64_t name[ENTRIES];
	uint64_t weight[ENTRIES];
	uint32_t used[ENTRIES];
	bool ghost[NAMES];
	bool pinned[ENTRIES];
	uint32_t asked; /* calls of may_evict */
};

static bool may_evict(void *context, uint32_t entry)
{
	struct model *model = context;

	model->asked++;
	return !model->pinned[entry];
}

static bool may_always(void *context, uint32_t entry)
{
	(void)context;
	(void)entry;
	return true;
}

static void model_push(struct model_queue *queue, uint32_t entry)
{
	queue->entries[queue->count++] = entry;
}

/* Takes the entry at `index` out. */
static uint32_t model_take(struct model_queue *queue, uint32_t index)
{
	uint32_t entry = queue->entries[index];

	queue->count--;
	memmove(&queue->entries[index], &queue->entries[index + 1],
		(queue->count - index) * sizeof(entry));
	return entry;
}

static bool model_remove(struct model_queue *queue, uint32_t entry)
{
	for (uint32_t i = 0; i < queue->count; i++)
		if (queue->entries[i] == entry) {
			model_take(queue, i);
			return true;
		}
	return false;
}

static uint64_t model_weight(const struct model *model, const struct model_queue *queue)
{
	uint64_t sum = 0;

	for (uint32_t i = 0; i < queue->count; i++)
		sum += model->weight[queue->entries[i]];
	return sum;
}

static void model_admit(struct model *model, uint32_t entry, uint64_t name, uint64_t weight)
{
	bool known = model->kind == KVR_POLICY_LRU || model->ghost[name];

	model->ghost[name] = false;
	model->name[entry] = name;
	model->weight[entry] = weight;
	model->used[entry] = 0;
	model_push(known ? &model->main : &model->small, entry);
}

static void model_touch(struct model *model, uint32_t entry)
{
	if (model->kind == KVR_POLICY_S3FIFO) {
		model->used[entry] += model->used[entry] < 3;
	} else {
		model_remove(&model->main, entry);
		model_push(&model->main, entry);
	}
}

static uint32_t model_evict_small(struct model *model)
{
	uint32_t looks = model->small.count;

	while (looks-- > 0) {
		uint32_t entry = model_take(&model->small, 0);

		if (model->used[entry] > 0) {
			model->used[entry] = 0;
			model_push(&model->main, entry);
		} else if (model->pinned[entry]) {
			model_push(&model->small, entry);
		} else {
			model->ghost[model->name[entry]] = true;
			return entry;
		}
	}
	return KVR_POLICY_NONE;
}

static uint32_t model_evict_main(struct model *model)
{
	uint32_t looks = model->main.count * (model->kind == KVR_POLICY_LRU ? 1 : 4);

	while (looks-- > 0) {
		uint32_t entry = model_take(&model->main, 0);

		if (model->used[entry] == 0 && !model->pinned[entry])
			return entry;
		model->used[entry] -= model->used[entry] > 0;
		model_push(&model->main, entry);
	}
	return KVR_POLICY_NONE;
}

static uint32_t model_evict(struct model *model)
{
	uint64_t small = model_weight(model, &model->small);
	uint64_t all = small + model_weight(model, &model->main);
	bool small_first = small > all / 4;
	uint32_t entry = KVR_POLICY_NONE;

	if (small_first)
		entry = model_evict_small(model);
	if (entry == KVR_POLICY_NONE)
		entry = model_evict_main(model);
	if (entry == KVR_POLICY_NONE && !small_first) {
		entry = model_evict_small(model);
		if (entry == KVR_POLICY_NONE)
			entry = model_evict_main(model);
	}
	return entry;
}

/* ---- the cases ------------------------------------------------------------------------------- */

/* P1: one queue as its links say it is. Returns how many entries it has. */
static uint32_t walk(
	const struct kvr_policy *policy, const struct kvr_policy_queue *queue, uint8_t name)
{
	uint32_t before = KVR_POLICY_NONE;
	uint32_t count = 0;
	uint64_t weight = 0;

	for (uint32_t e = queue->head; e != KVR_POLICY_NONE; e = policy->entries[e].next) {
		assert_true(count < policy->entry_max);
		assert_int_equal(policy->entries[e].queue, name);
		assert_int_equal(policy->entries[e].prev, before);
		assert_true(policy->entries[e].counter <= 3);
		weight += policy->entries[e].weight;
		count++;
		before = e;
	}
	assert_int_equal(queue->tail, before);
	assert_int_equal(queue->count, count);
	assert_int_equal(queue->weight, weight);
	return count;
}

static void check_all(const struct kvr_policy *policy)
{
	uint32_t in = 0;

	for (uint32_t e = 0; e < policy->entry_max; e++)
		in += policy->entries[e].queue != 0;
	assert_int_equal(walk(policy, &policy->small, 1) + walk(policy, &policy->main, 2), in);
}

static void against_model(struct kvr_random *random, enum kvr_policy_kind kind)
{
	static struct kvr_policy_entry entries[ENTRIES];
	struct kvr_policy policy;
	struct model model = {.kind = kind};
	bool name_in[NAMES] = {false};
	bool in[ENTRIES] = {false};
	uint32_t none = 0;
	uint32_t evicted = 0;

	memset(entries, 0, sizeof(entries));
	memset(ghosts, 0, sizeof(ghosts));
	kvr_policy_init(&policy, kind, entries, ENTRIES, kind == KVR_POLICY_LRU ? NULL : ghosts,
		kind == KVR_POLICY_LRU ? 0 : GHOSTS);
	for (uint32_t step = 0; step < 60000; step++) {
		uint32_t entry = kvr_random_range(random, 0, ENTRIES - 1);
		uint32_t name = kvr_random_range(random, 0, NAMES - 1);
		uint32_t action = kvr_random_range(random, 0, 99);

		model.pinned[entry] = kvr_random_range(random, 0, step / 10000) > 1;
		if (!in[entry] && !name_in[name]) {
			uint64_t weight = kvr_random_range(random, 1, 1000);

			kvr_policy_admit(&policy, entry, name, weight);
			model_admit(&model, entry, name, weight);
			in[entry] = true;
			name_in[name] = true;
		} else if (in[entry] && action < 40) {
			kvr_policy_touch(&policy, entry, 0);
			model_touch(&model, entry);
		} else if (in[entry] && action < 42) {
			kvr_policy_remove(&policy, entry);
			assert_int_equal(model_remove(&model.small, entry) +
						 model_remove(&model.main, entry),
				1);
			in[entry] = false;
			name_in[model.name[entry]] = false;
		} else if (action >= 42) {
			uint32_t resident = model.small.count + model.main.count;

			model.asked = 0;
			entry = kvr_policy_evict(&policy, may_evict, &model);
			assert_true(model.asked <= 8 * resident); /* P2 */
			assert_int_equal(entry, model_evict(&model));
			none += entry == KVR_POLICY_NONE;
			if (entry == KVR_POLICY_NONE)
				continue;
			assert_false(model.pinned[entry]);
			evicted++;
			in[entry] = false;
			name_in[model.name[entry]] = false;
		}
		check_all(&policy);
	}
	assert_true(evicted > 1000);
	assert_true(none > 100);
}

static void test_s3fifo_model(void **state)
{
	against_model(*state, KVR_POLICY_S3FIFO);
}

static void test_lru_model(void **state)
{
	against_model(*state, KVR_POLICY_LRU);
}

/* What may not go stays, whatever else goes; when it may, it goes. */
static void test_pinned(void **state)
{
	struct kvr_policy_entry entries[ENTRIES];
	struct kvr_policy policy;
	static struct model model;

	(void)state;
	for (int kind = KVR_POLICY_S3FIFO; kind <= KVR_POLICY_LRU; kind++) {
		memset(entries, 0, sizeof(entries));
		memset(ghosts, 0, sizeof(ghosts));
		kvr_policy_init(
			&policy, (enum kvr_policy_kind)kind, entries, ENTRIES, ghosts, GHOSTS);
		assert_int_equal(kvr_policy_evict(&policy, may_evict, &model), KVR_POLICY_NONE);
		for (uint32_t e = 0; e < ENTRIES; e++) {
			kvr_policy_admit(&policy, e, e, 1);
			model.pinned[e] = e % 2 == 0;
		}
		for (uint32_t i = 0; i < ENTRIES / 2; i++)
			assert_int_equal(kvr_policy_evict(&policy, may_evict, &model) % 2, 1);
		for (int i = 0; i < 10; i++)
			assert_int_equal(
				kvr_policy_evict(&policy, may_evict, &model), KVR_POLICY_NONE);
		check_all(&policy);
		assert_int_equal(policy.small.count + policy.main.count, ENTRIES / 2);
		model.pinned[6] = false;
		assert_int_equal(kvr_policy_evict(&policy, may_evict, &model), 6);
	}
}

/* Names are hashes in real life, and fall into the ghost's sets as it happens. */
static uint64_t hash_of(uint64_t number)
{
	struct kvr_random random = {number};

	return kvr_random_next(&random);
}

/* The ghost remembers most of what went lately and nothing that went long ago. */
static void test_ghost(void **state)
{
	const uint64_t count = 1024;
	struct kvr_policy_entry entries[1];
	struct kvr_policy policy;
	uint32_t known = 0;

	(void)state;
	memset(entries, 0, sizeof(entries));
	memset(ghosts, 0, sizeof(ghosts));
	kvr_policy_init(&policy, KVR_POLICY_S3FIFO, entries, 1, ghosts, (uint32_t)count);
	for (uint64_t name = 0; name < 10 * count; name++) {
		kvr_policy_admit(&policy, 0, hash_of(name), 1);
		assert_int_equal(policy.small.count, 1); /* never seen before */
		assert_int_equal(kvr_policy_evict(&policy, may_always, NULL), 0);
	}
	for (uint64_t name = 10 * count - count / 4; name < 10 * count; name++) {
		kvr_policy_admit(&policy, 0, hash_of(name), 1);
		known += policy.main.count;
		kvr_policy_remove(&policy, 0);
	}
	print_message("ghost: %u of the last %u known\n", known, (uint32_t)count / 4);
	assert_true(known >= count / 4 * 9 / 10);
	for (uint64_t name = 0; name < 9 * count; name++) {
		kvr_policy_admit(&policy, 0, hash_of(name), 1);
		assert_int_equal(policy.small.count, 1);
		kvr_policy_remove(&policy, 0);
	}
}

static void test_long_run(void **state)
{
	enum { MANY = 5000, STEPS = 1000000 };
	struct kvr_random *random = *state;
	static struct kvr_policy_entry entries[MANY];
	struct kvr_policy policy;

	memset(entries, 0, sizeof(entries));
	memset(ghosts, 0, sizeof(ghosts));
	kvr_policy_init(&policy, KVR_POLICY_S3FIFO, entries, MANY, ghosts, 4096);
	for (uint32_t step = 0; step < STEPS; step++) {
		uint32_t entry = kvr_random_range(random, 0, MANY - 1);

		if (entries[entry].queue == 0) {
			kvr_policy_admit(&policy, entry, kvr_random_range(random, 0, 20000),
				kvr_random_range(random, 1, 1u << 30));
		} else if (kvr_random_range(random, 0, 3) > 0) {
			kvr_policy_touch(&policy, entry, 0);
		} else if (kvr_random_range(random, 0, 9) == 0) {
			kvr_policy_remove(&policy, entry);
		} else {
			assert_int_not_equal(
				kvr_policy_evict(&policy, may_always, NULL), KVR_POLICY_NONE);
		}
		if (step % 10000 == 0)
			check_all(&policy);
	}
	check_all(&policy);
}

/* ---- hit ratios ------------------------------------------------------------------------------ */

enum {
	POPULAR = 20000,
	CACHE = 1000,
	ACCESSES = 400000,
	SCANNED_MAX = ACCESSES,
};

/* Names 0 .. POPULAR - 1 by Zipf with exponent 1; names above are scanned, each seen once. */
static void make_accesses(struct kvr_random *random, uint32_t *accesses)
{
	uint32_t scanned = POPULAR;

	for (uint32_t i = 0; i < ACCESSES; i++) {
		if (i % 4000 < 1000)
			accesses[i] = scanned++;
		else
			accesses[i] = (uint32_t)pow(POPULAR, kvr_random_unit(random)) - 1;
	}
}

static double hit_ratio(const uint32_t *accesses, enum kvr_policy_kind kind)
{
	static struct kvr_policy_entry entries[CACHE];
	static uint32_t where[POPULAR + SCANNED_MAX]; /* entry + 1 of a name, 0: not here */
	struct kvr_policy policy;
	uint32_t hits = 0;

	memset(where, 0, sizeof(where));
	memset(entries, 0, sizeof(entries));
	memset(ghosts, 0, sizeof(ghosts));
	kvr_policy_init(&policy, kind, entries, CACHE, ghosts, 1024);
	for (uint32_t i = 0; i < ACCESSES; i++) {
		uint32_t name = accesses[i];
		uint32_t entry = policy.small.count + policy.main.count;

		if (where[name] > 0) {
			hits++;
			kvr_policy_touch(&policy, where[name] - 1, 0);
			continue;
		}
		if (entry == CACHE) {
			entry = kvr_policy_evict(&policy, may_always, NULL);
			where[entries[entry].name] = 0;
		}
		kvr_policy_admit(&policy, entry, name, 1);
		where[name] = entry + 1;
	}
	return (double)hits / ACCESSES;
}

static void test_hit_ratio(void **state)
{
	static uint32_t accesses[ACCESSES];
	double s3fifo;
	double lru;

	make_accesses(*state, accesses);
	s3fifo = hit_ratio(accesses, KVR_POLICY_S3FIFO);
	lru = hit_ratio(accesses, KVR_POLICY_LRU);
	print_message("hit ratio: S3-FIFO %.4f, LRU %.4f\n", s3fifo, lru);
	assert_true(s3fifo >= lru);
}

int main(void)
{
	struct kvr_random random = kvr_random_start();
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_prestate(test_s3fifo_model, &random),
		cmocka_unit_test_prestate(test_lru_model, &random),
		cmocka_unit_test(test_pinned),
		cmocka_unit_test(test_ghost),
		cmocka_unit_test_prestate(test_long_run, &random),
		cmocka_unit_test_prestate(test_hit_ratio, &random),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
